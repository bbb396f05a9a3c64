"""kubectl on members: `clusters/NAME/proxy/PATH` leads to the API of the cluster that NAME manages, wherever in the subtree it is.

    kubectl ── front of any controller above ── stream of service `member` ── the member's controller ── its shim ── the API server

The stream carries HTTP/1.1, one request, with the person in its metadata; it is believed only on the link from the parent. The member's
controller decides by its site's own policy who may come in at all, as which of three groups; what those may do is decided by the member's
own RBAC. Both ends write it down (`openapi.audit`). Discovery, documents and errors are the member's own: nothing here knows Kubernetes
but how a path says that a request will last, or carry much.
"""

import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from cluster_controller import clock
from cluster_controller.errors import BanyanError, Forbidden
from cluster_controller.resources import policy
from cluster_controller.tunnel.messages import Lane
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from openapi.audit import MAX_PATH, MAX_QUERY, MAX_REASON, Line, parameters, printable, safe_query, timestamp
from openapi.front.auth import encode_user
from openapi.front.exchange import Exchange
from openapi.front.forward import Forwarder, Target
from openapi.front.head import RequestHead
from openapi.front.status import NotImplementedHere, code_of

if TYPE_CHECKING:
    from openapi.front.connection import CredentialSource, RawRoute, Shared
    from openapi.services import ApiServices, MemberServices, RouteServices, User

    class Services(ApiServices, RouteServices, MemberServices, Protocol):
        """What this door needs of the controller."""


MEMBER = "member"  # service of a stream that carries one request to a member's API; metadata: the user (`auth.encode_user`)
_LASTING = ("watch", "follow")  # parameters that make an answer last
_NO = ("false", "0")  # what an API server takes for no; everything else, nothing included, is yes
_WATCHED = re.compile(rb"/(api/v1|apis/[^/]+/[^/]+)/watch/")  # the older way to ask for a watch
_ID = re.compile(r"[0-9a-f]{16}")
# Groups that say in which way somebody is known (`banyan:credential:ID`) change with every renewal and tell a reader nothing.
_OF_PEOPLE = re.compile(r"banyan:(?!credential:)")


class MemberDoor:
    """Both ends of the way, for one controller. ``at_member`` serves what comes from above; `enter` what people ask here."""

    def __init__(self, services: "Services", forwarder: Forwarder) -> None:
        self._services = services
        self._forwarder = forwarder

    async def enter(self, exchange: Exchange, user: "User", name: str, path: bytes) -> None:
        """A person asks here for the member ``name``."""
        services = self._services
        uid = services.cluster_uid(name)
        if uid == services.uid:
            await self.at_member(exchange, user, path, end="both", request=secrets.token_hex(8))
            return
        record = Record(services, exchange, user, end="entry", cluster=name, path=path, request=secrets.token_hex(8))

        async def open_stream() -> ByteStream:
            return record.counted(await services.open(uid, MEMBER, encode_user(user, record.id), lane_of(exchange.head)))

        target = Target(open=open_stream, path=_target(path, exchange.head), name=f"cluster {name}")
        await self._recorded(record, exchange, target)

    async def at_member(self, exchange: Exchange, user: "User", path: bytes, *, end: str, request: str) -> None:
        """A person's request has come to the controller whose cluster it is for."""
        services = self._services
        record = Record(services, exchange, user, end=end, cluster=services.name, path=path, request=request)
        group = policy.group_of([(grant.role, grant.namespace) for grant in user.grants])

        async def open_stream() -> ByteStream:
            if why := services.no_member_api():
                raise NotImplementedHere(f"{services.name} {why}")
            if why := policy.refusal(services.entry(), user.name, group):
                raise Forbidden(f"{user.name} may not use the cluster API of {services.name}: {why}")
            record.begin()
            options = {"user": user.name, "group": group, "entry": user.entry}
            return record.counted(await services.open_local(OpenTarget(kind="api", options=options)))

        target = Target(open=open_stream, path=_target(path, exchange.head), name=f"the API server of {services.name}")
        await self._recorded(record, exchange, target)

    async def _recorded(self, record: "Record", exchange: Exchange, target: Target) -> None:
        self._services.audit.require()
        try:
            await self._forwarder.forward(exchange, [target])
        except BaseException as error:
            record.end(error)
            raise
        else:
            record.end(None)


class FromAbove:
    """The raw routes of a stream that the parent opened to this cluster's API: whatever its path, that is where it goes.

    ``request``: the id that it has at the entry, as the stream's metadata says.
    """

    def __init__(self, door: MemberDoor, request: str) -> None:
        self._door = door
        self._request = request if _ID.fullmatch(request) else secrets.token_hex(8)  # an older parent sends none

    def match(self, head: RequestHead) -> "RawRoute":
        return _AtMember(self._door, self._request)

    def attach(self, adopt: object) -> None:
        return

    async def http2(self, stream: ByteStream, credentials: "CredentialSource", shared: "Shared") -> None:
        stream.abort("HTTP/2 is not spoken here")

    async def close(self) -> None:
        return


class _AtMember:
    kind = MEMBER

    def __init__(self, door: MemberDoor, request: str) -> None:
        self._door = door
        self._request = request

    async def __call__(self, exchange: Exchange) -> None:
        assert exchange.user is not None  # adopted: the parent said who
        exchange.keep_alive = False  # one request per stream
        await self._door.at_member(exchange, exchange.user, exchange.head.path, end="member", request=self._request)


def lane_of(head: RequestHead) -> Lane:
    """What may carry much goes with the bulk, so that a shell beside it stays swift: logs, forwarded ports, copied files."""
    what = head.path.rpartition(b"/")[2]
    if what in {b"log", b"portforward"}:
        return Lane.BULK
    if what in (b"exec", b"attach") and not _says(head, "tty"):
        return Lane.BULK  # kubectl cp, and pipes
    return Lane.INTERACTIVE


def lasts(head: RequestHead) -> bool:
    """Whether a request stays open until somebody ends it. One whose query is too long to be read may."""
    return bool(head.upgrade) or len(head.query) > MAX_QUERY or _says(head, *_LASTING) or bool(_WATCHED.match(head.path))


def _says(head: RequestHead, *names: str) -> bool:
    """Whether the query says yes to one of these, in any of its places."""
    return any(name in names and value.lower() not in _NO for name, value in parameters(head.query))


def _target(path: bytes, head: RequestHead) -> bytes:
    return path + (b"?" + head.query if head.query else b"")


class Record:
    """What the audit log says of one request.

    Of what is refused there is no line that it began: at the member it begins once the site's policy has let it in, at the entry once the
    member has answered.
    """

    def __init__(
        self, services: "Services", exchange: Exchange, user: "User", *, end: str, cluster: str, path: bytes, request: str
    ) -> None:
        self._services = services
        self._exchange = exchange
        self._user = user
        self._end = end
        self._cluster = cluster
        self._path = path
        self.id = request
        self._begun = False
        self._began = clock.boottime()
        self._lasts = lasts(exchange.head)
        self._stream: Counted | None = None

    def counted(self, stream: ByteStream) -> ByteStream:
        self._stream = Counted(stream, self._answered)
        return self._stream

    def _answered(self) -> None:
        """Before each piece of an answer."""
        if not self._begun and 0 < self._exchange.status < 400:
            self.begin()

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            if self._lasts:
                self._services.audit.write(self._line("begun"), clock.boottime())

    def end(self, error: BaseException | None) -> None:
        code = self._exchange.status
        reason = str(error) or type(error).__name__ if error is not None else ""
        if not code and isinstance(error, BanyanError):
            code = code_of(error)
        elif not code and isinstance(error, ShimError):
            code = 503
        if not reason and code == 101 and self._stream is not None:
            reason = self._stream.broken
        self._answered()  # an answer that came whole with its head has not been told yet
        line = self._line("ended", code, reason)
        if (self._begun and self._lasts) or 0 < code < 400:
            self._services.audit.write(line, clock.boottime())
        else:
            self._services.audit.write_refused(line, clock.boottime())

    def _line(self, stage: str, code: int = 0, reason: str = "") -> Line:
        head, user, stream = self._exchange.head, self._user, self._stream
        return Line(
            time=timestamp(clock.wall()),
            id=self.id,
            end=self._end,
            stage=stage,
            user=printable(user.name, 253),
            groups=[printable(group, 80) for group in user.groups if _OF_PEOPLE.match(group)],
            entry=user.entry,
            cluster=self._cluster,
            verb=printable(head.upgrade.decode("latin-1") or head.method, 40),
            path=printable(self._path.decode("latin-1"), MAX_PATH),
            query=safe_query(head.query),
            client=self._exchange.client[0] if self._exchange.client is not None else "",
            agent=printable(head.get(b"user-agent").decode("latin-1"), 120),
            code=code,
            bytes_up=stream.up if stream is not None else 0,
            bytes_down=stream.down if stream is not None else 0,
            seconds=round(clock.boottime() - self._began, 3) if stage == "ended" else 0.0,
            reason=printable(reason, MAX_REASON),
        )


class Counted:
    """A ByteStream that counts what passes, and remembers why it broke. ``reading`` is called before each read."""

    def __init__(self, inner: ByteStream, reading: Callable[[], None]) -> None:
        self._inner = inner
        self._reading = reading
        self.up = 0  # bytes written
        self.down = 0  # bytes read
        self.broken = ""

    async def read(self, limit: int = 65536) -> bytes:
        self._reading()
        data = await self._inner.read(limit)
        self.down += len(data)
        return data

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)
        self.up += len(data)

    async def close_write(self) -> None:
        await self._inner.close_write()

    def abort(self, reason: str = "") -> None:
        self.broken = self.broken or reason
        self._inner.abort(reason)
