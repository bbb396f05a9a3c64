"""A Kubernetes cluster as a member: what is created at the root runs there, answers, explains itself, and outlives every blindness.

Each test has a namespace of its own in the member it shares, and leaves it empty.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from e2e.place import Place, busybox, join
from e2e.support import Site, Tree, growing, until
from e2e.testbed.components import APISERVER
from e2e.testbed.member import Member

pytestmark = pytest.mark.needs("kubectl")
IMAGE = "banyan-edge:0.1.0"  # as `edge_image` names it
SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = (os.environ["BANYAN_INSTANCE"] + " " + self.path).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *words): print("asked", self.path, flush=True)
print("serving", flush=True)
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def at_whole(whole_member: Member, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site, Member]]:
    """root, and a controller beside a cluster where pods really run."""
    whole_member.load_image(edge_image)
    with growing(tmp_path_factory.mktemp("whole")) as tree:
        root = tree.root()
        yield root, join(tree, root, "edge-k8s", whole_member, "--kubernetes", f"worker_image={IMAGE}"), whole_member


@pytest.fixture
def whole(at_whole: tuple[Site, Site, Member]) -> Iterator[Place]:
    place = Place(*at_whole, "edge-k8s")
    yield place
    place.clear()


@pytest.fixture(scope="module")
def at_kwok(kwok_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site, Member]]:
    """root, and a controller beside a cluster whose nodes and pods are played."""
    with growing(tmp_path_factory.mktemp("kwok")) as tree:
        root = tree.root()
        yield root, join(tree, root, "edge-kwok", kwok_member), kwok_member


@pytest.fixture
def kwok(at_kwok: tuple[Site, Site, Member]) -> Iterator[Place]:
    place = Place(*at_kwok, "edge-kwok")
    yield place
    place.clear()


def deployment(name: str, **pod: Any) -> dict[str, Any]:
    """As somebody writes it by hand."""
    labels = {"app": name}
    spec = {"containers": [{"name": "it", "image": "busybox:testbed", "command": ["sleep", "3600"]}]} | pod
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def test_an_application_runs_in_pods_answers_and_shows_its_log(whole: Place) -> None:
    whole.create("web", {"container": {"image": IMAGE, "command": ["python3", "-c", SERVER]}, "env": [{"name": "PORT", "value": "8099"}],
                         "expose": {"port": 8099}, "replicas": 2, "readiness": {"tcpSocket": {}}})  # fmt: skip
    whole.until_ready("web", 2)
    pods = {pod["metadata"]["name"] for pod in whole.objects("pods")}
    proxy = f"{whole.applications}/web/proxy"
    answers = set()
    for number in range(40):
        code, answer = whole.root.ask("GET", f"{proxy}/some/{number}")
        assert code == 200, answer
        instance, path = answer.decode().split()
        assert path == f"/some/{number}"
        answers.add(instance)
    assert answers == pods, "one of two instances never got a request"
    body = "x" * 300_000
    code, answer = whole.root.ask("POST", f"{proxy}/echo", body)
    assert (code, answer.decode()) == (200, json.dumps(body))
    log = whole.root.banyan("logs", "web", "-n", whole.namespace).stdout
    assert "serving" in log
    assert "asked /some/" in log
    pod = whole.edge.get(f"/api/v1/namespaces/{whole.namespace}/pods")["items"][0]
    assert pod["spec"]["nodeName"] == whole.member.name
    whole.root.kubectl("delete", "application", "web", "-n", whole.namespace)
    assert whole.objects() == []


def test_what_keeps_a_pod_from_running_is_said_in_the_members_own_words(whole: Place) -> None:
    whole.create("unknown-image", {"container": {"image": "registry.invalid/nothing:1"}})
    whole.create("nowhere", {"manifests": [deployment("nowhere", nodeSelector={"disk": "none-such"})]})
    whole.create("crashes", busybox("sh", "-c", "echo the disk is on fire; exit 3"))
    whole.create("never-ready", busybox("sleep", "3600", readiness={"exec": {"command": ["false"]}, "periodSeconds": 1}))
    assert "registry.invalid/nothing:1" in whole.until_reason("unknown-image", "ImagePullBackOff")
    assert "didn't match Pod's node affinity/selector" in whole.until_reason("nowhere", "Unschedulable")
    assert "exit code 3" in whole.until_reason("crashes", "CrashLoopBackOff")
    until("the last log line is told", lambda: "the disk is on fire" in whole.row("crashes")["message"])
    assert "Readiness probe failed" in whole.until_reason("never-ready", "NotReady")


def test_a_quota_that_is_full_is_named(kwok: Place) -> None:
    kwok.member.kubectl("create", "namespace", kwok.namespace)
    kwok.member.kubectl("create", "quota", "none", "--hard=pods=0", "-n", kwok.namespace)
    kwok.create("over", busybox("sleep", "3600"))
    assert "exceeded quota: none" in kwok.until_reason("over", "QuotaExceeded")
    kwok.member.kubectl("delete", "namespace", kwok.namespace)


def test_a_frozen_api_server_is_shown_and_loses_nothing(kwok: Place) -> None:
    """It keeps its connections open, so nothing breaks: only asking shows it. What ran is not declared dead; what is made waits."""
    kwok.create("before", busybox("sleep", "3600", replicas=3))
    kwok.until_ready("before", 3)
    kwok.member.pause(APISERVER)
    try:
        message = kwok.until_reason("before", "ApiServerUnreachable")
        assert "has not been heard since 20" in message
        assert "runs on" in message
        for number in range(5):
            kwok.create(f"meanwhile-{number}", busybox("sleep", "3600"))
        kwok.root.kubectl("patch", "application", "before", "-n", kwok.namespace, "--type=json",
                          "-p", '[{"op": "replace", "path": "/spec/components/0/replicas", "value": 4}]')  # fmt: skip
        assert kwok.status("before").get("desired") == 4
    finally:
        kwok.member.resume(APISERVER)
    kwok.until_ready("before", 4)
    for number in range(5):
        kwok.until_ready(f"meanwhile-{number}", 1)
    names = sorted(item["metadata"]["name"] for item in kwok.objects("deployments"))
    assert len(names) == 6, f"something was doubled or lost: {names}"
    assert kwok.row("before").get("reason", "") == ""


def test_an_api_server_that_dies_in_the_middle_of_applying(kwok: Place) -> None:
    for number in range(12):
        kwok.create(f"many-{number}", busybox("sleep", "3600"))
        if number == 5:
            kwok.member.kill(APISERVER)
    kwok.member.start(APISERVER)
    kwok.member.wait_api()
    for number in range(12):
        kwok.until_ready(f"many-{number}", 1)
    assert len(kwok.objects("deployments")) == 12


def test_another_cluster_behind_the_same_kubeconfig_is_refused(
    kwok_member: Member, control_plane: Member, tmp_path: Path, tree: Tree
) -> None:
    """Its applications would be taken for strays, and removed."""
    root = tree.root()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(kwok_member.kubeconfig.read_bytes())
    site = join(tree, root, "edge-k8s", kwok_member, kubeconfig=kubeconfig)
    until("it has nodes", lambda: root.clusters()["edge-k8s"].get("facts", {}).get("nodes") == 3)
    site.stop()
    kubeconfig.write_bytes(control_plane.kubeconfig.read_bytes())
    site.launch("run", "--data", str(site.folder))
    until("it says what is wrong", lambda: "is another cluster than the one that was joined" in site.log(200))
    assert "cluster.json" in site.log(200)


def test_rights_that_are_missing_are_named_one_by_one(kwok_member: Member, tree: Tree) -> None:
    root = tree.root()
    site = tree.site("edge-k8s")
    poor = kwok_member.user("poor", ["nobodys"])
    kwok_member.kubectl("create", "clusterrole", "poor", "--verb=get", "--resource=namespaces")
    kwok_member.kubectl("create", "clusterrolebinding", "poor", "--clusterrole=poor", "--group=nobodys")
    site.join(root.token(), "--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig", str(poor))
    until("it names what it lacks", lambda: "missing rights: list pods, watch pods, list nodes" in site.log(200))
    assert "list deployments.apps" in site.log(200)
    kwok_member.kubectl("delete", "clusterrole,clusterrolebinding", "poor")


@pytest.mark.parametrize(("given", "said"), [("missing", "name a kubeconfig that kubectl accepts"), ("expired", "certificate")])
def test_a_kubeconfig_that_leads_nowhere(kwok_member: Member, tree: Tree, tmp_path: Path, given: str, said: str) -> None:
    expired = kwok_member.user("expired", ["system:masters"], valid=timedelta(days=-1))
    site = tree.site("edge-k8s")
    kubeconfig = expired if given == "expired" else tmp_path / "none"
    site.join(tree.root().token(), "--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig", str(kubeconfig))
    until("it says what is wrong", lambda: said in site.log(200))
