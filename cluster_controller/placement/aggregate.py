"""Fold what every target reports about one application into one status: counts, and the worst 20 clusters. Pure.

What is silent never looks fresh (ARCHITECTURE law 5): rows of clusters out of reach keep their place, but nothing of them is
counted as ready, and they name the broken hop.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.resources.kinds import OVERRIDE_FAILED, ClusterRow, Component, ComponentStatus, WorkStatusStatus
from cluster_controller.resources.reasons import Reason

WORST_ROWS = 20


class Stray(Struct, frozen=True):
    """What a cluster below a silent target says by way of an adopter. ``path``: names from the target down to it."""

    path: tuple[str, ...]
    status: WorkStatusStatus


class TargetReport(Struct, frozen=True, kw_only=True):
    """What one direct child, or the own cluster, was given and said.

    ``share_id`` is the newest share given, ``status`` its newest report, if any; ``silent`` names the broken hop when the
    target is out of reach.
    """

    name: str
    shares: Mapping[str, int]
    share_id: int
    status: WorkStatusStatus | None
    silent: str = ""
    replaced: Mapping[str, int] = {}  # of its shares, what others hold instead while it is out of reach
    strays: Sequence[Stray] = ()  # who is heard from below it while it is out of reach
    overridden: Sequence[str] = ()  # overrides that what it was told is the result of
    unpatched: Mapping[str, str] = {}  # component → why its overrides could not be applied
    held: bool = False  # it still has the version before: nothing there is of the newest


def aggregate(
    *,
    components: Sequence[Component],
    duplicated: bool,
    reports: Iterable[TargetReport],
    unplaced: Mapping[str, int],
    messages: Mapping[str, str],
    version: int,
    seen: int = 0,
) -> WorkStatusStatus:
    """One WorkStatus for all targets. ``version`` is what it answers; the caller passes it once everybody has acknowledged.

    ``seen`` is the share that it takes into account, acknowledged or not.
    """
    reports = list(reports)
    rows: list[ClusterRow] = []
    count = 0
    for report in reports:
        if report.status is not None:
            heard = {row.cluster: _carried(row, stray) for stray in report.strays for row in stray.status.clusters}
            rows += [_row(row, report) for row in report.status.clusters if row.cluster not in heard]
            rows += heard.values()
            count += report.status.cluster_count
    folded = [
        _component(component, duplicated, reports, unplaced.get(component.name, 0), messages.get(component.name, ""))
        for component in components
    ]
    rows.sort(key=lambda row: (row.ready >= row.desired and not row.reason, row.ready - row.desired, row.name))
    return WorkStatusStatus(version=version, seen=seen, components=folded, clusters=rows[:WORST_ROWS], cluster_count=count)


def _row(row: ClusterRow, report: TargetReport) -> ClusterRow:
    path = [report.name, *row.path] if report.name else list(row.path)  # the own cluster is no hop
    if report.overridden and not row.overrides:
        row = msgspec.structs.replace(row, overrides=list(report.overridden))
    if report.unpatched and not row.reason:
        row = msgspec.structs.replace(row, reason=OVERRIDE_FAILED, message="; ".join(sorted(report.unpatched.values())))
    if not report.silent:
        return msgspec.structs.replace(row, path=path)
    message = f"out of reach: {report.silent} is cut" + ("; replaced elsewhere" if any(report.replaced.values()) else "")
    return msgspec.structs.replace(row, path=path, ready=0, reason=Reason.UNREACHABLE.value, message=message)


def _carried(row: ClusterRow, stray: Stray) -> ClusterRow:
    return msgspec.structs.replace(row, path=[*stray.path, *row.path])


def carried(component: str, strays: Sequence[Stray]) -> list[ComponentStatus]:
    """What strays say of one component."""
    return [item for stray in strays for item in stray.status.components if item.name == component]


def _component(component: Component, duplicated: bool, reports: Sequence[TargetReport], unplaced: int, message: str) -> ComponentStatus:
    # A duplicated share is a count per cluster; how many that makes in all is known only below.
    desired = unplaced if duplicated else component.replicas
    ready = updated = confirmed = 0
    reason, text = ("Unplaced", message) if unplaced else ("", "")
    for report in reports:
        part = next((item for item in report.status.components if item.name == component.name), None) if report.status else None
        given = report.shares.get(component.name, 0)
        if duplicated:
            desired += part.desired if part else given
            unplaced += part.unplaced if part else 0
        if report.silent:
            heard = carried(component.name, report.strays)
            ready += sum(item.ready for item in heard)
            updated += sum(item.updated for item in heard)
            if given > report.replaced.get(component.name, 0) + sum(item.ready for item in heard) and not reason:
                reason, text = "Unreachable", f"out of reach: {report.silent} is cut"
            continue
        refused = report.unpatched.get(component.name, "")
        if refused and not reason:
            reason, text = OVERRIDE_FAILED, refused
        if part is None or report.status is None:
            continue
        ready += part.ready
        if report.status.seen >= report.share_id:
            confirmed += part.confirmed
        if report.status.version >= report.share_id and not report.held and not refused:
            updated += part.updated
        if part.reason and not reason:
            reason, text = part.reason, part.message
    return ComponentStatus(
        name=component.name,
        desired=desired,
        ready=ready,
        updated=updated,
        unplaced=unplaced,
        confirmed=confirmed,
        reason=reason,
        message=text,
    )
