"""Keep the own cluster's shim told, and write down what it sees.

What was told last is kept in the store (without secrets), component by component: when a new version cannot be told yet, because
its model has not arrived or a Secret is missing, the component goes on as it was told before. So a controller that starts with
no parent in reach starts everything that ran, from its own disk (ARCHITECTURE law 9 and section 5, Autonomy). What was told with
a Secret that is gone meanwhile goes on for as long as this controller lives: it is kept in memory only.

What is written down never says more than the shim does: a Work that the shim does not run is not ready, whatever it was before.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct

from cluster_controller.clock import timestamp
from cluster_controller.delivered import is_lent
from cluster_controller.documents import Documents, put_changed
from cluster_controller.errors import BanyanError, InvalidInput
from cluster_controller.reconcile import observe, resolve
from cluster_controller.reconcile.holds import referenced
from cluster_controller.reconcile.resolve import ModelNeed
from cluster_controller.reconcile.sight import Sight
from cluster_controller.resources import kinds
from cluster_controller.store import Event, Key, Store, Tx
from cluster_controller.tasks import Tasks
from cluster_shim import contract

log = structlog.get_logger()


class Models(Protocol):
    """Where model folders come from."""

    def ready(self, need: ModelNeed) -> str | None:
        """The folder with all files verified, or None when something has yet to be fetched."""
        ...

    async def ensure(self, need: ModelNeed) -> str:
        """Fetch what is missing, verify, and return the folder. Raises BanyanError when it cannot be had now."""
        ...

    async def keep_only(self, needed: Callable[[], Collection[str]]) -> None:
        """Drop the folders of all models but those with these keys, asked anew before each. BanyanError when the disk refuses."""
        ...


class Told(Struct, frozen=True, kw_only=True):
    """One component as the shim was last told: enough to tell it again, without secrets."""

    spec: kinds.Component
    model: contract.ModelRef | None = None
    placement: kinds.Placement | None = None  # None: that of the whole, as it was kept by an older program


class Applied(Struct, frozen=True, kw_only=True):
    application: kinds.ApplicationReference
    placement: kinds.Placement
    components: dict[str, Told]


class Reconciler:
    """Between ``local`` and the shim, both ways."""

    heeds = ("Work", "Model", "ConfigMap", "Secret")  # kinds of what `changed` is called for

    def __init__(
        self,
        store: Store,
        shim: contract.Shim,
        models: Models,
        *,
        uid: str,
        name: str,
        nodes_changed: Callable[[Sequence[contract.Node]], None],
    ) -> None:
        self._store = store
        self._shim = shim
        self._models = models
        self._uid = uid
        self._name = name
        self._nodes_changed = nodes_changed
        self._documents = Documents(store.get)
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._problems: dict[str, dict[str, str]] = {}
        self._fetching: dict[str, set[str]] = {}  # what is being fetched → the Works that wait for it
        self._trouble: dict[str, str] = {}  # of those, why the last try failed
        self._last: dict[str, dict[str, contract.Component]] = {}  # Work → components as the shim was last told
        self._outdated = True  # there may be folders of models that nothing here runs any more
        self._sweeping = False
        self._pods: dict[str, set[Key]] = {}
        self._tasks = Tasks("reconcile")
        self._seen: dict[str, contract.ObservedWork] = {}
        self.sight = Sight(store, self._documents, self._seen)
        self.nodes: tuple[contract.Node, ...] = ()
        self.trouble = ""  # why the shim is lost; "" while it speaks

    def changed(self, events: Sequence[Event]) -> None:
        """Called after each commit; only marks."""
        for event in events:
            space, kind = event.stored.key.space, event.stored.key.kind
            if space == "local" and kind == "Work":
                self._mark(event.stored.key.name)
            elif kind in {"Model", "ConfigMap", "Secret"} and (space in {"own", "desired"} or is_lent(space)):
                self._mark_users(kind, event.stored.uid)

    async def run(self) -> None:
        """Until cancelled, or until the shim is lost."""
        self._load_pods()
        try:
            async for observed in self._shim.reconcile(self._desired()):
                again, self.trouble = bool(self.trouble), ""
                await self._store.commit(lambda tx, observed=observed: self._write(tx, observed))  # type: ignore[misc]
                self._sweep_when_current()
                if observed.nodes is not None or again:
                    self.nodes = observed.nodes if observed.nodes is not None else self.nodes
                    self._nodes_changed(self.nodes)
        except contract.ShimError as error:
            self.trouble = str(error)
            await self._lost(self.trouble)
            raise
        finally:
            await self._tasks.close()

    async def _lost(self, why: str) -> None:
        """The shim no longer answers: what it last said is not taken for the present (ARCHITECTURE law 5). Nothing is stopped."""
        seen = [observe.lost(one, why) for one in self._seen.values()]
        nodes = tuple(msgspec.structs.replace(node, ready=False) for node in self.nodes)

        def write(tx: Tx) -> None:
            self._write(tx, contract.Observed(works=tuple(seen), nodes=nodes if self.nodes else None))
            self._write_unheard(tx, why)

        await self._store.commit(write)
        self.nodes = nodes
        self._nodes_changed(nodes)

    def _write_unheard(self, tx: Tx, why: str) -> None:
        """What an earlier start of this controller wrote, and no shim has spoken of since, is not the present either."""
        for stored in tx.list("observed", "WorkStatus"):
            if stored.key.name not in self._seen:
                put_changed(tx, stored.key, observe.lost_status(self._documents.read(stored, kinds.WorkStatus), why), stored.uid)
                for key in self._pods.get(stored.key.name, set()):
                    if (found := tx.get(key)) is not None:
                        put_changed(tx, key, observe.lost_pod(self._documents.read(found, kinds.Pod), why), found.uid)

    def _remember(self, observed: contract.Observed) -> None:
        if observed.full:
            self._seen.clear()
        for seen in observed.works:
            self._seen[seen.uid] = seen
        for uid in observed.removed:
            self._seen.pop(uid, None)

    # --- down: what the shim is told ---

    async def _desired(self) -> AsyncIterator[contract.Desired]:
        works = [stored.key.name for stored in self._store.list("local", "Work")]
        told = await self._tell(works)
        yield contract.Desired(works=tuple(told), full=True)
        while True:
            await self._wake.wait()
            self._wake.clear()
            names, self._dirty = sorted(self._dirty), set()
            present = [name for name in names if self._store.get(Key("local", "Work", "", name)) is not None]
            removed = tuple(name for name in names if name not in present)
            for name in removed:
                await self._forget(name)
            told = await self._tell(present)
            if told or removed:
                yield contract.Desired(works=tuple(told), removed=removed)

    async def _tell(self, names: Sequence[str]) -> list[contract.Work]:
        """Resolve, and remember what is about to be told."""
        told: list[contract.Work] = []
        kept: dict[str, bytes] = {}
        before = {name: self._problems.get(name) for name in names}
        for name in names:
            work, applied = self._resolve(name)
            if work is not None:
                told.append(work)
                self._last[name] = {component.name: component for component in work.components}
                self._outdated = True
                kept[f"reconcile/applied/{name}"] = msgspec.json.encode(applied, order="deterministic")
        fresh = {fact: value for fact, value in kept.items() if self._store.fact(fact) != value}
        trouble = {name: problems for name in names if (problems := self._problems.get(name, {})) or before.get(name)}
        if fresh or trouble:

            def write(tx: Tx) -> None:
                for fact, value in fresh.items():
                    tx.set_fact(fact, value)
                for name, problems in trouble.items():
                    self._write_problems(tx, name, problems)

            await self._store.commit(write)
        return told

    def _resolve(self, name: str) -> tuple[contract.Work | None, Applied | None]:
        stored = self._store.get(Key("local", "Work", "", name))
        if stored is None:
            return None, None
        spec = self._documents.read(stored, kinds.Work).spec
        found = referenced(self._store, spec)
        fact = self._store.fact(f"reconcile/applied/{name}")
        before = msgspec.json.decode(fact, type=Applied) if fact else None
        problems: dict[str, str] = {}
        components: list[contract.Component] = []
        told: dict[str, Told] = {}
        for item in spec.components:
            try:
                model = self._model(name, item, found)
                components.append(resolve.component(item, spec.placement, found, model))
                told[item.name] = Told(spec=item, model=model, placement=spec.placement)
            except InvalidInput as error:
                problems[item.name] = str(error)
                kept = before.components.get(item.name) if before is not None else None
                if before is None or kept is None:
                    continue
                told[item.name] = msgspec.structs.replace(kept, placement=kept.placement or before.placement)
                component = self._as_before(name, item, told[item.name], found)
                if component is not None:
                    components.append(component)
        self._problems[name] = problems
        if problems and not components:
            return None, None
        work = contract.Work(
            uid=name,
            name=spec.application.name,
            namespace=spec.application.namespace,
            origin=spec.application.origin_name,
            version=spec.shares[-1].id,
            components=tuple(components),
            report_drift=spec.apply.drift == "Report",
            force_conflicts=spec.apply.conflicts == "Force",
            recreate=spec.apply.immutable_fields == "Recreate",
        )
        return work, Applied(application=spec.application, placement=spec.placement, components=told)

    def _as_before(self, name: str, item: kinds.Component, kept: Told, found: resolve.Found) -> contract.Component | None:
        """The component as it runs, with the replicas that are wanted now; None when even that cannot be put together any more."""
        assert kept.placement is not None
        as_before = msgspec.structs.replace(kept.spec, replicas=item.replicas)
        try:
            return resolve.component(as_before, kept.placement, found, kept.model)
        except InvalidInput as error:
            last = self._last.get(name, {}).get(item.name)
            if last is not None:
                return msgspec.structs.replace(last, replicas=item.replicas)
            log.warning("work.unresolved", work=name, component=item.name, error=str(error))
            return None

    def _model(self, name: str, item: kinds.Component, found: resolve.Found) -> contract.ModelRef | None:
        need = resolve.model_need(item, found)
        if need is None or item.replicas == 0:
            return None if need is None else self._reference(need, "")
        folder = self._models.ready(need)
        if folder is None:
            self._fetch(name, need)
            trouble = self._trouble.get(need.key)
            state = f"is not here: {trouble}" if trouble else "is on its way here"
            what = "chart" if need.runtime == "helm" else "model"
            raise InvalidInput(f"{what} {need.name} version {need.version} {state}", f"components[{item.name}].{what}")
        return self._reference(need, folder)

    def _reference(self, need: ModelNeed, folder: str) -> contract.ModelRef:
        return contract.ModelRef(name=need.name, version=need.version, uid=need.uid, folder=folder, files=need.files, runtime=need.runtime)

    def _fetch(self, name: str, need: ModelNeed) -> None:
        waiting = self._fetching.get(need.key)
        if waiting is None:
            self._fetching[need.key] = waiting = set()
            self._tasks.spawn(f"fetch-{need.name}-{need.version}", self._fetch_until_there(need, waiting))
        waiting.add(name)

    async def _fetch_until_there(self, need: ModelNeed, waiting: set[str]) -> None:
        """Until it is there, or nothing here wants it any more; each try says why it failed."""
        delay = 0.2
        try:
            while any(self._wanted(name, need) for name in waiting):
                try:
                    await self._models.ensure(need)
                    break
                except BanyanError as error:
                    log.warning("model.not_here", model=need.name, version=need.version, error=str(error), retry_s=delay)
                    if self._trouble.get(need.key) != str(error):
                        self._trouble[need.key] = str(error)
                        for name in waiting:  # so that the status says why
                            self._mark(name)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 10.0)
        finally:
            del self._fetching[need.key]
            self._trouble.pop(need.key, None)
        for name in waiting:
            self._mark(name)

    def _wanted(self, name: str, need: ModelNeed) -> bool:
        stored = self._store.get(Key("local", "Work", "", name))
        if stored is None:
            return False
        spec = self._documents.read(stored, kinds.Work).spec
        return need.key in {wanted.key for wanted in self._needs(spec)}

    def _needs(self, spec: kinds.WorkSpec) -> Iterator[ModelNeed]:
        found = referenced(self._store, spec)
        for item in spec.components:
            with contextlib.suppress(InvalidInput):  # the Model or its version is not here yet
                need = resolve.model_need(item, found)
                if need is not None:
                    yield need

    # --- folders that nothing here runs any more ---

    def _needed(self) -> set[str]:
        """Names of the model folders that something here runs, is to run, or waits for."""
        told = (component.model for work in self._last.values() for component in work.values())
        keys = {Path(model.folder).name for model in told if model is not None and model.folder}
        for stored in self._store.list("local", "Work"):
            keys |= {need.key for need in self._needs(self._documents.read(stored, kinds.Work).spec)}
        return keys | set(self._fetching)

    def _all_current(self) -> bool:
        """The shim runs exactly what it was last told; so nobody needs the folder of a version before."""
        for uid, seen in self._seen.items():
            revisions = {name: component.revision for name, component in self._last.get(uid, {}).items()}
            if any(revisions.get(instance.component) != instance.revision for instance in seen.instances):
                return False
        return True

    def _sweep_when_current(self) -> None:
        if self._outdated and not self._sweeping and self._all_current():
            self._outdated, self._sweeping = False, True
            self._tasks.spawn("sweep-models", self._sweep())

    async def _sweep(self) -> None:
        try:
            await self._models.keep_only(self._needed)
        except BanyanError as error:
            log.warning("models.not_swept", error=str(error))
        finally:
            self._sweeping = False
        self._sweep_when_current()

    def _mark(self, name: str) -> None:
        self._dirty.add(name)
        self._wake.set()

    def _mark_users(self, kind: str, uid: str) -> None:
        for stored in self._store.list("local", "Work"):
            if any(link.kind == kind and link.uid == uid for link in self._documents.read(stored, kinds.Work).spec.references):
                self._mark(stored.key.name)

    async def _forget(self, name: str) -> None:
        """What the shim was told stays listed until the shim has let go of it."""
        self._problems.pop(name, None)
        self._outdated = True
        told = self._last.pop(name, None) is not None and name in self._seen

        def write(tx: Tx) -> None:
            if tx.fact(f"reconcile/applied/{name}") is not None:
                tx.set_fact(f"reconcile/applied/{name}", None)
            status = tx.get(Key("observed", "WorkStatus", "", name))
            if status is not None and not told and not self._pods.get(name):
                tx.delete(status.key)

        await self._store.commit(write)

    # --- up: what the shim saw ---

    def _load_pods(self) -> None:
        for stored in self._store.list("observed", "Pod"):
            application = stored.uid[: -len(stored.key.name) - 1]
            self._pods.setdefault(application, set()).add(stored.key)

    def _write(self, tx: Tx, observed: contract.Observed) -> None:
        self._remember(observed)  # here, so that nobody who writes before this is on the disk goes by what was seen earlier
        for seen in observed.works:
            self._write_work(tx, seen)
        gone = set(observed.removed)
        if observed.full:
            named = {seen.uid for seen in observed.works}
            gone |= {stored.key.name for stored in tx.list("observed", "WorkStatus")} - named
            gone |= set(self._pods) - named
        for name in sorted(gone):
            self._write_gone(tx, name)
        if observed.nodes is not None:
            self._write_nodes(tx, observed.nodes)

    def _write_work(self, tx: Tx, seen: contract.ObservedWork) -> None:
        application = self._application(tx, seen.uid)
        if application is None:
            return
        status = observe.work_status(application, self._uid, self._name, seen, self._problems.get(seen.uid, {}))
        put_changed(tx, Key("observed", "WorkStatus", "", seen.uid), status, seen.uid)
        pods = {}
        for instance in seen.instances:
            pod = observe.pod(seen, application, instance)
            pods[Key("observed", "Pod", application.namespace, instance.id)] = pod
        for key in sorted(self._pods.get(seen.uid, set()) - set(pods)):
            tx.delete(key)
        for key, pod in pods.items():
            put_changed(tx, key, pod, pod.metadata.uid)
        self._pods[seen.uid] = set(pods)

    def _application(self, tx: Tx, name: str) -> kinds.ApplicationReference | None:
        stored = tx.get(Key("local", "Work", "", name))
        if stored is not None:
            return self._documents.read(stored, kinds.Work).spec.application
        status = tx.get(Key("observed", "WorkStatus", "", name))
        return self._documents.read(status, kinds.WorkStatus).spec.application if status is not None else None

    def _write_gone(self, tx: Tx, name: str) -> None:
        for key in sorted(self._pods.pop(name, set())):
            tx.delete(key)
        key = Key("observed", "WorkStatus", "", name)
        work = tx.get(Key("local", "Work", "", name))
        if work is None:
            tx.delete(key)
        elif tx.get(key) is not None:
            self._write_nothing(tx, name, self._documents.read(work, kinds.Work).spec)

    def _write_problems(self, tx: Tx, name: str, problems: dict[str, str]) -> None:
        """What keeps components from being told, beside what the shim sees: it has nothing new to say of what it was not told."""
        work = tx.get(Key("local", "Work", "", name))
        if work is None:
            return
        spec = self._documents.read(work, kinds.Work).spec
        seen = self._seen.get(name)
        if seen is not None:
            status = observe.work_status(spec.application, self._uid, self._name, seen, problems)
            put_changed(tx, Key("observed", "WorkStatus", "", name), status, name)
        elif problems and not self._pods.get(name):
            self._write_nothing(tx, name, spec)

    def _write_nothing(self, tx: Tx, name: str, spec: kinds.WorkSpec) -> None:
        """Nothing of it runs. A share that the shim was told it has yet to answer itself."""
        problems = self._problems.get(name, {})
        seen = contract.ObservedWork(
            uid=name,
            version=0 if name in self._last else spec.shares[-1].id,
            components=tuple(
                contract.ObservedComponent(name=item.name, desired=item.replicas, ready=0, updated=0) for item in spec.components
            ),
        )
        status = observe.work_status(spec.application, self._uid, self._name, seen, problems)
        put_changed(tx, Key("observed", "WorkStatus", "", name), status, name)

    def _write_nodes(self, tx: Tx, nodes: Sequence[contract.Node]) -> None:
        keys = set()
        for item in nodes:
            key = Key("observed", "Node", "", item.name)
            keys.add(key)
            there = tx.get(key)
            created = self._documents.read(there, kinds.Node).metadata.creation_timestamp if there is not None else None
            put_changed(tx, key, observe.node(item, "", created or timestamp()), f"node-{item.name}")
        for stored in tx.list("observed", "Node"):
            if stored.key not in keys:
                tx.delete(stored.key)
