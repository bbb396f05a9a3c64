"""Write what became of an application: into the Application at its origin, into the outbox everywhere else.

The Application's document stays its writer's but for ``status`` (and the finalizer that this room owns), so fields that this
program does not know survive.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from cluster_controller.events import Reason, record_status
from cluster_controller.placement.allotment import Allotment
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.resources.registry import FINALIZER_WITHDRAW
from cluster_controller.store import Key, Stored, Tx

FINALIZER = FINALIZER_WITHDRAW
RUNNING, PROGRESSING = Reason.RUNNING.value, Reason.PROGRESSING.value  # phases whose Events are called so too
WITHDRAWING = "Withdrawing"  # condition: True while clusters in reach are stopping it, False while others hold the deletion
VERDICTS_WITHDRAWING: tuple[tuple[str, Literal["True", "False"]], ...] = (("Ready", "False"), (WITHDRAWING, "True"))


class _Asked(msgspec.Struct):
    """All of an Application but what controllers write about it."""

    metadata: msgspec.Raw = msgspec.Raw()
    spec: msgspec.Raw = msgspec.Raw()


def only_status(before: Stored, after: Stored) -> bool:
    """Whether the two versions of an Application ask for the same: then this room wrote the later one."""
    one, other = (msgspec.json.decode(stored.document, type=_Asked) for stored in (before, after))
    return one == other


def application_status(
    before: kinds.Application, status: kinds.WorkStatusStatus, missing: Sequence[str], timestamp: str, held_by: Sequence[str] = ()
) -> kinds.ApplicationStatus:
    """The status of an Application from the folded reports. Pure; equal input gives an equal status, so nothing is rewritten."""
    counts = _Counts(
        desired=sum(component.desired for component in status.components),
        ready=sum(component.ready for component in status.components),
        updated=sum(component.updated for component in status.components),
        unplaced=sum(component.unplaced for component in status.components),
    )
    phase, reason, message = _verdict(status, counts, missing)
    rollout = before.status.rollout if missing else status.rollout
    ready_condition = kinds.Condition(
        type="Ready",
        status="True" if phase == "Running" else "False",
        reason=reason,
        message=message,
        observed_generation=before.metadata.generation,
        last_transition_time=timestamp,
    )
    placed_condition = kinds.Condition(
        type="Placed",
        status="False" if counts.unplaced or missing else "True",
        reason=Reason.MISSING_REFERENCE.value if missing else Reason.UNPLACED.value if counts.unplaced else "Placed",
        message=message if counts.unplaced or missing else "",
        observed_generation=before.metadata.generation,
        last_transition_time=timestamp,
    )
    verdicts = [placed_condition, ready_condition]
    if rollout is not None:
        verdicts.append(_progressing(rollout, before.metadata.generation, timestamp))
    if held_by:
        verdicts.append(_held(held_by, before.metadata.generation, timestamp))
    old = {condition.type: condition for condition in before.status.conditions}
    conditions = [_keep_transition(old.get(condition.type), condition) for condition in verdicts]
    return msgspec.structs.replace(
        before.status,
        observed_generation=before.metadata.generation,
        phase=phase,
        desired=counts.desired,
        ready=counts.ready,
        updated=counts.updated,
        unplaced=counts.unplaced,
        components=status.components,
        clusters=status.clusters,
        cluster_count=status.cluster_count,
        conditions=conditions,
        rollout=rollout,
        history=_proven(before, phase, rollout),
    )


def _proven(before: kinds.Application, phase: str, rollout: kinds.RolloutStatus | None) -> list[kinds.Revision]:
    """The history, in which the newest version is marked once it was well everywhere in reach: what `undo` may go back to."""
    history = before.status.history
    well = phase == "Running" and (rollout is None or rollout.phase == "Complete")
    if not well or not history or history[-1].healthy:
        return history
    return [*history[:-1], msgspec.structs.replace(history[-1], healthy=True)]


def _progressing(rollout: kinds.RolloutStatus, generation: int, timestamp: str) -> kinds.Condition:
    """As a Deployment says it: False once it has failed, Unknown while somebody holds it up."""
    verdicts: dict[str, Literal["False", "Unknown"]] = {"Failed": "False", "Paused": "Unknown"}
    return kinds.Condition(
        type="Progressing",
        status=verdicts.get(rollout.phase, "True"),
        reason=rollout.reason,
        message=rollout.message,
        observed_generation=generation,
        last_transition_time=timestamp,
    )


def _held(finalizers: Sequence[str], generation: int, timestamp: str) -> kinds.Condition:
    """Deletion was asked for, and others still have something to do first: nothing is taken back yet."""
    several = "finalizers" if len(finalizers) > 1 else "finalizer"
    message = f"deletion waits for {several} {', '.join(finalizers)}; until whoever set it takes it away, the application runs on"
    return kinds.Condition(
        type=WITHDRAWING,
        status="False",
        reason="HeldByFinalizer",
        message=message,
        observed_generation=generation,
        last_transition_time=timestamp,
    )


class _Counts(NamedTuple):
    desired: int
    ready: int
    updated: int
    unplaced: int


def _verdict(status: kinds.WorkStatusStatus, counts: _Counts, missing: Sequence[str]) -> tuple[str, str, str]:
    """Phase, reason and one sentence."""
    desired, ready, updated, unplaced = counts
    if missing:
        return "Pending", Reason.MISSING_REFERENCE.value, f"waits for {', '.join(missing)}: create it or correct the name"
    troubled = (component for component in status.components if component.reason)
    trouble = min(troubled, key=lambda component: component.reason in kinds.UNDER_WAY, default=None)
    if unplaced and unplaced >= desired:
        return "Pending", Reason.UNPLACED.value, trouble.message if trouble else "no cluster takes it; see `banyan explain`"
    if ready >= desired and updated >= desired:
        return RUNNING, "AllReady", f"{ready} of {desired} replicas ready"
    if ready >= desired and trouble is not None and trouble.reason == kinds.PINNED:
        return (
            Reason.RUNNING.value,
            trouble.reason,
            f"{ready} of {desired} replicas ready, {updated} updated; {trouble.name}: {trouble.message}",
        )
    if trouble is not None and trouble.reason not in kinds.UNDER_WAY:
        return "Degraded", trouble.reason, f"{ready} of {desired} replicas ready; {trouble.name}: {trouble.message or trouble.reason}"
    if status.rollout is not None and status.rollout.phase == "Failed":
        return "Degraded", status.rollout.reason, f"{ready} of {desired} replicas ready, {updated} updated; {status.rollout.message}"
    if trouble is not None and trouble.reason == kinds.WAITS:
        return PROGRESSING, trouble.reason, f"{ready} of {desired} replicas ready; {trouble.name} {trouble.message}"
    return PROGRESSING, PROGRESSING, f"{ready} of {desired} replicas ready, {updated} updated"


def _keep_transition(old: kinds.Condition | None, new: kinds.Condition) -> kinds.Condition:
    """The transition time moves only when the status does."""
    if old is not None and old.status == new.status:
        return msgspec.structs.replace(new, last_transition_time=old.last_transition_time)
    return new


def write_application_status(tx: Tx, stored: Stored, status: kinds.ApplicationStatus, timestamp: str) -> None:
    """Write what differs; a change of phase, or of the reason for it, is an Event of the same commit."""
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    fresh = msgspec.to_builtins(status)
    before = document.get("status") or {}
    if before == fresh:
        return
    document["status"] = fresh
    tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    old: dict[str, Any] = next((condition for condition in before.get("conditions", ()) if condition.get("type") == "Ready"), {})
    first = not before.get("phase") and status.phase == "Progressing"  # that it was begun is no news
    if ready is None or first or (before.get("phase") == status.phase and old.get("reason") == ready.reason):
        return
    about = kinds.ObjectReference(
        api_version=kinds.API_VERSION, kind="Application", namespace=stored.key.namespace, name=stored.key.name, uid=stored.uid
    )
    kind: Literal["Normal", "Warning"] = "Warning" if status.phase in {"Degraded", "Pending"} else "Normal"
    reason = status.phase if kind == "Normal" else ready.reason or status.phase
    record_status(tx, about=about, kind=kind, reason=reason, message=ready.message, component="placement", timestamp=timestamp)


def withdraw_application(
    tx: Tx, stored: Stored, before: kinds.ApplicationStatus, *, waiting: Sequence[str], left: kinds.WorkStatusStatus, timestamp: str
) -> None:
    """Say who has not stopped it yet, and what they still run; once nobody in reach is left, the object goes."""
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    if not waiting:
        finalizers = [name for name in document["metadata"].get("finalizers", []) if name != FINALIZER]
        if not finalizers:
            tx.delete(stored.key)
        return
    old = {condition.type: condition for condition in before.conditions}
    message = f"waits until {', '.join(waiting)} {'have' if len(waiting) > 1 else 'has'} stopped it"
    verdicts = [
        kinds.Condition(type=kind, status=status, reason="Withdrawing", message=message, last_transition_time=timestamp)
        for kind, status in VERDICTS_WITHDRAWING
    ]
    status = msgspec.structs.replace(
        before,
        phase="Withdrawing",
        withdrawing=list(waiting),
        ready=sum(component.ready for component in left.components),
        updated=0,
        unplaced=0,
        components=left.components,
        clusters=left.clusters,
        cluster_count=left.cluster_count,
        conditions=[_keep_transition(old.get(condition.type), condition) for condition in verdicts],
    )
    fresh = msgspec.to_builtins(status)
    if document.get("status") != fresh:
        document["status"] = fresh
        tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)


def write_work_status(tx: Tx, reporter: Reporter, allotment: Allotment, status: kinds.WorkStatusStatus, me: str) -> None:
    """The answer to a Work from above, coalesced: one object per application in the outbox."""
    application = allotment.application
    document = kinds.WorkStatus(
        metadata=kinds.Metadata(name=application.uid, uid=application.uid),
        spec=kinds.WorkStatusSpec(application=application, cluster=me),
        status=status,
    )
    reporter.put(tx, Key("report", "WorkStatus", "", application.uid), document, application.uid)
