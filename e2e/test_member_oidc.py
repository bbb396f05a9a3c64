"""A kubeconfig whose person is known by OpenID Connect: a real API server, and an issuer that hands out short-lived tokens."""

import asyncio
import base64
import http.server
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes.api import ApiError
from e2e.test_member_api import asking, config, who
from e2e.testbed import Member, Shape, Testbed
from e2e.testbed.fixtures import begin
from e2e.testbed.pki import Authority

pytestmark = pytest.mark.needs("kubectl")
CLIENT, SECRET = "banyan", "s3cret"


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer(http.server.ThreadingHTTPServer):
    """Discovery, keys, and a token for whoever shows the refresh token (OpenID Connect Core 1.0, section 12)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        authority = Authority(folder)
        self.ca = authority.certificate
        certificate, key = authority.issue("issuer", "issuer", hosts=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        self.refresh = "refresh-1"
        self.refreshed = 0
        self._key = ec.generate_private_key(ec.SECP256R1())

    def token(self, seconds: float) -> str:
        head = {"alg": "ES256", "kid": "k", "typ": "JWT"}
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "sub": "robot", "iat": now, "exp": int(now + seconds)}
        signed = ".".join(encode(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{encode(r.to_bytes(32) + s.to_bytes(32))}"

    def keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        point = {"x": encode(numbers.x.to_bytes(32)), "y": encode(numbers.y.to_bytes(32))}
        return {"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "use": "sig", "alg": "ES256", **point}]}


class Answers(http.server.BaseHTTPRequestHandler):
    server: Issuer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        url = self.server.url
        discovery = {"issuer": url, "jwks_uri": f"{url}/keys", "token_endpoint": f"{url}/token", "authorization_endpoint": f"{url}/auth"}
        discovery |= {"response_types_supported": ["code"], "subject_types_supported": ["public"]}  # type: ignore[dict-item]
        discovery |= {"id_token_signing_alg_values_supported": ["ES256"]}  # type: ignore[dict-item]
        self._say(200, self.server.keys() if self.path == "/keys" else discovery)

    def do_POST(self) -> None:
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        basic = "Basic " + base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        good = self.path == "/token" and self.headers["Authorization"] == basic and form.get("grant_type") == "refresh_token"
        if not good or form.get("refresh_token") != self.server.refresh:
            self._say(400, {"error": "invalid_grant", "error_description": "that refresh token is worth nothing"})
            return
        self.server.refreshed += 1
        token = {"access_token": "unused", "token_type": "Bearer", "expires_in": 3, "refresh_token": self.server.refresh}
        self._say(200, {**token, "id_token": self.server.token(3)})

    def _say(self, status: int, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    server = Issuer(tmp_path / "issuer")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def of(issuer: Issuer, member: Member, path: Path) -> Path:
    """A kubeconfig as `kubelogin setup` or the API server's documentation gives it, its token expired a minute ago."""
    settings = {"client-id": CLIENT, "client-secret": SECRET, "idp-issuer-url": issuer.url, "idp-certificate-authority": str(issuer.ca)}
    settings |= {"id-token": issuer.token(-60), "refresh-token": "refresh-1"}
    return config(member, path, {"auth-provider": {"name": "oidc", "config": settings}})


def test_an_expired_token_is_refreshed_as_often_as_it_takes(issuer: Issuer, testbed_members: Testbed, tmp_path: Path) -> None:
    settings = {"issuer-url": issuer.url, "client-id": CLIENT, "ca-file": issuer.ca, "username-prefix": "oidc:", "signing-algs": "ES256"}
    server = tuple(f"--oidc-{name}={value}" for name, value in settings.items())
    member = begin(testbed_members, "oidc", Shape(controllers=False, apiserver=server))
    kubeconfig = of(issuer, member, tmp_path / "oidc.kubeconfig")
    before = kubeconfig.read_bytes()

    member.kubectl("create", "clusterrolebinding", "robot", "--clusterrole=cluster-admin", "--user=oidc:robot")

    async def let_in(ask: Callable[[], Awaitable[str]]) -> str:
        for _ in range(300):  # an API server gets to know its issuer a while after it is ready
            try:
                return await ask()
            except ApiError as error:
                assert error.status == 401
                await asyncio.sleep(0.2)
        raise AssertionError("never let in")

    async def ask() -> str:
        async with asking(kubeconfig) as api:
            return await who(api)

    async def play() -> None:
        assert await let_in(ask) == "oidc:robot"
        async with asking(kubeconfig) as api:
            assert await who(api) == "oidc:robot"
            first = issuer.refreshed
            for _ in range(300):  # what it holds has expired after 3 s, and the API server believes what it has once seen for ten more
                assert await let_in(lambda: who(api)) == "oidc:robot"
                if issuer.refreshed > first:
                    break
                await asyncio.sleep(0.2)
            assert issuer.refreshed > first > 0

    asyncio.run(play())
    assert kubeconfig.read_bytes() == before  # it is the person's


def test_an_issuer_that_refuses_or_is_away_is_named_with_a_remedy(issuer: Issuer, control_plane: Member, tmp_path: Path) -> None:
    kubeconfig = of(issuer, control_plane, tmp_path / "oidc.kubeconfig")

    async def play() -> None:
        async with asking(kubeconfig):
            pass

    issuer.refresh = "another"
    with pytest.raises(ShimError, match=r"its OIDC issuer gives no new token: .*invalid_grant.*; log in again") as refused:
        asyncio.run(play())
    assert str(kubeconfig) in str(refused.value)
    assert "refresh-1" not in str(refused.value)
    issuer.socket.close()
    with pytest.raises(ShimError, match="its OIDC issuer gives no new token"):
        asyncio.run(play())
