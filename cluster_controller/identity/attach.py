"""Attach records: a cluster's own signed word that it stands under a parent now.

At each connection a child commits its attach counter plus one and signs (uid, parent uid, attach, nonce). Routes and reports
are believed only with such a record, and of two records the lower attach is dropped whoever relays it, so an old path, or a
lying relay, never wins over where the cluster really is. A record carries the public key; the uid is its hash, so anybody can
check one with nothing else at hand.
"""

import secrets
from collections.abc import Callable

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import keys

PURPOSE = "banyan.attach.v1"
MAX_ATTACH = 2**62
MAX_NONCE_BYTES = 64
MAX_KEY_BYTES = 256


class Attach(Struct, frozen=True, kw_only=True):
    """A signed record. ``public_key`` is the signer's SubjectPublicKeyInfo in DER."""

    uid: str
    parent: str
    attach: int
    nonce: bytes
    public_key: bytes
    signature: bytes


def sign(uid: str, parent: str, attach: int, public_key: bytes, signer: Callable[[bytes, str], bytes]) -> Attach:
    """A record with a fresh nonce; ``signer`` is `Identity.sign`."""
    nonce = secrets.token_bytes(8)
    signature = signer(_statement(uid, parent, attach, nonce), PURPOSE)
    return Attach(uid=uid, parent=parent, attach=attach, nonce=nonce, public_key=public_key, signature=signature)


def verify(record: Attach) -> None:
    """InvalidInput when ``record`` is not signed by the cluster that it speaks of."""
    if not 0 < record.attach < MAX_ATTACH or len(record.nonce) > MAX_NONCE_BYTES or len(record.public_key) > MAX_KEY_BYTES:
        raise InvalidInput(f"the attach record of {record.uid!r} is out of bounds")
    if keys.uid_of_spki(record.public_key) != record.uid:
        raise InvalidInput(f"the attach record of {record.uid!r} carries another cluster's key")
    statement = _statement(record.uid, record.parent, record.attach, record.nonce)
    if not keys.verify(keys.public_from_spki(record.public_key), PURPOSE, statement, record.signature):
        raise InvalidInput(f"the attach record of {record.uid} is not signed by it")


def newer(candidate: int, current: int) -> bool:
    """Does a record of attach ``candidate`` replace one of ``current`` (0: none)? Of two with the same, the first stays."""
    return candidate > current


def after_replayed(attach: int, refusals: int) -> int:
    """The counter after a parent has refused ``attach`` as replayed, for the ``refusals``-th time in a row (from 1).

    A data folder restored from a backup counts from where it was then; steps that grow sixteenfold pass any counter that it
    may have reached in a handful of connections, without believing anybody's word for the number.
    """
    return min(attach + (1 << 4 * min(refusals, 15)), MAX_ATTACH - 2)


def _statement(uid: str, parent: str, attach: int, nonce: bytes) -> bytes:
    return msgspec.msgpack.encode((uid, parent, attach, nonce))
