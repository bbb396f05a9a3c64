"""All objects of one resource of the member, kept up to date: `listwatch` carried out by a thread of its own.

urllib3 blocks, so each watched resource has a thread that reads, decodes into narrow structs, and hands batches to the loop; the loop
alone changes `items`. What was known stays readable while the server is away: `failing_since` says for how long it is. It is not
away as soon as it answers a watch; a connection that breaks after that is only begun anew.
"""

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import clock
from cluster_shim.kubernetes import narrow
from cluster_shim.kubernetes.api import Api, ApiError, Cut
from cluster_shim.kubernetes.listwatch import ListWatch

log = structlog.get_logger()
T = TypeVar("T", bound=Any)  # a struct with `metadata.uid` and `metadata.resource_version`

BATCH = 256  # objects decoded before the loop hears of them
QUEUED = 8  # batches that the loop has not taken yet; the thread waits, and the server's own buffer holds the rest
GONE = 410
NOT_FOUND = 404

Kind = Literal["put", "delete"]


class Change(Struct, Generic[T], frozen=True):
    kind: Kind
    object: T


Changed = Callable[[list[Change[T]]], None]


class Informer(Generic[T]):
    """``keep``: objects for which it is false are as if they were not there; a changed one that it drops counts as deleted.

    ``accept``: as what to ask for the list, and for the watch. ``ends_when_gone``: `run` raises ApiError once the server knows
    the resource no more, as when its definition was deleted; otherwise it is asked for again and again.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        struct: type[T] | None,
        *,
        decode: Callable[[msgspec.Raw], T] | None = None,
        selector: str = "",
        fields: str = "",
        keep: Callable[[T], bool] | None = None,
        accept: tuple[str, str] = ("application/json", "application/json"),
        ends_when_gone: bool = False,
    ) -> None:
        self.path = path
        self._api = api
        self._decode: Callable[[msgspec.Raw], T] = decode or msgspec.json.Decoder(struct).decode
        self._accept = accept
        self._ends_when_gone = ends_when_gone
        self._plan = ListWatch(label_selector=selector, field_selector=fields)
        self._keep = keep
        self._items: dict[str, T] = {}
        self._subscribers: list[Changed[T]] = []
        self._cut = Cut()
        self._now = threading.Event()  # a pause that is under way is cut short
        self._room = threading.Semaphore(QUEUED)
        self._random = random.Random()
        self._seen: set[str] = set()  # uids that the list under way has named; the loop's
        self.synced = asyncio.Event()
        self.failing_since: float | None = None  # boot time
        self.error = ""

    @property
    def items(self) -> Mapping[str, T]:
        """By uid."""
        return self._items

    def subscribe(self, callback: Changed[T]) -> Callable[[], None]:
        """After each batch, on the loop; must not block. Returns what ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def hurry(self) -> None:
        """The server is known to answer again after it did not. Whatever waits for another try has waited long enough; and a watch that
        is under way may be one that nobody has at the other end any more, so it is begun anew from where it was."""
        self._now.set()
        self._cut.now()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        thread = threading.Thread(target=self._thread, args=(loop, ended), name=f"watch {self.path}", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            self._cut.stop()
            self._now.set()

    # --- in the thread ---

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        def tell(call: Callable[..., None], *arguments: object) -> None:
            """On the loop; a loop that has ended wants to hear nothing."""
            if not self._cut.stopped:
                try:
                    loop.call_soon_threadsafe(call, *arguments)
                except RuntimeError:
                    self._cut.stop()

        defect: BaseException | None = None
        try:
            while not self._cut.stopped:
                self._once(tell)
        except BaseException as error:  # the loop raises it where `run` is awaited
            defect = error

        def done() -> None:
            if not ended.done():
                ended.set_exception(defect) if defect is not None else ended.set_result(None)

        tell(done)

    def _once(self, tell: Callable[..., None]) -> None:
        step = self._plan.next(self._random.random())
        if step.pause:
            self._now.wait(step.pause)
            if self._cut.stopped:
                return
        self._now.clear()
        try:
            if step.action == "list":
                self._list(step.query, tell)
            else:
                self._watch(step.query, tell)
        except ApiError as error:
            if error.status == GONE:
                self._plan.expired()
                return
            if error.status == NOT_FOUND and self._ends_when_gone:
                raise
            self._plan.failed(error.retry_after)
            tell(self._failed, str(error))
        except msgspec.DecodeError as error:
            self._plan.failed()
            tell(self._failed, f"{self.path}: an answer that is no Kubernetes object: {error}")

    def _list(self, query: tuple[tuple[str, str], ...], tell: Callable[..., None]) -> None:
        if not any(name == "continue" for name, _ in query):
            tell(self._begin)
        page = _PAGE.decode(self._api.get(self.path, query, self._accept[0]))
        items = page.items or []
        for start in range(0, len(items), BATCH):
            self._hand(tell, [Change("put", self._decode(raw)) for raw in items[start : start + BATCH]], True)
        if self._plan.listed(page.metadata.resource_version, page.metadata.continue_):
            tell(self._end)

    def _watch(self, query: tuple[tuple[str, str], ...], tell: Callable[..., None]) -> None:
        begun = clock.boottime()
        answered, quiet = False, True
        try:
            for lines in self._api.batches(self.path, query, self._cut, self._accept[1]):
                if not answered:
                    answered = True
                    tell(self._well)
                if lines:
                    self._events(lines, tell)
                    quiet = False
        except ApiError as error:
            if error.status or not answered:
                raise
            log.debug("member.watch_broke_off", path=self.path, reason=str(error))
        self._plan.ended(quiet=quiet, lasted=clock.boottime() - begun)

    def _events(self, lines: list[bytes], tell: Callable[..., None]) -> None:
        changes: list[Change[T]] = []
        for line in lines:
            event = _EVENT.decode(line)
            if event.type == "ERROR":
                self._hand(tell, changes, False)
                said = msgspec.json.decode(event.object, type=narrow.ErrorObject)
                raise ApiError(f"{self.path}: {said.message}", status=said.code, reason=said.reason)
            if event.type == "BOOKMARK":
                self._plan.moved(msgspec.json.decode(event.object, type=narrow.VersionOnly).metadata.resource_version)
                continue
            found = self._decode(event.object)
            self._plan.moved(found.metadata.resource_version)
            changes.append(Change("delete" if event.type == "DELETED" else "put", found))
        self._hand(tell, changes, False)

    def _hand(self, tell: Callable[..., None], changes: list[Change[T]], listing: bool) -> None:
        if not changes:
            return
        while not self._room.acquire(timeout=1.0):
            if self._cut.stopped:
                return
        tell(self._take, changes, listing)

    # --- on the loop ---

    def _begin(self) -> None:
        self._seen = set()

    def _take(self, changes: list[Change[T]], listing: bool) -> None:
        self._room.release()
        self._well()
        kept: list[Change[T]] = []
        for change in changes:
            uid, found = change.object.metadata.uid, change.object
            if change.kind == "put" and (self._keep is None or self._keep(found)):
                if listing:
                    self._seen.add(uid)
                    known = self._items.get(uid)
                    if known is not None and known.metadata.resource_version == found.metadata.resource_version:
                        continue
                self._items[uid] = found
                kept.append(change)
            elif (known := self._items.pop(uid, None)) is not None:
                kept.append(Change("delete", found))
        self._tell(kept)

    def _end(self) -> None:
        gone = [uid for uid in self._items if uid not in self._seen]
        changes: list[Change[T]] = [Change("delete", self._items.pop(uid)) for uid in gone]
        self._seen = set()
        self._well()
        first = not self.synced.is_set()
        self.synced.set()
        if changes or first:
            self._tell(changes)

    def _tell(self, changes: list[Change[T]]) -> None:
        for callback in list(self._subscribers):
            callback(changes)

    def _failed(self, reason: str) -> None:
        if self.failing_since is None:
            self.failing_since = clock.boottime()
            log.warning("member.watch_failing", path=self.path, reason=reason)
        self.error = reason

    def _well(self) -> None:
        if self.failing_since is not None:
            log.info("member.watch_back", path=self.path, after_s=round(clock.boottime() - self.failing_since, 1))
        self.failing_since = None
        self.error = ""


_PAGE = msgspec.json.Decoder(narrow.Page)
_EVENT = msgspec.json.Decoder(narrow.WatchEvent)
