"""What `apply` sends: the difference between what was applied last, what is wanted now, and what is there.

Pure. The rule is kubectl's (the annotation too), so both programs may manage one object in turns: a field that the last manifest
set and this one does not is removed; a field that somebody else set and no manifest mentions stays. Lists are replaced whole,
as RFC 7386 says.
"""

import json
from collections.abc import Mapping
from typing import Any

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def three_way(last: Mapping[str, Any], wanted: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7386) that turns ``there`` into what is wanted; empty when nothing is to do."""
    patch: dict[str, Any] = {}
    for key, value in wanted.items():
        if value is None:
            continue  # as in kubectl: a null in a manifest means "not mine"
        present = there.get(key)
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            before = last.get(key)
            inner = three_way(before if isinstance(before, Mapping) else {}, value, present)
            if inner:
                patch[key] = inner
        elif key not in there or present != value:
            patch[key] = value
    for key in last:
        if wanted.get(key) is None and key in there:
            patch[key] = None
    return patch


def remembered(manifest: Mapping[str, Any]) -> str:
    """The annotation's value: the manifest itself, without the annotation."""
    metadata = dict(manifest.get("metadata") or {})
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != LAST_APPLIED}
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return json.dumps({**manifest, "metadata": metadata}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def with_memory(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the annotation that the next apply compares with."""
    metadata = dict(manifest.get("metadata") or {})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), LAST_APPLIED: remembered(manifest)}
    return {**manifest, "metadata": metadata}


def last_applied(there: Mapping[str, Any]) -> dict[str, Any]:
    """What the last apply left in the object; nothing when it was made in another way."""
    text = ((there.get("metadata") or {}).get("annotations") or {}).get(LAST_APPLIED)
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
