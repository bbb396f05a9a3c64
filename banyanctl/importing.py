"""Bring a model's files here from where they are kept: HTTP with a digest, S3, an OCI registry. `banyan model import` publishes them.

    https://HOST/PATH         one file; --sha256 says what it must be
    s3://BUCKET/KEY           one object, or, with a / at the end, all below it; AWS_… variables give credentials, region and endpoint
    oci://HOST/REPOSITORY:TAG or …@sha256:DIGEST: the layers of an artifact, each named by its title

Invariants
- A file has its name only when its digest was right, or, where nobody says one, when its length was; what was cut is gone on with (Range),
  and only while it is the same file (If-Range).
- At most `MAX_FILES` files and `limit` bytes; answers that are no files are read up to `MAX_ANSWER`.
- Credentials come from variables alone, are sent to the host that they are for and to nobody that it redirects to, and are in no message.
"""

import base64
import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import msgspec
from msgspec import Struct

from banyanctl import signing
from cluster_controller.durable import sync_folder
from cluster_controller.errors import Exhausted, Forbidden, InvalidInput, NotFound, Unreachable

MAX_FILES = 1000
MAX_ANSWER = 4 << 20  # of a list or a manifest
MAX_REFUSAL = 1 << 16  # of what is said with an error
CHUNK = 1 << 20
ATTEMPTS = 5  # in a row without a new byte
SECONDS = 60.0  # without a byte
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")  # which S3 answers with 400
TITLE = "org.opencontainers.image.title"

Headers = Callable[[str], Mapping[str, str]]  # for a URL, anew for each request: signatures carry a time
Say = Callable[[str], None]


class Remote(Struct, frozen=True):
    """One file elsewhere. ``sha256``: hex, "" when nobody says it; ``size``: -1 when nobody does."""

    url: str
    path: str
    headers: Headers
    sha256: str = ""
    size: int = -1


def find(source: str, sha256: str, environment: Mapping[str, str] = os.environ) -> list[Remote]:
    """The files of ``source``; `InvalidInput` names what is wrong with it."""
    digest = sha256.removeprefix("sha256:").lower()
    if digest and re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise InvalidInput(f"--sha256 {sha256[:80]!r} is not a sha256 in hex", "sha256")
    parts = urllib.parse.urlsplit(source)
    if parts.username or parts.password:
        raise InvalidInput("credentials do not belong into the address, where others read them; see `banyan model import --help`")
    match parts.scheme:
        case "https" | "http":
            if not digest:
                raise InvalidInput(f"{parts.scheme} says nothing of what a file must be; give its --sha256", "sha256")
            return [Remote(source, _name(parts.path), _http_headers(environment), digest)]
        case "s3":
            found = _s3(parts.netloc, parts.path.lstrip("/"), environment)
        case "oci":
            found = _Registry(parts.netloc, environment).files(parts.path.lstrip("/"))
        case _:
            raise InvalidInput(f"{source[:80]!r} is no https://, s3:// or oci:// address; files here take `banyan model publish`")
    if not found or len(found) > MAX_FILES:
        raise InvalidInput(f"{source} holds {len(found)} files; a model has 1 to {MAX_FILES}")
    if digest:
        if len(found) > 1:
            raise InvalidInput(f"--sha256 is that of one file; {source} holds {len(found)}", "sha256")
        if found[0].sha256 not in {"", digest}:
            raise InvalidInput(f"{source} is sha256:{found[0].sha256}, not what --sha256 says", "sha256")
        return [Remote(found[0].url, found[0].path, found[0].headers, digest, found[0].size)]
    return found


def bring(remote: Remote, folder: Path, limit: int, say: Say, sleep: Callable[[float], None] = time.sleep) -> Path:
    """The file below ``folder``; goes on where an earlier attempt was cut. `InvalidInput` when it is not what it should be."""
    target = folder / _checked(remote.path)
    if target.exists():
        if remote.sha256 and _digest(target) == remote.sha256:
            return target
        target.unlink()  # nobody says whether it is still what lies there
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    fruitless = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            whole = _once(remote, partial, limit, say)
            break
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            after = partial.stat().st_size if partial.exists() else 0
            fruitless = 0 if after > before else fruitless + 1
            if fruitless >= ATTEMPTS:
                raise Unreachable(f"{_shown(remote.url)}: {_why(error)}; {after} bytes are kept, so run it again later") from None
            sleep(0.5 * 2**fruitless)
    digest = _digest(partial)
    if remote.sha256 and digest != remote.sha256:
        partial.unlink()
        raise InvalidInput(f"{_shown(remote.url)} has sha256 {digest}, not {remote.sha256}; nothing was kept")
    if remote.size not in {-1, whole}:
        partial.unlink()
        raise InvalidInput(f"{_shown(remote.url)} has {whole} bytes, not {remote.size}; nothing was kept")
    partial.rename(target)
    sync_folder(target.parent)
    _mark(partial).unlink(missing_ok=True)
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _once(remote: Remote, partial: Path, limit: int, say: Say) -> int:
    """Append until all is there; returns its length. What the same address gave before is gone on with only if it is the same file."""
    have = partial.stat().st_size if partial.exists() else 0
    mark = _mark(partial).read_text() if have and _mark(partial).exists() else ""
    headers = dict(remote.headers(remote.url))
    if have and (mark or remote.sha256):
        headers["Range"] = f"bytes={have}-"
        if mark:
            headers["If-Range"] = mark
    with _open(remote.url, headers, past_end=have) as answer:
        if answer is None:
            return have
        begins = have if answer.status == 206 else 0
        whole = begins + answer.length if answer.length is not None else -1
        if max(whole, remote.size) > limit:
            raise Exhausted(f"{_shown(remote.url)} has {max(whole, remote.size)} bytes; --limit takes {limit}")
        tag = answer.headers.get("ETag") or ""
        _mark(partial).write_text("" if tag.startswith("W/") else tag)
        with partial.open("r+b" if begins else "wb") as file:
            file.seek(begins)
            while data := answer.read(CHUNK):
                begins += len(data)
                if begins > limit:
                    raise Exhausted(f"{_shown(remote.url)} has more than the {limit} bytes that --limit takes")
                file.write(data)
                say(f"bringing {remote.path}: {begins} of {whole if whole >= 0 else 'unknown'} bytes")
        if 0 <= whole != begins:
            raise ConnectionError(f"it stopped after {begins} of {whole} bytes")
    return begins


def _why(error: Exception) -> str:
    """In words: what urllib has wrapped says more than its wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str((inner.strerror if isinstance(inner, OSError) else None) or inner)


def _mark(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.etag")


class _Answer:
    """A response, or None where the server says that nothing lies behind what is here (416)."""

    def __init__(self, response: HTTPResponse | None) -> None:
        self._response = response

    def __enter__(self) -> HTTPResponse | None:
        return self._response

    def __exit__(self, *exc: object) -> None:
        if self._response is not None:
            self._response.close()


def _open(url: str, headers: Mapping[str, str], past_end: int = 0) -> _Answer:
    request = urllib.request.Request(url)  # noqa: S310  (only http and https come here)
    for name, value in headers.items():
        if name.lower() in {"range", "if-range", "accept"}:
            request.add_header(name, value)
        else:
            request.add_unredirected_header(name, value)  # credentials are for this host alone
    try:
        return _Answer(urllib.request.urlopen(request, timeout=SECONDS))  # noqa: S310
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and past_end:
                return _Answer(None)
            word = _word(error)
            said = f"{_shown(url)}: {error.code} {error.reason}{f' ({word})' if word else ''}"
            if error.code in {401, 403} or word in EXPIRED:
                raise Forbidden(f"{said}; see `banyan model import --help` for the variables that carry credentials") from None
            if error.code in {404, 410}:
                raise NotFound(said) from None
            if error.code == 429 or error.code >= 500:
                raise ConnectionError(said) from None
            raise InvalidInput(said) from None


def _word(error: urllib.error.HTTPError) -> str:
    """What S3 (XML) or a registry (JSON) calls it: NoSuchBucket, MANIFEST_UNKNOWN. The rest of what they say may repeat what was sent."""
    try:
        found = re.search(rb'<Code>(\w{1,64})</Code>|"code"\s*:\s*"(\w{1,64})"', error.read(MAX_REFUSAL))
    except (HTTPException, OSError):
        return ""  # it refused all the same
    return (found[1] or found[2]).decode() if found is not None else ""


def _read(url: str, headers: Mapping[str, str]) -> tuple[bytes, Mapping[str, str]]:
    try:
        with _open(url, headers) as answer:
            assert answer is not None
            content = answer.read(MAX_ANSWER + 1)
            found = dict(answer.headers.items())
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise Unreachable(f"{_shown(url)}: {_why(error)}") from None
    if len(content) > MAX_ANSWER:
        raise InvalidInput(f"{_shown(url)} answers with more than {MAX_ANSWER} bytes; it is no list of files")
    return content, found


def _shown(url: str) -> str:
    """Without its query, which may carry a signature."""
    return url.partition("?")[0]


def _name(path: str) -> str:
    name = PurePosixPath(urllib.parse.unquote(path)).name
    if not name:
        raise InvalidInput(f"{path!r} ends with no file's name")
    return name


def _checked(path: str) -> PurePosixPath:
    found = PurePosixPath(path)
    if found.is_absolute() or not found.parts or ".." in found.parts or "\0" in path:
        raise InvalidInput(f"{path!r} leads out of the model's folder; such a file is not taken")
    return found


def _http_headers(environment: Mapping[str, str]) -> Headers:
    token = environment.get("BANYAN_IMPORT_TOKEN", "")
    return lambda url: {"Authorization": f"Bearer {token}"} if token else {}


# --- S3 ------------------------------------------------------------------------------------------------------------------


def _s3(bucket: str, key: str, environment: Mapping[str, str]) -> list[Remote]:
    if not bucket or not key:
        raise InvalidInput("s3://BUCKET/KEY names one object, s3://BUCKET/FOLDER/ all below a folder")
    keys = signing.Keys.of(environment)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
    base = f"{endpoint.rstrip('/')}/{urllib.parse.quote(bucket)}"

    def headers(url: str) -> Mapping[str, str]:
        return signing.headers(url, keys, region) if keys is not None else {}

    def remote(name: str, path: str, size: int = -1) -> Remote:
        return Remote(f"{base}/{urllib.parse.quote(name, safe='/-_.~')}", path, headers, size=size)

    if not key.endswith("/"):
        return [remote(key, _name(key))]
    found: list[Remote] = []
    token = ""
    while True:
        query = {"list-type": "2", "prefix": key} | ({"continuation-token": token} if token else {})
        url = f"{base}?{urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote)}"
        names, token = _listed(_read(url, headers(url))[0])
        found += [remote(name, name.removeprefix(key), size) for name, size in names if not name.endswith("/")]
        if not token or len(found) > MAX_FILES:
            return found


def _listed(content: bytes) -> tuple[list[tuple[str, int]], str]:
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise InvalidInput("the bucket's list declares entities; no S3 server does that")
    try:
        tree = ElementTree.fromstring(content)  # noqa: S314  (no entities, and bounded)
    except ElementTree.ParseError as error:
        raise InvalidInput(f"the bucket's list is not understood: {error}") from None
    space = tree.tag.partition("}")[0] + "}" if tree.tag.startswith("{") else ""
    names = [(each.findtext(f"{space}Key") or "", int(each.findtext(f"{space}Size") or -1)) for each in tree.iter(f"{space}Contents")]
    return names, tree.findtext(f"{space}NextContinuationToken") or ""


# --- OCI -----------------------------------------------------------------------------------------------------------------


class _Token(Struct, frozen=True):
    """What a registry gives who logs in; by one name or the other."""

    token: str = ""
    access_token: str = ""


class _Registry:
    """The OCI distribution specification, as far as reading goes: a manifest, its layers, and a token when the registry asks for one."""

    def __init__(self, host: str, environment: Mapping[str, str]) -> None:
        if not host:
            raise InvalidInput("oci://HOST/REPOSITORY:TAG names an artifact")
        name = host.rpartition(":")[0] or host
        self._base = f"{'http' if name in {'localhost', '127.0.0.1', '[::1]'} else 'https'}://{host}/v2"
        self._user = environment.get("BANYAN_REGISTRY_USER", "")
        self._password = environment.get("BANYAN_REGISTRY_PASSWORD", "")
        self._token = ""

    def files(self, reference: str) -> list[Remote]:
        repository, separator, digest = reference.partition("@sha256:")
        if separator:
            tag = f"sha256:{digest}"
        else:
            repository, _, tag = reference.partition(":")
            tag = tag or "latest"
        url = f"{self._base}/{urllib.parse.quote(repository)}/manifests/{urllib.parse.quote(tag, safe=':')}"
        content = self._ask(url)
        if separator and hashlib.sha256(content).hexdigest() != digest:
            raise InvalidInput(f"{url}: the manifest has another sha256 than {reference}")
        try:
            manifest: dict[str, Any] = json.loads(content)
            layers = [self._layer(repository, number, layer) for number, layer in enumerate(manifest["layers"])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"{url} is no manifest of an artifact with layers: {error!r}") from None
        return layers

    def _layer(self, repository: str, number: int, layer: Mapping[str, Any]) -> Remote:
        algorithm, _, digest = str(layer["digest"]).partition(":")
        if algorithm != "sha256" or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
            raise InvalidInput(f"layer {number} has the digest {str(layer['digest'])[:80]!r}; sha256 is understood")
        title = str((layer.get("annotations") or {}).get(TITLE) or f"layer-{number}")
        url = f"{self._base}/{urllib.parse.quote(repository)}/blobs/sha256:{digest}"
        return Remote(url, title, self._headers, digest, int(layer["size"]))

    def _headers(self, url: str) -> Mapping[str, str]:
        if self._token:
            return {"Authorization": f"Bearer {self._token}"}
        return {"Authorization": f"Basic {self._basic()}"} if self._user else {}

    def _basic(self) -> str:
        return base64.b64encode(f"{self._user}:{self._password}".encode()).decode()

    def _ask(self, url: str) -> bytes:
        accept = {"Accept": ", ".join(MANIFESTS)}
        try:
            return _read(url, {**self._headers(url), **accept})[0]
        except Forbidden:
            if not self._log_in(url, accept):
                raise
        return _read(url, {**self._headers(url), **accept})[0]

    def _log_in(self, url: str, accept: Mapping[str, str]) -> bool:
        """Fetch a token where the registry's challenge says."""
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=dict(accept)), timeout=SECONDS):  # noqa: S310
                return False
        except urllib.error.HTTPError as error:
            with error:
                challenge = error.headers.get("WWW-Authenticate") or ""
        except urllib.error.URLError as error:
            raise Unreachable(f"{_shown(url)}: {_why(error)}") from None
        asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        realm = asked.pop("realm", "")
        if not challenge.lower().startswith("bearer") or urllib.parse.urlsplit(realm).scheme not in {"https", "http"}:
            return False
        secure = self._base.startswith("https")
        if secure and not realm.startswith("https"):
            raise Forbidden(f"{self._base} sends whoever logs in to {_shown(realm)}, which is not https; nothing was sent there")
        where = f"{realm}?{urllib.parse.urlencode({key: asked[key] for key in ('service', 'scope') if key in asked})}"
        try:
            answer = msgspec.json.decode(_read(where, {"Authorization": f"Basic {self._basic()}"} if self._user else {})[0], type=_Token)
        except msgspec.MsgspecError as error:
            raise InvalidInput(f"{_shown(realm)} answers with no token: {error}") from None
        self._token = answer.token or answer.access_token
        return bool(self._token)
