"""Nothing is promised twice: not to the components of one application, not to several, not to duplicates."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement.capacity import Ledger, add, drain, occupied, positive
from cluster_controller.placement.filters import room
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, NodeRecord, Request
from cluster_controller.placement.place import place

MEBI = 1024**2


def node(cpu: int, count: int = 1, **changes: object) -> NodeRecord:
    fields: dict[str, object] = {"architecture": "amd64", "free_cpu_millis": cpu, "free_memory_bytes": 1024 * MEBI, "count": count}
    return NodeRecord(**(fields | changes))  # type: ignore[arg-type]


def cluster(name: str, *nodes: NodeRecord, **changes: object) -> ClusterRecord:
    return ClusterRecord(**({"uid": name, "name": name, "via": name, "nodes": nodes} | changes))  # type: ignore[arg-type]


def wants(name: str, cpu: int, replicas: int = 1, **changes: object) -> ComponentDemand:
    return ComponentDemand(**({"name": name, "replicas": replicas, "request": Request(cpu_millis=cpu)} | changes))  # type: ignore[arg-type]


def demand(*components: ComponentDemand, strategy: str = "Divided") -> Demand:
    return Demand(application="app", components=components, strategy=strategy)


def test_two_components_of_sixty_percent_do_not_both_fit_the_only_node() -> None:
    placed = place(demand(wants("a", 600), wants("b", 600)), [cluster("only", node(1000))], {})
    assert (placed.shares, placed.unplaced) == ({"only": {"a": 1}}, {"a": 0, "b": 1})
    short = next(item for item in placed.refusals if item.component == "b")
    assert (short.filter, short.message) == ("Capacity", "has no room: cpu: asks 600m, free 400m")
    assert short.remedy == "lower resources.cpu to 400m, free something on only, or add a node"
    assert place(demand(wants("a", 600), wants("b", 600)), [cluster("x", node(1000)), cluster("y", node(1000))], {}).unplaced["b"] == 0


def test_what_others_were_given_a_moment_ago_is_not_free() -> None:
    there = [cluster("one", node(1000)), cluster("two", node(1000), via="one")]
    asked = demand(wants("a", 600, replicas=2))
    assert place(asked, there, {}).unplaced == {"a": 0}
    assert place(asked, there, {}, {"one": Request(cpu_millis=1000)}).unplaced == {"a": 2}  # 500m are left of each
    assert place(asked, there, {}, {"elsewhere": Request(cpu_millis=1000)}).unplaced == {"a": 0}


def test_a_duplicate_fits_where_it_is_placed_and_runs_once_where_it_takes_no_socket() -> None:
    own = cluster("own", node(1000), own=True)
    below = cluster("below", node(1000))
    placed = place(demand(wants("a", 600, replicas=3), strategy="Duplicated"), [own, below], {})
    assert placed.shares == {"own": {"a": 1}, "below": {"a": 3}}, "what is below decides for itself, and reports"
    assert placed.unplaced == {"a": 2}
    assert {item.filter for item in placed.refusals if item.cluster == "own"} == {"Capacity"}
    single = place(demand(wants("a", 100, replicas=2, single=True), strategy="Duplicated"), [own], {})
    assert (single.shares, single.unplaced) == ({"own": {"a": 1}}, {"a": 1})
    again = {"own": {"a": Given(share=1, ceiling=1, counted=1)}}
    there = cluster("own", node(900), own=True, running={"a": 1})
    stays = place(demand(wants("a", 100, replicas=2, single=True), strategy="Duplicated"), [there], again)
    assert (stays.shares, stays.unplaced) == ({"own": {"a": 1}}, {"a": 1})
    assert [item.filter for item in stays.refusals] == ["OnePerCluster"]


nodes = st.builds(
    node,
    st.integers(0, 1000),
    st.integers(1, 3),
    free_memory_bytes=st.integers(0, 512) .map(lambda size: size * MEBI),
    free_accelerators=st.dictionaries(st.just("gpu"), st.integers(0, 3)),
    ready=st.booleans(),
)  # fmt: skip
requests = st.builds(
    Request,
    cpu_millis=st.integers(0, 700),
    memory_bytes=st.integers(0, 300).map(lambda size: size * MEBI),
    accelerators=st.dictionaries(st.just("gpu"), st.integers(0, 2)),
)
components = st.lists(
    st.tuples(requests, st.integers(0, 4), st.booleans()).map(
        lambda drawn: ComponentDemand(name="", replicas=drawn[1], request=drawn[0], single=drawn[2])
    ),
    min_size=1,
    max_size=4,
).map(lambda drawn: [ComponentDemand(name=f"c{n}", replicas=c.replicas, request=c.request, single=c.single) for n, c in enumerate(drawn)])


def packs(there: list[NodeRecord], asked: list[tuple[Request, int]]) -> bool:
    """Whether sums fit: the necessary condition, on one node the sufficient one too."""
    whole = Request()
    for request, count in asked:
        whole = add(whole, request, count)
    ready = [one for one in there if one.ready]
    return (
        whole.cpu_millis <= sum(one.free_cpu_millis * one.count for one in ready)
        and whole.memory_bytes <= sum(one.free_memory_bytes * one.count for one in ready)
        and all(count <= sum(one.free_accelerators.get(name, 0) * one.count for one in ready) for name, count in whole.accelerators.items())
    )


@given(components, st.lists(nodes, min_size=1, max_size=3), st.sampled_from(["Divided", "Duplicated"]))
@settings(max_examples=500)
def test_no_cluster_is_ever_overbooked(wanted: list[ComponentDemand], there: list[NodeRecord], strategy: str) -> None:
    own = cluster("own", *there, own=True)
    placed = place(demand(*wanted, strategy=strategy), [own], {})
    given_there = placed.shares.get("own", {})
    assert packs(there, [(component.request, given_there.get(component.name, 0)) for component in wanted])
    for component in wanted:
        share = given_there.get(component.name, 0)
        assert share + placed.unplaced[component.name] == component.replicas
        assert share <= 1 or not component.single
        if placed.unplaced[component.name]:
            assert any(item.component == component.name for item in placed.refusals), "it is said why"


@given(st.lists(nodes, min_size=1, max_size=3), requests, requests, st.integers(0, 6))
def test_what_is_occupied_is_gone_and_nothing_else_is(there: list[NodeRecord], first: Request, second: Request, replicas: int) -> None:
    one, other = ComponentDemand(name="a", replicas=1, request=first), ComponentDemand(name="b", replicas=1, request=second)
    before = cluster("c", *there)
    takes = min(replicas, room(one, before))
    after = cluster("c", *(occupied(there, one, takes) if first else there))
    assert sum(record.count for record in after.nodes) == sum(record.count for record in there)
    assert room(other, after) <= room(other, before)
    if first:
        assert room(one, after) == room(one, before) - takes
        left = sum(record.free_cpu_millis * record.count for record in after.nodes)
        assert left == sum(record.free_cpu_millis * record.count for record in there) - takes * first.cpu_millis


@given(st.lists(nodes, max_size=3), requests)
def test_a_drain_takes_all_that_is_asked_or_all_there_is(there: list[NodeRecord], asked: Request) -> None:
    after = drain(there, asked)
    had = sum(one.free_cpu_millis * one.count for one in there if one.ready)
    left = sum(one.free_cpu_millis * one.count for one in after if one.ready)
    assert left <= max(0, had - asked.cpu_millis)
    assert all(one.free_cpu_millis >= 0 and one.free_memory_bytes >= 0 for one in after)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.dictionaries(st.sampled_from("ab"), requests)), max_size=30))
def test_the_ledger_is_the_sum_of_what_stands(bookings: list[tuple[str, dict[str, Request]]]) -> None:
    ledger = Ledger()
    stands: dict[str, dict[str, Request]] = {}
    for application, parts in bookings:
        ledger.book(application, parts)
        stands[application] = parts
    for target in "ab":
        whole = Request()
        for parts in stands.values():
            whole = add(whole, parts.get(target, Request()))
        assert ledger.total(target) == whole
    ledger.clear()
    assert ledger.total("a") == Request()


def test_less_than_nothing_is_no_room() -> None:
    over = Request(cpu_millis=-5, memory_bytes=3, accelerators={"gpu": -1, "npu": 2})
    assert positive(over) == Request(memory_bytes=3, accelerators={"npu": 2})


def test_who_asks_for_none_of_something_asks_for_nothing() -> None:
    assert not Request(accelerators={"gpu": 0})
    assert Request(accelerators={"gpu": 1}) and Request(cpu_millis=1)
