"""Reaching a parent through an HTTP proxy: addresses, HTTPS_PROXY and NO_PROXY, and the CONNECT exchange (RFC 9110, 9.3.6).

Pure: what is read comes in as bytes, what must be sent goes out as bytes. A proxy's credentials stay in `Proxy` and in the
request; they are in no message and no representation.
"""

import base64
import ipaddress
import ssl
from collections.abc import Mapping
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from cluster_controller.errors import BanyanError, InvalidInput, ProtocolError, Unreachable
from cluster_controller.tunnel.messages import CloseCode
from cluster_controller.tunnel.tls import TlsPipe

DEFAULT_PORT = 10000  # of a controller's tunnel
MAX_HEAD = 16384  # bytes of a proxy's answer


class ProxyFailed(Unreachable):
    """It was the proxy that stood in the way, not what lies behind it."""


def ended(code: int, reason: str) -> BanyanError:
    """The error for a connection that ended with ``code`` before it was of use."""
    return ProxyFailed(reason) if code == CloseCode.PROXY else ProtocolError(reason, code)


class Address(Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Proxy(Struct, frozen=True):
    address: Address
    tls: bool  # the proxy itself is spoken to over TLS
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{'***@' if self.user else ''}{self.address}"

    __str__ = __repr__


def parse_address(text: str) -> Address:
    """``host``, ``host:port``, ``[::1]:port``, or the same behind ``wss://``."""
    split = _split(text if "//" in text else f"//{text}", "address", text)
    if split.scheme not in ("", "wss") or not split.hostname or split.username or split.path.strip("/"):
        raise InvalidInput(f"{text!r} is no address; write host:port, for instance parent.example:{DEFAULT_PORT}", "address")
    return Address(split.hostname, split.port if split.port is not None else DEFAULT_PORT)


def parse_proxy(text: str) -> Proxy:
    """``http://[user:password@]host[:port]`` or ``https://…``. The message of an error does not repeat what may hold a password."""
    split = _split(text if "//" in text else f"http://{text}", "proxy", "the proxy's URL")
    if split.scheme not in ("http", "https") or not split.hostname:
        raise InvalidInput("the proxy's URL is not understood; write http://host:port or https://user:password@host:port", "proxy")
    port = split.port if split.port is not None else (443 if split.scheme == "https" else 8080)
    return Proxy(Address(split.hostname, port), split.scheme == "https", unquote(split.username or ""), unquote(split.password or ""))


def proxy_for(address: Address, configured: str | None, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy to reach ``address`` by. ``configured``: a URL; "" for none at all; None to follow HTTPS_PROXY and NO_PROXY."""
    if configured is not None:
        return parse_proxy(configured) if configured else None
    url = environment.get("https_proxy") or environment.get("HTTPS_PROXY")
    if not url or _excepted(address, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return None
    return parse_proxy(url)


def _split(text: str, field: str, shown: str) -> SplitResult:
    try:
        split = urlsplit(text)
        _ = split.port  # raises when it is no number
    except ValueError:
        raise InvalidInput(f"{shown!r} is not understood; the port must be a number from 0 to 65535", field) from None
    return split


def _excepted(address: Address, rules: str) -> bool:
    for rule in (part.strip().lower() for part in rules.split(",")):
        if not rule:
            continue
        host, _, port = rule.rpartition(":") if rule.count(":") == 1 else (rule, "", "")
        if port and port != str(address.port):
            continue
        if rule == "*" or _matches(address.host.lower(), host):
            return True
    return False


def _matches(host: str, rule: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(rule.strip("[]"), strict=False)
    except ValueError:
        pass
    bare = rule.removeprefix("*").removeprefix(".")
    return host == bare or host.endswith("." + bare)


class Connect:
    """One CONNECT through ``proxy`` to ``target``."""

    def __init__(self, proxy: Proxy, target: Address, context: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._target = target
        self._context = context  # for the proxy's own TLS; None: the system's authorities
        self._head = bytearray()
        self.requested = False

    def pipe(self) -> TlsPipe | None:
        """TLS to the proxy itself, when its URL says https."""
        if not self._proxy.tls:
            return None
        context = self._context or ssl.create_default_context()
        return TlsPipe(context, server_side=False, server_hostname=self._proxy.address.host, fault=self._fault)

    def request(self) -> bytes:
        self.requested = True
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._proxy.user:
            credentials = base64.b64encode(f"{self._proxy.user}:{self._proxy.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {credentials}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def feed(self, data: bytes | memoryview) -> bytes | None:
        """None until the answer is whole; then what came after it. Raises `ProtocolError` (PROXY) when the proxy refuses."""
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            if len(self._head) > MAX_HEAD:
                raise self.failed(f"answers with more than {MAX_HEAD} bytes of headers")
            return None
        status = bytes(self._head[:end]).split(b"\r\n", 1)[0].decode("latin-1")
        parts = status.split(None, 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1."):
            raise self.failed(f"does not speak HTTP: {status[:80]!r}")
        if parts[1] == "407":
            raise self.failed("wants credentials; write them in its URL: http://user:password@host:port")
        if not (len(parts[1]) == 3 and parts[1].startswith("2")):
            raise self.failed(f"refuses to connect to {self._target}: {status[:80]}")
        return bytes(self._head[end + 4 :])

    def failed(self, what: str) -> ProtocolError:
        return ProtocolError(f"the proxy {self._proxy} {what}", CloseCode.PROXY)

    def _fault(self, error: ssl.SSLError) -> ProtocolError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return self.failed(f"shows a certificate that is not trusted here: {error.verify_message}")
        return self.failed(f"does not speak TLS ({(error.reason or str(error)).lower().replace('_', ' ')}); is its URL http:// perhaps?")
