"""A member's API server, and the way to it: another one is never asked for anything, and a dead connection does not stay."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from cluster_shim.kubernetes import api as api_module
from cluster_shim.kubernetes import dial
from cluster_shim.kubernetes.api import Access, Api, ApiError, Cut, credential_trouble
from cluster_shim.kubernetes.trust import CA_FILE, Trust
from tests.kubernetes.scripted import SECONDS, Exchange, kubeconfig, scripted

SYSTEM = "/api/v1/namespaces/kube-system"


def test_a_client_certificate_that_has_expired_is_said_to_have_and_when(tmp_path: Path) -> None:
    Trust(tmp_path)
    file = tmp_path / CA_FILE
    shown = x509.load_pem_x509_certificate(file.read_bytes())
    end, begin = shown.not_valid_after_utc, shown.not_valid_before_utc
    said = credential_trouble(str(file), end + timedelta(days=1))
    assert f"the client certificate of the kubeconfig expired at {end:%Y-%m-%dT%H:%M:%SZ}" in said
    assert "is the clock right?" in credential_trouble(str(file), begin - timedelta(days=1))
    assert "does not accept the client certificate" in credential_trouble(str(file), begin + timedelta(days=1))


def test_a_token_is_named_where_there_is_no_certificate_and_a_broken_file_is_no_other_error(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert "does not accept the token" in credential_trouble(None, now)
    (tmp_path / "broken").write_text("x")
    for name in ("broken", "missing"):
        assert "does not accept the client certificate" in credential_trouble(str(tmp_path / name), now)


# --- a configuration that changes under it ---


def member(uid: str, token: str) -> Callable[[Exchange], None]:
    """One that knows this token only."""

    def script(asked: Exchange) -> None:
        if asked.token != token:
            asked.refuse(401, "Unauthorized")
        elif asked.path == "/version":
            asked.say({"gitVersion": "v1.34.2"})
        elif asked.path == SYSTEM:
            asked.say({"metadata": {"uid": uid}})
        else:
            asked.say({"from": uid})

    return script


def at_home(tmp_path: Path, body: Callable[[Api], Awaitable[None]], url: str) -> None:
    async def main() -> None:
        api = await Api.open(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        try:
            async with asyncio.timeout(SECONDS):
                await body(api)
        finally:
            await api.close()

    asyncio.run(main())


async def said(asking: Awaitable[bytes]) -> str:
    with pytest.raises(ApiError) as refused:
        await asking
    return str(refused.value)


def test_another_cluster_is_written_to_by_nobody_while_it_is_being_looked_at(tmp_path: Path) -> None:
    looked, go = threading.Event(), threading.Event()

    def script(asked: Exchange) -> None:
        looked.set()
        asked.wait(go)
        member("away", "one")(asked)

    def home_script(asked: Exchange) -> None:
        if asked.path == "/refused":
            asked.refuse(401, "Unauthorized")
        else:
            member("home", "one")(asked)

    with scripted(home_script) as home, scripted(script) as away:

        async def body(api: Api) -> None:
            kubeconfig(tmp_path / "kubeconfig", away.url)
            refused = asyncio.ensure_future(said(api.request("GET", "/refused")))
            await asyncio.to_thread(looked.wait, SECONDS)
            written = await asyncio.gather(*(api.request("POST", f"/objects/{number}", body=b"{}") for number in range(20)))
            assert written == [b'{"from": "home"}'] * 20
            assert api.url == home.url
            go.set()
            assert "is another cluster than the one that was joined" in await refused
            await api.request("POST", "/objects/last", body=b"{}")

        at_home(tmp_path, body, home.url)
        assert away.asked == [("GET", SYSTEM)]
        assert len([path for method, path in home.asked if method == "POST"]) == 21


@pytest.mark.parametrize("trouble", ["500", "403", "silence", "nonsense"])
def test_one_that_does_not_say_which_cluster_it_is_is_not_taken_over_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(api_module, "RELOAD_SECONDS", 0.0)
    monkeypatch.setattr(api_module, "CONNECT_SECONDS", 0.3 if trouble == "silence" else 10.0)
    well = threading.Event()

    def script(asked: Exchange) -> None:
        if well.is_set():
            member("home", "two")(asked)
        elif trouble == "silence":
            asked.wait()
        elif trouble == "nonsense":
            asked.say({"hello": "there"})
        else:
            asked.refuse(int(trouble))

    with scripted(member("home", "one")) as home, scripted(script) as fresh:

        async def body(api: Api) -> None:
            kubeconfig(tmp_path / "kubeconfig", fresh.url, "two")
            home.script = member("home", "nobody's")
            assert "Unauthorized" in await said(api.request("POST", "/objects/a", body=b"{}"))
            assert api.url == home.url
            assert {path for _, path in fresh.asked} == {SYSTEM}
            monkeypatch.setattr(api_module, "CONNECT_SECONDS", 10.0)
            well.set()
            assert await api.request("POST", "/objects/b", body=b"{}") == b'{"from": "home"}'
            assert api.url == fresh.url

        at_home(tmp_path, body, home.url)


# --- connections that die without a word ---


def options(of: socket.socket) -> dict[str, int]:
    levels = {"SO_KEEPALIVE": socket.SOL_SOCKET}
    wanted = ("SO_KEEPALIVE", "TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    return {name: of.getsockopt(levels.get(name, socket.IPPROTO_TCP), getattr(socket, name)) for name in wanted}


WANTED = {
    "SO_KEEPALIVE": 1,
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,
}


def test_the_kernel_asks_whether_the_other_end_of_a_connection_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    connect = socket.socket.connect

    def spied(self: socket.socket, address: object) -> None:
        made.append(self)
        connect(self, address)  # type: ignore[arg-type]

    def script(asked: Exchange) -> None:
        asked.begin()
        asked.wait()

    with scripted(script) as server:

        async def main() -> None:
            api = Api(Access(kubeconfig(tmp_path / "kubeconfig", server.url)))
            monkeypatch.setattr(socket.socket, "connect", spied)
            try:
                lines = api.batches("/api/v1/pods", [("watch", "1")], Cut())
                assert await asyncio.to_thread(next, lines) == []
                assert [options(each) for each in made] == [WANTED]
                lines.close()
                stream = await api.connect()
                assert options(stream._writer.get_extra_info("socket")) == WANTED  # type: ignore[attr-defined]
                stream.abort()
            finally:
                await api.close()

        asyncio.run(main())


# --- raw connections ---


def test_a_raw_connection_goes_through_the_proxy_unless_the_server_is_excepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As requests do: an API server beside the controller is not to be looked for by a proxy elsewhere."""
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()

    async def main(url: str) -> None:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        with pytest.raises(ApiError, match=r"does not lead to 127.0.0.1:.*403 Forbidden"):
            await api.connect()
        await api.close()
        assert len(asked) == 1 and asked[0].startswith(b"CONNECT 127.0.0.1:")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        api = Api(Access(kubeconfig(tmp_path / "kubeconfig", url)))
        (await api.connect()).abort()
        await api.close()
        assert len(asked) == 1
        server.close()
        await server.wait_closed()

    with scripted(lambda asked: None) as server:
        asyncio.run(main(server.url))


@pytest.mark.parametrize("how", ["cancelled", "broken"])
def test_nothing_stays_open_of_a_dial_that_a_proxy_does_not_answer(how: str) -> None:
    async def main() -> None:
        met, over = asyncio.Event(), asyncio.Event()

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            met.set()
            if how == "broken":
                writer.transport.abort()
            with contextlib.suppress(OSError):
                while await reader.read(100):
                    pass
            over.set()
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        dialing = asyncio.ensure_future(dial.dial(dial.Route("https://10.0.0.1:6443", None, "", f"http://127.0.0.1:{port}")))
        async with asyncio.timeout(SECONDS):
            await met.wait()
            if how == "cancelled":
                dialing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dialing
            else:
                with pytest.raises(OSError):
                    await dialing
            await over.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(main())
