"""A closed loop of connections that ask one thing again and again, cheap enough not to be what is measured.

Requests are made once; an answer is read as far as it takes to know that it is whole and good. One process, no event loop library:
`python -m benchmarks.serve_client WIRE HOST:PORT REQUEST CONNECTIONS SECONDS` prints a `Tally` as JSON. WIRE is `rest`, `json` or `grpc`,
REQUEST a file made by `rest_request` and the like.
"""

import select
import socket
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

PATIENCE = 60.0  # seconds without any answer: the server hangs


class Tally(Struct, kw_only=True):
    answers: int
    failures: int
    seconds: float
    p50: float  # milliseconds
    p99: float
    first_failure: str = ""

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def rest_request(address: str, model: str, array: np.ndarray[Any, Any]) -> bytes:
    """With the protocol's binary tensor extension."""
    raw = array.tobytes()
    item = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = msgspec.json.encode({"inputs": [item], "parameters": {"binary_data_output": True}})
    return _post(address, model, head + raw, f"Inference-Header-Content-Length: {len(head)}", "application/octet-stream")


def json_request(address: str, model: str, array: np.ndarray[Any, Any]) -> bytes:
    item = {"name": "x", "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
    return _post(address, model, msgspec.json.encode({"inputs": [item]}), "Accept: */*", "application/json")


def _post(address: str, model: str, body: bytes, header: str, content: str) -> bytes:
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1", f"Host: {address}", f"Content-Type: {content}", header, f"Content-Length: {len(body)}",
    )  # fmt: skip
    return "\r\n".join((*lines, "", "")).encode() + body


def grpc_request(address: str, model: str, array: np.ndarray[Any, Any]) -> bytes:
    """The message alone, with gRPC's five bytes before it."""
    from edge_ai.serve.proto import open_inference_pb2 as pb

    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    body = message.SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


class Rest:
    """One HTTP/1.1 connection with one request on its way."""

    def __init__(self, request: bytes, address: str) -> None:
        self._request = request
        self._buffer = b""
        self._left = -1  # bytes of the body that are still to come; -1: the head is

    def begin(self) -> bytes:
        return self._request

    ask = begin

    def feed(self, data: bytes) -> tuple[int, str]:
        """How many answers are whole now (0 or 1), and what is wrong with it."""
        if self._left >= 0:
            self._left -= len(data)
        else:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return 0, ""
            head = self._buffer[:end].lower()
            at = head.find(b"content-length: ")
            if at < 0:
                return 1, f"no content-length: {head[:200]!r}"
            length = int(head[at + 16 : at + 32].partition(b"\r\n")[0])
            self._left = length - (len(self._buffer) - end - 4)
        if self._left > 0:
            return 0, ""
        good = self._buffer.startswith(b"HTTP/1.1 200")
        wrong = "" if good else self._buffer[:300].decode(errors="replace")
        self._buffer, self._left = b"", -1
        return 1, wrong


class Grpc:
    """One HTTP/2 connection with one call on its way. Headers are literals, so that each block is the same bytes."""

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    MORE = 1 << 24  # bytes of credit that are given at once

    def __init__(self, message: bytes, address: str) -> None:
        self._message = message
        self._stream = -1
        self._buffer = bytearray()
        self._given = 65535
        fields = (
            (":method", "POST"), (":scheme", "http"), (":path", "/inference.GRPCInferenceService/ModelInfer"), (":authority", address),
            ("te", "trailers"), ("content-type", "application/grpc"),
        )  # fmt: skip
        self._block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
        self._answer = b""

    def begin(self) -> bytes:
        settings = _frame(4, 0, 0, struct.pack(">HI", 4, (1 << 31) - 1))
        return self.PREFACE + settings + self.ask()

    def ask(self) -> bytes:
        self._stream += 2
        self._answer = b""
        parts = [_frame(1, 4, self._stream, self._block)]
        pieces = [self._message[start : start + 16384] for start in range(0, len(self._message), 16384)]
        parts += [_frame(0, 1 if piece is pieces[-1] else 0, self._stream, piece) for piece in pieces]
        if self._given < self.MORE // 2:
            self._given += self.MORE
            parts.append(_frame(8, 0, 0, struct.pack(">I", self.MORE)))
        return b"".join(parts)

    def feed(self, data: bytes) -> tuple[int, str]:
        self._buffer += data
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                break
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            if kind == 0:
                self._given -= length
                self._answer += self._buffer[9 : 9 + length]
            del self._buffer[: 9 + length]
            if kind in (3, 7):
                return 1, f"frame {kind} of HTTP/2: reset or go away"
            if kind in (0, 1) and flags & 1 and stream == self._stream:
                return 1, "" if self._answer else "an answer without a message"
        return 0, ""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127
    return bytes((len(raw),)) + raw


REQUESTS = {"rest": rest_request, "json": json_request, "grpc": grpc_request}
WIRES = {"rest": Rest, "json": Rest, "grpc": Grpc}


def run(wire: str, address: str, request: bytes, connections: int, seconds: float) -> Tally:
    """Asks on each connection as soon as the last answer is there. Raises TimeoutError when nothing comes any more."""
    host, _, port = address.rpartition(":")
    poll = select.epoll()
    open_: dict[int, tuple[socket.socket, Any]] = {}
    asked: dict[int, float] = {}
    took: list[float] = []
    failures, first = 0, ""
    began = time.perf_counter()
    for _ in range(connections):
        made = socket.create_connection((host, int(port)), PATIENCE)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        open_[made.fileno()] = made, WIRES[wire](request, address)
        poll.register(made, select.EPOLLIN)
        asked[made.fileno()] = time.perf_counter()
        made.sendall(open_[made.fileno()][1].begin())
    end = began + seconds
    try:
        while (now := time.perf_counter()) < end:
            ready = poll.poll(PATIENCE)
            if not ready:
                raise TimeoutError(f"no answer from {address} within {PATIENCE:g} s")
            for number, _ in ready:
                connection, state = open_[number]
                data = connection.recv(1 << 18)
                if not data:
                    raise ConnectionError(f"{address} closed a connection after {len(took)} answers")
                whole, wrong = state.feed(data)
                if not whole:
                    continue
                now = time.perf_counter()
                took.append(now - asked[number])
                if wrong:
                    failures += 1
                    first = first or wrong
                asked[number] = now
                connection.sendall(state.ask())
    finally:
        for connection, _ in open_.values():
            connection.close()
        poll.close()
    spent = time.perf_counter() - began
    ordered = sorted(took) or [float("nan")]
    return Tally(
        answers=len(took) - failures,
        failures=failures,
        seconds=spent,
        p50=1000 * statistics.median(ordered),
        p99=1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        first_failure=first,
    )


def main(arguments: list[str]) -> None:
    wire, address, request, connections, seconds = arguments
    tally = run(wire, address, Path(request).read_bytes(), int(connections), float(seconds))
    sys.stdout.buffer.write(msgspec.json.encode(tally) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
