"""Lists and watch events of pods: read into this project's narrow structs, and into the models of the official client.

Both read the same bytes, in turns, in one process; memory is measured in a process of its own each, which reads the list and keeps it.
The pods are what an API server answers with, managed fields included.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks import gauges, records
from benchmarks.records import Options, Row

CLIENT = "the official Python client's models"
HERE = records.HERE
PAGE = 500  # pods in one answer, as the shim asks for them


async def measure(options: Options) -> list[Row]:
    pods, events, rounds = (50, 100, 1) if options.quick else (5000, 20_000, 3)
    pages = [page(start, min(PAGE, pods - start)) for start in range(0, pods, PAGE)]
    lines = [event(number % pods, number) for number in range(events)]
    narrow, official = Narrow(), Official()
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        for prefix, reader in (("", narrow), ("their ", official)):
            took.setdefault(f"{prefix}list", []).append(timed(reader.pages, pages))
            took.setdefault(f"{prefix}events", []).append(timed(reader.events, lines))
    memory = {who: kept(who, pods) for who in ("narrow", "official")}
    size = sum(map(len, pages)) / pods
    note = f"a pod is {size:,.0f} bytes of JSON, managed fields included; one core"
    rows = []
    for name, what in (("list", f"list of {pods:,} pods, in pages of {PAGE}"), ("events", f"{events:,} watch events of pods")):
        ours, theirs = took[name], took[f"their {name}"]
        times = [other / mine for mine, other in zip(ours, theirs, strict=True)]
        rows += [
            records.rounds(f"{what}: decoded", ours, "ms", peer=CLIENT, theirs=theirs, note=note),
            records.rounds(f"{what}: times as fast as {CLIENT}", times, "×", target=5, least=True),
        ]
    what = f"{pods:,} pods kept in memory"
    held = memory["official"]
    return [*rows, Row(what=what, measured=memory["narrow"], unit="MiB", peer=CLIENT, peer_measured=held, peer_source=HERE)]


def timed(read: Callable[[list[bytes]], object], data: list[bytes]) -> float:
    began = time.perf_counter()
    read(data)
    return 1000 * (time.perf_counter() - began)


class Narrow:
    """As `cluster_shim.kubernetes.informer` reads them."""

    def __init__(self) -> None:
        from cluster_shim.kubernetes import narrow

        self._page = msgspec.json.Decoder(narrow.Page)
        self._pod = msgspec.json.Decoder(narrow.Pod)
        self._event = msgspec.json.Decoder(narrow.WatchEvent)

    def pages(self, pages: list[bytes]) -> list[Any]:
        return [self._pod.decode(raw) for data in pages for raw in self._page.decode(data).items or ()]

    def events(self, lines: list[bytes]) -> list[Any]:
        return [self._pod.decode(self._event.decode(line).object) for line in lines]


class Official:
    """As `kubernetes.client` and `kubernetes.watch` read them."""

    def __init__(self) -> None:
        from kubernetes import client, watch

        self._client = client.ApiClient()
        self._watch = watch.Watch()

    def pages(self, pages: list[bytes]) -> list[Any]:
        found = []
        for data in pages:
            answer = self._client.deserialize(data.decode(), "V1PodList", "application/json")
            found += answer.items
        return found

    def events(self, lines: list[bytes]) -> list[Any]:
        return [self._watch.unmarshal_event(line.decode(), "V1Pod")["object"] for line in lines]


def kept(who: str, pods: int) -> float:
    """MiB that a process grows by when it reads a list of so many pods and keeps them."""
    argv = [sys.executable, "-m", "benchmarks.decode", who, str(pods)]
    done = subprocess.run(argv, cwd=records.ROOT, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout)


def page(start: int, count: int) -> bytes:
    items = ",".join(json.dumps(pod(number), separators=(",", ":")) for number in range(start, start + count))
    return f'{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"1"}},"items":[{items}]}}'.encode()


def event(number: int, version: int) -> bytes:
    document = pod(number, version)
    return json.dumps({"type": "MODIFIED", "object": {"kind": "Pod", "apiVersion": "v1"} | document}, separators=(",", ":")).encode()


def pod(number: int, version: int = 1) -> dict[str, Any]:
    """A pod of a Deployment that runs, as an API server of 1.34 shows it."""
    name, at = f"shop-web-{number // 10:06x}-{number % 10:05x}", "2026-03-01T10:00:00Z"
    labels = {"app.kubernetes.io/name": "shop", "app.kubernetes.io/component": "web", "pod-template-hash": f"{number // 10:06x}"}
    token = {"name": "kube-api-access-x7k2p", "readOnly": True, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    conditions = [
        {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": at}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    managed = [_managed("kube-controller-manager", at, SPEC_FIELDS), _managed("kubelet", at, STATUS_FIELDS) | {"subresource": "status"}]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name[:-6], "uid": _uid(number // 10, 1), "controller": True}
    container = {
        "name": "web",
        "image": "registry.example/shop/web:1.4",
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"SETTING_{each}", "value": "a value of usual length"} for each in range(6)],
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
        "volumeMounts": [token],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    status = {
        "name": "web",
        "state": {"running": {"startedAt": at}},
        "lastState": {},
        "ready": True,
        "restartCount": 0,
        "image": container["image"],
        "imageID": "registry.example/shop/web@sha256:" + "0" * 64,
        "containerID": "containerd://" + f"{number:064x}",
        "started": True,
    }
    sources = [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]
    tolerations = [
        {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        for taint in ("not-ready", "unreachable")
    ]
    return {
        "metadata": {
            "name": name,
            "generateName": name[:-5],
            "namespace": "default",
            "uid": _uid(number, 2),
            "resourceVersion": str(1000 + version),
            "creationTimestamp": at,
            "labels": labels,
            "ownerReferences": [owner],
            "managedFields": managed,
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x7k2p", "projected": {"sources": sources, "defaultMode": 420}}],
            "containers": [container],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "nodeName": f"node-{number % 50}",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": tolerations,
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "hostIP": "10.0.0.1",
            "podIP": f"10.244.{number // 250 % 250}.{number % 250}",
            "startTime": at,
            "containerStatuses": [status],
            "qosClass": "Burstable",
        },
    }


SPEC_FIELDS = ("metadata", "generateName", "labels", "ownerReferences", "spec", "containers", "env", "image", "resources", "restartPolicy")
STATUS_FIELDS = (
    "status",
    "conditions",
    "lastProbeTime",
    "lastTransitionTime",
    "containerStatuses",
    "hostIP",
    "phase",
    "podIP",
    "startTime",
)


def _managed(manager: str, at: str, fields: tuple[str, ...]) -> dict[str, Any]:
    owned: dict[str, Any] = {f"f:{name}": {".": {}, "f:type": {}, "f:status": {}} for name in fields}
    return {"manager": manager, "operation": "Update", "apiVersion": "v1", "time": at, "fieldsType": "FieldsV1", "fieldsV1": owned}


def _uid(number: int, kind: int) -> str:
    return f"{number:08x}-0000-4000-8000-{kind:012x}"


def main(who: str, pods: int) -> None:
    """In a process of its own: what it grows by."""
    reader = Narrow() if who == "narrow" else Official()
    pages = [page(start, min(PAGE, pods - start)) for start in range(0, pods, PAGE)]
    reader.pages(pages[:1])
    before = gauges.pss(os.getpid())
    found = [pod for data in pages for pod in reader.pages([data])]
    print((gauges.pss(os.getpid()) - before) / gauges.MIB)
    assert len(found) == pods


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
