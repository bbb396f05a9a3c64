"""The raw routes: what goes through the front to somewhere else, instead of to the ASGI application.

    …/namespaces/NS/applications/NAME/proxy/PATH   the nearest ready instance of an application (HTTP/1.1, WebSocket)
    …/clusters/NAME/banyan/PATH                    a descendant controller's own API, as the same user
    …/clusters/NAME/proxy/PATH                     the API of the cluster that NAME manages (`member`)
    …/invoke                                       one request to many clusters (`invoke`)
    HTTP/2                                         gRPC to an application (`grpc`)

Who may: GET, HEAD and OPTIONS to an application need the group view in its namespace, everything else (POST, WebSocket, gRPC)
edit. A descendant's own API decides by itself; it is told who asks.
"""

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from cluster_controller.errors import InvalidInput, Unauthenticated
from cluster_controller.tasks import Tasks
from cluster_controller.tunnel.messages import Lane
from cluster_shim.contract import ByteStream, OpenTarget
from openapi.front import invoke
from openapi.front.auth import decode_request, encode_user, require
from openapi.front.exchange import Exchange
from openapi.front.forward import Forwarder, Target
from openapi.front.head import RequestHead
from openapi.front.member import FromAbove, MemberDoor
from openapi.front.streams import pair

if TYPE_CHECKING:
    from openapi.front.connection import CredentialSource, RawRoute, Shared
    from openapi.services import ApiServices, MemberServices, Route, RouteServices, User

    class Services(ApiServices, RouteServices, MemberServices, Protocol):
        """What the raw routes need of the controller."""


BASE = rb"/apis/banyan\.dev/v1alpha1"
HTTP = "http"  # service of a stream that carries HTTP/1.1 to a controller's own front; metadata: the user (`auth.encode_user`)
APPLICATION = "application"  # service of a stream to an instance; metadata: {"uid": APPLICATION_UID, "component": NAME or ""}
ATTEMPTS = 3  # clusters that one request is tried on
MAX_NESTING = 16  # clusters/…/banyan/clusters/…

_LABELS = rb"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
_APPLICATION = re.compile(BASE + rb"/namespaces/(%b)/applications/(%b)/proxy(/.*)?\Z" % (_LABELS, _LABELS))
_CLUSTER = re.compile(BASE + rb"/clusters/(%b)/(banyan|proxy)(/.*)?\Z" % _LABELS)
_INVOKE = re.compile(BASE + rb"/invoke\Z")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

Adopt = Callable[[ByteStream, "User"], Awaitable[None]]


class ProxyRoutes:
    """Implements `connection.RawRoutes` over the controller's services."""

    def __init__(self, services: "Services") -> None:
        self.services = services
        self._adopt: Adopt | None = None
        self._tasks = Tasks("routes")
        self._forwarder = Forwarder(self._tasks)
        self.members = MemberDoor(services, self._forwarder)

    def attach(self, adopt: Adopt) -> None:
        self._adopt = adopt

    def from_above(self, metadata: bytes) -> FromAbove:
        """For a stream of service `member`."""
        return FromAbove(self.members, decode_request(metadata))

    async def close(self) -> None:
        await self._tasks.close()

    def match(self, head: RequestHead) -> "RawRoute | None":
        if not head.path.startswith(b"/apis/banyan.dev/"):
            return None
        if found := _APPLICATION.match(head.path):
            return ApplicationProxy(self, found[1].decode(), found[2].decode(), found[3] or b"/")
        if found := _CLUSTER.match(head.path):
            kind = DescendantApi if found[2] == b"banyan" else MemberApi
            return kind(self, found[1].decode(), found[3] or b"/")
        if _INVOKE.match(head.path):
            return Invocation(self)
        return None

    async def http2(self, stream: ByteStream, credentials: "CredentialSource", shared: "Shared") -> None:
        from openapi.front.grpc import serve_grpc  # with HPACK's tables; most controllers never see HTTP/2

        await serve_grpc(stream, credentials, shared, self.open_application)

    # ways to the other side

    async def open_application(self, user: "User", namespace: str, name: str) -> ByteStream:
        """For what needs the group edit: a stream to the nearest instance."""
        require(user, "edit", namespace, f"send requests to application {namespace}/{name}")
        return await self.open_instance(self.services.application_route(namespace, name))

    async def open_instance(self, route: "Route") -> ByteStream:
        if route.cluster == self.services.uid:
            target = OpenTarget(kind="application", uid=route.application, component=route.component)
            return await self.services.open_local(target)
        metadata = msgspec.json.encode({"uid": route.application, "component": route.component})
        return await self.services.open(route.cluster, APPLICATION, metadata, Lane.INTERACTIVE)

    async def open_api(self, uid: str, user: "User") -> ByteStream:
        """A connection to the API of a controller of this subtree, or to this one's own, as ``user``."""
        if uid != self.services.uid:
            return await self.services.open(uid, HTTP, encode_user(user), Lane.INTERACTIVE)
        assert self._adopt is not None
        ours, theirs = pair()
        self._tasks.spawn("own-api", _adopted(self._adopt, theirs, user))
        return ours

    async def forward(self, exchange: Exchange, targets: list[Target]) -> None:
        await self._forwarder.forward(exchange, targets)


class ApplicationProxy:
    kind = "application"

    def __init__(self, routes: ProxyRoutes, namespace: str, name: str, path: bytes) -> None:
        self._routes, self._namespace, self._name, self._path = routes, namespace, name, path

    async def __call__(self, exchange: Exchange) -> None:
        user, head = known(exchange), exchange.head
        reading = head.method in _READING and not head.upgrade
        what = f"send {head.upgrade.decode('latin-1') or head.method} to application {self._namespace}/{self._name}"
        require(user, "view" if reading else "edit", self._namespace, what)
        services = self._routes.services
        found = list(services.application_routes(self._namespace, self._name))[:ATTEMPTS]
        if not found:
            found = [services.application_route(self._namespace, self._name)]  # raises, and says what stands in the way
        await self._routes.forward(exchange, [self._target(exchange, user, route) for route in found])

    def _target(self, exchange: Exchange, user: "User", route: "Route") -> Target:
        head = exchange.head
        prefix = head.path[: len(head.path) - len(self._path)].rstrip(b"/")
        forwarded = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-prefix", prefix), (b"banyan-user", _ascii(user.name))]
        if exchange.client is not None:
            forwarded.append((b"x-forwarded-for", exchange.client[0].encode("ascii", "replace")))
        names = [name.encode("ascii", "replace") for name in route.path]
        cluster = names[-1] if names else b""
        return Target(
            open=lambda: self._routes.open_instance(route),
            path=self._path + (b"?" + head.query if head.query else b""),
            name=f"application {self._namespace}/{self._name} on {'/'.join(route.path) or route.cluster}",
            place=(APPLICATION, route.cluster, route.application, route.component),
            answers_once_more=route.answers_once_more,
            request_headers=tuple(forwarded),
            response_headers=((b"banyan-route", b", ".join(names)), (b"banyan-cluster", cluster)),
        )


class DescendantApi:
    kind = "banyan"

    def __init__(self, routes: ProxyRoutes, name: str, path: bytes) -> None:
        self._routes, self._name, self._path = routes, name, path

    async def __call__(self, exchange: Exchange) -> None:
        user, head = known(exchange), exchange.head
        if head.path.count(b"/banyan/") > MAX_NESTING:
            raise InvalidInput(f"the path reaches through more than {MAX_NESTING} clusters; name the last one, it is found from here")
        uid = self._routes.services.cluster_uid(self._name)
        target = Target(
            open=lambda: self._routes.open_api(uid, user),
            path=self._path + (b"?" + head.query if head.query else b""),
            name=f"cluster {self._name}",
            place=(HTTP, uid),
        )
        await self._routes.forward(exchange, [target])


class MemberApi:
    kind = "member"

    def __init__(self, routes: ProxyRoutes, name: str, path: bytes) -> None:
        self._routes, self._name, self._path = routes, name, path

    async def __call__(self, exchange: Exchange) -> None:
        await self._routes.members.enter(exchange, known(exchange), self._name, self._path)


class Invocation:
    kind = "invoke"

    def __init__(self, routes: ProxyRoutes) -> None:
        self._routes = routes

    async def __call__(self, exchange: Exchange) -> None:
        await invoke.serve(exchange, known(exchange), self._routes.services, self._routes.open_api)


def known(exchange: Exchange) -> "User":
    """The user of a request; raw routes have no anonymous ones."""
    if exchange.user is None:
        raise Unauthenticated("no credential was given")
    return exchange.user


async def _adopted(adopt: Adopt, stream: ByteStream, user: "User") -> None:
    await adopt(stream, user)


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace").replace(b"\r", b"").replace(b"\n", b"")
