"""Watches: each change of the store is encoded once and handed to every watcher that it concerns.

A watcher has a bounded queue of encoded lines; one that does not keep up is closed and lists again, so it never costs more than
its bound and never slows the others. Nothing is lost between the first look and the first event: both happen in one turn of
the loop, and events up to that revision are skipped.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import Any, Literal

import structlog

from cluster_controller.errors import Exhausted
from cluster_controller.resources.registry import ResourceType
from cluster_controller.store import Event, Store, Stored
from openapi.lists import matcher
from openapi.present import Printer
from openapi.query import ListOptions

log = structlog.get_logger()

MOST_WATCHERS = 4096
QUEUED_EVENTS = 2_000
QUEUED_BYTES = 4 * 1024 * 1024
BOOKMARK_SECONDS = 60.0
DEFAULT_TIMEOUT_SECONDS = 45 * 60.0
SLICE = 100  # initial objects sent without giving way

Type = Literal["ADDED", "MODIFIED", "DELETED"]
Message = MutableMapping[str, Any]


class Change:
    """One event of the store, encoded at most once per form and type, however many watch it."""

    __slots__ = ("_lines", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._lines: dict[tuple[str, str, str], bytes] = {}

    def line(self, type_: Type, printer: Printer) -> bytes:
        key = (type_, printer.form, printer.include)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = encode_line(type_, printer.one(self.event.stored))
        return line


def encode_line(type_: str, document: bytes) -> bytes:
    return b'{"type":"' + type_.encode() + b'","object":' + document + b"}\n"


class Watcher:
    """One client's view of one kind. Lines wait in ``queue`` until the response takes them."""

    def __init__(self, resource: ResourceType, namespace: str, options: ListOptions, printer: Printer, revision: int) -> None:
        self.resource = resource
        self.namespace = namespace
        self.printer = printer
        self.revision = revision  # events up to this one are known already
        self.closed = ""
        self.queue: deque[bytes] = deque()
        self.give_up: Callable[[], None] = lambda: None
        self._queued = 0
        self._matches = matcher(options)
        self._woken = asyncio.Event()

    def offer(self, change: Change) -> None:
        """Called for every event of the kind, in order."""
        event = change.event
        if self.closed or event.revision <= self.revision:
            return
        self.revision = event.revision
        type_ = self.type_of(event)
        if type_ is not None:
            self.push(change.line(type_, self.printer))

    def push(self, line: bytes) -> None:
        self.queue.append(line)
        self._queued += len(line)
        if len(self.queue) > QUEUED_EVENTS or self._queued > QUEUED_BYTES:
            self.close("slow")
        self._woken.set()

    def close(self, why: str) -> None:
        """No more events; what waits for a watcher that was too slow is dropped, and its connection is given up."""
        if not self.closed:
            self.closed = why
            if why == "slow":
                self.queue.clear()
                self.give_up()
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    async def take(self) -> bytes:
        """All lines that wait; b"" when woken for another reason or closed."""
        if not self.queue and not self.closed:
            await self._woken.wait()
        self._woken.clear()
        lines = b"".join(self.queue)
        self.queue.clear()
        self._queued = 0
        return lines

    def wants(self, stored: Stored) -> bool:
        return (not self.namespace or stored.key.namespace == self.namespace) and (self._matches is None or self._matches(stored))

    def type_of(self, event: Event) -> Type | None:
        """What the event is to this watcher: with a selector, objects come and go by changing."""
        if self.namespace and event.stored.key.namespace != self.namespace:
            return None
        if self._matches is None:
            if event.kind_of == "delete":
                return "DELETED"
            return "ADDED" if event.previous is None else "MODIFIED"
        now = event.kind_of == "put" and self._matches(event.stored)
        before = event.previous is not None and self._matches(event.previous)
        if now:
            return "MODIFIED" if before else "ADDED"
        return "DELETED" if before else None


class Hub:
    """All watchers of one API, fed by one subscription to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[tuple[str, str], dict[Watcher, None]] = {}
        self._draining: asyncio.Task[None] | None = None
        self.count = 0
        self.revision = store.revision  # the last that all watchers were offered
        self.slow = 0  # watchers closed because they did not keep up
        self._unsubscribe = store.subscribe(self._changed)

    def add(self, watcher: Watcher) -> None:
        if self.count >= MOST_WATCHERS:
            raise Exhausted(f"{MOST_WATCHERS} watches are open already, the most that this controller serves; try again later", 30)
        self._watchers.setdefault((watcher.resource.space, watcher.resource.kind), {})[watcher] = None
        self.count += 1

    def remove(self, watcher: Watcher) -> None:
        key = (watcher.resource.space, watcher.resource.kind)
        watchers = self._watchers.get(key, {})
        if watchers.pop(watcher, 1) is None:
            self.count -= 1
            self.slow += watcher.closed == "slow"
        if not watchers:
            self._watchers.pop(key, None)

    def drain_with(self, draining: asyncio.Event | None) -> None:
        """End all watches once the front shuts down."""
        if draining is not None and (self._draining is None or self._draining.done()):
            self._draining = asyncio.create_task(self._drain(draining), name="api/drain")

    def close(self) -> None:
        self._unsubscribe()
        if self._draining is not None:
            self._draining.cancel()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.close("shutdown")

    def _changed(self, events: Sequence[Event]) -> None:
        for event in events:
            watchers = self._watchers.get((event.stored.key.space, event.stored.key.kind))
            if watchers:
                change = Change(event)
                for watcher in watchers:
                    watcher.offer(change)
        self.revision = max(self.revision, events[-1].revision)

    async def _drain(self, draining: asyncio.Event) -> None:
        await draining.wait()
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.close("shutdown")


class WatchResponse:
    """The endless answer of one watch, as a raw ASGI application: one task that sends, one that waits for the client to go."""

    def __init__(self, hub: Hub, watcher: Watcher, initial: Iterable[Stored], options: ListOptions, started: Sequence[bytes] = ()) -> None:
        self._hub = hub
        self._watcher = watcher
        self._initial = initial
        self._options = options
        self._started = started

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self._hub.drain_with(scope.get("banyan.draining"))
        gone = asyncio.create_task(self._until_gone(receive), name="api/watch-client")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._options.timeout or DEFAULT_TIMEOUT_SECONDS, self._watcher.close, "timeout")
        try:
            # A client that does not read holds `send`; when its queue is full there is nothing left to say to it.
            async with asyncio.timeout(None) as patience:
                self._watcher.give_up = lambda: patience.reschedule(loop.time())
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
                await self._first(send)
                await self._follow(send)
                if self._watcher.closed != "gone":
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            log.info("watch.closed", reason="slow", kind=self._watcher.resource.kind)
            raise ConnectionAbortedError("the watcher did not keep up") from None
        finally:
            self._watcher.give_up = lambda: None
            timer.cancel()
            gone.cancel()
            self._hub.remove(self._watcher)

    async def _first(self, send: Callable[[Message], Awaitable[None]]) -> None:
        lines = list(self._started)
        for stored in self._initial:
            lines.append(encode_line("ADDED", self._watcher.printer.one(stored)))
            if len(lines) >= SLICE:
                await _body(send, b"".join(lines))
                lines.clear()
                if self._watcher.closed:
                    return
                await asyncio.sleep(0)
        if self._options.initial_events and self._options.bookmarks:
            lines.append(encode_line("BOOKMARK", self._watcher.printer.bookmark(self._watcher.revision, True)))
        await _body(send, b"".join(lines))

    async def _follow(self, send: Callable[[Message], Awaitable[None]]) -> None:
        watcher = self._watcher
        loop = asyncio.get_running_loop()
        reminder = loop.call_later(BOOKMARK_SECONDS, watcher.wake) if self._options.bookmarks else None
        try:
            while True:
                lines = await watcher.take()
                if lines:
                    await _body(send, lines)
                if watcher.closed:
                    return
                if reminder is not None and reminder.when() <= loop.time():
                    reminder = loop.call_later(BOOKMARK_SECONDS, watcher.wake)
                    if not watcher.queue:
                        revision = max(watcher.revision, self._hub.revision)
                        await _body(send, encode_line("BOOKMARK", watcher.printer.bookmark(revision, False)))
        finally:
            if reminder is not None:
                reminder.cancel()

    async def _until_gone(self, receive: Callable[[], Awaitable[Message]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._watcher.close("gone")


async def _body(send: Callable[[Message], Awaitable[None]], body: bytes) -> None:
    """Even an empty body flushes the head, so that a client knows at once that its watch stands."""
    await send({"type": "http.response.body", "body": body, "more_body": True})


def start(hub: Hub, store: Store, watcher: Watcher, options: ListOptions) -> WatchResponse:
    """Raises Expired (410) when the wanted revision is past the journal, Exhausted when too many watch."""
    past: list[bytes] = []
    initial: list[Stored] = []
    resource, version = watcher.resource, options.version or 0
    if version > store.revision:
        store.since(version)  # raises Expired: it is from another history
    if version and not options.initial_events:
        for event in store.since(version, resource.space):
            type_ = watcher.type_of(event) if event.stored.key.kind == resource.kind else None
            if type_ is not None:
                past.append(Change(event).line(type_, watcher.printer))
    else:
        initial = [each for each in store.list(resource.space, resource.kind, watcher.namespace or None) if watcher.wants(each)]
    hub.add(watcher)
    return WatchResponse(hub, watcher, initial, options, past)
