"""An address and a credential, and the kubeconfig document that carries both. Nothing heavier than base64 is loaded here."""

import base64
import json
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

ADVERTISED = "banyan.dev/advertised"  # a kubeconfig extension; kubectl passes over it


class Endpoint(Struct, frozen=True):
    """Certificates and keys are PEM."""

    server: str  # https://HOST:PORT[/PATH]
    ca: str = ""
    certificate: str = ""
    key: str = ""
    token: str = ""
    namespace: str = "default"
    tls_server_name: str = ""
    advertised: str = ""  # https://HOST:PORT under which others reach the same controller; only a site's own admin.kubeconfig says it
    source: str = ""  # the file it was read from, for error messages

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.server)
        return parts.hostname or "", parts.port or 443

    @property
    def path(self) -> str:
        return urlsplit(self.server).path.rstrip("/")


def document(endpoint: Endpoint, name: str, user: str) -> dict[str, Any]:
    """The kubeconfig for an endpoint, with its credential inside."""

    def data(pem: str) -> str:
        return base64.b64encode(pem.encode()).decode()

    cluster: dict[str, Any] = {"server": endpoint.server}
    if endpoint.ca:
        cluster["certificate-authority-data"] = data(endpoint.ca)
    if endpoint.tls_server_name:
        cluster["tls-server-name"] = endpoint.tls_server_name
    if endpoint.advertised:
        cluster["extensions"] = [{"name": ADVERTISED, "extension": {"server": endpoint.advertised}}]
    credential = {"token": endpoint.token} if endpoint.token else {}
    if endpoint.certificate:
        credential |= {"client-certificate-data": data(endpoint.certificate), "client-key-data": data(endpoint.key)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": credential}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user, "namespace": endpoint.namespace}}],
        "current-context": name,
    }


def as_json(endpoint: Endpoint, name: str, user: str) -> bytes:
    """The same as text that every YAML reader takes, without a YAML writer."""
    return json.dumps(document(endpoint, name, user), indent=1).encode() + b"\n"


LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (an address to dial, for one that listens on all)


def url(host: str, port: int) -> str:
    """Where a listener on ``host`` is dialled from the same machine."""
    dialled = LOOPBACK.get(host, host)
    return f"https://[{dialled}]:{port}" if ":" in dialled else f"https://{dialled}:{port}"
