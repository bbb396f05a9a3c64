"""What bars a cluster or a person here: the revocations that count, kept by id, and their way on through the tree."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from cluster_controller.identity import revocation
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.revocation import Revocation
from cluster_controller.store import Event, Store, Tx
from cluster_controller.tree import admission, records
from cluster_controller.tree.admission import Entry, Place
from cluster_controller.tunnel.messages import Refusal, RefusalCode

_ENTRY_CODES = {
    Entry.EXPIRED: (RefusalCode.EXPIRED, "the certificate has expired; only Renew is accepted"),
    Entry.REVOKED: (RefusalCode.REVOKED, "this cluster was revoked or replaced; join with a fresh data folder and a new token"),
    Entry.NOT_A_CHILD: (RefusalCode.NOT_MY_CHILD, "this cluster is no member here; join with a token made here"),
    Entry.LOOP: (RefusalCode.LOOP, "this cluster stands above the one that it dials"),
    Entry.REPLAYED: (RefusalCode.REPLAYED, "this attach, or a later one, was seen before"),
}


def refusal(entry: Entry) -> Refusal | None:
    """What to say to a child that is not let in; None for an entry that lets it in."""
    found = _ENTRY_CODES.get(entry)
    return Refusal(code=found[0], reason=found[1]) if found else None


class Barring:
    """Read from the store when asked after a change; every question between is answered from memory."""

    def __init__(self, store: Store, identity: Callable[[], Identity], wall: Callable[[], datetime]) -> None:
        self._store = store
        self._identity = identity
        self._wall = wall
        self._index: dict[str, list[Revocation]] | None = None

    def revoked(self) -> Mapping[str, Sequence[Revocation]]:
        """All revocations that count here, by the id they bar."""
        if self._index is None:
            self._index = revocation.index(records.revocations(self._store, records.members(self._store)))
        return self._index

    def changed(self, events: Sequence[Event]) -> bool:
        """Did a revocation arrive or go?"""
        found = any(
            event.stored.key.kind == "Revocation"
            and (event.stored.key.space in (records.OWN, records.DESIRED) or event.stored.key.space.startswith(("up/", "stray/")))
            for event in events
        )
        if found:
            self._index = None
        return found

    def place(self) -> Place:
        identity = self._identity()
        return Place(identity.uid, identity.path)

    def bars(self, peer: PeerCertificate, *, renewing: bool = False) -> Refusal | None:
        """Why ``peer`` may say nothing here; None: it may. An expired one may still renew."""
        known = records.member(self._store, peer.uid)
        found = admission.judge_peer(peer, known, self.revoked(), self.place(), self._wall())
        if isinstance(found, Revocation):
            return Refusal(code=RefusalCode.REVOKED, reason=_text(peer, found))
        if found is None or (renewing and found is Entry.EXPIRED):
            return None
        return refusal(found)

    def link(self, peer: PeerCertificate) -> str:
        """Why a link that stands must go; "": it may stay."""
        found = revocation.cluster(self.revoked(), peer)
        return _text(peer, found) if found else ""

    async def spread(self) -> None:
        """Pass on what came: down from above, up from below."""

        def work(tx: Tx) -> None:
            standing = [uid for uid, one in records.members(tx).items() if one.state == "member"]
            for one in records.revocations(tx, standing):
                if one.via:
                    records.put_revocation(tx, records.REPORT, one)
                    continue
                for uid in standing:
                    if uid != one.id:
                        records.put_revocation(tx, f"down/{uid}", one)

        await self._store.commit(work)


def _text(peer: PeerCertificate, found: Revocation) -> str:
    whose = "it" if found.id == peer.uid else f"{found.name or found.id}, which stands above it,"
    return f"{peer.name} is barred: {whose} was revoked ({found.reason or 'no reason given'})"
