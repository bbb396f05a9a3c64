"""A drill ends by itself, whatever becomes of whoever asked, of the link, and of the process; its report says what was kept."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_controller import drill
from cluster_controller.drill import Doors, Drill, Record, Report, Struck, compare, tell
from cluster_controller.errors import Conflict, Forbidden, InvalidInput, NotFound
from cluster_controller.store import Key, Store

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Site:
    """What a drill does to a controller, written down."""

    def __init__(self, store: Store, root: bool = False) -> None:
        self.store = store
        self.done: list[str] = []
        self.link = True
        self.looked = True
        self.struck: list[Struck] = []
        self.well = True
        doors = Doors(
            cut=self.cut,
            mend=self.mend,
            restart=self.restart,
            linked=lambda: self.link,
            seen=lambda: self.looked,
            chosen=lambda target: self.struck if target == "shop/web" else [],
            well=lambda target: self.well,
            signal=lambda pid, number: self.done.append(f"{signal.Signals(number).name} {pid}"),
        )
        self.drill = Drill(store, doors, me=lambda: ("u" * 26, "edge-1"), root=root, wall=lambda: NOW)

    async def cut(self) -> None:
        self.done.append("cut")
        self.link = False

    def mend(self) -> None:
        self.done.append("mend")
        self.link = True

    def restart(self) -> None:
        self.done.append("restart")

    async def pod(self, name: str, restarts: int = 0, phase: str = "Running") -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "main", "restartCount": restarts}]}
        document = msgspec.json.encode({"kind": "Pod", "metadata": {"name": name, "uid": f"uid-{name}"}, "status": status})
        await self.store.commit(lambda tx: tx.put(Key("observed", "Pod", "default", name), document, uid=f"uid-{name}"))

    async def over(self) -> Report:
        async with asyncio.timeout(30):
            while (last := self.drill.last()) is None or last.state != "ended":
                await asyncio.sleep(0)
        return last


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second on a real controller takes none here; bounds stay what they are."""
    monkeypatch.setattr(drill, "LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(drill, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(drill, "SECONDS", (0.0, 3600.0))


def play(tmp_path: Path, body: Callable[[Site], Awaitable[Any]], root: bool = False) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        site = Site(store, root)
        try:
            await body(site)
        finally:
            await site.drill.close()
            await store.close()

    asyncio.run(main())


def test_a_cut_ends_by_itself_and_reports_what_was_kept(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        await site.pod("a")
        await site.pod("b")
        await site.pod("waiting", phase="Pending")
        begun = await site.drill.begin("cut", 0.0, "ada")
        assert (begun.state, begun.instances, site.drill.last()) == ("running", 2, begun)  # on the disk before it begins
        done = await site.over()
        assert site.done == ["cut", "mend"]
        assert (done.kept, done.lost, done.fresh, done.parent, done.by) == (2, (), 0, True, "ada")
        reasons = [msgspec.json.decode(stored.document)["reason"] for stored in site.store.list("own", "Event")]
        assert sorted(reasons) == ["DrillBegan", "DrillEnded"]
        await site.drill.begin("cut", 0.0, "ada")  # and there may be another

    play(tmp_path, body)


def test_one_at_a_time_bounded_and_only_what_there_is(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        for fault, seconds in (("burn", 1.0), ("cut", 3601.0), ("cut", -1.0), ("cut", float("nan"))):
            with pytest.raises(InvalidInput):
                await site.drill.begin(fault, seconds, "ada")
        await site.drill.begin("cut", 3600.0, "ada")
        with pytest.raises(Conflict, match="under way"):
            await site.drill.begin("restart", 1.0, "bob")

    play(tmp_path, body)


def test_a_root_has_no_parent_to_be_cut_off_from(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        with pytest.raises(Forbidden, match="is the root"):
            await site.drill.begin("cut", 1.0, "ada")

    play(tmp_path, body, root=True)


def test_a_process_that_stops_in_the_middle_dials_again_and_its_next_start_ends_the_drill(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        site = Site(store)
        await site.pod("a")
        await site.pod("b", restarts=1)
        await site.drill.begin("cut", 3600.0, "ada")
        async with asyncio.timeout(30):
            while site.done != ["cut"]:
                await asyncio.sleep(0)
        await site.drill.close()
        assert site.done == ["cut", "mend"]
        await site.pod("b", restarts=2)  # it did not survive
        again = Site(store)
        again.link = again.looked = False
        again.drill.resume()
        with pytest.raises(Conflict):
            await again.drill.begin("cut", 1.0, "bob")
        again.link = again.looked = True
        done = await again.over()
        assert (done.kept, done.lost, done.fresh) == (1, ("b",), 1) and again.done == []
        third = Site(store)
        third.drill.resume()  # nothing is left to end
        assert third.drill.last() == done
        await again.drill.close()
        await third.drill.close()
        await store.close()

    asyncio.run(main())


def test_a_restart_leaves_its_report_to_the_next_start(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        await site.drill.begin("restart", 1.0, "ada")
        async with asyncio.timeout(30):
            while site.done != ["restart"]:
                await asyncio.sleep(0)
        last = site.drill.last()
        assert last is not None and last.state == "running"
        following = Site(site.store)
        following.drill.resume()
        assert (await following.over()).parent
        await following.drill.close()

    play(tmp_path, body)


def test_who_does_not_come_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "BACK_SECONDS", 0.0)

    async def body(site: Site) -> None:
        site.mend = lambda: None  # type: ignore[method-assign]
        stuck = Doors(cut=site.cut, mend=site.mend, restart=site.restart, linked=lambda: False, seen=lambda: True)
        site.drill = Drill(site.store, stuck, me=lambda: ("u" * 26, "edge-1"), root=False, wall=lambda: NOW)
        await site.drill.begin("cut", 0.0, "ada")
        done = await site.over()
        assert not done.parent and "not back yet" in done.message

    play(tmp_path, body)


def test_many_lost_ones_are_counted_and_some_named() -> None:
    report = Report(fault="cut", seconds=1, by="ada", began="2026-11-21T11:59:00Z", instances=30)
    before = {f"uid-{number}": f"pod-{number:02}" for number in range(30)}
    done = compare(Record(report, before), {"uid-0": "pod-00", "new": "pod-new"}, True, NOW)
    assert (done.kept, len(done.lost), done.fresh) == (1, drill.NAMED, 1) and "cut for 60 s" in done.message


def test_chosen_instances_are_killed_or_frozen_and_those_go_on_at_the_end(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.struck = [Struck("web-1", 41), Struck("web-2", 42)]
        await site.drill.begin("kill", 0.0, "ada", "shop/web")
        done = await site.over()
        assert site.done == ["SIGKILL 41", "SIGKILL 42"]
        assert (done.target, done.struck, done.recovered) == ("shop/web", ("web-1", "web-2"), True)
        assert "shop/web is well again" in done.message
        site.done.clear()
        await site.drill.begin("freeze", 0.0, "ada", "shop/web")
        await site.over()
        assert site.done == ["SIGSTOP 41", "SIGSTOP 42", "SIGCONT 41", "SIGCONT 42"]

    play(tmp_path, body)


def test_what_was_frozen_goes_on_though_the_controller_dies_meanwhile(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        site.struck = [Struck("web-1", 41)]
        await site.drill.begin("freeze", 3600.0, "ada", "shop/web")
        while "SIGSTOP 41" not in site.done:
            await asyncio.sleep(0)
        after = Site(site.store)  # the next start
        after.drill.resume()
        assert after.done == ["SIGCONT 41"]
        await after.over()
        await after.drill.close()

    play(tmp_path, body)


def test_what_does_not_recover_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "BACK_SECONDS", 0.01)

    async def body(site: Site) -> None:
        site.struck, site.well = [Struck("web-1", 41)], False
        await site.drill.begin("kill", 0.0, "ada", "shop/web")
        done = await site.over()
        assert not done.recovered
        assert "shop/web is NOT well again" in done.message

    play(tmp_path, body)


def test_only_what_was_named_and_is_a_process_here_is_struck(tmp_path: Path) -> None:
    async def body(site: Site) -> None:
        for target in ("", "web", "a/b/c/d", "shop/"):
            with pytest.raises(InvalidInput, match="is not NAMESPACE/APPLICATION"):
                await site.drill.begin("kill", 0.0, "ada", target)
        with pytest.raises(NotFound, match="nothing of shop/other runs on edge-1"):
            await site.drill.begin("kill", 0.0, "ada", "shop/other")
        site.struck = [Struck("web-1", 0)]
        with pytest.raises(Forbidden, match="no processes of this controller's machine"):
            await site.drill.begin("freeze", 0.0, "ada", "shop/web")
        assert site.done == []

    play(tmp_path, body)


def test_a_signal_reaches_a_process_with_those_that_it_started_and_one_that_has_gone_needs_none() -> None:
    for own in (True, False):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=own)
        tell(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        tell(process.pid, signal.SIGKILL)
