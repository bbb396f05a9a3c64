"""Parse the head of one HTTP/1 message, once and strictly, and decide how its body is framed.

Pure: bytes in, a `RequestHead` or `ResponseHead` out. llhttp (httptools) reads the grammar; everything that request smuggling
lives on is decided here, in one place, and refused rather than repaired: two ways to find the body's end, two lengths, two
hosts, folded or bare-LF lines, a transfer coding other than ``chunked``. So what the front forwards means the same to it and
to whatever stands behind it.

Source: RFC 9112, sections 2.2, 3.2, 5.2, 6.1 and 6.3.
"""

import re
from typing import Any

import httptools
from msgspec import Struct

HEAD_END = b"\r\n\r\n"
CHUNKED = -1  # RequestHead.length: the body comes in chunks
UNTIL_CLOSE = -2  # ResponseHead.length: the body ends with the connection

_BARE_LF = re.compile(rb"(?<!\r)\n")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_TOKEN_SPLIT = re.compile(rb"[ \t]*,[ \t]*")
_NO_BODY = frozenset({204, 304})

Headers = tuple[tuple[bytes, bytes], ...]


class HeadError(Exception):
    """The head cannot be accepted. ``status`` is the HTTP status to answer with; the message says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(Struct, frozen=True, kw_only=True):
    """A request's head. Header names are lower case; values and the target are the sender's bytes."""

    method: str
    path: bytes  # raw: percent-encoding untouched, begins with "/"
    query: bytes
    version: str  # "1.0" or "1.1"
    headers: Headers
    length: int  # of the body in bytes, or CHUNKED
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes  # the protocol asked for, lower case; b"" when the connection is not to be upgraded

    def get(self, name: bytes) -> bytes:
        """The first value of header ``name`` (lower case), b"" when there is none."""
        return _first(self.headers, name)

    @property
    def target(self) -> bytes:
        return self.path + b"?" + self.query if self.query else self.path


class ResponseHead(Struct, frozen=True, kw_only=True):
    status: int
    reason: bytes
    version: str
    headers: Headers
    length: int  # of the body in bytes, CHUNKED or UNTIL_CLOSE
    keep_alive: bool

    def get(self, name: bytes) -> bytes:
        return _first(self.headers, name)


class _Collector:
    """Receives llhttp's callbacks for one head."""

    def __init__(self) -> None:
        self.url = b""
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def find_head_end(buffer: bytes | bytearray, scanned: int) -> int:
    """Index just past the blank line that ends the head, or -1. ``scanned`` bytes were looked at before.

    Raises HeadError for a line that ends in a bare LF, at once: such a head might never show the CRLF pair that we wait for.
    """
    end = buffer.find(HEAD_END, max(0, scanned - 3))
    stop = len(buffer) if end < 0 else end + 4
    if _BARE_LF.search(buffer, max(0, scanned - 1), stop):
        raise HeadError(400, "a line of the request's head ends in LF without CR; end each line with CRLF")
    return -1 if end < 0 else end + 4


def parse_request(data: bytes, *, max_headers: int = 128, max_line: int = 16384) -> RequestHead:
    """``data`` is one whole head, up to and with its blank line."""
    line_end = data.find(b"\r\n")
    if line_end > max_line:
        raise HeadError(414, f"the request line has {line_end} bytes; at most {max_line} are accepted")
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    _feed(parser, data, "request")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise HeadError(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
    headers = _bounded(collector.headers, max_headers)
    method = parser.get_method().decode("ascii")
    path, query = _target(method, collector.url)
    if version == "1.1" and sum(1 for name, _ in headers if name == b"host") != 1:
        raise HeadError(400, "an HTTP/1.1 request needs exactly one Host header")
    connection = tokens(headers, b"connection")
    return RequestHead(
        method=method,
        path=path,
        query=query,
        version=version,
        headers=headers,
        length=_request_length(version, headers),
        keep_alive=_keep_alive(version, connection),
        expect_continue=version == "1.1" and _first(headers, b"expect").lower() == b"100-continue",
        upgrade=_first(headers, b"upgrade").lower() if b"upgrade" in connection and version == "1.1" else b"",
    )


def parse_response(data: bytes, method: str, *, max_headers: int = 128) -> ResponseHead:
    """``data`` is one whole head; ``method`` is that of the request which it answers."""
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    _feed(parser, data, "response")
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise HeadError(502, f"the other side answered in HTTP/{version}, which is not spoken here")
    status = parser.get_status_code()
    if not 100 <= status <= 599:
        raise HeadError(502, f"the other side answered with the status {status}, which is none")
    headers = _bounded(collector.headers, max_headers)
    return ResponseHead(
        status=status,
        reason=collector.reason,
        version=version,
        headers=headers,
        length=_response_length(status, method, headers),
        keep_alive=_keep_alive(version, tokens(headers, b"connection")),
    )


def tokens(headers: Headers, name: bytes) -> frozenset[bytes]:
    """The comma-separated members of all headers called ``name``, lower case."""
    found: set[bytes] = set()
    for key, value in headers:
        if key == name:
            found.update(token for token in _TOKEN_SPLIT.split(value.strip().lower()) if token)
    return frozenset(found)


def _feed(parser: Any, data: bytes, what: str) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # llhttp stops after the head of an upgrade; the head is all that it was given
    except httptools.HttpParserInvalidMethodError as error:
        raise HeadError(501, "the request's method is not known here") from error
    except httptools.HttpParserError as error:
        raise HeadError(400, f"the {what}'s head is malformed: {error}") from error


def _bounded(headers: list[tuple[bytes, bytes]], most: int) -> Headers:
    if len(headers) > most:
        raise HeadError(431, f"the head has {len(headers)} header lines; at most {most} are accepted")
    return tuple(headers)


def _first(headers: Headers, name: bytes) -> bytes:
    for key, value in headers:
        if key == name:
            return value
    return b""


def _target(method: str, url: bytes) -> tuple[bytes, bytes]:
    """Path and query of origin form and absolute form; the authority of an absolute form is not looked at (one site)."""
    if method == "CONNECT":
        raise HeadError(405, "CONNECT is not offered here; use the proxy paths of the API")
    if not url.startswith(b"/") and url != b"*":
        scheme, separator, rest = url.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise HeadError(400, "the request target must be a path that begins with /")
        slash = rest.find(b"/")
        url = rest[slash:] if slash >= 0 else b"/"
    if b"#" in url:
        raise HeadError(400, "the request target must not carry a fragment (#)")
    path, _, query = url.partition(b"?")
    return path, query


def _keep_alive(version: str, connection: frozenset[bytes]) -> bool:
    if version == "1.1":
        return b"close" not in connection
    return b"keep-alive" in connection and b"close" not in connection


def _content_length(headers: Headers, status: int) -> int | None:
    values = [value for name, value in headers if name == b"content-length"]
    if not values:
        return None
    if len(values) > 1 or not _DIGITS.match(values[0]):
        raise HeadError(status, "Content-Length must be given once, as a decimal number")
    return int(values[0])


def _chunked(headers: Headers, status: int) -> bool:
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return False
    if codings != [b"chunked"]:
        raise HeadError(status, "the only transfer coding spoken here is chunked, given once")
    return True


def _request_length(version: str, headers: Headers) -> int:
    length = _content_length(headers, 400)
    if not _chunked(headers, 501):
        return length or 0
    if length is not None:
        raise HeadError(400, "a request must not have both Content-Length and Transfer-Encoding")
    if version == "1.0":
        raise HeadError(400, "HTTP/1.0 has no Transfer-Encoding")
    return CHUNKED


def _response_length(status: int, method: str, headers: Headers) -> int:
    if status < 200 or status in _NO_BODY or method == "HEAD":
        return 0
    length = _content_length(headers, 502)
    if not _chunked(headers, 502):
        return UNTIL_CLOSE if length is None else length
    if length is not None:
        raise HeadError(502, "the response has both Content-Length and Transfer-Encoding")
    return CHUNKED
