"""How an object looks to a client: its stored bytes with the server's metadata put in, as itself, as a table row, or as metadata.

Documents are stored as their writer's bytes; only `metadata` is opened here, everything else passes as it was written.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct, field

from cluster_controller.resources.registry import ResourceType
from cluster_controller.resources.tables import Context, Table, table_of
from cluster_controller.store import Stored
from openapi.query import Form

_TOP = msgspec.json.Decoder(dict[str, Raw])
_META_API = "meta.k8s.io/v1"


class _LabelsOnly(Struct):
    labels: dict[str, str] = field(default_factory=dict)


class _MetadataOnly(Struct):
    metadata: _LabelsOnly = field(default_factory=_LabelsOnly)


class _ClusterLabels(Struct):
    metadata: _LabelsOnly = field(default_factory=_LabelsOnly)
    status: _LabelsOnly = field(default_factory=_LabelsOnly)


_LABELS = msgspec.json.Decoder(_MetadataOnly)
_CLUSTER_LABELS = msgspec.json.Decoder(_ClusterLabels)


def labels_of(stored: Stored) -> Mapping[str, str]:
    """What a label selector looks at. Of a Cluster: the merged labels, as placement does; its metadata holds one overlay only."""
    if stored.key.kind == "Cluster":
        found = _CLUSTER_LABELS.decode(stored.document)
        return found.status.labels | found.metadata.labels
    return _LABELS.decode(stored.document).metadata.labels


def document_of(resource: ResourceType, stored: Stored) -> dict[str, Any]:
    """The whole document as clients see it, for changing and showing."""
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    document["metadata"] = _metadata(stored, document.get("metadata") or {})
    return {"apiVersion": resource.api_version, "kind": resource.kind, **document}


def object_bytes(resource: ResourceType, stored: Stored) -> bytes:
    """The same as JSON, without reading more of the document than its outermost fields."""
    top = _TOP.decode(stored.document)
    metadata = _metadata(stored, msgspec.json.decode(top.get("metadata", b"{}")))
    return msgspec.json.encode({"apiVersion": resource.api_version, "kind": resource.kind, **top, "metadata": metadata})


def partial_bytes(resource: ResourceType, stored: Stored) -> bytes:
    return msgspec.json.encode(partial_of(stored))


def partial_of(stored: Stored) -> dict[str, Any]:
    top = _TOP.decode(stored.document)
    metadata = _metadata(stored, msgspec.json.decode(top.get("metadata", b"{}")))
    return {"kind": "PartialObjectMetadata", "apiVersion": _META_API, "metadata": metadata}


class Printer:
    """Turns objects of one kind into one form. ``heard`` answers the age of what is known of a cluster."""

    def __init__(self, resource: ResourceType, form: Form, include: str, context: Context) -> None:
        self.resource = resource
        self.form = form
        self.include = include
        self.context = context
        self._table: Table = table_of(resource.kind)

    def one(self, stored: Stored) -> bytes:
        """A single object (of a get, of a watch event)."""
        if self.form == "table":
            return table_bytes(self._table, [self._row(stored)], stored.revision)
        return self.item(stored)

    def item(self, stored: Stored) -> bytes:
        """One entry of a list's ``items`` (or ``rows``)."""
        if self.form == "table":
            return msgspec.json.encode(self._row(stored))
        if self.form == "partial":
            return partial_bytes(self.resource, stored)
        return object_bytes(self.resource, stored)

    def list_frame(self, metadata: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """What stands before and after the comma-separated items of a list."""
        if self.form == "table":
            head: dict[str, Any] = {
                "kind": "Table",
                "apiVersion": _META_API,
                "metadata": metadata,
                "columnDefinitions": self._table.columns,
            }
            return _open(head, "rows")
        if self.form == "partial":
            return _open({"kind": "PartialObjectMetadataList", "apiVersion": _META_API, "metadata": metadata}, "items")
        return _open({"kind": f"{self.resource.kind}List", "apiVersion": self.resource.api_version, "metadata": metadata}, "items")

    def bookmark(self, revision: int, initial_end: bool) -> bytes:
        metadata: dict[str, Any] = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        if self.form == "table":
            row = {"cells": [""] * len(self._table.columns), "object": {**_partial({}), "metadata": metadata}}
            return table_bytes(self._table, [row], revision)
        if self.form == "partial":
            return msgspec.json.encode({**_partial({}), "metadata": metadata})
        return msgspec.json.encode({"kind": self.resource.kind, "apiVersion": self.resource.api_version, "metadata": metadata})

    def _row(self, stored: Stored) -> dict[str, Any]:
        document = msgspec.json.decode(stored.document)
        metadata = document["metadata"] = _metadata(stored, document.get("metadata") or {})
        row: dict[str, Any] = {"cells": self._table.cells(document, self.context)}
        if self.include == "Object":
            row["object"] = {"apiVersion": self.resource.api_version, "kind": self.resource.kind, **document}
        elif self.include == "Metadata":
            row["object"] = _partial(metadata)
        return row


def table_bytes(table: Table, rows: Sequence[Mapping[str, Any]], revision: int) -> bytes:
    return msgspec.json.encode({
        "kind": "Table", "apiVersion": _META_API, "metadata": {"resourceVersion": str(revision)},
        "columnDefinitions": table.columns, "rows": rows,
    })  # fmt: skip


def timestamp(now: datetime) -> str:
    """RFC 3339 in UTC, whole seconds, as Kubernetes writes it."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _metadata(stored: Stored, metadata: dict[str, Any]) -> dict[str, Any]:
    metadata["name"] = stored.key.name
    if stored.key.namespace:
        metadata["namespace"] = stored.key.namespace
    metadata["uid"] = stored.uid
    metadata["resourceVersion"] = str(stored.revision)
    return metadata


def _partial(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "PartialObjectMetadata", "apiVersion": _META_API, "metadata": metadata}


def _open(head: Mapping[str, Any], items: str) -> tuple[bytes, bytes]:
    return msgspec.json.encode(head)[:-1] + b',"' + items.encode() + b'":[', b"]}"
