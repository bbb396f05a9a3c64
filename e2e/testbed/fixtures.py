"""Members for tests: one of each sort, started when the first test asks for it and shared by all of a run.

A test that takes a shared member leaves it as it was: its own namespace, nothing stopped for good. One that needs a member to itself takes
`testbed_members`. Where something is missing, a laptop leaves the tests out and says what; with CI=true that is a failure.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import at_site
from e2e.testbed.member import Member, Shape, Testbed, check
from tools.needs import Missing


def need(shape: Shape) -> None:
    """The test is left out where such a member cannot be."""
    try:
        check(shape)
    except Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the testbed lacks something: {missing}", pytrace=False)
        pytest.skip(f"the testbed lacks something: {missing}")


def begin(testbed: Testbed, name: str, shape: Shape) -> Member:
    """A member, or the test left out."""
    need(shape)
    member = testbed.start(name, shape)
    print(f"\ntestbed: {name} Ready after {member.started_s:.1f} s")
    return member


@pytest.fixture(scope="session")
def _shared_members() -> Iterator[Testbed]:
    with Testbed() as testbed:
        yield testbed


@pytest.fixture
def testbed_members() -> Iterator[Testbed]:
    """For members that a test has to itself: `begin(testbed_members, "mine", Shape.whole())`."""
    with Testbed() as testbed:
        yield testbed


@pytest.fixture(scope="session")
def control_plane(_shared_members: Testbed) -> Member:
    """etcd and an API server alone: objects can be written and watched, nothing runs."""
    return begin(_shared_members, "control-plane", Shape.control_plane())


@pytest.fixture(scope="session")
def kwok_member(_shared_members: Testbed) -> Member:
    """A control plane with three nodes that kwok plays."""
    return begin(_shared_members, "kwok", Shape.kwok(nodes=3))


@pytest.fixture(scope="session")
def k3s_member(_shared_members: Testbed) -> Member:
    """An API server on SQLite, with a node that kwok plays."""
    return begin(_shared_members, "k3s", Shape.k3s())


@pytest.fixture(scope="session")
def whole_member(_shared_members: Testbed) -> Member:
    """A control plane and a real node at a site behind NAT; pods run."""
    return begin(_shared_members, "whole", Shape.whole())


@pytest.fixture(scope="session")
def edge_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own image as a tar, for `at_site.load_worker`."""
    return at_site.edge_image(tmp_path_factory.mktemp("image"))
