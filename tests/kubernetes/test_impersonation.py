"""What of a person's request reaches an API server: hostile heads are refused, and nothing that names somebody else gets through."""

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import impersonation as im
from cluster_shim.kubernetes.impersonation import CHUNKED, Body, Person, Refused, Request, answer_of, head_end, person_of, rewrite

ANN = Person("ann", "banyan:edit")
CREDENTIAL = [(b"authorization", b"Bearer the-shims-own")]


def head(*lines: bytes, request: bytes = b"GET /api/v1/pods?watch=true HTTP/1.1", host: bytes = b"Host: h") -> bytes:
    return b"\r\n".join([request, *([host] if host else []), *lines]) + b"\r\n\r\n"


def passed(data: bytes, person: Person = ANN) -> Request:
    return rewrite(data, person, host=b"10.0.0.1:6443", credential=CREDENTIAL)


def headers(request: Request) -> list[tuple[bytes, bytes]]:
    lines = request.head[:-4].split(b"\r\n")[1:]
    return [(name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)]


def values(request: Request, name: bytes) -> list[bytes]:
    return [value for key, value in headers(request) if key == name]


def test_a_request_is_signed_anew() -> None:
    request = passed(head(b"Accept: application/json", b"User-Agent: kubectl/1.34", b"X-Stream-Protocol-Version: v4.channel.k8s.io"))
    assert request.head == (
        b"GET /api/v1/pods?watch=true HTTP/1.1\r\nhost: 10.0.0.1:6443\r\naccept: application/json\r\nuser-agent: kubectl/1.34\r\n"
        b"x-stream-protocol-version: v4.channel.k8s.io\r\nauthorization: Bearer the-shims-own\r\nimpersonate-user: banyan\r\n"
        b"impersonate-group: banyan:edit\r\nimpersonate-extra-person: ann\r\nconnection: close\r\n\r\n"
    )
    assert (request.method, request.target, request.length, request.upgrade) == ("GET", "/api/v1/pods?watch=true", 0, False)


def test_the_path_under_which_an_api_server_stands_comes_before_the_persons() -> None:
    request = rewrite(head(), ANN, host=b"h", prefix=b"/k8s/clusters/c-1")
    assert request.target == "/k8s/clusters/c-1/api/v1/pods?watch=true"


FORBIDDEN = [
    "Authorization", "Proxy-Authorization", "Cookie", "Cookie2", "Impersonate-User", "Impersonate-Group", "Impersonate-Uid",
    "Impersonate-Extra-Person", "Impersonate-Extra-Scopes", "X-Remote-User", "X-Remote-Group", "X-Remote-Extra-Scopes", "X-Remote-Uid",
    "X-Forwarded-For", "X-Forwarded-User", "X-Real-Ip", "Forwarded", "Te", "Trailer", "Keep-Alive", "Proxy-Connection", "Banyan-User",
]  # fmt: skip


@pytest.mark.parametrize("name", FORBIDDEN)
@settings(deadline=None)
@given(data=st.data())
def test_who_asks_cannot_be_said_by_who_asks(name: str, data: st.DataObject) -> None:
    """In any mixture of cases, with _ for -, alone or hidden behind a Connection header, as often as one likes."""
    spelled = "".join(data.draw(st.sampled_from([each.lower(), each.upper()])) for each in name)
    if data.draw(st.booleans()):
        spelled = spelled.replace("-", "_")
    line = f"{spelled}: system:masters".encode()
    request = passed(head(*[line] * data.draw(st.integers(1, 3)), b"Accept: x"))
    assert b"system:masters" not in request.head
    assert values(request, b"impersonate-user") == [b"banyan"]
    assert values(request, b"impersonate-group") == [b"banyan:edit"]
    assert values(request, b"impersonate-extra-person") == [b"ann"]
    assert values(request, b"authorization") == [b"Bearer the-shims-own"]
    assert values(request, b"accept") == [b"x"]


def test_connection_cannot_take_away_what_is_added() -> None:
    request = passed(
        head(b"Connection: Impersonate-User, Impersonate-Group, Authorization, Host, X-Mine, close", b"X-Mine: 1", b"X-Other: 2")
    )
    assert values(request, b"impersonate-user") == [b"banyan"]
    assert values(request, b"authorization") == [b"Bearer the-shims-own"]
    assert values(request, b"host") == [b"10.0.0.1:6443"]
    assert values(request, b"connection") == [b"close"]
    assert values(request, b"x-mine") == []
    assert values(request, b"x-other") == [b"2"]


def test_a_token_in_a_subprotocol_is_taken_out() -> None:
    upgrade = (b"Connection: Upgrade", b"Upgrade: websocket")
    token = b"base64url.bearer.authorization.k8s.io.c3lzdGVt"
    request = passed(head(*upgrade, b"Sec-WebSocket-Protocol: v5.channel.k8s.io, " + token + b",v4.channel.k8s.io"))
    assert values(request, b"sec-websocket-protocol") == [b"v5.channel.k8s.io, v4.channel.k8s.io"]
    request = passed(head(*upgrade, b"sec-websocket-protocol: " + token.upper(), b"Sec-WebSocket-Protocol: v5.channel.k8s.io"))
    assert values(request, b"sec-websocket-protocol") == [b"v5.channel.k8s.io"]


def test_upgrades_keep_their_protocol() -> None:
    request = passed(head(b"Connection: keep-alive, Upgrade", b"Upgrade: SPDY/3.1", b"Content-Length: 0", request=b"POST /x HTTP/1.1"))
    assert request.upgrade
    assert values(request, b"connection") == [b"Upgrade"]
    assert values(request, b"upgrade") == [b"SPDY/3.1"]
    assert not passed(head(b"Upgrade: SPDY/3.1")).upgrade  # Connection does not say so: not asked for


HOSTILE: dict[str, tuple[bytes, int]] = {
    "two lengths": (head(b"Content-Length: 3", b"Content-Length: 3", request=b"POST / HTTP/1.1"), 400),
    "two different lengths": (head(b"Content-Length: 3", b"content-length: 30", request=b"POST / HTTP/1.1"), 400),
    "a list of lengths": (head(b"Content-Length: 3, 3", request=b"POST / HTTP/1.1"), 400),
    "a signed length": (head(b"Content-Length: +3", request=b"POST / HTTP/1.1"), 400),
    "a hexadecimal length": (head(b"Content-Length: 0x3", request=b"POST / HTTP/1.1"), 400),
    "length and chunks": (head(b"Content-Length: 3", b"Transfer-Encoding: chunked", request=b"POST / HTTP/1.1"), 400),
    "another coding": (head(b"Transfer-Encoding: gzip, chunked", request=b"POST / HTTP/1.1"), 501),
    "two codings": (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", request=b"POST / HTTP/1.1"), 501),
    "a hidden coding": (head(b"Transfer-Encoding: \x0bchunked", request=b"POST / HTTP/1.1"), 501),
    "space before the colon": (head(b"Transfer-Encoding : chunked", request=b"POST / HTTP/1.1"), 400),
    "a folded line": (head(b"X-A: 1", b" Impersonate-User: root"), 400),
    "a folded line with a tab": (head(b"X-A: 1", b"\tImpersonate-User: root"), 400),
    "a NUL": (head(b"X-A: 1\x00Impersonate-User: root"), 400),
    "a bare CR": (head(b"X-A: 1\rImpersonate-User: root"), 400),
    "no host": (head(host=b""), 400),
    "two hosts": (head(b"Host: other"), 400),
    "HTTP/1.0": (head(request=b"GET / HTTP/1.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    "CONNECT": (head(request=b"CONNECT other:443 HTTP/1.1"), 405),
    "TRACE": (head(request=b"TRACE / HTTP/1.1"), 405),
    "another server": (head(request=b"GET http://other/ HTTP/1.1"), 400),
    "no path": (head(request=b"OPTIONS * HTTP/1.1"), 400),
    "a fragment": (head(request=b"GET /a#b HTTP/1.1"), 400),
    "up a folder": (head(request=b"GET /api/../../other HTTP/1.1"), 400),
    "up a folder in code": (head(request=b"GET /api/%2e%2E/other HTTP/1.1"), 400),
    "up a folder with its slash in code": (head(request=b"GET /api/..%2fother HTTP/1.1"), 400),
    "up a folder the other way": (head(request=b"GET /api/..%5cother HTTP/1.1"), 400),
    "bytes beyond ASCII": (head(request=b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "two upgrades": (head(b"Connection: Upgrade", b"Upgrade: websocket, SPDY/3.1"), 400),
    "two upgrade lines": (head(b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: SPDY/3.1"), 400),
    "HTTP/2 by upgrade": (head(b"Connection: Upgrade", b"Upgrade: h2c"), 400),
    "too many headers": (head(*[b"X-%d: 1" % number for number in range(200)]), 431),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_heads_are_refused(name: str) -> None:
    data, status = HOSTILE[name]
    with pytest.raises(Refused) as refused:
        passed(data)
    assert refused.value.status in {status, 400}
    assert refused.value.status == status or "malformed" in str(refused.value)
    answer = im.refusal(refused.value)
    assert answer.startswith(b"HTTP/1.1 %d " % refused.value.status)
    document = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    assert (document["kind"], document["code"], document["message"]) == ("Status", refused.value.status, str(refused.value))


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_make_two_requests_or_another_person(noise: bytes, at: int) -> None:
    """Whatever stands anywhere in a head: it is refused, or exactly one request of this person comes out."""
    whole = head(b"Accept: x", b"Content-Length: 0")[:-4]
    data = whole[:at] + noise + whole[at:] + b"\r\n\r\n"
    end = data.find(b"\r\n\r\n") + 4
    try:
        assert head_end(data) == end
        request = passed(data[:end])
    except Refused:
        return
    assert request.head.count(b"\r\n\r\n") == 1
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", request.head)
    assert values(request, b"impersonate-user") == [b"banyan"]
    assert values(request, b"impersonate-group") == [b"banyan:edit"]
    assert len(values(request, b"authorization")) == len(values(request, b"host")) == len(values(request, b"connection")) == 1


def test_a_head_that_never_ends_is_refused() -> None:
    assert head_end(b"GET / HTTP/1.1\r\nHost: h\r\n") == -1
    assert head_end(head() + b"body") == len(head())
    with pytest.raises(Refused, match="more than 65536"):
        head_end(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000)
    with pytest.raises(Refused, match="LF without CR"):
        head_end(b"GET / HTTP/1.1\nHost: h\n\n")
    head_end(head() + b"a\nb")  # the body may hold what it likes


# --- who ---


def test_names_are_encoded_and_never_break_a_line() -> None:
    assert dict(Person("ann@example.com", "banyan:view").headers())[b"impersonate-extra-person"] == b"ann@example.com"
    assert dict(Person("Ännchen\r\nX: y", "banyan:view").headers())[b"impersonate-extra-person"] == b"%C3%84nnchen%0D%0AX: y"


@pytest.mark.parametrize("group", ["", "system:masters", "banyan:root", "banyan:admin ", "BANYAN:ADMIN", "banyan:admin,system:masters"])
def test_only_three_groups_come_in(group: str) -> None:
    with pytest.raises(ShimError, match="is no group of the tree"):
        person_of({"user": "ann", "group": group})


@pytest.mark.parametrize("name", ["", " ", "x" * 254])
def test_somebody_must_ask(name: str) -> None:
    with pytest.raises(ShimError, match="names the person"):
        person_of({"user": name, "group": "banyan:admin"})


def test_a_person_of_the_tree() -> None:
    assert person_of({"user": "ann", "group": "banyan:view", "entry": "e"}) == Person("ann", "banyan:view")


# --- bodies ---


def test_a_body_of_a_length_ends_there() -> None:
    body = Body(5)
    assert body.feed(b"abc") == (b"abc", b"")
    assert not body.done
    assert body.feed(b"deGET / HTTP/1.1") == (b"de", b"GET / HTTP/1.1")
    assert body.done
    assert Body(0).done


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=30), st.binary(max_size=20))
def test_chunks_end_where_they_say(payload: bytes, cuts: list[int], after: bytes) -> None:
    """However the bytes arrive: the same payload, and what comes after is told apart."""
    whole = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(piece), piece) for piece in _cut(payload, cuts)) + b"0\r\n\r\n"
    body, sent, rest = Body(CHUNKED), b"", b""
    for piece in _cut(whole + after, cuts):
        if body.done:
            rest += piece
            continue
        out, left = body.feed(piece)
        sent, rest = sent + out, rest + left
    assert body.done
    assert rest == after
    assert _unchunked(sent) == payload


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"zz\r\n",
        b"0\r\nImpersonate-User: root\r\n\r\n",
        b"5" * 5000,
        b"\r\n",
    ],
)
def test_chunks_that_are_none_are_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        Body(CHUNKED).feed(data)


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in [*pieces, data] if piece]


def _unchunked(data: bytes) -> bytes:
    payload = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        if not int(size, 16):
            assert data == b"\r\n"
            return payload
        payload, data = payload + data[: int(size, 16)], data[int(size, 16) + 2 :]


# --- answers ---


def test_what_an_answer_is_read_for() -> None:
    found = answer_of(b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json; charset=utf-8\r\ncontent-length: 12\r\n\r\n")
    assert (found.status, found.length, found.json) == (403, 12, True)
    assert answer_of(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").length == CHUNKED
    assert answer_of(b"HTTP/1.1 101\r\n\r\n").status == 101
    for bad in (b"SSH-2.0-x\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 999 No\r\n\r\n"):
        with pytest.raises(ShimError, match="did not answer in HTTP"):
            answer_of(bad)
