"""The one place where protobuf is read and written.

Structs of `tunnel.messages` mirror the messages of `banyan.tunnel.v1` by name, field by field, so one pair of functions maps
all of them; enums map by number, a number that this version does not know becomes the enum's first value (the "unspecified"
one, or the default of the struct). Decoding never raises anything but `ProtocolError`.
"""

from collections.abc import Callable
from enum import IntEnum
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import msgspec
from banyan.tunnel.v1 import tunnel_pb2 as pb
from google.protobuf.message import DecodeError, Message

from cluster_controller.errors import ProtocolError
from cluster_controller.tunnel import messages
from cluster_controller.tunnel.messages import ControlMessage, GoAway, Heartbeat, Open, Reset

T = TypeVar("T", bound=msgspec.Struct)
Reader = Callable[[Any], Any]

PROTOBUF_NAMES = {"LinkLimits": "Limits"}
CONTROL_FIELDS: dict[type[msgspec.Struct], str] = {
    messages.Hello: "hello",
    messages.Welcome: "welcome",
    messages.Refusal: "refusal",
    messages.JoinRequest: "join_request",
    messages.JoinReply: "join_reply",
    messages.RenewRequest: "renew_request",
    messages.RenewReply: "renew_reply",
    messages.Routes: "routes",
    messages.Revoked: "revoked",
    messages.Held: "held",
    messages.Path: "path",
    messages.Standing: "standing",
}
CONTROL_TYPES = {name: struct for struct, name in CONTROL_FIELDS.items()}


def encode_control(message: ControlMessage) -> bytes:
    name = CONTROL_FIELDS[type(message)]
    envelope = pb.Control()
    body = getattr(envelope, name)
    body.SetInParent()
    _fill(body, message)
    return envelope.SerializeToString()


def decode_control(data: bytes) -> ControlMessage | None:
    """None for an alternative that this version does not know."""
    envelope = _parse(pb.Control(), data)
    name = envelope.WhichOneof("body")
    if name is None:
        return None
    return cast(ControlMessage, _read(CONTROL_TYPES[name], getattr(envelope, name)))


def encode_payload(message: Heartbeat | Open | Reset | GoAway) -> bytes:
    target = protobuf_type(type(message))()
    _fill(target, message)
    return target.SerializeToString()


def decode_payload(struct: type[T], data: bytes) -> T:
    return _read(struct, _parse(protobuf_type(struct)(), data))


def protobuf_type(struct: type[msgspec.Struct]) -> type[Message]:
    name = PROTOBUF_NAMES.get(struct.__name__, struct.__name__)
    found: type[Message] = getattr(pb, name)
    return found


M = TypeVar("M", bound=Message)


def _parse(target: M, data: bytes) -> M:
    try:
        target.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a {type(target).__name__} message cannot be decoded: {error}") from None
    return target


def _fill(target: Message, struct: msgspec.Struct) -> None:
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if value is None:
            continue
        if isinstance(value, msgspec.Struct):
            part = getattr(target, name)
            part.SetInParent()
            _fill(part, value)
        elif isinstance(value, tuple):
            repeated = getattr(target, name)
            if value and isinstance(value[0], msgspec.Struct):
                for item in value:
                    _fill(repeated.add(), item)
            else:
                repeated.extend(value)
        elif isinstance(value, dict):
            getattr(target, name).update(value)
        else:
            setattr(target, name, value)


_readers: dict[type[msgspec.Struct], list[tuple[str, Reader, bool]]] = {}


def _read(struct: type[T], source: Message) -> T:
    fields = _readers.get(struct)
    if fields is None:
        fields = _readers[struct] = [_reader(info) for info in msgspec.structs.fields(struct)]
    values = {}
    for name, read, optional in fields:
        if optional and not source.HasField(name):
            continue
        values[name] = read(getattr(source, name))
    return struct(**values)


def _reader(info: msgspec.structs.FieldInfo) -> tuple[str, Reader, bool]:
    kind = info.type
    optional = get_origin(kind) in (Union, UnionType)
    if optional:
        kind = next(part for part in get_args(kind) if part is not type(None))
    return info.name, _reader_of(kind, info.default), optional


def _reader_of(kind: Any, default: Any) -> Reader:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if isinstance(item, type) and issubclass(item, msgspec.Struct):
            return lambda values: tuple(_read(item, value) for value in values)
        return tuple
    if get_origin(kind) is dict:
        return dict
    if issubclass(kind, msgspec.Struct):
        return lambda value: _read(kind, value)
    if issubclass(kind, IntEnum):
        known = {int(member): member for member in kind}
        return lambda value: known.get(value, default)
    return lambda value: value
