"""Fixtures: a tree of one's own, a three-level tree per module, and one grove for all tests that clean up after themselves."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from e2e.support import Site, Tree, growing, until
from e2e.testbed.fixtures import _shared_members, control_plane, edge_image, k3s_member, kwok_member, testbed_members, whole_member

# Fixtures of the testbed, for every test here.
__all__ = ["_shared_members", "control_plane", "edge_image", "k3s_member", "kwok_member", "testbed_members", "whole_member"]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    with growing(tmp_path) as grown:
        yield grown


@pytest.fixture(scope="module")
def three_levels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """root → region-a → edge-1, edge-2."""
    with growing(tmp_path_factory.mktemp("tree")) as grown:
        root = grown.root()
        region = grown.region("region-a", root)
        grown.edge("edge-1", region)
        grown.edge("edge-2", region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
        yield grown


@pytest.fixture(scope="session")
def _grove(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """root → region-a → edge-1, edge-2. No test stops any of them."""
    with growing(tmp_path_factory.mktemp("grove")) as grown:
        root = grown.root()
        region = grown.region("region-a", root)
        grown.edge("edge-1", region)
        grown.edge("edge-2", region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
        yield grown


@pytest.fixture
def grove(_grove: Tree) -> Iterator[Tree]:
    """Shared by all: each test finds it without applications, labels of its ancestors, taints and cordons."""
    yield _grove
    root = _grove.sites["root"]
    root.kubectl("delete", "applications", "--all", "--timeout=30s")
    clean = '{"metadata":{"labels":{"zone":null}},"spec":{"unschedulable":false,"taints":[]}}'
    for edge in (_grove.sites["edge-1"], _grove.sites["edge-2"]):
        root.kubectl("patch", "cluster", edge.name, "--type=merge", "-p", clean)
        until("nothing runs", partial(runs_nothing, edge))


def runs_nothing(site: Site) -> bool:
    return bool(site.get("/api/v1/pods")["items"] == [])
