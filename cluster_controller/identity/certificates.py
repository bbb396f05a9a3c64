"""The certificates of a tree: what each kind looks like, and what a peer's chain says.

    tree CA ─ root's issuing ─ region's issuing ─ … ─┬─ identity of a cluster (TLS on the tunnel, both roles)
                                                     ├─ certificate of a person (TLS client on the API)
                                                     └─ site CA, cross-signed ─┬─ API server certificate
       site CA (self-signed, for ever) ────────────────────────────────────────┴─ loopback admin of that site

A URI in the subject alternative names says what a certificate is for; one made for a person never passes for a cluster.
Nothing here judges dates: parsing a chain tells them, the issuer decides (ARCHITECTURE law 4). Chains are checked for names,
signatures, authority bits and path lengths, as RFC 5280 section 6.1 asks, without its dates.
"""

import hashlib
import ipaddress
import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import keys
from cluster_controller.identity.users import Grant

MAX_PATH_LENGTH = 8
"""Issuing certificates between the tree CA and a leaf: a tree is at most this deep."""
MAX_CHAIN = MAX_PATH_LENGTH + 3
MAX_CERTIFICATE_BYTES = 8 * 1024
BACKDATE = timedelta(hours=1)
"""Certificates begin a little before they were made, for verifiers that do look at dates and whose clock is slow."""
FOR_EVER = timedelta(days=30 * 365)
SCHEME = "banyan:"
GRANTS_OID = x509.ObjectIdentifier("1.3.6.1.4.1.58888.1.1")


class Role(StrEnum):
    """What a certificate is for; the second part of its ``banyan:ROLE:ID`` URI."""

    CLUSTER = "cluster"
    ISSUER = "issuer"
    SITE = "site"
    USER = "user"
    ADMIN = "admin"
    API = "api"


class PeerCertificate(Struct, frozen=True, kw_only=True):
    """What a cluster's chain says about it. Chain, key and tree are verified; dates are told, not judged."""

    uid: str
    name: str
    not_before: datetime
    not_after: datetime
    serial: str
    issuer: str  # uid of the cluster that issued it
    issuers: tuple[str, ...]  # uids of all issuers, nearest first; the root's uid comes last
    home: str  # uid of the parent that it joined; renewals by others keep it; "" for a root
    chain: tuple[bytes, ...]  # DER, leaf first
    spki: bytes


class UserCertificate(Struct, frozen=True, kw_only=True):
    """What a person's chain says. ``grants`` are the issuer's word, binding only below the issuer."""

    name: str
    id: str  # credential id, what a revocation names
    grants: tuple[Grant, ...]
    admin: bool  # the loopback admin credential of a site
    issuer: str
    issuers: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def digest(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate in DER, in hex: what a join token pins."""
    return hashlib.sha256(der(certificate)).hexdigest()


def parse(data: bytes) -> x509.Certificate:
    """One certificate in DER; InvalidInput when it is none, or larger than any of ours."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise InvalidInput(f"a certificate of {len(data)} bytes; none of a banyan tree is larger than {MAX_CERTIFICATE_BYTES}")
    try:
        return x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise InvalidInput("not an X.509 certificate") from error


def parse_pem(data: bytes, where: str) -> list[x509.Certificate]:
    """The certificates in a PEM text, in their order."""
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InvalidInput(f"{where} holds no readable certificates; restore it from a backup, or join this site again") from error


# --- making certificates ---


def _name(unit: str, common_name: str, serial: str = "") -> x509.Name:
    parts = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "banyan"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
    ]
    if serial:
        parts.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial))
    return x509.Name(parts)


def _builder(subject: x509.Name, public: keys.PublicKey, now: datetime, lifetime: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(True, path_length), critical=True).add_extension(
        _key_usage(authority=True), critical=True
    )


def _end_entity(builder: x509.CertificateBuilder, *purposes: x509.ObjectIdentifier) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    )


def _names(builder: x509.CertificateBuilder, *names: x509.GeneralName) -> x509.CertificateBuilder:
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False)


def uri(role: Role, identifier: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(f"{SCHEME}{role}:{identifier}")


class Signer(Struct, frozen=True):
    """A certificate that may sign others, with its key."""

    certificate: x509.Certificate
    key: keys.PrivateKey

    @property
    def path_length(self) -> int:
        return path_length(self.certificate)

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            builder.issuer_name(self.certificate.subject)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def _self_signed(unit: str, name: str, uid: str, key: keys.PrivateKey, *, now: datetime, path: int, role: Role | None) -> Signer:
    subject = _name(unit, name, uid)
    builder = _authority(_builder(subject, key.public_key(), now, FOR_EVER), path).issuer_name(subject)
    if role is not None:
        builder = _names(builder, uri(role, uid))
    return Signer(builder.sign(key, hashes.SHA256()), key)


def tree_ca(name: str, key: keys.PrivateKey, now: datetime) -> Signer:
    return _self_signed("tree", name, keys.uid_of(key.public_key()), key, now=now, path=MAX_PATH_LENGTH + 1, role=None)


def cross_signed_tree(by: Signer, fresh: x509.Certificate, now: datetime) -> x509.Certificate:
    """The key of a tree's new CA under its present one: while both count, whoever knows only the present one finds its way with it.

    One authority more stands in the way then, so a tree that is as deep as it may be is too deep for the time being.
    """
    return by.sign(_authority(_builder(fresh.subject, _public(fresh), now, FOR_EVER), MAX_PATH_LENGTH))


def site_ca(name: str, uid: str, key: keys.PrivateKey, now: datetime) -> Signer:
    """The site's own CA, which outlives every parent: it signs this controller's API certificate and its loopback admin."""
    return _self_signed("site", name, uid, key, now=now, path=0, role=Role.SITE)


def issuing(by: Signer, name: str, uid: str, public: keys.PublicKey, *, now: datetime, lifetime: timedelta) -> x509.Certificate:
    """An issuing certificate for ``uid``, one step shorter than its signer's; InvalidInput at the tree's depth limit."""
    if by.path_length < 1:
        raise InvalidInput(f"{name} would be deeper than {MAX_PATH_LENGTH} levels below the root; it may join, but not take children")
    builder = _builder(_name("issuing", name, uid), public, now, lifetime)
    return by.sign(_names(_authority(builder, by.path_length - 1), uri(Role.ISSUER, uid)))


def cross_signed_site(by: Signer, site: x509.Certificate, *, now: datetime, lifetime: timedelta) -> x509.Certificate:
    """The site CA under the tree CA, so that whoever trusts either accepts this site's API. ``by`` needs a path of 1."""
    public = _public(site)
    names = site.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    builder = _authority(_builder(site.subject, public, now, lifetime), 0)
    return by.sign(builder.add_extension(names, critical=False))


def identity(by: Signer, name: str, public: keys.PublicKey, home: str, *, now: datetime, lifetime: timedelta) -> x509.Certificate:
    """A cluster's certificate; its uid follows from the key, whatever anybody asks for."""
    uid = keys.uid_of(public)
    builder = _end_entity(
        _builder(_name("cluster", name, uid), public, now, lifetime), ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    )
    names: list[x509.GeneralName] = [uri(Role.CLUSTER, uid)]
    if home:
        names.append(x509.UniformResourceIdentifier(f"{SCHEME}home:{home}"))
    return by.sign(_names(builder, *names))


def user(
    by: Signer, name: str, credential: str, grants: Sequence[Grant], public: keys.PublicKey, *, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    builder = _end_entity(_builder(_name("user", name, credential), public, now, lifetime), ExtendedKeyUsageOID.CLIENT_AUTH)
    value = x509.UnrecognizedExtension(GRANTS_OID, msgspec.json.encode(list(grants)))
    return by.sign(_names(builder.add_extension(value, critical=False), uri(Role.USER, credential)))


def admin(by: Signer, uid: str, public: keys.PublicKey, now: datetime) -> x509.Certificate:
    """The loopback admin of the site ``uid``: as long-lived as the site CA, good only on the machine itself."""
    builder = _end_entity(_builder(_name("admin", "admin", uid), public, now, FOR_EVER), ExtendedKeyUsageOID.CLIENT_AUTH)
    return by.sign(_names(builder, uri(Role.ADMIN, uid)))


def api_server(
    by: Signer, name: str, hosts: Sequence[str], public: keys.PublicKey, *, now: datetime, lifetime: timedelta
) -> x509.Certificate:
    """A server certificate for ``hosts`` (DNS names and IP addresses), as Go and browsers want it."""
    builder = _end_entity(_builder(_name("api", name), public, now, lifetime), ExtendedKeyUsageOID.SERVER_AUTH)
    return by.sign(_names(builder, *dict.fromkeys(_host(host) for host in hosts)))


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except UnicodeError as error:
        raise InvalidInput(f"{host!r} is neither a host name nor an IP address", "api_advertise") from error


def request(key: keys.PrivateKey) -> bytes:
    """A certificate request (DER) that proves possession of ``key`` and asks for nothing: names are the issuer's to give."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def requested_key(data: bytes) -> keys.PublicKey:
    """The key that a request proves possession of; InvalidInput when it does not, or is no P-256 key."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise InvalidInput(f"a certificate request of {len(data)} bytes; the limit is {MAX_CERTIFICATE_BYTES}")
    try:
        parsed = x509.load_der_x509_csr(data)
        public = parsed.public_key()
        valid = parsed.is_signature_valid
    except (ValueError, InvalidSignature) as error:
        raise InvalidInput("not a certificate request") from error
    if not valid:
        raise InvalidInput("the certificate request is not signed by its own key")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise InvalidInput("the certificate request holds a key of another kind than ECDSA P-256")
    return public


# --- reading certificates ---


def _public(certificate: x509.Certificate) -> keys.PublicKey:
    try:
        public = certificate.public_key()
    except ValueError as error:
        raise InvalidInput("a certificate with an unreadable key") from error
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise InvalidInput("a certificate with a key of another kind than ECDSA P-256")
    return public


def roles(certificate: x509.Certificate) -> dict[str, str]:
    """The ``banyan:ROLE:ID`` URIs of a certificate as a mapping role → id."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return {}
    found: dict[str, str] = {}
    for text in names.get_values_for_type(x509.UniformResourceIdentifier):
        scheme, _, rest = text.partition(":")
        role, separator, identifier = rest.partition(":")
        if f"{scheme}:" == SCHEME and separator:
            found[role] = identifier
    return found


def path_length(certificate: x509.Certificate) -> int:
    """How many authorities may follow below; -1 for a certificate that may sign none."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return -1
    if not constraints.ca or not usage.key_cert_sign or constraints.path_length is None:
        return -1
    return constraints.path_length


def common_name(certificate: x509.Certificate) -> str:
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def verify_chain(chain: Sequence[x509.Certificate], anchor: x509.Certificate) -> None:
    """``chain`` (leaf first, with or without ``anchor`` at its end) leads to ``anchor``; dates are not looked at.

    InvalidInput says which link of the chain fails.
    """
    _path(chain, anchor)


def _path(chain: Sequence[x509.Certificate], anchor: x509.Certificate) -> list[x509.Certificate]:
    """The verified way from the leaf to ``anchor``, which comes last. What stands behind the anchor's key in ``chain`` is left out:
    it leads on to the key that the tree had before."""
    links = list(chain)
    if not links:
        raise InvalidInput("an empty certificate chain")
    if len(links) > MAX_CHAIN + 1:
        raise InvalidInput(f"a chain of {len(links)} certificates; no tree is deeper than {MAX_CHAIN}")
    reached = next((place for place, one in enumerate(links) if place and _same_authority(one, anchor)), len(links))
    links[reached:] = [anchor]
    for below, (child, parent) in enumerate(itertools.pairwise(links)):
        # `below` authorities stand between `parent` and the leaf.
        if path_length(parent) < below:
            raise InvalidInput(f"the certificate of {common_name(parent)!r} may not sign for {common_name(child)!r}")
        try:
            child.verify_directly_issued_by(parent)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InvalidInput(f"the certificate of {common_name(child)!r} was not signed by {common_name(parent)!r}") from error
    return links


def _same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.subject == other.subject and one.public_key() == other.public_key()


def anchored(der_chain: Sequence[bytes], anchors: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    """``der_chain`` verified in the order in which it was shown, with the anchor that it leads to at its end.

    TLS finds a way through what a peer shows in any order, unrelated certificates included; what is *read* from a chain must be
    the way that was verified. InvalidInput when it leads to none of ``anchors``.
    """
    chain = [parse(data) for data in der_chain[: MAX_CHAIN + 2]]
    problem: InvalidInput | None = None
    for anchor in anchors:
        try:
            return tuple(der(one) for one in _path(chain, anchor))
        except InvalidInput as error:
            problem = error
    raise problem or InvalidInput("no authority to verify a certificate against")


def _issuers(chain: Sequence[x509.Certificate]) -> tuple[str, ...]:
    named = (roles(certificate) for certificate in chain[1:])
    return tuple(role.get(Role.ISSUER) or role.get(Role.SITE, "") for role in named if Role.ISSUER in role or Role.SITE in role)


def peer_identity(der_chain: Sequence[bytes]) -> PeerCertificate:
    """What a chain that TLS (or `verify_chain`) has verified says about a cluster; InvalidInput when it is no cluster's.

    The uid is computed from the key, and the certificate must agree.
    """
    if not der_chain or len(der_chain) > MAX_CHAIN + 2:
        raise InvalidInput(f"a chain of {len(der_chain)} certificates")
    chain = [parse(data) for data in der_chain]
    leaf = chain[0]
    named = roles(leaf)
    public = _public(leaf)
    uid = keys.uid_of(public)
    if named.get(Role.CLUSTER) != uid:
        raise InvalidInput(f"the certificate of {common_name(leaf)!r} is not that of a cluster")
    issuers = _issuers(chain)
    if not issuers:
        raise InvalidInput(f"the certificate of {common_name(leaf)!r} names no issuing cluster")
    return PeerCertificate(
        uid=uid,
        name=common_name(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        serial=f"{leaf.serial_number:x}",
        issuer=issuers[0],
        issuers=issuers,
        home=named.get("home", ""),
        chain=tuple(der_chain),
        spki=keys.spki(public),
    )


def user_identity(der_chain: Sequence[bytes]) -> UserCertificate:
    """What a chain that TLS has verified says about a person; InvalidInput when it is no person's."""
    if not der_chain or len(der_chain) > MAX_CHAIN + 2:
        raise InvalidInput(f"a chain of {len(der_chain)} certificates")
    chain = [parse(data) for data in der_chain]
    leaf, named = chain[0], roles(chain[0])
    issuers = _issuers(chain)
    if not issuers or (Role.USER not in named and Role.ADMIN not in named):
        raise InvalidInput(f"the certificate of {common_name(leaf)!r} is not that of a user")
    return UserCertificate(
        name=common_name(leaf),
        id=named.get(Role.USER, ""),
        grants=_grants(leaf),
        admin=Role.ADMIN in named,
        issuer=issuers[0],
        issuers=issuers,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def _grants(certificate: x509.Certificate) -> tuple[Grant, ...]:
    try:
        value = certificate.extensions.get_extension_for_oid(GRANTS_OID).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    if not isinstance(value, x509.UnrecognizedExtension):
        return ()
    try:
        return msgspec.json.decode(value.value, type=tuple[Grant, ...])
    except msgspec.DecodeError as error:
        raise InvalidInput("the certificate holds grants that this version cannot read") from error
