"""`clusters/NAME/transfers` of a controller's own Cluster: models' files on their way to it, and which of those asked for are there."""

from collections.abc import Mapping
from typing import Any

from cluster_controller.errors import Forbidden, InvalidInput
from cluster_controller.models.library import Library
from cluster_controller.store import Store
from openapi.services import Ask

MOST = 64  # digests in one question


class TransferHook:
    def __init__(self, library: Library, store: Store, uid: str) -> None:
        self._library = library
        self._store = store
        self._uid = uid

    async def answer(self, ask: Ask) -> Mapping[str, Any]:
        """``?sha256=A,B``: of these, here or not; without: all that are on their way."""
        stored = self._store.find("own", "Cluster", self._uid)
        if stored is None or stored.key.name != ask.name:
            raise Forbidden(f"what is on its way to {ask.name}, it says itself: banyan --at {ask.name} model status")
        digests = [digest for digest in ask.query.get("sha256", "").split(",") if digest]
        if len(digests) > MOST:
            raise InvalidInput(f"{len(digests)} digests; at most {MOST} are asked for at once", "sha256")
        items = [
            {
                "sha256": each.digest,
                "state": each.state,
                "size": each.size,
                "received": each.received,
                "bytesPerSecond": each.rate,
                "hopsAbove": each.hops,
                "reason": each.waiting,
            }
            for each in self._library.progress(digests or None)
        ]
        return {"kind": "TransferList", "apiVersion": "banyan.dev/v1alpha1", "items": items}
