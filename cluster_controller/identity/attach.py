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
MAX_RECORD_BYTES = 1024


class Attach(Struct, frozen=True, array_like=True):
    uid: str
    parent: str
    attach: int
    nonce: bytes


class AttachRecord(Struct, frozen=True, array_like=True):
    """``statement`` is the signed bytes of an `Attach`; ``spki`` the signer's public key."""

    statement: bytes
    spki: bytes
    signature: bytes


def sign(uid: str, parent: str, attach: int, spki: bytes, signer: Callable[[bytes, str], bytes]) -> bytes:
    """An encoded record with a fresh nonce; ``signer`` is `Identity.sign`."""
    statement = msgspec.msgpack.encode(Attach(uid, parent, attach, secrets.token_bytes(8)))
    return msgspec.msgpack.encode(AttachRecord(statement, spki, signer(statement, PURPOSE)))


def verify(data: bytes) -> Attach:
    """What the record says; InvalidInput when it is not signed by the cluster that it speaks of."""
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidInput(f"an attach record of {len(data)} bytes; the limit is {MAX_RECORD_BYTES}")
    try:
        record = msgspec.msgpack.decode(data, type=AttachRecord)
        said = msgspec.msgpack.decode(record.statement, type=Attach)
    except msgspec.DecodeError as error:
        raise InvalidInput("not an attach record") from error
    if keys.uid_of_spki(record.spki) != said.uid or not 0 < said.attach < MAX_ATTACH:
        raise InvalidInput(f"the attach record of {said.uid!r} carries another cluster's key")
    if not keys.verify(keys.public_from_spki(record.spki), PURPOSE, record.statement, record.signature):
        raise InvalidInput(f"the attach record of {said.uid} is not signed by it")
    return said


def newer(candidate: Attach, current: Attach | None) -> bool:
    """Does ``candidate`` replace ``current``? The higher attach wins; of two with the same one, that which came first."""
    return current is None or candidate.attach > current.attach
