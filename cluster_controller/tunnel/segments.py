"""How large a packet may be on the way to each address, where the way swallows large ones without a word.

A path MTU black hole (RFC 2923, section 2.1): somewhere a link takes smaller packets than TCP believes, and the router that drops the
others is not heard. TCP connects, for that takes small packets; then the certificates never arrive, on one way or on both. Linux
would find out by itself (RFC 4821), but only where the site's owner has set `net.ipv4.tcp_mtu_probing`. So who dials and is connected
and then hears nothing tries again with smaller segments; the size that is announced with the first packet binds both ends.

Pure: `now` is an argument. Who is merely frozen or slow looks the same, so full segments are tried again in between, and whoever
answers to small ones is tried with full ones again after a while: nothing is kept small for ever by one bad hour.
"""

from msgspec import Struct

FULL = 0  # whatever the kernel thinks
SMALL = 1200  # bytes: with its headers less than the least that IPv6 has any link take (1280)
SEQUENCE = (FULL, FULL, SMALL, FULL, 536)  # the last is what RFC 1122 has every host take
REPROBE = 600.0  # seconds for which a size that worked is kept (RFC 4821, section 7.7)
SILENCE = 1.0  # seconds: who was connected for less and heard nothing was not given the time
MOST = 64  # addresses that are remembered; the oldest is forgotten


class _Way(Struct):
    step: int = 0
    until: float = 0.0  # when a size that worked is forgotten; 0: none has


class Segments:
    def __init__(self) -> None:
        self._ways: dict[str, _Way] = {}

    def size(self, address: str, now: float) -> int:
        """The largest segment for the next connection to ``address``, in bytes; `FULL`: the kernel decides."""
        way = self._ways.get(address)
        if way is None:
            return FULL
        if way.until and now >= way.until:
            del self._ways[address]
            return FULL
        return SEQUENCE[way.step]

    def silent(self, address: str) -> None:
        """It was connected, and then nothing, or not enough, was heard in time."""
        way = self._ways.pop(address, None) or _Way(step=0)
        way.step, way.until = (way.step + 1) % len(SEQUENCE), 0.0
        self._ways[address] = way
        if len(self._ways) > MOST:
            del self._ways[next(iter(self._ways))]

    def answered(self, address: str, now: float) -> None:
        """A handshake went through: what was tried last is right."""
        way = self._ways.get(address)
        if way is None:
            return
        if SEQUENCE[way.step] == FULL:
            del self._ways[address]
        else:
            way.until = now + REPROBE


__all__ = ["FULL", "MOST", "REPROBE", "SEQUENCE", "SILENCE", "SMALL", "Segments"]
