"""A member's nodes as the tree knows them: what they have, what is asked of them, whether they can take more. Pure."""

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from cluster_shim import contract
from cluster_shim.kubernetes import names, narrow
from cluster_shim.kubernetes.quantities import millis, units

PLAIN = frozenset({"cpu", "memory", "pods", "ephemeral-storage"})
HOSTNAME = "kubernetes.io/hostname"
KUBELET_TAINTS = "node.kubernetes.io/"  # follow readiness and pressure, which conditions say already
BARRED = ("NoSchedule", "NoExecute")
KUBELET = "banyan.dev/kubelet"
UNKNOWN = (-1, -1)
Used = tuple[int, int]  # millicores, bytes
ENDED = ("Succeeded", "Failed")


class Asked(Struct, frozen=True, gc=False):
    """What a pod asks of its node, or pods together."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: dict[str, int] = {}

    def __add__(self, other: "Asked") -> "Asked":
        return self._with(other, 1)

    def __sub__(self, other: "Asked") -> "Asked":
        return self._with(other, -1)

    def _with(self, other: "Asked", sign: int) -> "Asked":
        accelerators = self.accelerators
        if other.accelerators:
            kinds = {*accelerators, *other.accelerators}
            sums = {name: accelerators.get(name, 0) + sign * other.accelerators.get(name, 0) for name in kinds}
            accelerators = {name: count for name, count in sums.items() if count}
        return Asked(self.cpu_millis + sign * other.cpu_millis, self.memory_bytes + sign * other.memory_bytes, accelerators)


NOTHING = Asked()


def asked(pod: narrow.Pod) -> Asked:
    """As the scheduler counts: the sum of all containers and sidecars, or the largest init container where that is more."""
    if pod.status.phase in ENDED:
        return NOTHING
    spec = pod.spec
    running = NOTHING
    for container in spec.containers:
        running += _requests(container.resources.requests)
    largest, sidecars = NOTHING, NOTHING
    for container in spec.init_containers:
        own = _requests(container.resources.requests)
        if container.restart_policy == "Always":
            sidecars += own
            own = NOTHING
        largest = _larger(largest, own + sidecars)
    return _larger(running + sidecars, largest) + _requests(spec.overhead)


def _requests(requests: Mapping[str, str | int | float]) -> Asked:
    if not requests:
        return NOTHING
    accelerators = {name: units(value) for name, value in requests.items() if is_accelerator(name)}
    return Asked(millis(requests.get("cpu", 0)), units(requests.get("memory", 0)), accelerators)


def _larger(one: Asked, other: Asked) -> Asked:
    kinds = {*one.accelerators, *other.accelerators}
    return Asked(
        max(one.cpu_millis, other.cpu_millis),
        max(one.memory_bytes, other.memory_bytes),
        {name: max(one.accelerators.get(name, 0), other.accelerators.get(name, 0)) for name in kinds},
    )


def is_accelerator(resource: str) -> bool:
    """An extended resource, which a device plugin offers: nvidia.com/gpu, say."""
    return resource not in PLAIN and "/" in resource and not resource.startswith(("hugepages-", "attachable-volumes-", "kubernetes.io/"))


def is_ready(node: narrow.Node) -> bool:
    return any(condition.type == "Ready" and condition.status == "True" for condition in node.status.conditions)


def takes_pods(node: narrow.Node) -> bool:
    """Whether a pod without tolerations may be scheduled there at all. What the kubelet's own taints say, readiness says too."""
    barred = (taint for taint in node.spec.taints if taint.effect in BARRED and not taint.key.startswith(KUBELET_TAINTS))
    return not node.spec.unschedulable and next(barred, None) is None


def observe(node: narrow.Node, usage: Used = UNKNOWN, foreign: Asked = NOTHING, labels: Mapping[str, str] = {}) -> contract.Node:
    """``usage``: measured. ``foreign``: what pods ask of it that are not ours; that much less is there for us. ``labels``: more of them."""
    status, info = node.status, node.status.node_info
    allocatable = status.allocatable if takes_pods(node) else {}
    accelerators = {name: units(text) - foreign.accelerators.get(name, 0) for name, text in allocatable.items() if is_accelerator(name)}
    return contract.Node(
        name=node.metadata.name,
        architecture=info.architecture,
        os=info.operating_system or "linux",
        kernel=info.kernel_version,
        boot_id=info.boot_id,
        ready=is_ready(node),
        cpu_millis=millis(status.capacity.get("cpu", 0)),
        memory_bytes=units(status.capacity.get("memory", 0)),
        allocatable_cpu_millis=max(0, millis(allocatable.get("cpu", 0)) - foreign.cpu_millis),
        allocatable_memory_bytes=max(0, units(allocatable.get("memory", 0)) - foreign.memory_bytes),
        used_cpu_millis=usage[0],
        used_memory_bytes=usage[1],
        accelerators={name: count for name, count in accelerators.items() if count > 0},
        labels={key: value for key, value in node.metadata.labels.items() if key != HOSTNAME} | _version(info) | dict(labels),
    )


def _version(info: narrow.NodeInfo) -> dict[str, str]:
    """As a label's value, in which a + may not stand: v1.34.2+k3s1 becomes v1.34.2_k3s1, as Helm writes it."""
    return {KUBELET: info.kubelet_version.replace("+", "_")} if info.kubelet_version else {}


class Ledger:
    """What those pods that are not ours ask of each node, kept up to date pod by pod."""

    def __init__(self) -> None:
        self._pods: dict[str, tuple[str, Asked]] = {}  # by uid: node, what it asks
        self._sums: dict[str, Asked] = {}

    def put(self, pod: narrow.Pod) -> bool:
        """Whether that changed a sum. A pod of ours counts as nothing: what Works ask for is counted by the controller."""
        entry = (pod.spec.node_name, NOTHING if names.APPLICATION_UID in pod.metadata.labels else asked(pod))
        if not entry[0] or entry[1] == NOTHING:
            return self.drop(pod.metadata.uid)
        if self._pods.get(pod.metadata.uid) == entry:
            return False
        self.drop(pod.metadata.uid)
        self._pods[pod.metadata.uid] = entry
        self._sums[entry[0]] = self._sums.get(entry[0], NOTHING) + entry[1]
        return True

    def drop(self, uid: str) -> bool:
        node, was = self._pods.pop(uid, ("", NOTHING))
        if not node:
            return False
        left = self._sums[node] - was
        if left == NOTHING:
            del self._sums[node]
        else:
            self._sums[node] = left
        return True

    def of(self, node: str) -> Asked:
        return self._sums.get(node, NOTHING)


def observe_all(
    found: Iterable[narrow.Node], usage: Mapping[str, Used], foreign: Callable[[str], Asked], labels: Mapping[str, str] = {}
) -> tuple[contract.Node, ...]:
    """By name."""
    seen = (observe(node, usage.get(node.metadata.name, UNKNOWN), foreign(node.metadata.name), labels) for node in found)
    return tuple(sorted(seen, key=lambda node: node.name))
