"""A cluster of k3s: what k3s brings along is noticed and used, HelmChart objects are manifests like any, and kubectl works on it.

The member is made of k3s's parts, not the k3s program: its service load balancer, its ingress and its HelmChart controller are not there.
The tests put there what those leave in a cluster, and say about a HelmChart what that controller says.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.place import Place, busybox, join, manifests
from e2e.support import Site, growing, until
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
CLUSTER = "edge-k3s"
LABELS = ("k3s.banyan.dev/servicelb", "k3s.banyan.dev/traefik")
POD = {"spec": {"containers": [{"name": "it", "image": "nowhere/it:1"}]}}
GROUP = "helm.cattle.io"
# As k3s v1.34 ships it, cut to what is used here.
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"helmcharts.{GROUP}"},
    "spec": {
        "group": GROUP,
        "names": {"kind": "HelmChart", "plural": "helmcharts", "singular": "helmchart"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                "subresources": {"status": {}},
            }
        ],
    },
}
HELM_CHART = {
    "apiVersion": f"{GROUP}/v1",
    "kind": "HelmChart",
    "metadata": {"name": "grafana"},
    "spec": {"chart": "grafana", "repo": "https://charts.example.com", "targetNamespace": "monitoring", "valuesContent": "replicas: 1\n"},
}


def brought_along(kind: str, name: str, **labels: str) -> dict[str, Any]:
    """A workload of k3s's own in kube-system."""
    labels = {"app": name} | labels
    template = {"metadata": {"labels": {"app": name}}} | POD
    spec = {"selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "kube-system", "labels": labels}, "spec": spec}


SERVICELB = brought_along("DaemonSet", "svclb-traefik-3c1a", **{"svccontroller.k3s.cattle.io/svcname": "traefik"})
TRAEFIK = brought_along("Deployment", "traefik")


@pytest.fixture(scope="module")
def joined(k3s_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site, Member]]:
    """root, and a controller with the k3s shim beside a cluster that has what k3s brings along."""
    for made in (SERVICELB, TRAEFIK, DEFINITION):
        k3s_member.kubectl("apply", "-f", "-", stdin=json.dumps(made))
    k3s_member.kubectl("wait", "--for=condition=Established", f"crd/helmcharts.{GROUP}", "--timeout=30s")
    try:
        with growing(tmp_path_factory.mktemp("k3s")) as tree:
            root = tree.root()
            yield root, join(tree, root, CLUSTER, k3s_member, "--shim", "k3s"), k3s_member
    finally:
        k3s_member.kubectl("delete", f"crd/helmcharts.{GROUP}", "--ignore-not-found", check=False)
        for kind, made in (("daemonset", SERVICELB), ("deployment", TRAEFIK)):
            k3s_member.kubectl("delete", kind, made["metadata"]["name"], "-n", "kube-system", "--ignore-not-found", check=False)


@pytest.fixture
def place(joined: tuple[Site, Site, Member]) -> Iterator[Place]:
    place = Place(*joined, CLUSTER)
    yield place
    place.clear()


def test_servicelb_and_traefik_are_noticed_and_the_site_port_is_a_load_balancer_s(place: Place) -> None:
    until("the root knows what it is", lambda: place.root.clusters()[CLUSTER].get("facts", {}).get("shim") == "k3s")
    (node,) = until("its node is told", lambda: place.edge.get("/api/v1/nodes")["items"])
    assert {name: node["metadata"]["labels"].get(name) for name in LABELS} == dict.fromkeys(LABELS, "true")
    assert "member.k3s" in place.edge.log(400) and "member.no_k3s" not in place.edge.log(400)
    place.create("web", busybox("sleep", "3600", expose={"port": 8099}))
    place.until_ready("web")
    (service,) = place.objects("services")
    assert service["spec"]["type"] == "LoadBalancer" and service["spec"]["ports"][0]["port"] == 8099


def test_a_helmchart_object_is_a_manifest_like_any(place: Place) -> None:
    place.create("monitoring", manifests(HELM_CHART))
    (chart,) = until("it is in the member", lambda: place.objects("helmcharts"))
    assert chart["spec"] == HELM_CHART["spec"]
    place.until("monitoring", "is carried out", lambda: place.row("monitoring").get("reason", "") == "")
    # What k3s's controller writes there is its own: it stays, and is no drift.
    told = {"status": {"jobName": "helm-install-grafana", "conditions": [{"type": "JobCreated", "status": "True"}]}}
    patch = ("patch", "helmchart", "grafana", "-n", place.namespace, "--type=merge", "-p")
    place.member.kubectl(*patch, json.dumps(told), "--subresource=status")
    place.member.kubectl(*patch, json.dumps({"spec": {"chart": "by-hand"}}))
    until("what somebody changed is set right", lambda: place.objects("helmcharts")[0]["spec"] == HELM_CHART["spec"])
    assert place.objects("helmcharts")[0]["status"] == told["status"]
    place.root.kubectl("delete", "application", "monitoring", "-n", place.namespace)
    until("it is gone", lambda: not place.objects("helmcharts"))


def test_kubectl_on_it_through_the_tree(place: Place, tmp_path: Path) -> None:
    place.create("monitoring", manifests(HELM_CHART))
    until("it is in the member", lambda: place.objects("helmcharts"))
    told = json.dumps({"status": {"jobName": "helm-install-grafana"}})
    place.member.kubectl("patch", "helmchart", "grafana", "-n", place.namespace, "--type=merge", "-p", told, "--subresource=status")
    place.member.kubectl("create", "clusterrolebinding", "k3s-admin", "--clusterrole=cluster-admin", "--group=banyan:admin")
    try:
        config = tmp_path / "kubeconfig"
        place.root.banyan("kubeconfig", CLUSTER, "--write", str(config))

        def through(*arguments: str) -> str:
            return place.root.kubectl(*arguments, kubeconfig=config, check=False).strip()

        assert "+k3s1" in through("version")
        assert through("get", "nodes", "-o", "name") == place.member.kubectl("get", "nodes", "-o", "name").strip()
        read = ("get", "helmchart", "grafana", "-n", place.namespace, "-o", "jsonpath={.status.jobName}")
        until("the right counts", lambda: through(*read) == "helm-install-grafana")
    finally:
        place.member.kubectl("delete", "clusterrolebinding", "k3s-admin", "--ignore-not-found")
