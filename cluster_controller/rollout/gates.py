"""Whether a version is well by its own metrics: read what it exposes, compare it with what was asked. Pure.

What is read is Prometheus' text form (https://prometheus.io/docs/instrumenting/exposition_formats/); only the series that a gate names are
kept. A counter is looked at by what it grew in the window, instance by instance, so a new process that begins at nothing takes nothing
away. A quantile is taken from a histogram's buckets as Prometheus' `histogram_quantile` does. No series is evaluated here that the
Application does not expose by itself: a site that is cut off judges as well as any other.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from cluster_controller.resources.kinds import Gate, Series

MOST_LINES = 20_000
_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
STARTED = "process_start_time_seconds"  # tells the processes apart that share a port
BAD, ALL, BUCKETS = "bad", "all", "le:"  # what is kept of one exposition: see `reading`

Verdict = Literal["Measuring", "Healthy", "Unhealthy", "Unknown"]
Reading = Mapping[str, float]  # BAD, ALL, and BUCKETS + upper bound → counted so far


class Sample(NamedTuple):
    """What all instances said at one time; by instance, or process."""

    time: float
    readings: Mapping[str, Reading]


class Judged(NamedTuple):
    verdict: Verdict
    figure: float | None
    message: str


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of every series. A line that cannot be read is passed over: other series are not the worse for it."""
    for line in text.splitlines()[:MOST_LINES]:
        name = _NAME.match(line)
        if name is None:
            continue
        labels: dict[str, str] = {}
        at = name.end()
        if line[at : at + 1] == "{":
            at += 1
            while (label := _LABEL.match(line, at)) is not None:
                labels[label[1]] = label[2].replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
                at = label.end()
            rest = line[at:].lstrip()
            if not rest.startswith("}"):
                continue
            value = rest[1:].split()
        else:
            value = line[at:].split()
        try:
            yield name[0], labels, float(value[0])
        except (IndexError, ValueError):
            continue


def reading(gate: Gate, text: str) -> tuple[str, dict[str, float]]:
    """(which process said it, "" when it does not tell, what it said of the gate's series); nothing where none of them is there."""
    found: dict[str, float] = {}
    process = ""
    for name, labels, value in samples(text):
        if name == STARTED:
            process = str(value)
        if math.isnan(value):
            continue
        if gate.errors is not None and _is(gate.errors, name, labels):
            found[BAD] = found.get(BAD, 0.0) + value
        if gate.requests is not None and _is(gate.requests, name, labels):
            found[ALL] = found.get(ALL, 0.0) + value
        if gate.latency is not None and "le" in labels and _is(gate.latency, name.removesuffix("_bucket"), labels):
            bound = BUCKETS + labels["le"]
            found[bound] = found.get(bound, 0.0) + value
    if ALL in found and gate.errors is not None:
        found.setdefault(BAD, 0.0)  # a counter that has never counted is often not there at all
    return process, found


def _is(series: Series, name: str, labels: Mapping[str, str]) -> bool:
    return name == series.metric and all(fnmatchcase(labels.get(key, ""), pattern) for key, pattern in series.labels.items())


def grown(taken: Sequence[Sample]) -> dict[str, float]:
    """By how much everything grew over these samples, over all instances that were seen at least twice."""
    total: dict[str, float] = {}
    for instance in {name for sample in taken for name in sample.readings}:
        before: Reading | None = None
        for sample in taken:
            now = sample.readings.get(instance)
            if now is None:
                continue
            for key, value in now.items() if before is not None else ():
                last = (before or {}).get(key, 0.0)
                total[key] = total.get(key, 0.0) + (value - last if value >= last else value)  # less than before: it began anew
            before = now
    return total


def judge(gate: Gate, taken: Sequence[Sample], *, since: float, now: float) -> Judged:
    """What the samples of the last window say; ``since``: the version is ready here, so what it says counts.

    Too bad is too bad as soon as enough was counted; good enough is only what was so for the whole window.
    """
    window = float(gate.window_seconds)
    counts = [sample for sample in taken if sample.time >= since]
    before = sum(1 for sample in counts if sample.time < now - window)
    recent = counts[max(0, before - 1) :]  # from the last one before the window: what grew since then
    figure, count = _figure(gate, grown(recent))
    name = gate.name or "the gate"
    if figure is not None and count >= gate.min_count and figure > float(gate.max):
        return Judged("Unhealthy", figure, f"{name}: {_words(gate, figure, count)}, at most {float(gate.max):g} is allowed")
    if now - since < window:
        return Judged("Measuring", figure, f"{name} is measured for {window:g} s")
    if figure is not None and count >= gate.min_count:
        return Judged("Healthy", figure, f"{name}: {_words(gate, figure, count)}")
    what = "counted nothing" if figure is None else f"counted {count:g} requests of at least {gate.min_count}"
    if gate.on_missing == "Pass":
        return Judged("Healthy", figure, f"{name} {what} in {window:g} s, and passes for want of more")
    return Judged("Unknown", figure, f"{name} {what} in {window:g} s: it waits for requests (onMissing: Pass goes on without)")


def _figure(gate: Gate, counted: Mapping[str, float]) -> tuple[float | None, float]:
    """The figure, and of how many requests."""
    if gate.latency is not None:
        return _quantile(gate.quantile, {key.removeprefix(BUCKETS): value for key, value in counted.items() if key.startswith(BUCKETS)})
    count = counted.get(ALL, 0.0)
    return (counted.get(BAD, 0.0) / count if count else None), count


def _quantile(quantile: float, buckets: Mapping[str, float]) -> tuple[float | None, float]:
    bounds = sorted((bound, value) for bound, value in ((_bound(text), value) for text, value in buckets.items()) if bound is not None)
    count = bounds[-1][1] if bounds else 0.0
    if not count:
        return None, 0.0
    rank, low, below = quantile * count, 0.0, 0.0
    for bound, value in bounds:
        if value >= rank:
            if math.isinf(bound) or value <= below:
                return bound, count
            return low + (bound - low) * (rank - below) / (value - below), count
        low, below = bound, value
    return bounds[-1][0], count


def _bound(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _words(gate: Gate, figure: float, count: float) -> str:
    if gate.latency is not None:
        return f"{gate.quantile:g} of {count:.0f} requests within {figure:.3g} s"
    return f"{figure:.3g} of {count:.0f} requests failed"
