"""What goes wrong between a controller and its Kubernetes cluster: said at the Application with the member's name, while the rest goes on,
and once it is over nothing is lost and nothing is there twice.

A proxy stands between the controller and a real API server and misbehaves when it is told to; datastore, nodes, webhooks and rights are the
member's own. Each test has a namespace to itself and leaves it empty.
"""

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from e2e.place import Place, busybox, config_map, join, manifests
from e2e.support import Site, growing, until
from e2e.testbed import Member, components
from e2e.testbed.between import Between, Fault, writes
from e2e.testbed.components import DATASTORE

pytestmark = pytest.mark.needs("kubectl")
EDGE, OTHER = "edge-kwok", "edge-other"
GROUP = "controllers"
SLOW_SECONDS = 25.0  # longer than it takes to show an API server that is gone
NO_WAIT_SECONDS = 20.0  # one member's silence keeps no other waiting
FLOOD = 60_000  # events
SLEEP = busybox("sleep", "3600")
SICK = (
    500,
    "application/json",
    b'{"kind":"Status","status":"Failure","message":"the disk of etcd is full","reason":"InternalError","code":500}',
)
UNAUTHORIZED = (
    401,
    "application/json",
    b'{"kind":"Status","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}',
)
LOGIN_PAGE = (200, "text/html", b"<html><title>Welcome to Hotel WiFi</title><body>Please accept our terms</body></html>")


@dataclass
class Ground:
    root: Site
    edge: Site
    other: Site
    between: Between
    member: Member
    healthy: Member


@pytest.fixture(scope="module")
def ground(kwok_member: Member, k3s_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """root, a controller whose API server is behind a proxy, and another member that is always well."""
    folder = tmp_path_factory.mktemp("faults")
    kwok_member.kubectl("create", "clusterrole", "lookers", "--verb=get,list,watch", "--resource=*.*")
    kwok_member.kubectl("create", "clusterrolebinding", "lookers", "--clusterrole=lookers", f"--group={GROUP}")
    may_all(kwok_member)
    with growing(folder) as tree, Between(kwok_member, folder, GROUP) as between:
        root = tree.root()
        edge = join(tree, root, EDGE, kwok_member, kubeconfig=between.kubeconfig)
        other = join(tree, root, OTHER, k3s_member)
        until("both are Ready", lambda: all(root.clusters()[name]["phase"] == "Ready" for name in (EDGE, OTHER)))
        yield Ground(root, edge, other, between, kwok_member, k3s_member)


def may_all(member: Member) -> None:
    member.kubectl("create", "clusterrolebinding", "doers", "--clusterrole=cluster-admin", f"--group={GROUP}")


@pytest.fixture
def place(ground: Ground) -> Iterator[Place]:
    place = Place(ground.root, ground.edge, ground.member, EDGE)
    yield place
    place.clear()


@pytest.fixture
def elsewhere(ground: Ground) -> Iterator[Place]:
    """In the member that is well."""
    place = Place(ground.root, ground.other, ground.healthy, OTHER)
    yield place
    place.clear()


# --- the API server, or what stands before it ---


def test_an_api_server_that_answers_500_is_quoted_and_the_other_member_goes_on(ground: Ground, place: Place, elsewhere: Place) -> None:
    place.create("before", SLEEP)
    place.until_ready("before")
    with ground.between.doing(Fault(answer=SICK)):
        place.create("meanwhile", SLEEP)
        assert "the disk of etcd is full" in place.until_reason("before", "ApiServerUnreachable")
        elsewhere.create("unhurt", manifests(config_map("unhurt", a="1")))
        elsewhere.until_ready("unhurt")
        assert ground.root.clusters()[EDGE]["phase"] == "Ready"  # the controller is well, and says what is not
    place.until_ready("meanwhile")
    place.until_ready("before")
    assert place.each_once(2), place.made()


def test_answers_that_are_lost_double_nothing(ground: Ground, place: Place) -> None:
    """Carried out, and nobody hears of it: namespace, ApplySet, Deployment and ConfigMap are asked for again."""
    with ground.between.doing(Fault(writes, lose=True, count=8)):
        place.create("one", SLEEP)
        place.create("two", manifests(config_map("two", a="1")))
        place.until_ready("one")
        place.until_ready("two")
        assert ground.between.met >= 4
    assert place.each_once(1), place.made()
    assert place.each_once(1, "pods"), place.made("pods")
    assert place.made("configmaps")["two"] == 1


def test_a_login_page_instead_of_an_api_server(ground: Ground, place: Place) -> None:
    """200, and HTML: what a captive portal or a wrong load balancer answers to everything."""
    with ground.between.doing(Fault(answer=LOGIN_PAGE)):
        place.create("patient", SLEEP)
        assert "not as a Kubernetes API server" in place.until_reason("patient", "ApiServerUnreachable")
    place.until_ready("patient")
    assert place.each_once(1), place.made()


def test_a_kubeconfig_that_leads_to_another_cluster_meanwhile(ground: Ground, place: Place) -> None:
    """The credential stops working, and what is in its file now is for somebody else's cluster: nothing is written there."""
    place.create("before", SLEEP)
    place.until_ready("before")
    own = ground.between.kubeconfig.read_bytes()
    with ground.between.doing(Fault(answer=UNAUTHORIZED)):
        ground.between.kubeconfig.write_bytes(ground.healthy.kubeconfig.read_bytes())
        place.create("meanwhile", SLEEP)
        assert "is another cluster than the one that was joined" in place.until_reason("before", "ApiServerUnreachable")
        assert "NotFound" in ground.healthy.kubectl("get", "namespace", place.namespace, check=False)
        ground.between.kubeconfig.write_bytes(own)
    place.until_ready("before")
    place.until_ready("meanwhile")
    assert place.each_once(2), place.made()
    assert "NotFound" in ground.healthy.kubectl("get", "namespace", place.namespace, check=False)


def test_a_login_page_to_writes_alone(ground: Ground, place: Place) -> None:
    with ground.between.doing(Fault(writes, answer=LOGIN_PAGE)):
        place.create("unsure", SLEEP)
        assert "not as a Kubernetes API server" in place.until_reason("unsure", "ApiUnavailable")
    place.until_ready("unsure")


def test_an_api_server_that_is_slow_by_five_seconds_is_slow_and_not_gone(ground: Ground, place: Place) -> None:
    place.create("seen", SLEEP)
    place.until_ready("seen")
    with ground.between.doing(Fault(delay=5.0)):
        begun = time.monotonic()
        for number in range(9):  # more than are asked about at once
            place.create(f"slowly-{number}", SLEEP)

        def over() -> bool:
            row = place.row("seen")
            if row.get("reason", "") or row.get("ready") != 1:
                pytest.fail(f"after {time.monotonic() - begun:.1f} s it is shown as {row}")
            return time.monotonic() - begun >= SLOW_SECONDS and len(place.made()) > 1

        until("it was slow for long, and something was applied all the same", over, 120)
    for number in range(9):
        place.until_ready(f"slowly-{number}")
    assert place.each_once(10), place.made()


def test_a_proxy_that_swallows_everything_is_noticed_and_makes_nobody_wait(ground: Ground, place: Place, elsewhere: Place) -> None:
    place.create("before", SLEEP)
    place.until_ready("before")
    with ground.between.doing(Fault(hang=True)):
        place.create("meanwhile", SLEEP)
        for number in range(3):
            elsewhere.create(f"unhurt-{number}", manifests(config_map(f"unhurt-{number}", a="1")))
        for number in range(3):
            elsewhere.until_ready(f"unhurt-{number}", seconds=NO_WAIT_SECONDS)
        message = place.until_reason("before", "ApiServerUnreachable")
        assert "runs on" in message
    place.until_ready("meanwhile")
    assert place.each_once(2), place.made()


def test_ten_thousand_events_a_second_of_other_peoples_pods(ground: Ground, place: Place) -> None:
    noise = place.namespace + "-noise"
    ground.member.kubectl("create", "namespace", noise)
    ground.member.kubectl("create", "deployment", "noise", "-n", noise, "--image=nowhere/noise:1", "--replicas=50")
    ground.member.kubectl("rollout", "status", "deployment/noise", "-n", noise, "--timeout=60s")
    before = peak_memory(ground.edge)
    with ground.between.repeating(b'"noise-', 10_000):
        begun = time.monotonic()
        until("much of it was sent", lambda: ground.between.repeated >= FLOOD)
        sent = ground.between.repeated
        place.create("calm", SLEEP)
        place.until_ready("calm")  # its pod comes on the same watch, behind all that was sent before: that has been taken in
        taken = sent / (time.monotonic() - begun)
        assert ground.root.clusters()[EDGE]["phase"] == "Ready"
        assert place.row("calm").get("reason", "") == ""
    print(f"\n{sent} events of other people's pods taken in, {taken:.0f} a second")
    assert peak_memory(ground.edge) - before < 64 << 20
    ground.member.kubectl("delete", "namespace", noise, "--wait=false")


def peak_memory(site: Site) -> int:
    assert site.process is not None
    status = Path(f"/proc/{site.process.pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


# --- the member itself ---


def test_a_node_that_vanishes(ground: Ground, place: Place) -> None:
    """Its machine is gone from the cluster: at once no room any more, then no instance, and the scheduler's words why there is no other."""
    node = components.kwok_node(77, ground.member.shape.version, 110)
    ground.member.request("POST", "/api/v1/nodes", node)
    until("it is known at the root", lambda: ground.root.clusters()[EDGE]["facts"]["nodes"] == 4)
    place.create("there", manifests(pinned("there", "kwok-77")))
    place.until_ready("there")
    ground.member.request("DELETE", "/api/v1/nodes/kwok-77")
    until("the room is gone", lambda: ground.root.clusters()[EDGE]["facts"]["nodes"] == 3)
    # What the cluster's own collector does with pods of a node that is gone, after a minute.
    ground.member.kubectl("delete", "pods", "--all", "-n", place.namespace, "--force", "--grace-period=0")
    assert "nodes are available" in place.until_reason("there", "Unschedulable")
    assert place.status("there").get("ready", 0) == 0
    ground.member.request("POST", "/api/v1/nodes", node)
    place.until_ready("there")
    place.clear()  # before its node: a pod of a node that is gone goes late
    ground.member.request("DELETE", "/api/v1/nodes/kwok-77")


def pinned(name: str, node: str) -> dict[str, Any]:
    """A Deployment of one pod, for one node."""
    labels = {"app": name}
    container = {"name": "it", "image": "nowhere/it:1"}
    pod = {"containers": [container], "nodeSelector": {"kubernetes.io/hostname": node}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def test_a_datastore_that_is_gone(ground: Ground, place: Place) -> None:
    place.create("before", SLEEP)
    place.until_ready("before")
    ground.member.kill(DATASTORE)
    try:
        place.create("meanwhile", SLEEP)
        place.until_reason("before", "ApiServerUnreachable")
    finally:
        ground.member.start(DATASTORE)
        ground.member.wait_api()
    place.until_ready("before")
    place.until_ready("meanwhile")
    assert place.each_once(2), place.made()


def test_what_the_api_refuses_is_said_in_its_words_and_the_other_components_run(place: Place) -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "wrong"}, "spec": {"ports": [{"port": 99999}]}}
    place.create("half", SLEEP | {"name": "good"}, manifests(config_map("fine", a="1"), wrong, name="bad"))
    message = place.until_reason("half", "Invalid")
    assert "Service" in message
    assert "99999" in message
    until("the good half runs", lambda: place.status("half").get("ready") == 1)
    assert "fine" in place.names("configmaps")


def test_rights_that_are_taken_away_and_given_back(ground: Ground, place: Place) -> None:
    place.create("before", SLEEP)
    place.until_ready("before")
    ground.member.kubectl("delete", "clusterrolebinding", "doers")
    try:
        place.create("refused", SLEEP)
        message = place.until_reason("refused", "Forbidden")
        assert 'User "between" cannot' in message
        assert place.status("before")["ready"] == 1
    finally:
        may_all(ground.member)
    place.until_ready("refused")


def test_an_admission_webhook_that_refuses_and_one_that_is_away(ground: Ground, place: Place) -> None:
    place.create("before", SLEEP)
    place.until_ready("before")
    with webhook(ground.member, place.namespace, "no sleeping on this site"):
        place.create("refused", SLEEP)
        message = place.until_reason("refused", "AdmissionRefused")
        assert "no sleeping on this site" in message
        assert "Deployment" in message
        assert place.status("before")["ready"] == 1
    place.create("unasked", SLEEP)  # the webhook is still asked for, and answers no more
    assert "failed calling webhook" in place.until_reason("unasked", "AdmissionUnavailable")
    ground.member.kubectl("delete", "validatingwebhookconfiguration", "no-sleep")
    place.until_ready("refused")
    place.until_ready("unasked")
    assert place.each_once(3), place.made()


@contextlib.contextmanager
def webhook(member: Member, namespace: str, words: str) -> Iterator[None]:
    """Refuses every Deployment of a namespace. Its registration stays."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            uid = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]["uid"]
            response = {"uid": uid, "allowed": False, "status": {"message": words}}
            text = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *ignored: Any) -> None:
            """Nobody reads it."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*member.authority.issue("webhook", "webhook", hosts=["127.0.0.1"]))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{server.server_address[1]}/"
        bundle = base64.b64encode(member.authority.certificate.read_bytes()).decode()
        hook = {
            "name": "no-sleep.example.test",
            "clientConfig": {"url": url, "caBundle": bundle},
            "rules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
        }
        document = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "no-sleep"},
            "webhooks": [hook],
        }
        member.kubectl("apply", "-f", "-", stdin=json.dumps(document))

        def asked() -> bool:
            return words in member.kubectl("create", "deployment", "probe", "--image=x", "-n", namespace, "--dry-run=server", check=False)

        until("the API server asks the webhook", asked)
        try:
            yield
        finally:
            server.shutdown()
            thread.join(10)


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "lamps.example.test"},
    "spec": {
        "group": "example.test",
        "scope": "Namespaced",
        "names": {"plural": "lamps", "singular": "lamp", "kind": "Lamp"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
LAMP = {"apiVersion": "example.test/v1", "kind": "Lamp", "metadata": {"name": "hall"}, "on": True}


def test_a_definition_that_is_removed_under_its_objects(place: Place) -> None:
    """Its objects go with it: said at once, and they are back when it is."""
    place.member.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
    place.member.kubectl("wait", "crd/lamps.example.test", "--for=condition=Established", "--timeout=30s")
    place.create("lights", manifests(LAMP, config_map("beside", a="1")))
    place.until_ready("lights")
    place.member.kubectl("delete", "crd", "lamps.example.test")
    assert "Lamp" in place.until_reason("lights", "UnknownKind")
    assert "beside" in place.names("configmaps")
    place.member.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
    place.until_ready("lights", seconds=90)
    assert place.member.kubectl("get", "lamps", "-n", place.namespace, "-o", "name").split() == ["lamp.example.test/hall"]
    place.root.kubectl("delete", "application", "lights", "-n", place.namespace)
    place.member.kubectl("delete", "crd", "lamps.example.test")
