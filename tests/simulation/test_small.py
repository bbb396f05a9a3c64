"""A few clusters, to see that the simulated world carries the real product: deploy, cut, heal, crash; and what it once found, in small."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster_controller import app
from cluster_controller.errors import StoreError
from cluster_shim import contract
from cluster_shim.contract import ShimError
from tests.simulation import applications
from tests.simulation.invariants import Invariants
from tests.simulation.site import SimShim
from tests.simulation.wishes import Wishes
from tests.simulation.world import World


def test_what_is_deployed_runs_through_a_cut_and_a_crash_and_follows_changes_afterwards() -> None:
    with World(1) as world:
        root = world.plant("root")
        region = world.grow("region", root, takes_children=True)
        edge = world.grow("edge", region, takes_children=False)
        wishes = Wishes()
        check = Invariants(world, wishes)
        for place in (root, region, edge):
            place.start()
        world.run_for(10)
        world.call(root, wishes.create(root, "one", applications.spec(5)))
        world.run_for(20)
        assert list(check.unhealed()) == []

        cut = world.network.cut([edge.name], [region.name])
        check.sample()
        world.run_for(60)
        check.look()
        world.call(root, wishes.change("one", applications.spec(7)))
        world.run_for(60)
        region.kill()
        region.start()
        world.run_for(60)
        check.look()
        assert edge.site.running(wishes.by_name["one"].uid) > 0, "a cluster that is cut off runs on"
        world.network.heal(cut)
        world.run_for(60)
        assert list(check.unhealed()) == []
        assert check.violations == []


def test_a_controller_whose_disk_did_not_confirm_a_write_begins_anew_by_itself() -> None:
    with World(2) as world:
        root = world.plant("root")
        wishes = Wishes()
        check = Invariants(world, wishes)
        root.start()
        world.run_for(10)
        before, root.disk.lose_next = root.life, True
        with pytest.raises(StoreError, match="did not confirm"):
            world.call(root, wishes.create(root, "one", applications.spec(1)))
        world.run_for(app.LOST_SECONDS / 2)
        assert root.life is before, "the disk may go on failing: not at once"
        world.run_for(app.LOST_SECONDS)
        assert root.life is not before and root.alive
        wishes.ask_again()
        world.call(root, wishes.create(root, "two", applications.spec(2)))
        world.run_for(20)
        assert list(check.unhealed()) == []


@pytest.mark.parametrize("action", ["Keep", "Replace"])
@pytest.mark.parametrize("rollout", [False, True])
def test_what_is_created_while_a_region_is_dead_runs_elsewhere_and_goes_on_there(action: str, rollout: bool) -> None:
    """Its clusters are heard by way of adopters, but nobody could give them anything new."""
    with World(3) as world:
        root = world.plant("root")
        zone = world.grow("zone", root, takes_children=True)
        other = world.grow("other", root, takes_children=True)
        edges = [world.grow(f"edge-{number}", zone, takes_children=False) for number in range(2)]
        wishes = Wishes()
        check = Invariants(world, wishes)
        for place in (root, zone, other, *edges):
            place.start()
        world.run_for(30)
        zone.kill()
        check.sample()
        world.run_for(60)
        unreachable = {"action": action, "afterSeconds": 10} if action == "Replace" else {"action": action}
        spec = applications.spec(8, cpu="100m", on_unreachable=unreachable)
        world.call(root, wishes.create(root, "one", spec | {"rollout": {"wave": 1, "pauseSeconds": 1}} if rollout else spec))
        world.run_for(20)
        uid = wishes.by_name["one"].uid
        runs = {place.name: place.site.running(uid) for place in (root, other)}
        assert runs == {"root": 4, "other": 4}
        zone.start()
        world.run_for(60)
        assert {place.name: place.site.running(uid) for place in (root, other)} == runs, "nothing healthy is moved"
        assert list(check.unhealed()) == []
        assert check.violations == []


def test_a_shim_that_is_lost_while_it_is_told_ends_its_reconciliation() -> None:
    """Or a controller would wait for ever for the answer of a shim that has long been back."""
    with World(4) as world:
        root = world.plant("root")
        root.start()
        world.run_for(10)
        shim = SimShim(root.site)

        async def lost_while_told() -> None:
            told = asyncio.Event()

            async def desired() -> AsyncIterator[contract.Desired]:
                root.site.habits.lost = True  # it answered when it was asked, and does not when it is told
                told.set()
                yield contract.Desired(full=True)
                await asyncio.Event().wait()

            with pytest.raises(ShimError, match="does not answer"):
                async for _ in shim.reconcile(desired()):
                    pass
            assert told.is_set()

        world.call(root, lost_while_told(), limit=20.0)
