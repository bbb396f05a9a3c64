"""The kinds that the API serves, and how: names, scope, verbs, subresources, where their objects live.

One table; discovery, routing, tables, the OpenAPI document and authorisation are all read from it.
"""

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from cluster_controller.resources import kinds
from cluster_controller.resources.meta import GROUP, VERSION

READ = ("get", "list", "watch")
ALL = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Subresource(Struct, frozen=True):
    """``methods``: HTTP methods; ``kind``: what it answers with; ``role``: who may, where the method alone does not say."""

    name: str
    methods: tuple[str, ...]
    kind: str = ""
    role: str = ""  # view, edit, admin; empty: view to GET, edit to change
    raw: bool = False  # answered by the front, which owns the connection


class ResourceType(Struct, frozen=True, kw_only=True):
    group: str  # "": core
    version: str
    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool
    verbs: tuple[str, ...] = ALL
    subresources: tuple[Subresource, ...] = ()
    struct: type[kinds.Resource]
    space: str = "own"  # of the store
    read_role: str = "view"  # least role that may read
    write_role: str = "edit"  # least role that may change
    generation: bool = False  # counts changes of spec
    secret_answer: bool = False  # never cached, never in a watch with its secrets
    selectable: tuple[str, ...] = ()  # fields of field selectors, besides metadata.name and metadata.namespace
    description: str = ""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def fields(self) -> tuple[str, ...]:
        """What a field selector may name."""
        return ("metadata.name", "metadata.namespace", *self.selectable) if self.namespaced else ("metadata.name", *self.selectable)

    @property
    def has_status(self) -> bool:
        return "status" in self.struct.__struct_fields__

    @property
    def group_resource(self) -> str:
        """`applications.banyan.dev`, as error messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def subresource(self, name: str) -> Subresource | None:
        return next((each for each in self.subresources if each.name == name), None)


_STATUS = Subresource("status", ("GET", "PUT", "PATCH"), role="admin")
_READ_STATUS = Subresource("status", ("GET",))

_EVENT_FIELDS = (
    "involvedObject.apiVersion", "involvedObject.fieldPath", "involvedObject.kind", "involvedObject.name", "involvedObject.namespace",
    "involvedObject.resourceVersion", "involvedObject.uid", "reason", "reportingComponent", "type",
)  # fmt: skip

_TYPES = (
    ResourceType(
        group=GROUP, version=VERSION, kind="Application", plural="applications", singular="application", short_names=("app", "apps"),
        categories=("all", "banyan"), namespaced=True, struct=kinds.Application, generation=True,
        subresources=(
            _STATUS,
            Subresource("scale", ("GET", "PUT", "PATCH"), kind="Scale"),
            Subresource("history", ("GET",)),
            Subresource("undo", ("POST",)),
            Subresource("explain", ("GET", "POST")),
            Subresource("clusters", ("GET",)),
            Subresource("proxy", ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"), raw=True),
        ),
        selectable=('status.phase',),
        description="What shall run, where in this controller's subtree, and how it is replaced.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="SubtreeApplication", plural="subtreeapplications", singular="subtreeapplication",
        short_names=("subapp", "subapps"), categories=("banyan",), namespaced=True, struct=kinds.SubtreeApplication, verbs=READ,
        subresources=(_READ_STATUS,),
        selectable=('status.phase',),
        description="An Application written below, as this controller sees it; named NAME.ORIGIN.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="Cluster", plural="clusters", singular="cluster", short_names=("cl",),
        categories=("banyan",), namespaced=False, struct=kinds.Cluster, generation=True, write_role="admin",
        verbs=("delete", "get", "list", "patch", "update", "watch"),
        subresources=(
            _READ_STATUS,
            Subresource("approve", ("POST",), role="admin"),
            Subresource("revoke", ("POST",), role="admin"),
            Subresource("keep", ("POST",), role="admin"),
            Subresource("conflicts", ("GET", "POST"), role="admin"),
            Subresource("rotate", ("GET", "POST"), role="admin"),
            Subresource("drill", ("GET", "POST"), role="admin"),
            Subresource("move", ("GET", "POST"), role="admin"),
            Subresource("transfers", ("GET",)),
            Subresource("banyan", ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"), raw=True),
            Subresource("proxy", ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"), raw=True),
        ),
        selectable=('status.phase', 'status.parent', 'spec.unschedulable'),
        description="A member of the tree below this controller. Labels, taints and cordon set here are this controller's overlay.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="Model", plural="models", singular="model", categories=("all", "banyan"), namespaced=True,
        struct=kinds.Model, generation=True, subresources=(_STATUS, Subresource("blobs", ("GET", "PUT", "HEAD"))),
        description="A named, versioned model: files addressed by their sha256.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="Work", plural="works", singular="work", categories=("banyan",), namespaced=False,
        struct=kinds.Work, verbs=READ, space="local",
        description="What this controller's own cluster must run; named by the application's uid.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="JoinToken", plural="jointokens", singular="jointoken", short_names=("jt",),
        categories=("banyan",), namespaced=False, struct=kinds.JoinToken, generation=True, read_role="admin", write_role="admin",
        subresources=(_READ_STATUS,), secret_answer=True,
        selectable=('status.phase', 'spec.parent'),
        description="A one-time, expiring right to join under a given parent. The token is in the answer to the create, and nowhere else.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="User", plural="users", singular="user", categories=("banyan",), namespaced=False,
        struct=kinds.User, generation=True, read_role="admin", write_role="admin", subresources=(_READ_STATUS,), secret_answer=True,
        description="A person or program that may ask this controller. The credential is in the answer to the create, and nowhere else.",
    ),
    ResourceType(
        group=GROUP, version=VERSION, kind="SitePolicy", plural="sitepolicies", singular="sitepolicy", short_names=("sp",),
        categories=("banyan",), namespaced=False, struct=kinds.SitePolicy, generation=True, write_role="admin",
        description="What this site decides by itself, whatever an ancestor wants; one object, named site, written at the site alone.",
    ),
    ResourceType(
        group="", version="v1", kind="Namespace", plural="namespaces", singular="namespace", short_names=("ns",), namespaced=False,
        struct=kinds.Namespace, write_role="admin", subresources=(_READ_STATUS,),
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
        selectable=('status.phase',),
        description="A room for names; users are granted roles per namespace.",
    ),
    ResourceType(
        group="", version="v1", kind="ConfigMap", plural="configmaps", singular="configmap", short_names=("cm",), namespaced=True,
        struct=kinds.ConfigMap, description="Settings that applications read as environment or files.",
    ),
    ResourceType(
        group="", version="v1", kind="Secret", plural="secrets", singular="secret", namespaced=True, struct=kinds.Secret,
        read_role="edit", selectable=('type',),
        description="Like a ConfigMap, sealed at rest and sent only where it is needed.",
    ),
    ResourceType(
        group="", version="v1", kind="Event", plural="events", singular="event", short_names=("ev",), namespaced=True,
        struct=kinds.Event, selectable=_EVENT_FIELDS,
        description="Something that happened to an object.",
    ),
    ResourceType(
        group="", version="v1", kind="Node", plural="nodes", singular="node", short_names=("no",), namespaced=False, struct=kinds.Node,
        verbs=READ, space="observed", subresources=(_READ_STATUS,), selectable=('spec.unschedulable',),
        description="A machine of this controller's own cluster.",
    ),
    ResourceType(
        group="", version="v1", kind="Pod", plural="pods", singular="pod", short_names=("po",), categories=("all",), namespaced=True,
        struct=kinds.Pod, verbs=READ, space="observed", subresources=(_READ_STATUS, Subresource("log", ("GET",))),
        selectable=('spec.nodeName', 'status.phase', 'spec.restartPolicy'),
        description="One running instance on this controller's own cluster.",
    ),
)  # fmt: skip

REGISTRY: Mapping[str, ResourceType] = MappingProxyType({each.kind: each for each in _TYPES})
BY_PLURAL: Mapping[tuple[str, str, str], ResourceType] = MappingProxyType(
    {(each.group, each.version, each.plural): each for each in _TYPES}
)

# Labels and annotations that controllers write.
ROLLOUT_RESUME = "banyan.dev/rollout-resume"  # annotation of an Application: a new value says that a rollout that waits shall go on
FINALIZER_WITHDRAW = "banyan.dev/withdraw"  # holds a deleted Application until the clusters in reach have stopped it
LABEL_APPLICATION = "banyan.dev/application"
LABEL_APPLICATION_UID = "banyan.dev/application-uid"
LABEL_COMPONENT = "banyan.dev/component"
LABEL_REVISION = "banyan.dev/revision"
LABEL_ORIGIN = "banyan.dev/origin"
