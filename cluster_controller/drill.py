"""A drill: a fault that an administrator plays on this controller, ended by this controller itself, with a report of what was kept.

Whoever asked may vanish: the end is a timer of this process, and where the process ends meanwhile its next start ends the drill. The
record is on the disk before the fault begins. One drill at a time, bounded in time. A cut and a restart only look at what runs here;
what is killed or frozen was chosen by name, and nothing else is touched. What was frozen goes on at the end, whoever died meanwhile.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import structlog

from cluster_controller import events
from cluster_controller.documents import decode
from cluster_controller.errors import Conflict, Forbidden, InvalidInput, NotFound
from cluster_controller.events import Reason
from cluster_controller.resources import kinds
from cluster_controller.store import Store, Tx
from cluster_controller.tasks import Tasks
from cluster_controller.tree.times import format_time, parse_time

log = structlog.get_logger()

Fault = Literal["cut", "restart", "kill", "freeze"]
FAULTS: tuple[Fault, ...] = ("cut", "restart", "kill", "freeze")
STRIKES = ("kill", "freeze")  # of chosen instances
FACT = "drill/last"
SECONDS = (1.0, 3600.0)
LEAVE_SECONDS = 1.0  # before a fault begins: the answer to whoever asked leaves over the link that is cut
BACK_SECONDS = 120.0  # after it: for the link, and for the first look at the own cluster
LOOK_SECONDS = 0.2
NAMED = 20  # instances that a report names


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``began`` and ``ended`` are this machine's time, for people. Instances are counted by their uids: one started anew is another."""

    fault: Fault
    seconds: float
    by: str
    began: str
    state: Literal["running", "ended"] = "running"
    ended: str = ""
    applications: int = 0  # that ran here before
    instances: int = 0
    kept: int = 0  # of these instances, that run on
    lost: tuple[str, ...] = ()  # names of those that do not, at most 20
    fresh: int = 0  # instances that came meanwhile
    parent: bool = True  # its link stood again within two minutes
    target: str = ""  # NAMESPACE/APPLICATION, or …/COMPONENT: whose instances were killed or frozen
    struck: tuple[str, ...] = ()  # names of these instances, at most 20
    recovered: bool = True  # as many of it as are wanted were ready again within two minutes
    message: str = ""


class Record(msgspec.Struct, frozen=True):
    """What is on the disk: the report, and what it is compared with."""

    report: Report
    before: dict[str, str]  # uid → name of each instance
    frozen: tuple[int, ...] = ()  # processes that go on at the end


class Struck(msgspec.Struct, frozen=True):
    """An instance that was chosen, and its process on this machine; 0: it has none here."""

    name: str
    pid: int


class Doors(msgspec.Struct, frozen=True):
    """What a drill may do to its controller, and what it looks at."""

    cut: Callable[[], Awaitable[None]]  # let go of every parent, and dial none
    mend: Callable[[], None]  # dial again
    restart: Callable[[], None]  # end this process and begin it anew; returns at once
    linked: Callable[[], bool]  # a parent's link stands, or none is wanted
    seen: Callable[[], bool]  # the own cluster has been looked at since this start
    chosen: Callable[[str], Sequence[Struck]] = lambda target: ()  # the instances of NAMESPACE/APPLICATION[/COMPONENT] that run here
    well: Callable[[str], bool] = lambda target: True  # as many of it as are wanted here are ready
    signal: Callable[[int, int], None] = lambda pid, number: None  # to a process and those that it started


class Drill:
    """``me``: uid and name."""

    def __init__(self, store: Store, doors: Doors, *, me: Callable[[], tuple[str, str]], root: bool, wall: Callable[[], datetime]) -> None:
        self._store = store
        self._doors = doors
        self._me = me
        self._root = root
        self._wall = wall
        self._tasks = Tasks("drill")
        self._beginning = False

    def last(self) -> Report | None:
        record = self._read()
        return record.report if record is not None else None

    def _read(self) -> Record | None:
        found = self._store.fact(FACT)
        return msgspec.json.decode(found, type=Record) if found else None

    async def begin(self, fault: str, seconds: float, by: str, target: str = "") -> Report:
        """Conflict while one runs; Forbidden for what this controller does not have; InvalidInput for what nobody could want.
        ``target``: NAMESPACE/APPLICATION[/COMPONENT], of a fault that strikes instances."""
        wanted = next((each for each in FAULTS if each == fault), None)
        if wanted is None:
            raise InvalidInput(f"a drill is {', '.join(FAULTS)}, not {fault[:40]!r}", "fault")
        if not SECONDS[0] <= seconds <= SECONDS[1]:
            raise InvalidInput(f"a drill lasts {SECONDS[0]:g} to {SECONDS[1]:g} seconds", "seconds")
        if fault == "cut" and self._root:
            raise Forbidden(f"{self._me()[1]} is the root: it has no parent to be cut off from; cut one of those below it")
        last = self.last()
        if self._beginning or (last is not None and last.state == "running"):
            raise Conflict(f"a drill of {self._me()[1]} is under way; `banyan drill status` says which")
        struck = self._choose(wanted, target)
        self._beginning = True
        try:
            before = self._instances()
            report = Report(
                fault=wanted,
                target=target if struck else "",
                struck=tuple(each.name for each in struck)[:NAMED],
                seconds=seconds,
                by=by,
                began=format_time(self._wall()),
                applications=self._store.size("local"),
                instances=len(before),
            )
            frozen = tuple(each.pid for each in struck) if fault == "freeze" else ()
            said = f"{fault}{f' of {target}' if struck else ''}, asked for by {by}"
            await self._store.commit(lambda tx: self._write(tx, Record(report, before, frozen), Reason.DRILL_BEGAN, said))
        finally:
            self._beginning = False
        log.warning("drill.began", fault=fault, seconds=seconds, by=by)
        self._tasks.spawn(fault, self._play(report, struck))
        return report

    def _choose(self, fault: Fault, target: str) -> Sequence[Struck]:
        if fault not in STRIKES:
            return ()
        if not 2 <= len(target.split("/")) <= 3 or not all(target.split("/")):
            raise InvalidInput(f"{target[:80]!r} is not NAMESPACE/APPLICATION, nor NAMESPACE/APPLICATION/COMPONENT", "target")
        struck = self._doors.chosen(target)
        if not struck:
            raise NotFound(f"nothing of {target} runs on {self._me()[1]}")
        if not all(each.pid for each in struck):
            raise Forbidden(
                f"what runs on {self._me()[1]} are no processes of this controller's machine; delete a pod with kubectl instead"
            )
        return struck

    def resume(self) -> None:
        """At a start: whatever drill was under way is over; its report is still due."""
        record = self._read()
        if record is not None and record.report.state == "running":
            for pid in record.frozen:
                self._doors.signal(pid, signal.SIGCONT)
            self._tasks.spawn("end", self._end())

    async def close(self) -> None:
        await self._tasks.close()

    async def _strike(self, report: Report, struck: Sequence[Struck]) -> None:
        stop = report.fault == "freeze"
        try:
            for each in struck:
                self._doors.signal(each.pid, signal.SIGSTOP if stop else signal.SIGKILL)
            await asyncio.sleep(report.seconds)
        finally:
            for each in struck if stop else ():
                self._doors.signal(each.pid, signal.SIGCONT)

    async def _play(self, report: Report, struck: Sequence[Struck] = ()) -> None:
        await asyncio.sleep(LEAVE_SECONDS)
        if struck:
            await self._strike(report, struck)
            await self._end()
            return
        if report.fault == "restart":
            self._doors.restart()
            return
        try:
            await self._doors.cut()
            await asyncio.sleep(report.seconds)
        finally:
            self._doors.mend()
        await self._end()

    async def _end(self) -> None:
        """Once everything has had its time to come back: compare, and write it down."""
        record = self._read()
        assert record is not None
        target = record.report.target
        back = await self._back(target)
        well = not target or self._doors.well(target)
        done = compare(record, self._instances(), back, self._wall(), recovered=well)
        await self._store.commit(lambda tx: self._write(tx, Record(done, {}), Reason.DRILL_ENDED, done.message))
        log.warning("drill.ended", fault=done.fault, kept=done.kept, of=done.instances, fresh=done.fresh, parent=done.parent)

    async def _back(self, target: str) -> bool:
        """Whether a parent's link stands, waited for within bounds, as is that what was struck is well again."""
        try:
            async with asyncio.timeout(BACK_SECONDS):
                while not (self._doors.linked() and self._doors.seen() and (not target or self._doors.well(target))):  # noqa: ASYNC110 (two rooms that know nothing of drills)
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return self._doors.linked()
        return True

    def _instances(self) -> dict[str, str]:
        pods = (decode(stored.document, kinds.Pod) for stored in self._store.list("observed", "Pod"))
        return {f"{pod.metadata.uid}/{_restarts(pod)}": pod.metadata.name for pod in pods if pod.status.phase == "Running"}

    def _write(self, tx: Tx, record: Record, reason: Reason, message: str) -> None:
        tx.set_fact(FACT, msgspec.json.encode(record))
        uid, name = self._me()
        events.cluster(tx, name, uid, reason, f"drill: {message}", component="drill", timestamp=format_time(self._wall()))


def _restarts(pod: kinds.Pod) -> int:
    return sum(container.restart_count for container in pod.status.container_statuses)


def tell(pid: int, number: int) -> None:
    """The signal to a process and those that it started. One that has gone meanwhile needs none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def compare(record: Record, after: dict[str, str], back: bool, now: datetime, *, recovered: bool = True) -> Report:
    """The report of a drill that is over. Pure."""
    before, report = record.before, record.report
    lost = sorted(name for uid, name in before.items() if uid not in after)
    kept = len(before) - len(lost)
    lasted = max(timedelta(0), now - parse_time(report.began)).total_seconds()
    words = [f"{report.fault} for {lasted:.0f} s in all", f"{kept} of {len(before)} instances ran on"]
    words += [f"not {', '.join(lost[:NAMED])}"] if lost else []
    words += [f"{report.target} is {'well again' if recovered else 'NOT well again'}"] if report.target else []
    words += [] if back else ["its parent is not back yet"]
    return msgspec.structs.replace(
        report,
        state="ended",
        ended=format_time(now),
        kept=kept,
        lost=tuple(lost[:NAMED]),
        fresh=len(after.keys() - before.keys()),
        parent=back,
        recovered=recovered,
        message=", ".join(words),
    )
