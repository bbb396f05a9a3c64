"""What the worker counts, in Prometheus' text form. The only importer of prometheus_client.

Label values come from this process alone (protocol, status code), never from a request, so the number of series is bounded.
"""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

if TYPE_CHECKING:
    from edge_ai.serve.http import HttpServer
    from edge_ai.serve.repository import Repository
    from edge_ai.serve.runner import Runner

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    def __init__(self, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each, which nobody reads
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "banyan_serve_requests", "Inference requests by protocol and status.", ("protocol", "code"), registry=registry
        )
        self.request_seconds = Histogram(
            "banyan_serve_request_seconds",
            "From the whole request received to its answer.",
            ("protocol",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram("banyan_serve_queue_seconds", "Waiting for a thread.", buckets=_SECONDS, registry=registry)
        self.run_seconds = Histogram("banyan_serve_run_seconds", "The model's own run.", buckets=_SECONDS, registry=registry)
        self.batch_size = Histogram(
            "banyan_serve_batch_size", "First dimension of the first input.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=registry
        )
        self.loads = Counter("banyan_serve_loads", "Models loaded or refused.", ("result",), registry=registry)
        self._model = Gauge("banyan_serve_model_ready", "1 for the version that serves.", ("model", "version"), registry=registry)
        self._open = Gauge("banyan_serve_requests_open", "Requests that wait or run.", registry=registry)
        self._connections = Gauge("banyan_serve_connections", "Open HTTP/1.1 connections.", registry=registry)
        self._name = model

    def expose(self, repository: "Repository", runner: "Runner", server: "HttpServer | None") -> bytes:
        """The text form; gauges are read at this moment, so they cost nothing in between."""
        self._model.clear()
        if repository.current is not None:
            self._model.labels(self._name, repository.current.version).set(1 if repository.ready else 0)
        self._open.set(runner.open)
        self._connections.set(len(server.connections) if server is not None else 0)
        return generate_latest(self._registry)
