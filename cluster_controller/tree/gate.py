"""The parent's answer to Hello: who may come in, who is told to wait, and what a child is given.

Committed before it is answered (law 2): the child's start and attach, which later Hellos are judged by.
"""

from collections.abc import Callable
from datetime import datetime

import msgspec
import structlog

from cluster_controller.errors import InvalidInput, StoreError
from cluster_controller.identity import attach, starts
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.holder import Identity
from cluster_controller.store import Store, Tx
from cluster_controller.tree import admission, listing, records, wire
from cluster_controller.tree.admission import Caller, Entry, Member
from cluster_controller.tree.barring import Barring, refusal
from cluster_controller.tree.child import Settings, warn_of_skew
from cluster_controller.tree.guests import Guests
from cluster_controller.tree.links import Links, PathOf
from cluster_controller.tree.standings import Standings
from cluster_controller.tunnel.messages import Held, Hello, Refusal, RefusalCode, Welcome

log = structlog.get_logger()

PROBE_SECONDS = 2.0
MAX_START_ID = 64
HELD_RETRY_SECONDS = 10.0
LOOP_RETRY_SECONDS = 5.0


class Gate:
    def __init__(
        self,
        store: Store,
        identity: Callable[[], Identity],
        settings: Settings,
        *,
        barring: Barring,
        links: Links,
        path: PathOf,
        standings: Standings,
        guests: Guests,
        wall: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._identity = identity
        self._settings = settings
        self._barring = barring
        self._links = links
        self._path = path
        self._standings = standings
        self._guests = guests
        self._wall = wall

    @property
    def _me(self) -> tuple[str, str]:
        return self._identity().uid, self._identity().name

    async def welcome(self, hello: Hello, peer: PeerCertificate, address: str = "") -> Welcome | Refusal:
        """Let a child in, or say why not. Committed before this returns; an older link of the same child is closed."""
        barred = self._barring.bars(peer)
        guest = hello.standing is not None and records.member(self._store, peer.uid) is None and peer.home != self._identity().uid
        if barred is not None and not (guest and barred.code is RefusalCode.NOT_MY_CHILD):
            return barred
        caller = self._caller(hello, peer)
        if isinstance(caller, Refusal):
            return caller
        if guest:
            return await self._guests.welcome(hello, caller) or self._answer(hello)
        if peer.uid in self._path()[0]:  # this controller was adopted by somebody below it
            return Refusal(code=RefusalCode.LOOP, reason=f"{self._me[1]} stands below {peer.name} now", retry_after=LOOP_RETRY_SECONDS)
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
            listing.show(tx, record, self._me, "Ready")
            return record

        record = await self._store.commit(work)
        if not isinstance(record, Member):
            return record or Refusal(code=RefusalCode.REPLAYED)
        self._guests.admitted_at_home(peer.uid)
        superseded = "the same cluster has connected anew" if entry is Entry.SUPERSEDE else "another instance was admitted"
        self._links.supersede(peer.uid, superseded)
        log.info("child.admitted", cluster=record.name, uid=record.uid, how=entry.value, attach=record.attach)
        if hello.unix_time:
            warn_of_skew(record.name, self._wall(), hello.unix_time)
        signed = wire.standing_message(self._standings.sign(record))
        return msgspec.structs.replace(
            self._answer(hello),
            standing=signed,
            start_acknowledged=record.start_number,
            report_anew=entry is Entry.FULL_RESYNC,
        )

    def _answer(self, hello: Hello) -> Welcome:
        """What every child is told, a guest too."""
        identity = self._identity()
        path, names = self._path()
        return Welcome(
            uid=identity.uid,
            name=identity.name,
            path=path,
            path_names=names,
            top=self._links.top(),
            heartbeat_seconds=self._settings.heartbeat_seconds,
            dead_after_seconds=self._settings.dead_after_seconds,
            features=tuple(feature for feature in hello.features if feature in self._settings.features),
            software=self._settings.software,
            unix_time=self._wall().timestamp(),
        )

    async def _hold(self, caller: Caller) -> Refusal:
        """Two run with one identity: remember the newcomer, tell both. One that a person decided against is only told so."""
        instance, uid = caller.starts[-1], caller.peer.uid

        def judged(view: Store | Tx) -> Member:
            known = records.member(view, uid) or Member(uid=uid, name=caller.peer.name, state="member")
            return admission.waiting(known, caller)

        def work(tx: Tx) -> Member:
            known = judged(tx)
            if instance in known.held:
                records.put_member(tx, known)
                listing.show(tx, known, self._me, "Held")
            return known

        try:
            known = await self._store.commit(work)
        except StoreError as error:  # a full disk lets no second one in, and sends none to a neighbour: what is not kept is judged anew
            log.warning("child.held_unwritten", cluster=caller.peer.name, uid=uid, held=instance, error=str(error))
            known = judged(self._store)
        name, kept = known.name, known.started.start
        if instance not in known.held:
            reason = f"instance {kept} of {name} was kept; this one, {instance}, stays out: stop it and delete its data folder"
            return Refusal(code=RefusalCode.HELD, reason=reason, retry_after=HELD_RETRY_SECONDS)
        reason = (
            f"two instances run as {name}: {kept} is connected, {instance} is held; stop one of them, or decide with "
            f"`banyan cluster keep {name} --instance {instance}`"
        )
        log.error("child.held", cluster=name, uid=uid, connected=kept, held=instance)
        link = self._links.get(uid)
        if link is not None:
            link.send_control(Held(uid=uid, reason=reason, instance=kept))
        return Refusal(code=RefusalCode.HELD, reason=reason, retry_after=HELD_RETRY_SECONDS)
