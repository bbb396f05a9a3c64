"""What becomes of the share of a target that fell silent (`onUnreachable: Replace`), and of the surplus once it is back. Pure.

Dead and cut off look the same from above. After the time that the Application names, a silent target's share no longer counts
against what was allotted (it is *replaced*): others hold it, as *stand-ins*, as far as they have room. The target keeps its Work,
under a new share id; so whatever answers that id was said after the replacement, and is no memory of the time before the cut.

Back in reach, the older replicas stay and the stand-ins go: as many as are ready beyond what is wanted, never more, so that the count
of ready replicas does not fall below it. What is not ready `OVERDUE` seconds after the return is given up where it is not ready, on what
is back or anywhere else in reach, so the surplus ends in any case.

Invariant, over all targets, of one component: sum of (share - replaced) <= max(allotted, the same sum before); with `Keep`, replaced
is 0 and nothing here changes anything. Replicas that are found to be carried after they were replaced count again at once, beyond that
bound: they run, they are ready, and the stand-ins go.
"""

from collections.abc import Mapping

from msgspec import Struct

OVERDUE = 30.0  # seconds in reach again, after which the surplus ends whatever is ready


class Target(Struct, frozen=True, kw_only=True):
    """One direct child, or the own cluster, of one component.

    ``confirmed``: ready replicas that it reported in answer to its newest share; None: it has not answered that one yet.
    ``silent``: for how many seconds nothing was heard; None: it is in reach. ``back``: for how many seconds it is in reach again.
    """

    share: int = 0
    ceiling: int = 0
    confirmed: int | None = None
    silent: float | None = None
    back: float = 0.0
    replaced: int = 0
    stands_in: int = 0
    carried: int = 0  # ready replicas below it that are heard by way of adopters while it is silent: they are not replaced


class Outcome(Struct, frozen=True):
    """Shares as they shall be before anything is raised. ``again``: seconds until this has to be looked at anew, None: never."""

    shares: dict[str, int]
    replaced: dict[str, int]
    stands_in: dict[str, int]
    renew: frozenset[str] = frozenset()  # replaced, and to be asked anew: their Work gets a new share id
    lost: frozenset[str] = frozenset()  # silent, and nobody waits for what they may still be running
    again: float | None = None


class _Books:
    """Shares, what is replaced of them, and who stands in, while they are being changed."""

    def __init__(self, allotted: int, targets: Mapping[str, Target]) -> None:
        self.allotted = allotted
        self.targets = targets
        self.shares = {uid: target.share for uid, target in targets.items()}
        self.replaced: dict[str, int] = {}
        self.stands_in = {uid: min(target.stands_in, target.share) for uid, target in targets.items()}

    def over(self) -> int:
        """Replicas that are both back and replaced."""
        back = sum(count for uid, count in self.replaced.items() if self.targets[uid].silent is None)
        return min(back, max(0, self.counted() + back - self.allotted))

    def counted(self) -> int:
        return sum(share - self.replaced.get(uid, 0) for uid, share in self.shares.items())

    def bound(self) -> int:
        """What may be running and counts, shares that are not yet lowered included."""
        return sum(max(share, self._ceiling(uid)) - self.replaced.get(uid, 0) for uid, share in self.shares.items())

    def _ceiling(self, uid: str) -> int:
        return 0 if uid in self.replaced and self.targets[uid].silent is not None else self.targets[uid].ceiling

    def retire(self, count: int, returned: list[str]) -> None:
        """Take ``count`` of the surplus from stand-ins; what none of them holds, from those that are back."""
        for uid in sorted(self.stands_in, key=lambda uid: (-self.stands_in[uid], uid)):
            if self.targets[uid].silent is not None or self.replaced.get(uid):
                continue
            takes = min(count, self.stands_in[uid], self.shares[uid])
            self.shares[uid] -= takes
            self.stands_in[uid] -= takes
            count -= takes
            self._count_again(takes, returned)
        for uid in returned:
            takes = min(count, self.replaced[uid])
            self.give_up(uid, takes)
            count -= takes

    def stay(self, count: int, uid: str) -> int:
        """Let stand-ins for ``uid`` stay in place of replicas that are not ready elsewhere: so many."""
        stayed = 0
        for other, target in sorted(self.targets.items()):
            if target.silent is not None or target.confirmed is None or self.replaced.get(other):
                continue
            takes = min(count - stayed, max(0, self.shares[other] - target.confirmed))
            self.shares[other] -= takes
            self.stands_in[other] -= min(takes, self.stands_in[other])
            stayed += takes
        self._count_again(stayed, [uid])
        return stayed

    def give_up(self, uid: str, count: int) -> None:
        """Lower one that is back by replicas that others hold for good."""
        self.shares[uid] -= count
        self.replaced[uid] -= count

    def _count_again(self, count: int, returned: list[str]) -> None:
        for uid in returned:
            takes = min(count, self.replaced[uid])
            self.replaced[uid] -= takes
            count -= takes


def settle(allotted: int, after: float | None, targets: Mapping[str, Target]) -> Outcome:
    """``after``: seconds of silence until a share is replaced; None: never (Keep). What was replaced before ends only by a return."""
    books = _Books(allotted, targets)
    waits: list[float] = []
    renew: set[str] = set()
    lost: set[str] = set()
    for uid, target in targets.items():
        due = after is not None and target.silent is not None and target.silent >= after
        if target.silent is not None and after is not None and not due and target.share > target.replaced:
            waits.append(after - target.silent)
        count = target.share - min(target.share, target.carried) if due else min(target.replaced, target.share)
        if target.silent is not None and count:
            if count == target.share:  # nobody needs more of it back than is wanted at all
                books.shares[uid] = min(target.share, allotted)
            count = min(count, books.shares[uid])
        if due or (target.silent is not None and target.share and count >= target.share):
            lost.add(uid)
        if count:
            books.replaced[uid] = count
            if target.silent is not None and (not target.replaced or target.confirmed is not None):
                renew.add(uid)
    returned = sorted(uid for uid in books.replaced if targets[uid].silent is None)
    if returned:
        waits += _settle_returned(books, returned)
    return Outcome(
        shares=books.shares,
        replaced={uid: count for uid, count in books.replaced.items() if count},
        stands_in={uid: count for uid, count in books.stands_in.items() if count} if any(books.replaced.values()) else {},
        renew=frozenset(renew),
        lost=frozenset(lost),
        again=min(waits, default=None),
    )


def _settle_returned(books: _Books, returned: list[str]) -> list[float]:
    """Count again what nobody holds instead; retire what is ready beyond what is wanted. Returns when to look again."""
    targets = books.targets
    for uid in returned:
        takes = min(books.replaced[uid], max(0, books.allotted - books.bound()))
        books.replaced[uid] -= takes
    ready = sum(target.confirmed or 0 for target in targets.values() if target.silent is None)
    spare = max(0, ready - books.allotted)
    if spare and books.over():
        books.retire(min(spare, books.over()), returned)
    waits = [OVERDUE - targets[uid].back for uid in returned if targets[uid].back < OVERDUE and min(books.replaced[uid], books.over())]
    overdue = [uid for uid in returned if targets[uid].back >= OVERDUE]
    for uid in overdue:
        sick = max(0, books.shares[uid] - (targets[uid].confirmed or 0))
        books.give_up(uid, min(books.replaced[uid], books.over(), sick))
    for uid in overdue:
        left = min(books.replaced[uid], books.over())
        books.retire(left - books.stay(left, uid), [uid])
    return waits


def stand_ins(before: Mapping[str, int], outcome: Outcome, shares: Mapping[str, int]) -> dict[str, int]:
    """Who stands in after shares were raised from ``outcome.shares`` to ``shares``; ``before`` is what each held until now.

    A raise is a stand-in's as long as more is replaced than anybody stands in for.
    """
    held = {uid: min(count, shares.get(uid, 0)) for uid, count in before.items()}
    open_ = sum(outcome.replaced.values()) - sum(held.values())
    for uid in sorted(shares):
        raised = min(max(0, open_), max(0, shares[uid] - outcome.shares.get(uid, 0)))
        if raised and uid not in outcome.replaced:
            held[uid] = held.get(uid, 0) + raised
            open_ -= raised
    return {uid: count for uid, count in held.items() if count} if outcome.replaced else {}
