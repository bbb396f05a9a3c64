"""Decide, at one level of the tree, which targets get a new version now, and whether it is well there. Pure.

Level-triggered: `step` looks at what every target was told and says, and at the small `State` that outlives a restart. Applied twice it
changes nothing the second time, so a crash between two steps costs a repeat.

Invariants: while a rollout is paused or has failed nobody further is told the new version; the next wave begins only when everybody in
reach of all waves so far is well at this version at that moment, and somebody is; whoever is out of reach is not waited for (longer than a
link needs to return, where nobody else has shown how the version is), and keeps what it has. The first version of all, and the return to
the last one that was complete, go to everybody at once, in reach or not; and who has nothing yet is told what is complete. For what is
below a child that is away may be heard and served by way of adopters, and then holds a part of what is wanted: kept back, that part would
run nowhere.

Times are this machine's boot-time clock. A pause that began before a restart counts on: after a reboot "now" alone is a lower bound of
what has gone by. Since when nothing has moved is kept in memory only, so that a controller that was away gives others their time again.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from cluster_controller.resources.kinds import Rollout, RolloutStatus, Wave
from cluster_controller.resources.selectors import from_struct
from cluster_controller.rollout.revision import Version

NAMED = 20  # clusters that a status lists
SPOKEN = 5  # clusters in one sentence
WORDS = 400  # characters of what one cluster says; each level quotes those below it
MESSAGE = 1024  # characters
ROLLED_BACK = "RolledBack"
LATE = "ProgressDeadlineExceeded"
TOLD = "told"
RETURN_SECONDS = 30.0  # a link that is well is up again after 10 s; a machine that restarts takes longer

# going: not well yet, its time runs; judging: a controller judges its own waves, or it waits for others to start first;
# asking: it waits for a person.
Verdict = Literal["going", "judging", "asking", "done", "failed"]
Phase = Literal["Progressing", "Complete", "Failed"]


class Member(Struct, frozen=True, kw_only=True):
    """A direct child, or the own cluster, that has a share. ``verdict`` says how it is at the version that it was told."""

    uid: str
    name: str
    labels: tuple[Mapping[str, str], ...] = ()  # of it, and of every cluster below it
    revision: str = ""
    reachable: bool = True
    verdict: Verdict = "going"
    reason: str = ""
    message: str = ""
    ready: int = 0  # replicas of the version that it was told: more than ever before is progress


class State(Struct, frozen=True, kw_only=True):
    """``stable`` is the last version that was complete, or the one before this. ``asked``: what `resume` was when a person was asked."""

    current: Version
    stable: Version | None = None
    wave: int = 0
    phase: Phase = "Progressing"
    at_once: bool = False
    patient: bool = False  # a person said to go on after a failure: only time ends it again
    healthy_since: float | None = None
    asked: str | None = None
    reason: str = ""
    message: str = ""


class Watch(Struct, frozen=True):
    """Since when nothing has come forward: the same are not well yet, and no more replicas are ready than at best."""

    seen: tuple[object, ...] = ()
    best: int = 0
    since: float = 0.0


class Step(Struct, frozen=True, kw_only=True):
    """``passed_on`` is what children do with it. ``again``: seconds until this must be looked at, None: when something changes."""

    state: State
    watch: Watch
    due: frozenset[str]
    status: RolloutStatus
    passed_on: Rollout
    again: float | None = None


def assign(rollout: Rollout, members: Sequence[Member], revision: str) -> list[list[Member]]:
    """Who belongs to which wave: who has the version already comes first, then who is in reach, so that nobody changes waves midway."""
    left = sorted(members, key=lambda member: (member.revision != revision, not member.reachable, member.name, member.uid))
    waves: list[list[Member]] = []
    for wave in rollout.waves:
        chosen = _chosen(wave, left, len(members))
        waves.append(chosen)
        left = [member for member in left if member not in chosen]
    size = rollout.wave or len(left)
    waves += [left[start : start + size] for start in range(0, len(left), size or 1)]
    return waves or [[]]


def _chosen(wave: Wave, left: Sequence[Member], total: int) -> list[Member]:
    if wave.cluster_selector is not None:
        selector = from_struct(wave.cluster_selector)
        return [member for member in left if any(selector.matches(labels) for labels in member.labels)]
    return list(left[: wave.count or -(-total * wave.percent // 100)])


def begin(state: State | None, newest: Version, former: Version | None, *, first: bool) -> State:
    """A version that was not there before. ``former`` is what runs, where nothing was kept of it; ``first``: nothing runs."""
    if state is None:
        return State(current=newest, stable=former, at_once=first)
    if state.stable is not None and newest.revision == state.stable.revision:
        back = state.reason == ROLLED_BACK
        return State(
            current=newest, stable=state.stable, at_once=True, reason=state.reason if back else "", message=state.message if back else ""
        )
    good = state.phase == "Complete" or state.stable is None
    return State(current=newest, stable=state.current if good else state.stable, at_once=first)


def step(state: State, watch: Watch, rollout: Rollout, members: Sequence[Member], *, resume: str, now: float, wanted: bool) -> Step:
    """One look. ``wanted``: replicas are asked for, so that nobody having any is no success."""
    plan = msgspec.structs.replace(rollout, waves=[], wave=0, pause_seconds=0, gates=[]) if state.at_once else rollout
    waves = assign(plan, members, state.current.revision)
    asked = state.asked
    if state.phase == "Failed" and resume != asked:
        state = msgspec.structs.replace(state, phase="Progressing", patient=True, asked=None, reason="", message="")
        watch = Watch()
    again: float | None = None
    if state.phase == "Progressing" and not rollout.paused:
        state, watch, again = _progress(state, watch, _Look(plan=plan, waves=waves, resume=resume, now=now, wanted=wanted))
    if rollout.paused:
        watch = Watch()  # time that a person took is nobody's delay
    return Step(
        state=state,
        watch=watch,
        due=_due(state, rollout, waves),
        status=_status(state, plan, waves),
        passed_on=plan,
        again=again,
    )


class _Look(Struct, frozen=True, kw_only=True):
    plan: Rollout
    waves: Sequence[Sequence[Member]]
    resume: str
    now: float
    wanted: bool


def _progress(state: State, watch: Watch, look: _Look) -> tuple[State, Watch, float | None]:
    """Through as many waves as are well; each loop is one wave further, so it ends."""
    waves = look.waves
    while True:
        index = min(state.wave, len(waves) - 1)
        concerned = [member for wave in waves[: index + 1] for member in wave if member.reachable]
        undone = [member for member in concerned if not _done(member, state)]
        failed = next((member for member in undone if _failed(member, state)), None)
        if failed is not None:
            return _fail(state, look, index, failed.reason or "Failed", _said(failed)), watch, None
        if undone or (look.wanted and _unproven(look, index, state)):
            state = msgspec.structs.replace(state, healthy_since=None)
            return _wait(state, watch, look, undone, index)
        watch, left = _await_those_told(state, watch, look, index)
        if left > 0:
            return msgspec.structs.replace(state, healthy_since=None), watch, left
        watch = Watch()
        if index + 1 >= len(waves):
            return msgspec.structs.replace(state, wave=index, phase="Complete", healthy_since=None, asked=None), watch, None
        if state.healthy_since is None:
            state = msgspec.structs.replace(state, wave=index, healthy_since=look.now)
        pause, manual = _between(look.plan, index) if waves[index] else (0.0, False)
        left = pause - _elapsed(state.healthy_since or 0.0, look.now)
        if manual and state.asked is None:
            state = msgspec.structs.replace(state, asked=look.resume)
        if left > 0 or (manual and state.asked == look.resume):
            return state, watch, left if left > 0 else None
        state = msgspec.structs.replace(state, wave=index + 1, healthy_since=None, asked=None)


def _wait(state: State, watch: Watch, look: _Look, undone: Sequence[Member], index: int) -> tuple[State, Watch, float | None]:
    """Not all are well yet: has it taken too long?"""
    going = [member for member in undone if member.verdict not in {"judging", "asking"}]
    if not going:
        return state, Watch(), None
    seen = (state.current.revision, *sorted((member.uid, member.revision) for member in going))
    ready = sum(member.ready for member in going)
    if seen != watch.seen or ready > watch.best:
        watch = Watch(seen, ready, look.now)
    deadline = look.plan.progress_deadline_seconds
    left = deadline - (look.now - watch.since)
    if left > 0:
        return state, watch, left
    why = f"not ready after {deadline} s: {_list([_said(member) for member in going])}"
    return _fail(state, look, index, LATE, why), watch, None


def _await_those_told(state: State, watch: Watch, look: _Look, index: int) -> tuple[Watch, float]:
    """How long to wait for those who were told this version and fell silent before anybody had shown that it is any good.

    A controller that has just begun hears nobody, and then one after the other: whoever comes first must not be taken for the next to be
    told. They are given the time that links take to come up; whoever does not come then is gone, and others show how the version is.
    """
    so_far = [member for wave in look.waves[: index + 1] for member in wave]
    told = sorted(member.uid for member in so_far if member.revision == state.current.revision and not member.reachable)
    if not told or state.at_once or any(_done(member, state) for member in so_far):
        return watch, 0.0
    seen = (state.current.revision, TOLD, *told)
    if watch.seen != seen:
        watch = Watch(seen, 0, look.now)
    return watch, RETURN_SECONDS - (look.now - watch.since)


def _fail(state: State, look: _Look, index: int, reason: str, why: str) -> State:
    message = _cut(f"wave {index + 1} of {len(look.waves)} failed: {why}", MESSAGE)
    return msgspec.structs.replace(
        state, wave=index, phase="Failed", reason=reason, message=message, asked=look.resume, patient=False, healthy_since=None
    )


def _unproven(look: _Look, index: int, state: State) -> bool:
    """Whether nobody has shown yet that this version is any good, and somebody should: one that was chosen by a label is waited for,
    and in the end there must be one who has."""
    so_far = [member for wave in look.waves[: index + 1] for member in wave]
    if any(_done(member, state) for member in so_far if member.reachable):
        return False
    later = [member for wave in look.waves[index + 1 :] for member in wave if member.reachable]
    chosen = any(look.waves[number] and wave.cluster_selector is not None for number, wave in enumerate(look.plan.waves[: index + 1]))
    return chosen or not later


def _done(member: Member, state: State) -> bool:
    return member.revision == state.current.revision and member.verdict == "done"


def _failed(member: Member, state: State) -> bool:
    return member.revision == state.current.revision and member.verdict == "failed" and not state.patient


def _between(plan: Rollout, index: int) -> tuple[float, bool]:
    """How long a wave must be well before the next begins, and whether a person is asked."""
    wave = plan.waves[index] if index < len(plan.waves) else Wave()
    return float(plan.pause_seconds if wave.pause_seconds is None else wave.pause_seconds), wave.manual


def _elapsed(since: float, now: float) -> float:
    """At least so many seconds; before a reboot the clock was another."""
    return now - since if now >= since else now


def _due(state: State, rollout: Rollout, waves: Sequence[Sequence[Member]]) -> frozenset[str]:
    everybody = [member for wave in waves for member in wave]
    told = {member.uid for member in everybody if member.revision == state.current.revision}
    if rollout.paused or state.phase == "Failed":
        return frozenset(told)
    if state.at_once:
        return frozenset(member.uid for member in everybody)
    if state.phase == "Complete":
        return frozenset(told | {member.uid for member in everybody if member.reachable or not member.revision})
    return frozenset(told | {member.uid for wave in waves[: state.wave + 1] for member in wave if member.reachable})


# --- in words ---


def _status(state: State, plan: Rollout, waves: Sequence[Sequence[Member]]) -> RolloutStatus:
    everybody = [member for wave in waves for member in wave]
    told = [member for member in everybody if member.revision == state.current.revision]
    index = min(state.wave, len(waves) - 1)
    skipped = sorted(member.name for member in everybody if not member.reachable and not _done(member, state))
    phase, reason, message = _words(state, plan, waves, index)
    if skipped:
        message += f"; out of reach: {_list(skipped)}"
    return RolloutStatus(
        revision=state.current.revision,
        phase=phase,
        wave=index + 1,
        waves=len(waves),
        updated=len(told),
        clusters=len(everybody),
        skipped=skipped[:NAMED],
        reason=reason,
        message=_cut(message, MESSAGE),
    )


def _words(state: State, plan: Rollout, waves: Sequence[Sequence[Member]], index: int) -> tuple[str, str, str]:
    where = f"wave {index + 1} of {len(waves)}"
    back = f"; {state.message}" if state.reason == ROLLED_BACK else ""
    if state.phase == "Failed":
        return "Failed", state.reason, state.message
    if state.phase == "Complete":
        failed = [_said(member) for wave in waves for member in wave if member.reachable and _failed(member, state)]
        message = state.message or "every cluster in reach runs this version"
        return "Complete", state.reason or "Complete", message + (f"; failed since: {_list(failed)}" if failed else "")
    if plan.paused:
        return "Paused", "Paused", f"paused in {where}; `banyan rollout resume` goes on"
    undone = [member for wave in waves[: index + 1] for member in wave if member.reachable and not _done(member, state)]
    if undone and all(member.verdict == "asking" for member in undone):
        return "Paused", "AsksBelow", f"{where}: {_list([_said(member) for member in undone])}"
    if undone:
        return "Progressing", state.reason or "WaveUnderWay", f"{where}: waits for {_list([_said(member) for member in undone])}{back}"
    if state.asked is not None and state.healthy_since is not None:
        return "Paused", "Manual", f"{where} is well; the next begins with `banyan rollout resume`"
    if state.healthy_since is not None:
        return "Progressing", "Pausing", f"{where} is well; the next begins when it was so for {_between(plan, index)[0]:g} s"
    return "Progressing", state.reason or "WaveUnderWay", f"{where}: nobody in reach has it yet{back}"


def _said(member: Member) -> str:
    return f"{member.name} ({_cut(member.message, WORDS)})" if member.message else member.name


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SPOKEN]) + (f" and {len(names) - SPOKEN} more" if len(names) > SPOKEN else "")
