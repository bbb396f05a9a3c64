"""Journal, mirror, history: against the simplest model that could be right."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.store import Event, Expired, History, Key, Limits, Stored
from cluster_controller.store.history import opened
from cluster_controller.store.journal import Journal
from cluster_controller.store.mirror import Mirror
from tests.sync.memory import MemoryStore


class Write(NamedTuple):
    space: str
    name: str
    delete: bool
    size: int


writes = st.lists(
    st.builds(Write, st.sampled_from(["own", "down/a"]), st.sampled_from(["a", "b", "c"]), st.booleans(), st.integers(0, 3000)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(writes, st.integers(1, 20), st.integers(2000, 20_000))
def test_the_journal_is_bounded_and_undoes_exactly(script: list[Write], rows: int, size: int) -> None:
    store = MemoryStore("m", Limits(journal_rows=rows, journal_bytes=size))
    past: dict[int, dict[Key, Stored]] = {0: {}}
    for number, (space, name, deleted, length) in enumerate(script):
        key = Key(space, "Work", "", name)
        if deleted:
            store.commit(lambda tx: tx.delete(key))  # noqa: B023
        else:
            store.commit(lambda tx: tx.put(key, b"%d" % number + b"x" * length, uid="u"))  # noqa: B023
        past[store.revision] = {stored.key: stored for s in ("own", "down/a") for stored in store.scan(s)}
    journal = store.journal
    assert len(journal) <= rows
    assert journal.bytes <= size or len(journal) == 1
    assert journal.since(journal.floor) == store.events[len(store.events) - len(journal) :]
    for space in ("own", "down/a"):
        mine = [event for event in store.events if event.stored.key.space == space]
        assert journal.last(space) == (mine[-1].revision if mine else 0)
        for revision in range(store.revision + 1):
            if revision < journal.floor_of(space):
                with pytest.raises(Expired):
                    journal.since(revision, space)
                with pytest.raises(Expired):
                    journal.undo(space, "Work", revision)
                continue
            assert journal.since(revision, space) == [event for event in mine if event.revision > revision]
            now = {stored.key: stored for stored in store.scan(space)}
            for key, then in journal.undo(space, "Work", revision).items():
                now.pop(key, None)
                if then is not None:
                    now[key] = then
            assert now == {key: stored for key, stored in past[revision].items() if key.space == space}


@settings(max_examples=200, deadline=None)
@given(writes, st.integers(1, 10))
def test_what_the_journal_drops_is_what_nobody_can_ask_for(script: list[Write], rows: int) -> None:
    """Of all rows ever written, those not declared dead are the live ones, the retained ones, and the states before those."""
    limits = Limits(journal_rows=rows)
    store, journal, dead = MemoryStore("m"), Journal(limits), set[int]()
    for number, (space, name, deleted, _) in enumerate(script):
        key = Key(space, "Work", "", name)
        done = len(store.events)
        if deleted:
            store.commit(lambda tx: tx.delete(key))  # noqa: B023
        else:
            store.commit(lambda tx: tx.put(key, b"%d" % number, uid="u"))  # noqa: B023
        for event in store.events[done:]:
            journal.append(event)
        dead |= set(journal.trim().dead)
    retained = journal.since(journal.floor)
    needed = {event.revision for event in retained} | {event.previous.revision for event in retained if event.previous is not None}
    live = {stored.revision for space in ("own", "down/a") for stored in store.scan(space)}
    assert {event.revision for event in store.events} - dead == needed | live


names = st.text(alphabet="ab.\U0010fffe", max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(names, names, st.sampled_from(["u1", "u2", "u3", ""]), st.booleans()), max_size=40))
def test_the_mirror_lists_in_order_and_finds_by_uid(script: list[tuple[str, str, str, bool]]) -> None:
    mirror, model = Mirror(), dict[Key, Stored]()
    for number, (namespace, name, uid, look) in enumerate(script):
        key = Key("s", "k", namespace, name)
        if uid:
            stored = Stored(key, uid + name, 1, number, b"", b"")
            mirror.put(stored)
            model[key] = stored
        elif key in model:
            mirror.remove(key)
            del model[key]
        if look:
            assert mirror.list("s", "k") == [model[key] for key in sorted(model)]
            assert mirror.list("s", "k", namespace) == [model[key] for key in sorted(model) if key.namespace == namespace]
    assert mirror.count == mirror.size("s") == len(model)
    assert set(mirror.scan("s")) == set(model.values())
    assert mirror.spaces() == (["s"] if model else []) and mirror.kinds("s") == (["k"] if model else [])
    for key, stored in model.items():
        assert mirror.get(key) == stored
    for uid in ("u1a", "u2b", "nobody"):
        found = mirror.find("s", "k", uid)
        assert (found is None) == (uid not in {s.uid for s in model.values()})
        assert found is None or found.uid == uid


def test_find_follows_every_change() -> None:
    mirror = Mirror()
    key = Key("s", "k", "", "n")
    mirror.put(Stored(key, "one", 1, 1, b"", b""))
    assert mirror.find("s", "k", "one") is not None
    mirror.put(Stored(key, "two", 1, 2, b"", b""))
    assert mirror.find("s", "k", "one") is None
    assert mirror.find("s", "k", "two") is not None
    mirror.remove(key)
    assert mirror.find("s", "k", "two") is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_a_history_knows_its_own_revisions_and_no_others(writes_per_opening: list[int]) -> None:
    openings: list[tuple[str, int]] = []
    revision = 0
    given_out: set[tuple[str, int]] = set()
    for number, count in enumerate(writes_per_opening):
        openings, _ = opened(openings, f"h{number}", revision, keep=100)
        for _ in range(count):
            revision += 1
            given_out.add((f"h{number}", revision))
    history = History(openings, revision)
    assert {pair for pair in given_out if history.contains(pair)} == given_out
    assert {history.origin(r) for r in range(1, revision + 1)} == given_out
    assert not any(history.contains((name, revision + 1)) for name, _ in openings)
    assert not history.contains(("stranger", 1))


def test_the_oldest_openings_are_forgotten() -> None:
    openings: list[tuple[str, int]] = []
    for number in range(10):
        openings, dropped = opened(openings, f"h{number}", number, keep=3)
    assert [name for name, _ in openings] == ["h7", "h8", "h9"] and dropped == [("h6", 7)]
    history = History(openings, 9)
    assert history.origin(2) == ("", 2) and history.span("h6") is None and not history.contains(("", 2))


def test_a_restored_history_does_not_contain_what_it_forgot() -> None:
    original = History([("h0", 1)], 95)
    restored = History(opened([("h0", 1)], "h1", 80, keep=100)[0], 80)
    assert original.contains(("h0", 95)) and restored.contains(("h0", 80)) and not restored.contains(("h0", 95))


def test_an_event_of_a_delete_carries_the_last_state() -> None:
    store = MemoryStore("m")
    key = Key("s", "k", "", "n")
    put = store.commit(lambda tx: tx.put(key, b"1", uid="u", source="leaf", start=1, sequence=2, delivered=("h", 1)))
    assert store.commit(lambda tx: tx.delete(key)) is put
    event: Event = store.events[-1]
    assert (event.stored.document, event.stored.revision, event.previous) == (b"1", 2, put)
    assert event.stored.document is put.document
    assert store.commit(lambda tx: tx.delete(key)) is None
