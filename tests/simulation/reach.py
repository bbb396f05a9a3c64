"""Who can hear whom in a simulated world, and since when not: what the ways and the machines allow, whatever the controllers believe.

A cluster is heard by its parent, or by an adopter that has it on a link that works; whoever hears an ancestor hears what that one
hears. Two clusters are in touch when their ways up meet.
"""

from collections.abc import Sequence
from typing import Final

from tests.simulation.world import Place, World

Pair = tuple[str, str]  # an ancestor, and one below it


class Reach:
    """As it was at the last `sample`. Times are the world's."""

    def __init__(self, world: World) -> None:
        self._world: Final = world
        self.broken: dict[str, float] = {}  # place → since when nobody above hears it
        self.unheard: dict[Pair, float] = {}  # since when one above is not in touch with one below
        self.changed: dict[Pair, float] = {}  # when they last came into touch, or out of it
        self.doubled: dict[str, float] = {}  # place → since when two others have it on links that work
        self.holders: dict[str, list[str]] = {}  # place → who has it on a link that works
        self._up: dict[str, Place | None] = {}
        self._chains: dict[str, tuple[str, ...]] = {}

    def sample(self) -> None:
        now, places = self._world.loop.time(), self._world.places.values()
        self._look_at_links()
        self._chains.clear()
        for place in places:
            parent = place.parent
            if parent is None:
                self._up[place.name] = None
                continue
            above = None
            if awake(place):
                above = parent if awake(parent) and self._passes(place, parent) else self._carrier(place)
            self._up[place.name] = above
            if above is not None:
                self.broken.pop(place.name, None)
            else:
                self.broken.setdefault(place.name, now)
        self._note_unheard(now)
        twice = {name for name, holders in self.holders.items() if len(holders) > 1}
        self.doubled = {name: self.doubled.get(name, now) for name in sorted(twice)}

    def in_touch(self, one: Place, other: Place) -> bool:
        """Do their ways up meet?"""
        chain = self.chain(one)
        return any(each in chain for each in self.chain(other))

    def chain(self, place: Place) -> tuple[str, ...]:
        """From ``place`` up as far as it is heard."""
        found = self._chains.get(place.name)
        if found is None:
            names: list[str] = []
            here: Place | None = place
            while here is not None and here.name not in names:
                names.append(here.name)
                here = self._up[here.name]
            found = self._chains[place.name] = tuple(names)
        return found

    def broken_since(self, place: Place) -> float:
        """Since when the way up from ``place`` ends where it ends; minus infinity when it ends at the root."""
        return self.broken.get(self.chain(place)[-1], float("-inf"))

    def _note_unheard(self, now: float) -> None:
        before, self.unheard = self.unheard, {}
        for place in self._world.places.values() if self.broken else ():
            above = place.parent
            while above is not None:
                pair = above.name, place.name
                if not self.in_touch(place, above):
                    self.unheard[pair] = before.get(pair, now)
                above = above.parent
        for pair in before.keys() ^ self.unheard.keys():
            self.changed[pair] = now

    def _look_at_links(self) -> None:
        self.holders = {}
        by_uid = self._world.by_uid
        for other in self._world.places.values():
            if not awake(other) or other.controller is None:
                continue
            for uid, link in other.controller.tunnel.links.items():
                place = by_uid.get(uid)
                if place is not None and not link.closed and awake(place) and self._passes(place, other):
                    self.holders.setdefault(place.name, []).append(other.name)

    def _carrier(self, place: Place) -> Place | None:
        """Somebody else who has it on a link that works, until its parent is back."""
        for name in self.holders.get(place.name, ()):
            other = self._world.places[name]
            if other is not place.parent:
                return other
        return None

    def _passes(self, place: Place, other: Place) -> bool:
        return self._world.network.passes(place.name, other.name)


def awake(place: Place) -> bool:
    """It runs, and is not stopped in its tracks."""
    return place.alive and not frozen(place)


def served(place: Place, origin: Place, heard: Sequence[Place]) -> bool:
    """Can more be given to it from ``origin``? By its home alone, and that by its own: who is carried meanwhile runs what it has."""
    path = place.path()
    return all(each in heard for each in path[path.index(origin) + 1 : -1])


def frozen(place: Place) -> bool:
    return place.life is not None and place.life.frozen
