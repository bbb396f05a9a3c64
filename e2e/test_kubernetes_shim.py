"""A Kubernetes cluster as a member: what is created at the root runs there, answers, explains itself, and outlives every blindness.

Each test has a namespace of its own in the member it shares, and leaves it empty.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from e2e.at_site import load_worker
from e2e.place import Place, busybox, config_map, join, manifests
from e2e.support import API, Site, Tree, application, growing, until
from e2e.testbed.components import APISERVER
from e2e.testbed.member import Member

pytestmark = pytest.mark.needs("kubectl")
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

SLEEP = busybox("sleep", "3600")
SHOWN_SECONDS = 20.0  # within which a silent API server is shown
MADE_UP_SECONDS = 10.0  # within which everything is there once it speaks again
MEANWHILE = 5  # Applications that are made in the silence
MANY = 24


@pytest.fixture(scope="module")
def at_whole(whole_member: Member, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site, Member]]:
    """root, and a controller beside a cluster where pods really run."""
    image = load_worker(whole_member, edge_image)
    with growing(tmp_path_factory.mktemp("whole")) as tree:
        root = tree.root()
        yield root, join(tree, root, "edge-k8s", whole_member, "--kubernetes", f"worker_image={image}"), whole_member


@pytest.fixture
def whole(at_whole: tuple[Site, Site, Member]) -> Iterator[Place]:
    place = Place(*at_whole, "edge-k8s")
    yield place
    place.clear()


@pytest.fixture(scope="module")
def at_both(kwok_member: Member, k3s_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site, Site]]:
    """root, and controllers beside two clusters whose nodes and pods are played."""
    with growing(tmp_path_factory.mktemp("kwok")) as tree:
        root = tree.root()
        yield root, join(tree, root, "edge-kwok", kwok_member), join(tree, root, "edge-other", k3s_member)


@pytest.fixture
def kwok(at_both: tuple[Site, Site, Site], kwok_member: Member) -> Iterator[Place]:
    root, edge, _ = at_both
    place = Place(root, edge, kwok_member, "edge-kwok")
    yield place
    place.clear()


@pytest.fixture
def other(at_both: tuple[Site, Site, Site], k3s_member: Member) -> Iterator[Place]:
    """A place in the second member, which nothing happens to."""
    root, _, edge = at_both
    place = Place(root, edge, k3s_member, "edge-other")
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


def test_an_application_runs_in_pods_answers_and_shows_its_log(whole: Place, edge_image: Path) -> None:
    image = load_worker(whole.member, edge_image)
    whole.create("web", {"container": {"image": image, "command": ["python3", "-c", SERVER]}, "env": [{"name": "PORT", "value": "8099"}],
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


def test_a_frozen_api_server_is_shown_and_loses_nothing(kwok: Place, other: Place) -> None:
    """It keeps its connections open, so nothing breaks: only asking shows it. What ran is not declared dead, nothing of it is moved or made
    a second time, and no other member waits. The bounds are promises (issue: shown within 20 s, made up for within 10 s)."""
    both = {"clusterNames": [kwok.cluster, other.cluster]}
    kwok.create("before", SLEEP | {"replicas": 3})
    kwok.create("divided", SLEEP | {"replicas": 4}, placement=both)
    kwok.until_ready("before", 3)
    kwok.until_ready("divided", 4)
    halves = {name: row["desired"] for name, row in kwok.rows("divided").items()}
    assert halves == {kwok.cluster: 2, other.cluster: 2}
    theirs = ("get", "pods", "-n", kwok.namespace, "-o", "name")
    ran = other.member.kubectl(*theirs)
    kwok.member.pause(APISERVER)
    try:
        frozen = time.monotonic()
        for number in range(MEANWHILE):
            kwok.create(f"meanwhile-{number}", SLEEP)
            other.create(f"unhurt-{number}", SLEEP)
            other.until_ready(f"unhurt-{number}", seconds=SHOWN_SECONDS)
        message = kwok.until_reason("before", "ApiServerUnreachable", SHOWN_SECONDS - (time.monotonic() - frozen))
        assert "has not been heard since 20" in message
        assert "runs on" in message
        kwok.root.kubectl("patch", "application", "before", "-n", kwok.namespace, "--type=json",
                          "-p", '[{"op": "replace", "path": "/spec/components/0/replicas", "value": 4}]')  # fmt: skip
        until("what is wanted now is told", lambda: kwok.status("before").get("desired") == 4)
        other.create("last", SLEEP)  # placed and told after the silence was seen: what could move has moved by then
        other.until_ready("last")
        assert {name: row["desired"] for name, row in kwok.rows("divided").items()} == halves
        assert other.member.kubectl(*theirs) == ran
    finally:
        kwok.member.resume(APISERVER)
    until("what was made meanwhile is there, once", lambda: kwok.each_once(MEANWHILE + 2), MADE_UP_SECONDS)
    kwok.until_ready("before", 4)
    kwok.until_ready("divided", 4)
    for number in range(MEANWHILE):
        kwok.until_ready(f"meanwhile-{number}")
    assert kwok.each_once(MEANWHILE + 2), kwok.made()
    assert kwok.each_once(4 + 4 // 2 + MEANWHILE, "pods"), kwok.made("pods")
    assert other.member.kubectl(*theirs) == ran
    assert kwok.row("before").get("reason", "") == ""


def test_drift_that_is_only_reported_is_told_at_the_root(kwok: Place) -> None:
    kwok.create("watched", manifests(config_map("watched", a="1")), apply={"drift": "Report"})
    kwok.until_ready("watched")
    by_hand = ("patch", "configmap", "watched", "-n", kwok.namespace, "--type=merge", "-p", '{"data": {"a": "2"}}')
    kwok.member.kubectl(*by_hand, "--field-manager=somebody")
    message = kwok.until_reason("watched", "Drifted")
    assert ".data.a by somebody" in message
    assert json.loads(kwok.member.kubectl("get", "configmap", "watched", "-n", kwok.namespace, "-o", "json"))["data"] == {"a": "2"}


def test_an_api_server_that_dies_in_the_middle_of_applying(kwok: Place) -> None:
    with ThreadPoolExecutor(1) as person:
        creating = [person.submit(kwok.create, f"many-{number}", SLEEP) for number in range(MANY)]
        until("some of them are there", lambda: len(kwok.made()) >= MANY // 4)
        kwok.member.kill(APISERVER)
        for one in creating:
            one.result(60)
    assert len(kwok.made()) < MANY, "it died too late: everything was applied"
    kwok.member.start(APISERVER)
    kwok.member.wait_api()
    for number in range(MANY):
        kwok.until_ready(f"many-{number}")
    assert len(kwok.names()) == MANY
    twice = {name: count for name, count in kwok.made().items() if count > 1}  # what it did as it died it may not have written down
    assert not twice


def told_at_the_root(root: Site, why: str) -> None:
    """A new Application for edge-k8s says it in its status, with the member's name."""
    until("it has joined", lambda: root.clusters()["edge-k8s"]["phase"] == "Ready")
    hopeful = application("hopeful", [SLEEP | {"name": "main"}], clusterName="edge-k8s")
    code, answer = root.ask("POST", f"{API}/namespaces/default/applications", hopeful)
    assert code == 201, answer

    def told() -> bool:
        (component,) = root.status("hopeful")["components"]
        return "edge-k8s has a cluster that its controller cannot use: " in component["message"] and why in component["message"]

    until("the Application's status says why", told)


def test_another_cluster_behind_the_same_kubeconfig_is_refused(
    kwok_member: Member, control_plane: Member, tmp_path: Path, tree: Tree
) -> None:
    """Its applications would be taken for strays, and removed."""
    root = tree.root()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(control_plane.kubeconfig.read_bytes())
    site = join(tree, root, "edge-k8s", control_plane, kubeconfig=kubeconfig)
    until("it knows its cluster", lambda: "member.connected" in site.log(200))
    site.stop()
    kubeconfig.write_bytes(kwok_member.kubeconfig.read_bytes())
    site.launch("run", "--data", str(site.folder))
    until("it says what is wrong", lambda: "is another cluster than the one that was joined" in site.log(200))
    assert "cluster.json" in site.log(200)
    told_at_the_root(root, "is another cluster than the one that was joined")


def test_rights_that_are_missing_are_named_one_by_one(kwok_member: Member, tree: Tree) -> None:
    root = tree.root()
    site = tree.site("edge-k8s")
    poor = kwok_member.user("poor", ["nobodys"])
    kwok_member.kubectl("create", "clusterrole", "poor", "--verb=get", "--resource=namespaces")
    kwok_member.kubectl("create", "clusterrolebinding", "poor", "--clusterrole=poor", "--group=nobodys")
    site.join(root.token(), "--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig", str(poor))
    until("it names what it lacks", lambda: "missing rights: list pods, watch pods, list nodes" in site.log(200))
    assert "list deployments.apps" in site.log(200)
    told_at_the_root(root, "missing rights: list pods, watch pods, list nodes")
    kwok_member.kubectl("delete", "clusterrole,clusterrolebinding", "poor")


def test_a_kubeconfig_that_is_not_there_is_refused_before_the_token_is_spent(control_plane: Member, tree: Tree, tmp_path: Path) -> None:
    root = tree.root()
    token = root.token()
    site = tree.site("edge-k8s")
    given = ["--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig"]
    refused = site.banyan("join", token, "--name", site.name, *given, str(tmp_path / "none"), check=False)
    assert refused.returncode == 2
    assert f"--kubeconfig {tmp_path / 'none'}: there is no such file" in refused.stderr
    site.join(token, *given, str(control_plane.kubeconfig))
    site.wait()
    until("the same token has let it in", lambda: root.clusters()["edge-k8s"]["phase"] == "Ready")


def test_a_kubeconfig_that_is_deleted_after_the_join(control_plane: Member, tree: Tree, tmp_path: Path) -> None:
    root = tree.root()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_bytes(control_plane.kubeconfig.read_bytes())
    site = join(tree, root, "edge-k8s", control_plane, kubeconfig=kubeconfig)
    site.stop()
    kubeconfig.unlink()
    site.launch("run", "--data", str(site.folder))
    until("it says what is wrong", lambda: "name a kubeconfig that kubectl accepts" in site.log(200))
    told_at_the_root(root, str(kubeconfig))


def test_a_kubeconfig_that_has_expired(kwok_member: Member, tree: Tree) -> None:
    """Its user's certificate was good until yesterday: said here, and at the root of whatever is meant for this member."""
    root = tree.root()
    expired = kwok_member.user("expired", ["system:masters"], valid=timedelta(days=-1))
    site = tree.site("edge-k8s")
    site.join(root.token(), "--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig", str(expired))
    until("it says what is wrong", lambda: "expired" in site.log(200))
    told_at_the_root(root, "the client certificate of the kubeconfig expired at")
