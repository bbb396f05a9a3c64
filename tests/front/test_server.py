"""The front on a real TLS port, asked by clients that are not ours."""

import hashlib
import json
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from openapi.front.limits import FrontLimits
from tests.front.support import AUTH, RunningFront, pki, raw_exchange, read_all

HEADERS = {"Authorization": "Bearer t-admin"}


async def echo(scope, receive, send):
    """Tells what it was asked, with the body's length and digest."""
    digest, length = hashlib.sha256(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        digest.update(message["body"])
        length += len(message["body"])
        if not message["more_body"]:
            break
    user = scope["banyan.user"]
    document = {
        "method": scope["method"],
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "query": scope["query_string"].decode(),
        "version": scope["http_version"],
        "user": user and user.name,
        "length": length,
        "sha256": digest.hexdigest(),
    }
    body = json.dumps(document).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["uvloop", "asyncio"])
def front(request: pytest.FixtureRequest) -> Iterator[RunningFront]:
    with RunningFront(echo, loop=request.param) as running:
        yield running


def test_bearer_token_over_http_client(front: RunningFront) -> None:
    client = front.client()
    for number in range(3):  # one connection
        client.request("GET", f"/a%20b?n={number}", headers=HEADERS)
        answer = json.loads(client.getresponse().read())
        assert answer["user"] == "admin"
        assert answer["path"] == "/a b"
        assert answer["raw_path"] == "/a%20b"
        assert answer["query"] == f"n={number}"
    client.close()
    assert front.front.metrics.accepted == 1


def test_client_certificate_with_its_chain(front: RunningFront) -> None:
    client = front.client("viewer")
    for _ in range(2):
        client.request("GET", "/")
        assert json.loads(client.getresponse().read())["user"] == "viewer"
    client.close()
    assert len(front.accounts.chains) == 1, "parsed once per connection"
    assert len(front.accounts.chains[0]) >= 2, "the issuing certificate comes with the leaf"


def test_user_revoked_on_an_open_connection(front: RunningFront) -> None:
    client = front.client("viewer")
    client.request("GET", "/")
    assert client.getresponse().read()
    front.accounts.revoked.add("viewer")
    client.request("GET", "/")
    response = client.getresponse()
    assert response.status == 401
    assert json.loads(response.read())["message"] == "viewer was revoked"
    client.close()


@pytest.mark.parametrize("path", ["/", "/healthz/", "/healthz%2f", "/apis", "//healthz", "/metrics"])
def test_nothing_is_anonymous_but_healthz(front: RunningFront, path: str) -> None:
    client = front.client()
    client.request("GET", path)
    response = client.getresponse()
    status = json.loads(response.read())
    assert (response.status, status["kind"], status["reason"]) == (401, "Status", "Unauthorized")
    assert response.getheader("www-authenticate")
    client.request("GET", "/healthz")
    assert json.loads(client.getresponse().read())["user"] is None
    client.request("POST", "/healthz", body=b"x")
    response = client.getresponse()
    response.read()
    assert response.status == 401
    client.close()


def test_wrong_token_does_not_fall_back_to_the_certificate(front: RunningFront) -> None:
    client = front.client("admin")
    client.request("GET", "/", headers={"Authorization": "Bearer nonsense"})
    response = client.getresponse()
    response.read()
    assert response.status == 401
    client.close()


def test_impersonation_and_cross_site_requests_are_refused(front: RunningFront) -> None:
    client = front.client("admin")
    for headers in ({"Impersonate-User": "x"}, {"Sec-Fetch-Site": "cross-site"}):
        client.request("POST", "/", headers=headers)
        response = client.getresponse()
        response.read()
        assert response.status == 403
    client.close()


def test_curl_and_httpx(front: RunningFront) -> None:
    """curl offers h2 and HTTP/1.1; the front answers with the one that is the whole API."""
    url = f"https://127.0.0.1:{front.port}/x"
    arguments = ["curl", "-sS", "--http2", "--cacert", str(pki().ca), "-H", "Authorization: Bearer t-admin", "-w", "%{http_version}", url]
    out = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=True).stdout
    assert out.endswith("1.1")
    assert json.loads(out.removesuffix("1.1"))["user"] == "admin"
    with httpx.Client(verify=pki().client_context("editor")) as client:
        assert client.get(url).json()["user"] == "editor"
        assert client.post(url, content=(b"abc" for _ in range(4))).json()["length"] == 12  # chunked


def test_expect_continue(front: RunningFront) -> None:
    connection = front.connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")
    assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
    answer = raw_exchange(connection, b"hello")
    assert b'"length": 5' in answer
    connection.close()


def test_expect_continue_is_not_sent_for_a_refused_request(front: RunningFront) -> None:
    connection = front.connect()
    answer = raw_exchange(connection, b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in answer
    connection.close()


def test_pipelined_requests_are_answered_in_order(front: RunningFront) -> None:
    connection = front.connect()
    requests = b"".join(b"POST /%d HTTP/1.1\r\nHost: x\r\n" % number + AUTH + b"Content-Length: 3\r\n\r\nabc" for number in range(20))
    last = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + AUTH + b"\r\n"
    answer = raw_exchange(connection, requests + last)
    paths = [part.split(b'"')[0] for part in answer.split(b'"path": "')[1:]]
    assert paths == [b"/%d" % number for number in range(20)] + [b"/last"]
    connection.close()


def test_http_1_0(front: RunningFront) -> None:
    connection = front.connect()
    answer = raw_exchange(connection, b"GET / HTTP/1.0\r\n" + AUTH + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"chunked" not in answer
    assert answer.endswith(b"}")
    connection.close()


def test_head_has_no_body(front: RunningFront) -> None:
    client = front.client()
    for _ in range(2):
        client.request("HEAD", "/", headers=HEADERS)
        response = client.getresponse()
        assert response.read() == b""
        assert response.status == 200
    client.close()


HOSTILE = {
    "both lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "list of lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
    "signed length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc", 400),
    "huge length": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    "chunked twice": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "gzip coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "folded": (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
    "bare lf": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare lf in a header": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "space before colon": (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "nul": (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    "http 0.9": (b"GET /\r\n\r\n", 505),
    "http 2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "connect": (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    "fragment": (b"GET /#x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "long line": (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "large head": (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    "not http": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", 501),
    "bad chunk": (b"POST / HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "chunk without crlf": (b"POST / HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n", 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_heads(front: RunningFront, name: str) -> None:
    """Refused with a Status, the connection closed, and nothing after it taken for a request."""
    data, code = HOSTILE[name]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n"
    connection = front.connect()
    connection.sendall(data + smuggled)
    answer = read_all(connection)
    connection.close()
    assert answer.startswith(b"HTTP/1.1 %d " % code), answer
    assert answer.count(b"\r\ndate: ") == 1
    assert b"connection: close" in answer
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["kind"] == "Status"
    assert b"smuggled" not in answer


def test_slow_head() -> None:
    with RunningFront(echo, limits=FrontLimits(head_seconds=0.2)) as front:
        silent = front.connect()
        slow = front.connect()
        slow.sendall(b"GET / HTTP/1.1\r\nHo")
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")
        assert read_all(silent) == b""
        silent.close()
        slow.close()


def test_application_that_fails(front: RunningFront) -> None:
    async def crash(scope, receive, send):
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if scope["path"] == "/silent":
            return
        raise RuntimeError("secret detail")

    with RunningFront(crash) as crashing:
        for path in ("/early", "/silent"):
            connection = crashing.connect()
            answer = raw_exchange(connection, b"GET %b HTTP/1.1\r\nHost: x\r\n" % path.encode() + AUTH + b"\r\n")
            connection.close()
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b"secret" not in answer
        connection = crashing.connect()
        answer = raw_exchange(connection, b"GET /late HTTP/1.1\r\nHost: x\r\n" + AUTH + b"\r\n")
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert not answer.endswith(b"0\r\n\r\n"), "half an answer must not look whole"
