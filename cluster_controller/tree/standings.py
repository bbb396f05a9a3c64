"""What this controller signs for its children: who may take them in when it is gone. Told at Welcome, and again when it changes.

The lists change when a child that can be a parent comes, goes or says another address, and when this controller's own parent signs
another list. Changes are gathered for a moment; then every connected child whose list is another one gets a standing of the next
serial, all in one commit.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from cluster_controller.documents import decode
from cluster_controller.identity import standing
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.standing import PermittedParent, Standing
from cluster_controller.store import Event, Store, Stored, Tx
from cluster_controller.tree import failover, records, wire
from cluster_controller.tree.admission import Member
from cluster_controller.tree.child import chain_of
from cluster_controller.tree.failover import Ring
from cluster_controller.tree.links import Links

GATHER_SECONDS = 0.5


class Standings:
    """``own``: what this controller's parent signed for it; ``addresses``: where children reach it."""

    def __init__(
        self,
        store: Store,
        identity: Callable[[], Identity],
        links: Links,
        *,
        own: Callable[[], Standing | None],
        addresses: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._identity = identity
        self._links = links
        self._own = own
        self._addresses = addresses
        self._ring: Ring | None = None
        self._told: dict[str, tuple[PermittedParent, ...]] = {}  # what each connected child was given last
        self._wake = asyncio.Event()

    def sign(self, record: Member) -> Standing:
        """The standing of a child that is let in; its serial is committed."""
        listed = self._told[record.uid] = self._permitted(record.uid)
        identity = self._identity()
        return standing.sign(record.uid, listed, record.standing_serial, chain_of(identity), identity.sign)

    def left(self, uid: str) -> None:
        self._told.pop(uid, None)

    def mark(self) -> None:
        """Somebody's list may be another one."""
        self._wake.set()

    def changed(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.stored.key.space == records.MEMBERS and _offers(event.stored, event.kind_of) != _offered(event):
                self._ring = None
                self.mark()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            await self._tell()

    async def _tell(self) -> None:
        waiting = [link.peer_uid for link in self._links.children() if link.peer_uid in self._told]
        changed = [uid for uid in waiting if self._permitted(uid) != self._told[uid]]
        if not changed:
            return

        def work(tx: Tx) -> list[Member]:
            found = [record for uid in changed if (record := records.member(tx, uid)) is not None]
            raised = [msgspec.structs.replace(record, standing_serial=record.standing_serial + 1) for record in found]
            for record in raised:
                records.put_member(tx, record)
            return raised

        for record in await self._store.commit(work):
            link = self._links.get(record.uid)
            if link is not None:
                link.send_control(wire.standing_message(self.sign(record)))

    def _permitted(self, uid: str) -> tuple[PermittedParent, ...]:
        identity = self._identity()
        if self._ring is None:
            members = records.members(self._store).values()
            self._ring = Ring(PermittedParent(one.uid, one.name, one.addresses) for one in members if one.state == "member")
        me = PermittedParent(identity.uid, identity.name, tuple(self._addresses()))
        return failover.permitted(uid, me, self._own(), self._ring)


def _offers(stored: Stored, kind_of: str) -> tuple[str, ...]:
    """Where a member takes children; nothing when it is none."""
    if kind_of != "put":
        return ()
    record = decode(stored.document, Member)
    return record.addresses if record.state == "member" else ()


def _offered(event: Event) -> tuple[str, ...]:
    return _offers(event.previous, "put") if event.previous is not None else ()
