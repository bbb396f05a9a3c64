"""Under which identity a report travels: who observed it, in which of its starts, as the how manieth.

The identity stays with a report on its whole way up, so that every store on it can tell an older report from a newer one, also
when a controller in between was restored from a backup and sends again what it once knew (`sync.rules.reported_before`). What a
controller makes of its children's words (a sum, or "out of reach") is a report of its own; what it only passes on keeps theirs.
"""

from datetime import datetime

import msgspec

from cluster_controller.documents import encode
from cluster_controller.resources.carry import Carrier
from cluster_controller.store import Key, Store, Stored, Tx

START = "reports/start"  # fact: the number of this start
MOST_STARTS = 1 << 53  # milliseconds since 1970: nobody's clock is that far ahead


class Reporter:
    """Writes the space `report` of one controller, in one of its starts."""

    def __init__(self, source: str, start: int) -> None:
        self._source = source
        self._start = start
        self._carriers: dict[type[msgspec.Struct], Carrier] = {}  # by kind, of which there are few

    @property
    def start(self) -> int:
        """Under which everything is reported now."""
        return self._start

    def _carrier(self, struct: type[msgspec.Struct]) -> Carrier:
        if struct not in self._carriers:
            self._carriers[struct] = Carrier(struct)
        return self._carriers[struct]

    def put(self, tx: Tx, key: Key, document: msgspec.Struct, uid: str, *, relayed: Stored | None = None) -> None:
        """Write what differs. ``relayed``: a child's report that this is passed on from.

        The same words under a later identity are passed on too: those above may hold that one already, from before this store was set
        back, or words in between; what is older than it they would take for an old report for ever.
        """
        encoded = encode(document)
        if relayed is not None:
            encoded = self._carrier(type(document))(encoded, relayed.document)
        there = tx.get(key)
        version = None
        if there is not None and there.document == encoded:
            if not _behind(there, relayed):
                return
            version = there.version + 1
        if relayed is not None and relayed.source:
            tx.put(key, encoded, uid=uid, version=version, source=relayed.source, start=relayed.start, sequence=relayed.sequence)
        else:
            tx.put(key, encoded, uid=uid, source=self._source, start=self._start, sequence=tx.revision + 1)

    async def again(self, store: Store, now: datetime, beyond: int = 0) -> None:
        """Everything observed here is reported once more, under a new start, later than ``beyond``.

        After a copy of the data folder has spoken for this cluster, or the folder was set back: what those above hold then has a later
        start than the reports that lie here unchanged, which would be taken for old ones for ever.
        """
        self._start = await _number(store, now, beyond)

        def stamp(tx: Tx) -> None:
            for stored in tx.scan("report"):
                if stored.source == self._source:
                    fresh = {"source": self._source, "start": self._start, "sequence": tx.revision + 1}
                    tx.put(stored.key, stored.document, uid=stored.uid, version=stored.version + 1, **fresh)  # type: ignore[arg-type]

        await store.commit(stamp)


def _behind(there: Stored, relayed: Stored | None) -> bool:
    """Was this passed on under an earlier identity, of the same source, than the report has now?"""
    if relayed is None or not relayed.source or there.source != relayed.source:
        return False
    return (there.start, there.sequence) < (relayed.start, relayed.sequence)


async def begin(store: Store, source: str, now: datetime) -> Reporter:
    """The reporter of a new start.

    Starts are numbered by the wall clock in milliseconds, and never backwards within one data folder whatever the clock does. The
    clock is what lifts a folder that was restored from a backup above the starts that its backup does not know.
    """
    return Reporter(source, await _number(store, now))


async def _number(store: Store, now: datetime, beyond: int = 0) -> int:
    number = max(int(store.fact(START) or b"0") + 1, int(now.timestamp() * 1000), beyond + 1)
    await store.commit(lambda tx: tx.set_fact(START, str(number).encode()))
    return number
