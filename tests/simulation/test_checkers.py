"""The checkers themselves: what is no violation is not taken for one, and what is one is seen."""

import msgspec

from cluster_controller.resources import kinds
from cluster_controller.rollout.revision import Version
from cluster_controller.rollout.waves import State
from cluster_controller.store.database import Batch
from cluster_controller.store.model import Event, Key, Stored
from tests.simulation import applications
from tests.simulation.disk import Disk
from tests.simulation.invariants import Invariants
from tests.simulation.reach import served
from tests.simulation.rollouts import Rollouts
from tests.simulation.scenario import Run
from tests.simulation.steps import Plan
from tests.simulation.wishes import Wishes
from tests.simulation.world import World

APP = "0f0e0d0c-0000-4000-8000-000000000001"


def put(space: str, revision: int, *, replicas: int = 1, command: str = "serve", paused: bool = False) -> Event:
    """A Work for, or at, a cluster."""
    spec = applications.spec(replicas, command=command)
    document = {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Work",
        "metadata": {"name": APP},
        "spec": {
            "cluster": "root",
            "application": {"uid": APP, "name": "one", "namespace": "default", "origin": "root"},
            "components": spec["components"],
            "placement": spec["placement"],
            "rollout": {"wave": 1, "paused": paused},
            "shares": [],
        },
    }
    stored = Stored(Key(space, "Work", "", APP), f"{APP}-{space}", revision, revision, b"", msgspec.json.encode(document))
    msgspec.json.decode(stored.document, type=kinds.Work)  # or this is none
    return Event(revision, "put", stored, None)


def test_a_share_is_held_against_what_was_given_when_it_was_raised() -> None:
    """Commits share one batch: what was given may be taken back by the next of them."""
    with World(1) as world:
        root = world.plant("root")
        check = Invariants(world, Wishes())
        check.committed(root.disk, Batch([put("desired", 1)]))
        check.committed(root.disk, Batch([put("down/child", 2), put("desired", 3, replicas=0)]))
        assert check.violations == []
        check.committed(root.disk, Batch([put("down/other", 4)]))
        assert [each.invariant for each in check.violations] == ["allotment"], "what was taken back is given no more"


def test_what_is_raised_beyond_what_was_given_is_seen() -> None:
    with World(1) as world:
        root = world.plant("root")
        check = Invariants(world, Wishes())
        check.committed(root.disk, Batch([put("desired", 1)]))
        check.committed(root.disk, Batch([put("down/child", 2), put("down/other", 3)]))
        assert [each.invariant for each in check.violations] == ["allotment"]


def rolling(world: World) -> tuple[Rollouts, Disk]:
    plan = Plan(seed=1, tree={"root": ""}, steps=(), families=("rollouts",))
    run = Run(plan, world)
    family = run.families[0]
    assert isinstance(family, Rollouts)
    return family, world.root.disk


STATE = msgspec.json.encode(
    State(
        current=Version(revision="2", components=[], references=[]),
        stable=Version(revision="1", components=[kinds.Component(name="main", command=["one"])], references=[]),
    )
)


def test_a_paused_rollout_that_tells_somebody_further_is_seen() -> None:
    with World(1) as world:
        family, disk = rolling(world)
        disk.facts[f"rollout/{APP}"] = STATE
        family.committed(disk, Batch([put("desired", 1, command="one"), put("local", 2, command="one")]))
        family.committed(disk, Batch([put("desired", 3, command="two", paused=True), put("local", 4, command="two", paused=True)]))
        assert [each.invariant for each in family.invariants.violations] == ["nobody further is told"]


def test_what_was_told_while_a_folder_was_set_back_counts_as_told() -> None:
    """A copy of it was about, perhaps: nothing is judged meanwhile, and what is told is known all the same."""
    with World(1) as world:
        family, disk = rolling(world)
        disk.facts[f"rollout/{APP}"] = STATE
        family.committed(disk, Batch([put("desired", 1, command="one"), put("local", 2, command="one")]))
        family.invariants.rewound.add(disk.name)
        family.committed(disk, Batch([put("desired", 3, command="two"), put("local", 4, command="two")]))
        family.invariants.rewound.clear()
        family.committed(disk, Batch([put("desired", 5, command="two", paused=True), put("local", 6, command="two", paused=True)]))
        assert family.invariants.violations == []


def test_after_a_restored_backup_what_stands_there_counts_as_told() -> None:
    with World(1) as world:
        family, disk = rolling(world)
        for batch in (Batch([put("desired", 1, command="two"), put("local", 2, command="two")]),):
            disk.take(batch)
            family.committed(disk, batch)
        backup = disk.copy()
        family.committed(disk, Batch([put("desired", 3, command="three"), put("local", 4, command="three")]))
        disk.rewind(backup)
        family.invariants.restored(world.root)
        family.invariants.rewound.clear()
        disk.facts[f"rollout/{APP}"] = STATE
        family.committed(disk, Batch([put("desired", 5, command="two", paused=True), put("local", 6, command="two", paused=True)]))
        assert family.invariants.violations == [], "it says the same as the backup does: nobody was told anything"


def test_who_is_carried_while_its_home_is_not_heard_is_given_nothing_more() -> None:
    with World(1) as world:
        root = world.plant("root")
        region = world.grow("region", root, takes_children=True)
        edge = world.grow("edge", region, takes_children=False)
        assert not served(edge, root, [edge])
        assert served(edge, root, [edge, region]) and served(region, root, [region]) and served(edge, region, [edge])
