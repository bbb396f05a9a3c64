"""Tell the service manager how this process is: sd_notify(3) in a few lines, for `Type=notify` units.

Where nobody asked (no NOTIFY_SOCKET), nothing is said; what cannot be delivered costs nothing but the message.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

READY = "READY=1"
STOPPING = "STOPPING=1"
RELOADING = "RELOADING=1"  # it begins anew in the same process, and says READY again


def tell(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """One datagram to the socket that the service manager named: a path, or an abstract name after an ``@``."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)  # a service manager that does not read must not stop a controller
        sock.connect(f"\0{address[1:]}" if address[0] == "@" else address)
        sock.send(state.encode())
