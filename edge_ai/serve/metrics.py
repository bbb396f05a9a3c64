"""What the worker counts, in Prometheus' text form. The only importer of prometheus_client.

Counted on the event loop alone, in plain lists: a request touches four histograms, and the library's locks and label lookups would cost it
more than a small model's run. The library reads them when it is asked for /metrics. Label values come from this process alone (protocol,
status code, names of loaded models), never from a request, so the number of series is bounded.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from edge_ai.serve.http import HttpServer
    from edge_ai.serve.repository import Repository

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()
_SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """Of one series."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        made, total = [], 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            total += count
            made.append((bound, float(total)))
        return made


class Metrics(Collector):
    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], int] = {}  # model, protocol, code
        self.request_seconds: dict[tuple[str, str], Histogram] = {}  # model, protocol
        self.queue_seconds: dict[str, Histogram] = {}  # model
        self.run_seconds: dict[str, Histogram] = {}
        self.batch_rows: dict[str, Histogram] = {}
        self.loads = {"loaded": 0, "refused": 0}
        self._repository: Repository | None = None
        self._server: HttpServer | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count(self, model: str, protocol: str, code: str) -> None:
        key = model, protocol, code
        self.requests[key] = self.requests.get(key, 0) + 1

    def answered(self, model: str, protocol: str, code: str, seconds: float) -> None:
        self.count(model, protocol, code)
        if (found := self.request_seconds.get((model, protocol))) is None:
            found = self.request_seconds[model, protocol] = Histogram(_SECONDS)
        found.observe(seconds)

    def ran(self, model: str, waited: float, seconds: float, rows: int) -> None:
        if model not in self.run_seconds:
            self.queue_seconds[model], self.run_seconds[model] = Histogram(_SECONDS), Histogram(_SECONDS)
            self.batch_rows[model] = Histogram(_ROWS)
        self.queue_seconds[model].observe(waited)
        self.run_seconds[model].observe(seconds)
        self.batch_rows[model].observe(rows)

    def expose(self, repository: "Repository", server: "HttpServer | None") -> bytes:
        """The text form; gauges are read at this moment, so they cost nothing in between."""
        self._repository, self._server = repository, server
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "banyan_serve_requests", "Inference requests by model, protocol and status.", labels=("model", "protocol", "code")
        )
        for series, count in self.requests.items():
            requests.add_metric(series, count)
        yield requests
        seconds = HistogramMetricFamily(
            "banyan_serve_request_seconds", "From the whole request received to its answer.", labels=("model", "protocol")
        )
        for names, histogram in self.request_seconds.items():
            seconds.add_metric(names, histogram.buckets(), histogram.sum)
        yield seconds
        for name, text, family in (
            ("queue_seconds", "Waiting for a thread.", self.queue_seconds),
            ("run_seconds", "The model's own run, that of the whole batch.", self.run_seconds),
            ("batch_size", "Rows of the run that a request was part of.", self.batch_rows),
        ):
            made = HistogramMetricFamily(f"banyan_serve_{name}", text, labels=("model",))
            for model, histogram in family.items():
                made.add_metric((model,), histogram.buckets(), histogram.sum)
            yield made
        loads = CounterMetricFamily("banyan_serve_loads", "Models loaded or refused.", labels=("result",))
        for result, count in self.loads.items():
            loads.add_metric((result,), count)
        yield loads
        yield from self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        repository, server = self._repository, self._server
        ready = GaugeMetricFamily(
            "banyan_serve_model_ready", "1 for a version that serves, 0 while it does not.", labels=("model", "version")
        )
        cap = GaugeMetricFamily("banyan_serve_batch_cap", "Rows of a batch that pay, as measured.", labels=("model", "version"))
        size = GaugeMetricFamily("banyan_serve_model_bytes", "Memory that a model is taken to need.", labels=("model", "version"))
        open_ = GaugeMetricFamily("banyan_serve_requests_open", "Requests that wait or run.", labels=("model",))
        for served in repository.models.values() if repository is not None else ():
            open_.add_metric((served.name,), served.lane.open)
            for version in served.sources:
                model = served.versions.get(version)
                labels = served.name, version
                ready.add_metric(labels, 1 if model is not None and repository is not None and not repository.draining else 0)
                if model is not None:
                    cap.add_metric(labels, model.cap)
                    size.add_metric(labels, model.size)
        connections = GaugeMetricFamily("banyan_serve_connections", "Open connections, HTTP/1.1 and HTTP/2.")
        connections.add_metric((), len(server.connections) if server is not None else 0)
        yield from (ready, cap, size, open_, connections)
