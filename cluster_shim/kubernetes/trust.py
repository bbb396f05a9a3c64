"""By what pods know the controller that has their model files, and by what it knows them.

One CA and one key, made once and kept 0600 in DATA/kubernetes: a restarted controller is known by the same CA and takes the same tokens, so
nothing that runs has to change. A token says which Work it is for and proves it (HMAC-SHA256); it is worth no more than what `files` offers
to that Work. Certificates have no dates worth judging: a site's clock may be wrong for years.
"""

import hmac
import ipaddress
import os
import secrets
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster_controller import durable
from cluster_shim.contract import ShimError

CA_FILE = "files-ca.pem"
KEY_FILE = "files-ca.key"
TOKEN_KEY_FILE = "files-token.key"  # noqa: S105
FOR_EVER = timedelta(days=36500)
BEGAN = datetime(2020, 1, 1, tzinfo=UTC)
PURPOSE = b"banyan.files.v1/"
FILE_LIMIT = 64 * 1024


class Trust:
    """``folder`` is private to this controller; what is missing in it is made. ShimError names what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / CA_FILE).exists():  # written last: with it everything is there
            self._make()
        self.ca = self._read(CA_FILE).decode("ascii")
        self._token_key = self._read(TOKEN_KEY_FILE)
        try:
            self._certificate = x509.load_pem_x509_certificate(self.ca.encode())
            key = serialization.load_pem_private_key(self._read(KEY_FILE), None)
        except ValueError as error:
            raise ShimError(f"{folder}/{CA_FILE} or {KEY_FILE} cannot be read ({error}); remove both, and they are made anew") from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    def token(self, uid: str) -> str:
        """What opens the files of the Work ``uid``, and nothing else."""
        return f"{uid}.{self._mac(uid)}"

    def holder(self, token: str) -> str:
        """The uid of the Work that ``token`` is for; empty when it is no token of ours."""
        uid, _, mac = token.rpartition(".")
        return uid if uid and hmac.compare_digest(mac.encode(), self._mac(uid).encode()) else ""

    def context(self, host: str) -> ssl.SSLContext:
        """For a server that is known as ``host``, a name or an IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        name: x509.GeneralName
        try:
            name = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        certificate = (
            _builder("banyan model files", key.public_key())
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        _load(context, _pem(key), certificate.public_bytes(serialization.Encoding.PEM))
        return context

    def _mac(self, uid: str) -> str:
        return hmac.new(self._token_key, PURPOSE + uid.encode(), "sha256").hexdigest()

    def _make(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name("banyan model files CA")
        certificate = (
            _builder("banyan model files CA", key.public_key())
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(True, 0), critical=True)
            .add_extension(_may_sign(), critical=True)
            .sign(key, hashes.SHA256())
        )
        if not (self._folder / TOKEN_KEY_FILE).exists():  # a CA made anew is no reason for other tokens
            durable.write(self._folder / TOKEN_KEY_FILE, secrets.token_bytes(32))
        durable.write(self._folder / KEY_FILE, _pem(key))
        durable.write(self._folder / CA_FILE, certificate.public_bytes(serialization.Encoding.PEM))

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ShimError(f"{path}: {error.strerror}; restore it, or remove {CA_FILE} and it is made anew") from None
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ShimError(f"{path} is open to other users; run `chmod 600 {path}`")
            return file.read(FILE_LIMIT)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "banyan"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(common: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(BEGAN)
        .not_valid_after(BEGAN + FOR_EVER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _may_sign() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _load(context: ssl.SSLContext, key: bytes, certificate: bytes) -> None:
    """`ssl` takes keys from files only; this one is in memory."""
    descriptor = os.memfd_create("banyan-files", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(certificate + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
