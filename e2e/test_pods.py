"""The application of a process cluster, unchanged in pods of a real Kubernetes: its model from the site's controller, and without any
controller after a power cut. The member is a whole one behind NAT; its controller runs at its site, two hops below the root.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from e2e.at_site import CONTROLLER, SiteController, load_worker, wait_ready
from e2e.support import APPS, EMOTION, Site, growing, model_application, publish, until
from e2e.testbed import Member
from e2e.testbed.components import APISERVER

pytestmark = pytest.mark.needs("kubectl")
NAME = "edge-k8s"
PORT = 8500


@dataclass
class Grown:
    root: Site
    region: Site
    member: Member
    controller: SiteController


@pytest.fixture(scope="module")
def grown(whole_member: Member, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """root → region-a → edge-k8s, the whole member, on which the emotion application runs."""
    folder = tmp_path_factory.mktemp("pods")
    worker = load_worker(whole_member, edge_image)
    with growing(folder) as tree:
        root = tree.root()
        region = tree.region("region-a", root, "--tunnel-listen", f"{whole_member.wan_host}:0")
        controller = SiteController(whole_member, NAME, folder / NAME)
        controller.join(region.token(), worker_image=worker, pull_policy="Never")
        wait_ready(root, controller)
        publish(root)
        code, answer = root.ask("POST", APPS, model_application(port=PORT, clusterName=NAME))
        assert code == 201, answer
        until("it is ready in the member", lambda: root.status().get("ready") == 1)
        yield Grown(root, region, whole_member, controller)
        ensure_controller(controller)
        root.banyan("delete", "application", "emotion")
        until("its objects are gone", lambda: objects(whole_member) == [])
        whole_member.machine.stop(CONTROLLER)


def ensure_controller(controller: SiteController) -> None:
    """Run it if it does not: a test that fails must not take the next one with it."""
    if not controller.member.machine.runs(CONTROLLER):
        controller.run()


def objects(member: Member) -> list[str]:
    kinds = "deployments,services,configmaps,secrets,pods"
    return member.kubectl("get", kinds, "-A", "-l", "banyan.dev/application-uid", "-o", "name").split()


def pod(member: Member) -> dict[str, Any]:
    """The one pod of the application that is not on its way out."""
    items = json.loads(member.kubectl("get", "pods", "-l", "banyan.dev/component=serve", "-o", "json"))["items"]
    found = [item for item in items if "deletionTimestamp" not in item["metadata"]]
    assert len(found) == 1, f"{len(found)} pods, not one"
    return dict(found[0])


def pod_is_ready(member: Member) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in pod(member)["status"]["conditions"])


def service_address(member: Member) -> str:
    return member.kubectl("get", "service", "-l", "banyan.dev/component=serve", "-o", "jsonpath={.items[0].spec.clusterIP}")


def answer_on_site(member: Member, address: str = "") -> dict[str, Any]:
    """The photograph's answer, asked by a device in the site's network, with no parent and no controller in between."""
    url = f"http://{address or service_address(member)}:{PORT}/v2/models/emotion/infer"
    said = member.machine.run([sys.executable, str(EMOTION / "device.py"), "--url", url, "--json"])
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def answer_through(root: Site) -> dict[str, Any]:
    """Asked by a device that knows the root alone."""
    endpoint = read(root.folder / ADMIN_KUBECONFIG)
    files = {name: root.folder.parent / f"device-{name}" for name in ("ca", "cert")}
    for name, text in (("ca", endpoint.ca), ("cert", endpoint.certificate + endpoint.key)):
        files[name].write_text(text)
    url = f"{endpoint.server}{APPS}/emotion/proxy/v2/models/emotion/infer"
    credential = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    argv = [sys.executable, str(EMOTION / "device.py"), "--url", url, *credential, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr or done.stdout
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def is_happy(answer: dict[str, Any]) -> bool:
    return bool(answer["label"] == "happy" and answer["confidence"] > 0.9)


def fetch_log(member: Member) -> str:
    return member.kubectl("logs", pod(member)["metadata"]["name"], "-c", "fetch-model")


def test_the_model_came_from_the_sites_controller_and_the_photograph_is_answered(grown: Grown) -> None:
    member = grown.member
    assert re.search(r"model\.onnx: \d{6,} bytes in ", fetch_log(member))
    assert "files.served" in grown.controller.log()
    assert is_happy(answer_on_site(member))
    assert is_happy(answer_through(grown.root))
    spec = pod(member)["spec"]
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    assert spec["automountServiceAccountToken"] is False
    # The server, no root, can say in the node's cache that it uses the model, and can write nothing else there.
    name, args = pod(member)["metadata"]["name"], spec["containers"][0]["args"]
    mark, folder = (args[args.index(option) + 1] for option in ("--in-use", "--model-folder"))
    assert "mark_not_set" not in member.kubectl("logs", name)
    member.kubectl("exec", name, "--", "python3", "-c", f"import os; os.utime({mark!r})")
    said = member.kubectl("exec", name, "--", "python3", "-c", f"open({folder + '/x'!r}, 'w')", check=False)
    assert "Read-only file system" in said


def test_another_pod_takes_the_model_from_the_node(grown: Grown) -> None:
    before = pod(grown.member)["metadata"]
    grown.member.kubectl("delete", "pod", before["name"], "--now")
    until("another is ready", lambda: pod(grown.member)["metadata"]["uid"] != before["uid"] and pod_is_ready(grown.member))
    assert "bytes in" not in fetch_log(grown.member)
    assert is_happy(answer_on_site(grown.member))


def test_a_site_without_parent_and_controller_serves_again_after_a_power_cut(grown: Grown) -> None:
    member = grown.member
    member.cut_uplink()
    until("the root knows that it does not know", lambda: grown.root.clusters()[NAME]["phase"] != "Ready")
    before = pod(member)
    member.reboot_node()  # and the uplink with it
    member.cut_uplink()
    try:
        assert not member.machine.runs(CONTROLLER)
        restarts = before["status"]["containerStatuses"][0]["restartCount"]
        until("its container runs again", lambda: pod(member)["status"]["containerStatuses"][0]["restartCount"] > restarts)
        until("it serves", lambda: is_happy(answer_on_site(member)))
        # Not the pod of before: one that the node has never seen, with no controller that could give it the model.
        member.kubectl("delete", "pod", pod(member)["metadata"]["name"], "--now")
        until("a new pod is ready", lambda: pod_is_ready(member) and is_happy(answer_on_site(member)))
        grown.controller.run()
        deployment = member.kubectl("get", "deployments", "-l", "banyan.dev/component=serve", "-o", "name").strip()
        until("the controller serves its site", lambda: "emotion" in grown.controller.banyan("get", "pods"))
        member.kubectl("delete", deployment)
        until("the controller makes it again, from its own store", partial(pod_is_ready, member))
        until("it serves", lambda: is_happy(answer_on_site(member)))
    finally:
        member.heal_uplink()
        ensure_controller(grown.controller)
    until("the root sees it again", lambda: grown.root.clusters()[NAME]["phase"] == "Ready" and grown.root.status()["ready"] == 1)


def test_with_the_control_plane_hanging_pods_serve_and_since_when_nothing_is_seen_is_said(grown: Grown) -> None:
    member, root = grown.member, grown.root
    address = service_address(member)
    before = pod(member)["metadata"]["uid"]
    member.pause(APISERVER)  # its connections stay open
    try:
        until("the root says that the member cannot be seen", lambda: row(root).get("reason") == "ApiServerUnreachable")
        assert re.search(r"has not been heard since 20\d\d-.*runs on", row(root)["message"])
        assert is_happy(answer_on_site(member, address))
    finally:
        member.resume(APISERVER)
    member.wait_api()
    until("all is as before", lambda: root.status().get("ready") == 1 and not row(root).get("reason"))
    assert pod(member)["metadata"]["uid"] == before


def row(root: Site) -> dict[str, Any]:
    """What the member says of the application."""
    found: dict[str, Any] = root.status()["clusters"][0]
    return found
