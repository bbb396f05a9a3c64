"""What the shim saw becomes documents: never better than it is, and a lower share is acknowledged only when it is true."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.reconcile import observe
from cluster_controller.resources import kinds
from cluster_shim.contract import Ended, Instance, Node, ObservedComponent, ObservedWork, Phase

APPLICATION = kinds.ApplicationReference(uid="app", name="emotion", namespace="shop", origin="o", origin_name="root")


def component(name: str = "serve", desired: int = 1, ready: int = 1, **changes: object) -> ObservedComponent:
    return ObservedComponent(**({"name": name, "desired": desired, "ready": ready, "updated": ready} | changes))  # type: ignore[arg-type]


def instance(number: int = 0, name: str = "serve", **changes: object) -> Instance:
    fields: dict[str, object] = {
        "id": f"emotion-{name}-{number}",
        "component": name,
        "revision": "r1",
        "phase": Phase.RUNNING,
        "ready": True,
    }
    return Instance(**(fields | changes))  # type: ignore[arg-type]


def work_status(
    *components: ObservedComponent, instances: tuple[Instance, ...] = (), problems: dict[str, str] | None = None
) -> kinds.WorkStatusStatus:
    seen = ObservedWork(uid="app", version=4, components=components, instances=instances)
    document = observe.work_status(APPLICATION, "me", "edge-1", seen, problems or {})
    assert (document.metadata.name, document.spec.cluster, document.spec.application) == ("app", "me", APPLICATION)
    return document.status


def test_a_work_that_is_well() -> None:
    status = work_status(component(port=8500), component("pump", 2, 2), instances=(instance(),))
    assert (status.version, status.cluster_count) == (4, 1)
    (row,) = status.clusters
    assert (row.cluster, row.name, row.ready, row.desired, row.port, row.reason) == ("me", "edge-1", 3, 3, 8500, "")
    assert row.components == {"serve": 1, "pump": 2}


def test_the_first_trouble_is_shown_in_the_row() -> None:
    status = work_status(component(), component("pump", 1, 0, reason="BackOff", message="exit 1"))
    assert (status.clusters[0].reason, status.clusters[0].message) == ("BackOff", "exit 1")
    started = component("first", 1, 1, reason="Starting", message="waiting until the new instances are ready")
    refused = component("pump", 1, 0, reason="Invalid", message="port 99999")
    for order in ((started, refused), (refused, started)):
        assert work_status(*order).clusters[0].reason == "Invalid"
    assert work_status(started).clusters[0].reason == "Starting"


def test_a_component_that_could_not_be_told_is_not_updated_and_says_why() -> None:
    status = work_status(component(), problems={"serve": "model 2 is on its way", "new": "Secret s is not here yet"})
    serve, new = status.components
    assert (serve.ready, serve.updated, serve.reason, serve.message) == (1, 0, "NotReady", "model 2 is on its way")
    assert (new.name, new.ready, new.message) == ("new", 0, "Secret s is not here yet")
    kept = work_status(component(reason="BackOff", message="exit 1"), problems={"serve": "later"}).components[0]
    assert (kept.reason, kept.message) == ("BackOff", "later")


def test_a_work_of_nothing_is_in_no_row() -> None:
    assert work_status(component(desired=0, ready=0)).clusters == []


@given(st.integers(0, 3), st.lists(st.sampled_from(list(Phase)), max_size=5))
def test_a_share_is_acknowledged_only_when_no_more_than_it_runs(share: int, phases: list[Phase]) -> None:
    instances = tuple(instance(number, phase=phase) for number, phase in enumerate(phases))
    status = work_status(component(desired=share, ready=0), instances=instances)
    assert status.version == (4 if len(instances) <= share else 0)


def test_instances_of_a_component_that_is_gone_are_above_the_share() -> None:
    assert work_status(component(), instances=(instance(name="old"),)).version == 0
    assert work_status(instances=()).version == 4


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        (Phase.RUNNING, "Running"),
        (Phase.STOPPING, "Running"),
        (Phase.FAILED, "Failed"),
        (Phase.PENDING, "Pending"),
        (Phase.STARTING, "Pending"),
        (Phase.BACKOFF, "Pending"),
    ],
)
def test_an_instance_is_shown_as_a_pod(phase: Phase, shown: str) -> None:
    seen = instance(phase=phase, pid=17, restarts=2, started_unix=1.0, node="box", reason="Why", message="so", ready=phase is Phase.RUNNING)
    pod = observe.pod(ObservedWork(uid="app", version=1), APPLICATION, seen)
    assert (pod.metadata.name, pod.metadata.namespace, pod.metadata.uid) == ("emotion-serve-0", "shop", "app-emotion-serve-0")
    assert pod.metadata.labels["banyan.dev/application"] == "emotion"
    assert (pod.status.phase, pod.status.reason, pod.spec.node_name) == (shown, "Why", "box")
    assert pod.status.start_time == "1970-01-01T00:00:01Z"
    (container,) = pod.status.container_statuses
    assert (container.restart_count, container.container_id, container.ready) == (2, "process://17", phase is Phase.RUNNING)
    assert (container.state.running is not None) == (shown == "Running")
    assert {condition.status for condition in pod.status.conditions} == {"True" if phase is Phase.RUNNING else "False"}
    if container.state.waiting is not None:
        assert (container.state.waiting.reason, container.state.waiting.message) == ("Why", "so")


def test_a_pod_that_has_not_started() -> None:
    pod = observe.pod(ObservedWork(uid="app", version=1), APPLICATION, instance(phase=Phase.PENDING, ready=False))
    (container,) = pod.status.container_statuses
    assert (pod.status.start_time, container.container_id) == (None, "")
    assert container.state.waiting is not None and container.state.waiting.reason == "Pending"


def test_how_the_last_run_ended_is_shown_as_kubernetes_does() -> None:
    ended = Ended(reason="OOMKilled", message="too much", exit_code=137, last_line="eating", started_unix=1.0, finished_unix=62.0)
    (container,) = observe.pod(
        ObservedWork(uid="app", version=1), APPLICATION, instance(phase=Phase.BACKOFF, ready=False, reason="CrashLoopBackOff", ended=ended)
    ).status.container_statuses
    assert container.state.waiting is not None
    assert container.state.waiting.reason == "CrashLoopBackOff"
    assert container.last_state.terminated == kinds.ContainerStateTerminated(
        exit_code=137,
        reason="OOMKilled",
        message="too much; its last log line: eating",
        started_at="1970-01-01T00:00:01Z",
        finished_at="1970-01-01T00:01:02Z",
    )
    (first,) = observe.pod(ObservedWork(uid="app", version=1), APPLICATION, instance()).status.container_statuses
    assert first.last_state == kinds.ContainerState()


def node(name: str = "box", **changes: object) -> Node:
    fields: dict[str, object] = {
        "name": name, "architecture": "amd64", "cpu_millis": 4000, "memory_bytes": 1 << 30, "allocatable_cpu_millis": 3500,
        "allocatable_memory_bytes": 1 << 29, "accelerators": {"nvidia.com/gpu": 1}, "labels": {"disk": "ssd"},
    }  # fmt: skip
    return Node(**(fields | changes))  # type: ignore[arg-type]


def test_a_machine_is_shown_as_a_node() -> None:
    shown = observe.node(node(kernel="6.1", boot_id="b"), "v1")
    assert shown.status.capacity == {"cpu": "4", "memory": "1Gi", "nvidia.com/gpu": "1"}
    assert shown.status.allocatable == {"cpu": "3500m", "memory": "512Mi", "nvidia.com/gpu": "1"}
    assert shown.metadata.labels == {
        "kubernetes.io/hostname": "box", "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "disk": "ssd",
    }  # fmt: skip
    assert (shown.status.conditions[0].status, shown.status.node_info.boot_id) == ("True", "b")
    assert observe.node(node(ready=False), "v1").status.conditions[0].reason == "NodeNotReady"


def test_equal_nodes_with_equally_much_free_are_one_class() -> None:
    nodes = [node("a"), node("c", ready=False), node("b"), node("big", allocatable_cpu_millis=9000)]
    asked = {
        "a": kinds.ResourceSums(cpu_millis=500, memory_bytes=1 << 28, accelerators={"nvidia.com/gpu": 1}),
        "b": kinds.ResourceSums(cpu_millis=9999, accelerators={"nvidia.com/gpu": 5}),
    }
    emptier, full, big = observe.node_classes(nodes, asked)
    assert (emptier.count, emptier.ready, emptier.names) == (2, 1, ["a", "c"])
    assert (full.count, full.ready, full.names, full.free.cpu_millis) == (1, 1, ["b"], 0)
    assert (emptier.free.cpu_millis, emptier.free.memory_bytes, emptier.free.accelerators) == (3000, 1 << 28, {"nvidia.com/gpu": 0})
    (same,) = observe.node_classes([node("a"), node("b"), node("c", ready=False)], {})
    assert (same.count, same.ready, same.names) == (3, 2, ["a", "b", "c"])
    assert (big.count, big.free.cpu_millis, big.labels) == (1, 9000, {"disk": "ssd"})
    (dark,) = observe.node_classes([node("x", ready=False)], {})
    assert (dark.ready, dark.free) == (0, kinds.ResourceSums())


@given(st.lists(st.tuples(st.sampled_from(["amd64", "arm64"]), st.integers(0, 2), st.booleans()), max_size=40))
def test_classes_count_every_node_once(made: list[tuple[str, int, bool]]) -> None:
    nodes = [
        node(f"n{index:02}", architecture=architecture, allocatable_cpu_millis=cpu * 1000, ready=ready)
        for index, (architecture, cpu, ready) in enumerate(made)
    ]
    classes = observe.node_classes(nodes, {})
    assert sum(found.count for found in classes) == len(nodes)
    assert sum(found.ready for found in classes) == sum(item.ready for item in nodes)
    up = {item.name for item in nodes if item.ready}
    for found in classes:
        assert len(found.names) == min(found.count, observe.NAMES_PER_CLASS)
        assert all((name in up) == (index < found.ready) for index, name in enumerate(found.names))


@given(st.lists(st.tuples(st.integers(0, 3500), st.integers(0, 1 << 28)), max_size=60))
def test_what_a_class_tells_is_on_each_of_its_nodes_and_classes_are_few(taken: list[tuple[int, int]]) -> None:
    nodes = [node(f"n{index:02}") for index in range(len(taken))]
    asked = {item.name: kinds.ResourceSums(cpu_millis=cpu, memory_bytes=memory) for item, (cpu, memory) in zip(nodes, taken, strict=True)}
    classes = observe.node_classes(nodes, asked)
    assert len(classes) <= observe.MOST_CLASSES
    assert sum(found.count for found in classes) == len(nodes)
    for found in classes:
        for name in found.names:
            item = next(each for each in nodes if each.name == name)
            assert found.free.cpu_millis <= item.allocatable_cpu_millis - asked[name].cpu_millis
            assert found.free.memory_bytes <= item.allocatable_memory_bytes - asked[name].memory_bytes


def test_what_is_asked_for_is_charged_where_it_runs_and_the_rest_where_it_fits_tightest() -> None:
    nodes = [node("a", allocatable_cpu_millis=1000), node("b", allocatable_cpu_millis=2000), node("down", ready=False)]

    def cpu(millis: int) -> kinds.ResourceSums:
        return kinds.ResourceSums(cpu_millis=millis)

    def used(*asked: tuple[kinds.ResourceSums, int, dict[str, int]]) -> dict[str, int]:
        return {name: sums.cpu_millis for name, sums in observe.charge(nodes, asked).items()}

    assert used((cpu(300), 3, {"b": 2, "gone": 9})) == {"a": 300, "b": 600, "down": 0}
    assert used((cpu(300), 2, {"a": 5})) == {"a": 600, "b": 0, "down": 0}, "never more than there are"
    assert used((cpu(200), 1, {}), (cpu(1500), 1, {}), (cpu(900), 1, {})) == {"a": 900, "b": 1700, "down": 0}, "the largest first"
    assert used((cpu(5000), 1, {})) == {"a": 0, "b": 5000, "down": 0}, "where most is left"
