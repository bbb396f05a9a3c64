"""A Work into the member's API, and out of it again: `plan` carried out.

What is there is known from `inventory`, so an unchanged Work costs no request, and a changed one a PATCH per object that differs. Each
object's trouble is told at its component; the others go on. Somebody's change by hand, or a deletion, comes back as `touched`: the
session applies the Work once more, and the plan finds what differs.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import structlog
from msgspec import Struct, structs

from cluster_controller import clock
from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import applyset, names, plan, refusals, render, status
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.applyset import ApplySets
from cluster_shim.kubernetes.inventory import How, Inventory
from cluster_shim.kubernetes.jobs import Jobs, is_job
from cluster_shim.kubernetes.namespaces import Namespaces
from cluster_shim.kubernetes.plan import CRD, NAMESPACE, Item, Step
from cluster_shim.kubernetes.render import Rendered, Source
from cluster_shim.kubernetes.resources import Resource, Resources
from cluster_shim.kubernetes.seen import Key, Seen
from cluster_shim.kubernetes.status import Trouble
from cluster_shim.kubernetes.writing import NEW_KIND_SECONDS, Writer

log = structlog.get_logger()

AT_ONCE = 6  # objects of one Work that do not depend on each other
ESTABLISHED_SECONDS = 15.0
LOOK_SECONDS = 0.1
FIRST = 1  # order of what others need before they can be made: namespaces, definitions of kinds
NOT_RENDERED = "NotRendered"
Object = dict[str, Any]


class Charts(Protocol):
    async def render(self, work: contract.Work, component: contract.Component, facts: "Facts") -> list[Object]:
        """ShimError says why there is nothing."""
        ...


class Facts(Struct, frozen=True):
    """What a chart may ask of the cluster that it is rendered for."""

    version: str  # v1.34.2
    namespace: str


class Applier:
    """``touched`` hears the uids of applications whose objects are not as they were left, or are not known to the caller.

    `start` before anything else, `close` at the end: what runs goes on.
    """

    def __init__(
        self,
        api: Api,
        settings: render.Settings,
        *,
        touched: Callable[[Iterable[str]], None],
        source: Callable[[contract.Work], Source | None],
        charts: Charts,
        jobs: Jobs,
    ) -> None:
        self._api = api
        self._settings = settings
        self._touched = touched
        self._source = source
        self._charts = charts
        self._jobs = jobs
        self._resources = Resources(api)
        self._inventory = Inventory(api, self._noticed, lambda resource: self._resources.forget(resource.version))
        self._sets = ApplySets(api)
        self._namespaces = Namespaces(api, self._resources)
        self._writer = Writer(api, self._inventory)
        self._busy: set[Key] = set()  # being written: what is seen of them meanwhile is judged afterwards
        self._living: dict[str, str] = {}  # application uid → its namespace
        self._left_behind: dict[str, set[str]] = {}  # application uid → namespaces of what was removed of it

    async def start(self) -> None:
        """Until everything of ours is known. ApiError when the server cannot be asked."""
        for namespace, parent in (await self._sets.load()).items():
            for kind in sorted(parent.kinds):
                await self._look_into(kind, {namespace, *parent.namespaces})

    async def _look_into(self, group_kind: str, namespaces: Iterable[str]) -> None:
        resource = await self._resources.of_group_kind(group_kind)
        for namespace in namespaces if resource is not None else ():
            assert resource is not None
            try:
                await self._inventory.ready(resource, namespace)
            except ApiError as error:
                if error.status not in (403, 404):
                    raise

    async def close(self) -> None:
        await self._inventory.close()

    def hurry(self) -> None:
        """The API server answers again."""
        self._inventory.hurry()

    def uids(self) -> set[str]:
        """Applications of which something is in the member."""
        return self._inventory.uids()

    def held(self, uid: str) -> dict[str, Trouble]:
        """By component, what keeps the rest of a removed application from going."""
        return {name: Trouble("Terminating", why) for name, why in plan.held(self._inventory.of(uid)).items()}

    # --- applying ---

    async def apply(self, work: contract.Work) -> Mapping[str, Trouble]:
        """Per component, why its objects are not as they should be."""
        self._living[work.uid] = names.namespace_of(work.namespace)
        run = _Run(work)
        try:
            await self._apply(run)
        except ApiError as error:
            why = refusals.judge(error.status, error.reason, str(error), error.details.causes)
            run.blame_all(Trouble(why.reason, why.message))
        finally:
            await self._jobs.save()
        return run.problems

    async def _apply(self, run: "_Run") -> None:
        await self._render(run)
        waiting = await self._complete(run)
        defined = [item for item in run.items if item.key.kind == CRD]
        if waiting and defined:
            # Objects of kinds that this very Work defines: the definitions first.
            await self._carry_out(run, [item for item in run.items if item.order <= FIRST], prune=False)
            await self._established(run, defined)
            waiting = await self._complete(run, waiting, again=True)
        for made in waiting:
            version, kind = made.object["apiVersion"], made.object["kind"]
            run.unsure.add(made.component)
            said = f"{kind} {made.object['metadata']['name']}: the member knows no {kind} of {version}; install its definition"
            run.blame(made.component, Trouble(refusals.UNKNOWN_KIND, said))
        await self._carry_out(run, run.items, prune=True)

    async def _render(self, run: "_Run") -> None:
        work = run.work
        source = self._source(work)
        for component in work.components:
            try:
                charts: dict[str, Sequence[Object]] = {}
                kind = contract.component_kind(component)
                if kind in ("manifests", "helm") and not component.replicas:
                    continue  # not wanted here
                if kind == "helm":
                    facts = Facts(self._api.version, names.namespace_of(work.namespace))
                    charts[component.name] = await self._charts.render(work, component, facts)
                run.rendered += render.render(structs.replace(work, components=(component,)), self._settings, source, charts)
            except ShimError as error:
                run.unsure.add(component.name)
                run.blame(component.name, Trouble(NOT_RENDERED, str(error)))

    async def _complete(self, run: "_Run", made: Sequence[Rendered] | None = None, *, again: bool = False) -> list[Rendered]:
        """Items for what is of a kind that the server knows; the rest is returned. ``again``: kinds may have come this moment."""
        namespace = names.namespace_of(run.work.namespace)
        part_of = applyset.id_of(namespace)
        unknown: list[Rendered] = []
        deadline = clock.boottime() + (NEW_KIND_SECONDS if again else 0.0)
        for one in run.rendered if made is None else made:
            version, kind = one.object["apiVersion"], one.object["kind"]
            resource = await self._resources.find(version, kind, again=again)
            while resource is None and again and clock.boottime() < deadline:
                await asyncio.sleep(LOOK_SECONDS)
                resource = await self._resources.find(version, kind, again=True)
            if resource is None:
                unknown.append(one)
                continue
            item = plan.complete(one, resource.group, resource.namespaced, namespace, part_of)
            run.items.append(item)
            run.resources[item.key] = resource
        for name, why in plan.twins(run.items).items():
            run.unsure.add(name)
            run.blame(name, Trouble(NOT_RENDERED, why))
            run.items = [item for item in run.items if item.component != name]
        return unknown

    async def _established(self, run: "_Run", defined: Sequence[Item]) -> None:
        """Until the server serves the kinds of these definitions, which takes it a moment."""
        deadline = clock.boottime() + ESTABLISHED_SECONDS
        for item in defined:
            path = run.resources[item.key].path("", item.key.name)
            while item.component not in run.problems and clock.boottime() < deadline:
                found = msgspec.json.decode(await self._api.request("GET", path))
                conditions = (found.get("status") or {}).get("conditions") or []
                if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
                    break
                await asyncio.sleep(LOOK_SECONDS)

    async def _carry_out(self, run: "_Run", items: Sequence[Item], *, prune: bool) -> None:
        work = run.work
        namespace = names.namespace_of(work.namespace)
        items = await self._prepare(run, namespace, items)
        there = self._inventory.of(work.uid)
        for item in items:
            if (found := self._inventory.get(item.key)) is not None:
                there[item.key] = found
        todo = plan.plan(work.uid, items, there, self._writer.settled, run.unsure, self._jobs.marks())
        for key, settled in todo.settled.items():
            self._writer.settled[key] = settled
            if (found := self._inventory.get(key)) is not None:
                found.fields = b""
        for item, found in todo.foreign:
            run.blame(item.component, Trouble("OwnedByAnother", _owned(item, found)))
        for item in todo.over:
            if self._jobs.failed(item.key):
                said = f"{item.key} has failed, and has removed itself since; it runs again when its template changes"
                run.blame(item.component, Trouble(status.JOB_FAILED, said))
        for steps in _by_order(todo.steps):
            for start in range(0, len(steps), AT_ONCE):
                # A refusal is its object's trouble and stops nobody; anything else is a defect, and ends the rest with it.
                async with asyncio.TaskGroup() as group:
                    for step in steps[start : start + AT_ONCE]:
                        group.create_task(self._step(run, step), name=f"shim/kubernetes/apply/{step.item.key}")
        for item in items:
            if (found := self._inventory.get(item.key)) is not None:
                self._jobs.there(item, found)
        if prune and not run.unsure:
            self._jobs.keep(work.uid, {item.key for item in items})
        if prune:
            for key in todo.prune:
                if there[key].component not in run.problems:
                    await self._end(key, there[key])

    async def _prepare(self, run: "_Run", namespace: str, items: Sequence[Item]) -> list[Item]:
        """The namespace, its ApplySet, and sight of what is there. Returns those items whose kind the server still knows."""
        resources = {run.resources[item.key] for item in items}
        if items:
            include = self._sets.include(namespace, resources, {item.key.namespace for item in items})
            try:
                await include
            except ApiError as error:
                if not _no_namespace(error):
                    raise
                await self._namespaces.make(namespace)
                await self._sets.include(namespace, resources, {item.key.namespace for item in items})
        for kind in (await self._sets.known(namespace)).kinds - {resource.group_kind for resource in resources}:
            await self._look_into(kind, (namespace,))
        dark: dict[tuple[Resource, str], Trouble] = {}
        for resource, place in sorted({(run.resources[item.key], item.key.namespace) for item in items}, key=str):
            try:
                await self._inventory.ready(resource, place)
            except ApiError as error:
                why = refusals.judge(error.status, error.reason, str(error), error.details.causes)
                dark[resource, place] = Trouble(why.reason, why.message)
            except ShimError as error:
                dark[resource, place] = Trouble(refusals.UNAVAILABLE, str(error))
        lit: list[Item] = []
        for item in items:
            trouble = dark.get((run.resources[item.key], item.key.namespace))
            if trouble is None:
                lit.append(item)
            else:
                run.unsure.add(item.component)
                run.blame(item.component, Trouble(trouble.reason, f"{item.key}: {trouble.message}"))
        return lit

    async def _step(self, run: "_Run", step: Step) -> None:
        item = step.item
        resource = run.resources[item.key]
        self._busy.add(item.key)
        try:
            trouble = await self._write(run, step, resource)
        except ApiError as error:
            why = refusals.judge(error.status, error.reason, str(error), error.details.causes)
            trouble = Trouble(why.reason, f"{item.key}: {why.message}")
        finally:
            self._busy.discard(item.key)
        if trouble is not None:
            run.blame(item.component, trouble)
            return
        found, settled = self._inventory.get(item.key), self._writer.settled.get(item.key)
        if found is None or settled is None or found.digest != settled.digest:
            self._touched((run.work.uid,))  # changed again while it was being written

    async def _write(self, run: "_Run", step: Step, resource: Resource) -> Trouble | None:
        work, item = run.work, step.item
        try:
            return await self._writer.write(work, step, resource)
        except ApiError as error:
            if error.status != 404:
                raise
            if _no_namespace(error):
                if item.key.namespace != names.namespace_of(work.namespace):
                    return Trouble(refusals.NO_NAMESPACE, f"{item.key}: {error}; make it, or bring it with the application")
                self._sets.forget(item.key.namespace)
                await self._namespaces.make(item.key.namespace)
                await self._sets.include(item.key.namespace, set(run.resources.values()), {one.key.namespace for one in run.items})
            elif await self._is_gone(item):
                return Trouble(refusals.UNKNOWN_KIND, f"{item.key}: the member knows no such kind of {item.version} any more: {error}")
            return await self._writer.write(work, step, resource)

    async def _is_gone(self, item: Item) -> bool:
        """Whether the server knows the kind no more; one that has just come is not served at once by all of it."""
        deadline = clock.boottime() + 2 * LOOK_SECONDS
        while clock.boottime() < deadline:
            self._resources.forget(item.version)
            if await self._resources.find(item.version, item.key.kind) is None:
                return True
            await asyncio.sleep(LOOK_SECONDS)
        return False

    # --- removing ---

    async def remove(self, uid: str) -> bool:
        """Whether nothing of it is left. Kinds go after their objects, namespaces last; what is to be kept is let go."""
        left = self._inventory.of(uid)
        places = self._left_behind.setdefault(uid, set())
        if (lived := self._living.pop(uid, None)) is not None:
            places.add(lived)
        places |= {key.namespace for key in left if key.namespace}
        for key in plan.removal(left):
            await self._end(key, left[key])
        if self._inventory.of(uid):
            return False
        for namespace in sorted(places):
            await self._tidy(namespace)
        del self._left_behind[uid]
        self._jobs.keep(uid, ())
        await self._jobs.save()
        return True

    async def _end(self, key: Key, there: Seen) -> None:
        """Delete it, or let go of it where its end would be others' loss too."""
        resource = self._inventory.resource(key)
        self._busy.add(key)
        try:
            if there.deleting:
                return
            if there.keep:
                await self._writer.release(resource, key, there)
            elif key.kind == CRD and not key.namespace:
                await self._end_kind(resource, key, there)
            elif key.kind == NAMESPACE and not key.group:
                if await self._namespaces.delete_if_empty(key.name, there.uid, lambda: key.name in self._living.values()):
                    self._sets.forget(key.name)
                    self._inventory.gone(key)
                    self._writer.forget(key)
                else:
                    await self._writer.release(resource, key, there)
            else:
                await self._writer.delete(resource, key, there.uid)
        finally:
            self._busy.discard(key)

    async def _end_kind(self, resource: Resource, key: Key, there: Seen) -> None:
        """Deleting a definition deletes every object of its kind, whosoever it is: so only when there is none."""
        spec = msgspec.json.decode(await self._api.request("GET", resource.path("", key.name)))["spec"]
        if self._inventory.has_kind(spec["group"], spec["names"]["kind"]):
            return  # ours are still going
        served = next((one["name"] for one in spec["versions"] if one.get("served")), spec["versions"][0]["name"])
        path = f"/apis/{spec['group']}/{served}/{spec['names']['plural']}"
        try:
            found = msgspec.json.decode(await self._api.request("GET", path, query=[("limit", "1")])).get("items")
        except ApiError as error:
            if error.status != 404:
                raise
            found = []
        if found:
            await self._writer.release(resource, key, there)
        else:
            await self._writer.delete(resource, key, there.uid)
            self._resources.forget(f"{spec['group']}/{served}")

    async def _tidy(self, namespace: str) -> None:
        """The set's parent and the namespace itself, when nothing of ours is left."""
        if namespace in self._living.values() or not self._inventory.is_empty(namespace):
            return
        self._inventory.leave(namespace)
        await self._sets.end(namespace)
        if await self._namespaces.remove(namespace, lambda: namespace in self._living.values()):
            self._sets.forget(namespace)

    # --- what others do ---

    def _noticed(self, key: Key, found: Seen, how: How) -> None:
        """From a watch. What is as we left it needs nobody's attention."""
        settled = self._writer.settled.get(key)
        if how != "put":
            if is_job(key):
                self._jobs.gone(key, found, watched=how == "deleted")
            if settled is not None and key not in self._busy:
                self._writer.forget(key)
                self._writer.lost[key] = found.uid
            if key not in self._busy:
                self._touched((found.application,))
            return
        if settled is not None and (found.digest, found.applied) == (settled.digest, settled.mark) and not found.deleting:
            found.fields = b""
            return
        if key not in self._busy and (settled is not None or found.application not in self._living):
            self._touched((found.application,))


class _Run:
    """One Work on its way."""

    def __init__(self, work: contract.Work) -> None:
        self.work = work
        self.rendered: list[Rendered] = []
        self.items: list[Item] = []
        self.resources: dict[Key, Resource] = {}
        self.unsure: set[str] = set()  # components that could not be rendered: what they have stays
        self.problems: dict[str, Trouble] = {}

    def blame(self, component: str, trouble: Trouble) -> None:
        """The first trouble of a component is told."""
        self.problems.setdefault(component, trouble)

    def blame_all(self, trouble: Trouble) -> None:
        for component in self.work.components:
            self.blame(component.name, trouble)


def _by_order(steps: Sequence[Step]) -> list[list[Step]]:
    groups: dict[int, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.item.order, []).append(step)
    return [groups[order] for order in sorted(groups)]


def _no_namespace(error: ApiError) -> bool:
    return error.status == 404 and refusals.judge(404, error.reason, str(error)).reason == refusals.NO_NAMESPACE


def _owned(item: Item, found: Seen) -> str:
    return f"{item.key} is part of another application ({found.application}); one object belongs to one application"
