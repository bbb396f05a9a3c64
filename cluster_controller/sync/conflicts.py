"""Objects that a sender with another history would change or remove, until a person decides.

Pure. A mark lives in the store under the space "conflict/SPACE" at the object's own kind, namespace and name, so it is listed,
watched and journaled like everything else, and a Secret's mark is sealed like a Secret. It keeps what the sender has, so a
decision needs no connection. While it is undecided, and after "field", the object runs on as it is.

After "field" a mark stays, to remember which state of the sender's was turned down: anything newer from there counts again.
"""

from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from cluster_controller.store.model import Key, Stored, content_hash
from cluster_controller.store.tx import Tx
from cluster_controller.sync.messages import Item

Keep = Literal["field", "root"]
PREFIX = "conflict/"


class Theirs(Struct, frozen=True):
    """The object as the sender has it."""

    uid: str
    version: int
    hash: bytes
    history: str
    revision: int
    document: bytes = b""  # dropped once turned down

    def is_item(self, item: Item) -> bool:
        return (self.uid, self.version, self.hash) == (item.uid, item.version, content_hash(item.document))


class Mark(Struct, frozen=True):
    """``ours`` is the uid of the object that is held, "" when it was deleted here; ``theirs`` None: the sender has none."""

    ours: str
    theirs: Theirs | None
    decision: Literal["", "field"] = ""


_decoder = msgspec.json.Decoder(Mark)


def space_of(space: str) -> str:
    return PREFIX + space


def mark_key(key: Key) -> Key:
    return Key(space_of(key.space), *key[1:])


def object_key(key: Key) -> Key:
    """Of the object that a mark is about."""
    return Key(key.space.removeprefix(PREFIX), *key[1:])


def read(stored: Stored | None) -> Mark | None:
    return _decoder.decode(stored.document) if stored is not None else None


def write(tx: Tx, key: Key, mark: Mark) -> None:
    tx.put(mark_key(key), msgspec.json.encode(mark), uid=mark.ours or (mark.theirs.uid if mark.theirs else ""))


def theirs(item: Item) -> Theirs:
    return Theirs(item.uid, item.version, content_hash(item.document), *item.delivered, item.document)


class Lister(Protocol):
    """What a `Store` offers for looking."""

    def scan(self, space: str) -> Iterator[Stored]: ...


def undecided(view: Lister, space: str) -> list[tuple[Key, Mark]]:
    """The objects of ``space`` that wait for a decision, by key."""
    found = ((object_key(stored.key), _decoder.decode(stored.document)) for stored in view.scan(space_of(space)))
    return sorted(((key, mark) for key, mark in found if not mark.decision), key=lambda pair: pair[0])


def resolve(tx: Tx, space: str, keep: Keep, *, kind: str, namespace: str | None = None, name: str | None = None) -> int:
    """A person's decision for one object, a namespace or a kind: what is in the field stays, or what the sender has replaces it.

    Returns how many conflicts it settled. For all kinds call it for each kind of `space_of(space)`.
    """
    settled = 0
    for stored in tx.list(space_of(space), kind, namespace):
        mark = _decoder.decode(stored.document)
        if mark.decision or (name is not None and stored.key.name != name):
            continue
        settled += 1
        if keep == "field":
            _keep_field(tx, object_key(stored.key), mark)
        else:
            _keep_root(tx, object_key(stored.key), mark)
    return settled


def _keep_field(tx: Tx, key: Key, mark: Mark) -> None:
    turned_down = msgspec.structs.replace(mark.theirs, document=b"") if mark.theirs is not None else None
    write(tx, key, Mark(mark.ours, turned_down, "field"))


def _keep_root(tx: Tx, key: Key, mark: Mark) -> None:
    there = mark.theirs
    if there is None:
        tx.delete(key)
    else:
        tx.put(key, there.document, uid=there.uid, version=there.version, delivered=(there.history, there.revision))
    tx.delete(mark_key(key))
