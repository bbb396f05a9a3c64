"""Hold what comes from above to the policy of this site, before anything is placed; also with nobody above in reach.

`site` decides; this reads the policy, keeps account of what those from above have here, and remembers what is pinned: a fact of the
store, written in the commit in which the pin first holds.
"""

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from cluster_controller.documents import Documents
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.capacity import add
from cluster_controller.placement.model import Placement, Refusal, Request
from cluster_controller.placement.records import request
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
    """``order`` says who comes first where a cap does not leave enough for all: the smaller; its first part is the priority, negated."""

    def __init__(self, documents: Documents, order: Callable[[str], tuple[int, int]] = lambda application: (0, 0)) -> None:
        self._documents = documents
        self._order = order
        self._taken: dict[str, Taken] = {}  # application from above → what it has here
        self._holds: dict[str, Mapping[str, int]] = {}  # and of which components
        self._wants: dict[str, Taken] = {}  # → what it would have if those of a lower priority gave way
        self._marked: set[str] = set()

    def apply(self, tx: Tx, allotment: Allotment, *, write: bool = True) -> Ruled:
        """``write`` False: only look. What was written here is nobody's business but this site's, and passes."""
        spec = self._policy(tx) if allotment.chain else None
        if spec is None or not (spec.veto or spec.pins or spec.caps != policy.Caps()):
            return Ruled(allotment, Ruling(allotment.components))
        application = allotment.application
        pinned = self._pinned(tx, spec, allotment, write)
        beside, before, lower = self._others(application.uid)
        ruling = rule(
            spec,
            application,
            allotment.labels,
            allotment.components,
            others=beside.plus(lower),
            pinned=pinned,
            before=before,
            holds=self._holds.get(application.uid, {}),
        )
        if lower.replicas and write:
            self._want(application.uid, rule(spec, application, allotment.labels, allotment.components, others=beside, pinned=pinned))
        elif write:
            self._wants.pop(application.uid, None)
        return Ruled(msgspec.structs.replace(allotment, components=ruling.components), ruling)

    def _others(self, application: str) -> tuple[Taken, Taken, Taken]:
        """What others have: those that do not give way to this one; of those who are before it; and those that give way."""
        mine = self._order(application)
        beside, before, lower = Taken(), Taken(), Taken()
        for other in {*self._taken, *self._wants} - {application}:
            theirs, has = self._order(other), self._taken.get(other, Taken())
            if theirs[0] < mine[0]:
                has = has.at_least(self._wants.get(other, Taken()))
            if theirs[0] > mine[0]:
                lower = lower.plus(has)
                continue
            beside = beside.plus(has)
            if theirs < mine:
                before = before.plus(has)
        return beside, before, lower

    def _want(self, application: str, possible: Ruling) -> None:
        wanted = Taken()
        for component in possible.components:
            wanted = wanted.plus(Taken(add(Request(), request(component.resources), component.replicas), component.replicas))
        if self._wants.get(application) != wanted:
            self._wants[application] = wanted
            mine = self._order(application)[0]
            self._marked.update(other for other in self._taken if self._order(other)[0] > mine)

    def marked(self) -> set[str]:
        """Who has to be settled, for others of a higher priority want what a cap leaves."""
        marked, self._marked = self._marked, set()
        return marked

    def book(self, application: str, asked: Request, holds: Mapping[str, int]) -> bool:
        """All that an application from above was given, with the replicas per component; whether that is less than before."""
        before = self._taken.pop(application, Taken())
        after = Taken(asked, sum(holds.values()))
        self._holds.pop(application, None)
        if after.replicas:
            self._taken[application] = after
            self._holds[application] = dict(holds)
        return after.replicas < before.replicas

    def clear(self) -> None:
        self._taken.clear()
        self._holds.clear()
        self._wants.clear()

    def forget(self, tx: Tx, application: str) -> None:
        self.book(application, Request(), {})
        self._wants.pop(application, None)
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
