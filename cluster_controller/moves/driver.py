"""Moves decided at this controller, the nearest common ancestor of a cluster's old and new parent: one after the other asks, and counts.

What is decided is `state`'s word; each step is on the disk (space ``moves``) before the next question is asked, so a restart goes on
where it was. While a cluster has come to its new parent and is not yet counted there, what its old branch holds is not divided anew.
"""

import asyncio
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import events
from cluster_controller.documents import decode, encode
from cluster_controller.errors import BanyanError, Conflict, Exhausted, Forbidden, NotFound
from cluster_controller.events import Reason
from cluster_controller.moves import left, state, words
from cluster_controller.moves.part import Part, put
from cluster_controller.moves.state import Ask, Move, Phase
from cluster_controller.moves.words import Answer, Gone, No, NotYet
from cluster_controller.placement.engine import Engine
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store, Tx
from cluster_controller.tree import listing, records
from cluster_controller.tree.times import format_time
from cluster_controller.tunnel.stream import StreamNotServed
from cluster_controller.tunnel.tunnel import Tunnel

log = structlog.get_logger()

SPACE = "moves"
KIND = "Move"
CONDITION = "Moving"
MAX_ACTIVE = 32
MAX_KEPT = 200  # ended ones, for those who ask what became of them
ASK_SECONDS = 20.0
REHEARSE_SECONDS = 5.0
PAUSES = (0.1, 5.0)  # between two looks at a move that waits


class Planned(Struct, frozen=True):
    """``troubles``: why it would be refused."""

    move: Move
    clusters: tuple[str, ...]
    applications: tuple[dict[str, object], ...]
    troubles: tuple[str, ...] = ()


class Driver:
    """``me``: uid and name. ``way``: by which direct child a cluster is reached now, by its signed attach."""

    heeds = ("Cluster", left.KIND)  # kinds of what `changed` is called for

    def __init__(
        self,
        store: Store,
        engine: Engine,
        tunnel: Tunnel,
        part: Part,
        *,
        me: Callable[[], tuple[str, str]],
        way: Callable[[str], str | None],
        wall: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._engine, self._tunnel, self._part = engine, tunnel, part
        self._me, self._route, self._wall = me, way, wall
        self._moves: dict[str, Move] = {}  # by the cluster
        self._doubts = left.Doubts(store)
        self._wake = asyncio.Event()
        engine.transferring.unsettled = self.unsettled
        engine.transferring.grace = part.grace

    # --- a room ---

    def load(self) -> None:
        for stored in self._store.list(SPACE, KIND):
            found = decode(stored.document, Move)
            self._moves[found.cluster] = found
        self._doubts.load()
        self._wake.set()

    def changed(self, changes: Sequence[Event]) -> None:
        if self._moves and any(event.stored.key.kind == "Cluster" for event in changes):
            self._wake.set()
        if self._doubts.changed(changes):
            self._wake.set()

    async def run(self) -> None:
        """For ever: each active move is taken a step further, and another; one that waits is looked at again ever more seldom.

        A look that brings nothing is never followed by the next one at once, whatever changes meanwhile: it asks others, and may write.
        """
        pause: float | None = None  # until the next look; None: for as long as nothing changes
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            await self._tell_once_more()
            active = [move.cluster for move in self._moves.values() if move.active]
            if not active:
                pause = PAUSES[1] if self._doubts else None
                continue
            before = self._stages()
            await asyncio.gather(*(self._step(cluster) for cluster in active))
            if before != self._stages():
                pause = PAUSES[0]
                continue
            await asyncio.sleep(PAUSES[0])
            pause = min(2 * (pause or PAUSES[0]), PAUSES[1])

    def _stages(self) -> dict[str, Move]:
        return {cluster: move.stage for cluster, move in self._moves.items()}

    # --- who lists a cluster that has left it ---

    async def _tell_once_more(self) -> None:
        """What was set back to before a move knows nothing of it: once two have spoken of one cluster for long enough, it is told."""
        for found in self._doubts.ripe(asyncio.get_running_loop().time(), self._elsewhere):
            try:
                await self._once_more(found)
            except (BanyanError, TimeoutError) as error:  # it is asked again
                log.warning("move.untold", cluster=self._called(found.cluster), reason=str(error))

    def _elsewhere(self, uid: str) -> left.Elsewhere | None:
        known = None if self._under_way(uid) else self._part.record(uid)
        return left.elsewhere(self._store, self._me()[0], uid, known, self._route(uid))

    def _under_way(self, uid: str) -> bool:
        """Is it moved just now, or with another one? Then its share is counted as ever."""
        return any(move.active and uid in (move.cluster, *move.names.values()) for move in self._moves.values())

    async def _once_more(self, found: left.Elsewhere) -> None:
        """The move that is known here, or what the cluster itself still knows of it."""
        uid, known = found.cluster, self._moves.get(found.cluster)
        out, into = (*self._branch(found.old), uid), (*self._branch(found.parent), uid)
        if out[0] == into[0]:
            return  # somebody below decides that
        async with asyncio.timeout(ASK_SECONDS):
            answer = await self._put(Ask(uid, words.Where(move="", parent=found.parent)))
        if not isinstance(answer, Gone) or not answer.move:
            return  # it came there by no move
        if known is not None and known.phase is Phase.DONE and known.id == answer.move:
            move = state.once_more(known, found.attach, tuple(answer.held))
        else:
            move = Move(
                id=answer.move,
                cluster=uid,
                name=self._called(uid).partition(".")[0],
                parent=found.parent,
                parent_name=self._called(found.parent),
                old=found.old,
                old_name=self._called(found.old),
                out=out,
                into=into,
                phase=Phase.ARRIVING,
                began=format_time(self._wall()),
                told=True,
                held=answer.held,
                after=answer.after,
                again=found.attach,
            )
        log.info("move.told_again", cluster=move.name, old=move.old_name, parent=move.parent_name)
        await self._save(move)

    # --- what other rooms ask ---

    def way(self, uid: str) -> str | None:
        """By which direct child a cluster is reached: one that was counted over by its new way, until its old parent has let go of it.

        Afterwards, and where it is reached by a third way, its signed attach alone says so: it may have gone on since.
        """
        route = self._route(uid)
        own = self._moves.get(uid)
        for move in [own] if own is not None else self._moves.values():
            concerned = uid == move.cluster or uid in move.names.values()
            if concerned and move.phase is Phase.CLOSING and route in (None, move.out[0]):
                return move.into[0]
        return route

    def unsettled(self, tx: Tx) -> Collection[str]:
        """Direct children from whose share a cluster has gone that is not counted elsewhere yet."""
        found = {uid for uid in self._doubts.own() if not self._under_way(uid)}
        for move in self._moves.values():
            if move.told and (move.unsettled or move.phase is Phase.UNDOING):
                there = tx.find(records.OWN, "Cluster", move.cluster)
                if there is not None and decode(there.document, kinds.Cluster).status.parent_uid == move.parent:
                    found.add(move.out[0])
        return found

    # --- what people ask ---

    def last(self, name: str) -> Move:
        """The move of a cluster that is under way, or the last one. NotFound."""
        uid = self._find(name).status.uid
        if uid not in self._moves:
            raise NotFound(f"{name} was never moved from here; `banyan move {name} --parent NAME` moves it")
        return self._moves[uid]

    async def begin(self, name: str, parent: str, by: str) -> Move:
        """Conflict and Forbidden say why not."""
        move = self._plan(name, parent)
        if sum(one.active for one in self._moves.values()) >= MAX_ACTIVE:
            raise Exhausted(f"{MAX_ACTIVE} moves are under way; wait for one of them", retry_after=5.0)
        move = msgspec.structs.replace(move, by=by, began=format_time(self._wall()))
        await self._save(move)
        log.info("move.begun", cluster=name, uid=move.cluster, parent=move.parent_name, by=by)
        return move

    async def call_off(self, name: str, by: str) -> Move:
        """Conflict when it is made already, or none is under way."""
        move = self.last(name)
        off = state.call_off(move, f"called off by {by}")
        if off is move:
            raise Conflict(f"the move of {name} is {move.phase.value}; only one that is not made yet is called off")
        await self._save(off)
        return off

    async def rehearse(self, name: str, parent: str) -> Planned:
        """What a move would do, and what everybody concerned says to it."""
        move = self._plan(name, parent)

        async def asked(ask: Ask) -> str:
            try:
                async with asyncio.timeout(REHEARSE_SECONDS):
                    answer = await self._put(ask)
            except (BanyanError, TimeoutError) as error:
                return f"{self._called(ask.whom)} does not answer: {error}"
            return answer.reason if isinstance(answer, No | NotYet) else ""

        said = await asyncio.gather(*(asked(ask) for ask in state.rehearsal(move)))
        troubles = (*self._rolling_out(move), *(one for one in said if one))
        return Planned(move, tuple(sorted(move.names)), tuple(self._applications(move)), troubles)

    # --- planning ---

    def _plan(self, name: str, parent: str) -> Move:
        me = self._me()[0]
        cluster, target = self._find(name).status, self._find(parent).status
        uid, to = cluster.uid, target.uid
        if uid == me:
            raise Forbidden(f"{name} is this controller itself; a move is decided at a controller above it")
        out = self._branch(uid)
        into = (*self._branch(to), uid) if to != me else (uid,)
        if uid in into[:-1]:
            raise Conflict(f"{parent} stands below {name}: a cluster cannot be moved under itself")
        if cluster.parent_uid == to:
            raise Conflict(f"{parent} is the parent of {name} already")
        if out[0] == into[0]:
            nearest = self._called(out[0])
            raise Forbidden(f"both stand below {nearest}, which decides it: banyan --at {nearest} move {name} --parent {parent}")
        for one in dict.fromkeys((*out, *into)):
            self._require(one, uid)
        below = {one.status.uid: one for one in self._clusters() if uid in self._branch(one.status.uid)}
        names = {self._own_name(one): one_uid for one_uid, one in below.items()}
        self._require_alone(uid, {*names.values(), *out, *into})
        return Move(
            id=secrets.token_hex(8),
            cluster=uid,
            name=self._own_name(below[uid]),
            parent=to,
            parent_name=self._called(to),
            old=cluster.parent_uid,
            old_name=cluster.parent,
            out=out,
            into=into,
            labels=dict(cluster.facts.labels),
            names=names,
            height=self._height(uid, below.values()),
        )

    def _clusters(self) -> list[kinds.Cluster]:
        return [decode(stored.document, kinds.Cluster) for stored in self._store.list(records.OWN, "Cluster")]

    def _find(self, name: str) -> kinds.Cluster:
        stored = self._store.get(Key(records.OWN, "Cluster", "", name)) or self._store.find(records.OWN, "Cluster", name)
        if stored is None:
            raise NotFound(f"no cluster {name} in the subtree of {self._me()[1]}; `banyan tree` shows those that are")
        return decode(stored.document, kinds.Cluster)

    def _called(self, uid: str) -> str:
        stored = self._store.find(records.OWN, "Cluster", uid)
        return stored.key.name if stored is not None else uid

    def _own_name(self, cluster: kinds.Cluster) -> str:
        """What it calls itself: here it may be listed under an alias."""
        return cluster.metadata.name.partition(".")[0]

    def _branch(self, uid: str) -> tuple[str, ...]:
        """uids from the direct child down to ``uid``; empty for this controller."""
        hops: list[str] = []
        me = self._me()[0]
        while uid and uid != me and len(hops) <= records.MAX_HOPS:
            hops.append(uid)
            stored = self._store.find(records.OWN, "Cluster", uid)
            uid = decode(stored.document, kinds.Cluster).status.parent_uid if stored is not None else ""
        return tuple(reversed(hops))

    def _require(self, uid: str, moved: str) -> None:
        """In reach, at home, and of a version that knows how. Conflict."""
        stored = self._store.find(records.OWN, "Cluster", uid)
        name = self._called(uid)
        found = decode(stored.document, kinds.Cluster).status if stored is not None else kinds.ClusterState()
        if found.phase not in ("Ready", "NotReady"):
            hop = f": {found.broken_hop} is cut" if found.broken_hop else ""
            raise Conflict(f"{name} is {found.phase or 'unknown'}{hop}; everybody on both ways takes part in a move: see `banyan tree`")
        if found.adopted_by:
            raise Conflict(f"{name} is carried by {found.adopted_by} at the moment; wait until it is back at its home parent")
        if kinds.MOVES not in found.facts.understands:
            raise Conflict(f"{name} runs version {found.facts.version or 'unknown'}, which knows no moves; upgrade it first")
        if uid == moved and found.facts.conflicts:
            raise Conflict(f"objects of {name} wait for a decision (`banyan cluster conflicts {name}`); decide first")

    def _require_alone(self, uid: str, concerned: Collection[str]) -> None:
        for other in self._moves.values():
            if other.active and (other.cluster in concerned or uid in other.names.values() or uid in (*other.out, *other.into)):
                raise Conflict(f"a move of {other.name} to {other.parent_name} is under way ({other.phase.value}); wait for its end")

    def _height(self, uid: str, below: Collection[kinds.Cluster]) -> int:
        """Levels of controllers that may take children, from the cluster downwards."""
        depths = [len(self._branch(one.status.uid)) for one in below if one.status.facts.can_parent]
        return max(depths, default=len(self._branch(uid)) - 1) - len(self._branch(uid)) + 1

    def _applications(self, move: Move) -> list[dict[str, object]]:
        """What of each Application is on the cluster, by the last reports, and what becomes of it."""
        found: list[dict[str, object]] = []
        inside, leaving = set(move.names.values()), set(move.out) - set(move.names.values())
        for kind in ("Application", "SubtreeApplication"):
            for stored in self._store.list(records.OWN, kind):
                if kind == "Application":
                    status, origin = decode(stored.document, kinds.Application).status, self._me()[0]
                else:
                    shown = decode(stored.document, kinds.SubtreeApplication)
                    status, origin = shown.status, shown.spec.application.origin
                rows = [row for row in status.clusters if row.cluster in inside]
                if not rows:
                    continue
                fate = "goes along" if origin in inside else "ends there" if origin in leaving else "stays"
                found.append(
                    {
                        "namespace": stored.key.namespace,
                        "name": stored.key.name,
                        "origin": self._called(origin),
                        "replicas": sum(sum(row.components.values()) for row in rows),
                        "fate": fate,
                    }
                )
        return found

    def _rolling_out(self, move: Move) -> list[str]:
        """Of what runs there, what is just being rolled out: in another branch it would wait for another wave, and stop meanwhile."""
        inside = set(move.names.values())
        found: list[tuple[str, kinds.RolloutStatus | None, list[kinds.ClusterRow]]] = []
        for stored in self._store.list(records.OWN, "Application"):
            status = decode(stored.document, kinds.Application).status
            found.append((f"{stored.key.namespace}/{stored.key.name}", status.rollout, status.clusters))
        for stored in self._store.list(records.REPORT, "WorkStatus"):
            work = decode(stored.document, kinds.WorkStatus)
            found.append((f"{work.spec.application.namespace}/{work.spec.application.name}", work.status.rollout, work.status.clusters))
        return [
            f"{name} is being rolled out ({rollout.phase}); wait until it is done, or put it back"
            for name, rollout, rows in found
            if rollout is not None and rollout.phase in ("Progressing", "Paused") and any(row.cluster in inside for row in rows)
        ]

    # --- going on ---

    async def _step(self, cluster: str) -> None:
        try:
            await self._advance(cluster)
        except BanyanError as error:  # of this controller's own disk: the move is where it was
            log.warning("move.waits", cluster=self._moves[cluster].name, reason=str(error))

    async def _advance(self, cluster: str) -> None:
        move = self._moves[cluster]
        if self._arrived(move):
            fresh = state.seen(move)
            if fresh is not move:
                await self._save(fresh)
            if fresh.phase is Phase.ARRIVING and fresh.held is not None:
                await self._count(fresh)
        for ask in state.asks(self._moves[cluster], self._counted(self._moves[cluster])):
            if not await self._one(cluster, ask):
                return

    async def _one(self, cluster: str, ask: Ask) -> bool:
        """One question; whether the next is to be asked now."""
        move = self._moves[cluster]
        if move.phase is Phase.GOING and not move.told:
            await self._save(state.telling(move))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                answer = await self._put(ask)
        except StreamNotServed:
            answer = No(reason=f"{self._called(ask.whom)} runs a version that knows no moves; upgrade it first")
        except (BanyanError, TimeoutError) as error:
            reason = f"{self._called(ask.whom)} does not answer: {error or f'nothing within {ASK_SECONDS:g} s'}"
            fresh = state.unanswered(self._moves[cluster], reason)
            await self._keep(ask, fresh)
            return fresh.phase is Phase.CLOSING
        fresh = state.heard(self._moves[cluster], ask, answer)
        await self._keep(ask, fresh)
        return fresh.phase is move.phase

    async def _keep(self, ask: Ask, fresh: Move) -> None:
        """Of several who are asked at once, only what the first one waits for is written down: or two would write in turns, for ever."""
        now = self._moves[fresh.cluster]
        if fresh.stage != now.stage or ask.key in [one.key for one in state.asks(now)[:1]]:
            await self._save(fresh)

    async def _put(self, ask: Ask) -> Answer:
        if ask.whom == self._me()[0]:
            return await self._part.answer(ask.question)
        return await put(self._tunnel, ask.whom, ask.question)

    def _arrived(self, move: Move) -> bool:
        """Is the cluster seen under its new parent, by this controller and by all on the way?"""
        if not move.told or move.phase not in (Phase.GOING, Phase.ARRIVING, Phase.UNDOING) or self._route(move.cluster) != move.into[0]:
            return False
        stored = self._store.find(records.OWN, "Cluster", move.cluster)
        status = decode(stored.document, kinds.Cluster).status if stored is not None else kinds.ClusterState()
        return status.parent_uid == move.parent and status.phase in ("Ready", "NotReady")

    def _counted(self, move: Move) -> tuple[str, ...]:
        return tuple(one for one in move.counted if self._engine.places(self._store, one))

    async def _count(self, move: Move) -> None:
        """The one commit: what it took along is its new branch's, and no longer its old one's."""

        def work(tx: Tx) -> Move:
            held = {uid: counts for uid, counts in (move.held or {}).items() if self._engine.places(tx, uid)}
            for uid, counts in held.items():
                transfer = kinds.Transfer(
                    move=move.id, cluster=move.cluster, out=list(move.out), into=list(move.into), components=counts, after=move.after
                )
                self._engine.transfer(tx, uid, transfer)
            done = state.counted(move, tuple(held))
            self._write(tx, done)
            return done

        done = await self._store.commit(work)
        self._moves[move.cluster] = done
        self._engine.settle_again(move.out[0], done.counted)
        self._wake.set()
        log.info("move.counted", cluster=move.name, parent=move.parent_name, applications=len(done.counted))

    # --- on the disk ---

    async def _save(self, move: Move) -> None:
        if move == self._moves.get(move.cluster):
            return
        ended = not move.active
        if ended:
            move = msgspec.structs.replace(move, ended=format_time(self._wall()), held=None, counted=())
        before = self._moves.get(move.cluster)
        await self._store.commit(lambda tx: self._write(tx, move))
        self._moves[move.cluster] = move
        if before is None or before.stage != move.stage:
            self._wake.set()
        if ended:
            log.info("move.ended", cluster=move.name, parent=move.parent_name, how=move.phase.value, reason=move.reason)
            await self._forget_oldest()

    def _write(self, tx: Tx, move: Move) -> None:
        tx.put(Key(SPACE, KIND, "", move.cluster), encode(move), uid=move.cluster)
        self._show(tx, move)
        if move.phase is Phase.DONE and not move.again:
            message = f"{move.name} was moved from {move.old_name} to {move.parent_name} by {move.by}"
            events.cluster(tx, move.name, move.cluster, Reason.MOVED, message, component="moves", timestamp=format_time(self._wall()))

    def _show(self, tx: Tx, move: Move) -> None:
        """In the Cluster, for as long as it is under way."""
        key = listing.key_of(tx, move.cluster)
        stored = tx.get(key) if key is not None else None
        if key is None or stored is None:
            return
        before = decode(stored.document, kinds.Cluster).status.conditions
        others = [one for one in before if one.type != CONDITION]
        old = next((one for one in before if one.type == CONDITION), None)
        if move.active:
            message = f"from {move.old_name} to {move.parent_name}" + (f"; {move.reason}" if move.reason else "")
            now = old.last_transition_time if old is not None else format_time(self._wall())
            others.append(
                kinds.Condition(type=CONDITION, status="True", reason=move.phase.value, message=message, last_transition_time=now)
            )
        if others != before:
            records.set_status(tx, key, conditions=[msgspec.to_builtins(one) for one in others])

    async def _forget_oldest(self) -> None:
        ended = sorted((one for one in self._moves.values() if not one.active), key=lambda one: one.ended)
        for one in ended[: max(0, len(ended) - MAX_KEPT)]:
            await self._store.commit(lambda tx, uid=one.cluster: tx.delete(Key(SPACE, KIND, "", uid)))  # type: ignore[misc]
            del self._moves[one.cluster]
