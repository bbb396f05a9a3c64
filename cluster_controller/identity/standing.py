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
MAX_ADDRESSES = 16


class PermittedParent(Struct, frozen=True):
    """``relation``: what it is to the child (`tree.failover`). Not signed for: nobody but the child itself goes by it."""

    uid: str
    name: str
    addresses: tuple[str, ...]
    relation: str = ""


class Standing(Struct, frozen=True, kw_only=True):
    """``parents`` are in order of preference, the home parent, who signs, first. ``chain``: its certificates, DER, leaf first."""

    child: str
    parents: tuple[PermittedParent, ...]
    serial: int
    signature: bytes
    chain: tuple[bytes, ...]

    @property
    def home(self) -> str:
        return self.parents[0].uid if self.parents else ""


def sign(
    child: str, parents: Sequence[PermittedParent], serial: int, chain: Sequence[bytes], signer: Callable[[bytes, str], bytes]
) -> Standing:
    """``signer`` is `Identity.sign` of the home parent, ``chain`` its certificates in DER without the tree CA."""
    if not 0 < len(parents) <= MAX_PARENTS:
        raise InvalidInput(f"{len(parents)} permitted parents; there must be 1 to {MAX_PARENTS}")
    signature = signer(_statement(child, parents, serial), PURPOSE)
    return Standing(child=child, parents=tuple(parents), serial=serial, signature=signature, chain=tuple(chain))


def verify(standing: Standing, tree_ca: x509.Certificate) -> None:
    """InvalidInput when it is not signed by the home that it names, or that home is not of this tree."""
    if not 0 < len(standing.parents) <= MAX_PARENTS or any(len(one.addresses) > MAX_ADDRESSES for one in standing.parents):
        raise InvalidInput(f"the standing of {standing.child!r} is out of bounds")
    certificates.verify_chain([certificates.parse(one) for one in standing.chain], tree_ca)
    home = certificates.peer_identity(standing.chain)
    if home.uid != standing.home:
        raise InvalidInput(f"the standing of {standing.child} names {standing.home} as its home and is signed by {home.uid}")
    statement = _statement(standing.child, standing.parents, standing.serial)
    if not keys.verify(keys.public_from_spki(home.spki), PURPOSE, statement, standing.signature):
        raise InvalidInput(f"the standing of {standing.child} is not signed by {home.name}")


def adopt(standing: Standing, child: certificates.PeerCertificate, me: str) -> None:
    """May ``me`` take ``child`` in on the strength of a verified ``standing``? Forbidden says why not."""
    if standing.child != child.uid:
        raise Forbidden(f"the standing shown by {child.name} is that of another cluster")
    if child.home != standing.home:
        raise Forbidden(f"{child.name} shows a standing by {standing.home}, but joined {child.home}")
    if me not in {parent.uid for parent in standing.parents}:
        raise Forbidden(f"{child.name} is not permitted to attach here; its parent lists who may take it in")


def replaces(candidate: Standing, current: Standing | None) -> bool:
    """Keep the one with the higher serial; another home (after a join elsewhere) always replaces."""
    return current is None or candidate.home != current.home or candidate.serial > current.serial


def _statement(child: str, parents: Sequence[PermittedParent], serial: int) -> bytes:
    listed = [(parent.uid, parent.name, list(parent.addresses)) for parent in parents]
    return msgspec.msgpack.encode((child, serial, listed))
