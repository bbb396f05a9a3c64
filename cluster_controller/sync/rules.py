"""Whether what arrived replaces what is held: the one place where that is decided.

Pure. A space has one writer and its journal one order, so within one history the later revision is the truth, whatever was
lost, repeated or reordered on the way. Two histories (the sender was restored from a backup, or is another store) have no
common order: there the receiver of desired state keeps what it runs and asks a person (`CONFLICT`), while the receiver of
reports follows, for what is observed now is true whoever remembers it. A report that its own observer has since replaced is
never believed again, whatever the histories of those who pass it on.
"""

from collections.abc import Callable
from enum import Enum

from cluster_controller.store.model import Stored
from cluster_controller.sync.messages import Item, Pair


class Verdict(Enum):
    APPLY = "apply"  # take it
    SAME = "same"  # held already
    STALE = "stale"  # older than what is held
    CONFLICT = "conflict"  # of a history that does not know what is held


Contains = Callable[[Pair], bool]  # is this pair of the sender's history?


def on_put(held: Stored | None, item: Item, contains: Contains, *, follow: bool) -> Verdict:
    """``follow``: the sender is believed across histories (reports); otherwise not (desired state)."""
    if held is None:
        return Verdict.APPLY
    if held.uid == item.uid and held.version == item.version and held.document == item.document:
        return Verdict.SAME
    if reported_before(held, item):
        return Verdict.STALE
    if held.delivered is not None and contains(held.delivered):
        return Verdict.STALE if item.delivered[1] < held.delivered[1] else Verdict.APPLY
    if follow or (held.delivered is None and held.uid == item.uid and held.version < item.version):
        return Verdict.APPLY
    return Verdict.CONFLICT


def on_delete(held: Stored | None, item: Item, contains: Contains) -> Verdict:
    """Within one history a deletion ends whatever was under the name before it; in another, only the object with its uid."""
    if held is None:
        return Verdict.SAME
    if held.delivered is not None and contains(held.delivered):
        return Verdict.STALE if item.delivered[1] < held.delivered[1] else Verdict.APPLY
    return Verdict.APPLY if held.uid == item.uid else Verdict.STALE


def on_absence(held: Stored, contains: Contains, *, follow: bool) -> Verdict:
    """A snapshot without it: it goes if the sender ever knew it."""
    if follow or (held.delivered is not None and contains(held.delivered)):
        return Verdict.APPLY
    return Verdict.CONFLICT


def reported_before(held: Stored, item: Item) -> bool:
    """Is this report older, at its source, than the one held? Reports of different sources are not compared."""
    return bool(item.source) and held.source == item.source and (item.start, item.sequence) < (held.start, held.sequence)
