"""Addresses, proxies and backoff; and real links through real CONNECT proxies, plain and TLS."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster_controller.errors import InvalidInput, Unreachable
from cluster_controller.identity.contexts import join_client
from cluster_controller.tunnel import JoinRequest, Limits, ProxyFailed, ask
from cluster_controller.tunnel.proxy import Address, parse_address, parse_proxy, proxy_for
from tests.tunnel.support import Member, identity, root, run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parent.example", Address("parent.example", 10000)),
        ("parent.example:443", Address("parent.example", 443)),
        ("wss://parent.example:443/", Address("parent.example", 443)),
        ("[::1]:8443", Address("::1", 8443)),
        ("10.0.0.1:10000", Address("10.0.0.1", 10000)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "http://x", "host:port", "host:99999", "wss://u:p@host", "wss://host/path", ":10000"])
def test_what_is_no_address_is_said_with_the_remedy(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"address|port"):
        parse_address(text)


def test_proxies_hide_their_password() -> None:
    proxy = parse_proxy("https://us%40er:p%3Aw@proxy.example")
    assert (proxy.address, proxy.tls, proxy.user, proxy.password) == (Address("proxy.example", 443), True, "us@er", "p:w")
    assert repr(proxy) == str(proxy) == "https://***@proxy.example:443"
    assert parse_proxy("proxy.example:3128").address == Address("proxy.example", 3128)
    for bad in ("ftp://x", "http://", "http://user:secret@host:port"):
        with pytest.raises(InvalidInput) as caught:
            parse_proxy(bad)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "excepted"),
    [
        ("", False), ("*", True), ("parent.example", True), ("example", True), (".example", True), ("*.example", True),
        ("rent.example", False), ("other, parent.example", True),
        ("parent.example:10000", True), ("parent.example:443", False), ("10.0.0.0/8", False),
    ],
)  # fmt: skip
def test_no_proxy(rules: str, excepted: bool) -> None:
    environment = {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": rules}
    assert (proxy_for(Address("parent.example", 10000), None, environment) is None) == excepted


def test_the_configured_proxy_wins_over_the_environment_and_an_empty_one_means_none() -> None:
    environment = {"https_proxy": "http://proxy:1", "NO_PROXY": "10.0.0.0/8"}
    assert proxy_for(Address("10.1.2.3", 1), None, environment) is None
    assert proxy_for(Address("11.1.2.3", 1), None, environment) == parse_proxy("http://proxy:1")
    assert proxy_for(Address("10.1.2.3", 1), "http://other:2", environment) == parse_proxy("http://other:2")
    assert proxy_for(Address("11.1.2.3", 1), "", environment) is None


class RealProxy:
    """A CONNECT proxy that wants credentials."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.refused = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if f"Basic {base64.b64encode(b'user:secret').decode()}" not in head:
            self.refused += 1
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        target = head.split()[1]
        self.targets.append(target)
        host, _, port = target.rpartition(":")
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(self.copy(reader, upstream_writer), self.copy(upstream_reader, writer))

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def proxy_and_parent(context: ssl.SSLContext | None) -> AsyncIterator[tuple[RealProxy, int, Member, int]]:
    proxy, parent = RealProxy(), Member(root())
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield proxy, server.sockets[0].getsockname()[1], parent, await parent.tunnel.serve("127.0.0.1", 0)
    finally:
        await parent.close()
        server.close()
        await asyncio.sleep(0.05)  # the copies end


def test_a_child_joins_through_a_proxy_with_credentials() -> None:
    async def main() -> None:
        async with proxy_and_parent(None) as (proxy, proxy_port, parent, port):
            child = Member(identity("honest"))
            child.dial(port, f"http://user:secret@127.0.0.1:{proxy_port}")
            await parent.until(lambda: child.uid in parent.tunnel.links)
            assert proxy.targets == [f"127.0.0.1:{port}"]
            await child.close()

    run(main)


def test_a_proxy_that_wants_credentials_is_the_reason_shown() -> None:
    async def main() -> None:
        async with proxy_and_parent(None) as (proxy, proxy_port, _, port):
            child = Member(identity("honest"))
            child.dial(port, f"http://127.0.0.1:{proxy_port}")
            while child.tunnel.dial_error is None:
                await asyncio.sleep(0.01)
            assert "wants credentials" in str(child.tunnel.dial_error)
            assert proxy.refused
            await child.close()

    run(main)


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ("refuses", "wants credentials"),
        ("hangs up", "closed the connection"),
        ("is silent", "does not connect"),
        ("is not there", "cannot be reached"),
        ("speaks no TLS", "does not speak TLS"),
        ("is not trusted", "certificate that is not trusted"),
    ],
)
def test_when_it_is_the_proxy_the_error_says_so_by_its_type(manner: str, reason: str) -> None:
    """Whoever asks (`banyan join`) and whoever keeps a link: both know it without reading the text."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                if manner == "is silent":
                    await reader.read()
                elif manner != "hangs up":
                    await reader.read(1)
                    writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                writer.close()

        context = identity("other").server_context() if manner == "is not trusted" else None
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        if manner == "is not there":
            server.close()
        scheme = "https" if manner in ("speaks no TLS", "is not trusted") else "http"
        proxy, limits = f"{scheme}://user:secret@127.0.0.1:{port}", Limits(handshake_time=0.3, connect_time=0.3, backoff_first=0.01)
        with pytest.raises(ProxyFailed, match=reason) as caught:
            await ask(["127.0.0.1:10000"], join_client(), JoinRequest(), proxy=proxy, limits=limits)
        assert "secret" not in str(caught.value)
        child = Member(identity("honest"), limits)
        child.dial(10000, proxy)
        while child.tunnel.dial_error is None:
            await asyncio.sleep(0.01)
        assert isinstance(child.tunnel.dial_error, ProxyFailed), child.tunnel.dial_error
        assert reason in str(child.tunnel.dial_error)
        await child.close()
        server.close()
        await asyncio.sleep(0.05)  # the conversations end

    run(main)


def test_a_parent_behind_a_proxy_that_refuses_is_not_taken_for_the_proxy() -> None:
    async def main() -> None:
        async with proxy_and_parent(None) as (_, proxy_port, _parent, port):
            child = Member(identity("child", "region"))  # of another parent
            child.dial(port, f"http://user:secret@127.0.0.1:{proxy_port}")
            while child.tunnel.dial_error is None:
                await asyncio.sleep(0.01)
            assert not isinstance(child.tunnel.dial_error, ProxyFailed)
            error = child.tunnel.dial_error
            assert error is not None and error.__traceback__ is error.__context__ is None, "it keeps the failed link in memory"
            await child.close()

    run(main)


def test_tls_runs_inside_the_tls_of_an_https_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)

    async def main() -> None:
        async with proxy_and_parent(identity("other").server_context()) as (proxy, proxy_port, parent, port):
            child = Member(identity("honest"))
            child.dial(port, f"https://user:secret@127.0.0.1:{proxy_port}")
            await parent.until(lambda: child.uid in parent.tunnel.links)
            assert proxy.targets
            await child.close()

    run(main)


def test_the_second_address_is_tried_when_the_first_does_not_answer() -> None:
    async def main() -> None:
        parent, child = Member(root()), Member(identity("honest"))
        port = await parent.tunnel.serve("127.0.0.1", 0)
        child.dialling = asyncio.create_task(child.tunnel.dial(["127.0.0.1:1", f"127.0.0.1:{port}"], ""))
        await parent.until(lambda: child.uid in parent.tunnel.links)
        await child.close()
        await parent.close()

    run(main)


def test_dialling_with_nothing_to_dial_is_an_error_at_once() -> None:
    async def main() -> None:
        child = Member(identity("honest"))
        for addresses in ([], ["host:port"]):
            with pytest.raises(InvalidInput):
                await child.tunnel.dial(addresses, "")

    run(main)


def test_an_attempt_is_bounded_by_the_first_byte_of_an_answer_and_a_busy_parent_is_waited_for() -> None:
    async def main() -> None:
        parent, child = Member(root()), Member(identity("region"))
        asked, release = asyncio.Event(), asyncio.Event()
        real = parent.welcome

        async def busy(hello: Any, peer: Any) -> Any:
            asked.set()
            await release.wait()
            return await real(hello, peer)

        parent.welcome = busy  # type: ignore[method-assign]
        frozen = socket.create_server(("127.0.0.1", 0))  # the kernel takes the connection, and nobody answers
        try:
            port = await parent.tunnel.serve("127.0.0.1", 0)
            dialer = child.tunnel._dialer
            with pytest.raises(Unreachable, match=r"does not answer within 0\.05 s"):
                await dialer._reach(parse_address(f"127.0.0.1:{frozen.getsockname()[1]}"), "", "", 0.05)
            attempt = asyncio.create_task(dialer._reach(parse_address(f"127.0.0.1:{port}"), parent.uid, "", 5.0))
            await asked.wait()
            (wire,) = child.tunnel._wires.open
            assert wire._owner.on_first_byte is None  # type: ignore[attr-defined]  # the bound is lifted
            release.set()
            assert (await attempt).peer_uid == parent.uid
        finally:
            frozen.close()
            await child.close()
            await parent.close()

    run(main)
