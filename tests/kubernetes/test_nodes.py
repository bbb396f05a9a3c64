"""Nodes: what is there, what others have taken of it, and sums that do not drift."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cluster_shim.kubernetes import names, narrow, nodes
from cluster_shim.kubernetes.nodes import NOTHING, Asked, Ledger
from tests.kubernetes.documents import node, pod


def requests(**found: str) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": {key.replace("_", "/"): value for key, value in found.items()}}}


def test_a_node() -> None:
    seen = nodes.observe(node(sizes={"nvidia.com/gpu": "2", "kubernetes.io/batch": "1"}), (150, 2048))
    assert (seen.name, seen.architecture, seen.kernel, seen.boot_id, seen.ready) == ("n1", "arm64", "6.1", "b", True)
    assert (seen.cpu_millis, seen.memory_bytes, seen.allocatable_cpu_millis) == (4000, 8 << 30, 4000)
    assert (seen.used_cpu_millis, seen.used_memory_bytes) == (150, 2048)
    assert seen.accelerators == {"nvidia.com/gpu": 2}
    assert seen.labels == {"zone": "north", "banyan.dev/kubelet": "v1.34.2_k3s1"}


def test_what_other_peoples_pods_ask_is_not_there_for_us() -> None:
    seen = nodes.observe(node(sizes={"nvidia.com/gpu": "2"}), foreign=Asked(1500, 1 << 30, {"nvidia.com/gpu": 1}))
    assert (seen.allocatable_cpu_millis, seen.allocatable_memory_bytes, seen.accelerators) == (2500, 7 << 30, {"nvidia.com/gpu": 1})
    full = nodes.observe(node(sizes={"nvidia.com/gpu": "2"}), foreign=Asked(5000, 9 << 30, {"nvidia.com/gpu": 2}))
    assert (full.allocatable_cpu_millis, full.allocatable_memory_bytes, full.accelerators) == (0, 0, {})
    assert full.cpu_millis == 4000


def test_a_node_that_takes_no_pods_has_nothing_to_give() -> None:
    for barred in (node(unschedulable=True), node(taints=[{"key": "control-plane", "effect": "NoSchedule"}])):
        assert nodes.observe(barred).allocatable_cpu_millis == 0
    lenient = [{"key": "slow", "effect": "PreferNoSchedule"}, {"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]
    assert nodes.observe(node(taints=lenient)).allocatable_cpu_millis == 4000
    assert not nodes.observe(node(ready=False)).ready


def test_what_a_pod_asks_as_the_scheduler_counts_it() -> None:
    plain = pod(spec={"containers": [requests(cpu="100m", memory="1Mi"), requests(cpu="200m")]})
    assert nodes.asked(plain) == Asked(300, 1 << 20)
    large_init = pod(spec={"containers": [requests(cpu="100m")], "initContainers": [requests(cpu="1", memory="1Ki")]})
    assert nodes.asked(large_init) == Asked(1000, 1024)
    sidecar = {**requests(cpu="50m"), "restartPolicy": "Always"}
    assert nodes.asked(pod(spec={"containers": [requests(cpu="100m")], "initContainers": [sidecar, requests(cpu="20m")]})) == Asked(150)
    gpu = pod(spec={"containers": [requests(**{"nvidia.com_gpu": "1"})], "overhead": {"cpu": "10m"}})
    assert nodes.asked(gpu) == Asked(10, 0, {"nvidia.com/gpu": 1})
    assert nodes.asked(pod(phase="Succeeded", spec={"containers": [requests(cpu="1")]})) == NOTHING


def test_pods_of_ours_are_not_counted_twice() -> None:
    ledger = Ledger()
    assert not ledger.put(pod("ours", spec={"containers": [requests(cpu="1")]}))
    assert ledger.put(pod("foreign", labels={}, spec={"containers": [requests(cpu="1")]}))
    assert ledger.of("n1") == Asked(1000)
    assert ledger.of("n2") == NOTHING
    assert nodes.observe_all([node("n2"), node("n1")], {"n2": (1, 2)}, ledger.of)[0].allocatable_cpu_millis == 3000


POD = st.builds(
    lambda name, where, cpu, gpu, over: pod(
        f"p{name}", labels={}, node=where, phase="Succeeded" if over else "Running",
        spec={"containers": [requests(cpu=f"{cpu}m", **({"x.io_gpu": str(gpu)} if gpu else {}))]},
    ),
    st.integers(0, 5), st.sampled_from(["n1", "n2", ""]), st.integers(0, 3), st.integers(0, 2), st.booleans(),
)  # fmt: skip


@given(st.lists(POD | st.integers(0, 5)))
def test_sums_are_those_of_the_pods_that_are_there(steps: list[narrow.Pod | int]) -> None:
    ledger, there = Ledger(), dict[str, narrow.Pod]()
    for step in steps:
        before = {name: ledger.of(name) for name in ("n1", "n2")}
        if isinstance(step, int):
            changed = ledger.drop(f"p{step}")
            there.pop(f"p{step}", None)
        else:
            changed = ledger.put(step)
            there[step.metadata.uid] = step
        for name in ("n1", "n2"):
            expected = NOTHING
            for each in there.values():
                if each.spec.node_name == name:
                    expected += nodes.asked(each)
            assert ledger.of(name) == expected
        assert changed or before == {name: ledger.of(name) for name in ("n1", "n2")}


def test_a_pod_decodes_without_what_nobody_reads() -> None:
    made = pod(spec={"containers": [requests(cpu="1")]})
    assert msgspec.json.decode(msgspec.json.encode(made), type=narrow.Pod) == made
    assert made.metadata.labels[names.COMPONENT_LABEL] == "main"
    assert not hasattr(made.metadata, "annotations")
