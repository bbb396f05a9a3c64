"""Who belongs to this controller: implements what the tunnel asks (`Membership` of rooms.md) and what people decide.

It reads a store, judges with `admission`, commits, and only then answers (law 2). Links are told and closed after the commit, so
a revocation that was acknowledged to a person has cut its link. Everything here runs on the event loop; nothing blocks it.

A stream of service ``membership`` carries what is no part of the handshake: reserving a name at the ancestors, and leaving.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import clock
from cluster_controller.documents import decode
from cluster_controller.errors import Conflict, InvalidInput, NotFound
from cluster_controller.identity import attach, standing, starts, token
from cluster_controller.identity.authority import UserCredential
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.revocation import Revocation
from cluster_controller.identity.users import User
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Store, Tx
from cluster_controller.tasks import Tasks
from cluster_controller.tree import admission, listing, people, records, tokens, wire
from cluster_controller.tree.admission import Caller, Entry, Member
from cluster_controller.tree.barring import Barring, refusal
from cluster_controller.tree.child import Child, IdentityHolder, Settings, chain_of, warn_of_skew
from cluster_controller.tree.joins import Joins
from cluster_controller.tree.names import Reservations
from cluster_controller.tree.people import NewCredential, People
from cluster_controller.tree.tokens import NewToken
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
    Welcome,
)

log = structlog.get_logger()

PROBE_SECONDS = 2.0
MAX_START_ID = 64
HELD_RETRY_SECONDS = 10.0
DEFAULT_SETTINGS = Settings()


class Link(Protocol):
    """What is asked of a tunnel's link."""

    peer_uid: str
    peer_name: str
    is_parent: bool
    peer: PeerCertificate | None

    def send_control(self, message: ControlMessage) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    async def probe(self, timeout: float) -> bool: ...


class Instance(Struct, frozen=True):
    """One start that speaks for a cluster. ``kept``: the parent listens to it."""

    id: str
    kept: bool


class Membership:
    """``addresses``: where children reach this controller, HOST:PORT. ``reserve_above``: see `names.Reservations`."""

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
        self._store = store
        self._identity = identity
        self._settings = settings
        self._wall = wall
        self._addresses = addresses
        self._tasks = Tasks("membership")
        self._links: dict[str, Link] = {}
        self._parent: Link | None = None
        self._instances: dict[str, str] = {}  # uid → the start that is connected now
        self.child = Child(store, identity, settings, wall=wall, addresses=addresses)
        self.names = Reservations(store, identity, boottime=boottime)
        self._barring = Barring(store, identity, wall)
        self.people = People(store, identity, self._barring.revoked)
        self._joins = Joins(store, identity, names=self.names, barring=self._barring, links=self, wall=wall)
        self._unsubscribe = store.subscribe(self._changed)

    async def start(self) -> None:
        """Commit this start and begin to renew. Before the tunnel dials."""
        await self.child.begin()
        self._tasks.keep("renew", lambda: self.child.keep_renewed(self._ask_renewal))

    async def close(self) -> None:
        self._unsubscribe()
        await self._tasks.close()

    # --- what the tunnel asks: as a child ---

    async def hello(self) -> Hello:
        return await self.child.hello()

    async def welcomed(self, welcome: Welcome) -> None:
        await self.child.welcomed(welcome)

    def refused(self, refusal: Refusal) -> None:
        self.child.refused(refusal)

    def renew_request(self) -> RenewRequest:
        return self.child.renew_request()

    async def renewed(self, reply: RenewReply) -> None:
        await self.child.renewed(reply)

    # --- what the tunnel asks: as a parent ---

    async def welcome(self, hello: Hello, peer: PeerCertificate, address: str = "") -> Welcome | Refusal:
        """Let a child in, or say why not. Committed before this returns; an older link of the same child is closed."""
        barred = self._barring.bars(peer)
        if barred is not None:
            return barred
        caller = self._caller(hello, peer)
        if isinstance(caller, Refusal):
            return caller
        link = self._links.get(peer.uid)
        known = records.member(self._store, peer.uid)
        entry = admission.judge_hello(caller, known, live=link is not None)
        if entry is Entry.PROBE and link is not None:
            answered = await link.probe(PROBE_SECONDS)
            known = records.member(self._store, peer.uid)
            entry = admission.judge_probed(caller, known, answered and self._links.get(peer.uid) is link)
        if entry is Entry.HOLD:
            return await self._hold(caller)
        return refusal(entry) or await self._admit(hello, caller, address, entry)

    def _caller(self, hello: Hello, peer: PeerCertificate) -> Caller | Refusal:
        if hello.uid != peer.uid or hello.attach is None or hello.attach.uid != peer.uid:
            return Refusal(code=RefusalCode.FORBIDDEN, reason=f"{peer.name} speaks for another cluster than its certificate is for")
        if hello.attach.parent_uid != self._identity().uid:
            return Refusal(code=RefusalCode.FORBIDDEN, reason=f"the attach record of {peer.name} names another parent")
        if not 0 < len(hello.starts) <= starts.MAX_STARTS or not all(0 < len(start.id) <= MAX_START_ID for start in hello.starts):
            return Refusal(code=RefusalCode.INVALID, reason="Hello must list the starts of this cluster, the present one last")
        try:
            attach.verify(wire.attach_record(hello.attach))
        except InvalidInput as error:
            return Refusal(code=RefusalCode.FORBIDDEN, reason=str(error))
        return Caller(peer=peer, attach=hello.attach.attach, starts=tuple(start.id for start in hello.starts))

    async def _admit(self, hello: Hello, caller: Caller, address: str, entry: Entry) -> Welcome | Refusal:
        peer = caller.peer

        def work(tx: Tx) -> Member | Refusal | None:
            known = records.member(tx, peer.uid)
            if known is not None and caller.attach <= known.attach:
                return refusal(Entry.REPLAYED)  # another connection of the same child was faster
            record = admission.welcomed(
                caller, known, number=hello.starts[-1].number, address=address, addresses=hello.addresses, now=self._wall()
            )
            record = msgspec.structs.replace(record, standing_serial=record.standing_serial + 1)
            records.put_member(tx, record)
            listing.show(tx, record, self._me(), "Ready")
            return record

        record = await self._store.commit(work)
        if not isinstance(record, Member):
            return record or Refusal(code=RefusalCode.REPLAYED)
        self._supersede(peer.uid, entry)
        self._instances[peer.uid] = caller.starts[-1]
        log.info("child.admitted", cluster=record.name, uid=record.uid, how=entry.value, attach=record.attach)
        if hello.unix_time:
            warn_of_skew(record.name, self._wall(), hello.unix_time)
        return self._welcome(record, hello)

    def _welcome(self, record: Member, hello: Hello) -> Welcome:
        identity = self._identity()
        signed = standing.sign(record.uid, self._permitted(), record.standing_serial, chain_of(identity), identity.sign)
        path, names = self.path()
        return Welcome(
            uid=identity.uid,
            name=identity.name,
            path=path,
            path_names=names,
            heartbeat_seconds=self._settings.heartbeat_seconds,
            dead_after_seconds=self._settings.dead_after_seconds,
            standing=wire.standing_message(signed),
            features=tuple(feature for feature in hello.features if feature in self._settings.features),
            start_acknowledged=record.start_number,
            software=self._settings.software,
            unix_time=self._wall().timestamp(),
        )

    def _permitted(self) -> list[standing.PermittedParent]:
        """This controller, then those that may take this controller in: whoever stands above may stand in for it."""
        identity = self._identity()
        found = [standing.PermittedParent(identity.uid, identity.name, tuple(self._addresses())[: standing.MAX_ADDRESSES])]
        own = records.standing(self._store)
        found += [parent for parent in own.parents if parent.addresses] if own else []
        return found[: standing.MAX_PARENTS]

    def _supersede(self, uid: str, entry: Entry) -> None:
        old = self._links.pop(uid, None)
        if old is not None:
            reason = "the same cluster has connected anew" if entry is Entry.SUPERSEDE else "another instance was admitted"
            old.close(CloseCode.SUPERSEDED, reason)

    async def _hold(self, caller: Caller) -> Refusal:
        """Two run with one identity: remember the newcomer, tell both."""
        instance, uid = caller.starts[-1], caller.peer.uid

        def work(tx: Tx) -> Member | None:
            known = records.member(tx, uid)
            if known is not None and instance not in known.held:
                known = admission.held(known, instance)
                records.put_member(tx, known)
                listing.show(tx, known, self._me(), "Held")
            return known

        known = await self._store.commit(work)
        name, kept = (known.name, known.starts.start) if known else (caller.peer.name, "")
        reason = (
            f"two instances run as {name}: {kept} is connected, {instance} is held; stop one of them, or decide with "
            f"`banyan cluster keep {name} --instance {instance}`"
        )
        log.error("child.held", cluster=name, uid=uid, connected=kept, held=instance)
        link = self._links.get(uid)
        if link is not None:
            link.send_control(Held(uid=uid, reason=reason, instance=kept))
        return Refusal(code=RefusalCode.HELD, reason=reason, retry_after=HELD_RETRY_SECONDS)

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        return await self._joins.join(request, address)

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        return self._joins.renew(request, peer)

    # --- links ---

    def link_up(self, link: Link) -> None:
        if link.is_parent:
            self._parent = link
        else:
            self._links[link.peer_uid] = link

    def link_down(self, link: Link, reason: str) -> None:
        if link.is_parent:
            if self._parent is link:
                self._parent = None
        elif self._links.get(link.peer_uid) is link:
            del self._links[link.peer_uid]

    def control(self, link: Link, message: ControlMessage) -> None:
        """Held, Revoked, Path and RenewReply come from the parent; what else comes is not membership's."""
        if not link.is_parent:
            if isinstance(message, RenewRequest):
                log.warning("renew.unexpected", cluster=link.peer_name)
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

    def _told_of_revocation(self, message: Revoked) -> None:
        uid = self._identity().uid
        for one in message.revocations:
            if one.uid == uid:
                self.child.trouble = one.reason
                log.error("cluster.revoked", reason=one.reason, remedy="join with a fresh data folder and a new token")

    def _path_changed(self, message: Path) -> None:
        uid = self._identity().uid
        if uid in message.uids:
            if self._parent is not None:
                self._parent.close(CloseCode.LOOP, "this cluster stands above the parent that it dialled")
            return
        self.child.path, self.child.path_names = message.uids, message.names
        path, names = self.path()
        for link in self._links.values():
            link.send_control(Path(uids=path, names=names))

    def _me(self) -> tuple[str, str]:
        return self._identity().uid, self._identity().name

    def path(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """uids and names from the root down to this controller, as far as they are known."""
        identity = self._identity()
        if identity.is_root:
            return (identity.uid,), (identity.name,)
        above = self.child.path or identity.path[:-1]
        return (*above, identity.uid), (*self.child.path_names, identity.name)

    def _ask_renewal(self, request: RenewRequest) -> bool:
        if self._parent is None:
            return False
        self._parent.send_control(request)
        return True

    # --- what people decide ---

    def prepare_token(self, name: str, spec: kinds.JoinTokenSpec) -> NewToken:
        """For the API's create of a JoinToken: what to store, and the text to show once."""
        return tokens.new_token(self._identity(), name, spec, self._addresses(), self._wall())

    def prepare_user(self, name: str, spec: kinds.UserSpec) -> NewCredential:
        """For the API's create of a User: what to store, and what to show once."""
        return people.new_credential(self._identity(), name, spec, self._wall())

    async def create_token(self, name: str = "", spec: kinds.JoinTokenSpec | None = None) -> tuple[kinds.JoinToken, str]:
        """A stored JoinToken and its text. AlreadyExists when the name is taken."""
        name, spec = name or token.new_id(), spec or kinds.JoinTokenSpec()
        prepared = self.prepare_token(name, spec)
        made = records.new_object(name, spec, prepared.stored, "JoinToken", self._wall())
        await self._store.commit(lambda tx: records.add(tx, records.token_key(name), made))
        return decode(made[1], kinds.JoinToken), prepared.text

    def list_tokens(self) -> list[kinds.JoinToken]:
        return records.tokens(self._store)

    async def revoke_token(self, name: str) -> None:
        """NotFound when there is none. A used token stays used: what joined with it is revoked as a cluster."""
        await self._store.commit(lambda tx: records.revoke_token(tx, name))

    async def create_user(self, name: str, spec: kinds.UserSpec) -> tuple[kinds.User, Mapping[str, str]]:
        """A stored User, and certificate and key, or token, to show once. AlreadyExists when the name is taken."""
        prepared = self.prepare_user(name, spec)
        made = records.new_object(name, spec, prepared.stored, "User", self._wall())
        await self._store.commit(lambda tx: records.add(tx, records.user_key(name), made))
        return decode(made[1], kinds.User), prepared.shown

    async def revoke_user(self, name: str) -> None:
        """Bars the user's credential here, below, and at the ancestors."""
        await self._store.commit(lambda tx: records.revoke_user(tx, name, records.format_time(self._wall())))

    def members(self) -> list[Member]:
        return sorted(records.members(self._store).values(), key=lambda one: one.name)

    def instances(self, name: str) -> list[Instance]:
        """The starts that speak for a member: the connected or last one, and those that are held."""
        record = self._find(self._store, name)
        return [Instance(record.starts.start, True), *(Instance(one, False) for one in record.held)]

    def _find(self, view: records.View, name: str) -> Member:
        """By name or uid; NotFound."""
        found = [one for one in records.members(view).values() if name in (one.uid, one.name)]
        standing_ones = [one for one in found if one.state in admission.STANDING_STATES]
        if not found:
            raise NotFound(f"{name} is no member of {self._identity().name}; `banyan cluster list` shows who is")
        return (standing_ones or found)[0]

    async def approve(self, name: str) -> Member:
        """Let a waiting cluster in: its next question is answered with certificates. Approving twice is approving once."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if record.state in ("approved", "member"):
                return record
            if record.state != "pending":
                raise Conflict(f"{name} does not wait for approval: it is {record.state}")
            record = msgspec.structs.replace(record, state="approved")
            records.put_member(tx, record)
            return record

        return await self._store.commit(work)

    async def revoke_cluster(self, name: str, reason: str = "") -> Member:
        """Bar a member with everything below it, here and wherever the revocation travels, and cut its link."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            return self._retire(tx, record, "revoked", reason or "revoked by a person")

        record = await self._store.commit(work)
        self._cut(record.uid, CloseCode.REVOKED, f"{record.name} was revoked")
        return record

    def _retire(self, tx: Tx, record: Member, state: admission.State, reason: str) -> Member:
        retired = msgspec.structs.replace(record, state=state)
        records.put_member(tx, retired)
        records.revoke(tx, Revocation("cluster", record.uid, record.name, reason, records.format_time(self._wall())))
        if state == "revoked":
            listing.show(tx, retired, self._me(), "Revoked")
        return retired

    async def keep_cluster(self, name: str, instance: str) -> Member:
        """Of two instances with one identity, keep ``instance``; the others stay out, also when they start again."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if instance not in (record.starts.start, *record.held):
                known = ", ".join((record.starts.start, *record.held))
                raise NotFound(f"{name} has no instance {instance}; there are {known}")
            kept = admission.keep(record, instance)
            records.put_member(tx, kept)
            listing.show(tx, kept, self._me(), "Ready")
            return kept

        record = await self._store.commit(work)
        if self._instances.get(record.uid, "") not in ("", instance):
            self._cut(record.uid, CloseCode.HELD, f"instance {instance} was kept instead of this one")
        return record

    async def remove_cluster(self, name: str) -> Member:
        """Forget a member that is gone for good: its name is free, its Work and reports go. Conflict while it is connected."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if record.uid in self._links:
                raise Conflict(f"{name} is connected; run `banyan leave` there, or `banyan cluster revoke {name}`")
            return self._remove(tx, record, "removed")

        return await self._store.commit(work)

    def _remove(self, tx: Tx, record: Member, state: admission.State) -> Member:
        gone = msgspec.structs.replace(record, state=record.state if record.state == "revoked" else state)
        records.put_member(tx, gone)
        listing.forget(tx, self._store, gone)
        return gone

    def loopback_admin(self) -> UserCredential:
        """The on-site admin's certificate and key; `Identity.api_anchors` is the CA that belongs beside them."""
        return self._identity().admin_credential(self._wall())

    # --- authentication ---

    def authenticate_certificate(self, chain: Sequence[bytes], now: datetime, remote: str | None = None) -> User:
        """Unauthenticated, with the reason, for whoever is not known."""
        return self.people.certificate(chain, now, remote)

    def authenticate_bearer(self, text: str, now: datetime) -> User:
        return self.people.bearer(text, now)

    def authenticate_again(self, user: User, now: datetime) -> User:
        """At a later request on the same connection."""
        return self.people.again(user, now)

    # --- what changes ---

    def _changed(self, events: Sequence[Event]) -> None:
        if any(event.stored.key.kind == "User" and event.stored.key.space == records.OWN for event in events):
            self.people.changed()
        if self._barring.changed(events):
            self._cut_barred()
            self._tasks.spawn("revocations", self._barring.spread())

    def _cut_barred(self) -> None:
        for uid, link in list(self._links.items()):
            reason = self._barring.link(link.peer) if link.peer is not None else ""
            if reason:
                self._cut(uid, CloseCode.REVOKED, reason)

    def connected(self) -> frozenset[str]:
        return frozenset(self._links)

    def cut_revoked(self, uid: str, reason: str) -> None:
        self._cut(uid, CloseCode.REVOKED, reason)

    def _cut(self, uid: str, code: CloseCode, reason: str) -> None:
        """Tell a child why, then close its link at once."""
        link = self._links.pop(uid, None)
        self._instances.pop(uid, None)
        if link is None:
            return
        log.warning("child.cut", cluster=link.peer_name, uid=uid, code=code.name, reason=reason)
        if code is CloseCode.REVOKED:
            link.send_control(wire.revoked_message(uid, reason))
        link.close(code, reason)
