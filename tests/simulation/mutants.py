"""Deliberate bugs: each is a fault of the kind that the simulation is there to find, and some seed must find it.

A simulation that finds nothing proves nothing until it is known what it would find. ``make simulate-mutants`` puts one bug after the
other into the running product and counts the seeds until an invariant is violated.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from cluster_controller import reports
from cluster_controller.app import Controller
from cluster_controller.links import Links
from cluster_controller.placement import divide, given, telling, works
from cluster_controller.reconcile.reconciler import Reconciler
from cluster_controller.reports import Reporter
from cluster_controller.settling import Settler
from cluster_controller.store.journal import Journal
from cluster_controller.store.store import Store
from cluster_controller.store.tx import Head
from cluster_controller.sync import rules
from cluster_controller.sync.messages import Ack
from cluster_controller.sync.rules import Verdict
from cluster_controller.sync.session import _Run
from cluster_controller.sync.source import Source
from cluster_controller.sync.target import Target
from cluster_controller.tree import admission
from cluster_controller.tree.admission import Entry
from cluster_controller.tree.away import Away
from cluster_controller.tree.census import Census
from cluster_controller.tunnel import link as links
from cluster_controller.tunnel.dialer import Dialer
from cluster_controller.tunnel.protocol.liveness import Liveness
from cluster_controller.tunnel.router import Router
from cluster_controller.tunnel.tunnel import Tunnel
from cluster_shim import contract
from tests.simulation import family_mutants, scenario
from tests.simulation.deliberate import MUTANTS, both, mutant, put
from tests.simulation.life import machine
from tests.simulation.loop import Stuck
from tests.simulation.steps import ROUNDS

FURTHER = family_mutants  # which add theirs

# --- the store ---


@mutant("a person is answered before the disk holds what was written")
def answer_before_commit() -> Any:
    original = Store.commit

    async def commit(self: Store, work: Callable[[Any], Any]) -> Any:
        result: list[Any] = []
        waiting = asyncio.ensure_future(original(self, lambda tx: result.append(work(tx))))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0)
        if not result:
            return await waiting
        return result[0]

    return put(Store, "commit", commit)


@mutant("what a failed write left in memory is built upon")
def failed_write_stays() -> Any:
    return put(Head, "drop_pending", lambda self, revision: None)


@mutant("the journal forgets the oldest change after a cursor")
def journal_skips_one() -> Any:
    original = Journal.since
    return put(Journal, "since", lambda self, revision, space=None: original(self, revision, space)[1:])


# --- sync ---


@mutant("a change is acknowledged before the commit")
def ack_before_commit() -> Any:
    async def receive(self: _Run, received: Any) -> None:
        outcomes: list[Any] = []
        waiting = asyncio.ensure_future(self._store.commit(lambda tx: outcomes.append(self._target.apply(tx, received))))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0)
        self._answer(self._target.answers(outcomes[0] if outcomes else []))
        self._applied.set()

    original = Source.acked

    def acked(self: Source, message: Ack) -> None:
        original(self, message)

    return both(put(_Run, "_receive", receive), put(Source, "acked", acked))


@mutant("the cursor is written without what it stands for")
def cursor_runs_ahead() -> Any:
    original = Target._item
    state = {"count": 0}

    def item(self: Target, tx: Any, each: Any) -> None:
        state["count"] += 1
        if state["count"] % 50:
            original(self, tx, each)

    return put(Target, "_item", item)


@mutant("a replayed or late change replaces a newer one")
def no_version_check() -> Any:
    original = Target._batch

    def batch(self: Target, tx: Any, message: Any) -> Any:
        for each in message.items:
            if each.delivered[1] <= self.cursor[1]:
                self._write(tx, self._key(each), each)
        return original(self, tx, message)

    resume = Source.resume

    def resumed(self: Source, message: Any) -> None:
        resume(self, message)
        self._sent = max(0, self._sent - 20)

    return both(put(Target, "_batch", batch), put(Source, "resume", resumed))


@mutant("an old report is believed again")
def old_reports_believed() -> Any:
    return put(rules, "reported_before", lambda held, item: False)


@mutant("a sender that forgot (restored from a backup) may remove what it does not know")
def foreign_snapshot_deletes() -> Any:
    return put(rules, "on_absence", lambda held, contains, follow: Verdict.APPLY)


@mutant("deletions are not passed on")
def deletions_ignored() -> Any:
    return put(rules, "on_delete", lambda held, item, contains: Verdict.STALE)


@mutant("what a new connection lacks is not asked for")
def resumes_from_now() -> Any:
    original = Source.resume

    def resume(self: Source, message: Any) -> None:
        original(self, message)
        if self._mask is None:
            self._sent = self._view.revision
            self._check_due = False

    return put(Source, "resume", resume)


@mutant("sync ends with its first session")
def one_session_only() -> Any:
    original = Links._sync_parent
    seen: set[str] = set()

    async def sync(self: Links, *args: Any, **more: Any) -> None:
        if self._uid in seen:
            await asyncio.Event().wait()
        seen.add(self._uid)
        await original(self, *args, **more)

    return put(Links, "_sync_parent", sync)


# --- links ---


@mutant("a silent link is never declared dead")
def never_dead() -> Any:
    original = Liveness.__init__

    def begin(self: Liveness, *args: Any, **more: Any) -> None:
        original(self, *args, **more)

    return both(put(Liveness, "__init__", begin), put(Liveness, "dead_after", property(lambda self: math.inf, lambda self, value: None)))


@mutant("a lease is measured by the wall clock, which jumps")
def wall_clock_lease() -> Any:
    return put(links, "boottime", lambda: machine().wall().timestamp())


@mutant("a lost link stays in the table")
def lost_link_stays() -> Any:
    original = Tunnel.link_lost

    def lost(self: Tunnel, link: Any, code: int, reason: str) -> None:
        held = not link.is_parent and self._links.get(link.peer_uid) is link
        original(self, link, code, reason)
        if held:
            self._links[link.peer_uid] = link

    return put(Tunnel, "link_lost", lost)


@mutant("links that have ended are kept in memory")
def links_are_kept() -> Any:
    original = Tunnel.link_lost
    kept: list[Any] = []

    def lost(self: Tunnel, link: Any, code: int, reason: str) -> None:
        kept.append(link)
        original(self, link, code, reason)

    return put(Tunnel, "link_lost", lost)


@mutant("what was counted of a link's sessions stays after the link")
def ended_links_stay_counted() -> Any:
    original = Links.down

    def down(self: Links, link: Any) -> None:
        counted = self._counts.get(link.peer_uid)
        original(self, link)
        if counted is not None:
            self._counts[link.peer_uid] = counted

    return put(Links, "down", down)


@mutant("routes below a lost child are kept")
def routes_are_kept() -> Any:
    return put(Router, "detach", lambda self, uid: None)


@mutant("a restarted child is taken for a copy and held")
def restarts_are_held() -> Any:
    def judge(caller: Any, member: Any, live: bool) -> Entry:
        return Entry.HOLD if member is not None and member.started.start not in ("", caller.starts[-1]) else original(caller, member, live)

    original = admission.judge_hello
    return put(admission, "judge_hello", judge)


# --- placement ---


@mutant("a share is raised before the lower one elsewhere is acknowledged")
def raise_without_waiting() -> Any:
    original = divide._raise
    return put(divide, "_raise", lambda shares, targets, missing, bound: original(shares, targets, missing, 10**6))


@mutant("what may still run beyond a lowered share is forgotten")
def ceilings_forgotten() -> Any:
    return put(works.Works, "ceilings", lambda self, tx, application: {})


@mutant("the share of a silent cluster is given to others although it said Keep")
def keep_is_replaced() -> Any:
    return put(divide, "standing", lambda given, clusters: max(0, given.share - given.unplaced) if given.reachable and clusters else 0)


@mutant("one replica more is given away than was given")
def gives_one_more() -> Any:
    from cluster_controller.placement import place

    original = divide.divide
    return put(place, "divide", lambda allotted, targets, *more: original(allotted + (allotted > 3), targets, *more))


@mutant("an acknowledgement counts for any share")
def any_answer_confirms() -> Any:
    def answers(work: Any, status: Any) -> bool:
        return work is not None and status is not None

    return both(put(telling, "answers", answers), put(given, "answers", answers))


@mutant("what could not be written is not tried again")
def marks_are_lost() -> Any:
    async def run(self: Settler) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            names, self._dirty = list(self._dirty), {}
            await self._store.commit(lambda tx, names=names: self._settle_all(tx, names))  # type: ignore[misc]

    return put(Settler, "run", run)


@mutant("placement takes a silent cluster for one that is in reach")
def silence_is_not_noticed() -> Any:
    return put(Census, "silent", lambda self: {})


# --- what is shown ---


@mutant("clusters behind a lost link are shown as they were")
def silence_is_not_shown() -> Any:
    return put(Census, "link_changed", lambda self, child, last_heard: None)


@mutant("only the child behind a lost link is shown as lost, not what is below it")
def only_the_child_is_lost() -> Any:
    return put(Census, "_mark_below", lambda self, child: self._settler.mark(child))


@mutant("reports begin at one again after each start")
def starts_are_not_counted() -> Any:
    async def number(store: Store, now: Any) -> int:
        return 1

    return put(reports, "_number", number)


@mutant("a controller whose folder was set back does not report anew")
def nothing_is_reported_anew() -> Any:
    return put(Controller, "report_anew", lambda self: None)


# --- the own cluster ---


@mutant("a start tells the shim nothing of what ran before")
def starts_empty() -> Any:
    original = Reconciler._desired

    async def desired(self: Reconciler) -> Any:
        first = True
        async for each in original(self):
            yield contract.Desired(full=True) if first else each
            first = False

    return put(Reconciler, "_desired", desired)


@mutant("what was taken back is not taken from the shim")
def removals_are_lost() -> Any:
    original = Reconciler._desired

    async def desired(self: Reconciler) -> Any:
        async for each in original(self):
            yield contract.Desired(works=each.works, full=each.full)

    return put(Reconciler, "_desired", desired)


@mutant("a report is lost now and then")
def reports_are_lost() -> Any:
    original = Reporter.put
    state = {"count": 0}

    def put_one(self: Reporter, *args: Any, **more: Any) -> None:
        state["count"] += 1
        if state["count"] % 10:
            original(self, *args, **more)

    return put(Reporter, "put", put_one)


@mutant("what runs at clusters that an adopter carries is divided anew all the same")
def an_adopter_divides() -> Any:
    return put(Away, "heard", lambda self: frozenset())


@mutant("who did not reach its parent does not try again")
def dials_once() -> Any:
    original = Dialer._wait

    async def wait(self: Dialer, link: Any, seconds: float) -> None:
        await original(self, link, seconds if link is not None else 1e9)

    return put(Dialer, "_wait", wait)


# --- the check ---

NAMED: dict[str, int] = {
    "an_adopter_divides": 10,
    "dead_rows_stay": 9,
    "ended_links_stay_counted": 1,
    "failures_do_not_stop": 2,
    "foreign_snapshot_deletes": 1,
    "keep_is_replaced": 1,
    "marks_are_lost": 4,
    "nobody_is_told_again": 36,
    "nothing_is_reported_anew": 2,
    "old_reports_believed": 1,
    "only_heartbeats_prove_life": 2,
    "only_the_child_is_lost": 1,
    "starts_are_not_counted": 1,
}
"""The seed that found each bug when this was written; 0 found those that are not named. A change of the plans may move them."""


def seeds_for(name: str, further: int) -> list[int]:
    """Its own seed first, then ``further`` others: should that one no longer find it, another does."""
    own = NAMED.get(name, 0)
    return [own, *[seed for seed in range(further + 1) if seed != own][:further]]


def caught(name: str, seeds: Iterable[int], rounds: int = ROUNDS) -> tuple[int, str] | None:
    """The first of ``seeds`` that finds the bug, and how; None when none does."""
    for seed in seeds:
        with MUTANTS[name].put_in():
            try:
                outcome = scenario.simulate(scenario.draw_with(scenario.draw(seed, rounds=rounds), MUTANTS[name].families))
            except Stuck as error:
                return seed, f"nothing gets on any more: {error}"
            if outcome.violations:
                return seed, str(outcome.violations[0])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only these")
    parser.add_argument("--further", type=int, default=11, help="how many seeds are tried where a bug's own does not find it")
    parser.add_argument("--rounds", type=int, default=3, help="of each seed")
    options = parser.parse_args()
    missed = moved = 0
    names = options.names or list(MUTANTS)
    if unknown := sorted({*NAMED, *names} - set(MUTANTS)):
        parser.error(f"there are no such bugs: {', '.join(unknown)}")
    for name in names:
        began, seeds = time.process_time(), seeds_for(name, options.further)
        found = caught(name, seeds, options.rounds)
        spent = time.process_time() - began
        if found is None:
            missed += 1
            print(f"MISSED  {name} ({MUTANTS[name].what}): not found by seeds {seeds}, {spent:.0f} s", flush=True)
            continue
        moved += found[0] != seeds[0]
        how = "" if found[0] == seeds[0] else f" (its own, {seeds[0]}, does not find it any more: name this one)"
        print(f"caught  {name}: seed {found[0]}{how}, {spent:.0f} s: {found[1][:160]}", flush=True)
    print(f"{len(names)} deliberate bugs, {len(names) - missed} caught, {len(names) - missed - moved} by their own seed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
