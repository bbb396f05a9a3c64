"""Who belongs to this controller: implements what the tunnel asks (`Membership` of rooms.md) and what people decide.

It reads a store, judges with `admission`, commits, and only then answers (law 2). Links are told and closed after the commit, so
a revocation that was acknowledged to a person has cut its link. Everything here runs on the event loop; nothing blocks it.

A stream of service ``membership`` carries what is no part of the handshake: reserving a name at the ancestors, and leaving.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import structlog

from cluster_controller import clock
from cluster_controller.errors import Conflict, Forbidden, ProtocolError, Unreachable
from cluster_controller.identity.certificates import PeerCertificate, peer_identity
from cluster_controller.identity.users import User
from cluster_controller.resources import policy
from cluster_controller.store import Event, Store, Tx
from cluster_controller.tasks import Tasks
from cluster_controller.tree import failover, questions, records
from cluster_controller.tree.away import Away
from cluster_controller.tree.barring import Barring
from cluster_controller.tree.child import Child, IdentityHolder, Settings
from cluster_controller.tree.decisions import Decisions
from cluster_controller.tree.gate import Gate
from cluster_controller.tree.guests import Guests
from cluster_controller.tree.joins import Joins
from cluster_controller.tree.kin import Kin
from cluster_controller.tree.links import Link, Links
from cluster_controller.tree.names import Reservations, Reserve, Reserved
from cluster_controller.tree.people import People
from cluster_controller.tree.questions import Leave, Left
from cluster_controller.tree.standings import Standings
from cluster_controller.tunnel.course import Course, Parent, Timing
from cluster_controller.tunnel.dialer import ask
from cluster_controller.tunnel.handshake import Refused as RefusedByParent
from cluster_controller.tunnel.messages import (
    CloseCode,
    ControlMessage,
    Held,
    Hello,
    JoinReply,
    JoinRequest,
    Path,
    Refusal,
    RefusalCode,
    RenewReply,
    RenewRequest,
    Revoked,
    Routes,
    Standing,
    Welcome,
)
from cluster_controller.tunnel.router import Router
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.tunnel import Tunnel

log = structlog.get_logger()

DEFAULT_SETTINGS = Settings()
HEEDS = ("Member", "ClusterStatus", "Cluster", "User", "Revocation")  # kinds of which a change is of interest here


async def _nobody(uid: str) -> None:
    """Where nothing carries reports there is nobody to silence."""


class Membership(Decisions):
    """What people decide is inherited from `Decisions`; who they are is in ``people``.

    ``addresses``: where children reach this controller, HOST:PORT; asked whenever it is said.
    """

    def __init__(
        self,
        store: Store,
        identity: IdentityHolder,
        settings: Settings = DEFAULT_SETTINGS,
        *,
        wall: Callable[[], datetime] = clock.wall,
        boottime: Callable[[], float] = clock.boottime,
        addresses: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._links = Links(identity().uid, self.path)
        super().__init__(store, identity, links=self._links, wall=wall, addresses=addresses)
        self._tasks = Tasks("membership")
        self._tunnel: Tunnel | None = None
        self._proxy: str | None = None
        self._heeded: RefusedByParent | None = None  # the last refusal that was acted on
        self.silence: Callable[[str], Awaitable[None]] = _nobody  # before a child is forgotten: its reports are taken no more
        self.child = Child(store, identity, settings, wall=wall, addresses=addresses)
        self.names = Reservations(store, identity, boottime=boottime)
        self.barring = Barring(store, identity, wall)
        self.people = People(store, identity, self.barring.revoked)
        self._joins = Joins(store, identity, names=self.names, barring=self.barring, links=self._links, wall=wall)
        self._policy = settings.failover
        self.guests = Guests(identity, settings.failover, self._links, path=self.path, live=self.live, boottime=boottime)
        self.away = Away(store, identity, barring=self.barring, links=self._links, wall=wall)
        self.kin = Kin(store, identity, self._links, child=self.child, guests=self.guests, away=self.away)
        self.standings = Standings(store, identity, self._links, own=lambda: self.child.standing, addresses=addresses)
        self.child.standing_changed = self.standings.mark
        self._links.top = lambda: self.live()[0]
        self._gate = Gate(
            store,
            identity,
            settings,
            barring=self.barring,
            links=self._links,
            path=self.path,
            standings=self.standings,
            guests=self.guests,
            wall=wall,
        )
        self.adoptions = 0  # times that somebody else than home took this cluster in, for /metrics
        self.returns = 0
        self._adopted = False
        self._unsubscribe = store.subscribe(self._changed, kinds=HEEDS)

    @property
    def router(self) -> Router:
        """What the tunnel routes by."""
        return self._links.router

    async def start(self) -> None:
        """Commit this start and begin to renew. Before the tunnel dials."""
        await self.child.begin()
        self._tasks.keep("renew", lambda: self.child.keep_renewed(self.ask_renewal))
        self._tasks.keep("standings", self.standings.run)

    async def close(self) -> None:
        self._unsubscribe()
        await self.guests.close()
        await self.away.close()
        await self._tasks.close()

    # --- which parent ---

    def parents(self) -> tuple[Parent, ...]:
        """Whom the tunnel dials, home first."""
        identity = self._identity()
        home = Parent(identity.parent_uid, identity.saved.parent_name, tuple(identity.saved.parent_addresses))
        first, *others = failover.parents(home, self.child.standing, self._policy)
        site = records.site_policy(self._store) if others else None
        return (first, *(one for one in others if policy.permits(site, one.uid, one.name)))

    def course(self) -> Course:
        """For `Tunnel.follow`."""
        return Course(self.parents, Timing(stable=self._policy.stable_seconds))

    @property
    def adopter(self) -> tuple[str, str] | None:
        """uid and name of whoever has taken this cluster in, when that is not its home parent."""
        parent = self._links.parent
        return (parent.peer_uid, parent.peer_name) if parent is not None and parent.peer_uid != self._identity().parent_uid else None

    # --- what the tunnel asks: as a child ---

    async def hello(self, parent: str) -> Hello:
        """The next Hello, committed. BanyanError when this connection is of no use: the certificate was renewed meanwhile."""
        await self._heed_refusal()
        return await self.child.hello(parent)

    async def _heed_refusal(self) -> None:
        """What a parent said to the Hello before this one decides what this one says."""
        error = self._tunnel.refusal if self._tunnel is not None else None
        if error is None or error is self._heeded:
            return
        self._heeded = error
        if error.by not in ("", self._identity().parent_uid):
            self.child.refused_elsewhere(error.refusal)
            return
        self.child.refused(error.refusal)
        if error.refusal.code is RefusalCode.EXPIRED:
            await self._renew_expired()
            raise Conflict("the certificate was renewed; connecting anew with it")

    async def _renew_expired(self) -> None:
        """Over a connection of its own: an expired certificate opens no link, but it may ask for its renewal."""
        identity = self._identity()
        request = self.child.renew_request()
        reply = await ask(identity.saved.parent_addresses, identity.client_context(), request, proxy=self._proxy, check=self._is_parent)
        if isinstance(reply, RenewReply):
            await self.child.renewed(reply)

    def _is_parent(self, chain: tuple[bytes, ...]) -> None:
        expected = self._identity().parent_uid
        found = peer_identity(chain)
        if found.uid != expected:
            raise Forbidden(f"{found.name} ({found.uid}) answers where the parent {expected} is expected")

    async def leave(self) -> None:
        """Tell the parent that this cluster leaves the tree for good; one that forgot it already needs no telling. Unreachable when
        it cannot be told."""
        identity = self._identity()
        if identity.is_root:
            raise Forbidden(f"{identity.name} is the root of its tree; there is nobody to leave")
        if self.adopter is not None:
            home, by = identity.saved.parent_name, self.adopter[1]
            raise Unreachable(f"{home} is out of reach, and {by}, which carries {identity.name} meanwhile, cannot forget it for {home}")
        if not self.forgotten:
            await self._question(Leave())

    @property
    def forgotten(self) -> bool:
        """The parent has answered that this cluster is no member of it any more: it left, was removed, revoked or replaced."""
        error = self._tunnel.dial_error if self._tunnel is not None else None
        return isinstance(error, RefusedByParent) and error.refusal.code in (RefusalCode.NOT_MY_CHILD, RefusalCode.REVOKED)

    # --- what the tunnel asks: as a parent ---

    async def welcome(self, hello: Hello, peer: PeerCertificate) -> Welcome | Refusal:
        """Let a child in, or say why not. Committed before this returns; an older link of the same child is closed."""
        return await self._gate.welcome(hello, peer)

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        return await self._joins.join(request, address)

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        return self._joins.renew(request, peer)

    # --- links ---

    def link_up(self, link: Link) -> None:
        self._links.up(link)
        if not link.is_parent or link.welcome is None:
            return
        welcome = link.welcome
        if self._identity().uid not in welcome.path:
            self.child.path, self.child.path_names, self.child.top = welcome.path, welcome.path_names, welcome.top
            self._tell_path()
        self._note_parent(link)
        self._tasks.spawn("welcomed", self._welcomed(link, welcome))

    def link_down(self, link: Link, reason: str) -> None:
        self._links.down(link)
        if not link.is_parent:
            self.guests.left(link.peer_uid)
            if self._links.get(link.peer_uid) is None:
                self.standings.left(link.peer_uid)
        elif self._links.parent is None:
            self._tell_path()

    def _note_parent(self, link: Link) -> None:
        """Say in the log, and count, when another parent than before carries this cluster."""
        adopted = link.peer_uid != self._identity().parent_uid
        if adopted:
            self.adoptions += 1
            log.warning("cluster.adopted", by=link.peer_name, uid=link.peer_uid, home=self._identity().saved.parent_name)
        elif self._adopted:
            self.returns += 1
            log.info("cluster.returned", home=link.peer_name)
        self._adopted = adopted

    async def _welcomed(self, link: Link, welcome: Welcome) -> None:
        try:
            await self.child.welcomed(welcome)
        except ProtocolError as error:
            link.close(error.code, str(error))

    def _tell_path(self) -> None:
        """Where this controller stands, or how far up it is linked, has changed."""
        self._links.tell_path()
        self.guests.review()

    def live(self) -> tuple[str, ...]:
        """uids from the highest controller that this one is linked to now, hop by hop, down to itself."""
        me = self._identity().uid
        if self._identity().is_root or self._links.parent is None:
            return (me,)
        above = self.child.path
        if self.child.top in above:
            above = above[above.index(self.child.top) :]
        return (*above, me)

    def control(self, link: Link, message: ControlMessage) -> None:
        """Routes come from children; Held, Revoked, Path and RenewReply from the parent. ProtocolError ends the link."""
        if not link.is_parent:
            if isinstance(message, Routes):
                self._links.routes(link, message)
            return
        if isinstance(message, Held):
            self.child.trouble = message.reason
            log.error("cluster.held", reason=message.reason, instance=self.child.instance)
        elif isinstance(message, Revoked):
            self._told_of_revocation(message)
        elif isinstance(message, Path):
            self._path_changed(message)
        elif isinstance(message, RenewReply):
            self._tasks.spawn("renewed", self.child.renewed(message))
        elif isinstance(message, Standing) and link.peer_uid == self._identity().parent_uid:
            self._tasks.spawn("standing", self.child.keep_standing(message))

    def _told_of_revocation(self, message: Revoked) -> None:
        uid = self._identity().uid
        for one in message.revocations:
            if one.uid == uid:
                self.child.trouble = one.reason
                log.error("cluster.revoked", reason=one.reason, remedy="join with a fresh data folder and a new token")

    def _path_changed(self, message: Path) -> None:
        uid = self._identity().uid
        if uid in message.uids:
            if self._links.parent is not None:
                self._links.parent.close(CloseCode.LOOP, "this cluster stands above the parent that it dialled")
            return
        self.child.path, self.child.path_names, self.child.top = message.uids, message.names, message.top
        self._tell_path()

    def ask_renewal(self, request: RenewRequest) -> bool:
        """Over the link to the home parent; False when there is none: an adopter issues nothing."""
        return self.adopter is None and self._links.ask_renewal(request)

    def path(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """uids and names from the root down to this controller, as far as they are known."""
        identity = self._identity()
        if identity.is_root:
            return (identity.uid,), (identity.name,)
        above = self.child.path or identity.path[:-1]
        return (*above, identity.uid), (*self.child.path_names, identity.name)

    # --- who asks: for the API ---

    def authenticate_certificate(self, chain: Sequence[bytes], now: datetime, remote: str | None = None) -> User:
        """Unauthenticated, with the reason, for whoever is not known. ``remote``: the peer's address, where known."""
        return self.people.certificate(chain, now, remote)

    def authenticate_bearer(self, text: str, now: datetime) -> User:
        return self.people.bearer(text, now)

    def authenticate_again(self, user: User, now: datetime) -> User:
        """At a later request on the same connection: the same user with today's grants."""
        return self.people.again(user, now)

    # --- what changes ---

    def _changed(self, events: Sequence[Event]) -> None:
        self.standings.changed(events)
        self.away.changed(events)
        if any(event.stored.key.kind == "User" and event.stored.key.space == records.OWN for event in events):
            self.people.changed()
        for event in events:
            if event.stored.key.kind == "Cluster" and event.kind_of == "put":
                self.names.arrived(event.stored.key.name, event.stored.uid)
        if self.barring.changed(events):
            self._cut_barred()
            self._tasks.spawn("revocations", self.barring.spread())

    def _cut_barred(self) -> None:
        for link in self._links.children():
            reason = self.barring.link(link.peer) if link.peer is not None else ""
            if reason:
                self._links.cut(link.peer_uid, CloseCode.REVOKED, reason)

    # --- the stream service ``membership`` ---

    def bind(self, tunnel: Tunnel, proxy: str | None = None) -> None:
        """Before the tunnel dials: take the questions of children, and ask the parent through it."""
        self._tunnel, self._proxy = tunnel, proxy
        tunnel.policy = self.kin.may_leave
        tunnel.handle(questions.SERVICE, self._answer)
        self.names.ask_parent = self._reserve_at_parent

    async def _question(self, question: Reserve | Leave) -> Reserved | Left:
        if self._tunnel is None:
            raise Unreachable("this controller has no tunnel yet")
        parent = self._identity().parent_uid
        stream = await self._tunnel.open(parent, questions.SERVICE, questions.encode(question))
        return await questions.reply(stream)

    async def _reserve_at_parent(self, question: Reserve) -> Reserved:
        answer = await self._question(question)
        return answer if isinstance(answer, Reserved) else Reserved()

    async def _answer(self, stream: Stream) -> None:
        """Only a direct child asks; whoever stands below asks through it."""
        if len(stream.source) != 1 or self._links.get(stream.source[0]) is None or self.guests.get(stream.source[0]) is not None:
            raise Forbidden("membership questions come from a direct child")
        question = questions.decode(stream.metadata)
        answer: Reserved | Left
        if isinstance(question, Reserve):
            answer = await self.names.reserve(question)
        else:
            answer = await self._left(stream.source[0])
        await stream.write(questions.encode(answer))
        await stream.close_write()

    async def _left(self, uid: str) -> Left:
        def work(tx: Tx) -> None:
            record = records.member(tx, uid)
            if record is not None:
                self.remove(tx, record, "left")

        await self.silence(uid)
        await self._store.commit(work)
        log.info("child.left", uid=uid)
        return Left()
