"""Clusters, JoinTokens and Users: who belongs to the tree and who may ask. The membership decides; here its words meet the API.

Secrets are made inside the create's own commit and go into that one answer: what is stored is a digest.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from cluster_controller.errors import Conflict, Forbidden, InvalidInput, NotFound
from cluster_controller.identity.revocation import Revocation
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store, Tx
from cluster_controller.sync.conflicts import Mark, resolve, undecided
from cluster_controller.tree import listing, records
from cluster_controller.tree.membership import Membership
from cluster_controller.tree.times import format_time
from openapi.services import Ask, NoHooks, Write


class TokenHooks(NoHooks):
    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        spec = msgspec.convert(write.document.get("spec", {}), kinds.JoinTokenSpec)
        made = self._membership.prepare_token(write.name, spec)
        write.document["status"] = {**made.stored}
        return {"status": {**made.stored, "token": made.text}}

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        if write.previous is not None and write.previous.get("spec") != write.document.get("spec"):
            raise Forbidden("a join token cannot be changed: what it grants is written in it; revoke it and make another")
        return None


class UserHooks(NoHooks):
    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        spec = msgspec.convert(write.document.get("spec", {}), kinds.UserSpec)
        if spec.revoked:
            raise InvalidInput("a user that is revoked from the start is of no use; leave spec.revoked out", "spec.revoked")
        made = self._membership.prepare_user(write.name, spec)
        write.document["status"] = {**made.stored}
        return {"status": {**made.stored, **made.shown}}

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        before = (write.previous or {}).get("spec", {})
        after = write.document.get("spec", {})
        if {**before, "revoked": None} != {**after, "revoked": None}:
            raise Forbidden("only spec.revoked of a user can change: grants are part of the credential; create another user")
        if before.get("revoked") and not after.get("revoked"):
            raise Forbidden("a revocation is final: it has travelled through the tree; create another user")
        if after.get("revoked") and not before.get("revoked"):
            _bar(write)
            write.document["status"] = {**write.document.get("status", {}), "phase": "Revoked"}
        return None

    def prepare_delete(self, write: Write) -> None:
        """A credential outlives its record in somebody's pocket: so it is barred, not only forgotten."""
        if not write.document.get("spec", {}).get("revoked"):
            _bar(write)


def _bar(write: Write) -> None:
    """The credential counts nowhere any more: here, below, and at the ancestors that accepted it."""
    credential = str(write.document.get("status", {}).get("credentialId", ""))
    if credential:
        reason = f"revoked by {write.user.name}"
        records.revoke(write.tx, Revocation("user", credential, write.name, reason, format_time(write.now)))


class SitePolicyHooks(NoHooks):
    """Only who asks at the site itself may change what the site decides; a request from above may read it."""

    def __init__(self, uid: str, name: str) -> None:
        self._uid = uid
        self._name = name

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        self._at_the_site(write)
        return None

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        self._at_the_site(write)
        return None

    def prepare_delete(self, write: Write) -> None:
        self._at_the_site(write)

    def _at_the_site(self, write: Write) -> None:
        if write.user.entry != self._uid:
            raise Forbidden(
                f"the policy of {self._name} is written at {self._name} alone, on its own API address; "
                f"this request of {write.user.name} came from another cluster of the tree"
            )


class ClusterHooks(NoHooks):
    """``connected(uid)``: whether the direct child has a link now. ``more``: subresources that other rooms answer."""

    def __init__(
        self,
        store: Store,
        membership: Membership,
        uid: str,
        connected: Callable[[str], bool],
        more: Mapping[str, Callable[[Ask], Awaitable[Mapping[str, Any]]]] | None = None,
    ) -> None:
        self._store = store
        self._membership = membership
        self._uid = uid
        self._connected = connected
        self._more = more or {}

    def prepare_delete(self, write: Write) -> None:
        """Forget a member that is gone for good: its name is free, its Work and reports go."""
        uid = str(write.document["metadata"]["uid"])
        if uid == self._uid:
            raise Forbidden(f"{write.name} is this controller itself; it leaves its tree with `banyan leave`")
        member = records.member(write.tx, uid)
        if member is None:
            parent = write.document.get("status", {}).get("parent", "its parent")
            raise Forbidden(
                f"{write.name} is a member of {parent}, which alone can remove it: banyan --at {parent} cluster remove {write.name}"
            )
        if self._connected(uid):
            raise Conflict(f"{write.name} is connected; run `banyan leave` there, or `banyan cluster revoke {write.name}`")
        gone = member if member.state == "revoked" else msgspec.structs.replace(member, state="removed")
        records.put_member(write.tx, gone)
        listing.forget(write.tx, gone)

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        decisions = self._membership
        if ask.subresource in self._more:
            return await self._more[ask.subresource](ask)
        match ask.subresource:
            case "conflicts":
                return await self._conflicts(ask)
            case "approve":
                member = await decisions.approve(ask.name)
            case "revoke":
                member = await decisions.revoke_cluster(ask.name, _text(ask.body, "reason", required=False))
            case "keep":
                member = await decisions.keep_cluster(ask.name, _text(ask.body, "instance", required=True))
            case _:
                raise NotFound(f"clusters have no subresource {ask.subresource}; they have approve, revoke, keep, banyan, proxy and status")
        return {
            "kind": "Member",
            "apiVersion": "banyan.dev/v1alpha1",
            "name": member.name,
            "uid": member.uid,
            "state": member.state,
        }

    async def _conflicts(self, ask: Ask) -> Mapping[str, Any]:
        """Of this controller itself: GET lists what waits, POST decides: keep field (what runs here) or root (what the parent has)."""
        stored = self._store.find("own", "Cluster", self._uid)
        if stored is None or stored.key.name != ask.name:
            raise Forbidden(f"conflicts of {ask.name} are decided at {ask.name}: banyan --at {ask.name} cluster conflicts {ask.name}")
        if ask.method == "GET":
            items = [_conflict(self._store, key, mark) for key, mark in undecided(self._store, "desired")]
            return {"kind": "ConflictList", "apiVersion": "banyan.dev/v1alpha1", "items": items}
        keep = _text(ask.body, "keep", required=True)
        if keep not in {"field", "root"}:
            raise InvalidInput("keep is field (what runs here stays) or root (what the parent has replaces it)", "keep")
        kind, name = _text(ask.body, "kind", required=False), _text(ask.body, "name", required=False)
        if name and not kind:
            raise InvalidInput("name one object by its kind and name", "kind")

        def decide(tx: Tx) -> int:
            wanted = [kind] if kind else sorted({key.kind for key, _ in undecided(self._store, "desired")})
            return sum(resolve(tx, "desired", "field" if keep == "field" else "root", kind=one, name=name or None) for one in wanted)

        settled = await self._store.commit(decide)
        return {"kind": "Decision", "apiVersion": "banyan.dev/v1alpha1", "keep": keep, "settled": settled}


def _conflict(store: Store, key: Key, mark: Mark) -> dict[str, Any]:
    """One object that waits for a decision: what is held here, and what the parent has. ``object`` is what people call it."""
    theirs, ours = mark.theirs, store.get(key)
    document = theirs.document if theirs is not None and theirs.document else ours.document if ours is not None else b"{}"
    name = _called(msgspec.json.decode(document))
    return {"kind": key.kind, "name": key.name, "object": name, "held": bool(mark.ours), "parentHas": theirs is not None}


def _called(document: Mapping[str, Any]) -> str:
    """NAMESPACE/NAME of the object, of a Work its application's, of a Revocation who was revoked."""
    spec = document.get("spec") or {}
    about = spec.get("application") or (spec if document.get("kind") == "Revocation" else None) or document.get("metadata") or {}
    return f"{about.get('namespace') or ''}/{about.get('name', '')}".strip("/")


def _text(body: Mapping[str, Any], field: str, *, required: bool) -> str:
    value = body.get(field, "")
    if not isinstance(value, str) or len(value) > 1024 or (required and not value):
        raise InvalidInput(f"{field} is a text of at most 1024 characters{'' if required else ', or left out'}", field)
    return value
