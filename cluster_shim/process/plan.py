"""Decide which instances to start and stop so that a process cluster comes closer to what is desired.

Pure: takes what is wanted and what is seen, returns actions. Planning again after they were carried out yields nothing new, and
what a crash left undone is simply planned again. The rules that keep a site's port served:

- An instance that is to be replaced is stopped only for a *ready* one of the new revision: a revision that never becomes ready
  never replaces the one that serves. One replacement starts at a time, whatever the free capacity: a swap needs room for one
  more, and that is what the node's reserve is for.
- A component that takes no socket cannot share its port, nor stand beside its successor: one replica, and the new one starts
  when the old one is gone.
- Each revision has a listening socket of its own on the port. Connections go to the sockets of revisions that have ready instances,
  in proportion; the others get none. An instance is stopped after the connections have been sent elsewhere.
- A socket is held as long as its revision is wanted or somebody is left who inherited it.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from cluster_shim.contract import Component, Phase, Work


class Seen(Struct, frozen=True, kw_only=True):
    """An instance as the supervisor and the probes report it."""

    id: str
    uid: str
    component: str
    revision: str
    phase: Phase
    ready: bool = False
    started: float = 0.0  # orders instances: the newest is the first to go when there are too many
    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: Mapping[str, int] = {}
    port: int = 0


class Capacity(Struct, frozen=True):
    """What applications may use on this node altogether."""

    cpu_millis: int
    memory_bytes: int
    accelerators: Mapping[str, int] = {}


class Start(Struct, frozen=True):
    uid: str
    component: str


class Stop(Struct, frozen=True):
    id: str


class Hold(Struct, frozen=True):
    name: str
    port: int


class Release(Struct, frozen=True):
    name: str


class Direct(Struct, frozen=True):
    """New connections go to these sockets in these proportions."""

    weights: tuple[tuple[str, int], ...]  # by `port_name`


class Held(Struct, frozen=True):
    """A socket as the supervisor reports it."""

    port: int
    weight: int = 1


Action = Direct | Start | Stop | Hold | Release


class Note(Struct, frozen=True):
    """Why a component has not what it wants."""

    reason: str
    message: str


class Plan(Struct, frozen=True):
    actions: tuple[Action, ...]
    notes: Mapping[tuple[str, str], Note]  # by (uid, component)


def port_name(uid: str, component: str, revision: str) -> str:
    return f"{uid}/{component}/{revision}"


def replicas(component: Component) -> int:
    """How many this site runs of it."""
    return min(component.replicas, 1) if one_per_site(component) else component.replicas


def one_per_site(component: Component) -> bool:
    """Whether it exposes a port or not: two of it at the same time are what a command without a socket is not ready for."""
    return not component.takes_socket


def plan(desired: Mapping[str, Work], seen: Iterable[Seen], held: Mapping[str, Held], capacity: Capacity, node: str) -> Plan:
    """``held``: by `port_name`. Actions come in the order in which they are safe: send elsewhere, stop, let go, hold, start."""
    instances = list(seen)
    wanted = {(uid, component.name): component for uid, work in sorted(desired.items()) for component in work.components}
    by_component: dict[tuple[str, str], list[Seen]] = {key: [] for key in wanted}
    stops: list[Stop] = []
    for instance in instances:
        if instance.phase is Phase.STOPPING:
            by_component.get((instance.uid, instance.component), []).append(instance)
        elif (instance.uid, instance.component) in wanted:
            by_component[instance.uid, instance.component].append(instance)
        else:
            stops.append(Stop(instance.id))
    notes: dict[tuple[str, str], Note] = {}
    starts: list[Start] = []
    room = _Room(capacity, instances)
    for key, component in wanted.items():
        count, ends = _component(component, by_component[key], node)
        stops.extend(ends)
        replacing = any(i.phase is not Phase.STOPPING for i in by_component[key])
        fits = room.take(component, count, surge=replacing and len(by_component[key]) >= replicas(component))
        starts.extend(Start(*key) for _ in range(fits))
        note = _note(component, node, count - fits, room)
        if note is not None:
            notes[key] = note
    ending = {stop.id for stop in stops}
    directs = [direct for key in wanted if (direct := _direct(key, [i for i in by_component[key] if i.id not in ending], held)) is not None]
    return Plan((*directs, *stops, *_ports(wanted, instances, held), *starts), notes)


def _component(component: Component, instances: Sequence[Seen], node: str) -> tuple[int, list[Stop]]:
    """How many to start now, and which to stop."""
    target = replicas(component) if component.node in ("", node) else 0
    living = [instance for instance in instances if instance.phase is not Phase.STOPPING]
    current = [instance for instance in living if instance.revision == component.revision]
    old = [instance for instance in living if instance.revision != component.revision]
    if one_per_site(component) and target:
        if old or len(living) != len(instances):
            return 0, [Stop(instance.id) for instance in old]
        return max(target - len(current), 0), [Stop(instance.id) for instance in _surplus(current, target)]
    ready = sum(instance.ready for instance in current)
    ends = _surplus(current, target) + _surplus(old, max(target - ready, 0))
    missing = max(target - len(current), 0)
    if old:
        missing = min(missing, 1) if ready == len(current) else 0
    return missing, [Stop(instance.id) for instance in ends]


def _surplus(instances: Sequence[Seen], keep: int) -> list[Seen]:
    """Those beyond ``keep``: first who does not serve, then the newest."""
    order = sorted(instances, key=lambda instance: (not instance.ready, instance.started, instance.id), reverse=True)
    return order[: max(len(order) - keep, 0)]


def _direct(key: tuple[str, str], staying: Sequence[Seen], held: Mapping[str, Held]) -> Direct | None:
    """Connections go where instances are ready. While nobody is, they go on waiting where they wait now."""
    mine = {name: each for name, each in held.items() if name.startswith(f"{key[0]}/{key[1]}/")}
    weights = dict.fromkeys(mine, 0)
    for instance in staying:
        name = port_name(instance.uid, instance.component, instance.revision)
        if instance.ready and instance.phase is not Phase.STOPPING and name in weights:
            weights[name] += 1
    if len(mine) < 2 or not any(weights.values()) or weights == {name: each.weight for name, each in mine.items()}:
        return None
    return Direct(tuple(sorted(weights.items())))


def _ports(wanted: Mapping[tuple[str, str], Component], seen: Sequence[Seen], held: Mapping[str, Held]) -> list[Hold | Release]:
    holds = {
        port_name(*key, component.revision): component.port
        for key, component in wanted.items()
        if component.port and component.takes_socket and component.replicas > 0
    }
    users = {port_name(instance.uid, instance.component, instance.revision) for instance in seen if instance.port}
    releases = [Release(name) for name in sorted(held) if name not in holds and name not in users]
    missing = [Hold(name, port) for name, port in holds.items() if name not in held or held[name].port != port]
    return [*releases, *missing]


class _Room:
    """What is left of the node. Ends are not counted before they happened."""

    def __init__(self, capacity: Capacity, seen: Sequence[Seen]) -> None:
        self.left = {"cpu": capacity.cpu_millis, "memory": capacity.memory_bytes, **capacity.accelerators}
        self.short = ""
        for instance in seen:
            self._use(_asks(instance.cpu_millis, instance.memory_bytes, instance.accelerators), 1)

    def take(self, component: Component, count: int, *, surge: bool) -> int:
        """How many of ``count`` fit; they are taken."""
        asked = component.resources
        asks = _asks(asked.cpu_millis, asked.memory_bytes, asked.accelerators)
        fits = count
        self.short = ""
        for name, amount in asks.items():
            if amount > 0 and not surge and (possible := max(self.left.get(name, 0), 0) // amount) < fits:
                fits, self.short = possible, name
        self._use(asks, fits)
        return fits

    def _use(self, asks: Mapping[str, int], count: int) -> None:
        for name, amount in asks.items():
            self.left[name] = self.left.get(name, 0) - amount * count


def _asks(cpu_millis: int, memory_bytes: int, accelerators: Mapping[str, int]) -> dict[str, int]:
    return {"cpu": cpu_millis, "memory": memory_bytes, **accelerators}


def _note(component: Component, node: str, unplaced: int, room: _Room) -> Note | None:
    if component.node not in ("", node):
        return Note("NodeNotFound", f"node {component.node} was asked for; this cluster's only node is {node}")
    if unplaced:
        return Note(f"Insufficient{room.short.capitalize()}", f"{unplaced} of {component.replicas} do not fit: {room.short} is used up")
    if one_per_site(component) and component.replicas > 1:
        return Note(
            "OneReplicaPerSite",
            f"it cannot take a listening socket (takesSocket: false), so one of {component.replicas} replicas runs on a site",
        )
    return None
