"""What a version has done since it was loaded, as Triton's statistics extension tells it: `perf_analyzer` and its like ask for it.

Counted on the event loop alone, a few additions for each request. Decoding and encoding are part of the request's time and not measured
apart, so `compute_input` and `compute_output` stay zero; nothing is cached, so those of a cache do too.
"""

import time
from typing import Any

NANOSECONDS = 1e9


class Statistics:
    """Seconds are sums over requests; ``runs`` is smaller than ``answered`` where requests were run as one."""

    __slots__ = ("answered", "answered_seconds", "failed", "failed_seconds", "queued_seconds", "ran", "ran_seconds", "rows", "runs", "seen")

    def __init__(self) -> None:
        self.answered = 0
        self.answered_seconds = 0.0
        self.failed = 0
        self.failed_seconds = 0.0
        self.queued_seconds = 0.0
        self.ran = 0  # requests that the model was run for
        self.ran_seconds = 0.0
        self.rows = 0
        self.runs = 0
        self.seen = 0.0  # on the clock of the wall, for people

    def run(self, queued: float, seconds: float, rows: int, runs: int) -> None:
        """Of one request; ``runs``: 1 for the first of those that were run as one, 0 for the others."""
        self.ran += 1
        self.queued_seconds += queued
        self.ran_seconds += seconds
        self.rows += rows
        self.runs += runs

    def end(self, good: bool, seconds: float) -> None:
        self.seen = time.time()
        if good:
            self.answered += 1
            self.answered_seconds += seconds
        else:
            self.failed += 1
            self.failed_seconds += seconds

    def document(self, name: str, version: str) -> dict[str, Any]:
        """Its JSON; protobuf's `ModelStatistics` has the same names."""

        def duration(count: int, seconds: float) -> dict[str, int]:
            return {"count": count, "ns": round(seconds * NANOSECONDS)}

        return {
            "name": name,
            "version": version,
            "last_inference": round(self.seen * 1000),
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {
                "success": duration(self.answered, self.answered_seconds),
                "fail": duration(self.failed, self.failed_seconds),
                "queue": duration(self.ran, self.queued_seconds),
                "compute_input": duration(self.ran, 0.0),
                "compute_infer": duration(self.ran, self.ran_seconds),
                "compute_output": duration(self.ran, 0.0),
                "cache_hit": duration(0, 0.0),
                "cache_miss": duration(0, 0.0),
            },
            "batch_stats": [],
        }
