"""This cluster as a child: what it commits before it says Hello, what it keeps of the answer, and how it renews.

A start and an attach are on disk before they are spoken (law 2). What the parent says is kept (the standing, the acknowledged
start) or only reported (the clock): a child never refuses its pinned parent for dates.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from msgspec import Struct

from cluster_controller.errors import BanyanError, Forbidden, InvalidInput, NotFound, ProtocolError
from cluster_controller.identity import attach, certificates, holder, renewal, standing, starts
from cluster_controller.identity.authority import Issued
from cluster_controller.identity.holder import Identity
from cluster_controller.store import Store, Tx
from cluster_controller.tree import records, wire
from cluster_controller.tree.failover import Policy
from cluster_controller.tunnel.course import Parent
from cluster_controller.tunnel.messages import CloseCode, Hello, LinkRole, Refusal, RefusalCode, RenewReply, RenewRequest, Start, Welcome
from cluster_controller.tunnel.messages import Standing as StandingMessage

log = structlog.get_logger()

PROTOCOL_VERSIONS = (1,)
MAX_FRESH_KEYS = 4
MAX_CHECK_SECONDS = 3600.0
"""Renewal looks at the wall clock at least this often: a clock that jumps is noticed."""


class IdentityHolder:
    """The identity in use. It is replaced as a whole, on disk first; one change at a time, each made from what the one before left."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity
        self._turn = asyncio.Lock()

    def __call__(self) -> Identity:
        return self.identity

    async def change(self, work: Callable[[Identity], Identity]) -> bool:
        """Into what ``work`` makes of it; False when that is what it is already."""
        async with self._turn:
            fresh = work(self.identity)
            if fresh is self.identity:
                return False
            await asyncio.to_thread(holder.save, self.folder, fresh)
            self.identity = fresh
            return True

    async def change_on_disk(self, work: Callable[[Path, Identity], Identity]) -> None:
        """A root's own changes, which write more than the identity: ``work`` is given the folder, and blocks."""
        async with self._turn:
            self.identity = await asyncio.to_thread(work, self.folder, self.identity)

    async def renew_root(self, now: datetime) -> None:
        await self.change_on_disk(lambda folder, identity: holder.renew_root(folder, identity, now))


class Settings(Struct, frozen=True, kw_only=True):
    """What membership says of this controller to others."""

    software: str = ""
    features: tuple[str, ...] = ()
    heartbeat_seconds: float = 5.0
    dead_after_seconds: float = 15.0
    failover: Policy = Policy()


class Child:
    """The child's side of one controller. ``addresses`` are where its own children reach it, HOST:PORT."""

    def __init__(
        self,
        store: Store,
        identity: IdentityHolder,
        settings: Settings,
        *,
        wall: Callable[[], datetime],
        addresses: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._identity = identity
        self._settings = settings
        self._wall = wall
        self._addresses = addresses
        self._replayed = 0  # refusals in a row
        self._fresh_keys: deque[EllipticCurvePrivateKey] = deque(maxlen=MAX_FRESH_KEYS)  # issuing keys that were asked for
        self._asked: asyncio.Future[None] | None = None
        self.instance = ""
        """The random id of this start; what `banyan cluster keep --instance` names."""
        self.path: tuple[str, ...] = ()
        """uids from the root down to the parent, as it said last; empty while never welcomed."""
        self.path_names: tuple[str, ...] = ()
        self.top = ""
        """The highest of ``path`` that the parent is linked to now, hop by hop."""
        self.standing: standing.Standing | None = None
        """What the home parent signed for this cluster, newest first: who else may take it in."""
        self.standing_changed: Callable[[], None] = lambda: None
        self.trouble = ""
        """Why the parent does not let this cluster in, in its words; empty when it does."""

    async def begin(self) -> None:
        """Commit this start. Before anything is dialled."""
        self.instance = holder.new_instance_id()
        self.standing = records.standing(self._store)

        def work(tx: Tx) -> None:
            before = records.starts(tx)
            records.set_starts(tx, records.Starts(starts.begin(before.ids, self.instance), before.number + 1))

        await self._store.commit(work)

    async def hello(self, parent: str = "") -> Hello:
        """The next Hello, its attach committed. ``parent``: uid of whom it is for; "": the home parent."""
        identity = self._identity()
        parent = parent or identity.parent_uid
        jump = self._replayed

        def work(tx: Tx) -> tuple[int, records.Starts]:
            value = attach.after_replayed(records.attach(tx), jump) if jump else records.attach(tx) + 1
            records.set_attach(tx, value)
            return value, records.starts(tx)

        number, begun = await self._store.commit(work)
        record = attach.sign(identity.uid, parent, number, identity.spki, identity.sign)
        first = begun.number - len(begun.ids) + 1
        return Hello(
            versions=PROTOCOL_VERSIONS,
            uid=identity.uid,
            name=identity.name,
            starts=tuple(Start(number=first + position, id=start) for position, start in enumerate(begun.ids)),
            attach=wire.attach_message(record, identity.name),
            features=self._settings.features,
            role=LinkRole.MAIN,
            software=self._settings.software,
            addresses=tuple(self._addresses()),
            unix_time=self._wall().timestamp(),
            standing=wire.standing_message(self.standing) if self.standing is not None and parent != identity.parent_uid else None,
        )

    async def welcomed(self, welcome: Welcome) -> None:
        """Keep what the parent said; ProtocolError (LOOP) when it stands below this very cluster."""
        identity = self._identity()
        if identity.uid in welcome.path:
            raise ProtocolError(f"{welcome.name or welcome.uid} stands below this cluster: a loop", CloseCode.LOOP)
        self._replayed, self.trouble = 0, ""
        self.path, self.path_names, self.top = welcome.path, welcome.path_names, welcome.top
        if welcome.unix_time:
            warn_of_skew(welcome.name, self._wall(), welcome.unix_time)
        at_home = welcome.uid == identity.parent_uid

        def work(tx: Tx) -> None:
            before = records.starts(tx)
            first = before.number - len(before.ids) + 1
            position = welcome.start_acknowledged - first
            if at_home and 0 < position < len(before.ids):  # an adopter keeps no record of starts that anybody judges by
                records.set_starts(tx, records.Starts(before.ids[position:], before.number))

        await self._store.commit(work)
        if at_home and welcome.standing is not None:
            await self.keep_standing(welcome.standing)

    async def keep_standing(self, message: StandingMessage) -> None:
        """Take in what the home parent signed, when it is good and newer than what is held: on the disk, then in use."""
        identity = self._identity()
        given = wire.standing(message)
        try:
            standing.verify(given, identity.tree_ca)
        except InvalidInput as error:
            log.warning("standing.refused", parent=identity.saved.parent_name, reason=str(error))
            return
        if given.child != identity.uid or given.home != identity.parent_uid:
            log.warning("standing.refused", parent=identity.saved.parent_name, reason="it is for another cluster, or by another parent")
            return

        def work(tx: Tx) -> bool:
            if not standing.replaces(given, records.standing(tx)):
                return False
            tx.set_fact(records.FACT_STANDING, msgspec.msgpack.encode(given))
            return True

        if await self._store.commit(work):
            before, self.standing = self.standing, given
            if before is None or before.parents != given.parents:
                log.info("standing.kept", parents=[one.name for one in given.parents], serial=given.serial)
                self.standing_changed()

    def refused(self, refusal: Refusal) -> None:
        """The parent did not let this cluster in. The dialler tries again; this decides what it says then."""
        self.trouble = refusal.reason
        if refusal.code is RefusalCode.REPLAYED:
            self._replayed += 1
            log.info("attach.behind", refusals=self._replayed)
            return
        event = {RefusalCode.HELD: "cluster.held", RefusalCode.REVOKED: "cluster.revoked"}.get(refusal.code, "hello.refused")
        log.error(event, reason=refusal.reason, code=refusal.code.name, instance=self.instance)

    def refused_elsewhere(self, refusal: Refusal) -> None:
        """An alternate did not take this cluster in: of what it says, only that this attach was seen before changes the next Hello."""
        if refusal.code is RefusalCode.REPLAYED:
            self._replayed += 1

    # --- renewal ---

    def renew_request(self) -> RenewRequest:
        """A request for fresh certificates; the answer belongs to `renewed`."""
        request, issuing, fresh = self._identity().requests()
        if fresh is not None:
            self._fresh_keys.append(fresh)
        return RenewRequest(csr=request, issuing_csr=issuing, unix_time=self._wall().timestamp())

    async def renewed(self, reply: RenewReply) -> None:
        """Take over fresh certificates, on disk before in use. BanyanError when there are none, or they do not fit."""
        if reply.refusal is not None:
            self.refused(reply.refusal)
            raise BanyanError(f"the parent does not renew this cluster: {reply.refusal.reason}")
        issued = Issued(identity=wire.ders(reply.certificate_chain), issuing=wire.ders(reply.issuing_chain))
        key = self._key_of(issued)
        await self._identity.change(lambda identity: identity.renewed(issued, key))
        if reply.unix_time:
            warn_of_skew("parent", self._wall(), reply.unix_time)
        log.info("identity.renewed", until=self._identity().not_after.isoformat())
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)

    async def moved(self, reply: RenewReply, parent: Parent) -> None:
        """Take over certificates of another parent, and that parent with them: in one rename, on disk before in use. BanyanError when
        there are none, or they do not fit."""
        if reply.refusal is not None:
            raise Forbidden(f"{parent.name} does not take this cluster in: {reply.refusal.reason}")
        issued = Issued(identity=wire.ders(reply.certificate_chain), issuing=wire.ders(reply.issuing_chain))
        key = self._key_of(issued)
        to = {"parent_uid": parent.uid, "parent_name": parent.name, "parent_addresses": parent.addresses}
        await self._identity.change(lambda identity: identity.under(issued, key, **to))  # type: ignore[arg-type]
        log.info("identity.moved", parent=parent.name, until=self._identity().not_after.isoformat())

    def _key_of(self, issued: Issued) -> EllipticCurvePrivateKey | None:
        """Which of the keys that were asked for is answered: two requests may be under way, over the link and beside it."""
        if not issued.issuing:
            return None
        public = certificates.parse(issued.issuing[0]).public_key()
        return next((key for key in self._fresh_keys if key.public_key() == public), None)

    def due(self, now: datetime) -> float:
        """Seconds until this cluster should renew."""
        identity = self._identity()
        spread = int(identity.uid[-2:], 36) / (36 * 36)
        return renewal.due(identity.not_before, identity.not_after, now, spread).total_seconds()

    async def keep_renewed(self, ask: Callable[[RenewRequest], bool], wait: float = 30.0) -> None:
        """For ever: renew when due. ``ask`` sends the request over the parent link, False when there is none."""
        attempt = 0
        while True:
            pause = self.due(self._wall())
            if pause > 0:
                attempt = 0
                await asyncio.sleep(min(pause, MAX_CHECK_SECONDS))
                continue
            answered = await self.renew_once(ask, wait)
            if not answered or self.due(self._wall()) <= 0:
                # Fresh certificates that are due again at once: the clocks of this cluster and its issuer are further apart than
                # certificates last. Asking again changes nothing until one of the clocks is set.
                pause = renewal.retry(attempt).total_seconds()
                await asyncio.sleep(min(pause, MAX_CHECK_SECONDS) if answered else pause)
                attempt += 1

    async def renew_once(self, ask: Callable[[RenewRequest], bool], wait: float) -> bool:
        """Ask, and wait up to ``wait`` seconds for the answer to be in use."""
        if self._identity().is_root:
            return await self._renew_root()
        self._asked = asyncio.get_running_loop().create_future()
        if not ask(self.renew_request()):
            return False
        try:
            async with asyncio.timeout(wait):  # wait_for of Python 3.11 loses a cancellation that meets the answer
                await self._asked
        except TimeoutError:
            return False
        return True

    async def _renew_root(self) -> bool:
        try:
            await self._identity.renew_root(self._wall())
        except NotFound as error:
            log.warning("identity.renewal_waits", reason=str(error), remedy="bring back the tree CA's key, then restart the root")
            return False
        log.info("identity.renewed", until=self._identity().not_after.isoformat())
        return True


def warn_of_skew(who: str, mine: datetime, theirs: float) -> None:
    try:
        warning = renewal.skew(mine, datetime.fromtimestamp(theirs, UTC))
    except (ValueError, OverflowError, OSError):
        warning = f"the clock of {who} is out of any calendar"
    if warning:
        log.warning("clock.skew", peer=who, message=warning)


def chain_of(identity: Identity) -> tuple[bytes, ...]:
    """This cluster's certificates, DER, without the tree CA."""
    return tuple(certificates.der(one) for one in certificates.parse_pem(b"".join(identity.certificate_chain), identity.name))
