"""What the controller is told: built from what the supervisor and the probes say, and only when it differs enough.

Pure. Usage moves all the time; an instance's figures are taken over when they have moved by a tenth and by more than noise,
so that an idle cluster is silent.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from msgspec import structs

from cluster_shim.contract import Component, Ended, Instance, Node, ObservedComponent, ObservedWork, Phase, Work
from cluster_shim.process.plan import Note, replicas
from cluster_shim.process.views import InstanceView

CPU_NOISE_MILLIS = 20
MEMORY_NOISE_BYTES = 4 << 20
PROGRESS_SECONDS = 600.0  # in which a new revision is to become ready; what serves goes on serving, before and after
LATE = "ProgressDeadlineExceeded"
MIXED = "; on this site's address both versions share one socket, so connections may reach it already if it accepts them"
NOT_READY = "NotReady"  # it runs, and its readiness probe has failed for longer than it may
STARTING = "Starting"
CRASH_LOOP = "CrashLoopBackOff"  # it ended soon after each of its last starts, and waits ever longer before the next
LOOP_FAILURES = 3  # short runs in a row that make a loop
TOLD_PAUSE_SECONDS = 2.0  # a pause from which on people are told of it
_BAD = (Phase.BACKOFF, Phase.FAILED)


def observed_work(
    uid: str,
    work: Work | None,
    instances: Sequence[Instance],
    notes: Mapping[tuple[str, str], Note],
    ports: Mapping[str, int],
    *,
    late: Collection[tuple[str, str]] = (),
    mixed: Collection[tuple[str, str]] = (),
) -> ObservedWork:
    """``work`` None: withdrawn, its last instances are ending. ``ports``: by component, those that really listen. ``late``: (uid,
    component) of those whose wanted revision has had its time; ``mixed``: of those whose revisions share one socket."""
    components = work.components if work is not None else ()
    return ObservedWork(
        uid=uid,
        version=work.version if work is not None else 0,
        components=tuple(
            _component(uid, component, instances, notes, ports, late=(uid, component.name) in late, mixed=(uid, component.name) in mixed)
            for component in components
        ),
        instances=tuple(sorted(instances, key=lambda instance: instance.id)),
    )


def _component(
    uid: str,
    component: Component,
    instances: Sequence[Instance],
    notes: Mapping[tuple[str, str], Note],
    ports: Mapping[str, int],
    *,
    late: bool,
    mixed: bool,
) -> ObservedComponent:
    own = [instance for instance in instances if instance.component == component.name]
    updated = [instance for instance in own if instance.revision == component.revision and instance.phase is not Phase.STOPPING]
    ready = [instance for instance in own if instance.ready]
    reason, message = _why(component, updated, notes.get((uid, component.name)))
    if late and reason in {NOT_READY, STARTING}:
        reason, message = LATE, f"its newest version is not ready after {PROGRESS_SECONDS:g} s: {message}"
    if mixed and reason in {NOT_READY, STARTING, LATE}:
        message += MIXED
    return ObservedComponent(
        name=component.name,
        desired=component.replicas,
        ready=len(ready),
        updated=sum(instance.ready for instance in updated),
        reason=reason,
        message=message,
        port=ports.get(component.name, 0),
    )


def _why(component: Component, updated: Sequence[Instance], note: Note | None) -> tuple[str, str]:
    """The plan's reason first, then the worst instance's."""
    if note is not None:
        return note.reason, note.message
    for instance in updated:
        if instance.phase in _BAD or instance.reason == CRASH_LOOP:
            return instance.reason or "BackOff", f"{instance.id}: {instance.message}"
    for instance in updated:
        if instance.phase is Phase.RUNNING and instance.reason == NOT_READY:
            return NOT_READY, f"{instance.id}: {instance.message}"
    if sum(instance.ready for instance in updated) < replicas(component):
        return STARTING, "waiting until the new instances are ready"
    return "", ""


class Progress:
    """Since when each component's wanted revision has been waited for, until it is ready for the first time."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], tuple[str, float | None]] = {}  # revision, since when; None: it was ready

    def late(self, works: Iterable[Work], ready: Callable[[str, Component], int], now: float) -> set[tuple[str, str]]:
        """Those that have been waited for too long. ``ready``: instances of a work's component in its wanted revision."""
        waiting: dict[tuple[str, str], tuple[str, float | None]] = {}
        for work in works:
            for component in work.components:
                key = (work.uid, component.name)
                revision, since = self._waiting.get(key, ("", None))
                if revision != component.revision:
                    since = now
                waiting[key] = component.revision, None if ready(work.uid, component) >= replicas(component) else since
        self._waiting = waiting
        return {key for key, (_, since) in waiting.items() if since is not None and now - since >= PROGRESS_SECONDS}


def ended(view: InstanceView) -> Ended | None:
    if not view.reason:
        return None
    return Ended(
        reason=view.reason,
        message=view.message,
        exit_code=view.exit_code,
        last_line=view.last_line,
        started_unix=view.last_started_unix,
        finished_unix=view.finished_unix,
    )


def condition(view: InstanceView, phase: Phase, *, ready: bool, trouble: str) -> tuple[str, str]:
    """Reason and message of an instance now. One that comes and goes keeps its reason until it is ready: a status that says
    Starting every other second says nothing."""
    if trouble:
        return NOT_READY, f"the readiness probe fails: {trouble}"
    looping = view.failures >= LOOP_FAILURES
    if not view.reason or not (phase is Phase.BACKOFF or (looping and not ready and phase in (Phase.STARTING, Phase.RUNNING))):
        return "", ""
    reason = CRASH_LOOP if looping and view.reason != "StartFailed" else view.reason
    parts = [view.message if view.reason in {reason, "Error"} else f"{view.reason}: {view.message}"]
    if view.last_line:
        parts.append(f"its last log line: {view.last_line}")
    if phase is not Phase.BACKOFF:
        parts.append(f"restart {view.restarts} is not ready yet")
    elif view.pause >= TOLD_PAUSE_SECONDS:
        parts.append(f"restart {view.restarts} comes after a pause of {view.pause:g} s")
    return reason, "; ".join(parts)


def moved(old: int, new: int, noise: int) -> bool:
    if old < 0 or new < 0:
        return old != new
    return abs(new - old) > max(noise, old // 10)


def settle(old: Instance | None, new: Instance) -> Instance:
    """``new`` with the usage that was told last, unless it moved."""
    if old is None:
        return new
    cpu = new.cpu_millis if moved(old.cpu_millis, new.cpu_millis, CPU_NOISE_MILLIS) else old.cpu_millis
    memory = new.memory_bytes if moved(old.memory_bytes, new.memory_bytes, MEMORY_NOISE_BYTES) else old.memory_bytes
    return structs.replace(new, cpu_millis=cpu, memory_bytes=memory)


def settle_node(old: Node | None, new: Node) -> Node:
    if old is None:
        return new
    cpu_moved = moved(old.used_cpu_millis, new.used_cpu_millis, max(CPU_NOISE_MILLIS, new.cpu_millis // 20))
    memory_moved = moved(old.used_memory_bytes, new.used_memory_bytes, max(MEMORY_NOISE_BYTES, new.memory_bytes // 50))
    return structs.replace(
        new,
        used_cpu_millis=new.used_cpu_millis if cpu_moved else old.used_cpu_millis,
        used_memory_bytes=new.used_memory_bytes if memory_moved else old.used_memory_bytes,
    )
