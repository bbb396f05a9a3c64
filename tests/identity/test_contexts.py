"""Real handshakes, on asyncio and on uvloop: what TLS lets through, and what it tells."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop

from cluster_controller.identity import Identity, certificates, contexts, peer_identity, presented_chain, user_identity, verified_chain
from cluster_controller.identity.users import Grant
from tests.identity.family import LONG_AGO, NOW, below, edge, region, root

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]
Chains = tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]


def on(loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, Chains]) -> Chains:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(main)


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None = None) -> Chains:
    """What the server verified of the client, the client of the server, and what the server presented."""
    seen: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(verified_chain(writer.get_extra_info("ssl_object")))
        writer.write(b"x")
        writer.close()

    listening = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=server)
    try:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname(), ssl=client, server_hostname=host or "")
        connection = writer.get_extra_info("ssl_object")
        assert connection.version() == "TLSv1.3"
        found = verified_chain(connection), presented_chain(connection)
        try:
            if await reader.read(1) != b"x":  # a TLS 1.3 client learns that it is refused when it reads
                raise ConnectionResetError("the server refused")
        finally:
            writer.transport.abort()
        return await seen, *found
    finally:
        listening.close()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("when", [NOW, LONG_AGO, NOW + timedelta(days=36500)], ids=["now", "expired", "not yet valid"])
def test_both_ends_are_known_whatever_the_dates(loop: Callable[[], asyncio.AbstractEventLoop], when: Any) -> None:
    child = below(region(), "edge-9", when)
    of_child, of_parent, presented = on(loop, handshake(region().server_context(), child.client_context()))
    assert peer_identity(of_child).uid == child.uid
    assert peer_identity(of_child).issuers == (region().uid, root().uid)
    assert peer_identity(of_parent).uid == region().uid
    assert presented[-1] == certificates.der(root().tree_ca)


@pytest.mark.parametrize("loop", LOOPS)
def test_without_a_certificate_a_peer_is_nobody(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    of_child, _, presented = on(loop, handshake(region().server_context(), contexts.join_client()))
    assert of_child == ()
    certificates.verify_chain([certificates.parse(one) for one in presented], root().tree_ca)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_foreign_client_is_refused(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    stranger = below(root("other"), "stranger")
    pretender = contexts.tunnel_client(_key(stranger), b"".join(stranger.certificate_chain), certificates.pem(root().tree_ca))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        on(loop, handshake(region().server_context(), pretender))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_foreign_server_is_refused(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with pytest.raises((ssl.SSLCertVerificationError, ConnectionError)):
        on(loop, handshake(below(root("other"), "stranger").server_context(), edge().client_context()))


def test_sessions_are_not_resumed() -> None:
    """A resumed connection shows no chain, so there must be none."""
    assert region().server_context().num_tickets == 0
    assert region().api_context([], NOW).num_tickets == 0


def test_older_tls_is_not_spoken() -> None:
    client = contexts.join_client()
    client.minimum_version = ssl.TLSVersion.TLSv1_2
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        asyncio.run(handshake(region().server_context(), client))


@pytest.mark.parametrize(
    ("identity", "anchor"),
    [
        pytest.param(root, "tree", id="root-tree"),
        pytest.param(root, "site", id="root-site"),
        pytest.param(region, "tree", id="region-tree"),
        pytest.param(region, "site", id="region-site"),
        pytest.param(lambda: below(region(), "leaf", NOW, leaf=True), "site", id="leaf-site"),  # it stands under its site CA alone
    ],
)
def test_an_api_is_accepted_under_the_tree_and_under_its_site(identity: Callable[[], Identity], anchor: str) -> None:
    one = identity()
    client = _strict_client(one.tree_ca if anchor == "tree" else one.site.certificate)
    user = one.user_credential("alice", (Grant("view"),), NOW, timedelta(days=1))
    contexts.load(client, user.key, user.certificate)
    shown, _, _ = asyncio.run(handshake(one.api_context(["console.example"], NOW), client, host="console.example"))
    assert user_identity(shown).name == "alice"


def test_a_renewed_api_certificate_serves_new_connections() -> None:
    context = edge().api_context([], NOW)
    _, before, _ = asyncio.run(handshake(context, _strict_client(edge().site.certificate), host="127.0.0.1"))
    edge().renew_api_context(context, ["other.example"], NOW)
    _, after, _ = asyncio.run(handshake(context, _strict_client(edge().site.certificate), host="other.example"))
    assert before[0] != after[0]


def test_openssl_accepts_the_chains_strictly(tmp_path: Path) -> None:
    """With all checks, dates included, and each for its purpose."""
    openssl = shutil.which("openssl")
    assert openssl, "openssl is part of every Debian; install the package openssl"
    api = certificates.parse_pem(_api_chain(region()), "test")
    user = certificates.parse_pem(region().user_credential("a", (), NOW, timedelta(days=1)).certificate, "test")
    member = [certificates.parse(one) for one in edge().peer.chain]
    for purpose, chain in (("sslserver", api), ("sslclient", user), ("sslclient", member), ("sslserver", member)):
        (tmp_path / "ca").write_bytes(certificates.pem(root().tree_ca))
        (tmp_path / "leaf").write_bytes(certificates.pem(chain[0]))
        (tmp_path / "rest").write_bytes(certificates.pem(*chain[1:]))
        at = str(int((NOW + timedelta(hours=1)).timestamp()))
        command = [openssl, "verify", "-x509_strict", "-attime", at, "-purpose", purpose, "-CAfile", "ca", "-untrusted", "rest", "leaf"]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_key_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    real = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, certfile: str) -> None:
        paths.append(certfile)
        real(self, certfile)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    below(region(), "edge-3").client_context()
    assert paths and all(path.startswith("/proc/self/fd/") and not Path(path).exists() for path in paths)


def _strict_client(anchor: Any) -> ssl.SSLContext:
    """As kubectl or a browser: host name, chain and purpose are checked. (The host's clock is not NOW: dates are openssl's test.)"""
    context = ssl.create_default_context(cadata=certificates.pem(anchor).decode())
    context.verify_flags |= contexts.NO_CHECK_TIME | ssl.VERIFY_X509_STRICT
    return context


def _key(identity: Identity) -> bytes:
    from cluster_controller.identity import keys

    return keys.to_pem(identity._key)


def _api_chain(identity: Identity) -> bytes:
    return identity._api_certificate(["console.example"], NOW)[1]
