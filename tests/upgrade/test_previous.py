"""What a version before this one left on its disks is opened, read and written on; and what a later one adds survives this one.

The stores are recorded (`tests.upgrade.record`); messages of the tunnel, of sync and of shims have fixtures beside their codecs.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller.documents import decode
from cluster_controller.resources import kinds, validate
from cluster_controller.resources.registry import REGISTRY
from cluster_controller.store import Key, Store, Stored, Tx
from cluster_controller.store.database import Database
from cluster_controller.tree import listing, records
from cluster_controller.tree.admission import Member

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED = sorted(FIXTURES.glob("*/*.db"))
NAMES = [f"{path.parent.name} {path.stem}" for path in RECORDED]
INTERNAL: dict[str, type[msgspec.Struct]] = {
    "Work": kinds.Work,
    "WorkStatus": kinds.WorkStatus,
    "ClusterStatus": kinds.ClusterStatus,
    "ClusterOverlay": kinds.ClusterOverlay,
    "Member": Member,
    "Node": kinds.Node,
    "Pod": kinds.Pod,
}


def struct_of(kind: str) -> type[msgspec.Struct] | None:
    return INTERNAL.get(kind) or (REGISTRY[kind].struct if kind in REGISTRY else None)


def play(tmp_path: Path, recorded: Path, body: Callable[[Store], Any]) -> None:
    async def main() -> None:
        shutil.copy(recorded, tmp_path / "store.db")
        store = await Store.open(tmp_path)
        try:
            found = body(store)
            if found is not None:
                await found
        finally:
            await store.close()

    asyncio.run(main())


def everything(store: Store) -> Iterator[Stored]:
    for space in list(store.spaces()):
        yield from list(store.scan(space))


def test_there_is_one_of_each_level() -> None:
    assert {path.stem for path in RECORDED} == {"root", "region-a", "edge-1"}


@pytest.mark.parametrize("recorded", RECORDED, ids=NAMES)
def test_every_object_and_fact_is_read(tmp_path: Path, recorded: Path) -> None:
    def body(store: Store) -> None:
        read: set[str] = set()
        for stored in everything(store):
            struct = struct_of(stored.key.kind)
            if struct is not None:
                decode(stored.document, struct)
                read.add(stored.key.kind)
        wanted = {"root": {"Application", "Cluster", "Work", "Member", "JoinToken", "User", "ConfigMap", "WorkStatus", "Event"}}
        wanted |= {"region-a": {"Work", "WorkStatus", "ClusterOverlay", "Member"}, "edge-1": {"Work", "Pod", "WorkStatus", "Node"}}
        assert wanted[recorded.stem] <= read
        assert len(records.starts(store).ids) >= 1
        if recorded.stem != "root":
            standing = records.standing(store)
            assert standing is not None and standing.parents and records.attach(store) >= 1
            assert store.fact("sync/desired/cursor")

    play(tmp_path, recorded, body)


@pytest.mark.parametrize("recorded", RECORDED, ids=NAMES)
def test_it_is_written_on(tmp_path: Path, recorded: Path) -> None:
    async def write(store: Store) -> None:
        before = store.revision
        await store.commit(lambda tx: tx.put(Key("own", "ConfigMap", "default", "later"), b"{}", uid="later"))
        assert store.revision == before + 1 and len(store.history) >= 2

    play(tmp_path, recorded, write)
    again = Database(tmp_path)
    again.open()
    again.close()


def unknown(value: Any) -> int:
    if isinstance(value, dict):
        return ("fromALaterVersion" in value) + sum(unknown(item) for item in value.values())
    return sum(unknown(item) for item in value) if isinstance(value, list) else 0


@pytest.mark.parametrize("recorded", RECORDED, ids=NAMES)
def test_what_a_later_version_adds_is_read_past(tmp_path: Path, recorded: Path) -> None:
    def body(store: Store) -> None:
        for stored in everything(store):
            struct = struct_of(stored.key.kind)
            if struct is None or stored.key.kind == "ConfigMap":
                continue
            document = msgspec.json.decode(stored.document)
            if stored.key.kind == "Event" or not isinstance(document.get("spec"), dict):
                continue
            document["spec"] = {**document["spec"], "fromALaterVersion": {"word": 7}}
            assert decode(msgspec.json.encode(document), struct)

    play(tmp_path, recorded, body)


def test_what_a_later_version_added_survives_what_this_one_writes(tmp_path: Path) -> None:
    recorded = next(path for path in RECORDED if path.stem == "root")

    async def body(store: Store) -> None:
        stored = next(one for one in store.list("own", "Cluster") if one.key.name == "region-a")
        document = msgspec.json.decode(stored.document)
        for part in ("metadata", "spec"):
            document[part] = {**document.get(part, {}), "fromALaterVersion": {"word": 7}}
        document["fromALaterVersion"] = {"word": 7}
        document["status"]["fromALaterVersion"] = {"word": 7}
        member = records.members(store)[stored.uid]

        def work(tx: Tx) -> None:
            tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)
            records.set_status(tx, stored.key, phase="Held")
            listing.show(tx, member, ("uid", "root"), "Held")

        await store.commit(work)
        found = store.get(stored.key)
        assert found is not None and unknown(msgspec.json.decode(found.document)) == 4
        status = decode(found.document, kinds.Cluster).status
        await store.commit(lambda tx: records.write_status(tx, found, status))
        again = store.get(stored.key)
        assert again is not None and unknown(msgspec.json.decode(again.document)) == 3  # the status is the writer's own

    play(tmp_path, recorded, body)


def test_a_person_may_change_one_field_of_what_a_later_version_wrote() -> None:
    """After a step back to this version: what it does not know stays, and only what is new in the change is judged."""
    before = {
        "apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"components": [{"name": "main", "command": ["true"], "shine": 3}], "mood": {"colour": "blue"}},
    }  # fmt: skip
    after = msgspec.json.decode(msgspec.json.encode(before))
    after["spec"]["components"][0]["replicas"] = 2
    validate.check("Application", after, before)
    for change in ({"mood": {"colour": "red"}}, {"other": 1}):
        with pytest.raises(validate.InvalidDocument) as refused:
            validate.check("Application", {**after, "spec": {**after["spec"], **change}}, before)
        assert [problem.field.split(".")[1] for problem in refused.value.problems] == [next(iter(change))]
    with pytest.raises(validate.InvalidDocument):
        validate.check("Application", after)  # a new object has nothing to keep
