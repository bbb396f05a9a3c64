"""The committed state in memory, so that no read ever waits for the disk.

Pure. Objects are grouped by space and kind; each group keeps its keys sorted (namespace, name), lazily, so that a page of a
list costs the page and not the sort of everything. Documents are held by reference only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from cluster_controller.store.model import Key, Stored

Names = list[str]


class Group:
    """All objects of one kind in one space."""

    __slots__ = ("_order", "_uids", "objects")

    def __init__(self) -> None:
        self.objects: dict[Key, Stored] = {}
        self._order: list[Key] | None = None  # sorted keys; None: to be sorted when next needed
        self._uids: dict[str, Key] | None = None  # made at the first look-up by uid

    def put(self, stored: Stored) -> None:
        key = stored.key
        before = self.objects.get(key)
        self.objects[key] = stored
        if before is None:
            self._order = None
        if self._uids is not None:
            if before is not None:
                self._unname(before)
            self._uids[stored.uid] = key

    def remove(self, key: Key) -> None:
        stored = self.objects.pop(key)
        if self._order is not None:
            del self._order[bisect_left(self._order, key)]
        if self._uids is not None:
            self._unname(stored)

    def _unname(self, stored: Stored) -> None:
        """Unless it has another name already."""
        if self._uids is not None and self._uids.get(stored.uid) == stored.key:
            del self._uids[stored.uid]

    def keys(self) -> list[Key]:
        """Sorted by namespace, then name. Not to be changed by the caller."""
        if self._order is None:
            self._order = sorted(self.objects)
        return self._order

    def find(self, uid: str) -> Stored | None:
        if self._uids is None:
            self._uids = {stored.uid: key for key, stored in self.objects.items()}
        key = self._uids.get(uid)
        return None if key is None else self.objects[key]

    def namespace_keys(self, space: str, kind: str, namespace: str | None) -> list[Key]:
        keys = self.keys()
        if namespace is None:
            return keys
        low = bisect_left(keys, Key(space, kind, namespace, ""))
        high = bisect_right(keys, Key(space, kind, namespace, "\U0010ffff"))
        return keys[low:high]


class Mirror:
    """Objects by space and kind."""

    def __init__(self) -> None:
        self._spaces: dict[str, dict[str, Group]] = {}
        self.count = 0

    def get(self, key: Key) -> Stored | None:
        kinds = self._spaces.get(key[0])
        group = kinds.get(key[1]) if kinds is not None else None
        return group.objects.get(key) if group is not None else None

    def put(self, stored: Stored) -> None:
        kinds = self._spaces.setdefault(stored.key.space, {})
        group = kinds.get(stored.key.kind)
        if group is None:
            group = kinds[stored.key.kind] = Group()
        before = len(group.objects)
        group.put(stored)
        self.count += len(group.objects) - before

    def remove(self, key: Key) -> None:
        kinds = self._spaces[key.space]
        group = kinds[key.kind]
        group.remove(key)
        self.count -= 1
        if not group.objects:
            del kinds[key.kind]
            if not kinds:
                del self._spaces[key.space]

    def group(self, space: str, kind: str) -> Group | None:
        return self._spaces.get(space, {}).get(kind)

    def list(self, space: str, kind: str, namespace: str | None = None) -> list[Stored]:
        group = self.group(space, kind)
        if group is None:
            return []
        return [group.objects[key] for key in group.namespace_keys(space, kind, namespace)]

    def find(self, space: str, kind: str, uid: str) -> Stored | None:
        group = self.group(space, kind)
        return group.find(uid) if group is not None else None

    def scan(self, space: str) -> Iterator[Stored]:
        """Every object of a space, in no particular order. The space must not change meanwhile."""
        for group in self._spaces.get(space, {}).values():
            yield from group.objects.values()

    def size(self, space: str) -> int:
        return sum(len(group.objects) for group in self._spaces.get(space, {}).values())

    def spaces(self) -> Names:
        return sorted(self._spaces)

    def kinds(self, space: str) -> Names:
        return sorted(self._spaces.get(space, {}))
