"""gRPC over HTTP/2: messages in any pieces, timeouts, statuses; and the library's own client against a real worker."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_ai.serve import grpc_wire
from edge_ai.serve.errors import BadRequest, TooLarge
from edge_ai.serve.grpc_wire import Messages, Unimplemented, framed
from edge_ai.serve.proto import open_inference_pb2 as pb
from tests.edge_ai import onnx_models
from tests.edge_ai.workers import PATIENCE, Worker, worker

MOST = 1000


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(1, 70))
def test_messages_come_whole_in_any_pieces(sent: list[bytes], size: int) -> None:
    stream = b"".join(map(framed, sent))
    messages = Messages(MOST, "identity")
    found = [message for start in range(0, len(stream), size) for message in messages.feed(stream[start : start + size])]
    assert found == sent and messages.empty


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_packed_messages_are_unpacked_and_no_bomb_goes_off(encoding: str, pack: Any) -> None:
    packed = pack(b"hello" * 50)
    assert list(Messages(MOST, encoding).feed(b"\x01" + len(packed).to_bytes(4, "big") + packed)) == [b"hello" * 50]
    bomb = pack(bytes(200_000))
    for body, error in ((bomb, TooLarge), (packed[:-8], BadRequest), (b"nonsense", BadRequest)):
        with pytest.raises(error):
            list(Messages(MOST, encoding).feed(b"\x01" + len(body).to_bytes(4, "big") + body))


def test_what_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TooLarge, match="1001 bytes; at most 1000"):
        list(Messages(MOST, "").feed(b"\x00\x00\x00\x03\xe9"))
    with pytest.raises(Unimplemented, match="snappy"):
        list(Messages(MOST, "snappy").feed(b"\x01\x00\x00\x00\x01x"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("", None), ("1S", 1), ("250m", 0.25), ("3M", 180), ("1H", 3600), ("5u", 5e-6), ("99999999n", 0.099999999)]
)
def test_timeouts(text: str, seconds: float | None) -> None:
    assert grpc_wire.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["1", "S", "-1S", "1.5S", "123456789S", "1s", "１S"])
def test_what_is_no_timeout_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="grpc-timeout"):
        grpc_wire.seconds(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder: Path = onnx_models.constant(tmp_path_factory.mktemp("m") / "one", 1.0)
    with worker(folder, "--max-request-bytes", "100000") as running:
        yield running


def call(made: Worker, path: str, message: bytes, **options: Any) -> bytes:
    with grpc.insecure_channel(made.address) as channel:
        answer: bytes = channel.unary_unary(path)(message, timeout=PATIENCE, **options)
    return answer


def infer(rows: int = 1) -> bytes:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[np.ones((rows, 4), np.float32).tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    return request.SerializeToString()


INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_the_librarys_client_is_answered_packed_or_not(made: Worker, compression: grpc.Compression) -> None:
    answer = pb.ModelInferResponse.FromString(call(made, INFER, infer(64), compression=compression))
    assert answer.raw_output_contents[0] == np.ones((64, 4), np.float32).tobytes()


def test_kubernetes_probes_are_answered(made: Worker) -> None:
    assert call(made, "/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
    name = b"inference.GRPCInferenceService"
    assert call(made, "/grpc.health.v1.Health/Check", b"\x0a" + bytes((len(name),)) + name) == b"\x08\x01"
    with pytest.raises(grpc.RpcError) as refused:
        call(made, "/grpc.health.v1.Health/Check", b"\x0a\x03abc")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("path", "message", "code", "says"),
    [
        ("/inference.GRPCInferenceService/Nothing", b"", "UNIMPLEMENTED", "no such method"),
        ("/nothing", b"", "UNIMPLEMENTED", "/nothing"),
        (INFER, b"\xff\xff\xff", "INVALID_ARGUMENT", "not what this method takes"),
        (INFER, b"", "NOT_FOUND", "is not served"),
        (INFER, bytes(200_000), "RESOURCE_EXHAUSTED", "at most 100000"),
    ],
)
def test_what_cannot_be_answered_says_why(made: Worker, path: str, message: bytes, code: str, says: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(made, path, message)
    assert refused.value.code().name == code and says in refused.value.details()


def test_a_text_of_any_letters_arrives() -> None:
    from hpack import Decoder

    fields = dict(Decoder().decode(grpc_wire.trailers("NOT_FOUND", "100 % größer\n")))
    assert fields == {"grpc-status": "5", "grpc-message": "100 %25 gr%C3%B6%C3%9Fer%0A"}
    assert dict(Decoder().decode(grpc_wire.trailers("NO_SUCH_CODE", "")))["grpc-status"] == "2"
