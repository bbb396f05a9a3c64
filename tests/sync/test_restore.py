"""A parent restored from an older backup takes nothing from its children, until a person decides.

The children's reports, on the other hand, are believed whatever the child has forgotten.
"""

import random

import pytest

from cluster_controller.store import Key
from cluster_controller.sync import conflicts, resolve
from cluster_controller.sync.conflicts import Keep
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.source import Plan, Source
from cluster_controller.sync.target import Target
from tests.sync.memory import MemoryStore

DOWN, DESIRED = "down/kid", "desired"
View = dict[str, tuple[str, int, bytes]]


def key(name: str, space: str = DOWN) -> Key:
    return Key(space, "Work", "", name)


def put(store: MemoryStore, name: str, n: int, uid: str = "") -> None:
    store.commit(lambda tx: tx.put(key(name), b'{"n":%d}' % n, uid=uid or f"uid-{name}"))


def delete(store: MemoryStore, name: str) -> None:
    store.commit(lambda tx: tx.delete(key(name)))


def view(store: MemoryStore, space: str) -> View:
    return {s.key.name: (s.uid, s.version, s.document) for s in store.scan(space)}


def marked(store: MemoryStore) -> set[str]:
    return {s.key.name for s in store.scan("conflict/desired") if not conflicts._decoder.decode(s.document).decision}


def sync(sender: MemoryStore, receiver: MemoryStore, *, follow: bool = False) -> Source:
    """One session, from connecting until nothing moves."""
    source = Source(DOWN, sender, SyncLimits())
    target = Target(DESIRED, receiver, follow=follow, limits=SyncLimits())
    source.resume(target.resume())
    while (following := source.next()) is not None:
        messages = [following.snapshot, *following.chunks] if isinstance(following, Plan) else [following]
        for answer in target.answers(receiver.commit(lambda tx: target.apply(tx, messages))):  # noqa: B023
            {"Ack": source.acked, "Differ": source.differs, "Resume": source.resume}[type(answer).__name__](answer)  # type: ignore[operator]
    return source


def restored() -> tuple[MemoryStore, MemoryStore, View]:
    """A child that holds more, newer and fewer objects than its parent, which was restored from a backup."""
    parent, child = MemoryStore("p"), MemoryStore("c")
    for name in ("same", "changed", "removed"):
        put(parent, name, 1)
    sync(parent, child)
    backup = parent.backup()
    put(parent, "changed", 2)
    put(parent, "added", 1)
    delete(parent, "removed")
    sync(parent, child)
    before = view(child, DESIRED)
    assert set(before) == {"same", "changed", "added"}
    parent.restore(backup)
    return parent, child, before


def test_nothing_goes_nothing_changes_nothing_comes_back() -> None:
    parent, child, before = restored()
    sync(parent, child)
    assert view(child, DESIRED) == before
    assert marked(child) == {"changed", "added", "removed"}
    put(parent, "new", 1)
    source = sync(parent, child)
    assert set(view(child, DESIRED)) == {*before, "new"}
    assert source.repairs == 0, "a known conflict is no difference"


def test_what_was_deleted_here_is_not_brought_back() -> None:
    parent, child = MemoryStore("p"), MemoryStore("c")
    put(parent, "keep", 1)
    backup = parent.backup()
    put(parent, "gone", 1)  # the child holds it under a pair that the restored parent does not know
    sync(parent, child)
    delete(parent, "gone")
    sync(parent, child)
    parent.restore(backup)
    put(parent, "gone", 1, uid="uid-gone")
    sync(parent, child)
    assert set(view(child, DESIRED)) == {"keep"}
    assert marked(child) == {"gone"}
    child.commit(lambda tx: resolve(tx, DESIRED, "root", kind="Work"))
    assert set(view(child, DESIRED)) == {"keep", "gone"}


@pytest.mark.parametrize("ended", ["deleted", "replaced and deleted"])
def test_what_ended_in_a_forgotten_life_is_not_brought_back_by_a_change(ended: str) -> None:
    """The restored parent knows the object, and how the child came by it, but not its end."""
    parent, child = MemoryStore("p"), MemoryStore("c")
    put(parent, "gone", 1, uid="first")
    sync(parent, child)
    backup = parent.backup()
    if ended != "deleted":
        put(parent, "gone", 1, uid="second")
        sync(parent, child)
    delete(parent, "gone")
    sync(parent, child)
    parent.restore(backup)
    put(parent, "gone", 2, uid="first")  # placement counts again, say: no decision of a person
    sync(parent, child)
    assert view(child, DESIRED) == {} and marked(child) == {"gone"}
    child.commit(lambda tx: resolve(tx, DESIRED, "root", kind="Work"))
    assert set(view(child, DESIRED)) == {"gone"}


def test_what_was_made_again_after_an_end_that_both_remember_comes_back() -> None:
    parent, child = MemoryStore("p"), MemoryStore("c")
    put(parent, "again", 1)
    sync(parent, child)
    delete(parent, "again")
    sync(parent, child)
    backup = parent.backup()
    put(parent, "other", 1)
    sync(parent, child)
    parent.restore(backup)
    put(parent, "again", 2)
    sync(parent, child)
    assert set(view(child, DESIRED)) == {"again", "other"} and marked(child) == {"other"}


def test_changes_at_a_restored_parent_wait_too_but_a_deletion_is_a_deletion() -> None:
    parent, child, before = restored()
    sync(parent, child)
    for n in range(5):  # beyond the versions of its former life
        put(parent, "changed", 100 + n)
    sync(parent, child)
    assert view(child, DESIRED)["changed"] == before["changed"]
    mark = conflicts.read(child.get(conflicts.mark_key(key("changed", DESIRED))))
    assert mark is not None and mark.theirs is not None and mark.theirs.document == b'{"n":104}'
    delete(parent, "changed")
    sync(parent, child)
    assert "changed" not in view(child, DESIRED) and "changed" not in marked(child)


@pytest.mark.parametrize("keep", ["field", "root"])
@pytest.mark.parametrize("scope", ["one", "kind"])
def test_a_person_decides(keep: Keep, scope: str) -> None:
    parent, child, before = restored()
    sync(parent, child)
    name = "changed" if scope == "one" else None
    settled = child.commit(lambda tx: resolve(tx, DESIRED, keep, kind="Work", name=name))
    assert settled == (1 if scope == "one" else 3)
    after = view(child, DESIRED)
    if keep == "field":
        assert after == before
    else:
        assert after["changed"] == view(parent, DOWN)["changed"]
        assert ("added" in after) == (scope == "one")
        assert ("removed" in after) == (scope == "kind")
    assert marked(child) == ({"added", "removed"} if scope == "one" else set())
    assert sync(parent, child).repairs == 0
    assert {k: v for k, v in view(child, DESIRED).items() if k in after} == after, "decided once, it stays decided"
    put(parent, "changed", 500)
    sync(parent, child)
    assert view(child, DESIRED)["changed"][2] == b'{"n":500}', "what a person changes at the parent afterwards counts again"


def test_the_same_object_in_two_histories_is_no_conflict() -> None:
    parent, child, _ = restored()
    put(parent, "changed", 2)  # the same bytes, the same version, as in the life it forgot
    sync(parent, child)
    assert "changed" not in marked(child)
    delete(parent, "changed")
    sync(parent, child)
    assert "changed" not in view(child, DESIRED)


def test_reports_are_believed_across_histories() -> None:
    parent, child, _ = restored()  # here the child's role: `parent` reports
    sync(parent, child, follow=True)
    assert view(child, DESIRED) == view(parent, DOWN)
    assert not list(child.scan("conflict/desired"))


def test_a_report_that_is_older_at_its_source_does_not_replace_a_newer_one() -> None:
    reporter, above = MemoryStore("p"), MemoryStore("c")

    def report(start: int, sequence: int) -> None:
        reporter.commit(
            lambda tx: tx.put(key("r"), b'{"at":[%d,%d]}' % (start, sequence), uid="r", source="leaf", start=start, sequence=sequence)
        )

    for start, sequence, expected in ((1, 5, (1, 5)), (1, 4, (1, 5)), (2, 1, (2, 1)), (1, 9, (2, 1)), (2, 2, (2, 2))):
        report(start, sequence)
        sync(reporter, above, follow=True)
        held = above.get(key("r", DESIRED))
        assert held is not None and (held.start, held.sequence) == expected


@pytest.mark.parametrize("seed", range(60))
def test_restored_again_and_again_nothing_is_taken(seed: int) -> None:
    """Whatever a parent that forgets does, an object leaves the child only by a deletion of that very uid."""
    chance = random.Random(seed)
    parent, child = MemoryStore("p"), MemoryStore("c")
    backups = [parent.backup()]
    deleted: set[str] = set()
    uids = 0
    for _ in range(120):
        roll = chance.random()
        name = f"o{chance.randrange(5)}"
        if roll < 0.45:
            held = parent.get(key(name))
            uids += held is None
            put(parent, name, chance.randrange(9), uid=held.uid if held is not None else f"u{uids}")
        elif roll < 0.55:
            held = parent.get(key(name))
            if held is not None:
                deleted.add(held.uid)
                delete(parent, name)
        elif roll < 0.65:
            backups.append(parent.backup())
        elif roll < 0.72:
            parent.restore(chance.choice(backups))
        else:
            before = {uid for uid, _, _ in view(child, DESIRED).values()}
            sync(parent, child)
            after = {uid for uid, _, _ in view(child, DESIRED).values()}
            assert before - after <= deleted
            in_conflict = {conflicts.object_key(s.key).name for s in child.scan("conflict/desired")}
            assert {n: o for n, o in view(child, DESIRED).items() if n not in in_conflict} == {
                n: o for n, o in view(parent, DOWN).items() if n not in in_conflict
            }
