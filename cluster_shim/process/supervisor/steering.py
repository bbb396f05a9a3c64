"""Which of several revisions gets the connections to a site port.

Each revision of a component has a listening socket of its own on the same port (SO_REUSEPORT), shared by its instances. A classic
BPF program, attached to the group of sockets, names the socket for each new connection: by weight among the revisions that are
ready, so one on trial gets none; and by the client's address for whoever must reach one revision in person (a readiness probe).
The kernel runs it: nothing of ours stands between a client and an instance, and it goes on when the supervisor is dead.

The program knows sockets by their place in the group. The kernel appends a socket that begins to listen, and fills the place of one
that is closed with the last; `closed` repeats that. A place that does not exist counts as no answer, and the kernel spreads evenly:
so one socket alone is always found. Where the kernel or the address family cannot do this, all revisions share one socket.
"""

from __future__ import annotations

import ctypes
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    T = TypeVar("T")

_SO_ATTACH_REUSEPORT_CBPF = 51
_LOAD_WORD, _LOAD_BYTE, _AND, _MODULO = 0x20, 0x30, 0x54, 0x94  # linux/bpf_common.h: ld abs, ldb abs, and k, mod k
_EQUAL, _AT_LEAST, _RETURN = 0x15, 0x35, 0x06
_NETWORK_HEADER = 0xFFF0_0000  # SKF_NET_OFF
_RANDOM = 0xFFFF_F000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
_SOURCE = 0x7F42_0000  # 127.66.0.0
MAX_SLOT = 250
_UNACCEPTED = 24  # offset of tcpi_unacked in struct tcp_info: of a listening socket, how many wait to be accepted


def works() -> bool:
    """Whether this kernel takes such a program: tried on a socket of its own, before anything depends on it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            attach(sock, program([1, 2], [1, 1]))
        except OSError:
            return False
    return True


def source(slot: int) -> str:
    """Who connects from this address of the loopback network reaches the socket of this slot."""
    return f"127.66.0.{slot}"


def program(slots: Sequence[int], weights: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Instructions (code, jump if true, jump if false, operand) for sockets in the order of their places. Without any weight the
    first one gets everything."""
    asked = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12)]
    for place, slot in enumerate(slots):
        asked += [(_EQUAL, 0, 1, _SOURCE + slot), (_RETURN, 0, 0, place)]
    # Only what is IPv4 has a client address there; the jump's distance is one byte wide, hence MAX_SLOT's little group.
    code = [(_LOAD_BYTE, 0, 0, _NETWORK_HEADER), (_AND, 0, 0, 0xF0), (_EQUAL, 0, len(asked), 0x40), *asked]
    shares = [(place, weight) for place, weight in enumerate(weights) if weight > 0]
    if not shares:
        return [*code, (_RETURN, 0, 0, 0)]
    if len(shares) > 1:
        code += [(_LOAD_WORD, 0, 0, _RANDOM), (_MODULO, 0, 0, sum(weight for _, weight in shares))]
    below = 0
    for place, weight in shares[:-1]:
        below += weight
        code += [(_AT_LEAST, 1, 0, below), (_RETURN, 0, 0, place)]
    return [*code, (_RETURN, 0, 0, shares[-1][0])]


def attach(sock: socket.socket, instructions: Sequence[tuple[int, int, int, int]]) -> None:
    """To the whole group that ``sock`` is in. Raises OSError where the kernel cannot."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(instructions), ctypes.addressof(code)))


def closed(group: list[T], gone: T) -> None:
    """Repeat what the kernel does to a group when one of its sockets is closed for good."""
    place = group.index(gone)
    last = group.pop()
    if place < len(group):
        group[place] = last


def unaccepted(sock: socket.socket) -> int:
    """Connections that wait in the queue of a listening socket."""
    found: int = struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), _UNACCEPTED)[0]
    return found
