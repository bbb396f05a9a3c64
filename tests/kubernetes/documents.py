"""A member's objects as its API server sends them, cut down to what a test is about."""

from typing import Any

import msgspec

from cluster_shim.kubernetes import names, narrow

READY = {"type": "Ready", "status": "True"}
NOT_READY = {"type": "Ready", "status": "False"}


def pod(
    name: str = "web-main-abc123-6d5f-x7k2p", *, uid: str = "", labels: dict[str, str] | None = None, node: str = "n1", **status: Any
) -> narrow.Pod:
    """``status`` as the kubelet writes it."""
    deleted = status.pop("deleted", None)
    spec = status.pop("spec", {})
    owner = status.pop("owner", {"kind": "ReplicaSet", "name": "web-main-abc123-6d5f", "controller": True})
    own = {names.APPLICATION_UID: "app-1", names.COMPONENT_LABEL: "main", names.REVISION: "r1", "pod-template-hash": "6d5f"}
    document = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid or name,
            "resourceVersion": "7",
            "labels": own if labels is None else labels,
            "ownerReferences": [owner] if owner else [],
            "deletionTimestamp": deleted,
            "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "x"}], "tolerations": [{}]} | spec,
        "status": {"phase": "Running", "conditions": [READY], "startTime": "2026-11-21T10:00:00Z"} | status,
    }
    return msgspec.json.decode(msgspec.json.encode(document), type=narrow.Pod)


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "main", "ready": False, "restartCount": 0, "state": {"running": {"startedAt": "2026-11-21T10:00:00Z"}}} | fields


def ended(code: int = 1, reason: str = "Error", at: str = "2026-11-21T10:00:05Z", **fields: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": "2026-11-21T10:00:00Z", "finishedAt": at} | fields}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def workload(kind: str = "Deployment", *, generation: int = 1, spec: dict[str, Any] | None = None, **status: Any) -> narrow.Workload:
    document = {
        "kind": kind,
        "metadata": {"name": "web", "namespace": "default", "uid": "w", "generation": generation},
        "spec": spec or {},
        "status": status,
    }
    return msgspec.json.decode(msgspec.json.encode(document), type=narrow.Workload)


def node(name: str = "n1", *, taints: list[dict[str, str]] | None = None, ready: bool = True, **fields: Any) -> narrow.Node:
    sizes = {"cpu": "4", "memory": "8Gi", "pods": "110", "hugepages-2Mi": "0"} | fields.pop("sizes", {})
    document = {
        "metadata": {"name": name, "uid": name, "labels": {"kubernetes.io/hostname": name, "zone": "north"}},
        "spec": {"taints": taints or []} | fields,
        "status": {
            "capacity": sizes,
            "allocatable": sizes,
            "conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}],
            "nodeInfo": {
                "architecture": "arm64",
                "operatingSystem": "linux",
                "kernelVersion": "6.1",
                "bootID": "b",
                "kubeletVersion": "v1.34.2+k3s1",
            },
        },
    }
    return msgspec.json.decode(msgspec.json.encode(document), type=narrow.Node)
