"""The three patches of the Kubernetes API: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge (core kinds).

All return a new document and leave the given one as it was. Work is bounded: by the size of the patch (the caller's limit), by
the number of operations, and by what `copy` operations may add, so that a small patch cannot grow a large document.
"""

import copy
from typing import Any, NoReturn

import jsonpatch
import msgspec
from jsonpointer import JsonPointerException, resolve_pointer

from cluster_controller.errors import InvalidInput

MOST_OPERATIONS = 10_000
MOST_COPIED_BYTES = 1024 * 1024

JsonObject = dict[str, Any]

# Lists of the served core kinds that merge by element. The path → the key of an element; "" for lists of strings.
_MERGE_KEYS: dict[tuple[str, ...], str] = {
    ("metadata", "finalizers"): "",
    ("metadata", "ownerReferences"): "uid",
    ("status", "conditions"): "type",
}


def json_patch(document: JsonObject, operations: object) -> JsonObject:
    """InvalidInput for what is no patch and for a `test` that does not hold."""
    if not isinstance(operations, list):
        _refuse("a JSON patch is a list of operations")
    if len(operations) > MOST_OPERATIONS:
        _refuse(f"the patch has {len(operations)} operations; at most {MOST_OPERATIONS}")
    result: Any = copy.deepcopy(document)
    copied = 0
    for index, operation in enumerate(operations):
        if not isinstance(operation, dict):
            _refuse(f"operation {index} is not an object")
        try:
            if operation.get("op") == "copy":
                copied += len(msgspec.json.encode(resolve_pointer(result, str(operation.get("from")))))
                if copied > MOST_COPIED_BYTES:
                    _refuse(f"its copy operations add more than {MOST_COPIED_BYTES} bytes")
            result = jsonpatch.JsonPatch([operation]).apply(result, in_place=True)
        except jsonpatch.JsonPatchTestFailed:
            _refuse(f"operation {index}: the test of {str(operation.get('path'))[:200]!r} does not hold")
        except (jsonpatch.JsonPatchException, JsonPointerException, TypeError, ValueError, AttributeError, KeyError) as error:
            _refuse(f"operation {index}: {str(error)[:200]}")
    if not isinstance(result, dict):
        _refuse("what it leaves is no object")
    return result


def merge_patch(document: JsonObject, patch: object) -> JsonObject:
    if not isinstance(patch, dict):
        _refuse("a merge patch of an object is an object")
    result = dict(document)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            result[key] = merge_patch(before if isinstance(before, dict) else {}, value)
        else:
            result[key] = value
    return result


def strategic_merge(document: JsonObject, patch: object) -> JsonObject:
    if not isinstance(patch, dict):
        _refuse("a strategic merge patch of an object is an object")
    result = _strategic(document, patch, ())
    return result if isinstance(result, dict) else {}


def _strategic(document: JsonObject, patch: JsonObject, path: tuple[str, ...]) -> JsonObject:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if not key.startswith("$")}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        _refuse(f"$patch at {'.'.join(path) or 'the top'} is {str(directive)[:40]!r}; it may be replace, merge or delete")
    result = dict(document)
    _retain(result, patch, path)
    _delete_from_lists(result, patch)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        here = (*path, key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            merged = _strategic(before if isinstance(before, dict) else {}, value, here)
            if value.get("$patch") == "delete":
                result.pop(key, None)
            else:
                result[key] = merged
        elif isinstance(value, list) and here in _MERGE_KEYS:
            result[key] = _merge_list(result.get(key), value, here)
        else:
            result[key] = value
    _order_lists(result, patch, path)
    return result


def _retain(result: JsonObject, patch: JsonObject, path: tuple[str, ...]) -> None:
    keys = patch.get("$retainKeys")
    if keys is None:
        return
    if not isinstance(keys, list):
        _refuse(f"$retainKeys at {'.'.join(path) or 'the top'} is no list")
    for key in [key for key in result if key not in keys]:
        del result[key]


def _delete_from_lists(result: JsonObject, patch: JsonObject) -> None:
    for key, values in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            before = result.get(name)
            if isinstance(before, list) and isinstance(values, list):
                result[name] = [each for each in before if each not in values]


def _merge_list(before: object, patch: list[Any], path: tuple[str, ...]) -> list[Any]:
    items = list(before) if isinstance(before, list) else []
    key = _MERGE_KEYS[path]
    if not key:
        return items + [each for each in patch if each not in items]
    replaced = any(isinstance(each, dict) and each.get("$patch") == "replace" for each in patch)
    if replaced:
        return [each for each in patch if not (isinstance(each, dict) and "$patch" in each)]
    for each in patch:
        if not isinstance(each, dict) or key not in each:
            _refuse(f"an element of {'.'.join(path)} lacks its merge key {key}")
        index = next((i for i, item in enumerate(items) if isinstance(item, dict) and item.get(key) == each[key]), None)
        if each.get("$patch") == "delete":
            if index is not None:
                del items[index]
        elif index is None:
            items.append(each)
        else:
            items[index] = _strategic(items[index], each, (*path, "[]"))
    return items


def _order_lists(result: JsonObject, patch: JsonObject, path: tuple[str, ...]) -> None:
    for key, order in patch.items():
        if not key.startswith("$setElementOrder/") or not isinstance(order, list):
            continue
        name = key.split("/", 1)[1]
        items = result.get(name)
        if not isinstance(items, list):
            continue
        merge_key = _MERGE_KEYS.get((*path, name), "")
        wanted = [each.get(merge_key) if isinstance(each, dict) else each for each in order]

        def place(item: Any, wanted: list[Any] = wanted, merge_key: str = merge_key) -> int:
            value = item.get(merge_key) if isinstance(item, dict) else item
            return wanted.index(value) if value in wanted else len(wanted)

        result[name] = sorted(items, key=place)


def _refuse(why: str) -> NoReturn:
    raise InvalidInput(f"the patch cannot be applied: {why}")
