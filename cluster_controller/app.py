"""One controller, put together: store, identity, membership, tunnel, placement, models, and the own cluster behind its shim.

`Controller` is the only place where the rooms meet. It takes its shim as an argument and knows no API: what serves people stands on
top of it (`openapi`), so that arrows go one way.

A start goes from the disk outwards: the store first, then what runs here (with no parent in reach, everything does), then the
port for children, then the parent.
"""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog

from cluster_controller import clock, drill, reports, restored
from cluster_controller.config import Config, split_address
from cluster_controller.distance import ParentDistance, UserDistances
from cluster_controller.documents import Documents
from cluster_controller.drill import Doors, Drill
from cluster_controller.errors import Conflict, NotFound, StoreError, Unreachable
from cluster_controller.facts import Present, Requested, cluster_facts
from cluster_controller.hosts import ANY_HOST, own_hosts
from cluster_controller.identity import PeerCertificate
from cluster_controller.identity import load as load_identity
from cluster_controller.links import Links
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.library import Library, OpenUpstream
from cluster_controller.models.pace import Pace
from cluster_controller.models.shelf import Shelf
from cluster_controller.moves.driver import Driver as Moves
from cluster_controller.moves.lineage import Lineage
from cluster_controller.moves.part import Part
from cluster_controller.placement.engine import Engine
from cluster_controller.reconcile.holds import Holds
from cluster_controller.reconcile.reconciler import Reconciler
from cluster_controller.resources import kinds, quantity
from cluster_controller.rollout.measuring import Measuring
from cluster_controller.rotation import Rotation
from cluster_controller.store import Key, Store
from cluster_controller.store import Limits as StoreLimits
from cluster_controller.tasks import Tasks
from cluster_controller.tree.astray import Astray
from cluster_controller.tree.census import Census
from cluster_controller.tree.child import IdentityHolder, Settings
from cluster_controller.tree.failover import Policy as Failover
from cluster_controller.tree.failover import home_ancestors
from cluster_controller.tree.known import Heard
from cluster_controller.tree.membership import Membership
from cluster_controller.tree.news import News
from cluster_controller.tree.upward import Upward
from cluster_controller.tunnel.limits import Limits as TunnelLimits
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import (
    ControlMessage,
    Hello,
    JoinReply,
    JoinRequest,
    Lane,
    Refusal,
    RenewReply,
    RenewRequest,
    Welcome,
)
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.tunnel import Tunnel
from cluster_controller.windows import Windows
from cluster_shim.contract import ByteStream, Description, Node, OpenTarget, Shim

log = structlog.get_logger()

BLOB = "blob"
STORE_LIMITS = StoreLimits()
LEAF_STORE_LIMITS = StoreLimits(journal_rows=2_000, journal_bytes=4 * 1024 * 1024)  # nobody syncs from a leaf but its parent
LOST_SECONDS = 5.0  # from a disk that was lost until the process begins anew
RENEW_SECONDS = 30.0  # for the parent's answer
TUNNEL_PORT = "app/tunnel-port"  # fact: the port that was bound last, taken again when any will do


class Controller:
    """``shim`` None: a controller without a cluster of its own. `start`, then `stop`."""

    store: Store
    membership: Membership
    tunnel: Tunnel
    engine: Engine
    census: Census
    library: Library
    reconciler: Reconciler | None

    def __init__(self, config: Config, shim: Shim | None, *, version: str) -> None:
        self.config = config
        self.shim = shim
        self.version = version
        self.documents = Documents()
        self.description: Description | None = None
        self._nodes_told = False  # since this start; a cluster may have none
        self._tasks = Tasks("controller")
        self._dialling = Tasks("dialling")
        self.reconciler = None
        self._way: Callable[[str], str | None] = lambda uid: None
        self.restart: Callable[[], None] = lambda: None  # begin this process anew; whoever runs the controller sets it
        self.tunnel_port = 0

    # --- life ---

    async def start(self) -> None:
        """Raises what keeps a controller from starting: StoreError, InvalidInput, Conflict (a port in use), NotFound (no identity)."""
        config = self.config
        self.identity = IdentityHolder(config.identity_folder, load_identity(config.identity_folder))
        self.store = await Store.open(config.data, STORE_LIMITS if config.tunnel_listen else LEAF_STORE_LIMITS)
        self.store.lost = self._disk_lost
        try:
            await self._build()
            await self._listen()
        except BaseException:
            await self.stop()
            raise
        self._dial()
        self.drill.resume()
        log.info("controller.started", cluster=self.name, uid=self.uid, tunnel_port=self.tunnel_port, version=self.version)

    def _disk_lost(self, error: StoreError) -> None:
        """Nothing can be kept any more, so whatever changes from here on would be shown as it was. What is on the disk is known
        once the store is opened again: this process begins anew, after a while, for the disk may go on failing."""
        log.error("controller.begins_anew", cluster=self.name, after_s=LOST_SECONDS, error=str(error))
        asyncio.get_running_loop().call_later(LOST_SECONDS, self.restart)

    def _dial(self) -> None:
        if not self.identity().is_root:
            proxy = self.config.proxy or None
            self._dialling.keep("parent", lambda: self.tunnel.follow(self.membership.course(), proxy))

    async def _build(self) -> None:
        config, store = self.config, self.store
        await restored.settle(store)
        self.requested = Requested(store)
        settings = Settings(
            software=f"banyan {self.version}",
            heartbeat_seconds=config.heartbeat_seconds,
            dead_after_seconds=3 * config.heartbeat_seconds,
            failover=Failover(
                allow=config.failover_allow,
                alternates=config.failover_alternates,
                stable_seconds=config.failover_return_seconds,
                guests=config.guests,
            ),
        )
        self.membership = Membership(store, self.identity, settings, addresses=self.tunnel_addresses)
        limits = TunnelLimits(heartbeat=config.heartbeat_seconds, dead_after=3 * config.heartbeat_seconds)
        self.tunnel = Tunnel(self.identity, _Doors(self), self.membership.router, limits)
        self.membership.bind(self.tunnel, config.proxy or None)
        blobs = await BlobStore.open(config.blob_folder, quantity.units(config.blob_budget, "blob_budget"))
        self.present = Present(store, blobs.missing)
        pace = Pace(quantity.units(config.model_rate or "0", "model_rate"), Windows(config.model_windows))
        self.library = Library(blobs, config.model_folder, None if self.identity().is_root else self._blobs_above, pace)
        reporter = self.reporter = await reports.begin(store, self.uid, clock.wall())
        self.links = Links(store, self.tunnel, self.uid, self._link_changed, self.membership.kin)
        self.links.set_back = self.report_anew
        self.links.reported = self._reported_under
        self.census = Census(
            store,
            reporter,
            uid=self.uid,
            name=self.name,
            parent=lambda: (self.identity().parent_uid, self.identity().saved.parent_name),
            facts=self.facts,
            links=self.links.heard,
            now=clock.boottime,
            timestamp=clock.timestamp,
            path=lambda: self.identity().path,
            adopter=lambda: self.membership.adopter[1] if self.membership.adopter is not None else "",
            carried=lambda: self.membership.away.live,
            way=lambda uid: self._way(uid),  # noqa: PLW0108  (made later)
        )
        self.membership.silence = self.links.silence
        self.tunnel.handle(BLOB, self._serve_blob)
        self.engine = Engine(
            store,
            reporter,
            uid=self.uid,
            name=self.name,
            silent=self.census.silent,
            silence=self.census.silence,
            now=clock.boottime,
            timestamp=clock.timestamp,
            strays=self.membership.away.heard,
            astray=lambda: self.membership.away.strays,
        )
        self.membership.away.returned = self.engine.link_changed
        self.astray = Astray(store, uid=self.uid, heard=self.membership.away.heard)
        self.distance = ParentDistance(self._parent_rtt, self.census.self_changed)
        self._tasks.keep("distance", self.distance.run)
        self.users = UserDistances(lambda: self.census.users, self.census.self_changed)
        self.census.users_named = self.users.named
        self._tasks.keep("users", self.users.run)
        self.upward = Upward(
            store,
            reporter,
            uid=self.uid,
            name=self.name,
            silent=self.census.silent,
            timestamp=clock.timestamp,
            strays=self.membership.away.heard,
        )
        if self.shim is not None:
            self.reconciler = Reconciler(store, self.shim, self.library, uid=self.uid, name=self.name, nodes_changed=self._nodes_changed)
            store.subscribe(self.reconciler.changed, kinds=self.reconciler.heeds)
            self._tasks.keep("reconcile", self.reconciler.run)
            self.measuring = Measuring(self.shim.open, self.reconciler.sight.running, self.engine.look_at, clock.boottime)
            self.engine.measured_by(self.measuring.judge, self.measuring.forget)
            self._tasks.keep("measuring", self.measuring.run)
        self.shelf = Shelf(store, blobs)
        self.rotation = Rotation(store, self.identity, renew=self._renew, changed=self.census.self_changed, wall=clock.wall)
        self.drill = Drill(
            store,
            Doors(
                cut=self._dialling.close,
                mend=self._dial,
                restart=self.restart,
                linked=lambda: self.identity().is_root or self.tunnel.parent is not None,
                seen=lambda: self.shim is None or self._nodes_told,
                chosen=lambda target: self.reconciler.sight.chosen(target) if self.reconciler is not None else (),
                well=lambda target: self.reconciler is None or self.reconciler.sight.well(target),
                signal=drill.tell,
            ),
            me=lambda: (self.uid, self.name),
            root=self.identity().is_root,
            wall=clock.wall,
        )
        self.part = Part(
            store,
            self.identity,
            self.membership,
            self.tunnel,
            self.links,
            addresses=self.tunnel_addresses,
            moved=self.rotation.tell,
            wall=clock.wall,
            proxy=config.proxy or None,
        )
        self.moves = Moves(
            store,
            self.engine,
            self.tunnel,
            self.part,
            me=lambda: (self.uid, self.name),
            way=self.membership.router.next_hop,
            wall=clock.wall,
        )
        self._way = self.moves.way
        lineage = Lineage(store, self.identity, renew=self._renew, takes_over=self.part.takes_over)
        self.rotation.listeners.append(lineage.again)
        for room in (
            self.moves,
            lineage,
            self.rotation,
            self.census,
            self.engine,
            self.upward,
            self.astray,
            News(store, reporter, name=self.name, tells=not self.identity().is_root),
            self.shelf,
            restored.AfterRestore(store, uid=self.uid, timestamp=clock.timestamp),
        ):
            room.load()
            store.subscribe(room.changed, kinds=room.heeds)
            self._tasks.keep(type(room).__name__.lower(), room.run)
        holds = Holds(store, blobs)
        holds.load()
        store.subscribe(holds.changed, kinds=holds.heeds)
        await self.membership.start()

    async def _listen(self) -> None:
        if not self.config.tunnel_listen or not self.identity().may_issue:
            return
        host, port = split_address(self.config.tunnel_listen, "tunnel_listen")
        remembered = int(self.store.fact(TUNNEL_PORT) or b"0")
        if not port and remembered:
            with contextlib.suppress(Conflict):  # somebody else has it now: children are told the new one by a new token
                self.tunnel_port = await self.tunnel.serve(host, remembered)
        if not self.tunnel_port:
            self.tunnel_port = await self.tunnel.serve(host, port)
        await self.store.commit(lambda tx: tx.set_fact(TUNNEL_PORT, str(self.tunnel_port).encode()))

    async def stop(self) -> None:
        """Let go of everything. What runs here runs on. Each step is taken although one before it failed or was cut short."""
        async with contextlib.AsyncExitStack() as steps:  # last in, first out
            steps.push_async_callback(self.store.close)
            close = getattr(self.shim, "close", None)
            if close is not None:
                steps.push_async_callback(close)
            if hasattr(self, "membership"):
                steps.push_async_callback(self.membership.close)
            steps.push_async_callback(self._tasks.close)
            if hasattr(self, "part"):
                steps.push_async_callback(self.part.close)
            if hasattr(self, "links"):
                steps.push_async_callback(self.links.close)
            if hasattr(self, "tunnel"):
                steps.push_async_callback(self.tunnel.close)
            steps.push_async_callback(self._dialling.close)  # else the parent is dialled again while its link closes
            if hasattr(self, "drill"):
                steps.push_async_callback(self.drill.close)  # first: what it ends dials the parent again
        log.info("controller.stopped", cluster=self.name)

    # --- who this is ---

    @property
    def uid(self) -> str:
        return self.identity().uid

    @property
    def name(self) -> str:
        return self.identity().name

    def tunnel_addresses(self) -> Sequence[str]:
        """Where children reach this controller, HOST:PORT; empty when it takes none."""
        if self.config.tunnel_advertise:
            return self.config.tunnel_advertise
        if not self.tunnel_port:
            return ()
        host, _ = split_address(self.config.tunnel_listen, "tunnel_listen")
        hosts = [host] if host not in ANY_HOST else own_hosts()
        return [f"[{one}]:{self.tunnel_port}" if ":" in one else f"{one}:{self.tunnel_port}" for one in hosts]

    def facts(self) -> kinds.ClusterFacts:
        """What this cluster says of itself. Until the shim has answered after a start, what it said before the start still holds:
        a cluster that is only being looked at again has not lost its nodes."""
        nodes = self.reconciler.nodes if self.reconciler is not None else ()
        labels = self.identity().saved.labels | self.config.labels
        fresh = cluster_facts(
            self.store,
            self.requested,
            nodes=nodes,
            description=self.description,
            version=self.version,
            authority=self.identity().authority_name,
            labels=labels,
            can_parent=self.identity().may_issue,
            shim_trouble=self.reconciler.trouble if self.reconciler is not None else "",
            models=self.present.models(),
            parent_rtt_millis=self.distance.millis,
            user_rtt_millis=self.users.millis,
        )
        if self.shim is None or (self._nodes_told and self.description is not None):
            return fresh
        stored = self.store.find("own", "Cluster", self.uid)
        if stored is None:
            return fresh
        before = self.documents.read(stored, kinds.Cluster).status.facts
        return msgspec.structs.replace(
            before,
            version=self.version,
            authority=fresh.authority,
            labels=labels,
            can_parent=fresh.can_parent,
            conflicts=fresh.conflicts,
            shim_trouble=fresh.shim_trouble,
            models=fresh.models,
            parent_rtt_millis=fresh.parent_rtt_millis,
            user_rtt_millis=fresh.user_rtt_millis,
        )

    def _parent_rtt(self) -> float | None:
        return self.tunnel.parent.rtt if self.tunnel.parent is not None else None

    def _link_changed(self, child: str, last_heard: float | None) -> None:
        """A link to a direct child came up (None) or was lost: all that is shown of what is below it changes."""
        self.census.link_changed(child, last_heard)
        self.engine.link_changed(child)
        self.upward.link_changed(child)
        self.astray.link_changed(child)

    def report_anew(self, beyond: int = 0) -> None:
        """The parent no longer knows which of this cluster's words are its newest. ``beyond``: the start of those that it takes for it."""
        log.warning(
            "reports.anew", cluster=self.name, reason="another instance has spoken for this cluster, or its data folder was set back"
        )
        self._tasks.spawn("report-anew", self.reporter.again(self.store, clock.wall(), beyond))

    def _reported_under(self, start: int) -> None:
        """An ancestor takes all that is said under an earlier start for old: another instance, whose clock was ahead, has spoken."""
        if self.reporter.start < start < reports.MOST_STARTS:
            self.report_anew(start)

    def _nodes_changed(self, nodes: Sequence[Node]) -> None:
        self._nodes_told = True
        if self.description is None and self.shim is not None:
            self._tasks.spawn("describe", self._describe(self.shim))
        self.census.self_changed()

    async def _describe(self, shim: Shim) -> None:
        self.description = await shim.describe()
        self.census.self_changed()

    async def _renew(self) -> bool:
        return await self.membership.child.renew_once(self.membership.ask_renewal, RENEW_SECONDS)

    # --- reaching others ---

    async def open(self, uid: str, service: str, metadata: bytes = b"", lane: Lane = Lane.INTERACTIVE) -> Stream:
        """A routed stream to a controller of the subtree. Unreachable names the hop."""
        try:
            return await self.tunnel.open(uid, service, metadata, lane)
        except Unreachable as error:
            heard = self.heard(uid)
            if heard is None:
                raise
            hop = f": {heard.broken_hop} is cut" if heard.broken_hop else ""
            least = "at least " if heard.at_least else ""
            raise Unreachable(f"{self.cluster_name(uid)} is out of reach{hop}; last heard {least}{heard.seconds:.0f} s ago") from error

    async def open_local(self, target: OpenTarget) -> ByteStream:
        if self.shim is None:
            raise NotFound(f"{self.name} has no cluster of its own; ask one of its members")
        return await self.shim.open(target)

    def heard(self, uid: str) -> Heard | None:
        return self.census.heard(uid)

    def cluster_uid(self, name: str) -> str:
        """Of a cluster of the subtree, by name, alias or uid; NotFound lists none, so that names do not leak."""
        stored = self.store.get(Key("own", "Cluster", "", name)) or self.store.find("own", "Cluster", name)
        if stored is not None:
            return stored.uid
        raise NotFound(f"no cluster {name} in the subtree of {self.name}; `banyan tree` shows those that are")

    def cluster_name(self, uid: str) -> str:
        stored = self.store.find("own", "Cluster", uid)
        return stored.key.name if stored is not None else uid

    # --- models ---

    def _blobs_above(self) -> Sequence[OpenUpstream]:
        """Whom to ask for a blob: whoever sync goes to, then its ancestors, nearest first; the way there leads over the same link."""
        identity = self.identity()
        nearest = self.links.above or identity.parent_uid
        above = home_ancestors(nearest, identity.path[: identity.path.index(nearest)] if nearest in identity.path else ())
        return [functools.partial(self._open_blobs_at, uid) for uid in above]

    async def _open_blobs_at(self, uid: str) -> ByteStream:
        return await self.tunnel.open(uid, BLOB, lane=Lane.BULK)

    async def _serve_blob(self, stream: Stream) -> None:
        self.links.require_below(stream)
        await self.library.serve(stream)

    # --- health ---

    def ready(self) -> Mapping[str, str]:
        """Each readiness check with an empty string, or why it fails."""
        trouble = self.store.trouble
        store = f"{trouble.error} (for {clock.boottime() - trouble.since:.0f} s)" if trouble is not None else ""
        if self.shim is None:
            return {"store": store}
        why = f": {self.reconciler.trouble}" if self.reconciler is not None and self.reconciler.trouble else ""
        return {"store": store, "shim": "" if self.description is not None else f"the cluster's shim has not answered yet{why}"}


class _Doors:
    """What the tunnel asks goes to the membership; what a link means to the other rooms is told from here."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._membership = controller.membership

    async def hello(self, parent: str) -> Hello:
        return await self._membership.hello(parent)

    async def welcome(self, hello: Hello, peer: PeerCertificate) -> Welcome | Refusal:
        return await self._membership.welcome(hello, peer)

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        return await self._membership.join(request, address)

    async def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        return await self._membership.renew(request, peer)

    def link_up(self, link: Link) -> None:
        self._membership.link_up(link)
        if link.is_parent:
            self._controller.distance.look()  # the kernel has timed the handshake
            self._controller.census.self_changed()  # perhaps another one carries it
            if link.welcome is not None and link.welcome.report_anew:
                self._controller.report_anew()
        if not link.closed:  # one that lost its race against a newer attach by another way is down already
            self._controller.links.up(link)

    def link_down(self, link: Link, reason: str) -> None:
        self._membership.link_down(link, reason)
        self._controller.links.down(link)

    def control(self, link: Link, message: ControlMessage) -> None:
        self._membership.control(link, message)
