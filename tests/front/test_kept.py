"""Streams to an application that serve several requests of one client connection, and those that must not."""

import asyncio
import http.client
import json
from collections.abc import Iterator

import pytest

from openapi.front import kept
from openapi.front.streams import PushbackStream, StreamClosed, pair
from tests.front.support import ADMIN as ADMIN_USER
from tests.front.test_raw import ADMIN, PROXY, World
from tests.front.upstream import ME

EDITOR = {"Authorization": "Bearer t-editor"}

clients: list[http.client.HTTPSConnection] = []


@pytest.fixture(params=["local", "remote"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(local=request.param == "local")
    yield made
    while clients:
        clients.pop().close()
    made.close()


class Client:
    """One connection to the front."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.connection = world.root.client()
        clients.append(self.connection)

    def ask(self, path: str = "/", method: str = "GET", headers: dict[str, str] = ADMIN, body: bytes | None = None) -> tuple[int, bytes]:
        before = self.connection.sock
        self.connection.request(method, path if path.startswith("/apis") else PROXY + path, body, headers=headers)
        answer = self.connection.getresponse()
        data = answer.read()
        assert before in (None, self.connection.sock), "the client's own connection lives on"
        return answer.status, data

    def uses(self, connections: int, *paths: str, method: str = "GET", body: bytes | None = None) -> None:
        """Asking for ``paths`` opens so many connections to the application."""
        before = self.world.application.connections
        for path in paths:
            status, data = self.ask(path, method, body=body)
            assert status == 200 and b"poison" not in data, data
        assert self.world.application.connections - before == connections


def total(world: World) -> int:
    return world.root.front._shared.kept.count


def test_safe_requests_of_one_connection_share_a_stream(world: World) -> None:
    client = Client(world)
    client.uses(1, "/", "/a", "/big=200000", "/b")
    client.uses(0, "/", method="HEAD")
    assert "connection" not in world.application.seen[-1][2]
    world.root.eventually(lambda: total(world) == 1)
    Client(world).uses(1, "/")  # nobody else's
    client.connection.close()
    world.root.eventually(lambda: total(world) == 0 and world.application.open == 0)


def test_what_may_not_be_repeated_has_a_stream_of_its_own_but_where_an_answer_is_promised(world: World) -> None:
    client = Client(world)
    client.uses(1, "/")
    client.uses(2, "/x", "/y", method="POST", body=b"hello")
    assert world.application.seen[-1][2]["connection"] == "close"
    assert total(world) == 0, "the stream that waited is gone: an application that serves one connection at a time must not wait for it"
    world.services.answers_once_more = True
    client.uses(1, "/x", "/y", method="POST", body=b"hello")
    client.uses(0, "/")


def test_a_request_that_may_not_be_repeated_is_not(world: World) -> None:
    world.services.answers_once_more = True
    client = Client(world)
    client.uses(1, "/")
    world.application.seen.clear()
    status, data = client.ask("/close", "POST", body=b"pay 5")
    assert status == 502 and "closed the connection before it answered" in json.loads(data)["message"]
    assert [method for method, _, _ in world.application.seen] == ["POST"]


def test_users_never_share(world: World) -> None:
    client = Client(world)
    for headers in (ADMIN, EDITOR, ADMIN):
        before = world.application.connections
        assert client.ask(headers=headers)[0] == 200
        assert world.application.connections == before + 1
    assert client.ask(headers={"Authorization": "Bearer t-nobody"})[0] == 401
    assert client.ask(headers={"Authorization": "Bearer t-viewer"}, method="POST", body=b"")[0] == 403


def test_an_application_that_closes_an_idle_connection_costs_a_safe_request_nothing(world: World) -> None:
    client = Client(world)
    for _ in range(20):  # whether the end is heard before the next request or after it
        client.uses(2, "/once", "/leaving")
    assert total(world) == 0


@pytest.mark.parametrize("path", ["/leaving", "/extra", "/events"])
def test_no_stream_is_used_again_that_does_not_stand_at_the_next_answer(world: World, path: str) -> None:
    client = Client(world)
    for _ in range(10):
        for _ in range(3):
            world.application.next_event.release()
        client.uses(1, path)
        client.uses(1, "/")
        client.uses(0, "/")
        client.uses(1, "/x", method="POST", body=b"")


def test_nothing_is_kept_after_an_answer_that_came_before_the_body_was_sent(world: World) -> None:
    world.services.answers_once_more = True
    client = Client(world)
    connection = client.connection
    connection.putrequest("POST", PROXY + "/early")
    connection.putheader("Authorization", "Bearer t-admin")
    connection.putheader("Content-Length", "100000")
    connection.endheaders(b"x")
    assert connection.getresponse().read()
    assert total(world) == 0


@pytest.mark.parametrize("event", ["byte", "end", "abort"])
def test_whatever_comes_before_the_next_request_ends_a_kept_stream(event: str) -> None:
    async def main() -> None:
        total = kept.KeptTotal()
        waiting = kept.Kept(total)
        ours, theirs = pair()
        assert waiting.keep(PushbackStream(ours), ("somewhere",), ADMIN_USER)
        if event == "byte":
            await theirs.write(b"x")
        elif event == "end":
            await theirs.close_write()
        else:
            theirs.abort("gone")
        async with asyncio.timeout(10):
            while total.count:
                await asyncio.sleep(0)
        assert await waiting.take(("somewhere",), ADMIN_USER) is None
        with pytest.raises(StreamClosed):
            await theirs.write(b"more")

    asyncio.run(main())


def test_a_failed_answer_leaves_nothing_behind(world: World) -> None:
    client = Client(world)
    client.uses(1, "/")
    with pytest.raises(http.client.IncompleteRead):
        client.ask("/cut")
    world.root.eventually(lambda: total(world) == 0 and world.application.open == 0)
    again = Client(world)
    assert again.ask("/garbage")[0] == 502
    again.uses(1, "/")


def test_a_stream_waits_only_so_long_and_only_so_many_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEEP_SECONDS", 0.02)
    client = Client(world)
    client.uses(1, "/")
    world.root.eventually(lambda: total(world) == 0 and world.application.open == 0)
    monkeypatch.setattr(kept, "KEEP_SECONDS", 60.0)
    client.uses(1, "/", "/")
    world.root.eventually(lambda: total(world) == 1)
    world.root.front._shared.kept.most = 1
    other = Client(world)
    other.uses(3, "/", "/", "/")
    for either in (client, other):
        either.connection.close()
    world.root.eventually(lambda: total(world) == 0)
    Client(world).uses(1, "/", "/", "/")


def test_a_descendants_api_is_asked_over_one_stream_as_one_user(world: World) -> None:
    base = "/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan/api/v1/pods"
    client = Client(world)
    for headers, opened in ((ADMIN, 1), (ADMIN, 1), (EDITOR, 2), (ADMIN, 3), (ADMIN, 3)):
        status, data = client.ask(base, headers=headers)
        assert status == 200
        who = headers["Authorization"].removeprefix("Bearer t-")
        assert json.loads(data)["user"] == who
        assert len(world.services.opened) == opened
    client.ask(base, "POST", body=b"{}")
    assert len(world.services.opened) == 4
    assert ME not in {uid for uid, _, _ in world.services.opened}
