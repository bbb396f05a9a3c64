"""Documents of secret kinds are sealed on their way to the disk and opened on their way back.

AES-256-GCM under a key that is a file of its own, outside the database, 0600: a copied database, a backup of the disk's
free blocks, a discarded WAL hold no plaintext. The row's key, uid, version and revision are authenticated with the document,
so a sealed document cannot be moved to another object. Format: 12 bytes nonce, ciphertext, 16 bytes tag.

Invariant: a kind that is sealed is sealed in every space, in live rows and journal rows alike, and in backups.
"""

import os
import secrets
from pathlib import Path

from cluster_controller.durable import sync_folder
from cluster_controller.errors import StoreCorrupt
from cluster_controller.store.folder import store_error

SEALED_KINDS = frozenset({"Secret"})
KEY_FILE = Path("identity") / "seal.key"
KEY_BYTES = 32
NONCE_BYTES = 12


class NotAuthentic(Exception):
    """What was to be opened was sealed with another key or under another name, or has been changed."""


class Aead:
    """AES-256-GCM with one key."""

    def __init__(self, key: bytes) -> None:
        from cryptography.exceptions import InvalidTag  # these two cost 4 MiB: only who has something to seal pays
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._cipher = AESGCM(key)
        self._invalid = InvalidTag

    def seal(self, nonce: bytes, data: bytes, name: bytes) -> bytes:
        """``name`` is authenticated with ``data``, and not part of what is returned."""
        return self._cipher.encrypt(nonce, data, name)

    def open(self, nonce: bytes, sealed: bytes, name: bytes) -> bytes:
        """Raises `NotAuthentic`."""
        try:
            return self._cipher.decrypt(nonce, sealed, name)
        except self._invalid as error:
            raise NotAuthentic from error


class Seal:
    """Seals and opens with the key of one data folder; the key is read, or made, when first needed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEY_FILE
        self._aead: Aead | None = None

    def seal(self, document: bytes, name: bytes) -> bytes:
        """``name`` is authenticated, not hidden, and must be the same when opened."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher(create=True).seal(nonce, document, name)

    def open(self, sealed: bytes, name: bytes) -> bytes:
        try:
            return self._cipher(create=False).open(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name)
        except NotAuthentic:
            raise StoreCorrupt(
                f"a sealed document ({name.decode('utf-8', 'replace')}) does not open with {self._path}: "
                "the key file is not the one it was sealed with, or the database is damaged; put the right key back, or restore a backup"
            ) from None

    def _cipher(self, *, create: bool) -> Aead:
        if self._aead is None:
            self._aead = Aead(self._key(create=create))
        return self._aead

    def _key(self, *, create: bool) -> bytes:
        try:
            if create and not self._path.exists():
                return self._create()
            key = self._path.read_bytes()
        except FileNotFoundError:
            raise StoreCorrupt(
                f"{self._path} is missing and the store holds sealed documents: put the key file back, or restore a backup"
            ) from None
        except OSError as error:
            raise store_error(error, self._path) from error
        if len(key) != KEY_BYTES:
            raise StoreCorrupt(f"{self._path} is not a key of {KEY_BYTES} bytes: put the right key file back, or restore a backup")
        return key

    def _create(self) -> bytes:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = secrets.token_bytes(KEY_BYTES)
        temporary = self._path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, key)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(self._path)
        sync_folder(self._path.parent)
        return key
