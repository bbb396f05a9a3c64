"""Objects through the API: what may be written, what conflicts, what goes and what waits."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster_controller.store import Key
from tests.openapi.support import EDITOR, GROUP, VIEWER, Server, application, config_map, run

APPS = f"{GROUP}/namespaces/default/applications"
MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = {"content-type": "application/merge-patch+json"}
JSON = {"content-type": "application/json-patch+json"}
STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}


def failed(answer: httpx.Response, code: int, reason: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["kind"], body["status"], body["code"], body["reason"]) == (code, "Status", "Failure", code, reason), (
        body
    )
    assert body["message"]
    return body


def ok(answer: httpx.Response, code: int = 200) -> dict[str, Any]:
    assert answer.status_code == code, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_create_sets_what_is_the_servers(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        document = application()
        document["metadata"] |= {
            "uid": "mine",
            "generation": 9,
            "creationTimestamp": "1999-01-01T00:00:00Z",
            "managedFields": [{}],
            "selfLink": "x",
        }
        document["status"] = {"phase": "Running"}
        found = ok(await server.admin.post(APPS, json=document), 201)
        metadata = found["metadata"]
        assert metadata["uid"] != "mine" and metadata["generation"] == 1 and metadata["creationTimestamp"] == "2026-11-21T12:00:00Z"
        assert "managedFields" not in metadata and "selfLink" not in metadata and "status" not in found
        assert metadata["resourceVersion"] == str(server.store.revision)
        assert ok(await server.admin.get(f"{APPS}/emotion")) == found
        assert failed(await server.admin.post(APPS, json=application()), 409, "AlreadyExists")["details"]["name"] == "emotion"

    run(tmp_path, body)


def test_generate_name(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        names = set()
        for _ in range(3):
            document = config_map("")
            document["metadata"]["generateName"] = "run-"
            names.add(ok(await server.admin.post(MAPS, json=document), 201)["metadata"]["name"])
        assert len(names) == 3 and all(name.startswith("run-") and len(name) == 9 for name in names)

    run(tmp_path, body)


def test_update_needs_the_newest_revision(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        first = ok(await server.admin.post(APPS, json=application()), 201)
        first["spec"]["components"][0]["replicas"] = 3
        second = ok(await server.admin.put(f"{APPS}/emotion", json=first))
        assert second["metadata"]["generation"] == 2 and second["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        details = failed(await server.admin.put(f"{APPS}/emotion", json=first), 409, "Conflict")
        assert "please apply your changes to the latest version" in details["message"]
        del first["metadata"]["resourceVersion"]
        assert ok(await server.admin.put(f"{APPS}/emotion", json=first)) == second, "the same again changes nothing"
        first["metadata"]["labels"] = {"a": "b"}
        third = ok(await server.admin.put(f"{APPS}/emotion", json=first))
        assert third["metadata"]["generation"] == 2, "labels are no change of spec"
        first["metadata"]["uid"] = "another"
        failed(await server.admin.put(f"{APPS}/emotion", json=first), 409, "Conflict")
        failed(await server.admin.put(f"{APPS}/other", json=application("other")), 404, "NotFound")
        failed(await server.admin.put(f"{APPS}/emotion", json=application("other")), 400, "BadRequest")

    run(tmp_path, body)


def test_patches(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.admin.post(APPS, json=application())
        await server.admin.post(MAPS, json=config_map("m", a="1"))
        patched = ok(await server.admin.patch(f"{APPS}/emotion", json={"metadata": {"labels": {"x": "y"}}}, headers=MERGE))
        assert patched["metadata"]["labels"] == {"x": "y"}
        patch = [{"op": "replace", "path": "/spec/components/0/replicas", "value": 7}]
        assert ok(await server.admin.patch(f"{APPS}/emotion", json=patch, headers=JSON))["spec"]["components"][0]["replicas"] == 7
        assert ok(await server.admin.patch(f"{MAPS}/m", json={"data": {"a": None, "b": "2"}}, headers=STRATEGIC))["data"] == {"b": "2"}
        stale = {"metadata": {"resourceVersion": "1"}, "data": {"c": "3"}}
        failed(await server.admin.patch(f"{MAPS}/m", json=stale, headers=MERGE), 409, "Conflict")
        failed(await server.admin.patch(f"{APPS}/emotion", json={}, headers=STRATEGIC), 415, "UnsupportedMediaType")
        refusal = failed(
            await server.admin.patch(f"{APPS}/emotion", content=b"{}", headers={"content-type": "application/apply-patch+yaml"}),
            415,
            "UnsupportedMediaType",
        )
        assert "without --server-side" in refusal["message"]
        failed(await server.admin.patch(f"{APPS}/emotion", json=[{"op": "remove", "path": "/none"}], headers=JSON), 422, "Invalid")
        failed(await server.admin.patch(f"{APPS}/emotion", json={"spec": {"nope": 1}}, headers=MERGE), 422, "Invalid")
        failed(await server.admin.patch(f"{APPS}/none", json={}, headers=MERGE), 404, "NotFound")

    run(tmp_path, body)


def test_status_belongs_to_its_subresource(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        first = ok(await server.admin.post(APPS, json=application()), 201)
        first["status"] = {"phase": "Running", "desired": 2, "ready": 2}
        assert "status" not in ok(await server.admin.put(f"{APPS}/emotion", json=first))
        first["spec"] = {"components": []}
        written = ok(await server.admin.put(f"{APPS}/emotion/status", json=first))
        assert (
            written["status"]["phase"] == "Running" and len(written["spec"]["components"]) == 1 and written["metadata"]["generation"] == 1
        )
        assert ok(await server.admin.get(f"{APPS}/emotion/status"))["status"] == first["status"]
        kept = ok(
            await server.admin.patch(
                f"{APPS}/emotion", json={"spec": {"placement": {"clusterName": "a"}}, "status": {"phase": "x"}}, headers=MERGE
            )
        )
        assert kept["status"]["phase"] == "Running"
        assert ok(await server.admin.patch(f"{APPS}/emotion/status", json={"status": {"ready": 1}}, headers=MERGE))["status"]["ready"] == 1

    run(tmp_path, body)


def test_finalizers_hold_an_object(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.admin.post(APPS, json=application("held"))
        going = ok(await server.admin.delete(f"{APPS}/held"))
        assert going["kind"] == "Application" and going["metadata"]["deletionTimestamp"] and going["metadata"]["generation"] == 2
        again = ok(await server.admin.delete(f"{APPS}/held"))
        assert again["metadata"]["resourceVersion"] == going["metadata"]["resourceVersion"]
        added = {"metadata": {"finalizers": ["banyan.dev/withdraw", "example.com/more"]}}
        failed(await server.admin.patch(f"{APPS}/held", json=added, headers=MERGE), 422, "Invalid")
        ok(await server.admin.patch(f"{APPS}/held", json={"metadata": {"finalizers": None}}, headers=MERGE))
        failed(await server.admin.get(f"{APPS}/held"), 404, "NotFound")

    run(tmp_path, body)


def test_delete_answers_and_preconditions(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        made = ok(await server.admin.post(MAPS, json=config_map("m")), 201)["metadata"]

        async def delete(**options: Any) -> httpx.Response:
            return await server.admin.request("DELETE", f"{MAPS}/m", json={"kind": "DeleteOptions", "apiVersion": "v1", **options})

        failed(await delete(preconditions={"uid": "other"}), 409, "Conflict")
        failed(await delete(preconditions={"resourceVersion": "1"}), 409, "Conflict")
        failed(await delete(propagationPolicy="Sometimes"), 400, "BadRequest")
        failed(await delete(preconditions={"uid": 3}), 400, "BadRequest")
        assert ok(await delete(dryRun=["All"]))["status"] == "Success"
        gone = ok(await delete(preconditions={"uid": made["uid"], "resourceVersion": made["resourceVersion"]}))
        assert gone["kind"] == "Status" and gone["details"] == {"name": "m", "kind": "configmaps", "uid": made["uid"]}
        failed(await delete(), 404, "NotFound")

    run(tmp_path, body)


def owned(name: str, owner: dict[str, Any], *finalizers: str) -> dict[str, Any]:
    document = config_map(name)
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    document["metadata"] |= {"ownerReferences": [reference], "finalizers": list(finalizers)}
    return document


@pytest.mark.parametrize("policy", ["Background", "Orphan", "Foreground"])
def test_dependents_follow_the_propagation_policy(tmp_path: Path, policy: str) -> None:
    async def body(server: Server) -> None:
        owner = ok(await server.admin.post(MAPS, json=config_map("owner")), 201)
        await server.admin.post(MAPS, json=owned("free", owner))
        await server.admin.post(MAPS, json=owned("bound", owner, "example.com/wait"))
        answer = ok(await server.admin.delete(f"{MAPS}/owner", params={"propagationPolicy": policy}))
        free, bound = [await server.admin.get(f"{MAPS}/{name}") for name in ("free", "bound")]
        if policy == "Orphan":
            assert answer["status"] == "Success" and ok(free)["metadata"]["ownerReferences"] == []
            assert "deletionTimestamp" not in ok(bound)["metadata"]
            return
        failed(free, 404, "NotFound")
        assert ok(bound)["metadata"]["deletionTimestamp"]
        if policy == "Background":
            assert answer["status"] == "Success"
            return
        assert answer["metadata"]["finalizers"] == ["foregroundDeletion"]
        events = _deletions(server)
        ok(await server.admin.patch(f"{MAPS}/bound", json={"metadata": {"finalizers": None}}, headers=MERGE))
        await events("owner")
        failed(await server.admin.get(f"{MAPS}/owner"), 404, "NotFound")

    run(tmp_path, body)


def _deletions(server: Server) -> Any:
    import asyncio

    gone: dict[str, asyncio.Event] = {}

    def changed(events: Any) -> None:
        for event in events:
            if event.kind_of == "delete":
                gone.setdefault(event.stored.key.name, asyncio.Event()).set()

    server.store.subscribe(changed)

    async def wait(name: str) -> None:
        async with asyncio.timeout(10):
            await gone.setdefault(name, asyncio.Event()).wait()

    return wait


def test_a_namespace_takes_its_content_with_it(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
        made = ok(await server.admin.post("/api/v1/namespaces", json=namespace), 201)
        assert made["status"] == {"phase": "Active"}
        maps = "/api/v1/namespaces/team/configmaps"
        held = config_map("held", "team")
        held["metadata"]["finalizers"] = ["example.com/wait"]
        for document in (config_map("m", "team"), held):
            ok(await server.admin.post(maps, json=document), 201)
        going = ok(await server.admin.delete("/api/v1/namespaces/team"))
        assert going["status"]["phase"] == "Terminating"
        failed(await server.admin.get(f"{maps}/m"), 404, "NotFound")
        refused = failed(await server.admin.post(maps, json=config_map("n", "team")), 403, "Forbidden")
        assert refused["details"]["causes"][0]["reason"] == "NamespaceTerminating"
        gone = _deletions(server)
        await server.admin.patch(f"{maps}/held", json={"metadata": {"finalizers": None}}, headers=MERGE)
        await gone("team")
        failed(await server.admin.get("/api/v1/namespaces/team"), 404, "NotFound")
        failed(await server.admin.delete("/api/v1/namespaces/default"), 403, "Forbidden")
        failed(await server.admin.post(maps, json=config_map("n", "team")), 404, "NotFound")

    run(tmp_path, body)


def test_dry_run_does_everything_but_store(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        dry = {"dryRun": "All"}
        before = server.store.revision
        assert ok(await server.admin.post(APPS, json=application(), params=dry), 201)["metadata"]["uid"]
        failed(await server.admin.get(f"{APPS}/emotion"), 404, "NotFound")
        assert server.store.revision == before
        made = ok(await server.admin.post(APPS, json=application()), 201)
        shown = ok(await server.admin.patch(f"{APPS}/emotion", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE, params=dry))
        assert shown["metadata"]["labels"] == {"a": "b"} and shown["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
        failed(await server.admin.post(APPS, json=application(), params=dry), 409, "AlreadyExists")
        failed(await server.admin.post(APPS, json=application("refused"), params=dry), 422, "Invalid")
        ok(await server.admin.delete(f"{APPS}/emotion", params=dry))
        assert ok(await server.admin.get(f"{APPS}/emotion")) == made
        failed(await server.admin.post(APPS, json=application("x"), params={"dryRun": "Some"}), 400, "BadRequest")

    run(tmp_path, body)


def test_hooks_prepare_refuse_and_show_once(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        token = {"apiVersion": "banyan.dev/v1alpha1", "kind": "JoinToken", "metadata": {"name": "t"}, "spec": {"parent": "root"}}
        made = ok(await server.admin.post(f"{GROUP}/jointokens", json=token), 201)
        assert made["status"]["token"] == "banyan-secret" and made["status"]["phase"] == "Open"
        stored = server.store.get(Key("own", "JoinToken", "", "t"))
        assert stored is not None and b"banyan-secret" not in stored.document
        assert "token" not in ok(await server.admin.get(f"{GROUP}/jointokens/t"))["status"]
        refused = failed(await server.admin.post(APPS, json=application("refused")), 422, "Invalid")
        assert refused["details"]["causes"] == [{"reason": "FieldValueInvalid", "message": "this hook refuses it", "field": "spec.why"}]
        assert server.store.get(Key("own", "Application", "default", "refused")) is None

    run(tmp_path, body)


def test_secrets_take_plain_text_and_are_for_editors(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "q"}}
        made = ok(await server.admin.post("/api/v1/namespaces/default/secrets", json=secret), 201)
        assert made["data"] == {"p": "cQ=="} and "stringData" not in made and made["type"] == "Opaque"
        for user in (VIEWER, EDITOR):
            failed(await server.client(user).get("/api/v1/namespaces/default/secrets/s"), 403, "Forbidden")
        table = ok(
            await server.admin.get("/api/v1/namespaces/default/secrets", headers={"accept": "application/json;as=Table;g=meta.k8s.io;v=v1"})
        )
        assert "cQ==" not in str(table)

    run(tmp_path, body)


def test_scale(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.admin.post(APPS, json=application())
        scale = ok(await server.admin.get(f"{APPS}/emotion/scale"))
        assert scale["kind"] == "Scale" and scale["spec"] == {"replicas": 2}
        scale["spec"]["replicas"] = 5
        assert ok(await server.admin.put(f"{APPS}/emotion/scale", json=scale))["spec"] == {"replicas": 5}
        failed(await server.admin.put(f"{APPS}/emotion/scale", json=scale), 409, "Conflict")
        assert ok(await server.admin.patch(f"{APPS}/emotion/scale", json={"spec": {"replicas": 0}}, headers=MERGE))["spec"] == {
            "replicas": 0
        }
        assert ok(await server.admin.get(f"{APPS}/emotion"))["spec"]["components"][0]["replicas"] == 0
        for bad in ({"replicas": -1}, {"replicas": "x"}, {"replicas": 10**7}):
            failed(await server.admin.patch(f"{APPS}/emotion/scale", json={"spec": bad}, headers=MERGE), 422, "Invalid")
        two = application("two")
        two["spec"]["components"].append({"name": "b", "command": ["x"]})
        await server.admin.post(APPS, json=two)
        for answer in (
            await server.admin.get(f"{APPS}/two/scale"),
            await server.admin.patch(f"{APPS}/two/scale", json={"spec": {"replicas": 1}}, headers=MERGE),
        ):
            assert "exactly one" in failed(answer, 422, "Invalid")["message"]

    run(tmp_path, body)


def test_custom_subresources_reach_their_room(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.admin.post(APPS, json=application())
        await server.put("own", "Cluster", "edge-1", spec={})
        assert ok(await server.admin.get(f"{APPS}/emotion/explain"))["subresource"] == "explain"
        assert ok(await server.admin.post(f"{APPS}/emotion/undo", json={"revision": 2}))["subresource"] == "undo"
        assert server.services.hooks.asked[-1].body == {"revision": 2}
        assert ok(await server.admin.post(f"{GROUP}/clusters/edge-1/approve"))["name"] == "edge-1"
        page = ok(await server.admin.get(f"{APPS}/emotion/clusters"))
        assert len(page["items"]) == 500 and page["metadata"] == {"continue": "500", "remainingItemCount": 700}
        last = ok(await server.admin.get(f"{APPS}/emotion/clusters", params={"continue": "1000", "limit": "300"}))
        assert [each["name"] for each in last["items"]][:1] == ["edge-1000"] and last["metadata"] == {}
        failed(await server.admin.get(f"{APPS}/emotion/clusters", params={"continue": "x"}), 400, "BadRequest")
        failed(await server.admin.get(f"{APPS}/none/explain"), 404, "NotFound")
        failed(await server.admin.get(f"{APPS}/emotion/nothing"), 404, "NotFound")
        answer = await server.admin.get(f"{APPS}/emotion/undo")
        failed(answer, 405, "MethodNotAllowed")
        assert answer.headers["allow"] == "POST"
        failed(await server.client(VIEWER).post(f"{GROUP}/clusters/edge-1/approve"), 403, "Forbidden")
        failed(await server.admin.get(f"{APPS}/emotion/proxy/v2/health"), 501, "NotImplemented")

    run(tmp_path, body)


def test_delete_collection_by_selector(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        for name, tier in (("a", "x"), ("b", "x"), ("c", "y")):
            document = config_map(name)
            document["metadata"]["labels"] = {"tier": tier}
            await server.admin.post(MAPS, json=document)
        gone = ok(await server.admin.delete(MAPS, params={"labelSelector": "tier=x"}))
        assert [each["metadata"]["name"] for each in gone["items"]] == ["a", "b"]
        assert [each["metadata"]["name"] for each in ok(await server.admin.get(MAPS))["items"]] == ["c"]

    run(tmp_path, body)


def test_services_are_an_empty_list_and_hide_no_object_of_that_name(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        ok(await server.admin.post(MAPS, json=config_map("services")), 201)
        assert ok(await server.admin.get(f"{MAPS}/services"))["kind"] == "ConfigMap"
        for path in ("/api/v1/services", "/api/v1/namespaces/kube-system/services"):
            assert ok(await server.admin.get(path))["items"] == []

    run(tmp_path, body)
