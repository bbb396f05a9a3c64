"""Clocks that are wrong by a year, or jump, and certificates that expire in the dark: nothing that runs or is wanted depends on them."""

from collections.abc import Iterator

import pytest

from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, until_exact
from e2e.faults.ground import LOCAL, STEADY, Ground, grounded, phases
from e2e.faults.preloaded import Clocks
from e2e.support import until

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("cc"), pytest.mark.exact]

YEAR = 366 * 86400
LIFETIME = 91 * 86400  # seconds: longer than a cluster's certificate lasts


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks"))


@pytest.fixture(scope="module")
def ground(clocks: Clocks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(tmp_path_factory.mktemp("faults"), clocks.environment) as ground:
        yield ground


@pytest.mark.parametrize("ahead", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_a_clock_jumps_by_a_year_and_a_controller_starts_with_it(
    ground: Ground, before: Before, cargo: Cargo, clocks: Clocks, ahead: int
) -> None:
    """The edge's under a running controller, the region's while it is off; both work on, and start anew."""
    edge = ground.edges[0]
    cargo.send()
    clocks.set(edge.name, ahead)
    ground.change(ground.root, STEADY, replicas=6)
    ground.until_runs(ground.root, STEADY, 6)
    ground.region.kill()
    clocks.set(ground.region.name, ahead)
    ground.region.run()
    edge.kill()
    edge.run()
    ground.change(ground.region, LOCAL, replicas=3)
    until_exact(before)
    for site in (edge, ground.region):
        clocks.set(site.name, 0)
    ground.change(ground.root, STEADY, replicas=4)
    ground.change(ground.region, LOCAL, replicas=2)
    until_exact(before.less(STEADY, LOCAL))


def test_certificates_expire_while_a_region_is_cut_off(ground: Ground, before: Before, cargo: Cargo, clocks: Clocks) -> None:
    """Everybody's clock is past every certificate of a cluster when the link is back: renewed by the same keys, and linked."""
    cargo.send()
    ground.links["region-a"].cut()
    until("the root misses the region", lambda: phases(ground.root)["region-a"] != "Ready")
    for site in ground.machines:
        clocks.set(site.name, LIFETIME)
    for site in (*ground.edges, ground.region):
        site.kill()
        site.run()
    ground.change(ground.region, LOCAL, replicas=3)
    ground.until_runs(ground.region, LOCAL, 3)
    ground.links["region-a"].mend()
    until_exact(before)
    for site in ground.machines:
        clocks.set(site.name, 0)
    ground.change(ground.region, LOCAL, replicas=2)
    until_exact(before.less(LOCAL))
