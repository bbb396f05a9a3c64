"""Works into a real API server: order, conflicts, drift, pruning, namespaces, and whatever such a server refuses."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cluster_shim import contract
from cluster_shim.contract import Component, Work
from cluster_shim.kubernetes import names, render
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.apply import Applier
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
WAIT_SECONDS = 60.0
SETTINGS = render.Settings(worker_image="nowhere/worker:1")


class Bench:
    """An applier on the shared member, and who was touched."""

    def __init__(self, member: Member, api: Api) -> None:
        self.member = member
        self.touched: list[str] = []
        self.api = api
        self.applier = Applier(api, SETTINGS, touched=self._touch)
        self.on_touch: Callable[[str], None] = lambda uid: None

    def _touch(self, uids: Iterable[str]) -> None:
        for uid in uids:
            self.touched.append(uid)
            self.on_touch(uid)

    async def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.member.kubectl, *arguments, check=check, stdin=stdin)

    async def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        said = await self.kubectl("get", kind, name, "-n", namespace, "-o", "json", check=False)
        return dict(json.loads(said)) if said.startswith("{") else {}

    async def apply(self, work: Work) -> dict[str, tuple[str, str]]:
        problems = (await self.applier.apply(work)).problems
        return {name: (trouble.reason, trouble.message) for name, trouble in problems.items()}

    async def remove(self, uid: str) -> None:
        await eventually("the work is removed", lambda: self.applier.remove(uid))

    async def until_touched(self, uid: str) -> None:
        async def was() -> bool:
            return uid in self.touched

        await eventually("the change is noticed", was)

    def writes(self) -> list[dict[str, Any]]:
        """Every request of ours that wrote, as the server's audit log has it."""
        lines = self.member.audit_log.read_text(encoding="utf-8").splitlines()
        found = [json.loads(line) for line in lines if '"userAgent":"banyan"' in line]
        writing = ("create", "patch", "update", "delete")
        return [one for one in found if one["verb"] in writing and one["objectRef"]["resource"] != "selfsubjectaccessreviews"]


async def eventually(what: str, check: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not await check():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def bench(member: Member) -> AsyncIterator[Bench]:
    api = await Api.open(Access(kubeconfig=str(member.kubeconfig)))
    made = Bench(member, api)
    try:
        await made.applier.start()
        yield made
    finally:
        await made.applier.close()
        await api.close()


def manifest(version: str, kind: str, name: str, namespace: str = "", **rest: Any) -> dict[str, Any]:
    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": version, "kind": kind, "metadata": meta, **rest}


def config_map(name: str, namespace: str = "", **data: str) -> dict[str, Any]:
    return manifest("v1", "ConfigMap", name, namespace, data=data)


def of_manifests(*objects: dict[str, Any], name: str = "things") -> Component:
    return Component(name=name, replicas=1, revision="1", manifests=tuple(msgspec.json.encode(one) for one in objects))


def container(name: str = "web", **changes: Any) -> Component:
    return msgspec.structs.replace(Component(name=name, replicas=1, revision="r1", image="nowhere/web:1", port=8080), **changes)


def work(*components: Component, namespace: str = "default", uid: str = "", version: int = 1, **more: Any) -> Work:
    uid = uid or str(uuid.uuid4())
    return Work(uid=uid, name="app", namespace=namespace, origin="root", version=version, components=components, **more)


def test_an_unchanged_work_costs_no_write(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            mine = work(container(env={"A": "1"}, files=(contract.File(path="f", content=b"x"),)))
            assert await b.apply(mine) == {}
            name = names.object_name("app", "web", mine.uid)
            made = await b.get("deployment", name)
            assert made["metadata"]["labels"][names.PART_OF].startswith("applyset-")
            before = len(b.writes())
            assert before
            for _ in range(3):
                assert await b.apply(mine) == {}
            assert len(b.writes()) == before
            assert (await b.get("deployment", name))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
            # A controller that has just started knows nothing but what the member says.
            async with bench(control_plane) as again:
                assert again.applier.uids() >= {mine.uid}
                assert await again.apply(mine) == {}
                assert len(again.writes()) == before
            changed = msgspec.structs.replace(mine, components=(container(env={"A": "2"}, files=(contract.File(path="f", content=b"x"),)),))
            assert await b.apply(changed) == {}
            assert [one["objectRef"]["resource"] for one in b.writes()[before:]] == ["deployments"]
            await b.remove(mine.uid)
            assert await b.get("deployment", name) == {}
            assert mine.uid not in b.applier.uids()

    asyncio.run(run())
