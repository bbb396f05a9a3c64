"""What this controller was given to place: an Application written here, or a Work from its parent.

Both become one `Allotment`, so that everything after it is the same at every level of the tree.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from cluster_controller import delivered
from cluster_controller.documents import Documents
from cluster_controller.placement.borrowing import word
from cluster_controller.placement.moving import within
from cluster_controller.placement.records import model_digest
from cluster_controller.resources import kinds
from cluster_controller.resources.overriding import everything
from cluster_controller.resources.registry import FINALIZER_WITHDRAW, ROLLOUT_RESUME
from cluster_controller.rollout.revision import digest, with_overrides
from cluster_controller.store import Key, Stored, Tx

Find = Callable[[str, str, str], Stored | None]  # space, kind, uid


class Reference(Struct, frozen=True):
    """A document that the application needs, as the receiver of a Work finds it."""

    link: kinds.WorkReference
    stored: Stored


class Allotment(Struct, frozen=True, kw_only=True):
    application: kinds.ApplicationReference
    labels: Mapping[str, str]  # of the Application
    components: list[kinds.Component]
    priority: int
    preemption_policy: Literal["PreemptLowerPriority", "Never"]
    placement: kinds.Placement
    rollout: kinds.Rollout | None
    revision: str  # of its components; "" where nothing goes out in waves
    overrides: list[kinds.Override]  # what is different on some clusters
    resume: str  # changes whenever somebody says that what waits shall go on
    depends_on: list[str]  # Applications beside it, at its origin
    apply: kinds.ApplyPolicy
    chain: list[kinds.Share]
    references: list[Reference]
    missing: list[str]  # "model emotion": referenced, but not here
    withdrawn: bool  # being deleted, and nobody else holds it: nothing shall run
    held_by: list[str]  # finalizers of others for which its deletion waits; until then it runs on, as a Deployment's pods do
    key: Key
    transfers: list[kinds.Transfer]  # what clusters of this subtree took along, or brought, that were moved
    version: int  # what a report upwards answers: the id of the last share in the chain; 0 at the origin
    lent: Sequence[kinds.Lent] = ()  # of this, what clusters below hold directly while nobody here could reach them

    @property
    def links(self) -> list[kinds.WorkReference]:
        return [reference.link for reference in self.references]


def work_key(space: str, application: str) -> Key:
    return Key(space, "Work", "", application)


def of_application(tx: Tx, documents: Documents, stored: Stored, me: str, my_name: str) -> Allotment:
    """The origin's own Application, with its names resolved to uids."""
    application = documents.read(stored, kinds.Application)
    namespace = stored.key.namespace
    deleting = application.metadata.deletion_timestamp is not None
    others = [finalizer for finalizer in application.metadata.finalizers if finalizer != FINALIZER_WITHDRAW]
    references: list[Reference] = []
    missing: list[str] = []
    spec = application.spec
    for kind, name, optional in needed(spec.components, spec.overrides):
        found = _find_by_name(tx, documents, kind, namespace, name)
        if found is not None:
            references.append(Reference(kinds.WorkReference(kind=kind, name=name, uid=found.uid), found))  # type: ignore[arg-type]
        elif not optional:
            missing.append(f"{kind} {namespace}/{name}")
    return Allotment(
        application=kinds.ApplicationReference(
            uid=stored.uid,
            name=stored.key.name,
            namespace=namespace,
            origin=me,
            origin_name=my_name,
            generation=application.metadata.generation,
        ),
        labels=application.metadata.labels,
        components=application.spec.components,
        priority=application.spec.priority,
        preemption_policy=application.spec.preemption_policy,
        placement=application.spec.placement,
        rollout=application.spec.rollout,
        revision=_revision(application.spec) if application.spec.rollout is not None else "",
        overrides=application.spec.overrides,
        resume=application.metadata.annotations.get(ROLLOUT_RESUME, ""),
        depends_on=application.spec.depends_on,
        apply=application.spec.apply,
        chain=[],
        references=references,
        missing=missing,
        withdrawn=deleting and not others,
        held_by=others if deleting else [],
        key=stored.key,
        transfers=[],
        version=0,
    )


def of_work(tx: Tx, documents: Documents, stored: Stored) -> Allotment:
    """A Work from the parent, or what an ancestor served in its place; its references were delivered with it, keyed by uid.

    The share that an ancestor gave is not one that the home parent waits for: until that has spoken again it is answered nothing.
    """
    home = documents.read(stored, kinds.Work).spec
    spec = word(tx, documents, stored)
    served = spec is not home
    references: list[Reference] = []
    missing: list[str] = []
    for link in spec.references:
        found = delivered.reference(tx, link.kind, link.uid)
        if found is None:
            missing.append(f"{link.kind} {link.name}")
        else:
            references.append(Reference(link, found))
    return Allotment(
        application=spec.application,
        labels=spec.labels,
        components=within(spec, home) if served else spec.components,
        priority=spec.priority,
        preemption_policy=spec.preemption_policy,
        placement=spec.placement,
        rollout=spec.rollout,
        # A parent of an older version passes `rollout` on, and no revision.
        revision=spec.revision or (digest(spec.components) if spec.rollout is not None else ""),
        overrides=spec.overrides,
        resume=spec.resume,
        depends_on=[],
        apply=spec.apply,
        chain=spec.shares,
        references=references,
        missing=missing,
        withdrawn=served and not spec.components,
        held_by=[],
        key=stored.key,
        transfers=spec.transfers,
        version=spec.shares[-1].id if spec.shares and not served else 0,
        lent=spec.lent,
    )


def served(documents: Documents, allotment: Allotment) -> dict[str, str]:
    """Per component that serves a model, the digest of the version that it serves; nothing where it cannot be told."""
    models = {each.link.name: each.stored for each in allotment.references if each.link.kind == "Model"}
    found: dict[str, str] = {}
    for component in allotment.components:
        stored = models.get(component.model.name) if component.model is not None else None
        if component.model is None or stored is None:
            continue
        versions = documents.read(stored, kinds.Model).spec.versions
        wanted = component.model.version or (versions[-1].name if versions else "")
        version = next((each for each in versions if each.name == wanted), None)
        if version is not None:
            found[component.name] = model_digest(version)
    return found


def _revision(spec: kinds.ApplicationSpec) -> str:
    return with_overrides(digest(spec.components), spec.overrides, whole=True)


def needed(components: Sequence[kinds.Component], overrides: Sequence[kinds.Override] = ()) -> list[tuple[str, str, bool]]:
    """Every (kind, name, optional) that the components refer to, each once; required wins over optional.

    What only an override names is optional here: those whom it does not concern are not to wait for it.
    """
    found: dict[tuple[str, str], bool] = {}
    if overrides:
        for kind, name, _ in needed(everything(components, overrides)):
            found[kind, name] = True

    def add(kind: str, name: str, optional: bool) -> None:
        found[kind, name] = found.get((kind, name), True) and optional

    for component in components:
        if component.model is not None:
            add("Model", component.model.name, False)
        if component.helm is not None:
            add("Model", component.helm.chart.name, False)
        for variable in component.env:
            if variable.value_from is not None:
                if variable.value_from.config_map_key_ref is not None:
                    add("ConfigMap", variable.value_from.config_map_key_ref.name, variable.value_from.config_map_key_ref.optional)
                if variable.value_from.secret_key_ref is not None:
                    add("Secret", variable.value_from.secret_key_ref.name, variable.value_from.secret_key_ref.optional)
        for whole in component.env_from:
            if whole.config_map_ref is not None:
                add("ConfigMap", whole.config_map_ref.name, whole.config_map_ref.optional)
            if whole.secret_ref is not None:
                add("Secret", whole.secret_ref.name, whole.secret_ref.optional)
        for file in component.files:
            if file.config_map is not None:
                add("ConfigMap", file.config_map.name, file.config_map.optional)
            if file.secret is not None:
                add("Secret", file.secret.name, file.secret.optional)
    return [(kind, name, optional) for (kind, name), optional in found.items()]


def _find_by_name(tx: Tx, documents: Documents, kind: str, namespace: str, name: str) -> Stored | None:
    """An own object, or a delivered Model written as NAME.ORIGIN."""
    own = tx.get(Key("own", kind, namespace, name))
    if own is not None or kind != "Model" or "." not in name:
        return own
    plain, _, origin = name.partition(".")
    for stored in tx.list("desired", "Work"):
        spec = documents.read(stored, kinds.Work).spec
        if spec.application.origin_name != origin:
            continue
        for link in spec.references:
            if link.kind == "Model" and link.name == plain:
                return tx.get(Key("desired", "Model", "", link.uid))
    return None
