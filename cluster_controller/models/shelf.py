"""Say of each published Model which of its files are here, so that a publish that was cut off can be seen and finished."""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from cluster_controller.documents import Documents
from cluster_controller.resources import kinds
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Store, Tx


class Holder(Protocol):
    """What is asked of the blobs."""

    def has(self, digest: str) -> bool: ...


class Shelf:
    """Writes ``status.versions`` of own Models. Level-triggered: a Model that changed, or a blob that came, marks what to look at."""

    heeds = ("Model",)  # kinds of what `changed` is called for

    def __init__(self, store: Store, blobs: Holder) -> None:
        self._store = store
        self._blobs = blobs
        self._documents = Documents(store.get)
        self._settler = Settler(store, self.settle)

    def load(self) -> None:
        self._settler.mark_all(stored.uid for stored in self._store.list("own", "Model"))

    def changed(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.stored.key.kind == "Model" and event.stored.key.space == "own" and event.kind_of == "put":
                self._settler.mark(event.stored.uid)

    def arrived(self, digest: str) -> None:
        """A blob was pushed."""
        for stored in self._store.list("own", "Model"):
            versions = self._documents.read(stored, kinds.Model).spec.versions
            if any(file.sha256 == digest for version in versions for file in version.files):
                self._settler.mark(stored.uid)

    async def run(self) -> None:
        await self._settler.run()

    def settle(self, tx: Tx, uid: str) -> None:
        stored = tx.find("own", "Model", uid)
        if stored is None:
            return
        model = self._documents.read(stored, kinds.Model)
        versions = [self._version(version) for version in model.spec.versions]
        if versions == model.status.versions:
            return
        document: dict[str, Any] = msgspec.json.decode(stored.document)
        document["status"] = {**document.get("status", {}), "versions": msgspec.to_builtins(versions)}
        tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    def _version(self, version: kinds.ModelVersion) -> kinds.ModelVersionStatus:
        missing = sorted({file.sha256 for file in version.files if not self._blobs.has(file.sha256)})
        reason = f"{len(missing)} of {len(version.files)} files were not pushed yet; run `banyan model publish` again" if missing else ""
        return kinds.ModelVersionStatus(name=version.name, present=not missing, missing=missing, reason=reason)
