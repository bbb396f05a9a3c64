"""What people decide about tokens, users and members. Each is one commit; links are told and cut after it."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from cluster_controller.documents import decode
from cluster_controller.errors import Conflict, NotFound
from cluster_controller.identity import token
from cluster_controller.identity.authority import UserCredential
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.revocation import Revocation
from cluster_controller.resources import kinds
from cluster_controller.store import Store, Tx
from cluster_controller.tree import admission, listing, people, records, tokens
from cluster_controller.tree.admission import Member
from cluster_controller.tree.links import Links
from cluster_controller.tree.people import NewCredential
from cluster_controller.tree.times import format_time
from cluster_controller.tree.tokens import NewToken
from cluster_controller.tunnel.messages import CloseCode


class Instance(Struct, frozen=True):
    """One start that speaks for a cluster. ``kept``: the parent listens to it."""

    id: str
    kept: bool


class Decisions:
    """``addresses``: where children reach this controller, put into tokens."""

    def __init__(
        self,
        store: Store,
        identity: Callable[[], Identity],
        *,
        links: Links,
        wall: Callable[[], datetime],
        addresses: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._identity = identity
        self._links = links
        self._wall = wall
        self._addresses = addresses

    @property
    def _me(self) -> tuple[str, str]:
        return self._identity().uid, self._identity().name

    def prepare_token(self, name: str, spec: kinds.JoinTokenSpec) -> NewToken:
        """For the API's create of a JoinToken: what to store, and the text to show once."""
        return tokens.new_token(self._identity(), name, spec, self._addresses(), self._wall())

    def prepare_user(self, name: str, spec: kinds.UserSpec) -> NewCredential:
        """For the API's create of a User: what to store, and what to show once."""
        return people.new_credential(self._identity(), name, spec, self._wall())

    async def create_token(self, name: str = "", spec: kinds.JoinTokenSpec | None = None) -> tuple[kinds.JoinToken, str]:
        """A stored JoinToken and its text. AlreadyExists when the name is taken."""
        name, spec = name or token.new_id(), spec or kinds.JoinTokenSpec()
        prepared = self.prepare_token(name, spec)
        made = records.new_object(name, spec, prepared.stored, "JoinToken", self._wall())
        await self._store.commit(lambda tx: records.add(tx, records.token_key(name), made))
        return decode(made[1], kinds.JoinToken), prepared.text

    def list_tokens(self) -> list[kinds.JoinToken]:
        return records.tokens(self._store)

    async def revoke_token(self, name: str) -> None:
        """NotFound when there is none. A used token stays used: what joined with it is revoked as a cluster."""
        await self._store.commit(lambda tx: records.revoke_token(tx, name))

    async def create_user(self, name: str, spec: kinds.UserSpec) -> tuple[kinds.User, Mapping[str, str]]:
        """A stored User, and certificate and key, or token, to show once. AlreadyExists when the name is taken."""
        prepared = self.prepare_user(name, spec)
        made = records.new_object(name, spec, prepared.stored, "User", self._wall())
        await self._store.commit(lambda tx: records.add(tx, records.user_key(name), made))
        return decode(made[1], kinds.User), prepared.shown

    async def revoke_user(self, name: str) -> None:
        """Bars the user's credential here, below, and at the ancestors."""
        await self._store.commit(lambda tx: records.revoke_user(tx, name, format_time(self._wall())))

    def members(self) -> list[Member]:
        return sorted(records.members(self._store).values(), key=lambda one: one.name)

    def instances(self, name: str) -> list[Instance]:
        """The starts that speak for a member: the connected or last one, and those that are held."""
        record = self._find(self._store, name)
        return [Instance(record.started.start, True), *(Instance(one, False) for one in record.held)]

    def _find(self, view: records.View, name: str) -> Member:
        """By name or uid; NotFound."""
        found = [one for one in records.members(view).values() if name in (one.uid, one.name)]
        standing_ones = [one for one in found if one.state in admission.STANDING_STATES]
        if not found:
            raise NotFound(f"{name} is no member of {self._identity().name}; `banyan cluster list` shows who is")
        return (standing_ones or found)[0]

    async def approve(self, name: str) -> Member:
        """Let a waiting cluster in: its next question is answered with certificates. Approving twice is approving once."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if record.state in ("approved", "member"):
                return record
            if record.state != "pending":
                raise Conflict(f"{name} does not wait for approval: it is {record.state}")
            record = msgspec.structs.replace(record, state="approved")
            records.put_member(tx, record)
            return record

        return await self._store.commit(work)

    async def revoke_cluster(self, name: str, reason: str = "") -> Member:
        """Bar a member with everything below it, here and wherever the revocation travels, and cut its link."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            retired = msgspec.structs.replace(record, state="revoked")
            records.put_member(tx, retired)
            said = reason or "revoked by a person"
            records.revoke(tx, Revocation("cluster", record.uid, record.name, said, format_time(self._wall())))
            listing.show(tx, retired, self._me, "Revoked")
            return retired

        record = await self._store.commit(work)
        self._links.cut(record.uid, CloseCode.REVOKED, f"{record.name} was revoked")
        return record

    async def keep_cluster(self, name: str, instance: str) -> Member:
        """Of two instances with one identity, keep ``instance``; the others stay out, also when they start again."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if instance not in (record.started.start, *record.held):
                known = ", ".join((record.started.start, *record.held))
                raise NotFound(f"{name} has no instance {instance}; there are {known}")
            kept = admission.keep(record, instance)
            records.put_member(tx, kept)
            listing.show(tx, kept, self._me, "Ready")
            return kept

        record = await self._store.commit(work)
        link = self._links.get(record.uid)
        if link is not None and link.hello is not None and link.hello.starts[-1].id != instance:
            self._links.cut(record.uid, CloseCode.HELD, f"instance {instance} was kept instead of this one")
        return record

    async def remove_cluster(self, name: str) -> Member:
        """Forget a member that is gone for good: its name is free, its Work and reports go. Conflict while it is connected."""

        def work(tx: Tx) -> Member:
            record = self._find(tx, name)
            if self._links.get(record.uid) is not None:
                raise Conflict(f"{name} is connected; run `banyan leave` there, or `banyan cluster revoke {name}`")
            return self.remove(tx, record, "removed")

        return await self._store.commit(work)

    def remove(self, tx: Tx, record: Member, state: admission.State) -> Member:
        """In a commit: out of sight, its name free. A revoked one stays revoked."""
        gone = msgspec.structs.replace(record, state=record.state if record.state == "revoked" else state)
        records.put_member(tx, gone)
        listing.forget(tx, gone)
        return gone

    def loopback_admin(self) -> UserCredential:
        """The on-site admin's certificate and key; `Identity.api_anchors` is the CA that belongs beside them."""
        return self._identity().admin_credential(self._wall())
