"""Under several hard spreads at once: place as many as can be placed, exactly, where that can be found in a bounded search.

One spread alone is no difficulty: whoever adds to the emptiest place is never wrong. With two (zones and racks) an addition that helps
in the one may close the other, so adding one by one may end with room and no way to use it. Then all divisions that add to what stands
are looked at, as long as there are not too many. Pure.

Invariants: what stands stays; a place that gets something has, in the end, at most ``skew`` more than the emptiest.
"""

from collections.abc import Sequence

from cluster_controller.placement.model import Spread

MOST_LOOKS = 20_000  # steps of one search; beyond, what was found one by one stands


class Search:
    """``holds`` and ``limits`` per bin; ``places`` per hard spread and bin; ``prices`` per bin: what each further replica costs."""

    def __init__(
        self,
        holds: Sequence[int],
        limits: Sequence[int],
        places: Sequence[Sequence[str]],
        spreads: Sequence[Spread],
        prices: Sequence[Sequence[tuple[int, ...]]],
    ) -> None:
        self._holds = holds
        self._limits = limits
        self._spreads = spreads
        self._prices = prices
        self._place = [[sorted(set(names)).index(name) for name in names] for names in places]
        self._sizes = [len(set(names)) for names in places]
        self._left = [sum(max(0, high - low) for low, high in zip(holds[at:], limits[at:], strict=True)) for at in range(len(holds) + 1)]
        self._counts = list(holds)
        self._best: tuple[int, tuple[int, ...]] | None = None  # (missing, what it costs)
        self._found: list[int] | None = None
        self._looks = 0

    def run(self, missing: int) -> list[int] | None:
        """Counts of which the fewest are missing, and of those the cheapest; None where there are too many to look at."""
        width = len(next((prices[0] for prices in self._prices if prices), ()))
        return self._found if self._look(0, missing, (0,) * width) else None

    def _look(self, at: int, missing: int, spent: tuple[int, ...]) -> bool:
        """Every way to go on from here; False when that would be too many."""
        self._looks += 1
        if self._looks > MOST_LOOKS:
            return False
        if self._best is not None and missing - self._left[at] > self._best[0]:
            return True
        if at == len(self._holds):
            if (self._best is None or (missing, spent) < self._best) and self._level():
                self._best, self._found = (missing, spent), list(self._counts)
            return True
        prices = self._prices[at]
        for more in range(min(missing, max(0, self._limits[at] - self._holds[at])) + 1):
            if more:
                spent = tuple(map(sum, zip(spent, prices[more - 1], strict=True)))
            self._counts[at] = self._holds[at] + more
            if not self._look(at + 1, missing - more, spent):
                return False
        self._counts[at] = self._holds[at]
        return True

    def _level(self) -> bool:
        for where, size, spread in zip(self._place, self._sizes, self._spreads, strict=True):
            sums, grew = [0] * size, [False] * size
            for place, count, held in zip(where, self._counts, self._holds, strict=True):
                sums[place] += count
                grew[place] |= count > held
            least = min(sums)
            if any(more and total - least > spread.skew for more, total in zip(grew, sums, strict=True)):
                return False
        return True
