"""What the controller is told: built from what the supervisor and the probes say, and only when it differs enough.

Pure. Usage moves all the time; an instance's figures are taken over when they have moved by a tenth and by more than noise,
so that an idle cluster is silent.
"""

from collections.abc import Mapping, Sequence

from msgspec import structs

from cluster_shim.contract import Component, Instance, Node, ObservedComponent, ObservedWork, Phase, Work
from cluster_shim.process.plan import Note, replicas

CPU_NOISE_MILLIS = 20
MEMORY_NOISE_BYTES = 4 << 20
NOT_READY = "NotReady"  # it runs, and its readiness probe has failed for longer than it may
_BAD = (Phase.BACKOFF, Phase.FAILED)


def observed_work(
    uid: str, work: Work | None, instances: Sequence[Instance], notes: Mapping[tuple[str, str], Note], ports: Mapping[str, int]
) -> ObservedWork:
    """``work`` None: withdrawn, its last instances are ending. ``ports``: by component, those that really listen."""
    components = work.components if work is not None else ()
    return ObservedWork(
        uid=uid,
        version=work.version if work is not None else 0,
        components=tuple(_component(uid, component, instances, notes, ports) for component in components),
        instances=tuple(sorted(instances, key=lambda instance: instance.id)),
    )


def _component(
    uid: str, component: Component, instances: Sequence[Instance], notes: Mapping[tuple[str, str], Note], ports: Mapping[str, int]
) -> ObservedComponent:
    own = [instance for instance in instances if instance.component == component.name]
    updated = [instance for instance in own if instance.revision == component.revision and instance.phase is not Phase.STOPPING]
    ready = [instance for instance in own if instance.ready]
    reason, message = _why(component, updated, notes.get((uid, component.name)))
    return ObservedComponent(
        name=component.name,
        desired=component.replicas,
        ready=len(ready),
        updated=len(updated),
        reason=reason,
        message=message,
        port=ports.get(component.name, 0),
    )


def _why(component: Component, updated: Sequence[Instance], note: Note | None) -> tuple[str, str]:
    """The plan's reason first, then the worst instance's."""
    if note is not None:
        return note.reason, note.message
    for instance in updated:
        if instance.phase in _BAD:
            return instance.reason or "BackOff", f"{instance.id}: {instance.message}"
    for instance in updated:
        if instance.phase is Phase.RUNNING and instance.reason == NOT_READY:
            return NOT_READY, f"{instance.id}: {instance.message}"
    if sum(instance.ready for instance in updated) < replicas(component):
        return "Starting", "waiting until the new instances are ready"
    return "", ""


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
