"""Children of other parents that this controller has taken in: it lends them its way up, and nothing else.

A guest is no member: nothing of it is stored, divided or deleted here, and whatever it asks but to be carried on is refused. What is
known of it is in memory; after a restart it connects anew. It may stay for as long as this controller is linked to an ancestor of its
home; a moment after the last of them is lost it is sent on.
"""

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError
from cluster_controller.identity import standing
from cluster_controller.identity.holder import Identity
from cluster_controller.tasks import Tasks
from cluster_controller.tree import admission, failover, wire
from cluster_controller.tree.admission import Caller, Entry, Member
from cluster_controller.tree.barring import refusal
from cluster_controller.tree.failover import Lender, Policy, Turnstile
from cluster_controller.tree.links import Links, PathOf
from cluster_controller.tunnel.messages import CloseCode, Hello, Refusal, RefusalCode

log = structlog.get_logger()

PROBE_SECONDS = 2.0
UNCLAIMED_SECONDS = 60.0  # after which somebody who was welcomed and never came is forgotten
PATIENCE_SECONDS = 10.0  # for which a guest whose ancestors are out of reach may stay: they may be back


class Guest(Struct, frozen=True):
    """``member``: as a parent would know it. ``ancestors``: its home and all above that, by its certificates."""

    member: Member
    home: str
    home_name: str
    ancestors: frozenset[str]
    since: float  # boot-time clock


class Guests:
    """``live``: this controller's path from the highest that it is linked to now."""

    def __init__(
        self,
        identity: Callable[[], Identity],
        policy: Policy,
        links: Links,
        *,
        path: PathOf,
        live: Callable[[], tuple[str, ...]],
        boottime: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._links = links
        self._path = path
        self._live = live
        self._boottime = boottime
        self._guests: dict[str, Guest] = {}
        self._turnstile = Turnstile(policy.guests_per_second, boottime())
        self._tasks = Tasks("guests")
        self._reviewing = False
        self.adopted = 0  # times that somebody was taken in, for /metrics
        self.refused = 0

    def get(self, uid: str) -> Guest | None:
        """The guest whose link stands, or who was welcomed just now."""
        return self._guests.get(uid)

    def present(self) -> dict[str, Guest]:
        return {uid: guest for uid, guest in self._guests.items() if self._links.get(uid) is not None}

    async def welcome(self, hello: Hello, caller: Caller) -> Refusal | None:
        """Take the caller in (None), or say why not."""
        refused = self._judge(hello, caller) or await self._judge_instance(caller)
        if refused is not None:
            self.refused += 1
            return refused
        peer, now = caller.peer, self._boottime()
        fresh = Member(uid=peer.uid, name=peer.name, state="member")
        record = admission.welcomed(caller, fresh, number=0, address="", addresses=(), now=peer.not_before)
        assert hello.standing is not None
        home = hello.standing.parents[0]
        self._forget_unclaimed(now)
        self._guests[peer.uid] = Guest(record, home.uid, home.name, frozenset((peer.home, *peer.issuers)), now)
        self._links.supersede(peer.uid, "the same cluster has connected anew")
        self.adopted += 1
        log.info("child.adopted", cluster=peer.name, uid=peer.uid, home=home.name, attach=caller.attach)
        return None

    def _judge(self, hello: Hello, caller: Caller) -> Refusal | None:
        peer = caller.peer
        try:
            if hello.standing is None:
                return Refusal(code=RefusalCode.NOT_MY_CHILD, reason=f"{peer.name} is no member here and shows no standing")
            shown = wire.standing(hello.standing)
            wait = self._turnstile.take(self._boottime())
            if wait:
                name = self._identity().name
                return Refusal(code=RefusalCode.BUSY, reason=f"{name} takes in others one after the other", retry_after=wait)
            standing.verify(shown, self._identity().tree_ca)
            standing.adopt(shown, peer, self._identity().uid)
        except BanyanError as error:
            return Refusal(code=RefusalCode.FORBIDDEN, reason=str(error))
        present = self.present()
        lender = Lender(
            name=self._identity().name,
            path=self._path()[0],
            live=self._live(),
            guests=len(present) - (peer.uid in present),
            policy=self._policy,
        )
        return failover.judge(peer.uid, peer.name, (peer.home, *peer.issuers), lender)

    async def _judge_instance(self, caller: Caller) -> Refusal | None:
        """The same data folder again, or a copy of it?"""
        uid = caller.peer.uid
        link = self._links.get(uid)
        known = self._guests.get(uid) if link is not None else None
        if known is None or link is None:
            return None
        entry = admission.judge_hello(caller, known.member, live=True)
        if entry is Entry.PROBE:
            answered = await link.probe(PROBE_SECONDS)
            entry = admission.judge_probed(caller, known.member, answered and self._links.get(uid) is link)
        if entry is Entry.HOLD:
            reason = f"two instances run as {caller.peer.name}: {known.member.started.start} is connected here; stop one of them"
            return Refusal(code=RefusalCode.HELD, reason=reason, retry_after=failover.FULL_SECONDS)
        return refusal(entry)

    def _forget_unclaimed(self, now: float) -> None:
        for uid, guest in list(self._guests.items()):
            if self._links.get(uid) is None and now - guest.since > UNCLAIMED_SECONDS:
                del self._guests[uid]

    def left(self, uid: str) -> None:
        """The link of a child is gone."""
        guest = self._guests.pop(uid, None) if self._links.get(uid) is None else None
        if guest is not None:
            log.info("guest.left", cluster=guest.member.name, uid=uid, home=guest.home_name)

    def admitted_at_home(self, uid: str) -> None:
        """It is a member here now, and no guest."""
        self._guests.pop(uid, None)

    # --- whose ancestors are gone ---

    def review(self) -> None:
        """This controller's way up has changed: look, after a moment, who gains nothing here any more."""
        if not self._reviewing and self._stranded():
            self._reviewing = True
            self._tasks.spawn("review", self._send_on())

    def _stranded(self) -> list[str]:
        live = self._live()
        return [uid for uid, guest in self.present().items() if guest.ancestors.isdisjoint(live)]

    async def _send_on(self) -> None:
        before = set(self._stranded())
        try:
            await asyncio.sleep(PATIENCE_SECONDS)
        finally:
            self._reviewing = False
        for uid in self._stranded():
            if uid in before:
                self._links.cut(uid, CloseCode.OUT_OF_REACH, f"{self._identity().name} has lost every ancestor of this cluster's home")
        self.review()

    async def close(self) -> None:
        await self._tasks.close()
