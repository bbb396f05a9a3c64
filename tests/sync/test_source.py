"""The sending end alone, at the moments that a whole conversation meets seldom."""

from cluster_controller.store import Key
from cluster_controller.sync.digest import bucket_of
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Differ, Resume
from cluster_controller.sync.source import Plan, Source
from tests.sync.memory import MemoryStore

SPACE = "report"


def key(name: str) -> Key:
    return Key(SPACE, "WorkStatus", "", name)


def apart(one: str) -> str:
    """A name whose object is in another bucket."""
    return next(name for name in map(str, range(1000)) if bucket_of(key(name)) != bucket_of(key(one)))


def test_what_changes_between_a_difference_and_its_repair_is_sent_too() -> None:
    """The repair holds a few buckets and puts the receiver's cursor past all that is committed: a change of another bucket goes before."""
    store = MemoryStore("sender")
    here, elsewhere = "here", apart("here")
    for name in (here, elsewhere):
        store.commit(lambda tx, name=name: tx.put(key(name), b"{}", uid=name))  # type: ignore[misc]
    source = Source(SPACE, store, SyncLimits())
    source.resume(Resume(1, (store.history[0][0], store.revision)))
    assert isinstance(source.next(), Begin)
    assert isinstance(source.next(), Check)
    theirs = bytearray(source._digest().buckets())
    at = bucket_of(key(here)) * 8
    theirs[at] ^= 0xFF
    source.differs(Differ(1, store.revision, bytes(theirs)))
    store.commit(lambda tx: tx.delete(key(elsewhere)))  # before the writer had its turn
    sent = source.next()
    assert isinstance(sent, Batch) and [(item.name, item.deleted) for item in sent.items] == [(elsewhere, True)]
    repair = source.next()
    assert isinstance(repair, Plan) and repair.snapshot.buckets
    assert [item.name for chunk in repair.chunks for item in chunk.items] == [here]
    assert repair.snapshot.cursor[1] == store.revision
    source.acked(Ack(1, store.revision, repair.snapshot.id))
    assert source.next() is None and source.lag == 0
