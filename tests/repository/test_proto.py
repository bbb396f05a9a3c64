"""The contracts under proto/ are guarded: every field of every message was recorded, and each guard does refuse what it is there for."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from banyan.shim.v1 import shim_pb2
from banyan.tunnel.v1 import sync_pb2, tunnel_pb2
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import Message

from tests.shim import samples as shim_samples
from tests.sync import samples as sync_samples
from tests.tunnel import samples as tunnel_samples
from tools import proto

SYNC = "banyan/tunnel/v1/sync.proto"
DIGEST = "bytes digest = 3;"


def recorded() -> Iterator[Message]:
    """Every fixture, as the message that it is."""
    for name in tunnel_samples.CONTROL:
        yield tunnel_pb2.Control.FromString((tunnel_samples.FIXTURES / f"{name}.bin").read_bytes())
    for name, sample in tunnel_samples.PAYLOADS.items():
        kind: type[Message] = getattr(tunnel_pb2, type(sample).__name__)
        yield kind.FromString((tunnel_samples.FIXTURES / f"{name}.bin").read_bytes())
    for name in sync_samples.SAMPLES:
        yield sync_pb2.SyncMessage.FromString((sync_samples.FIXTURES / f"{name}.bin").read_bytes()[4:])
    for name, message in shim_samples.messages().items():
        yield type(message).FromString((shim_samples.FIXTURES / f"{name}.bin").read_bytes())


def seen_in(message: Message) -> Iterator[str]:
    """Full names of the messages and of the fields that are set in one, at any depth."""
    yield message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        yield field.full_name
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else [value]:
                yield from seen_in(each)
    packed = getattr(message, "items", None)
    if isinstance(packed, bytes) and not getattr(message, "size", 0):
        yield from seen_in(sync_pb2.SyncItems.FromString(packed))


def declared(file: FileDescriptor) -> Iterator[str]:
    def of(descriptor: Descriptor) -> Iterator[str]:
        if not descriptor.GetOptions().map_entry:
            yield descriptor.full_name
            yield from (field.full_name for field in descriptor.fields)
            for nested in descriptor.nested_types:
                yield from of(nested)

    for descriptor in file.message_types_by_name.values():
        yield from of(descriptor)


def test_every_field_of_every_message_was_recorded_once() -> None:
    names = {name for file in (tunnel_pb2, sync_pb2, shim_pb2) for name in declared(file.DESCRIPTOR)}
    assert len(names) > 200
    assert names - {name for message in recorded() for name in seen_in(message)} == set()


@pytest.fixture
def contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of proto/ that the guards take for the real one."""
    copy = tmp_path / "proto"
    shutil.copytree(proto.PROTO, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(proto, "ROOT", tmp_path)
    monkeypatch.setattr(proto, "PROTO", copy)
    monkeypatch.setattr(proto, "FOLDERS", (copy,))
    monkeypatch.setattr(proto, "BASELINE", copy / "baseline.binpb")
    return copy


def rewrite(path: Path, words: str, instead: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(words) == 1
    path.write_text(text.replace(words, instead), encoding="utf-8")


@pytest.mark.parametrize(
    ("instead", "breaks"),
    [
        ("", True),
        ("bytes digest = 4;", True),
        ("string digest = 3;", True),
        (f"{DIGEST}\n  bytes later = 4;", False),
    ],
    ids=["a field removed", "renumbered", "of another type", "a field added"],
)
def test_a_breaking_change_is_refused_and_a_field_more_is_none(contracts: Path, instead: str, breaks: bool) -> None:
    rewrite(contracts / SYNC, DIGEST, instead)
    assert (proto.breaking() != 0) is breaks


def test_the_baseline_knows_the_contracts_as_they_are(contracts: Path) -> None:
    """What is not in the baseline is guarded by nothing: a new message belongs there once a neighbour may speak it."""
    assert proto.breaking() == 0
    before = proto.BASELINE.read_bytes()
    assert proto.baseline() == 0
    assert set(declared_in(before)) == set(declared_in(proto.BASELINE.read_bytes()))


def declared_in(image: bytes) -> Iterator[str]:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    for file in FileDescriptorSet.FromString(image).file:
        for message in file.message_type:
            yield from (f"{file.package}.{message.name}.{field.name}={field.number}" for field in message.field)


def test_what_is_committed_is_what_the_contracts_generate_and_a_stale_module_is_named(
    contracts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert proto.check() == 0
    rewrite(contracts / SYNC, DIGEST, f"{DIGEST}\n  bytes later = 4;")
    assert proto.check() == 1
    assert "sync_pb2.py is not what its .proto file generates; run: make proto" in capsys.readouterr().out


def test_style_is_linted(contracts: Path) -> None:
    assert proto.buf("lint", "proto") == 0
    rewrite(contracts / SYNC, DIGEST, "bytes Digest = 3;")
    assert proto.buf("lint", "proto") != 0
