"""What a replica costs somewhere, and how far that is, as a person would work it out on paper."""

from cluster_controller.placement import score
from cluster_controller.placement.model import (
    ClusterRecord,
    ComponentDemand,
    Demand,
    Neighbour,
    NodeRecord,
    Objective,
    Preference,
    Request,
    Requirement,
    Taint,
    Toleration,
)

GIBI = 1024**3


def node(price: int = 0, cpu: int = 4000, **fields: object) -> NodeRecord:
    whole = Request(cpu, 8 * GIBI, {"gpu": 2})
    free: dict[str, object] = {"free_cpu_millis": cpu, "free_memory_bytes": 8 * GIBI, "free_accelerators": {"gpu": 2}}
    return NodeRecord(**({"whole": whole, "hourly_micros": price} | free | fields))  # type: ignore[arg-type]


def cluster(name: str, parent: str = "", rtt: float | None = None, **fields: object) -> ClusterRecord:
    return ClusterRecord(**({"uid": name, "name": name, "via": name, "parent": parent, "rtt_millis": rtt} | fields))  # type: ignore[arg-type]


def component(cpu: int = 0, memory: int = 0, **accelerators: int) -> ComponentDemand:
    return ComponentDemand(name="c", replicas=1, request=Request(cpu, memory, accelerators))


def test_a_replica_costs_its_largest_share_of_the_node() -> None:
    assert score.node_cost(component(1000, GIBI), node(800)) == 200
    assert score.node_cost(component(1000, 4 * GIBI), node(800)) == 400
    assert score.node_cost(component(1000, GIBI, gpu=1), node(800)) == 400
    assert score.node_cost(component(1000, tpu=1), node(800)) == 800, "what the node has none of takes all of it"
    assert score.node_cost(component(1000), node()) == 0, "no price, no cost"
    assert score.node_cost(component(), node(800)) == 20, "who says nothing is taken for a small one"


def test_a_cluster_that_has_a_price_costs_by_all_that_it_has() -> None:
    record = cluster("a", hourly_micros=1000, nodes=(node(), node(count=3)))
    assert score.cluster_cost(component(1600, GIBI), record) == 100
    assert score.cluster_cost(component(gpu=4), record) == 500
    assert score.cluster_cost(component(1600), cluster("b", nodes=(node(),))) == 0


def test_the_cheapest_nodes_come_first_and_those_without_room_not_at_all() -> None:
    nodes = (node(400, count=2), node(100, free_cpu_millis=2000), node(1, free_cpu_millis=0))
    wanted = Demand(application="a", components=(), objective=Objective(cost=2, latency=3, to=("x",)))
    assert score.steps(wanted, component(1000, GIBI), cluster("a", nodes=nodes), 5.0) == ((2, 15050), (8, 15200))
    plain = Demand(application="a", components=())
    assert score.steps(plain, component(1000, GIBI), cluster("a", nodes=nodes), None) == ((2, 25), (8, 100))


def test_a_way_that_was_not_measured_is_far() -> None:
    near = score.cost(Objective(to=("x",)), 0, 900.0)
    assert score.cost(Objective(to=("x",)), 0, None) > near
    assert score.cost(Objective(), 7, None) == 7


def test_distances_are_sums_of_links_through_the_nearest_common_cluster() -> None:
    tree = [
        cluster("root"),
        cluster("north", "root", 10.0),
        cluster("south", "root", 20.0),
        cluster("n1", "north", 1.0),
        cluster("n2", "north", 2.0),
        cluster("dark", "south"),
    ]
    to_n1 = score.distances(tree, ("n1",))
    assert [to_n1(name) for name in ("n1", "n2", "north", "root", "south", "dark")] == [0.0, 3.0, 1.0, 11.0, 31.0, None]
    both = score.distances(tree, ("n1", "south"))
    assert both("n2") == 32.0, "the farthest counts"
    above = score.distances(tree, ("elsewhere",))
    assert (above("n2"), above("root"), above("dark")) == (12.0, 0.0, None)
    assert score.distances(tree, ("dark",))("n1") is None
    assert score.distances(tree, ())("n1") is None
    assert score.distances([cluster("a", "b", 1.0), cluster("b", "a", 1.0)], ("z",))("a") == 1.0, "a circle ends"


def test_users_are_as_far_as_each_cluster_says_and_the_farthest_of_all_counts() -> None:
    tree = [
        cluster("root"),
        cluster("near", "root", 10.0, user_millis={"hall": 3.0, "dock": 40.0}),
        cluster("far", "root", 20.0, user_millis={"hall": 25.0}),
    ]
    hall = score.distances(tree, (), ("hall",))
    assert [hall(name) for name in ("near", "far", "root", "nobody")] == [3.0, 25.0, None, None]
    assert score.distances(tree, (), ("hall", "dock"))("near") == 40.0
    assert score.distances(tree, (), ("hall", "dock"))("far") is None
    assert score.distances(tree, ("near",), ("hall",))("far") == 30.0
    assert score.cost(Objective(users=("hall",)), 0, None) > score.cost(Objective(users=("hall",)), 0, 900.0)


def test_wishes_are_added_up() -> None:
    labels = {"a": {"zone": "x"}, "b": {"zone": "x"}, "c": {}}
    wanted = Demand(
        application="a",
        components=(),
        preferences=(Preference(10, (Requirement("zone", "In", ("x",)),)), Preference(5, (Requirement("gpu", "Exists"),))),
        neighbours=(
            Neighbour(name="cache", where=frozenset({"b"}), topology="zone", weight=20),
            Neighbour(name="noisy", where=frozenset({"a"}), apart=True, weight=7),
            Neighbour(name="wanted", where=frozenset({"c"})),
        ),
        tolerations=(Toleration("spot", "Exists"),),
    )
    taints = (Taint("spot", "", "PreferNoSchedule"), Taint("old", "", "PreferNoSchedule"))
    assert score.preference(wanted, cluster("a", labels=labels["a"], taints=taints), labels) == 10 + 20 - 7 - 1
    assert score.preference(wanted, cluster("c", labels=labels["c"]), labels) == 0


def test_a_score_says_its_parts() -> None:
    record = cluster("a", nodes=(node(400),), hourly_micros=100, models=frozenset({"sha256:1"}))
    one = ComponentDemand(name="c", replicas=1, request=Request(1000, GIBI), model="sha256:1")
    wanted = Demand(application="a", components=(one,), objective=Objective(to=("x",)))
    found = score.score(wanted, one, record, wish=3, millis=2.5, room=4)
    assert (found.preference, found.hourly_micros, found.latency_millis, found.present) == (3, 125, 2.5, True)
    assert (found.cost, found.room) == (2625, 4)
