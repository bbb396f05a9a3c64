"""Children and descendants whose words come through somebody else than their home parent: who they are, and whether to believe it.

A cluster that was adopted opens its sync stream to its home parent, through the adopter; where home is out of reach, to the nearest
ancestor that is not. It shows its attach record, its starts and its certificates; each relay has vouched for the hops. At home it is
judged as if it had connected: an attach older than one that was seen is dropped, a copied data folder is held. Elsewhere it is a
*stray*: what it reports is kept in a space of its own, ``stray/CHILD``, until its home reports it again.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.errors import Forbidden, InvalidInput, StoreError
from cluster_controller.identity import attach, certificates
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.starts import MAX_STARTS
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Store, Tx
from cluster_controller.sync.target import cursor_fact
from cluster_controller.tasks import Tasks
from cluster_controller.tree import admission, listing, records
from cluster_controller.tree.admission import Caller, Entry, Member
from cluster_controller.tree.barring import Barring, refusal
from cluster_controller.tree.links import Links
from cluster_controller.tunnel.messages import CloseCode, Held

log = structlog.get_logger()

MAX_STRAYS = 10_000
MAX_BYTES = 32 * 1024
MAX_NAME = 253
PROBE_SECONDS = 2.0


class Arrival(Struct, frozen=True, kw_only=True):
    """What an adopted cluster shows with its sync stream. ``chain``: its certificates, DER, leaf first."""

    attach: attach.Attach
    starts: tuple[str, ...]
    number: int
    chain: tuple[bytes, ...]
    adopter: str  # name, for people


def space_of(uid: str) -> str:
    """Where an ancestor keeps what a stray reports."""
    return f"stray/{uid}"


def encode(arrival: Arrival) -> bytes:
    return msgspec.msgpack.encode(arrival)


def decode(data: bytes) -> Arrival:
    if len(data) > MAX_BYTES:
        raise InvalidInput("an arrival out of bounds")
    try:
        return msgspec.msgpack.decode(data, type=Arrival)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"an arrival that this version does not know: {error}") from error


class Away:
    """Judges arrivals at one controller; `live` is kept by whoever serves the streams (`cluster_controller.links`)."""

    def __init__(
        self, store: Store, identity: Callable[[], Identity], *, barring: Barring, links: Links, wall: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._identity = identity
        self._barring = barring
        self._links = links
        self._wall = wall
        self._tasks = Tasks("away")
        self.returned: Callable[[str], None] = lambda uid: None  # a stray is back at home
        self.live: dict[str, str] = {}  # whose words come through an adopter now → the adopter's name
        self._strays: set[str] = set(records.strays(store))

    async def close(self) -> None:
        await self._tasks.close()

    async def arrived(self, metadata: bytes, source: Sequence[str]) -> tuple[str, bool, str]:
        """Who opened the stream, whether this controller is its home, and the adopter's name.

        ``source``: the hops, nearest first, as relays vouch. Committed before this returns. Forbidden says why it is not believed.
        """
        arrival = decode(metadata)
        uid, adopter = source[-1], source[-2] if len(source) > 1 else self._identity().uid
        peer = self._verified(arrival, uid, adopter)
        me = self._identity().uid
        if me not in (peer.home, *peer.issuers):
            raise Forbidden(f"{peer.name} does not stand below this controller")
        barred = self._barring.link(peer)
        if barred:
            raise Forbidden(barred)
        if peer.home == me:
            await self._at_home(arrival, peer, adopter)
        else:
            await self._stray(arrival, peer)
        return uid, peer.home == me, arrival.adopter[:MAX_NAME]

    def _verified(self, arrival: Arrival, uid: str, adopter: str) -> PeerCertificate:
        signed = arrival.attach
        if signed.uid != uid or signed.parent != adopter or not 0 < len(arrival.starts) <= MAX_STARTS:
            raise Forbidden(f"the attach record of {uid} is not about the way by which it comes")
        try:
            attach.verify(signed)
            certificates.verify_chain([certificates.parse(one) for one in arrival.chain], self._identity().tree_ca)
            peer = certificates.peer_identity(arrival.chain)
        except InvalidInput as error:
            raise Forbidden(str(error)) from error
        if peer.uid != uid:
            raise Forbidden(f"the certificates shown are those of {peer.name}, not of {uid}")
        return peer

    # --- at home ---

    async def _at_home(self, arrival: Arrival, peer: PeerCertificate, adopter: str) -> None:
        barred = self._barring.bars(peer, renewing=True)
        if barred is not None:
            raise Forbidden(barred.reason)
        caller = Caller(peer=peer, attach=arrival.attach.attach, starts=arrival.starts)
        known = records.member(self._store, peer.uid)
        if known is not None and known.attach == caller.attach and known.adopted_by == adopter and known.started.start in caller.starts:
            return  # the same connection of its own, and another stream
        link = self._links.get(peer.uid)
        entry = admission.judge_hello(caller, known, live=link is not None)
        if entry is Entry.PROBE and link is not None:
            answered = await link.probe(PROBE_SECONDS)
            known = records.member(self._store, peer.uid)
            entry = admission.judge_probed(caller, known, answered and self._links.get(peer.uid) is link)
        if entry is Entry.HOLD:
            await self._hold(caller)
        refused = refusal(entry)
        if refused is not None:
            raise Forbidden(refused.reason)
        await self._admit(arrival, caller, adopter)
        log.info("child.away", cluster=peer.name, uid=peer.uid, adopter=arrival.adopter, how=entry.value, attach=caller.attach)
        link = self._links.get(peer.uid)
        if link is not None and link.hello is not None and link.hello.attach is not None and link.hello.attach.attach < caller.attach:
            link.close(CloseCode.SUPERSEDED, f"the same cluster has connected by way of {arrival.adopter}")

    async def _admit(self, arrival: Arrival, caller: Caller, adopter: str) -> None:
        def work(tx: Tx) -> bool:
            known = records.member(tx, caller.peer.uid)
            if known is not None and caller.attach <= known.attach:
                return False
            addresses = known.addresses if known is not None else ()
            record = admission.welcomed(caller, known, number=arrival.number, address="", addresses=addresses, now=self._wall())
            record = msgspec.structs.replace(record, adopted_by=adopter)
            records.put_member(tx, record)
            listing.show(tx, record, (self._identity().uid, self._identity().name), "Ready")
            return True

        if not await self._store.commit(work):
            raise Forbidden("this attach, or a later one, was seen before")

    async def _hold(self, caller: Caller) -> None:
        """Two run with one identity, one of them through an adopter: remember it, tell both."""
        uid, instance = caller.peer.uid, caller.starts[-1]

        def work(tx: Tx) -> Member | None:
            known = records.member(tx, uid)
            known = admission.waiting(known, caller) if known is not None else None
            if known is not None and instance in known.held:
                records.put_member(tx, known)
                listing.show(tx, known, (self._identity().uid, self._identity().name), "Held")
            return known

        try:
            known = await self._store.commit(work)
        except StoreError as error:  # it is not believed for that: what is not kept is judged anew, when it comes again
            log.warning("child.held_unwritten", cluster=caller.peer.name, uid=uid, held=instance, error=str(error))
            known = records.member(self._store, uid)
        kept = known.started.start if known is not None else ""
        reason = (
            f"two instances run as {caller.peer.name}: {kept} is connected, {instance} is held; stop one of them, or decide with "
            f"`banyan cluster keep {caller.peer.name} --instance {instance}`"
        )
        log.error("child.held", cluster=caller.peer.name, uid=uid, connected=kept, held=instance)
        link = self._links.get(uid)
        if link is not None:
            link.send_control(Held(uid=uid, reason=reason, instance=kept))
        raise Forbidden(reason)

    # --- strays ---

    @property
    def strays(self) -> frozenset[str]:
        """Descendants that are no children, of which something is kept in ``stray/CHILD``."""
        return frozenset(self._strays)

    def heard(self) -> frozenset[str]:
        """Those of them whose words come now."""
        return frozenset(self._strays & self.live.keys())

    def _let_go(self, peer: PeerCertificate) -> str:
        """The name of the child by way of which ``peer`` stood below this controller and that has left it since; "": it is there."""
        me = self._identity().uid
        above = peer.issuers.index(me) if me in peer.issuers else 0
        child = records.member(self._store, peer.issuers[above - 1]) if above else None
        return child.name if child is not None and child.state == "left" else ""

    async def _stray(self, arrival: Arrival, peer: PeerCertificate) -> None:
        gone = self._let_go(peer)
        if gone:
            raise Forbidden(f"{peer.name} stood below {gone}, which has left this controller")
        route = self._links.router.record(peer.uid)
        if route is not None and route.attach > arrival.attach.attach:
            raise Forbidden(f"a newer attach of {peer.name} is known")
        if peer.uid not in self._strays:
            if len(self._strays) >= MAX_STRAYS:
                raise Forbidden(f"{MAX_STRAYS} strays are kept here already; bring their homes back, or remove them")
            self._strays.add(peer.uid)
            await self._keep()
        log.info("stray.heard", cluster=peer.name, uid=peer.uid, adopter=arrival.adopter, home=peer.home)

    async def _keep(self) -> None:
        held = msgspec.json.encode(sorted(self._strays))
        await self._store.commit(lambda tx: tx.set_fact(records.FACT_STRAYS, held))

    def changed(self, events: Sequence[Event]) -> None:
        """A stray that its home reports as Ready again is one no longer."""
        for event in events:
            key = event.stored.key
            if key.kind != "ClusterStatus" or key.name not in self._strays or not key.space.startswith("up/") or event.kind_of != "put":
                continue
            if key.name not in self.live and _is_ready(event.stored.document):
                self._tasks.spawn("back", self._forget(key.name))

    async def _forget(self, uid: str) -> None:
        def work(tx: Tx) -> None:
            for stored in tx.scan(space_of(uid)):
                tx.delete(stored.key)
            tx.set_fact(cursor_fact(space_of(uid)), None)
            tx.set_fact(records.FACT_STRAYS, msgspec.json.encode(sorted(self._strays - {uid})))

        if uid in self.live or uid not in self._strays:
            return
        self._strays.discard(uid)  # before its words go: who hears of that asks whether it is one still
        try:
            await self._store.commit(work)
        except BaseException:
            self._strays.add(uid)
            raise
        log.info("stray.back", uid=uid)
        self.returned(uid)


def _is_ready(document: bytes) -> bool:
    try:
        return msgspec.json.decode(document, type=kinds.ClusterStatus).status.ready == "True"
    except msgspec.DecodeError:
        return False  # whoever reads it for what it says complains of it
