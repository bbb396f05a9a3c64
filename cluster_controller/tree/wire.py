"""Between the tunnel's messages and the structs of `identity`: the one place where the two are matched."""

from collections.abc import Sequence

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import attach, certificates
from cluster_controller.identity import standing as standings
from cluster_controller.identity.join import Cause
from cluster_controller.tunnel.messages import Alternate, AttachRecord, Refusal, RefusalCode, Revocation, Revoked, Standing

CODES = {
    Cause.USED: RefusalCode.TOKEN_USED,
    Cause.EXPIRED: RefusalCode.TOKEN_EXPIRED,
    Cause.FOREIGN: RefusalCode.TOKEN_INVALID,
    Cause.NAME_TAKEN: RefusalCode.NAME_TAKEN,
    Cause.PENDING: RefusalCode.PENDING_APPROVAL,
    Cause.REVOKED: RefusalCode.REVOKED,
    Cause.INVALID: RefusalCode.INVALID,
    Cause.BUSY: RefusalCode.BUSY,
}
CAUSES = {code: cause for cause, code in CODES.items()}


def refusal(cause: Cause, reason: str, retry_after: float = 0.0) -> Refusal:
    return Refusal(code=CODES[cause], reason=reason, retry_after=retry_after)


def attach_message(record: attach.Attach, name: str) -> AttachRecord:
    return AttachRecord(
        uid=record.uid,
        parent_uid=record.parent,
        attach=record.attach,
        nonce=record.nonce,
        public_key=record.public_key,
        signature=record.signature,
        name=name,
    )


def attach_record(message: AttachRecord) -> attach.Attach:
    return attach.Attach(
        uid=message.uid,
        parent=message.parent_uid,
        attach=message.attach,
        nonce=message.nonce,
        public_key=message.public_key,
        signature=message.signature,
    )


def is_signed(message: AttachRecord) -> bool:
    """For the router: is this record signed by the cluster that it names?"""
    try:
        attach.verify(attach_record(message))
    except InvalidInput:
        return False
    return True


def standing_message(standing: standings.Standing) -> Standing:
    parents = tuple(Alternate(uid=one.uid, name=one.name, addresses=one.addresses, relation=one.relation) for one in standing.parents)
    return Standing(uid=standing.child, parents=parents, serial=standing.serial, signature=standing.signature, chain=standing.chain)


def standing(message: Standing) -> standings.Standing:
    parents = tuple(standings.PermittedParent(one.uid, one.name, one.addresses, one.relation) for one in message.parents)
    return standings.Standing(child=message.uid, parents=parents, serial=message.serial, signature=message.signature, chain=message.chain)


def pems(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(certificates.pem(certificates.parse(one)) for one in chain)


def ders(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """Certificates that travel as PEM, one each; InvalidInput for anything else."""
    if len(chain) > certificates.MAX_CHAIN or any(len(one) > 2 * certificates.MAX_CERTIFICATE_BYTES for one in chain):
        raise InvalidInput("a certificate chain out of bounds")
    return tuple(certificates.der(one) for text in chain for one in certificates.parse_pem(text, "the parent's answer"))


def revoked_message(uid: str, reason: str) -> Revoked:
    return Revoked(revocations=(Revocation(uid=uid, subject="cluster", reason=reason),))
