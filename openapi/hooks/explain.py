"""Put placement's decision into words: per cluster, what it was given, or which filter refused it and what would help."""

from collections.abc import Callable, Mapping
from typing import Any

from cluster_controller.errors import NotFound
from cluster_controller.placement.allotment import Allotment
from cluster_controller.placement.model import ClusterRecord, Placement
from cluster_controller.store import Tx

Explain = Callable[[Tx, str], tuple[Allotment, Placement, list[ClusterRecord]] | None]

REMEDIES = {
    "ClusterSelector": "label the cluster, or change placement.clusterSelector",
    "ClusterName": "add the cluster to placement.clusterNames",
    "Cordoned": "uncordon the cluster",
    "Taint": "add a toleration, or remove the taint",
    "NoScheduleTaint": "add a toleration, or remove the taint",
    "Unreachable": "mend the link; what runs there goes on running",
    "ComponentKind": "choose clusters that run this kind of component",
    "NoShim": "start it with a shim, or place on its members",
    "NoNode": "look at the cluster's nodes (banyan --at NAME get nodes)",
    "NodeName": "name a node that exists",
    "NodeSelector": "label a node, or change placement.nodeSelector",
    "Architecture": "build the component for this architecture, or change placement.architecture",
    "Capacity": "ask for less, free something, or add a node",
    "OnePerCluster": "let the command take its socket (LISTEN_FDS), or ask for fewer replicas",
}


def explanation(tx: Tx, explain: Explain, uid: str) -> Mapping[str, Any]:
    found = explain(tx, uid)
    if found is None:
        raise NotFound(f"nothing is placed for application {uid}")
    allotment, placement, clusters = found
    rows = [_row(cluster, allotment, placement) for cluster in sorted(clusters, key=lambda cluster: cluster.name)]
    return {
        "kind": "Explanation",
        "apiVersion": "banyan.dev/v1alpha1",
        "application": {"name": allotment.application.name, "namespace": allotment.application.namespace, "uid": uid},
        "strategy": allotment.placement.strategy,
        "missing": allotment.missing,
        "components": [
            {
                "name": component.name,
                "replicas": component.replicas,
                "unplaced": placement.unplaced.get(component.name, 0),
                "waiting": placement.waiting.get(component.name, 0),
                "notes": _notes(component.takes_socket or component.model is not None),
            }
            for component in allotment.components
        ],
        "clusters": rows,
    }


def _notes(takes_socket: bool) -> list[str]:
    return [] if takes_socket else ["takes no socket: one replica per site, and an upgrade stops it before it starts the new one"]


def _row(cluster: ClusterRecord, allotment: Allotment, placement: Placement) -> dict[str, Any]:
    components = []
    for component in allotment.components:
        refusal = next((item for item in placement.refusals if item.cluster == cluster.uid and item.component == component.name), None)
        runs = cluster.running.get(component.name, 0)
        entry: dict[str, Any] = {"component": component.name, "replicas": runs}
        if refusal is not None:
            entry |= {"filter": refusal.filter, "reason": refusal.message, "remedy": REMEDIES.get(refusal.filter, "")}
        elif not runs:
            share = placement.shares.get(cluster.via, {}).get(component.name, 0)
            entry["reason"] = (
                "takes part in its branch's share" if share and cluster.via != cluster.uid else "would take it; enough runs elsewhere"
            )
            if share and cluster.via == cluster.uid:
                entry |= {"replicas": share, "reason": "given, not yet reported as running"}
        components.append(entry)
    return {"cluster": cluster.name, "uid": cluster.uid, "components": components}
