"""Serving a model: the worker beside onnxruntime alone, KServe, MLServer and PyTriton, in turns, in one run.

Whoever serves has one core, whoever asks another (where there are two). Eight connections ask again as soon as they are answered. Each peer
serves the same file with onnxruntime the way its documentation shows (`benchmarks/peers`); MLServer's REST door knows no binary tensors, so
it is asked in JSON. Medians of rounds that are interleaved, and the range.
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import gauges, records, serve_client, serve_models
from benchmarks.peers import environments
from benchmarks.records import Options, Row
from benchmarks.serve_client import Tally

CONNECTIONS = 8
PATIENCE = 120.0
HERE = "measured in the same run"
TARGETS = {  # per cent of onnxruntime's own rate
    "rest": {"small": 17.0, "medium": 80.0, "large": 92.0},
    "grpc": {"small": 2.5, "medium": 58.0, "large": 90.0},
}
PEERS = {"kserve": ("rest", "grpc"), "mlserver": ("json", "grpc"), "pytriton": ("rest", "grpc")}
NAMES = {"kserve": "KServe", "mlserver": "MLServer", "pytriton": "PyTriton"}


async def measure(options: Options) -> list[Row]:
    return await asyncio.to_thread(measured, options)


def measured(options: Options) -> list[Row]:
    rounds, seconds, swaps = (1, 0.3, 4) if options.quick else (3, 3.0, 100)
    bench = Bench(options, seconds)
    rows: list[Row] = []
    for name in ("small", "medium", "large"):
        rates = bench.rates(name, rounds, [] if options.quick else list(PEERS))
        rows += limits(name, rates)
        rows += [] if options.quick else beside(name, rates)
    rows += batching(bench, rounds)
    rows += memory(bench)
    rows += cold(bench, 1 if options.quick else 5)
    return [*rows, *swapping(bench, swaps)]


# --- processes ---------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, options: Options, seconds: float) -> None:
        self.folder = options.folder
        self.seconds = seconds
        self.seed = options.seed
        cores = sorted(os.sched_getaffinity(0))
        self.core, self.other = cores[0], cores[-1]
        self.models = {name: serve_models.make(name, options.folder / name) for name in serve_models.SHAPES}

    def start(self, argv: list[str], **more: Any) -> "subprocess.Popen[str]":
        """On the serving core. Its log goes to a file: a pipe that nobody reads would end it."""
        with (self.folder / "log").open("ab") as log:
            environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
            options = {"stdout": log, "stderr": log, "env": environment, "cwd": records.ROOT, "text": True, "start_new_session": True}
            return subprocess.Popen([*pinned(self.core), *argv], **options | more)

    @contextlib.contextmanager
    def running(self, argv: list[str], port: int) -> Iterator["subprocess.Popen[str]"]:
        """Ready, and gone afterwards with all that it started."""
        process = self.start(argv)
        try:
            ready(process, port)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)

    def worker(self, name: str, *more: str) -> tuple[list[str], int]:
        port = free_port()
        argv = [sys.executable, "-m", "edge_ai.serve", "--name", "m", "--version", "1", "--model-folder", str(self.models[name])]
        return [*argv, "--listen", f"127.0.0.1:{port}", *more], port

    def peer(self, who: str, name: str) -> tuple[list[str], dict[str, int]]:
        rest, grpc = free_port(), free_port()
        script = str(records.ROOT / "benchmarks" / "peers" / f"{who}_peer.py")
        argv = [str(environments.python(who)), script, str(self.models[name] / "model.onnx"), str(rest), str(grpc)]
        return argv, {"rest": rest, "json": rest, "grpc": grpc}

    def bare(self, what: str, name: str, seconds: float = 0.0) -> list[str]:
        return [sys.executable, "-m", "benchmarks.serve_bare", what, str(self.models[name] / "model.onnx"), name, str(seconds)]

    def load(self, wire: str, port: int, name: str, seconds: float | None = None, connections: int = CONNECTIONS) -> Tally:
        """RuntimeError when any answer was a failure."""
        address = f"127.0.0.1:{port}"
        request = self.folder / f"{wire}-{name}-{port}"
        request.write_bytes(serve_client.REQUESTS[wire](address, "m", serve_models.request(name, self.seed)))
        asked = (wire, address, str(request), str(connections), str(seconds or self.seconds))
        argv = [*pinned(self.other), sys.executable, "-m", "benchmarks.serve_client", *asked]
        done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, check=False, timeout=PATIENCE)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
        tally = msgspec.json.decode(done.stdout, type=Tally)
        if tally.failures:
            raise RuntimeError(f"{tally.failures} of {tally.answers + tally.failures} requests failed: {tally.first_failure}")
        return tally

    def rates(self, name: str, rounds: int, peers: list[str]) -> dict[tuple[str, str], list[float]]:
        """Answers a second by (who, wire); everybody in each round, one after the other."""
        found: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            bare = self.start(self.bare("rate", name, self.seconds), stdout=subprocess.PIPE)
            found.setdefault(("bare", ""), []).append(float(bare.communicate(timeout=PATIENCE)[0]))
            argv, port = self.worker(name)
            with self.running(argv, port):
                for wire in ("rest", "grpc"):
                    self.load(wire, port, name, 0.3)
                    found.setdefault(("banyan", wire), []).append(self.load(wire, port, name).rate)
            for who in peers:
                argv, ports = self.peer(who, name)
                with self.running(argv, ports["rest"]):
                    for wire in PEERS[who]:
                        self.load(wire, ports[wire], name, 0.3)
                        found.setdefault((who, wire), []).append(self.load(wire, ports[wire], name).rate)
        return found


def ready(process: "subprocess.Popen[str]", port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/models/m/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended with {process.returncode} before it was ready") from None
        finally:
            connection.close()
        time.sleep(0.02)
    raise TimeoutError(f"{process.args} is not ready after {PATIENCE:g} s")


def pinned(core: int) -> list[str]:
    """What comes before a command to keep it on one core."""
    return ["taskset", "--cpu-list", str(core)]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


# --- rows --------------------------------------------------------------------------------------------------------------


def limits(name: str, rates: dict[tuple[str, str], list[float]]) -> list[Row]:
    bare = statistics.median(rates["bare", ""])
    what = f"model of {1e6 / bare:,.0f} µs"
    rows = [Row(what=f"{what}: runs of onnxruntime alone, one thread", measured=bare, unit="/s", note=spread(rates["bare", ""]))]
    for wire, target in TARGETS.items():
        each = [100 * ours / theirs for ours, theirs in zip(rates["banyan", wire], rates["bare", ""], strict=True)]
        rate = statistics.median(rates["banyan", wire])
        note = f"{rate:,.0f} requests/s, {CONNECTIONS} connections, range of the share {min(each):.1f} to {max(each):.1f} %"
        text = f"{what}, {wire.upper() if wire == 'rest' else 'gRPC'}: share of that rate"
        rows.append(Row(what=text, target=target[name], measured=statistics.median(each), unit="%", least=True, note=note))
    return rows


def beside(name: str, rates: dict[tuple[str, str], list[float]]) -> list[Row]:
    rows = []
    for who, wires in PEERS.items():
        for ours, theirs in zip(("rest", "grpc"), wires, strict=True):
            each = [mine / other for mine, other in zip(rates["banyan", ours], rates[who, theirs], strict=True)]
            target = 10.0 if (who, name) == ("kserve", "small") and ours == "rest" else 1.0
            wire = "gRPC" if theirs == "grpc" else "REST" if theirs == "rest" else "REST, theirs in JSON"
            rows.append(
                Row(
                    what=f"{name} model, {wire}: requests/s, times {NAMES[who]}", target=target, measured=statistics.median(each), unit="×",
                    least=True, peer=NAMES[who], peer_measured=statistics.median(rates[who, theirs]), peer_source=f"requests/s, {HERE}",
                )
            )  # fmt: skip
    return rows


def batching(bench: Bench, rounds: int) -> list[Row]:
    """Two workers at once would share a core, so they take turns; each is left alone until it has measured its model."""
    rows = []
    for name, target, what in (("medium", 0.97, "where it does not help"), ("dense", 1.2, "where it helps")):
        ratios = []
        for _ in range(rounds):
            rate = []
            for more in ((), ("--no-batching",)):
                argv, port = bench.worker(name, *more)
                with bench.running(argv, port):
                    settled(port)
                    rate.append(bench.load("rest", port, name).rate)
            ratios.append(rate[0] / rate[1])
        note = f"{name} model, {CONNECTIONS} connections; {spread(ratios, 2)}"
        text = f"batching {what}: requests/s, times those without"
        rows.append(Row(what=text, target=target, measured=statistics.median(ratios), unit="×", least=True, note=note))
    return rows


def settled(port: int) -> None:
    """Until the worker no longer looks for the size of batch that pays: twice the same, a second apart."""
    before, end = "", time.monotonic() + 10
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        now = next(line for line in text.splitlines() if line.startswith("banyan_serve_batch_cap{"))
        if now == before:
            return
        before = now
        time.sleep(1)


def memory(bench: Bench) -> list[Row]:
    argv, port = bench.worker("small")
    with bench.running(argv, port) as process:
        bench.load("rest", port, "small", 0.3)
        time.sleep(1)
        ours = gauges.pss(process.pid) / gauges.MIB
        resident = gauges.rss(process.pid) / gauges.MIB
    bare = bench.start(bench.bare("idle", "small"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bare.stdout is not None
    assert bare.stdout.readline() == "answered\n"
    theirs, alone = gauges.pss(bare.pid) / gauges.MIB, gauges.rss(bare.pid) / gauges.MIB
    bare.communicate("\n", timeout=PATIENCE)
    note = f"resident, files counted whole: {resident:.1f} MiB, onnxruntime alone {alone:.1f} MiB"
    return [
        Row(what="small model, idle after some requests: PSS", target=64, measured=ours, unit="MiB", note=note),
        Row(what="that, times a process with onnxruntime and the model alone", target=1.35, measured=ours / theirs, unit="×"),
    ]


def cold(bench: Bench, rounds: int) -> list[Row]:
    took: dict[str, list[float]] = {"bare": [], "banyan": []}
    for _ in range(rounds):
        began = time.perf_counter()
        bare = bench.start(bench.bare("once", "medium"), stdout=subprocess.PIPE)
        assert bare.stdout is not None
        assert bare.stdout.readline() == "answered\n"
        took["bare"].append(time.perf_counter() - began)
        bare.communicate(timeout=PATIENCE)
        argv, port = bench.worker("medium")
        request = serve_client.rest_request(f"127.0.0.1:{port}", "m", serve_models.request("medium", bench.seed))
        began = time.perf_counter()
        process = bench.start(argv)
        try:
            first_answer(port, request)
            took["banyan"].append(time.perf_counter() - began)
        finally:
            process.terminate()
            process.wait(20)
    ours, theirs = statistics.median(took["banyan"]), statistics.median(took["bare"])
    note = f"medium model, {rounds} rounds; {1000 * ours:.0f} ms and {1000 * theirs:.0f} ms"
    text = "cold start to the first answer, times a process that imports onnxruntime and answers once"
    return [Row(what=text, target=2, measured=ours / theirs, unit="×", note=note)]


def first_answer(port: int, request: bytes) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as made:
                made.sendall(request)
                if made.recv(65536).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            time.sleep(0.001)
    raise TimeoutError(f"no answer on port {port}")


def swapping(bench: Bench, swaps: int) -> list[Row]:
    control = bench.folder / "control"
    argv, port = bench.worker("medium", "--control", f"unix:{control}")
    pause = 0.1
    with bench.running(argv, port):
        settled(port)
        bench.load("rest", port, "medium", 0.3, 4)
        steady = bench.load("rest", port, "medium", max(bench.seconds, swaps * pause / 2), 4)
        stop = threading.Event()
        done: list[int] = []
        thread = threading.Thread(target=swap, args=(control, bench.models["medium"], swaps, pause, done, stop))
        thread.start()
        tallies = []
        try:
            while thread.is_alive():
                tallies.append(bench.load("rest", port, "medium", bench.seconds, 4))
        finally:
            stop.set()
            thread.join(PATIENCE)
    assert len(done) == swaps and set(done) == {200}, done
    failed = sum(tally.failures for tally in tallies)
    worst = statistics.median(tally.p99 for tally in tallies)
    note = f"{swaps} swaps of the medium model, 4 connections, {sum(tally.answers for tally in tallies):,} answers"
    ratio = f"{worst:.1f} ms and {steady.p99:.1f} ms"
    return [
        Row(what="requests that failed while versions were swapped", target=0, measured=failed, unit="requests", note=note),
        Row(what="P99 while versions are swapped, times the steady one", target=2, measured=worst / steady.p99, unit="×", note=ratio),
    ]


def swap(control: Path, folder: Path, swaps: int, pause: float, done: list[int], stop: threading.Event) -> None:
    for number in range(swaps):
        if stop.wait(pause):
            return
        body = json.dumps({"parameters": {"version": str(number + 2), "folder": str(folder)}}).encode()
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(PATIENCE)
            made.connect(str(control))
            head = (
                f"POST /v2/repository/models/m/load HTTP/1.1\r\nHost: control\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            made.sendall(head.encode() + body)
            answer = b""
            while chunk := made.recv(65536):
                answer += chunk
        done.append(int(answer.split(b" ", 2)[1]))


def spread(values: list[float], digits: int = 0) -> str:
    return f"{len(values)} rounds, {min(values):,.{digits}f} to {max(values):,.{digits}f}"
