"""How a new version of a component takes over in a member, only once it has shown that it stays; and where its pods may go."""

from typing import Any

from cluster_shim import contract
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.render import Settings

SETTINGS = Settings(worker_image="worker:1")


def deployment(**fields: Any) -> dict[str, Any]:
    component = contract.Component(name="main", replicas=1, revision="r", image="x", **fields)
    work = contract.Work(uid="u", name="web", namespace="shop", origin="root", version=1, components=(component,))
    (made,) = [item.object for item in render.render(work, SETTINGS, None) if item.object["kind"] == "Deployment"]
    return made


def test_without_a_probe_it_must_run_for_a_while() -> None:
    spec = deployment()["spec"]
    assert spec["minReadySeconds"] == render.UNPROVEN_SECONDS > 0
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_with_a_probe_that_is_for_the_probe_to_say() -> None:
    assert deployment(readiness=contract.Probe(tcp=True), port=80)["spec"]["minReadySeconds"] == 0


def test_a_folder_that_outlives_its_pods_has_one_writer_at_a_time() -> None:
    spec = deployment(volumes=(contract.Volume(name="data", path="data"),))["spec"]
    assert spec["strategy"] == {"type": "Recreate"}


def test_a_named_node_is_found_by_its_name_whatever_its_labels_say() -> None:
    pod = deployment(node="edge-7.example", node_labels={"zone": "north"}, architecture="arm64")["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"zone": "north", "kubernetes.io/arch": "arm64"}
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["edge-7.example"]}]}
    assert "affinity" not in deployment()["spec"]["template"]["spec"]
