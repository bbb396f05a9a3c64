"""Fixtures: a tree of one's own, a three-level tree per module, and one grove for all tests that clean up after themselves."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from e2e.faults.figures import Figures
from e2e.support import API, Asker, Site, Tree, growing, until
from e2e.testbed.fixtures import _shared_members, control_plane, edge_image, k3s_member, kwok_member, testbed_members, whole_member
from tools.check import AGAIN

# Fixtures of the testbed, for every test here.
__all__ = ["_shared_members", "control_plane", "edge_image", "k3s_member", "kwok_member", "testbed_members", "whole_member"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="play faults for as long as they last in life (e2e/faults): tens of minutes")
    parser.addoption("--figures", type=Path, help="append what each fault cost to this file, a line of JSON for each test")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "exact: counts what must be so at any time, however busy the machine; never tried again")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ.get(AGAIN) and item.get_closest_marker("exact"):
        pytest.fail("it failed beside others; what it counts holds on the busiest machine, so it is not tried again", pytrace=False)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """What a fault costs, kept when the test passes and somebody wants to know."""
    figures = Figures(request.node.nodeid)
    failed = request.session.testsfailed
    yield figures
    if (path := request.config.getoption("--figures")) and request.session.testsfailed == failed:
        figures.write(path, long=bool(request.config.getoption("--long")))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with growing(tmp_path) as grown:
        yield grown


@pytest.fixture
def device() -> Iterator[Callable[[str], Asker]]:
    """Devices that ask a URL all the time; none outlives its test."""
    made: list[Asker] = []

    def start(url: str) -> Asker:
        made.append(Asker(url))
        return made[-1]

    yield start
    for asker in made:
        asker.destroy()


@contextmanager
def _branch(folder: Path) -> Iterator[Tree]:
    with growing(folder) as grown:
        root = grown.root()
        region = grown.region("region-a", root)
        grown.edge("edge-1", region)
        grown.edge("edge-2", region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
        yield grown


@pytest.fixture(scope="module")
def three_levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """root → region-a → edge-1, edge-2."""
    with _branch(tmp_path_factory.mktemp("tree")) as grown:
        yield grown


@pytest.fixture(scope="session")
def _grove(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """root → region-a → edge-1, edge-2. No test stops any of them."""
    with _branch(tmp_path_factory.mktemp("grove")) as grown:
        yield grown


@pytest.fixture
def grove(_grove: Tree) -> Iterator[Tree]:
    """Shared by all: each test finds it without applications, labels of its ancestors, taints and cordons."""
    yield _grove
    root = _grove.sites["root"]
    for item in root.get(f"{API}/applications")["items"]:
        root.ask("DELETE", f"{API}/namespaces/{item['metadata']['namespace']}/applications/{item['metadata']['name']}")
    until("all applications are deleted", lambda: root.get(f"{API}/applications")["items"] == [])
    clean = {"metadata": {"labels": {"zone": None}}, "spec": {"unschedulable": False, "taints": [], "users": []}}
    root.ask("PATCH", f"{API}/clusters/root", {"spec": {"users": []}}, kind="application/merge-patch+json")
    for edge in (_grove.sites["edge-1"], _grove.sites["edge-2"]):
        code, answer = root.ask("PATCH", f"{API}/clusters/{edge.name}", clean, kind="application/merge-patch+json")
        assert code == 200, answer
        until("nothing runs", partial(runs_nothing, edge))


def runs_nothing(site: Site) -> bool:
    return bool(site.get("/api/v1/pods")["items"] == [])
