"""Say what became of an application: to the controller above, in the Application at its origin, and in Events about clusters."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from cluster_controller.documents import Documents
from cluster_controller.events import Reason, record
from cluster_controller.placement import transferring
from cluster_controller.placement.aggregate import TargetReport, aggregate
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.carried import Carried
from cluster_controller.placement.contest import FILTER as PREEMPTED
from cluster_controller.placement.contest import Seen
from cluster_controller.placement.model import Placement
from cluster_controller.placement.refused import Refused
from cluster_controller.placement.replacing import Plan, Replaced
from cluster_controller.placement.ruling import FILTER
from cluster_controller.placement.status import application_status, write_application_status, write_work_status
from cluster_controller.placement.subtree import Subtree
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.rollout import keeping
from cluster_controller.store import Key, Tx

NOTHING: Mapping[str, int] = {}
NOTHING_REFUSED: Mapping[str, tuple[int, str]] = {}
NOTHING_UNPATCHED: Mapping[str, str] = {}
NOTHING_GAVE: Mapping[str, kinds.Preemptor] = {}
NOTHING_PINNED: Mapping[str, str] = {}


class Decided(NamedTuple):
    """What was decided; ``left`` counts, per component, what has no place or still waits for one."""

    placement: Placement
    left: Mapping[str, int]
    plan: Plan
    pinned: Mapping[str, str] = NOTHING_PINNED  # components that the site keeps in another version, and why
    rolled: keeping.Rolled = keeping.NOTHING
    gave: Mapping[str, kinds.Preemptor] = NOTHING_GAVE  # components that gave way here, and to whom
    revisions: Mapping[str, str] = NOTHING_PINNED  # of targets whose newest is not that of the whole: overrides concern them, or not them


def answers(work: kinds.WorkSpec | None, status: kinds.WorkStatusStatus | None) -> bool:
    return work is not None and status is not None and status.version >= work.shares[-1].id


def _pinned(item: kinds.ComponentStatus, pinned: Mapping[str, str]) -> kinds.ComponentStatus:
    """What a site keeps in another version is well, and not updated."""
    if item.name not in pinned:
        return item
    if item.reason and item.reason not in kinds.UNDER_WAY:
        return msgspec.structs.replace(item, updated=0)
    return msgspec.structs.replace(item, updated=0, reason=kinds.PINNED, message=pinned[item.name])


def _about(key: Key, uid: str) -> kinds.ObjectReference:
    return kinds.ObjectReference(api_version=kinds.API_VERSION, kind=key.kind, namespace=key.namespace, name=key.name, uid=uid)


def _waiting(item: kinds.ComponentStatus, waits: Mapping[str, Mapping[str, str]]) -> kinds.ComponentStatus:
    """Why a component has not started, where nothing worse is told of it."""
    why = next((held[item.name] for held in waits.values() if item.name in held), "")
    if not why or (item.reason and item.reason not in kinds.UNDER_WAY):
        return item
    return msgspec.structs.replace(item, reason=kinds.WAITS, message=why)


class Telling:
    def __init__(
        self,
        reporter: Reporter,
        subtree: Subtree,
        refused: Refused,
        documents: Documents,
        *,
        uid: str,
        silent: Callable[[], Mapping[str, str]],
        timestamp: Callable[[], str],
        carried: Carried,
    ) -> None:
        self._carried = carried
        self._reporter = reporter
        self._subtree = subtree
        self._refused = refused
        self._documents = documents
        self._uid = uid
        self._silent = silent
        self._timestamp = timestamp
        self._stuck: dict[str, dict[str, int]] = {}  # application → drained cluster → what had no room elsewhere when it was last told
        self._refusing: dict[str, Mapping[str, tuple[int, str]]] = {}  # application → what the site refused of it last

    def replaced(self, tx: Tx, allotment: Allotment, plan: Plan, after: Replaced) -> None:
        """An Event about the cluster: its share was given to others, or counts again."""
        application = allotment.application
        for target in sorted({*plan.before.replaced, *after.replaced}):
            was, now = sum(plan.before.replaced.get(target, {}).values()), sum(after.replaced.get(target, {}).values())
            if bool(was) == bool(now):
                continue
            name = self._subtree.name(tx, target)
            what = f"of {application.namespace}/{application.name}"
            patience = f"silent for {allotment.placement.on_unreachable.after_seconds} s"
            message = (
                f"{name} is {patience}: its {now} {what} are replaced elsewhere" if now else f"the replaced {what} on {name} count again"
            )
            record(
                tx,
                about=kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=name, uid=target),
                reason=Reason.REPLACED if now else Reason.REPLACEMENT_ENDED,
                message=message,
                component="placement",
                timestamp=self._timestamp(),
            )

    def refused(self, tx: Tx, allotment: Allotment, refused: Mapping[str, tuple[int, str]]) -> None:
        """An Event about this cluster when its site refuses something that it did not, or no longer does."""
        application = allotment.application
        before = self._refusing.get(application.uid, NOTHING_REFUSED)
        if dict(refused) == dict(before):
            return
        if refused:
            self._refusing[application.uid] = refused
        else:
            self._refusing.pop(application.uid, None)
        what = f"{application.namespace}/{application.name} of {application.origin_name}"
        said = "; ".join(f"{count} of {name}: {why}" for name, (count, why) in refused.items())
        record(
            tx,
            about=kinds.ObjectReference(
                api_version=kinds.API_VERSION, kind="Cluster", name=self._subtree.name(tx, self._uid), uid=self._uid
            ),
            reason=Reason.REFUSED if refused else Reason.REFUSAL_ENDED,
            message=f"refuses {what}: {said}" if refused else f"no longer refuses {what}",
            component="placement",
            timestamp=self._timestamp(),
        )

    def preempted(self, tx: Tx, allotment: Allotment, gave: Mapping[str, kinds.Preemptor], yields: Mapping[str, int]) -> None:
        """Events about this cluster, and about those of the two that were written here, when replicas here have just given way."""
        mine = allotment.application
        who = f"{mine.namespace}/{mine.name} (priority {allotment.priority})"
        here = self._subtree.name(tx, self._uid)
        for component, count in sorted(yields.items()):
            one = gave.get(component)
            if one is None:
                self._event(
                    tx, self._cluster(here), Reason.OUT_OF_ROOM, f"{count} of {who} go: the cluster is too small for all that it has"
                )
                continue
            other = f"{one.namespace}/{one.name} (priority {one.priority})"
            self._event(tx, self._cluster(here), Reason.PREEMPTED, f"{count} of {who} gave way to {other}")
            self._both(tx, allotment, one, f"{count} of {component}")

    def stuck(self, tx: Tx, allotment: Allotment, placement: Placement) -> None:
        """Events about drained clusters, where it was written: what of it stays there, for nobody else has room for it."""
        application = allotment.application
        found: dict[str, int] = {}
        for per in placement.stuck.values() if allotment.key.space == "own" else ():
            for uid, count in per.items():
                found[uid] = found.get(uid, 0) + count
        before = self._stuck.pop(application.uid, {})
        if found:
            self._stuck[application.uid] = found
        for uid, count in sorted(found.items()):
            if before.get(uid) != count:
                about = kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=self._subtree.name(tx, uid), uid=uid)
                what = f"{count} replica{'s' if count > 1 else ''} of {application.namespace}/{application.name}"
                self._event(tx, about, Reason.CANNOT_DRAIN, f"cannot drain: no room for {what} elsewhere; they run on")

    def _both(self, tx: Tx, allotment: Allotment, one: kinds.Preemptor, what: str) -> None:
        """An Event about the one that gave way, and one about the other, as far as they were written here."""
        mine = allotment.application
        if allotment.key.space == "own":
            message = f"{what} gave way to {one.namespace}/{one.name} (priority {one.priority}) on {one.cluster}"
            self._event(tx, _about(allotment.key, mine.uid), Reason.PREEMPTED, message)
        other = Key("own", "Application", one.namespace, one.name)
        stored = tx.get(other)
        if stored is not None and stored.uid == one.uid:
            message = f"{what} of {mine.namespace}/{mine.name} (priority {allotment.priority}) gave way on {one.cluster}"
            self._event(tx, _about(other, one.uid), Reason.PREEMPTS, message)

    def _cluster(self, name: str) -> kinds.ObjectReference:
        return kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=name, uid=self._uid)

    def _event(self, tx: Tx, about: kinds.ObjectReference, reason: Reason, message: str) -> None:
        record(tx, about=about, reason=reason, message=message, component="placement", timestamp=self._timestamp())

    @property
    def refusing(self) -> int:
        """Replicas of Applications from above that the policy of this site refuses at this moment."""
        return sum(count for refused in self._refusing.values() for count, _ in refused.values())

    def forget(self, application: str) -> None:
        self._stuck.pop(application, None)
        self._refusing.pop(application, None)

    def report(self, tx: Tx, allotment: Allotment, decided: Decided, seen: Mapping[str, Seen]) -> None:
        """The status of an application whose home is here, the answer to a Work otherwise."""
        placement, left, plan, pinned, rolled = decided[:5]
        reports: list[TargetReport] = []
        acknowledged = True
        lost = plan.lost
        for target, (work, status) in seen.items():
            if work is None and status is None:
                continue
            acknowledged &= answers(work, status) or target in lost
            report = self.target(tx, target, work, status, plan.replaced(target))
            held = allotment.rollout is not None and work is not None and work.revision != decided.revisions.get(target, allotment.revision)
            reports.append(msgspec.structs.replace(report, held=held))
            acknowledged &= target in lost or not plan.replaced(target)  # its surplus still runs
        messages = {name: self._why(allotment.application.uid, placement, name) for name, count in left.items() if count}
        settled = acknowledged and not any(placement.waiting.values()) and not allotment.missing
        duplicated = allotment.placement.strategy == "Duplicated"
        folded = aggregate(
            components=allotment.components,
            duplicated=duplicated,
            reports=reports,
            unplaced=left,
            messages=messages,
            version=allotment.version if settled else 0,
            seen=allotment.version,
        )
        parts = [_waiting(_pinned(item, pinned), rolled.waits) for item in folded.components]
        parts = [msgspec.structs.replace(item, preempted_by=decided.gave.get(item.name)) for item in parts]
        done = transferring.read(tx, allotment.application.uid).done if allotment.transfers else ()
        transferred = [one.move for one in allotment.transfers if one.move in done]
        folded = msgspec.structs.replace(folded, components=parts, rollout=rolled.status, transferred=transferred)
        if allotment.key.space == "own":
            stored = tx.get(allotment.key)
            if stored is not None:
                before = self._documents.read(stored, kinds.Application)
                now = self._timestamp()
                self._told_from_below(tx, allotment, before.status.components, parts)
                write_application_status(tx, stored, application_status(before, folded, allotment.missing, now, allotment.held_by), now)
            return
        write_work_status(tx, self._reporter, allotment, folded, self._uid)

    def _told_from_below(
        self, tx: Tx, allotment: Allotment, before: Sequence[kinds.ComponentStatus], after: Sequence[kinds.ComponentStatus]
    ) -> None:
        """Where it was written: that something of it gave way on a cluster below."""
        known = {item.name: item.preempted_by for item in before}
        here = self._subtree.name(tx, self._uid)
        for item in after:
            one = item.preempted_by
            if one is not None and one != known.get(item.name) and one.cluster != here:
                self._both(tx, allotment, one, item.name)

    def target(
        self,
        tx: Tx,
        target: str,
        work: kinds.WorkSpec | None,
        status: kinds.WorkStatusStatus | None,
        replaced: Mapping[str, int] = NOTHING,
    ) -> TargetReport:
        name = "" if target == self._uid else self._subtree.name(tx, target)
        silent = self._silent().get(target, "")
        return TargetReport(
            name=name,
            shares={component.name: component.replicas for component in work.components} if work is not None else {},
            share_id=work.shares[-1].id if work is not None else 0,
            status=status,
            silent=silent,
            strays=self._carried.below(tx, name, work.application.uid) if silent and work is not None else (),
            replaced=replaced,
            overridden=work.overridden if work is not None else (),
            unpatched=work.unpatched if work is not None else NOTHING_UNPATCHED,
        )

    def _why(self, application: str, placement: Placement, component: str) -> str:
        """One sentence with the most frequent reasons; `explain` shows them all."""
        if placement.waiting.get(component):
            yielding = [
                f"{count} of {resident.name} (priority {resident.priority})"
                for each in placement.preempting
                if each.component == component and each.cluster == self._uid
                for resident, count in each.yields
            ]
            return f"waits until {', '.join(yielding)} gave way" if yielding else "waits until another cluster has given replicas back"
        names = self._subtree.names
        refusals = [item for item in placement.refusals if item.component == component]
        # What could be mended soonest comes first; that a controller has no cluster of its own explains little.
        refusals.sort(
            key=lambda item: (
                item.filter != FILTER,
                item.filter == "NoShim",
                item.filter not in {"UnknownCluster", "Capacity"},
                bool(item.cluster),
            )
        )
        said = next((item.message for item in refusals if item.filter == PREEMPTED), "")
        words = [(target, why) for target, why in self._refused.of(application, component) if not said or said not in why]
        parts = [said] if said else []
        parts += [f"{names.get(target, target)}: {why}" for target, why in words]
        parts += [f"{names.get(item.cluster, item.cluster)} {item.message}".strip() for item in refusals if item.filter != PREEMPTED]
        return "; ".join(parts[:5]) + (f"; and {len(parts) - 5} more" if len(parts) > 5 else "") or "no cluster is known"
