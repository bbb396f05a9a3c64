"""Model files as pods get them: real TLS on loopback, the real init step as a process of its own."""

import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from cluster_shim.contract import Component, Desired, ModelFile, ModelRef, ShimError, Work
from cluster_shim.kubernetes import files, render, trust
from cluster_shim.kubernetes.files import FileServer
from cluster_shim.kubernetes.render import Settings, Source
from edge_ai import fetch as edge_fetch

CONTENT = bytes(range(256)) * 3000  # several pieces


def work(folder: Path, uid: str = "uid-1", content: bytes = CONTENT) -> Work:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    file = ModelFile("model.onnx", hashlib.sha256(content).hexdigest(), len(content))
    model = ModelRef("m", "1", "model-uid", str(folder), (file,))
    component = Component(name="serve", replicas=1, revision="r", model=model)
    return Work(uid=uid, name="app", namespace="default", origin="root", version=1, components=(component,))


def digest(wanted: Work) -> str:
    model = wanted.components[0].model
    assert model is not None
    return model.files[0].sha256


@contextlib.asynccontextmanager
async def serving(folder: Path, *works: Work, settings: Settings | None = None) -> AsyncIterator[FileServer]:
    server = FileServer(folder, settings or Settings(files_url=f"https://127.0.0.1:{free_port()}"))
    await tell(server, Desired(works=works, full=True))
    server.start("https://127.0.0.1:6443")
    try:
        async with asyncio.timeout(30):
            await server.listening.wait()
        yield server
    finally:
        await server.close()


async def tell(server: FileServer, *changes: Desired) -> None:
    async def said() -> AsyncIterator[Desired]:
        for change in changes:
            yield change

    async for _ in server.listen(said()):
        pass


def free_port() -> int:
    """A port below those that the system hands out: no other test takes it before the server does, or while that restarts."""
    for port in random.sample(range(20_000, 32_000), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise AssertionError("no port is free")


async def ask(source: Source, head: str) -> bytes:
    context = ssl.create_default_context(cadata=source.ca)
    host, _, port = source.url.removeprefix("https://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(head.encode())
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def get(source: Source, name: str, *fields: str, token: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    lines = [f"{method} {name} HTTP/1.1", "Host: x", f"Authorization: Bearer {source.token if token is None else token}", *fields]
    answer = await ask(source, "\r\n".join(lines) + "\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def source_of(server: FileServer, wanted: Work) -> Source:
    found = server.source(wanted)
    assert found is not None
    return found


def test_a_token_opens_the_files_of_its_work_and_nothing_else(tmp_path: Path) -> None:
    mine, other = work(tmp_path / "m"), work(tmp_path / "o", "uid-2", b"another model")

    async def play() -> None:
        async with serving(tmp_path / "kept", mine, other) as server:
            source = source_of(server, mine)
            assert await get(source, f"/models/sha256/{digest(mine)}") == (200, CONTENT)
            assert await get(source, f"/models/sha256/{digest(mine)}", "Range: bytes=700000-") == (206, CONTENT[700000:])
            assert await get(source, f"/models/sha256/{digest(mine)}", method="HEAD") == (200, b"")
            for beyond in (len(CONTENT), len(CONTENT) + 1):  # there is no byte at its end
                assert (await get(source, f"/models/sha256/{digest(mine)}", f"Range: bytes={beyond}-"))[0] == 416
            assert (await get(source, f"/models/sha256/{digest(other)}"))[0] == 404
            for name in ("/", "/models/sha256/../key", f"/models/sha256/{digest(mine)}/x", "/models/sha256/" + "0" * 64):
                assert (await get(source, name))[0] == 404
            assert (await get(source, f"/models/sha256/{digest(mine)}", method="PUT"))[0] == 404
            forged = f"uid-2.{source.token.partition('.')[2]}"
            for token in ("", "x", "uid-1.", ".", forged, source.token[:-1], "üid.x"):
                assert (await get(source, f"/models/sha256/{digest(mine)}", token=token))[0] == 401

    uvloop.run(play())


def test_what_is_withdrawn_is_not_served_and_who_comes_too_early_is_told_to_come_again(tmp_path: Path) -> None:
    mine = work(tmp_path / "m")

    async def play() -> None:
        async with serving(tmp_path / "kept", mine) as server:
            source = source_of(server, mine)
            await tell(server, Desired(full=True))
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 503
            await tell(server, Desired(works=(mine,)))
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 200
            await tell(server, Desired(removed=("uid-1",)))
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 503
            await tell(server, Desired(works=(mine,)), Desired(full=True))
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 503

    uvloop.run(play())


def test_a_restart_keeps_tokens_ca_and_address_and_no_key_is_open_to_others(tmp_path: Path) -> None:
    mine = work(tmp_path / "m")
    settings = Settings()  # no address is said: it is found out, and kept

    async def once() -> Source:
        async with serving(tmp_path / "kept", mine, settings=settings) as server:
            return source_of(server, mine)

    first = uvloop.run(once())
    assert not first.url.startswith("https://127.")  # where no pod would find it
    assert uvloop.run(once()) == first
    assert source_of(FileServer(tmp_path / "kept", settings), mine) == first  # before it has looked for a network
    for path in (tmp_path / "kept").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0


def test_nothing_listens_before_there_is_a_model_and_then_pods_are_told_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, bound, listen = work(tmp_path / "m"), [], files._listen
    without = Component(name="web", replicas=1, revision="r", image="image")
    other = Work(uid="uid-2", name="app", namespace="default", origin="root", version=1, components=(without,))

    def listened(host: str, port: int) -> socket.socket:
        bound.append(port)
        return listen(host, port)

    monkeypatch.setattr(files, "_listen", listened)

    async def play() -> None:
        server = FileServer(tmp_path / "kept", Settings())
        server.start("https://127.0.0.1:6443")
        try:
            await tell(server, Desired(works=(other,), full=True))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not bound and server.source(other) is None
            await tell(server, Desired(works=(mine,)))
            assert bound == [0] and source_of(server, mine).url  # already: the Work is applied next
        finally:
            await server.close()

    uvloop.run(play())


def test_keys_that_others_may_read_or_that_are_spoiled_are_refused_by_name(tmp_path: Path) -> None:
    trust.Trust(tmp_path)
    key = tmp_path / trust.KEY_FILE
    key.chmod(0o644)
    with pytest.raises(ShimError, match=f"chmod 600 {key}"):
        trust.Trust(tmp_path)
    key.chmod(0o600)
    key.write_text("spoiled")
    with pytest.raises(ShimError, match="remove both"):
        trust.Trust(tmp_path)
    token = (tmp_path / trust.TOKEN_KEY_FILE).read_bytes()
    key.unlink()
    (tmp_path / trust.CA_FILE).unlink()
    made = trust.Trust(tmp_path)
    assert (tmp_path / trust.TOKEN_KEY_FILE).read_bytes() == token
    assert made.holder(made.token("uid")) == "uid"


@pytest.mark.parametrize("url", ["http://a:1", "https://a", "https://:1", "https://a:x", "https://a:1/path", "a:1"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ShimError, match="files_url"):
        FileServer(tmp_path, Settings(files_url=url))


def test_a_port_in_use_is_said_and_tried_again(tmp_path: Path) -> None:
    mine = work(tmp_path / "m")

    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = FileServer(tmp_path / "kept", Settings(files_url=f"https://127.0.0.1:{port}"))
            await tell(server, Desired(works=(mine,), full=True))
            with pytest.raises(ShimError, match=f"port {port}.*files_listen"):
                server._bind()
            server.start("https://127.0.0.1:6443")
            source = source_of(server, mine)  # applying goes on meanwhile
        try:
            async with asyncio.timeout(60):
                await server.listening.wait()
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 200
        finally:
            await server.close()

    uvloop.run(play())


def test_who_says_nothing_holds_no_more_than_a_place_and_a_stop_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CONNECTIONS", 3)
    monkeypatch.setattr(files, "HEAD_SECONDS", 0.5)
    mine = work(tmp_path / "m")

    async def play() -> None:
        async with serving(tmp_path / "kept", mine) as server:
            source = source_of(server, mine)
            port = int(source.url.rpartition(":")[2])
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]  # not even TLS
            assert (await get(source, f"/models/sha256/{digest(mine)}"))[0] == 200  # once they have been sent away
            assert (await ask(source, "GET /" + "x" * 20000)) == b""
            for _, writer in silent:
                writer.close()
            _, last = await asyncio.open_connection("127.0.0.1", port)
        last.close()

    uvloop.run(play())


# --- the init step ---


def fetch(cache: Path, wanted: Work, source: Path | None, *options: str) -> subprocess.Popen[str]:
    """The init step as `render` writes it."""
    settings = Settings(worker_image="image")
    pod = next(
        item.object
        for item in render.render(wanted, settings, Source("", "", "") if source else None)
        if item.object["kind"] == "Deployment"
    )["spec"]["template"]["spec"]
    (step,) = pod["initContainers"]
    places = {render.CACHE_MOUNT: str(cache), render.FETCH_MOUNT: str(source)}
    words = [*step["args"], *options]
    for inside, outside in places.items():
        words = [word.replace(inside, outside) for word in words]
    return subprocess.Popen(
        [sys.executable, "-I", *step["command"][1:], *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def write_source(folder: Path, source: Source) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in (("url", source.url), ("token", source.token), ("ca.pem", source.ca)):
        (folder / name).write_text(value)
    return folder


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, out


def model_folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir() and path.name not in ("sha256", edge_fetch.IN_USE)]


def test_a_pod_gets_its_model_once_and_starts_again_without_any_controller(tmp_path: Path) -> None:
    mine, cache = work(tmp_path / "m"), tmp_path / "cache"

    async def play() -> None:
        async with serving(tmp_path / "kept", mine) as server:
            source = write_source(tmp_path / "fetch", source_of(server, mine))
            steps = [fetch(cache, mine, source) for _ in range(4)]  # four pods of one node at once
            for code, out in [await ended(step) for step in steps]:
                assert code == 0, out
        (folder,) = model_folders(cache)
        assert (folder / "model.onnx").read_bytes() == CONTENT
        assert (folder / "model.onnx").stat().st_mode & 0o777 == 0o644
        assert sorted(path.name for path in (cache / "sha256").iterdir()) == [digest(mine)]
        for given in (source, None):
            code, out = await ended(fetch(cache, mine, given, "--patience", "0"))
            assert code == 0 and "verified" in out, out

    uvloop.run(play())


def test_a_spoiled_file_is_fetched_again_and_a_begun_one_is_gone_on_with(tmp_path: Path) -> None:
    mine, cache = work(tmp_path / "m"), tmp_path / "cache"
    blobs = cache / "sha256"
    blobs.mkdir(parents=True)
    part = blobs / f"{digest(mine)}.part"

    async def play() -> None:
        async with serving(tmp_path / "kept", mine) as server:
            source = write_source(tmp_path / "fetch", source_of(server, mine))
            part.write_bytes(CONTENT[:500_000])
            code, out = await ended(fetch(cache, mine, source))
            assert code == 0 and f"{len(CONTENT) - 500_000} bytes" in out and "after 500000 from before" in out, out
            whole = blobs / digest(mine)
            whole.write_bytes(CONTENT[:-1] + b"x")
            code, out = await ended(fetch(cache, mine, source))
            assert code == 0 and "spoiled" in out, out
            assert whole.read_bytes() == CONTENT
            (folder,) = model_folders(cache)
            assert (folder / "model.onnx").samefile(whole)  # not the spoiled one that it had before
            whole.unlink()
            part.write_bytes(b"y" * len(CONTENT))  # a beginning that was never ours: seen, thrown away, and fetched whole
            code, out = await ended(fetch(cache, mine, source))
            assert code == 0 and "is not the file with sha256" in out, out
            assert whole.read_bytes() == CONTENT
            whole.unlink()
            part.write_bytes(CONTENT + b"more")
            assert (await ended(fetch(cache, mine, source)))[0] == 0

    uvloop.run(play())


def test_why_it_cannot_go_on_is_its_last_word(tmp_path: Path) -> None:
    mine, cache = work(tmp_path / "m"), tmp_path / "cache"

    async def play() -> None:
        code, out = await ended(fetch(cache, mine, None))
        assert code == 1 and "is not in this node's cache, and no controller is named" in out
        async with serving(tmp_path / "kept", mine) as server:
            true = source_of(server, mine)

            async def tried(source: Source) -> str:
                step = fetch(cache, mine, write_source(tmp_path / "fetch", source), "--patience", "0")
                code, out = await ended(step)
                assert code == 1
                return out.splitlines()[-1]

            async with serving(tmp_path / "other", mine) as stranger:
                foreign = source_of(stranger, mine)
                assert "is not the controller of this site" in await tried(Source(foreign.url, true.token, true.ca))
            assert "Connection refused" in await tried(Source(foreign.url, foreign.token, foreign.ca))
            assert "answers 401: this token opens nothing here" in await tried(Source(true.url, "no", true.ca))
            assert "no https:// address" in await tried(Source("http://127.0.0.1:1", true.token, true.ca))
            assert "does not say where model files are" in await tried(Source(true.url, true.token, "no certificate"))

    uvloop.run(play())


def test_one_that_waits_hears_of_another_address(tmp_path: Path) -> None:
    mine, cache = work(tmp_path / "m"), tmp_path / "cache"

    async def play() -> None:
        async with serving(tmp_path / "kept", mine) as server:
            true = source_of(server, mine)
            folder = write_source(tmp_path / "fetch", Source(f"https://127.0.0.1:{free_port()}", true.token, true.ca))
            step = fetch(cache, mine, folder)
            assert step.stdout is not None
            line = await asyncio.to_thread(step.stdout.readline)
            assert "trying on" in line
            write_source(folder, true)
            code, out = await ended(step)
            assert code == 0, out

    uvloop.run(play())


@pytest.mark.parametrize("word", ["../x=" + "0" * 64 + ":1", "/x=" + "0" * 64 + ":1", "x=" + "0" * 63 + ":1", "x=" + "0" * 64, "=0:1"])
def test_a_file_that_leads_out_of_the_folder_is_no_file(word: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "edge_ai.fetch", "--folder", str(tmp_path / "m"), f"--file={word}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "is not PATH=SHA256:SIZE" in done.stderr
