"""Files from elsewhere, over real sockets: right or not at all, gone on with after a cut, credentials to nobody else."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from banyanctl import importing, signing
from banyanctl.importing import bring, find
from cluster_controller.errors import Exhausted, Forbidden, InvalidInput, NotFound, Unreachable

LIMIT = 100_000_000
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Answer
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        type(self).answer(self)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def say(self, code: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        """With Range, an ETag, and perhaps the connection's end after ``cut`` bytes."""
        begin = 0
        if (wanted := self.headers.get("Range")) and code == 200:
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            code = 206 if begin < len(body) else 416
        body = body[begin:]
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"one"', **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    seen: list[tuple[str, dict[str, str]]] = []
    handler = type("Handler", (Handler,), {"answer": staticmethod(answer), "seen": seen})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{http.server_address[1]}", seen
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def quiet(text: str) -> None:
    """Nobody looks."""


def no_sleep(seconds: float) -> None:
    """Time is not what is tested."""


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def test_a_file_by_https_with_its_digest_goes_on_after_each_cut(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    with server(lambda request: request.say(200, content, cut=1_000_000)) as (host, seen):
        (remote,) = find(f"http://{host}/models/emotion.onnx?v=1", sha(content), {})
        path = bring(remote, tmp_path, LIMIT, quiet, no_sleep)
    assert path == tmp_path / "emotion.onnx" and path.read_bytes() == content
    assert [headers.get("range") for _, headers in seen[:3]] == [None, "bytes=1000000-", "bytes=2000000-"]
    assert seen[1][1]["if-range"] == '"one"'
    assert [file.name for file in tmp_path.iterdir()] == ["emotion.onnx"]


def test_what_was_brought_before_counts_only_when_its_digest_says_so(tmp_path: Path) -> None:
    with server(lambda request: request.say(200, b"new")) as (host, seen):
        (remote,) = find(f"http://{host}/m", sha(b"new"), {})
        (tmp_path / "m").write_bytes(b"new")
        assert bring(remote, tmp_path, LIMIT, quiet, no_sleep).read_bytes() == b"new" and not seen
        (tmp_path / "m").write_bytes(b"old")
        assert bring(remote, tmp_path, LIMIT, quiet, no_sleep).read_bytes() == b"new" and len(seen) == 1


def test_what_is_wrong_too_long_or_gone_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    def answer(request: Handler) -> None:
        code = {"/gone": 404, "/secret": 403, "/odd": 418}.get(request.path, 200)
        request.say(code, b"x" * 1000)

    with server(answer) as (host, _):

        def get(path: str, digest: str = sha(b"x" * 1000), limit: int = LIMIT) -> Path:
            return bring(find(f"http://{host}/{path}", digest, {})[0], tmp_path, limit, quiet, no_sleep)

        with pytest.raises(InvalidInput, match="nothing was kept"):
            get("wrong", sha(b"y"))
        with pytest.raises(Exhausted, match="--limit"):
            get("long", limit=999)
        with pytest.raises(NotFound, match="404"):
            get("gone")
        with pytest.raises(Forbidden, match="variables that carry credentials"):
            get("secret")
        with pytest.raises(InvalidInput, match="418"):
            get("odd")
        assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
        assert get("right").read_bytes() == b"x" * 1000


def test_a_server_that_gives_nothing_again_and_again_is_out_of_reach(tmp_path: Path) -> None:
    with server(lambda request: request.say(503)) as (host, seen):
        with pytest.raises(Unreachable, match="run it again later"):
            bring(find(f"http://{host}/m", "a" * 64, {})[0], tmp_path, LIMIT, quiet, no_sleep)
        assert len(seen) == importing.ATTEMPTS


def test_what_went_wrong_is_said_in_words(tmp_path: Path) -> None:
    with server(lambda handler: handler.say(200, b"", {"Content-Length": "many"})) as (host, _):
        (remote,) = find(f"http://{host}/model.onnx", hashlib.sha256(b"").hexdigest())
        assert bring(remote, tmp_path / "in", limit=LIMIT, say=lambda _: None).read_bytes() == b""  # a length that says nothing
    (remote,) = find(f"http://{host}/other.onnx", "0" * 64)
    with pytest.raises(Unreachable, match=r"other\.onnx: Connection refused; 0 bytes are kept"):
        bring(remote, tmp_path / "gone", limit=LIMIT, say=lambda _: None, sleep=lambda _: None)


@pytest.mark.parametrize(
    ("source", "digest", "said"),
    [
        ("https://models.example/m", "", "--sha256"),
        ("https://models.example/m", "abc", "sha256 in hex"),
        ("https://models.example/", "a" * 64, "no file's name"),
        ("https://user:hidden@models.example/m", "a" * 64, "credentials"),
        ("ftp://models.example/m", "", "https://"),
        ("model.onnx", "", "banyan model publish"),
        ("s3://bucket", "", "s3://BUCKET/KEY"),
        ("oci:///x", "", "oci://HOST"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(source: str, digest: str, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        find(source, digest, {})
    assert said in str(refused.value) and "hidden" not in str(refused.value)


def test_credentials_stay_with_the_host_that_they_are_for(tmp_path: Path) -> None:
    with server(lambda request: request.say(200, b"bytes")) as (other, elsewhere):
        moved = {"Location": f"http://{other}/moved"}
        with server(lambda request: request.say(307, headers=moved)) as (host, seen):
            (remote,) = find(f"http://{host}/m", sha(b"bytes"), {"BANYAN_IMPORT_TOKEN": "hush"})
            bring(remote, tmp_path, LIMIT, quiet, no_sleep)
    assert seen[0][1]["authorization"] == "Bearer hush"
    assert "authorization" not in elsewhere[0][1]


def test_the_signature_is_that_of_the_examples_of_the_s3_reference() -> None:
    keys = signing.Keys("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    at = datetime(2013, 5, 24, tzinfo=UTC)
    url = "https://examplebucket.s3.amazonaws.com"
    one = signing.headers(f"{url}/test.txt", keys, "us-east-1", extra={"Range": "bytes=0-9"}, at=at)
    assert one["Authorization"].endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")
    many = signing.headers(f"{url}/?max-keys=2&prefix=J", keys, "us-east-1", at=at)
    assert many["Authorization"].endswith("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")
    assert "wJalr" not in repr(keys) and "wJalr" not in str(one)


def test_a_folder_of_a_bucket_page_by_page(tmp_path: Path) -> None:
    files = {"m/model.onnx": b"weights", "m/labels/a b.txt": b"labels"}
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_SESSION_TOKEN": "session"}

    def answer(request: Handler) -> None:
        parts = urlsplit(request.path)
        query = parse_qs(parts.query)
        sent = {name: request.headers[name] for name in ("x-amz-date",)}
        at = datetime.strptime(sent["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        url = f"http://{request.headers['Host']}{request.path}"
        expected = signing.headers(url, signing.Keys("id", "hush", "session"), "eu-west-1", at=at)
        if request.headers["Authorization"] != expected["Authorization"]:
            request.say(403)
        elif query:
            second = "continuation-token" in query
            name = sorted(files)[int(second)]
            more = "" if second else "<NextContinuationToken>a+b=</NextContinuationToken>"
            item = f"<Contents><Key>{name}</Key><Size>{len(files[name])}</Size></Contents>"
            space = "http://s3.amazonaws.com/doc/2006-03-01/"
            request.say(200, f'<ListBucketResult xmlns="{space}">{item}{more}</ListBucketResult>'.encode())
        else:
            request.say(200, files[parts.path.removeprefix("/bucket/").replace("%20", " ")])

    with server(answer) as (host, seen):
        environment = {**keys, "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": f"http://{host}"}
        for remote in find("s3://bucket/m/", "", environment):
            bring(remote, tmp_path, LIMIT, quiet, no_sleep)
        with pytest.raises(Forbidden) as refused:
            find("s3://bucket/m/", "", {**environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
    assert {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == {
        name.removeprefix("m/"): content for name, content in files.items()
    }
    assert "wrong" not in str(refused.value) and "hush" not in str(seen)


def test_an_artifact_of_a_registry_that_asks_for_a_token(tmp_path: Path) -> None:
    content = b"weights" * 1000
    layer = {"digest": f"sha256:{sha(content)}", "size": len(content), "annotations": {importing.TITLE: "model.onnx"}}
    manifest = json.dumps({"schemaVersion": 2, "layers": [layer]}).encode()

    def answer(request: Handler) -> None:
        path, authorization = urlsplit(request.path).path, request.headers.get("Authorization", "")
        if path == "/token":
            request.say(200, b'{"token": "granted"}') if authorization == "Basic bWU6aHVzaA==" else request.say(401)
        elif authorization != "Bearer granted":
            realm = f'Bearer realm="http://{request.headers["Host"]}/token",service="r",scope="repository:models/emotion:pull"'
            request.say(401, headers={"WWW-Authenticate": realm})
        elif path.removeprefix("/v2/models/emotion/manifests/") in {"2", f"sha256:{sha(manifest)}", f"sha256:{'0' * 64}"}:
            request.say(200, manifest)
        elif path == f"/v2/models/emotion/blobs/sha256:{sha(content)}":
            request.say(200, content)
        else:
            request.say(404)

    environment = {"BANYAN_REGISTRY_USER": "me", "BANYAN_REGISTRY_PASSWORD": "hush"}
    with server(answer) as (host, seen):
        for reference in (":2", f"@sha256:{sha(manifest)}"):
            (remote,) = find(f"oci://{host}/models/emotion{reference}", "", environment)
            assert (remote.path, remote.sha256, remote.size) == ("model.onnx", sha(content), len(content))
        assert bring(remote, tmp_path, LIMIT, quiet, no_sleep).read_bytes() == content
        assert any("scope=repository" in path for path, _ in seen)
        with pytest.raises(InvalidInput, match="another sha256"):
            find(f"oci://{host}/models/emotion@sha256:{'0' * 64}", "", environment)
        with pytest.raises(NotFound):
            find(f"oci://{host}/models/none:2", "", environment)
        with pytest.raises(Forbidden) as refused:
            find(f"oci://{host}/models/emotion:2", "", {**environment, "BANYAN_REGISTRY_PASSWORD": "wrong"})
        assert "wrong" not in str(refused.value)


def test_a_name_that_leads_out_of_the_folder_is_not_taken(tmp_path: Path) -> None:
    for path in ("../m", "/etc/m", "a/../../m", ""):
        with pytest.raises(InvalidInput, match="leads out"):
            bring(importing.Remote("http://127.0.0.1:9/m", path, lambda url: {}), tmp_path, LIMIT, quiet, no_sleep)
