"""A store that came from a backup: open tokens are void, whoever it cannot know is named, and nobody is named without reason."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller import restored
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_controller.store.backup import RESTORED, Restored, restore
from cluster_controller.tree import records
from cluster_controller.tree.admission import Member
from cluster_controller.tree.times import parse_time

ME = "r" * 26
PASSPHRASE = "open, sesame!"
MADE = "2026-11-21T10:00:00Z"


def token(store: Store, name: str, **status: str) -> Any:
    made = records.new_object(name, kinds.JoinTokenSpec(), {"expires": "2030-01-01T00:00:00Z", **status}, "JoinToken", parse_time(MADE))
    return store.commit(lambda tx: records.add(tx, records.token_key(name), made))


def join(store: Store, name: str, token_id: str = "") -> Any:
    return store.commit(lambda tx: records.put_member(tx, Member(uid=name, name=name, state="member", token_id=token_id)))


async def make(folder: Path, target: Path) -> None:
    store = await Store.open(folder)
    cluster = {"metadata": {"name": "root", "uid": ME}, "status": {"uid": ME, "somethingNewer": 7}}
    await store.commit(lambda tx: tx.put(Key("own", "Cluster", "", "root"), msgspec.json.encode(cluster), uid=ME))
    await token(store, "open", phase="Open")
    await token(store, "waiting", phase="Pending", usedBy="nobody")
    await token(store, "used", phase="Used", usedBy="edge-1")
    await join(store, "edge-1", "used")
    await join(store, "old-stranger")
    await store.backup(target, PASSPHRASE, made=MADE)
    await store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    asyncio.run(make(tmp_path / "lost", tmp_path / "a.backup"))
    restore(tmp_path / "a.backup", tmp_path / "new", PASSPHRASE, now="2026-11-21T12:00:00Z")
    yield tmp_path / "new"


def phases(store: Store) -> dict[str, str]:
    return {one.metadata.name: one.status.phase for one in records.tokens(store)}


def test_open_tokens_are_voided_once_before_anything_listens(folder: Path) -> None:
    async def main() -> None:
        store = await Store.open(folder)
        assert phases(store)["open"] == "Open"  # the backup says so, and it is not to be believed
        found = await restored.settle(store)
        assert (
            found == Restored(made=MADE, revision=found.revision, restored="2026-11-21T12:00:00Z", settled=True, voided=2) if found else 0
        )
        assert phases(store) == {"open": "Revoked", "waiting": "Revoked", "used": "Used"}
        await token(store, "fresh", phase="Open")
        await restored.settle(store)  # another start
        assert phases(store)["fresh"] == "Open"
        await store.close()

    asyncio.run(main())


def test_a_store_that_was_never_restored_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        await token(store, "open", phase="Open")
        assert await restored.settle(store) is None
        room = restored.AfterRestore(store, uid=ME, timestamp=lambda: MADE)
        room.load()
        await store.commit(lambda tx: room.settle(tx, ME))
        assert phases(store) == {"open": "Open"} and store.fact(RESTORED) is None
        await store.close()

    asyncio.run(main())


def condition(store: Store) -> dict[str, Any]:
    stored = store.find("own", "Cluster", ME)
    assert stored is not None
    status = msgspec.json.decode(stored.document)["status"]
    assert status["somethingNewer"] == 7  # what this version does not know stays
    return next((one for one in status.get("conditions", []) if one["type"] == restored.CONDITION), {})


def events(store: Store) -> list[tuple[str, int]]:
    found = [msgspec.json.decode(stored.document) for stored in store.list("own", "Event")]
    return sorted((one["involvedObject"]["name"], one["count"]) for one in found if one["reason"] == "NotInBackup")


def test_who_joined_after_the_backup_is_named_once(folder: Path) -> None:
    async def main() -> None:
        store = await Store.open(folder)
        await restored.settle(store)
        room = restored.AfterRestore(store, uid=ME, timestamp=lambda: "2026-11-21T12:00:01Z")
        room.load()
        store.subscribe(room.changed, kinds=room.heeds)
        running = asyncio.create_task(room.run())
        await settled(lambda: condition(store))
        assert MADE in condition(store)["message"] and "2 open join tokens were voided" in condition(store)["message"]
        assert "not in the backup" not in condition(store)["message"] and events(store) == []
        await join(store, "edge-9")
        await settled(lambda: "not in the backup: edge-9" in condition(store)["message"])
        await join(store, "edge-2", "a-token")  # it joined after the restore, in the usual way
        await join(store, "edge-8")
        await settled(lambda: "not in the backup: edge-8, edge-9" in condition(store)["message"])
        assert events(store) == [("edge-8", 1), ("edge-9", 1)]
        assert condition(store)["lastTransitionTime"] == "2026-11-21T12:00:01Z"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()

    asyncio.run(main())


async def settled(check: Any) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0)


def test_many_strangers_are_counted_and_some_named() -> None:
    message = restored._words(Restored(made=MADE, voided=1), [f"edge-{number:02}" for number in range(25)])
    assert "1 open join token was voided" in message and "edge-19 and 5 more" in message and "edge-20" not in message
