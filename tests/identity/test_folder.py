"""Identities at rest: private, whole, or not there."""

import os
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from cluster_controller.errors import InvalidInput, NotFound
from cluster_controller.identity import create_root, folder, holder, load, renew_root, save
from cluster_controller.identity.folder import Pending
from tests.identity.family import NOW, edge, root


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "identity", edge())
    again = load(tmp_path / "identity")
    assert (again.uid, again.name, again.path, again.parent_uid) == (edge().uid, "edge-1", edge().path, edge().parent_uid)
    assert again.sign(b"x") != b"" and again.may_issue


def test_folders_and_files_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_root(tmp_path / "data" / "identity", "root", NOW)
    finally:
        os.umask(old)
    assert (tmp_path / "data" / "identity").stat().st_mode & 0o777 == 0o700
    files = list((tmp_path / "data" / "identity").iterdir())
    assert {file.name for file in files} == {folder.IDENTITY_FILE, folder.TREE_CA_KEY_FILE}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)


def test_an_open_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "identity", edge())
    (tmp_path / "identity" / folder.IDENTITY_FILE).chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        load(tmp_path / "identity")


def test_no_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="banyan init"):
        load(tmp_path / "identity")


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\xff" * 10, b"x" * (folder.FILE_LIMIT_BYTES + 1)])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    save(tmp_path / "identity", edge())
    path = tmp_path / "identity" / folder.IDENTITY_FILE
    path.write_bytes(damage)
    with pytest.raises(InvalidInput, match=folder.IDENTITY_FILE):
        load(tmp_path / "identity")


def test_keys_and_certificates_of_two_clusters_do_not_mix(tmp_path: Path) -> None:
    mixed = msgspec.structs.replace(edge().saved, identity_key=root().saved.identity_key)
    with pytest.raises(InvalidInput, match="not for the key"):
        holder.Identity(mixed, "test")


def test_a_second_tree_is_not_made_over_a_first(tmp_path: Path) -> None:
    made = create_root(tmp_path / "identity", "root", NOW)
    with pytest.raises(InvalidInput, match="already belongs"):
        create_root(tmp_path / "identity", "root", NOW)
    assert load(tmp_path / "identity").uid == made.uid


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "identity", edge())

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path / "identity", root())
    monkeypatch.undo()
    assert load(tmp_path / "identity").uid == edge().uid
    assert [file.name for file in (tmp_path / "identity").iterdir()] == [folder.IDENTITY_FILE]


def test_the_root_renews_itself_with_the_tree_ca(tmp_path: Path) -> None:
    made = create_root(tmp_path / "identity", "root", NOW)
    renewed = renew_root(tmp_path / "identity", made, NOW + timedelta(days=60))
    assert renewed.uid == made.uid and renewed.tree_ca_digest == made.tree_ca_digest and renewed.not_after > made.not_after
    assert load(tmp_path / "identity").not_after == renewed.not_after
    folder.remove(tmp_path / "identity" / folder.TREE_CA_KEY_FILE)
    with pytest.raises(NotFound):
        renew_root(tmp_path / "identity", renewed, NOW)
    folder.write(tmp_path / "identity" / folder.TREE_CA_KEY_FILE, root().saved.identity_key.encode())
    with pytest.raises(InvalidInput, match="another tree"):
        renew_root(tmp_path / "identity", renewed, NOW)


def test_a_begun_join_is_remembered_or_forgotten(tmp_path: Path) -> None:
    assert folder.load_pending(tmp_path) is None
    pending = Pending(token_id="t", name="n", identity_key="k", issuing_key="i")
    folder.save_pending(tmp_path, pending)
    assert folder.load_pending(tmp_path) == pending
    (tmp_path / folder.PENDING_FILE).write_bytes(b"{")
    assert folder.load_pending(tmp_path) is None
    folder.remove(tmp_path / folder.PENDING_FILE)
    folder.remove(tmp_path / folder.PENDING_FILE)
