"""Merge what a cluster says of itself with what its ancestors lay over it. Pure.

Labels: the site's own, then overlays from the nearest ancestor to the farthest, so that the owner of more of the tree has the
last word. Taints add up and one cordon is enough: the strictest wins. `sources` says who set what.
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
    taints: dict[tuple[str, str], kinds.Taint] = {}
    sources: list[kinds.LabelSource] = []
    unschedulable = False
    for overlay in overlays:
        labels.update(overlay.labels)
        setters.update(dict.fromkeys(overlay.labels, overlay.set_by))
        for taint in overlay.taints:
            if taints.setdefault((taint.key, taint.effect), taint) is taint:
                sources.append(kinds.LabelSource(key=f"taint {taint.key}:{taint.effect}", value=taint.value, set_by=overlay.set_by))
        if overlay.unschedulable:
            unschedulable = True
            sources.append(kinds.LabelSource(key="cordon", set_by=overlay.set_by))
    sources = [kinds.LabelSource(key=key, value=labels[key], set_by=setters[key]) for key in sorted(labels)] + sources
    return Merged(labels=labels, taints=list(taints.values()), unschedulable=unschedulable, sources=sources)
