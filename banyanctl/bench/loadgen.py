"""Asks an application as MLCommons' LoadGen says when, in a process of its own: `python -m banyanctl.bench.loadgen`, JSON in, JSON out.

LoadGen (PyPI `mlcommons-loadgen`) decides when each query is sent, and how long it goes on, in native threads that no Ctrl-C reaches: so
it runs apart, and its parent ends it. Here are the workers that carry its queries to the application and tell it of each answer. What
comes out are figures of LoadGen scenarios, measured with an application's own request: no results of the MLPerf benchmarks, which have
rules of theirs.
"""

import http.client
import json
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from banyanctl.bench.asking import Asking
from banyanctl.credential import Endpoint

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
STREAM = 8  # samples of one query of MultiStream, as its definition has it
SAMPLES = 1024  # of the library: all of them are the same request
FEWEST = 10  # queries
NANO, MILLI = 1_000_000_000, 1_000_000
OFFLINE_SLACK = 1.1  # how much more than expected is asked for, so that it does not end too soon
LOG = "mlperf_log_detail.txt"  # LoadGen's own name for it
PREFIX = ":::MLLOG "
PATIENCE_SECONDS = 1.0


class Plan(Struct, kw_only=True):
    """All that the program is told; the credential comes by standard input and stands in no command line."""

    endpoint: Endpoint
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = {}
    scenarios: list[str]
    seconds: float
    workers: int
    timeout: float
    rate: float = 0.0
    """Queries a second of the scenario Server; 0: half of what one stream at a time suggests that the workers can take."""
    within_ms: float = 100.0
    """What 99 of 100 answers of the scenario Server shall take at most."""
    seed: int = 1


class Outcome(Struct, kw_only=True):
    scenario: str
    answers: int
    failed: int
    seconds: float
    latencies_ms: list[float]
    """Of each query's sample, as the worker saw it, waiting for a free connection included."""
    rate: float = 0.0
    """Answers a second."""
    wanted_rate: float = 0.0
    valid: bool = False
    """Whether LoadGen takes the run for long and steady enough by its own settings."""
    because: str = ""
    route: str = ""
    trouble: str = ""


class Carrier:
    """Workers with a connection each, that carry queries and tell LoadGen of the answers."""

    def __init__(self, plan: Plan, loadgen: Any) -> None:
        self._plan = plan
        self._loadgen = loadgen
        self._queries: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self.begin()
        first = Asking(plan.endpoint, plan.timeout)
        self._workers = [
            threading.Thread(
                target=self._work, args=(Asking(plan.endpoint, plan.timeout, first.context),), daemon=True, name=f"worker-{number}"
            )
            for number in range(plan.workers)
        ]
        for worker in self._workers:
            worker.start()

    def begin(self) -> None:
        self.latencies: list[float] = []
        self.failed = 0
        self.route = self.trouble = ""
        self.last = 0.0

    def issue(self, samples: Any) -> None:
        """Called by LoadGen, in a thread of its own."""
        now = time.perf_counter()
        for sample in samples:
            self._queries.put((sample.id, now))

    def flush(self) -> None:
        """Called by LoadGen when it has issued all of a series: nothing is held back here."""

    def close(self) -> None:
        for _ in self._workers:
            self._queries.put(None)
        for worker in self._workers:
            worker.join(self._plan.timeout + PATIENCE_SECONDS)

    def _work(self, connection: Asking) -> None:
        while (query := self._queries.get()) is not None:
            sample, asked = query
            self._carry(connection, asked)
            self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(sample, 0, 0)])
        connection.close()

    def _carry(self, connection: Asking, asked: float) -> None:
        plan = self._plan
        trouble = route = ""
        try:
            status, body, route = connection.ask(plan.method, plan.path, plan.body or None, plan.headers)
            if status >= 400:
                trouble = f"{status}: {body[:200].decode('utf-8', 'replace').strip()}"
        except (OSError, http.client.HTTPException) as error:
            trouble = str(error) or type(error).__name__
        done = time.perf_counter()
        with self._lock:
            self.last = done
            self.route = route or self.route
            if trouble:
                self.failed += 1
                self.trouble = self.trouble or trouble
            else:
                self.latencies.append(1000 * (done - asked))


def main() -> int:
    """0 when everything that was planned has been played; 1 when the application does not answer at all."""
    import mlperf_loadgen as loadgen

    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    carrier = Carrier(plan, loadgen)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="banyan-bench-") as folder:
        expected = alone(carrier, plan)
        for name in plan.scenarios if expected else ():
            print(f"{name}, {plan.seconds:g} s", file=sys.stderr, flush=True)
            outcomes.append(play(carrier, plan, loadgen, name, expected, Path(folder)))
    carrier.close()
    sys.stdout.buffer.write(msgspec.json.encode({"trouble": "" if expected else carrier.trouble, "outcomes": outcomes}))
    return 0 if expected else 1


def alone(carrier: Carrier, plan: Plan) -> float:
    """How many seconds one request takes when there is no other, warm; 0 when none is answered."""
    connection = Asking(plan.endpoint, plan.timeout)
    for _ in range(FEWEST):
        carrier._carry(connection, time.perf_counter())
    connection.close()
    good = sorted(carrier.latencies)
    return good[len(good) // 2] / 1000 if good else 0.0


def play(carrier: Carrier, plan: Plan, loadgen: Any, name: str, expected: float, folder: Path) -> Outcome:
    """One scenario; ``expected``: seconds of one request by itself."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, name)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(1000 * plan.seconds)
    settings.max_duration_ms = int(1000 * (plan.seconds + plan.timeout))  # the fewest queries may take longer
    settings.min_query_count = FEWEST
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = plan.seed
    settings.single_stream_expected_latency_ns = int(expected * NANO)
    settings.multi_stream_expected_latency_ns = int(expected * NANO * STREAM)
    settings.multi_stream_samples_per_query = STREAM
    settings.offline_expected_qps = plan.workers / expected / OFFLINE_SLACK
    settings.server_target_qps = rate = plan.rate or plan.workers / expected / 2
    settings.server_target_latency_ns = int(plan.within_ms * MILLI)
    settings.server_target_latency_percentile = 0.99
    if name == "Offline":  # one query holds all samples, which a timer cannot end: so there are as many as fit
        settings.max_duration_ms = 0
    logging = loadgen.LogSettings()
    logging.log_output.outdir, logging.log_output.copy_summary_to_stdout = str(folder), False
    logging.enable_trace = False
    carrier.begin()
    system = loadgen.ConstructSUT(carrier.issue, carrier.flush)
    library = loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda samples: None, lambda samples: None)
    began = time.perf_counter()
    loadgen.StartTestWithLogSettings(system, library, settings, logging)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)
    passed = max(carrier.last - began, 1e-9)
    said = told(folder / LOG)
    return Outcome(
        scenario=name, answers=len(carrier.latencies), failed=carrier.failed, seconds=passed, latencies_ms=list(carrier.latencies),
        rate=len(carrier.latencies) / passed, wanted_rate=rate if name == "Server" else 0.0,
        valid=said.get("result_validity") == "VALID", because=str(said.get("result_invalid_reason", "")), route=carrier.route,
        trouble=carrier.trouble,
    )  # fmt: skip


def told(path: Path) -> dict[str, Any]:
    """What LoadGen's own log says, the last word of each key."""
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(PREFIX):
            try:
                entry = json.loads(line.removeprefix(PREFIX))
            except ValueError:
                continue
            found[str(entry.get("key"))] = entry.get("value")
    return found


if __name__ == "__main__":
    sys.exit(main())
