"""The versions of an Application: each change of what it runs keeps the spec that it was changed to, so that one can go back.

Specs are kept as ``ApplicationRevision`` in a space of their own, so that the entries in ``status.history`` stay small; the oldest go.
How a version goes out (`spec.rollout`) is no part of it: changing that is no new version, and going back leaves it as it is.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cluster_controller.resources.kinds import Component, Override
from cluster_controller.store import Key, Stored, Tx

SPACE = "history"
KIND = "ApplicationRevision"
KEPT = 10  # revisions of one Application
BY_ITSELF = "banyan"  # as who a controller goes back


def key(namespace: str, uid: str, revision: int) -> Key:
    return Key(SPACE, KIND, namespace, f"{uid}.{revision}")


def differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two specs are two versions."""
    return restored(before, {}) != restored(after, {})


def restored(old: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of an earlier version, with the rollout of now."""
    spec = {name: value for name, value in old.items() if name != "rollout"}
    return {**spec, "rollout": present["rollout"]} if "rollout" in present else spec


def record(tx: Tx, document: dict[str, Any], *, user: str, time: str, cause: str) -> None:
    """Keep this spec and add its entry to the history, inside the same commit; the oldest go."""
    uid = str(document["metadata"]["uid"])
    namespace = str(document["metadata"]["namespace"])
    status = document.setdefault("status", {})
    history: list[dict[str, Any]] = list(status.get("history", []))
    revision = (history[-1]["revision"] if history else 0) + 1
    entry = {
        "revision": revision,
        "generation": document["metadata"].get("generation", 1),
        "time": time,
        "user": user,
        "cause": cause,
    }
    history.append(entry)
    for old in history[:-KEPT]:
        tx.delete(key(namespace, uid, old["revision"]))
    status["history"] = history[-KEPT:]
    tx.put(key(namespace, uid, revision), msgspec.json.encode({"spec": document["spec"]}), uid=f"{uid}.{revision}")


def to_undo(tx: Tx, document: Mapping[str, Any]) -> int | None:
    """The revision to go back to when nobody names one: the newest other version that was well everywhere once.

    Where none ever was, the newest other one that no controller has taken back by itself. None: there is no such one.
    """
    status, meta = document.get("status") or {}, document["metadata"]
    history: list[dict[str, Any]] = list(status.get("history", []))
    taken_back = {before["revision"] for before, after in itertools.pairwise(history) if after.get("user") == BY_ITSELF}
    others = []
    for entry in reversed(history):
        stored = tx.get(key(str(meta["namespace"]), str(meta["uid"]), entry["revision"]))
        if stored is not None and differs(msgspec.json.decode(stored.document)["spec"], document["spec"]):
            others.append(entry)
    well = [entry["revision"] for entry in others if entry.get("healthy")]
    perhaps = [entry["revision"] for entry in others if entry["revision"] not in taken_back]
    found = [*well, *perhaps]
    return int(found[0]) if found else None


def put_back(tx: Tx, stored: Stored, components: Sequence[Component], overrides: Sequence[Override], *, time: str, cause: str) -> None:
    """Write these into the Application, as a person would: a new generation, and an entry of the history."""
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    document["spec"]["components"] = msgspec.to_builtins(list(components))
    document["spec"].pop("overrides", None)
    if overrides:
        document["spec"]["overrides"] = msgspec.to_builtins(list(overrides))
    document["metadata"]["generation"] = document["metadata"].get("generation", 0) + 1
    record(tx, document, user=BY_ITSELF, time=time, cause=cause)
    tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)
