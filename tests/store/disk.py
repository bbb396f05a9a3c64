"""Builds and reads `disk.c`: a traced process, and the disks that a power cut at any point of its trace could leave behind.

The model is strict: what was not synced is kept or lost sector by sector, in any combination; a new name is there only once
its folder was synced, or by luck.
"""

import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools import needs

WRITE, TRUNCATE, SYNC, UNLINK, RENAME, CREATE, ACK = range(1, 8)
SECTOR = 512
_HEAD = struct.Struct("<BHQQ")


def build(folder: Path) -> Path:
    """The shared object. A test that builds it is marked `needs("cc")`."""
    library = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run(
        [needs.cc(), "-shared", "-fPIC", "-O1", "-Wall", "-U_FILE_OFFSET_BITS", "-o", library, source, "-ldl"], check=True, timeout=60
    )
    return library


class Op(NamedTuple):
    kind: int
    path: str
    offset: int
    data: bytes


def read_trace(path: Path) -> Iterator[Op]:
    data = memoryview(path.read_bytes())
    at = 0
    while at + _HEAD.size <= len(data):
        kind, name_size, offset, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        if at + name_size + size > len(data):
            return  # the process was killed within a record
        name = bytes(data[at : at + name_size]).decode()
        at += name_size
        yield Op(kind, name, offset, bytes(data[at : at + size]))
        at += size


class Inode:
    def __init__(self) -> None:
        self.content = bytearray()  # on the platters
        self.waiting: list[Op] = []  # in the cache


class Disk:
    """Plays a trace forward; `cut` writes what is left when the power fails now."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.names: dict[str, Inode] = {}  # as the running system sees them
        self.durable: dict[str, Inode] = {}
        self.renames: list[tuple[str, Inode | None]] = []  # changes of names not yet synced, in order
        self.acks: list[bytes] = []

    def play(self, op: Op) -> None:
        match op.kind:
            case 1 | 2:
                self._inode(op.path).waiting.append(op)
            case 3:
                self._sync(op.path)
            case 4:
                self._name(op.path, None)
            case 5:
                inode = self.names.get(op.path)
                self._name(op.path, None)
                self._name(op.data.decode(), inode)
            case 6:
                self._inode(op.path)
            case 7:
                self.acks.append(op.data)

    def _inode(self, path: str) -> Inode:
        inode = self.names.get(path)
        if inode is None:
            inode = Inode()
            self._name(path, inode)
        return inode

    def _name(self, path: str, inode: Inode | None) -> None:
        if inode is None:
            self.names.pop(path, None)
        else:
            self.names[path] = inode
        self.renames.append((path, inode))

    def _sync(self, path: str) -> None:
        if path in self.names:
            inode = self.names[path]
            for op in inode.waiting:
                _apply(inode.content, op)
            inode.waiting.clear()
            return
        inside = [change for change in self.renames if str(Path(change[0]).parent) == path]
        self.renames = [change for change in self.renames if change not in inside]
        for name, node in inside:
            _rename(self.durable, name, node)

    def cut(self, target: Path, chance: random.Random, lucky: float) -> None:
        """What the disk may hold: ``lucky`` is the share of unsynced sectors and names that made it."""
        names = dict(self.durable)
        for name, node in self.renames:
            if chance.random() < lucky:
                _rename(names, name, node)
        for name, inode in names.items():
            content = bytearray(inode.content)
            for op in inode.waiting:
                for part in _sectors(op):
                    if chance.random() < lucky:
                        _apply(content, part)
            path = target / Path(name).relative_to(self.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _rename(names: dict[str, Inode], name: str, node: Inode | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _sectors(op: Op) -> Iterator[Op]:
    if op.kind == TRUNCATE:
        yield op
    for at in range(0, len(op.data), SECTOR):
        yield Op(op.kind, op.path, op.offset + at, op.data[at : at + SECTOR])


def _apply(content: bytearray, op: Op) -> None:
    if op.kind == TRUNCATE:
        del content[op.offset :]
        content.extend(bytes(op.offset - len(content)))
        return
    if len(content) < op.offset:
        content.extend(bytes(op.offset - len(content)))
    content[op.offset : op.offset + len(op.data)] = op.data
