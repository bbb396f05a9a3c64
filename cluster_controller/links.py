"""What starts and ends with a link: one sync session per link, the census, and who may open which service.

The child opens the sync stream, and a second one for a large snapshot; the parent answers. Law 7 at this door: blobs are served to
direct children only, and requests from people are believed only when the parent's link brought them.

Invariants: with one peer one session runs at a time, the newest, and it begins when the one before it has ended; sync with a parent
goes on for as long as its link stands, whatever a session dies of: what can happen is a warning, a defect is logged with its
traceback and counted, and either way the next session begins after a capped delay where the last one was.
"""

import asyncio
from collections.abc import Callable
from weakref import WeakValueDictionary

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError, Forbidden, Unreachable
from cluster_controller.store import Store
from cluster_controller.sync.session import SyncSession
from cluster_controller.tasks import Tasks
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import Lane
from cluster_controller.tunnel.stream import Stream
from cluster_controller.tunnel.tunnel import Tunnel

log = structlog.get_logger()

SYNC = "sync"
SNAPSHOT = "snapshot"
SNAPSHOT_SECONDS = 60.0  # a child that announced a snapshot, or was told of one, opens the stream for it within this time


class _Snapshot(Struct, eq=False):
    """The child's second stream, when it comes, and when the session no longer needs it."""

    stream: "asyncio.Future[Stream]"
    ended: asyncio.Event


class Links:
    """Sync over every link of one tunnel. ``linked(child, last_heard)``: a child's link came (None) or went."""

    def __init__(self, store: Store, tunnel: Tunnel, uid: str, linked: Callable[[str, float | None], None]) -> None:
        self._store = store
        self._tunnel = tunnel
        self._uid = uid
        self._linked = linked
        self._tasks = Tasks("links")
        self._snapshots: dict[str, _Snapshot] = {}
        self._children: dict[str, asyncio.Task[None]] = {}
        self._parent: asyncio.Task[None] | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by the peer's uid; gone with their last holder
        self._leaving: set[str] = set()  # children that are taken leave of, for as long as their link stands
        self.sessions: dict[str, SyncSession] = {}  # by the peer's uid
        self.interrupted = 0  # sessions that failed, to be started again
        tunnel.handle(SYNC, self._serve_sync)
        tunnel.handle(SNAPSHOT, self._serve_snapshot)

    async def close(self) -> None:
        """End sync with the parent. What serves children runs in the tunnel's tasks, and ends when that is closed."""
        await self._tasks.close()

    def up(self, link: Link) -> None:
        if link.is_parent:
            if self._parent is not None:
                self._parent.cancel()
            self._parent = self._tasks.keep("sync-parent", lambda: self._sync_parent(link))
        else:
            self._leaving.discard(link.peer_uid)
            self._linked(link.peer_uid, None)

    def down(self, link: Link) -> None:
        if link.is_parent:
            if self._parent is not None and self._tunnel.parent is None:
                self._parent.cancel()
                self._parent = None
        elif link.peer_uid not in self._tunnel.links:
            self._leaving.discard(link.peer_uid)
            self._linked(link.peer_uid, link.last_heard)

    async def silence(self, child: str) -> None:
        """Take in no more reports of a child that leaves, over the link that it has now.

        What it said so far is on the disk once this returns, and nothing of it afterwards: else a report that is under way would bring
        back what the caller removes.
        """
        self._leaving.add(child)
        if (task := self._children.get(child)) is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._store.commit(lambda tx: None)

    def require_child(self, stream: Stream) -> str:
        """The direct child that opened ``stream``; Forbidden for anybody else."""
        if len(stream.source) == 1 and stream.source[0] in self._tunnel.links:
            return stream.source[0]
        raise Forbidden(f"{stream.service} is served to direct children only")

    def require_parent(self, stream: Stream) -> None:
        """Forbidden unless the parent's link brought ``stream``."""
        parent = self._tunnel.parent
        if parent is None or not stream.source or stream.source[0] != parent.peer_uid:
            raise Forbidden(f"{stream.service} is believed only when it comes from the parent")

    # --- as a child ---

    async def _sync_parent(self, link: Link) -> None:
        """One session, begun again by its keeper for as long as the link lives."""
        if link.closed:
            return  # `down` is on its way
        parent = link.peer_uid
        session = SyncSession(self._store, send_space="report", receive_space="desired", me=self._uid, peer=parent)
        async with self._turn(parent):
            stream = None
            self.sessions[parent] = session
            try:
                stream = await link.open(parent, SYNC, lane=Lane.SYNC)
                await session.run(stream, lambda: link.open(parent, SNAPSHOT, lane=Lane.BULK))
            except BanyanError as error:
                self._note(link, error)
            finally:
                del self.sessions[parent]
                if stream is not None:
                    stream.abort("the session has ended")

    # --- as a parent ---

    async def _serve_sync(self, stream: Stream) -> None:
        child = self.require_child(stream)
        if child in self._leaving:
            raise Forbidden(f"{child} leaves this tree: its reports are taken no more")
        previous = self._children.get(child)
        if previous is not None:
            previous.cancel()
        task = asyncio.current_task()
        assert task is not None
        self._children[child] = task
        snapshot = self._snapshots[child] = _Snapshot(asyncio.get_running_loop().create_future(), asyncio.Event())
        try:
            async with self._turn(child):
                await self._sync_child(child, stream, snapshot)
        except BanyanError as error:
            self._note(self._tunnel.links.get(child), error)
            raise
        finally:
            snapshot.ended.set()
            snapshot.stream.cancel()
            if self._children.get(child) is task:
                del self._children[child]
                del self._snapshots[child]

    async def _sync_child(self, child: str, stream: Stream, snapshot: _Snapshot) -> None:
        async def wait_for_bulk() -> Stream:
            try:
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    return await snapshot.stream
            except TimeoutError:
                raise Unreachable(
                    f"a snapshot waits, and {child} did not open the stream for it within {SNAPSHOT_SECONDS:g} s: sync begins again"
                ) from None

        session = SyncSession(self._store, send_space=f"down/{child}", receive_space=f"up/{child}", me=self._uid, peer=child)
        self.sessions[child] = session
        try:
            await session.run(stream, wait_for_bulk)
        finally:
            del self.sessions[child]

    async def _serve_snapshot(self, stream: Stream) -> None:
        child = self.require_child(stream)
        snapshot = self._snapshots.get(child)
        if snapshot is None or snapshot.stream.done():
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
