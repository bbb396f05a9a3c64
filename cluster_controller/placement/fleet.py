"""The clusters of a subtree, found by what selectors ask for: many applications are placed over one set of records.

Built once for as long as no cluster changes. One application's view of it (what it runs itself, and where) replaces a few records and
shares the rest and the indexes, so that a decision costs what its candidates cost, and not what the tree has. Pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

from cluster_controller.placement.filters import matches
from cluster_controller.placement.model import ClusterRecord, Requirement

MOST_QUESTIONS = 64


class Fleet(Sequence[ClusterRecord]):
    """Records in a fixed order."""

    def __init__(self, records: Iterable[ClusterRecord]) -> None:
        self._records = list(records)
        self._at = {record.uid: index for index, record in enumerate(self._records)}
        self._changed: dict[str, ClusterRecord] = {}
        self._memos: dict[object, dict[str, tuple[object, object]]] = {}
        self.labels: dict[str, Mapping[str, str]] = {record.uid: record.labels for record in self._records}
        self._by_label: dict[tuple[str, str], list[int]] = {}
        self._by_name: dict[str, list[int]] = {}
        self._behind: dict[str, list[int]] = {}
        for index, record in enumerate(self._records):
            self._behind.setdefault(record.via, []).append(index)
            self._by_name.setdefault(record.name, []).append(index)
            for item in record.labels.items():
                self._by_label.setdefault(item, []).append(index)

    def update(self, record: ClusterRecord) -> None:
        """One record is newer; its name and way are the same. Not for a view: its indexes are shared."""
        at = self._at[record.uid]
        before = self._records[at]
        self._records[at] = record
        self.labels[record.uid] = record.labels
        for item in before.labels.items() - record.labels.items():
            self._by_label[item].remove(at)
            if not self._by_label[item]:
                del self._by_label[item]
        for item in record.labels.items() - before.labels.items():
            self._by_label.setdefault(item, []).append(at)

    def view(self, changed: Mapping[str, ClusterRecord]) -> "Fleet":
        """The same clusters with a few records replaced; labels, names and ways stay what they are."""
        other = object.__new__(Fleet)
        other.__dict__.update(self.__dict__)
        other._changed = {**self._changed, **changed}
        return other

    def memo(self, question: object) -> dict[str, tuple[object, object]]:
        """Answers to one question about clusters: uid → (what it was asked about, the answer).

        An answer counts only for the very same object that it was asked about, so nothing has to be thrown away when something
        changes. The oldest question goes first.
        """
        found = self._memos.get(question)
        if found is None:
            if len(self._memos) >= MOST_QUESTIONS:
                del self._memos[next(iter(self._memos))]
            found = self._memos[question] = {}
        return found

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ClusterRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClusterRecord]: ...
    def __getitem__(self, index: int | slice) -> ClusterRecord | list[ClusterRecord]:
        if isinstance(index, slice):
            return [self._now(record) for record in self._records[index]]
        return self._now(self._records[index])

    def __iter__(self) -> Iterator[ClusterRecord]:
        return map(self._now, self._records) if self._changed else iter(self._records)

    def _now(self, record: ClusterRecord) -> ClusterRecord:
        return self._changed.get(record.uid, record)

    def get(self, uid: str) -> ClusterRecord | None:
        index = self._at.get(uid)
        return self._now(self._records[index]) if index is not None else None

    def behind(self, target: str) -> list[ClusterRecord]:
        """The clusters that are reached through a direct child (or this controller itself)."""
        return [self._now(self._records[index]) for index in self._behind.get(target, ())]

    def candidates(self, selector: Sequence[Requirement], names: Sequence[str]) -> Iterable[ClusterRecord]:
        """Those that the selector and the names leave, in order: of all that is asked the rarest is looked up, the rest compared."""
        found: list[list[int]] = [
            [index for value in set(each.values) for index in self._by_label.get((each.key, value), ())]
            for each in selector
            if each.operator == "In"
        ]
        if names:
            found.append([index for name in set(names) for index in self._by_name.get(name, ())])
        if not found:
            return (record for record in self if matches(selector, record.labels))
        shortest = min(len(indexes) for indexes in found)
        rarest = next(indexes for indexes in found if len(indexes) == shortest)
        records = (self._now(self._records[index]) for index in sorted(rarest))
        return (record for record in records if matches(selector, record.labels) and (not names or record.name in names))
