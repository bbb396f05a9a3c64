"""What the durability tests write, and what must be there afterwards: commit n is the same in every run.

As a program: `python -m tests.store.workload FOLDER COMMITS` goes on with the store in FOLDER, eight commits at a time, and
writes the number and the revision of each to FOLDER/acks as soon as it has returned.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from cluster_controller.store import Key, Limits, Store, Tx

LIMITS = Limits(journal_rows=200, wal_bytes=96 * 1024)
KEYS = 40
State = dict[tuple[str, ...], tuple[str, bytes]]


def write(tx: Tx, number: int) -> int:
    """Commit ``number``. Several objects, one fact; all or nothing. Returns its revision."""
    chance = random.Random(number)
    for _ in range(chance.randint(1, 6)):
        key = Key(chance.choice(["own", "down/a"]), chance.choice(["Work", "Secret"]), "", f"k{chance.randrange(KEYS)}")
        if chance.random() < 0.25:
            tx.delete(key)
        else:
            tx.put(key, b'{"n":%d,"x":"%s"}' % (number, b"plaintext" * chance.randrange(300)), uid=f"u{number}")
    tx.set_fact("number", str(number).encode())
    return tx.revision


class Model:
    """The states after each commit."""

    def __init__(self) -> None:
        from tests.sync.memory import MemoryStore

        self._store = MemoryStore("model")
        self._states: list[tuple[int, State]] = [(0, {})]

    def at(self, number: int) -> tuple[int, State]:
        """Revision and state after commit ``number``; commits are numbered from 1."""
        while len(self._states) <= number:
            following = len(self._states)
            revision = self._store.commit(lambda tx: write(tx, following))  # noqa: B023
            self._states.append((revision, state(self._store)))
        return self._states[number]


def state(store: "Store | object") -> State:
    return {tuple(s.key): (s.uid, s.document) for space in ("own", "down/a") for s in store.scan(space)}  # type: ignore[attr-defined]


async def run(folder: Path, commits: int) -> None:
    store = await Store.open(folder, LIMITS)
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    done = int(store.fact("number") or b"0")
    numbers = iter(range(done + 1, done + 1 + commits))

    async def worker() -> None:
        for number in numbers:
            revision = await store.commit(lambda tx: write(tx, number))  # noqa: B023
            os.write(acks, f"{number} {revision}\n".encode())

    await asyncio.gather(*(worker() for _ in range(8)))
    await store.close()


def work(folder: Path, commits: int) -> None:
    asyncio.run(run(folder, commits))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
