"""What a pod's own status does not say: the last line of the run before, the kubelet's word about a probe or a volume.

Asked for only about pods of ours that are not ready, a few at a time: the log once per restart, the events at growing intervals for
as long as the pod stays as it is. So a cluster full of other people's events costs nothing.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.tasks import Tasks
from cluster_shim.kubernetes import narrow, status
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.status import Hints

AT_ONCE = 2
FIRST_SECONDS = 1.0  # most pods become ready before anybody needs to ask why they are not
LAST_SECONDS = 60.0
KEPT = 2000  # pods of which something is remembered; beyond that their status speaks for itself
LOG_LINES = 5
LOG_BYTES = 4096
EVENTS = 50


class _Events(Struct, frozen=True):
    items: list[narrow.Event] = []


_EVENTS = msgspec.json.Decoder(_Events)


class _Entry(Struct):
    hints: Hints = status.NO_HINTS
    run: tuple[str, int] | None = None  # (container, restart) whose last line is known
    pause: float = FIRST_SECONDS
    timer: asyncio.TimerHandle | None = None
    asking: bool = False


class Hinter:
    """``changed`` hears the uid of the application of whose pods something new is known."""

    def __init__(self, api: Api, changed: Callable[[str], None]) -> None:
        self._api = api
        self._changed = changed
        self._entries: dict[str, _Entry] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks = Tasks("shim/kubernetes/hints")

    async def close(self) -> None:
        for uid in list(self._entries):
            self.drop(uid)
        await self._tasks.close()

    def drop(self, uid: str) -> None:
        """The pod is gone, or needs no explaining any more."""
        entry = self._entries.pop(uid, None)
        if entry is not None and entry.timer is not None:
            entry.timer.cancel()

    def of(self, pod: narrow.Pod, application: str) -> Hints:
        """What is known of a pod of ``application``, and more is asked for if that may help."""
        uid = pod.metadata.uid
        if not status.puzzling(pod):
            self.drop(uid)
            return status.NO_HINTS
        entry = self._entries.get(uid)
        if entry is None:
            if len(self._entries) >= KEPT:
                return status.NO_HINTS
            entry = self._entries[uid] = _Entry()
        run = status.crashed(pod)
        if not entry.asking:
            if run is not None and run != entry.run:
                self._ask(pod, entry, application)
            elif entry.timer is None:
                entry.timer = asyncio.get_running_loop().call_later(entry.pause, self._ask, pod, entry, application)
                entry.pause = min(entry.pause * 3, LAST_SECONDS)
        return entry.hints

    def _ask(self, pod: narrow.Pod, entry: _Entry, application: str) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if self._entries.get(pod.metadata.uid) is entry and not entry.asking:
            entry.asking = True
            self._tasks.spawn(f"pod-{pod.metadata.name}", self._answer(pod, entry, application))

    async def _answer(self, pod: narrow.Pod, entry: _Entry, application: str) -> None:
        run = status.crashed(pod)
        line, found = entry.hints.last_line, entry.hints
        try:
            async with self._slots:
                if run is not None and run != entry.run:
                    line = await self._last_line(pod, run[0])
                found = status.hints(await self._events(pod), line)
        except ApiError:
            found = status.hints((), line)  # a hint that cannot be had is none; the next try may bring it
        finally:
            entry.asking = False
        entry.run = run
        entry.hints = found
        if self._entries.get(pod.metadata.uid) is entry:
            self._changed(application)  # also when nothing new is known: whoever looks again plans the next question

    async def _last_line(self, pod: narrow.Pod, container: str) -> str:
        meta = pod.metadata
        query = [("container", container), ("tailLines", str(LOG_LINES)), ("limitBytes", str(LOG_BYTES))]
        if status.runs_again(pod, container):
            query.append(("previous", "true"))
        try:
            path = f"/api/v1/namespaces/{meta.namespace}/pods/{meta.name}/log"
            return status.last_line(await self._api.request("GET", path, query=query, accept="*/*"))
        except ApiError:
            return ""  # its log is gone, or was never there

    async def _events(self, pod: narrow.Pod) -> Sequence[narrow.Event]:
        query = [("fieldSelector", f"involvedObject.uid={pod.metadata.uid},type=Warning"), ("limit", str(EVENTS))]
        answer = await self._api.request("GET", f"/api/v1/namespaces/{pod.metadata.namespace}/events", query=query)
        try:
            return _EVENTS.decode(answer).items
        except msgspec.DecodeError:
            return ()
