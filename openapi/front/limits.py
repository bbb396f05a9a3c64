"""Every bound of the front, with what happens when it is reached."""

from msgspec import Struct


class FrontLimits(Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds."""

    head_bytes: int = 65536  # a longer head: 431, closed
    line_bytes: int = 16384  # a longer request line: 414, closed
    headers: int = 128  # more header lines: 431, closed
    connections: int = 4096  # more: the connection idle for longest is closed, else the new one
    handshakes: int = 512  # connections in TLS at once; more: the oldest is dropped
    handshake_seconds: float = 10.0  # then dropped
    head_seconds: float = 10.0  # from a head's first byte (or the connection's start) to its end: 408, closed
    idle_seconds: float = 120.0  # between two requests: closed
    body_idle_seconds: float = 60.0  # no byte of a body that is waited for: the request fails, closed
    write_stall_seconds: float = 120.0  # a client that takes nothing of a response: aborted
    drain_bytes: int = 262144  # of an unwanted body that are read so that the connection can live on, or the answer be read
    drain_seconds: float = 2.0
    read_buffer: int = 131072  # per connection; then the socket is not read
