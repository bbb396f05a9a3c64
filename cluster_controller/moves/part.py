"""What a controller does when it is asked to take part in a move: as the cluster that is moved, as its old or its new parent, or as
one of those between.

Only ancestors ask, by way of the parent. Each answer is committed before it is given, and a question may come again: what was done
is not done twice. For the cluster itself one rename is the moment of the move, that of the identity which names the new parent; all
that it does before can be forgotten, and all after it follows from it.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import events
from cluster_controller.documents import decode
from cluster_controller.errors import BanyanError, Forbidden, InvalidInput
from cluster_controller.events import Reason
from cluster_controller.identity.certificates import peer_identity
from cluster_controller.links import Links as Sync
from cluster_controller.moves import words
from cluster_controller.moves.words import Answer, Gone, Held, No, NotYet, Question, Stayed, Yes
from cluster_controller.placement import transferring
from cluster_controller.resources import kinds, policy
from cluster_controller.store import Key, Store, Tx
from cluster_controller.sync.target import cursor_fact
from cluster_controller.tasks import Tasks
from cluster_controller.tree import failover, listing, records
from cluster_controller.tree.admission import Member
from cluster_controller.tree.child import IdentityHolder
from cluster_controller.tree.membership import Membership
from cluster_controller.tree.times import format_time
from cluster_controller.tunnel.course import Parent
from cluster_controller.tunnel.dialer import ask
from cluster_controller.tunnel.handshake import Refused
from cluster_controller.tunnel.messages import AttachRecord, CloseCode, RenewReply, ResetCode
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.tunnel import Tunnel

log = structlog.get_logger()

FACT = "moves/mine"
GRACE_SECONDS = 120.0  # for which nobody stands in for a child that is on its way
FLUSH_SECONDS = 0.3  # in which the answer leaves before the link that carries it is closed


class Mine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last move of this very cluster, as far as it is concerned. It is made when the identity names ``parent``."""

    move: str
    parent: str
    off: bool = False  # called off; asked again, it stays
    reason: str = ""
    held: Held = {}
    after: int = 0
    cursor: str = ""  # of what the parent before gave: as long as it is that, the new parent's word replaces the old one's


def mine(view: records.View) -> Mine | None:
    found = view.fact(FACT)
    return msgspec.json.decode(found, type=Mine) if found else None


class Part:
    """``addresses``: where children reach this controller. ``moved``: who this cluster is has changed."""

    def __init__(
        self,
        store: Store,
        identity: IdentityHolder,
        membership: Membership,
        tunnel: Tunnel,
        sync: Sync,
        *,
        addresses: Callable[[], Sequence[str]],
        moved: Callable[[], None],
        wall: Callable[[], datetime],
        proxy: str | None = None,
    ) -> None:
        self._store = store
        self._identity = identity
        self._membership = membership
        self._tunnel = tunnel
        self._sync = sync
        self._addresses = addresses
        self._moved = moved
        self._wall = wall
        self._proxy = proxy
        self._turn = asyncio.Lock()
        self._tasks = Tasks("moves")
        tunnel.handle(words.SERVICE, self._serve)
        sync.withheld = self.coming
        sync.takes_over = self.takes_over

    async def close(self) -> None:
        await self._tasks.close()

    # --- what others ask of the room ---

    def coming(self, child: str) -> bool:
        """Is what this child brought from its old parent not counted yet?"""
        record = records.member(self._store, child)
        return record is not None and bool(record.coming)

    def takes_over(self) -> bool:
        """Has this cluster a new parent that has not said yet what it shall hold?"""
        last = mine(self._store)
        return (
            last is not None
            and last.parent == self._identity().parent_uid
            and last.cursor == (self._store.fact(cursor_fact(records.DESIRED)) or b"").decode()
        )

    def record(self, uid: str) -> AttachRecord | None:
        """What a cluster below signed of where it is, as it is reached now."""
        return self._membership.router.record(uid)

    def grace(self, child: str) -> float:
        """For how many seconds more the silence of a child is nothing unusual."""
        record = records.member(self._store, child)
        return GRACE_SECONDS if record is not None and record.leaving else 0.0

    # --- questions ---

    async def _serve(self, stream: Stream) -> None:
        try:
            self._require_ancestor(stream)
            answer = await self.answer(words.question(await _whole(stream)))
        except (Forbidden, InvalidInput) as error:
            stream.abort(str(error), ResetCode.FORBIDDEN)
            return
        except BanyanError as error:  # of this controller's own disk: who asks says why it waits, and asks again
            stream.abort(str(error))
            return
        await stream.write(words.encode(answer))
        await stream.close_write()

    def _require_ancestor(self, stream: Stream) -> None:
        self._sync.require_parent(stream)
        above = {*self._identity().path, *self._membership.child.path} - {self._identity().uid}
        if stream.source[-1] not in above:
            raise Forbidden("only a controller that stands above a cluster moves it")

    async def answer(self, question: Question) -> Answer:
        match question:
            case words.Check():
                return self._check(question)
            case words.Prepare():
                return await self._prepare(question)
            case words.Depart():
                return await self._depart(question)
            case words.Release():
                return await self._release(question)
            case words.Complete():
                return await self._complete(question)
            case words.Forget():
                return await self._forget(question)
            case words.Go():
                return await self._ask_oneself_to_go(question)
            case words.Stay():
                return await self._stay(question)
            case words.Where():
                return self._gone(question.parent) or NotYet(reason=f"{self._name} has not gone")

    @property
    def _name(self) -> str:
        return self._identity().name

    # --- between ---

    def _check(self, question: words.Check) -> Answer:
        taken = self._membership.names.taken(self._store) if question.names else {}
        clash = next((name for name, uid in question.names.items() if taken.get(name, uid) != uid), None)
        if clash is not None:
            return No(reason=f"the name {clash} belongs to another cluster below {self._name}")
        return Yes()

    # --- the new parent ---

    async def _prepare(self, question: words.Prepare) -> Answer:
        refused = self._refuses(question)
        if refused:
            return No(reason=refused)
        if not question.dry_run:
            await self._store.commit(lambda tx: self._expect(tx, question))
        return Yes(addresses=tuple(self._addresses()))

    def _refuses(self, question: words.Prepare) -> str:
        """Why that cluster cannot come here; "": it can."""
        identity, name = self._identity(), question.name
        if identity.authority is None:
            return f"{self._name} may not take children: it was joined as a leaf, or stands at the tree's depth limit"
        if not self._addresses():
            return f"{self._name} listens for no children; start it with a tunnel address (tunnelListen)"
        if identity.authority.signer.path_length < question.height or len(identity.path) + question.height >= failover.MAX_DEPTH:
            return f"{name} and the {question.height} levels that may follow below would stand deeper than the tree may be"
        if self._membership.router.next_hop(question.cluster) == question.cluster and not self.coming(question.cluster):
            return f"{name} is a child of {self._name} already"
        if question.cluster in identity.path:
            return f"{name} stands above {self._name}"
        known = records.member(self._store, question.cluster)
        if known is not None and known.state == "revoked":
            return f"{name} was revoked at {self._name}; it joins with a fresh data folder and a new token"
        if known is not None and known.state == "member" and known.coming not in ("", question.move):
            return f"another move of {name} to {self._name} is under way"
        owner = self._membership.names.taken(self._store).get(name, question.cluster)
        return "" if owner == question.cluster else f"the name {name} belongs to another cluster below {self._name}"

    def _expect(self, tx: Tx, question: words.Prepare) -> None:
        known = records.member(tx, question.cluster)
        if known is not None and known.state == "member" and known.coming == question.move:
            return  # it is here
        fresh = known or Member(uid=question.cluster, name=question.name, state="approved")
        record = msgspec.structs.replace(
            fresh,
            name=question.name,
            state="approved",
            joined=format_time(self._wall()),
            labels=question.labels,
            may_have_children=question.height > 0,
            coming=question.move,
            leaving="",
        )
        records.put_member(tx, record)
        tx.set_fact(cursor_fact(f"up/{question.cluster}"), None)
        for one in records.revocations(tx, ()):
            records.put_revocation(tx, f"down/{question.cluster}", one)

    async def _complete(self, question: words.Complete) -> Answer:
        record = records.member(self._store, question.cluster)
        if record is None:
            return NotYet(reason=f"{self._name} does not know the cluster")
        if record.coming != question.move:
            return Yes()
        if record.state != "member":
            return NotYet(reason=f"{record.name} has not connected to {self._name}")
        missing = [one for one in question.applications if not transferring.done(self._store, one, question.move)]
        if missing:
            return NotYet(reason=f"{len(missing)} Applications of {record.name} have not come down to {self._name}")

        def work(tx: Tx) -> None:
            now = records.member(tx, question.cluster)
            if now is not None and now.coming == question.move:
                records.put_member(tx, msgspec.structs.replace(now, coming=""))
                self._tell(tx, now.name, now.uid, f"{now.name} has come from {question.old_name}")

        await self._store.commit(work)
        self._sync.again(question.cluster)
        return Yes()

    # --- the old parent ---

    async def _depart(self, question: words.Depart) -> Answer:
        record = records.member(self._store, question.cluster)
        if record is None or record.state != "member":
            return No(reason=f"the cluster is no member of {self._name}")
        if record.held:
            return No(reason=f"two instances run as {record.name}; decide first with `banyan cluster keep {record.name}`")
        if record.coming or record.leaving not in ("", question.move):
            return No(reason=f"another move of {record.name} is under way")
        if question.cluster not in self._tunnel.links:
            return No(reason=f"{record.name} is out of reach of {self._name}")
        if not question.dry_run:
            await self._store.commit(lambda tx: self._leaving(tx, question.cluster, question.move))
        return Yes()

    def _leaving(self, tx: Tx, uid: str, move: str) -> None:
        record = records.member(tx, uid)
        if record is not None:
            records.put_member(tx, msgspec.structs.replace(record, leaving=move))

    async def _forget(self, question: words.Forget) -> Answer:
        uid = question.cluster
        record = records.member(self._store, uid)
        if record is None or not (record.leaving == question.move or self._has_gone(record, question)):
            return Yes()
        held = [one for one in question.applications if self._holds(uid, one)]
        if held:
            return NotYet(reason=f"{len(held)} Applications are still counted at {self._name}")
        hop = self._membership.router.next_hop(uid)

        def work(tx: Tx) -> None:
            records.put_member(tx, msgspec.structs.replace(record, state="left", leaving="", adopted_by=""))
            if hop is None or hop == uid:
                listing.forget(tx, record)
            else:
                listing.forget_share(tx, record)  # it stands below another child of this controller
            tx.set_fact(cursor_fact(f"up/{uid}"), None)
            self._tell(tx, record.name, uid, f"{record.name} has gone to {question.parent_name}")

        await self._sync.silence(uid)
        await self._store.commit(work)
        log.info("child.moved", cluster=record.name, uid=uid, parent=question.parent_name)
        return Yes()

    def _has_gone(self, record: Member, question: words.Forget) -> bool:
        """Is it elsewhere, though nothing of that is known here: the move was before this store was set back?"""
        here = record.uid in self._tunnel.links or record.coming or record.state != "member"
        return not here and question.attach > record.attach

    def _holds(self, uid: str, application: str) -> bool:
        """Is a part of this controller's share still that of the cluster? Where each cluster has the whole of it, there are no parts."""
        stored = self._store.get(Key(f"down/{uid}", "Work", "", application))
        return stored is not None and decode(stored.document, kinds.Work).spec.placement.strategy != "Duplicated"

    async def _release(self, question: words.Release) -> Answer:
        uid = question.cluster

        def work(tx: Tx) -> None:
            record = records.member(tx, uid)
            if record is not None and record.state == "approved" and record.coming == question.move:
                records.put_member(tx, msgspec.structs.replace(record, state="left", coming=""))
                for stored in tx.scan(f"down/{uid}"):
                    tx.delete(stored.key)
            elif record is not None and record.leaving == question.move:
                records.put_member(tx, msgspec.structs.replace(record, leaving=""))

        await self._store.commit(work)
        return Yes()

    # --- the cluster itself ---

    def _gone(self, parent: str) -> Gone | None:
        last = mine(self._store)
        if self._identity().parent_uid != parent or last is None or last.parent != parent:
            return None
        return Gone(held=last.held, after=last.after, move=last.move)

    async def _stay(self, question: words.Stay) -> Answer:
        async with self._turn:
            gone = self._gone(question.parent)
            if gone is not None:
                return gone
            await self._keep(Mine(move=question.move, parent=question.parent, off=True, reason="it was called off"))
            return Stayed()

    async def _ask_oneself_to_go(self, question: words.Go) -> Answer:
        """In a task of its own: who asked may be cut off meanwhile, and what was begun is brought to an end."""
        outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        async def going() -> None:
            try:
                answer = await self._go(question)
            except BanyanError as error:
                if not outcome.done():
                    outcome.set_exception(error)
                    outcome.exception()  # seen: whoever asked may be gone
                return
            if not outcome.done():
                outcome.set_result(answer)

        task = self._tasks.spawn("go", going())
        task.add_done_callback(lambda _: outcome.cancel())
        return await asyncio.shield(outcome)

    async def _go(self, question: words.Go) -> Answer:
        async with self._turn:
            gone = self._gone(question.parent)
            if gone is not None:
                return gone
            last = mine(self._store)
            if last is not None and last.move == question.move and last.off:
                return Stayed(reason=last.reason)
            refused = self._will_not(question)
            if not refused and last is not None and last.move != question.move and self.takes_over():
                refused = f"{self._name} has not heard yet from {self._identity().saved.parent_name}, to which it was moved last; try again"
            if question.dry_run:
                return No(reason=refused) if refused else Yes()
            if not refused:
                refused = await self._change_parent(question)
            if refused:
                await self._keep(Mine(move=question.move, parent=question.parent, off=True, reason=refused))
                return Stayed(reason=refused)
            gone = self._gone(question.parent)
            assert gone is not None
            return gone

    def _will_not(self, question: words.Go) -> str:
        identity = self._identity()
        if identity.is_root:
            return f"{identity.name} is the root of its tree"
        if question.parent == identity.uid or self._membership.router.next_hop(question.parent) is not None:
            return f"{question.parent_name} stands below {identity.name}"
        if not policy.permits(records.site_policy(self._store), question.parent, question.parent_name):
            return f"the policy of the site {identity.name} does not permit {question.parent_name} as a parent (SitePolicy, spec.parents)"
        if self._membership.adopter is not None:
            return f"{identity.name} is carried by another than its home parent now"
        return ""

    async def _change_parent(self, question: words.Go) -> str:
        """Why it could not be done; "": it is done, and on the disk."""
        before = self._tunnel.parent
        await self._sync.pause()
        try:
            await self._note_what_it_holds(question)
            identity, child = self._identity(), self._membership.child
            request = child.renew_request()
            reply = await ask(
                question.addresses, identity.client_context(), request, proxy=self._proxy, check=lambda chain: _expect(chain, question)
            )
            if not isinstance(reply, RenewReply):
                raise InvalidInput(f"{question.parent_name} answered something else than was asked")
            await child.moved(reply, Parent(question.parent, question.parent_name, question.addresses))
        except (BanyanError, Refused) as error:
            self._sync.resume(before)
            return f"{self._name} cannot go to {question.parent_name}: {error}"
        self._sync.resume()
        self._moved()
        self._tasks.spawn("let-go", self._let_go(question))
        return ""

    async def _note_what_it_holds(self, question: words.Go) -> None:
        """From here on nothing of the old parent is taken in, so this is what it has until the new one has spoken."""

        def work(tx: Tx) -> None:
            held: Held = {}
            after = 0
            for stored in tx.list(records.DESIRED, "Work"):
                spec = decode(stored.document, kinds.Work).spec
                held[spec.application.uid] = {component.name: component.replicas for component in spec.components}
                after = max(after, spec.shares[-1].id if spec.shares else 0)
            cursor = (tx.fact(cursor_fact(records.DESIRED)) or b"").decode()
            found = Mine(move=question.move, parent=question.parent, held=held, after=after, cursor=cursor)
            tx.set_fact(FACT, msgspec.json.encode(found))

        await self._store.commit(work)

    async def _let_go(self, question: words.Go) -> None:
        identity = self._identity()

        def work(tx: Tx) -> None:
            self._tell(tx, identity.name, identity.uid, f"{identity.name} has gone to its new parent {question.parent_name}")

        await self._store.commit(work)
        await asyncio.sleep(FLUSH_SECONDS)
        link = self._tunnel.parent
        if link is not None and link.peer_uid != question.parent:
            link.close(CloseCode.NORMAL, f"moved to {question.parent_name}")

    async def _keep(self, value: Mine) -> None:
        await self._store.commit(lambda tx: tx.set_fact(FACT, msgspec.json.encode(value)))

    def _tell(self, tx: Tx, name: str, uid: str, message: str) -> None:
        events.cluster(tx, name, uid, Reason.MOVED, message, component="moves", timestamp=format_time(self._wall()))


def _expect(chain: tuple[bytes, ...], question: words.Go) -> None:
    found = peer_identity(chain)
    if found.uid != question.parent:
        raise Forbidden(f"{found.name} answers where {question.parent_name} is expected")


async def _whole(stream: Stream) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read():
        parts.append(part)
        size += len(part)
        if size > words.MAX_BYTES:
            raise InvalidInput("a word about a move that is too long")
    return b"".join(parts)


async def put(tunnel: Tunnel, whom: str, question: Question) -> Answer:
    """Ask somebody below. Unreachable, StreamNotServed (it knows no moves), InvalidInput."""
    stream = await tunnel.open(whom, words.SERVICE)
    try:
        await stream.write(words.encode(question))
        await stream.close_write()
        return words.answer(await _whole(stream))
    except asyncio.CancelledError:
        stream.abort("nobody waits for the answer")
        raise
