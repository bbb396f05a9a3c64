"""A controller's API over HTTPS: the standard library's client, one connection, Kubernetes-style errors read once, here.

What the API refuses comes out as the error of `cluster_controller.errors` that the command line exits with; what the network
refuses comes out as Unreachable with the address and the remedy. Answers are read with a bound; logs and watches stream.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

from msgspec import Struct

from banyanctl.credential import Endpoint
from banyanctl.endpoint import below
from cluster_controller.errors import (
    AlreadyExists,
    BanyanError,
    Conflict,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unreachable,
)

ANSWER_LIMIT_BYTES = 256 * 1024 * 1024  # of one answer held in memory; larger lists are asked for in pages
PAGE = 500
TIMEOUT_SECONDS = 30.0
# X509_V_FLAG_NO_CHECK_TIME: dates are judged by issuers alone, so a site with a wrong clock is not locked out of itself.
NO_CHECK_TIME = 0x200000

Document = dict[str, Any]
_ERRORS: dict[int, type[BanyanError]] = {
    400: InvalidInput,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: InvalidInput,
    406: InvalidInput,
    409: Conflict,
    410: Conflict,
    413: InvalidInput,
    415: InvalidInput,
    422: InvalidInput,
    429: Exhausted,
    502: Unreachable,
    503: Unreachable,
    504: Unreachable,
}


class Answer(Struct, frozen=True):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class Client:
    """Asks one controller. Not for several threads at once; `copy` makes another."""

    def __init__(self, endpoint: Endpoint, timeout: float = TIMEOUT_SECONDS) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._context: ssl.SSLContext | None = None
        self._connection: http.client.HTTPSConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def interrupt(self) -> None:
        """End what another thread reads (`lines`): it sees the connection break. `close` would wait for that thread."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # beneath TLS, which that thread is using

    def at(self, cluster: str) -> "Client":
        """The controller of a descendant, asked through this one."""
        return self.copy(below(self.endpoint, cluster)) if cluster else self

    def copy(self, endpoint: Endpoint | None = None, timeout: float | None = None) -> "Client":
        other = Client(endpoint or self.endpoint, timeout or self.timeout)
        other._context = self._context
        return other

    # --- requests ---

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request, its answer whole; an answer of 400 and above is returned like any other."""
        response = self._send(method, path, query, body, headers)
        try:
            data = response.read(ANSWER_LIMIT_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unreachable(f"the connection to {self.endpoint.server} broke while the answer came: {error}; try again") from error
        if len(data) > ANSWER_LIMIT_BYTES:
            self.close()
            raise Exhausted(f"{method} {path} answers with more than {ANSWER_LIMIT_BYTES // 2**20} MiB; ask for less, with a selector")
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, data)

    def json(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, body: Any = None, *, content: str = "", accept: str = ""
    ) -> Any:
        """One request with a JSON body and answer; raises the error that the API named."""
        headers = {"Accept": accept or "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content or "application/json"
        answer = self.request(method, path, query, data, headers)
        raise_for(answer, self.endpoint)
        try:
            return json.loads(answer.body) if answer.body else {}
        except ValueError as error:
            raise Unreachable(
                f"{self.endpoint.server} answered {method} {path} with something that is no JSON; is it a Banyan controller?"
            ) from error

    def lines(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[bytes]:
        """The lines of an answer as they come (logs, watches), until it ends."""
        response = self._send("GET", path, query, None, {"Accept": "application/json, text/plain"})
        if response.status >= 400:
            answer = Answer(response.status, {}, response.read(1024 * 1024))
            raise_for(answer, self.endpoint)
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(None)  # a quiet log is no fault
        try:
            while line := response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the connection to {self.endpoint.server} broke: {error}") from error
        finally:
            self.close()

    def download(self, method: str, path: str, body: Any = None) -> tuple[dict[str, str], Iterator[bytes]]:
        """A large answer as it comes: its headers (names in lower case) and its bytes. Raises the error that the API named."""
        data = None if body is None else json.dumps(body).encode()
        response = self._send(method, path, None, data, {"Content-Type": "application/json"} if data is not None else None)
        if response.status >= 400:
            raise_for(Answer(response.status, {}, response.read(1024 * 1024)), self.endpoint)
        return {name.lower(): value for name, value in response.getheaders()}, self._chunks(response)

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while chunk := response.read(256 * 1024):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"the connection to {self.endpoint.server} broke while the answer came: {error}; try again") from error
        finally:
            self.close()

    def pages(self, path: str, query: Mapping[str, Any] | None = None, accept: str = "") -> Iterator[Document]:
        """A list, page by page."""
        query = dict(query or {}) | {"limit": PAGE}
        while True:
            page: Document = self.json("GET", path, query, accept=accept)
            yield page
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return
            query["continue"] = following

    def items(self, path: str, query: Mapping[str, Any] | None = None) -> list[Document]:
        return [item for page in self.pages(path, query) for item in page.get("items") or []]

    def certificate_names(self) -> list[str]:
        """Host names and addresses that the controller's certificate is good for."""
        connection = self._connect()
        try:
            connection.connect()
            found = connection.sock.getpeercert() or {}
        except OSError as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        return [str(entry[1]) for entry in found.get("subjectAltName", ())]

    # --- the connection ---

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: bytes | Iterator[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> http.client.HTTPResponse:
        target = self.endpoint.path + path
        if given := {key: value for key, value in (query or {}).items() if value not in (None, "")}:
            target += "?" + urlencode(given)
        head = {"User-Agent": "banyan"} | dict(headers or {})
        if self.endpoint.token:
            head["Authorization"] = f"Bearer {self.endpoint.token}"
        if method == "POST":
            self.close()  # a kept connection may just have been closed by the server, and a POST must not be sent twice
        fresh = self._connection is None
        try:
            return self._exchange(method, target, body, head)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            stale = isinstance(error, ConnectionResetError | BrokenPipeError) and not fresh
            if not stale or not isinstance(body, bytes | None):
                raise self._unreachable(error) from error
        try:
            return self._exchange(method, target, body, head)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error

    def _exchange(
        self, method: str, target: str, body: bytes | Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, target, body, dict(headers))
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPSConnection:
        if self._context is None:
            self._context = tls_context(self.endpoint)
        host, port = self.endpoint.address
        connection = http.client.HTTPSConnection(host, port, timeout=self.timeout, context=self._context)
        if self.endpoint.tls_server_name:
            connection = _Named(host, port, self.endpoint.tls_server_name, self.timeout, self._context)
        return connection

    def _unreachable(self, error: Exception) -> BanyanError:
        server = "https://{}:{}".format(*self.endpoint.address)
        where = f" (from {self.endpoint.source})" if self.endpoint.source else ""
        match error:
            case ssl.SSLCertVerificationError():
                return Unauthenticated(
                    f"{server}{where} is not the controller that the kubeconfig names: {error.verify_message}. Get a new kubeconfig there"
                    " with `banyan kubeconfig`, or check that nothing else listens at that address"
                )
            case ssl.SSLError():
                return Unauthenticated(
                    f"{server}{where} broke off the TLS handshake: {error.reason or error}; was your certificate revoked?"
                )
            case ConnectionRefusedError():
                return Unreachable(f"nothing listens at {server}{where}: the controller is not running; start it with `banyan run`")
            case TimeoutError():
                return Unreachable(f"{server}{where} did not answer within {self.timeout:.0f} s; is the host up and the port open?")
            case _:
                return Unreachable(f"{server}{where} cannot be reached: {error or type(error).__name__}")


class _Named(http.client.HTTPSConnection):
    """A connection whose certificate names something else than the address that is dialled (tls-server-name)."""

    def __init__(self, host: str, port: int, name: str, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout)
        self._tls = context
        self._name = name

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def tls_context(endpoint: Endpoint) -> ssl.SSLContext:
    """Trusts the kubeconfig's authority alone; presents its certificate, without ever writing the key to a disk."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= NO_CHECK_TIME
    if endpoint.ca:
        context.load_verify_locations(cadata=endpoint.ca)
    else:
        context.load_default_certs()
    if endpoint.certificate:
        with _in_memory(endpoint.certificate + "\n" + endpoint.key) as path:
            try:
                context.load_cert_chain(path)
            except ssl.SSLError as error:
                raise InvalidInput(f"{endpoint.source}: the client certificate and its key do not fit together") from error
    return context


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """The path of a file that lives in memory only; `ssl` reads certificates from paths alone."""
    descriptor = os.memfd_create("banyan-credential")
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def raise_for(answer: Answer, endpoint: Endpoint) -> None:
    """Nothing for an answer below 400; else the error that it stands for, in the API's own words."""
    if answer.status < 400:
        return
    reason, message = "", ""
    try:
        status = json.loads(answer.body)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    except (ValueError, AttributeError):
        message = answer.body[:500].decode("utf-8", "replace").strip()
    message = message or f"{endpoint.server} answered {answer.status}"
    if answer.status == 409 and reason == "AlreadyExists":
        raise AlreadyExists(message)
    if answer.status == 401:
        raise Unauthenticated(
            f"{message}; the credential of {endpoint.source or endpoint.server} is not accepted: has it expired or been revoked?"
        )
    raise _ERRORS.get(answer.status, BanyanError)(message)


def resource_path(group: str, version: str, plural: str, namespace: str = "", name: str = "", *rest: str) -> str:
    """The path of a list, an object or a subresource."""
    path = f"/apis/{group}/{version}" if group else f"/api/{version}"
    if namespace:
        path += f"/namespaces/{quote(namespace, safe='')}"
    for part in (plural, name, *rest):
        if part:
            path += "/" + quote(part, safe="")
    return path
