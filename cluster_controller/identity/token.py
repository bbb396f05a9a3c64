"""Join tokens: a one-time, expiring right to join one parent, as a single word that survives copying.

A token names the parent by uid (that is: by key) with the addresses where it listens, and pins the tree's CA. So a new site
knows whom it talks to before it says anything secret. The word is lower-case base32 behind ``banyan1``: a double click selects
it, a phone call can spell it, and line breaks put in by a terminal or a mail program do no harm. Its last bytes are a checksum,
so a token that was not copied whole is refused before any network is touched. The checksum protects from slips; what protects
from forgery is the secret, of which the parent's store holds a salted hash only.
"""

import base64
import hashlib
import hmac
import re
import secrets
from enum import IntFlag

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import keys
from cluster_controller.identity.join import TokenAltered

PREFIX = "banyan1"
CHECKSUM_BYTES = 5
SECRET_BYTES = 16
MAX_ADDRESSES = 8
MAX_TOKEN_CHARACTERS = 4096
ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Flag(IntFlag):
    """What the new site shall know beforehand. The parent decides by its own record, never by these."""

    NONE = 0
    APPROVE = 1  # a person has to approve
    REPLACE = 2  # takes the place of a cluster whose machine died
    LEAF = 4  # may not take children


class JoinToken(Struct, frozen=True, array_like=True):  # array_like: new fields go to the end, with a default
    """``addresses`` are HOST:PORT. ``tree_ca`` is the SHA-256 of the tree CA's certificate in DER."""

    parent: str
    parent_name: str
    addresses: tuple[str, ...]
    tree_ca: bytes
    id: str
    secret: bytes
    flags: int = 0

    def __repr__(self) -> str:
        return f"<JoinToken {self.id} for {self.parent_name}>"


def new_id() -> str:
    """A random token id; people may give a name of their own instead."""
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(10))


def new(
    *, parent: str, parent_name: str, addresses: tuple[str, ...], tree_ca_digest: str, identifier: str, flags: Flag = Flag.NONE
) -> JoinToken:
    """A token with a fresh secret; ``identifier`` is the name of its JoinToken object. InvalidInput for none or too many addresses."""
    if not addresses or len(addresses) > MAX_ADDRESSES:
        raise InvalidInput(f"a token needs 1 to {MAX_ADDRESSES} addresses of {parent_name}; set tunnel_advertise", "tunnel_advertise")
    return JoinToken(
        parent, parent_name, tuple(addresses), bytes.fromhex(tree_ca_digest), identifier, secrets.token_bytes(SECRET_BYTES), int(flags)
    )


def encode(token: JoinToken) -> str:
    body = msgspec.msgpack.encode(token)
    return _text(body + _checksum(body))


def _text(data: bytes) -> str:
    return PREFIX + base64.b32encode(data).decode("ascii").rstrip("=").lower()


def decode(text: str) -> JoinToken:
    """TokenAltered when it is not a whole token, before anything else is done."""
    word = "".join(text.split()).lower()
    if not word.startswith(PREFIX) or len(word) > MAX_TOKEN_CHARACTERS:
        raise TokenAltered(f"this is no join token: one begins with {PREFIX!r}; make one with `banyan token create`")
    payload = word.removeprefix(PREFIX).upper()
    try:
        data = base64.b32decode(payload + "=" * (-len(payload) % 8))
    except ValueError as error:  # binascii.Error, and for what is not ASCII
        raise _altered() from error
    if _text(data) != word:  # bits behind the last whole byte that no encoder sets
        raise _altered()
    body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if not hmac.compare_digest(_checksum(body), checksum):
        raise _altered()
    try:
        token = msgspec.msgpack.decode(body, type=JoinToken)
    except msgspec.DecodeError as error:
        raise _altered() from error
    if not _plausible(token):
        raise _altered()
    return token


def _plausible(token: JoinToken) -> bool:
    return (
        keys.is_uid(token.parent)
        and len(token.tree_ca) == hashlib.sha256().digest_size
        and len(token.secret) == SECRET_BYTES
        and ID_PATTERN.fullmatch(token.id) is not None
        and 0 < len(token.addresses) <= MAX_ADDRESSES
    )


def _altered() -> TokenAltered:
    return TokenAltered("the join token is damaged: it was not copied whole; copy it again, or make another with `banyan token create`")


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"banyan.join-token.v1\0" + body).digest()[:CHECKSUM_BYTES]


# --- secrets at rest ---


def hash_secret(secret: bytes) -> str:
    """``sha256$SALT$HASH``. The secrets hashed here are 128 random bits or more, so no slow hash is needed to hide them."""
    salt = secrets.token_bytes(16)
    return f"sha256${salt.hex()}${_digest(salt, secret)}"


def matches(secret: bytes, stored: str) -> bool:
    """In constant time; False too for a hash of a kind that this version does not know."""
    kind, _, rest = stored.partition("$")
    salt, _, expected = rest.partition("$")
    try:
        return kind == "sha256" and hmac.compare_digest(_digest(bytes.fromhex(salt), secret), expected)
    except (ValueError, TypeError):
        return False


def _digest(salt: bytes, secret: bytes) -> str:
    return hashlib.sha256(salt + secret).hexdigest()


BEARER_PREFIX = "bnyu_"


def new_bearer() -> tuple[str, str, bytes]:
    """A bearer token for a person: (text, credential id, secret). The id finds the record, the secret proves it."""
    identifier, secret = secrets.token_hex(8), secrets.token_bytes(24)
    return f"{BEARER_PREFIX}{identifier}_{secret.hex()}", identifier, secret


def split_bearer(text: str) -> tuple[str, bytes] | None:
    """(credential id, secret), or None when ``text`` is no bearer token of ours."""
    found = re.fullmatch(rf"{BEARER_PREFIX}([0-9a-f]{{16}})_([0-9a-f]{{48}})", text)
    return (found[1], bytes.fromhex(found[2])) if found else None
