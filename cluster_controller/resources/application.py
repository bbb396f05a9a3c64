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


class ModelReference(Document, frozen=True, kw_only=True):
    """``name`` of a Model in the Application's namespace, or NAME.ORIGIN of a delivered one."""

    name: str
    version: str = ""  # empty: the last version listed in the Model


class KeySelector(Document, frozen=True, kw_only=True):
    name: str
    key: str
    optional: bool = False


class EnvSource(Document, frozen=True, kw_only=True):
    """Exactly one is set."""

    config_map_key_ref: KeySelector | None = None
    secret_key_ref: KeySelector | None = None


class EnvVar(Document, frozen=True, kw_only=True):
    name: str
    value: str = ""
    value_from: EnvSource | None = None


class LocalReference(Document, frozen=True, kw_only=True):
    name: str
    optional: bool = False


class EnvFrom(Document, frozen=True, kw_only=True):
    """Exactly one of config_map_ref and secret_ref; every key becomes a variable."""

    prefix: str = ""
    config_map_ref: LocalReference | None = None
    secret_ref: LocalReference | None = None


class FileSource(Document, frozen=True, kw_only=True):
    name: str
    key: str = ""  # empty: every key becomes a file below the path
    optional: bool = False


class FileMount(Document, frozen=True, kw_only=True):
    """A file (or a folder of files) below the instance's working folder. Exactly one of config_map and secret."""

    path: str
    config_map: FileSource | None = None
    secret: FileSource | None = None
    mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o644


class VolumeMount(Document, frozen=True, kw_only=True):
    """A folder of the site that survives restarts, versions and moves between instances."""

    name: str
    path: str


class Resources(Document, frozen=True, kw_only=True):
    cpu: Quantity = ""
    memory: Quantity = ""
    accelerators: dict[str, Count] = field(default_factory=dict)


class HttpGet(Document, frozen=True, kw_only=True):
    path: str = "/"
    port: Port | None = None  # None: the component's exposed port


class TcpSocket(Document, frozen=True, kw_only=True):
    port: Port | None = None


class Exec(Document, frozen=True, kw_only=True):
    command: list[str]


class Probe(Document, frozen=True, kw_only=True):
    """Exactly one of http_get, tcp_socket and exec."""

    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    exec: Exec | None = None
    initial_delay_seconds: Seconds = 0
    period_seconds: PositiveSeconds = 10
    timeout_seconds: PositiveSeconds = 1
    failure_threshold: Annotated[int, Meta(ge=1, le=1000)] = 3
    success_threshold: Annotated[int, Meta(ge=1, le=1000)] = 1


class Expose(Document, frozen=True, kw_only=True):
    port: Port


class Component(Document, frozen=True, kw_only=True):
    """Exactly one of model and command (later also container, manifests, helm)."""

    name: str
    model: ModelReference | None = None
    command: list[str] = field(default_factory=list)
    container: dict[str, Any] | None = None
    manifests: list[Any] | dict[str, Any] | None = None
    helm: dict[str, Any] | None = None
    replicas: Count = 1
    resources: Resources = Resources()
    env: list[EnvVar] = field(default_factory=list)
    env_from: list[EnvFrom] = field(default_factory=list)
    files: list[FileMount] = field(default_factory=list)
    volumes: list[VolumeMount] = field(default_factory=list)
    liveness: Probe | None = None
    readiness: Probe | None = None
    expose: Expose | None = None
    termination_grace_period_seconds: Seconds = 30
    takes_socket: bool = True


class Toleration(Document, frozen=True, kw_only=True):
    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: Seconds | None = None


class OnUnreachable(Document, frozen=True, kw_only=True):
    action: Literal["Keep", "Replace"] = "Keep"
    after_seconds: Seconds = 0


class Placement(Document, frozen=True, kw_only=True):
    cluster_selector: LabelSelector | None = None
    cluster_name: str = ""
    cluster_names: list[str] = field(default_factory=list)
    node_name: str = ""
    node_selector: Labels = field(default_factory=dict)
    tolerations: list[Toleration] = field(default_factory=list)
    architecture: str = ""  # as Go names it: amd64, arm64, riscv64
    strategy: Literal["Divided", "Duplicated"] = "Divided"
    on_unreachable: OnUnreachable = OnUnreachable()


class Rollout(Document, frozen=True, kw_only=True):
    wave: Annotated[int, Meta(ge=1, le=100_000)] = 1
    pause_seconds: Seconds = 0


class ApplicationSpec(Document, frozen=True, kw_only=True):
    components: list[Component]
    placement: Placement = Placement()
    rollout: Rollout | None = None


class ComponentStatus(Document, frozen=True, kw_only=True):
    name: str
    desired: int = 0
    ready: int = 0
    updated: int = 0
    unplaced: int = 0
    reason: str = ""
    message: str = ""


class ClusterRow(Document, frozen=True, kw_only=True):
    """What one cluster does for one application."""

    cluster: str  # uid
    name: str = ""
    path: list[str] = field(default_factory=list)  # names from the reporter down to the cluster
    ready: int = 0
    desired: int = 0
    reason: str = ""
    message: str = ""
    port: int = 0
    components: dict[str, int] = field(default_factory=dict)  # replicas given, per component


class Revision(Document, frozen=True, kw_only=True):
    """One entry of an Application's history."""

    revision: int
    generation: int = 0
    time: str = ""
    user: str = ""
    cause: str = ""


class ApplicationStatus(Document, frozen=True, kw_only=True):
    observed_generation: int = 0
    phase: str = ""  # Pending, Progressing, Running, Degraded, Withdrawing
    desired: int = 0
    ready: int = 0
    updated: int = 0
    unplaced: int = 0
    components: list[ComponentStatus] = field(default_factory=list)
    clusters: list[ClusterRow] = field(default_factory=list)  # the worst 20
    cluster_count: int = 0
    conditions: list[Condition] = field(default_factory=list)
    history: list[Revision] = field(default_factory=list)
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


class WorkSpec(Document, frozen=True, kw_only=True):
    application: ApplicationReference
    cluster: str
    shares: list[Share] = field(default_factory=list)  # the chain, origin first
    components: list[Component] = field(default_factory=list)
    placement: Placement = Placement()
    rollout: Rollout | None = None
    references: list[WorkReference] = field(default_factory=list)


class Work(Resource, frozen=True, kw_only=True):
    kind: str = "Work"
    spec: WorkSpec


class WorkStatusSpec(Document, frozen=True, kw_only=True):
    application: ApplicationReference
    cluster: str  # uid of the reporter


class WorkStatusStatus(Document, frozen=True, kw_only=True):
    version: int = 0
    components: list[ComponentStatus] = field(default_factory=list)
    clusters: list[ClusterRow] = field(default_factory=list)  # the worst 20
    cluster_count: int = 0


class WorkStatus(Resource, frozen=True, kw_only=True):
    kind: str = "WorkStatus"
    spec: WorkStatusSpec
    status: WorkStatusStatus = WorkStatusStatus()
