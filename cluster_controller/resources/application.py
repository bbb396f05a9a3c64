"""Application, its shadow in ancestors, and the Work that carries it down the tree."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from cluster_controller.resources.meta import (
    Condition,
    Count,
    Document,
    Labels,
    LabelSelector,
    Port,
    PositiveSeconds,
    Quantity,
    Resource,
    Seconds,
)
from cluster_controller.resources.placing import Affinity, AntiAffinity, CostWish, Division, LatencyWish, SpreadConstraint


class ModelReference(Document, frozen=True, kw_only=True):
    """``name`` of a Model in the Application's namespace, or NAME.ORIGIN of a delivered one."""

    name: str  # of a Model of the same namespace, or NAME.ORIGIN of one that was delivered from above
    version: str = ""  # empty: the last version listed in the Model


class KeySelector(Document, frozen=True, kw_only=True):
    name: str  # of the ConfigMap or Secret, in the same namespace
    key: str  # whose value is taken
    optional: bool = False  # start without it while it does not exist


class EnvSource(Document, frozen=True, kw_only=True):
    """Exactly one is set."""

    config_map_key_ref: KeySelector | None = None  # one key of a ConfigMap
    secret_key_ref: KeySelector | None = None  # one key of a Secret


class EnvVar(Document, frozen=True, kw_only=True):
    name: str  # of the variable
    value: str = ""  # its text
    value_from: EnvSource | None = None  # where its text comes from, instead of value


class LocalReference(Document, frozen=True, kw_only=True):
    name: str  # of an object of the same namespace
    optional: bool = False  # start without it while it does not exist


class EnvFrom(Document, frozen=True, kw_only=True):
    """Exactly one of config_map_ref and secret_ref; every key becomes a variable."""

    prefix: str = ""  # put before each key
    config_map_ref: LocalReference | None = None  # every key of this ConfigMap
    secret_ref: LocalReference | None = None  # every key of this Secret


class FileSource(Document, frozen=True, kw_only=True):
    name: str  # of the ConfigMap or Secret, in the same namespace
    key: str = ""  # empty: every key becomes a file below the path
    optional: bool = False  # start without it while it does not exist


class FileMount(Document, frozen=True, kw_only=True):
    """A file (or a folder of files) below the instance's working folder. Exactly one of config_map and secret."""

    path: str  # relative, below the instance's working folder
    config_map: FileSource | None = None  # contents from a ConfigMap
    secret: FileSource | None = None  # contents from a Secret
    mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o644  # permissions as a number: 420 is 0644, 384 is 0600


class VolumeMount(Document, frozen=True, kw_only=True):
    """A folder of the site that survives restarts, versions and moves between instances."""

    name: str  # of the folder; all replicas of the component on a site share it
    path: str  # where it appears, relative to the working folder


class Resources(Document, frozen=True, kw_only=True):
    cpu: Quantity = ""  # for each replica, as in 250m or 2; what placement counts, and a limit where the system can hold it
    memory: Quantity = ""  # for each replica, as in 128Mi; what placement counts, and a limit where the system can hold it
    accelerators: dict[str, Count] = field(default_factory=dict)  # how many of each kind for each replica, as in {nvidia.com/gpu: 1}


class HttpGet(Document, frozen=True, kw_only=True):
    path: str = "/"  # begins with a slash
    port: Port | None = None  # None: the component's exposed port


class TcpSocket(Document, frozen=True, kw_only=True):
    port: Port | None = None  # None: the component's exposed port


class Exec(Document, frozen=True, kw_only=True):
    command: list[str]  # program and arguments; exit code 0 is a success


class Probe(Document, frozen=True, kw_only=True):
    """Exactly one of http_get, tcp_socket and exec."""

    http_get: HttpGet | None = None  # ask over HTTP
    tcp_socket: TcpSocket | None = None  # open a connection
    exec: Exec | None = None  # run a program in the instance's surroundings
    initial_delay_seconds: Seconds = 0  # after the start, before the first question
    period_seconds: PositiveSeconds = 10  # between two questions
    timeout_seconds: PositiveSeconds = 1  # how long an answer may take
    failure_threshold: Annotated[int, Meta(ge=1, le=1000)] = 3  # failures in a row that change the verdict
    success_threshold: Annotated[int, Meta(ge=1, le=1000)] = 1  # successes in a row that change it back


class Expose(Document, frozen=True, kw_only=True):
    port: Port  # of the site, the same on every cluster that runs it; stays across restarts and new versions


class ContainerImage(Document, frozen=True, kw_only=True):
    """A container, for members that run containers."""

    image: str  # as the member's nodes can pull it, or have it
    command: list[str] = field(default_factory=list)  # instead of the image's own entry point
    args: list[str] = field(default_factory=list)  # instead of the image's own arguments


class Chart(Document, frozen=True, kw_only=True):
    """A Helm chart, rendered at the site and applied like manifests."""

    chart: ModelReference  # the archive: the one file of a Model with the runtime helm
    values: dict[str, Any] = field(default_factory=dict)  # laid over the chart's own values
    hooks: Literal["Refuse", "Ignore"] = "Refuse"  # Refuse: a chart with hooks or lookup is an error; Ignore: hooks are left out


class ApplyPolicy(Document, frozen=True, kw_only=True):
    """How objects are kept in members that have an API of their own."""

    drift: Literal["Correct", "Report"] = "Correct"  # what somebody changed by hand there
    conflicts: Literal["Report", "Force"] = "Report"  # a field that another manager declares
    immutable_fields: Literal["Refuse", "Recreate"] = "Refuse"  # a change that only a new object can have


class Serving(Document, frozen=True, kw_only=True):
    """How the worker serves a component's model. What is left out it decides itself."""

    python_steps: bool = False  # run the Python code that the model's pipeline brings: who publishes the Model then runs programs here
    batching: bool = True  # run requests that wait already as one, up to the size that was measured to pay
    max_batch: Annotated[int, Meta(ge=1, le=65_536)] | None = None  # the largest batch in one request; none: 64
    queue: Annotated[int, Meta(ge=1, le=100_000)] | None = None  # requests that may wait, more are told to come again; none: 64
    runs: Annotated[int, Meta(ge=1, le=1024)] | None = None  # of the model at once; none: the processors, at most 2
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None  # inside one run; none: 1


class Component(Document, frozen=True, kw_only=True):
    """Exactly one of model, command, container, manifests and helm."""

    name: str  # unique within the application, a DNS label
    model: ModelReference | None = None  # serve this model
    serving: Serving | None = None  # how, with a model
    command: list[str] = field(default_factory=list)  # or run this program with these arguments
    container: ContainerImage | None = None  # or run this container, on members that can
    manifests: list[dict[str, Any]] = field(default_factory=list)  # or apply these objects of the member's own API
    helm: Chart | None = None  # or render this chart and apply what it makes
    replicas: Count = 1  # over the whole placement when it is Divided, on each cluster when it is Duplicated
    resources: Resources = Resources()  # what one replica asks for
    env: list[EnvVar] = field(default_factory=list)  # environment variables
    env_from: list[EnvFrom] = field(default_factory=list)  # environment variables from whole ConfigMaps and Secrets
    files: list[FileMount] = field(default_factory=list)  # files from ConfigMaps and Secrets
    volumes: list[VolumeMount] = field(default_factory=list)  # folders of the site that outlive the instance
    liveness: Probe | None = None  # an instance that fails it is restarted
    readiness: Probe | None = None  # an instance that fails it counts as not ready
    expose: Expose | None = None  # the site's own port for clients of this component
    depends_on: list[str] = field(default_factory=list)  # other components; its first start on a cluster waits until they are ready
    termination_grace_period_seconds: Seconds = 30  # between SIGTERM and SIGKILL
    takes_socket: bool = True  # accepts on the listening socket that it is handed (LISTEN_FDS); false: opens its own


class Toleration(Document, frozen=True, kw_only=True):
    key: str = ""  # of the taint; empty with Exists: every taint
    operator: Literal["Equal", "Exists"] = "Equal"  # Equal: the value too; Exists: the key alone
    value: str = ""  # of the taint, with Equal
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""  # of the taint; empty: every effect
    toleration_seconds: Seconds | None = None  # of a NoExecute taint: what runs stays so long, from when it was seen; none: for ever


class OnUnreachable(Document, frozen=True, kw_only=True):
    action: Literal["Keep", "Replace"] = "Keep"  # Keep: the share of a silent cluster stays its own; Replace: others take it
    after_seconds: Seconds = 0  # of silence until Replace


class Rebalance(Document, frozen=True, kw_only=True):
    """When to move what runs, because others carry less: after a cluster has joined, or is back. Left out, nothing is moved."""

    after_seconds: Seconds = 300  # balance has been lost for so long, and nothing else was under way
    pause_seconds: Seconds = 60  # between the end of one move and the next
    max_moves: Annotated[int, Meta(ge=1, le=1000)] = 1  # replicas in one move; so many are missing while it is under way
    threshold: Annotated[int, Meta(ge=1, le=100_000)] = 1  # it is lost when so many could go from one cluster (or branch) to another


class Placement(Document, frozen=True, kw_only=True):
    cluster_selector: LabelSelector | None = None  # only clusters with these labels
    cluster_name: str = ""  # only this cluster
    cluster_names: list[str] = field(default_factory=list)  # only these clusters
    node_name: str = ""  # only the machine of this name
    node_selector: Labels = field(default_factory=dict)  # only machines with these labels
    tolerations: list[Toleration] = field(default_factory=list)  # taints that do not keep it away
    architecture: str = ""  # as Go names it: amd64, arm64, riscv64
    strategy: Literal["Divided", "Duplicated"] = "Divided"  # Divided: split over the clusters; Duplicated: each gets all replicas
    affinity: Affinity = Affinity()  # where it would rather run, and beside whom
    anti_affinity: AntiAffinity = AntiAffinity()  # from whom it stays away
    spread: list[SpreadConstraint] = field(default_factory=list)  # how evenly it lies over zones, or whatever labels say
    division: Division = Division()  # how replicas are divided among the clusters that qualify
    cost: CostWish | None = None  # what its cost counts for, with division by LowestCost
    latency: LatencyWish | None = None  # how far it may be from whom it serves, and what that counts for
    on_unreachable: OnUnreachable = OnUnreachable()  # what becomes of the share of a cluster that fell silent
    rebalance: Rebalance | None = None  # move what runs when others carry less; left out: never


class Wave(Document, frozen=True, kw_only=True):
    """Clusters that get a new version together. Exactly one of cluster_selector, count and percent."""

    cluster_selector: LabelSelector | None = None  # those with these labels; a branch, when any cluster in it has them
    count: Annotated[int, Meta(ge=0, le=100_000)] = 0  # so many more
    percent: Annotated[int, Meta(ge=0, le=100)] = 0  # so many in a hundred of all, rounded up
    pause_seconds: Seconds | None = None  # healthy for so long before the next wave begins; instead of rollout.pauseSeconds
    manual: bool = False  # the next wave waits until somebody says `banyan rollout resume`


class Series(Document, frozen=True, kw_only=True):
    """Series of an Application's own metrics."""

    metric: str  # its name, as /metrics has it; of a histogram without _bucket
    labels: dict[str, str] = field(default_factory=dict)  # that it must have; * stands for anything, as in 5*


class Gate(Document, frozen=True, kw_only=True):
    """A measure by which a version has to be well. Either errors and requests, or latency."""

    name: str = ""  # by which messages speak of it
    component: str = ""  # whose metrics are read; empty: the first one's
    path: str = "/metrics"  # where its instances expose them
    errors: Series | None = None  # counters of what failed
    requests: Series | None = None  # counters of everything; the figure is how large a part of it failed
    latency: Series | None = None  # a histogram of seconds; the figure is its quantile
    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.99  # of latency
    max: Annotated[float, Meta(ge=0)]  # what the figure may be at most: 0.05 is 5 %, or seconds
    window_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 60  # it has been well for so long, on each cluster, before a wave is done
    min_count: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 20  # requests without which nothing can be said
    on_missing: Literal["Wait", "Pass"] = "Wait"  # when there were fewer in the window: wait for more, or go on without


class Rollout(Document, frozen=True, kw_only=True):
    """How a new version goes out, at each level of the tree: among a controller's direct children and its own cluster."""

    waves: list[Wave] = field(default_factory=list)  # the first ones, in this order
    wave: Count = 0  # how many clusters each further wave has; 0: all that are left in one
    pause_seconds: Seconds = 0  # a wave is healthy for so long before the next one begins
    progress_deadline_seconds: PositiveSeconds = 600  # in which a wave must make progress towards ready; then the rollout has failed
    rollback: Literal["Never", "Automatic"] = "Never"  # Automatic: where it was written, a failed rollout goes back to the version before
    paused: bool = False  # no further cluster is changed
    gates: list[Gate] = field(default_factory=list)  # measures, besides readiness, by which each cluster judges a new version


class OverrideClusters(Document, frozen=True, kw_only=True):
    """Which clusters an override is for. Where both are given, both must hold; at least one is."""

    selector: LabelSelector | None = None  # those with these labels, with what their ancestors laid over them
    names: list[str] = field(default_factory=list)  # these, as the controller where it was written lists them


class Override(Document, frozen=True, kw_only=True):
    """What is different on some clusters. At least one of merge and json_patch; merge comes first."""

    name: str = ""  # by which status and explain speak of it; empty: its place in the list
    clusters: OverrideClusters  # where it applies
    component: str = ""  # the component that it changes; empty: every one
    merge: dict[str, Any] = field(default_factory=dict)  # laid over the component: null removes, items with a name (env) are found by it
    json_patch: list[dict[str, Any]] = field(default_factory=list)  # operations on the component, as in RFC 6902


Priority = Annotated[int, Meta(ge=-1_000_000_000, le=1_000_000_000)]  # as Kubernetes allows its users


class ApplicationSpec(Document, frozen=True, kw_only=True):
    components: list[Component]  # what shall run, each with replicas of its own
    priority: Priority = 0  # where room is short, what has a lower one gives way to it; equal ones never do
    preemption_policy: Literal["PreemptLowerPriority", "Never"] = "PreemptLowerPriority"  # Never: it waits for room, though first in line
    placement: Placement = Placement()  # where, in the subtree of the controller that is asked
    overrides: list[Override] = field(default_factory=list)  # what is different on some clusters, one after the other
    rollout: Rollout | None = None  # how a new version goes out; left out: to all clusters at once
    depends_on: list[str] = field(default_factory=list)  # names of Applications of this namespace; first starts wait until they are ready
    apply: ApplyPolicy = ApplyPolicy()  # how objects are kept in members that have an API of their own


class Preemptor(Document, frozen=True, kw_only=True):
    """To whom replicas gave way."""

    namespace: str = ""
    name: str  # of the Application, at its origin
    uid: str
    priority: int = 0  # its priority
    cluster: str = ""  # name of the cluster where that was


class ComponentStatus(Document, frozen=True, kw_only=True):
    name: str  # of the component
    desired: int = 0  # replicas that are wanted
    ready: int = 0  # replicas that are ready
    updated: int = 0  # replicas of the newest version
    unplaced: int = 0  # replicas that no cluster could take
    confirmed: int = 0  # of those that are ready: reported in answer to the newest share, so since it was given
    reason: str = ""  # a word for programs
    message: str = ""  # a sentence for people
    preempted_by: Preemptor | None = None  # of those that are unplaced, who has the room of the first


class ClusterRow(Document, frozen=True, kw_only=True):
    """What one cluster does for one application."""

    cluster: str  # uid
    name: str = ""  # of the cluster, as the reporter knows it
    path: list[str] = field(default_factory=list)  # names from the reporter down to the cluster
    ready: int = 0  # replicas that are ready there
    desired: int = 0  # replicas that it shall run
    reason: str = ""  # a word for programs
    message: str = ""  # a sentence for people
    port: int = 0  # of the site, where it is exposed
    components: dict[str, int] = field(default_factory=dict)  # replicas given, per component
    overrides: list[str] = field(default_factory=list)  # of the Application that are in force there


class Revision(Document, frozen=True, kw_only=True):
    """One entry of an Application's history."""

    revision: int  # number of the version, as undo takes it
    generation: int = 0  # of the Application then
    time: str = ""  # when it was written
    user: str = ""  # who wrote it
    cause: str = ""  # why, where it was said
    healthy: bool = False  # it was once ready on every cluster in reach: undo goes back to such a one


class RolloutLevel(Document, frozen=True, kw_only=True):
    """How far a version has come at one controller further down."""

    path: list[str]  # names from the reporter down to it
    phase: str = ""  # as in RolloutStatus
    wave: int = 0  # the one that is under way, from 1
    waves: int = 0  # how many there are
    updated: int = 0  # clusters that were given this version
    clusters: int = 0  # of so many
    message: str = ""  # a sentence for people


class RolloutStatus(Document, frozen=True, kw_only=True):
    """How far a version has come. Clusters are the direct children of who reports, and its own cluster."""

    revision: str = ""  # digest of the components that go out
    phase: str = ""  # Progressing, Paused (it waits for somebody), Complete, Failed
    wave: int = 0  # the one that is under way, from 1
    waves: int = 0  # how many there are
    updated: int = 0  # clusters that were given this version
    clusters: int = 0  # of so many
    skipped: list[str] = field(default_factory=list)  # out of reach: they follow when they are back; at most 20
    reason: str = ""  # a word for programs
    message: str = ""  # a sentence for people
    below: list[RolloutLevel] = field(default_factory=list)  # the same of the controllers below; the 20 that are least far


class ApplicationStatus(Document, frozen=True, kw_only=True):
    observed_generation: int = 0  # the generation that this status answers
    phase: str = ""  # Pending, Progressing, Running, Degraded, Withdrawing; Unknown when its origin is out of reach
    desired: int = 0  # replicas that are wanted, over all components
    ready: int = 0  # replicas that are ready
    updated: int = 0  # replicas of the newest version
    unplaced: int = 0  # replicas that no cluster could take
    components: list[ComponentStatus] = field(default_factory=list)  # the same for each component
    clusters: list[ClusterRow] = field(default_factory=list)  # the worst 20
    cluster_count: int = 0  # how many clusters run it
    conditions: list[Condition] = field(default_factory=list)  # what is so, and since when
    history: list[Revision] = field(default_factory=list)  # earlier versions, for undo
    rollout: RolloutStatus | None = None  # how far the newest version has come, where spec.rollout is set
    withdrawing: list[str] = field(default_factory=list)  # names of clusters that have not confirmed yet


class Application(Resource, frozen=True, kw_only=True):
    kind: str = "Application"
    spec: ApplicationSpec
    status: ApplicationStatus = ApplicationStatus()


class ApplicationReference(Document, frozen=True, kw_only=True):
    """An Application as seen from elsewhere in the tree."""

    uid: str
    name: str
    namespace: str = ""
    origin: str = ""  # uid of the cluster where it was written
    origin_name: str = ""
    generation: int = 0


class SubtreeApplicationSpec(Document, frozen=True, kw_only=True):
    application: ApplicationReference
    components: list[Component] = field(default_factory=list)
    placement: Placement = Placement()


class SubtreeApplication(Resource, frozen=True, kw_only=True):
    kind: str = "SubtreeApplication"
    spec: SubtreeApplicationSpec
    status: ApplicationStatus = ApplicationStatus()


# --- Work: what one subtree or cluster must run ---


class Share(Document, frozen=True, kw_only=True):
    allotter: str  # cluster uid
    id: int


class WorkReference(Document, frozen=True, kw_only=True):
    kind: Literal["Model", "ConfigMap", "Secret"]
    name: str  # as the application names it
    uid: str


class Lent(Document, frozen=True, kw_only=True):
    """Of a branch's share, what its allotter gives directly to a cluster below it, whose home parent it could not reach."""

    cluster: str  # uid
    allotter: str  # uid of the ancestor that serves it
    id: int  # of the share that it was given
    components: dict[str, int] = field(default_factory=dict)  # component → replicas


class Transfer(Document, frozen=True, kw_only=True):
    """Of a share, what a cluster takes along that a person gives another parent (`banyan move`)."""

    move: str  # id
    cluster: str  # uid
    out: list[str] = field(default_factory=list)  # uids from below the common ancestor down to it, on the way that it leaves
    into: list[str] = field(default_factory=list)  # and on its new way
    components: dict[str, int] = field(default_factory=dict)  # component → replicas
    after: int = 0  # the newest share that it was given before


class WorkSpec(Document, frozen=True, kw_only=True):
    application: ApplicationReference
    cluster: str
    shares: list[Share] = field(default_factory=list)  # the chain, origin first
    components: list[Component] = field(default_factory=list)
    priority: Priority = 0  # of the Application
    preemption_policy: Literal["PreemptLowerPriority", "Never"] = "PreemptLowerPriority"
    placement: Placement = Placement()
    rollout: Rollout | None = None
    revision: str = ""  # digest of the version, as its origin computed it; empty where nothing goes out in waves
    resume: str = ""  # changes whenever somebody says that what waits shall go on
    apply: ApplyPolicy = ApplyPolicy()
    references: list[WorkReference] = field(default_factory=list)
    labels: Labels = field(default_factory=dict)  # of the Application: what a site's policy may look at
    lent: list[Lent] = field(default_factory=list)  # of this share, what clusters below hold directly while they cannot be reached
    transfers: list[Transfer] = field(default_factory=list)  # what clusters below took along, or brought, that were moved; the last few
    overrides: list[Override] = field(default_factory=list)  # for those below; `names` are uids as far as the sender could tell
    overridden: list[str] = field(default_factory=list)  # overrides that these components are the result of
    unpatched: dict[str, str] = field(default_factory=dict)  # component → why its overrides could not be applied: it is as it was before


class Work(Resource, frozen=True, kw_only=True):
    kind: str = "Work"
    spec: WorkSpec


class WorkStatusSpec(Document, frozen=True, kw_only=True):
    application: ApplicationReference
    cluster: str  # uid of the reporter


class WorkStatusStatus(Document, frozen=True, kw_only=True):
    version: int = 0  # the share that this answers; 0 while more than that share still runs
    seen: int = 0  # the newest share that this takes into account, whether or not it is answered
    transferred: list[str] = field(default_factory=list)  # moves that it takes into account
    components: list[ComponentStatus] = field(default_factory=list)
    clusters: list[ClusterRow] = field(default_factory=list)  # the worst 20
    cluster_count: int = 0
    rollout: RolloutStatus | None = None


class WorkStatus(Resource, frozen=True, kw_only=True):
    kind: str = "WorkStatus"
    spec: WorkStatusSpec
    status: WorkStatusStatus = WorkStatusStatus()
