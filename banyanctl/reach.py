"""By which address somebody elsewhere reaches the controller that is asked here: what goes into a kubeconfig that is handed over.

A controller's own admin.kubeconfig names a loopback address, and beside it what `api_advertise` says. An address that is given must
be one that the controller's certificate is good for, or the kubeconfig would be refused by whoever gets it.
"""

import ipaddress
from urllib.parse import urlsplit

from msgspec import structs

from banyanctl.client import Client
from banyanctl.credential import Endpoint, url
from cluster_controller.errors import InvalidInput

OPTION = "--server"
LOOPBACK_NOTE = (
    "the kubeconfig names {server}, which is this machine alone: for somebody elsewhere let the API listen there (api_listen), name it"
    " (api_advertise), or say --server https://HOST:PORT"
)


def elsewhere(client: Client, server: str) -> Endpoint:
    """The client's endpoint under ``server``, or, where that is empty, under the address that the controller advertises, if any.

    InvalidInput when ``server`` is no https URL, or the certificate does not name its host.
    """
    wanted = checked(server) if server else client.endpoint.advertised
    if not wanted:
        return client.endpoint
    host = urlsplit(wanted).hostname or ""
    names = client.certificate_names()
    if not any(_names(name, host) for name in names):
        raise InvalidInput(
            f"{OPTION} {wanted}: the controller's certificate is good for {', '.join(names)}, not for {host};"
            f' add it to its settings (api_advertise = ["{host}"] in banyan.toml) and restart it',
            OPTION,
        )
    return structs.replace(client.endpoint, server=wanted + client.endpoint.path, tls_server_name="", advertised="")


def checked(server: str) -> str:
    """``https://HOST[:PORT]``, or HOST:PORT without the scheme; InvalidInput for anything else."""
    text = server if "://" in server else f"https://{server}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "https" or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise InvalidInput(f"{OPTION}: {server!r} is not https://HOST:PORT", OPTION)
    return url(host, port)


def is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names(name: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(host)
    except ValueError:
        wanted, given = name.lower().rstrip("."), host.lower().rstrip(".")
        return wanted == given or (wanted.startswith("*.") and given.partition(".")[2] == wanted[2:])
