"""Moves between children that answer late, twice, out of order, or not at all: an acknowledgement is never taken for another's.

One real controller; its children are played, each with a mailbox in both directions that keeps, repeats and mixes up what it
carries. Invariants at each step: what is assigned, and what really runs, never exceeds what was wanted most.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.documents import encode
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Tx

from .tree import Tree, application, put_application


class Child:
    """What a child's controller does with the Works that reach it; ``running`` ends later than it is told."""

    def __init__(self, uid: str, room: int) -> None:
        self.uid = uid
        self.room = room
        self.work: kinds.WorkSpec | None = None
        self.running = 0
        self.inbox: list[kinds.WorkSpec] = []
        self.outbox: list[kinds.WorkStatusStatus] = []

    def share(self) -> int:
        return self.work.components[0].replicas if self.work is not None else 0

    def take(self, spec: kinds.WorkSpec) -> None:
        """An older version never overwrites a newer one: the store's rule."""
        if self.work is None or spec.shares[-1].id > self.work.shares[-1].id:
            self.work = spec

    def act(self, chooser: random.Random) -> None:
        """One instance more, or one less."""
        wanted = min(self.share(), self.room)
        if self.running > wanted and chooser.random() < 0.6:
            self.running -= 1
        elif self.running < wanted:
            self.running += 1

    def report(self) -> kinds.WorkStatusStatus | None:
        if self.work is None:
            return None
        share, newest = self.share(), self.work.shares[-1].id
        part = kinds.ComponentStatus(
            name="serve", desired=share, ready=self.running, updated=self.running, confirmed=self.running,
            unplaced=max(0, share - self.room), message="is full",
        )  # fmt: skip
        row = kinds.ClusterRow(cluster=self.uid, ready=self.running, desired=share, components={"serve": self.running})
        version = newest if self.running <= share else 0
        return kinds.WorkStatusStatus(version=version, seen=newest, components=[part], clusters=[row], cluster_count=1)


async def play(folder: Path, seed: int, steps: int) -> None:
    chooser = random.Random(seed)
    tree = Tree(folder)
    root = await tree.add("root")
    for number in range(3):
        await tree.add(f"edge-{number}", "root", 2000, {"zone": str(number % 2)})
    await tree.quiet()
    children = {f"uid-edge-{number}": Child(f"uid-edge-{number}", chooser.choice([1, 3, 9])) for number in range(3)}
    wanted = highest = 4
    uid = await put_application(root, "emotion", wanted)
    work = {child: Key(f"down/{child}", "Work", "", uid) for child in children}

    def collect() -> None:
        for child in children.values():
            stored = root.store.get(work[child.uid])
            if stored is not None:
                child.inbox.append(msgspec.json.decode(stored.document, type=kinds.Work).spec)
            if (said := child.report()) is not None:
                child.outbox.append(said)
            del child.inbox[:-6], child.outbox[:-6]

    async def deliver(child: Child, said: kinds.WorkStatusStatus) -> None:
        assert child.work is not None
        document = kinds.WorkStatus(spec=kinds.WorkStatusSpec(application=child.work.application, cluster=child.uid), status=said)

        def write(tx: Tx) -> None:
            tx.put(Key(f"up/{child.uid}", "WorkStatus", "", uid), encode(document), uid=uid)

        await root.store.commit(write)

    def bounded() -> None:
        assert tree.assigned(root, uid) <= highest
        assert sum(child.running for child in children.values()) <= highest

    for step in range(steps):
        child = chooser.choice(list(children.values()))
        what = chooser.random()
        if what < 0.04:
            wanted = chooser.randint(0, 7)
            highest = max(highest, wanted)
            await put_application(root, "emotion", wanted)
        elif what < 0.10:
            zone = chooser.choice(["", "0", "1"])
            selector: dict[str, Any] = {"clusterSelector": {"matchLabels": {"zone": zone}}} if zone else {}
            await put_application(root, "emotion", wanted, **selector)
        elif what < 0.13:
            await tree.crash("root")
        elif what < 0.16:
            child.running = 0  # all of it died; its controller starts it again
        elif what < 0.45 and child.inbox:
            child.take(chooser.choice(child.inbox))  # late, twice, in any order
        elif what < 0.70 and child.outbox:
            await deliver(child, chooser.choice(child.outbox[-3:]))
        else:
            child.act(chooser)
        await tree.settled() if step % 3 == 0 else await asyncio.sleep(0)
        collect()
        bounded()
    await put_application(root, "emotion", wanted)

    def stir(tx: Tx) -> None:
        """Something changes at each cluster: who once said that it is full may be asked again."""
        for stored in tx.list("own", "Cluster"):
            document = msgspec.json.decode(stored.document)
            document["status"]["facts"]["models"] = [{"name": "m", "version": str(seed)}]
            tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    for turn in range(120):
        if turn == 10:
            await root.store.commit(stir)
        await tree.settled()
        collect()
        for child in children.values():
            if child.inbox:
                child.take(child.inbox[-1])
            child.act(chooser)
            if (last := child.report()) is not None:
                await deliver(child, last)
        bounded()
    fits = min(wanted, sum(child.room for child in children.values()))
    status = application(root, "emotion").status  # type: ignore[union-attr]
    assert (sum(child.running for child in children.values()), status.ready) == (fits, fits)
    await tree.close()


@pytest.mark.parametrize("seed", range(16))
def test_answers_late_twice_and_out_of_order_never_let_more_run_than_was_wanted(tmp_path: Path, seed: int) -> None:
    asyncio.run(play(tmp_path, seed, 250))
