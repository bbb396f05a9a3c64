"""One object of ours as the member has it: the few facts by which it is told whether it is still as we left it. Pure.

Read from `PartialObjectMetadata`, or from the answer to an apply, which has the same metadata. Of `managedFields`, which is most of
the bytes, a digest of our own entry stays; the entry itself is kept only until somebody has compared it (`fields`), so that ten
thousand objects cost a few MiB.
"""

from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct, field

from cluster_shim.kubernetes import fields, names


class Key(NamedTuple):
    """What makes two documents the same object, whatever their version."""

    group: str
    kind: str
    namespace: str  # "" for what belongs to the whole cluster
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Seen(Struct, gc=False, kw_only=True):
    """Only `fields` ever changes, when it is let go; a Job is found to have `finished` before it is anybody's."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    application: str  # uid
    component: str
    applied: str  # our mark of what we applied
    keep: bool  # outlives the application
    owned: bool  # made by a controller for another object; it has that one's labels, and is none of ours
    deleting: bool
    finalizers: tuple[str, ...]
    digest: str  # of our entry in managedFields; "" where there is none
    fields: bytes  # that entry, until it has been compared
    hands: tuple[str, ...]  # managers that have changed it by an Update, statuses aside; the newest last
    finished: str = ""  # of a Job: Complete or Failed

    @property
    def metadata(self) -> "Seen":
        """Where an informer looks for uid and version."""
        return self


class Settled(Struct, frozen=True, gc=False):
    """What an apply of ours has left behind."""

    mark: str
    digest: str


class _Labels(Struct, frozen=True, gc=False):
    application: str = field(name=names.APPLICATION_UID, default="")
    component: str = field(name=names.COMPONENT_LABEL, default="")


class _Annotations(Struct, frozen=True, gc=False):
    applied: str = field(name=names.APPLIED, default="")
    keep: str = field(name=names.KEEP, default="")
    helm: str = field(name="helm.sh/resource-policy", default="")


class _Owner(Struct, gc=False):
    controller: bool = False


class _Managed(Struct, gc=False):
    manager: str = ""
    operation: str = ""
    subresource: str = ""
    time: str | None = None
    fields: Raw = field(name="fieldsV1", default=Raw(b""))


class _Meta(Struct, frozen=True, gc=False, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    finalizers: list[str] = []
    labels: _Labels = _Labels()
    annotations: _Annotations = _Annotations()
    managed_fields: list[_Managed] = []
    owner_references: list[_Owner] = []


class _Object(Struct, gc=False):
    metadata: _Meta


class _Condition(Struct, frozen=True, gc=False):
    type: str = ""
    status: str = ""


class _JobStatus(Struct, frozen=True, gc=False):
    conditions: list[_Condition] = []


class _Job(Struct, frozen=True, gc=False):
    status: _JobStatus = _JobStatus()


_decoder = msgspec.json.Decoder(_Object)
_job_decoder = msgspec.json.Decoder(_Job)


def decode(raw: bytes | Raw) -> Seen:
    """Any object. msgspec.DecodeError for what is none."""
    meta = _decoder.decode(raw).metadata
    ours = b""
    hands: list[tuple[str, str]] = []
    for entry in meta.managed_fields:
        if entry.operation == "Apply" and entry.manager == names.MANAGER and not entry.subresource:
            ours = bytes(entry.fields)
        elif entry.operation == "Update" and entry.subresource != "status":
            hands.append((entry.time or "", entry.manager))
    return Seen(
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        resource_version=meta.resource_version,
        application=meta.labels.application,
        component=meta.labels.component,
        applied=meta.annotations.applied,
        keep=meta.annotations.keep == "true" or meta.annotations.helm == "keep",
        owned=any(owner.controller for owner in meta.owner_references),
        deleting=meta.deletion_timestamp is not None,
        finalizers=tuple(meta.finalizers),
        digest=fields.digest(ours),
        fields=ours,
        hands=tuple(manager for _, manager in sorted(hands)),
    )


def decode_job(raw: bytes | Raw) -> Seen:
    """A whole Job: its metadata does not say whether it is over."""
    found = decode(raw)
    conditions = _job_decoder.decode(raw).status.conditions
    found.finished = next((one.type for one in conditions if one.type in ("Complete", "Failed") and one.status == "True"), "")
    return found


def newer(version: str, than: str) -> bool:
    """Of two resourceVersions of one object. They are numbers on every API server that keeps objects in etcd or kine."""
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than
