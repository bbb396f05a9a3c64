"""Protobuf bodies as client-go sends them, and anything else as nobody does."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openapi import protobuf
from openapi.errors import ApiError
from tests.openapi.support import Server, run
from tests.openapi.test_objects import failed, ok


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def envelope(api_version: str, kind: str, raw: bytes) -> bytes:
    return (
        protobuf.MAGIC + field(1, field(1, api_version.encode()) + field(2, kind.encode())) + field(2, raw) + field(3, b"") + field(4, b"")
    )


def test_a_config_map() -> None:
    metadata = (
        field(1, b"m")
        + field(2, b"")
        + field(3, b"default")
        + field(8, b"")
        + field(11, field(1, b"k") + field(2, b"v"))
        + field(14, b"a/b")
    )
    raw = field(1, metadata) + field(2, field(1, b"x") + field(2, b"y")) + field(3, field(1, b"b") + field(2, b"\x00\x01")) + field(4, 1)
    assert protobuf.decode(envelope("v1", "ConfigMap", raw)) == {
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "default", "labels": {"k": "v"}, "finalizers": ["a/b"]},
        "data": {"x": "y"}, "binaryData": {"b": base64.b64encode(b"\x00\x01").decode()}, "immutable": True,
    }  # fmt: skip


def test_an_event_with_times() -> None:
    raw = field(1, field(1, b"e")) + field(6, field(1, 1_700_000_000)) + field(8, 3) + field(10, field(1, 1_700_000_000) + field(2, 5_000))
    found = protobuf.decode(envelope("v1", "Event", raw))
    assert (found["firstTimestamp"], found["eventTime"], found["count"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20.000005Z", 3)


def test_what_is_not_described_is_refused() -> None:
    with pytest.raises(ApiError, match="field 9 of the protobuf") as caught:
        protobuf.decode(envelope("v1", "ConfigMap", field(9, b"x")))
    assert caught.value.code == 422
    with pytest.raises(ApiError, match="not read as protobuf") as caught:
        protobuf.decode(envelope("v1", "Pod", b""))
    assert caught.value.code == 415


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for body in (data, protobuf.MAGIC + data, envelope("v1", "Event", data), envelope("v1", "Secret", data)):
        try:
            protobuf.decode(body)
        except ApiError as error:
            assert error.code in (400, 415, 422)


def test_through_the_api(tmp_path: Path) -> None:
    async def body(server: Server) -> None:
        raw = field(1, field(1, b"m") + field(3, b"default")) + field(2, field(1, b"x") + field(2, b"y"))
        headers = {"content-type": protobuf.MEDIA, "accept": "application/vnd.kubernetes.protobuf,application/json"}
        maps = "/api/v1/namespaces/default/configmaps"
        assert ok(await server.admin.post(maps, content=envelope("v1", "ConfigMap", raw), headers=headers), 201)["data"] == {"x": "y"}
        failed(await server.admin.post(maps, content=b"nonsense", headers=headers), 400, "BadRequest")
        options = envelope("v1", "DeleteOptions", field(2, field(1, b"another uid")))
        failed(await server.admin.request("DELETE", f"{maps}/m", content=options, headers=headers), 409, "Conflict")

    run(tmp_path, body)
