"""Backups of a running store, and what becomes of them when they are cut, altered or opened with another passphrase."""

import asyncio
import random
from pathlib import Path

import pytest

from cluster_controller.errors import AlreadyExists, InvalidInput, StoreCorrupt
from cluster_controller.store import Key, Limits, Store
from cluster_controller.store.backup import restore
from tests.store.workload import state, write

PASSPHRASE = "open, sesame!"
LIMITS = Limits(journal_rows=60)


def make(folder: Path, target: Path) -> tuple[object, ...]:
    """A store with a trimmed journal, secrets and an identity; backed up while it is written to. Returns what the backup must hold."""

    async def scenario() -> tuple[object, ...]:
        store = await Store.open(folder, LIMITS)
        identity = folder / "identity" / "deep"
        identity.mkdir(parents=True, exist_ok=True)
        (identity / "key.pem").write_bytes(b"the identity")
        for number in range(1, 120):
            await store.commit(lambda tx: write(tx, number))  # noqa: B023
        expected = look(store)
        later = asyncio.create_task(store.backup(target, PASSPHRASE))
        await asyncio.sleep(0)
        await store.commit(lambda tx: tx.put(Key("own", "Work", "", "too-late"), b"{}", uid="late"))
        summary = await later
        assert (summary.revision, summary.objects) == (expected[0], len(state(store)) - 1)
        assert "identity/deep/key.pem" in summary.files
        await store.close()
        return expected

    return asyncio.run(scenario())


def look(store: Store) -> tuple[object, ...]:
    return store.revision, state(store), store.since(store.floor()), store.floor(), store.floor("own"), store.fact("number")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    folder = tmp_path_factory.mktemp("backup")
    return folder / "a.backup", make(folder / "data", folder / "a.backup")


def test_it_brings_back_everything_under_a_new_history_id(tmp_path: Path, made: tuple[Path, tuple[object, ...]]) -> None:
    backup, expected = made
    summary = restore(backup, tmp_path / "new", PASSPHRASE)
    assert summary.revision == expected[0]
    assert (tmp_path / "new/identity/deep/key.pem").read_bytes() == b"the identity"

    async def scenario() -> None:
        store = await Store.open(tmp_path / "new", LIMITS)
        assert look(store) == expected
        assert len(store.history) == 2 and store.history[1][1] == store.revision + 1
        await store.close()

    asyncio.run(scenario())
    assert not (tmp_path / "new" / ".restore").exists()
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_nothing_in_it_can_be_read(made: tuple[Path, tuple[object, ...]]) -> None:
    content = made[0].read_bytes()
    assert b"plaintext" not in content and b"identity" not in content
    assert made[0].stat().st_mode & 0o777 == 0o600


def test_a_wrong_passphrase_and_another_file_say_so(tmp_path: Path, made: tuple[Path, tuple[object, ...]]) -> None:
    with pytest.raises(InvalidInput, match="passphrase does not open"):
        restore(made[0], tmp_path / "new", "something else")
    other = tmp_path / "other"
    other.write_bytes(b"x" * 200)
    with pytest.raises(InvalidInput, match="no backup"):
        restore(other, tmp_path / "new", PASSPHRASE)
    with pytest.raises(InvalidInput, match="missing does not exist"):
        restore(tmp_path / "missing", tmp_path / "new", PASSPHRASE)
    assert not list((tmp_path / "new").iterdir())


def test_cut_or_altered_anywhere_it_is_refused_and_nothing_is_left(tmp_path: Path, made: tuple[Path, tuple[object, ...]]) -> None:
    content, chance = made[0].read_bytes(), random.Random(1)
    broken = tmp_path / "broken"
    variants = [content[: chance.randrange(40, len(content))] for _ in range(6)] + [content + b"x"]
    for _ in range(10):
        at = chance.randrange(8, len(content))
        variants.append(content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :])
    for variant in variants:
        broken.write_bytes(variant)
        with pytest.raises((StoreCorrupt, InvalidInput)):
            restore(broken, tmp_path / "new", PASSPHRASE)
        assert not list((tmp_path / "new").iterdir())


def test_nothing_is_overwritten(tmp_path: Path, made: tuple[Path, tuple[object, ...]]) -> None:
    folder = tmp_path / "new"
    (folder / "identity/deep").mkdir(parents=True)
    (folder / "identity/deep/key.pem").write_bytes(b"another")
    with pytest.raises(AlreadyExists, match=r"key\.pem exists"):
        restore(made[0], folder, PASSPHRASE)
    assert not (folder / "store.db").exists() and (folder / "identity/deep/key.pem").read_bytes() == b"another"
    (folder / "identity/deep/key.pem").unlink()
    restore(made[0], folder, PASSPHRASE)
    with pytest.raises(AlreadyExists, match=r"store\.db exists"):
        restore(made[0], folder, PASSPHRASE)

    async def again() -> None:
        store = await Store.open(folder)
        with pytest.raises(AlreadyExists, match="never overwrites"):
            await store.backup(made[0], PASSPHRASE)
        with pytest.raises(InvalidInput, match="at least 8"):
            await store.backup(tmp_path / "short", "short")
        await store.close()

    asyncio.run(again())
