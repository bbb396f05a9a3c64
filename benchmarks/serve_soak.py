"""The shipped worker under a mixed load for an hour: good requests, bad ones, clients that go away, versions that are swapped. `make soak`.

    python -m benchmarks.serve_soak [--seconds 3600] [--seed 1]

Memory, descriptors and threads are read in moments of quiet, when nobody asks: once after a warm-up of a fifth of the time, once in the
middle, once at the end. Memory is what no file stands behind, and what is resident; the proportional set size also changes with who else
uses the same libraries. One table; exit code 1 when anything has grown by more than 5 % since the warm-up, or when an answer was not as it
should be.
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc

from benchmarks import gauges, records, serve_client, serve_models
from benchmarks.records import Row
from edge_ai.serve.proto import open_inference_pb2 as pb

MOST_GROWTH = 5.0  # per cent
PATIENCE = 60.0
QUIET_SECONDS = 7.0  # after the last request: replaced models give their memory back after five
LARGEST = 1 << 20  # bytes of a request's body, so that too large ones are cheap to send
PAUSE = 0.002  # between two requests of one client
STREAM = """
import numpy as np
def count(x):
    for step in range(int(x[0, 0])):
        yield {"y": np.array([step], np.int64)}
"""
PIPELINE = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
    "steps": [{"python": "steps.py", "function": "count", "inputs": {"x": "x"}, "outputs": {"y": "y"}}],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="under load, all together (default: an hour)")
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument("--most-growth", type=float, default=MOST_GROWTH, metavar="PERCENT", help="since the warm-up (default: 5)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="banyan-soak-") as folder:
        rows = Soak(Path(folder), given.seed, given.most_growth).run(given.seconds)
    print(records.table(rows))
    for note in records.notes(rows):
        print(f"- {note}")
    return 0 if all(row.met is not False for row in rows) else 1


Figures = dict[str, tuple[float, str]]


def seen_now(pid: int) -> Figures:
    """What /proc says of the worker, with units."""
    return {
        "anonymous memory": (gauges.anonymous(pid) / gauges.MIB, "MiB"),
        "resident memory": (gauges.rss(pid) / gauges.MIB, "MiB"),
        "descriptors": (float(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())), ""),
        "threads": (float(sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())), ""),
    }


def growth(seen: list[Figures], most: float) -> list[Row]:
    """Of each figure since the first time, in per cent; ``most``: of it that is allowed."""
    rows = []
    for name, (first, unit) in seen[0].items():
        middle, last = (each[name][0] for each in seen[1:])
        note = f"{name}: {first:.1f} after the warm-up, {middle:.1f} in the middle, {last:.1f} at the end {unit}".rstrip()
        rows.append(Row(what=f"growth of {name}", target=most, measured=round(max(100 * (last / first - 1), 0.0), 2), unit="%", note=note))
    return rows


class Soak:
    def __init__(self, folder: Path, seed: int, most_growth: float = MOST_GROWTH) -> None:
        self._folder = folder
        self._most_growth = most_growth
        self._seed = seed
        self._stop = threading.Event()
        self._counts: Counter[str] = Counter()
        self._wrong: list[str] = []
        self._counting = threading.Lock()
        self._swaps = 0
        self.models = {name: serve_models.make(name, folder / name) for name in ("small", "medium")}
        self.models["count"] = folder / "count"
        self.models["count"].mkdir()
        (self.models["count"] / "steps.py").write_text(STREAM, encoding="utf-8")
        (self.models["count"] / "pipeline.json").write_text(json.dumps(PIPELINE), encoding="utf-8")
        self._control = folder / "control"
        self._address = ""

    def run(self, seconds: float) -> list[Row]:
        process, log = self._start()
        try:
            for name in ("small", "count"):
                self._load(name, "1")
            seen = []
            for share in (0.2, 0.4, 0.4):
                self._under_load(share * seconds)
                seen.append(self._quiet(process))
            rows = self._rows(seconds, seen)
        finally:
            process.terminate()
            code = process.wait(PATIENCE)
        log.close()
        rows.append(Row(what="exit code of the worker", target=0, measured=abs(code), unit=""))
        return rows

    def _start(self) -> "tuple[subprocess.Popen[bytes], object]":
        log = (self._folder / "log").open("w+b")
        argv = [sys.executable, "-m", "edge_ai.serve", "--name", "m", "--version", "1", "--model-folder", str(self.models["medium"])]
        argv += ["--listen", "127.0.0.1:0", "--control", f"unix:{self._control}", "--python-steps"]
        argv += ["--max-request-bytes", str(LARGEST)]
        process = subprocess.Popen(argv, stderr=log, cwd=records.ROOT)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in (self._folder / "log").read_bytes().splitlines():
                event = json.loads(line)
                if event["event"] == "worker.ready":
                    self._address = event["address"]
                    return process, log
            time.sleep(0.05)
        raise TimeoutError("the worker is not ready")

    def _under_load(self, seconds: float) -> None:
        self._stop.clear()
        clients: list[Callable[[random.Random], None]] = [
            self._binary, self._json, self._grpc_unary, self._grpc_stream, self._lines, self._bad, self._bad, self._rude, self._swapping,
        ]  # fmt: skip
        threads = [
            threading.Thread(target=self._again, args=(client, random.Random(f"{self._seed}/{number}/{self._swaps}")), name=client.__name__)
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._stop.set()
        for thread in threads:
            thread.join(PATIENCE)

    def _again(self, client: Callable[[random.Random], None], choose: random.Random) -> None:
        while not self._stop.is_set():
            try:
                client(choose)
            except (OSError, http.client.HTTPException, grpc.RpcError, AssertionError) as error:
                self._failed(f"{client.__name__}: {error!r}")

    def _quiet(self, process: "subprocess.Popen[bytes]") -> Figures:
        """Until nobody is connected any more and models that were replaced have given their memory back."""
        end = time.monotonic() + PATIENCE
        while self._connections() > 1:  # the one that asks
            if time.monotonic() > end:
                raise TimeoutError(f"{self._connections()} connections are still open, and all clients are gone")
            time.sleep(0.2)
        time.sleep(QUIET_SECONDS)
        return seen_now(process.pid)

    def _connections(self) -> float:
        status, body = self._ask("GET", "/metrics")
        assert status == 200
        return next(float(line.split()[1]) for line in body.decode().splitlines() if line.startswith("banyan_serve_connections "))

    def _rows(self, seconds: float, seen: list[Figures]) -> list[Row]:
        rows = growth(seen, self._most_growth)
        asked = ", ".join(f"{name} {count:,}" for name, count in sorted(self._counts.items()))
        said = "; ".join(self._wrong[:5])
        note = f"{seconds:g} s of load, {sum(self._counts.values()):,} in all: {asked}" + (f". Wrong: {said}" if said else "")
        rows.append(Row(what="answers that were not as they should be", target=0, measured=len(self._wrong), unit="answers", note=note))
        return rows

    def _did(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1
        time.sleep(PAUSE)

    def _failed(self, what: str) -> None:
        with self._counting:
            if len(self._wrong) < 1000:
                self._wrong.append(what)
        time.sleep(0.1)

    # --- good clients: each call is a client's life ----------------------------------------------------------------------

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=PATIENCE)

    def _ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = self._connect()
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _binary(self, choose: random.Random) -> None:
        """One connection, many requests, in batches of all sizes."""
        connection = self._connect()
        for _ in range(choose.randint(1, 200)):
            if self._stop.is_set():
                break
            name, folder = choose.choice((("m", "medium"), ("small", "small")))
            array = serve_models.request(folder, choose.randint(1, 1 << 30)).repeat(choose.randint(1, 4), 0)
            raw = array.tobytes()
            item = {"name": "x", "shape": array.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
            head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": choose.random() < 0.5}}).encode()
            connection.request("POST", f"/v2/models/{name}/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))})
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status in (200, 429), body
            self._did("binary")
        connection.close()

    def _json(self, choose: random.Random) -> None:
        """A connection for each request, with an id of its own."""
        item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [choose.random() for _ in range(4)]}
        status, body = self._ask("POST", "/v2/models/small/infer", json.dumps({"id": str(choose.random()), "inputs": [item]}).encode())
        assert status == 200, body
        for path in ("/v2/models/m", "/v2/health/ready", "/v2/models/stats", "/metrics"):
            assert self._ask("GET", path)[0] == 200
        self._did("JSON")

    def _calls(self, choose: random.Random, count: int) -> "list[pb.ModelInferRequest]":
        made = []
        for _ in range(count):
            request = pb.ModelInferRequest(model_name="small", id=str(choose.random()))
            request.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.extend(choose.random() for _ in range(4))
            made.append(request)
        return made

    def _grpc_unary(self, choose: random.Random) -> None:
        with grpc.insecure_channel(self._address) as channel:
            path = "/inference.GRPCInferenceService/ModelInfer"
            call = channel.unary_unary(path, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
            for request in self._calls(choose, choose.randint(1, 100)):
                if self._stop.is_set():
                    break
                assert call(request, timeout=PATIENCE).id == request.id
                self._did("gRPC")

    def _grpc_stream(self, choose: random.Random) -> None:
        """Some go away in the middle."""
        with grpc.insecure_channel(self._address) as channel:
            path = "/inference.GRPCInferenceService/ModelStreamInfer"
            call = channel.stream_stream(path, pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString)
            answers = call(iter(self._calls(choose, 20)), timeout=PATIENCE)
            for number, answer in enumerate(answers):
                assert not answer.error_message, answer
                if number == 5 and choose.random() < 0.5:
                    answers.cancel()
                    break
            self._did("gRPC stream")

    def _lines(self, choose: random.Random) -> None:
        """Some go away in the middle of an answer without end."""
        leaves = choose.random() < 0.5
        document = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1e9 if leaves else 5]}]}
        connection = self._connect()
        connection.request("POST", "/v2/models/count/infer_stream", json.dumps(document).encode())
        answer = connection.getresponse()
        assert answer.status == 200
        for _ in range(5):
            assert b"outputs" in answer.readline()
        assert leaves or answer.readline() == b""
        answer.close()
        connection.close()
        self._did("lines")

    def _swapping(self, choose: random.Random) -> None:
        self._swaps += 1
        self._load("m", str(self._swaps + 1))
        self._load("other", "1")
        assert self._at_control("/v2/repository/models/other/unload", {}) == 200
        self._did("swap")
        self._stop.wait(1)

    def _load(self, name: str, version: str) -> None:
        folder = self.models.get({"m": "medium", "other": "small"}.get(name, name))
        status = self._at_control(f"/v2/repository/models/{name}/load", {"parameters": {"version": version, "folder": str(folder)}})
        assert status == 200, f"load {name}: {status}"

    def _at_control(self, path: str, document: object) -> int:
        body = json.dumps(document).encode()
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(PATIENCE)
            made.connect(str(self._control))
            made.sendall(f"POST {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = b""
            while piece := made.recv(65536):
                answer += piece
        return int(answer.split(b" ", 2)[1])

    # --- bad clients -----------------------------------------------------------------------------------------------------

    def _bad(self, choose: random.Random) -> None:
        """What is wrong with it is said, with a 4xx; each is a little different, so that nothing can be kept of it."""
        odd = f"{choose.random():.17f}"
        tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        wrong = choose.choice(
            [
                ({}, odd.encode(), 400),
                ({}, json.dumps({"inputs": [tensor | {"name": odd}]}).encode(), 400),
                ({}, json.dumps({"inputs": [tensor | {"shape": [choose.randint(2, 1 << 40), 4]}]}).encode(), 400),
                ({}, json.dumps({"inputs": [tensor | {"datatype": odd}]}).encode(), 400),
                ({}, json.dumps({"inputs": [tensor | {"data": [odd]}]}).encode(), 400),
                ({}, json.dumps({"inputs": [tensor], "outputs": [{"name": odd}]}).encode(), 400),
                ({"Inference-Header-Content-Length": "9999999"}, odd.encode(), 400),
                ({"Content-Encoding": "gzip"}, odd.encode(), 415),
                ({}, b"x" * (LARGEST + 1), 413),
            ]
        )
        headers, body, status = wrong
        try:
            found, said = self._ask("POST", "/v2/models/small/infer", body, headers)
        except (BrokenPipeError, ConnectionResetError):
            assert status == 413  # it was refused while it was sent
        else:
            assert found == status and b"error" in said, f"{found} instead of {status}: {said[:200]!r}"
        assert self._ask("POST", f"/v2/models/{odd}/infer", b"{}")[0] == 404
        assert self._ask("GET", f"/{odd}/{odd}")[0] == 404
        self._did("bad")

    def _rude(self, choose: random.Random) -> None:
        """No HTTP, half of it, HTTP/2 that makes no sense, and gone before the answer."""
        host, _, port = self._address.rpartition(":")
        pieces = [
            b"\x16\x03\x01" + choose.randbytes(50),
            choose.randbytes(200),
            b"POST /v2/models/small/infer HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + choose.randbytes(100),
            b"POST /v2/models/count/infer_stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + choose.randbytes(3),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + choose.randbytes(60),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 4 << 8 | 1)[1:],
            serve_client.rest_request(self._address, "m", serve_models.request("medium", 1)) * 5,
        ]
        with socket.create_connection((host, int(port)), PATIENCE) as made:
            if choose.random() < 0.5:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # gone with a reset
            made.sendall(choose.choice(pieces))
            if choose.random() < 0.5:
                made.settimeout(0.2)
                with contextlib.suppress(OSError):
                    made.recv(65536)
        self._did("rude")


if __name__ == "__main__":
    sys.exit(main())
