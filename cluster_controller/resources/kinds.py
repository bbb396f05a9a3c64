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
    ClusterRow,
    Component,
    ComponentStatus,
    EnvFrom,
    EnvSource,
    EnvVar,
    Exec,
    Expose,
    FileMount,
    FileSource,
    HttpGet,
    KeySelector,
    LocalReference,
    ModelReference,
    OnUnreachable,
    Placement,
    Probe,
    Resources,
    Revision,
    Rollout,
    Share,
    SubtreeApplication,
    SubtreeApplicationSpec,
    TcpSocket,
    Toleration,
    VolumeMount,
    Work,
    WorkReference,
    WorkSpec,
    WorkStatus,
    WorkStatusSpec,
    WorkStatusStatus,
)
from cluster_controller.resources.cluster import (
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
    ResourceSums,
    Revocation,
    RevocationSpec,
    Taint,
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

# --- Model ---


class ModelFile(Document, frozen=True, kw_only=True):
    path: str
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0, le=2**50)]


class ModelVersion(Document, frozen=True, kw_only=True):
    name: str
    files: list[ModelFile]
    runtime: Literal["onnx"] = "onnx"
    variants: list[Any] | None = None
    description: str = ""
    licence: str = ""
    source: str = ""


class ModelSpec(Document, frozen=True, kw_only=True):
    versions: list[ModelVersion]


class ModelVersionStatus(Document, frozen=True, kw_only=True):
    name: str
    present: bool = False
    missing: list[str] = field(default_factory=list)  # sha256 of files whose blobs are not here
    reason: str = ""


class ModelStatus(Document, frozen=True, kw_only=True):
    versions: list[ModelVersionStatus] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)


class Model(Resource, frozen=True, kw_only=True):
    kind: str = "Model"
    spec: ModelSpec
    status: ModelStatus = ModelStatus()


# --- people and joining ---


class JoinTokenSpec(Document, frozen=True, kw_only=True):
    parent: str = ""  # name of the cluster that shall be joined; empty: this one
    expires_after_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] = 86_400
    approve: bool = False  # a person has to approve the cluster that uses it
    replace: str = ""  # name of a cluster whose machine died
    cluster_name: str = ""  # the only name that may join with it
    labels: Labels = field(default_factory=dict)


class JoinTokenStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Open, Used, Expired, Revoked
    token: str = ""  # shown once, in the answer to the create; never stored
    digest: str = ""  # sha256 of the secret
    expires: str = ""
    used_by: str = ""
    used_at: str = ""


class JoinToken(Resource, frozen=True, kw_only=True):
    kind: str = "JoinToken"
    spec: JoinTokenSpec = JoinTokenSpec()
    status: JoinTokenStatus = JoinTokenStatus()


class GrantSpec(Document, frozen=True, kw_only=True):
    role: Literal["view", "edit", "admin"]
    namespace: str = ""  # empty: all


class UserSpec(Document, frozen=True, kw_only=True):
    grants: list[GrantSpec] = field(default_factory=list)
    expires_after_seconds: Annotated[int, Meta(ge=1, le=315_360_000)] = 31_536_000
    credential: Literal["certificate", "token"] = "certificate"
    revoked: bool = False


class UserStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Active, Expired, Revoked
    credential_id: str = ""
    digest: str = ""  # sha256 of a bearer token
    expires: str = ""
    certificate: str = ""  # PEM; with key or token shown once, in the answer to the create; never stored
    key: str = ""
    token: str = ""


class User(Resource, frozen=True, kw_only=True):
    kind: str = "User"
    spec: UserSpec = UserSpec()
    status: UserStatus = UserStatus()


# Known fields that nothing acts on yet: (kind, dotted path, None or the values that are refused, what to do instead).
UNSERVED: tuple[tuple[str, str, tuple[object, ...] | None, str], ...] = (
    ("Application", "spec.components[].container", None, "use model or command"),
    ("Application", "spec.components[].manifests", None, "use model or command"),
    ("Application", "spec.components[].helm", None, "use model or command"),
    ("Application", "spec.placement.onUnreachable.action", ("Replace",), "use Keep"),
    ("Application", "spec.rollout", None, "leave it out: a change goes to all clusters at once"),
    ("Application", "spec.placement.tolerations[].tolerationSeconds", None, "leave it out: nothing is evicted by a taint yet"),
    ("Model", "spec.versions[].variants", None, "list the files of one version for all architectures"),
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "UNSERVED",
    "VERSION",
    "Application",
    "ApplicationReference",
    "ApplicationSpec",
    "ApplicationStatus",
    "Cluster",
    "ClusterFacts",
    "ClusterOverlay",
    "ClusterOverlaySpec",
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
    "ContainerPort",
    "ContainerState",
    "ContainerStateRunning",
    "ContainerStateTerminated",
    "ContainerStateWaiting",
    "ContainerStatus",
    "Core",
    "Count",
    "Document",
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
    "OwnerReference",
    "Placement",
    "Pod",
    "PodCondition",
    "PodSpec",
    "PodStatus",
    "Port",
    "PositiveSeconds",
    "Probe",
    "Quantity",
    "Resource",
    "ResourceSums",
    "Resources",
    "Revision",
    "Revocation",
    "RevocationSpec",
    "Rollout",
    "Seconds",
    "Secret",
    "Share",
    "SubtreeApplication",
    "SubtreeApplicationSpec",
    "Taint",
    "TcpSocket",
    "Toleration",
    "User",
    "UserSpec",
    "UserStatus",
    "VolumeMount",
    "Work",
    "WorkReference",
    "WorkSpec",
    "WorkStatus",
    "WorkStatusSpec",
    "WorkStatusStatus",
]
