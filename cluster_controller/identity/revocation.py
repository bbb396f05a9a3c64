"""Revocations of clusters and people: who may revoke whom, and whom a revocation bars. Pure.

A revoked cluster is barred with everything whose certificates lead through it: what it signed is worth no more than it is.
A revocation is the word of the controller where a person gave it; it travels down the subtree, and up, where it counts only for
what stands below whoever sent it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from cluster_controller.identity.certificates import PeerCertificate


class Revocation(Struct, frozen=True):
    """``id`` is a cluster's uid or a user's credential id.

    ``via``: the clusters that passed it up to here, nearest first; empty for our own and for those from above. Each hop writes
    down whom it heard it from, so nobody can pass for another.
    """

    subject: Literal["cluster", "user"]
    id: str
    name: str = ""
    reason: str = ""
    time: str = ""
    via: tuple[str, ...] = ()


Revoked = Mapping[str, Sequence[Revocation]]


def index(revocations: Iterable[Revocation]) -> dict[str, list[Revocation]]:
    """By id, for the two questions below."""
    found: dict[str, list[Revocation]] = {}
    for one in revocations:
        found.setdefault(one.id, []).append(one)
    return found


def cluster(revoked: Revoked, peer: PeerCertificate) -> Revocation | None:
    """The revocation that bars ``peer``, be it its own or that of an issuer above it."""
    above = (peer.uid, *peer.issuers)
    for position, uid in enumerate(above):
        for one in revoked.get(uid, ()):
            # A cluster may bar only what stands below it: all that passed it on must come further up the same chain.
            if one.subject == "cluster" and set(above[position + 1 :]).issuperset(one.via):
                return one
    return None


def user(revoked: Revoked, credential: str) -> Revocation | None:
    """The revocation that bars a person's credential. Those reported from below do not count: people are granted from above."""
    return next((one for one in revoked.get(credential, ()) if one.subject == "user" and not one.via), None)
