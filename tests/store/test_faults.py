"""A disk that is full, sick, read-only; a file that is damaged, newer, locked; a key that is gone: each says what to do."""

import asyncio
import errno
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cluster_controller.errors import InvalidInput, StoreCorrupt, StoreError, StoreFull, StoreInUse, StoreReadOnly, StoreTooNew
from cluster_controller.store import Key, Store, Tx, migrations
from cluster_controller.store.folder import DATABASE, store_error
from cluster_controller.store.seal import KEY_FILE
from tests.store.disk import build

ROOT = Path(__file__).parents[2]


def put(name: str, document: bytes = b"{}", kind: str = "Work") -> Callable[[Tx], object]:
    return lambda tx: tx.put(Key("own", kind, "", name), document, uid=f"uid-{name}")


def make(folder: Path, kind: str = "Work") -> None:
    async def scenario() -> None:
        store = await Store.open(folder)
        for n in range(20):
            await store.commit(put(f"o{n}", b'{"padding":"%s"}' % (b"x" * 2000), kind))
        await store.close()

    asyncio.run(scenario())


def refused(folder: Path, error: type[StoreError], match: str) -> None:
    async def scenario() -> None:
        with pytest.raises(error, match=match):
            await Store.open(folder)

    asyncio.run(scenario())


FULL = """
import asyncio, sys
from pathlib import Path
from cluster_controller.errors import StoreFull
from cluster_controller.store import Key, Store

async def main(folder, quota):
    quota.write_text(str(400_000))
    store = await Store.open(folder)
    held = 0
    def work(n):
        return lambda tx: tx.put(Key("own", "Work", "", f"o{n}"), b'"%s"' % (b"x" * 20_000), uid=f"u{n}")
    try:
        while held < 1000:
            await store.commit(work(held))
            held += 1
    except StoreFull as error:
        assert str(folder) in str(error) and "free some" in str(error)
    assert 5 < held < 1000 and isinstance(store.trouble.error, StoreFull)
    assert store.size("own") == held == store.revision
    for again in range(3):      # refused in one piece, what was built on it too
        results = await asyncio.gather(*(store.commit(work(held + n)) for n in range(8)), return_exceptions=True)
        assert all(isinstance(result, StoreFull) for result in results), results
    assert store.size("own") == held == store.revision
    quota.write_text(str(10_000_000))
    results = await asyncio.gather(*(store.commit(work(held + n)) for n in range(8)))
    assert [stored.revision for stored in results] == list(range(held + 1, held + 9))
    assert store.trouble is None
    await store.close()
    store = await Store.open(folder)
    assert store.size("own") == store.revision == held + 8
    await store.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""

SICK = """
import asyncio, sys
from pathlib import Path
from cluster_controller.errors import StoreError
from cluster_controller.store import Key, Store

async def main(folder, sick):
    store = await Store.open(folder)
    def work(n):
        return lambda tx: tx.put(Key("own", "Work", "", f"o{n}"), b"{}", uid=f"u{n}")
    await store.commit(work(0))
    told = []
    store.lost = told.append
    sick.touch()
    for n in (1, 2):
        try:
            await store.commit(work(n))
        except StoreError as error:
            assert "did not confirm" in str(error), error
            assert "did not confirm" in str(store.trouble.error)
        else:
            raise AssertionError("a write that the disk did not confirm was acknowledged")
        sick.unlink(missing_ok=True)    # a later fdatasync succeeds, and proves nothing about the first
    assert store.size("own") == 1
    assert ["did not confirm" in str(error) for error in told] == [True], told
    await store.close()
    store = await Store.open(folder)
    assert store.get(Key("own", "Work", "", "o0")) is not None
    await store.commit(work(3))
    await store.close()

asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
"""


@pytest.mark.needs("cc")
@pytest.mark.parametrize(("program", "variable"), [(FULL, "BANYAN_DISK_QUOTA"), (SICK, "BANYAN_DISK_SICK")])
def test_a_full_disk_heals_and_a_sick_one_is_not_trusted(tmp_path: Path, program: str, variable: str) -> None:
    folder, control = tmp_path / "data", tmp_path / "control"
    environment = os.environ | {"LD_PRELOAD": str(build(tmp_path)), "BANYAN_DISK_FOLDER": str(folder), variable: str(control)}
    command = [sys.executable, "-c", program, str(folder), str(control)]
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from cluster_controller.errors import StoreFull
from cluster_controller.store import Key, Store, health

async def main(folder):
    health.TRIAL_SECONDS = 0.05
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    store = await Store.open(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    assert store.trouble is None
    held = 0
    def work(n):
        return lambda tx: tx.put(Key("own", "Work", "", f"o{n}"), b'"%s"' % (b"x" * 20_000), uid=f"u{n}")
    try:
        while held < 1000:
            await store.commit(work(held))
            held += 1
    except StoreFull as error:
        assert str(folder) in str(error) and "ulimit -f" in str(error), error
    assert 5 < held < 1000
    assert isinstance(store.trouble.error, StoreFull) and "ulimit -f" in str(store.trouble.error)
    since = store.trouble.since
    await asyncio.sleep(0.2)      # trials that find no room
    assert store.trouble.since == since
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    async with asyncio.timeout(20):
        while store.trouble is not None:
            await asyncio.sleep(0.01)
    await store.commit(work(held))
    assert not (folder / health.SCRATCH).exists()
    await store.close()
    store = await Store.open(folder)
    assert store.size("own") == store.revision == held + 1
    await store.close()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_limit_on_the_size_of_a_file_is_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


TINY = """
import asyncio, os, subprocess, sys
from pathlib import Path
from cluster_controller.errors import StoreFull, StoreReadOnly
from cluster_controller.store import Key, Store, health

def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", *options], check=True)

async def main(folder):
    health.TRIAL_SECONDS = 0.05
    mount("-o", "size=8m", "tmpfs", str(folder))
    store = await Store.open(folder)
    held = 0
    def work(n):
        return lambda tx: tx.put(Key("own", "Work", "", f"o{n}"), b'"%s"' % (b"x" * 100_000), uid=f"u{n}")
    async def until(condition):
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)
    try:
        while held < 1000:
            await store.commit(work(held))
            held += 1
    except StoreFull as error:
        assert "no space left" in str(error) and "free some" in str(error), error
    assert 5 < held < 1000 and isinstance(store.trouble.error, StoreFull)
    mount("-o", "remount,size=32m", "tmpfs", str(folder))
    await until(lambda: store.trouble is None)      # nobody wrote: found by a trial
    await store.commit(work(held))
    (folder / "ballast").write_bytes(bytes(32_000_000 - sum(p.stat().st_size for p in folder.iterdir())))
    results = await asyncio.gather(*(store.commit(work(held + 1 + n)) for n in range(40)), return_exceptions=True)
    assert all(isinstance(result, StoreFull) for result in results), results
    assert isinstance(store.trouble.error, StoreFull)
    (folder / "ballast").unlink()
    await store.commit(work(held + 1))              # before any trial
    assert store.trouble is None
    await store.close()
    store = await Store.open(folder)
    assert store.size("own") == store.revision == held + 2
    await store.close()

asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.needs("root")
def test_a_small_disk_that_is_full_heals(tmp_path: Path) -> None:
    """A tmpfs in a mount namespace of its own."""
    command = ["unshare", "-m", sys.executable, "-c", TINY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=60, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("number", "error", "remedy"),
    [
        (errno.ENOSPC, StoreFull, "free some"),
        (errno.EDQUOT, StoreFull, "quota of user .* have it raised"),
        (errno.EFBIG, StoreFull, "LimitFSIZE="),
        (errno.EROFS, StoreReadOnly, "the mount"),
        (errno.EIO, StoreError, "Input/output error"),
    ],
)
def test_what_the_system_says_is_said_with_a_remedy(tmp_path: Path, number: int, error: type[StoreError], remedy: str) -> None:
    said = store_error(OSError(number, os.strerror(number)), tmp_path / DATABASE)
    assert type(said) is error
    assert re.search(rf"{DATABASE}.*{remedy}", str(said))


def test_a_folder_in_use_names_who_uses_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path)
        with pytest.raises(StoreInUse, match=f"process {os.getpid()}: stop that controller"):
            await Store.open(tmp_path)
        await store.commit(put("still works"))
        await store.close()
        again = await Store.open(tmp_path)
        assert again.size("own") == 1
        await again.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["header", "middle", "truncated", "document"])
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    make(tmp_path)
    path = tmp_path / DATABASE
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:100] = b"x" * 100
    elif damage == "middle":
        content[4096 * 3 : 4096 * 3 + 64] = b"\xff" * 64
    elif damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content = content.replace(b"xxxx", b"xxxy")
    path.write_bytes(content)
    refused(tmp_path, StoreCorrupt, "restore a backup")
    assert path.read_bytes() == content


def test_a_newer_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    make(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    refused(tmp_path, StoreTooNew, "schema 99, this one knows up to 1.*newer version")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "data"
    make(folder)
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom cluster_controller.store import Store\n"
        "from cluster_controller.errors import StoreReadOnly\n"
        "import os\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: asyncio.run(Store.open(Path(sys.argv[1])))\n"
        "except StoreReadOnly as error: print(error); sys.exit(42)\n"
    )
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and tmp_path.is_relative_to(parent):
            parent.chmod(parent.stat().st_mode | 0o111)
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, timeout=60, capture_output=True, check=False)
    folder.chmod(0o755)
    assert done.returncode == 42, done.stderr.decode()
    assert b"check its owner, its mode and the mount" in done.stdout


def test_secrets_are_sealed_wherever_they_are_on_the_disk(tmp_path: Path) -> None:
    needle = b"correct horse battery staple"

    async def scenario() -> None:
        store = await Store.open(tmp_path)
        for n in range(30):
            for space in ("own", "down/kid"):
                key = Key(space, "Secret", "default", "password")
                document = b'{"n":%d,"data":"%s"}' % (n, needle)
                await store.commit(lambda tx: tx.put(key, document, uid="u"))  # noqa: B023
        await store.commit(lambda tx: tx.put(Key("own", "ConfigMap", "", "c"), b'{"data":"in the clear"}', uid="c"))
        stored = store.get(Key("own", "Secret", "default", "password"))
        assert stored is not None and needle in stored.document
        contents = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert needle not in contents and needle[:12] not in contents
        assert b"in the clear" in contents, "the search finds what is not sealed"
        await store.close()
        contents = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert needle not in contents
        store = await Store.open(tmp_path)
        assert store.get(Key("own", "Secret", "default", "password")) == stored
        await store.close()

    asyncio.run(scenario())
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_lost_or_wrong_key_says_so(tmp_path: Path) -> None:
    make(tmp_path, "Secret")
    key = tmp_path / KEY_FILE
    right = key.read_bytes()
    key.unlink()
    refused(tmp_path, StoreCorrupt, "seal.key is missing.*put the key file back")
    key.write_bytes(b"x" * 32)
    refused(tmp_path, StoreCorrupt, "does not open with .*seal.key")
    key.write_bytes(b"short")
    refused(tmp_path, StoreCorrupt, "not a key of 32 bytes")
    key.write_bytes(right)

    async def scenario() -> None:
        store = await Store.open(tmp_path)
        assert store.size("own") == 20
        await store.close()

    asyncio.run(scenario())


def test_too_large_a_document_is_refused_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = await Store.open(tmp_path)
        with pytest.raises(InvalidInput, match="more than the 2097152"):
            await store.commit(put("large", b"x" * (2 * 1024 * 1024 + 1)))
        await store.commit(put("largest", b"x" * (2 * 1024 * 1024)))
        assert [stored.key.name for stored in store.list("own", "Work")] == ["largest"]
        await store.close()

    asyncio.run(scenario())


def test_an_older_store_is_brought_up_to_date_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    ran: list[str] = []

    def second(connection: Connection) -> None:
        ran.append("second")
        connection.exec_driver_sql("CREATE TABLE added (name TEXT)")

    def third(connection: Connection) -> None:
        ran.append("third")
        connection.exec_driver_sql("INSERT INTO added VALUES ('x')")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, second, third))

    async def scenario() -> None:
        store = await Store.open(tmp_path)
        assert store.size("own") == 20
        await store.close()

    asyncio.run(scenario())
    asyncio.run(scenario())
    assert ran == ["second", "third"]
    monkeypatch.undo()
    refused(tmp_path, StoreTooNew, "schema 3, this one knows up to 1")


def test_a_step_that_fails_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)

    def half(connection: Connection) -> None:
        connection.exec_driver_sql("DELETE FROM changes")
        connection.exec_driver_sql("not SQL")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, half))
    refused(tmp_path, StoreError, "syntax error")
    monkeypatch.undo()

    async def scenario() -> None:
        store = await Store.open(tmp_path)
        assert store.size("own") == 20
        await store.close()

    asyncio.run(scenario())
