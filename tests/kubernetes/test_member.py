"""One request of a person on one connection: what is sent, what is never sent, what is answered, and that nothing is left open."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.member import Door, namespace_of
from cluster_shim.kubernetes.spare import Spare
from tests.kubernetes.wire import End, wire

PERSON = {"user": "ann", "group": "banyan:view", "entry": "e"}
GET = b"GET /api/v1/namespaces/team/pods HTTP/1.1\r\nHost: h\r\n\r\n"
UPGRADE = b"POST /exec HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
SECOND = b"DELETE /api/v1/namespaces/kube-system HTTP/1.1\r\nHost: h\r\nImpersonate-User: root\r\n\r\n"


class Server(Api):
    """An `Api` whose connections end in this test: ``server`` is their other end."""

    def __init__(self) -> None:
        self.rules: list[object] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.accepting = True
        self.servers: list[End] = []
        self.reading = "the first kubeconfig"

    @property
    def url(self) -> str:
        return "https://10.0.0.1:6443"

    @property
    def way(self) -> object:
        return self.reading

    async def credential_headers(self) -> list[tuple[bytes, bytes]]:
        return [(b"authorization", b"Bearer own")]

    async def connect(self) -> ByteStream:
        if not self.accepting:
            raise ApiError("https://10.0.0.1:6443 cannot be reached: refused")
        ours, theirs = wire()
        self.servers.append(theirs)
        return ours

    async def request(self, method: str, path: str, **given: object) -> bytes:
        headers = given.get("headers")
        self.asked.append((method, path, headers if isinstance(headers, dict) else {}))
        return msgspec.json.encode({"status": {"resourceRules": self.rules}})

    @property
    def server(self) -> End:
        return self.servers[-1]


Body = Callable[[Server, Door, ByteStream], Awaitable[None]]


def run(body: Body) -> None:
    async def main() -> None:
        api = Server()
        door = Door(api)
        stream = await door.open(OpenTarget(kind="api", options=PERSON))
        assert door.open_streams == 1
        async with asyncio.timeout(20):
            await body(api, door, stream)
        stream.abort("the test is over")
        assert door.open_streams == 0
        await door.close()
        assert all(server.closed for server in api.servers)

    asyncio.run(main())


async def everything(stream: ByteStream) -> bytes:
    found = b""
    while data := await stream.read(7):
        found += data
    return found


def told(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) == msgspec.json.decode(body)["code"]
    return msgspec.json.decode(body)["code"], msgspec.json.decode(body)["message"]


def test_a_request_in_pieces_and_its_answer() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        for start in range(0, len(GET), 5):
            await stream.write(GET[start : start + 5])
        sent = await api.server.received(b"\r\n\r\n")
        assert sent.startswith(b"GET /api/v1/namespaces/team/pods HTTP/1.1\r\nhost: 10.0.0.1:6443\r\n")
        assert b"authorization: Bearer own\r\nimpersonate-user: banyan\r\nimpersonate-group: banyan:view\r\n" in sent
        api.server.send(OK)
        api.server.end()
        assert await everything(stream) == OK
        assert door.open_streams == 0

    run(body)


def test_a_body_is_passed_on_and_a_second_request_is_not() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nabc")
        with pytest.raises(ShimError, match="one request per stream"):
            await stream.write(b"def" + SECOND)
        assert (await api.server.received(b"abcdef")).endswith(b"\r\n\r\nabcdef")
        with pytest.raises(ShimError, match="one request per stream"):
            await stream.write(SECOND)
        api.server.send(OK)
        api.server.end()
        assert await everything(stream) == OK
        assert b"kube-system" not in api.server.seen

    run(body)


def test_nothing_follows_an_upgrade_that_is_refused() -> None:
    """The dangerous one: the server keeps the connection, and would take what comes next for a request of ours."""

    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        writing = asyncio.create_task(stream.write(UPGRADE + SECOND))
        await api.server.received(b"\r\n\r\n")
        api.server.send(OK)  # no 101, and no end
        assert await stream.read() == OK
        with pytest.raises(ShimError, match="one request per stream"):
            await writing
        assert b"kube-system" not in api.server.seen

    run(body)


def test_after_a_switch_bytes_pass_both_ways_and_an_end_ends_it() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        writing = asyncio.create_task(stream.write(UPGRADE + b"\x80\x03early"))
        await api.server.received(b"\r\n\r\n")
        assert b"early" not in api.server.seen
        api.server.send(SWITCHED + b"\x80\x03hello")
        assert await stream.read() == SWITCHED + b"\x80\x03hello"
        await writing
        await api.server.received(b"\x80\x03early")
        await stream.write(SECOND)  # no request any more: bytes of a protocol
        await api.server.received(SECOND)
        await stream.close_write()
        assert api.server.closed
        assert door.open_streams == 0

    run(body)


def test_an_answer_101_that_nobody_asked_for_switches_nothing() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET)
        api.server.send(SWITCHED)
        assert await stream.read() == SWITCHED
        with pytest.raises(ShimError, match="one request per stream"):
            await stream.write(SECOND)
        assert b"kube-system" not in api.server.seen

    run(body)


def test_informational_answers_pass_before_the_answer() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(b"PUT /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert b"expect: 100-continue\r\n" in await api.server.received(b"\r\n\r\n")
        api.server.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await stream.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.write(b"abc")
        await api.server.received(b"abc")
        api.server.send(OK)
        assert await stream.read() == OK

    run(body)


@pytest.mark.parametrize(
    "hostile", [GET.replace(b"Host: h", b"Host: h\r\nHost: i"), b"GET / HTTP/1.1\nHost: h\n\n", b"X: " + b"x" * 70_000]
)
def test_a_hostile_head_is_answered_and_not_sent(hostile: bytes) -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(hostile)
        await stream.write(SECOND)
        code, message = told(await everything(stream))
        assert code in (400, 431)
        assert message
        assert api.server.seen == b""
        assert api.server.closed
        assert door.open_streams == 0

    run(body)


def test_a_refused_head_is_answered_while_somebody_waits_for_the_answer() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        reading = asyncio.create_task(everything(stream))
        await asyncio.sleep(0)
        await stream.write(b"TRACE / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert told(await reading)[0] == 405

    run(body)


def test_half_a_head_is_answered() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET[:20])
        await stream.close_write()
        assert told(await everything(stream))[0] == 400

    run(body)


def forbidden(message: str) -> bytes:
    document = msgspec.json.encode({"kind": "Status", "message": message, "reason": "Forbidden", "details": {"kind": "pods"}, "code": 403})
    return b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(document) + document


DENIED = 'pods is forbidden: User "banyan" cannot list resource "pods" in API group "" in the namespace "team"'
BASIC = {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"]}


def test_a_refusal_says_what_to_bind_when_nothing_is_bound() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        api.rules = [BASIC]
        await stream.write(GET)
        api.server.send(forbidden(DENIED)[:90])
        api.server.send(forbidden(DENIED)[90:])
        code, message = told(await everything(stream))
        assert code == 403
        assert message.startswith(DENIED)
        assert "kubectl create clusterrolebinding banyan-view --clusterrole=view --group=banyan:view" in message
        ((method, path, headers),) = api.asked
        assert (method, path) == ("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
        assert headers["impersonate-group"] == "banyan:view"

    run(body)


def test_a_refusal_of_somebody_with_rights_is_passed_on_as_it_is() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        api.rules = [BASIC, {"verbs": ["get"], "apiGroups": [""], "resources": ["services"]}]
        await stream.write(GET)
        api.server.send(forbidden(DENIED))
        api.server.end()
        assert await everything(stream) == forbidden(DENIED)

    run(body)


def test_a_missing_right_of_the_controllers_own_is_told_as_such() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET)
        api.server.send(forbidden('users "banyan" is forbidden: User "shim" cannot impersonate resource "users" in API group ""'))
        code, message = told(await everything(stream))
        assert code == 403
        assert "print-manifest" in message
        assert api.asked == []

    run(body)


def test_our_own_expired_credential_is_not_the_persons() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET)
        api.server.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        answer = await everything(stream)
        assert b"retry-after: 1\r\n" in answer  # kubectl asks again by itself, when the credential was read anew
        code, message = told(answer)
        assert code == 503
        assert "this controller's own credential" in message
        await asyncio.sleep(0)
        assert api.asked == [("GET", "/api", {})]

    run(body)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"SSH-2.0\r\n\r\n", b"X" * 70_000])
def test_an_api_server_that_breaks_off(answer: bytes) -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET)
        for start in range(0, len(answer), 30_000):
            api.server.send(answer[start : start + 30_000])
        api.server.end()
        if answer:
            with pytest.raises(ShimError, match="the member's API server"):
                await everything(stream)
        else:
            assert await everything(stream) == b""  # whoever asked sees that there was no answer
        assert door.open_streams == 0

    run(body)


def test_a_stalled_reader_holds_the_api_server_back() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        await stream.write(GET)
        api.server.send(b"HTTP/1.1 200 OK\r\n\r\n")
        endless = asyncio.create_task(api.server.flood())
        assert (await stream.read()).startswith(b"HTTP/1.1 200")
        seen = -1
        while seen != api.server.sent:
            seen = api.server.sent
            await asyncio.sleep(0.01)
        assert seen < 1_000_000
        stream.abort("gone")
        with contextlib.suppress(ConnectionError):
            await endless

    run(body)


def test_an_abort_frees_who_waits() -> None:
    async def body(api: Server, door: Door, stream: ByteStream) -> None:
        writing = asyncio.create_task(stream.write(UPGRADE + b"early"))
        await api.server.received(b"\r\n\r\n")
        stream.abort("the client has gone")
        with pytest.raises(ShimError, match="the client has gone"):
            await writing
        with pytest.raises(ShimError, match="the client has gone"):
            await stream.read()
        stream.abort("twice is once")

    run(body)


def test_there_is_room_for_so_many() -> None:
    async def main() -> None:
        api = Server()
        door = Door(api, most=2)
        target = OpenTarget(kind="api", options=PERSON)
        streams = [await door.open(target), await door.open(target)]
        with pytest.raises(ShimError, match="2 requests of people are open"):
            await door.open(target)
        streams[0].abort()
        streams.append(await door.open(target))
        api.accepting = False
        streams.pop().abort()
        with pytest.raises(ApiError):
            await door.open(target)
        assert door.open_streams == 1
        with pytest.raises(ShimError, match="no group"):
            await door.open(OpenTarget(kind="api", options=PERSON | {"group": "system:masters"}))
        assert door.open_streams == 1
        streams.pop().abort()

    asyncio.run(main())


async def answered(api: Server, door: Door) -> None:
    """One request from its beginning to its end."""
    stream = await door.open(OpenTarget(kind="api", options=PERSON))
    server = next(one for one in reversed(api.servers) if not one.closed)
    await stream.write(GET)
    await server.received(b"\r\n\r\n")
    server.send(OK)
    server.end()
    assert await everything(stream) == OK


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("meanwhile", ["nothing", "the server ends it", "another kubeconfig", "the server is gone"])
def test_after_a_request_one_connection_is_at_hand_for_the_next(meanwhile: str) -> None:
    async def main() -> None:
        api = Server()
        door = Door(api)
        await answered(api, door)
        api.accepting = meanwhile != "the server is gone"
        await settled()
        if not api.accepting:
            assert len(api.servers) == 1
            with pytest.raises(ApiError):
                await door.open(OpenTarget(kind="api", options=PERSON))
            return
        assert len(api.servers) == 2
        spare = api.server
        assert not spare.seen
        if meanwhile == "the server ends it":
            spare.end()
            await settled()
        elif meanwhile == "another kubeconfig":
            api.reading = "the second kubeconfig"
        await answered(api, door)
        assert bool(spare.seen) == (meanwhile == "nothing")
        assert spare.closed
        await settled()
        await door.close()
        assert all(server.closed for server in api.servers)

    asyncio.run(main())


def test_a_spare_is_kept_for_a_while_and_given_up() -> None:
    async def main() -> None:
        api, tasks = Server(), Tasks("test")
        spare = Spare(api, tasks, kept_seconds=0.01)
        spare.prepare()
        spare.prepare()
        while not api.servers or not api.server.closed:
            await asyncio.sleep(0.01)
        assert len(api.servers) == 1
        assert await spare.take() is None
        await tasks.close()

    asyncio.run(main())


def test_the_namespace_of_a_path() -> None:
    assert namespace_of("/api/v1/namespaces/team/pods?x=namespaces/other") == "team"
    assert namespace_of("/api/v1/nodes") == ""
    assert namespace_of("/api/v1/namespaces") == ""
