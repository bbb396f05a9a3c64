"""Every kind's document as a typed struct: the one place that says which fields exist.

Reading is lenient (unknown fields are skipped, so that a program of the next version can be a neighbour: ARCHITECTURE law 10);
what people write is checked strictly by `resources.validate`, which walks these same structs and refuses every field that is
not here, and every field of `UNSERVED`, which is known but which nothing acts on yet.

Documents are stored as the writer's bytes; these structs are for reading them and for building the documents that controllers
write (`msgspec.json.encode(struct)`; fields at their default are left out). Timestamps are RFC 3339 strings.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from cluster_controller.resources.application import (
    Application,
    ApplicationReference,
    ApplicationSpec,
    ApplicationStatus,
    ApplyPolicy,
    Chart,
    ClusterRow,
    Component,
    ComponentStatus,
    ContainerImage,
    EnvFrom,
    EnvSource,
    EnvVar,
    Exec,
    Expose,
    FileMount,
    FileSource,
    Gate,
    HttpGet,
    KeySelector,
    Lent,
    LocalReference,
    ModelReference,
    OnUnreachable,
    Override,
    OverrideClusters,
    Placement,
    Preemptor,
    Probe,
    Rebalance,
    Resources,
    Revision,
    Rollout,
    RolloutLevel,
    RolloutStatus,
    Series,
    Serving,
    Share,
    SubtreeApplication,
    SubtreeApplicationSpec,
    TcpSocket,
    Toleration,
    Transfer,
    VolumeMount,
    Wave,
    Work,
    WorkReference,
    WorkSpec,
    WorkStatus,
    WorkStatusSpec,
    WorkStatusStatus,
)
from cluster_controller.resources.cluster import (
    MOST_USERS,
    Cluster,
    ClusterFacts,
    ClusterOverlay,
    ClusterOverlaySpec,
    ClusterSpec,
    ClusterState,
    ClusterStatus,
    ClusterStatusSpec,
    ClusterStatusStatus,
    LabelSource,
    ModelPresence,
    NodeClass,
    ReplicaClass,
    ResourceSums,
    Revocation,
    RevocationSpec,
    Taint,
    UserPoint,
)
from cluster_controller.resources.core import (
    ConfigMap,
    Container,
    ContainerPort,
    ContainerState,
    ContainerStateRunning,
    ContainerStateTerminated,
    ContainerStateWaiting,
    ContainerStatus,
    Core,
    Event,
    EventSeries,
    EventSource,
    Namespace,
    NamespaceSpec,
    NamespaceStatus,
    Node,
    NodeAddress,
    NodeCondition,
    NodeInfo,
    NodeSpec,
    NodeStatus,
    Pod,
    PodCondition,
    PodSpec,
    PodStatus,
    Secret,
)
from cluster_controller.resources.meta import (
    API_VERSION,
    GROUP,
    VERSION,
    Condition,
    Count,
    Document,
    Labels,
    LabelSelector,
    LabelSelectorRequirement,
    Metadata,
    ObjectReference,
    OwnerReference,
    Port,
    PositiveSeconds,
    Quantity,
    Resource,
    Seconds,
)
from cluster_controller.resources.placing import (
    HOURLY_COST,
    Affinity,
    AntiAffinity,
    ApplicationTerm,
    ClusterPreference,
    CostWish,
    Division,
    DivisionWeight,
    LatencyWish,
    SpreadConstraint,
)
from cluster_controller.resources.policy import Caps, Entry, SitePolicy, SitePolicySpec, Subject, Veto

# --- Model ---


class ModelFile(Document, frozen=True, kw_only=True):
    path: str  # relative, as the runtime shall find it
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]  # of the content, in hexadecimal; its address
    size: Annotated[int, Meta(ge=0, le=2**50)]  # bytes


class ModelVersion(Document, frozen=True, kw_only=True):
    name: str  # unique within the model; what is published under it never changes
    files: list[ModelFile]  # all that this version consists of
    runtime: Literal["onnx", "helm"] = "onnx"  # what can run it: the inference worker, or helm for a chart's archive
    variants: list[Any] | None = None  # not served yet
    description: str = ""  # a line for people
    licence: str = ""  # of the model
    source: str = ""  # where it comes from


class ModelSpec(Document, frozen=True, kw_only=True):
    versions: list[ModelVersion]  # oldest first; an Application that names none gets the last


class ModelVersionStatus(Document, frozen=True, kw_only=True):
    name: str  # of the version
    present: bool = False  # all its files are at this controller
    missing: list[str] = field(default_factory=list)  # sha256 of files whose blobs are not here
    reason: str = ""  # why it cannot be served


class ModelStatus(Document, frozen=True, kw_only=True):
    versions: list[ModelVersionStatus] = field(default_factory=list)  # what is here of each
    conditions: list[Condition] = field(default_factory=list)  # what is so, and since when


class Model(Resource, frozen=True, kw_only=True):
    kind: str = "Model"
    spec: ModelSpec
    status: ModelStatus = ModelStatus()


# --- people and joining ---


class JoinTokenSpec(Document, frozen=True, kw_only=True):
    parent: str = ""  # name of the cluster that shall be joined; empty: this one
    expires_after_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] = 86_400  # by the parent's clock
    approve: bool = False  # a person has to approve the cluster that uses it
    replace: str = ""  # name of a cluster whose machine died
    cluster_name: str = ""  # the only name that may join with it
    labels: Labels = field(default_factory=dict)  # that the parent gives the new cluster


class JoinTokenStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Open, Used, Expired, Revoked
    token: str = ""  # shown once, in the answer to the create; never stored
    digest: str = ""  # sha256 of the secret
    expires: str = ""  # when
    parent: str = ""  # name of the cluster that made it, which may be joined with it
    used_by: str = ""  # uid of the cluster that joined with it
    used_by_name: str = ""  # its name
    used_at: str = ""  # when


class JoinToken(Resource, frozen=True, kw_only=True):
    kind: str = "JoinToken"
    spec: JoinTokenSpec = JoinTokenSpec()
    status: JoinTokenStatus = JoinTokenStatus()


class GrantSpec(Document, frozen=True, kw_only=True):
    role: Literal["view", "edit", "admin"]  # view: read; edit: also change, and read Secrets; admin: also clusters and users
    namespace: str = ""  # empty: all


class UserSpec(Document, frozen=True, kw_only=True):
    grants: list[GrantSpec] = field(default_factory=list)  # what they may; at least one
    expires_after_seconds: Annotated[int, Meta(ge=1, le=315_360_000)] = 31_536_000  # of the credential
    credential: Literal["certificate", "token"] = "certificate"  # a client certificate, or a bearer token
    revoked: bool = False  # true ends it for good, everywhere below


class UserStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Active, Expired, Revoked
    credential_id: str = ""  # what a revocation names
    digest: str = ""  # sha256 of a bearer token
    expires: str = ""  # of the credential
    certificate: str = ""  # PEM; with key or token shown once, in the answer to the create; never stored
    key: str = ""  # PEM, shown once
    token: str = ""  # shown once


class User(Resource, frozen=True, kw_only=True):
    kind: str = "User"
    spec: UserSpec = UserSpec()
    status: UserStatus = UserStatus()


DRAIN = "banyan.dev/drain"  # key of the taint of a cluster that is being drained: it holds for the whole branch
DRAIN_FORCED = "force"  # its value when what has no room elsewhere goes too

# Reasons in a status that pass by themselves: where something else is broken, that is told.
WAITS = "WaitsForDependency"  # it starts when what it depends on is ready
UNDER_WAY = frozenset({"Starting", "Progressing", WAITS})
MOVES = "moves"  # word of `facts.understands`: clusters may be moved to another parent by way of it
OVERRIDES = "overrides"  # word of `facts.understands`: it applies and passes on the overrides of an Application
OVERRIDE_FAILED = "OverrideFailed"  # an override cannot be applied there: what ran before runs on
PINNED = "Pinned"  # well, and kept in another version by the policy of a site

# Known fields that nothing acts on yet: (kind, dotted path, None or the values that are refused, what to do instead).
UNSERVED: tuple[tuple[str, str, tuple[object, ...] | None, str], ...] = (
    ("Model", "spec.versions[].variants", None, "list the files of one version for all architectures"),
)

__all__ = [
    "API_VERSION",
    "DRAIN",
    "DRAIN_FORCED",
    "GROUP",
    "HOURLY_COST",
    "MOST_USERS",
    "MOVES",
    "OVERRIDES",
    "OVERRIDE_FAILED",
    "PINNED",
    "UNDER_WAY",
    "UNSERVED",
    "VERSION",
    "WAITS",
    "Affinity",
    "AntiAffinity",
    "Application",
    "ApplicationReference",
    "ApplicationSpec",
    "ApplicationStatus",
    "ApplicationTerm",
    "ApplyPolicy",
    "Caps",
    "Chart",
    "Cluster",
    "ClusterFacts",
    "ClusterOverlay",
    "ClusterOverlaySpec",
    "ClusterPreference",
    "ClusterRow",
    "ClusterSpec",
    "ClusterState",
    "ClusterStatus",
    "ClusterStatusSpec",
    "ClusterStatusStatus",
    "Component",
    "ComponentStatus",
    "Condition",
    "ConfigMap",
    "Container",
    "ContainerImage",
    "ContainerPort",
    "ContainerState",
    "ContainerStateRunning",
    "ContainerStateTerminated",
    "ContainerStateWaiting",
    "ContainerStatus",
    "Core",
    "CostWish",
    "Count",
    "Division",
    "DivisionWeight",
    "Document",
    "Entry",
    "EnvFrom",
    "EnvSource",
    "EnvVar",
    "Event",
    "EventSeries",
    "EventSource",
    "Exec",
    "Expose",
    "FileMount",
    "FileSource",
    "Gate",
    "GrantSpec",
    "HttpGet",
    "JoinToken",
    "JoinTokenSpec",
    "JoinTokenStatus",
    "KeySelector",
    "LabelSelector",
    "LabelSelectorRequirement",
    "LabelSource",
    "Labels",
    "LatencyWish",
    "Lent",
    "LocalReference",
    "Metadata",
    "Model",
    "ModelFile",
    "ModelPresence",
    "ModelReference",
    "ModelSpec",
    "ModelStatus",
    "ModelVersion",
    "ModelVersionStatus",
    "Namespace",
    "NamespaceSpec",
    "NamespaceStatus",
    "Node",
    "NodeAddress",
    "NodeClass",
    "NodeCondition",
    "NodeInfo",
    "NodeSpec",
    "NodeStatus",
    "ObjectReference",
    "OnUnreachable",
    "Override",
    "OverrideClusters",
    "OwnerReference",
    "Placement",
    "Pod",
    "PodCondition",
    "PodSpec",
    "PodStatus",
    "Port",
    "PositiveSeconds",
    "Preemptor",
    "Probe",
    "Quantity",
    "Rebalance",
    "ReplicaClass",
    "Resource",
    "ResourceSums",
    "Resources",
    "Revision",
    "Revocation",
    "RevocationSpec",
    "Rollout",
    "RolloutLevel",
    "RolloutStatus",
    "Seconds",
    "Secret",
    "Series",
    "Serving",
    "Share",
    "SitePolicy",
    "SitePolicySpec",
    "SpreadConstraint",
    "Subject",
    "SubtreeApplication",
    "SubtreeApplicationSpec",
    "Taint",
    "TcpSocket",
    "Toleration",
    "Transfer",
    "User",
    "UserPoint",
    "UserSpec",
    "UserStatus",
    "Veto",
    "VolumeMount",
    "Wave",
    "Work",
    "WorkReference",
    "WorkSpec",
    "WorkStatus",
    "WorkStatusSpec",
    "WorkStatusStatus",
]
