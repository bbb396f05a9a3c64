"""JSON schemas (OpenAPI 3.0 dialect) of every kind, made from the structs that validate it, so the two never disagree.

A struct's docstring describes the object, the comment at the end of a field's line describes the field; `kubectl explain` and
the page at /docs show both.
"""

import inspect as python_inspect
import re
from collections.abc import Mapping
from typing import Any

from msgspec import NODEFAULT, inspect

from cluster_controller.resources import kinds
from cluster_controller.resources.registry import ResourceType

Schema = dict[str, Any]
_FIELD = re.compile(r"^    (\w+):[^#\n]*#\s*(.+)$", re.MULTILINE)
_STANDARD = {
    "apiVersion": "The versioned schema of this object.",
    "kind": "The kind of this object.",
    "metadata": "Name, namespace, labels, annotations and what the server keeps about the object.",
    "spec": "What is wanted.",
    "status": "What is observed; written by controllers only.",
}
# Fields of metadata, which have no comments of their own because everybody knows them.
_METADATA = {
    "name": "Unique within the namespace; a DNS label.", "generateName": "A prefix, to which the server adds five characters.",
    "namespace": "The room of the name.", "uid": "Unique over all objects for ever; set by the server.",
    "resourceVersion": "The revision of the last change; send it back to change only what you have seen.",
    "generation": "Counts changes of spec.", "creationTimestamp": "When it was created.",
    "deletionTimestamp": "When its deletion was asked for; it goes when its finalizers are gone.",
    "labels": "Names and values to select by.", "annotations": "Names and values of any kind.",
    "finalizers": "Who must let go of the object before it goes.", "ownerReferences": "Objects whose deletion deletes this one.",
}  # fmt: skip


def name_of(struct: type[Any]) -> str:
    """The component's name, in the reversed-domain form that clients expect."""
    module = "core.v1" if struct.__module__.endswith(".core") else "meta.v1" if struct.__module__.endswith(".meta") else "v1alpha1"
    return f"dev.banyan.{module}.{struct.__name__}"


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


class Schemas:
    """Collects the components that a document refers to."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def kind(self, resource: ResourceType) -> str:
        """Add a kind and its list; returns the kind's component name."""
        name = self.struct(resource.struct)
        gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        schema = self.components[name]
        schema["x-kubernetes-group-version-kind"] = [gvk]
        schema["description"] = resource.description
        self.components[f"{name}List"] = list_schema(resource, reference(name), self.list_meta())
        return name

    def struct(self, struct: type[Any]) -> str:
        name = name_of(struct)
        if name in self.components:
            return name
        schema: Schema = {"type": "object", "description": _docstring(struct)}
        self.components[name] = schema  # before its fields: a struct may contain itself
        info = inspect.type_info(struct)
        assert isinstance(info, inspect.StructType)
        comments = _comments(struct)
        if struct is kinds.Metadata:
            comments |= _METADATA
        properties = {}
        for field in info.fields:
            found = self.type(field.type)
            text = comments.get(field.encode_name) or (_STANDARD.get(field.encode_name) if issubclass(struct, kinds.Resource) else "")
            if text and "$ref" in found:
                found = {"allOf": [found], "description": text}
            elif text:
                found = {**found, "description": text}
            if (
                field.default is not NODEFAULT
                and isinstance(field.default, str | int | bool)
                and field.default != ""
                and "$ref" not in found
            ):
                found = {**found, "default": field.default}
            properties[field.encode_name] = found
        schema["properties"] = properties
        required = [field.encode_name for field in info.fields if field.required]
        if required:
            schema["required"] = required
        return name

    def list_meta(self) -> Schema:
        self.components.setdefault(
            "dev.banyan.meta.v1.ListMeta",
            {
                "type": "object",
                "description": "Where a list stands.",
                "properties": {
                    "resourceVersion": {"type": "string", "description": "The revision that the list shows."},
                    "continue": {"type": "string", "description": "Send it back as `continue` to get the next page."},
                    "remainingItemCount": {"type": "integer", "format": "int64", "description": "How many objects follow this page."},
                },
            },
        )
        return reference("dev.banyan.meta.v1.ListMeta")

    def type(self, info: inspect.Type) -> Schema:
        match info:
            case inspect.Metadata(type=inner):
                return self.type(inner)
            case inspect.StructType(cls=struct):
                return reference(self.struct(struct))
            case inspect.ListType(item_type=item):
                return {"type": "array", "items": self.type(item)}
            case inspect.DictType(value_type=value):
                return {"type": "object", "additionalProperties": self.type(value)}
            case inspect.LiteralType(values=values):
                return {"type": "string", "enum": list(values)}
            case inspect.UnionType(types=types):
                return self._union(types)
            case _:
                return _leaf(info)

    def _union(self, types: tuple[inspect.Type, ...]) -> Schema:
        kept = [each for each in types if not isinstance(each, inspect.NoneType)]
        nullable = {"nullable": True} if len(kept) < len(types) else {}
        if len(kept) == 1:
            found = self.type(kept[0])
            return ({"allOf": [found], **nullable} if "$ref" in found else {**found, **nullable}) if nullable else found
        if all(isinstance(each, inspect.StrType | inspect.IntType | inspect.FloatType) for each in kept):
            # A quantity: text or a number.
            return {"anyOf": [{"type": "string"}, {"type": "number"}], "x-kubernetes-int-or-string": True}
        return {"anyOf": [self.type(each) for each in kept], **nullable}


def list_schema(resource: ResourceType, item: Schema, meta: Schema) -> Schema:
    return {
        "type": "object",
        "description": f"A page of {resource.plural}.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": meta,
            "items": {"type": "array", "items": item},
        },
        "x-kubernetes-group-version-kind": [{"group": resource.group, "version": resource.version, "kind": f"{resource.kind}List"}],
    }


def _leaf(info: inspect.Type) -> Schema:
    match info:
        case inspect.StrType(pattern=pattern):
            return {"type": "string", "pattern": pattern} if pattern else {"type": "string"}
        case inspect.IntType(ge=low, le=high):
            bounds = {key: value for key, value in (("minimum", low), ("maximum", high)) if value is not None}
            return {"type": "integer", "format": "int64", **bounds}
        case inspect.FloatType():
            return {"type": "number", "format": "double"}
        case inspect.BoolType():
            return {"type": "boolean"}
        case _:
            return {}


def _docstring(struct: type[Any]) -> str:
    text = struct.__dict__.get("__doc__") or ""
    return " ".join(text.split()).replace("``", "`")


def _comments(struct: type[Any]) -> dict[str, str]:
    """The comment at the end of each field's line, by the field's name on the wire; none where there is no source."""
    try:
        source = python_inspect.getsource(struct)
    except (OSError, TypeError):
        return {}
    by_name: Mapping[str, str] = dict(_FIELD.findall(source))
    fields = dict(zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True))
    return {fields[name]: text[0].upper() + text[1:] for name, text in by_name.items() if name in fields}
