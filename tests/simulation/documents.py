"""What Applications are given besides themselves: ConfigMaps that change, overrides for some clusters, and an order of starts.

Held to: in the end every instance has the environment of the newest documents, with the overrides of its cluster; an Application that
depends on another does not start for the first time before that one was ready.
"""

import uuid
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec

from cluster_controller.store import Key, Tx
from cluster_controller.store.database import Batch
from tests.simulation.applications import NAMESPACE, quietly, spec
from tests.simulation.disk import Disk
from tests.simulation.families import Family, family
from tests.simulation.reach import awake
from tests.simulation.steps import Plan, Step
from tests.simulation.wishes import Wish
from tests.simulation.world import Place

PREFIX = "doc-"
OVERRIDDEN = "SIDE"


@family
class Documents(Family):
    name = "documents"
    steps = frozenset({"doc-create", "doc-write", "doc-override"})

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._values: dict[str, str] = {}  # ConfigMap → what its origin was told last
        self._started: set[str] = set()
        self._waited_for: list[Wish] = []

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        inner = sorted(set(plan.tree.values()) - {"", "root"})
        names = [f"{PREFIX}{each}" for each in range(2)]
        if number == 0:
            for name in names:
                origin = rng.choice(("root", rng.choice(inner)))
                args = {"name": name, "replicas": rng.randint(3, 10), "override": rng.choice(("", "a", "b"))}
                yield Step(begin + rng.uniform(0.0, 20.0), "doc-create", origin, args=args)
        for _ in range(rng.randint(1, 3)):
            args = {"name": rng.choice(names), "value": str(rng.randint(1, 10**6))}
            yield Step(begin + rng.uniform(30.0, length), "doc-write", "", args=args)
        if rng.random() < 0.5:
            args = {"name": rng.choice(names), "half": rng.choice("ab"), "value": f"v{rng.randint(1, 999)}"}
            yield Step(begin + rng.uniform(30.0, length), "doc-override", "", args=args)

    def do(self, step: Step) -> None:
        name = step.args["name"]
        if step.kind == "doc-create":
            place = self.world.places[step.place]
            if place.alive and name not in self.wishes.by_name:
                place.run(quietly(self._create, place, name, step.args["replicas"], step.args["override"]))
            return
        wish = self.wishes.by_name.get(name)
        if wish is None or not awake(wish.origin) or not wish.spec or not wish.sure:
            return
        if step.kind == "doc-write":
            wish.origin.run(quietly(self._write, wish, step.args["value"]))
        else:
            overrides = [_override(step.args["half"], step.args["value"])]
            wish.origin.run(quietly(self.wishes.change, name, {**wish.spec, "overrides": overrides}))

    async def _create(self, place: Place, name: str, replicas: int, half: str) -> None:
        """The ConfigMap, an Application with it, and one that waits for that."""
        await _put(place, name, "0")
        wanted = spec(replicas, cpu="100m")
        wanted["components"][0]["envFrom"] = [{"configMapRef": {"name": name}}]
        if half:
            wanted["overrides"] = [_override(half, "v0")]
        await self.wishes.create(place, name, wanted)
        self._waited_for.append(self.wishes.by_name[name])
        await self.wishes.create(place, f"after-{name}", {**spec(2, cpu="100m"), "dependsOn": [name]})

    async def _write(self, wish: Wish, value: str) -> None:
        self.wishes._touch(wish)
        wish.sure = True
        await _put(wish.origin, wish.name, value)

    def _mine(self) -> list[Wish]:
        return [wish for wish in self.wishes.by_uid.values() if wish.name.startswith(PREFIX) and not wish.deleted]

    def unhealed(self) -> Iterator[tuple[str, str]]:
        for wish in self._mine():
            controller = wish.origin.controller
            stored = controller.store.get(_key(wish.name)) if controller is not None and wish.origin.alive else None
            if stored is None:
                continue
            value = msgspec.json.decode(stored.document)["data"]["LEVEL"]
            for place in wish.origin.subtree():
                expected = {"LEVEL": value}
                for each in wish.spec.get("overrides", []):
                    if place.labels.get("half") == each["clusters"]["selector"]["matchLabels"]["half"]:
                        expected[OVERRIDDEN] = each["merge"]["env"][0]["value"]
                for instance in place.site.instances.get(wish.uid, {}).values():
                    given = {key: instance.env.get(key) for key in ("LEVEL", OVERRIDDEN) if key in instance.env}
                    if given != expected:
                        what = f"{wish.name}: {instance.id} on {place.name} has {given}, {expected} is wanted"
                        yield "each instance has the documents of its version", what

    def committed(self, disk: Disk, batch: Batch) -> None:
        """An order of starts is seen soonest at a commit: each start is reported."""
        for wish in self._waited_for:
            after = self.wishes.by_name.get(f"after-{wish.name}")
            if wish.uid in self._started or after is None or self.invariants.rewound:
                continue
            if any(place.site.ready(wish.uid) for place in wish.origin.subtree()):
                self._started.add(wish.uid)
            elif self.invariants.totals.get(after.uid, 0):
                self.invariants.violated("an order of starts is kept", f"{after.name} runs before {wish.name} was ever ready")
                self._started.add(wish.uid)


def _key(name: str) -> Key:
    return Key("own", "ConfigMap", NAMESPACE, name)


def _override(half: str, value: str) -> dict[str, Any]:
    return {
        "name": "side",
        "clusters": {"selector": {"matchLabels": {"half": half}}},
        "merge": {"env": [{"name": OVERRIDDEN, "value": value}]},
    }


async def _put(place: Place, name: str, value: str) -> None:
    def work(tx: Tx) -> None:
        there = tx.get(_key(name))
        uid = there.uid if there is not None else str(uuid.uuid4())
        meta = {"name": name, "namespace": NAMESPACE, "uid": uid}
        document = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"LEVEL": value}}
        tx.put(_key(name), msgspec.json.encode(document), uid=uid)

    assert place.controller is not None
    await place.controller.store.commit(work)
