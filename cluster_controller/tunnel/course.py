"""Whom to dial next: the home parent, its alternates while it is lost, and the way back home.

Pure: `now` is an argument and the dice are given; `dialer` carries out the steps. A parent that was killed closes its connection, so
home is tried for a moment more, for it may be restarting, and then every alternate in turn, at once; one that is frozen or cut off
costs the time after which a link counts as dead, and one bounded attempt. While this cluster is adopted, home is asked now and then
whether it is there; it goes back once home has answered for long enough, longer each time it was lost again soon after a return.

Invariants: home comes first in every round, and with no alternate nothing is different from dialling one parent for ever; a parent
that named a time is not dialled before it; at an adopter, home is dialled only after answering for the whole stability time. Whom home
holds, for another instance speaks for the same cluster, asks nobody else: they would not know of the other, and take in both.
"""

import random
from collections.abc import Callable, Sequence

from msgspec import Struct

LONGEST_WISH = 60.0  # seconds that a parent may ask us to stay away
FOR_EVER = 3600.0  # how long a step may wait; then it is asked for again


class Parent(Struct, frozen=True):
    """Where one parent is dialled. ``uid`` "": whoever answers, for this cluster's one parent."""

    uid: str = ""
    name: str = ""
    addresses: tuple[str, ...] = ()


class Dial(Struct, frozen=True):
    """Dial ``parent``; give up after ``seconds`` (0: when the tunnel's limits say so)."""

    parent: Parent
    seconds: float = 0.0


class Probe(Struct, frozen=True):
    """Ask whether ``parent`` is there, within ``seconds``, and change nothing."""

    parent: Parent
    seconds: float


class Wait(Struct, frozen=True):
    """At most so long, or until the link that stands is gone."""

    seconds: float


Step = Dial | Probe | Wait


class Timing(Struct, frozen=True, kw_only=True):
    """In seconds."""

    backoff_first: float = 0.25  # the first pause is a random part of this, doubled after each round in which nobody took us in
    backoff_cap: float = 10.0
    grace: float = 1.5  # after the loss of home nobody else is dialled for half to all of this: it may only have restarted
    attempt: float = 2.0  # for one parent while there are others to try, doubled with each round
    attempt_cap: float = 20.0
    probe_first: float = 2.0  # until home is asked for the first time, doubled after each answer that did not come
    probe_cap: float = 30.0
    stable: float = 10.0  # for how long home answers before this cluster returns ...
    stable_cap: float = 600.0  # ... at most, doubled each time that home was lost again within `flap` of a return
    flap: float = 300.0
    settled: float = 5.0  # a link that lived for so long was a good one: the next pause is the first again


class Course:
    """``parents``: home first, then alternates in order; asked whenever a round begins, so they may change."""

    def __init__(
        self, parents: Callable[[], Sequence[Parent]], timing: Timing, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._parents = parents
        self._timing = timing
        self._uniform = uniform
        self.at: str | None = None  # uid of the parent whose link stands
        self.stable = timing.stable  # how long home has to answer before the next return
        self._since = 0.0
        self._round: list[Parent] = []  # still to be dialled in this round
        self._rounds = 0  # in a row in which nobody took us in
        self._due = 0.0
        self._grace = 0.0  # until when home alone is dialled
        self._ready: dict[str, float] = {}  # when a parent that named a time may be dialled again
        self._returned: float | None = None  # when this cluster last came home from an adopter
        self._answers: float | None = None  # since when home answers each time it is asked
        self._silences = 0  # probes in a row without an answer
        self._held = False  # home has said so, and has not taken us in since

    @property
    def away(self) -> bool:
        """Is this cluster taken in by somebody else than its home parent?"""
        return self.at is not None and self.at != self.home.uid

    @property
    def home(self) -> Parent:
        return self._parents()[0]

    def _asked(self) -> Sequence[Parent]:
        """Who may take us in."""
        parents = self._parents()
        return parents[:1] if self._held else parents

    def next(self, now: float) -> Step:
        """What to do now. Asking again changes nothing."""
        if now < self._due:
            return Wait(self._due - now)
        if self.at is None:
            return self._seek(now)
        if not self.away:
            return Wait(FOR_EVER)
        if self._answers is not None and now - self._answers >= self.stable:
            return Dial(self.home, self._timing.attempt_cap)
        return Probe(self.home, self._timing.attempt)

    def _seek(self, now: float) -> Step:
        if not self._round:
            parents = self._asked()
            self._round = [one for one in parents if self._ready.get(one.uid, now) <= now]
            if not self._round:
                self._due = max(now + 0.05, min(self._ready[one.uid] for one in parents))
                return Wait(self._due - now)
        first = self._round[0]
        if len(self._asked()) == 1:
            return Dial(first)
        seconds = min(self._timing.attempt_cap, self._timing.attempt * 2.0 ** min(self._rounds, 8))
        if now < self._grace and first.uid == self.home.uid:
            seconds = max(0.3, min(seconds, self._grace - now))
        return Dial(first, seconds)

    def arrived(self, uid: str, now: float) -> None:
        """The parent ``uid`` has taken us in."""
        came_back = self.at is not None and uid == self.home.uid
        self.at, self._since = uid, now
        self._round, self._ready, self._due = [], {}, 0.0
        self._answers, self._silences = None, 0
        self._held = self._held and self.away
        if came_back:
            self._returned = now
        if self.away:
            self._due = now + self._uniform(0.5, 1.0) * self._timing.probe_first

    def lost(self, now: float) -> None:
        """The link to the parent is gone."""
        was_home = not self.away
        settled = now - self._since >= self._timing.settled
        self.at = None
        self._round, self._ready = [], {}
        self._answers = None
        self._rounds = 0 if settled else self._rounds + 1
        self._due = now + self._pause()
        self._grace = self._due
        if not was_home:
            return
        if settled and len(self._parents()) > 1:
            self._grace += self._uniform(0.5, 1.0) * self._timing.grace
        if self._returned is not None:
            soon = now - self._returned < self._timing.flap
            self.stable = min(self._timing.stable_cap, self.stable * 2) if soon else self._timing.stable
            self._returned = None

    def held(self, now: float, wish: float) -> None:
        """Home did not take us in, for another instance speaks for this cluster: a person decides, there, and nobody else is asked."""
        self._held = True
        self._round = self._round[:1]
        self.failed(now, wish)

    def failed(self, now: float, wish: float = 0.0) -> None:
        """The parent of the last `Dial` did not take us in; ``wish``: after how many seconds it may be asked again."""
        if self.at is not None:  # on the way home: stay where we are
            self._answers = None
            self._due = now + max(min(wish, LONGEST_WISH), self._uniform(0.5, 1.0) * self._timing.probe_first)
            return
        tried = self._round.pop(0) if self._round else self.home
        if wish > 0:
            self._ready[tried.uid] = now + min(wish, LONGEST_WISH)
        if now < self._grace and tried.uid == self.home.uid and wish <= 0:
            self._round.insert(0, tried)
            self._due = now + self._uniform(0.05, 0.4)
        elif not self._round:
            self._rounds += 1
            self._due = now + self._until_next_round(now)

    def _until_next_round(self, now: float) -> float:
        """The backoff, or until the first that named a time takes us in."""
        parents = self._asked()
        pause = self._pause()
        wishes = [self._ready[one.uid] - now for one in parents if self._ready.get(one.uid, now) > now]
        if not wishes:
            return pause
        if len(wishes) == len(parents):
            return min(wishes) + (pause if len(parents) == 1 else min(pause, self._uniform(0.0, self._timing.backoff_first)))
        return min(pause, min(wishes) + self._uniform(0.0, self._timing.backoff_first))

    def _pause(self) -> float:
        return self._uniform(0.0, min(self._timing.backoff_cap, self._timing.backoff_first * 2.0 ** min(max(self._rounds - 1, 0), 32)))

    def probed(self, answered: bool, now: float) -> None:
        """What became of the last `Probe`."""
        if not answered:
            self._answers = None
            self._silences += 1
            bound = min(self._timing.probe_cap, self._timing.probe_first * 2.0 ** min(self._silences, 16))
            self._due = now + self._uniform(0.5, 1.0) * bound
            return
        self._silences = 0
        if self._answers is None:
            self._answers = now
        left = self._answers + self.stable - now
        self._due = now + min(max(0.0, left), max(0.2, self.stable / 3))
