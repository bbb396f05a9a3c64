"""Remember which transfers an application has seen at this controller, so that each is carried out once, in the commit of the Works.

At the common ancestor a transfer waits as a fact until the application is settled next; below it comes with the Work. A controller that
was set back to before a move finds the transfer in its Work and carries it out again, as its books are those of before.

What has come to a target stands there until that target has answered for it, as behind a silent link: before, nobody here knows what
runs where below it, and a leaf that is out of reach just then would look like one that has nothing.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.contest import Seen
from cluster_controller.placement.moving import caught_up
from cluster_controller.placement.transfer import KEPT, Shares, Shifted, shift, targets
from cluster_controller.resources.application import Transfer
from cluster_controller.store import Store, Tx

NOTHING = Seen(None, None)
REMEMBERED = 8 * KEPT  # moves per application; a Work carries the newest few


class Book(Struct, frozen=True, omit_defaults=True):
    """``waiting``: decided here and not yet carried out; ``done``: ids of those that are; ``entered``: targets to which something came
    by them, and that have not answered for it."""

    waiting: list[Transfer] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    entered: list[str] = field(default_factory=list)


def fact(application: str) -> str:
    return f"placement/transfers/{application}"


def read(view: Store | Tx, application: str) -> Book:
    found = view.fact(fact(application))
    return msgspec.json.decode(found, type=Book) if found else Book()


def decide(tx: Tx, application: str, transfer: Transfer) -> None:
    """At the common ancestor: carried out when the application is settled next."""
    book = read(tx, application)
    if transfer.move not in {*book.done, *(one.move for one in book.waiting)}:
        _write(tx, application, msgspec.structs.replace(book, waiting=[*book.waiting, transfer]))


def done(view: Store | Tx, application: str, move: str) -> bool:
    return move in read(view, application).done


def forget(tx: Tx, application: str) -> None:
    if tx.fact(fact(application)) is not None:
        tx.set_fact(fact(application), None)


def _write(tx: Tx, application: str, book: Book) -> None:
    tx.set_fact(fact(application), msgspec.json.encode(book) if book.waiting or book.done else None)


class Transferring:
    """``unsettled``: direct children from whose share a cluster is going just now: what they hold is left alone until it is counted."""

    def __init__(self, uid: str) -> None:
        self._uid = uid
        self.unsettled: Callable[[Tx], Collection[str]] = lambda tx: ()
        self.grace: Callable[[str], float] = lambda uid: 0.0  # seconds more for which the silence of a child is nothing unusual

    def waits(self, tx: Tx, targets: Collection[str]) -> bool:
        unsettled = self.unsettled(tx)
        return bool(unsettled) and not set(targets).isdisjoint(unsettled)

    def look(self, tx: Tx, allotment: Allotment, given: Shares, silent: Collection[str]) -> Shifted:
        """What targets hold once all transfers are made."""
        due = self._due(read(tx, allotment.application.uid), allotment.transfers)
        if not due:
            return Shifted(given)
        reachable = {uid: uid not in silent for one in due for uid in (*one.out, *one.into)}
        return shift(given, due, self._uid, duplicated=allotment.placement.strategy == "Duplicated", reachable=reachable)

    def before(self, tx: Tx, allotment: Allotment) -> Allotment:
        """What ancestors say that they gave to those below, as it was before transfers that are carried out here only now."""
        done = Book(done=read(tx, allotment.application.uid).done) if allotment.lent else Book()
        due = self._due(done, allotment.transfers) if allotment.lent else []
        if not due:
            return allotment
        lent = [msgspec.structs.replace(one, components=caught_up(one.components, due, one.cluster, back=True)) for one in allotment.lent]
        return msgspec.structs.replace(allotment, lent=lent)

    def awaited(self, tx: Tx, allotment: Allotment, seen: Mapping[str, Seen]) -> frozenset[str]:
        """Targets to which something has come, or comes now, and that have not answered for it."""
        book = read(tx, allotment.application.uid)
        return frozenset(self._entering(book, allotment)).union(_unanswered(book.entered, seen))

    def made(self, tx: Tx, allotment: Allotment, seen: Mapping[str, Seen]) -> None:
        """In the commit of the Works that say so; ``seen``: those Works, and what is answered to them."""
        application = allotment.application.uid
        book = read(tx, application)
        entered = sorted(_unanswered({*book.entered, *self._entering(book, allotment)}, seen))
        done = book.done
        if self._due(book, allotment.transfers):
            fresh = dict.fromkeys([one.move for one in (*allotment.transfers, *book.waiting)])
            # What an ancestor serves past the home parent carries fewer than the home parent's word, which comes again.
            done = [*(move for move in done if move not in fresh), *fresh][-REMEMBERED:]
        elif entered == book.entered:
            return
        _write(tx, application, Book(done=done, entered=entered))

    def _entering(self, book: Book, allotment: Allotment) -> set[str]:
        return {targets(one, self._uid)[1] for one in self._due(book, allotment.transfers)} - {""}

    def _due(self, book: Book, carried: Sequence[Transfer]) -> list[Transfer]:
        """A Work that an ancestor serves past the home parent may speak of others' ways: nobody here stands on them."""
        mine = [one for one in carried if self._uid in one.out or self._uid in one.into]
        return [one for one in (*mine, *book.waiting) if one.move not in book.done]


def stood_by(given: Shares, awaited: Collection[str]) -> Shares:
    """What ``awaited`` targets hold is left as it is, as if they were out of reach."""
    if not awaited:
        return given
    return {
        target: {name: msgspec.structs.replace(item, reachable=False) for name, item in per.items()} if target in awaited else per
        for target, per in given.items()
    }


def _unanswered(entered: Collection[str], seen: Mapping[str, Seen]) -> set[str]:
    """Of these, who has a Work and has not said that it has read it."""
    found = set()
    for target in entered:
        work, status = seen.get(target, NOTHING)
        if work is not None and (status is None or status.seen < work.shares[-1].id):
            found.add(target)
    return found
