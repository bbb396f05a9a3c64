"""What must hold at quiet points: everything is mended, and has had time to heal.

One small checker each; it yields what is not yet as it should be.
"""

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from cluster_controller.resources import kinds
from cluster_controller.tunnel.link import Link
from tests.simulation import bounds, patches
from tests.simulation.world import Place

if TYPE_CHECKING:
    from tests.simulation.invariants import Invariants


def everybody_is_linked(check: "Invariants") -> Iterator[str]:
    """Every cluster has its one parent, and no other."""
    for place in check.world.places.values():
        if not place.alive:
            yield f"{place.name} does not run"
            continue
        assert place.controller is not None
        held = [
            each.name
            for each in check.world.places.values()
            if each.alive and each.controller and place.uid in each.controller.tunnel.links
        ]
        expected = [place.parent.name] if place.parent is not None else []
        if held != expected:
            yield f"{place.name} is linked to {held or 'nobody'} ({place.controller.tunnel.dial_error})"
        below = {each.uid for each in place.subtree()} - {place.uid}
        routed = set(place.controller.tunnel.router.subtree(place.uid)) - {place.uid}
        if routed != below:
            wrong = sorted(check.world.by_uid[each].name for each in routed ^ below)
            yield f"{place.name} does not route to its subtree and to nobody else: {wrong}"


def running_is_desired(check: "Invariants") -> Iterator[str]:
    """What runs is what is wanted, for each Application and cluster."""
    for wish in check.wishes.by_uid.values():
        total = check.totals.get(wish.uid, 0)
        if not wish.divided and not wish.deleted:
            targets = list(wish.origin.subtree())
            wrong = {each.name: n for each in targets if (n := each.site.running(wish.uid)) != wish.replicas}
            if wrong:
                yield f"{wish.name}: {wrong} run, {wish.replicas} are wanted on each"
        elif total != wish.replicas:
            yield f"{wish.name}: {total} run, {wish.replicas} are wanted"
    for place in check.world.places.values():
        for uid in place.site.instances:
            if uid not in check.wishes.by_uid:
                yield f"{place.name} runs {uid}, of which nobody knows"
        yield from _as_told(place)


def _as_told(place: Place) -> Iterator[str]:
    if place.controller is None or not place.alive:
        return
    told = {}
    for stored in place.controller.store.list("local", "Work"):
        spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
        told[stored.key.name] = sum(each.replicas for each in spec.components)
    for uid in sorted({*told, *place.site.instances}):
        if place.site.ready(uid) != told.get(uid, 0) or place.site.running(uid) != told.get(uid, 0):
            yield f"{place.name} runs {place.site.running(uid)} of {uid}, its Work says {told.get(uid, 0)}"


def nothing_acknowledged_is_lost(check: "Invariants") -> Iterator[str]:
    """What was acknowledged to a person is there, as it was written; what was deleted is not."""
    for wish in check.wishes.by_uid.values():
        controller = wish.origin.controller
        if controller is None or not wish.origin.alive:
            continue
        stored = controller.store.find("own", "Application", wish.uid)
        if wish.deleted:
            if stored is not None:
                yield f"{wish.name} was deleted and is still there"
        elif stored is None:
            yield f"{wish.name} was acknowledged and is gone"
        elif msgspec.json.decode(stored.document)["spec"] != wish.spec:
            yield f"{wish.name} is not as it was written last"


def statuses_are_right(check: "Invariants") -> Iterator[str]:
    """The status at the origin counts what runs."""
    for wish in check.wishes.living():
        controller = wish.origin.controller
        stored = controller.store.find("own", "Application", wish.uid) if controller is not None and wish.origin.alive else None
        if stored is None:
            continue
        status = msgspec.json.decode(stored.document, type=kinds.Application).status
        wanted = wish.replicas if wish.divided else wish.replicas * sum(1 for _ in wish.origin.subtree())
        if status.ready != wanted or status.desired != wanted or status.phase != "Running" or status.unplaced:
            yield f"{wish.name}: {status.phase}, {status.ready} of {status.desired} ready, {status.unplaced} unplaced; {wanted} run"


def clusters_are_ready(check: "Invariants") -> Iterator[str]:
    """Every ancestor shows every cluster below it as Ready."""
    for place in check.world.places.values():
        if place.controller is None or not place.alive:
            continue
        for below in place.subtree():
            stored = place.controller.store.find("own", "Cluster", below.uid)
            phase = msgspec.json.decode(stored.document, type=kinds.Cluster).status.phase if stored is not None else "missing"
            if phase != "Ready":
                yield f"{place.name} shows {below.name} as {phase}"


def replicas_agree(check: "Invariants") -> Iterator[str]:
    """Both ends of every link hold the same, down and up."""
    for place in check.world.places.values():
        if place.parent is None or not place.alive or not place.parent.alive:
            continue
        assert place.controller is not None and place.parent.controller is not None
        above, below = place.parent.controller.store, place.controller.store
        for one, space, other, copy in (
            (above, f"down/{place.uid}", below, "desired"),
            (below, "report", above, f"up/{place.uid}"),
        ):
            sent = {stored.key[1:]: (stored.uid, stored.version, stored.hash) for stored in one.scan(space)}
            held = {stored.key[1:]: (stored.uid, stored.version, stored.hash) for stored in other.scan(copy)}
            if sent != held:
                wrong = sorted(key for key in {*sent, *held} if sent.get(key) != held.get(key))
                key = wrong[0]
                what = f"{len(wrong)} of {space} and {copy} differ, as {key}: {sent.get(key)} and {held.get(key)}"
                yield f"{place.name}: {what}"


def closed_links_leave_nothing(check: "Invariants") -> Iterator[str]:
    """Nothing is kept of links that have ended."""
    edges = sum(place.parent is not None for place in check.world.places.values())
    wires = len(check.world.network.wires)
    if wires != 2 * edges:
        yield f"{wires} wires are open for {edges} links"
    for place in check.world.places.values():
        if place.controller is not None and place.alive:
            yield from (f"{place.name}: {what}" for what in bounds.left(place))
    if not check.thorough:
        return
    if len(_living_links()) != 2 * edges:  # what only holds itself is no leak, and waits for the collector
        gc.collect()
    living = _living_links()
    if len(living) != 2 * edges:
        yield f"{len(living)} links are in memory for {edges} connections: {sorted(map(repr, living))[:5]}"


def _living_links() -> list[Link]:
    return [each for each in patches.LINKS if not _of_the_dead(each)]


def _of_the_dead(link: Link) -> bool:
    life = getattr(link._wire, "life", None)
    return life is None or life.dead


Check = Callable[["Invariants"], Iterator[str]]
QUIET: tuple[Check, ...] = (
    everybody_is_linked,
    running_is_desired,
    nothing_acknowledged_is_lost,
    statuses_are_right,
    clusters_are_ready,
    replicas_agree,
    closed_links_leave_nothing,
)
