"""What people do in the simulated world: write, change and delete Applications at any controller, as its API would."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from cluster_controller import clock
from cluster_controller.errors import BanyanError
from cluster_controller.resources.registry import FINALIZER_WITHDRAW
from cluster_controller.store import Key, Tx
from tests.simulation.world import Place

NAMESPACE = "default"


def key(name: str) -> Key:
    return Key("own", "Application", NAMESPACE, name)


async def create(place: Place, name: str, spec: dict[str, Any], made: Callable[[str], None] = lambda uid: None) -> str:
    """Returns the uid, once the origin has it on its disk; ``made`` is told it before."""
    assert place.controller is not None
    uid = str(uuid.uuid4())
    made(uid)
    document = {
        "apiVersion": "banyan.dev/v1alpha1",
        "kind": "Application",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "uid": uid, "generation": 1,
            "creationTimestamp": clock.timestamp(), "finalizers": [FINALIZER_WITHDRAW],
        },
        "spec": spec,
    }  # fmt: skip
    await place.controller.store.commit(lambda tx: tx.put(key(name), msgspec.json.encode(document), uid=uid))
    return uid


async def change(place: Place, name: str, spec: dict[str, Any]) -> None:
    assert place.controller is not None

    def work(tx: Tx) -> None:
        stored = tx.get(key(name))
        if stored is None:
            return
        document = msgspec.json.decode(stored.document)
        if document["spec"] == spec or document["metadata"].get("deletionTimestamp"):
            return
        document["spec"] = spec
        document["metadata"]["generation"] += 1
        tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    await place.controller.store.commit(work)


async def delete(place: Place, name: str) -> None:
    assert place.controller is not None

    def work(tx: Tx) -> None:
        stored = tx.get(key(name))
        if stored is None:
            return
        document = msgspec.json.decode(stored.document)
        if not document["metadata"].get("deletionTimestamp"):
            document["metadata"]["deletionTimestamp"] = clock.timestamp()
            document["metadata"]["generation"] += 1
            tx.put(stored.key, msgspec.json.encode(document), uid=stored.uid)

    await place.controller.store.commit(work)


async def quietly(function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """A write that the disk refuses is an answer to a person, who looks later what has become of it."""
    try:
        await function(*args)
    except BanyanError:
        return


def spec(replicas: int, *, command: str = "serve", strategy: str = "Divided", selector: dict[str, str] | None = None,
         on_unreachable: dict[str, Any] | None = None, cpu: str = "") -> dict[str, Any]:  # fmt: skip
    placement: dict[str, Any] = {"strategy": strategy, "onUnreachable": on_unreachable or {"action": "Keep"}}
    if selector:
        placement["clusterSelector"] = {"matchLabels": selector}
    component: dict[str, Any] = {"name": "main", "command": [command], "replicas": replicas}
    if cpu:
        component["resources"] = {"cpu": cpu}
    return {"components": [component], "placement": placement}
