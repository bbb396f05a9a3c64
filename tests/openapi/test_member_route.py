"""The way to a member's API through two fronts: who may, what is passed on and what is written down; against a real HTTP server."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.resources.policy import DEFAULT_ENTRY, Entry
from cluster_controller.tunnel.messages import Lane
from openapi.audit import REFUSED_A_MINUTE, AuditLog
from openapi.front.head import parse_request
from openapi.front.member import lane_of, lasts
from openapi.front.raw import ProxyRoutes
from openapi.front.server import Front
from openapi.front.streams import SocketStream
from tests.front.support import AUTH, RunningFront, raw_exchange
from tests.front.test_server import echo
from tests.front.upstream import EDGE, ApplicationServer, Services

MEMBER = "/apis/banyan.dev/v1alpha1/clusters/edge-1/proxy"


class Member(Services):
    """The services of edge-1, whose cluster's API is a small HTTP server."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(port)
        self.uid, self.name = EDGE, "edge-1"
        self.audit = AuditLog(folder / "edge.log")
        self.admitted: Entry = DEFAULT_ENTRY
        self.why_not = ""
        self.targets: list[Any] = []

    def entry(self) -> Entry:
        return self.admitted

    def no_member_api(self) -> str:
        return self.why_not

    async def open_local(self, target: Any) -> SocketStream:
        self.targets.append(target)
        return await self._dial()


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.api = ApplicationServer()
        self.services = Services(self.api.port)
        self.services.audit = AuditLog(folder / "root.log")
        self.member = Member(self.api.port, folder)
        self.root = RunningFront(echo, routes=ProxyRoutes(self.services))
        self.at_edge = RunningFront(echo, routes=ProxyRoutes(self.member))

        async def edge() -> None:
            self.services.edge_routes = ProxyRoutes(self.member)
            self.services.edge = Front(echo, self.root.accounts, self.services.edge_routes)

        self.root.thread.run(edge())

    def close(self) -> None:
        assert self.services.edge is not None
        self.root.thread.run(self.services.edge.close(0.2))
        self.root.__exit__()
        self.at_edge.__exit__()
        self.api.stop()

    def ask(self, path: str, *, user: str = "admin", method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        client: http.client.HTTPSConnection = self.root.client()
        client.request(method, MEMBER + path, headers={"Authorization": f"Bearer t-{user}"} | (headers or {}))
        response = client.getresponse()
        data = response.read()
        client.close()
        return response.status, json.loads(data) if data[:1] == b"{" else data

    def lines(self, name: str, wanted: int = 1) -> list[dict[str, Any]]:
        """Of an audit log, once there are as many as wanted: the last is written just after the client has its answer."""
        path = self.folder / f"{name}.log"
        self.root.eventually(lambda: path.exists() and path.read_bytes().count(b"\n") >= wanted)
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_request_goes_through_two_fronts_and_is_written_down_at_both(world: World) -> None:
    status, seen = world.ask("/api/v1/pods?labelSelector=secret&watch=false", headers={"X-Mine": "1", "User-Agent": "kubectl/1.34"})
    assert (status, seen["path"]) == (200, "/api/v1/pods?labelSelector=secret&watch=false")
    assert seen["headers"]["x-mine"] == "1"
    assert seen["headers"]["connection"] == "close"
    assert "authorization" not in seen["headers"]
    (target,) = world.member.targets
    assert (target.kind, target.options) == ("api", {"user": "admin", "group": "banyan:admin", "entry": "e" * 26})
    (entry,), (member,) = world.lines("root"), world.lines("edge")
    assert entry["id"] == member["id"]
    for line, end in ((entry, "entry"), (member, "member")):
        assert (line["end"], line["stage"], line["user"], line["cluster"]) == (end, "ended", "admin", "edge-1")
        assert (line["verb"], line["path"], line["code"]) == ("GET", "/api/v1/pods", 200)
        assert line["query"] == {"watch": "false"}
        assert line["agent"] == "kubectl/1.34"
        assert line["bytes_up"] > 0 and line["bytes_down"] > 0
    assert entry["client"] == "127.0.0.1"
    assert "secret" not in (world.folder / "root.log").read_text() + (world.folder / "edge.log").read_text()


def test_the_site_decides_and_says_so(world: World) -> None:
    status, answer = world.ask("/api", user="editor")
    assert (status, answer["reason"]) == (403, "Forbidden")
    assert "coming in needs a grant for all namespaces" in answer["message"]
    world.member.admitted = Entry()
    status, answer = world.ask("/api")
    assert (status, world.member.targets) == (403, [])
    assert "may not use the cluster API of edge-1: its site lets in nobody" in answer["message"]
    world.member.admitted = Entry(users=["admin"])
    assert world.ask("/api")[0] == 200
    assert [(line["user"], line["code"]) for line in world.lines("edge", 3)] == [("editor", 403), ("admin", 403), ("admin", 200)]
    assert "lets in nobody" in world.lines("edge")[1]["reason"]


def test_of_what_is_refused_there_is_no_line_that_it_began_and_a_flood_is_counted(world: World) -> None:
    for _ in range(REFUSED_A_MINUTE + 5):
        assert world.ask("/api?watch=1", user="editor")[0] == 403
    assert world.ask("/api?watch=1")[0] == 200
    for name in ("edge", "root"):
        stages = [(line["user"], line["stage"]) for line in world.lines(name, REFUSED_A_MINUTE + 2)]
        assert stages == [("editor", "ended")] * REFUSED_A_MINUTE + [("admin", "begun"), ("admin", "ended")]


def test_what_has_no_kubernetes_api_says_what_to_use(world: World) -> None:
    world.member.why_not = "runs applications as processes; it has no Kubernetes API"
    status, answer = world.ask("/api")
    assert (status, answer["reason"]) == (501, "NotImplemented")
    assert answer["message"] == "edge-1 runs applications as processes; it has no Kubernetes API"


def test_impersonation_is_refused_at_the_door(world: World) -> None:
    status, answer = world.ask("/api", headers={"Impersonate-User": "root"})
    assert status == 403
    assert "impersonation" in answer["message"]


def test_what_is_out_of_reach_is_told_and_written_down(world: World) -> None:
    client = world.root.client()
    client.request("GET", MEMBER.replace("edge-1", "edge-2") + "/api", headers={"Authorization": "Bearer t-admin"})
    response = client.getresponse()
    assert response.status == 503
    assert b"edge-2 is out of reach: root" in response.read()
    client.close()
    (line,) = world.lines("root")
    assert (line["code"], line["reason"]) == (503, "edge-2 is out of reach: root ? edge-2 is cut")


def test_at_the_members_own_controller_there_is_one_line(world: World) -> None:
    client = world.at_edge.client()
    client.request("GET", MEMBER + "/api/v1/nodes", headers={"Authorization": "Bearer t-admin"})
    assert json.loads(client.getresponse().read())["path"] == "/api/v1/nodes"
    client.close()
    (line,) = world.lines("edge")
    assert (line["end"], line["code"]) == ("both", 200)


def test_what_lasts_has_two_lines_and_the_first_is_there_at_once(world: World) -> None:
    connection = world.root.connect()
    connection.sendall(f"GET {MEMBER}/events?watch=1 HTTP/1.1\r\nHost: x\r\n".encode() + AUTH + b"\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    (begun,) = world.lines("edge")
    assert (begun["stage"], begun.get("code", 0)) == ("begun", 0)
    connection.close()  # the client vanishes in the middle of it
    for name in ("edge", "root"):
        begun, ended = world.lines(name, 2)
        assert begun["id"] == ended["id"]
        assert (ended["stage"], ended["code"]) == ("ended", 200)
        assert ended["reason"]


def test_a_second_request_on_the_stream_of_the_first_is_not_served(world: World) -> None:
    """Whatever the parent's front sends: one request per stream."""
    from openapi.front.auth import encode_user
    from tests.front.support import ADMIN

    async def two() -> bytes:
        stream = await world.services.open(EDGE, "member", encode_user(ADMIN), Lane.INTERACTIVE)
        await stream.write(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        found = b""
        while data := await stream.read():
            found += data
        return found

    answer = world.root.thread.run(two())
    assert answer.count(b"HTTP/1.1 200") == 1
    assert [path for _, path, _ in world.api.seen] == ["/first"]


def test_while_the_audit_log_cannot_be_written_nobody_comes_in(world: World) -> None:
    (world.folder / "edge.log").mkdir()
    status, answer = world.ask("/api")
    assert (status, world.member.targets) == (503, [])
    assert "cannot be written" in answer["message"]


def test_smuggling_ends_at_the_entry(world: World) -> None:
    connection = world.root.connect()
    with connection:
        hostile = b"POST %b/x HTTP/1.1\r\nHost: x\r\n%bContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert raw_exchange(connection, hostile % (MEMBER.encode(), AUTH)).startswith(b"HTTP/1.1 400 ")
    assert world.api.seen == []


@pytest.mark.parametrize(
    ("path", "upgrade", "lane", "long"),
    [
        ("/api/v1/pods", False, Lane.INTERACTIVE, False),
        ("/api/v1/pods?watch=true", False, Lane.INTERACTIVE, True),
        ("/api/v1/pods?watch=0", False, Lane.INTERACTIVE, False),
        ("/api/v1/pods?watch=True&watch=0", False, Lane.INTERACTIVE, True),  # an API server goes by the first
        ("/api/v1/pods?watch", False, Lane.INTERACTIVE, True),  # and takes this for yes
        (f"/api/v1/pods?labelSelector={'x' * 8192}&watch=1", False, Lane.INTERACTIVE, True),
        ("/api/v1/watch/namespaces/a/pods", False, Lane.INTERACTIVE, True),
        ("/apis/apps/v1/watch/deployments", False, Lane.INTERACTIVE, True),
        ("/api/v1/namespaces/a/pods/b/log?follow=true", False, Lane.BULK, True),
        ("/api/v1/namespaces/a/pods/b/log", False, Lane.BULK, False),
        ("/api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true&tty=true", True, Lane.INTERACTIVE, True),
        ("/api/v1/namespaces/a/pods/b/exec?command=tar", True, Lane.BULK, True),
        ("/api/v1/namespaces/a/pods/b/portforward", True, Lane.BULK, True),
    ],
)
def test_what_carries_much_leaves_a_shell_alone(path: str, upgrade: bool, lane: Lane, long: bool) -> None:
    more = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" if upgrade else b""
    head = parse_request(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), more))
    assert (lane_of(head), lasts(head)) == (lane, long)
