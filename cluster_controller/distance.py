"""How far the parent is, and users whom somebody named, said calmly: placement must not be told of every breath of a link.

Only a change by a quarter and by more than 5 ms is told, in two digits. So an idle tree reports nothing, and what is placed by
latency does not waver.

How far users are is the time that a TCP connection to an address takes that stands where they are: one round trip, which needs no right
and no program there. Who refuses has answered. Nothing is sent, a few connections a minute are made, and none is kept.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from math import floor, log10

from cluster_controller.resources.cluster import UserPoint

PERIOD_SECONDS = 15.0
TOLD_FACTOR = 1.25
TOLD_MILLIS = 5.0
USERS_SECONDS = 60.0  # between two measurements of the same users
CONNECTS = 3  # of which the quickest counts: the others waited for something else
CONNECT_SECONDS = 3.0
MISSED = 3  # measurements in a row without an answer, after which users count as not measured


def steady(told: float | None, measured: float | None) -> float | None:
    """What to tell, in milliseconds, when ``told`` is what was told before. Nothing measured: what was told stays."""
    if measured is None:
        return told
    if told is not None and abs(measured - told) <= TOLD_MILLIS:
        return told
    if told is not None and max(measured, told) <= TOLD_FACTOR * min(measured, told):
        return told
    return _two_digits(measured)


def _two_digits(value: float) -> float:
    return round(value, 1 - floor(log10(value))) if value > 0.01 else 0.0


class ParentDistance:
    """Watches the link to the parent. ``measured`` is its round trip in seconds, or None while there is none."""

    def __init__(self, measured: Callable[[], float | None], changed: Callable[[], None]) -> None:
        self._measured = measured
        self._changed = changed
        self.millis: float | None = None

    def look(self) -> None:
        seconds = self._measured()
        now = steady(self.millis, None if seconds is None else 1000 * seconds)
        if now != self.millis:
            self.millis = now
            self._changed()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            self.look()


class UserDistances:
    """Watches the users that somebody named for this cluster: ``wanted`` says whom, `millis` how far they are.

    ``measure`` gives the round trip to an address in milliseconds, or None when nobody answers. Where nobody is named nothing ever wakes.
    """

    def __init__(
        self,
        wanted: Callable[[], Sequence[UserPoint]],
        changed: Callable[[], None],
        measure: "Callable[[str], Awaitable[float | None]] | None" = None,
    ) -> None:
        self._wanted = wanted
        self._changed = changed
        self._measure = measure or connect_millis
        self._due: dict[UserPoint, float] = {}  # when each is measured again
        self._missed: dict[UserPoint, int] = {}
        self._named = asyncio.Event()
        self.millis: dict[str, float] = {}

    def named(self) -> None:
        """Others are wanted now."""
        self._named.set()

    async def look(self, now: float) -> None:
        """Measure whom it is time for; tell what changed. ``now``: seconds of any steady clock."""
        points = self._wanted()
        fresh = {each.name: self.millis[each.name] for each in points if each in self._due and each.name in self.millis}
        self._due = {each: self._due.get(each, now) for each in points}
        self._missed = {each: self._missed.get(each, 0) for each in points}
        for each in points:
            if each.millis is not None:
                fresh[each.name] = each.millis
            elif self._due[each] <= now:
                self._due[each] = now + USERS_SECONDS
                measured = await self._measure(each.address)
                self._missed[each] = 0 if measured is not None else self._missed[each] + 1
                told = steady(fresh.get(each.name), measured)
                if self._missed[each] >= MISSED:
                    fresh.pop(each.name, None)
                elif told is not None:
                    fresh[each.name] = told
        if fresh != self.millis:
            self.millis = fresh
            self._changed()

    def next(self) -> float | None:
        """When somebody is to be measured again; None: nobody is."""
        return min((due for each, due in self._due.items() if each.millis is None), default=None)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._named.clear()
            await self.look(loop.time())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self.next()):
                    await self._named.wait()


async def connect_millis(address: str) -> float | None:
    """The quickest of a few TCP connections to HOST:PORT, in milliseconds; None: nobody answers. Looking up the name does not count."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    found: list[float] = []
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            family, kind, protocol, _, where = infos[0]
            for _ in range(CONNECTS):
                with socket.socket(family, kind, protocol) as sock:
                    sock.setblocking(False)
                    began = loop.time()
                    with suppress(ConnectionRefusedError):  # whoever says no is there
                        await loop.sock_connect(sock, where)
                    found.append(1000 * (loop.time() - began))
    except OSError:  # TimeoutError is one: nobody there, or no such name
        pass
    return min(found, default=None)
