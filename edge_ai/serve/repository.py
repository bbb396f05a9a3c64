"""Which models serve: several names, of each one version by default and others side by side, within a budget of memory.

A new version is verified, loaded and warmed up beside the one that serves; only then it takes its place, in one assignment. Requests that
hold the old one finish on it. Whatever goes wrong before that moment leaves everything as it was.

With a budget, the model that was asked for the longest time ago is put to sleep to make room; a request for it wakes it up again, from
the same verified folder. The model that the worker was started for stays awake.
"""

import asyncio
import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edge_ai.serve import engine, events
from edge_ai.serve.engine import How
from edge_ai.serve.errors import LoadFailed, NotReady, UnknownModel
from edge_ai.serve.lane import Lane
from edge_ai.serve.model import LoadedModel
from edge_ai.serve.tensors import brief

RETURN_MEMORY_SECONDS = 5.0  # after a swap; requests in flight have left the old model by then
MOST_MODELS = 64  # names; versions of one name
MIB = 1 << 20
CONTROL_ALONE = "the model repository is asked on the worker's control socket alone (--control)"


class Source(NamedTuple):
    """Where a version comes from, and comes from again after it was put to sleep."""

    folder: Path
    digests: Mapping[str, str] = {}


class Asleep(NotReady):
    """It was put to sleep to make room: `Repository.wake` brings it back."""

    def __init__(self, name: str) -> None:
        super().__init__(f"model '{name}' is asleep; it is loaded again when it is asked for")
        self.name = name


class Served:
    """One name: its versions, and the lane before them."""

    def __init__(self, name: str, lane: Lane) -> None:
        self.name = name
        self.lane = lane
        self.sources: dict[str, Source] = {}
        self.versions: dict[str, LoadedModel] = {}  # those of `sources` that are in memory
        self.current: LoadedModel | None = None  # what is meant when a request names no version
        self.default = ""  # its version, also while it sleeps
        self.used = 0.0  # when it was last asked for
        self.reason = ""  # why the last load failed

    @property
    def asleep(self) -> bool:
        return bool(self.sources) and self.current is None and not self.reason

    @property
    def size(self) -> int:
        return sum(model.size for model in self.versions.values())


class Repository:
    def __init__(self, name: str, how: How, lane: Callable[[str], Lane], budget: int | None = None) -> None:
        """``name``: the model that the worker is for, ready when it is. ``budget``: bytes for all models together; None: no bound."""
        self.name = name
        self.budget = budget
        self.draining = False
        self.models: dict[str, Served] = {}
        self._how = how
        self._lane = lane
        self._loading = asyncio.Lock()  # one version more than what serves, at most
        self.models[name] = Served(name, lane(name))

    @property
    def current(self) -> LoadedModel | None:
        """Of the model that the worker is for."""
        return self.models[self.name].current

    @property
    def ready(self) -> bool:
        return self.current is not None and not self.draining

    def find(self, name: str, version: str = "") -> LoadedModel:
        """The model under that name and, if one is given, that version. Raises `UnknownModel`, `NotReady`, `Asleep`."""
        served = self.served(name)
        model = served.versions.get(version) if version else served.current
        if model is None:
            if version and version not in served.sources and served.sources:
                others = "', '".join(served.sources)
                raise UnknownModel(f"model '{name}' has no version '{brief(version)}' here; version '{others}' is served")
            if served.asleep or version in served.sources:
                raise Asleep(name)
            raise NotReady(f"model '{name}' is still loading")
        served.used = time.monotonic()
        return model

    def served(self, name: str) -> Served:
        served = self.models.get(name)
        if served is None:
            others = "', '".join(self.models)
            raise UnknownModel(f"model '{brief(name)}' is not served here; this worker serves '{others}'")
        return served

    def loaded(self, name: str = "", version: str = "") -> list[LoadedModel]:
        """What is in memory under that name and version, or all that is. Raises `UnknownModel`."""
        if not name:
            return [model for served in self.models.values() for model in served.versions.values()]
        served = self.served(name)
        if version and version not in served.sources:
            raise UnknownModel(f"model '{name}' has no version '{brief(version)}' here")
        return [model for model in served.versions.values() if version in ("", model.version)]

    async def load(self, name: str, version: str, source: Source, beside: bool = False) -> LoadedModel:
        """Put ``version`` in place of what serves under that name, or ``beside`` it. Raises `LoadFailed` and changes nothing."""
        async with self._loading:
            served = self.models.get(name)
            try:
                if served is None and len(self.models) >= MOST_MODELS:
                    raise LoadFailed(f"{MOST_MODELS} models are loaded already; unload one first")
                if served is not None and beside and len(served.sources) >= MOST_MODELS:
                    raise LoadFailed(f"{MOST_MODELS} versions of model '{name}' are loaded already; unload one first")
                model = await self._load(name, version, source)
            except LoadFailed as error:
                if served is not None and not served.sources:
                    served.reason = str(error)
                events.warning(
                    "model.refused", error=str(error), model=name, version=version, folder=str(source.folder)
                )  # its beginning is what is shown
                raise
            if served is None:
                served = self.models[name] = Served(name, self._lane(name))
            before, served.current = served.current, model
            served.reason, served.default, served.used = "", version, time.monotonic()
            if beside:
                served.versions[version], served.sources[version] = model, source
            else:
                served.versions, served.sources = {version: model}, {version: source}
        events.info("model.serving", model=name, version=version, before=before.version if before else None)
        if before is not None:
            self._return_memory()
        self._calibrate(served, model)
        return model

    async def unload(self, name: str, version: str = "") -> None:
        """Forget a version, or all of a model. Requests that hold it finish. Raises `UnknownModel`, `LoadFailed` for what must stay."""
        async with self._loading:
            served = self.served(name)
            if version and version not in served.sources:
                raise UnknownModel(f"model '{name}' has no version '{brief(version)}' here")
            if version and len(served.sources) > 1:
                if version == served.default:
                    raise LoadFailed(f"version '{version}' of model '{name}' is what serves; load another one first")
                served.versions.pop(version, None)
                del served.sources[version]
            else:
                if name == self.name:
                    raise LoadFailed(f"model '{name}' is what this worker is for; end the worker instead")
                del self.models[name]
                served.lane.close()
        events.info("model.unloaded", model=name, version=version or None)
        self._return_memory()

    async def wake(self, name: str) -> None:
        """Load again what was put to sleep. Raises `UnknownModel`, `LoadFailed`."""
        async with self._loading:
            served = self.served(name)
            for version, source in list(served.sources.items()):
                if version not in served.versions:
                    model = await self._load(name, version, source)
                    served.versions[version] = model
                    self._calibrate(served, model)
            served.current = served.versions[served.default]
            served.used = time.monotonic()
        events.info("model.woken", model=name, version=served.default)

    async def _load(self, name: str, version: str, source: Source) -> LoadedModel:
        need = await asyncio.to_thread(_size, source.folder)
        self._make_room(name, need)
        model = await asyncio.to_thread(engine.load, name, version, source.folder, source.digests, self._how)
        self._make_room(name, model.size)
        return model

    def _make_room(self, name: str, need: int) -> None:
        """Put to sleep what was asked for the longest time ago, until ``need`` bytes fit. Raises `LoadFailed` when they cannot."""
        if self.budget is None:
            return
        if need > self.budget:
            raise LoadFailed(f"model '{name}' needs {need / MIB:.1f} MiB, the budget for all models is {self.budget / MIB:.1f} MiB")
        stay = {name, self.name}
        while sum(served.size for served in self.models.values()) + need > self.budget:
            others = [served for served in self.models.values() if served.versions and served.name not in stay and not served.lane.open]
            if not others:
                used = sum(served.size for served in self.models.values()) / MIB
                raise LoadFailed(f"model '{name}' needs {need / MIB:.1f} MiB; {used:.1f} of {self.budget / MIB:.1f} MiB are in use")
            oldest = min(others, key=lambda served: served.used)
            oldest.versions, oldest.current = {}, None
            events.info("model.asleep", model=oldest.name, for_model=name)
            self._return_memory()

    def _calibrate(self, served: Served, model: LoadedModel) -> None:
        if (step := model.knee()) is not None:
            served.lane.when_idle(step)

    def _return_memory(self) -> None:
        asyncio.get_running_loop().call_later(RETURN_MEMORY_SECONDS, _trim)

    def index(self) -> Iterator[dict[str, str]]:
        """As Triton's model repository extension lists them."""
        for served in self.models.values():
            if not served.sources:
                yield {"name": served.name, "version": "", "state": "UNAVAILABLE", "reason": served.reason}
            for version in served.sources:
                awake = version in served.versions
                ready = awake and not self.draining
                reason = "" if ready else "draining" if awake else "asleep"
                yield {"name": served.name, "version": version, "state": "READY" if ready else "UNAVAILABLE", "reason": reason}

    def close(self) -> None:
        for served in self.models.values():
            served.lane.close()


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):  # what is wrong with the folder, loading it will say
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return 0


def _trim() -> None:
    """Give the replaced model's pages back to the system; glibc keeps them otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
    if trim is not None:
        trim(0)
