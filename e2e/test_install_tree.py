"""A root and a region inside a cluster, installed by the chart `helm/banyan`: the region joins the root, and both come back from their
volumes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.at_site import load_worker
from e2e.support import ROOT, until
from e2e.test_install_kubernetes import helm
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
CHART = ROOT / "helm" / "banyan"
CLASS = "of-controllers"
PORTS = {"root": 31000, "north": 31001}
WAIT = ("--wait", "--timeout", "170s")


@pytest.fixture
def volumes(whole_member: Member) -> Iterator[None]:
    names = [f"controller-{os.urandom(3).hex()}" for _ in PORTS]
    for name in names:
        whole_member.give_volume(name, "30Gi", CLASS)
    yield
    for name in names:
        whole_member.take_volume(name)


def values(member: Member, image: str, name: str, **more: Any) -> dict[str, Any]:
    (node,) = member.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses[?(@.type=='InternalIP')].address}").split()
    repository, _, tag = image.partition(":")
    return {
        "cluster": {"name": name, "labels": {"tier": name}},
        "tunnel": {"advertise": [f"{node}:{PORTS[name]}"], "service": {"type": "NodePort", "nodePort": PORTS[name]}},
        "image": {"repository": repository, "tag": tag},
        "persistence": {"storageClass": CLASS},
        "resources": {"limits": {"memory": "512Mi"}},
        **more,
    }


def banyan(member: Member, name: str, *arguments: str) -> str:
    """As the chart's notes tell."""
    return member.kubectl("exec", "-n", name, f"deployment/{name}-banyan", "-c", "controller", "--", "banyan", *arguments)


def test_a_root_and_a_region_are_installed_join_and_come_back(whole_member: Member, edge_image: Path, volumes: None) -> None:
    member, image = whole_member, load_worker(whole_member, edge_image)
    try:
        helm(member, "install", "root", str(CHART), "-n", "root", "--create-namespace", *WAIT, values=values(member, image, "root"))
        token = banyan(member, "root", "token", "create", "--name", "north").split()[-1]
        region = values(member, image, "north", role="region", join={"token": token})
        helm(member, "install", "north", str(CHART), "-n", "north", "--create-namespace", *WAIT, values=region)
        until("the region is Ready at the root", lambda: all_ready(member, "root", "north"))
        for name in PORTS:
            runs_as_nobody(member, name)
        uids = [uid(member, name) for name in PORTS]

        changed = region | {"cluster": {"name": "north", "labels": {"tier": "changed"}}}
        helm(member, "upgrade", "north", str(CHART), "-n", "north", *WAIT, values=changed)
        until("the root sees the other label", lambda: "changed" in banyan(member, "root", "get", "clusters", "-o", "yaml"))

        helm(member, "uninstall", "root", "-n", "root", "--wait")
        (claim,) = member.kubectl("get", "persistentvolumeclaims", "-n", "root", "-o", "name").split()
        again = values(member, image, "root", persistence={"existingClaim": claim.partition("/")[2]})
        helm(member, "install", "root", str(CHART), "-n", "root", *WAIT, values=again)
        until("the region has found its root again", lambda: all_ready(member, "root", "north"))
        assert [uid(member, name) for name in PORTS] == uids
    finally:
        for name in PORTS:
            helm(member, "uninstall", name, "-n", name, "--ignore-not-found")
            member.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")
        for name in PORTS:
            until(f"namespace {name} is gone", lambda name=name: "NotFound" in member.kubectl("get", "namespace", name, check=False))  # type: ignore[misc]


def clusters(member: Member) -> dict[str, dict[str, Any]]:
    """What the root says of all clusters, by name."""
    listed = json.loads(banyan(member, "root", "get", "clusters", "-o", "json"))
    return {item["metadata"]["name"]: item for item in listed["items"]}


def all_ready(member: Member, *names: str) -> bool:
    found = clusters(member)
    return all(found.get(name, {}).get("status", {}).get("phase") == "Ready" for name in names)


def uid(member: Member, name: str) -> str:
    return str(clusters(member)[name]["metadata"]["uid"])


def runs_as_nobody(member: Member, name: str) -> None:
    who = "import os; print(os.getuid(), oct(os.stat('/var/lib/banyan/identity').st_mode & 0o77))"
    said = member.kubectl("exec", "-n", name, f"deployment/{name}-banyan", "-c", "controller", "--", "python3", "-c", who)
    assert said.split() == ["65532", "0o0"]
