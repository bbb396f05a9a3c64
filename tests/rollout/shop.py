"""A shop on a tree of a root, a region and three edges: what the tests of rollouts put there, and look at."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from cluster_controller.resources import kinds
from cluster_controller.resources.registry import ROLLOUT_RESUME
from cluster_controller.store import Key, Tx
from tests.placement.tree import Site, Tree, application, component

EDGES = ("edge-1", "edge-2", "edge-3")


async def grow(folder: Path) -> Tree:
    """root – region – three edges."""
    tree = Tree(folder)
    await tree.add("root")
    await tree.add("region", "root")
    for name in EDGES:
        await tree.add(name, "region", 1000, {"canary": "true"} if name == "edge-3" else {})
    await tree.quiet()
    return tree


def played(main: Callable[[Tree], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        tree = await grow(folder)
        try:
            await main(tree)
        finally:
            await tree.close()

    asyncio.run(whole())


async def put(site: Site, program: str, rollout: dict[str, Any] | None = None, *, name: str = "shop", **more: Any) -> None:
    """Create or change, as the API does."""

    def change(tx: Tx) -> None:
        key = Key("own", "Application", "default", name)
        stored = tx.get(key)
        document = msgspec.json.decode(stored.document) if stored is not None else {}
        spec: dict[str, Any] = {"components": [component(command=[program], replicas=3)], **more}
        if rollout is not None:
            spec["rollout"] = rollout
        meta = document.get("metadata") or {
            "name": name,
            "namespace": "default",
            "uid": f"app-{name}",
            "finalizers": ["banyan.dev/withdraw"],
        }
        meta["generation"] = meta.get("generation", 0) + 1
        document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Application", "status": {}} | document | {"metadata": meta, "spec": spec}
        tx.put(key, msgspec.json.encode(document), uid=meta["uid"])

    await site.store.commit(change)


async def resume(site: Site, token: str) -> None:
    def annotate(tx: Tx) -> None:
        key = Key("own", "Application", "default", "shop")
        stored = tx.get(key)
        assert stored is not None
        document = msgspec.json.decode(stored.document)
        document["metadata"]["annotations"] = {ROLLOUT_RESUME: token}
        tx.put(key, msgspec.json.encode(document), uid=stored.uid)

    await site.store.commit(annotate)


def runs(tree: Tree) -> list[str]:
    """What each edge was told to run."""
    told = []
    for name in EDGES:
        stored = tree.sites[name].store.get(Key("local", "Work", "", "app-shop"))
        work = msgspec.json.decode(stored.document, type=kinds.Work).spec if stored is not None else None
        told.append(",".join(each.command[0] for each in work.components if each.replicas) if work is not None else "")
    return told


def status(site: Site, name: str = "shop") -> kinds.ApplicationStatus:
    found = application(site, name)
    assert found is not None
    return found.status


def rollout(site: Site) -> kinds.RolloutStatus:
    found = status(site).rollout
    assert found is not None
    return found


def condition(site: Site, kind: str) -> kinds.Condition:
    return next(each for each in status(site).conditions if each.type == kind)


def reasons(site: Site) -> list[str]:
    return [msgspec.json.decode(stored.document)["reason"] for stored in site.store.list("own", "Event")]
