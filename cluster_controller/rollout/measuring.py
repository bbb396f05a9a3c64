"""Read, at this cluster, the metrics by which a version on its way is judged, for as long as a rollout asks for it.

The instances of the own cluster are asked in person, each over the stream that leads to it anyway; nothing else is needed, so a branch that
is cut off judges its versions as before. Kept in memory only: after a restart a window begins anew.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError
from cluster_controller.resources import kinds
from cluster_controller.rollout import gates
from cluster_controller.rollout.gates import Judged, Sample
from cluster_shim.contract import ByteStream, Instance, OpenTarget, ShimError

log = structlog.get_logger()

LARGEST = 4 * 1024 * 1024  # bytes of one exposition
ASK_SECONDS = 5.0
MOST_SAMPLES = 60
MOST_INSTANCES = 32  # of one application, asked at one time
QUICKEST = 1.0
READS = 10  # in one window

Open = Callable[[OpenTarget], Awaitable[ByteStream]]
NOT_ASKED = Judged("Measuring", None, "its metrics have not been read yet")


class Watched(Struct):
    """One version of one application that is being judged here."""

    revision: str
    rules: list[kinds.Gate]
    components: list[str]
    since: float
    taken: dict[str, list[Sample]]  # by gate
    said: str = ""  # the verdicts of which somebody was told
    due: float = 0.0


class Measuring:
    """``instances`` gives (application's uid, instance) of all that runs here; ``changed`` is told when a verdict is another."""

    def __init__(
        self, open_: Open, instances: Callable[[], Iterable[tuple[str, Instance]]], changed: Callable[[str], None], now: Callable[[], float]
    ) -> None:
        self._open = open_
        self._instances = instances
        self._changed = changed
        self._now = now
        self._watched: dict[str, Watched] = {}
        self._wake = asyncio.Event()

    def judge(self, application: str, revision: str, rules: Sequence[kinds.Gate], components: Sequence[str]) -> Judged:
        """The worst that the gates say of this version; the first question begins the window."""
        watched = self._watched.get(application)
        if watched is None or watched.revision != revision or watched.rules != list(rules):
            watched = Watched(revision=revision, rules=list(rules), components=list(components), since=self._now(), taken={})
            self._watched[application] = watched
            self._wake.set()
        judged = self._judged(watched)
        watched.said = _said(judged)
        return _worst(judged)

    def forget(self, application: str) -> None:
        self._watched.pop(application, None)

    def _judged(self, watched: Watched) -> list[Judged]:
        now = self._now()
        return [
            gates.judge(rule, watched.taken.get(_key(index), []), since=watched.since, now=now) for index, rule in enumerate(watched.rules)
        ]

    async def run(self) -> None:
        """For ever; asleep while no rollout asks."""
        while True:
            if not self._watched:
                self._wake.clear()
                await self._wake.wait()
            for application, watched in list(self._watched.items()):
                if watched.due <= self._now():
                    watched.due = self._now() + max(QUICKEST, min(rule.window_seconds for rule in watched.rules) / READS)
                    await self.look(application)
            await asyncio.sleep(QUICKEST)

    async def look(self, application: str) -> None:
        """Read once, and tell when the verdict is another."""
        watched = self._watched.get(application)
        if watched is None:
            return
        mine = [instance for uid, instance in self._instances() if uid == application and instance.ready][:MOST_INSTANCES]
        for index, rule in enumerate(watched.rules):
            component = rule.component or watched.components[0]
            readings: dict[str, gates.Reading] = {}
            for instance in mine:
                if instance.component == component and (text := await self._read(application, instance, rule.path)):
                    process, found = gates.reading(rule, text)
                    if found:
                        readings[process or instance.id] = found
            taken = watched.taken.setdefault(_key(index), [])
            taken.append(Sample(self._now(), readings))
            del taken[:-MOST_SAMPLES]
        if _said(self._judged(watched)) != watched.said and self._watched.get(application) is watched:
            self._changed(application)

    async def _read(self, application: str, instance: Instance, path: str) -> str:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                stream = await self._open(OpenTarget("application", uid=application, component=instance.component, instance=instance.id))
                try:
                    return await fetch(stream, path)
                finally:
                    stream.abort()
        except (BanyanError, ShimError, OSError, TimeoutError, ValueError) as error:
            log.info("gate.unread", application=application, instance=instance.id, error=str(error) or type(error).__name__)
            return ""


async def fetch(stream: ByteStream, path: str) -> str:
    """The body of one GET over a fresh stream; ValueError when the answer is none. HTTP/1.0: the answer ends where the stream does."""
    await stream.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n".encode())
    answer = bytearray()
    while (data := await stream.read()) and len(answer) <= LARGEST:
        answer += data
        if _whole(answer):
            break
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise ValueError(f"GET {path} was answered {head[:80].decode(errors='replace')!r}")
    return body.decode(errors="replace")


def _whole(answer: bytearray) -> bool:
    """Whether as much has come as the head announces: some servers keep the connection open all the same."""
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"")
    digits = length.partition(b":")[2].strip()
    return bool(end and digits.isdigit() and len(body) >= int(digits))


def _key(index: int) -> str:
    return str(index)


def _said(judged: Sequence[Judged]) -> str:
    return " ".join(each.verdict for each in judged)


_ORDER: Mapping[str, int] = {"Unhealthy": 0, "Unknown": 1, "Measuring": 2, "Healthy": 3}


def _worst(judged: Sequence[Judged]) -> Judged:
    return min(judged, key=lambda each: _ORDER[each.verdict], default=NOT_ASKED)
