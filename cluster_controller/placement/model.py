"""What placement decides with: records of clusters, what is wanted, what was given, and the decision with its reasons.

Plain data, no I/O. Units: cpu in millicores, memory in bytes, accelerators in pieces.
"""

from msgspec import Struct, field


class Taint(Struct, frozen=True):
    key: str
    value: str = ""
    effect: str = "NoSchedule"  # NoSchedule | PreferNoSchedule | NoExecute


class Toleration(Struct, frozen=True):
    """As in Kubernetes: an empty key with operator Exists tolerates everything; an empty effect matches every effect."""

    key: str = ""
    operator: str = "Equal"  # Equal | Exists
    value: str = ""
    effect: str = ""


class Requirement(Struct, frozen=True):
    """One label requirement of a selector."""

    key: str
    operator: str  # In | NotIn | Exists | DoesNotExist
    values: tuple[str, ...] = ()


class Request(Struct, frozen=True):
    """What one replica asks for."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.cpu_millis or self.memory_bytes or self.accelerators)


class NodeRecord(Struct, frozen=True, kw_only=True):
    """A node, or a class of ``count`` equal nodes, with what is free on each: allocatable minus requests."""

    name: str = ""
    count: int = 1
    architecture: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    free_cpu_millis: int = 0
    free_memory_bytes: int = 0
    free_accelerators: dict[str, int] = field(default_factory=dict)


class ClusterRecord(Struct, frozen=True, kw_only=True):
    """A cluster of the subtree as this controller knows it.

    ``via`` is the direct child (or this controller itself) through which it is reached: shares are given to ``via``.
    ``running`` is what this very application already runs there, per component; its room is not part of what is free.
    ``own`` marks the cluster of the controller that decides: there nobody below can say later that something did not fit.
    """

    uid: str
    name: str
    via: str
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    reachable: bool = True
    broken_hop: str = ""
    runs_applications: bool = True  # False: a controller without a shim
    component_kinds: tuple[str, ...] = ("model", "command")
    shim_trouble: str = ""  # why its controller cannot use it at the moment
    nodes: tuple[NodeRecord, ...] = ()
    running: dict[str, int] = field(default_factory=dict)
    own: bool = False


class ComponentDemand(Struct, frozen=True, kw_only=True):
    name: str
    replicas: int
    kind: str = "model"
    request: Request = Request()
    node: str = ""
    node_labels: dict[str, str] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()
    single: bool = False  # at most one replica per cluster: a command that cannot take a socket


class Demand(Struct, frozen=True, kw_only=True):
    """What one controller was given to place: an Application written here, or a Work from its parent."""

    application: str
    components: tuple[ComponentDemand, ...]
    strategy: str = "Divided"  # Divided | Duplicated
    selector: tuple[Requirement, ...] = ()
    cluster_names: tuple[str, ...] = ()
    names_field: str = "placement.clusterNames"  # where they were written
    origin: bool = True  # written here: so its names are names of this subtree
    tolerations: tuple[Toleration, ...] = ()


class Given(Struct, frozen=True):
    """What one target was given of one component.

    ``ceiling`` bounds what it may be running: the highest share not yet replaced by an acknowledged lower one.
    ``unplaced`` is what it reported that it could not place of ``share``; ``refused`` says that it reported so of an earlier share,
    and that nothing has changed there since. ``counted`` replicas of ``share`` are taken off what it reports as free.
    """

    share: int = 0
    ceiling: int = 0
    unplaced: int = 0
    reachable: bool = True
    refused: bool = False
    counted: int = 0


class Refusal(Struct, frozen=True):
    """Why a cluster does not take (more of) a component. ``filter`` is a stable word, ``message`` and ``remedy`` are for people.

    ``message`` goes on from the cluster's name ("has no room: …"); with an empty ``cluster`` it is a sentence of its own.
    """

    cluster: str
    component: str
    filter: str
    message: str
    remedy: str = ""


class Placement(Struct, frozen=True):
    """``shares[target][component]`` replicas; ``unplaced[component]``; ``refusals`` say why not, per cluster.

    ``unplaced`` includes those that a target holds in its share without a place for them, when nobody else has one.
    ``waiting[component]`` replicas have a place but wait until another target has acknowledged its lower share.
    """

    shares: dict[str, dict[str, int]]
    unplaced: dict[str, int]
    waiting: dict[str, int]
    refusals: tuple[Refusal, ...]
    eligible: dict[str, tuple[str, ...]]  # component -> uids of clusters that passed every filter
