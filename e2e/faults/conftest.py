"""One tree per module of faults: each test leaves it as exact as it found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.faults.cargo import MEBIBYTE, Cargo
from e2e.faults.exact import Before, until_exact
from e2e.faults.figures import Figures
from e2e.faults.ground import Ground, grounded


@pytest.fixture(scope="module")
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """A module's `ENVIRONMENT` is that of every controller."""
    with grounded(tmp_path_factory.mktemp("faults"), lambda _: getattr(request.module, "ENVIRONMENT", {})) as ground:
        yield ground


@pytest.fixture
def before(ground: Ground, figures: Figures) -> Before:
    """All is well, and this is what runs."""
    begun = Before(ground)
    until_exact(begun)
    ground.figures = figures
    return Before(ground)


@pytest.fixture
def cargo(request: pytest.FixtureRequest, ground: Ground, before: Before, long: bool, tmp_path: Path) -> Iterator[Cargo]:
    """A model to be sent right before the fault: of a module's `CARGO` MiB, else of 48; with --long of a gibibyte. `before` comes first."""
    cargo = Cargo(ground, tmp_path, getattr(request.module, "CARGO", 1024 if long else 48) * MEBIBYTE)
    yield cargo
    cargo.end()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Is there time for faults as long as they are in life? `make faults` says so."""
    return bool(request.config.getoption("--long"))
