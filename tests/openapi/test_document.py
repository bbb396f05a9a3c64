"""The OpenAPI documents: complete, true to what the API answers, and enough for the page at /docs."""

import asyncio
import os
import re
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from cluster_controller.resources.registry import REGISTRY
from cluster_controller.resources.tables import Heard
from openapi.app import Api
from openapi.document import Documents
from openapi.front import invoke
from openapi.front.raw import ProxyRoutes
from tests.openapi.support import Server, application, config_map, fronted, run
from tests.openapi.test_objects import ok

DOCUMENTS = Documents("0.1.0")


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set().union(*map(refs, value)) if isinstance(value, list) else set()


def test_every_kind_is_described_and_no_reference_leads_nowhere(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        index = ok(await server.admin.get("/openapi/v3"))["paths"]
        seen = set()
        for path, entry in index.items():
            document = ok(await server.admin.get(entry["serverRelativeURL"]))
            schemas = document["components"]["schemas"]
            assert {each.rsplit("/", 1)[1] for each in refs(document)} <= set(schemas), path
            for schema in schemas.values():
                seen |= {(each["group"], each["kind"]) for each in schema.get("x-kubernetes-group-version-kind", ())}
            for address, item in document["paths"].items():
                named = set(re.findall(r"\{(\w+)\}", address))
                assert named == {each["name"] for each in item.get("parameters", ())}, address
            operations = [each["operationId"] for item in document["paths"].values() for each in item.values() if isinstance(each, dict)]
            assert len(operations) == len(set(operations))
        assert {(each.group, each.kind) for each in REGISTRY.values()} <= seen

    run(tmp_path, body)


def test_fields_say_what_they_mean_and_how_far_they_go(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        schemas = ok(await server.admin.get("/openapi/v3/apis/banyan.dev/v1alpha1"))["components"]["schemas"]
        component = schemas["dev.banyan.v1alpha1.Component"]
        assert component["required"] == ["name"] and component["properties"]["replicas"]["maximum"] == 100_000
        placement = schemas["dev.banyan.v1alpha1.Placement"]["properties"]
        assert placement["strategy"].items() >= {"type": "string", "enum": ["Divided", "Duplicated"], "default": "Divided"}.items()
        for schema in ("ApplicationSpec", "Component", "Placement", "ModelSpec", "ClusterSpec", "JoinTokenSpec", "UserSpec"):
            for name, field in schemas[f"dev.banyan.v1alpha1.{schema}"]["properties"].items():
                assert field.get("description"), f"{schema}.{name} says nothing to kubectl explain"
        assert "As Go names it" in placement["architecture"]["description"]
        assert schemas["dev.banyan.v1alpha1.Resources"]["properties"]["cpu"]["x-kubernetes-int-or-string"] is True

    run(tmp_path, body)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        answer = await server.admin.get("/docs")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", answer.text) and "innerHTML" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy

    run(tmp_path, body)


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))


def test_an_invocation_is_documented_as_it_is_taken_and_answered(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        document = ok(await server.admin.get("/openapi/v3/apis/banyan.dev/v1alpha1"))
        operation = document["paths"]["/apis/banyan.dev/v1alpha1/invoke"]["post"]
        schemas = document["components"]["schemas"]
        asked = schemas[operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]]
        assert set(asked["properties"]) == {field.encode_name for field in msgspec.structs.fields(invoke.Call)}
        answered = schemas[operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]]
        await server.put("own", "Cluster", "root", uid=server.services.uid)
        await server.put("own", "Cluster", "edge-1", metadata={"labels": {"tier": "edge"}})
        server.services.heards["uid-edge-1"] = Heard(41.7, True, "root → edge-1")
        routes = ProxyRoutes(server.services)
        async with fronted(server, tmp_path, routes=routes) as port, httpx.AsyncClient(verify=trusting(tmp_path)) as client:
            answer = await client.post(
                f"https://127.0.0.1:{port}/apis/banyan.dev/v1alpha1/invoke",
                json={"path": "/healthz", "clusters": ["root", "edge-1"]}, headers={"Authorization": "Bearer admin-token"},
            )  # fmt: skip
        await routes.close()
        items = {item["cluster"]: item for item in ok(answer)["items"]}
        row = answered["properties"]["items"]["items"]
        for item in items.values():
            assert set(row["required"]) <= set(item) <= set(row["properties"])
        assert (items["root"]["code"], items["root"]["age"]) == (200, 0.0)
        lost = items["edge-1"]
        assert (lost["code"], lost["age"], lost["ageAtLeast"], lost["brokenHop"]) == (503, 41.7, True, "root → edge-1")

    run(tmp_path, body)


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"


# A short run each time; THOROUGH=1 makes it a long one (four minutes on two cores).
EXAMPLES = "10" if os.environ.get("THOROUGH") else "2"
PHASES = "examples,coverage,fuzzing" if os.environ.get("THOROUGH") else "examples,fuzzing"


RUNS = [("admin-token", path) for path in DOCUMENTS.paths()] + [("view-token", "apis/banyan.dev/v1alpha1")]


@pytest.mark.parametrize(("token", "path"), RUNS)
def test_no_answer_is_undocumented(tmp_path: Path, token: str, path: str) -> None:
    """schemathesis makes requests of the document, good and bad, for the real front; the document must list each answer."""

    async def body(server: Server) -> None:
        ok(await server.admin.post("/apis/banyan.dev/v1alpha1/namespaces/default/applications", json=application()), 201)
        ok(await server.admin.post("/api/v1/namespaces/default/configmaps", json=config_map("m")), 201)
        await server.put("own", "Cluster", "root", uid=server.services.uid)
        await server.put("own", "Cluster", "edge-1")  # out of reach
        server.api = Unwatched(server.api)  # type: ignore[assignment]
        routes = ProxyRoutes(server.services)
        async with fronted(server, tmp_path, routes=routes) as port:
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("schemathesis")), "run", f"https://127.0.0.1:{port}/openapi/v3/{path}",
                "--header", f"Authorization: Bearer {token}", "--tls-verify", str(tmp_path / "ca.pem"), "--checks", CHECKS,
                "--phases", PHASES, "--max-examples", EXAMPLES, "--seed", "3", "--no-color", "--generation-database", "none",
                "--suppress-health-check", "all", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(240):
                    out, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        await routes.close()
        text = out.decode()
        print(text)  # how many cases there were: `-rP` shows it
        assert process.returncode == 0 and "passed" in text, text[-6000:]

    run(tmp_path, body)


class Unwatched:
    """The API without endless answers, which no tester of answers waits for; `test_watch` has those."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query = b"&".join(each for each in scope["query_string"].split(b"&") if not each.startswith((b"watch=", b"follow=")))
        await self._api({**scope, "query_string": query}, receive, send)
