"""Who is let in: the decisions about joins, connections and renewals, with no socket, store or clock.

`Member` is what a parent has committed about one child. Every decision is a function of that record, of what the child says and
of ``now``; the membership adapter commits the outcome before it answers (law 2), and asking twice gives the same answer (law 3).
Deny by default: a peer is a child only by a member record, or by a certificate that this controller's own issuing key signed.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec
from msgspec import Struct

from cluster_controller.identity import renewal, revocation, starts
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.join import Cause
from cluster_controller.identity.revocation import Revocation
from cluster_controller.resources.names import label_problem
from cluster_controller.tree.times import format_time

APPROVAL_POLL_SECONDS = 5.0
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 512

State = Literal["pending", "approved", "member", "left", "removed", "replaced", "revoked"]
STANDING_STATES = frozenset({"pending", "approved", "member"})
"""States in which a member holds its name."""


class Member(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One child as this parent knows it. Stored as an object of space ``members``, its name the uid."""

    uid: str
    name: str
    state: State
    token_id: str = ""
    joined: str = ""
    labels: dict[str, str] = {}
    may_have_children: bool = True
    replaces: str = ""  # uid of the member whose place it took
    attach: int = 0
    started: starts.Record = starts.Record()  # what is known of its starts
    start_number: int = 0
    held: tuple[str, ...] = ()  # instances that wait for a person's decision
    standing_serial: int = 0
    provisional: bool = False  # the name is not yet reserved at every ancestor
    address: str = ""  # where it connected from, for people
    addresses: tuple[str, ...] = ()  # where its own children can reach it
    coming: str = ""  # the move by which it comes from another parent: it is given nothing until what it brings is counted
    leaving: str = ""  # the move by which it is about to go to another parent
    adopted_by: str = ""  # uid of the controller by way of which it was heard last; "": it was connected here


class Token(Struct, frozen=True, kw_only=True):
    """A JoinToken object as far as it decides."""

    id: str
    digest: str
    expires: datetime
    approve: bool = False
    replace: str = ""
    cluster_name: str = ""
    labels: dict[str, str] = {}
    used_by: str = ""
    revoked: bool = False


class Applicant(Struct, frozen=True, kw_only=True):
    """Who asks to join, after the proof of possession of its key."""

    uid: str
    name: str
    labels: dict[str, str] = {}
    may_have_children: bool = True
    address: str = ""


class Refused(Struct, frozen=True):
    cause: Cause
    reason: str
    retry_after: float = 0.0


class Admitted(Struct, frozen=True):
    """``member`` is to be committed and the token marked as used by it, then certificates are signed.

    ``replaced`` is revoked in the same commit. ``waiting``: commit, but answer that a person has to approve first.
    """

    member: Member
    replaced: Member | None = None
    waiting: bool = False


class Names(Struct, frozen=True):
    """What the names in this controller's subtree belong to: name → uid, this controller's own included."""

    taken: Mapping[str, str]
    connected: frozenset[str] = frozenset()  # uids of members whose link stands


def judge_join(token: Token, applicant: Applicant, names: Names, members: Mapping[str, Member], now: datetime) -> Admitted | Refused:
    """Decide on a join whose secret has been checked against ``token``. ``members`` are by uid."""
    known = members.get(applicant.uid)
    if token.revoked:
        return Refused(Cause.REVOKED, f"join token {token.id} was revoked; ask for another")
    if known is not None and known.state == "revoked":
        return Refused(Cause.REVOKED, f"cluster {known.name} was revoked; join with a fresh data folder and a new token")
    if token.used_by and token.used_by != applicant.uid:
        return Refused(Cause.USED, f"join token {token.id} was used by another cluster; make another with `banyan token create`")
    if token.used_by:
        return _again(token, applicant, known)
    if now >= token.expires:
        return Refused(
            Cause.EXPIRED, f"join token {token.id} expired at {format_time(token.expires)}, here it is {format_time(now)}; make another"
        )
    return _first_use(token, applicant, names, members, now)


def _again(token: Token, applicant: Applicant, known: Member | None) -> Admitted | Refused:
    """The same key with the same token: its answer was lost, or it asks whether it was approved."""
    if known is None or known.state not in STANDING_STATES or known.token_id != token.id:
        return Refused(Cause.USED, f"join token {token.id} was used, and its cluster is no member any more; make another token")
    if known.state == "pending":
        return Admitted(known, waiting=True)
    return Admitted(msgspec.structs.replace(known, state="member", address=applicant.address))


def _first_use(token: Token, applicant: Applicant, names: Names, members: Mapping[str, Member], now: datetime) -> Admitted | Refused:
    problem = label_problem(applicant.name) or _labels_problem(applicant.labels)
    if problem:
        return Refused(Cause.INVALID, problem)
    for wanted, flag in ((token.cluster_name, "for"), (token.replace, "to replace")):
        if wanted and wanted != applicant.name:
            return Refused(Cause.INVALID, f"join token {token.id} is {flag} {wanted!r}; join with `--name {wanted}`")
    owner = names.taken.get(applicant.name, "")
    replaced = members.get(owner) if token.replace else None
    if token.replace and replaced is None:
        return Refused(Cause.INVALID, f"there is no member {token.replace!r} here to replace; join with a token made without --replace")
    if owner and owner != applicant.uid and replaced is None:
        return Refused(Cause.NAME_TAKEN, f"the name {applicant.name!r} is taken by cluster {owner}; choose another with --name")
    if replaced is not None and replaced.uid in names.connected:
        return Refused(
            Cause.NAME_TAKEN,
            f"{replaced.name} is connected, so its machine has not died; stop it first, or `banyan cluster revoke {replaced.name}`",
        )
    member = Member(
        uid=applicant.uid,
        name=applicant.name,
        state="pending" if token.approve else "member",
        token_id=token.id,
        joined=format_time(now),
        labels={**token.labels, **applicant.labels},
        may_have_children=applicant.may_have_children,
        replaces=replaced.uid if replaced else "",
        address=applicant.address,
    )
    return Admitted(member, replaced, waiting=token.approve)


def _labels_problem(labels: Mapping[str, str]) -> str:
    if len(labels) > MAX_LABELS:
        return f"{len(labels)} labels; a cluster has at most {MAX_LABELS}"
    if any(len(key) + len(value) > MAX_LABEL_CHARACTERS for key, value in labels.items()):
        return f"a label is longer than {MAX_LABEL_CHARACTERS} characters"
    return ""


class Entry(StrEnum):
    """What to do with a connection that has a certificate of this tree."""

    ADMIT = "admit"
    SUPERSEDE = "supersede"
    PROBE = "probe"
    HOLD = "hold"
    FULL_RESYNC = "full-resync"
    REVOKED = "revoked"
    EXPIRED = "expired"
    NOT_A_CHILD = "not-a-child"
    REPLAYED = "replayed"
    LOOP = "loop"


class Caller(Struct, frozen=True, kw_only=True):
    """A child that says Hello, its attach record verified."""

    peer: PeerCertificate
    attach: int
    starts: tuple[str, ...]


class Place(Struct, frozen=True):
    """This controller: its uid and its path from the root, itself last."""

    uid: str
    path: tuple[str, ...]


def judge_peer(
    peer: PeerCertificate, member: Member | None, revoked: revocation.Revoked, me: Place, now: datetime
) -> Revocation | Entry | None:
    """What bars a peer before anything that it says is looked at; None: nothing. For Hello and Renew alike, dates excepted."""
    barred = revocation.cluster(revoked, peer)
    if barred is not None:
        return barred
    if peer.uid in me.path:
        return Entry.LOOP
    if member is None and not issued_here(peer, me):
        return Entry.NOT_A_CHILD
    expected = member is not None and member.state == "approved" and bool(member.coming)
    if member is not None and member.state != "member" and not expected:  # one that waits for approval may have a certificate of others
        return Entry.REVOKED if member.state in ("revoked", "replaced") else Entry.NOT_A_CHILD
    if renewal.judge(peer, me.uid, now) is renewal.Dates.EXPIRED:
        return Entry.EXPIRED
    return None


def issued_here(peer: PeerCertificate, me: Place) -> bool:
    """Did this controller's own issuing key sign it? The whole path counts: a name alone could be given by anybody below."""
    return tuple(reversed(peer.issuers)) == me.path


def judge_hello(caller: Caller, member: Member | None, live: bool) -> Entry:
    """Copy, restart or replay? ``live``: a link of this uid stands. After PROBE comes `judge_probed`."""
    record = member.started if member else starts.Record()
    decision = starts.decide(record, caller.starts, live)
    if decision in (starts.Decision.EXCLUDED, starts.Decision.HOLD):
        return Entry.HOLD
    if decision is starts.Decision.PROBE:
        return Entry.PROBE
    return _fresh(caller, member, Entry(decision.value))


def judge_probed(caller: Caller, member: Member | None, answered: bool) -> Entry:
    return Entry.HOLD if answered else _fresh(caller, member, Entry.FULL_RESYNC)


def _fresh(caller: Caller, member: Member | None, entry: Entry) -> Entry:
    return Entry.REPLAYED if member is not None and caller.attach <= member.attach else entry


def welcomed(caller: Caller, member: Member | None, *, number: int, address: str, addresses: tuple[str, ...], now: datetime) -> Member:
    """The record to commit before Welcome is sent."""
    base = member or Member(uid=caller.peer.uid, name=caller.peer.name, state="member", joined=format_time(now))
    return msgspec.structs.replace(
        base,
        state="member",
        attach=caller.attach,
        started=starts.admitted(base.started, caller.starts),
        start_number=number,
        held=tuple(one for one in base.held if one not in caller.starts),
        address=address or base.address,
        addresses=addresses,
        adopted_by="",
    )


def waiting(known: Member, caller: Caller) -> Member:
    """``known`` with the caller's instance waiting for a person, unless one has decided against it already."""
    return held(known, caller.starts[-1]) if set(known.started.excluded).isdisjoint(caller.starts) else known


def held(member: Member, instance: str) -> Member:
    """Remember that ``instance`` waits for a person; bounded, the oldest go. One that a person decided against waits for nobody."""
    if instance in member.held or instance in member.started.excluded:
        return member
    return msgspec.structs.replace(member, held=(*member.held, instance)[-starts.MAX_EXCLUDED :])


def keep(member: Member, instance: str) -> Member:
    """A person keeps ``instance``; every other one that is known stays out."""
    others = [one for one in (member.started.start, *member.held) if one != instance]
    return msgspec.structs.replace(member, started=starts.keep(member.started, instance, others), held=())
