"""What a site may say about how its Kubernetes is used, and what makes no sense of it. Pure.

Judged before a controller joins, so that no token is spent on settings with which it would never run.
"""

import re

from msgspec import Struct

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.render import Settings

PULL_POLICIES = ("Always", "IfNotPresent", "Never")
SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
MAX_PORT = 65535

_PORT = re.compile(r"[0-9]{1,5}")
_HTTPS = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})/?")


class Address(Struct, frozen=True):
    """Where pods find the files of models."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def check(settings: Settings) -> None:
    """ShimError names the first setting that cannot be, and what it may be."""
    for name, value, known in (
        ("pull_policy", settings.pull_policy, PULL_POLICIES),
        ("service_type", settings.service_type, SERVICE_TYPES),
    ):
        if value not in known:
            raise ShimError(f"kubernetes.{name} {value!r}: it is {', '.join(known[:-1])} or {known[-1]}")
    render.cache_volume(settings.cache)
    files_address(settings)
    files_listen(settings)


def files_address(settings: Settings) -> Address | None:
    """What `files_url` says; None when nothing is said."""
    if not settings.files_url:
        return None
    found = _HTTPS.fullmatch(settings.files_url)
    if found is None or int(found[2]) > MAX_PORT:
        raise ShimError(f"kubernetes.files_url {settings.files_url!r} is not https://HOST:PORT")
    return Address(found[1].strip("[]"), int(found[2]))


def files_listen(settings: Settings) -> tuple[str, int] | None:
    """Host and port of `files_listen`; None when nothing is said."""
    if not settings.files_listen:
        return None
    host, _, port = settings.files_listen.rpartition(":")
    if _PORT.fullmatch(port) is None or int(port) > MAX_PORT:
        raise ShimError(f"kubernetes.files_listen {settings.files_listen!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
