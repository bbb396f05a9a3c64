"""Shares that change hands between a branch and a cluster below it, without a word from the branch. Pure.

A cluster whose home parent is out of reach reports what it holds to an ancestor, and the ancestor goes on giving it that: a part of the
branch's share is *held apart*, directly by the cluster. Back home, its parent takes the part over as it is. A person who moves a cluster
to another parent does the same once, for good: the part leaves one branch and comes to another.

Which of two words about one share is the newer one is told by the chains of shares, with no clock and nobody asked: whoever speaks for
an ancestor names the id that this ancestor gave last. An ancestor that serves a cluster itself gives its own next id to it; what the home
parent decided before it heard of that carries a lower one, what it decided since a higher one.

Invariant: what is held apart and what is left of a branch are together exactly its share, of every component; nothing here raises.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from cluster_controller.resources.application import Component, Lent, Transfer, WorkSpec

Counts = Mapping[str, int]  # component → replicas


class Apart(Struct, frozen=True):
    """``left``: what the rest of the branch has; ``held``: per cluster, what it holds directly, components of zero included."""

    left: dict[str, int]
    held: dict[str, dict[str, int]]


def apart(share: Counts, reported: Mapping[str, Counts], before: Mapping[str, Counts], *, duplicated: bool = False) -> Apart:
    """Divide the share of a branch between it and clusters below it that it cannot speak for.

    ``reported``: what each of those says it holds; ``before``: what some of them were given directly already, which counts instead, and
    first: where the share has become smaller, it is the last to come who gives back. ``duplicated``: a share is a count per cluster.
    """
    left = dict(share)
    held: dict[str, dict[str, int]] = {}
    for cluster in (*sorted(before), *sorted(reported.keys() - before.keys())):
        counts = before[cluster] if cluster in before else reported[cluster]
        if duplicated:
            held[cluster] = dict(share)
            continue
        held[cluster] = {name: min(max(0, counts.get(name, 0)), left[name]) for name in share}
        for name, count in held[cluster].items():
            left[name] -= count
    return Apart(left, held)


def together(parts: Apart) -> dict[str, int]:
    """The share of the branch with what was held apart from it: what its controller has to divide once it is back."""
    return {name: count + sum(each.get(name, 0) for each in parts.held.values()) for name, count in parts.left.items()}


def shifted(giver: Counts, taker: Counts, held: Counts) -> tuple[dict[str, int], dict[str, int]]:
    """One commit of a move: the share of the branch that a cluster leaves, and of the one that it comes to, with what it holds.

    What it holds beyond the giver's share stays where it is, so both together are what they were.
    """
    moves = {name: min(max(0, count), giver.get(name, 0)) for name, count in held.items()}
    lowered = {name: count - moves.get(name, 0) for name, count in giver.items()}
    raised = {name: taker.get(name, 0) + moves.get(name, 0) for name in {**taker, **moves}}
    return lowered, raised


def caught_up(counts: Counts, transfers: Iterable[Transfer], cluster: str, *, back: bool = False) -> dict[str, int]:
    """What ``cluster`` holds once it has heard of moves of others that stood below it, or came there. ``back``: before it had."""
    result = dict(counts)
    for one in transfers:
        if cluster == one.cluster or cluster not in {*one.out, *one.into}:
            continue
        more = (cluster in one.into) is not back
        for name, count in one.components.items():
            result[name] = max(0, result.get(name, 0) + (count if more else -count))
    return result


def unheard(transfers: Iterable[Transfer], known: Iterable[str]) -> list[Transfer]:
    """Those of ``transfers`` that are not among the moves ``known``."""
    heard = set(known)
    return [one for one in transfers if one.move not in heard]


# --- which word counts ---


def share_of(chain: WorkSpec, allotter: str) -> int:
    """The id that ``allotter`` gave last of all that this Work takes into account; 0: it is not in the chain."""
    return next((share.id for share in chain.shares if share.allotter == allotter), 0)


def newest(desired: WorkSpec, lent: Sequence[WorkSpec]) -> WorkSpec:
    """Of what the home parent said and what ancestors served while it was away, the word that knows of the others."""
    chosen = desired
    for one in sorted(lent, key=lambda each: -len(each.shares)):  # the nearest ancestor first: it speaks for those above it, too
        if one.shares and 0 < share_of(chosen, one.shares[-1].allotter) < one.shares[-1].id:
            chosen = one
    return chosen


def within(lent: WorkSpec, desired: WorkSpec) -> list[Component]:
    """The components of ``lent``, none with more replicas than the home parent gave: what it lowered meanwhile stays lowered.

    What came to it with another cluster, since the home parent spoke last, is beyond that.
    """
    if lent.placement.strategy == "Duplicated":
        return lent.components
    given = {component.name: component.replicas for component in desired.components}
    given = caught_up(given, unheard(lent.transfers, (one.move for one in desired.transfers)), lent.cluster)
    return [msgspec.structs.replace(one, replicas=min(one.replicas, given.get(one.name, 0))) for one in lent.components]


def taken_over(work: WorkSpec, child: str, share: Counts, lent: Iterable[Lent]) -> dict[str, int]:
    """What ``child`` holds, as its home parent must see it: ``share`` is what that parent gave it in ``work``, the child's Work, and an
    ancestor may have served the child since."""
    for one in lent:
        if one.cluster == child and share_of(work, one.allotter) < one.id:
            return {name: min(count, one.components.get(name, 0)) for name, count in share.items()}
    return dict(share)
