"""One request of a person, made into a request that the member's API server may be asked: strictly parsed, stripped, and signed anew.

No socket: bytes in, bytes out. A shim's credential may act for people (impersonate), so whatever is let through here speaks with the
rights of a group of this cluster. Hence the rules: what could name somebody else is taken away in every spelling; what two readers could
understand in two ways (two lengths, folded lines, a body that ends in two places) is refused, never repaired; after the one request
nothing more is sent, unless the API server itself has switched protocols.

Source: Kubernetes, "User impersonation" and "Authenticating" (front proxy, tokens in WebSocket subprotocols); RFC 9112.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import httptools
import msgspec
from msgspec import Struct

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes.rights import EXTRA_KEY, GROUPS, PERSON

MAX_HEAD = 65536  # bytes; a longer one is answered 431
MAX_HEADERS = 128
MAX_NAME = 253  # characters of a person's name, before they are encoded
CHUNKED = -1
HEAD_END = b"\r\n\r\n"

Headers = Sequence[tuple[bytes, bytes]]

_BARE_LF = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\r\n[ \t]")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_TARGET = re.compile(rb"/[\x21-\x22\x24-\x7e]*\Z")  # visible ASCII, no fragment
_DOTS = re.compile(rb"(?:^|[/\\])\.\.?(?:[/\\]|\Z)")
_TOKENS = re.compile(rb"[ \t]*,[ \t]*")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n\x00]*)?\r\n\Z")
_TOKEN_PROTOCOL = b"base64url.bearer.authorization.k8s.io."  # a bearer token, as a WebSocket subprotocol

# Never passed on: who asks, where they came from, and what belongs to one hop (RFC 9110, section 7.6.1).
_STRIPPED = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-length",
        b"cookie",
        b"cookie2",
        b"expect",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-real-ip",
    }
)
_STRIPPED_PREFIXES = (b"impersonate-", b"x-remote-", b"x-forwarded-", b"banyan-")


class Refused(Exception):
    """The request is not passed on. ``status`` is the HTTP status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Person(Struct, frozen=True):
    """Who asks, as the controller vouches for it."""

    name: str
    group: str  # one of `rights.GROUPS`

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As whom the API server shall judge the request. The member knows one user; the person's name goes into its audit log."""
        name = quote(self.name, safe="@:+ !()',;=").encode("ascii").strip()
        return [
            (b"impersonate-user", PERSON.encode()),
            (b"impersonate-group", self.group.encode()),
            (b"impersonate-extra-" + EXTRA_KEY.encode(), name),
        ]


def person_of(options: Mapping[str, str]) -> Person:
    """From the options of an `OpenTarget`. ShimError for anybody who could be more than a person of the tree."""
    name, group = options.get("user", ""), options.get("group", "")
    if not name.strip() or len(name) > MAX_NAME:
        raise ShimError("a request to the member's API names the person who asks: options.user, at most 253 characters")
    if group not in GROUPS:
        raise ShimError(f"{group[:80]!r} is no group of the tree in this member; it is one of {', '.join(GROUPS)}")
    return Person(name, group)


class Request(Struct, frozen=True, kw_only=True):
    """What is sent, and what may follow it."""

    method: str
    target: str  # as the API server sees it
    head: bytes
    length: int  # of the body in bytes, or CHUNKED
    upgrade: bool  # the connection may switch protocols


def head_end(buffer: bytes | bytearray) -> int:
    """Index just past the head's blank line, or -1 while it has not come. Refused as soon as it cannot become a head."""
    end = buffer.find(HEAD_END)
    stop = len(buffer) if end < 0 else end + 4
    if _BARE_LF.search(buffer, 0, stop):
        raise Refused(400, "a line of the request's head ends in LF without CR")
    if stop > MAX_HEAD:
        raise Refused(431, f"the request's head has more than {MAX_HEAD} bytes")
    return -1 if end < 0 else end + 4


def rewrite(head: bytes, person: Person, *, host: bytes, prefix: bytes = b"", credential: Headers = ()) -> Request:
    """``head`` is one whole head, with its blank line. ``prefix``: the path under which the API server stands, without a last slash."""
    parsed = _Parsed(head)
    lower = parsed.headers
    length = _length(lower)
    nominated = _members(lower, b"connection")
    upgrade = _upgrade(lower, nominated)
    target = prefix + parsed.target
    lines = [b"%b %b HTTP/1.1\r\n" % (parsed.method, target), b"host: %b\r\n" % host]
    for name, value in lower:
        if name not in nominated and not _is_stripped(name):
            kept = _without_tokens(value) if name == b"sec-websocket-protocol" else value
            if kept or not value:
                lines.append(b"%b: %b\r\n" % (name, kept))
    lines += [b"%b: %b\r\n" % header for header in (*credential, *person.headers())]
    if length == CHUNKED:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif length or any(name == b"content-length" for name, _ in lower):
        lines.append(b"content-length: %d\r\n" % length)
    if length and _first(lower, b"expect").lower() == b"100-continue":
        lines.append(b"expect: 100-continue\r\n")
    lines.append(b"connection: Upgrade\r\nupgrade: %b\r\n" % upgrade if upgrade else b"connection: close\r\n")
    return Request(
        method=parsed.method.decode("ascii"),
        target=target.decode("ascii"),
        head=b"".join([*lines, b"\r\n"]),
        length=length,
        upgrade=bool(upgrade),
    )


class _Parsed:
    """A head's method, target and headers (names in lower case), once llhttp and we agree on what it says."""

    def __init__(self, head: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self._url: list[bytes] = []
        if b"\x00" in head or _FOLDED.search(head):
            raise Refused(400, "the request's head has a folded line or a NUL")
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # llhttp stops after the head of an upgrade; the head is all that it was given
        except httptools.HttpParserError as error:
            raise Refused(400, f"the request's head is malformed: {error}") from None
        if parser.get_http_version() != "1.1":
            raise Refused(505, "the member's API is asked in HTTP/1.1")
        self.method: bytes = parser.get_method()
        self.target = b"".join(self._url)
        if self.method in (b"CONNECT", b"TRACE"):
            raise Refused(405, f"{self.method.decode()} is not passed on")
        if not _TARGET.match(self.target):
            raise Refused(400, "the request's target must be a path of visible characters that begins with /")
        if _DOTS.search(unquote_to_bytes(self.target.partition(b"?")[0])):
            raise Refused(400, "the request's path must not have . or .. as a part")
        if len(self.headers) > MAX_HEADERS:
            raise Refused(431, f"the head has {len(self.headers)} header lines; at most {MAX_HEADERS} are passed on")
        if sum(name == b"host" for name, _ in self.headers) != 1:
            raise Refused(400, "a request has exactly one Host header")

    def on_url(self, url: bytes) -> None:
        self._url.append(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def _is_stripped(name: bytes) -> bool:
    """Some proxies in front of an API server take _ for -, so both spellings count."""
    spelled = name.replace(b"_", b"-")
    return spelled in _STRIPPED or spelled.startswith(_STRIPPED_PREFIXES)


def _first(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")


def _members(headers: Headers, name: bytes) -> set[bytes]:
    """Of a list header, in lower case."""
    found: set[bytes] = set()
    for key, value in headers:
        if key == name:
            found.update(token for token in _TOKENS.split(value.strip().lower()) if token)
    return found


def _length(headers: Headers) -> int:
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and not _DIGITS.match(lengths[0])):
        raise Refused(400, "Content-Length must be given once, as a decimal number")
    if not codings:
        return int(lengths[0]) if lengths else 0
    if lengths:
        raise Refused(400, "a request must not have both Content-Length and Transfer-Encoding")
    if codings != [b"chunked"]:
        raise Refused(501, "the only transfer coding is chunked, given once")
    return CHUNKED


def _upgrade(headers: Headers, nominated: set[bytes]) -> bytes:
    """The protocol asked for, or nothing; several offers are not made."""
    if b"upgrade" not in nominated:
        return b""
    offers = [value.strip() for name, value in headers if name == b"upgrade"]
    if len(offers) != 1 or not re.fullmatch(rb"[A-Za-z0-9./_-]{1,64}", offers[0]):
        raise Refused(400, "an upgrade names one protocol")
    if offers[0].lower().startswith(b"h2c"):
        raise Refused(400, "an upgrade to HTTP/2 is not passed on")
    return offers[0]


def _without_tokens(value: bytes) -> bytes:
    """WebSocket subprotocols without the one that carries a bearer token."""
    offered = [each for each in _TOKENS.split(value.strip()) if not each.lower().startswith(_TOKEN_PROTOCOL)]
    return b", ".join(offered)


class Body:
    """Passes the body of one request on, and nothing after it."""

    def __init__(self, length: int) -> None:
        self.done = length == 0
        self._chunked = length == CHUNKED
        self._left = max(0, length)
        self._line = b""  # an unfinished size line, CRLF or trailer
        self._after_data = False
        self._trailers = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of ``data`` is the body, as it shall be sent, and what comes after it. Refused when its end cannot be found."""
        if not self._chunked:
            body, rest = data[: self._left], data[self._left :]
            self._left -= len(body)
            self.done = not self._left
            return body, rest
        sent: list[bytes] = []
        data, self._line = self._line + data, b""
        position = 0
        while position < len(data) and not self.done:
            if self._left:
                piece = data[position : position + self._left]
                sent.append(b"%x\r\n%b\r\n" % (len(piece), piece))
                self._left -= len(piece)
                position += len(piece)
                self._after_data = not self._left
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._hold(data[position:])
                return b"".join(sent), b""
            self._end_of_line(data[position : end + 1])
            position = end + 1
        if self.done:
            sent.append(b"0\r\n\r\n")
        return b"".join(sent), data[position:]

    def _hold(self, line: bytes) -> None:
        if len(line) > 4096:
            raise Refused(400, "the size line of a chunk has more than 4096 bytes")
        self._line = line

    def _end_of_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise Refused(400, "a line of the chunked body ends in LF without CR")
        if self._after_data:
            if line != b"\r\n":
                raise Refused(400, "a chunk is longer than its size says")
            self._after_data = False
        elif self._trailers:
            if line != b"\r\n":
                raise Refused(400, "a request's body must not have trailers")
            self.done = True
        else:
            found = _CHUNK_LINE.match(line)
            if found is None:
                raise Refused(400, "the size of a chunk must be a hexadecimal number")
            self._left = int(found[1], 16)
            self._trailers = not self._left


# --- answers ---


class Answer(Struct, frozen=True):
    """The head of what the API server answered."""

    status: int
    length: int  # of its body in bytes; CHUNKED (-1) where the head does not say
    json: bool


def answer_of(head: bytes) -> Answer:
    """Only what decides how to go on; the bytes themselves are passed on as they are. ShimError for what is no HTTP."""
    line, _, rest = head.partition(b"\r\n")
    found = re.match(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: |\Z)", line)
    if found is None:
        raise ShimError("the member's API server did not answer in HTTP/1.1")
    length, json = CHUNKED, False
    for each in rest.split(b"\r\n"):
        name, _, value = each.partition(b":")
        match name.strip().lower():
            case b"content-length" if _DIGITS.match(value.strip()):
                length = int(value)
            case b"content-type":
                json = value.strip().lower().startswith(b"application/json")
    return Answer(int(found[1]), length, json)


def status_answer(code: int, reason: str, message: str, *, details: Any = None, retry_after: int = 0) -> bytes:
    """A whole answer with a Kubernetes Status, after which the connection ends."""
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason}
    if details:
        status["details"] = details
    body = msgspec.json.encode(status | {"code": code})
    again = b"retry-after: %d\r\n" % retry_after if retry_after else b""
    head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n"
    return head % (code, reason.encode("ascii"), len(body), again) + body


_REASONS = {400: "BadRequest", 405: "MethodNotAllowed", 431: "RequestHeaderFieldsTooLarge", 501: "NotImplemented", 505: "BadRequest"}


def refusal(refused: Refused) -> bytes:
    return status_answer(refused.status, _REASONS.get(refused.status, "BadRequest"), str(refused))
