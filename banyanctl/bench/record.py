"""A record of what was measured on a tree, and whether a rerun agrees with it. Pure.

Two runs agree on a row when the medians differ by no more than the tolerance, a part of the larger one, or by less than what nobody can
tell apart (`FLOORS`). Rows that only one of them has are named: a comparison says what it has not compared.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput

FORMAT = 1
TOLERANCE = 0.3
FLOORS: Mapping[str, float] = {"ms": 1.0, "% of a core": 2.0, "ms of processor": 0.5}
KINDS: Mapping[str, bool] = {"ms": False, "s": False, "MiB/s": True, "/s": True}  # unit → whether more is better

Verdict = Literal["agrees", "better", "worse", "differs", "only before", "only now"]


class Row(Struct, kw_only=True, omit_defaults=True):
    """``value`` is the median of ``samples``; a row with one sample has no range."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    p99: float | None = None
    samples: int = 1
    note: str = ""
    compared: bool = True
    """False for what says something of the machine rather than of the tree, and for what is made of rows that are compared."""


class Record(Struct, kw_only=True):
    format: int
    at: str
    entry: str
    """The controller that was asked."""
    version: str
    clusters: int
    host: dict[str, Any]
    """Of the machine that asked: its clock is the one that counts."""
    settings: dict[str, Any]
    rows: list[Row]


class Compared(Struct, frozen=True, kw_only=True):
    what: str
    unit: str
    before: float | None
    now: float | None
    verdict: Verdict


def row(what: str, samples: Sequence[float], unit: str, note: str = "", *, compared: bool = True) -> Row:
    """ValueError without a sample."""
    if not samples:
        raise ValueError(f"{what}: nothing was measured")
    made = Row(what=what, value=_shown(statistics.median(samples)), unit=unit, samples=len(samples), note=note, compared=compared)
    if len(samples) > 1:
        made.low, made.high = _shown(min(samples)), _shown(max(samples))
    if len(samples) >= 100:
        ordered = sorted(samples)
        made.p99 = _shown(ordered[-(-len(ordered) * 99 // 100) - 1])
    return made


def _shown(value: float) -> float:
    """Four significant digits: more would be read as if they meant something."""
    return float(f"{value:.4g}")


def read(data: bytes, name: str) -> Record:
    try:
        found = msgspec.json.decode(data, type=Record)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"{name} is no record of `banyan bench`: {error}", "--compare") from error
    if found.format != FORMAT:
        raise InvalidInput(f"{name} has format {found.format}, and this program reads {FORMAT}; measure again with --record", "--compare")
    return found


def compare(before: Record, now: Record, tolerance: float) -> list[Compared]:
    """In the order of ``now``; what only ``before`` has comes last."""
    if before.settings != now.settings:
        different = sorted(key for key in {*before.settings, *now.settings} if before.settings.get(key) != now.settings.get(key))
        raise InvalidInput(
            f"that record was measured with other settings ({', '.join(different)}): say the same again, or write a new one with --record",
            "--compare",
        )
    old = {each.what: each for each in before.rows if each.compared}
    found = []
    for each in now.rows:
        if each.compared:
            was = old.pop(each.what, None)
            verdict: Verdict = "only now" if was is None else judge(was.value, each.value, each.unit, tolerance)
            found.append(Compared(what=each.what, unit=each.unit, before=was.value if was else None, now=each.value, verdict=verdict))
    return found + [Compared(what=each.what, unit=each.unit, before=each.value, now=None, verdict="only before") for each in old.values()]


def judge(before: float, now: float, unit: str, tolerance: float) -> Verdict:
    if abs(now - before) <= max(tolerance * max(abs(before), abs(now)), FLOORS.get(unit, 0.0)):
        return "agrees"
    more = KINDS.get(unit)
    return "differs" if more is None else "better" if (now > before) is more else "worse"


def agree(compared: Sequence[Compared]) -> bool:
    """Whether a rerun says the same: no row is better, worse or missing."""
    return all(each.verdict == "agrees" for each in compared)
