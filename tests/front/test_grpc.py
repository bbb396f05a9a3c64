"""gRPC to an application through the front: a real grpcio server behind it, a real grpcio client before it."""

import queue
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from openapi.front.raw import ProxyRoutes
from tests.front.support import RunningFront, pki
from tests.front.test_server import echo
from tests.front.upstream import Services

METHOD = "/demo.Echo/"
EMOTION = (("banyan-application", "default/emotion"), ("authorization", "Bearer t-editor"))


class Echo(grpc.GenericRpcHandler):
    """Unary, server-streaming and bidirectional echoes, without generated code."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    def service(self, details):
        self.metadata.append(dict(details.invocation_metadata))
        match details.method.removeprefix(METHOD):
            case "Unary":
                return grpc.unary_unary_rpc_method_handler(lambda request, _: request)
            case "Stream":
                return grpc.unary_stream_rpc_method_handler(lambda request, _: (request for _ in range(100)))
            case "Both":
                return grpc.stream_stream_rpc_method_handler(lambda requests, _: iter(requests))
            case "Wait":
                return grpc.unary_unary_rpc_method_handler(self._wait)
        return None

    def _wait(self, request, context):
        context.add_callback(self.cancelled.set)
        self.waiting.set()
        self.cancelled.wait(20)
        return request


class World:
    def __init__(self, *, local: bool) -> None:
        self.echo = Echo()
        self.server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[self.echo])
        port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.root = RunningFront(echo, routes=ProxyRoutes(Services(port, local=local)))

    def channel(self, user: str = "", authority: str = "") -> grpc.Channel:
        pem = pki().user(user).read_bytes() if user else None
        credentials = grpc.ssl_channel_credentials(pki().ca.read_bytes(), pem, pem)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        if authority:
            options.append(("grpc.default_authority", authority))
        return grpc.secure_channel(f"127.0.0.1:{self.root.port}", credentials, options)

    def close(self) -> None:
        self.root.__exit__()
        self.server.stop(0).wait(10)


@pytest.fixture(params=["local", "remote"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(local=request.param == "local")
    yield made
    made.close()


def test_unary_streaming_and_both_ways(world: World) -> None:
    with world.channel() as channel:
        unary = channel.unary_unary(METHOD + "Unary")
        for number in range(5):
            assert unary(b"%d" % number, metadata=EMOTION, timeout=20) == b"%d" % number
        big = b"x" * 3_000_000
        assert unary(big, metadata=EMOTION, timeout=20) == big
        answers = channel.unary_stream(METHOD + "Stream")(b"y" * 10_000, metadata=EMOTION, timeout=20)
        assert sum(len(answer) for answer in answers) == 1_000_000
        messages = [b"%d" % number for number in range(500)]
        assert list(channel.stream_stream(METHOD + "Both")(iter(messages), metadata=EMOTION, timeout=20)) == messages
    assert world.root.front.metrics.accepted == 1


def test_the_instance_never_sees_the_credential(world: World) -> None:
    with world.channel() as channel:
        for _ in range(2):
            channel.unary_unary(METHOD + "Unary")(b"", metadata=(*EMOTION, ("x-mine", "1")), timeout=20)
    for metadata in world.echo.metadata:
        assert metadata["x-mine"] == "1"
        assert not {"authorization", "banyan-application"} & set(metadata)


def test_named_by_authority_and_known_by_certificate(world: World) -> None:
    with world.channel("editor", "emotion.default.application.banyan") as channel:
        assert channel.unary_unary(METHOD + "Unary")(b"a", timeout=20) == b"a"


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        ((("banyan-application", "default/emotion"),), grpc.StatusCode.UNAUTHENTICATED, "no credential"),
        ((("banyan-application", "default/emotion"), ("authorization", "Bearer x")), grpc.StatusCode.UNAUTHENTICATED, "not known"),
        ((("banyan-application", "default/emotion"), ("authorization", "Bearer t-viewer")), grpc.StatusCode.PERMISSION_DENIED, "edit"),
        ((("banyan-application", "default/other"), ("authorization", "Bearer t-editor")), grpc.StatusCode.NOT_FOUND, "default/other"),
        ((("banyan-application", "default/asleep"), ("authorization", "Bearer t-editor")), grpc.StatusCode.UNAVAILABLE, "no instance"),
        ((("authorization", "Bearer t-editor"),), grpc.StatusCode.INVALID_ARGUMENT, "name one by the authority"),
    ],
)
def test_refusals_are_grpc_statuses(world: World, metadata, code: grpc.StatusCode, words: str) -> None:
    with world.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHOD + "Unary")(b"", metadata=metadata, timeout=20)
    assert caught.value.code() is code
    assert words in caught.value.details()


def test_a_connection_belongs_to_one_application_and_user(world: World) -> None:
    """A call for another is refused by itself; a stream that is open on the same connection goes on."""
    with world.channel() as channel:
        unary = channel.unary_unary(METHOD + "Unary")
        said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        both = channel.stream_stream(METHOD + "Both")(iter(said.get, None), metadata=EMOTION, timeout=20)
        said.put(b"first")
        assert next(both) == b"first"
        for number in range(20):
            for metadata, code in (
                ((("banyan-application", "default/other"), ("authorization", "Bearer t-editor")), grpc.StatusCode.PERMISSION_DENIED),
                ((("banyan-application", "default/emotion"), ("authorization", "Bearer t-admin")), grpc.StatusCode.PERMISSION_DENIED),
                ((("banyan-application", "default/emotion"), ("authorization", "Bearer x")), grpc.StatusCode.UNAUTHENTICATED),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    unary(b"x" * 10_000, metadata=metadata, timeout=20)
                assert caught.value.code() is code
            said.put(b"%d" % number)
            assert next(both) == b"%d" % number
        said.put(None)
        assert list(both) == []
        assert unary(b"c", metadata=EMOTION, timeout=20) == b"c"
        world.root.accounts.revoked.add("editor")
        with pytest.raises(grpc.RpcError, match="was revoked"):
            unary(b"d", metadata=EMOTION, timeout=20)
    assert len(world.echo.metadata) == 2, "no refused call reached the application"
    assert world.root.front.metrics.accepted == 1


def test_client_that_leaves_is_told_to_the_application(world: World) -> None:
    channel = world.channel()
    call = channel.unary_unary(METHOD + "Wait").future(b"", metadata=EMOTION, timeout=20)
    assert world.echo.waiting.wait(10)
    channel.close()
    assert world.echo.cancelled.wait(10)
    assert call.code() is grpc.StatusCode.CANCELLED
