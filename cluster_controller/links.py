"""What starts and ends with a link: one sync session per link, the census, and who may open which service.

The child opens the sync stream, and a second one for a large snapshot; the parent answers. A child that was adopted opens it to its
home parent all the same, by way of the adopter; where home is out of reach, to the nearest ancestor that is not, which keeps what it
reports (`tree.away`) and serves it what home would (`placement.lending`), and asks now and then whether home is there again. Law 7 at
this door: a guest is carried and served nothing; requests from people are believed only when the parent's link brought them, and from
an adopter's only when an ancestor of this cluster's home sent them.

Invariants: with one peer one session runs at a time, the newest, and it begins when the one before it has ended; sync with a parent
goes on for as long as its link stands, whatever a session dies of: what can happen is a warning, a defect is logged with its
traceback and counted, and either way the next session begins after a capped delay where the last one was.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import structlog
from msgspec import Struct

from cluster_controller import delivered
from cluster_controller.clock import boottime
from cluster_controller.errors import BanyanError, Forbidden, Unreachable
from cluster_controller.store import Store
from cluster_controller.sync.session import Counts, SyncSession
from cluster_controller.tasks import Tasks, end_task
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import Lane, ResetCode
from cluster_controller.tunnel.stream import Stream, StreamForbidden
from cluster_controller.tunnel.tunnel import Tunnel

log = structlog.get_logger()

SYNC = "sync"
SNAPSHOT = "snapshot"
SNAPSHOT_SECONDS = 60.0  # a child that announced a snapshot, or was told of one, opens the stream for it within this time


BLOB = "blob"
CARRIED = frozenset({SYNC, SNAPSHOT, BLOB})  # what leaves a subtree upwards, for clusters that were adopted
ANSWER_SECONDS = 5.0  # within which whoever sync is opened to says the first word; else it counts as out of reach
LOOK_SECONDS = 10.0  # between two looks whether home is in reach again, jittered by half
PAUSE_SECONDS = 2.0  # when nobody was in reach


class _Snapshot(Struct, eq=False):
    """The child's second stream, when it comes, by the way that the first one came, and when the session no longer needs it."""

    source: tuple[str, ...]
    stream: "asyncio.Future[Stream]"
    ended: asyncio.Event


class Kinship(Protocol):
    """What the membership knows of those who come and of this cluster itself."""

    def is_guest(self, uid: str) -> bool:
        """Has this controller taken in that direct child, which is another's?"""

    async def arrived(self, metadata: bytes, source: Sequence[str]) -> tuple[str, bool, str]:
        """Who opened a stream that came by way of an adopter, whether this is its home, and the adopter's name. Forbidden when it is
        not believed."""

    def arrival(self) -> bytes:
        """What this cluster shows of itself when it was adopted."""

    def disowned(self, reason: str) -> None:
        """The home parent does not believe what came by way of the adopter: let go of that."""

    def ancestors(self) -> Sequence[str]:
        """The home parent first; then, while this cluster is adopted, those above that in reach, nearest first."""

    live: dict[str, str]
    """Whose words come by way of an adopter now → the adopter's name."""


class NoKinship:
    """Where nobody is ever adopted."""

    def __init__(self, parent: Callable[[], str] = str) -> None:
        self._parent = parent
        self.live: dict[str, str] = {}

    def is_guest(self, uid: str) -> bool:
        return False

    async def arrived(self, metadata: bytes, source: Sequence[str]) -> tuple[str, bool, str]:
        raise Forbidden("sync is served to children only")

    def arrival(self) -> bytes:
        return b""

    def disowned(self, reason: str) -> None:
        """Nothing to let go of."""

    def ancestors(self) -> Sequence[str]:
        return (self._parent(),)


class Carried(Struct, eq=False):
    """A session with a child that was adopted. ``via``: uid of the neighbour whose link brings its words."""

    child: str
    via: str
    home: bool
    adopter: str  # name


class Links:
    """Sync over every link of one tunnel. ``linked(child, last_heard)``: a child's link came (None) or went; likewise one that is heard
    by way of an adopter."""

    def __init__(
        self, store: Store, tunnel: Tunnel, uid: str, linked: Callable[[str, float | None], None], kinship: Kinship | None = None
    ) -> None:
        self._store = store
        self._tunnel = tunnel
        self._uid = uid
        self._linked = linked
        self._kinship: Kinship = kinship or NoKinship(lambda: tunnel.parent.peer_uid if tunnel.parent is not None else "")
        self._here: set[str] = set()  # direct children, guests apart
        self._carried: dict[str, Carried] = {}
        self.above = ""  # uid of the ancestor that sync goes to now; "": nobody
        self._tasks = Tasks("links")
        self._snapshots: dict[str, _Snapshot] = {}
        self._children: dict[str, asyncio.Task[None]] = {}
        self._parent: asyncio.Task[None] | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by the peer's uid; gone with their last holder
        self._leaving: set[str] = set()  # children that are taken leave of, for as long as their link stands
        self.sessions: dict[str, SyncSession] = {}  # by the peer's uid
        self._counts: dict[str, Counts] = {}  # of sessions that have ended, by the neighbour's uid, for as long as its link stands
        self.withheld: Callable[[str], bool] = lambda child: False  # children that are given nothing yet: what they bring is not counted
        self.takes_over: Callable[[], bool] = lambda: False  # this cluster has a new parent, whose word replaces that of the one before
        self._paused = False
        self._forgotten: object = None  # up to where the parent had sent what it does not know any more
        self.reported: Callable[[int], None] = lambda start: None  # told under which start an ancestor holds this cluster's reports
        self.set_back: Callable[[], None] = lambda: None  # told when an ancestor holds reports that this store does not know of
        self.interrupted = 0  # sessions that failed, to be started again
        tunnel.handle(SYNC, self._serve_sync)
        tunnel.handle(SNAPSHOT, self._serve_snapshot)

    async def close(self) -> None:
        """End sync with the parent. What serves children runs in the tunnel's tasks, and ends when that is closed."""
        await self._tasks.close()

    def up(self, link: Link) -> None:
        if link.is_parent:
            if self._paused:
                return
            if self._parent is not None:
                self._parent.cancel()
            self._parent = self._tasks.keep("sync-parent", lambda: self._sync_parent(link))
        elif not self._kinship.is_guest(link.peer_uid):
            self._leaving.discard(link.peer_uid)
            self._here.add(link.peer_uid)
            carried = self._carried.pop(link.peer_uid, None)
            if carried is not None and (task := self._children.get(link.peer_uid)) is not None:
                task.cancel()  # it has come home
            self._linked(link.peer_uid, None)

    def down(self, link: Link) -> None:
        if self._neighbour(link.peer_uid) is None:
            self._counts.pop(link.peer_uid, None)
        if link.is_parent:
            if self._parent is not None and self._tunnel.parent is None:
                self._parent.cancel()
                self._parent = None
        elif link.peer_uid not in self._tunnel.links and link.peer_uid in self._here:
            self._leaving.discard(link.peer_uid)
            self._here.discard(link.peer_uid)
            if link.peer_uid not in self._carried:
                self._linked(link.peer_uid, link.last_heard)

    async def pause(self) -> None:
        """Nothing more goes to the parent or comes from it until `resume`."""
        self._paused = True
        if self._parent is not None:
            await end_task(self._parent)
            self._parent = None
        await self._store.commit(lambda tx: None)  # what was under way is on the disk

    def resume(self, link: Link | None = None) -> None:
        """``link``: that goes on where it was; None: the next to come up."""
        paused, self._paused = self._paused, False
        if paused and link is not None and not link.closed:
            self.up(link)

    def again(self, child: str) -> None:
        """Begin the session with a child anew: what it is given has changed from the ground."""
        if (task := self._children.get(child)) is not None:
            task.cancel()

    async def silence(self, child: str) -> None:
        """Take in no more reports of a child that leaves, over the link that it has now.

        What it said so far is on the disk once this returns, and nothing of it afterwards: else a report that is under way would bring
        back what the caller removes.
        """
        if child in self._here:  # without a link there is none over which it could speak
            self._leaving.add(child)
        if (task := self._children.get(child)) is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._store.commit(lambda tx: None)

    def heard(self) -> dict[str, float]:
        """For every child in reach, and every stray, the boot-time clock at which it was last heard; through an adopter, the link that
        brings its words."""
        found = {uid: link.last_heard for uid, link in self._tunnel.links.items() if uid in self._here}
        for uid, carried in self._carried.items():
            link = self._neighbour(carried.via)
            if link is not None:
                found.setdefault(uid, link.last_heard)
        return found

    def counts(self) -> dict[str, Counts]:
        """What came of each peer. A session that begins anew over the same link begins no new count."""
        found = dict(self._counts)
        for uid, session in self.sessions.items():
            found[uid] = found.get(uid, Counts()).plus(session.counted())
        return found

    def _end_session(self, peer: str) -> None:
        session = self.sessions.pop(peer)
        if self._neighbour(peer) is not None:
            self._counts[peer] = self._counts.get(peer, Counts()).plus(session.counted())

    def _neighbour(self, uid: str) -> Link | None:
        parent = self._tunnel.parent
        return parent if parent is not None and parent.peer_uid == uid else self._tunnel.links.get(uid)

    def require_child(self, stream: Stream) -> str:
        """The child that opened ``stream``: over its own link, or by the way by which its sync comes; Forbidden for anybody else."""
        uid = stream.source[-1]
        if len(stream.source) == 1 and uid in self._tunnel.links and not self._kinship.is_guest(uid):
            return uid
        snapshot = self._snapshots.get(uid) if uid in self._carried else None
        if snapshot is not None and snapshot.source == stream.source:
            return uid
        raise Forbidden(f"{stream.service} is served to children only")

    def require_below(self, stream: Stream) -> str:
        """A child, or whoever is below one and was brought by its link: what its own parent cannot give it, it may ask for here."""
        uid, child = stream.source[-1], stream.source[0]
        if len(stream.source) > 1 and child in self._here and self._tunnel.router.next_hop(uid) == child:
            return uid
        return self.require_child(stream)

    def require_parent(self, stream: Stream) -> None:
        """Forbidden unless the parent's link brought ``stream``; by way of an adopter, unless one of those above home opened it."""
        parent = self._tunnel.parent
        if parent is None or not stream.source or stream.source[0] != parent.peer_uid:
            raise Forbidden(f"{stream.service} is believed only when it comes from the parent")
        ancestors = self._kinship.ancestors()
        if parent.peer_uid != ancestors[0] and stream.source[-1] not in ancestors:
            raise Forbidden(f"{stream.service} is believed of nobody but the home parent and those above it, by whatever way it comes")

    # --- as a child ---

    async def _sync_parent(self, link: Link) -> None:
        """One session, begun again by its keeper for as long as the link lives."""
        if link.closed:
            return  # `down` is on its way
        if link.peer_uid == self._kinship.ancestors()[0]:
            await self._session(link, link.peer_uid, asyncio.Event())
            return
        while not link.closed:
            await self._sync_by_adopter(link)
            await asyncio.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.0))

    async def _sync_by_adopter(self, link: Link) -> None:
        """With the home parent, else with the nearest above it that answers, until that session ends."""
        for ancestor in self._kinship.ancestors():
            session = await self._answered(link, ancestor)
            if session is not None:
                await self._stay(link, ancestor, session)
                return

    async def _stay(self, link: Link, ancestor: str, session: "asyncio.Task[None]") -> None:
        """Until the session ends; one with another than home gives way as soon as home answers, or an ancestor nearer to it."""
        try:
            while nearer := self._nearer(ancestor):
                await asyncio.wait({session}, timeout=LOOK_SECONDS * random.uniform(0.5, 1.0))
                if session.done():
                    break
                for other in nearer:
                    found = await self._answered(link, other)
                    if found is not None:
                        await end_task(session)
                        ancestor, session = other, found
                        break
            self.above = ancestor
            await asyncio.wait({session})
        finally:
            await end_task(session)

    def _nearer(self, ancestor: str) -> Sequence[str]:
        """Those to whom sync would rather go, the best first."""
        known = self._kinship.ancestors()
        return known[: known.index(ancestor)] if ancestor in known else known[:1]

    async def _answered(self, link: Link, ancestor: str) -> "asyncio.Task[None] | None":
        """A session with that ancestor, once it has said its first word; None when it does not."""
        answers = asyncio.Event()
        session = asyncio.create_task(self._session(link, ancestor, answers), name=f"sync {ancestor}")
        word = asyncio.create_task(answers.wait(), name="sync answer")
        try:
            await asyncio.wait({session, word}, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            answered = word.done() and not session.done()
        except asyncio.CancelledError:
            await end_task(session)
            raise
        finally:
            await end_task(word)
        if answered:
            self.above = ancestor
            return session
        await end_task(session)
        return None

    def _parent_set_back(self, cursor: object) -> None:
        """The home parent knows nothing of what it sent last, and so perhaps of who spoke for this cluster meanwhile.

        Said once for each time: a session that is cut before it has caught up finds the same again.
        """
        if cursor != self._forgotten:
            self._forgotten = cursor
            self.set_back()

    async def _session(self, link: Link, ancestor: str, answers: asyncio.Event) -> None:
        """One session with an ancestor. What any but the home parent sends lies apart from what that sent (`delivered`)."""
        home = ancestor == self._kinship.ancestors()[0]
        metadata = b"" if link.peer_uid == ancestor and home else self._kinship.arrival()
        session = SyncSession(
            self._store,
            send_space="report",
            receive_space="desired" if home else delivered.space_of(ancestor),
            follow=home and self.takes_over(),
            me=self._uid,
            peer=ancestor,
            answered=answers.set,
            set_back=self.set_back,
            forgotten=self._parent_set_back if home else lambda cursor: None,
            reported=self.reported,
        )
        async with self._turn(ancestor):
            stream = None
            self.sessions[ancestor] = session
            try:
                if not home and ancestor not in delivered.sources(self._store):
                    await self._store.commit(lambda tx: delivered.learn(tx, ancestor))
                stream = await link.open(ancestor, SYNC, metadata, lane=Lane.SYNC)
                self.above = ancestor
                await session.run(stream, lambda: link.open(ancestor, SNAPSHOT, lane=Lane.BULK))
            except StreamForbidden as error:
                self._note(link, error)
                if home and metadata:
                    self._kinship.disowned(str(error))
            except BanyanError as error:
                self._note(link, error)
            finally:
                self._end_session(ancestor)
                if stream is not None:
                    stream.abort("the session has ended")

    # --- as a parent ---

    async def _serve_sync(self, stream: Stream) -> None:
        try:
            child, carried = await self._who(stream)
        except Forbidden as error:
            stream.abort(str(error), ResetCode.FORBIDDEN)  # so that it is no accident of the way to whoever opened it
            return
        if child in self._leaving:
            raise Forbidden(f"{child} leaves this tree: its reports are taken no more")
        previous = self._children.get(child)
        if previous is not None:
            previous.cancel()
        task = asyncio.current_task()
        assert task is not None
        self._children[child] = task
        snapshot = self._snapshots[child] = _Snapshot(stream.source, asyncio.get_running_loop().create_future(), asyncio.Event())
        try:
            async with self._turn(child):
                await self._sync_child(child, stream, snapshot, carried)
        except BanyanError as error:
            self._note(self._tunnel.links.get(child), error)
            raise
        finally:
            snapshot.ended.set()
            snapshot.stream.cancel()
            if self._children.get(child) is task:
                del self._children[child]
                del self._snapshots[child]

    async def _who(self, stream: Stream) -> tuple[str, Carried | None]:
        """The direct child that opened the stream, or the one that was adopted, by its arrival."""
        uid = stream.source[-1]
        if len(stream.source) == 1 and uid in self._tunnel.links and not self._kinship.is_guest(uid):
            return uid, None
        uid, home, adopter = await self._kinship.arrived(stream.metadata, stream.source)
        return uid, Carried(uid, stream.source[0], home, adopter)

    def _carry(self, carried: Carried) -> None:
        self._carried[carried.child] = carried
        self._kinship.live[carried.child] = carried.adopter
        self._linked(carried.child, None)

    def _drop(self, carried: Carried) -> None:
        """Unless it has come by another way meanwhile."""
        if self._carried.get(carried.child) is carried:
            last = self.heard().get(carried.child, boottime())
            del self._carried[carried.child]
            if carried.child not in self._here:
                self._linked(carried.child, last)
        if carried.child not in self._carried:
            self._kinship.live.pop(carried.child, None)

    async def _sync_child(self, child: str, stream: Stream, snapshot: _Snapshot, carried: Carried | None) -> None:
        async def wait_for_bulk() -> Stream:
            try:
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    return await snapshot.stream
            except TimeoutError:
                raise Unreachable(
                    f"a snapshot waits, and {child} did not open the stream for it within {SNAPSHOT_SECONDS:g} s: sync begins again"
                ) from None

        stray = carried is not None and not carried.home
        session = SyncSession(
            self._store,
            send_space=f"lend/{child}" if stray else "" if self.withheld(child) else f"down/{child}",
            receive_space=f"stray/{child}" if stray else f"up/{child}",
            me=self._uid,
            peer=child,
            follow=True,
        )
        self.sessions[child] = session
        if carried is not None:
            self._carry(carried)
        try:
            await session.run(stream, wait_for_bulk)
        finally:
            self._end_session(child)
            if carried is not None:
                self._drop(carried)

    async def _serve_snapshot(self, stream: Stream) -> None:
        child = self.require_child(stream)
        snapshot = self._snapshots.get(child)
        if snapshot is None or snapshot.stream.done() or snapshot.source != stream.source:
            raise Forbidden("no snapshot was announced")
        snapshot.stream.set_result(stream)
        await snapshot.ended.wait()

    # --- both ---

    def _turn(self, peer: str) -> asyncio.Lock:
        """Held by the session with ``peer`` that runs; one that was cancelled still has a commit or a stream to let go of."""
        return self._turns.setdefault(peer, asyncio.Lock())

    def _note(self, link: Link | None, error: BanyanError) -> None:
        """A link that goes takes its session along, which is no news; one that stands and loses its session is."""
        self.interrupted += 1
        if link is None or link.closed:
            log.debug("sync.interrupted", reason=str(error))
        else:
            log.warning("sync.interrupted", peer=link.peer_name, reason=str(error))
