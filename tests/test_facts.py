"""What a cluster says of itself: sums over nodes and Works, from committed state."""

import asyncio
from pathlib import Path

from cluster_controller.documents import encode
from cluster_controller.facts import Requested, cluster_facts
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_shim.contract import Description, Node


def node(name: str, **changes: object) -> Node:
    fields: dict[str, object] = {
        "name": name, "architecture": "amd64", "cpu_millis": 4000, "memory_bytes": 1 << 30, "allocatable_cpu_millis": 3000,
        "allocatable_memory_bytes": 1 << 29, "accelerators": {"gpu": 2},
    }  # fmt: skip
    return Node(**(fields | changes))  # type: ignore[arg-type]


def facts(store: Store, *nodes: Node, description: Description | None = None) -> kinds.ClusterFacts:
    return cluster_facts(
        store, Requested(store), nodes=nodes, description=description, version="1.2", labels={"tier": "edge"}, can_parent=True
    )


def work(uid: str, *components: kinds.Component) -> tuple[Key, bytes]:
    spec = kinds.WorkSpec(application=kinds.ApplicationReference(uid=uid, name=uid), cluster="me", components=list(components))
    return Key("local", "Work", "", uid), encode(kinds.Work(spec=spec))


def component(name: str, replicas: int, **resources: object) -> kinds.Component:
    return kinds.Component(name=name, command=["x"], replicas=replicas, resources=kinds.Resources(**resources))  # type: ignore[arg-type]


def test_free_is_what_is_allocatable_minus_what_was_promised(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        for key, document in (
            work("a", component("x", 2, cpu="250m", memory="64Mi", accelerators={"gpu": 1}), component("y", 0, cpu="9")),
            work("b", component("x", 1, cpu="1"), component("z", 3)),
        ):
            await store.commit(lambda tx, key=key, document=document: tx.put(key, document, uid=key.name))  # type: ignore[misc]
        await store.commit(lambda tx: tx.put(Key("observed", "Pod", "shop", "p"), b"{}", uid="p"))
        found = facts(store, node("box"), description=Description(kind="process", version="1"))
        assert found.requested == kinds.ResourceSums(cpu_millis=1500, memory_bytes=128 << 20, accelerators={"gpu": 2})
        (only,) = found.node_classes
        assert only.free == kinds.ResourceSums(cpu_millis=1500, memory_bytes=(512 - 128) << 20, accelerators={"gpu": 0})
        assert (found.applications, found.instances, found.conflicts) == (2, 1, 0)
        assert (found.shim, found.component_kinds, found.version, found.labels) == (
            "process",
            ["model", "command"],
            "1.2",
            {"tier": "edge"},
        )
        await store.close()

    asyncio.run(main())


def test_nodes_are_summed_and_counted(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        found = facts(store, node("a"), node("b", architecture="arm64", ready=False, accelerators={"npu": 1}))
        assert (found.nodes, found.nodes_ready, found.architectures) == (2, 1, ["amd64", "arm64"])
        assert found.capacity == kinds.ResourceSums(cpu_millis=8000, memory_bytes=2 << 30, accelerators={"gpu": 2, "npu": 1})
        assert found.allocatable.accelerators == {"gpu": 2, "npu": 1}
        nothing = facts(store)
        assert (nothing.shim, nothing.nodes, nothing.node_classes, nothing.component_kinds) == ("", 0, [], [])
        await store.close()

    asyncio.run(main())


def test_why_the_shim_is_lost_is_said_and_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        found = cluster_facts(
            store, Requested(store), nodes=(), description=None, version="1", labels={}, can_parent=False, shim_trouble="x" * 5000
        )
        assert found.shim_trouble == "x" * 1000
        await store.close()

    asyncio.run(main())
