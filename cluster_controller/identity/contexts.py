"""TLS contexts, and the one place that asks a TLS connection for its peer's chain.

Chain, key and tree are checked inside TLS; dates are not (X509_V_FLAG_NO_CHECK_TIME), because a site that was cut off for a
year, or whose clock jumped, must still reach its parent to renew. Sessions are never resumed: a resumed connection has no
peer chain to judge. TLS 1.3 only: every program of the tree speaks it, and so do kubectl, browsers and Python.

`ssl` loads keys from files only; they are handed over through an anonymous memory file, so that what is presented is exactly
the identity that was loaded, whatever happens on disk meanwhile.
"""

import os
import ssl
from collections.abc import Sequence
from typing import Any

from cluster_controller.errors import InvalidInput

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL; `ssl` has no name for it."""


def tunnel_server(key: bytes, chain: bytes, tree_ca: bytes) -> ssl.SSLContext:
    """Asks for, and does not demand, a client certificate of this tree: without one a peer may speak only Join.

    The tree CA goes along in the chain, so that a joining peer can compare it with the digest in its token.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL, tree_ca)
    load(context, key, chain + tree_ca)
    return context


def tunnel_client(key: bytes, chain: bytes, tree_ca: bytes) -> ssl.SSLContext:
    """Presents the chain, demands a server of this tree. That it is the parent is checked by uid afterwards."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, tree_ca)
    load(context, key, chain)
    return context


def join_client() -> ssl.SSLContext:
    """For a site that has no identity yet: TLS proves the server's key, `joining` compares it with the token before it speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def api_server(key: bytes, chain: bytes, anchors: bytes) -> ssl.SSLContext:
    """For the front: a client certificate is asked for; without one a bearer token may follow in the request."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL, anchors)
    load(context, key, chain)
    return context


def _context(protocol: int, mode: ssl.VerifyMode, anchors: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = mode
    context.verify_flags |= NO_CHECK_TIME
    context.load_verify_locations(cadata=anchors.decode("ascii"))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def load(context: ssl.SSLContext, key: bytes, chain: bytes) -> None:
    """Present ``chain`` with ``key`` (PEM) from now on; a context in use may be given a newer pair."""
    descriptor = os.memfd_create("banyan-identity", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(chain + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def verified_chain(connection: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[bytes, ...]:
    """The peer's chain in DER as TLS verified it, leaf first, tree CA last; empty when the peer showed no certificate."""
    return _ders(_raw(connection).get_verified_chain())


def presented_chain(connection: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[bytes, ...]:
    """The chain as the peer sent it, unverified; for a joining site only."""
    return _ders(_raw(connection).get_unverified_chain())


def _raw(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Any:
    # Python 3.13 made these methods public on SSLObject; before, they exist on the object that it wraps.
    if connection is None:
        raise InvalidInput("the connection is not TLS")
    public: Any = connection
    return public if hasattr(public, "get_verified_chain") else public._sslobj


def _ders(found: Sequence[Any] | None) -> tuple[bytes, ...]:
    return tuple(one if isinstance(one, bytes) else ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in found or ())
