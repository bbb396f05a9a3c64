"""TLS as a sans-IO pipe: ciphertext in, plaintext out, and back.

The event loops' own TLS transports buffer up to 64 KiB of ciphertext of their own below the application and hold a 256 KiB read
buffer per connection. Lanes need to know when the kernel has taken everything and edges need the memory, so the link
runs TLS itself over a plain TCP transport. It also makes TLS inside a proxy's TLS an ordinary case.
"""

import contextlib
import ssl
from collections.abc import Callable

from cluster_controller.errors import ProtocolError
from cluster_controller.identity import contexts

READ_SIZE = 262144


class TlsPipe:
    """One TLS connection. After `feed` and `write`, what `ciphertext` returns must be sent."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        fault: Callable[[ssl.SSLError], ProtocolError] | None = None,  # what a failure means, when the peer is no controller
    ) -> None:
        self._fault = fault or _of_a_controller
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname)
        self.ready = False  # the handshake is through on this side
        self.ended = False  # the other side said that it sends no more
        self.failed = False  # nothing can be said any more but the alert that `ciphertext` still holds
        if not server_side:
            self._handshake()

    def feed(self, data: bytes | memoryview) -> bytes:
        """Plaintext that ``data`` completes, possibly none. Raises `ProtocolError` when the peer is not acceptable."""
        self._incoming.write(data)
        if not self.ready:
            self._handshake()
            if not self.ready:
                return b""
        parts: list[bytes] = []
        read = self._object.read
        try:
            while True:
                part = read(READ_SIZE)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.failed = True
            raise self._fault(error) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt. Memory BIOs take everything at once."""
        if not self.ended and not self.failed:
            self._object.write(data)

    def ciphertext(self) -> bytes:
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> None:
        """Say that this side sends no more; the answer is not waited for."""
        with contextlib.suppress(ssl.SSLError):  # the peer's own close_notify has not come yet, or the handshake never ended
            self._object.unwrap()

    def verified_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates (DER), leaf first, as verified against the tree; empty when it showed none."""
        return contexts.verified_chain(self._object)

    def presented_chain(self) -> tuple[bytes, ...]:
        """The peer's certificates as it sent them: for a joining site, which knows the tree by a digest only."""
        return contexts.presented_chain(self._object)

    def _handshake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self.failed = True
            raise self._fault(error) from None
        self.ready = True


def _of_a_controller(error: ssl.SSLError) -> ProtocolError:
    return ProtocolError(_readable(error))


def _readable(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not of this tree: {error.verify_message}"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if reason in ("wrong version number", "http request", "unknown protocol", "record layer failure"):
        return f"the peer does not speak TLS ({reason}); this port serves Banyan tunnels only"
    return f"TLS failed: {reason}"
