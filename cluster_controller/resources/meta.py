"""What all documents share: the base struct, metadata, conditions, selectors and the bounded number types."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

GROUP = "banyan.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Quantity = str | int | float
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=0, le=100_000)]
Seconds = Annotated[int, Meta(ge=0, le=31_536_000)]
PositiveSeconds = Annotated[int, Meta(ge=1, le=31_536_000)]
Labels = dict[str, str]


class Document(Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """Base of every struct here: camelCase on the wire, defaults left out, unknown fields skipped."""


# --- metadata ---


class OwnerReference(Document, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class Metadata(Document, frozen=True, kw_only=True):
    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: Labels = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    finalizers: list[str] = field(default_factory=list)
    owner_references: list[OwnerReference] = field(default_factory=list)
    managed_fields: list[dict[str, Any]] = field(default_factory=list)  # taken and dropped: server-side apply is not served
    self_link: str = ""


class Condition(Document, frozen=True, kw_only=True):
    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class LabelSelectorRequirement(Document, frozen=True, kw_only=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = field(default_factory=list)


class LabelSelector(Document, frozen=True, kw_only=True):
    match_labels: Labels = field(default_factory=dict)
    match_expressions: list[LabelSelectorRequirement] = field(default_factory=list)


class ObjectReference(Document, frozen=True, kw_only=True):
    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class Resource(Document, omit_defaults=False, frozen=True, kw_only=True):
    """What every document has. apiVersion and kind are always written, at their default too."""

    api_version: str = API_VERSION
    kind: str = ""
    metadata: Metadata = Metadata()
