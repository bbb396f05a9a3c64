"""Lists: pages of one revision, selectors, tables; and who is refused what."""

from pathlib import Path
from typing import Any

import pytest

from cluster_controller.resources.tables import Heard
from openapi.services import Grant, User
from tests.openapi.support import EDITOR, GROUP, VIEWER, Server, application, config_map, run
from tests.openapi.test_objects import failed, ok

APPS = f"{GROUP}/namespaces/default/applications"
MAPS = "/api/v1/namespaces/default/configmaps"
TABLE = {"accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
PARTIAL = {"accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}


async def fill(server: Server, count: int) -> None:
    for number in range(count):
        document = config_map(f"m{number:02}", a=str(number))
        document["metadata"]["labels"] = {"parity": "even" if number % 2 == 0 else "odd"}
        ok(await server.admin.post(MAPS, json=document), 201)


def names(page: dict[str, Any]) -> list[str]:
    return [each["metadata"]["name"] for each in page["items"]]


def test_pages_show_one_revision(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await fill(server, 7)
        first = ok(await server.admin.get(MAPS, params={"limit": 3}))
        assert names(first) == ["m00", "m01", "m02"] and first["metadata"]["remainingItemCount"] == 4
        await server.admin.delete(f"{MAPS}/m05")
        await server.admin.post(MAPS, json=config_map("m02x"))
        await server.admin.put(f"{MAPS}/m03", json=config_map("m03", a="changed"))
        second = ok(await server.admin.get(MAPS, params={"limit": 3, "continue": first["metadata"]["continue"]}))
        assert names(second) == ["m03", "m04", "m05"] and second["items"][0]["data"] == {"a": "3"}
        assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        third = ok(await server.admin.get(MAPS, params={"limit": 3, "continue": second["metadata"]["continue"]}))
        assert names(third) == ["m06"] and "continue" not in third["metadata"]
        now = ok(await server.admin.get(MAPS))
        assert names(now) == ["m00", "m01", "m02", "m02x", "m03", "m04", "m06"]
        exact = {"resourceVersion": first["metadata"]["resourceVersion"], "resourceVersionMatch": "Exact"}
        assert names(ok(await server.admin.get(MAPS, params=exact))) == [f"m{number:02}" for number in range(7)]

    run(tmp_path, body)


def test_selectors_and_pages_together(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await fill(server, 9)
        seen: list[str] = []
        token = ""
        while True:
            params = {"labelSelector": "parity=even", "limit": "2", **({"continue": token} if token else {})}
            page = ok(await server.admin.get(MAPS, params=params))
            seen += names(page)
            token = page["metadata"].get("continue", "")
            if not token:
                break
        assert seen == ["m00", "m02", "m04", "m06", "m08"]
        assert names(ok(await server.admin.get(MAPS, params={"fieldSelector": "metadata.name=m03"}))) == ["m03"]
        everywhere = "/api/v1/configmaps"
        assert names(ok(await server.admin.get(everywhere, params={"fieldSelector": "metadata.namespace=none"}))) == []
        assert len(names(ok(await server.admin.get(everywhere, params={"fieldSelector": "metadata.namespace!=none"})))) == 9

    run(tmp_path, body)


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"labelSelector": "a in (b"}, 400),
        ({"fieldSelector": "spec.none=1"}, 400),
        ({"limit": "-1"}, 400),
        ({"limit": "x"}, 400),
        ({"continue": "garbage!"}, 400),
        ({"continue": "e30"}, 400),
        ({"resourceVersion": "x"}, 400),
        ({"resourceVersion": "99999", "resourceVersionMatch": "Exact"}, 410),
        ({"resourceVersionMatch": "Never"}, 400),
        ({"resourceVersionMatch": "Exact"}, 400),
        ({"watch": "perhaps"}, 400),
        ({"watch": "1", "sendInitialEvents": "true"}, 422),
        ({"watch": "1", "resourceVersion": "99999"}, 410),
        ({"timeoutSeconds": "soon"}, 400),
        ({"includeObject": "Half"}, 400),
    ],
)
def test_options_that_cannot_be_read_are_refused(tmp_path: Path, params: dict[str, str], code: int) -> None:
    async def body(server: Server) -> None:
        answer = await server.admin.get(MAPS, params=params)
        assert answer.status_code == code and answer.json()["kind"] == "Status", answer.text

    run(tmp_path, body)


def test_forms(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.admin.post(APPS, json=application())
        table = ok(await server.admin.get(APPS, headers=TABLE))
        assert table["kind"] == "Table" and [each["name"] for each in table["columnDefinitions"]][:2] == ["Name", "Ready"]
        row = table["rows"][0]
        assert row["cells"][:5] == ["emotion", "0/2", 0, 0, "Pending"] and len(row["cells"]) == len(table["columnDefinitions"])
        assert row["object"]["kind"] == "PartialObjectMetadata" and row["object"]["metadata"]["name"] == "emotion"
        whole = ok(await server.admin.get(APPS, headers=TABLE, params={"includeObject": "Object"}))["rows"][0]["object"]
        assert whole["kind"] == "Application" and whole["spec"]
        assert "object" not in ok(await server.admin.get(APPS, headers=TABLE, params={"includeObject": "None"}))["rows"][0]
        assert len(ok(await server.admin.get(f"{APPS}/emotion", headers=TABLE))["rows"]) == 1
        partial = ok(await server.admin.get(APPS, headers=PARTIAL))
        assert partial["kind"] == "PartialObjectMetadataList" and "spec" not in partial["items"][0]
        failed(await server.admin.get(APPS, headers={"accept": "application/vnd.kubernetes.protobuf"}), 406, "NotAcceptable")
        assert (
            ok(await server.admin.get(APPS, headers={"accept": "application/vnd.kubernetes.protobuf,application/json"}))["kind"]
            == "ApplicationList"
        )

    run(tmp_path, body)


def test_a_cluster_shows_its_age_and_broken_hop_only_in_tables(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        await server.put("own", "Cluster", "edge-1", spec={}, status={"uid": "u1", "parent": "region-a", "phase": "Unknown"})
        server.services.heards["u1"] = Heard(83.4, True, "region-a → edge-1")
        table = ok(await server.admin.get(f"{GROUP}/clusters", headers=TABLE))
        cells = dict(zip((each["name"] for each in table["columnDefinitions"]), table["rows"][0]["cells"], strict=True))
        assert (cells["Parent"], cells["Status"], cells["Heard"], cells["Broken"]) == ("region-a", "Unknown", "≥83s", "region-a → edge-1")
        assert "83" not in (await server.admin.get(f"{GROUP}/clusters/edge-1")).text

    run(tmp_path, body)


def test_every_request_is_judged_by_its_namespace_and_role(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
        ok(await server.admin.post("/api/v1/namespaces", json=namespace), 201)
        editor, viewer, nobody = server.client(EDITOR), server.client(VIEWER), server.client(User("nil"))
        team = f"{GROUP}/namespaces/team/applications"
        ok(await editor.post(team, json=application(namespace="team")), 201)
        message = failed(await editor.post(APPS, json=application()), 403, "Forbidden")["message"]
        assert 'User "eve" cannot create resource "applications"' in message and "role edit" in message
        failed(await editor.get(f"{GROUP}/applications"), 403, "Forbidden")
        failed(await editor.get(f"{GROUP}/clusters"), 403, "Forbidden")
        assert ok(await editor.get("/api/v1/namespaces/team"))["metadata"]["name"] == "team"
        failed(await editor.get("/api/v1/namespaces/default"), 403, "Forbidden")
        failed(await editor.delete("/api/v1/namespaces/team"), 403, "Forbidden")
        failed(await editor.put(f"{team}/emotion/status", json=application(namespace="team")), 403, "Forbidden")
        ok(await viewer.get(f"{GROUP}/applications"))
        for method, path in (
            ("POST", team),
            ("DELETE", f"{team}/emotion"),
            ("PATCH", f"{team}/emotion"),
            ("DELETE", team),
            ("PUT", f"{team}/emotion/scale"),
        ):
            failed(await viewer.request(method, path, json={}), 403, "Forbidden")
        for path in (f"{GROUP}/users", f"{GROUP}/jointokens", "/api/v1/secrets"):
            failed(await viewer.get(path), 403, "Forbidden")
        for path in (team, f"{GROUP}/clusters", "/api/v1/pods"):
            failed(await nobody.get(path), 403, "Forbidden")

    run(tmp_path, body)


def test_nothing_is_anonymous_but_healthz(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        stranger = server.client(None)
        assert (await stranger.get("/healthz")).text == "ok"
        for path in (
            "/",
            "/livez",
            "/readyz",
            "/version",
            "/metrics",
            "/api",
            "/apis",
            "/openapi/v3",
            "/docs",
            APPS,
            "/healthz/",
            "//healthz",
        ):
            answer = await stranger.get(path)
            assert answer.status_code == 401 and "www-authenticate" in answer.headers, path

    run(tmp_path, body)


def test_metrics_name_applications_of_all_namespaces_and_need_as_much(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        everywhere = User("v", ("v",), "", (Grant("view"),))
        somewhere = User("s", ("s",), "", (Grant("admin", "team"),))
        assert (await server.client(everywhere).get("/metrics")).status_code == 200
        assert "view in all namespaces" in failed(await server.client(somewhere).get("/metrics"), 403, "Forbidden")["message"]
        assert (await server.client(somewhere).get("/version")).status_code == 200

    run(tmp_path, body)


def test_readyz_names_what_fails(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        assert (await server.admin.get("/readyz")).text == "ok"
        assert "[+]store ok" in (await server.admin.get("/readyz", params={"verbose": ""})).text
        server.services.failing["store"] = "the disk is full"
        answer = await server.admin.get("/readyz")
        assert answer.status_code == 503 and "[-]store failed: the disk is full" in answer.text
        assert (await server.admin.get("/metrics")).text == "banyan_up 1\n"

    run(tmp_path, body)


def test_self_reviews_agree_with_the_gate(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        async def may(user: User, **attributes: str) -> bool:
            document = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            answer = await server.client(user).post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=document)
            return bool(ok(answer, 201)["status"]["allowed"])

        apps = {"group": "banyan.dev", "resource": "applications"}
        assert await may(EDITOR, verb="create", namespace="team", **apps)
        assert not await may(EDITOR, verb="create", namespace="default", **apps)
        assert not await may(VIEWER, verb="get", resource="secrets", namespace="team")
        assert not await may(VIEWER, verb="delete", resource="pods", namespace="team")
        assert not await may(VIEWER, verb="get", resource="rockets")
        assert await may(User("r", grants=(Grant("admin"),)), verb="*", resource="*")
        me = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = ok(await server.client(EDITOR).post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json=me), 201)
        assert answer["status"]["userInfo"]["username"] == "eve"
        failed(await server.admin.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json={}), 400, "BadRequest")
        failed(await server.admin.get("/apis/authentication.k8s.io/v1/selfsubjectreviews"), 405, "MethodNotAllowed")
        failed(await server.admin.post("/apis/authentication.k8s.io/v1/tokenreviews", json={}), 404, "NotFound")

    run(tmp_path, body)
