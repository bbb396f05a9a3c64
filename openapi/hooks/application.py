"""Applications: withdrawn before they go, with a history to go back to, and an answer to "why there?".

Each change of an Application's spec is kept (`rollout.history`), so that `undo` is an ordinary update with an old spec.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from cluster_controller.errors import Conflict, InvalidInput, NotFound
from cluster_controller.placement.deciding import AS_IT_IS, Supposed
from cluster_controller.placement.status import FINALIZER
from cluster_controller.resources import validate
from cluster_controller.resources.rollout_rules import chain, cycle
from cluster_controller.resources.shape import Problem
from cluster_controller.resources.validate import InvalidDocument
from cluster_controller.rollout import history as versions
from cluster_controller.store import Key, Store, Tx
from openapi.hooks.explain import Explain, HeardOf, explanation
from openapi.services import Ask, Write


class ApplicationHooks:
    """``explain(tx, uid)`` is placement's own decision, taken again without writing; ``heard`` says how old the news of a cluster is."""

    def __init__(self, store: Store, explain: Explain, heard: HeardOf) -> None:
        self._store = store
        self._explain = explain
        self._heard = heard

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        finalizers: list[str] = write.document["metadata"].setdefault("finalizers", [])
        if FINALIZER not in finalizers:
            finalizers.append(FINALIZER)
        _refuse_cycles(write.tx, write.namespace, write.name, write.document)
        record(write.tx, write.document, user=write.user.name, now=write.now, cause="created")
        return None

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        _refuse_cycles(write.tx, write.namespace, write.name, write.document)
        if write.previous is not None and versions.differs(write.previous.get("spec") or {}, write.document.get("spec") or {}):
            record(write.tx, write.document, user=write.user.name, now=write.now, cause="updated")
        return None

    def prepare_delete(self, write: Write) -> None:
        for stored in _revisions(write.tx, write.namespace, str(write.document["metadata"]["uid"])):
            write.tx.delete(stored)

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        match ask.subresource:
            case "history":
                return self._history(ask)
            case "undo":
                return await self._undo(ask)
            case "explain":
                supposed = self._supposed(ask)
                return await self._store.commit(lambda tx: explanation(tx, self._explain, self._heard, self._uid(ask), supposed))
            case "clusters":
                return {"items": self._document(ask).get("status", {}).get("clusters", [])}
        raise NotFound(f"applications have no subresource {ask.subresource}; they have history, undo, explain, clusters, scale and status")

    def _supposed(self, ask: Ask) -> Supposed:
        """What if: a POST may say another ``spec``, and clusters ``without`` which it is to be decided."""
        if ask.method != "POST":
            return AS_IT_IS
        unknown = sorted(set(ask.body) - {"spec", "without"})
        if unknown:
            raise InvalidInput(f"unknown field {unknown[0][:80]!r}; what can be supposed is spec and without", unknown[0][:80])
        names = ask.body.get("without") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidInput("without is a list of names of clusters", "without")
        document = b""
        if ask.body.get("spec") is not None:
            whole = self._document(ask)
            document = msgspec.json.encode(whole | {"spec": ask.body["spec"]})
            validate.decode("Application", document)
        return Supposed(document=document, without=frozenset(self._cluster(name) for name in names))

    def _cluster(self, name: str) -> str:
        stored = self._store.get(Key("own", "Cluster", "", name))
        if stored is None:
            raise NotFound(f"no cluster {name[:80]}; `banyan tree` shows those that are")
        return stored.uid

    # --- history ---

    def _history(self, ask: Ask) -> Mapping[str, Any]:
        document = self._document(ask)
        items = []
        for entry in document.get("status", {}).get("history", []):
            stored = self._store.get(versions.key(ask.namespace, document["metadata"]["uid"], entry["revision"]))
            items.append({**entry, "spec": msgspec.json.decode(stored.document)["spec"] if stored is not None else None})
        return {"kind": "ApplicationHistory", "apiVersion": "banyan.dev/v1alpha1", "items": items}

    async def _undo(self, ask: Ask) -> Mapping[str, Any]:
        """Back to a revision of the history; without ``toRevision`` to the newest other one that was once well everywhere."""
        wanted = ask.body.get("toRevision")
        if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
            raise InvalidInput("toRevision is the number of a revision, as `banyan history` lists them", "toRevision")

        def undo(tx: Tx) -> dict[str, Any]:
            key = Key("own", "Application", ask.namespace, ask.name)
            stored = tx.get(key)
            if stored is None:
                raise NotFound(f"application {ask.namespace}/{ask.name} does not exist")
            document: dict[str, Any] = msgspec.json.decode(stored.document)
            if document["metadata"].get("deletionTimestamp"):
                raise Conflict(f"application {ask.namespace}/{ask.name} is being deleted; create it again instead")
            history = document.get("status", {}).get("history", [])
            revision = wanted if wanted is not None else versions.to_undo(tx, document)
            if revision is None:
                why = "only one revision" if len(history) < 2 else "no other version that is known to be good"
                remedy = "there is nothing to go back to" if len(history) < 2 else "say which with --to-revision"
                raise Conflict(f"application {ask.namespace}/{ask.name} has {why}; {remedy}")
            old = tx.get(versions.key(ask.namespace, stored.uid, revision))
            if old is None:
                have = ", ".join(str(entry["revision"]) for entry in history)
                raise NotFound(f"application {ask.namespace}/{ask.name} has no revision {revision}; it has {have}")
            spec = msgspec.json.decode(old.document)["spec"]
            if not versions.differs(spec, document["spec"]):
                raise Conflict(f"application {ask.namespace}/{ask.name} already is as in revision {revision}")
            document["spec"] = versions.restored(spec, document["spec"])
            _refuse_cycles(tx, ask.namespace, ask.name, document)
            document["metadata"]["generation"] = document["metadata"].get("generation", 0) + 1
            if not ask.dry_run:
                record(tx, document, user=ask.user.name, now=datetime.now(UTC), cause=f"undo to {revision}")
                tx.put(key, msgspec.json.encode(document), uid=stored.uid)
            return document

        return await self._store.commit(undo)

    def _document(self, ask: Ask) -> dict[str, Any]:
        stored = self._store.get(Key("own", "Application", ask.namespace, ask.name))
        if stored is None:
            raise NotFound(f"application {ask.namespace}/{ask.name} does not exist")
        document: dict[str, Any] = msgspec.json.decode(stored.document)
        return document

    def _uid(self, ask: Ask) -> str:
        return str(self._document(ask)["metadata"]["uid"])


def record(tx: Tx, document: dict[str, Any], *, user: str, now: datetime, cause: str) -> None:
    versions.record(tx, document, user=user, time=now.strftime("%Y-%m-%dT%H:%M:%SZ"), cause=cause)


def _refuse_cycles(tx: Tx, namespace: str, name: str, document: Mapping[str, Any]) -> None:
    """Applications that wait for each other would never start; their rules cannot see one another, this commit can."""
    wanted = _depends_on(document)
    if not wanted:
        return
    there = {stored.key.name: _depends_on(msgspec.json.decode(stored.document)) for stored in tx.list("own", "Application", namespace)}
    found = cycle({name: wanted, **{other: names for other, names in there.items() if other != name}})
    if name in found:
        why = f"{chain(found)}: none of them could ever start"
        raise InvalidDocument("Application", name, [Problem("spec.dependsOn", why, "FieldValueInvalid")])


def _depends_on(document: Mapping[str, Any]) -> list[str]:
    return list(document.get("spec", {}).get("dependsOn") or [])


def _revisions(tx: Tx, namespace: str, uid: str) -> list[Key]:
    return [stored.key for stored in tx.list(versions.SPACE, versions.KIND, namespace) if stored.key.name.startswith(f"{uid}.")]
