"""Cluster, what it reports of itself, and what its ancestors lay over it."""

from typing import Literal

from msgspec import field

from cluster_controller.resources.meta import Condition, Document, Labels, Resource


class Taint(Document, frozen=True, kw_only=True):
    key: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
    value: str = ""
    time_added: str = ""


class ClusterSpec(Document, frozen=True, kw_only=True):
    """This controller's own overlay; ``metadata.labels`` are its labels."""

    unschedulable: bool = False
    taints: list[Taint] = field(default_factory=list)


class ResourceSums(Document, frozen=True, kw_only=True):
    """Sums over nodes, in millicores and bytes."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: dict[str, int] = field(default_factory=dict)


class NodeClass(Document, frozen=True, kw_only=True):
    """Equal nodes, counted; small enough to be reported up the tree."""

    architecture: str
    count: int
    ready: int = 0
    allocatable: ResourceSums = ResourceSums()  # of each node of the class
    free: ResourceSums = ResourceSums()  # allocatable minus requests, of the emptiest ready node
    labels: Labels = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # at most 20


class ModelPresence(Document, frozen=True, kw_only=True):
    name: str
    version: str
    digest: str = ""


class ClusterFacts(Document, frozen=True, kw_only=True):
    """What a cluster says about itself."""

    version: str = ""  # of its controller
    shim: str = ""  # process, kubernetes, k3s; empty: no cluster of its own
    component_kinds: list[str] = field(default_factory=list)
    labels: Labels = field(default_factory=dict)  # set at the site
    can_parent: bool = False
    nodes: int = 0
    nodes_ready: int = 0
    node_classes: list[NodeClass] = field(default_factory=list)
    capacity: ResourceSums = ResourceSums()
    allocatable: ResourceSums = ResourceSums()
    requested: ResourceSums = ResourceSums()  # by what runs here already
    architectures: list[str] = field(default_factory=list)
    models: list[ModelPresence] = field(default_factory=list)
    applications: int = 0
    instances: int = 0
    conflicts: int = 0  # objects that a parent with another history would change: they wait for a person's decision


class LabelSource(Document, frozen=True, kw_only=True):
    """Who set one merged label, taint or cordon."""

    key: str
    value: str = ""
    set_by: str = ""  # name of the cluster


class ClusterState(Document, frozen=True, kw_only=True):
    """``status`` of a Cluster. The age of what is known is never stored: it is added when shown."""

    uid: str = ""
    parent: str = ""  # name
    parent_uid: str = ""
    path: list[str] = field(default_factory=list)  # names from this controller down to the cluster
    phase: str = ""  # Ready, Unknown, Pending, Held, Revoked
    broken_hop: str = ""  # "region-a → edge-1" when something on the way is silent
    facts: ClusterFacts = ClusterFacts()
    labels: Labels = field(default_factory=dict)  # site labels and all overlays, merged
    taints: list[Taint] = field(default_factory=list)
    unschedulable: bool = False
    sources: list[LabelSource] = field(default_factory=list)
    children: int = 0
    conditions: list[Condition] = field(default_factory=list)
    withdrawing: list[str] = field(default_factory=list)  # NAMESPACE/NAME of applications that it has not confirmed gone
    address: str = ""
    joined: str = ""


class Cluster(Resource, frozen=True, kw_only=True):
    kind: str = "Cluster"
    spec: ClusterSpec = ClusterSpec()
    status: ClusterState = ClusterState()


class ClusterStatusSpec(Document, frozen=True, kw_only=True):
    """Who reports; ``name`` of the object is the uid."""

    cluster: str
    name: str
    parent: str = ""  # uid
    parent_name: str = ""


class ClusterStatusStatus(Document, frozen=True, kw_only=True):
    facts: ClusterFacts = ClusterFacts()
    ready: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    broken_hop: str = ""
    attach: int = 0
    since: str = ""  # wall clock of the reporter, for people only
    withdrawing: list[str] = field(default_factory=list)  # NAMESPACE/NAME of what it has not confirmed gone
    children: int = 0


class ClusterStatus(Resource, frozen=True, kw_only=True):
    kind: str = "ClusterStatus"
    spec: ClusterStatusSpec
    status: ClusterStatusStatus = ClusterStatusStatus()


class ClusterOverlaySpec(Document, frozen=True, kw_only=True):
    cluster: str  # uid
    set_by: str  # name of the ancestor
    set_by_uid: str = ""
    labels: Labels = field(default_factory=dict)
    taints: list[Taint] = field(default_factory=list)
    unschedulable: bool = False


class ClusterOverlay(Resource, frozen=True, kw_only=True):
    kind: str = "ClusterOverlay"
    spec: ClusterOverlaySpec


class RevocationSpec(Document, frozen=True, kw_only=True):
    subject: Literal["user", "cluster"]
    id: str  # a cluster's uid, or a user's credential id
    name: str = ""
    reason: str = ""
    time: str = ""


class Revocation(Resource, frozen=True, kw_only=True):
    kind: str = "Revocation"
    spec: RevocationSpec
