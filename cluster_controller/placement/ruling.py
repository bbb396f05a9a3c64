"""Hold what comes from above to the policy of this site, before anything is placed; also with nobody above in reach.

`site` decides; this reads the policy, keeps account of what those from above have here, and remembers what is pinned: a fact of the
store, written in the commit in which the pin first holds.
"""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from cluster_controller.documents import Documents
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.model import Placement, Refusal, Request
from cluster_controller.placement.site import Pinned, Ruling, Taken, means, rule
from cluster_controller.resources import kinds, policy
from cluster_controller.store import Key, Tx

KEY = Key("own", "SitePolicy", "", policy.NAME)
FILTER = "SitePolicy"


class Ruled(Struct, frozen=True):
    """What is left to place, and what the policy said."""

    allotment: Allotment
    ruling: Ruling

    @property
    def refused(self) -> Mapping[str, tuple[int, str]]:
        return self.ruling.refused

    def told(self, placement: Placement, uid: str) -> Placement:
        """The same placement with the refusals of the site, which explain more than any other: they come first."""
        remedy = "who administers the site decides (kubectl edit sitepolicy site, at the site)"
        mine = [
            Refusal(cluster=uid, component=name, filter=FILTER, message=f"refuses {count}: {why}", remedy=remedy)
            for name, (count, why) in self.refused.items()
        ]
        return msgspec.structs.replace(placement, refusals=(*mine, *placement.refusals)) if mine else placement


class SiteRules:
    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._taken: dict[str, Taken] = {}  # application from above → what it has here
        self._sum = Taken()

    def apply(self, tx: Tx, allotment: Allotment, *, write: bool = True) -> Ruled:
        """``write`` False: only look. What was written here is nobody's business but this site's, and passes."""
        spec = self._policy(tx) if allotment.chain else None
        if spec is None or not (spec.veto or spec.pins or spec.caps != policy.Caps()):
            return Ruled(allotment, Ruling(allotment.components))
        application = allotment.application
        mine = self._taken.get(application.uid, Taken())
        pinned = self._pinned(tx, spec, allotment, write)
        ruling = rule(spec, application, allotment.labels, allotment.components, others=self._sum.plus(mine, -1), pinned=pinned)
        return Ruled(msgspec.structs.replace(allotment, components=ruling.components), ruling)

    def book(self, application: str, asked: Request, replicas: int) -> bool:
        """All that an application from above was given; whether that is less than before."""
        before = self._taken.pop(application, Taken())
        after = Taken(asked, replicas)
        if replicas:
            self._taken[application] = after
        self._sum = self._sum.plus(before, -1).plus(after)
        return after.replicas < before.replicas

    def clear(self) -> None:
        self._taken.clear()
        self._sum = Taken()

    def forget(self, tx: Tx, application: str) -> None:
        self.book(application, Request(), 0)
        tx.set_fact(_fact(application), None)

    def _policy(self, tx: Tx) -> kinds.SitePolicySpec | None:
        stored = tx.get(KEY)
        return self._documents.read(stored, kinds.SitePolicy).spec if stored is not None else None

    def _pinned(self, tx: Tx, spec: kinds.SitePolicySpec, allotment: Allotment, write: bool) -> Pinned | None:
        """What it was when a pin first meant it; from then on that is what stays."""
        fact = _fact(allotment.application.uid)
        stored = tx.fact(fact)
        if not any(means(subject, allotment.application, allotment.labels) for subject in spec.pins):
            if stored and write:
                tx.set_fact(fact, None)
            return None
        if stored:
            return msgspec.json.decode(stored, type=Pinned)
        pinned = Pinned(tuple(allotment.components), allotment.application.generation)
        if write:
            tx.set_fact(fact, msgspec.json.encode(pinned))
        return pinned


def _fact(application: str) -> str:
    return f"placement/pinned/{application}"
