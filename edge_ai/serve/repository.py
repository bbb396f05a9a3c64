"""Which model serves. One name, one version at a time, replaced in one assignment.

A new version is verified, loaded and warmed up beside the one that serves; only then it takes its place. Requests that hold the
old one finish on it. Whatever goes wrong before that moment leaves everything as it was.
"""

import asyncio
import ctypes
from collections.abc import Mapping
from pathlib import Path

from edge_ai.serve import engine, events
from edge_ai.serve.engine import LoadedModel
from edge_ai.serve.errors import LoadFailed, NotReady, UnknownModel
from edge_ai.serve.tensors import brief

RETURN_MEMORY_SECONDS = 5.0  # after a swap; requests in flight have left the old model by then


class Repository:
    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.current: LoadedModel | None = None
        self.draining = False
        self._threads = threads
        self._loading = asyncio.Lock()  # two versions in memory at most

    @property
    def ready(self) -> bool:
        return self.current is not None and not self.draining

    def find(self, name: str, version: str = "") -> LoadedModel:
        """The model under that name and, if one is given, that version. Raises `UnknownModel`, `NotReady`."""
        if name != self.name:
            raise UnknownModel(f"model '{brief(name)}' is not served here; this worker serves '{self.name}'")
        model = self.current
        if model is None:
            raise NotReady(f"model '{name}' is still loading")
        if version and version != model.version:
            raise UnknownModel(f"model '{name}' has no version '{brief(version)}' here; version '{model.version}' is served")
        return model

    async def load(self, version: str, folder: Path, digests: Mapping[str, str]) -> LoadedModel:
        """Put ``version`` in place of what serves. Raises `LoadFailed` and changes nothing."""
        async with self._loading:
            try:
                model = await asyncio.to_thread(engine.load, self.name, version, folder, digests, self._threads)
            except LoadFailed as error:
                events.warning("model.refused", model=self.name, version=version, folder=str(folder), error=str(error))
                raise
            before, self.current = self.current, model
        events.info("model.serving", model=self.name, version=version, before=before.version if before else None)
        if before is not None:
            asyncio.get_running_loop().call_later(RETURN_MEMORY_SECONDS, _return_memory)
        return model


def _return_memory() -> None:
    """Give the replaced model's pages back to the system; glibc keeps them otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
    if trim is not None:
        trim(0)
