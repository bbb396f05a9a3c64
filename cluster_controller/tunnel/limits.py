"""Every bound of the tunnel in one place, with what happens when it is reached."""

from msgspec import Struct


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds of one controller's tunnel. Sizes in bytes, times in seconds."""

    heartbeat: float = 5.0  # a link that sent nothing for so long sends a heartbeat
    dead_after: float = 15.0  # a link from which nothing came for so long is closed (SILENT)
    handshake_time: float = 10.0  # from accepted or dialled to Welcome, however the bytes trickle; then closed (HANDSHAKE_TIMEOUT)
    close_time: float = 1.0  # how long a closing link waits for the other side's close
    message_time: float = 60.0  # a WebSocket message that is not whole after so long closes the link (PROTOCOL)
    max_pending: int = 1024  # connections in handshake; a newer one takes the place of the oldest without a certificate
    max_links: int = 4096  # established links; a further child is refused (BUSY) with a time to try again
    joins_per_second: float = 20.0  # Join requests; above it they are refused (BUSY) with a time to try again
    max_streams: int = 1024  # per link that the peer may have open; a further OPEN is reset (EXHAUSTED)
    initial_window: int = 65536  # of frames that a new stream may receive; reserved from link_budget at OPEN
    max_window: int = 2 * 1024 * 1024  # to which a stream's window may grow while it is the bottleneck
    link_budget: int = 64 * 1024 * 1024  # sum of all receive windows of one link; an OPEN above it is refused (EXHAUSTED)
    max_control: int = 4 * 1024 * 1024  # one control message; a larger one closes the link (TOO_BIG)
    control_queue: int = 16 * 1024 * 1024  # of control frames that wait for a peer that does not read; then closed (OVERLOADED)
    max_hops: int = 16  # that one stream may take; above it OPEN is reset (LOOP)
    send_buffer: int = 65536  # of frames that a stream holds for a writer before `write` waits
    receive_buffer: int = 512 * 1024  # SO_RCVBUF of a link's socket
    not_sent_low_water: int = 16 * 1024  # TCP_NOTSENT_LOWAT of a link's socket
    backoff_first: float = 0.25  # the first reconnect waits a random part of this, doubled at each failure
    backoff_cap: float = 10.0
    connect_time: float = 10.0  # for TCP and a proxy's CONNECT
