"""Source and Target under loss, duplication, reordering and restarts, in virtual time.

What must hold whenever no snapshot is under way: the replica is exactly what its sender held at the revision of the cursor.
That one sentence forbids lost, doubled, resurrected and stale-over-new objects at once. `BANYAN_SEEDS` sets how many lives are
played.
"""

import os
import random
from collections import deque

import pytest

from cluster_controller.errors import Exhausted
from cluster_controller.store import Key, Limits, Tx
from cluster_controller.sync.codec import decode, encode
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Item, Message, Resume, Snapshot, ToReceiver, ToSender
from cluster_controller.sync.source import Plan, Source
from cluster_controller.sync.target import Target, cursor_fact
from tests.sync.memory import MemoryStore

SEEDS = int(os.environ.get("BANYAN_SEEDS", "150"))
STEPS = 250
SPACE, REPLICA = "down/kid", "desired"
State = dict[tuple[str, ...], tuple[str, int, bytes]]


def state(store: MemoryStore, space: str) -> State:
    return {tuple(s.key[1:]): (s.uid, s.version, s.document) for s in store.scan(space)}


class Wire:
    """Messages on their way: taken in any order, lost, repeated, each through its encoding."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.waiting: list[bytes] = []
        self.faulty = True

    def send(self, message: Message) -> None:
        self.waiting.append(encode(message, compress=self.chance.random() < 0.5))

    def take(self) -> Message | None:
        if not self.waiting:
            return None
        at = 0
        if self.faulty:
            at = self.chance.randrange(min(3, len(self.waiting)))
            fate = self.chance.random()
            if fate < 0.05:
                self.waiting.pop(at)
                return None
            if fate < 0.15:
                return decode(self.waiting[at][4:])
        return decode(self.waiting.pop(at)[4:])


class World:
    """One sender, one receiver, wires between them, and the past states of the sender by (history id, revision)."""

    def __init__(self, seed: int, *, follow: bool = False, limits: Limits | None = None, sync: SyncLimits | None = None) -> None:
        self.chance = random.Random(seed)
        self.follow = follow
        self.sender = MemoryStore("s", limits or Limits(journal_rows=self.chance.choice([8, 30, 1000])))
        self.receiver = MemoryStore("r")
        self.limits = sync or SyncLimits(
            batch_items=self.chance.choice([1, 3, 50]),
            window_batches=self.chance.choice([1, 4]),
            inline_bytes=self.chance.choice([0, 1 << 20]),
        )
        self.down, self.up = Wire(self.chance), Wire(self.chance)
        self.past: dict[int, State] = {0: {}}
        self.epochs = 0
        self.uids = 0
        self.connect()

    # --- the sender's life

    def write(self) -> None:
        keys = [Key(SPACE, kind, "", f"o{n}") for kind in ("Work", "Secret") for n in range(4)]
        key = self.chance.choice(keys)
        other = Key("own", "Application", "default", f"a{self.chance.randrange(3)}")
        roll = self.chance.random()
        if roll < 0.15:
            self.sender.commit(lambda tx: tx.put(other, b"{}", uid="other", version=self.sender.revision + 1))
        elif roll < 0.4:
            self.sender.commit(lambda tx: tx.delete(key))
        else:
            held = self.sender.get(key)
            uid = held.uid if held is not None and self.chance.random() < 0.8 else self.new_uid()
            self.sender.commit(lambda tx: tx.put(key, b'{"n":%d}' % self.chance.randrange(1000), uid=uid))
        self.past[self.sender.revision] = state(self.sender, SPACE)

    def put(self, name: str, document: bytes = b"{}") -> None:
        self.sender.commit(lambda tx: tx.put(Key(SPACE, "Work", "", name), document, uid=f"u-{name}"))
        self.past[self.sender.revision] = state(self.sender, SPACE)

    def new_uid(self) -> str:
        """Sometimes one that was used before: Work is named and identified by its application, which may come back."""
        self.uids += 1
        return f"u{self.uids}" if self.chance.random() < 0.7 else "again"

    # --- the link

    def connect(self) -> None:
        """Both ends start anew, from what their stores hold; what is on the wires stays there."""
        self.epochs += 1000
        self.source = Source(SPACE, self.sender, self.limits)
        self.target = Target(REPLICA, self.receiver, follow=self.follow, limits=self.limits, zstd=True, epoch=self.epochs)
        self.plan: deque[Message] = deque()
        self.up.send(self.target.resume())

    def send(self) -> None:
        if self.plan:
            self.down.send(self.plan.popleft())
            return
        following = self.source.next()
        if isinstance(following, Plan):
            self.plan.extend((following.snapshot, *following.chunks))
        elif following is not None:
            self.down.send(following)

    def deliver_down(self) -> None:
        """One message, or what arrived together, in one commit: a snapshot just after a batch, say."""
        taken = [self.down.take() for _ in range(self.chance.choice([1, 1, 2, 50]))]
        messages = [message for message in taken if message is not None and not isinstance(message, Resume | Ack | Differ)]
        if messages:
            self.commit(messages)

    def commit(self, messages: list[ToReceiver]) -> None:
        if self.down.faulty and self.chance.random() < 0.03:  # power lost before the commit: nothing was answered
            self.receiver.open()
            self.connect()
            return
        outcomes = self.receiver.commit(lambda tx: self.target.apply(tx, messages))
        if any(isinstance(outcome, Ack) for outcome in outcomes):
            self.verify()
        if self.down.faulty and self.chance.random() < 0.03:  # power lost after the commit, before the answer
            self.receiver.open()
            self.connect()
            return
        for answer in self.target.answers(outcomes):
            self.up.send(answer)

    def deliver_up(self) -> None:
        message: ToSender | None = self.up.take()  # type: ignore[assignment]
        match message:
            case Resume():
                self.source.resume(message)
                self.plan.clear()
            case Ack():
                self.source.acked(message)
            case Differ():
                self.source.differs(message)

    def step(self) -> None:
        roll = self.chance.random()
        if roll < 0.25:
            self.write()
        elif roll < 0.5:
            self.send()
        elif roll < 0.75:
            self.deliver_down()
        elif roll < 0.96:
            self.deliver_up()
        elif roll < 0.98:
            self.connect()
        else:
            self.sender.open()
            self.connect()

    def settle(self, *, reconnect: bool = True) -> None:
        """The faults end: everything is delivered until nothing moves."""
        self.down.faulty = self.up.faulty = False
        if reconnect:
            self.connect()
        for _ in range(5000):
            self.send()
            if not (self.down.waiting or self.up.waiting or self.plan):
                return
            self.deliver_down()
            self.deliver_up()
        raise AssertionError("the two never came to rest")

    # --- what must hold

    def verify(self) -> None:
        history, revision = (self.receiver.fact(cursor_fact(REPLICA)) or b" 0").decode().split(" ")
        if self.target.in_step:  # after a snapshot that was cut short the next one comes before anything else
            assert state(self.receiver, REPLICA) == self.at(int(revision)), (history, revision)

    def at(self, revision: int) -> State:
        return self.past[max(known for known in self.past if known <= revision)]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_replica_is_always_a_past_state_and_in_the_end_the_present_one(seed: int) -> None:
    world = World(seed, follow=bool(seed % 2))
    for _ in range(STEPS):
        world.step()
    world.settle()
    assert state(world.receiver, REPLICA) == state(world.sender, SPACE)
    assert not list(world.receiver.scan("conflict/" + REPLICA))
    world.source.check()
    world.settle()
    assert world.source.repairs == 0


def test_what_a_batch_brings_and_the_snapshot_behind_it_no_longer_holds_is_gone_when_both_come_in_one_commit() -> None:
    world = World(1, limits=Limits(journal_rows=8), sync=SyncLimits(window_batches=4))
    world.put("steady")
    world.settle()
    world.put("brief")
    world.send()  # a batch
    world.sender.commit(lambda tx: tx.delete(Key(SPACE, "Work", "", "brief")))
    for n in range(20):  # past the journal
        world.put("steady", b'{"n":%d}' % n)
    for _ in range(3):
        world.send()
    arrived = [decode(data[4:]) for data in world.down.waiting]
    assert [type(message) for message in arrived] == [Batch, Snapshot, Chunk]
    world.down.waiting.clear()
    world.commit(arrived)  # type: ignore[arg-type]
    assert state(world.receiver, REPLICA) == state(world.sender, SPACE)


def test_what_is_equal_costs_one_frame_each_way() -> None:
    world = World(1)
    for _ in range(40):
        world.write()
    world.settle()
    world.connect()
    sent: list[Message] = []
    world.deliver_up()
    while (message := world.source.next()) is not None:
        assert not isinstance(message, Plan)
        sent.append(message)
    assert [type(message) for message in sent] == [Begin, Check]
    world.commit(list(sent))  # type: ignore[arg-type]
    assert world.up.waiting == []


@pytest.mark.parametrize("seed", range(20))
def test_drift_is_found_by_digest_and_mended_bucket_by_bucket(seed: int) -> None:
    world = World(seed, limits=Limits(), sync=SyncLimits())
    names = [f"n{n}" for n in range(300)]
    for name in names:
        world.put(name)
    world.settle()
    lost, altered, extra = (world.chance.choice(names[part::3]) for part in range(3))

    def damage(tx: Tx) -> None:
        tx.delete(Key(REPLICA, "Work", "", lost))
        held = tx.get(Key(REPLICA, "Work", "", altered))
        assert held is not None
        tx.put(held.key, b'{"altered":1}', uid=held.uid, version=held.version, delivered=held.delivered)
        tx.put(Key(REPLICA, "Work", "", extra + "x"), b"{}", uid="x", delivered=("s1", 1))

    world.receiver.commit(damage)
    seen = len(world.receiver.events)
    world.source.check()
    world.settle(reconnect=False)
    assert state(world.receiver, REPLICA) == state(world.sender, SPACE)
    assert world.source.repairs == 1
    assert len(world.receiver.events) == seen + 3, "what was right was left alone"


def test_poison_is_counted_and_the_rest_goes_on() -> None:
    world = World(3, limits=Limits(), sync=SyncLimits(document_bytes=100))
    source = Source(SPACE, world.sender, world.limits)
    for n, size in enumerate((10, 200, 20)):
        world.put(f"n{n}", b"x" * size)
    target = Target(REPLICA, world.receiver, follow=False, limits=world.limits)
    source.resume(target.resume())
    while (following := source.next()) is not None:
        messages = [following.snapshot, *following.chunks] if isinstance(following, Plan) else [following]
        for answer in target.answers(world.receiver.commit(lambda tx: target.apply(tx, messages))):  # noqa: B023
            assert isinstance(answer, Ack)
            source.acked(answer)
    assert {key[2] for key in state(world.receiver, REPLICA)} == {"n0", "n2"}
    assert source.oversized > 0
    item = Item(False, "Work", "", "n3", "u3", 1, ("s1", 4), b"x" * 200)
    batch = Batch(1, 3, ("s1", 4), (item, Item(False, "Work", "", "n4", "u4", 1, ("s1", 4), b"{}")))
    world.receiver.commit(lambda tx: target.apply(tx, [batch]))
    assert target.refused == 1
    assert {key[2] for key in state(world.receiver, REPLICA)} == {"n0", "n2", "n4"}


def test_what_grew_too_large_stays_as_it_was_and_can_be_withdrawn() -> None:
    world = World(3, limits=Limits(), sync=SyncLimits(document_bytes=100))
    world.put("n0", b"{}")
    world.put("n1", b"{}")
    world.settle()
    world.put("n0", b"x" * 200)
    world.past[world.sender.revision] = state(world.receiver, REPLICA)  # all that can be held of it
    world.settle(reconnect=False)
    assert state(world.receiver, REPLICA)["Work", "", "n0"][2] == b"{}"
    world.sender.commit(lambda tx: tx.delete(Key(SPACE, "Work", "", "n0")))
    world.past[world.sender.revision] = state(world.sender, SPACE)
    world.settle(reconnect=False)
    assert {key[2] for key in state(world.receiver, REPLICA)} == {"n1"}


def test_a_peer_with_too_many_objects_is_stopped() -> None:
    world = World(3, limits=Limits(), sync=SyncLimits(objects=5, batch_items=1))
    for n in range(6):
        world.put(f"n{n}")
    with pytest.raises(Exhausted, match="holds 5 objects and takes no more"):
        world.settle()
    assert world.receiver.size(REPLICA) == 5
