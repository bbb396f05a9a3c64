"""Cluster, what it reports of itself, and what its ancestors lay over it."""

from typing import Annotated, Literal

from msgspec import Meta, field

from cluster_controller.resources.meta import Condition, Document, Labels, Resource


class Taint(Document, frozen=True, kw_only=True):
    key: str  # what keeps applications away
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]  # NoSchedule: nothing new here; NoExecute: what runs goes too
    value: str = ""  # compared by tolerations with Equal
    time_added: str = ""  # when


MOST_USERS = 16  # that one Cluster may name, and that one cluster measures


class UserPoint(Document, frozen=True, kw_only=True):
    """Users of applications, under a name that placement.latency.users may say. Either an address, or how far they are."""

    name: str  # that Applications call them by
    address: str = ""  # HOST:PORT of something that stands where they are and takes TCP connections: the cluster measures how far it is
    millis: Annotated[float, Meta(ge=0, le=3_600_000)] | None = None  # how far they are, where it is known and cannot be measured


class ClusterSpec(Document, frozen=True, kw_only=True):
    """This controller's own overlay; ``metadata.labels`` are its labels."""

    unschedulable: bool = False  # cordon: nothing new is placed here or below
    taints: list[Taint] = field(default_factory=list)  # keep away what does not tolerate them; banyan.dev/drain from here and below
    users: list[UserPoint] = field(default_factory=list)  # whose distance this cluster tells; at most 16. The nearest who names one counts


class ResourceSums(Document, frozen=True, kw_only=True):
    """Sums over nodes, in millicores and bytes."""

    cpu_millis: int = 0  # millicores
    memory_bytes: int = 0  # bytes
    accelerators: dict[str, int] = field(default_factory=dict)  # how many of each kind


class NodeClass(Document, frozen=True, kw_only=True):
    """Equal nodes, counted; small enough to be reported up the tree."""

    architecture: str  # as Go names it
    count: int  # of nodes
    ready: int = 0  # of them
    allocatable: ResourceSums = ResourceSums()  # of each node of the class
    free: ResourceSums = ResourceSums()  # allocatable minus requests, on each ready node at least
    labels: Labels = field(default_factory=dict)  # that all of them have
    names: list[str] = field(default_factory=list)  # at most 20


class ReplicaClass(Document, frozen=True, kw_only=True):
    """Replicas of one priority that ask for the same, counted."""

    priority: int = 0  # of their Application
    count: int = 0  # how many
    each: ResourceSums = ResourceSums()  # what one of them asks for


class ModelPresence(Document, frozen=True, kw_only=True):
    name: str  # of the Model
    version: str  # whose files are here
    digest: str = ""  # over the names and digests of its files


class ClusterFacts(Document, frozen=True, kw_only=True):
    """What a cluster says about itself."""

    version: str = ""  # of its controller
    understands: list[str] = field(default_factory=list)  # what its controller knows to do that an older one does not: overrides
    authority: str = ""  # of the tree's CA that its certificates hang from: 16 digits of its digest
    shim: str = ""  # process, kubernetes, k3s; empty: no cluster of its own
    component_kinds: list[str] = field(default_factory=list)  # what its shim can run
    shim_trouble: str = ""  # why its controller cannot use the cluster at the moment; empty: it can
    labels: Labels = field(default_factory=dict)  # set at the site
    can_parent: bool = False  # others may join under it
    nodes: int = 0  # machines
    nodes_ready: int = 0  # of them
    node_classes: list[NodeClass] = field(default_factory=list)  # equal machines, counted
    capacity: ResourceSums = ResourceSums()  # what its machines have
    allocatable: ResourceSums = ResourceSums()  # what applications may use of it
    requested: ResourceSums = ResourceSums()  # by what runs here already
    replicas: list[ReplicaClass] = field(default_factory=list)  # that ask for something, the lowest priorities; at most 20 classes
    architectures: list[str] = field(default_factory=list)  # of its machines
    models: list[ModelPresence] = field(default_factory=list)  # whose files are here, at most 50
    parent_rtt_millis: float | None = None  # round trip to its parent, measured over their link; changes by a quarter and 5 ms are told
    user_rtt_millis: dict[str, float] = field(default_factory=dict)  # round trip to the users that somebody named here
    applications: int = 0  # that run here
    instances: int = 0  # that run here
    conflicts: int = 0  # objects that a parent with another history would change: they wait for a person's decision


class LabelSource(Document, frozen=True, kw_only=True):
    """Who set one merged label, taint or cordon."""

    key: str  # of the label or taint
    value: str = ""  # of the label or taint
    set_by: str = ""  # name of the cluster


class ClusterState(Document, frozen=True, kw_only=True):
    """``status`` of a Cluster. The age of what is known is never stored: it is added when shown."""

    uid: str = ""  # the hash of its identity key
    parent: str = ""  # name
    parent_uid: str = ""  # uid of the parent
    path: list[str] = field(default_factory=list)  # names from this controller down to the cluster
    phase: str = ""  # Ready, Unknown, Pending, Held, Revoked
    broken_hop: str = ""  # "region-a → edge-1" when something on the way is silent
    adopted_by: str = ""  # name of the controller that carries it while it has lost its parent
    facts: ClusterFacts = ClusterFacts()  # what it says of itself
    labels: Labels = field(default_factory=dict)  # site labels and all overlays, merged
    taints: list[Taint] = field(default_factory=list)  # of all who set some, merged
    unschedulable: bool = False  # cordoned by anybody above it or by itself
    sources: list[LabelSource] = field(default_factory=list)  # who set which label and taint
    children: int = 0  # that stand directly below it
    conditions: list[Condition] = field(default_factory=list)  # what is so, and since when
    withdrawing: list[str] = field(default_factory=list)  # NAMESPACE/NAME of applications that it has not confirmed gone
    address: str = ""  # from which it dials
    joined: str = ""  # when


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
    adopted_by: str = ""  # name of the controller that carries it while it has lost its parent


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
    users: list[UserPoint] = field(default_factory=list)


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
