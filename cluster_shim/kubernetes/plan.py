"""What has to be written so that a member has what one Work renders to, and in which order. Pure.

`plan` compares what is wanted with what was seen: an object that is as we left it is not written, not even to no effect. What is
ours, belongs to the Work and is wanted no more, is pruned, unless its component could not be rendered. `removal` is the same for a
Work that goes. Planning again after a plan was carried out yields nothing, so that a crash in between costs a repeat.
"""

import base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from cluster_shim.kubernetes import fields, names
from cluster_shim.kubernetes.render import Rendered
from cluster_shim.kubernetes.seen import Key, Seen, Settled

Object = dict[str, Any]
Action = Literal["create", "change", "correct", "wait"]

CRD = "CustomResourceDefinition"
NAMESPACE = "Namespace"
LAST = (CRD, NAMESPACE)  # of what is removed: whatever they hold goes with them
NEVER_AGAIN = frozenset(
    {NAMESPACE, CRD, "PersistentVolumeClaim", "PersistentVolume"}
)  # never deleted to be made anew: what they hold would go
MAX_OBJECT = 1_500_000  # bytes; etcd takes 1.5 MiB, and an apply is kept beside the object
CLIMB = (0.0, 0.0, 0.0, 5.0, 15.0, 30.0, 60.0)  # seconds before the n-th correction of an object that somebody keeps changing
CALM_SECONDS = 120.0  # after which an object counts as left alone


class Item(Struct, frozen=True):
    """One object as it is applied."""

    key: Key
    version: str  # apiVersion
    component: str
    order: int
    body: Object  # without the mark
    mark: str


class Step(Struct, frozen=True):
    item: Item
    action: Action
    seen: Seen | None = None


class Plan(Struct, frozen=True):
    steps: list[Step]  # in order; those of one order do not depend on each other
    prune: list[Key]
    foreign: list[tuple[Item, Seen]]  # wanted, but another application's
    settled: dict[Key, Settled]  # what was found as it should be, and not known to be so before
    over: list[Item]  # not there because they have run


def complete(made: Rendered, group: str, namespaced: bool, namespace: str, part_of: str) -> Item:
    """With its namespace and its ApplySet, and without what no one can apply: server-set metadata, a status, write-only fields."""
    meta = {key: value for key, value in made.object["metadata"].items() if key not in _SERVERS}
    meta.pop("namespace", None)
    place = str(made.object["metadata"].get("namespace") or namespace) if namespaced else ""
    if place:
        meta["namespace"] = place
    meta["labels"] = {**meta.get("labels", {}), names.PART_OF: part_of}
    body = {key: value for key, value in made.object.items() if key != "status"} | {"metadata": meta}
    kind = str(body["kind"])
    if kind == "Secret" and isinstance(body.get("stringData"), Mapping) and not group:
        plain = body.pop("stringData")
        body["data"] = {**(body.get("data") or {}), **{key: base64.b64encode(str(value).encode()).decode() for key, value in plain.items()}}
    key = Key(group, kind, place, str(meta["name"]))
    return Item(key, str(body["apiVersion"]), made.component, made.order, body, fields.hash_of(body))


_SERVERS = frozenset(
    {
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)


def twins(items: Iterable[Item]) -> dict[str, str]:
    """Component → why: it brings an object that has been brought before, by itself or by another one of the same application."""
    first: dict[Key, Item] = {}
    found: dict[str, str] = {}
    for item in items:
        before = first.setdefault(item.key, item)
        if before is not item:
            who = f"by component {before.component} too" if before.component != item.component else "twice"
            found[item.component] = f"{item.key} is brought {who}; leave one out"
    return found


def plan(  # noqa: PLR0917  all that is known of one Work
    uid: str,
    items: Sequence[Item],
    seen: Mapping[Key, Seen],
    settled: Mapping[Key, Settled],
    unsure: Collection[str] = (),
    ran: Mapping[Key, str] | None = None,
) -> Plan:
    """``seen``: every object with our label that is in one of these places, or belongs to this Work. ``unsure``: components that
    could not be rendered; what they have stays. ``ran``: Jobs and the mark with which they have run already."""
    steps: list[Step] = []
    foreign: list[tuple[Item, Seen]] = []
    found: dict[Key, Settled] = {}
    over: list[Item] = []
    for item in sorted(items, key=lambda one: one.order):
        there = seen.get(item.key)
        if there is not None and there.application != uid:
            foreign.append((item, there))
            continue
        if there is None and (ran or {}).get(item.key) == item.mark:
            over.append(item)
            continue
        action = judge(item, there, settled.get(item.key))
        if action is not None:
            steps.append(Step(item, action, there))
        elif there is not None and item.key not in settled:
            found[item.key] = Settled(item.mark, there.digest)
    wanted = {item.key for item in items}
    stale = [key for key, there in seen.items() if there.application == uid and key not in wanted and there.component not in unsure]
    return Plan(steps, backwards(stale), foreign, found, over)


def judge(item: Item, there: Seen | None, settled: Settled | None) -> Action | None:
    """What this object needs; None: it is as we left it, and that is what is wanted."""
    if there is None:
        return "create"
    if there.deleting:
        return "wait"
    known = settled is not None and settled.mark == item.mark
    if there.applied != item.mark:
        return "correct" if known else "change"
    if settled is not None and known:
        return None if there.digest == settled.digest else "correct"
    return "correct" if fields.missing(there.fields, fields.stamped(item.body, item.mark)) else None


def backwards(keys: Iterable[Key]) -> list[Key]:
    """In the order in which they are deleted: what holds others last."""
    return sorted(keys, key=lambda key: (LAST.index(key.kind) + 1 if key.kind in LAST else 0, key))


def removal(seen: Mapping[Key, Seen]) -> list[Key]:
    """What may be deleted now, of what is left of a Work: kinds after their objects, namespaces after everything."""
    keys = backwards(seen)
    for last in (*LAST[::-1],):
        rest = [key for key in keys if key.kind != last]
        if rest and len(rest) < len(keys):
            keys = rest
    return [key for key in keys if not seen[key].deleting]


def held(seen: Mapping[Key, Seen]) -> dict[str, str]:
    """By component: what keeps the rest of a Work from going, for people. Empty while it is just under way."""
    found: dict[str, list[str]] = {}
    for key, there in sorted(seen.items()):
        if there.deleting and there.finalizers:
            found.setdefault(there.component, []).append(f"{key} waits for its finalizers {', '.join(there.finalizers)}")
    return {name: "; ".join(stuck[:3]) + (f" and {len(stuck) - 3} more" if len(stuck) > 3 else "") for name, stuck in found.items()}


class Contest(Struct, frozen=True):
    """How often lately an object had to be set right."""

    count: int = 0
    last: float = 0.0

    def next(self, now: float) -> "Contest | float":
        """Correct now, and this is the new count; or the seconds to wait."""
        if now - self.last > CALM_SECONDS:
            return Contest(1, now)
        pause = CLIMB[min(self.count, len(CLIMB) - 1)]
        if now - self.last < pause:
            return pause - (now - self.last)
        return Contest(self.count + 1, now)
