"""What several rounds say: the middle and the range of one thing, and the ratio of two that took turns, with an interval.

A pair is measured in rounds, the two next to each other in time, so that whatever else the machine does meets both. What is compared is
therefore the ratio within a round: its geometric mean over the rounds, and the 95 % interval of that mean by Student's t over the
logarithms (the paired method; a bootstrap of five rounds would claim to know more than five rounds can say).
"""

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct

METHOD = "geometric mean of the rounds' ratios, 95 % interval by Student's t over their logarithms (paired)"
# 97.5 % points of Student's t by degrees of freedom; beyond thirty the normal distribution's is close enough.
T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
NORMAL = 1.960
FEWEST = 3  # rounds below which nothing is said of how sure a ratio is


class Ratio(Struct, frozen=True, kw_only=True):
    """``value`` times the peer's. ``low`` and ``high`` are None where too few rounds were measured to say."""

    value: float
    low: float | None = None
    high: float | None = None
    rounds: int = 1
    method: str = METHOD


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of rounds that belong together, in order. ValueError when they are not pairs, or something took nothing at all."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} rounds of one and {len(theirs)} of the other are no pairs")
    if min(*ours, *theirs) <= 0:
        raise ValueError("a ratio needs values above zero")
    logs = [math.log(mine / other) for mine, other in zip(ours, theirs, strict=True)]
    middle, count = statistics.fmean(logs), len(logs)
    if count < FEWEST:
        return Ratio(value=math.exp(middle), rounds=count)
    reach = (T975[count - 2] if count - 2 < len(T975) else NORMAL) * statistics.stdev(logs) / math.sqrt(count)
    return Ratio(value=math.exp(middle), low=math.exp(middle - reach), high=math.exp(middle + reach), rounds=count)
