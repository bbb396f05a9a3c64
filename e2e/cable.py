"""A long cable between two namespaces: what goes in comes out later, and what is too large vanishes without a word.

The kernels of our machines have no netem. So each end is a TUN device, and a thread of the test carries packets from one to the other
after their time. TUN devices know no offloading: each packet is as large as it would be on a wire.
"""

import fcntl
import heapq
import os
import select
import socket
import struct
import threading
import time

from e2e.netns import Namespace

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x1, 0x1000
LARGEST = 65535  # bytes of one packet
QUEUE = 4096  # packets on their way; what comes on top is lost, as on any wire


class Cable:
    """``delay`` (seconds, one way) and ``largest`` (bytes; larger packets vanish) may be changed at any time."""

    def __init__(self, upper: tuple[Namespace, str], lower: tuple[Namespace, str]) -> None:
        self.delay = 0.0
        self.largest = LARGEST
        self.vanished = 0
        """Packets that were too large."""
        self.payload = 0
        """Bytes of TCP payload that the upper end has sent, those that were sent again included."""
        self._ends = tuple(_tun(space, device) for space, device in (upper, lower))
        self._way: list[tuple[float, int, int, bytes]] = []  # due, number, end, packet
        self._count = 0
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._carry, name=f"cable {upper[1]}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join(10)
        for descriptor in (*self._ends, self._stop):
            os.close(descriptor)

    def _carry(self) -> None:
        other = dict(zip(self._ends, reversed(self._ends), strict=True))
        while True:
            now = time.monotonic()
            while self._way and self._way[0][0] <= now:
                _, _, end, packet = heapq.heappop(self._way)
                _put(end, packet)
            ready, _, _ = select.select([*self._ends, self._stop], [], [], self._way[0][0] - now if self._way else None)
            if self._stop in ready:
                return
            for end in ready:
                self._take(os.read(end, LARGEST), other[end])

    def _take(self, packet: bytes, end: int) -> None:
        if end == self._ends[1]:
            self.payload += _payload(packet)
        if len(packet) > self.largest:
            self.vanished += 1
        elif len(self._way) < QUEUE:
            self._count += 1
            heapq.heappush(self._way, (time.monotonic() + self.delay, self._count, end, packet))


def _tun(space: Namespace, device: str) -> int:
    """A device in the namespace; its descriptor."""
    with space.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", device.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _payload(packet: bytes) -> int:
    """Bytes that TCP carries in a packet (RFC 791, RFC 9293); 0 for any other packet."""
    header = (packet[0] & 0xF) * 4
    if packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return 0
    return len(packet) - header - (packet[header + 12] >> 4) * 4


def _put(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:  # the device is down: nobody is at that end
        return
