"""Certificates and kubeconfigs of one member: its own authority, made when it starts, gone with its folder; none is in the repository.

Elliptic keys, because a member needs nine of them and RSA would take longer than its API server.
"""

import base64
import datetime
import ipaddress
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
USAGES = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]


class Authority:
    """The certificate authority of one member; it lives in `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "banyan-testbed")])
        usage = x509.KeyUsage(True, False, True, False, False, True, True, False, False)
        own = (
            self._builder(self._name, 3650 * DAY, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(own.public_bytes(serialization.Encoding.PEM))
        self._write_key("ca.key", self._key)

    def issue(
        self, file: str, name: str, groups: Sequence[str] = (), hosts: Sequence[str] = (), valid: datetime.timedelta = 365 * DAY
    ) -> tuple[Path, Path]:
        """A certificate for a client (`groups`) or a server (`hosts`: names and addresses), and its key: FILE.crt, FILE.key.

        A negative `valid` makes one that has expired that long ago.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, name))
        builder = self._builder(x509.Name(subject), valid, key.public_key())
        builder = builder.add_extension(x509.ExtendedKeyUsage(USAGES), critical=False)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        path = self.folder / f"{file}.crt"
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path, self._write_key(f"{file}.key", key)

    def service_account_keys(self) -> tuple[Path, Path]:
        """Public and private key with which the API server signs tokens of service accounts."""
        key = ec.generate_private_key(ec.SECP256R1())
        public = self.folder / "service-accounts.pub"
        public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        return public, self._write_key("service-accounts.key", key)

    def _builder(self, subject: x509.Name, valid: datetime.timedelta, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + min(valid, datetime.timedelta()) - DAY)
            .not_valid_after(now + valid)
        )

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey) -> Path:
        path = self.folder / name
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
        return path


def write_kubeconfig(path: Path, url: str, authority: Path, certificate: Path, key: Path, name: str = "testbed") -> Path:
    """A kubeconfig with everything in it, readable by its owner alone. JSON, which is YAML."""

    def data(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    user = {"client-certificate-data": data(certificate), "client-key-data": data(key)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": url, "certificate-authority-data": data(authority)}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
    return path


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
