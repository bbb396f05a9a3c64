"""What the API asks of the controller it stands on: the only way from a request into the rest of the program.

`cluster_controller.app` implements these protocols. The API itself keeps no state but its watchers: every answer comes from the
store's committed state, every change goes through one `Store.commit`.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct, field

from cluster_controller.resources.policy import Entry
from cluster_controller.resources.registry import ResourceType
from cluster_controller.resources.tables import Heard
from cluster_shim.contract import ByteStream, OpenTarget

if TYPE_CHECKING:
    from cluster_controller.store import Store, Tx
    from openapi.audit import AuditLog

Role = Literal["view", "edit", "admin"]


class Grant(Struct, frozen=True):
    role: Role
    namespace: str = ""  # "": every namespace, and what belongs to none


class User(Struct, frozen=True):
    """Who asks. ``entry`` is the uid of the controller that authenticated them."""

    name: str
    groups: tuple[str, ...] = ()
    entry: str = ""
    grants: tuple[Grant, ...] = ()


class Write(Struct):
    """One change on its way into the store. A hook may read the whole and change ``document``; it runs inside the commit.

    ``document`` is what will be stored (server-side metadata is already set). In a dry run the commit is thrown away
    afterwards, so a hook must have no effect but on ``tx`` and ``document``.
    """

    tx: "Tx"
    resource: ResourceType
    namespace: str
    name: str
    user: User
    document: dict[str, Any]
    previous: Mapping[str, Any] | None
    now: datetime
    dry_run: bool = False


class Ask(Struct, frozen=True):
    """A request to a subresource that only its room can answer (`applications/explain`, `clusters/approve` …)."""

    resource: ResourceType
    namespace: str
    name: str
    subresource: str
    method: str  # GET or POST
    query: Mapping[str, str]
    body: Mapping[str, Any]
    user: User
    dry_run: bool = False


class MemberServices(Protocol):
    """What the way to members' own APIs asks (`openapi.front.member`)."""

    audit: "AuditLog"

    def entry(self) -> Entry:
        """Who may come in here, as the site says."""
        ...

    def no_member_api(self) -> str:
        """Why this controller's own cluster has no API to lead to, as in "edge-1 WHY"; "" when it has one."""
        ...


class KindHooks(Protocol):
    """What a kind needs beyond being stored. Each may raise a BanyanError, which becomes the answer.

    The mapping returned by a prepare hook is merged into this one answer and never stored: a JoinToken's secret, a User's key.
    """

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None: ...

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None: ...

    def prepare_delete(self, write: Write) -> None:
        """Called before the object goes or, if it has finalizers, before it is marked as going."""
        ...

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        """The JSON answer; for `applications/clusters` a mapping with ``items``, which the API cuts into pages."""
        ...


class Blob(Struct):
    size: int
    chunks: AsyncIterator[bytes]


class ApiServices(Protocol):
    """Implemented by `cluster_controller.app`."""

    store: "Store"
    uid: str
    name: str
    version: str
    kinds: KindHooks

    def now(self) -> datetime:
        """The wall clock, for timestamps that people read."""
        ...

    def heard(self, uid: str) -> Heard | None:
        """Of a cluster below; None for this controller's own cluster and for one never heard of."""
        ...

    def ready(self) -> Mapping[str, str]:
        """Each readiness check by name, with an empty string or the reason why it fails."""
        ...

    def metrics(self) -> bytes:
        """The Prometheus text exposition."""
        ...

    async def open_local(self, target: OpenTarget) -> ByteStream:
        """A byte stream from this cluster's shim (logs)."""
        ...

    async def put_blob(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        """Keep exactly ``size`` bytes whose sha256 is ``digest`` (hex); InvalidInput when they are not, and nothing is kept."""
        ...

    async def get_blob(self, digest: str, offset: int = 0) -> Blob:
        """``size`` is that of the whole blob. NotFound when it is not here."""
        ...


class NoHooks:
    """Hooks of a kind that needs nothing; a base for real ones."""

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        return None

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        return None

    def prepare_delete(self, write: Write) -> None:
        return None

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        raise LookupError(ask.subresource)


class Route(Struct, frozen=True):
    """The nearest ready instance of an application."""

    cluster: str  # uid
    component: str  # "": any
    application: str = ""  # uid
    path: tuple[str, ...] = field(default_factory=tuple)  # names of the hops
    answers_once_more: bool = False  # an instance that ends still answers whoever asks on an idle connection


class RouteServices(Protocol):
    """What raw routes ask (application proxies, `clusters/NAME/banyan|proxy`); implemented by `cluster_controller.app`."""

    uid: str

    def cluster_uid(self, name: str) -> str:
        """Of a cluster in this subtree, by name or alias; NotFound."""
        ...

    async def open(self, uid: str, service: str, metadata: bytes, lane: int) -> ByteStream:
        """A stream to a controller of this subtree; Unreachable names the hop."""
        ...

    def application_route(self, namespace: str, name: str) -> Route: ...

    def application_routes(self, namespace: str, name: str) -> Sequence[Route]: ...
