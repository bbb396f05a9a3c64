"""Below a cluster that was moved, certificates still say the way by which they were issued: they are renewed, level by level.

A controller that was moved tells its children the way above them, in an object of kind Lineage; a child whose own certificates say
another asks for new ones, and only then tells its own children. The certificates of before are good as long as ever, so nothing waits
for this; but who may take a cluster in when its parent is lost, and who may ask it for something, is judged by that way. Level-triggered:
what was cut short is begun again from what is on the disk, with a capped delay.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct

from cluster_controller.documents import decode, put_changed
from cluster_controller.identity.holder import Identity
from cluster_controller.moves.part import mine
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store, Tx
from cluster_controller.tasks import follow
from cluster_controller.tree import records

log = structlog.get_logger()

KIND = "Lineage"
NAME = "lineage"
SPREAD_SECONDS = 3.0  # over which the children of one parent ask
RETRY_SECONDS = (1.0, 60.0)


class Above(Struct, frozen=True):
    path: list[str]  # uids from the root down to the parent


class Document(kinds.Resource, frozen=True, kw_only=True):
    kind: str = KIND
    spec: Above


class Lineage:
    """``renew``: ask the parent for fresh certificates, whether it gave them. ``takes_over``: what is held is an old parent's."""

    heeds = (KIND, "Member")  # kinds of what `changed` is called for

    def __init__(
        self, store: Store, identity: Callable[[], Identity], *, renew: Callable[[], Awaitable[bool]], takes_over: Callable[[], bool]
    ) -> None:
        self._store = store
        self._identity = identity
        self._renew = renew
        self._takes_over = takes_over
        self._wake = asyncio.Event()

    def load(self) -> None:
        self._wake.set()

    def changed(self, changes: Sequence[Event]) -> None:
        if any(event.stored.key.kind == KIND or event.stored.key.space == records.MEMBERS for event in changes):
            self._wake.set()

    def again(self) -> None:
        """Who this cluster is has changed."""
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        await follow(self._wake, self.follow, RETRY_SECONDS)

    async def follow(self) -> bool:
        """Whether all is done that can be done now; False to try again."""
        said = self._said() if not self._takes_over() else None
        last = mine(self._store)
        moved = last is not None and last.parent == self._identity().parent_uid
        if said is None and not moved:
            return True
        if said is not None and not self._agrees(said):
            await asyncio.sleep(SPREAD_SECONDS * int(self._identity().uid[-2:], 36) / 36**2)
            if not await self._renew() or not self._agrees(said):
                return False
            log.info("lineage.renewed", path=len(said.path))
        await self._store.commit(self._pass_on)
        return True

    def _said(self) -> Above | None:
        stored = self._store.get(Key(records.DESIRED, KIND, "", NAME))
        return decode(stored.document, Document).spec if stored is not None else None

    def _agrees(self, said: Above) -> bool:
        return tuple(said.path) == self._identity().path[:-1]

    def _pass_on(self, tx: Tx) -> None:
        document = Document(metadata=kinds.Metadata(name=NAME, uid=NAME), spec=Above(list(self._identity().path)))
        for uid, member in records.members(tx).items():
            if member.state == "member":
                put_changed(tx, Key(f"down/{uid}", KIND, "", NAME), document, NAME)
