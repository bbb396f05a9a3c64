"""Deliberate bugs that the families of further steps are to find, each with its family."""

from typing import Any

import msgspec

from cluster_controller.clock import boottime
from cluster_controller.moves import words
from cluster_controller.moves.driver import Driver
from cluster_controller.moves.part import Part
from cluster_controller.placement.engine import Engine
from cluster_controller.placement.overrides import Overriding
from cluster_controller.reconcile import observe
from cluster_controller.rollout import depends, waves
from cluster_controller.rollout.keeping import Rolling
from cluster_controller.store import Store
from cluster_controller.store.journal import Trimmed
from cluster_controller.sync.target import Target
from cluster_controller.tunnel.link import Link
from cluster_controller.tunnel.messages import Lane
from cluster_controller.tunnel.protocol.connection import Connection
from cluster_controller.tunnel.protocol.frames import MAX_PAYLOAD
from cluster_controller.tunnel.protocol.lanes import Lanes
from cluster_controller.tunnel.protocol.pacing import Pacer
from cluster_controller.tunnel.protocol.sending import Sending
from tests.simulation.deliberate import both, mutant, put

# --- rollouts ---


@mutant("a wave is taken for well as soon as it was told", "rollouts")
def waves_do_not_wait() -> Any:
    return put(waves, "_done", lambda member, state: member.revision == state.current.revision)


@mutant("a rollout that is paused goes on", "rollouts")
def pauses_are_ignored() -> Any:
    original = waves.step

    def step(state: Any, watch: Any, rollout: Any, *more: Any, **named: Any) -> Any:
        return original(state, watch, msgspec.structs.replace(rollout, paused=False), *more, **named)

    return put(waves, "step", step)


@mutant("what never gets well is not taken back", "rollouts")
def nothing_is_rolled_back() -> Any:
    return put(Rolling, "_back", lambda self, tx, task, state: False)


@mutant("a version that failed goes to the next ones all the same", "rollouts")
def failures_do_not_stop() -> Any:
    original = waves._due

    def due(state: Any, rollout: Any, order: Any) -> Any:
        return original(msgspec.structs.replace(state, phase="Complete") if state.phase == "Failed" else state, rollout, order)

    return put(waves, "_due", due)


# --- documents ---


@mutant("a ConfigMap that has changed is not written where it was delivered", "documents")
def documents_stay_as_they_were() -> Any:
    original = Target._write

    def write(self: Target, tx: Any, key: Any, item: Any) -> None:
        if key.kind != "ConfigMap" or tx.get(key) is None:
            original(self, tx, key, item)

    return put(Target, "_write", write)


@mutant("what is different on some clusters is left out", "documents")
def overrides_are_left_out() -> Any:
    return put(Overriding, "lay", lambda self, tx, allotment, shares, seen, rolled: rolled)


@mutant("an Application starts before the one that it depends on", "documents")
def nobody_waits_for_others() -> Any:
    return put(depends, "waiting", lambda components, picture, *, own, outside: {})


# --- shims ---


@mutant("what a shim once said to be ready is shown as ready for ever", "shims")
def good_news_stays() -> Any:
    original = observe._component
    best: dict[str, int] = {}

    def component(seen: Any, problem: str) -> Any:
        ready = best[seen.name] = max(best.get(seen.name, 0), seen.ready)
        return original(msgspec.structs.replace(seen, ready=ready), problem)

    return put(observe, "_component", component)


# --- moves ---


@mutant("the parent that a cluster has left goes on counting it among its own", "moves")
def the_old_parent_does_not_forget() -> Any:
    async def forget(self: Part, question: Any) -> Any:
        return words.Yes()

    return put(Part, "_forget", forget)


@mutant("what a moved cluster took along is not counted over to its new branch", "moves")
def nothing_is_counted_over() -> Any:
    return put(Engine, "transfer", lambda self, tx, application, transfer: None)


@mutant("a parent that was set back to before a move is not told again", "moves")
def nobody_is_told_again() -> Any:
    async def nothing(self: Driver) -> None:
        return None

    return put(Driver, "_tell_once_more", nothing)


@mutant("what is at its new parent and has yet to be counted is divided anew", "moves")
def what_is_on_its_way_is_divided() -> Any:
    return put(Driver, "unsettled", lambda self, tx: set())


# --- bulk ---


@mutant("lanes are ignored: who came first is served until nothing of it waits", "bulk")
def lanes_are_ignored() -> Any:
    def push(self: Lanes, stream: Any) -> None:
        self._by_lane[Lane.BULK].streams.append(stream)
        stream.active = True

    def served(self: Lanes, stream: Any, size: int, again: bool) -> None:
        if again:
            self._by_lane[Lane.BULK].streams.appendleft(stream)
            stream.active = True

    return both(put(Lanes, "push", push), put(Lanes, "served", served))


@mutant("bulk fills whatever the kernel takes", "bulk")
def bulk_is_not_paced() -> Any:
    return put(Pacer, "allowance", lambda self, now, sample: MAX_PAYLOAD)


@mutant("a relay loses some of what it passes on", "bulk")
def relays_lose_frames() -> Any:
    original = Connection._relay
    state = {"count": 0}

    def relay(self: Connection, onward: Any, run: memoryview, count: int, end: int) -> None:
        state["count"] += 1
        if end or state["count"] % 100:
            original(self, onward, run, count, end)

    return put(Connection, "_relay", relay)


@mutant("only a heartbeat proves life, and a busy link needs none", "bulk")
def only_heartbeats_prove_life() -> Any:
    original = Connection._receive_heartbeat

    def heartbeat(self: Connection, message: Any) -> None:
        self.liveness.last_heard = self._now = boottime()
        original(self, message)

    return both(put(Link, "wire_received", lambda self: None), put(Connection, "_receive_heartbeat", heartbeat))


@mutant("streams that have ended stay in the table", "bulk")
def ended_streams_stay() -> Any:
    original = Connection._forget

    def forget(self: Connection, stream: Any) -> None:
        original(self, stream)
        self.streams[stream.id] = stream

    return put(Connection, "_forget", forget)


@mutant("a relay gives credit for what it has not passed on yet, so nothing bounds what waits there", "bulk")
def relays_have_no_cap() -> Any:
    received, sent = Connection._receive_data, Sending._sent

    def receive(self: Connection, id: int, run: memoryview, count: int, end: int) -> None:
        stream = self.streams.get(id)
        received(self, id, run, count, end)
        if stream is not None and stream.onward is not None:
            self._consumed(stream, len(run))

    def left(self: Sending, stream: Any, size: int) -> None:
        onward, stream.onward = stream.onward, None
        sent(self, stream, size)
        stream.onward = onward

    return both(put(Connection, "_receive_data", receive), put(Sending, "_sent", left))


# --- journals ---


@mutant("rows that nobody needs are taken for deleted from the disk when nothing was written", "journals")
def dead_rows_stay() -> Any:
    original = Store._flush

    def flush(self: Store) -> None:
        if not any(waiting.events for waiting in self._queue):
            self._trimmed = Trimmed()
        original(self)

    return put(Store, "_flush", flush)
