"""Connections to a controller that stay open from one request to the next, for load.

The command line's own client makes a connection for each POST, so that none is ever sent twice; under load that would measure handshakes.
Here a request that meets a closed connection has failed, and counts as that.
"""

import http.client
import ssl
from collections.abc import Mapping

from banyanctl.client import tls_context
from banyanctl.credential import Endpoint

MOST_BYTES = 64 * 1024 * 1024  # of one answer


class Asking:
    """One connection; not for several threads at once."""

    def __init__(self, endpoint: Endpoint, timeout: float, context: ssl.SSLContext | None = None) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self.context = context or tls_context(endpoint)
        self._connection: http.client.HTTPSConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
        """Status, body and the way that it took (`Banyan-Route`). OSError or http.client.HTTPException when there is no answer."""
        given = {"User-Agent": "banyan"} | dict(headers or {})
        if self._endpoint.token:
            given["Authorization"] = f"Bearer {self._endpoint.token}"
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.request(method, self._endpoint.path + path, body, given)
            answer = self._connection.getresponse()
            data = answer.read(MOST_BYTES)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        return answer.status, data, answer.headers.get("Banyan-Route", "")

    def _connect(self) -> http.client.HTTPSConnection:
        host, port = self._endpoint.address
        made = http.client.HTTPSConnection(host, port, timeout=self._timeout, context=self.context)
        if name := self._endpoint.tls_server_name:
            http.client.HTTPConnection.connect(made)
            made.sock = self.context.wrap_socket(made.sock, server_hostname=name)
        return made

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
