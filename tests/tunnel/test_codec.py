"""Messages: the recorded fixtures still decode, structs and protobuf agree, and nothing but `ProtocolError` comes of rubbish."""

from enum import IntEnum
from typing import Any, get_args

import msgspec
import pytest
from banyan.tunnel.v1 import tunnel_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel import messages
from cluster_controller.tunnel.protocol import codec
from tests.tunnel.samples import CONTROL, FIXTURES, PAYLOADS, encode

CLASSES = [one for one in vars(messages).values() if isinstance(one, type) and issubclass(one, msgspec.Struct)]
STRUCTS = [one for one in CLASSES if one is not msgspec.Struct]
ENUMS = {"Lane": "LANE", "LinkRole": "LINK_ROLE", "RefusalCode": "REFUSAL_CODE", "ResetCode": "RESET_CODE"}


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_a_recorded_control_message_still_decodes(name: str) -> None:
    assert codec.decode_control((FIXTURES / f"{name}.bin").read_bytes()) == CONTROL[name]


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_a_recorded_payload_still_decodes(name: str) -> None:
    assert codec.decode_payload(type(PAYLOADS[name]), (FIXTURES / f"{name}.bin").read_bytes()) == PAYLOADS[name]


def test_every_fixture_has_its_test_and_every_message_its_fixture() -> None:
    assert {path.stem for path in FIXTURES.glob("*.bin")} == {*CONTROL, *PAYLOADS}
    assert {type(sample) for sample in CONTROL.values()} == set(get_args(messages.ControlMessage))


@pytest.mark.parametrize("name", sorted({**CONTROL, **PAYLOADS}))
def test_an_example_sets_every_field(name: str) -> None:
    sample = {**CONTROL, **PAYLOADS}[name]
    unset = [field for field in sample.__struct_fields__ if getattr(sample, field) == getattr(type(sample)(), field)]
    expected = {"heartbeat_question": ["answer"], "heartbeat_answer": ["id"], "join_reply": ["refusal"]}
    assert name == "join_reply_refused" or unset == expected.get(name, [])
    assert encode(sample)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_struct_and_protobuf_have_the_same_fields(struct: Any) -> None:
    fields = codec.protobuf_type(struct).DESCRIPTOR.fields_by_name
    assert set(struct.__struct_fields__) == set(fields)
    for field in msgspec.structs.fields(struct):
        assert isinstance(field.default, tuple) <= fields[field.name].is_repeated, field.name


@pytest.mark.parametrize(("name", "prefix"), ENUMS.items())
def test_enums_have_the_same_numbers(name: str, prefix: str) -> None:
    ours: type[IntEnum] = getattr(messages, name)
    theirs = {value.name.removeprefix(prefix + "_"): value.number for value in getattr(pb, name).DESCRIPTOR.values}
    if name == "Lane":
        theirs.pop("UNSPECIFIED")
    assert {member.name: int(member) for member in ours} == theirs


def test_every_alternative_of_control_is_known() -> None:
    assert {field.name for field in pb.Control.DESCRIPTOR.oneofs[0].fields} == set(codec.CONTROL_TYPES)


def test_numbers_of_a_later_version_become_the_default() -> None:
    data = pb.Open(lane=77, service="x").SerializeToString()  # type: ignore[arg-type]
    assert codec.decode_payload(messages.Open, data).lane is messages.Lane.INTERACTIVE
    data = pb.Reset(code=99).SerializeToString()  # type: ignore[arg-type]
    assert codec.decode_payload(messages.Reset, data).code is messages.ResetCode.UNSPECIFIED


@given(st.binary(max_size=300))
def test_rubbish_is_a_protocol_error_or_a_message(data: bytes) -> None:
    for decode in (codec.decode_control, *(lambda d, s=s: codec.decode_payload(s, d) for s in map(type, PAYLOADS.values()))):
        try:
            decode(data)
        except ProtocolError as error:
            assert "cannot be decoded" in str(error)
