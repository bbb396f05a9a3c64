"""Ports that the demo chooses itself, because a reader has to type them: the others are any free port."""

import contextlib
import socket
from collections.abc import Iterator

from cluster_controller.errors import InvalidInput

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
TRIES = 100


def free_port(preferred: int) -> int:
    """The first port from ``preferred`` on that nobody uses on the demo's loopback addresses."""
    for port in _free_ports(preferred):
        return port
    raise _all_in_use(preferred)


def claim_port(preferred: int) -> tuple[int, socket.socket]:
    """A free port that no other demo of this machine has chosen, though an application listens there only minutes later.

    The claim is an abstract Unix socket: closing it, or the death of the process, gives the port up and leaves no file behind.
    """
    for port in _free_ports(preferred):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0banyan-demo-{port}")
        except OSError:
            claim.close()
            continue
        return port, claim
    raise _all_in_use(preferred)


def _free_ports(preferred: int) -> Iterator[int]:
    for port in range(preferred, preferred + TRIES):
        with contextlib.ExitStack() as stack:
            try:
                for host in HOSTS:
                    stack.enter_context(socket.socket()).bind((host, port))
            except OSError:
                continue
        yield port


def _all_in_use(preferred: int) -> InvalidInput:
    return InvalidInput(f"the ports {preferred} to {preferred + TRIES - 1} are all in use on this machine; end what uses them", "port")
