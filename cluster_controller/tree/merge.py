"""Merge what a cluster says of itself with what its ancestors lay over it. Pure.

Labels: the site's own, then overlays from the nearest ancestor to the farthest, so that the owner of more of the tree has the
last word. Taints add up and one cordon is enough: the strictest wins, and what one ancestor takes back stays for as long as another
wants it. `sources` names everybody who set a thing.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from cluster_controller.resources import kinds


class Merged(Struct, frozen=True):
    labels: dict[str, str]
    taints: list[kinds.Taint]
    unschedulable: bool
    sources: list[kinds.LabelSource]


def merge(site: str, site_labels: Mapping[str, str], overlays: Sequence[kinds.ClusterOverlaySpec]) -> Merged:
    """``overlays`` from the nearest ancestor to the farthest."""
    labels = dict(site_labels)
    setters = dict.fromkeys(site_labels, site)
    taints: dict[tuple[str, str, str], kinds.Taint] = {}  # by value too: tolerating one ancestor's value is not tolerating another's
    sources: list[kinds.LabelSource] = []
    unschedulable = False
    for overlay in overlays:
        labels.update(overlay.labels)
        setters.update(dict.fromkeys(overlay.labels, overlay.set_by))
        for taint in overlay.taints:
            taints.setdefault((taint.key, taint.value, taint.effect), taint)
            sources.append(kinds.LabelSource(key=f"taint {taint.key}:{taint.effect}", value=taint.value, set_by=overlay.set_by))
        if overlay.unschedulable:
            unschedulable = True
            sources.append(kinds.LabelSource(key="cordon", set_by=overlay.set_by))
        sources += [kinds.LabelSource(key=f"users {each.name}", value=each.address, set_by=overlay.set_by) for each in overlay.users]
    sources = [kinds.LabelSource(key=key, value=labels[key], set_by=setters[key]) for key in sorted(labels)] + sources
    return Merged(labels=labels, taints=list(taints.values()), unschedulable=unschedulable, sources=sources)


def users_of(overlays: Sequence[kinds.ClusterOverlaySpec]) -> list[kinds.UserPoint]:
    """Whose distance a cluster shall tell: of two who name the same users the nearer one counts."""
    found: dict[str, kinds.UserPoint] = {}
    for overlay in overlays:
        for each in overlay.users:
            found.setdefault(each.name, each)
    return list(found.values())[: kinds.MOST_USERS]
