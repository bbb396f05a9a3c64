"""Carry a rotation of the tree's key through the subtree: trust the new CA, renew under it, and only then tell those below.

The root's announcement is an object of kind TreeAuthority that each controller passes on to its children once its own chain leads
to the new CA; so a child that hears of it finds a parent that can renew it. A branch that is cut off hears of it when it is back.
Level-triggered: whatever was cut short is begun again from what is on the disk, with a capped delay.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec
import structlog

from cluster_controller import events
from cluster_controller.documents import decode, encode, put_changed
from cluster_controller.errors import BanyanError, Conflict
from cluster_controller.events import Reason
from cluster_controller.identity import rotation
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.rotation import Announcement
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store, Stored, Tx
from cluster_controller.tasks import follow
from cluster_controller.tree import records
from cluster_controller.tree.child import IdentityHolder
from cluster_controller.tree.times import format_time, parse_time

log = structlog.get_logger()

KIND = "TreeAuthority"
NAME = "tree"
SPREAD_SECONDS = 5.0  # over which the children of one parent ask for their renewal
RETRY_SECONDS = (1.0, 60.0)


class TreeAuthority(kinds.Resource, frozen=True, kw_only=True):
    kind: str = KIND
    spec: Announcement


class Missing(msgspec.Struct, frozen=True):
    """A cluster whose certificates do not hang from the new CA, as far as is known here."""

    name: str
    authority: str  # of its CA; "" when it has never said
    phase: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """``phase``: none, both (the old CA counts too), or closed (the last rotation is over)."""

    phase: str
    authority: str
    begun: str = ""
    clusters: int = 0
    missing: tuple[Missing, ...] = ()
    users: tuple[str, ...] = ()  # whose certificates were made before the rotation: they end with the old CA


class Rotation:
    """``renew``: ask the parent for fresh certificates, whether it gave them. ``changed``: who this is has changed."""

    heeds = (KIND, "Member")  # kinds of what `changed` is called for

    def __init__(
        self,
        store: Store,
        identity: IdentityHolder,
        *,
        renew: Callable[[], Awaitable[bool]],
        changed: Callable[[], None],
        wall: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._identity = identity
        self._renew = renew
        self._wall = wall
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self.listeners: list[Callable[[], None]] = [changed]

    def load(self) -> None:
        self._wake.set()

    def changed(self, changes: Sequence[Event]) -> None:
        for event in changes:
            if event.stored.key.kind == KIND or event.stored.key.space == records.MEMBERS:
                self._wake.set()

    async def run(self) -> None:
        """For ever."""
        await follow(self._wake, self._follow, RETRY_SECONDS)

    # --- following what the root says ---

    def _announced(self) -> Announcement | None:
        space = records.OWN if self._identity().is_root else records.DESIRED
        stored = self._store.get(Key(space, KIND, "", NAME))
        return decode(stored.document, TreeAuthority).spec if stored is not None else None

    async def _follow(self) -> bool:
        """Whether all is done that can be done now; False to try again."""
        said = self._announced()
        if said is None:
            return True
        try:
            if not self._identity().is_root and not await self._take_over(said):
                return False
        except BanyanError as error:  # what this controller does not believe it does not pass on
            log.error("authority.refused", reason=str(error), remedy="ask the root's people whether they rotate the tree's key")
            return True
        await self._store.commit(lambda tx: self._pass_on(tx, said))
        return True

    async def _take_over(self, said: Announcement) -> bool:
        async with self._turn:
            await self._change(lambda identity: rotation.accept(identity, said))
            if not self._identity().hangs_from_newest:
                await asyncio.sleep(SPREAD_SECONDS * int(self._identity().uid[-2:], 36) / 36**2)
                if not await self._renew() or not self._identity().hangs_from_newest:
                    return False
                self.tell()
            if said.closed:
                await self._change(rotation.closed)
        return True

    async def _change(self, work: Callable[[Identity], Identity]) -> None:
        if await self._identity.change(work):
            self.tell()

    def tell(self) -> None:
        """Who this controller is has changed."""
        log.info("authority.changed", authority=self._identity().authority_name, trusted=len(self._identity().anchors))
        for listener in self.listeners:
            listener()

    def _pass_on(self, tx: Tx, said: Announcement) -> None:
        document = TreeAuthority(metadata=kinds.Metadata(name=NAME, uid=NAME), spec=said)
        for uid, member in records.members(tx).items():
            if member.state == "member":
                put_changed(tx, Key(f"down/{uid}", KIND, "", NAME), document, NAME)

    # --- what people decide, at the root ---

    async def begin(self) -> State:
        """A new CA beside the present one. Conflict while a rotation is under way."""
        async with self._turn:
            now = self._wall()
            await self._identity.change_on_disk(lambda folder, identity: rotation.begin(folder, identity, now))
            said = rotation.announcement(self._identity(), format_time(now))
            await self._announce(said, Reason.ROTATION_BEGAN, "a new key of the tree counts beside the present one")
            self.tell()
        return self.state()

    async def finish(self, *, force: bool) -> State:
        """The old CA counts no more. Conflict while anybody's certificates hang from it, unless forced."""
        async with self._turn:
            state, said = self.state(), self._announced()
            if said is None or state.phase != "both":
                raise Conflict("the tree's key is not being rotated; begin with `banyan rotate tree-key`")
            if (state.missing or state.users) and not force:
                raise Conflict(_who_would_lose(state))
            await self._identity.change_on_disk(rotation.finish)
            await self._announce(msgspec.structs.replace(said, closed=True), Reason.ROTATION_FINISHED, "the tree's old key counts no more")
            self.tell()
        return self.state()

    async def issuing(self) -> str:
        """Fresh certificates and a fresh issuing key for this controller; until when they are good. What the old key signed counts on."""
        async with self._turn:
            if not await self._renew():
                raise Conflict(f"{self._identity().name} was not renewed: its parent is out of reach, or does not answer; try again")
            self.tell()
        return format_time(self._identity().not_after)

    async def _announce(self, said: Announcement, reason: Reason, message: str) -> None:
        identity = self._identity()

        def work(tx: Tx) -> Stored:
            now = format_time(self._wall())
            events.cluster(tx, identity.name, identity.uid, reason, message, component="rotation", timestamp=now)
            document = TreeAuthority(metadata=kinds.Metadata(name=NAME, uid=NAME), spec=said)
            return tx.put(Key(records.OWN, KIND, "", NAME), encode(document), uid=NAME)

        await self._store.commit(work)

    def state(self) -> State:
        """As far as is known here: what was reported last, however long ago."""
        identity, said = self._identity(), self._announced()
        wanted = identity.authority_name
        phase = "both" if len(identity.anchors) > 1 else "closed" if said is not None else "none"
        clusters = [decode(stored.document, kinds.Cluster) for stored in self._store.list(records.OWN, "Cluster")]
        missing = [
            Missing(one.metadata.name, one.status.facts.authority, one.status.phase)
            for one in clusters
            if phase == "both" and one.status.facts.authority != wanted and one.status.phase != "Revoked"
        ]
        begun = said.begun if said is not None else ""
        users = self._users_before(begun) if phase == "both" else ()
        return State(phase=phase, authority=wanted, begun=begun, clusters=len(clusters), missing=tuple(missing), users=users)

    def _users_before(self, begun: str) -> tuple[str, ...]:
        users = (decode(stored.document, kinds.User) for stored in self._store.list(records.OWN, "User"))
        return tuple(
            user.metadata.name
            for user in users
            if user.spec.credential == "certificate"
            and user.status.phase == "Active"
            and parse_time(user.metadata.creation_timestamp or begun) < parse_time(begun)
        )


def _who_would_lose(state: State, named: int = 10) -> str:
    parts = []
    if state.missing:
        names = ", ".join(one.name for one in state.missing[:named])
        parts.append(f"{len(state.missing)} clusters still have certificates under the old key ({names}): they would have to join again")
    if state.users:
        parts.append(f"{len(state.users)} users have older certificates ({', '.join(state.users[:named])}): make them anew first")
    return f"{'; '.join(parts)}; wait for them, or say --force"
