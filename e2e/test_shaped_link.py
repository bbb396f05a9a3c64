"""Lanes and credit over links of 20 Mbit/s with a long queue, real kernel buffers, one process per hop, each in its own network.

First the shipped `Tunnel` alone in four processes (root, a, b, c), where a stream can be stalled, filled and timed at will; then
the shipped `banyan run` as a tree of three. What is asserted are bytes and ratios: a wall clock only where the two sides of a
ratio were taken in the same minute on the same link.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_controller.identity import Identity, save
from cluster_controller.tunnel import Lane, Limits
from cluster_controller.tunnel.protocol.pacing import FRAME_TIME, TARGET_DELAY
from e2e.hop_program import DEAD_AFTER
from e2e.netns import Link, Namespace, weaving
from e2e.placed import pss
from e2e.support import ROOT, until
from tests.tunnel.support import identity, root

pytestmark = pytest.mark.needs("root")

RATE = "20mbit"
BYTES_A_SECOND = 20e6 / 8
QUEUE = 1 << 20  # bytes: 0.4 s at that rate, for whoever fills it
HOPS = 3
LANES_PERMIT = HOPS * (TARGET_DELAY + FRAME_TIME)  # seconds that bulk may add to a round trip: the window's aim and one frame, per hop
QUEUE_TIME = QUEUE / BYTES_A_SECOND
MEBIBYTE = 1 << 20


class Process:
    """A `hop_program` in a namespace."""

    def __init__(self, space: Namespace, who: Identity, folder: Path, listen: str, parent: str) -> None:
        save(folder, who)
        with space.entered(), (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "e2e.hop_program", str(folder), listen, parent],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
            )  # fmt: skip
        self._log = folder / "log"
        self.uid = self.address = ""

    def wait(self) -> None:
        told = self._read()
        self.uid, self.address = told["uid"], told["address"]

    def tell(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else pytest.fail(f"a hop ended:\n{self._log.read_text()[-3000:]}")

    def pss(self) -> int:
        return pss(self._process.pid)

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class Hops(list[Process]):
    """Processes from the root down, and the links between them."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[Link] = []


@pytest.fixture(scope="module")
def hops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hops]:
    """root, a, b and c: three links in a row."""
    made = Hops()
    names = ("root", "a", "b", "c")
    with weaving() as fabric:
        spaces = [fabric.namespace(name) for name in names]
        listen, parent = [], [""]
        for upper, lower in itertools.pairwise(spaces):
            link = fabric.link(upper, lower)
            link.shape(RATE, QUEUE)
            made.links.append(link)
            listen.append(link.upper.address)
        listen.append("127.0.0.1")
        try:
            for depth, name in enumerate(names):
                who = identity(name, *names[1:depth]) if depth else root()
                folder = tmp_path_factory.mktemp(name) / "identity"
                folder.mkdir(mode=0o700)
                made.append(Process(spaces[depth], who, folder, listen[depth], parent[depth]))
                made[-1].wait()
                parent.append(made[-1].address)
            until("the root reaches c", lambda: made[0].tell("reaches", to=made[-1].uid))
            yield made
        finally:
            for process in made:
                process.end()


@pytest.fixture
def calm(hops: Hops) -> Iterator[Hops]:
    """The same hops, with nothing under way before and after, and no link lost meanwhile."""
    before = [process.tell("losses") for process in hops]
    yield hops
    hops[0].tell("calm")
    assert [process.tell("losses") for process in hops] == before


def at_rest(top: Process) -> int:
    """Bytes that were taken until nothing more was."""
    seen = [-1, 0]
    while seen[-1] != seen[-2]:
        time.sleep(0.7)
        seen.append(top.tell("sent"))
        assert len(seen) < 60, f"it never stops: {seen[-1]} bytes were taken"
    return seen[-1]


def test_a_stalled_bulk_reader_costs_its_windows_and_slows_neither_heartbeat_nor_sync(calm: Hops) -> None:
    top, a, b, c = calm
    quiet = top.tell("times", to=c.uid, lane=Lane.SYNC, rounds=50)
    before = [process.pss() for process in calm]
    top.tell("fill", to=c.uid, service="never", lane=Lane.BULK)
    taken = at_rest(top)
    began = time.monotonic()
    limits = Limits()
    assert taken <= HOPS * limits.max_window + limits.send_buffer  # a window per hop and what the writer holds
    grown = [process.pss() - was for process, was in zip(calm, before, strict=True)]
    stalled = top.tell("times", to=c.uid, lane=Lane.SYNC, rounds=50)
    assert stalled["median"] < 3 * quiet["median"] + FRAME_TIME
    while time.monotonic() - began < 2 * DEAD_AFTER:  # a heartbeat that waits behind the stalled stream would end a link by now
        assert all(process.tell("probe") for process in (top, a, b, c))
    assert top.tell("sent") == taken
    print(f"\nstalled bulk: {taken} bytes under way; PSS grew by {grown}; sync round trip {quiet} alone, {stalled} beside it")
    # A relay holds at most one window; the reader's end one; twice that for the allocator's and the kernel-facing copies.
    assert max(grown) < 2 * limits.max_window + 2 * MEBIBYTE


def test_an_interactive_round_trip_stays_quick_beside_bulk(calm: Hops) -> None:
    top, _, _, c = calm
    alone = top.tell("times", to=c.uid, lane=Lane.INTERACTIVE, rounds=50)
    for _ in range(24):  # more than a queue's worth of windows: credit alone would fill it
        top.tell("fill", to=c.uid, service="swallow", lane=Lane.BULK)
    until("bulk flows", lambda: top.tell("sent") > 6 * MEBIBYTE)
    began, sent = time.monotonic(), top.tell("sent")
    beside = top.tell("times", to=c.uid, lane=Lane.INTERACTIVE, rounds=60)
    sync = top.tell("times", to=c.uid, lane=Lane.SYNC, rounds=30)
    bulk = top.tell("times", to=c.uid, lane=Lane.BULK, rounds=12)
    carried = (top.tell("sent") - sent) / (time.monotonic() - began) / BYTES_A_SECOND
    print(f"\ninteractive: {alone} alone, {beside} beside bulk; sync {sync}, in bulk's own lane {bulk}; bulk had {carried:.0%}")
    assert carried > 0.5  # bulk was there, and has not paid for it
    for one in (beside, sync):  # with lanes that do nothing these are equal, and about half of QUEUE_TIME
        assert one["median"] < 0.7 * bulk["median"]
        assert one["median"] - alone["median"] < 1.3 * LANES_PERMIT < 0.45 * QUEUE_TIME


def test_with_every_stream_but_one_stalled_through_three_hops_the_one_keeps_its_rate(calm: Hops) -> None:
    top, a, b, c = calm
    alone = top.tell("rate", to=c.uid, lane=Lane.SYNC, size=6 * MEBIBYTE)
    before = [process.pss() for process in calm]
    for _ in range(20):
        top.tell("fill", to=c.uid, service="never", lane=Lane.SYNC)
    taken = at_rest(top)
    beside = top.tell("rate", to=c.uid, lane=Lane.SYNC, size=6 * MEBIBYTE)
    assert top.tell("sent") == taken
    grown = [process.pss() - was for process, was in zip((top, a, b, c), before, strict=True)]
    print(f"\nrate {alone / BYTES_A_SECOND:.0%} of the link alone, {beside / BYTES_A_SECOND:.0%} beside 20 stalled; PSS grew by {grown}")
    assert alone > 0.7 * BYTES_A_SECOND
    assert beside > 0.8 * alone
    assert max(grown) < 1.5 * Limits().link_budget


def test_a_link_that_swallows_everything_is_found_dead_from_both_sides_and_comes_back(hops: Hops) -> None:
    """No FIN, no reset: only silence tells, above and below, and only on the link that is broken."""
    top, a, b, c = hops
    before = [process.tell("losses") for process in hops]
    hops.links[1].cut()
    try:
        until("both sides of the link have found it dead", lambda: a.tell("losses") != before[1] and b.tell("losses") != before[2], 20)
        until("the root knows that b and c are gone", lambda: not top.tell("reaches", to=b.uid) and not top.tell("reaches", to=c.uid))
        assert "nothing was heard" in a.tell("losses")[-1]
        assert "nothing was heard" in b.tell("losses")[-1]
        assert [top.tell("losses"), c.tell("losses")] == [before[0], before[3]]
    finally:
        hops.links[1].mend()
    until("the root reaches c again", lambda: top.tell("reaches", to=c.uid))
    assert top.tell("times", to=c.uid, lane=Lane.INTERACTIVE, rounds=3)["median"] > 0
