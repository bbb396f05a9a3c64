"""One full example of every sync message, with every field set: what the fixtures are recorded from.

`python -m tests.sync.samples` writes a fixture for each example that has none yet. A recorded fixture is never rewritten: it is
what an older version sent, and every later one must still read it. When a message gains a field, add an example under a new
name instead of changing one.
"""

from pathlib import Path

from cluster_controller.sync.codec import encode
from cluster_controller.sync.messages import Ack, Batch, Begin, Check, Chunk, Differ, Item, Message, Resume, Snapshot

FIXTURES = Path(__file__).parent / "fixtures"
COMPRESSED = {"batch_zstd", "chunk_zstd"}

WRITTEN = Item(
    deleted=False, kind="Work", namespace="default", name="f0e1", uid="5f0c7c6e", version=12345678901, delivered=("h1", 41),
    document=b'{"spec":{"later":"fields survive"}}', source="aaaaaaaaaaaaaaaaaaaaaaaaaa", start=4, sequence=17,
)  # fmt: skip
DELETED = Item(deleted=True, kind="Secret", namespace="default", name="key", uid="9a", version=2, delivered=("h2", 42))
LONG = Item(
    deleted=False, kind="ConfigMap", namespace="default", name="long", uid="1b", version=1, delivered=("h1", 43), document=b"long " * 400
)

SAMPLES: dict[str, Message] = {
    "resume": Resume(epoch=3, cursor=("h1", 40), histories=("h1", "h2"), zstd=True),
    "resume_start": Resume(epoch=3, cursor=("h1", 40), histories=("h1",), zstd=True, start=1893457793526),
    "begin": Begin(epoch=3, history="h2", spans={"h1": (1, 40), "h2": (41, 99)}, known=True),
    "batch": Batch(epoch=3, after=40, through=("h2", 42), items=(WRITTEN, DELETED)),
    "batch_zstd": Batch(epoch=3, after=42, through=("h2", 43), items=(LONG,)),
    "ack": Ack(epoch=3, revision=42, snapshot=5),
    "check": Check(epoch=3, revision=42, digest=bytes(range(16))),
    "differ": Differ(epoch=3, revision=42, buckets=bytes(range(256)) * 8),
    "snapshot": Snapshot(epoch=3, id=5, cursor=("h2", 99), buckets=b"\x01" + bytes(31), bulk=True),
    "chunk": Chunk(epoch=3, snapshot=5, index=1, items=(WRITTEN, DELETED), last=True),
    "chunk_zstd": Chunk(epoch=3, snapshot=5, index=2, items=(LONG,), last=True),
}


def main() -> None:
    FIXTURES.mkdir(exist_ok=True)
    for name, sample in SAMPLES.items():
        path = FIXTURES / f"{name}.bin"
        if not path.exists():
            path.write_bytes(encode(sample, compress=name in COMPRESSED))


if __name__ == "__main__":
    main()
