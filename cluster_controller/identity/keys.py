"""Keys of this tree: ECDSA on P-256, because browsers, kubectl and every TLS library speak it.

A cluster *is* its identity key: its uid is derived from the public half, so whoever holds a public key can say whose it is, and
no issuer can make a certificate in another cluster's name. Signatures over anything but certificates carry a purpose, so that
a signature made for one message is worth nothing in another.
"""

import base64
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster_controller.errors import InvalidInput

UID_LENGTH = 26
UID_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")
PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def generate() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def spki(public: PublicKey) -> bytes:
    """The SubjectPublicKeyInfo in DER (RFC 5280 section 4.1.2.7)."""
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def uid_of(public: PublicKey) -> str:
    """26 characters of lower-case base32: the first 130 bits of SHA-256 over the SubjectPublicKeyInfo."""
    return uid_of_spki(spki(public))


def uid_of_spki(der: bytes) -> str:
    return base64.b32encode(hashlib.sha256(der).digest()).decode("ascii")[:UID_LENGTH].lower()


def is_uid(text: str) -> bool:
    return len(text) == UID_LENGTH and UID_ALPHABET.issuperset(text)


def to_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def from_pem(pem: bytes, where: str) -> PrivateKey:
    """The key in ``pem``; InvalidInput names ``where`` it stood when it is no P-256 key."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{where} holds no readable private key; restore it from a backup, or join this site again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput(f"{where} holds a key of another kind than ECDSA P-256; join this site again")
    return key


def public_from_spki(der: bytes) -> PublicKey:
    """InvalidInput when ``der`` is no P-256 public key."""
    try:
        public = serialization.load_der_public_key(der)
    except ValueError as error:
        raise InvalidInput("not a public key") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInput("a key of another kind than ECDSA P-256")
    return public


def sign(key: PrivateKey, purpose: str, data: bytes) -> bytes:
    """An ECDSA signature (DER) over ``data`` for one ``purpose``, for instance ``banyan.attach.v1``."""
    return key.sign(_message(purpose, data), ec.ECDSA(hashes.SHA256()))


def verify(public: PublicKey, purpose: str, data: bytes, signature: bytes) -> bool:
    try:
        public.verify(signature, _message(purpose, data), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _message(purpose: str, data: bytes) -> bytes:
    # A zero byte ends the purpose: none contains one, so no two (purpose, data) pairs give the same message.
    return purpose.encode("ascii") + b"\0" + data
