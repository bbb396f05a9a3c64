"""A member's API server, asked one thing at a time, by the way that `way` found to it.

The official client's models are never touched: bodies are bytes here, and their readers decode the few fields that they need.

Requests run in a few threads of an executor (urllib3 blocks); a watch runs in its caller's thread; a raw connection (`connect`) is
asyncio's own. A credential that stopped working (401, a certificate that the server no longer accepts) is read again from disk and
tried once more; whom the configuration names by then is asked for nothing before it has proved to be the cluster that was joined.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import structlog
import urllib3
from cryptography import x509
from msgspec import Struct

from cluster_controller import clock
from cluster_shim.contract import ByteStream, ShimError
from cluster_shim.kubernetes.dial import CHUNK, dial
from cluster_shim.kubernetes.way import Access, Way, read

log = structlog.get_logger()

__all__ = ["Access", "Api", "ApiError", "Cut", "Details", "Query", "another", "credential_trouble", "refusal"]

REQUEST_SECONDS = 30.0
CONNECT_SECONDS = 10.0
JSON = "application/json"
MAX_ANSWER = 64 << 20  # bytes of one answer; lists are asked for in pages, so nothing honest comes near
MAX_LINE = 16 << 20  # bytes of one watch event; an object of etcd is at most 1.5 MiB
THREADS = 8
RELOAD_SECONDS = 2.0  # a credential is read again at most this often
MAX_RETRY_AFTER = 30.0
SILENCE_SECONDS = 150.0  # of a watch; a server that has nothing to tell sends a bookmark about once a minute
PATIENCE_SECONDS = 60.0  # spent on a server that asks for some

Query = Sequence[tuple[str, str]]


class Details(Struct, frozen=True, rename="camel"):
    """The part of a `Status` that says what it is about."""

    name: str = ""
    group: str = ""
    kind: str = ""
    causes: list[dict[str, Any]] = []
    retry_after_seconds: int = 0


class _Status(Struct, frozen=True):
    message: str = ""
    reason: str = ""
    code: int = 0
    details: Details | None = None


class ApiError(ShimError):
    """The API server refused, or could not be asked (``status`` 0)."""

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", details: Details | None = None, retry_after: float | None = None
    ):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.details = details or Details()
        self.retry_after = retry_after


class Cut:
    """Ends the watch that is under way, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answer: Any = None
        self.ended = False  # the watch that is under way
        self.stopped = False

    def now(self) -> None:
        """Whoever reads it reads its end."""
        with self._lock:
            if self._answer is not None:
                self.ended = True
                with contextlib.suppress(ValueError, OSError, RuntimeError):
                    self._answer.shutdown()

    def stop(self) -> None:
        """And begins no other."""
        self.stopped = True
        self.now()

    @contextlib.contextmanager
    def over(self, answer: Any) -> Iterator[None]:
        with self._lock:
            self._answer, self.ended = answer, self.stopped
        try:
            yield
        finally:
            with self._lock:
                self._answer = None
            answer.close()


class Api:
    """Use `open`. Safe to be asked from one loop and from any number of watching threads."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # while the configuration is read again, which an exec plugin may make long
        self._loaded = self._tried = 0.0
        self._stranger = ""  # why the configuration as it is now is not used
        self._executor = ThreadPoolExecutor(THREADS, "kube-api")
        self._probing = ThreadPoolExecutor(1, "kube-probe")  # a probe behind other people's slow requests would prove nothing
        self._cuts: set[Cut] = set()  # of watches under way; `close` ends them
        self._closed = False
        self.version = ""  # as the server says it: v1.34.2
        self.cluster_uid = ""  # of the namespace kube-system: a cluster's only identity
        self._way = read(access)
        self._loaded = time.monotonic()

    @classmethod
    async def open(cls, access: Access) -> "Api":
        """Read the configuration and ask the server who it is. ShimError names the file, the context or the server, and the remedy."""
        loop = asyncio.get_running_loop()
        api = await loop.run_in_executor(None, cls, access)
        try:
            version = msgspec.json.decode(await api.request("GET", "/version"))
            api.version = str(version.get("gitVersion", ""))
            namespace = msgspec.json.decode(await api.request("GET", "/api/v1/namespaces/kube-system"))
            api.cluster_uid = str(namespace["metadata"]["uid"])
        except (ApiError, msgspec.DecodeError, KeyError) as error:
            await api.close()
            if isinstance(error, ApiError):
                raise ApiError(f"{api.url}: {error}", status=error.status, reason=error.reason) from None
            raise ShimError(f"{api.url} answers, but not as a Kubernetes API server does; check the server of the context") from None
        return api

    # --- configuration and credentials ---

    def _reload(self, asked: float) -> bool:
        """Read the credential again, unless that was done just now. Whether it is worth another try: it was read since ``asked``.

        Raises ApiError when the configuration leads to another cluster than before: it is not asked for anything. One that cannot say
        which cluster it is is not asked for anything either; it is looked at again.
        """
        with self._loading:
            if self._loaded > asked:
                return True
            if time.monotonic() - self._tried < RELOAD_SECONDS:
                if self._stranger:
                    raise ApiError(self._stranger)
                return False
            self._stranger = ""
            try:
                fresh = read(self._access)
                uid = self._uid(fresh) if self.cluster_uid else ""
            except ShimError as error:
                log.warning("member.credential", reason=str(error))
                return False
            finally:
                self._tried = time.monotonic()
            if uid != self.cluster_uid:
                self._stranger = another(self.cluster_uid, uid, fresh.url)
                raise ApiError(self._stranger)
            self._way, self._loaded = fresh, time.monotonic()
            return True

    def _uid(self, way: Way) -> str:
        """Which cluster answers there. ShimError when that is not to be learnt now."""
        try:
            answer = self._open(way, "GET", "/api/v1/namespaces/kube-system", {"accept": JSON}, silence=CONNECT_SECONDS)
            data = answer.read(MAX_ANSWER)
            answer.release_conn()
            if answer.status >= 400:
                raise refusal(answer.status, data)
            return str(msgspec.json.decode(data)["metadata"]["uid"])
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"{way.url} does not answer: {_cause(error)}") from None
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ApiError(f"{way.url} answers, but not as a Kubernetes API server does") from None

    @property
    def url(self) -> str:
        return self._way.url

    @property
    def way(self) -> object:
        """Which reading of the kubeconfig counts: another one after each change of it."""
        return self._way

    @property
    def inside(self) -> bool:
        """Whether this runs in a pod of the cluster itself."""
        return self._way.inside

    async def credential_headers(self) -> list[tuple[bytes, bytes]]:
        """``Authorization`` for a raw connection; empty where the connection's certificate says who we are."""
        way = self._way
        if way.configuration.refresh_api_key_hook is None:
            headers = _headers(way)  # nothing is read from a disk, nobody is asked
        else:
            headers = await asyncio.get_running_loop().run_in_executor(self._executor, _headers, way)
        return [(name.encode(), value.encode()) for name, value in headers.items() if name == "authorization"]

    # --- requests ---

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        timeout: float = REQUEST_SECONDS,
        probe: bool = False,
    ) -> bytes:
        """The answer's body. ApiError for everything else; a server that asks for patience (429, 503 with Retry-After) gets some.

        ``probe``: not behind other requests; one at a time.
        """
        executor = self._probing if probe else self._executor
        headers = {"accept": accept, **(headers or {})}
        if body is not None:
            headers["content-type"] = content_type
        target = path + ("?" + urlencode(query) if query else "")
        spent = 0.0
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(executor, self._ask, method, target, headers, body, timeout)
            except ApiError as error:
                if error.retry_after is None or spent >= PATIENCE_SECONDS:
                    raise
                # Those who were told the same do not come back together.
                pause = min(error.retry_after, MAX_RETRY_AFTER) * (1 + random.random() / 2)
                spent += pause
                await asyncio.sleep(pause)

    def _ask(self, method: str, target: str, headers: dict[str, str], body: bytes | None, timeout: float) -> bytes:
        answer = self._answer(method, target, headers, body, timeout)
        try:
            data: bytes = answer.read(MAX_ANSWER + 1)
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"{method} {target}: the answer broke off: {error}") from None
        finally:
            answer.release_conn()
        if len(data) > MAX_ANSWER:
            answer.close()
            raise ApiError(f"{method} {target}: an answer of more than {MAX_ANSWER >> 20} MiB is not read", status=500)
        if answer.status >= 400:
            raise self._refused(answer.status, data, answer.headers.get("retry-after"))
        if headers["accept"].startswith(JSON) and not (kind := answer.headers.get("content-type", "")).startswith(JSON):
            # A captive portal, or a balancer with a page of its own: nothing that was asked for has been done.
            raise ApiError(f"{self.url} answers, but not as a Kubernetes API server does: {kind or 'no content type'}", status=502)
        return data

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes | None, silence: float) -> Any:
        """An answer whose body is not read yet; a 401 or a failed handshake has had its second try."""
        asked = time.monotonic()
        try:
            answer = self._open(self._way, method, target, headers, body=body, silence=silence)
            if answer.status == 401 and self._reload(asked):
                answer.drain_conn()
                answer = self._open(self._way, method, target, headers, body=body, silence=silence)
        except urllib3.exceptions.SSLError as error:
            if not self._reload(asked):
                raise ApiError(f"{self.url}: TLS: {_cause(error)}; does the kubeconfig's certificate-authority fit this server?") from None
            try:
                answer = self._open(self._way, method, target, headers, body=body, silence=silence)
            except urllib3.exceptions.HTTPError as again:
                raise ApiError(f"{self.url}: {_cause(again)}") from None
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(f"{self.url} does not answer: {_cause(error)}") from None
        return answer

    def _refused(self, status: int, body: bytes, retry_after: str | None) -> ApiError:
        """A server says no more than Unauthorized; what is wrong with the credential is to be seen here."""
        error = refusal(status, body, retry_after)
        if status != 401:
            return error
        why = credential_trouble(self._way.configuration.cert_file, clock.wall())
        return ApiError(f"{error}: {why}", status=status, reason=error.reason, details=error.details)

    @staticmethod
    def _open(way: Way, method: str, target: str, headers: dict[str, str], *, body: bytes | None = None, silence: float) -> Any:
        """``silence``: seconds without a word after which it is given up."""
        return way.pool.urlopen(
            method,
            way.url.rstrip("/") + target,
            body=body,
            headers=headers | _headers(way),
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=silence),
        )

    def get(self, path: str, query: Query, accept: str = "application/json", timeout: float = REQUEST_SECONDS) -> bytes:
        """The same as `request("GET", …)`, in the caller's thread and with one try."""
        return self._ask("GET", f"{path}?{urlencode(query)}", {"accept": accept}, None, timeout)

    def batches(self, path: str, query: Query, cut: Cut, accept: str = JSON) -> Iterator[list[bytes]]:
        """The lines of a watch as they come, in the caller's thread, until the server ends it, ``cut`` does, or `close`.

        None at first, once the server has begun to answer. ApiError with status 0 when the connection does not last.
        """
        answer = self._answer("GET", f"{path}?{urlencode(query)}", {"accept": accept}, None, SILENCE_SECONDS)
        with self._lock:
            if self._closed:
                answer.close()
                return
            self._cuts.add(cut)
        try:
            with cut.over(answer):
                if answer.status >= 400:
                    raise self._refused(answer.status, answer.read(MAX_ANSWER), answer.headers.get("retry-after"))
                yield []
                pending = bytearray()
                while not cut.ended:
                    data = answer.read1(CHUNK)
                    if not data or cut.ended:
                        return  # what is read of a TLS connection that was shut down is not to be trusted
                    pending += data
                    end = pending.rfind(b"\n")
                    if end >= 0:
                        whole, pending = bytes(pending[:end]), pending[end + 1 :]
                        yield [line for line in whole.split(b"\n") if line]
                    if len(pending) > MAX_LINE:
                        raise ApiError(f"{path}: a watch event of more than {MAX_LINE >> 20} MiB is not read", status=500)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            if not cut.ended:
                raise ApiError(f"{path}: the watch broke off: {_cause(error)}") from None
        finally:
            with self._lock:
                self._cuts.discard(cut)

    async def allowed(self, verb: str, group: str, resource: str, namespace: str = "", *, subresource: str = "", name: str = "") -> bool:
        """Whether the member lets us do that (SelfSubjectAccessReview)."""
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace, "name": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }
        answer = await self.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=msgspec.json.encode(review))
        return bool(msgspec.json.decode(answer)["status"].get("allowed", False))

    async def connect(self) -> ByteStream:
        """A raw connection to the API server, through the kubeconfig's proxy where it names one; nothing is sent on it yet."""
        route = self._way.route
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await dial(route)
        except TimeoutError:
            raise ApiError(f"{route.url} does not answer within {CONNECT_SECONDS:.0f} s") from None
        except OSError as error:
            raise ApiError(f"{route.url} cannot be reached: {error.strerror or error}") from None

    async def close(self) -> None:
        """Ends watches in other threads too."""
        with self._lock:
            self._closed = True
            cuts = list(self._cuts)
        for cut in cuts:
            cut.stop()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._probing.shutdown(wait=False, cancel_futures=True)
        self._way.pool.clear()


def another(mine: str, found: str, url: str) -> str:
    return f"{url} is another cluster than the one that was joined: the uid of its kube-system is {found}, not {mine}"


def refusal(status: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """What a server's refusal says: its `Status` if it is one, else the beginning of its text."""
    try:
        said = msgspec.json.decode(body, type=_Status)
    except msgspec.DecodeError:
        said = _Status(message=body[:200].decode("utf-8", "replace").strip())
    patience: float | None = None
    if status in (429, 503):
        seconds = retry_after or (str(said.details.retry_after_seconds) if said.details and said.details.retry_after_seconds else "")
        with contextlib.suppress(ValueError):
            patience = max(0.1, float(seconds))
    return ApiError(said.message or f"HTTP {status}", status=status, reason=said.reason, details=said.details, retry_after=patience)


def credential_trouble(certificate: str | None, now: datetime) -> str:
    """Why a server takes nobody for who shows this client certificate (a file; none: a token, or what a plugin gave), and the remedy."""
    if not certificate:
        return "the server does not accept the token of this kubeconfig or service account; does kubectl work with the same one?"
    try:
        shown = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
    except (OSError, ValueError):
        return "the server does not accept the client certificate of this kubeconfig; does kubectl work with the same one?"
    if shown.not_valid_after_utc < now:
        return f"the client certificate of the kubeconfig expired at {shown.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}; give it a new one"
    if shown.not_valid_before_utc > now:
        return (
            f"the client certificate of the kubeconfig is valid only from {shown.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ};"
            " is the clock right?"
        )
    return "the server does not accept the client certificate of this kubeconfig; does kubectl work with the same one?"


def _headers(way: Way) -> dict[str, str]:
    """What authenticates a request, refreshed by the official client's own hook."""
    try:
        settings: dict[str, Any] = dict(way.configuration.auth_settings())
    except Exception as error:  # exec plugins and OIDC raise whatever they like
        raise ApiError(f"no credential: {type(error).__name__}: {error}; does kubectl work with the same kubeconfig?", status=401) from None
    headers = {"user-agent": "banyan"}
    for setting in settings.values():
        if setting.get("in") == "header" and setting.get("value"):
            headers[str(setting["key"]).lower()] = str(setting["value"])
    return headers


def _cause(error: BaseException) -> str:
    """The innermost reason of what urllib3 wraps."""
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection ended"
    reason = getattr(error, "reason", None)
    return (
        _cause(reason) if isinstance(reason, BaseException) else f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    )
