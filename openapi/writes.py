"""Creating, changing and deleting objects: one commit each, decided on the newest state inside it.

Everything happens inside the function given to `Store.commit`, so no check can be overtaken by another write; a patch is
applied to what is there at that moment and never has to be tried again. The server's metadata (uid, creation, generation,
resourceVersion) cannot be set from outside. A dry run does all of it and throws the commit away.
"""

import base64
import random
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from cluster_controller.errors import Exhausted, InvalidInput
from cluster_controller.resources import validate
from cluster_controller.resources.registry import REGISTRY, ResourceType
from cluster_controller.resources.shape import Problem
from cluster_controller.store import Key, Store, Stored, Tx
from openapi import errors
from openapi.errors import ApiError
from openapi.present import document_of, timestamp
from openapi.services import ApiServices, User, Write

Json = dict[str, Any]
T = TypeVar("T")
SYSTEM_NAMESPACES = frozenset({"default"})
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
CONTENT = "banyan.dev/content"  # holds a namespace while something in it is still going
MOST_DEPENDENTS = 10_000
_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # as Kubernetes generates names: no vowels, no words


class Target(Struct, frozen=True):
    """Which object a request is about, and who asks."""

    resource: ResourceType
    namespace: str
    name: str
    user: User
    dry_run: bool = False

    @property
    def key(self) -> Key:
        return Key(self.resource.space, self.resource.kind, self.namespace, self.name)


class Written(Struct):
    """The object as it is now; ``document`` has what is shown this once."""

    document: Json
    created: bool = False
    gone: bool = False
    uid: str = ""


class Preconditions(Struct, frozen=True, rename="camel"):
    uid: str = ""
    resource_version: str = ""


class DeleteOptions(Struct, frozen=True, rename="camel"):
    kind: str = ""
    api_version: str = ""
    grace_period_seconds: int | None = None
    preconditions: Preconditions | None = None
    orphan_dependents: bool | None = None
    propagation_policy: str | None = None
    dry_run: list[str] | None = None
    ignore_store_read_error_with_cluster_breaking_potential: bool | None = None


class _DryRun(Exception):
    """Carries the result out of a commit that shall not happen."""

    def __init__(self, result: Any) -> None:
        self.result = result


class Writer:
    """All changes that come through the API."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services

    async def create(self, target: Target, document: Json) -> Written:
        resource, kind = target.resource, target.resource.kind
        document, metadata = _prepared(resource, target.namespace, document)
        if metadata.pop("resourceVersion", ""):
            raise ApiError(400, "resourceVersion should not be set on objects to be created")
        base_name = metadata.pop("generateName", "")
        if not metadata.get("name") and isinstance(base_name, str) and base_name:
            metadata["generateName"] = base_name
            metadata["name"] = base_name[:57] + "".join(random.choices(_SUFFIX_LETTERS, k=5))
        for name in ("uid", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(name, None)
        if resource.has_status and kind != "Namespace":
            document.pop("status", None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = timestamp(self._services.now())
        if resource.generation:
            metadata["generation"] = 1
        if kind == "Namespace":
            document["spec"] = {"finalizers": ["kubernetes"]}
            document["status"] = {"phase": "Active"}
        validate.check(kind, document)
        name = metadata["name"]
        target = Target(resource, target.namespace, name, target.user, target.dry_run)

        def work(tx: Tx) -> Written:
            if resource.namespaced:
                _open_namespace(tx, target.namespace, resource, name)
            if tx.get(target.key) is not None:
                raise errors.exists(resource.group_resource, name)
            write = self._write(tx, target, document, None)
            shown = _hooked(write, self._services.kinds.prepare_create)
            stored = tx.put(target.key, msgspec.json.encode(write.document), uid=metadata["uid"])
            return Written(_merged(_shown(target, stored, None), shown), created=True, uid=stored.uid)

        return await self._commit(work, target.dry_run)

    async def update(self, target: Target, change: Callable[[Json], Json], *, subresource: str = "") -> Written:
        """``change`` makes the new document of the one that clients see now; it may raise."""

        def work(tx: Tx) -> Written:
            stored = self._existing(tx, target)
            return self._replace(tx, target, stored, change, subresource)

        return await self._commit(work, target.dry_run)

    async def delete(self, target: Target, options: DeleteOptions) -> Written:
        def work(tx: Tx) -> Written:
            stored = self._existing(tx, target)
            _check_preconditions(target.resource, stored, options.preconditions)
            return self.remove(tx, target, stored, options)

        return await self._commit(work, target.dry_run)

    def remove(self, tx: Tx, target: Target, stored: Stored, options: DeleteOptions) -> Written:
        """Delete or, while finalizers hold it, mark as going; inside a commit."""
        resource = target.resource
        if resource.kind == "Namespace" and target.name in SYSTEM_NAMESPACES:
            raise ApiError(403, f'namespaces "{target.name}" is forbidden: this namespace may not be deleted')
        current = document_of(resource, stored)
        if current["metadata"].get("deletionTimestamp"):
            return Written(current, uid=stored.uid)
        write = self._write(tx, target, _stored_form(current), current)
        _hooked(write, self._services.kinds.prepare_delete)
        metadata = write.document["metadata"]
        self._propagate(tx, target, stored, metadata, options)
        if resource.kind == "Namespace":
            self._empty_namespace(tx, target)
            write.document["status"] = {"phase": "Terminating"}
            if not is_empty(tx, target.name):
                metadata["finalizers"] = [*metadata.get("finalizers", ()), CONTENT]
        if not metadata.get("finalizers"):
            tx.delete(target.key)
            metadata.pop("finalizers", None)
            return Written(current, gone=True, uid=stored.uid)
        metadata["deletionTimestamp"] = timestamp(self._services.now())
        metadata["deletionGracePeriodSeconds"] = 0
        if resource.generation:
            metadata["generation"] = _generation(current) + 1
        marked = tx.put(target.key, msgspec.json.encode(write.document), uid=stored.uid)
        return Written(_shown(target, marked, stored), uid=stored.uid)

    async def _commit(self, work: Callable[[Tx], T], dry_run: bool) -> T:
        def trial(tx: Tx) -> T:
            raise _DryRun(work(tx))

        if not dry_run:
            return await self._services.store.commit(work)
        try:
            return await self._services.store.commit(trial)
        except _DryRun as end:
            return end.result  # type: ignore[no-any-return]

    def _existing(self, tx: Tx, target: Target) -> Stored:
        stored = tx.get(target.key)
        if stored is None:
            raise errors.not_found(target.resource.group_resource, target.name)
        return stored

    def _replace(self, tx: Tx, target: Target, stored: Stored, change: Callable[[Json], Json], subresource: str) -> Written:
        resource = target.resource
        current = document_of(resource, stored)
        document = change(current)
        document, metadata = _prepared(resource, target.namespace, document)
        if metadata.get("name", target.name) != target.name:
            raise ApiError(400, f"the name of the object ({str(metadata['name'])[:80]}) does not match the name on the URL ({target.name})")
        if metadata.get("uid", stored.uid) != stored.uid:
            raise errors.conflict(
                resource.group_resource,
                target.name,
                f"Precondition failed: UID in object meta: {stored.uid}, in the request: {str(metadata['uid'])[:80]}",
            )
        if metadata.get("resourceVersion") not in (None, "", str(stored.revision)):
            raise errors.conflict(
                resource.group_resource, target.name,
                "the object has been modified; please apply your changes to the latest version and try again",
            )  # fmt: skip
        if subresource == "status":
            document = {**current, "status": document.get("status", {})}
        _carry_over(
            resource, current, document, metadata if subresource != "status" else current["metadata"], keep_status=subresource != "status"
        )
        metadata = document["metadata"]
        _check_finalizers(resource, current, metadata)
        if resource.generation and _counted(document) != _counted(current):
            metadata["generation"] = _generation(current) + 1
        validate.check(resource.kind, document, current)
        write = self._write(tx, target, _stored_form(document), current)
        shown = _hooked(write, self._services.kinds.prepare_update)
        if metadata.get("deletionTimestamp") and not write.document["metadata"].get("finalizers"):
            tx.delete(target.key)
            return Written(document, gone=True, uid=stored.uid)
        if write.document == _stored_form(current):
            return Written(_merged(current, shown), uid=stored.uid)
        after = tx.put(target.key, msgspec.json.encode(write.document), uid=stored.uid)
        return Written(_merged(_shown(target, after, stored), shown), uid=stored.uid)

    def _propagate(self, tx: Tx, target: Target, stored: Stored, metadata: Json, options: DeleteOptions) -> None:
        policy = _policy(options)
        finalizers = [each for each in metadata.get("finalizers", ()) if each not in (FOREGROUND, ORPHAN)]
        dependents = dependents_of(tx, stored.uid)
        blocked = False
        for dependent, document in dependents:
            resource = REGISTRY[dependent.key.kind]
            inner = Target(resource, dependent.key.namespace, dependent.key.name, target.user, target.dry_run)
            owners = [each for each in document["metadata"]["ownerReferences"] if each.get("uid") != stored.uid]
            if policy == "Orphan" or owners:
                document["metadata"]["ownerReferences"] = owners
                tx.put(dependent.key, msgspec.json.encode(document), uid=dependent.uid)
            else:
                written = self.remove(tx, inner, dependent, options)
                blocked = blocked or not written.gone
        if policy == "Foreground" and blocked:
            finalizers.append(FOREGROUND)
        metadata["finalizers"] = finalizers

    def _empty_namespace(self, tx: Tx, target: Target) -> None:
        for resource in REGISTRY.values():
            if resource.namespaced and resource.space == target.resource.space:
                for stored in tx.list(resource.space, resource.kind, target.name):
                    inner = Target(resource, target.name, stored.key.name, target.user, target.dry_run)
                    self.remove(tx, inner, stored, DeleteOptions())

    def _write(self, tx: Tx, target: Target, document: Json, previous: Json | None) -> Write:
        return Write(
            tx=tx, resource=target.resource, namespace=target.namespace, name=target.name, user=target.user, document=document,
            previous=previous, now=self._services.now(), dry_run=target.dry_run,
        )  # fmt: skip


def delete_options(document: Json, query: Mapping[str, str]) -> DeleteOptions:
    """``document`` is the body of the request, {} when it has none."""
    options = DeleteOptions()
    if document:
        try:
            options = msgspec.convert(document, DeleteOptions)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"the DeleteOptions cannot be read: {error}") from None
        if options.kind not in ("", "DeleteOptions"):
            raise InvalidInput(f"the body of a DELETE is a DeleteOptions, not a {options.kind[:80]!r}")
    grace = query.get("gracePeriodSeconds", "")
    if grace and not re.fullmatch(r"-?[0-9]{1,15}", grace):
        raise InvalidInput(f"gracePeriodSeconds is {grace[:40]!r}; it is a whole number", "gracePeriodSeconds")
    policy = query.get("propagationPolicy")
    if policy:
        options = msgspec.structs.replace(options, propagation_policy=policy)
    if options.propagation_policy not in (None, "", "Background", "Foreground", "Orphan"):
        raise InvalidInput(f"propagationPolicy is {str(options.propagation_policy)[:40]!r}; it may be Background, Foreground or Orphan")
    return options


def _policy(options: DeleteOptions) -> str:
    return options.propagation_policy or ("Orphan" if options.orphan_dependents else "Background")


def _prepared(resource: ResourceType, namespace: str, document: Json) -> tuple[Json, Json]:
    """A copy of the document that is this kind's, in this namespace, without what is the server's alone."""
    for field, wanted in (("apiVersion", resource.api_version), ("kind", resource.kind)):
        given = document.get(field)
        if given != wanted:
            raise ApiError(400, f"{field} is {str(given)[:80]!r}; at this address it must be {wanted!r}")
    metadata = document.get("metadata", {})
    if not isinstance(metadata, dict):
        raise ApiError(400, "metadata is no object")
    metadata = {key: value for key, value in metadata.items() if key not in ("managedFields", "selfLink")}
    if resource.namespaced:
        given = metadata.setdefault("namespace", namespace)
        if given != namespace:
            raise ApiError(
                400,
                f"the namespace of the object ({str(given)[:80]!r}) does not match the namespace on the URL ({namespace!r})",
            )
    elif metadata.pop("namespace", ""):
        raise ApiError(400, f"{resource.kind} belongs to no namespace; leave metadata.namespace out")
    return _defaulted(resource, {**document, "metadata": metadata}), metadata


def _defaulted(resource: ResourceType, document: Json) -> Json:
    if resource.kind == "Secret":
        plain = document.pop("stringData", None) or {}
        if not isinstance(plain, dict) or not all(isinstance(value, str) for value in plain.values()):
            raise errors.invalid("Secret", "", [Problem("stringData", "is a map of strings", "FieldValueTypeInvalid")])
        if plain:
            data = document.get("data") or {}
            document["data"] = {**data, **{key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}}
        document.setdefault("type", "Opaque")
    return document


def _carry_over(resource: ResourceType, current: Json, document: Json, metadata: Json, *, keep_status: bool) -> None:
    """What a client cannot change stays as it is."""
    before = current["metadata"]
    metadata = dict(metadata)
    for name in ("name", "uid", "creationTimestamp", "generation", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds"):
        metadata.pop(name, None)
        if name in before:
            metadata[name] = before[name]
    metadata.pop("resourceVersion", None)
    document["metadata"] = metadata
    if resource.has_status and keep_status:
        document.pop("status", None)
        if "status" in current:
            document["status"] = current["status"]
    if resource.kind == "Namespace":
        document["spec"] = current.get("spec", {})


def _check_finalizers(resource: ResourceType, current: Json, metadata: Json) -> None:
    if not current["metadata"].get("deletionTimestamp"):
        return
    added = set(metadata.get("finalizers") or ()) - set(current["metadata"].get("finalizers") or ())
    if added:
        problem = Problem("metadata.finalizers", "no finalizer can be added to an object that is being deleted", "FieldValueForbidden")
        raise errors.invalid(resource.kind, str(metadata.get("name", "")), [problem])


def _check_preconditions(resource: ResourceType, stored: Stored, wanted: Preconditions | None) -> None:
    if wanted is None:
        return
    name = stored.key.name
    if wanted.uid and wanted.uid != stored.uid:
        raise errors.conflict(
            resource.group_resource, name, f"Precondition failed: UID in precondition: {wanted.uid[:80]}, in object meta: {stored.uid}"
        )
    if wanted.resource_version and wanted.resource_version != str(stored.revision):
        raise errors.conflict(
            resource.group_resource, name,
            f"Precondition failed: ResourceVersion in precondition: {wanted.resource_version[:40]}, in object meta: {stored.revision}",
        )  # fmt: skip


def _hooked(write: Write, hook: Callable[[Write], Mapping[str, Any] | None]) -> Mapping[str, Any]:
    try:
        return hook(write) or {}
    except validate.InvalidDocument:
        raise
    except InvalidInput as error:
        raise errors.invalid(write.resource.kind, write.name, [Problem(error.field, str(error))]) from None


def _open_namespace(tx: Tx, namespace: str, resource: ResourceType, name: str) -> None:
    stored = tx.get(Key("own", "Namespace", "", namespace))
    if stored is None:
        raise errors.not_found("namespaces", namespace)
    if b'"deletionTimestamp"' in stored.document and msgspec.json.decode(stored.document)["metadata"].get("deletionTimestamp"):
        raise ApiError(
            403,
            f'{resource.group_resource} "{name}" is forbidden: namespace {namespace} is being terminated and takes nothing new',
            details={"name": name, "kind": resource.plural, "causes": [
                {"reason": "NamespaceTerminating", "message": f"namespace {namespace} is being terminated", "field": "metadata.namespace"}
            ]},
        )  # fmt: skip


def is_empty(tx: Tx | Store, namespace: str) -> bool:
    return not any(tx.list("own", each.kind, namespace) for each in REGISTRY.values() if each.namespaced and each.space == "own")


def dependents_of(tx: Tx, uid: str) -> list[tuple[Stored, Json]]:
    """Objects that name ``uid`` as an owner. The bytes are searched first: almost none is ever decoded."""
    mark = uid.encode()
    found: list[tuple[Stored, Json]] = []
    for resource in REGISTRY.values():
        if resource.space != "own":
            continue
        for stored in tx.list("own", resource.kind):
            if mark not in stored.document or stored.uid == uid:
                continue
            document = msgspec.json.decode(stored.document)
            owners = (document.get("metadata") or {}).get("ownerReferences") or ()
            if any(each.get("uid") == uid for each in owners if isinstance(each, dict)):
                found.append((stored, document))
                if len(found) > MOST_DEPENDENTS:
                    raise Exhausted(f"more than {MOST_DEPENDENTS} objects depend on this one: delete them first, or orphan them")
    return found


def _generation(document: Mapping[str, Any]) -> int:
    value = document["metadata"].get("generation")
    return value if isinstance(value, int) else 0


def _counted(document: Json) -> Json:
    """What a generation counts: everything but metadata and status."""
    return {key: value for key, value in document.items() if key not in ("metadata", "status", "apiVersion", "kind")}


def _stored_form(document: Json) -> Json:
    """A document as it is stored: without the revision, which is only known once it is."""
    metadata = {key: value for key, value in document["metadata"].items() if key != "resourceVersion"}
    return {**document, "metadata": metadata}


def _shown(target: Target, after: Stored, before: Stored | None) -> Json:
    """The object as it is now; a dry run has made no new revision."""
    document = document_of(target.resource, after)
    if target.dry_run:
        document["metadata"]["resourceVersion"] = str(before.revision) if before is not None else ""
    return document


def _merged(document: Json, shown: Mapping[str, Any]) -> Json:
    """``shown`` laid over the answer, never over what is stored."""
    result = dict(document)
    for key, value in shown.items():
        before = result.get(key)
        result[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, Mapping) else value
    return result
