"""Carry rollouts through settlings: read what every target says, ask `waves` and `depends`, remember, and write down what became of it.

What must outlive a restart (how far it is, the version before) is a fact of the store, written in the commit of the Works themselves, so
a crash forgets neither or both. An Application without ``rollout`` has no such fact and costs nothing here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from cluster_controller.events import Reason, record
from cluster_controller.resources import kinds
from cluster_controller.rollout import depends, history, waves
from cluster_controller.rollout.gates import Judged
from cluster_controller.rollout.revision import Order, Version, base_of, of_work, order, rolled_back, with_shares
from cluster_controller.store import Key, Store, Stored, Tx

GATE = "GateFailed"  # a measure of the rollout is beyond what is allowed
GATE_UNKNOWN = "GateUnknown"  # there was nothing to measure
MOST_LEVELS = 20
LEVEL_WORDS = 200  # characters of what one level says
CRASH_LOOP = "CrashLoopBackOff"  # as shims call it: it ended soon after each of its last starts
Shares = Mapping[str, Mapping[str, int]]  # target → component → replicas


class Task(Protocol):
    """What this controller was given: an `Allotment`."""

    @property
    def application(self) -> kinds.ApplicationReference: ...
    @property
    def components(self) -> list[kinds.Component]: ...
    @property
    def rollout(self) -> kinds.Rollout | None: ...
    @property
    def chain(self) -> list[kinds.Share]: ...
    @property
    def revision(self) -> str: ...
    @property
    def resume(self) -> str: ...
    @property
    def depends_on(self) -> list[str]: ...
    @property
    def links(self) -> list[kinds.WorkReference]: ...
    @property
    def overrides(self) -> list[kinds.Override]: ...
    @property
    def key(self) -> Key: ...


class Target(Protocol):
    """What one target was given, and what it last answered."""

    @property
    def work(self) -> kinds.WorkSpec | None: ...
    @property
    def status(self) -> kinds.WorkStatusStatus | None: ...


class Scene(NamedTuple):
    """What was decided and what is seen: all that one look looks at."""

    shares: Shares
    seen: Mapping[str, Target]
    waits: Mapping[str, Mapping[str, str]]

    def targets(self) -> list[str]:
        return sorted({*self.shares, *self.seen})

    def share(self, target: str) -> Mapping[str, int]:
        return self.shares.get(target, {})

    def work(self, target: str) -> kinds.WorkSpec | None:
        return self.seen[target].work if target in self.seen else None

    def status(self, target: str) -> kinds.WorkStatusStatus | None:
        return self.seen[target].status if target in self.seen else None


class Rolled(NamedTuple):
    """``orders``: what each target is told; targets that are not named are told the newest version. ``waits``: target → component → why
    its start waits. ``back``: the Application was just put back to the version before, so all of this is outdated."""

    orders: Mapping[str, Order] = {}
    waits: Mapping[str, Mapping[str, str]] = {}
    rollout: kinds.Rollout | None = None  # for those below
    status: kinds.RolloutStatus | None = None
    again: float | None = None
    back: bool = False


NOTHING = Rolled()


Gates = Callable[[str, str, Sequence[kinds.Gate], Sequence[str]], Judged]  # application, version, gates, components


def _no_metrics(application: str, revision: str, rules: Sequence[kinds.Gate], components: Sequence[str]) -> Judged:
    return Judged("Unknown", None, "this controller has no cluster of its own whose metrics it could read")


def _same_for_all(tx: Tx, revision: str, overrides: Sequence[kinds.Override], target: str) -> str:
    return revision


class Rolling:
    """``labels`` gives those of a target and of every cluster below it; ``name`` what people call it; ``revision`` what a target has
    when it has a version: overrides that do not concern it make no difference there."""

    def __init__(
        self,
        uid: str,
        *,
        silent: Callable[[], Mapping[str, str]],
        labels: Callable[[Tx, str], tuple[Mapping[str, str], ...]],
        name: Callable[[Tx, str], str],
        now: Callable[[], float],
        timestamp: Callable[[], str],
        revision: Callable[[Tx, str, Sequence[kinds.Override], str], str] = _same_for_all,
    ) -> None:
        self._revision = revision
        self.gates: Gates = _no_metrics
        self.ungated: Callable[[str], None] = lambda application: None  # nobody asks any more
        self._uid = uid
        self._silent = silent
        self._labels = labels
        self._name = name
        self._now = now
        self._timestamp = timestamp
        self._watches: dict[str, waves.Watch] = {}
        self._phases: dict[str, str] = {}  # application → phase of its rollout here

    def plan(self, tx: Tx, task: Task, shares: Shares, seen: Mapping[str, Target]) -> Rolled:
        """What the targets shall be told of ``shares``; the next state is written into the transaction."""
        scene = Scene(shares, seen, self.waiting(tx, task, shares, seen))
        if task.rollout is not None:
            return self._roll(tx, task, task.rollout, scene)
        self.forget(tx, task.application.uid)
        orders = {}
        for target, held in scene.waits.items():
            components = _held(with_shares(task.components, scene.share(target)), held)
            orders[target] = Order(revision=task.revision, components=components, references=[], overrides=task.overrides)
        return Rolled(orders, scene.waits)

    def phases(self) -> Counter[str]:
        """How many rollouts are in each phase, for /metrics."""
        return Counter(self._phases.values())

    def forget(self, tx: Tx, application: str) -> None:
        self._watches.pop(application, None)
        self._phases.pop(application, None)
        self.ungated(application)
        if tx.fact(_fact(application)) is not None:
            tx.set_fact(_fact(application), None)

    # --- waves ---

    def _roll(self, tx: Tx, task: Task, rollout: kinds.Rollout, scene: Scene) -> Rolled:
        application = task.application.uid
        members = list(self._members(tx, task, rollout, scene))
        before = state_of(tx, application)
        state = self._begun(task, before, members, scene)
        unconcerned = self._unconcerned(tx, state, members)
        members = [member for member in members if member.uid not in unconcerned]
        wanted = any(component.replicas for component in task.components) and (bool(members) or not unconcerned)
        same = before is not None and before.current.revision == state.current.revision
        watch = self._watches.get(application, waves.Watch()) if same else waves.Watch()
        step = waves.step(state, watch, rollout, members, resume=task.resume, now=self._now(), wanted=wanted)
        self._watches[application] = step.watch
        self._phases[application] = step.status.phase
        now = step.state
        if now != before:
            tx.set_fact(_fact(application), msgspec.json.encode(now))
        if not task.chain:
            self._tell(tx, task, before if same else None, step)
            if now.phase == "Failed" and rollout.rollback == "Automatic" and self._back(tx, task, now):
                return Rolled(back=True)
        due = step.due | unconcerned
        orders = {target: self._order(task, now, target, scene, due=target in due) for target in scene.targets()}
        status = msgspec.structs.replace(step.status, below=self._below(tx, scene))
        return Rolled(orders, scene.waits, step.passed_on, status, step.again)

    def _order(self, task: Task, state: waves.State, target: str, scene: Scene, *, due: bool) -> Order:
        share, extra = scene.share(target), self._extra(target, state)
        # Its replicas are those of now, not those of when the version was written.
        newest = msgspec.structs.replace(state.current, components=task.components, overrides=task.overrides)
        told = order(newest, state.stable, scene.work(target), due=due, shares=share, extra=extra)
        return msgspec.structs.replace(told, components=_held(told.components, scene.waits.get(target, {})))

    def _begun(self, task: Task, before: waves.State | None, members: list[waves.Member], scene: Scene) -> waves.State:
        """``before``, or the state in which a version begins that was not there."""
        newest = Version(revision=task.revision, components=task.components, references=task.links, overrides=task.overrides)
        if before is None or before.current.revision != task.revision:
            others = [member for member in members if member.revision not in {"", task.revision}]
            return waves.begin(before, newest, _former(others, scene), first=not others)
        if before.current.references != newest.references:
            return msgspec.structs.replace(before, current=msgspec.structs.replace(before.current, references=newest.references))
        return before

    def _gated(self, tx: Tx, task: Task, rollout: kinds.Rollout, work: kinds.WorkSpec | None) -> tuple[waves.Verdict, str, str]:
        """What the own cluster's metrics say of a version that is ready; asked only while it is on its way."""
        state = state_of(tx, task.application.uid)
        told = of_work(work)
        same = state is not None and state.current.revision == task.revision
        if work is None or told != self._revision(tx, task.revision, task.overrides, self._uid):
            return "done", "", ""  # of the version before: nobody asks how that does
        if same and state is not None and (state.phase == "Complete" or state.at_once):
            self.ungated(task.application.uid)
            return "done", "", ""
        if not same:
            return "judging", "", "its metrics are read next"
        judged = self.gates(task.application.uid, told, rollout.gates, [component.name for component in task.components])
        if judged.verdict == "Healthy":
            return "done", "", judged.message
        if judged.verdict == "Unhealthy":
            return "failed", GATE, judged.message
        return "judging", GATE_UNKNOWN if judged.verdict == "Unknown" else "", judged.message

    def _unconcerned(self, tx: Tx, state: waves.State, members: Sequence[waves.Member]) -> frozenset[str]:
        """Who has the same in this version as in the one before, since only overrides for others have changed: nobody waits for them."""
        now, before = state.current, state.stable
        if before is None or base_of(before.revision) != base_of(now.revision) or before.revision == now.revision:
            return frozenset()
        return frozenset(
            member.uid
            for member in members
            if self._revision(tx, now.revision, now.overrides, member.uid)
            == self._revision(tx, before.revision, before.overrides, member.uid)
        )

    def _members(self, tx: Tx, task: Task, rollout: kinds.Rollout, scene: Scene) -> Iterator[waves.Member]:
        silent = self._silent()
        labelled = any(wave.cluster_selector is not None for wave in rollout.waves)
        for target in scene.targets():
            work, status = scene.work(target), scene.status(target)
            runs = work is not None and any(component.replicas for component in work.components)
            if not runs and not any(scene.share(target).values()):
                continue
            verdict, reason, message = judge(work, status, own=target == self._uid)
            if target == self._uid and verdict == "done" and rollout.gates:
                verdict, reason, message = self._gated(tx, task, rollout, work)
            waits = scene.waits.get(target)
            if waits and verdict in {"done", "going"}:  # whom it waits for is judged where that runs
                verdict, message = "judging", "; ".join(f"{name} {why}" for name, why in waits.items())
            yield waves.Member(
                uid=target,
                name=self._name(tx, target),
                labels=self._labels(tx, target) if labelled else (),
                revision=self._has(tx, task, target, work) if runs else "",
                reachable=target not in silent,
                verdict=verdict,
                reason=reason,
                message=message,
                ready=sum(part.updated for part in status.components) if status is not None else 0,
            )

    def _has(self, tx: Tx, task: Task, target: str, work: kinds.WorkSpec | None) -> str:
        """The version of the whole that a target was told."""
        told = of_work(work)
        return task.revision if told == self._revision(tx, task.revision, task.overrides, target) else told

    def _below(self, tx: Tx, scene: Scene) -> list[kinds.RolloutLevel]:
        """What children that divide on say of their waves, those first that are least far."""
        found: list[kinds.RolloutLevel] = []
        for target in scene.targets():
            status = scene.status(target)
            told = status.rollout if status is not None else None
            if target == self._uid or told is None or told.revision != of_work(scene.work(target)):
                continue
            name = self._name(tx, target)
            found.append(
                kinds.RolloutLevel(
                    path=[name],
                    phase=told.phase,
                    wave=told.wave,
                    waves=told.waves,
                    updated=told.updated,
                    clusters=told.clusters,
                    message=told.message[:LEVEL_WORDS],
                )
            )
            found += [msgspec.structs.replace(level, path=[name, *level.path]) for level in told.below]
        found.sort(key=lambda level: (level.phase == "Complete", level.path))
        return found[:MOST_LEVELS]

    def _extra(self, target: str, state: waves.State) -> list[kinds.WorkReference]:
        """What those below a child still need of the version before, while its own waves are under way."""
        if target == self._uid or state.phase == "Complete" or state.at_once or state.stable is None:
            return []
        known = {(link.kind, link.uid) for link in state.current.references}
        named = {(link.kind, link.name) for link in state.current.references}
        return [link for link in state.stable.references if (link.kind, link.uid) not in known and (link.kind, link.name) not in named]

    # --- what became of it ---

    def _back(self, tx: Tx, task: Task, state: waves.State) -> bool:
        """Write the version before into the Application; the change of its spec begins the way back."""
        stored = tx.get(task.key)
        if stored is None or state.stable is None or state.stable.revision == state.current.revision:
            return False
        cause = f"rolled back: {state.message}"
        before = rolled_back(state.stable, task.components)
        history.put_back(tx, stored, before, state.stable.overrides, time=self._timestamp(), cause=cause)
        marked = msgspec.structs.replace(state, reason=waves.ROLLED_BACK, message=cause)
        tx.set_fact(_fact(task.application.uid), msgspec.json.encode(marked))
        self._event(tx, task, Reason.ROLLED_BACK, cause)
        return True

    def _tell(self, tx: Tx, task: Task, before: waves.State | None, step: waves.Step) -> None:
        """Events of the origin, where people look. ``before``: of the same version, if it is not new."""
        state = step.state
        if state.at_once and state.phase != "Failed":
            return  # the first version, or the way back: its readiness is told anyway
        if before is not None and (before.phase, before.wave) == (state.phase, state.wave):
            return
        if state.phase == "Failed":
            self._event(tx, task, Reason.ROLLOUT_FAILED, state.message)
        elif state.phase == "Complete":
            self._event(tx, task, Reason.ROLLOUT_COMPLETE, step.status.message)
        else:
            self._event(tx, task, Reason.ROLLOUT_WAVE, f"wave {step.status.wave} of {step.status.waves} begins")

    def _event(self, tx: Tx, task: Task, reason: Reason, message: str) -> None:
        application = task.application
        about = kinds.ObjectReference(
            api_version=kinds.API_VERSION, kind="Application", namespace=application.namespace, name=application.name, uid=application.uid
        )
        record(tx, about=about, reason=reason, message=message, component="rollout", timestamp=self._timestamp())

    # --- the order of starts ---

    def waiting(self, tx: Tx, task: Task, shares: Shares, seen: Mapping[str, Target]) -> Mapping[str, Mapping[str, str]]:
        """Target → component → why its start waits; nothing is written."""
        scene = Scene(shares, seen, {})
        outside = [] if task.chain else [why for name in task.depends_on if (why := _not_ready(tx, task.application.namespace, name))]
        if not outside and not any(component.depends_on for component in task.components):
            return {}
        silent = self._silent()
        picture = {
            target: {component.name: _given(component.name, target, scene, target not in silent) for component in task.components}
            for target in scene.targets()
        }
        return depends.waiting(task.components, picture, own=self._uid, outside=outside)


def state_of(view: Store | Tx, application: str) -> waves.State | None:
    """How far a rollout is, where there is one."""
    stored = view.fact(_fact(application))
    return msgspec.json.decode(stored, type=waves.State) if stored else None


def _fact(application: str) -> str:
    return f"rollout/{application}"


def _former(others: list[waves.Member], scene: Scene) -> Version | None:
    """The version that most of what runs is of, where nothing was kept of it."""
    found: dict[str, tuple[int, kinds.WorkSpec]] = {}
    for member in others:
        work = scene.work(member.uid)
        if work is not None:
            count, _ = found.get(member.revision, (0, work))
            found[member.revision] = count + sum(component.replicas for component in work.components), work
    if not found:
        return None
    revision, (_, work) = max(found.items(), key=lambda each: (each[1][0], each[0]))
    return Version(revision=revision, components=work.components, references=work.references)


def judge(work: kinds.WorkSpec | None, status: kinds.WorkStatusStatus | None, *, own: bool) -> tuple[waves.Verdict, str, str]:
    """How a target is at the version that it was told, by its answer to the newest share: older news may be of another version."""
    if work is None or status is None or status.seen < work.shares[-1].id:
        return "going", "", "has not answered yet"
    told = status.rollout
    if told is not None and not own and told.revision == of_work(work):
        verdicts: dict[str, waves.Verdict] = {"Complete": "done", "Failed": "failed", "Paused": "asking"}
        return verdicts.get(told.phase, "judging"), told.reason, told.message
    if work.unpatched:
        name, why = min(work.unpatched.items())
        return "failed", kinds.OVERRIDE_FAILED, f"{name}: {why}"
    parts = {part.name: part for part in status.components}
    going = ""
    for component in work.components:
        part = parts.get(component.name, kinds.ComponentStatus(name=component.name, desired=component.replicas))
        if part.reason == CRASH_LOOP:
            return "failed", part.reason, f"{component.name}: {part.message or part.reason}"
        wanted = part.desired - part.unplaced
        pinned = part.reason == kinds.PINNED
        if part.ready < wanted or (part.updated < wanted and not pinned):
            going = going or f"{component.name}: {part.updated} of {wanted} ready" + (f", {part.message}" if part.message else "")
    if going or status.version < work.shares[-1].id:
        return "going", "", going or "what is replaced has not ended yet"
    return "done", "", ""


def _given(component: str, target: str, scene: Scene, reachable: bool) -> depends.Given:
    work, status = scene.work(target), scene.status(target)
    share = scene.share(target).get(component, 0)
    told = next((each.replicas for each in work.components if each.name == component), 0) if work is not None else 0
    part = next((each for each in status.components if each.name == component), None) if status is not None else None
    if work is None or status is None or part is None or status.seen < work.shares[-1].id:
        return depends.Given(share=share, told=told, reachable=reachable)
    well = bool(told) and part.ready >= part.desired - part.unplaced
    return depends.Given(share=share, told=told, ready=part.ready, well=well, reachable=reachable)


def _held(components: list[kinds.Component], waits: Mapping[str, str]) -> list[kinds.Component]:
    """Nothing of what has to wait."""
    return [msgspec.structs.replace(component, replicas=0) if component.name in waits else component for component in components]


def _not_ready(tx: Tx, namespace: str, name: str) -> str:
    """Why an Application of the same namespace cannot be built on yet; "" when it can."""
    stored: Stored | None = tx.get(Key("own", "Application", namespace, name))
    if stored is None:
        return f"application {name}, which does not exist"
    document = msgspec.json.decode(stored.document, type=kinds.Application)
    status = document.status
    if status.observed_generation == document.metadata.generation and status.phase == "Running":
        return ""
    return f"application {name} ({status.ready} of {status.desired} ready)"
