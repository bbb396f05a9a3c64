"""Which child leads to which cluster of the subtree, learned from signed attach records only.

Pure. Invariants:
- A child may speak only for its own subtree: a record is taken from a child only when the parent that it names is that child, or
  is already known to be below it. The record is signed by the cluster that it is about, so nobody is claimed by a stranger.
- The higher attach wins, whoever relays it; the withdrawal of a lower one changes nothing.
- What lost against a higher attach, and was not withdrawn by the child that said it, counts again once the higher one is withdrawn:
  a copied data folder that spoke elsewhere for a while, and is gone, leaves no cluster without a way.
- No loops: one's own uid in what a child announces is a violation, and a record cannot name a parent below itself.
- A cluster leaves together with everything below it.
"""

from collections.abc import Callable, Collection, Iterable
from enum import Enum

from msgspec import Struct

from cluster_controller.errors import Exhausted, Forbidden, ProtocolError
from cluster_controller.tunnel.messages import AttachRecord, CloseCode, Routes, Withdrawal

MAX_ROUTES = 100_000


class Verdict(Enum):
    ADDED = "added"
    KNOWN = "known"  # nothing changed
    STALE = "a newer attach, or the same one by another way, is known"
    NOT_YOURS = "it is not below who sent it"
    UNSIGNED = "the signature does not match"
    FULL = "the route table is full"


class Route(Struct, frozen=True):
    via: str  # uid of the child whose link leads there
    record: AttachRecord


class Applied(Struct, frozen=True):
    """What became of a `Routes` message: what the own parent is to be told (None: nothing), and what was refused."""

    onward: Routes | None
    refused: tuple[tuple[AttachRecord, Verdict], ...] = ()


class Router:
    """``verify`` says whether a record's signature is that of the cluster it names; see `identity.attach`."""

    def __init__(self, uid: str, verify: Callable[[AttachRecord], bool], max_routes: int = MAX_ROUTES) -> None:
        self.uid = uid
        self._verify = verify
        self._max_routes = max_routes
        self._routes: dict[str, Route] = {}
        self._below: dict[str, set[str]] = {}  # parent uid → uids directly under it
        self._outdone: dict[str, dict[str, AttachRecord]] = {}  # uid → child → what it says still, though a higher attach is known

    def next_hop(self, uid: str) -> str | None:
        """uid of the child whose link leads to ``uid``; None when it is not in the subtree."""
        route = self._routes.get(uid)
        return None if route is None else route.via

    def record(self, uid: str) -> AttachRecord | None:
        route = self._routes.get(uid)
        return None if route is None else route.record

    def path(self, uid: str) -> tuple[str, ...]:
        """uids from the direct child down to ``uid``; empty when it is not in the subtree."""
        hops: list[str] = []
        while (route := self._routes.get(uid)) is not None:
            hops.append(uid)
            uid = route.record.parent_uid
        return tuple(reversed(hops))

    def subtree(self, uid: str) -> tuple[str, ...]:
        """``uid`` and all that is known below it, parents first."""
        found = [uid]
        for one in found:
            found.extend(sorted(self._below.get(one, ())))
        return tuple(found)

    def judge(self, record: AttachRecord) -> Verdict:
        """What `attach` would make of ``record``, changing nothing: asked before a child is welcomed. ADDED: it may come.

        An older record than one that came by this child's own link is no case for the router: a copied data folder says
        such, and the membership has more to say to it.
        """
        if record.parent_uid != self.uid or record.uid == self.uid:
            return Verdict.NOT_YOURS
        known = self._routes.get(record.uid)
        if known is None and len(self._routes) >= self._max_routes:
            return Verdict.FULL
        if known is not None and known.via != record.uid and record.attach <= known.record.attach:
            return Verdict.STALE
        return Verdict.ADDED if self._verify(record) else Verdict.UNSIGNED

    def attach(self, record: AttachRecord) -> Routes | None:
        """A child of this controller was admitted with ``record``. What the own parent is to be told.

        Raises `Forbidden` when the record does not say that it is under this controller or is not signed by the child, and
        when a newer one is known (a replay).
        """
        if record.parent_uid != self.uid or record.uid == self.uid:
            raise Forbidden(f"the attach record of {record.uid or 'a nameless cluster'} names another parent; connect again")
        verdict = self._take(record.uid, record)
        if verdict in (Verdict.STALE, Verdict.UNSIGNED):
            raise Forbidden(f"the attach record of {record.uid} is refused: {verdict.value}; connect again")
        if verdict is Verdict.FULL:
            raise Exhausted(f"the route table is full at {self._max_routes} clusters")
        return Routes(announce=(record,)) if verdict is Verdict.ADDED else None

    def detach(self, uid: str) -> Routes | None:
        """The link of the child ``uid`` is gone, and with it the way to everything below.

        A guest that went home may be known by way of its home before its old link here has ended: that way stays.
        """
        route = self._routes.get(uid)
        self._forget(uid)
        gone = self._drop(uid) if route is not None and route.via == uid else []
        return _told(self._fall_back(gone), gone)

    def apply(self, child: str, message: Routes) -> Applied:
        """Take in what the child ``child`` says of its subtree.

        What does not belong to the child is refused one by one and the rest counts. Raises `ProtocolError` (LOOP) when
        this controller's own uid is announced below it: the link must be closed.
        """
        if any(record.uid == self.uid for record in message.announce):  # before anything changes that the own parent must be told
            raise ProtocolError(f"{child} announces this controller below itself: a loop", CloseCode.LOOP)
        withdrawn: list[Withdrawal] = []
        if message.full:
            named = {record.uid for record in message.announce}
            self._forget(child, named)
            for uid in self.subtree(child)[1:]:
                if uid not in named and uid in self._routes:
                    withdrawn.extend(self._drop(uid))
        for withdrawal in message.withdraw:
            withdrawn.extend(self._withdraw(child, withdrawal))
        announced = self._fall_back(withdrawn)
        refused: list[tuple[AttachRecord, Verdict]] = []
        for record in message.announce:
            verdict = self._announce(child, record)
            if verdict is Verdict.ADDED:
                announced.append(record)
            elif verdict not in (Verdict.KNOWN, Verdict.STALE):
                refused.append((record, verdict))
        return Applied(_told(announced, withdrawn), tuple(refused))

    def announcement(self) -> Routes:
        """All of the subtree, parents first: what a new parent link is told."""
        return Routes(announce=tuple(self._routes[uid].record for uid in self.subtree(self.uid)[1:]), full=True)

    def __len__(self) -> int:
        return len(self._routes)

    def _announce(self, child: str, record: AttachRecord) -> Verdict:
        parent = record.parent_uid
        known = self._routes.get(parent)
        if record.uid == child or known is None or known.via != child or record.uid in self.path(parent):
            return Verdict.NOT_YOURS
        verdict = self._take(child, record)
        if verdict is Verdict.STALE and self._routes[record.uid].via != child and self._verify(record):
            self._remember(child, record)
        return verdict

    def _take(self, via: str, record: AttachRecord) -> Verdict:
        known = self._routes.get(record.uid)
        if known is not None:
            if known.record == record and known.via == via:
                return Verdict.KNOWN
            if record.attach <= known.record.attach:
                return Verdict.STALE
        elif len(self._routes) >= self._max_routes:
            return Verdict.FULL
        if not self._verify(record):
            return Verdict.UNSIGNED
        self._retract(record.uid, via)
        if known is not None:
            if known.via != via:
                self._remember(known.via, known.record)
            self._below[known.record.parent_uid].discard(record.uid)
            self._reroute(record.uid, via)
        self._routes[record.uid] = Route(via, record)
        self._below.setdefault(record.parent_uid, set()).add(record.uid)
        return Verdict.ADDED

    def _reroute(self, uid: str, via: str) -> None:
        """``uid`` has moved under another child: what is below it moved along."""
        for one in self.subtree(uid)[1:]:
            known = self._routes[one]
            self._retract(one, via)
            if known.via != via:
                self._remember(known.via, known.record)
            self._routes[one] = Route(via, known.record)

    def _remember(self, child: str, record: AttachRecord) -> None:
        """``child`` still says so, and would be believed if nobody knew better."""
        known = self._outdone.get(record.uid)
        if known is not None or len(self._outdone) < self._max_routes:
            self._outdone.setdefault(record.uid, {})[child] = record

    def _retract(self, uid: str, child: str) -> None:
        known = self._outdone.get(uid)
        if known is not None and known.pop(child, None) is not None and not known:
            del self._outdone[uid]

    def _forget(self, child: str, named: Collection[str] = ()) -> None:
        """``child`` is gone, or says no more than what is ``named``."""
        for uid in [uid for uid, known in self._outdone.items() if child in known and uid not in named]:
            self._retract(uid, child)

    def _fall_back(self, gone: Iterable[Withdrawal]) -> list[AttachRecord]:
        """What is said still of clusters whose way is gone, parents first."""
        found: list[AttachRecord] = []
        for uid in [each.uid for each in gone]:
            said = self._outdone.get(uid, {}) if uid not in self._routes else {}
            for child, record in sorted(said.items(), key=lambda each: (-each[1].attach, each[0])):
                above = self._routes.get(record.parent_uid)
                if child == uid if above is None else above.via == child:
                    self._retract(uid, child)
                    self._routes[uid] = Route(child, record)
                    self._below.setdefault(record.parent_uid, set()).add(uid)
                    found.append(record)
                    break
        return found

    def _withdraw(self, child: str, withdrawal: Withdrawal) -> list[Withdrawal]:
        known = self._routes.get(withdrawal.uid)
        outdone = self._outdone.get(withdrawal.uid, {}).get(child)
        if outdone is not None and withdrawal.attach >= outdone.attach:
            self._retract(withdrawal.uid, child)
        if known is None or known.via != child or withdrawal.uid == child or withdrawal.attach < known.record.attach:
            return []
        return self._drop(withdrawal.uid)

    def _drop(self, uid: str) -> list[Withdrawal]:
        gone: list[Withdrawal] = []
        if uid not in self._routes:
            return gone
        for one in self.subtree(uid):
            route = self._routes.pop(one)
            parent = self._below.get(route.record.parent_uid)
            if parent is not None:
                parent.discard(one)
                if not parent:
                    del self._below[route.record.parent_uid]
            gone.append(Withdrawal(uid=one, attach=route.record.attach))
        return gone


def _told(announced: Iterable[AttachRecord], withdrawn: Iterable[Withdrawal]) -> Routes | None:
    announce, withdraw = tuple(announced), tuple(withdrawn)
    return Routes(announce=announce, withdraw=withdraw) if announce or withdraw else None
