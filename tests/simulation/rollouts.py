"""New versions on their way: in waves with pauses and gates, paused and let go on, undone; some never get well.

Held to: while a rollout is paused or has failed nobody further is told the version; one that never gets well stays within its first
wave, at every level; where that was asked for it is taken back by itself, to a version that somebody wrote; in the end every instance
is of the version that is wanted.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec

from cluster_controller.resources import kinds
from cluster_controller.resources.registry import ROLLOUT_RESUME
from cluster_controller.rollout.waves import State
from cluster_controller.store import Stored, Tx
from cluster_controller.store.database import Batch
from tests.simulation import applications, versions
from tests.simulation.applications import quietly
from tests.simulation.disk import Disk
from tests.simulation.families import Family, family
from tests.simulation.reach import awake
from tests.simulation.steps import Plan, Step
from tests.simulation.wishes import Wish
from tests.simulation.world import Place

PREFIX = "roll-"


@family
class Rollouts(Family):
    name = "rollouts"
    steps = frozenset({"roll-create", "roll-change", "roll-scale", "roll-pause", "roll-resume", "roll-undo"})

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._written: dict[str, list[list[Any]]] = {}  # application → the components of every version that a person wrote
        self._rollouts: dict[tuple[str, str], kinds.Rollout] = {}  # (place, application), as it is to be rolled out there
        self._told: dict[tuple[str, str], dict[str, str]] = {}  # (place, application) → target → command, of those that run some
        self._excused: set[tuple[str, str, str]] = set()  # (place, application, command) that went to everybody at once, rightly
        self._begun: dict[tuple[str, str], str] = {}  # (place, application) → the first command of all

    # --- the seed ---

    @staticmethod
    def draw(rng: Random, plan: Plan, begin: float, length: float, number: int) -> Iterator[Step]:
        names = [f"{PREFIX}{each}" for each in range(number + 2)]
        inner = sorted(set(plan.tree.values()) - {"", "root"})
        for name in names if number == 0 else names[-1:]:
            origin = rng.choice(("root", "root", rng.choice(inner)))
            yield Step(begin + rng.uniform(0.0, 20.0), "roll-create", origin, args={"name": name, "spec": _spec(rng)})
        for _ in range(rng.randint(2, 4)):
            at, name = begin + rng.uniform(30.0, length), rng.choice(names)
            word = rng.choice((*("serve-",) * 3, versions.NEVER, versions.CRASH, versions.BAD))
            yield Step(at, "roll-change", "", args={"name": name, "command": f"{word}{rng.randint(2, 9999)}"})
            follow = rng.random()
            if follow < 0.3:
                paused = at + rng.uniform(0.5, 15.0)
                yield Step(paused, "roll-pause", "", args={"name": name})
                yield Step(paused + rng.uniform(10.0, 90.0), "roll-resume", "", args={"name": name})
            elif follow < 0.45:
                yield Step(at + rng.uniform(1.0, 60.0), "roll-undo", "", args={"name": name})
        if rng.random() < 0.5:
            args = {"name": rng.choice(names), "replicas": rng.randint(1, 10)}
            yield Step(begin + rng.uniform(30.0, length), "roll-scale", "", args=args)

    # --- people ---

    def do(self, step: Step) -> None:
        if step.kind == "roll-create":
            place = self.world.places[step.place]
            if place.alive and step.args["name"] not in self.wishes.by_name:
                place.run(quietly(self._create, place, step.args["name"], step.args["spec"]))
            return
        wish = self.wishes.by_name.get(step.args["name"])
        if wish is None or not awake(wish.origin) or not wish.spec or wish.deleted:
            return
        self._reread(wish)
        if step.kind == "roll-change":
            component = {**wish.spec["components"][0], "command": [step.args["command"]]}
            self._write(wish, {**wish.spec, "components": [component]})
        elif step.kind == "roll-scale":
            component = {**wish.spec["components"][0], "replicas": step.args["replicas"] if wish.divided else 1}
            self._write(wish, {**wish.spec, "components": [component]})
        elif step.kind == "roll-pause":
            self._write(wish, {**wish.spec, "rollout": {**wish.spec["rollout"], "paused": True}})
        elif step.kind == "roll-resume":
            self._resume(wish)
        else:
            self._undo(wish)

    async def _create(self, place: Place, name: str, spec: dict[str, Any]) -> None:
        await self.wishes.create(place, name, spec)
        self._written[self.wishes.by_name[name].uid] = [spec["components"]]

    def _write(self, wish: Wish, spec: dict[str, Any]) -> None:
        if wish.sure and spec != wish.spec:
            self._written.setdefault(wish.uid, []).append(spec["components"])
            wish.origin.run(quietly(self.wishes.change, wish.name, spec))

    def _resume(self, wish: Wish) -> None:
        wish.origin.run(quietly(self._go_on, wish))

    async def _go_on(self, wish: Wish) -> None:
        """`banyan rollout resume`: one write of both."""
        rollout = {key: value for key, value in wish.spec["rollout"].items() if key != "paused"}
        await self.wishes.change(wish.name, {**wish.spec, "rollout": rollout})
        value = f"{self.world.loop.time():.6f}"

        def work(tx: Tx) -> None:
            stored = tx.get(applications.key(wish.name))
            if stored is not None:
                document = msgspec.json.decode(stored.document)
                document["metadata"].setdefault("annotations", {})[ROLLOUT_RESUME] = value
                tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

        if wish.origin.controller is not None:
            await wish.origin.controller.store.commit(work)

    def _undo(self, wish: Wish) -> None:
        """To the last version that can be well, with the replicas of now."""
        now = wish.spec["components"][0]
        for components in reversed(self._written.get(wish.uid, [])):
            spec = {**wish.spec, "components": [{**components[0], "replicas": now.get("replicas", 1)}]}
            if components[0]["command"] != now["command"] and not versions.broken(spec):
                self._write(wish, spec)
                return

    def _mine(self) -> list[Wish]:
        return [wish for wish in self.wishes.by_uid.values() if wish.name.startswith(PREFIX) and not wish.deleted]

    def _reread(self, wish: Wish) -> None:
        """A controller may have put it back by itself: that is what is wanted then."""
        stored = self._stored(wish)
        if stored is None or not wish.sure:
            return
        spec = msgspec.json.decode(stored.document)["spec"]
        if spec["components"] == wish.spec["components"]:
            return
        command = spec["components"][0]["command"]
        if not wish.touched or all(command != components[0]["command"] for components in self._written.get(wish.uid, [])):
            self.invariants.violated("a rollback goes to what somebody wrote", f"{wish.name} became {command}")
        wish.spec = spec

    def _stored(self, wish: Wish) -> Stored | None:
        controller = wish.origin.controller
        return controller.store.find("own", "Application", wish.uid) if controller is not None and awake(wish.origin) else None

    def look(self) -> None:
        for wish in self._mine():
            self._reread(wish)
            if self.mending:
                self._set_right(wish)

    def _set_right(self, wish: Wish) -> None:
        """Nobody leaves a rollout as it stands: what waits goes on, what can never be well is undone."""
        stored = self._stored(wish)
        if stored is None or not wish.sure:
            return
        status = msgspec.json.decode(stored.document, type=kinds.Application).status.rollout
        phase = status.phase if status is not None else ""
        by_itself = wish.spec["rollout"].get("rollback") == "Automatic"
        if phase == "Paused":
            self._resume(wish)
        elif versions.broken(wish.spec):
            if phase == "Complete" or (phase == "Failed" and not by_itself):
                self._undo(wish)
        elif phase == "Failed" or (status is not None and any(level.phase == "Failed" for level in status.below)):
            self._resume(wish)  # a level may fail after the whole was complete: it was set back, and waited for a person too long

    # --- at every commit ---

    def committed(self, disk: Disk, batch: Batch) -> None:
        for event in batch.events:
            stored, space = event.stored, event.stored.key.space
            gone = event.kind_of == "delete"
            if stored.key.kind == "Application" and space == "own" and not gone:
                self._note_rollout(disk, stored.uid, msgspec.json.decode(stored.document, type=kinds.Application).spec.rollout)
            elif stored.key.kind != "Work":
                continue
            elif space == "desired" and not gone:
                spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
                self._note_rollout(disk, stored.key.name, spec.rollout)
                if not any(each.replicas for each in spec.components):  # nothing is there to be proven by
                    self._excused.add((disk.name, stored.key.name, _command(spec)))
            elif (space == "local" or space.startswith("down/")) and (disk.name, stored.key.name) in self._rollouts:
                self._given(disk, stored, gone=gone)

    def reread(self, disk: Disk) -> None:
        """What its controller believes that it told, and under which rules, is what stands on the disk now."""
        for known in [key for key in self._told if key[0] == disk.name]:
            del self._told[known]
        for stored in disk.live().values():
            space = stored.key.space
            if stored.key.kind == "Application" and space == "own":
                self._note_rollout(disk, stored.uid, msgspec.json.decode(stored.document, type=kinds.Application).spec.rollout)
            elif stored.key.kind == "Work" and space == "desired":
                self._note_rollout(disk, stored.key.name, msgspec.json.decode(stored.document, type=kinds.Work).spec.rollout)
            elif stored.key.kind == "Work" and (space == "local" or space.startswith("down/")):
                spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
                if any(each.replicas for each in spec.components):
                    self._told.setdefault((disk.name, stored.key.name), {})[space] = _command(spec)

    def _note_rollout(self, disk: Disk, uid: str, rollout: kinds.Rollout | None) -> None:
        if rollout is not None:
            self._rollouts[disk.name, uid] = rollout

    def _given(self, disk: Disk, stored: Stored, *, gone: bool) -> None:
        uid, target = stored.key.name, stored.key.space
        told = self._told.setdefault((disk.name, uid), {})
        spec = msgspec.json.decode(stored.document, type=kinds.Work).spec
        if gone or not any(each.replicas for each in spec.components):
            told.pop(target, None)
            return
        command, had = _command(spec), told.get(target)
        told[target] = command
        self._begun.setdefault((disk.name, uid), command)
        if had is None or had == command or disk.name in self.invariants.rewound:
            return
        state, rollout = _state(disk, uid), self._rollouts[disk.name, uid]
        if state is None:
            return
        new = command != _stable(state)
        if new and (rollout.paused or state.phase == "Failed"):
            why = "paused" if rollout.paused else "failed"
            self.invariants.violated("nobody further is told", f"{disk.name} tells {target} {command} of {uid} while that is {why}")
        self._within_its_wave(disk, uid, command, told, rollout)

    def _within_its_wave(self, disk: Disk, uid: str, command: str, told: dict[str, str], rollout: kinds.Rollout) -> None:
        """What can never be well is told to the first wave only."""
        wish = self.wishes.by_uid.get(uid)
        if wish is None or not versions.broken({"components": [{"command": [command]}], "rollout": wish.spec.get("rollout")}):
            return
        if self._begun[disk.name, uid] == command or (disk.name, uid, command) in self._excused:
            return
        first = rollout.waves[0] if rollout.waves else kinds.Wave(count=rollout.wave)
        size = first.count or len(told) + 1
        with_it = sorted(name for name, each in told.items() if each == command)
        if len(with_it) > size:
            self.invariants.violated("what is not well stays in its wave", f"{disk.name} tells {command} of {uid} to {with_it}")

    # --- at quiet points ---

    def unhealed(self) -> Iterator[tuple[str, str]]:
        """Every instance is of the version that is wanted, and nothing is that can never be well."""
        for wish in self._mine():
            command = wish.spec["components"][0]["command"][0]
            if versions.broken(wish.spec):
                yield "the wanted version runs", f"{wish.name} is still {command}"
            for place in wish.origin.subtree():
                others = sorted({each.command for each in place.site.instances.get(wish.uid, {}).values()} - {command})
                if others:
                    yield "the wanted version runs", f"{wish.name}: {place.name} runs {others}, {command} is wanted"


def _spec(rng: Random) -> dict[str, Any]:
    strategy = "Duplicated" if rng.random() < 0.2 else "Divided"
    replicas = 1 if strategy == "Duplicated" else rng.randint(2, 10)
    replace = strategy == "Divided" and rng.random() < 0.2
    unreachable = {"action": "Replace", "afterSeconds": 10} if replace else {"action": "Keep"}
    spec = applications.spec(replicas, command="serve-1", strategy=strategy, cpu="100m", on_unreachable=unreachable)
    rollout: dict[str, Any] = {"pauseSeconds": rng.randint(0, 3), "progressDeadlineSeconds": rng.choice((30, 45))}
    if rng.random() < 0.5:
        rollout["wave"] = rng.randint(1, 3)
    else:
        rollout["waves"] = [{"count": 1, "manual": rng.random() < 0.2}, {"percent": 50}]
    if rng.random() < 0.6:
        rollout["rollback"] = "Automatic"
    if rng.random() < 0.4:
        rollout["gates"] = [versions.GATE]
    return {**spec, "rollout": rollout}


def _state(disk: Disk, uid: str) -> State | None:
    fact = disk.facts.get(f"rollout/{uid}")
    return msgspec.json.decode(fact, type=State) if fact else None


def _stable(state: State) -> str:
    return state.stable.components[0].command[0] if state.stable is not None and state.stable.components[0].command else ""


def _command(spec: kinds.WorkSpec) -> str:
    return spec.components[0].command[0] if spec.components and spec.components[0].command else ""
