"""Which of the words that a cluster has about one Work counts: its home parent's, or that of an ancestor who served it since (`lending`).

The home parent's stays what decides whether there is a Work at all; an ancestor only says what it is by now. Pure but for `tidy`, which
takes away what is no longer of use.
"""

from cluster_controller import delivered
from cluster_controller.documents import Documents
from cluster_controller.placement.moving import newest
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Stored, Tx


def word(view: delivered.View, documents: Documents, home: Stored) -> kinds.WorkSpec:
    """The Work that counts, ``home`` being the one that the home parent sent."""
    spec = documents.read(home, kinds.Work).spec
    lent = [documents.read(one, kinds.Work).spec for one in _lent(view, home.key.name)]
    return newest(spec, lent) if lent else spec


def tidy(tx: Tx, documents: Documents, application: str) -> None:
    """Drop what an ancestor served once the home parent's word is the newer one, or there is none of it any more."""
    lent = _lent(tx, application)
    if not lent:
        return
    home = tx.get(Key("desired", "Work", "", application))
    counts = word(tx, documents, home) if home is not None else None
    for stored in lent:
        if documents.read(stored, kinds.Work).spec == counts:
            continue
        tx.delete(stored.key)
        if not tx.list(stored.key.space, "Work"):
            for each in tx.scan(stored.key.space):
                tx.delete(each.key)


def _lent(view: delivered.View, application: str) -> list[Stored]:
    found = (view.get(Key(delivered.space_of(ancestor), "Work", "", application)) for ancestor in delivered.sources(view))
    return [stored for stored in found if stored is not None]
