"""What a controller and the adapter of one cluster say to each other.

The contract is level-triggered: the controller states the full set of what should run here, then changes to it; the shim
states what it sees. Both are idempotent by (uid, revision): applying the same Desired twice does nothing the second time.
`process` implements this in the controller's own process; other shims speak `banyan.shim.v1` over gRPC and are adapted to
the same protocol. Units: cpu in millicores, memory and sizes in bytes, time in seconds on the boot-time clock.
"""

from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from typing import Protocol

from msgspec import Struct, field


class Resources(Struct, frozen=True):
    """What one instance asks for. Zero means: nothing asked, nothing limited."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: dict[str, int] = field(default_factory=dict)


class Probe(Struct, frozen=True):
    """How an instance is asked whether it lives or is ready. Exactly one of http_path, tcp and command is set."""

    http_path: str = ""
    tcp: bool = False
    command: tuple[str, ...] = ()
    port: int = 0  # 0: the component's own exposed socket
    initial_delay_seconds: float = 0.0
    period_seconds: float = 10.0
    timeout_seconds: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1


class File(Struct, frozen=True):
    """A file that the instance finds under its working folder (relative path) with this content."""

    path: str
    content: bytes
    mode: int = 0o644
    secret: bool = False  # never logged, 0600 on disk


class Volume(Struct, frozen=True):
    """A folder that survives restarts, versions and moves of instances on this cluster, bound at ``path``."""

    name: str
    path: str


class ModelFile(Struct, frozen=True):
    path: str  # name below the model folder, for instance "model.onnx"
    sha256: str
    size: int


class ModelRef(Struct, frozen=True):
    """A model whose files the controller has put, verified, below ``folder`` before it appears in a Desired."""

    name: str
    version: str
    uid: str
    folder: str
    files: tuple[ModelFile, ...] = ()
    runtime: str = "onnx"


class Serving(Struct, frozen=True):
    """How the worker serves a model. 0 and False: as it decides itself."""

    python_steps: bool = False  # run the Python code that the model's pipeline brings
    no_batching: bool = False
    max_batch: int = 0  # rows of one request
    queue: int = 0  # requests that may wait
    runs: int = 0  # at once
    threads: int = 0  # inside one run

    def arguments(self) -> list[str]:
        """For the worker's command line (`edge_ai.serve --help`)."""
        given = [f"--{name.replace('_', '-')}" for name in ("python_steps", "no_batching") if getattr(self, name)]
        for name in ("max_batch", "queue", "runs", "threads"):
            if number := getattr(self, name):
                given += [f"--{name.replace('_', '-')}", str(number)]
        return given


class Chart(Struct, frozen=True):
    """A Helm chart archive that the controller has put, verified, at ``path`` before it appears in a Desired."""

    path: str
    sha256: str
    values: bytes = b""  # a JSON object, laid over the chart's own values
    ignore_hooks: bool = False  # leave hooks out; otherwise a chart that has some is an error


class Toleration(Struct, frozen=True):
    """As in Kubernetes: which taint of a node is no hindrance."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class Component(Struct, frozen=True, kw_only=True):
    """One part of an application on this cluster: exactly one of ``model``, ``command`` alone, ``image``, ``manifests`` and ``chart``."""

    name: str
    replicas: int
    revision: str  # hash of everything below; instances of another revision are replaced
    model: ModelRef | None = None
    serving: Serving | None = None  # of the model
    command: tuple[str, ...] = ()
    image: str = ""  # a container image; ``command`` and ``args`` run in it, or what the image says
    args: tuple[str, ...] = ()
    manifests: tuple[bytes, ...] = ()  # objects of the member's own API, a JSON document each
    chart: Chart | None = None
    env: dict[str, str] = field(default_factory=dict)
    secret_env: dict[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    volumes: tuple[Volume, ...] = ()
    resources: Resources = Resources()
    port: int = 0  # site-local TCP port, stable across restarts and swaps; 0: not exposed
    takes_socket: bool = True  # accepts LISTEN_FDS; a command that cannot gets one replica and a stop-start upgrade
    liveness: Probe | None = None
    readiness: Probe | None = None
    grace_seconds: float = 30.0  # between SIGTERM and SIGKILL
    node: str = ""  # a named node, or anywhere
    node_labels: dict[str, str] = field(default_factory=dict)  # only nodes that have all of them
    architecture: str = ""  # only nodes of this one, as in kubernetes.io/arch
    tolerations: tuple[Toleration, ...] = ()  # nodes with these taints too


class Work(Struct, frozen=True, kw_only=True):
    """One application as this cluster shall run it. ``uid`` is the application's; names may collide between origins."""

    uid: str
    name: str
    namespace: str
    origin: str  # name of the cluster where the application was written
    version: int  # counts changes of this Work
    components: tuple[Component, ...] = ()
    # How objects are kept in a member that has an API of its own; a process cluster has nothing to ask.
    report_drift: bool = False  # say what somebody changed by hand, instead of setting it right
    force_conflicts: bool = False  # take fields that another manager declares, instead of reporting the conflict
    recreate: bool = False  # a change that the API allows only to a new object deletes the old one, instead of being an error


class Desired(Struct, frozen=True):
    """``full``: these are all; what is not named is stopped. Otherwise ``works`` replace their uid and ``removed`` go."""

    works: tuple[Work, ...] = ()
    removed: tuple[str, ...] = ()
    full: bool = False


class Phase(StrEnum):
    PENDING = "Pending"
    STARTING = "Starting"
    RUNNING = "Running"
    BACKOFF = "BackOff"
    STOPPING = "Stopping"
    FAILED = "Failed"


class Ended(Struct, frozen=True, kw_only=True):
    """How an instance's last run ended."""

    reason: str = ""  # Error, Completed, OOMKilled, StartFailed, Unhealthy, Lost, Rebooted: a word for programs
    message: str = ""
    exit_code: int = -1  # 128 + N after signal N; -1: not known
    last_line: str = ""  # of its log: printable characters, cut to a few hundred
    started_unix: float = 0.0  # wall clock, for people only
    finished_unix: float = 0.0


class Instance(Struct, frozen=True, kw_only=True):
    """One running copy (a process, a pod)."""

    id: str  # unique on this cluster, a DNS label: NAME-COMPONENT-SUFFIX
    component: str
    revision: str
    phase: Phase
    ready: bool = False
    restarts: int = 0
    reason: str = ""  # why it is not ready now; CrashLoopBackOff when it ends soon after each start
    message: str = ""
    node: str = ""
    pid: int = 0
    started_unix: float = 0.0  # wall clock, for people only
    cpu_millis: int = -1  # usage; -1: not known
    memory_bytes: int = -1
    ended: Ended | None = None  # the run before this one; None: there was none


class ObservedComponent(Struct, frozen=True, kw_only=True):
    name: str
    desired: int
    ready: int
    updated: int  # ready instances of the wanted revision
    reason: str = ""
    message: str = ""
    port: int = 0  # the site port that really listens; 0 when none


class ObservedWork(Struct, frozen=True, kw_only=True):
    uid: str
    version: int  # the Work version that this reflects
    components: tuple[ObservedComponent, ...] = ()
    instances: tuple[Instance, ...] = ()


class Node(Struct, frozen=True, kw_only=True):
    """A machine. ``allocatable`` is what applications may use; ``used`` is measured, not requested; -1: not known."""

    name: str
    architecture: str  # as Go names it: amd64, arm64, riscv64
    os: str = "linux"
    kernel: str = ""
    boot_id: str = ""
    ready: bool = True
    cpu_millis: int = 0
    memory_bytes: int = 0
    allocatable_cpu_millis: int = 0
    allocatable_memory_bytes: int = 0
    used_cpu_millis: int = -1
    used_memory_bytes: int = -1
    accelerators: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class Observed(Struct, frozen=True):
    """``full``: all that runs here; otherwise changes by uid. ``nodes`` is the whole list whenever it is not None."""

    works: tuple[ObservedWork, ...] = ()
    removed: tuple[str, ...] = ()
    nodes: tuple[Node, ...] | None = None
    full: bool = False


class Description(Struct, frozen=True):
    kind: str  # process, kubernetes, k3s or a third party's own
    version: str
    contract: str = "banyan.shim.v1"
    component_kinds: tuple[str, ...] = ("model", "command")
    limits: str = ""  # how cpu and memory are limited: "cgroup-v2", "cgroup-v1", "rlimit", "none"


class OpenTarget(Struct, frozen=True):
    """What a byte stream shall lead to."""

    kind: str  # "application" | "logs" | "api"
    uid: str = ""  # application uid
    component: str = ""
    instance: str = ""
    options: dict[str, str] = field(default_factory=dict)  # logs: follow, tailLines, sinceSeconds, previous, limitBytes, timestamps


class ByteStream(Protocol):
    """A duplex byte stream; the same shape as a tunnel stream, so that the two are spliced by one function."""

    async def read(self, limit: int = 65536) -> bytes:
        """Up to ``limit`` bytes; b"" once the other side has closed its direction."""
        ...

    async def write(self, data: bytes) -> None:
        """Returns when ``data`` is taken over; waits while the other side does not read."""
        ...

    async def close_write(self) -> None: ...

    def abort(self, reason: str = "") -> None: ...


class Shim(Protocol):
    """Implemented by every kind of cluster. Errors are `ShimError`s; a lost shim is reported, never taken for an empty cluster."""

    async def describe(self) -> Description: ...

    def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
        """Runs until ``desired`` ends. The first Desired is full. The first Observed is full; later ones come on change."""
        ...

    async def open(self, target: OpenTarget) -> ByteStream: ...


class ShimError(Exception):
    """The shim cannot do what was asked; the message names the thing and the remedy."""


def component_kind(component: Component) -> str:
    """As `Description.component_kinds` names them."""
    if component.model is not None:
        return "model"
    if component.image:
        return "container"
    if component.manifests:
        return "manifests"
    return "helm" if component.chart is not None else "command"


Labels = Mapping[str, str]
