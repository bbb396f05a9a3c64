"""Where the API listens, and who may ask from where: real controllers on addresses of namespaces of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import Site, Tree

SITE, OFFICE = "10.213.7.1", "10.213.7.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces: the site's machine and one in the office, on one cable."""
    site, office = f"banyan-s{os.getpid()}", f"banyan-o{os.getpid()}"
    try:
        for name in (site, office):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", site, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", office)
        for name, address in ((site, SITE), (office, OFFICE)):
            ip("-n", name, "addr", "add", f"{address}/30", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield site, office
    finally:
        for name in (site, office):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def inside(network: str, *arguments: str, code: int = 0) -> str:
    """`banyan` on a machine of that network."""
    argv = ["ip", "netns", "exec", network, sys.executable, "-m", "banyanctl", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def started(tree: Tree, network: str, *options: str, **environment: str) -> Site:
    root = tree.site("root", **environment)
    root.banyan("init", "root", "--tunnel-listen", "", "--shim", "none", *options)
    with (tree.folder / "root.log").open("ab") as log:
        root.process = subprocess.Popen(
            ["ip", "netns", "exec", network, sys.executable, "-m", "banyanctl", "run", "--data", str(root.folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | environment,
        )  # fmt: skip
    for _ in range(200):
        if "serves https" in root.log():
            return root
        if root.process.poll() is not None:
            break
        try:
            root.process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(root.log())


@pytest.mark.needs("root")
def test_the_on_site_admin_works_at_a_lan_address_and_from_nowhere_else(tree: Tree, networks: tuple[str, str]) -> None:
    site, office = networks
    root = started(tree, site, "--api-listen", f"{SITE}:8443")
    admin = root.folder / "admin.kubeconfig"
    assert "Ready" in inside(site, "--data", str(root.folder), "tree")
    assert f"https://{SITE}:8443" in inside(site, "--data", str(root.folder), "status")
    assert "works on the machine itself only" in inside(office, "--kubeconfig", str(admin), "tree", code=7)
    ann = tree.folder / "ann.kubeconfig"
    inside(site, "--data", str(root.folder), "user", "create", "ann", "--group", "view", "--kubeconfig-out", str(ann))
    assert "Ready" in inside(office, "--kubeconfig", str(ann), "tree")


@pytest.mark.needs("root")
def test_a_kubeconfig_made_on_the_machine_works_elsewhere(tree: Tree, networks: tuple[str, str]) -> None:
    site, office = networks
    root = started(tree, site, "--api-listen", "0.0.0.0:8443", BANYAN_API_ADVERTISE=f"{SITE},hq.example.com")
    ann, bob = tree.folder / "ann.kubeconfig", tree.folder / "bob.kubeconfig"
    on_site = ("--data", str(root.folder), "user", "create")
    inside(site, *on_site, "ann", "--group", "view", "--kubeconfig-out", str(ann))
    assert f"https://{SITE}:8443" in ann.read_text()
    assert "Ready" in inside(office, "--kubeconfig", str(ann), "tree")
    inside(site, *on_site, "bob", "--group", "view", "--server", "hq.example.com:443", "--kubeconfig-out", str(bob))
    assert "https://hq.example.com:443" in bob.read_text()
    refused = inside(site, *on_site, "eve", "--group", "view", "--server", "other.example.com", code=2)
    assert "hq.example.com" in refused and "not for other.example.com" in refused
    assert sorted(one["metadata"]["name"] for one in _users(site, root.folder)) == ["ann", "bob"]


def _users(network: str, folder: Path) -> list[dict[str, dict[str, str]]]:
    found: list[dict[str, dict[str, str]]] = json.loads(inside(network, "--data", str(folder), "user", "list", "-o", "json"))["items"]
    return found
