"""Faults of the link and restored backups together, on either side, with journals that end early.

Whatever is forgotten: in the end both agree but for what waits for a person, nothing moves at rest, and a child whose own memory
is whole neither loses what its parent never ended nor takes back what its parent ended. `BANYAN_SEEDS` sets how many lives are
played.
"""

import os

import pytest

from cluster_controller.store import Key
from cluster_controller.sync import conflicts
from tests.sync.memory import MemoryStore
from tests.sync.test_convergence import REPLICA, SPACE, State, World, state

SEEDS = int(os.environ.get("BANYAN_SEEDS", "150")) * 2 // 3
STEPS = 400


class Forgetful(World):
    """A world in which backups are taken and restored; every uid is used once."""

    def __init__(self, seed: int, forgets: str, *, follow: bool) -> None:
        self.forgets = forgets
        self.ended: set[str] = set()  # uids that the sender deleted or replaced, in any of its lives
        self.backups: dict[str, list[MemoryStore]] = {"sender": [], "receiver": []}
        super().__init__(seed, follow=follow)

    def new_uid(self) -> str:
        self.uids += 1
        return f"u{self.uids}"

    def write(self) -> None:
        before = {stored.key: stored.uid for stored in self.sender.scan(SPACE)}
        super().write()
        after = {stored.key: stored.uid for stored in self.sender.scan(SPACE)}
        self.ended |= {uid for key, uid in before.items() if after.get(key) != uid}

    def verify(self) -> None:
        if "sender" not in self.forgets:  # else a revision names more than one past state
            super().verify()

    def step(self) -> None:
        for side, store in (("sender", self.sender), ("receiver", self.receiver)):
            roll = self.chance.random()
            if side in self.forgets and roll < 0.01:
                self.backups[side].append(store.backup())
            elif side in self.forgets and roll < 0.016 and self.backups[side]:
                store.restore(self.chance.choice(self.backups[side]))
                self.connect()
                return
        super().step()

    def check_the_childs_life(self) -> None:
        held: dict[Key, str] = {}
        gone: set[str] = set()
        for event in self.receiver.events:
            key, uid = event.stored.key, event.stored.uid
            if key.space != REPLICA:
                continue
            before, now = held.get(key, ""), uid if event.kind_of == "put" else ""
            held[key] = now
            if before and before != now:
                assert before in self.ended, f"{before} was taken"
                gone.add(before)
            if now and now != before:
                assert now not in gone, f"{now} came back"


def outside(conflict: set[tuple[str, ...]], found: State) -> State:
    return {key: value for key, value in found.items() if key not in conflict}


@pytest.mark.parametrize("follow", [False, True], ids=["desired", "reports"])
@pytest.mark.parametrize("forgets", ["receiver", "sender", "sender and receiver"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whoever_forgets_both_come_to_rest_in_agreement(seed: int, forgets: str, follow: bool) -> None:
    world = Forgetful(seed, forgets, follow=follow)
    for _ in range(STEPS):
        world.step()
    world.settle()
    found = state(world.receiver, REPLICA)
    marks = {tuple(conflicts.object_key(stored.key)[1:]) for stored in world.receiver.scan(conflicts.space_of(REPLICA))}
    assert outside(marks, found) == outside(marks, state(world.sender, SPACE))
    assert not marks or ("sender" in forgets and not follow)
    if not follow and forgets == "sender":
        world.check_the_childs_life()
    for _ in range(2):
        world.source.check()
        world.settle(reconnect=False)
        assert state(world.receiver, REPLICA) == found
        world.connect()
        world.settle()
        assert world.source.repairs == 0 and state(world.receiver, REPLICA) == found
