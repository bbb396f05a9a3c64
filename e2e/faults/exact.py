"""After a fault: what is wanted is what runs, nothing was lost, nothing is there twice, and nothing healthy was stopped.

One strict check for every fault. `Before` is taken while all is well; `until_exact` waits, bounded, until all of these hold at once:

- every controller shows every cluster below it Ready;
- what stands at each hop is the same on both sides, by kind, name, uid, version and hash: what a parent wants of a child
  (``down/CHILD`` = the child's ``desired``) and what the child tells (``report`` = ``up/CHILD``), the latter with (source, start,
  sequence), none of which is there twice. Read from the databases themselves, not from what a controller says of them;
- each Application is ready as often as it is wanted, by its own status, and so many processes run, by /proc; the cluster's own list of
  instances is exactly those processes.

And what must hold at any time: every instance of before is the same process (pid and start time), but for those that the test itself
changed or killed (`Before.less`); every instance that was started since runs now, once, so none was there in between and gone.
"""

import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from banyanctl.demo import processes
from e2e.faults.ground import Ground, Machine, phases
from e2e.netns import started
from e2e.support import API, WAIT_SECONDS, until


class Instance(NamedTuple):
    site: str
    application: str
    name: str
    pid: int
    started: int


class Kept(Protocol):
    """A controller, by what it keeps on disk."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def uid(self) -> str: ...
    @property
    def parent_uid(self) -> str: ...


class Row(NamedTuple):
    """The live state of one key in a store, as its database has it."""

    uid: str
    version: int
    hash: bytes
    report: tuple[str, int, int]  # source, start, sequence


Key = tuple[str, str, str]  # kind, namespace, name
Spaces = dict[str, dict[Key, Row]]


def instances(site: Machine) -> list[Instance]:
    """Each is one process with all that it started itself."""
    found = [process for process in processes.below(site.folder) if process.instance]
    names = {process.pid: process.instance for process in found}
    return [
        Instance(site.name, process.application, process.instance, process.pid, started(process.pid))
        for process in found
        if names.get(process.parent) != process.instance
    ]


def spaces(site: Kept) -> Spaces:
    """What the site's database holds, of a copy: the controller holds the file itself locked. sqlite3.Error when it was being written."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("store.db", "store.db-wal"):
            if (site.folder / name).exists():
                shutil.copyfile(site.folder / name, Path(folder, name))
        database = sqlite3.connect(Path(folder, "store.db"))
        try:
            return _live(database)
        finally:
            database.close()


def _live(database: sqlite3.Connection) -> Spaces:
    found: Spaces = {}
    columns = "deleted, space, kind, namespace, name, uid, version, hash, source, start, sequence"
    for deleted, space, kind, namespace, name, uid, version, digest, *report in database.execute(
        f"select {columns} from changes order by revision"
    ):
        rows = found.setdefault(space, {})
        if deleted:
            rows.pop((kind, namespace, name), None)
        else:
            source, start, sequence = report
            rows[kind, namespace, name] = Row(uid, version, digest, (source, start, sequence))
    return found


class Before:
    """What ran while all was well."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.instances = {instance for site in ground.machines for instance in instances(site)}
        self.noted = len(noted(ground))
        self._less: set[str] = set()

    def less(self, *applications: str) -> "Before":
        """The same, without what the test itself changes, ends or kills."""
        self._less |= set(applications)
        return self

    def without(self, *sites: str) -> "Before":
        """The same, without what runs on machines that the test switches off."""
        self.instances = {instance for instance in self.instances if instance.site not in sites}
        return self

    def overlook(self) -> None:
        """Starts until now are nobody's concern: they were on a machine that is none of the tree's."""
        self.noted = len(noted(self.ground))

    def killed(self) -> list[str]:
        """Healthy instances that are not there any more."""
        alive = {instance for site in self.ground.machines for instance in instances(site)}
        return [
            f"{one.name} on {one.site} (pid {one.pid}) was stopped"
            for one in sorted(self.instances - alive)
            if one.application not in self._less
        ]

    def surplus(self) -> list[str]:
        """Instances that were started since, and are there twice or no more."""
        running = Counter(instance.name for site in self.ground.machines for instance in instances(site))
        begun = Counter(noted(self.ground)[self.noted :]) + Counter((one.application, one.name) for one in self.instances)
        return [
            f"{name} of {application} was started {count} times, {running[name]} run"
            for (application, name), count in begun.items()
            if (count, running[name]) != (1, 1) and application not in self._less
        ]


def noted(ground: Ground) -> list[tuple[str, ...]]:
    """Application and instance of every start that `Ground.resting` noted."""
    return [tuple(line.split("/")) for line in ground.starts.read_text().split()]


def inexact(ground: Ground) -> list[str]:
    """What is not as it has to be, each in a line."""
    return [*_unready(ground), *unequal(ground.machines), *_miscounted(ground)]


def _unready(ground: Ground) -> Iterable[str]:
    for site in ground.machines:
        for name, phase in phases(site).items():
            if phase != "Ready":
                yield f"{site.name} shows {name} {phase}"
    known = {status["uid"] for status in ground.root.clusters().values()}
    if known != {site.uid for site in ground.machines}:
        yield f"the root knows {sorted(ground.root.clusters())}"


def unequal(sites: Sequence[Kept]) -> Iterable[str]:
    """What a parent and its child do not hold alike, both among these."""
    try:
        stores = {site.uid: (site.name, spaces(site)) for site in sites}
    except sqlite3.Error as error:
        yield f"a store was being written: {error}"
        return
    for site in sites:
        if not site.parent_uid:
            continue
        name, own = stores[site.uid]
        above, theirs = stores[site.parent_uid]
        yield from _differences(f"{above} wants of {name}", theirs.get(f"down/{site.uid}", {}), own.get("desired", {}), reports=False)
        yield from _differences(f"{name} tells {above}", own.get("report", {}), theirs.get(f"up/{site.uid}", {}), reports=True)
        for space, rows in (("report", own.get("report", {})), (f"up/{name}", theirs.get(f"up/{site.uid}", {}))):
            for report, count in Counter(row.report for row in rows.values()).items():
                if count > 1:
                    yield f"{space} of {name} has {count} reports numbered {report}"


def _differences(what: str, said: dict[Key, Row], held: dict[Key, Row], *, reports: bool) -> Iterable[str]:
    for key in sorted(said.keys() | held.keys()):
        one, other = said.get(key), held.get(key)
        if one is None or other is None:
            yield f"{what}: {key} is only {'there' if one is None else 'here'}"
        elif one[:3] != other[:3] or (reports and one.report != other.report):
            yield f"{what}: {key} is {_told(one)} here and {_told(other)} there"


def _told(row: Row) -> str:
    return f"version {row.version} {row.hash.hex()[:6]} {row.report[1:]}"


def _miscounted(ground: Ground) -> Iterable[str]:
    running: Counter[str] = Counter()  # by the Application's uid
    for site in ground.machines:
        listed = {
            pod["metadata"]["name"]: pod["metadata"]["labels"]["banyan.dev/application-uid"] for pod in site.get("/api/v1/pods")["items"]
        }
        real = [instance.name for instance in instances(site)]
        if sorted(listed) != sorted(real):
            yield f"{site.name} lists {sorted(listed)}, and {sorted(real)} run"
        running.update(listed.get(name, "") for name in real)
    for site in ground.machines:
        for item in site.get(f"{API}/applications")["items"]:
            name, uid, status = item["metadata"]["name"], item["metadata"]["uid"], item.get("status", {})
            wanted = sum(component["replicas"] for component in item["spec"]["components"])
            seen = (status.get("desired", 0), status.get("ready", 0), running.pop(uid, 0))
            if seen != (wanted, wanted, wanted):
                yield f"{name} of {site.name} is wanted {wanted} times; desired, ready, running: {seen}"
    for uid, count in running.items():
        yield f"{count} instances run of {uid or 'no application'}, which nobody wants"


def until_exact(before: Before, seconds: float = WAIT_SECONDS) -> None:
    """Wait until everything is exact; fails with what is not. Nothing healthy was stopped on the way, nothing was started in vain; a model
    that was on its way has come whole."""
    ground = before.ground
    if ground.cargo is not None:
        seconds += ground.cargo.let_go()
    said: list[str] = []
    over = time.monotonic()

    def exact() -> bool:
        unready = list(_unready(ground))
        if not unready:
            ground.figures.took("all Ready after it", time.monotonic() - over)
        said[:] = [*unready, *unequal(ground.machines), *_miscounted(ground)]
        if all(ground.cargo is not None and line.startswith(f"{ground.cargo.name} of ") for line in said):
            ground.figures.took("all exact after it", time.monotonic() - over)
        assert not said, "\n  ".join(["", *said[:12]])
        return True

    try:
        until("desired = actual", exact, seconds)
    except BaseException:
        print(ground.log())
        raise
    for said in (before.killed(), before.surplus()):
        assert not said, "\n  ".join(["", *said[:12]])
    if ground.cargo is not None:
        ground.figures.took("the model whole after it", time.monotonic() - over)
        ground.cargo.check()
