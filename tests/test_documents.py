"""Each version of an object is decoded once, and what is gone from the store is let go of."""

import asyncio
from pathlib import Path

from cluster_controller.documents import LOOK_AT_LEAST, RECENT, RECENT_BYTES, Documents, encode, recall
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Stored, Tx


def event(number: int) -> tuple[Key, bytes]:
    name = f"event-{number}"
    document = kinds.Event(metadata=kinds.Metadata(name=name), involved_object=kinds.ObjectReference(kind="Cluster", name=name))
    return Key("own", "Event", "default", name), encode(document)


async def put(store: Store, number: int) -> Stored:
    key, document = event(number)
    await store.commit(lambda tx: tx.put(key, document, uid=key.name))
    stored = store.get(key)
    assert stored is not None
    return stored


def test_the_same_version_is_decoded_once(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        documents = Documents(store.get)
        stored = await put(store, 1)
        assert documents.read(stored, kinds.Event) is documents.read(stored, kinds.Event)
        await store.close()

    asyncio.run(play())


def test_rooms_share_what_was_decoded_lately_and_no_more_than_that() -> None:
    _, document = event(1)
    first = recall(document, kinds.Event)
    assert recall(bytes(bytearray(document)), kinds.Event) is first, "the same bytes, wherever they came from"
    for number in range(2, 2 + RECENT):
        recall(event(number)[1], kinds.Event)
    again = recall(document, kinds.Event)
    assert again == first and again is not first
    large = encode(kinds.Event(message="x" * RECENT_BYTES, involved_object=kinds.ObjectReference(kind="Cluster", name="a")))
    assert recall(large, kinds.Event) is not recall(large, kinds.Event)


def test_what_comes_and_goes_leaves_nothing_behind(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        documents = Documents(store.get)
        stays = [await put(store, number) for number in range(10)]
        first = [documents.read(stored, kinds.Event) for stored in stays]
        for number in range(10, 300):
            stored = await put(store, number)
            documents.read(stored, kinds.Event)
            await store.commit(lambda tx, key=stored.key: tx.delete(key))  # type: ignore[misc]
            assert len(documents) <= LOOK_AT_LEAST
        assert [documents.read(stored, kinds.Event) for stored in stays] == first
        assert all(documents.read(stored, kinds.Event) is one for stored, one in zip(stays, first, strict=True)), "those were kept"
        await store.close()

    asyncio.run(play())


def test_more_may_be_in_use_than_at_first(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        documents = Documents(store.get)
        many = 5 * LOOK_AT_LEAST

        def work(tx: Tx) -> list[Stored]:
            return [tx.put(key, document, uid=key.name) for key, document in map(event, range(many))]

        found = await store.commit(work)
        for stored in found:
            documents.read(stored, kinds.Event)
        assert len(documents) == many
        await store.close()

    asyncio.run(play())


def test_never_more_than_its_capacity_are_kept(tmp_path: Path) -> None:
    async def play() -> None:
        store = await Store.open(tmp_path)
        documents = Documents(capacity=5)
        for number in range(8):
            documents.read(await put(store, number), kinds.Event)
        assert len(documents) == 5
        await store.close()

    asyncio.run(play())
