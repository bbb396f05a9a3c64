"""Who may stand in for a lost parent, and whom this controller takes in: decisions with no socket, store or clock.

A home parent lists for each child who may take it in: its own siblings, the grandparent, the child's siblings, and those further up;
only controllers that advertise a tunnel address, never somebody below the child. Among equals the order is drawn
by the child's uid, so that the children of one dead parent spread over the alternates.

An alternate adopts only while it is linked, hop by hop, to an ancestor of the child's home: otherwise the child would gain nothing,
and two branches that both lost the root could take each other in. That rule needs no common knowledge: whoever has lost its own way
up cannot adopt, and whoever adopts has the way that it lends.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from hashlib import sha256

from msgspec import Struct

from cluster_controller.identity.standing import MAX_ADDRESSES, MAX_PARENTS, PermittedParent, Standing
from cluster_controller.tunnel.course import Parent
from cluster_controller.tunnel.messages import Refusal, RefusalCode

HOME, UNCLE, GRANDPARENT, SIBLING, ANCESTOR = "home", "uncle", "grandparent", "sibling", "ancestor"
MOST = {UNCLE: 6, SIBLING: 6, ANCESTOR: 2}  # with home and grandparent 16, the bound of a standing
MAX_DEPTH = 14  # hops from the root at which nobody is taken in any more: a stream takes at most 16
LOOK_AGAIN_SECONDS = 5.0  # after which somebody may ask again whose ancestors are out of reach here
FULL_SECONDS = 10.0

assert sum(MOST.values()) + 2 <= MAX_PARENTS


class Policy(Struct, frozen=True, kw_only=True):
    """What a site allows of failover. ``alternates``: names, in order; empty: as the home parent lists them."""

    allow: bool = True
    alternates: tuple[str, ...] = ()
    stable_seconds: float = 10.0  # for how long home answers before this cluster returns
    guests: int = 1000  # children of other parents that are taken in at once; 0: none
    guests_per_second: float = 100.0


class Ring:
    """Members that can be parents, thousands perhaps, in the order of a hash of their uids. One that comes or goes changes the lists
    of few."""

    def __init__(self, members: Iterable[PermittedParent]) -> None:
        self._members = sorted((_place(one.uid), one) for one in members if one.addresses)

    def after(self, uid: str, most: int) -> list[PermittedParent]:
        """The ``most`` that follow on ``uid``, itself left out."""
        first = bisect_right(self._members, _place(uid), key=lambda item: item[0])
        found = (self._members[(first + step) % len(self._members)][1] for step in range(len(self._members)))
        return [one for one, _ in zip((one for one in found if one.uid != uid), range(most), strict=False)]


def _place(uid: str) -> bytes:
    return sha256(uid.encode()).digest()


def permitted(child: str, me: PermittedParent, own: Standing | None, siblings: Ring) -> tuple[PermittedParent, ...]:
    """Who may take ``child`` in, in order. ``me`` is its home parent, ``own`` what that one's home parent signed for it."""
    found = [_as(me, HOME)]
    above = list(own.parents) if own is not None else []
    uncles = sorted((one for one in above if one.relation == SIBLING and one.addresses), key=lambda one: _place(child + one.uid))
    found += [_as(one, UNCLE) for one in uncles[: MOST[UNCLE]]]
    found += [_as(one, GRANDPARENT) for one in above if one.relation == HOME and one.addresses]
    found += [_as(one, SIBLING) for one in siblings.after(child, MOST[SIBLING])]
    found += [_as(one, ANCESTOR) for one in above if one.relation in (GRANDPARENT, ANCESTOR) and one.addresses][: MOST[ANCESTOR]]
    once = {one.uid: one for one in reversed(found) if one.uid != child}
    return tuple(one for one in found if once.get(one.uid) is one)


def _as(one: PermittedParent, relation: str) -> PermittedParent:
    return PermittedParent(one.uid, one.name, one.addresses[:MAX_ADDRESSES], relation)


def parents(home: Parent, standing: Standing | None, policy: Policy) -> tuple[Parent, ...]:
    """Whom a child dials: home first, at the addresses that it joined with and those that home says now; then its alternates."""
    if standing is None or standing.home != home.uid:
        return (home,)
    known = standing.parents[0].addresses
    home = Parent(home.uid, home.name, (*home.addresses, *(one for one in known if one not in home.addresses))[:MAX_ADDRESSES])
    if not policy.allow:
        return (home,)
    others = [Parent(one.uid, one.name, one.addresses) for one in standing.parents[1:] if one.addresses]
    if policy.alternates:
        others = [one for name in policy.alternates for one in others if one.name == name]
    return (home, *others)


class Lender(Struct, frozen=True, kw_only=True):
    """A controller that is asked to take a child in. ``path``: uids from the root down to it, as far as known, itself last;
    ``live``: of those, from the highest that it is linked to now, hop by hop."""

    name: str
    path: tuple[str, ...]
    live: tuple[str, ...]
    guests: int
    policy: Policy


def judge(child: str, name: str, ancestors: Collection[str], lender: Lender) -> Refusal | None:
    """May ``lender`` adopt ``child``, whose standing is verified and names it? ``ancestors``: the child's home and all above that."""
    if child in lender.path:
        return _refusal(RefusalCode.LOOP, f"{lender.name} stands below {name}", LOOK_AGAIN_SECONDS)
    if not lender.policy.guests:
        return _refusal(RefusalCode.FORBIDDEN, f"{lender.name} takes no children of others in (guests = 0)", 0.0)
    if set(ancestors).isdisjoint(lender.live):
        return _refusal(
            RefusalCode.OUT_OF_REACH,
            f"{lender.name} is linked to no ancestor of {name} now; it would gain nothing here",
            LOOK_AGAIN_SECONDS,
        )
    if len(lender.path) > MAX_DEPTH:
        return _refusal(RefusalCode.FORBIDDEN, f"{lender.name} is {len(lender.path)} levels deep; nobody is taken in that far down", 0.0)
    if lender.guests >= lender.policy.guests:
        return _refusal(RefusalCode.BUSY, f"{lender.name} has taken in {lender.guests} already; try another", FULL_SECONDS)
    return None


def _refusal(code: RefusalCode, reason: str, retry_after: float) -> Refusal:
    return Refusal(code=code, reason=reason, retry_after=retry_after)


class Turnstile:
    """Lets in at most ``rate`` a second, and a burst of two seconds' worth; those who are turned away are told different times.

    So a thousand that come at once come back one after the other, and none of them is turned away for long.
    """

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._tokens = self._full = max(1.0, 2 * rate)
        self._promised = 0.0
        self._at = now

    def take(self, now: float) -> float:
        """0 when let in, else after how many seconds to come back."""
        passed = (now - self._at) * self._rate
        self._at = now
        self._tokens = min(self._full, self._tokens + passed)
        self._promised = max(0.0, self._promised - passed)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        self._promised += 1.0
        return (self._promised + 1.0 - self._tokens) / self._rate


def home_ancestors(home: str, path: Sequence[str]) -> tuple[str, ...]:
    """To whom an adopted child's words go: its home, then those above it, nearest first. Whoever is out of reach is passed over.

    ``path``: uids from the root down to the home parent.
    """
    return (home, *(uid for uid in reversed(path) if uid != home))
