"""What starts and ends with a link: one sync session per link, the census, and who may open which service.

The child opens the sync stream, and a second one for a large snapshot; the parent answers. Law 7 at this door: blobs are served to
direct children only, and requests from people are believed only when the parent's link brought them.
"""

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError, Forbidden
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
SNAPSHOT_SECONDS = 60.0  # a child that announced a snapshot opens the stream for it within this time
RETRY_SECONDS = 1.0


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
        self.sessions: dict[str, SyncSession] = {}  # by the peer's uid
        tunnel.handle(SYNC, self._serve_sync)
        tunnel.handle(SNAPSHOT, self._serve_snapshot)

    async def close(self) -> None:
        await self._tasks.close()

    def up(self, link: Link) -> None:
        if link.is_parent:
            if self._parent is not None:
                self._parent.cancel()
            self._parent = self._tasks.spawn("sync-parent", self._sync_parent(link))
        else:
            self._linked(link.peer_uid, None)

    def down(self, link: Link) -> None:
        if link.is_parent:
            if self._parent is not None and self._tunnel.parent is None:
                self._parent.cancel()
                self._parent = None
        elif link.peer_uid not in self._tunnel.links:
            self._linked(link.peer_uid, link.last_heard)

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
        """For as long as the link lives; a session that fails is started again where it was."""
        parent = link.peer_uid
        session = SyncSession(self._store, send_space="report", receive_space="desired", me=self._uid, peer=parent)
        self.sessions[parent] = session
        while not link.closed:
            try:
                stream = await link.open(parent, SYNC, lane=Lane.SYNC)
                await session.run(stream, lambda: link.open(parent, SNAPSHOT, lane=Lane.BULK))
            except BanyanError as error:
                log.debug("sync.interrupted", peer=link.peer_name, reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    # --- as a parent ---

    async def _serve_sync(self, stream: Stream) -> None:
        child = self.require_child(stream)
        previous = self._children.get(child)
        if previous is not None:
            previous.cancel()
        task = asyncio.current_task()
        assert task is not None
        self._children[child] = task
        snapshot = self._snapshots[child] = _Snapshot(asyncio.get_running_loop().create_future(), asyncio.Event())
        session = SyncSession(self._store, send_space=f"down/{child}", receive_space=f"up/{child}", me=self._uid, peer=child)
        self.sessions[child] = session

        async def wait_for_bulk() -> Stream:
            async with asyncio.timeout(SNAPSHOT_SECONDS):
                return await snapshot.stream

        try:
            await session.run(stream, wait_for_bulk)
        finally:
            snapshot.ended.set()
            snapshot.stream.cancel()
            if self._children.get(child) is task:
                del self._children[child]
                self.sessions.pop(child, None)
                self._snapshots.pop(child, None)

    async def _serve_snapshot(self, stream: Stream) -> None:
        child = self.require_child(stream)
        snapshot = self._snapshots.get(child)
        if snapshot is None or snapshot.stream.done():
            raise Forbidden("no snapshot was announced")
        snapshot.stream.set_result(stream)
        await snapshot.ended.wait()
