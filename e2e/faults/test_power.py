"""The power fails everywhere at once: what was acknowledged is there, whoever starts first, and the root may stay dark."""

import time
from collections.abc import Iterator

import pytest

from e2e.faults.cargo import Cargo
from e2e.faults.exact import Before, instances, until_exact
from e2e.faults.ground import LOCAL, Ground, grounded, phases
from e2e.faults.preloaded import Power
from e2e.support import until

pytestmark = [pytest.mark.needs("root"), pytest.mark.needs("cc"), pytest.mark.exact]

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
SEED, LUCKY = 5, 0.3
CARGO = 16  # MiB of a model on its way: each sector of it is played again


@pytest.fixture(scope="module", params=["false", "true"], ids=["alone", "as-shipped"])
def failover(request: pytest.FixtureRequest) -> str:
    """May those who lose their parent be carried by another one?"""
    return str(request.param)


@pytest.fixture(scope="module")
def power(failover: str, tmp_path_factory: pytest.TempPathFactory) -> Power:
    return Power(tmp_path_factory.mktemp("power"), SEED, LUCKY)


@pytest.fixture(scope="module")
def ground(power: Power, failover: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with grounded(
        tmp_path_factory.mktemp("faults"), lambda folder: power.environment(folder) | {"BANYAN_FAILOVER_ALLOW": failover}
    ) as ground:
        yield ground


def test_everybody_loses_power_with_writes_under_way(ground: Ground, before: Before, cargo: Cargo, power: Power, long: bool) -> None:
    """The region and its edges are complete before the root is there again."""
    cargo.send()
    for turn in range(5 if long else 1):
        acknowledged: dict[str, set[str]] = {}
        for site in (ground.root, ground.region):
            acknowledged[site.name] = set()
            for number in range(40):
                name = f"turn-{turn}-{number}"
                body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "x" * 500}}
                if site.ask("POST", CONFIGMAPS, body)[0] == 201:
                    acknowledged[site.name].add(name)
        ground.change(ground.region, LOCAL, replicas=3 + turn)
        machines = ground.machines
        changed = {site.name: power.fail(site) for site in machines}
        ground.figures.note("files that lost something", ", ".join(f"{name} {count}" for name, count in changed.items()))
        assert sum(changed.values()) > 0, "the disks lost nothing: this cut was none"
        assert not any(instances(site) for site in machines)
        for site in (*ground.edges, ground.region):
            site.run()
        started = time.monotonic()
        until("the region has its edges", lambda: [phases(ground.region)[edge.name] for edge in ground.edges] == ["Ready"] * 2)
        ground.figures.took("the region has its edges after the last was started", time.monotonic() - started)
        ground.until_runs(ground.region, LOCAL, 3 + turn)
        ground.root.run()
        for site in (ground.root, ground.region):
            there = {item["metadata"]["name"] for item in site.get(CONFIGMAPS)["items"]}
            assert acknowledged[site.name] <= there, acknowledged[site.name] - there
        until_exact(Before(ground))
    assert before.noted
