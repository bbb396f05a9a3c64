"""One seed: a tree, what people do in it, what breaks in it, drawn before anything runs, so that steps can be left out.

An hour is a few rounds. In each, people write and faults strike as they come; then everything is mended, the tree is given time to
heal, and all invariants are checked in full.
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.identity.authority import Lifetimes
from cluster_controller.store import Tx
from cluster_controller.sync import conflicts
from cluster_controller.tree import records
from tests.simulation import applications
from tests.simulation.applications import quietly
from tests.simulation.faults import Faults
from tests.simulation.invariants import Invariants, Violation
from tests.simulation.playing import FAMILIES, extend
from tests.simulation.reach import awake
from tests.simulation.steps import ROUND_SECONDS, ROUNDS, Plan, Step
from tests.simulation.wishes import Wish, Wishes
from tests.simulation.world import Place, World

CALM_SHARE = 1 / 3  # the end of each round, in which nothing more happens
LOOK_SECONDS = 20.0
HEAL_STEPS = (45.0, 45.0, 60.0, 90.0)  # within these everything has healed
ON_ITS_WAY_SECONDS = 3.0  # of a report from a leaf to the root
SETTLE_SECONDS = 30.0  # after a start, before anything happens
CLUSTERS = 20
LARGE = 100  # clusters from which on the tree has four levels and more breaks
GC_THRESHOLD = (50_000, 20, 50)  # most of what is made here lives long: look for garbage less often


WEEK = {"rounds": 7, "round_seconds": 86_400.0, "heartbeat": 60.0, "certificate_days": 3.0}
"""A link of a metered site; certificates that expire in the middle of a cut; a round is a day."""


class Outcome(Struct):
    seed: int
    seconds: float
    violations: list[Violation]
    digest: str
    lines: int


def draw_tree(rng: Random, clusters: int = CLUSTERS) -> dict[str, str]:
    """A root, regions, and edges below them, on 3 or 4 levels."""
    tree = {"root": ""}
    regions = [f"region-{letter}" for letter in "abc"[: rng.randint(2, 3)]]
    tree |= dict.fromkeys(regions, "root")
    zones = {f"zone-{number}": rng.choice(regions) for number in range(rng.randint(0, 3))}
    tree |= zones
    above = [*regions, *zones]
    for number in range(clusters - len(tree)):
        tree[f"edge-{number}"] = above[number % len(above)] if number < 2 * len(above) else rng.choice(above)
    return tree


def draw_large_tree(clusters: int) -> dict[str, str]:
    """Four levels: a root, ten regions, nine zones in each, edges below them."""
    tree = {"root": ""} | {f"region-{number}": "root" for number in range(10)}
    zones = {f"zone-{number}": f"region-{number % 10}" for number in range(90)}
    tree |= zones
    return tree | {f"edge-{number}": f"zone-{number % 90}" for number in range(clusters - len(tree))}


WRITES = (("create", 4), ("change", 4), ("delete", 2))
FAULTS = (
    ("cut", 6), ("cut-one-way", 3), ("cut-region", 3), ("kill", 5), ("power", 4), ("freeze", 3), ("slow", 3), ("lossy", 3), ("flap", 2),
    ("shim-lost", 2), ("shim-slow", 2), ("instance-crash", 4), ("disk-full", 4), ("disk-lost", 2), ("clock", 2),
    ("blackout", 1), ("restart", 2), ("commit-crash", 6), ("restore", 2), ("cut-and-clock", 2),
    ("copy", 2), ("cordon", 2), ("policy", 2),
)  # fmt: skip


def draw_week(seed: int) -> Plan:
    """Seven days, in which some are cut off for days."""
    plan = draw(seed, rounds=int(WEEK["rounds"]), round_seconds=WEEK["round_seconds"])
    rng = Random(f"week {seed}")
    leaves = [name for name in plan.tree if name not in set(plan.tree.values())]
    inner = sorted(set(plan.tree.values()) - {"", "root"})
    cuts = [
        Step(WEEK["round_seconds"] * rng.uniform(0.0, 0.5), "cut-lasting", rng.choice(leaves), seconds=86_400.0 * rng.uniform(4.0, 5.5)),
        Step(WEEK["round_seconds"] * rng.uniform(0.0, 0.5), "cut-lasting", rng.choice(inner), seconds=86_400.0 * rng.uniform(2.0, 5.5)),
    ]
    steps = tuple(sorted((*plan.steps, *cuts), key=lambda step: step.at))
    return msgspec.structs.replace(plan, steps=steps, heartbeat=WEEK["heartbeat"], certificate_days=WEEK["certificate_days"])


def draw(seed: int, *, clusters: int = CLUSTERS, rounds: int = ROUNDS, round_seconds: float = ROUND_SECONDS) -> Plan:
    rng = Random(f"plan {seed}")
    large = clusters > LARGE
    tree = draw_large_tree(clusters) if large else draw_tree(rng, clusters)
    names: list[str] = []
    steps: list[Step] = []
    for number in range(rounds):
        begin = SETTLE_SECONDS + number * round_seconds
        length = round_seconds * (1.0 - CALM_SHARE)
        for _ in range(rng.randint(3, 12) + (6 if number == 0 else 0)):
            steps.append(_draw_write(rng, begin + rng.uniform(0.0, length), tree, names))
        if rng.random() < 0.3:
            parent = rng.choice(sorted(set(tree.values()) - {""}))
            steps.append(Step(begin + rng.uniform(0.0, length), "join", parent, args={"name": f"new-{number}"}))
        steps.extend(_draw_trials(rng, number, begin, length, tree, names))
        for _ in range(rng.randint(2, 9) * (5 if large else 1)):
            at = begin + rng.uniform(0.0, length)
            steps.append(_draw_fault(rng, at, tree))
    steps.sort(key=lambda step: step.at)
    return Plan(seed=seed, tree=tree, steps=tuple(steps), rounds=rounds, round_seconds=round_seconds)


def _draw_trials(rng: Random, number: int, begin: float, length: float, tree: dict[str, str], names: list[str]) -> list[Step]:
    """What chance alone would bring about too seldom: several things at once, or one for long enough."""
    found: list[Step] = []
    inner = sorted(set(tree.values()) - {"", "root"})
    leaves = sorted(set(tree) - set(tree.values()))
    if number == 0:  # somebody always has something that is replaced
        names.append(f"app-{len(names)}")
        unreachable = {"action": "Replace", "afterSeconds": rng.choice((5, 10))}
        spec = applications.spec(rng.randint(5, 12), cpu="100m", on_unreachable=unreachable)
        found.append(Step(begin + 1.0, "create", rng.choice(("root", *inner)), args={"name": names[-1], "spec": spec}))
    trial = rng.choice(("silence", "silence", "full disk", "full disk", "backup", "backup"))
    if trial == "silence":
        kind = rng.choice(("power", "kill", "cut"))
        seconds = rng.uniform(0.3, 0.45) * length
        at = begin + rng.uniform(0.1, 0.5) * length
        found.append(Step(at, kind, rng.choice((rng.choice(leaves), rng.choice(inner))), seconds))
    elif trial == "full disk":
        place, at = rng.choice(("root", *inner)), begin + rng.uniform(0.1, 0.6) * length
        below = rng.choice([name for name, parent in tree.items() if parent == place])
        found.append(Step(at, "disk-full", place, rng.uniform(40.0, 80.0)))
        found.append(Step(at + rng.uniform(1.0, 30.0), rng.choice(("cut", "kill", "instance-crash")), below, 120.0))
        found.append(_draw_write(rng, at - 0.5, tree, names))
    elif number > 0:
        at = begin + rng.uniform(0.4, 0.9) * length
        found.append(Step(at, "restore", rng.choice(inner), rng.uniform(2.0, 20.0)))
    return found


def _draw_write(rng: Random, at: float, tree: dict[str, str], names: list[str]) -> Step:
    kind = _weighted(rng, WRITES) if names else "create"
    if kind == "create":
        origins = ["root", "root", *(name for name in tree if name.startswith(("region", "zone"))), rng.choice(list(tree))]
        name = f"app-{len(names)}"
        names.append(name)
        strategy = "Duplicated" if rng.random() < 0.2 else "Divided"
        replicas = rng.randint(1, 2) if strategy == "Duplicated" else rng.randint(1, 12)
        replace = strategy == "Divided" and rng.random() < 0.3
        unreachable = {"action": "Replace", "afterSeconds": rng.choice((5, 10, 60))} if replace else {"action": "Keep"}
        spec = applications.spec(replicas, strategy=strategy, cpu="100m", on_unreachable=unreachable)
        return Step(at, kind, rng.choice(origins), args={"name": name, "spec": spec})
    name = rng.choice(names)
    args: dict[str, Any] = {"name": name}
    if kind == "change":
        args |= rng.choice(
            (
                {"replicas": rng.randint(0, 12)},
                {"replicas": rng.randint(0, 12)},
                {"command": f"serve-{rng.randint(2, 99)}"},
                _draw_move(rng),
                _draw_move(rng),
            )
        )
    return Step(at, kind, "", args=args)


def _draw_move(rng: Random) -> dict[str, Any]:
    """To another half; often while one of the sites that it leaves is slow, or is cut off."""
    fault = rng.choice(("", "shim-slow", "cut", "slow"))
    return {"half": rng.choice(("a", "b")), "fault": fault, "site": rng.random(), "seconds": rng.uniform(10.0, 60.0)}


def _draw_fault(rng: Random, at: float, tree: dict[str, str]) -> Step:
    kind = _weighted(rng, FAULTS)
    place = rng.choice(list(tree))
    seconds = rng.choice((rng.uniform(0.5, 5.0), rng.uniform(5.0, 30.0), rng.uniform(30.0, 240.0)))
    args: dict[str, Any] = {}
    if kind.startswith("disk-") and rng.random() < 0.5:
        place = rng.choice(sorted(set(tree.values()) - {""}))  # where most is written
    if kind in {"cut", "cut-one-way", "flap"}:
        place = rng.choice([name for name, parent in tree.items() if parent])
        args = {"up": rng.random() < 0.5}
    elif kind in {"cut-region", "restore"}:
        inner = set(tree.values()) - {"", "root"}
        place = rng.choice(sorted(inner))
    elif kind == "slow":
        args = {"bandwidth": rng.choice((8e3, 64e3, 1e6)), "delay": rng.choice((0.05, 0.3, 1.0))}
    elif kind == "lossy":
        args = {"loss": rng.choice((0.01, 0.1, 0.3)), "jitter": rng.choice((0.0, 0.2))}
    elif kind in {"copy", "policy"}:
        place = rng.choice(sorted(set(tree) - set(tree.values())))
        args = {"replicas": rng.randint(0, 3)} if kind == "policy" else {}
    elif kind == "cut-and-clock":
        place = rng.choice([name for name, parent in tree.items() if parent])
        args = {"offset": rng.choice((-3600.0, -300.0, 300.0, 365 * 86400.0))}
    elif kind == "clock":
        args = {"offset": rng.choice((-365 * 86400.0, -3600.0, -30.0, 30.0, 3600.0, 365 * 86400.0))}
    elif kind == "disk-lost":
        args = {"taken": rng.random() < 0.5}
    elif kind == "commit-crash":
        args = {"writes": rng.randint(1, 4), "taken": rng.random() < 0.5}
    elif kind == "blackout":
        args = {"order": rng.random()}
    return Step(at, kind, place, seconds, args)


def _weighted(rng: Random, weights: tuple[tuple[str, int], ...]) -> str:
    return rng.choices([name for name, _ in weights], [weight for _, weight in weights])[0]


class Run:
    """Carries a plan out."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan = plan
        self.world = world
        self.wishes = Wishes()
        self._began = 0.0
        self._set_back = False  # was anything ever restored from a backup?
        self._slower = plan.heartbeat / 5.0  # than with the usual heartbeat: what depends on it takes so much longer
        self._places: list[Place] = []
        self._plant()
        self.invariants = Invariants(world, self.wishes)
        self.faults = Faults(world, self.invariants)
        self.families = [FAMILIES[name](self) for name in plan.families]
        self.invariants.also += [each.committed for each in self.families]
        self.invariants.rereads += [each.reread for each in self.families]

    def _plant(self) -> None:
        world, inner = self.world, set(self.plan.tree.values())
        for name, parent in self.plan.tree.items():
            place = world.grow(name, world.places[parent], takes_children=name in inner) if parent else world.plant(name)
            self._places.append(place)

    def run(self) -> Outcome:
        world = self.world
        began = self._began = world.loop.time()
        for place in self._places:
            place.start()
        steps = list(self.plan.steps)
        for number in range(self.plan.rounds):
            end = began + SETTLE_SECONDS + (number + 1) * self.plan.round_seconds
            while steps and began + steps[0].at < end - self._slower * sum(HEAL_STEPS):
                step = steps.pop(0)
                self._pass(began + step.at)
                self._do(step)
            self.invariants.thorough = number == self.plan.rounds - 1
            self._quiet(end)
            if self.invariants.violations:
                break  # what follows would be consequences
        return Outcome(self.plan.seed, world.loop.time() - began, self.invariants.violations, world.history.digest, world.history.lines)

    def _pass(self, until: float) -> None:
        """Let time pass, looking now and then."""
        loop = self.world.loop
        while loop.time() < until:
            loop.run_to(min(until, loop.time() + LOOK_SECONDS * self._slower**2))
            self.invariants.look()
            for each in self.families:
                each.look()
            if self._set_back and not self.invariants.rewound:
                self._decide_conflicts()  # a parent that forgot may ask for more of what it does not know of, long after

    def _quiet(self, end: float) -> None:
        """Mend everything, wait until it has healed, and check."""
        self.faults.mend_all(lasting=end - self._began >= self.plan.rounds * self.plan.round_seconds)
        if self.faults.lasting:
            self._pass(end)  # nothing can be quite as it should be before those have ended
            return
        self.world.note("-", "mended")
        for each in self.families:
            each.mending = True
        wrong: list[tuple[str, str]] = []
        for seconds in HEAL_STEPS:
            self._pass(self.world.loop.time() + seconds * self._slower)
            if all(place.alive for place in self.world.places.values()):
                self.wishes.ask_again()
                self._decide_conflicts()
                self._decide_held()
            wrong = self._wrong()
            if not wrong:
                break
        if wrong:  # clusters go on measuring the way to their parent: what is on its way up just now has arrived a moment later
            self._pass(self.world.loop.time() + ON_ITS_WAY_SECONDS)
            wrong = self._wrong()
        for invariant, what in wrong:
            self.invariants.violated(invariant, what)
        for each in self.families:
            each.mending = False
            each.quiet()
        self.invariants.quiet()
        for place in self.world.places.values():
            place.backup = place.disk.copy()
        self.world.note("-", f"quiet {len(wrong)}")
        self._pass(end)

    def _wrong(self) -> list[tuple[str, str]]:
        return [*self.invariants.unhealed(), *(what for each in self.families for what in each.unhealed())]

    def _decide_conflicts(self) -> None:
        """A person looks at what a restored parent would change, and lets it."""
        for place in self.world.places.values():
            if place.controller is not None and awake(place) and (waiting := conflicts.undecided(place.controller.store, "desired")):
                kinds = sorted({key.kind for key, _ in waiting})
                self.world.note(place.name, f"decides {len(waiting)} conflicts")
                self.wishes.decided()
                place.run(quietly(place.controller.store.commit, functools.partial(_keep_root, kinds=kinds)))

    def _decide_held(self) -> None:
        """A person keeps the instance that is no copy, once the copies are switched off."""
        for place in self.world.places.values():
            if place.controller is None or not awake(place):
                continue
            for member in records.members(place.controller.store).values():
                child = self.world.by_uid.get(member.uid)
                if member.held and child is not None and child.controller is not None and awake(child):
                    self.world.note(place.name, f"keeps {child.name}")
                    place.run(quietly(place.controller.membership.keep_cluster, member.name, child.controller.membership.child.instance))

    # --- steps ---

    def _do(self, step: Step) -> None:
        self.world.note("-", f"step {step.kind} {step.place} {step.seconds:.3f}")
        writes: dict[str, Callable[[Step], None]] = {
            "create": self._create,
            "change": self._change,
            "delete": self._delete,
            "join": self._join,
        }
        family = next((each for each in self.families if step.kind in each.steps), None)
        if step.kind in writes:
            writes[step.kind](step)
        elif family is not None:
            family.do(step)
        else:
            self.faults.strike(step.kind, self.world.places[step.place], step.seconds, step.args)
            self._set_back = self._set_back or bool(self.invariants.rewound)

    def _join(self, step: Step) -> None:
        """A cluster that was not there before."""
        place = self.world.grow(step.args["name"], self.world.places[step.place], takes_children=False)
        self._places.append(place)
        self.invariants.watch(place)
        self.wishes.grown(place)
        place.start()
        self.invariants.sample()

    def _create(self, step: Step) -> None:
        place = self.world.places[step.place]
        if place.alive:
            place.run(quietly(self.wishes.create, place, step.args["name"], step.args["spec"]))

    def _change(self, step: Step) -> None:
        wish = self.wishes.by_name.get(step.args["name"])
        if wish is None or not wish.origin.alive or not wish.spec:
            return
        component = dict(wish.spec["components"][0])
        if "replicas" in step.args:
            component["replicas"] = step.args["replicas"] if wish.divided else min(2, step.args["replicas"])
        elif "command" in step.args:
            component["command"] = [step.args["command"]]
        spec = {**wish.spec, "components": [component]}
        if "half" in step.args:
            spec["placement"] = self._moved(wish, step.args["half"])
            self._disturb(wish, step.args)
        wish.origin.run(quietly(self.wishes.change, wish.name, spec))

    def _moved(self, wish: Wish, half: str) -> dict[str, Any]:
        """To the clusters of one half, or anywhere; where it is, when there are none or each shall run it."""
        placement = {key: value for key, value in wish.spec["placement"].items() if key != "clusterSelector"}
        if not wish.divided:
            return placement
        if half and any(each.labels.get("half") == half for each in wish.origin.subtree()):
            placement["clusterSelector"] = {"matchLabels": {"half": half}}
        return placement

    def _disturb(self, wish: Wish, args: dict[str, Any]) -> None:
        """Something happens to one of the sites where ``wish`` runs, in the midst of its move."""
        sites = [each for each in wish.origin.subtree() if each.parent is not None and each.site.running(wish.uid)]
        if not args["fault"] or not sites:
            return
        place = sites[int(args["site"] * len(sites))]
        more = {"bandwidth": 8e3, "delay": 1.0} if args["fault"] == "slow" else {}
        self.world.note("-", f"step {args['fault']} {place.name} {args['seconds']:.3f}")
        self.faults.strike(args["fault"], place, args["seconds"], more)

    def _delete(self, step: Step) -> None:
        wish = self.wishes.by_name.get(step.args["name"])
        if wish is not None and wish.origin.alive:
            wish.origin.run(quietly(self.wishes.delete, wish.name))


def _keep_root(tx: Tx, kinds: Sequence[str]) -> None:
    for kind in kinds:
        conflicts.resolve(tx, "desired", "root", kind=kind)


def draw_with(plan: Plan, families: tuple[str, ...]) -> Plan:
    """``plan`` with further kinds of steps."""
    return extend(plan, families, SETTLE_SECONDS, CALM_SHARE) if families else plan


def simulate(plan: Plan, trace: Path | None = None) -> Outcome:
    threshold = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLD)
    gc.collect()
    gc.freeze()  # what is there before it begins is not looked at again each time
    try:
        return _simulate(plan, trace)
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


def _simulate(plan: Plan, trace: Path | None) -> Outcome:
    lifetimes = Lifetimes(identity=timedelta(days=plan.certificate_days))
    with contextlib.ExitStack() as stack:
        for name in plan.families:
            stack.enter_context(FAMILIES[name].stage(plan.seed))
        world = stack.enter_context(World(plan.seed, trace=trace, heartbeat=plan.heartbeat, lifetimes=lifetimes))
        return Run(plan, world).run()
