"""The few fields of a member's objects that anybody here reads; everything else is skipped while it is decoded.

A Pod of the official client's models costs some 50 KiB, one of these under two. Quantities stay text (`quantities`), times RFC 3339.
"""

from typing import Literal

import msgspec
from msgspec import Struct, field


class _Narrow(Struct, frozen=True, rename="camel", gc=False):
    """Holds no cycles, so the collector need not look at thousands of them."""


class Owner(_Narrow, frozen=True):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool = False


class Meta(_Narrow, frozen=True):
    """Without annotations: they are most of a pod's bytes, and nothing here reads them."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    owner_references: list[Owner] = field(default_factory=list)


class Condition(_Narrow, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class Requests(_Narrow, frozen=True):
    requests: dict[str, str | int | float] = field(default_factory=dict)


class Container(_Narrow, frozen=True):
    name: str = ""
    restart_policy: str = ""  # of an init container: Always makes it a sidecar
    resources: Requests = Requests()


class PodSpec(_Narrow, frozen=True):
    node_name: str = ""
    containers: list[Container] = field(default_factory=list)
    init_containers: list[Container] = field(default_factory=list)
    overhead: dict[str, str | int | float] = field(default_factory=dict)


class Waiting(_Narrow, frozen=True):
    reason: str = ""
    message: str = ""


class Running(_Narrow, frozen=True):
    started_at: str | None = None


class Terminated(_Narrow, frozen=True):
    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class State(_Narrow, frozen=True):
    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Narrow, frozen=True):
    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: State = State()
    last_state: State = State()


class PodStatus(_Narrow, frozen=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    pod_ip: str = field(name="podIP", default="")
    start_time: str | None = None
    conditions: list[Condition] = field(default_factory=list)
    container_statuses: list[ContainerStatus] = field(default_factory=list)
    init_container_statuses: list[ContainerStatus] = field(default_factory=list)


class Pod(_Narrow, frozen=True):
    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(_Narrow, frozen=True):
    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(_Narrow, frozen=True):
    unschedulable: bool = False
    taints: list[Taint] = field(default_factory=list)


class NodeInfo(_Narrow, frozen=True):
    architecture: str = ""
    operating_system: str = ""
    kernel_version: str = ""
    kubelet_version: str = ""
    boot_id: str = field(name="bootID", default="")


class NodeStatus(_Narrow, frozen=True):
    capacity: dict[str, str | int] = field(default_factory=dict)
    allocatable: dict[str, str | int] = field(default_factory=dict)
    conditions: list[Condition] = field(default_factory=list)
    node_info: NodeInfo = NodeInfo()


class Node(_Narrow, frozen=True):
    metadata: Meta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class WorkloadSpec(_Narrow, frozen=True):
    replicas: int | None = None
    completions: int | None = None


class WorkloadStatus(_Narrow, frozen=True):
    """Of Deployment, StatefulSet, ReplicaSet, DaemonSet and Job: each fills the fields that it has."""

    observed_generation: int = 0
    ready_replicas: int = 0
    updated_replicas: int = 0
    available_replicas: int = 0
    desired_number_scheduled: int = 0
    number_ready: int = 0
    updated_number_scheduled: int = 0
    succeeded: int = 0
    conditions: list[Condition] = field(default_factory=list)


class Workload(_Narrow, frozen=True):
    metadata: Meta
    kind: str = ""  # a list's items do not say it; the informer's path does
    spec: WorkloadSpec = WorkloadSpec()
    status: WorkloadStatus = WorkloadStatus()


class Event(_Narrow, frozen=True):
    metadata: Meta
    type: str = ""
    reason: str = ""
    message: str = ""
    count: int | None = None
    last_timestamp: str | None = None
    event_time: str | None = None


class ListMeta(_Narrow, frozen=True):
    resource_version: str = ""
    continue_: str = field(name="continue", default="")


class Page(_Narrow, frozen=True):
    """A list, its items not decoded yet."""

    metadata: ListMeta = ListMeta()
    items: list[msgspec.Raw] | None = None


class WatchEvent(_Narrow, frozen=True):
    """One line of a watch, its object not decoded yet."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class VersionOnly(_Narrow, frozen=True):
    metadata: ListMeta = ListMeta()


class ErrorObject(_Narrow, frozen=True):
    code: int = 0
    reason: str = ""
    message: str = ""
