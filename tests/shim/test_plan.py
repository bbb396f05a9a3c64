"""The plan of a process cluster, as properties over simulated clusters: it converges, and what serves is never given up too soon."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from cluster_shim.contract import Component, Phase, Resources, Work
from cluster_shim.process.plan import Capacity, Direct, Held, Hold, Plan, Release, Seen, Start, Stop, plan, port_name, replicas

ROOM = Capacity(4000, 1 << 30)


def component(revision: str = "a", **fields: object) -> Component:
    return structs.replace(Component(name="c", replicas=1, revision=revision, command=("x",), port=80), **fields)


def work(*components: Component, uid: str = "u") -> Work:
    return Work(uid=uid, name="w", namespace="n", origin="o", version=1, components=components)


class Cluster:
    """A supervisor in a few lines: does what is planned; instances become ready, or end, when a test says so."""

    def __init__(self, capacity: Capacity = ROOM) -> None:
        self.capacity = capacity
        self.seen: dict[str, Seen] = {}
        self.held: dict[str, Held] = {}
        self.count = 0

    def step(self, desired: dict[str, Work]) -> Plan:
        planned = plan(desired, self.seen.values(), self.held, self.capacity, "node")
        for action in planned.actions:
            match action:
                case Start(uid=uid, component=name):
                    wanted = next(c for c in desired[uid].components if c.name == name)
                    self.start(uid, wanted)
                case Stop(id=name):
                    self.seen[name] = structs.replace(self.seen[name], phase=Phase.STOPPING)
                case Hold(name=name, port=port):
                    beside = any(name.rpartition("/")[0] == other.rpartition("/")[0] for other in self.held)
                    self.held[name] = Held(port, 0 if beside else 1)
                case Direct(weights=weights):
                    self.held |= {name: Held(self.held[name].port, weight) for name, weight in weights}
                case Release(name=name):
                    del self.held[name]
        return planned

    def start(self, uid: str, wanted: Component) -> None:
        name = port_name(uid, wanted.name, wanted.revision)
        assert not wanted.takes_socket or not wanted.port or name in self.held, "started without its socket"
        self.count += 1
        self.seen[str(self.count)] = Seen(
            id=str(self.count),
            uid=uid,
            component=wanted.name,
            revision=wanted.revision,
            phase=Phase.RUNNING,
            started=float(self.count),
            cpu_millis=wanted.resources.cpu_millis,
            memory_bytes=wanted.resources.memory_bytes,
            port=wanted.port if wanted.takes_socket else 0,
        )

    def stopped(self) -> None:
        self.seen = {name: seen for name, seen in self.seen.items() if seen.phase is not Phase.STOPPING}

    def ready(self, name: str, ready: bool = True) -> None:
        self.seen[name] = structs.replace(self.seen[name], ready=ready)

    def served(self) -> set[str]:
        """Revisions of u/c that connections go to."""
        mine = {name.rpartition("/")[2]: held.weight for name, held in self.held.items() if name.startswith("u/c/")}
        return {revision for revision, weight in mine.items() if weight} or set(list(mine)[:1])

    def serving(self) -> int:
        return sum(seen.ready and seen.phase is Phase.RUNNING for seen in self.seen.values())


components = st.builds(
    component,
    revision=st.sampled_from("ab"),
    replicas=st.integers(0, 4),
    port=st.sampled_from([0, 80]),
    takes_socket=st.booleans(),
    name=st.sampled_from(["c", "d"]),
).map(lambda c: structs.replace(c, revision=f"{c.revision}{c.port}{c.takes_socket}"))  # a revision is a hash of the rest
works = st.dictionaries(st.sampled_from("uv"), st.lists(components, max_size=2, unique_by=lambda c: c.name)).map(
    lambda table: {uid: work(*parts, uid=uid) for uid, parts in table.items()}
)


@given(st.lists(works, min_size=1, max_size=4), st.data())
@settings(max_examples=300, deadline=None)
def test_it_converges_on_what_is_desired_and_then_rests(history: list[dict[str, Work]], data: st.DataObject) -> None:
    cluster = Cluster()
    for desired in history:
        for _ in range(data.draw(st.integers(0, 4))):  # cut off in the middle of everything
            cluster.step(desired)
            if cluster.seen:
                cluster.ready(data.draw(st.sampled_from(sorted(cluster.seen))), data.draw(st.booleans()))
            if data.draw(st.booleans()):
                cluster.stopped()
    for _ in range(40):
        cluster.step(history[-1])
        cluster.stopped()
        for name in cluster.seen:
            cluster.ready(name)
    assert cluster.step(history[-1]).actions == ()
    wanted = {(uid, c.name, c.revision): replicas(c) for uid, w in history[-1].items() for c in w.components if replicas(c)}
    got: dict[tuple[str, str, str], int] = {}
    for seen in cluster.seen.values():
        key = (seen.uid, seen.component, seen.revision)
        got[key] = got.get(key, 0) + 1
    assert got == wanted
    listening = [(uid, c) for uid, w in history[-1].items() for c in w.components if c.port and c.takes_socket and c.replicas]
    sockets = {port_name(uid, c.name, c.revision) for uid, c in listening}
    assert set(cluster.held) == sockets


@given(st.integers(1, 4), st.integers(1, 4), st.data())
@settings(max_examples=300, deadline=None)
def test_a_swap_never_serves_with_fewer_than_both_sides_want(before: int, after: int, data: st.DataObject) -> None:
    cluster = Cluster()
    cluster.step({"u": work(component("a", replicas=before))})
    for name in cluster.seen:
        cluster.ready(name)
    desired = {"u": work(component("b", replicas=after))}
    for _ in range(40):
        cluster.step(desired)
        assert cluster.serving() >= min(before, after)
        ready = {seen.revision for seen in cluster.seen.values() if seen.ready and seen.phase is Phase.RUNNING}
        assert cluster.served() <= ready, "connections go where nobody is ready"
        assert sum(s.revision == "b" and not s.ready for s in cluster.seen.values()) <= 1 or not any(
            s.revision == "a" for s in cluster.seen.values()
        )
        fresh = [name for name, seen in cluster.seen.items() if not seen.ready and seen.phase is Phase.RUNNING]
        lucky: bool = data.draw(st.booleans())
        if fresh and lucky:
            cluster.ready(fresh[0])
        cluster.stopped()


@given(st.integers(1, 4), st.integers(1, 30))
def test_a_revision_that_never_becomes_ready_replaces_nobody(count: int, steps: int) -> None:
    cluster = Cluster()
    cluster.step({"u": work(component("a", replicas=count))})
    for name in cluster.seen:
        cluster.ready(name)
    for _ in range(steps):
        cluster.step({"u": work(component("b", replicas=count))})
    assert cluster.serving() == count
    assert len(cluster.seen) == count + 1


@pytest.mark.parametrize("port", [0, 8000])
def test_without_a_socket_the_new_one_waits_until_the_old_one_is_gone(port: int) -> None:
    cluster = Cluster()
    old, new = (component(revision, takes_socket=False, replicas=3, port=port) for revision in "ab")
    assert cluster.step({"u": work(old)}).notes["u", "c"].reason == "OneReplicaPerSite"
    assert len(cluster.seen) == 1
    assert cluster.step({"u": work(new)}).actions == (Stop("1"),)
    assert cluster.step({"u": work(new)}).actions == ()
    cluster.stopped()
    assert cluster.step({"u": work(new)}).actions == (Start("u", "c"),)
    assert cluster.held == {}


def test_what_does_not_fit_is_told_and_a_swap_may_exceed_the_room_by_one() -> None:
    cluster = Cluster(Capacity(1000, 300))
    big = Resources(cpu_millis=100, memory_bytes=100)
    planned = cluster.step({"u": work(component("a", replicas=5, resources=big))})
    assert len(cluster.seen) == 3
    assert planned.notes["u", "c"].reason == "InsufficientMemory"
    for name in cluster.seen:
        cluster.ready(name)
    cluster.step({"u": work(component("b", replicas=3, resources=big))})
    assert len(cluster.seen) == 4
    assert Stop not in {type(action) for action in cluster.step({"u": work(component("b", replicas=3, resources=big))}).actions}


def test_a_component_for_another_node_is_not_started_and_says_so() -> None:
    cluster = Cluster()
    planned = cluster.step({"u": work(component(node="elsewhere"))})
    assert cluster.seen == {}
    assert planned.notes["u", "c"].reason == "NodeNotFound"


def test_a_port_is_let_go_only_when_nobody_is_left_who_inherited_it() -> None:
    cluster = Cluster()
    cluster.step({"u": work(component())})
    assert cluster.step({}).actions == (Stop("1"),)
    assert cluster.held == {"u/c/a": Held(80)}
    cluster.stopped()
    assert cluster.step({}).actions == (Release("u/c/a"),)


def test_of_too_many_the_ones_that_do_not_serve_go_first_then_the_newest() -> None:
    cluster = Cluster()
    cluster.step({"u": work(component(replicas=4))})
    for name in "234":
        cluster.ready(name)
    stops = {action.id for action in cluster.step({"u": work(component(replicas=2))}).actions if isinstance(action, Stop)}
    assert stops == {"1", "4"}
