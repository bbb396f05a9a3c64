"""What people asked for in a simulated world, and so what ought to be: the yardstick of the invariants.

A wish counts as acknowledged once the commit of its origin has returned. One whose origin died in between may or may not be on the
disk; what its store says later is what holds then.
"""

from typing import Any

import msgspec
from msgspec import Struct

from tests.simulation import applications
from tests.simulation.world import Place


class Wish(Struct, eq=False):
    """One Application."""

    name: str
    origin: Place
    uid: str = ""
    spec: dict[str, Any] = {}
    deleted: bool = False
    sure: bool = True  # what stands here is on the origin's disk
    touched: bool = True  # by a person, since the last quiet point
    settled: set[str] = set()  # sites where it ran as it was wanted when a disk above was set back, and nobody has decided since
    changed: float = 0.0  # when a person last changed it
    most: int = 0  # replicas that were wanted at any time since the last quiet point

    @property
    def replicas(self) -> int:
        return sum(each.get("replicas", 1) for each in self.spec["components"]) if self.spec and not self.deleted else 0

    @property
    def divided(self) -> bool:
        return bool(self.spec) and self.spec["placement"]["strategy"] == "Divided"

    @property
    def replaces(self) -> bool:
        return bool(self.spec) and self.spec["placement"]["onUnreachable"]["action"] == "Replace"

    def may_run_on(self, place: Place) -> bool:
        """By its selector."""
        labels = self.spec["placement"].get("clusterSelector", {}).get("matchLabels", {})
        return all(place.labels.get(key) == value for key, value in labels.items())


class Wishes:
    def __init__(self) -> None:
        self.by_uid: dict[str, Wish] = {}
        self.by_name: dict[str, Wish] = {}

    def living(self) -> list[Wish]:
        return [wish for wish in self.by_uid.values() if not wish.deleted]

    async def create(self, place: Place, name: str, spec: dict[str, Any]) -> None:
        before = self.by_name.get(name)
        if before is not None and not before.deleted:
            return
        wish = self.by_name[name] = Wish(name=name, origin=place, spec=spec)
        self._touch(wish)
        wish.most = wish.replicas
        uid = await applications.create(place, name, spec, made=lambda uid: self._named(wish, uid))
        wish.sure = True
        assert uid == wish.uid

    def _named(self, wish: Wish, uid: str) -> None:
        wish.uid = uid
        self.by_uid[uid] = wish

    def _touch(self, wish: Wish) -> None:
        wish.touched, wish.sure, wish.settled = True, False, set()
        wish.changed = wish.origin.world.loop.time()

    def grown(self, place: Place) -> None:
        """A cluster has joined: what is to run everywhere runs there too, and what found no room may."""
        for wish in self.by_uid.values():
            if wish.origin in place.path():
                wish.changed = place.world.loop.time()

    def decided(self) -> None:
        """A person let what a restored parent knows count for all."""
        for wish in self.by_uid.values():
            wish.touched, wish.settled = True, set()

    async def change(self, name: str, spec: dict[str, Any]) -> None:
        wish = self.by_name.get(name)
        if wish is None or wish.deleted or not wish.sure or not wish.origin.alive:
            return
        self._touch(wish)
        wish.most = max(wish.most, sum(each.get("replicas", 1) for each in spec["components"]))
        await applications.change(wish.origin, name, spec)
        wish.spec, wish.sure = spec, True

    async def delete(self, name: str) -> None:
        wish = self.by_name.get(name)
        if wish is None or wish.deleted or not wish.sure or not wish.origin.alive:
            return
        self._touch(wish)
        await applications.delete(wish.origin, name)
        wish.deleted = wish.sure = True

    def forget(self, place: Place) -> None:
        """``place`` was restored from a backup: what was written there since the last quiet point is as its store says now."""
        for wish in self.by_name.values():
            if wish.origin is place and wish.touched:
                wish.sure = False

    def ask_again(self) -> None:
        """Everything is in reach: what was left open is what the origins' stores say."""
        for wish in list(self.by_name.values()):
            if wish.sure:
                continue
            assert wish.origin.controller is not None
            stored = wish.origin.controller.store.get(applications.key(wish.name))
            wish.sure = True
            if stored is None or (wish.uid and stored.uid != wish.uid):
                wish.deleted = True
                continue
            document = msgspec.json.decode(stored.document)
            wish.spec, wish.deleted = document["spec"], bool(document["metadata"].get("deletionTimestamp"))
            wish.most = max(wish.most, wish.replicas)

    def quiet(self) -> None:
        """All is as it should be: from here on only what people do, or a policy, may change it."""
        for wish in self.by_uid.values():
            wish.touched, wish.settled = False, set()
            wish.most = wish.replicas
