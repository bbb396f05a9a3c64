"""The API of one running controller: services for the ASGI application and the front, and the streams that lead to them.

Everything here is glue between `cluster_controller.app.Controller` and this room; decisions are elsewhere.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

import msgspec
import structlog

from cluster_controller import clock
from cluster_controller.app import Controller
from cluster_controller.config import split_address
from cluster_controller.documents import decode
from cluster_controller.errors import Conflict, Forbidden, InvalidInput
from cluster_controller.hosts import ANY_HOST, own_hosts
from cluster_controller.identity import users
from cluster_controller.metrics import exposition
from cluster_controller.resources import kinds, policy
from cluster_controller.resources.tables import Heard
from cluster_controller.routes import Routes, Target
from cluster_controller.store import Event, Key
from cluster_controller.tasks import Tasks
from cluster_controller.tree.records import DESIRED, OWN
from cluster_controller.tunnel.messages import Lane
from cluster_controller.tunnel.stream import Stream
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from openapi.app import create_app
from openapi.audit import AuditLog
from openapi.front.auth import decode_user
from openapi.front.member import MEMBER
from openapi.front.raw import ProxyRoutes
from openapi.front.server import Front
from openapi.front.splice import splice
from openapi.hooks.application import ApplicationHooks
from openapi.hooks.dispatch import Hooks
from openapi.hooks.life import DrillHook, RotateHook
from openapi.hooks.members import ClusterHooks, SitePolicyHooks, TokenHooks, UserHooks
from openapi.hooks.moves import MoveHook
from openapi.hooks.transfers import TransferHook
from openapi.services import Blob, Grant, KindHooks, Route, User

log = structlog.get_logger()

HTTP = "http"
APPLICATION = "application"
AUDIT = "audit.log"  # in DATA
API_PORT = "app/api-port"  # fact: the port that was bound last, taken again when any will do
RENEW_SECONDS = 24 * 3600.0  # between two API certificates; they live for longer


class ApplicationTarget(msgspec.Struct, frozen=True):
    """Metadata of a stream of service `application`."""

    uid: str
    component: str = ""


class Services:
    """Implements `openapi.services.ApiServices` and `RouteServices` over one controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.store = controller.store
        self.uid = controller.uid
        self.name = controller.name
        self.version = controller.version
        by_kind: dict[str, KindHooks] = {
            "Application": ApplicationHooks(controller.store, controller.engine.explain, controller.heard),
            "Cluster": ClusterHooks(
                controller.store,
                controller.membership,
                controller.uid,
                lambda uid: uid in controller.tunnel.links,
                {
                    "rotate": RotateHook(controller.rotation, controller.store, controller.uid).answer,
                    "drill": DrillHook(controller.drill, controller.store, controller.uid).answer,
                    "move": MoveHook(controller.moves).answer,
                    "transfers": TransferHook(controller.library, controller.store, controller.uid).answer,
                },
            ),
            "JoinToken": TokenHooks(controller.membership),
            "SitePolicy": SitePolicyHooks(controller.uid, controller.name),
            "User": UserHooks(controller.membership),
        }
        self.kinds: KindHooks = Hooks(by_kind)
        self._routes = Routes(controller.store, controller.uid, controller.name, self._distance)
        self.front: Front | None = None
        self.audit = AuditLog(controller.config.data / AUDIT)

    def now(self) -> datetime:
        return clock.wall()

    def heard(self, uid: str) -> Heard | None:
        found = self._controller.heard(uid)
        return Heard(found.seconds, found.at_least, found.broken_hop) if found is not None else None

    def ready(self) -> Mapping[str, str]:
        return self._controller.ready()

    def metrics(self) -> bytes:
        return exposition(self._controller, self.front.metrics if self.front is not None else None)

    async def open_local(self, target: OpenTarget) -> ByteStream:
        return await self._controller.open_local(target)

    async def put_blob(self, digest: str, size: int, chunks: AsyncIterator[bytes]) -> None:
        await self._controller.library.blobs.write(digest, size, chunks)
        self._controller.shelf.arrived(digest)

    async def get_blob(self, digest: str, offset: int = 0) -> Blob:
        blobs = self._controller.library.blobs
        return Blob(size=blobs.size(digest), chunks=blobs.chunks(digest, offset))

    # --- the own cluster's API ---

    def entry(self) -> policy.Entry:
        stored = self.store.get(Key("own", "SitePolicy", "", policy.NAME))
        return policy.entry_of(decode(stored.document, kinds.SitePolicy) if stored is not None else None)

    def no_member_api(self) -> str:
        controller = self._controller
        if controller.shim is None:
            return f"has no cluster of its own; its controller's API is clusters/{self.name}/banyan (banyan --at {self.name})"
        known = controller.description
        if (known.kind if known is not None else controller.config.shim) != "process":
            return ""
        return (
            "runs applications as processes; it has no Kubernetes API. Use banyan logs and banyan get, "
            f"or its controller's API: banyan kubeconfig {self.name} --banyan"
        )

    # --- routes ---

    def cluster_uid(self, name: str) -> str:
        return self._controller.cluster_uid(name)

    async def open(self, uid: str, service: str, metadata: bytes, lane: int = Lane.INTERACTIVE) -> ByteStream:
        return await self._controller.open(uid, service, metadata, Lane(lane))

    def application_route(self, namespace: str, name: str) -> Route:
        return _route(self._routes.nearest(namespace, name))

    def application_routes(self, namespace: str, name: str) -> Sequence[Route]:
        return [_route(target) for target in self._routes.all(namespace, name)]

    def _distance(self, child: str) -> float | None:
        link = self._controller.tunnel.links.get(child)
        return None if link is None else link.rtt or 0.0


class Authentication:
    """`openapi.front.auth.Authenticator` over the membership."""

    def __init__(self, controller: Controller) -> None:
        self._membership = controller.membership

    def certificate(self, chain: Sequence[bytes], remote: str | None) -> User:
        return _user(self._membership.authenticate_certificate(chain, clock.wall(), remote))

    def bearer(self, token: str) -> User:
        return _user(self._membership.authenticate_bearer(token, clock.wall()))

    def again(self, user: User) -> User:
        known = _known(user)
        return _user(self._membership.authenticate_again(known, clock.wall()))


class Serving:
    """`start` binds the port and takes streams from the parent; `close` lets requests in flight finish."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.services = Services(controller)
        self._app = create_app(self.services)
        self._routes = ProxyRoutes(self.services)
        self.front = Front(self._app, Authentication(controller), self._routes)
        self.services.front = self.front
        self._tasks = Tasks("serving")
        self.port = 0
        self._unsubscribe = [controller.store.subscribe(self._changed, space) for space in (OWN, DESIRED)]
        controller.tunnel.handle(HTTP, self._serve_http)
        controller.tunnel.handle(APPLICATION, self._serve_application)
        controller.tunnel.handle(MEMBER, self._serve_member)

    async def start(self) -> int:
        """The bound port. Conflict when it is taken."""
        controller = self._controller
        await self._app.start()
        host, port = split_address(controller.config.api_listen, "api_listen")
        identity = controller.identity()
        context = identity.api_context(self._hosts(host), clock.wall())
        remembered = int(controller.store.fact(API_PORT) or b"0") if not port else 0
        try:
            self.port = await self.front.serve(host, remembered or port, context)
        except OSError as error:
            if not remembered:
                raise Conflict(
                    f"the API cannot listen on {controller.config.api_listen}: {error.strerror or error}; choose another port"
                ) from error
            self.port = await self.front.serve(host, 0, context)
        await controller.store.commit(lambda tx: tx.set_fact(API_PORT, str(self.port).encode()))
        self._tasks.keep("renew-certificate", lambda: self._renew(host))
        controller.rotation.listeners.append(lambda: self._present(host))
        return self.port

    def _changed(self, events: Sequence[Event]) -> None:
        """A user who was revoked or removed, here or above, loses the connections that are open, watches included."""
        for event in events:
            stored = event.stored
            if stored.key.kind == "User" and (event.kind_of == "delete" or b'"revoked":true' in stored.document):
                self.front.disconnect(stored.key.name)
            elif stored.key.kind == "Revocation" and event.kind_of == "put":
                spec = decode(stored.document, kinds.Revocation).spec
                if spec.subject == "user":
                    self.front.disconnect(spec.name)

    async def close(self, deadline_seconds: float = 5.0) -> None:
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        await self._tasks.close()
        await self._app.close()
        await self.front.close(deadline_seconds)
        self.services.audit.close()

    def _hosts(self, host: str) -> list[str]:
        advertised = list(self._controller.config.api_advertise)
        return [*([host] if host not in ANY_HOST else own_hosts()), *advertised]

    async def _renew(self, host: str) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            self._present(host)

    def _present(self, host: str) -> None:
        """A fresh certificate for connections to come, and the CAs that count now."""
        self.front.replace_context(self._controller.identity().api_context(self._hosts(host), clock.wall()))

    # --- streams that end here ---

    async def _serve_http(self, stream: Stream) -> None:
        """A request that entered the tree above: the user in the metadata is the parent's word."""
        await self.front.adopt(stream, self._sent_by_parent(stream))

    async def _serve_member(self, stream: Stream) -> None:
        """One request to the API of this controller's own cluster."""
        await self.front.adopt(stream, self._sent_by_parent(stream), self._routes.from_above(stream.metadata))

    def _sent_by_parent(self, stream: Stream) -> User:
        """Who asks, as the parent says. Nobody from above is taken for somebody who asks at this site."""
        self._controller.links.require_parent(stream)
        user = decode_user(stream.metadata)
        if user.entry == self._controller.uid:
            raise Forbidden(f"a request from above cannot have entered the tree at {self._controller.name}")
        return user

    async def _serve_application(self, stream: Stream) -> None:
        self._controller.links.require_parent(stream)
        try:
            target = msgspec.json.decode(stream.metadata, type=ApplicationTarget)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"the target of an application stream cannot be read: {error}") from error
        try:
            instance = await self._controller.open_local(OpenTarget(kind="application", uid=target.uid, component=target.component))
        except ShimError as error:
            stream.abort(str(error))
            return
        await splice(stream, instance)


def _route(target: Target) -> Route:
    return Route(target.cluster, "", target.application, target.path, target.answers_once_more)


def _user(known: users.User) -> User:
    """From the identity room's words into the API's."""
    grants = tuple(Grant(grant.role, grant.namespace) for grant in known.grants)
    return User(name=known.name, groups=known.groups, entry=known.entry, grants=grants)


def _known(user: User) -> users.User:
    grants = tuple(users.Grant(grant.role, grant.namespace) for grant in user.grants)
    return users.User(name=user.name, groups=user.groups, entry=user.entry, grants=grants)
