"""Events are counted, not repeated, and bounded."""

import asyncio
from pathlib import Path

from cluster_controller import events
from cluster_controller.documents import decode
from cluster_controller.events import KEPT, OTHER, Reason, dropped, record, record_status
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx


def happened(tx: Tx, name: str, message: str, second: int = 0) -> None:
    about = kinds.ObjectReference(kind="Cluster", name=name, uid=name)
    record(
        tx,
        about=about,
        reason=Reason.LOST,
        message=message,
        component="test",
        timestamp=f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z",
    )


def test_the_same_again_is_counted_and_the_oldest_go(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        await store.commit(lambda tx: happened(tx, "edge-1", "cut"))
        await store.commit(lambda tx: happened(tx, "edge-1", "cut", 7))
        found = store.list("own", "Event")
        assert len(found) == 1
        event = decode(found[0].document, kinds.Event)
        assert (event.count, event.first_timestamp, event.last_timestamp) == (2, "2026-01-01T00:00:00Z", "2026-01-01T00:00:07Z")
        assert found[0].key.namespace == "default"

        def many(tx: Tx) -> None:
            for number in range(KEPT + 400):
                happened(tx, "edge-2", f"cut {number}", 10 + number)

        before = sum(dropped.values())
        await store.commit(many)
        left = store.list("own", "Event")
        assert len(left) <= KEPT + 100
        assert sum(dropped.values()) - before == 1 + KEPT + 400 - len(left)
        assert store.get(Key("own", "Event", "default", found[0].key.name)) is None  # the one heard of longest ago
        assert any(b"cut 1399" in stored.document for stored in left)
        await store.close()

    asyncio.run(play())


def test_an_event_about_a_cluster_is_counted_by_its_reason(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        before = events.happened[Reason.ADOPTED]

        def tell(tx: Tx) -> None:
            for reason in (Reason.ADOPTED, Reason.HOME):
                events.cluster(tx, "edge-1", "uid-1", reason, "by region-b", component="test", timestamp="2026-01-01T00:00:00Z")

        await store.commit(tell)
        found = {event.reason: event for event in (decode(stored.document, kinds.Event) for stored in store.list("own", "Event"))}
        assert (found["Adopted"].type, found["ReturnedHome"].type) == ("Warning", "Normal")
        assert found["Adopted"].involved_object.kind == "Cluster" and found["Adopted"].involved_object.uid == "uid-1"
        assert events.happened[Reason.ADOPTED] == before + 1
        others, lost = events.happened[OTHER], events.happened[Reason.LOST]

        def pass_on(tx: Tx) -> None:
            about = kinds.ObjectReference(kind="Application", name="emotion", uid="uid-2")
            for word in ("CrashLoopBackOff", "LinkLost"):
                record_status(tx, about=about, kind="Warning", reason=word, message="", component="test", timestamp="2026-01-01T00:00:00Z")

        await store.commit(pass_on)
        assert (events.happened[OTHER], events.happened[Reason.LOST]) == (others + 1, lost + 1)
        assert set(events.happened) <= {*(reason.value for reason in Reason), OTHER}
        await store.close()

    asyncio.run(play())
