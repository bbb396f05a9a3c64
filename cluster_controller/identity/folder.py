"""``DATA/identity/``: where a controller's keys rest. 0700 for the folder, 0600 for every file.

All that belongs together stands in one file that is replaced by rename, so that a crash leaves either the old identity or the
new one and never a key without its certificate. The tree CA's key has a file of its own: an operator may take it away from the
root and bring it back only to rotate the root's issuing certificate.
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from cluster_controller.durable import sync_folder, write
from cluster_controller.errors import InvalidInput, NotFound

IDENTITY_FILE = "identity.json"
TREE_CA_KEY_FILE = "tree-ca.key"
NEXT_TREE_CA_KEY_FILE = "tree-ca-next.key"  # while the tree has two
PENDING_FILE = "joining.json"
FILE_LIMIT_BYTES = 256 * 1024


class Saved(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``identity.json`` holds. Certificates and keys are PEM texts; chains are leaf first, without the tree CA."""

    name: str
    tree_ca: str  # while its key is being rotated the new one after the present one
    identity_key: str
    identity_chain: str
    site_key: str
    site_ca: str
    issuing_key: str = ""
    issuing_chain: str = ""
    parent_uid: str = ""
    parent_name: str = ""
    parent_addresses: tuple[str, ...] = ()
    token_id: str = ""
    joined: str = ""
    labels: dict[str, str] = {}
    format: int = 1


class Pending(Struct, frozen=True, kw_only=True):
    """A join that has begun: its keys must outlive a lost answer, since the token is consumed for them."""

    token_id: str
    name: str
    identity_key: str
    issuing_key: str
    asked: bool = False  # the request may have reached the parent


def create(folder: Path) -> None:
    """Make ``folder`` (and its parents), private to this user."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    if path.parent.exists():
        sync_folder(path.parent)


def read(path: Path) -> bytes:
    """NotFound when there is no such file, InvalidInput when it is too large or others may read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: create a root with `banyan init` or a member with `banyan join`") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_mode & 0o077:
            raise InvalidInput(f"{path} holds private keys and is open to other users; run `chmod 600 {path}`, and renew if it was read")
        if found.st_size > FILE_LIMIT_BYTES:
            raise InvalidInput(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; restore it from a backup")
        return file.read()


def save(folder: Path, saved: Saved) -> None:
    create(folder)
    write(folder / IDENTITY_FILE, msgspec.json.format(msgspec.json.encode(saved), indent=1) + b"\n")


def load(folder: Path) -> Saved:
    """NotFound when no identity lives in ``folder``; InvalidInput when it cannot be read."""
    path = folder / IDENTITY_FILE
    try:
        return msgspec.json.decode(read(path), type=Saved)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{path} cannot be read ({error}); restore it from a backup, or join this site again") from error


def save_pending(folder: Path, pending: Pending) -> None:
    create(folder)
    write(folder / PENDING_FILE, msgspec.json.encode(pending))


def load_pending(folder: Path) -> Pending | None:
    """The join that began here, if one did. An unreadable one is none: nothing depends on it yet."""
    try:
        return msgspec.json.decode(read(folder / PENDING_FILE), type=Pending)
    except (NotFound, msgspec.DecodeError):
        return None
