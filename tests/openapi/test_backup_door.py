"""`POST /backup`: who may have one, what it holds, and that nothing of it stays behind."""

import asyncio
from pathlib import Path

import pytest

from cluster_controller.store import Store
from cluster_controller.store.backup import restore
from openapi.backup import PARTIAL, included
from openapi.services import Grant, User
from tests.openapi.support import EDITOR, Server, run

PASSPHRASE = "open, sesame!"


def admin(server: Server) -> User:
    return User("ada", (), server.services.uid, (Grant("admin"),))


def test_it_holds_the_store_the_identity_and_the_settings(tmp_path: Path) -> None:
    data, new = tmp_path / "data", tmp_path / "new"

    async def body(server: Server) -> None:
        for name, content in (
            ("identity/identity.json", "who"), ("banyan.toml", "name = 'root'"), ("kubernetes/ca.pem", "ca"),
            ("kubernetes/charts/big.json", "rendered again"), ("blobs/sha256/ab/abc", "a model"),
        ):  # fmt: skip
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text(content)
        await server.put("own", "ConfigMap", "settings", "default", data={"word": "kept"})
        (data / f"{PARTIAL}of-one-that-was-killed").write_bytes(b"left")
        async with server.client(admin(server)) as client:
            answer = await client.post("/backup", json={"passphrase": PASSPHRASE})
        assert answer.status_code == 200, answer.text
        assert answer.headers["banyan-backup-revision"] == str(server.store.revision)
        assert answer.headers["banyan-backup-made"].startswith("20") and answer.headers["cache-control"] == "no-store"
        (tmp_path / "a.backup").write_bytes(answer.content)
        assert not list(data.glob(f"{PARTIAL}*"))

    run(data, body)
    summary = restore(tmp_path / "a.backup", new, PASSPHRASE)
    assert summary.made.startswith("20")
    assert (new / "identity/identity.json").read_text() == "who" and (new / "kubernetes/ca.pem").read_text() == "ca"
    assert (new / "banyan.toml").read_text() == "name = 'root'"
    assert not (new / "kubernetes/charts").exists() and not (new / "blobs").exists()

    async def look() -> None:
        store = await Store.open(new)
        assert [stored.key.name for stored in store.list("own", "ConfigMap")] == ["settings"]
        await store.close()

    asyncio.run(look())


@pytest.mark.parametrize(
    ("user", "code", "words"),
    [
        (EDITOR, 403, "needs the role admin"),
        (User("ada", (), "another-controller", (Grant("admin"),)), 403, "ask root itself"),
        (User("bob", (), "a" * 26, (Grant("admin", "shop"),)), 403, "in all namespaces"),
        (None, 401, "no credential"),
    ],
)
def test_nobody_else_gets_one(tmp_path: Path, user: User | None, code: int, words: str) -> None:
    async def body(server: Server) -> None:
        async with server.client(user) as client:
            answer = await client.post("/backup", json={"passphrase": PASSPHRASE})
        assert answer.status_code == code and words in answer.text

    run(tmp_path, body)


@pytest.mark.parametrize("given", [{}, {"passphrase": "short"}, {"passphrase": 12345678}, {"passphrase": "x" * 5000}])
def test_a_passphrase_that_is_none_is_refused(tmp_path: Path, given: dict[str, object]) -> None:
    async def body(server: Server) -> None:
        async with server.client(admin(server)) as client:
            answer = await client.post("/backup", json=given)
            assert answer.status_code == 400 and "passphrase is a text of 8 to 1024" in answer.text
            assert (await client.get("/backup")).status_code == 405

    run(tmp_path, body)


def test_one_is_made_at_a_time(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        async with server.client(admin(server)) as client:
            answers = await asyncio.gather(*(client.post("/backup", json={"passphrase": PASSPHRASE}) for _ in range(3)))
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409]

    run(tmp_path, body)


def test_a_folder_without_a_kubernetes_member_has_none_in_it(tmp_path: Path) -> None:
    assert included(tmp_path) == ("identity", "banyan.toml", "shim")
