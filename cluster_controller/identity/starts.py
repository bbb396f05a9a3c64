"""Is the cluster that connects the one we know, or a copy of its data folder? Pure decisions.

Each start of a controller commits a random id before it says Hello; Hello carries the ids of all starts since the last one that
a parent acknowledged. Follow one data folder and the parent's record is always in that list. Copy the folder, or restore an old
one, and the two lists part: whichever comes second lacks the id that the parent has recorded since.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

MAX_STARTS = 64
MAX_EXCLUDED = 64


class Decision(StrEnum):
    ADMIT = "admit"
    """Known or new, and nobody else speaks for it."""
    SUPERSEDE = "supersede"
    """The same data folder again; the old link is dropped at once, for it may stay half open for long."""
    PROBE = "probe"
    """Another start is connected: ask its link for a sign of life (2 s), then decide by `after_probe`."""
    HOLD = "hold"
    """Two run at once. Both are told; the one that was there goes on until a person says which to keep."""
    FULL_RESYNC = "full-resync"
    """A restored or copied folder and the old one is silent: admitted, but nothing that it believes it has sent counts."""
    EXCLUDED = "excluded"
    """A person has kept another instance."""


class Record(Struct, frozen=True):
    """What a parent has committed about a child's starts. ``excluded`` are starts that a person decided against."""

    start: str = ""
    excluded: tuple[str, ...] = ()


def decide(record: Record, starts: Sequence[str], live: bool) -> Decision:
    """``starts`` is the child's list, oldest first, its present start last; ``live``: a link of that uid stands."""
    if record.start in starts or not record.start:
        return Decision.SUPERSEDE if live else Decision.ADMIT
    if not set(record.excluded).isdisjoint(starts):
        return Decision.EXCLUDED
    return Decision.PROBE if live else Decision.FULL_RESYNC


def after_probe(answered: bool) -> Decision:
    return Decision.HOLD if answered else Decision.FULL_RESYNC


def admitted(record: Record, starts: Sequence[str]) -> Record:
    """The record to commit, before Welcome is sent, for a child that is let in."""
    return Record(starts[-1], record.excluded)


def keep(record: Record, chosen: str, others: Sequence[str]) -> Record:
    """A person keeps instance ``chosen``: from now on the ``others`` stay out, also after a restart of theirs."""
    excluded = [start for start in (*record.excluded, *others) if start and start != chosen]
    return Record(chosen, tuple(dict.fromkeys(excluded))[-MAX_EXCLUDED:])


def begin(starts: Sequence[str], start: str) -> tuple[str, ...]:
    """The child's list after one more start, bounded.

    The first one, which a parent acknowledged, and the newest stay; a parent whose record is among those dropped between them
    admits with a full resync.
    """
    listed = (*starts, start)
    return listed if len(listed) <= MAX_STARTS else (listed[0], *listed[-(MAX_STARTS - 1) :])


def acknowledged(starts: Sequence[str], start: str) -> tuple[str, ...]:
    """The child's list once a parent has acknowledged ``start``: it and what came after."""
    listed = list(starts)
    return tuple(listed[listed.index(start) :]) if start in listed else tuple(listed)
