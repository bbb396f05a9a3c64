"""How others may reach this machine."""

import contextlib
import socket

ANY_HOST = frozenset({"", "0.0.0.0", "::"})  # noqa: S104


def own_hosts() -> list[str]:
    """Names and addresses under which others may reach this machine: the address of the default route first, then the host's name."""
    hosts: list[str] = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1: picks a route, sends nothing
        hosts.append(str(probe.getsockname()[0]))
    hosts.append(socket.gethostname())
    return hosts
