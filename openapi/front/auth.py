"""Who asks: once per connection by certificate, per request by bearer token, never both and never nobody.

The front holds no accounts. It takes the certificate chain out of TLS or the token out of the head, asks the injected
`Authenticator`, and asks again before every further request on a long connection, so that a revoked or expired user does not
live on in an open connection. On a connection adopted from the tree the user is fixed by the parent link that brought it.
"""

import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cluster_controller.errors import Forbidden, InvalidInput, Unauthenticated
from openapi.front.head import RequestHead

if TYPE_CHECKING:
    from openapi.services import User

MAX_USER_BYTES = 16384
MAX_NAMES = 64  # remembered of one connection
ANONYMOUS_PATHS = frozenset({b"/healthz"})

_RANK = {"view": 1, "edit": 2, "admin": 3}


class Authenticator(Protocol):
    """Every method raises Unauthenticated, with a message that names the remedy and no secret."""

    def certificate(self, chain: Sequence[bytes], remote: str | None) -> "User":
        """``chain`` is what the client showed in TLS, DER, leaf first; TLS has proved that it holds the leaf's key.

        ``remote``: the address of the machine that asks; None for this very machine.
        """
        ...

    def bearer(self, token: str) -> "User": ...

    def again(self, user: "User") -> "User":
        """Before a further request of a user known by certificate: the same user with today's grants."""
        ...


class Credentials:
    """What one connection has shown so far."""

    def __init__(self, authenticator: Authenticator, chain: Sequence[bytes], remote: str | None) -> None:
        self._authenticator = authenticator
        self._chain = tuple(chain)
        self._remote = remote
        self._user: User | None = None  # known by certificate
        self.names: set[str] = set()  # of all users that asked on this connection

    def user(self, head: RequestHead) -> "User | None":
        """The user of this request; None for what anybody may ask. Raises Unauthenticated."""
        if head.path in ANONYMOUS_PATHS and head.method in ("GET", "HEAD"):
            return None
        refuse_impersonation(head)
        token = bearer_token(head)
        user = self._authenticator.bearer(token) if token is not None else self._by_certificate(head)
        if len(self.names) < MAX_NAMES:
            self.names.add(user.name)
        return user

    def _by_certificate(self, head: RequestHead) -> "User":
        if not self._chain:
            raise Unauthenticated("no credential was given: use a client certificate or a bearer token (banyan kubeconfig)")
        refuse_cross_site(head)
        self._user = (
            self._authenticator.certificate(self._chain, self._remote) if self._user is None else self._authenticator.again(self._user)
        )
        return self._user


class Adopted:
    """The credentials of a connection that came through the tree: fixed, whatever the requests on it say."""

    def __init__(self, user: "User") -> None:
        self._user = user
        self.names = {user.name}

    def user(self, head: RequestHead) -> "User | None":
        refuse_impersonation(head)
        return self._user


def bearer_token(head: RequestHead) -> str | None:
    """The token of an Authorization: Bearer header; None when there is none of that scheme."""
    values = [value for name, value in head.headers if name == b"authorization"]
    if len(values) > 1:
        raise Unauthenticated("the Authorization header was given more than once")
    if not values:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    try:
        return token.strip().decode("ascii")
    except UnicodeDecodeError:
        raise Unauthenticated("the bearer token is not ASCII") from None


def refuse_impersonation(head: RequestHead) -> None:
    """`kubectl --as` must not look as if it worked."""
    if any(name.startswith(b"impersonate-") for name, _ in head.headers):
        raise Forbidden("impersonation (kubectl --as) is not offered; use that user's own credential")


def refuse_cross_site(head: RequestHead) -> None:
    """A browser adds a client certificate to what other sites make it send; what changes something must not ride on that."""
    if head.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and head.method not in ("GET", "HEAD"):
        raise Forbidden("a browser sent this request for another site; requests that change something must come from this one")


def peer_chain(tls: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[bytes, ...]:
    """The chain that the client showed, DER, leaf first; empty without a client certificate."""
    if tls is None:
        return ()
    public = getattr(tls, "get_unverified_chain", None)  # Python ≥ 3.13
    if public is not None:
        return tuple(public())
    inner: Any = getattr(tls, "_sslobj", None)
    chain = inner.get_unverified_chain() if inner is not None else None
    return tuple(_der(certificate) for certificate in chain or () if certificate is not None)


def _der(certificate: Any) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.public_bytes())


def allowed(user: "User", role: str, namespace: str) -> bool:
    """Does a grant of ``user`` reach ``role`` in ``namespace`` ("": everywhere)?"""
    return any(_RANK[grant.role] >= _RANK[role] and grant.namespace in ("", namespace) for grant in user.grants)


def require(user: "User", role: str, namespace: str, what: str) -> None:
    """Raises Forbidden unless `allowed`. ``what`` completes "… may not ": "send POST to application x"."""
    if not allowed(user, role, namespace):
        where = f"in namespace {namespace}" if namespace else "in every namespace"
        raise Forbidden(f"{user.name} may not {what}: this needs the group {role} {where}; ask an admin (banyan user create --group)")


class _Asked(msgspec.Struct):
    request: str = ""


def encode_user(user: "User", request: str = "") -> bytes:
    """The metadata of a stream of service `http` or `member`: who asks, as the entry controller knows them, and the id of the request."""
    data = msgspec.json.encode(user if not request else msgspec.to_builtins(user) | {"request": request})
    if len(data) > MAX_USER_BYTES:
        raise Forbidden(f"{user.name} has too many groups and grants to be passed on through the tree ({len(data)} bytes)")
    return data


def decode_user(metadata: bytes) -> "User":
    """The inverse; only for metadata that came from the parent link."""
    from openapi.services import User

    if len(metadata) > MAX_USER_BYTES:
        raise InvalidInput(f"the user in a stream's metadata has {len(metadata)} bytes; at most {MAX_USER_BYTES} are accepted")
    try:
        return msgspec.json.decode(metadata, type=User)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the user in a stream's metadata cannot be read: {error}") from error


def decode_request(metadata: bytes) -> str:
    """The id of the request beside the user, "" without one. Only for metadata that `decode_user` has read."""
    return msgspec.json.decode(metadata, type=_Asked).request
