"""What is wrong with a request is said clearly, at a bounded cost, and nothing is stored."""

from pathlib import Path
from typing import Any

import pytest

from tests.openapi.support import GROUP, Server, application, run
from tests.openapi.test_objects import failed, ok

APPS = f"{GROUP}/namespaces/default/applications"
JSON = {"content-type": "application/json"}


def changed(**fields: Any) -> dict[str, Any]:
    return {**application(), **fields}


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        (changed(kind="Aplication"), 400, "kind is 'Aplication'"),
        (changed(apiVersion="banyan.dev/v9"), 400, "apiVersion is 'banyan.dev/v9'"),
        (changed(kind=None), 400, "kind is"),
        (changed(metadata="x"), 400, "metadata is no object"),
        (changed(metadata={"name": "a", "namespace": "other"}), 400, "is not the namespace|does not match"),
        (changed(metadata={"name": "a", "resourceVersion": "1"}), 400, "resourceVersion should not be set"),
        (changed(metadata={"name": "Bad_Name"}), 422, "no DNS label"),
        (changed(metadata={}), 422, "a name is required"),
        (changed(metadata={"generateName": 3}), 422, "metadata"),
        (changed(spec="x"), 422, "spec"),
        (changed(spec={}), 422, "components"),
        (changed(extra=1), 422, "extra: unknown field"),
        (application(component={"replicas": "two"}), 422, "replicas"),
        (application(component={"replica": 2}), 422, "did you mean replicas"),
        (application(component={"resources": {"cpu": "-1"}}), 422, "negative"),
        (application(component={"resources": {"memory": "1e99"}}), 422, "too large"),
        (application(component={"container": {"image": "x"}}), 422, "exactly one|only one"),
        (application(placement={"onUnreachable": {"action": "Replace"}, "strategy": "Duplicated"}), 422, "means nothing with strategy"),
        (application(placement={"onUnreachable": {"afterSeconds": 5}}), 422, "means nothing with action Keep"),
        (application(placement={"clusterSelector": {"matchLabels": {"a b": "c"}}}), 422, "label key"),
    ],
)
def test_documents(tmp_path: Path, document: dict[str, Any], code: int, says: str) -> None:
    async def body(server: Server) -> None:
        before = server.store.revision
        for validation in ("Strict", "Ignore"):
            answer = await server.admin.post(APPS, json=document, params={"fieldValidation": validation})
            status = failed(answer, code, "Invalid" if code == 422 else "BadRequest")
            assert any(word in status["message"] for word in says.split("|")), status["message"]
            assert code == 400 or status["details"]["causes"][0]["field"] is not None
            assert len(answer.content) < 4096
        assert server.store.revision == before

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "no JSON object"),
        (b'{"a":"\xff\xfe"}', 400, "not UTF-8: byte 6 "),
        (b"[" * 100_000, 400, "nested"),
        (b'{"a":' * 400 + b"1" + b"}" * 400, 400, "nested"),
        (b'{"a":1e999}', 400, "not JSON"),
        (b'{"a":"' + b"x" * (2 * 1024 * 1024) + b'"}', 413, "more than 1048576 bytes"),
    ],
)
def test_bodies(tmp_path: Path, content: bytes, code: int, says: str) -> None:
    async def body(server: Server) -> None:
        answer = await server.admin.post(APPS, content=content, headers=JSON)
        assert answer.status_code == code and says in answer.json()["message"], answer.text
        patch = await server.admin.patch(f"{APPS}/none", content=content, headers={"content-type": "application/merge-patch+json"})
        assert patch.status_code in (code, 404), patch.text

    run(tmp_path, body)


def test_a_body_without_a_length_is_bounded_too(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        sent = 0

        async def endless() -> Any:
            nonlocal sent
            for _ in range(1000):
                sent += 65536
                yield b"x" * 65536

        failed(await server.admin.post(APPS, content=endless(), headers=JSON), 413, "RequestEntityTooLarge")
        assert sent < 3 * 1024 * 1024

    run(tmp_path, body)


def test_media_types_methods_and_addresses(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        client = server.admin
        failed(await client.post(APPS, content=b"a: b", headers={"content-type": "application/yaml"}), 415, "UnsupportedMediaType")
        failed(await client.patch(f"{APPS}/x", content=b"{}", headers={"content-type": "text/plain"}), 415, "UnsupportedMediaType")
        answer = await client.put(APPS, json={})
        failed(answer, 405, "MethodNotAllowed")
        assert answer.headers["allow"] == "GET, POST, DELETE"
        failed(await client.post(f"{GROUP}/applications", json=application()), 405, "MethodNotAllowed")
        failed(await client.post(f"{GROUP}/clusters", json={}), 405, "MethodNotAllowed")
        failed(await client.delete("/api/v1/nodes/n"), 405, "MethodNotAllowed")
        failed(await client.post("/version"), 405, "MethodNotAllowed")
        unknown = (
            "/none", "/api/v2", "/apis/none", "/apis/none/v1", "/apis/banyan.dev/v9", f"{GROUP}/rockets", f"{GROUP}/namespaces/d/clusters",
            f"{GROUP}/applications/x", f"{APPS}/x", f"{APPS}/x/y/z", "/api/v1/namespaces/none", "/openapi/v3/apis/none/v1",
            "/api/v1/watch/pods",
        )  # fmt: skip
        for path in unknown:
            failed(await client.get(path), 404, "NotFound")

    run(tmp_path, body)


def test_what_is_not_offered_says_what_to_do_instead(tmp_path: Path) -> None:
    pods = "/api/v1/namespaces/default/pods"
    tried = [
        ("POST", pods, 405, "change, scale or delete the Application"),
        ("DELETE", f"{pods}/p", 405, "change, scale or delete the Application"),
        ("PATCH", "/api/v1/nodes/n", 405, "kubectl patch cluster NAME"),
        ("POST", f"{GROUP}/clusters", 405, "banyan token create here, banyan join TOKEN --name NAME there"),
        ("PUT", f"{GROUP}/namespaces/default/subtreeapplications/a.b", 405, "changed where it was written"),
        ("POST", f"{pods}/p/exec", 404, "cannot be entered: kubectl logs"),
        ("GET", f"{pods}/p/portforward", 404, "applications/NAME/proxy/ leads to its port"),
        ("POST", f"{pods}/p/eviction", 404, "change, scale or delete the Application"),
        ("POST", "/api/v1/namespaces/default/resourcequotas", 404, "'resourcequotas' is not served here; kubectl api-resources"),
        ("POST", "/api/v1/namespaces/default/serviceaccounts/s/token", 404, "'serviceaccounts/s/token' is not served here"),
        ("POST", "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers", 404, "kubectl api-resources lists what is served"),
        ("DELETE", f"{APPS}/x?gracePeriodSeconds=soon", 400, "gracePeriodSeconds is 'soon'"),
    ]

    async def body(server: Server) -> None:
        for method, path, code, says in tried:
            answer = await server.admin.request(method, path, json={})
            assert (answer.status_code, answer.json()["kind"]) == (code, "Status"), (path, answer.text)
            assert says in answer.json()["message"], answer.text

    run(tmp_path, body)


def test_deep_patches_cannot_nest_without_bound(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        ok(await server.admin.post(APPS, json=application()), 201)
        deep: dict[str, Any] = {}
        for _ in range(45):
            deep = {"x": deep}
        step = [{"op": "add", "path": "/spec/components/0/helm" + "/x" * (44 * times), "value": deep} for times in range(3)]
        for content in (step, step[:1]):
            answer = await server.admin.patch(f"{APPS}/emotion", json=content, headers={"content-type": "application/json-patch+json"})
            failed(answer, 422, "Invalid")

    run(tmp_path, body)
