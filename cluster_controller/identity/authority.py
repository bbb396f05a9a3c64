"""Issuing: how a controller signs those below it, and how the root of a tree comes into being.

Every controller that may have children holds an issuing certificate whose key is not its identity key, so that it can be
rotated at each renewal while the uid stays. It signs joins and renewals below it with nobody above in reach. The names and
rights in a certificate are the issuer's; of a request only its public key counts.
"""

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from msgspec import Struct

from cluster_controller.errors import Forbidden
from cluster_controller.identity import certificates, keys
from cluster_controller.identity.certificates import Signer
from cluster_controller.identity.users import Grant


class Lifetimes(Struct, frozen=True, kw_only=True):
    """How long what is issued is good for."""

    identity: timedelta = timedelta(days=90)
    issuing: timedelta = timedelta(days=365)
    api: timedelta = timedelta(days=397)  # the longest that Apple's clients take


DEFAULT_LIFETIMES = Lifetimes()


class Issued(Struct, frozen=True, kw_only=True):
    """Chains in DER, leaf first, without the tree CA. ``issuing`` is empty for a cluster that may not take children."""

    identity: tuple[bytes, ...]
    issuing: tuple[bytes, ...] = ()


class UserCredential(Struct, frozen=True, kw_only=True):
    """A client certificate for a person, with all that a kubeconfig needs beside the server's address. The key is kept nowhere."""

    id: str
    certificate: bytes  # PEM: the certificate and the chain up to the anchor that servers name
    key: bytes  # PEM
    expires: datetime


class Authority(Struct, frozen=True):
    """The right to sign: a signer with the chain from its certificate up to, but without, the tree CA."""

    signer: Signer
    chain: tuple[x509.Certificate, ...]
    lifetimes: Lifetimes = DEFAULT_LIFETIMES

    def issue(self, *, name: str, identity_request: bytes, issuing_request: bytes, home: str, now: datetime) -> Issued:
        """Certificates for one cluster. Without ``issuing_request``, or at the depth limit, it may not take children."""
        public = certificates.requested_key(identity_request)
        leaf = certificates.identity(self.signer, name, public, home, now=now, lifetime=self.lifetimes.identity)
        issuing: tuple[bytes, ...] = ()
        if issuing_request and self.signer.path_length > 0:
            own = certificates.requested_key(issuing_request)
            uid = keys.uid_of(public)
            if keys.spki(own) == keys.spki(public):
                raise Forbidden(f"{name} asks for an issuing certificate for its identity key; they must be two keys")
            issuing = self._ders(certificates.issuing(self.signer, name, uid, own, now=now, lifetime=self.lifetimes.issuing))
        return Issued(identity=self._ders(leaf), issuing=issuing)

    def user(self, name: str, grants: Sequence[Grant], now: datetime, lifetime: timedelta) -> UserCredential:
        key = keys.generate()
        credential = secrets.token_hex(8)
        certificate = certificates.user(self.signer, name, credential, grants, key.public_key(), now=now, lifetime=lifetime)
        chain = certificates.pem(certificate, *self.chain)
        return UserCredential(id=credential, certificate=chain, key=keys.to_pem(key), expires=now + lifetime)

    def _ders(self, leaf: x509.Certificate) -> tuple[bytes, ...]:
        return tuple(certificates.der(certificate) for certificate in (leaf, *self.chain))


def issuing_for_root(
    tree: Signer, name: str, uid: str, now: datetime, lifetimes: Lifetimes, *, cross: Sequence[x509.Certificate] = ()
) -> Authority:
    """A fresh issuing key and certificate for the root, under the tree CA; ``cross`` leads on to the CA that it had before."""
    key = keys.generate()
    certificate = certificates.issuing(tree, name, uid, key.public_key(), now=now, lifetime=lifetimes.issuing)
    return Authority(Signer(certificate, key), (certificate, *cross), lifetimes)
