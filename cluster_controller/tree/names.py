"""Names: unique at every ancestor in reach, for two seconds at most; otherwise provisional.

A reservation above holds until the new cluster's report arrives, so it lives in memory, with a deadline on the boot-time clock
and a bound; after a restart of the ancestor the report decides, and an equal name is shown under an alias (NameConflict).
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError
from cluster_controller.identity.holder import Identity
from cluster_controller.tree import records
from cluster_controller.tree.admission import STANDING_STATES

log = structlog.get_logger()

ASK_SECONDS = 2.0
HOLD_SECONDS = 120.0
MAX_HELD = 4096


class Reserve(Struct, frozen=True, tag=True):
    """What a controller asks its parent: may ``name`` belong to ``uid``? Answer within ``seconds``."""

    name: str
    uid: str
    seconds: float = ASK_SECONDS


class Reserved(Struct, frozen=True, tag=True):
    """``taken_by`` names who has it, "" when it is free; ``complete``: every ancestor up to the root has answered."""

    taken_by: str = ""
    complete: bool = False


Ask = Callable[[Reserve], Awaitable[Reserved]]
"""Puts the question to the parent; raises a BanyanError when it is out of reach."""


class Reservations:
    def __init__(self, store: records.View, identity: Callable[[], Identity], *, boottime: Callable[[], float]) -> None:
        self._store = store
        self._identity = identity
        self._boottime = boottime
        self._held: dict[str, tuple[str, float]] = {}  # name → uid, deadline
        self.ask_parent: Ask | None = None

    def taken(self, view: records.View) -> dict[str, str]:
        """Every name of this subtree with its uid: the own one, members, clusters further below, and names held for joins."""
        now = self._boottime()
        self._held = {name: held for name, held in self._held.items() if held[1] > now}
        found = {name: uid for name, (uid, _) in self._held.items()}
        found.update({stored.key.name: stored.uid for stored in view.list(records.OWN, "Cluster")})
        found.update({one.name: one.uid for one in records.members(view).values() if one.state in STANDING_STATES})
        found[self._identity().name] = self._identity().uid
        return found

    def arrived(self, name: str, uid: str) -> None:
        """The cluster itself is known now: from here on its report holds the name, and its leaving frees it."""
        if self._held.get(name, ("", 0.0))[0] == uid:
            del self._held[name]

    async def reserve_above(self, name: str, uid: str, seconds: float = ASK_SECONDS) -> Reserved:
        """Ask the ancestors. Out of reach is no obstacle: the name is provisional then."""
        if self._identity().is_root:
            return Reserved(complete=True)
        if self.ask_parent is None or seconds <= 0:
            return Reserved()
        try:
            async with asyncio.timeout(seconds):
                return await self.ask_parent(Reserve(name, uid, seconds))
        except (BanyanError, TimeoutError) as error:
            log.info("name.provisional", name=name, reason=str(error) or f"no answer from above within {seconds:g} s")
            return Reserved()

    async def reserve(self, asked: Reserve) -> Reserved:
        """A child asks: hold the name here if it is free, and pass the question on."""
        began = self._boottime()
        owner = self.taken(self._store).get(asked.name, "")
        if owner and owner != asked.uid:
            return Reserved(taken_by=f"{owner} at {self._identity().name}")
        if asked.name not in self._held and len(self._held) >= MAX_HELD:
            return Reserved()  # not held, hence provisional
        self._held[asked.name] = (asked.uid, began + HOLD_SECONDS)
        above = await self.reserve_above(asked.name, asked.uid, min(asked.seconds, ASK_SECONDS) * 0.9)
        if above.taken_by:
            self._held.pop(asked.name, None)
        return above
