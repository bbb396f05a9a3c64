"""Between the contract's structs and their messages: fields of the same name mean the same, so one function serves all.

Only two things differ in shape. A list that may be absent (`Observed.nodes`) is wrapped in a message of its own, and a phase
that a newer shim made up reads as Pending.
"""

from typing import Any, TypeVar

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from cluster_shim.contract import Phase, ShimError

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_PHASES = frozenset(phase.value for phase in Phase)


def to_message(value: msgspec.Struct, kind: type[M]) -> M:
    """Raises ShimError when a number does not fit its field."""
    message = kind()
    try:
        _fill(message, msgspec.to_builtins(value, builtin_types=(bytes,)))
    except (TypeError, ValueError) as error:
        raise ShimError(f"{kind.DESCRIPTOR.name} cannot be sent: {error}") from None
    return message


def from_message(message: Message, kind: type[T]) -> T:
    """Raises ShimError when a value is not one of its struct's."""
    try:
        return msgspec.convert(_plain(message), kind)
    except msgspec.ValidationError as error:
        raise ShimError(f"{message.DESCRIPTOR.name} cannot be understood: {error}") from None


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_wrapper(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.name == "NodeList"


def _fill(message: Any, values: dict[str, Any]) -> None:
    for field in message.DESCRIPTOR.fields:
        value = values.get(field.name)
        if value is None:
            continue
        if _is_map(field):
            getattr(message, field.name).update(value)
        elif _is_wrapper(field):
            wrapper = getattr(message, field.name)
            wrapper.SetInParent()
            for item in value:
                _fill(wrapper.nodes.add(), item)
        elif field.is_repeated and field.message_type is not None:
            for item in value:
                _fill(getattr(message, field.name).add(), item)
        elif field.is_repeated:
            getattr(message, field.name).extend(value)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            _fill(inner, value)
        else:
            setattr(message, field.name, value)


def _plain(message: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            values[field.name] = dict(value)
        elif field.is_repeated:
            values[field.name] = [_plain(item) for item in value] if field.message_type is not None else list(value)
        elif field.message_type is None:
            values[field.name] = value
        elif message.HasField(field.name):
            values[field.name] = [_plain(item) for item in value.nodes] if _is_wrapper(field) else _plain(value)
    if message.DESCRIPTOR.name == "Instance" and values["phase"] not in _PHASES:
        values["phase"] = Phase.PENDING
    return values
