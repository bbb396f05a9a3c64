"""One object into the member, or out of it: server-side apply, and what to do about each of its refusals.

An apply is first tried without force, so that the API server says whose fields it would take. What a person changed by hand on an
object of ours is set right; what another manager declares, or an autoscaler keeps, is left to it and reported, unless the Application
says otherwise. Every trouble names the object and repeats the server's own words.
"""

import asyncio

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import clock
from cluster_shim import contract
from cluster_shim.kubernetes import fields, names, refusals, seen
from cluster_shim.kubernetes.api import Api, ApiError
from cluster_shim.kubernetes.fields import Conflict
from cluster_shim.kubernetes.inventory import Inventory
from cluster_shim.kubernetes.plan import MAX_OBJECT, NEVER_AGAIN, Contest, Item, Step
from cluster_shim.kubernetes.resources import Resource
from cluster_shim.kubernetes.seen import Key, Seen, Settled
from cluster_shim.kubernetes.status import Trouble

log = structlog.get_logger()

APPLY = "application/apply-patch+yaml"  # JSON is YAML
DRIFTED = "Drifted"
BEING_DELETED = "BeingDeleted"
CONFLICT = refusals.CONFLICT
GONE_SECONDS = 10.0  # how long a deletion is waited for before it is said that it takes time
LOOK_SECONDS = 0.1
NEW_KIND_SECONDS = 10.0  # between a definition's Established and its kind being served everywhere
MAX_NAMED = 5  # fields in one message


class Left(Struct, frozen=True):
    """A trouble that stands as long as the object is at this version."""

    version: str
    mark: str
    trouble: Trouble


class Writer:
    def __init__(self, api: Api, inventory: Inventory) -> None:
        self._api = api
        self._inventory = inventory
        self.settled: dict[Key, Settled] = {}
        self._contests: dict[Key, Contest] = {}
        self._left: dict[Key, Left] = {}
        self.lost: dict[Key, str] = {}  # object that left our sight → its uid: it may have lost its label only

    def forget(self, key: Key) -> None:
        for table in (self.settled, self._contests, self._left, self.lost):
            table.pop(key, None)

    # --- applying ---

    async def write(self, work: contract.Work, step: Step, resource: Resource) -> Trouble | None:
        """ApiError only when the server is away or knows the kind or the namespace no more."""
        key, item = step.item.key, step.item
        if step.action == "wait":
            there = step.seen
            held = f", waiting for its finalizers {', '.join(there.finalizers)}" if there is not None and there.finalizers else ""
            return Trouble(BEING_DELETED, f"{key} is being deleted{held}; it is made anew once it is gone")
        if step.action == "correct":
            waiting = await self._may_correct(work, step, resource)
            if waiting is not None:
                return waiting
        body = msgspec.json.encode(fields.stamped(item.body, item.mark))
        if len(body) > MAX_OBJECT:
            return Trouble(refusals.TOO_LARGE, f"{key} has {len(body):,} bytes; an API server takes {MAX_OBJECT:,} at most")
        try:
            answer = await self._patch(resource, key, body, force=False)
        except ApiError as error:
            return await self._refused(work, step, resource, body, error)
        self._settle(resource, key, answer, item.mark)
        return None

    async def _patch(self, resource: Resource, key: Key, body: bytes, *, force: bool, dry: bool = False) -> bytes:
        query = [("fieldManager", names.MANAGER)]
        query += [("force", "true")] if force else []
        query += [("dryRun", "All")] if dry else []
        return await self._api.request("PATCH", resource.path(key.namespace, key.name), query=query, body=body, content_type=APPLY)

    def _settle(self, resource: Resource, key: Key, answer: bytes, mark: str) -> None:
        there = seen.decode(answer)
        there.fields = b""
        self.settled[key] = Settled(mark, there.digest)
        self._left.pop(key, None)
        self.lost.pop(key, None)
        self._inventory.note(resource, there)

    async def _refused(self, work: contract.Work, step: Step, resource: Resource, body: bytes, error: ApiError) -> Trouble | None:
        item, key = step.item, step.item.key
        found = fields.conflicts(error.details.causes)
        if error.status == 409 and found:
            return await self._conflict(work, step, resource, found)
        why = refusals.judge(error.status, error.reason, str(error), error.details.causes)
        if why.reason in (refusals.UNKNOWN_KIND, refusals.NO_NAMESPACE) or error.status == 0:
            raise error
        if why.reason == refusals.IMMUTABLE and step.seen is not None:
            if not work.recreate:
                remedy = "recreate would delete it and make it anew" if key.kind not in NEVER_AGAIN else "delete it yourself"
                return Trouble(why.reason, f"{key}: {why.message}; immutableFields: {remedy}")
            if key.kind in NEVER_AGAIN:
                return Trouble(why.reason, f"{key}: {why.message}; it is not made anew by itself, for what it holds would go with it")
            return await self._recreate(resource, item, body, step.seen)
        return Trouble(why.reason, f"{key}: {why.message}")

    # --- conflicts and drift ---

    async def _conflict(self, work: contract.Work, step: Step, resource: Resource, found: list[Conflict]) -> Trouble | None:
        item, key = step.item, step.item.key
        ours = step.seen is not None or await self._was_ours(resource, key)
        left = [one for one in found if not _may_take(one, work, ours)]
        if not left:
            answer = await self._patch(resource, key, msgspec.json.encode(fields.stamped(item.body, item.mark)), force=True)
            self._settle(resource, key, answer, item.mark)
            log.info("member.corrected", object=str(key), fields=_said(found))
            return None
        if not ours:
            return Trouble(CONFLICT, f"{key} is there already and is not ours: {_said(left)}; delete it, or say conflicts: Force")
        reason = DRIFTED if all(one.by_hand for one in left) else CONFLICT
        slim = fields.without(item.body, [one.field for one in left])
        if slim is None:
            return Trouble(reason, f"{key}: {_said(left)}; nothing of it was changed")
        mark = fields.hash_of(slim)
        there = step.seen
        if there is None or there.applied != mark or (settled := self.settled.get(key)) is None or settled.digest != there.digest:
            answer = await self._patch(resource, key, msgspec.json.encode(fields.stamped(slim, mark)), force=len(left) < len(found))
            self._settle(resource, key, answer, mark)
        return Trouble(reason, f"{key}: {_said(left)}; left as it is")

    async def _was_ours(self, resource: Resource, key: Key) -> bool:
        """Whether what stands there is the object that left our sight: somebody took its label."""
        uid = self.lost.get(key)
        if uid is None:
            return False
        return seen.decode(await self._api.request("GET", resource.path(key.namespace, key.name))).uid == uid

    async def _may_correct(self, work: contract.Work, step: Step, resource: Resource) -> Trouble | None:
        """None: set it right now. Otherwise why not."""
        item, key, there = step.item, step.item.key, step.seen
        if there is None:
            return None
        if work.report_drift:
            return await self._report(step, resource)
        turn = self._contests.get(key, Contest()).next(clock.boottime())
        if isinstance(turn, Contest):
            self._contests[key] = turn
            return None
        who = f" by {there.hands[-1]}" if there.hands else ""
        changed = ", ".join(fields.missing(there.fields, item.body)[:MAX_NAMED])
        return Trouble(DRIFTED, f"{key}: {changed or 'it'} is changed again and again{who}; it is set right once more in {turn:.0f} s")

    async def _report(self, step: Step, resource: Resource) -> Trouble | None:
        """What somebody changed, where that is only to be told; asked of the server once per version of the object. None: nobody did."""
        item, key, there = step.item, step.item.key, step.seen
        assert there is not None
        told = self._left.get(key)
        if told is not None and (told.version, told.mark) == (there.resource_version, item.mark):
            return told.trouble
        body = msgspec.json.encode(fields.stamped(item.body, item.mark))
        found: list[Conflict] = []
        try:
            await self._patch(resource, key, body, force=False, dry=True)
        except ApiError as error:
            found = fields.conflicts(error.details.causes)
            if not found:
                raise
        if found and all(one.manager == names.MANAGER for one in found):
            return None
        said = _said(found)
        if not said:
            who = f" by {there.hands[-1]}" if there.hands else ""
            paths = fields.missing(there.fields, fields.stamped(item.body, item.mark))
            said = f"{', '.join(paths[:MAX_NAMED]) or 'a field'} was taken away or changed{who}"
        trouble = Trouble(DRIFTED, f"{key}: {said}; left so, as the application asks (drift: Report)")
        self._left[key] = Left(there.resource_version, item.mark, trouble)
        return trouble

    # --- deleting ---

    async def _recreate(self, resource: Resource, item: Item, body: bytes, there: Seen) -> Trouble | None:
        key = item.key
        log.info("member.recreate", object=str(key))
        await self.delete(resource, key, there.uid)
        deadline = clock.boottime() + GONE_SECONDS
        while self._inventory.get(key) is not None:
            if clock.boottime() > deadline:
                return Trouble(BEING_DELETED, f"{key} is deleted to be made anew, and is not gone yet")
            await asyncio.sleep(LOOK_SECONDS)
        self._settle(resource, key, await self._patch(resource, key, body, force=False), item.mark)
        return None

    async def delete(self, resource: Resource, key: Key, uid: str) -> None:
        """Only the object that was seen; one that was made anew under its name stays."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            answer = await self._api.request("DELETE", resource.path(key.namespace, key.name), body=msgspec.json.encode(options))
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            answer = b'{"kind":"Status"}' if error.status == 404 else b"{}"
        if msgspec.json.decode(answer).get("kind") == "Status":
            self._inventory.gone(key)
        self.forget(key)

    async def release(self, resource: Resource, key: Key, there: Seen) -> None:
        """It stays, and is nobody's: without our labels, with a note whose it was."""
        labels = {names.APPLICATION_UID: None, names.COMPONENT_LABEL: None, names.PART_OF: None, names.MANAGED_BY: None}
        meta = {"uid": there.uid, "labels": labels, "annotations": {names.KEPT_FROM: there.application, names.APPLIED: None}}
        try:
            await self._api.request(
                "PATCH",
                resource.path(key.namespace, key.name),
                query=[("fieldManager", names.MANAGER)],
                body=msgspec.json.encode({"metadata": meta}),
                content_type="application/merge-patch+json",
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        log.info("member.kept", object=str(key), work=there.application)
        self._inventory.gone(key)
        self.forget(key)


def _may_take(one: Conflict, work: contract.Work, ours: bool) -> bool:
    if one.manager == names.MANAGER:
        return True  # what an admission webhook made of our own field when we applied it
    if one.by_hand and ours:
        return not work.report_drift
    return work.force_conflicts


def _said(found: list[Conflict]) -> str:
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(str(one) for one in found[:MAX_NAMED]) + more
