"""Joins and renewals, the parent's side: judge, commit, sign.

A token is consumed in the same commit that makes the member, before anything is answered. Signing comes after it: if the answer is
lost, the same key with the same token gets it again, and nobody else ever does.
"""

from collections.abc import Callable
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.errors import BanyanError, Exhausted
from cluster_controller.identity import certificates, keys, token
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.holder import Identity
from cluster_controller.identity.join import Cause
from cluster_controller.identity.revocation import Revocation
from cluster_controller.store import Store, Tx
from cluster_controller.tree import admission, listing, records, wire
from cluster_controller.tree.admission import Admitted, Applicant, Member, Names, Refused, Token
from cluster_controller.tree.barring import Barring
from cluster_controller.tree.links import Links
from cluster_controller.tree.names import Reservations
from cluster_controller.tree.times import format_time
from cluster_controller.tunnel.messages import CloseCode, JoinReply, JoinRequest, Refusal, RefusalCode, RenewReply, RenewRequest

log = structlog.get_logger()

MAX_REQUEST_CHARACTERS = 8192


class Asked(Struct, frozen=True):
    """A join request as far as it is well-formed: its token readable, its keys proved."""

    token: token.JoinToken
    applicant: Applicant


class Joins:
    def __init__(
        self,
        store: Store,
        identity: Callable[[], Identity],
        *,
        names: Reservations,
        barring: Barring,
        links: Links,
        wall: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._identity = identity
        self._names = names
        self._barring = barring
        self._links = links
        self._wall = wall

    async def join(self, request: JoinRequest, address: str) -> JoinReply:
        """Admit a new cluster by its token, or say why not. The token is consumed before this returns."""
        try:
            outcome = await self._decide(_read(request, address))
        except Exhausted as error:
            cause = Cause.INVALID if error.retry_after is None else Cause.BUSY
            outcome = Refused(cause, str(error), error.retry_after or 0.0)
        except BanyanError as error:
            outcome = Refused(Cause.INVALID, str(error))
        if isinstance(outcome, Refused):
            log.warning("join.refused", name=request.name, address=address, cause=outcome.cause.value, reason=outcome.reason)
            return JoinReply(refusal=wire.refusal(outcome.cause, outcome.reason, outcome.retry_after))
        if outcome.waiting:
            reason = f"{outcome.member.name} waits for a person: `banyan approve {outcome.member.name}` at {self._identity().name}"
            return JoinReply(refusal=wire.refusal(Cause.PENDING, reason, admission.APPROVAL_POLL_SECONDS))
        return self._signed(request, outcome.member)

    async def _decide(self, asked: Asked) -> Admitted | Refused:
        identity, applicant = self._identity(), asked.applicant
        identity.issuing()  # Forbidden for a leaf
        if asked.token.parent != identity.uid or asked.token.tree_ca.hex() != identity.tree_ca_digest:
            return Refused(Cause.FOREIGN, f"the token is for {asked.token.parent_name}, this is {identity.name}")
        first = self._judge(self._store, asked)
        if isinstance(first, Refused):
            return first
        provisional = False
        if not first[0].used_by:
            reserved = await self._names.reserve_above(applicant.name, applicant.uid)
            if reserved.taken_by:
                return Refused(Cause.NAME_TAKEN, f"the name {applicant.name!r} is taken by {reserved.taken_by}; choose another with --name")
            provisional = not reserved.complete

        def work(tx: Tx) -> Admitted | Refused:
            judged = self._judge(tx, asked)
            if isinstance(judged, Refused):
                return judged
            found, outcome = judged
            if not found.used_by:
                outcome = msgspec.structs.replace(outcome, member=msgspec.structs.replace(outcome.member, provisional=provisional))
            self._write(tx, found, outcome)
            return outcome

        outcome = await self._store.commit(work)
        if isinstance(outcome, Admitted) and outcome.replaced is not None:
            self._links.cut(outcome.replaced.uid, CloseCode.REVOKED, f"{outcome.replaced.name} was replaced")
        return outcome

    def _judge(self, view: records.View, asked: Asked) -> tuple[Token, Admitted] | Refused:
        found = records.read_token(view, asked.token.id)
        if found is None or not token.matches(asked.token.secret, found.digest):
            return Refused(
                Cause.FOREIGN,
                f"{self._identity().name} does not know join token {asked.token.id}: it was deleted, or made by another store",
            )
        barred = next((one for one in self._barring.revoked().get(asked.applicant.uid, ()) if one.subject == "cluster"), None)
        if barred is not None:
            return Refused(Cause.REVOKED, f"this cluster was revoked ({barred.reason}); join with a fresh data folder")
        names = Names(self._names.taken(view), self._links.connected())
        outcome = admission.judge_join(found, asked.applicant, names, records.members(view), self._wall())
        return outcome if isinstance(outcome, Refused) else (found, outcome)

    def _write(self, tx: Tx, found: Token, outcome: Admitted) -> None:
        identity, record = self._identity(), outcome.member
        if outcome.replaced is not None:
            retired = msgspec.structs.replace(outcome.replaced, state="replaced")
            records.put_member(tx, retired)
            time = format_time(self._wall())
            records.revoke(tx, Revocation("cluster", retired.uid, retired.name, f"replaced by {record.uid}", time))
        records.put_member(tx, record)
        phase = "Pending" if outcome.waiting else ""
        listing.show(tx, record, (identity.uid, identity.name), phase, outcome.replaced)
        if outcome.replaced is not None:
            listing.forget(tx, outcome.replaced)
        status = {"phase": "Pending" if outcome.waiting else "Used"}
        if not found.used_by:
            status |= {"usedBy": record.uid, "usedByName": record.name, "usedAt": format_time(self._wall())}
        records.set_status(tx, records.token_key(found.id), **status)
        if not outcome.waiting:
            for one in records.revocations(tx, ()):
                records.put_revocation(tx, f"down/{record.uid}", one)
        log.info("join.committed", cluster=record.name, uid=record.uid, token=found.id, state=record.state)

    def _signed(self, request: JoinRequest, record: Member) -> JoinReply:
        identity = self._identity()
        issued = identity.issuing().issue(
            name=record.name,
            identity_request=request.csr,
            issuing_request=request.issuing_csr if record.may_have_children else b"",
            home=identity.uid,
            now=self._wall(),
        )
        return JoinReply(
            certificate_chain=wire.pems(issued.identity),
            tree_ca=certificates.pem(identity.tree_ca),
            issuing_chain=wire.pems(issued.issuing),
            parent_uid=identity.uid,
            parent_name=identity.name,
            name=record.name,
            provisional=record.provisional,
            unix_time=self._wall().timestamp(),
        )

    def renew(self, request: RenewRequest, peer: PeerCertificate) -> RenewReply:
        """Fresh certificates for the key that the peer has proved to hold; an expired one may ask, a revoked one not."""
        barred = self._barring.bars(peer, renewing=True)
        if barred is not None:
            return RenewReply(refusal=barred)
        try:
            if keys.uid_of(certificates.requested_key(request.csr)) != peer.uid:
                reason = "a renewal keeps the identity key; to change it, join again"
                return RenewReply(refusal=Refusal(code=RefusalCode.FORBIDDEN, reason=reason))
            known = records.member(self._store, peer.uid)
            issued = (
                self._identity()
                .issuing()
                .issue(
                    name=known.name if known else peer.name,
                    identity_request=request.csr,
                    issuing_request=request.issuing_csr if known is None or known.may_have_children else b"",
                    home=self._identity().uid if known is not None and known.coming else peer.home,
                    now=self._wall(),
                )
            )
        except BanyanError as error:
            return RenewReply(refusal=Refusal(code=RefusalCode.INVALID, reason=str(error)))
        log.info("child.renewed", cluster=peer.name, uid=peer.uid)
        return RenewReply(
            certificate_chain=wire.pems(issued.identity), issuing_chain=wire.pems(issued.issuing), unix_time=self._wall().timestamp()
        )


def _read(request: JoinRequest, address: str) -> Asked:
    """InvalidInput, TokenAltered: what was sent is no join request."""
    shown = token.decode(request.token[:MAX_REQUEST_CHARACTERS])
    public = certificates.requested_key(request.csr)
    if request.issuing_csr:
        certificates.requested_key(request.issuing_csr)
    applicant = Applicant(
        uid=keys.uid_of(public), name=request.name, labels=request.labels, may_have_children=bool(request.issuing_csr), address=address
    )
    return Asked(shown, applicant)
