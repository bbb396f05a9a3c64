"""What else people do with kubectl: ways to print, to apply, to delete and to wait; and what is not offered, refused readably."""

from pathlib import Path
from typing import Any

import msgspec

from tests.openapi.support import Server, application, config_map
from tests.openapi.test_kubectl import APP, Kubectl, pytestmark, with_kubectl

__all__ = ["pytestmark"]


def manifest(*documents: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": list(documents)})


def labelled(document: dict[str, Any], **labels: str) -> dict[str, Any]:
    return {**document, "metadata": {**document["metadata"], "labels": labels}}


def test_a_list_is_described_well_enough_for_kubectl(tmp_path: Path) -> None:
    """kubectl asks for the older document before it applies a List, as what it got for several objects is."""

    async def body(server: Server, kubectl: Kubectl) -> None:
        assert msgspec.json.decode(await kubectl("get", "--raw", "/openapi/v2"))["swagger"] == "2.0"
        await kubectl("apply", "-f", "-", stdin=manifest(application("a"), config_map("m", x="1")))
        again = await kubectl("get", "app/a", "configmap/m", "-o", "yaml")
        assert "kind: List" in again
        assert (await kubectl("apply", "-f", "-", stdin=again.encode())).count("configured") == 2
        wrong = application("b", component={"replcas": 3})
        assert "did you mean replicas?" in await kubectl("apply", "-f", "-", stdin=manifest(wrong), code=1)

    with_kubectl(tmp_path, body)


def test_ways_to_print(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        await kubectl("apply", "-f", "-", stdin=manifest(labelled(application("b"), tier="edge"), labelled(application("a"), tier="hub")))
        columns = await kubectl("get", "apps", "-o", "custom-columns=N:.metadata.name,R:.spec.components[0].replicas")
        assert [line.split() for line in columns.splitlines()] == [["N", "R"], ["a", "2"], ["b", "2"]]
        assert await kubectl("get", "apps", "-o", "name") == "application.banyan.dev/a\napplication.banyan.dev/b\n"
        assert await kubectl("get", "apps", "-o", "jsonpath={.items[*].metadata.name}") == "a b"
        assert await kubectl("get", "apps", "-o", "go-template={{range .items}}{{.metadata.name}};{{end}}") == "a;b;"
        ordered = await kubectl("get", "apps", "--sort-by={.metadata.labels.tier}", "-L", "tier", "--show-labels", "--no-headers")
        assert [(line.split()[0], line.split()[-2], line.split()[-1]) for line in ordered.splitlines()] == [
            ("b", "edge", "tier=edge"),
            ("a", "hub", "tier=hub"),
        ]
        assert msgspec.json.decode(await kubectl("get", "app", "a", "-o", "json"))["kind"] == "Application"
        both = await kubectl("get", "apps,configmaps", "-A", "-o", "name")
        assert "application.banyan.dev/a" in both
        assert "applications" in await kubectl("get", "--raw", "/apis/banyan.dev/v1alpha1")
        assert await kubectl("get", "apps", "--ignore-not-found", "nonesuch") == ""
        assert (await kubectl("get", "apps", "--field-selector", "metadata.name!=a", "-o", "name")).strip() == "application.banyan.dev/b"
        assert "field label not supported: spec.x" in await kubectl("get", "apps", "--field-selector", "spec.x=1", code=1)
        assert "unable to parse the selector" in await kubectl("get", "apps", "-l", "!!", code=1)

    with_kubectl(tmp_path, body)


def test_apply_merges_three_ways_and_prunes(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        mine = labelled(config_map("m", a="1", b="2"), set="yes")
        await kubectl("apply", "-f", "-", stdin=manifest(mine, labelled(config_map("old", x="y"), set="yes")))
        await kubectl("patch", "configmap", "m", "-p", '{"data":{"theirs":"kept"}}')
        changed = labelled(config_map("m", a="1"), set="yes")
        assert "-  b:" in await diff(kubectl, manifest(changed))
        out = await kubectl("apply", "--prune", "-l", "set=yes", "--prune-allowlist=core/v1/ConfigMap", "-f", "-", stdin=manifest(changed))
        assert "configmap/m configured" in out and "configmap/old pruned" in out
        left = msgspec.json.decode(await kubectl("get", "configmaps", "-o", "json"))["items"]
        assert [(item["metadata"]["name"], item["data"]) for item in left] == [("m", {"a": "1", "theirs": "kept"})]
        await kubectl("apply", "-f", "-", stdin=APP)
        more = msgspec.json.decode(APP)
        more["spec"]["components"][0]["env"] = [{"name": "A", "value": "1"}]
        await kubectl("apply", "-f", "-", stdin=msgspec.json.encode(more))
        await kubectl("scale", "app/emotion", "--replicas=7")
        await kubectl("apply", "-f", "-", stdin=APP)  # what apply set and now leaves out goes
        component = msgspec.json.decode(await kubectl("get", "app", "emotion", "-o", "json"))["spec"]["components"][0]
        assert "env" not in component
        assert "last-applied-configuration" in await kubectl("get", "app", "emotion", "-o", "yaml")
        assert "components" in await kubectl("apply", "view-last-applied", "app/emotion")

    async def diff(kubectl: Kubectl, document: bytes) -> str:
        process = await kubectl.start("diff", "-f", "-")
        out, err = await process.communicate(document)
        assert process.returncode == 1, err.decode()
        return out.decode()

    with_kubectl(tmp_path, body)


def test_create_replace_delete_and_wait(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        assert "created (server dry run)" in await kubectl("create", "--dry-run=server", "-f", "-", stdin=APP)
        assert await kubectl("get", "apps", "-o", "name") == ""
        await kubectl("create", "-f", "-", stdin=APP)
        uid = await kubectl("get", "app", "emotion", "-o", "jsonpath={.metadata.uid}")
        assert "replaced" in await kubectl("replace", "-f", "-", stdin=APP.replace(b'"replicas":2', b'"replicas":4'))
        assert await kubectl("get", "app", "emotion", "-o", "jsonpath={.metadata.uid} {.spec.components[0].replicas}") == f"{uid} 4"
        assert "replaced" in await kubectl("replace", "--force", "-f", "-", stdin=APP)
        assert await kubectl("get", "app", "emotion", "-o", "jsonpath={.metadata.uid}") != uid
        stale = msgspec.json.decode(APP)
        stale["metadata"]["resourceVersion"] = "1"
        assert "the object has been modified" in await kubectl("replace", "-f", "-", stdin=msgspec.json.encode(stale), code=1)
        assert "AlreadyExists" in await kubectl("create", "-f", "-", stdin=APP, code=1)
        for name in ("x", "y", "z"):
            await kubectl("create", "configmap", name, "--from-literal=a=b")
        await kubectl("label", "configmap", "x", "y", "go=now")
        assert (await kubectl("delete", "configmap", "-l", "go=now", "--cascade=foreground")).count("deleted") == 2
        assert "deleted" in await kubectl("delete", "configmap", "z", "--cascade=orphan", "--wait=true")
        await kubectl("delete", "configmap", "z", "--ignore-not-found")
        assert "NotFound" in await kubectl("delete", "configmap", "z", code=1)
        await kubectl("wait", "configmap/z", "--for=delete", "--timeout=10s")
        await kubectl("annotate", "app", "emotion", "note=x")
        await kubectl("annotate", "app", "emotion", "note-")
        assert "note" not in await kubectl("get", "app", "emotion", "-o", "jsonpath={.metadata.annotations}")
        assert "invalid label value" in await kubectl("label", "app", "emotion", "a=no spaces", code=1)
        waiting = await kubectl.start("wait", "app/emotion", "--for=condition=Ready", "--timeout=30s")
        ready = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": "2026-11-21T12:00:00Z"}
        status = {"status": {"conditions": [ready]}}
        await kubectl("patch", "app", "emotion", "--subresource=status", "--type=merge", "-p", msgspec.json.encode(status).decode())
        out, err = await waiting.communicate()
        assert b"condition met" in out, err
        assert "timed out" in await kubectl("wait", "app/emotion", "--for=condition=None", "--timeout=1s", code=1)
        assert "deleted" in await kubectl("delete", "apps", "--all", "--grace-period=0")

    with_kubectl(tmp_path, body)


def test_logs_of_all_kinds(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        labels = {"banyan.dev/application": "emotion", "banyan.dev/application-uid": "u", "banyan.dev/component": "serve"}
        pod = {"containers": [{"name": "serve"}], "nodeName": "n1"}
        await server.put("observed", "Pod", "p1", "default", metadata={"labels": labels}, spec=pod, status={"phase": "Running"})
        server.services.logs["p1"] = [b"one\n"]
        asked = {
            ("--tail=5", "--timestamps"): {"tailLines": "5", "timestamps": "true"},
            ("--since=90s",): {"sinceSeconds": "90"},
            ("--since-time=2026-11-21T11:58:20Z",): {"sinceSeconds": "100"},
            ("--previous",): {"previous": "true"},
            ("-p", "-c", "serve", "--limit-bytes=9"): {"previous": "true", "limitBytes": "9"},
            ("--all-containers",): {},
        }
        for arguments, options in asked.items():
            assert (await kubectl("logs", "p1", *arguments)).endswith("one\n")
            assert server.services.opened[-1].options == options
        assert await kubectl("logs", "-l", "banyan.dev/application=emotion", "--prefix") == "[pod/p1/serve] one\n"
        assert "container nope is not valid for pod p1" in await kubectl("logs", "p1", "-c", "nope", code=1)
        assert 'pods "p2" not found' in await kubectl("logs", "p2", code=1)
        tried = {
            ("exec", "p1", "--", "ls"): "cannot be entered",
            ("attach", "p1"): "cannot be entered",
            ("port-forward", "p1", "1:1"): "proxy/",
        }
        for arguments, says in tried.items():
            assert says in await kubectl(*arguments, code=1), arguments
        assert "change, scale or delete the Application" in await kubectl("delete", "pod", "p1", code=1)

    with_kubectl(tmp_path, body)


REFUSED = {
    "top nodes": "Metrics API not available",
    "top pods": "Metrics API not available",
    "run x --image=nginx": "change, scale or delete the Application",
    "create quota q --hard=pods=1": "is not served here; kubectl api-resources lists what is",
    "create deployment d --image=nginx": "kubectl api-resources lists what is served",
    "create serviceaccount s": "is not served here",
    "create token s": "is not served here",
    "autoscale app/emotion --min=1 --max=2": "kubectl api-resources lists what is served",
    "rollout undo app/emotion": 'no kind "Application"',  # kubectl itself, before it asks: banyan undo
    "rollout status app/emotion": 'no kind "Application"',
    "get rockets": 'doesn\'t have a resource type "rockets"',
    "cordon n1": "kubectl patch cluster NAME",
    "taint node n1 a=b:NoSchedule": "kubectl patch cluster NAME",
    "get apps --as=bob": "impersonation (kubectl --as) is not offered",
    "apply --server-side -f app.json": "use kubectl apply without --server-side",
    "create -f two.json": "no DNS label",
}


def test_what_is_not_offered_is_refused_readably(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        (tmp_path / "app.json").write_bytes(APP)
        (tmp_path / "two.json").write_bytes(APP.replace(b'"emotion"', b'"Bad_Name"'))
        await kubectl("create", "-f", "app.json")
        await server.put("observed", "Node", "n1", status={"conditions": [{"type": "Ready", "status": "True"}]})
        for command, says in REFUSED.items():
            process = await kubectl.start(*command.split())
            out, err = await process.communicate()
            assert says in (out + err).decode(), (command, out, err)
            assert process.returncode or command.startswith("cordon"), command  # which says so and ends with 0

    with_kubectl(tmp_path, body)


def test_asking_about_oneself_and_the_server(tmp_path: Path) -> None:
    async def body(server: Server, kubectl: Kubectl) -> None:
        assert msgspec.json.decode(await kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]["username"] == "ada"
        listed = await kubectl("auth", "can-i", "--list", "-n", "team", token="edit-token")
        assert "secrets" in listed and "create delete" in listed
        assert "secrets" not in await kubectl("auth", "can-i", "--list", token="view-token")
        assert await kubectl("auth", "can-i", "get", "pods", "--subresource=log") == "yes\n"
        assert await kubectl("auth", "can-i", "create", "apps", "-n", "team", token="edit-token") == "yes\n"
        assert "banyan.dev/v1alpha1" in await kubectl("api-versions")
        assert "clusters.banyan.dev" in await kubectl("api-resources", "--verbs=list,watch", "-o", "name")
        assert "cl " in await kubectl("api-resources", "--api-group=banyan.dev", "-o", "wide")
        explained = await kubectl("explain", "application", "--recursive", "--api-version=banyan.dev/v1alpha1")
        assert "onUnreachable" in explained
        assert "role edit" in await kubectl("create", "configmap", "x", token="edit-token", code=1), "of team, not of default"
        assert "created" in await kubectl("create", "namespace", "team")
        assert "created" in await kubectl("create", "configmap", "x", "-n", "team", token="edit-token")
        assert "gitVersion: v1.32.0+banyan-0.1.0" in await kubectl("version", "--output=yaml")

    with_kubectl(tmp_path, body)
