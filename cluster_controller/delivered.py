"""Where what others sent to this controller is found: the home parent's word, and that of ancestors who serve it while home is away.

The home parent's lies in the space ``desired``, that of an ancestor in ``lent/ANCESTOR``: each is the replica of one sender, so neither
ever overwrites the other. Which ancestors ever served is a fact, so that nobody has to look for their spaces.
"""

from typing import Protocol

import msgspec

from cluster_controller.store import Key, Stored, Tx

FACT = "lent/sources"
MOST = 16  # ancestors: no path is longer


class View(Protocol):
    """A transaction, or the store as it was committed last."""

    def get(self, key: Key) -> Stored | None: ...
    def fact(self, name: str) -> bytes | None: ...


def space_of(ancestor: str) -> str:
    """Where the word of an ancestor is kept that is not the home parent."""
    return f"lent/{ancestor}"


def is_lent(space: str) -> bool:
    return space.startswith("lent/")


def sources(view: View) -> tuple[str, ...]:
    """uids of the ancestors that serve this controller, or once did."""
    found = view.fact(FACT)
    return msgspec.json.decode(found, type=tuple[str, ...]) if found else ()


def learn(tx: Tx, ancestor: str) -> None:
    """From now on its word is looked at, too."""
    known = sources(tx)
    if ancestor not in known:
        tx.set_fact(FACT, msgspec.json.encode((*known, ancestor)[-MOST:]))


def reference(view: View, kind: str, uid: str) -> Stored | None:
    """A Model, ConfigMap or Secret by its uid: of several copies the one of the latest version."""
    chosen = view.get(Key("desired", kind, "", uid))
    for ancestor in sources(view):
        found = view.get(Key(space_of(ancestor), kind, "", uid))
        if found is not None and (chosen is None or found.version > chosen.version):
            chosen = found
    return chosen
