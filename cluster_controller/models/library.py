"""The models of one controller: fetched from above when something here needs them, laid out for workers, kept within a budget.

A folder appears under its final name only when all its files are there and verified, so a folder that exists is a folder that can
be served, also after a restart with no parent in reach.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from msgspec import Struct

from cluster_controller.errors import NotFound
from cluster_controller.models.blobs import BlobStore
from cluster_controller.models.folders import discard_folder, materialise
from cluster_controller.models.pace import FREE, Pace
from cluster_controller.models.serving import serve_blob
from cluster_controller.models.transfer import fetch_blob
from cluster_shim.contract import ByteStream, ModelFile

log = structlog.get_logger()
OpenUpstream = Callable[[], Awaitable[ByteStream]]


class Need(Protocol):
    """A model version: `reconcile.resolve.ModelNeed`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def files(self) -> tuple[ModelFile, ...]: ...

    @property
    def key(self) -> str: ...


class Progress(Struct, frozen=True):
    """Of one blob at this hop. ``size`` is -1 while nobody has said it; ``rate`` in bytes a second since the pull began."""

    digest: str
    state: str
    """Here, Arriving, Waiting (for its source or its window), Partial (nobody wants the rest now) or Missing."""
    size: int = -1
    received: int = 0
    rate: int = 0
    hops: int = 0
    """How many hops above it is taken from: 1 is the parent; 0 while nothing comes."""
    waiting: str = ""


class Library:
    """``sources()`` opens streams of service `blob` to those above, nearest first; None at a root."""

    def __init__(self, blobs: BlobStore, folder: Path, sources: Callable[[], Sequence[OpenUpstream]] | None, pace: Pace = FREE) -> None:
        self.blobs = blobs
        self._folder = folder
        self._sources = sources
        self._pace = pace

    def ready(self, need: Need) -> str | None:
        """The folder, or None while something has yet to be fetched or laid out."""
        folder = self._folder / need.key
        return str(folder) if folder.is_dir() else None

    async def ensure(self, need: Need) -> str:
        """Fetch what is missing, verify, lay out; returns the folder. Raises NotFound or Unreachable when it cannot be had now."""
        digests = [file.sha256 for file in need.files]
        self.blobs.hold(f"fetch/{need.key}", digests)
        try:
            for digest in self.blobs.missing(digests):
                if self._sources is None:
                    what = f"model {need.name} version {need.version}: blob {digest[:12]}"
                    raise NotFound(f"{what} was never pushed; see `banyan model publish`")
                await self._fetch(digest)
            folder = self._folder / need.key
            await materialise(need.files, folder, self.blobs)
        finally:
            self.blobs.hold(f"fetch/{need.key}", ())
        log.info("model.ready", model=need.name, version=need.version)
        return str(folder)

    def progress(self, digests: Sequence[str] | None = None) -> list[Progress]:
        """Of these; of all that are on their way when none is named."""
        return [self._progress(digest) for digest in (self.blobs.flights if digests is None else digests)]

    def _progress(self, digest: str) -> Progress:
        if self.blobs.has(digest):
            return Progress(digest, "Here", self.blobs.size(digest), self.blobs.size(digest))
        flight = self.blobs.flights.get(digest)
        kept = self.blobs.partial_size(digest)
        if flight is None:
            return Progress(digest, "Partial" if kept else "Missing", received=kept)
        incoming = flight.incoming
        size = incoming.size if incoming is not None else -1
        received = incoming.received if incoming is not None and not incoming.ended else kept
        if flight.waiting or incoming is None:
            return Progress(digest, "Waiting", size, received, waiting=flight.waiting or "for the source's first word")
        seconds = max(0.001, time.monotonic() - flight.since)
        return Progress(digest, "Arriving", size, received, round(flight.came / seconds), flight.source + 1)

    async def serve(self, stream: ByteStream) -> None:
        """Answer one request for a blob from below; what is not here is pulled from above while it is passed on."""
        fetch = self._fetch if self._sources is not None else None
        await serve_blob(stream, self.blobs, fetch)

    async def _fetch(self, digest: str) -> None:
        assert self._sources is not None
        await fetch_blob(self._sources(), digest, self.blobs, pace=self._pace)

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        """Drop the folders of models that nothing here runs any more; their blobs stay as long as the budget allows.

        ``needed`` is asked before each: what is wanted again meanwhile stays. What a crash left half made or half removed goes too.
        """
        folders = await asyncio.to_thread(lambda: list(self._folder.iterdir()) if self._folder.is_dir() else [])
        for folder in folders:
            key = folder.name.split(".")[1] if folder.name.startswith(".") else folder.name
            if key not in needed():
                await discard_folder(folder)
                log.info("model.dropped", folder=folder.name)
