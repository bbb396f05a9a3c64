"""A file that opens only with its passphrase, and only whole.

The key comes from the passphrase by scrypt (RFC 7914). The content is compressed (zstd) and cut into chunks, each sealed with
AES-256-GCM under a nonce that holds its number and whether it is the last (the STREAM construction of Hoang, Reyhanitabar,
Rogaway and Vizár, 2015), so chunks cannot be dropped, reordered or cut off unseen.

    magic 8 | log2 N, r, p: u8 each | salt 16 | nonce prefix 7 | check 16 | chunks: length u32, sealed bytes

`check` tells a wrong passphrase from a damaged file. Content is a sequence of records, each after its length.
"""

import hashlib
import secrets
import sys
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from typing import BinaryIO

from cluster_controller.errors import InvalidInput, StoreCorrupt
from cluster_controller.store.seal import Aead, NotAuthentic

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"BANYANB1"
SCRYPT = (15, 8, 1)  # log2 N, r, p: 32 MiB and about 0.1 s
SCRYPT_LIMIT = (18, 8, 4)  # what a file may ask of its reader
SALT_BYTES, PREFIX_BYTES, CHECK_BYTES, TAG_BYTES = 16, 7, 16, 16
HEADER_BYTES = len(MAGIC) + len(SCRYPT) + SALT_BYTES + PREFIX_BYTES
CHUNK_BYTES = 64 * 1024
PLAIN_BYTES = 4 * CHUNK_BYTES  # decompressed at once
LENGTH_BYTES = 4
RECORD_BYTES = 16 * 1024 * 1024
_CHECK = 2  # in a nonce's last byte, where chunks have 0, and the last 1


def seal(file: BinaryIO, records: Iterable[bytes], passphrase: str) -> None:
    """Write ``records`` to ``file``."""
    salt, prefix = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(PREFIX_BYTES)
    header = MAGIC + bytes(SCRYPT) + salt + prefix
    aead = Aead(_key(passphrase, salt, SCRYPT))
    file.write(header + aead.seal(_nonce(prefix, 0, _CHECK), b"", header))
    for number, (chunk, last) in enumerate(_chunks(records)):
        sealed = aead.seal(_nonce(prefix, number, last), chunk, header)
        file.write(len(sealed).to_bytes(LENGTH_BYTES, "big") + sealed)


def _chunks(records: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The compressed records in chunks; true with the last one."""
    compressor = zstd.ZstdCompressor()
    buffer = bytearray()
    for record in records:
        buffer += compressor.compress(len(record).to_bytes(LENGTH_BYTES, "big") + record)
        while len(buffer) > CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES]), False
            del buffer[:CHUNK_BYTES]
    buffer += compressor.flush()
    while len(buffer) > CHUNK_BYTES:
        yield bytes(buffer[:CHUNK_BYTES]), False
        del buffer[:CHUNK_BYTES]
    yield bytes(buffer), True


def unseal(file: BufferedReader, passphrase: str) -> Iterator[bytes]:
    """The records of a file. Raises InvalidInput for another kind of file or a wrong passphrase, StoreCorrupt for a damaged one.

    What comes is authentic; that it is all of it is known only when the iteration ends.
    """
    buffer = bytearray()
    for data in _plain(file, passphrase):
        buffer += data
        at = 0
        while len(buffer) - at >= LENGTH_BYTES:
            size = int.from_bytes(buffer[at : at + LENGTH_BYTES], "big")
            end = at + LENGTH_BYTES + size
            if size > RECORD_BYTES:
                raise StoreCorrupt(f"the backup holds a record of {size} bytes, more than any program writes: use another one")
            if len(buffer) < end:
                break
            yield bytes(buffer[at + LENGTH_BYTES : end])
            at = end
        del buffer[:at]
    if buffer:
        raise StoreCorrupt("the backup ends within a record: use another one")


def _plain(file: BufferedReader, passphrase: str) -> Iterator[bytes]:
    """The content, decrypted and decompressed, in bounded pieces."""
    header, check = file.read(HEADER_BYTES), file.read(CHECK_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise InvalidInput("this file is no backup of a store")
    parameters = tuple(header[len(MAGIC) : len(MAGIC) + len(SCRYPT)])
    if 0 in parameters or any(asked > limit for asked, limit in zip(parameters, SCRYPT_LIMIT, strict=True)):
        raise StoreCorrupt("the backup's header is damaged: use another one")
    salt, prefix = header[len(MAGIC) + len(SCRYPT) : -PREFIX_BYTES], header[-PREFIX_BYTES:]
    aead = Aead(_key(passphrase, salt, parameters))
    try:
        aead.open(_nonce(prefix, 0, _CHECK), check, header)
    except NotAuthentic:
        raise InvalidInput("the passphrase does not open this backup (or its header is damaged)") from None
    decompressor = zstd.ZstdDecompressor()
    number = last = 0
    while not last:
        size = int.from_bytes(file.read(LENGTH_BYTES), "big")
        sealed = file.read(min(size, CHUNK_BYTES + TAG_BYTES))
        last = int(not file.peek(1))
        try:
            yield from _decompress(decompressor, aead.open(_nonce(prefix, number, last), sealed, header))
        except (NotAuthentic, zstd.ZstdError):
            raise StoreCorrupt(f"the backup is damaged or cut off at chunk {number}: use another one") from None
        number += 1


def _decompress(decompressor: "zstd.ZstdDecompressor", chunk: bytes) -> Iterator[bytes]:
    yield decompressor.decompress(chunk, max_length=PLAIN_BYTES)
    while not decompressor.eof and not decompressor.needs_input:
        yield decompressor.decompress(b"", max_length=PLAIN_BYTES)


def _key(passphrase: str, salt: bytes, parameters: Sequence[int]) -> bytes:
    log_n, r, p = parameters
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=1 << log_n, r=r, p=p, maxmem=256 * (1 << log_n) * r, dklen=32)


def _nonce(prefix: bytes, number: int, mark: int) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([mark])
