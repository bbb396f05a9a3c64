"""Fixtures: a tree of one's own, and a three-level tree shared by the tests that only look and deploy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import Tree, growing, until


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
