"""Which revisions of a store are whose: told apart after a restore from a backup.

Pure. Each opening of a store appends a random id and the first revision that it will give. A pair (id, revision) names one
change of one store for ever: a store restored from an older backup gives the same revision numbers again, under another id,
and does not contain the pairs that it gave in the life it has forgotten.
"""

from collections.abc import Sequence

Opening = tuple[str, int]  # id, first revision


class History:
    """The openings of one store, oldest first, and its newest revision."""

    __slots__ = ("openings", "revision")

    def __init__(self, openings: Sequence[Opening], revision: int) -> None:
        self.openings = tuple(openings)
        self.revision = revision

    def origin(self, revision: int) -> tuple[str, int]:
        """The pair that names ``revision``; ("", revision) when it is older than the openings remembered."""
        for name, first in reversed(self.openings):
            if first <= revision:
                return name, revision
        return "", revision

    def span(self, name: str) -> tuple[int, int] | None:
        """First and last revision given under an id; None when it is not of this history."""
        for index, (known, first) in enumerate(self.openings):
            if known == name:
                later = self.openings[index + 1 :]
                return first, later[0][1] - 1 if later else self.revision
        return None

    def contains(self, pair: tuple[str, int]) -> bool:
        span = self.span(pair[0])
        return span is not None and span[0] <= pair[1] <= span[1]


def opened(openings: Sequence[Opening], name: str, revision: int, keep: int) -> tuple[list[Opening], list[Opening]]:
    """The openings after one more, named ``name``, of a store at ``revision``; and those it forgets.

    An opening under which nothing was written named nothing: it is replaced. Beyond ``keep`` the oldest are forgotten.
    """
    first = revision + 1
    dropped = [entry for entry in openings if entry[1] >= first]
    kept = [entry for entry in openings if entry[1] < first]
    after = [*kept, (name, first)]
    excess = max(0, len(after) - keep)
    return after[excess:], dropped + after[:excess]
