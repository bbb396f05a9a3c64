"""What placement decides with: records of clusters, what is wanted, what was given, and the decision with its reasons.

Plain data, no I/O. Units: cpu in millicores, memory in bytes, accelerators in pieces.
"""

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct, field

EMPTY_MILLIS: Mapping[str, float] = MappingProxyType({})


class Taint(Struct, frozen=True):
    key: str
    value: str = ""
    effect: str = "NoSchedule"  # NoSchedule | PreferNoSchedule | NoExecute
    age: float = 0.0  # seconds since this controller saw it first, by its own clock


class Toleration(Struct, frozen=True):
    """As in Kubernetes: an empty key with operator Exists tolerates everything; an empty effect matches every effect."""

    key: str = ""
    operator: str = "Equal"  # Equal | Exists
    value: str = ""
    effect: str = ""
    seconds: int | None = None  # of a NoExecute taint; None: for ever


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
        return bool(self.cpu_millis or self.memory_bytes or any(self.accelerators.values()))


class Preference(Struct, frozen=True):
    """Clusters with these labels rather than others; ``weight`` 1 to 100, added up over all that match."""

    weight: int
    selector: tuple[Requirement, ...]


class Neighbour(Struct, frozen=True, kw_only=True):
    """Another application that this one wants beside it, or away from it.

    ``where`` holds the uids of the clusters that run it, by what this controller knows. ``topology`` is the label whose equal values
    are one place; empty: each cluster is a place of its own. ``weight`` 0: a demand; else a wish of that weight. ``theirs``: it is the
    other one that stays away from this.
    """

    name: str
    where: frozenset[str] = frozenset()
    apart: bool = False
    topology: str = ""
    weight: int = 0
    theirs: bool = False


class Spread(Struct, frozen=True):
    """Replicas in any two places differ by at most ``skew``; a place is a value of the label ``topology`` (empty: a cluster)."""

    topology: str = ""
    skew: int = 1
    hard: bool = True  # False: as even as it goes, but nothing waits for it


class Weight(Struct, frozen=True):
    """How many parts of the whole clusters with these labels get; the first that matches counts."""

    weight: int
    selector: tuple[Requirement, ...] = ()


class Dividing(Struct, frozen=True, kw_only=True):
    """How replicas are divided among clusters. ``least`` and ``most`` are per cluster; ``most`` 0: no bound."""

    by: str = "Even"  # Even | Weights | FreeCapacity | LowestCost
    weights: tuple[Weight, ...] = ()
    least: int = 0
    most: int = 0


class Objective(Struct, frozen=True, kw_only=True):
    """What a replica costs somewhere: ``cost`` x thousandths of the currency an hour + ``latency`` x milliseconds to ``to``
    and ``users``."""

    cost: int = 1
    latency: int = 1
    to: tuple[str, ...] = ()  # names of clusters; from several the farthest counts
    users: tuple[str, ...] = ()  # names of users; likewise, and the farthest of both
    within_millis: int = 0  # a cluster farther away does not qualify; 0: any distance


class Resident(Struct, frozen=True, kw_only=True):
    """``count`` replicas of one priority that ask for the same and could give way. Whose they are is known of the own cluster only.

    ``well``: ready replicas. ``rank`` decides between equals: the higher one, which came later, gives way first.
    """

    priority: int
    request: Request
    count: int
    application: str = ""  # uid
    name: str = ""  # for people
    component: str = ""
    well: bool = True
    rank: int = 0


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
    whole: Request = Request()  # what applications may use of one such node
    hourly_micros: int = 0  # what an hour of one such node costs, in millionths of the currency


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
    leaving: bool = False  # drained: what runs there goes as far as there is room elsewhere
    reachable: bool = True
    broken_hop: str = ""
    carried: bool = False  # out of reach is its home; itself it is heard, by way of an adopter
    runs_applications: bool = True  # False: a controller without a shim
    component_kinds: tuple[str, ...] = ("model", "command")
    shim_trouble: str = ""  # why its controller cannot use it at the moment
    nodes: tuple[NodeRecord, ...] = ()
    running: dict[str, int] = field(default_factory=dict)
    own: bool = False
    parent: str = ""  # uid
    rtt_millis: float | None = None  # of its link to its parent; None: not measured
    user_millis: Mapping[str, float] = EMPTY_MILLIS  # round trips that it told of, to named users
    hourly_micros: int = 0  # what an hour of the whole cluster costs, in millionths of the currency
    models: frozenset[str] = frozenset()  # digests of models whose files are there
    residents: tuple[Resident, ...] = ()  # what runs there, of the priorities that it told of


class ComponentDemand(Struct, frozen=True, kw_only=True):
    name: str
    replicas: int
    kind: str = "model"
    request: Request = Request()
    node: str = ""
    node_labels: dict[str, str] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()
    single: bool = False  # at most one replica per cluster: a command that cannot take a socket
    model: str = ""  # digest of the model that it serves; empty: none, or not known


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
    preferences: tuple[Preference, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    spread: tuple[Spread, ...] = ()
    dividing: Dividing = Dividing()
    objective: Objective | None = None
    priority: int = 0
    preempts: bool = False  # what has a lower priority gives way where there is no room


class Given(Struct, frozen=True):
    """What one target was given of one component.

    ``ceiling`` bounds what it may be running: the highest share not yet replaced by an acknowledged lower one.
    ``unplaced`` is what it reported that it could not place of ``share``; ``refused`` says that it reported so of an earlier share,
    and that nothing has changed there since. ``counted`` replicas of ``share`` are taken off what it reports as free. ``yields`` of
    ``share`` give way to others: they go, and are not left there as an offer.
    """

    share: int = 0
    ceiling: int = 0
    unplaced: int = 0
    reachable: bool = True
    refused: bool = False
    counted: int = 0
    yields: int = 0


class Refusal(Struct, frozen=True):
    """Why a cluster does not take (more of) a component. ``filter`` is a stable word, ``message`` and ``remedy`` are for people.

    ``message`` goes on from the cluster's name ("has no room: …"); with an empty ``cluster`` it is a sentence of its own.
    """

    cluster: str
    component: str
    filter: str
    message: str
    remedy: str = ""


class Score(Struct, frozen=True, kw_only=True):
    """How a cluster that passed the filters was judged for one component."""

    preference: int = 0  # weights of preferences that it meets, minus those of what it should be away from
    hourly_micros: int = 0  # one replica there, cheapest node with room
    latency_millis: float | None = None  # to the farthest of the named clusters; None: none is named, or not measured
    present: bool = False  # its model's files are there already
    cost: int = 0  # of the objective, in thousandths of its unit
    room: int = 0  # replicas that fit besides those that run


class Preempting(Struct, frozen=True):
    """``replicas`` of a component get room on a cluster when others give way: ``yields`` names them, as far as they are known here."""

    cluster: str
    component: str
    replicas: int
    yields: tuple[tuple[Resident, int], ...]


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
    plan: dict[str, dict[str, int]] = field(default_factory=dict)  # component -> cluster -> replicas that the division foresees there
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)  # component -> cluster that passed -> how it was judged
    preempting: tuple[Preempting, ...] = ()  # what others give way for
    stuck: dict[str, dict[str, int]] = field(default_factory=dict)  # component -> drained cluster -> replicas with no room elsewhere
