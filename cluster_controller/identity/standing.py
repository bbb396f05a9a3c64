"""Standing: what a child's parent signed for it, so that another parent can take it in with the home parent out of reach.

It names the child, the permitted parents in order of preference with their addresses, and a serial that only grows. The
statement is signed by the home parent's identity key and carries that parent's chain; an adopter verifies it offline against
the tree CA, and the child checks the adopter's uid against it.
"""

from collections.abc import Callable, Sequence

import msgspec
from cryptography import x509
from msgspec import Struct

from cluster_controller.errors import Forbidden, InvalidInput
from cluster_controller.identity import certificates, keys

PURPOSE = "banyan.standing.v1"
MAX_PARENTS = 16
MAX_STANDING_BYTES = 48 * 1024


class PermittedParent(Struct, frozen=True, array_like=True):
    uid: str
    name: str
    addresses: tuple[str, ...]


class Standing(Struct, frozen=True, array_like=True):
    child: str
    home: str
    serial: int
    parents: tuple[PermittedParent, ...]  # the home parent first


class SignedStanding(Struct, frozen=True, array_like=True):
    statement: bytes
    signature: bytes
    chain: tuple[bytes, ...]  # of the home parent, DER, without the tree CA


def sign(standing: Standing, chain: Sequence[bytes], signer: Callable[[bytes, str], bytes]) -> bytes:
    """The encoded, signed standing; ``signer`` is `Identity.sign` of the home parent, ``chain`` its certificates in DER."""
    if len(standing.parents) > MAX_PARENTS:
        raise InvalidInput(f"{len(standing.parents)} permitted parents; the limit is {MAX_PARENTS}")
    statement = msgspec.msgpack.encode(standing)
    return msgspec.msgpack.encode(SignedStanding(statement, signer(statement, PURPOSE), tuple(chain)))


def verify(data: bytes, tree_ca: x509.Certificate) -> Standing:
    """What the home parent signed; InvalidInput when it is not signed by the home that it names, or not of this tree."""
    if len(data) > MAX_STANDING_BYTES:
        raise InvalidInput(f"a standing of {len(data)} bytes; the limit is {MAX_STANDING_BYTES}")
    try:
        signed = msgspec.msgpack.decode(data, type=SignedStanding)
        said = msgspec.msgpack.decode(signed.statement, type=Standing)
    except msgspec.DecodeError as error:
        raise InvalidInput("not a standing") from error
    certificates.verify_chain([certificates.parse(one) for one in signed.chain], tree_ca)
    home = certificates.peer_identity(signed.chain)
    if home.uid != said.home:
        raise InvalidInput(f"the standing of {said.child} names {said.home} as its home and is signed by {home.uid}")
    if not keys.verify(keys.public_from_spki(home.spki), PURPOSE, signed.statement, signed.signature):
        raise InvalidInput(f"the standing of {said.child} is not signed by {home.name}")
    return said


def adopt(standing: Standing, child: certificates.PeerCertificate, me: str) -> None:
    """May ``me`` take ``child`` in on the strength of ``standing``? Forbidden says why not."""
    if standing.child != child.uid:
        raise Forbidden(f"the standing shown by {child.name} is that of another cluster")
    if child.home != standing.home:
        raise Forbidden(f"{child.name} shows a standing by {standing.home}, but joined {child.home}")
    if me not in {parent.uid for parent in standing.parents}:
        raise Forbidden(f"{child.name} is not permitted to attach here; its parent lists who may take it in")


def replaces(candidate: Standing, current: Standing | None) -> bool:
    """Keep the one with the higher serial; another home (after a join elsewhere) always replaces."""
    return current is None or candidate.home != current.home or candidate.serial > current.serial
