"""What a real API server refuses, and what becomes of objects that change under us."""

import asyncio
import base64
import hashlib
import http.server
import io
import json
import ssl
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from cluster_shim import contract
from cluster_shim.kubernetes.helm import Helm
from e2e.applying import (
    bench,
    config_map,
    configs,
    container,
    definition,
    deployment,
    eventually,
    manifest,
    of_manifests,
    unique,
    with_components,
    work,
)
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")


# --- what cannot be changed ---


def app(name: str, label: str) -> dict[str, object]:
    template = {"metadata": {"labels": {"app": label}}, "spec": {"containers": [{"name": "c", "image": "nowhere/c:1"}]}}
    return manifest("apps/v1", "Deployment", name, spec={"selector": {"matchLabels": {"app": label}}, "template": template})


def test_an_immutable_field_is_told_and_the_object_made_anew_where_that_is_allowed(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("fixed")
            mine = work(of_manifests(app(name, "one")))
            assert await b.apply(mine) == {}
            path = f"/apis/apps/v1/namespaces/default/deployments/{name}"
            uid = (await b.get(path))["metadata"]["uid"]
            changed = with_components(mine, of_manifests(app(name, "two")))
            said = await b.apply(changed)
            assert said["things"][0] == "Immutable"
            assert f"Deployment default/{name}" in said["things"][1] and "field is immutable" in said["things"][1]
            assert (await b.get(path))["metadata"]["uid"] == uid
            assert await b.apply(msgspec.structs.replace(changed, recreate=True)) == {}
            made = await b.get(path)
            assert made["metadata"]["uid"] != uid and made["spec"]["selector"]["matchLabels"] == {"app": "two"}
            await b.remove(mine.uid)

    asyncio.run(run())


def test_what_holds_data_is_never_made_anew(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("data")

            def claim(mode: str) -> dict[str, object]:
                spec = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
                return manifest("v1", "PersistentVolumeClaim", name, spec=spec)

            mine = work(of_manifests(claim("ReadWriteOnce")), recreate=True)
            assert await b.apply(mine) == {}
            path = f"/api/v1/namespaces/default/persistentvolumeclaims/{name}"
            uid = (await b.get(path))["metadata"]["uid"]
            said = await b.apply(with_components(mine, of_manifests(claim("ReadWriteMany"))))
            assert said["things"][0] == "Immutable" and "what it holds would go" in said["things"][1]
            assert (await b.get(path))["metadata"]["uid"] == uid
            await b.applier.remove(mine.uid)
            await b.by_hand("PATCH", path, {"metadata": {"finalizers": None}})
            await b.remove(mine.uid)

    asyncio.run(run())


# --- what is going ---


def test_a_finalizer_that_holds_an_object_is_named(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("held")
            mine = work(of_manifests(config_map(name)))
            assert await b.apply(mine) == {}
            await b.by_hand("PATCH", configs(name), {"metadata": {"finalizers": ["e2e.banyan.dev/hold"]}})
            await b.by_hand("DELETE", configs(name))
            await b.until_touched(mine.uid)
            said = await b.apply(mine)
            assert said["things"][0] == "BeingDeleted" and "e2e.banyan.dev/hold" in said["things"][1]
            assert not await b.applier.remove(mine.uid)
            assert "e2e.banyan.dev/hold" in b.applier.held(mine.uid)["things"].message
            await b.by_hand("PATCH", configs(name), {"metadata": {"finalizers": None}})
            await b.remove(mine.uid)
            assert await b.get(configs(name)) == {}

    asyncio.run(run())


def test_a_kind_that_is_removed_under_its_objects_is_told_and_comes_back(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            plural = unique("lamps").replace("-", "")
            crd = definition(plural, "Lamp", f"{plural}.dev")
            kinds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            path = f"/apis/{plural}.dev/v1/namespaces/default/{plural}/mine"
            mine = work(of_manifests(manifest(f"{plural}.dev/v1", "Lamp", "mine")), container())
            said = await b.apply(mine)
            assert said["things"][0] == "UnknownKind" and "Lamp" in said["things"][1] and set(said) == {"things"}
            await b.by_hand("POST", kinds, crd)

            async def applied() -> bool:
                return await b.apply(mine) == {}

            await eventually("it is applied once its kind is there", applied)
            assert await b.get(path)
            b.touched.clear()
            await b.by_hand("DELETE", f"{kinds}/{plural}.{plural}.dev")
            await b.until_touched(mine.uid)

            async def told() -> bool:
                said = await b.apply(mine)
                return set(said) == {"things"} and said["things"][0] == "UnknownKind"

            await eventually("the lack is told, at that component alone", told)
            await b.by_hand("POST", kinds, crd)
            await eventually("it is there again", applied)
            assert await b.get(path)
            await b.remove(mine.uid)
            await b.by_hand("DELETE", f"{kinds}/{plural}.{plural}.dev")

    asyncio.run(run())


# --- what is refused ---


def test_too_large_an_object_is_told(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("large")
            huge = of_manifests(config_map(f"{name}-2", a="x" * 2_000_000), name="more")
            mine = work(of_manifests(config_map(name, a="x" * 1_100_000)), huge)
            said = await b.apply(mine)
            assert {one[0] for one in said.values()} == {"ObjectTooLarge"}
            assert f"ConfigMap default/{name}:" in said["things"][1] and "1048576" in said["things"][1]
            assert f"ConfigMap default/{name}-2" in said["more"][1] and "1,500,000" in said["more"][1]
            await b.remove(mine.uid)

    asyncio.run(run())


def test_a_quota_is_told_in_the_server_s_words(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            place = unique("quota")
            await b.namespace(place)
            hard = {"count/deployments.apps": "0"}
            await b.by_hand("POST", f"/api/v1/namespaces/{place}/resourcequotas", manifest("v1", "ResourceQuota", "q", spec={"hard": hard}))
            status = {"status": {"hard": hard, "used": {"count/deployments.apps": "0"}}}  # what a controller would write
            await b.by_hand("PATCH", f"/api/v1/namespaces/{place}/resourcequotas/q/status", status)
            mine = work(container(), of_manifests(config_map("c")), namespace=place)

            async def told() -> bool:
                said = await b.apply(mine)
                return set(said) == {"web"} and said["web"][0] == "QuotaExceeded" and "exceeded quota: q" in said["web"][1]

            await eventually("the quota is told", told)
            assert await b.get(configs("c", place))
            await b.by_hand("DELETE", f"/api/v1/namespaces/{place}/resourcequotas/q")

            async def applied() -> bool:
                return await b.apply(mine) == {}

            await eventually("it is applied", applied)
            await b.remove(mine.uid)

    asyncio.run(run())


@contextmanager
def webhook(member: Member) -> Iterator[tuple[int, list[bool]]]:
    """A server of admission reviews, and a list whose last entry says whether it allows."""
    allows = [False]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"uid": review["request"]["uid"], "allowed": allows[-1], "status": {"message": "not on a Saturday", "code": 403}}
            body = json.dumps({"apiVersion": review["apiVersion"], "kind": review["kind"], "response": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*member.authority.issue(unique("webhook"), "webhook", hosts=["127.0.0.1"]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1], allows
        finally:
            server.shutdown()
            thread.join()


def test_an_admission_webhook_that_refuses_or_is_away_is_told(control_plane: Member) -> None:
    async def run() -> None:
        place, hooks = unique("hooked"), "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
        async with bench(control_plane) as b:
            await b.namespace(place)
            mine = work(of_manifests(config_map("c")), container(), namespace=place)
            with webhook(control_plane) as (port, allows):
                client = {
                    "url": f"https://127.0.0.1:{port}/",
                    "caBundle": base64.b64encode(control_plane.authority.certificate.read_bytes()).decode(),
                }
                hook = {
                    "name": "no.e2e.banyan.dev",
                    "clientConfig": client,
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "timeoutSeconds": 10,
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place}},
                    "objectSelector": {"matchLabels": {"banyan.dev/component": "things"}},
                    "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
                }
                made = manifest("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", place, webhooks=[hook])
                await b.by_hand("POST", hooks, made)

                async def refused() -> bool:
                    said = await b.apply(with_components(mine, of_manifests(config_map("c", n=unique("n"))), container()))
                    return set(said) == {"things"} and said["things"][0] == "AdmissionRefused" and "not on a Saturday" in said["things"][1]

                await eventually("the refusal is told, at that component alone", refused)
                assert await b.get(deployment(mine))
                allows.append(True)
                assert await b.apply(mine) == {}

            async def away() -> bool:
                said = await b.apply(with_components(mine, of_manifests(config_map("c", n=unique("n"))), container()))
                return said.get("things", ("", ""))[0] == "AdmissionUnavailable"

            await eventually("that it is away is told", away)
            await b.by_hand("DELETE", f"{hooks}/{place}")
            await b.remove(mine.uid)

    asyncio.run(run())


def test_a_namespace_that_an_object_names_and_nobody_made_is_told(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            mine = work(of_manifests(manifest("v1", "Pod", "x", unique("nowhere"), spec={"containers": [{"name": "c", "image": "i"}]})))
            said = await b.apply(mine)
            assert said["things"][0] == "NamespaceMissing" and "not found" in said["things"][1]
            await b.remove(mine.uid)

    asyncio.run(run())


def test_with_rights_in_one_namespace_that_one_is_served(control_plane: Member) -> None:
    async def run() -> None:
        place, roles = unique("granted"), "/apis/rbac.authorization.k8s.io/v1"
        subject = [{"kind": "Group", "name": place, "apiGroup": "rbac.authorization.k8s.io"}]
        write = {"apiGroups": ["", "apps"], "resources": ["configmaps", "deployments", "services"], "verbs": ["*"]}
        async with bench(control_plane) as b:
            await b.namespace(place)
            role = manifest("rbac.authorization.k8s.io/v1", "Role", "edge", place, rules=[write])
            await b.by_hand("POST", f"{roles}/namespaces/{place}/roles", role)
            reference = {"kind": "Role", "name": "edge", "apiGroup": "rbac.authorization.k8s.io"}
            binding = manifest("rbac.authorization.k8s.io/v1", "RoleBinding", "edge", place, roleRef=reference, subjects=subject)
            await b.by_hand("POST", f"{roles}/namespaces/{place}/rolebindings", binding)
            see = {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}
            await b.by_hand("POST", f"{roles}/clusterroles", manifest("rbac.authorization.k8s.io/v1", "ClusterRole", place, rules=[see]))
            everywhere = {"kind": "ClusterRole", "name": place, "apiGroup": "rbac.authorization.k8s.io"}
            wide = manifest("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", place, roleRef=everywhere, subjects=subject)
            await b.by_hand("POST", f"{roles}/clusterrolebindings", wide)
            user = control_plane.user(place, [place])
            claim = manifest("v1", "PersistentVolumeClaim", "c", spec={})
            mine = work(container(), of_manifests(config_map("c")), of_manifests(claim, name="claim"), namespace=place)

            async def granted() -> bool:
                return await b.api.allowed("list", "", "configmaps", place)

            await eventually("the rights are there", granted)
            for _ in range(2):  # and once more by one that has just started
                async with bench(control_plane, kubeconfig=user) as narrow:
                    said = await narrow.apply(mine)
                    assert set(said) == {"claim"} and said["claim"][0] == "Forbidden" and "persistentvolumeclaims" in said["claim"][1]
                    assert await b.get(deployment(mine))
                    assert await narrow.apply(mine) == said
            async with bench(control_plane, kubeconfig=user) as narrow:
                assert set(await narrow.apply(with_components(mine, container()))) == set()
                assert await b.get(configs("c", place)) == {}
                await narrow.remove(mine.uid)
                assert await b.get(deployment(mine)) == {}

    asyncio.run(run())


# --- charts ---


def test_a_chart_comes_changes_and_goes(control_plane: Member, tmp_path: Path) -> None:
    def chart(**files: str) -> contract.Component:
        room = io.BytesIO()
        with tarfile.open(fileobj=room, mode="w:gz") as tar:
            for name, text in {"Chart": "apiVersion: v2\nname: web\nversion: 1.0.0\n", **files}.items():
                entry = tarfile.TarInfo("web/" + ("Chart.yaml" if name == "Chart" else f"templates/{name}.yaml"))
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        digest = hashlib.sha256(room.getvalue()).hexdigest()
        (tmp_path / digest).write_bytes(room.getvalue())
        return contract.Component(
            name="chart", replicas=1, revision=digest, chart=contract.Chart(path=str(tmp_path / digest), sha256=digest)
        )

    def config(name: str) -> str:
        data = "{release: '{{ .Release.Name }}', random: '{{ randAlphaNum 8 }}'}"
        return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n"

    async def run() -> None:
        async with bench(control_plane, Helm(tmp_path / "kept")) as b:
            one, two = unique("one"), unique("two")
            mine = work(chart(a=config(one), b=config(two)))
            assert await b.apply(mine) == {}
            made = await b.get(configs(one))
            assert made["data"]["release"].startswith("app-chart-")
            assert await b.apply(mine) == {}
            assert (await b.get(configs(one)))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
            broken = chart(a=config(one), b="{{ fail `no room at the inn` }}")
            said = await b.apply(with_components(mine, broken))
            assert said["chart"][0] == "NotRendered" and "no room at the inn" in said["chart"][1]
            assert await b.get(configs(two))
            assert await b.apply(with_components(mine, chart(a=config(one)))) == {}
            assert await b.get(configs(two)) == {}
            await b.remove(mine.uid)
            assert await b.get(configs(one)) == {}

    asyncio.run(run())
