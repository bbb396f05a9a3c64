"""Requests to applications and to descendants through the front, against a real server behind it."""

import asyncio
import hashlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websockets.asyncio.server
import websockets.sync.client

from cluster_shim.contract import ByteStream
from openapi.front.raw import ProxyRoutes
from tests.front.support import AUTH, RunningFront, pki, raw_exchange, read_all
from tests.front.test_server import echo
from tests.front.upstream import EDGE, ApplicationServer, Services

PROXY = "/apis/banyan.dev/v1alpha1/namespaces/default/applications/emotion/proxy"
ADMIN = {"Authorization": "Bearer t-admin"}


class World:
    """The root's front, edge-1's front, and the application."""

    def __init__(self, *, local: bool, loop: str = "uvloop") -> None:
        self.application = ApplicationServer()
        self.services = Services(self.application.port, local=local)
        self.root = RunningFront(echo, routes=ProxyRoutes(self.services), loop=loop)

        async def edge() -> None:
            from openapi.front.server import Front

            self.services.edge_routes = ProxyRoutes(Services(self.application.port))
            self.services.edge = Front(echo, self.root.accounts, self.services.edge_routes)

        self.root.thread.run(edge())

    def close(self) -> None:
        assert self.services.edge is not None
        self.root.thread.run(self.services.edge.close(0.2))
        self.root.__exit__()
        self.application.stop()

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, user: str = ""
    ) -> tuple[int, http.client.HTTPResponse, bytes]:
        client = self.root.client(user)
        client.request(method, path, body, headers=headers if headers is not None else ({} if user else ADMIN))
        response = client.getresponse()
        data = response.read()
        client.close()
        return response.status, response, data


@pytest.fixture(params=["local", "remote"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(local=request.param == "local")
    yield made
    made.close()


def test_request_to_an_application(world: World) -> None:
    client = world.root.client()
    for number in range(3):  # the client's connection lives on, whatever the application does with its own
        client.request(
            "GET", f"{PROXY}/v2/a%2Fb?x={number}", headers={**ADMIN, "Connection": "keep-alive, X-Hop", "X-Hop": "1", "X-Mine": "2"}
        )
        response = client.getresponse()
        seen = json.loads(response.read())
        assert seen["path"] == f"/v2/a%2Fb?x={number}"
        names = {name.lower(): value for name, value in seen["headers"].items()}
        assert "authorization" not in names, "the token of the tree is not the application's business"
        assert "x-hop" not in names
        assert names["x-mine"] == "2"
        assert names["banyan-user"] == "admin"
        assert names["x-forwarded-prefix"] == PROXY
        expected = "root" if world.services.local else "root, region-a, edge-1"
        assert response.headers.get_all("banyan-route") == [expected]
        assert response.getheader("banyan-cluster") == expected.rsplit(", ", maxsplit=1)[-1]
        assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    client.close()
    assert world.root.front.metrics.accepted == 1
    world.root.eventually(lambda: world.root.front.metrics.requests["application", 200] == 3)


def test_the_request_leaves_in_the_turn_in_which_its_stream_was_opened() -> None:
    """Over a link the opening and the head are one message then, and every hop between wakes once for both."""
    world = World(local=False)
    try:
        services, log = world.services, []
        open_stream = services.open

        async def opened(*arguments: Any) -> ByteStream:
            stream = await open_stream(*arguments)
            write = stream.write

            async def written(data: bytes) -> None:
                log.append(data[:4])
                await write(data)

            stream.write = written  # type: ignore[method-assign]
            asyncio.get_running_loop().call_soon(log.append, b"next turn")
            return stream

        services.open = opened  # type: ignore[assignment]
        assert world.ask("GET", f"{PROXY}/once")[0] == 200
        assert log[:2] == [b"GET ", b"next turn"]
    finally:
        world.close()


def test_bodies_with_length_and_in_chunks(world: World) -> None:
    for body in (b"x" * 300_000, (b"y" * 1000 for _ in range(300))):
        status, _, data = world.ask("POST", PROXY + "/", body, {**ADMIN, "Content-Type": "x"})
        assert status == 200
        assert json.loads(data)["length"] == 300_000
    status, _, data = world.ask("HEAD", PROXY + "/")
    assert (status, data) == (200, b"")


def test_who_may(world: World) -> None:
    assert world.ask("GET", PROXY + "/", user="viewer")[0] == 200
    status, _, data = world.ask("POST", PROXY + "/", b"x", user="viewer")
    assert status == 403
    assert "needs the group edit in namespace default" in json.loads(data)["message"]
    assert world.ask("POST", PROXY + "/", b"x", user="editor")[0] == 200
    assert world.ask("GET", PROXY.replace("default", "other") + "/", user="editor")[0] == 403
    assert world.ask("GET", PROXY + "/", headers={})[0] == 401
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert world.ask("GET", PROXY + "/", headers=upgrade, user="viewer")[0] == 403


def test_what_is_not_there(world: World) -> None:
    assert world.ask("GET", PROXY.replace("emotion", "other"))[0] == 404
    assert world.ask("GET", PROXY.replace("emotion", "asleep"))[0] == 503
    base = "/apis/banyan.dev/v1alpha1/clusters"
    assert world.ask("GET", f"{base}/nowhere/banyan/healthz")[0] == 404
    status, _, data = world.ask("GET", f"{base}/edge-2/banyan/healthz")
    assert (status, json.loads(data)["message"]) == (503, "edge-2 is out of reach: root → edge-2 is cut")
    status, _, data = world.ask("GET", f"{base}/edge-1/proxy/api")
    assert status == 501
    assert "runs applications as processes" in json.loads(data)["message"]


@pytest.mark.parametrize("path", ["/cut", "/garbage", "/close"])
def test_application_that_breaks_off(world: World, path: str) -> None:
    connection = world.root.connect()
    answer = raw_exchange(connection, f"GET {PROXY}{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode() + AUTH + b"\r\n")
    connection.close()
    if path == "/cut":
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"half"), "cut short of its Content-Length, so the client knows"
    else:
        assert answer.startswith(b"HTTP/1.1 502 "), answer


def test_safe_request_goes_to_the_next_instance(world: World) -> None:
    world.services.refuse_first = 1
    assert world.ask("GET", PROXY + "/")[0] == 200


def test_events_arrive_as_they_happen(world: World) -> None:
    client = world.root.client()
    client.request("GET", PROXY + "/events", headers=ADMIN)
    response = client.getresponse()  # the head comes before the first event
    assert response.getheader("content-type") == "text/event-stream"
    for number in range(3):
        world.application.next_event.release()
        assert response.readline() == b"data: %d\n" % number
        assert response.readline() == b"\n"
    assert response.read() == b""
    client.close()


def test_client_that_leaves_is_told_to_the_application(world: World) -> None:
    client = world.root.client()
    client.request("GET", PROXY + "/slow", headers=ADMIN)
    assert world.application.reached.wait(10)
    client.close()
    assert world.application.gone.wait(10)
    assert world.application.left
    world.root.eventually(lambda: world.root.front.metrics.in_flight == 0)


def test_websocket(world: World) -> None:
    async def serve() -> websockets.asyncio.server.Server:
        async def handler(connection: websockets.asyncio.server.ServerConnection) -> None:
            async for message in connection:
                await connection.send(message)

        return await websockets.asyncio.server.serve(handler, "127.0.0.1", 0, max_size=None, compression=None)

    server = world.root.thread.run(serve())
    world.services.port = server.sockets[0].getsockname()[1]
    with websockets.sync.client.connect(
        f"wss://127.0.0.1:{world.root.port}{PROXY}/chat", ssl=pki().client_context("editor"), max_size=None, proxy=None
    ) as client:
        assert client.response is not None
        assert client.response.headers["banyan-cluster"] in ("root", "edge-1")
        for message in ("hello", b"\x00" * 500_000, "ü" * 70_000):
            client.send(message)
            assert client.recv(timeout=20) == message

    async def stop() -> None:
        server.close()
        await server.wait_closed()

    world.root.thread.run(stop())


def test_websocket_refused_by_the_application(world: World) -> None:
    status, _, data = world.ask("GET", PROXY + "/chat", headers={**ADMIN, "Connection": "Upgrade", "Upgrade": "websocket"})
    assert status == 200, "an ordinary answer to an upgrade passes as it is"
    assert json.loads(data)["path"] == "/chat"


def test_descendants_own_api(world: World) -> None:
    """As the same user; through the own name as well."""
    for cluster in ("edge-1", "root"):
        status, _, data = world.ask("POST", f"/apis/banyan.dev/v1alpha1/clusters/{cluster}/banyan/api/v1/x?y=1", b"abc", user="viewer")
        answer = json.loads(data)
        assert status == 200
        assert (answer["user"], answer["raw_path"], answer["query"], answer["length"]) == ("viewer", "/api/v1/x", "y=1", 3)
    assert [opened[:2] for opened in world.services.opened] == [(EDGE, "http")]


def test_application_through_a_descendant(world: World) -> None:
    status, response, _ = world.ask("GET", f"/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan{PROXY}/", user="viewer")
    assert (status, response.getheader("banyan-cluster")) == (200, "root")  # the name that the edge's own services give
    assert world.ask("POST", f"/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan{PROXY}/", b"", user="viewer")[0] == 403


def test_a_descendant_does_not_believe_a_header(world: World) -> None:
    """The bearer token stays at the entry, and an adopted connection has the user that the parent named."""
    path = "/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan/x"
    assert json.loads(world.ask("GET", path, headers={"Authorization": "Bearer t-viewer"})[2])["user"] == "viewer"
    status, _, _ = world.ask("GET", path, headers={"Impersonate-User": "admin"}, user="viewer")
    assert status == 403


def test_invoke(world: World) -> None:
    call = {"labelSelector": "tier=edge", "method": "POST", "path": "/api/x", "body": "abc"}
    status, _, data = world.ask("POST", "/apis/banyan.dev/v1alpha1/invoke", json.dumps(call), user="editor")
    assert status == 200
    rows = {row["cluster"]: row for row in json.loads(data)["items"]}
    assert set(rows) == {"edge-1", "edge-2"}
    assert rows["edge-1"]["code"] == 200
    assert rows["edge-1"]["age"] == 0.0
    answer = json.loads(rows["edge-1"]["body"])
    assert (answer["user"], answer["length"], answer["raw_path"]) == ("editor", 3, "/api/x")
    dead = rows["edge-2"]
    assert (dead["code"], dead["age"], dead["ageAtLeast"], dead["brokenHop"]) == (503, 41.7, True, "root → edge-2")
    call = {"path": f"{PROXY}/big=100000", "clusters": ["root", "edge-1"], "maxBodyBytes": 1000}
    _, _, data = world.ask("POST", "/apis/banyan.dev/v1alpha1/invoke", json.dumps(call), user="editor")
    rows = {row["cluster"]: row for row in json.loads(data)["items"]}
    assert set(rows) == {"root", "edge-1"}
    for row in rows.values():
        assert row["truncated"]
        assert "bodyBase64" in row


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"path": "no-slash"},
        {"path": "/ x"},
        {"path": "/\r\nGET /"},
        {"path": "/", "method": "CONNECT"},
        {"path": "/", "headers": {"Content-Length": "3"}},
        {"path": "/", "headers": {"A": "b\r\nc: d"}},
        {"path": "/", "headers": {"A b": "c"}},
        {"path": "/", "body": "a", "bodyBase64": "YQ=="},
        {"path": "/", "bodyBase64": "!"},
        {"path": "/", "timeoutSeconds": 0},
        {"path": "/", "maxBodyBytes": 1 << 30},
        {"path": "/", "labelSelector": "a in ("},
        {"path": "/", "surprise": 1},
    ],
)
def test_invoke_refuses(world: World, call: object) -> None:
    status, _, data = world.ask("POST", "/apis/banyan.dev/v1alpha1/invoke", json.dumps(call))
    assert status == 400, data
    assert json.loads(data)["kind"] == "Status"


def test_large_bodies_both_ways(world: World) -> None:
    """50 MB up and down, digests equal."""
    size = 50_000_000
    block = bytes(range(256)) * 400
    body = (block[: min(len(block), size - sent)] for sent in range(0, size, len(block)))
    digest = hashlib.sha256()
    for start in range(0, size, len(block)):
        digest.update(block[: min(len(block), size - start)])
    status, _, data = world.ask("POST", PROXY + "/", body, {**ADMIN, "Content-Length": str(size)})
    assert (status, json.loads(data)["sha256"]) == (200, digest.hexdigest())
    client = world.root.client()
    client.request("GET", f"{PROXY}/big={size}", headers=ADMIN)
    response = client.getresponse()
    received = 0
    while piece := response.read(1 << 20):
        received += len(piece)
    client.close()
    assert received == size


def test_stalled_client_holds_the_application_back(world: World) -> None:
    """A client that reads nothing of 50 MB: what is in flight stays bounded, and ends when it leaves."""
    connection = world.root.connect()
    connection.sendall(f"GET {PROXY}/big=50000000 HTTP/1.1\r\nHost: x\r\n".encode() + AUTH + b"\r\n")
    seen = -1

    async def settled() -> None:
        nonlocal seen
        async with asyncio.timeout(20):
            while seen != world.application.sent or not seen:
                seen = world.application.sent
                await asyncio.sleep(0.3)

    world.root.thread.run(settled())
    assert 0 < seen < 25_000_000, "kernel buffers and ours, not the whole body"
    connection.close()
    assert world.application.gone.wait(20)


def test_early_answer_to_a_large_body(world: World) -> None:
    """Refused before the body was sent: the client gets the Status and not a reset."""
    connection = world.root.connect()
    connection.sendall(f"POST {PROXY}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode() + b"x" * 100_000)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = read_all(connection)
    connection.close()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"HTTP/1.1 200 OK" in answer, "a small unwanted body is read, and the connection lives on"
