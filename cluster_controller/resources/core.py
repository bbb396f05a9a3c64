"""The kinds of core/v1 that Banyan serves, with the fields that it fills or acts on."""

from msgspec import field

from cluster_controller.resources.cluster import Taint
from cluster_controller.resources.meta import Condition, Document, ObjectReference, Resource


class Core(Resource, frozen=True, kw_only=True):
    api_version: str = "v1"


class ConfigMap(Core, frozen=True, kw_only=True):
    kind: str = "ConfigMap"
    data: dict[str, str] = field(default_factory=dict)
    binary_data: dict[str, str] = field(default_factory=dict)  # base64
    immutable: bool = False


class Secret(Core, frozen=True, kw_only=True):
    kind: str = "Secret"
    data: dict[str, str] = field(default_factory=dict)  # base64
    string_data: dict[str, str] = field(default_factory=dict)  # merged into data when written; never stored
    type: str = "Opaque"
    immutable: bool = False


class NamespaceSpec(Document, frozen=True, kw_only=True):
    finalizers: list[str] = field(default_factory=list)


class NamespaceStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Active, Terminating
    conditions: list[Condition] = field(default_factory=list)


class Namespace(Core, frozen=True, kw_only=True):
    kind: str = "Namespace"
    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()


class EventSource(Document, frozen=True, kw_only=True):
    component: str = ""
    host: str = ""


class EventSeries(Document, frozen=True, kw_only=True):
    count: int = 0
    last_observed_time: str | None = None


class Event(Core, frozen=True, kw_only=True):
    kind: str = "Event"
    involved_object: ObjectReference = ObjectReference()
    reason: str = ""
    message: str = ""
    source: EventSource = EventSource()
    first_timestamp: str | None = None
    last_timestamp: str | None = None
    count: int = 0
    type: str = ""  # Normal, Warning
    event_time: str | None = None
    series: EventSeries | None = None
    action: str = ""
    related: ObjectReference | None = None
    reporting_component: str = ""
    reporting_instance: str = ""


class NodeAddress(Document, frozen=True, kw_only=True):
    type: str
    address: str


class NodeCondition(Document, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_heartbeat_time: str | None = None
    last_transition_time: str | None = None


class NodeInfo(Document, frozen=True, kw_only=True):
    machine_id: str = ""
    system_uuid: str = field(default="", name="systemUUID")
    boot_id: str = field(default="", name="bootID")
    kernel_version: str = ""
    os_image: str = ""
    container_runtime_version: str = ""
    kubelet_version: str = ""
    kube_proxy_version: str = ""
    operating_system: str = ""
    architecture: str = ""


class NodeSpec(Document, frozen=True, kw_only=True):
    unschedulable: bool = False
    taints: list[Taint] = field(default_factory=list)


class NodeStatus(Document, frozen=True, kw_only=True):
    capacity: dict[str, str] = field(default_factory=dict)
    allocatable: dict[str, str] = field(default_factory=dict)
    conditions: list[NodeCondition] = field(default_factory=list)
    addresses: list[NodeAddress] = field(default_factory=list)
    node_info: NodeInfo = NodeInfo()


class Node(Core, frozen=True, kw_only=True):
    kind: str = "Node"
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ContainerPort(Document, frozen=True, kw_only=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Document, frozen=True, kw_only=True):
    name: str
    image: str = ""
    command: list[str] = field(default_factory=list)
    ports: list[ContainerPort] = field(default_factory=list)


class PodSpec(Document, frozen=True, kw_only=True):
    containers: list[Container] = field(default_factory=list)
    node_name: str = ""
    restart_policy: str = "Always"
    termination_grace_period_seconds: int = 30


class ContainerStateRunning(Document, frozen=True, kw_only=True):
    started_at: str | None = None


class ContainerStateWaiting(Document, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""


class ContainerStateTerminated(Document, frozen=True, kw_only=True):
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    started_at: str | None = None
    finished_at: str | None = None


class ContainerState(Document, frozen=True, kw_only=True):
    running: ContainerStateRunning | None = None
    waiting: ContainerStateWaiting | None = None
    terminated: ContainerStateTerminated | None = None


class ContainerStatus(Document, frozen=True, kw_only=True):
    name: str
    ready: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = field(default="", name="imageID")
    container_id: str = field(default="", name="containerID")
    started: bool = False
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodCondition(Document, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None


class PodStatus(Document, frozen=True, kw_only=True):
    phase: str = ""  # Pending, Running, Failed, Succeeded, Unknown
    reason: str = ""
    message: str = ""
    conditions: list[PodCondition] = field(default_factory=list)
    container_statuses: list[ContainerStatus] = field(default_factory=list)
    start_time: str | None = None
    host_ip: str = field(default="", name="hostIP")
    pod_ip: str = field(default="", name="podIP")
    qos_class: str = ""


class Pod(Core, frozen=True, kw_only=True):
    """One running instance; ``metadata.ownerReferences`` and labels name its application, component and revision."""

    kind: str = "Pod"
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()
