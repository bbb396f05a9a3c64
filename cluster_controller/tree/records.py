"""What membership has written down, read from a store or inside a commit.

Members live in a space of their own (``members``): one object per child, written by this controller only and sent to nobody.
JoinTokens, Users and Revocations are objects of ``own``. Facts hold what concerns this cluster itself: its starts, its attach
counter, the standing that its parent signed.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from cluster_controller.documents import decode, encode
from cluster_controller.errors import AlreadyExists, Exhausted, NotFound
from cluster_controller.identity.revocation import Revocation
from cluster_controller.identity.standing import Standing
from cluster_controller.resources import kinds, policy
from cluster_controller.resources.meta import API_VERSION, Metadata
from cluster_controller.store.model import Key, Stored
from cluster_controller.tree.admission import Member, Token
from cluster_controller.tree.times import format_time, parse_time

MEMBERS = "members"
OWN = "own"
DESIRED = "desired"
REPORT = "report"
MAX_REVOCATIONS = 10_000
MAX_MEMBERS = 10_000
MAX_HOPS = 16
VIA = "banyan.dev/via"
FACT_START = "membership/starts"
FACT_ATTACH = "membership/attach"
FACT_STRAYS = "membership/strays"
FACT_STANDING = "membership/standing"


class View(Protocol):
    """What a `Store` and a `Tx` have in common."""

    def get(self, key: Key) -> Stored | None: ...

    def list(self, space: str, kind: str, namespace: str | None = None) -> list[Stored]: ...

    def fact(self, name: str) -> bytes | None: ...


class Writer(View, Protocol):
    def put(self, key: Key, document: bytes, *, uid: str) -> Stored: ...

    def delete(self, key: Key) -> Stored | None: ...

    def set_fact(self, name: str, value: bytes | None) -> None: ...


# --- members ---


def member_key(uid: str) -> Key:
    return Key(MEMBERS, "Member", "", uid)


def members(view: View) -> dict[str, Member]:
    return {stored.key.name: decode(stored.document, Member) for stored in view.list(MEMBERS, "Member")}


def member(view: View, uid: str) -> Member | None:
    stored = view.get(member_key(uid))
    return decode(stored.document, Member) if stored else None


def put_member(tx: Writer, record: Member) -> None:
    """Exhausted when one more child would pass the bound."""
    key = member_key(record.uid)
    if tx.get(key) is None and len(tx.list(MEMBERS, "Member")) >= MAX_MEMBERS:
        raise Exhausted(f"this controller has {MAX_MEMBERS} members already; join under another parent, or remove members that left")
    tx.put(key, encode(record), uid=record.uid)


# --- join tokens ---


def token_key(identifier: str) -> Key:
    return Key(OWN, "JoinToken", "", identifier)


def read_token(view: View, identifier: str) -> Token | None:
    """A JoinToken object as far as admission asks; None when there is none, or it is on its way out."""
    stored = view.get(token_key(identifier))
    if stored is None:
        return None
    found = decode(stored.document, kinds.JoinToken)
    if found.metadata.deletion_timestamp or not found.status.expires:
        return None
    return Token(
        id=identifier,
        digest=found.status.digest,
        expires=parse_time(found.status.expires),
        approve=found.spec.approve,
        replace=found.spec.replace,
        cluster_name=found.spec.cluster_name,
        labels=found.spec.labels,
        used_by=found.status.used_by,
        revoked=found.status.phase == "Revoked",
    )


def set_status(tx: Writer, key: Key, **fields: Any) -> None:
    """Change fields of an object's status and nothing else: what this version does not know of it stays as it is."""
    stored = tx.get(key)
    if stored is None:
        return
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    document["status"] = {**document.get("status", {}), **fields}
    tx.put(key, msgspec.json.encode(document), uid=stored.uid)


_parts = msgspec.json.Decoder(dict[str, msgspec.Raw])


def write_status(tx: Writer, stored: Stored, status: kinds.ClusterState) -> Stored:
    """Replace ``status`` and leave the rest of the document as its writer wrote it."""
    document: dict[str, object] = {**_parts.decode(stored.document), "status": status}
    return tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)


def new_object(name: str, spec: Struct, status: dict[str, str], kind: str, now: datetime) -> tuple[str, bytes]:
    """uid and bytes of a new object of ``own``, as the API would write it."""
    uid = str(uuid.uuid4())
    document = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "uid": uid, "creationTimestamp": format_time(now), "generation": 1},
        "spec": spec,
        "status": status,
    }
    return uid, msgspec.json.encode(document)


def add(tx: Writer, key: Key, made: tuple[str, bytes]) -> None:
    """AlreadyExists when the name is taken."""
    if tx.get(key) is not None:
        raise AlreadyExists(f"{key.kind} {key.name!r} exists already; choose another name, or delete it first")
    tx.put(key, made[1], uid=made[0])


def tokens(view: View) -> list[kinds.JoinToken]:
    return [decode(stored.document, kinds.JoinToken) for stored in view.list(OWN, "JoinToken")]


def revoke_token(tx: Writer, name: str) -> None:
    """NotFound when there is none; a used one is left as it is."""
    found = read_token(tx, name)
    if found is None:
        raise NotFound(f"there is no join token {name!r} here; `banyan token list` shows them")
    if not found.used_by or (pending := member(tx, found.used_by)) is None or pending.state == "pending":
        set_status(tx, token_key(name), phase="Revoked")


def user_key(name: str) -> Key:
    return Key(OWN, "User", "", name)


def revoke_user(tx: Writer, name: str, time: str) -> None:
    """Mark the record and revoke its credential wherever it was accepted; NotFound when there is none."""
    stored = tx.get(user_key(name))
    if stored is None:
        raise NotFound(f"there is no user {name!r} here; `banyan get users` shows them")
    credential = decode(stored.document, kinds.User).status.credential_id
    set_status(tx, user_key(name), phase="Revoked")
    if credential:
        revoke(tx, Revocation("user", credential, name, "revoked by a person", time))


# --- what the site decides ---


def site_policy(view: View) -> kinds.SitePolicySpec | None:
    stored = view.get(Key(OWN, "SitePolicy", "", policy.NAME))
    return decode(stored.document, kinds.SitePolicy).spec if stored is not None else None


# --- revocations ---


def revocation_key(space: str, identifier: str) -> Key:
    return Key(space, "Revocation", "", identifier)


def revoke(tx: Writer, revocation: Revocation) -> None:
    """Write it down here, for every child, and for the parent; once is enough. Exhausted when the bound is passed."""
    if tx.get(revocation_key(OWN, revocation.id)) is None and len(tx.list(OWN, "Revocation")) >= MAX_REVOCATIONS:
        raise Exhausted(f"{MAX_REVOCATIONS} revocations are kept here already; make a new tree, or remove those of clusters long gone")
    for space in (OWN, REPORT, *(f"down/{uid}" for uid, one in members(tx).items() if one.state == "member" and uid != revocation.id)):
        put_revocation(tx, space, revocation)


def put_revocation(tx: Writer, space: str, revocation: Revocation) -> None:
    """Once is enough. What was heard from below has a name of its own, so a lie never stands in a true one's place."""
    key = revocation_key(space, ".".join((revocation.id, *revocation.via[:1])))
    if tx.get(key) is not None:
        return
    document = kinds.Revocation(
        metadata=Metadata(
            name=key.name,
            uid=key.name,
            creation_timestamp=revocation.time,
            annotations={VIA: ",".join(revocation.via)} if revocation.via else {},
        ),
        spec=kinds.RevocationSpec(
            subject=revocation.subject, id=revocation.id, name=revocation.name, reason=revocation.reason, time=revocation.time
        ),
    )
    tx.put(key, encode(document), uid=key.name)


def revocations(view: View, children: Iterable[str]) -> list[Revocation]:
    """All that count here: our own, those from above, and those that children, and strays, report of what stands below them."""
    found = [_revocation(stored) for space in (OWN, DESIRED) for stored in view.list(space, "Revocation")]
    below = [(child, f"up/{child}") for child in children] + [(stray, f"stray/{stray}") for stray in strays(view)]
    for child, space in below:
        found += [_revocation(stored, child) for stored in view.list(space, "Revocation")[:MAX_REVOCATIONS]]
    return found


def strays(view: View) -> tuple[str, ...]:
    """Descendants that are no children, of which something is kept in ``stray/UID`` (`tree.away`)."""
    found = view.fact(FACT_STRAYS)
    return msgspec.json.decode(found, type=tuple[str, ...]) if found else ()


def _revocation(stored: Stored, child: str = "") -> Revocation:
    """``child``: in whose report it stands; from above, or our own, it came via nobody."""
    found = decode(stored.document, kinds.Revocation)
    spec, passed = found.spec, found.metadata.annotations.get(VIA, "")
    via = (child, *passed.split(",")[:MAX_HOPS]) if child and passed else (child,) if child else ()
    return Revocation(spec.subject, spec.id, spec.name, spec.reason, spec.time, via)


# --- this cluster's own facts ---


class Starts(Struct, frozen=True):
    """``ids`` oldest first, the present one last; ``number`` is the ordinal of the last."""

    ids: tuple[str, ...] = ()
    number: int = 0


def starts(view: View) -> Starts:
    found = view.fact(FACT_START)
    return msgspec.json.decode(found, type=Starts) if found else Starts()


def set_starts(tx: Writer, value: Starts) -> None:
    tx.set_fact(FACT_START, msgspec.json.encode(value))


def attach(view: View) -> int:
    found = view.fact(FACT_ATTACH)
    return int(found) if found else 0


def set_attach(tx: Writer, value: int) -> None:
    tx.set_fact(FACT_ATTACH, str(value).encode("ascii"))


def standing(view: View) -> Standing | None:
    """What the parent signed for this cluster, verified when it was taken in."""
    found = view.fact(FACT_STANDING)
    return msgspec.msgpack.decode(found, type=Standing) if found else None
