"""What is done to a controller in the course of its life, as subresources of its own Cluster: `clusters/NAME/rotate`.

Each is answered by the controller that NAME is, and by no other: a person reaches it with `banyan --at NAME`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from cluster_controller.drill import Drill, Report
from cluster_controller.errors import Forbidden, InvalidInput, NotFound
from cluster_controller.resources.kinds import API_VERSION
from cluster_controller.rotation import Rotation, State
from cluster_controller.store import Store
from openapi.services import Ask


def require_self(store: Store, uid: str, ask: Ask) -> None:
    """Forbidden when the request names another cluster than this controller's own."""
    stored = store.find("own", "Cluster", uid)
    if stored is None or stored.key.name != ask.name:
        raise Forbidden(f"{ask.subresource} of {ask.name} is answered at {ask.name}: banyan --at {ask.name} …")


class RotateHook:
    def __init__(self, rotation: Rotation, store: Store, uid: str) -> None:
        self._rotation = rotation
        self._store = store
        self._uid = uid

    async def answer(self, ask: Ask) -> Mapping[str, Any]:
        """GET: how far a rotation is. POST {what: tree-key | finish | issuing, force}."""
        require_self(self._store, self._uid, ask)
        if ask.method == "GET":
            return _shown(self._rotation.state())
        if ask.dry_run:
            raise InvalidInput("a rotation cannot be tried without doing it; GET says what is there", "dryRun")
        match ask.body.get("what"):
            case "tree-key":
                return _shown(await self._rotation.begin())
            case "finish":
                return _shown(await self._rotation.finish(force=ask.body.get("force") is True))
            case "issuing":
                return {"kind": "Renewed", "apiVersion": API_VERSION, "name": ask.name, "until": await self._rotation.issuing()}
        raise InvalidInput("what is tree-key, finish or issuing", "what")


class DrillHook:
    def __init__(self, drill: Drill, store: Store, uid: str) -> None:
        self._drill = drill
        self._store = store
        self._uid = uid

    async def answer(self, ask: Ask) -> Mapping[str, Any]:
        """GET: the last drill. POST {fault: cut | restart | kill | freeze, seconds, target: NAMESPACE/APPLICATION[/COMPONENT]}."""
        require_self(self._store, self._uid, ask)
        if ask.method == "GET":
            last = self._drill.last()
            if last is None:
                raise NotFound(f"{ask.name} has never had a drill; begin one with `banyan drill cut {ask.name}`")
            return _report(last)
        if ask.dry_run:
            raise InvalidInput("a drill cannot be tried without doing it", "dryRun")
        seconds = ask.body.get("seconds", 30)
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            raise InvalidInput("seconds is a number", "seconds")
        fault, target = str(ask.body.get("fault", "")), str(ask.body.get("target", ""))
        return _report(await self._drill.begin(fault, float(seconds), ask.user.name, target))


def _report(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(report)
    return {"kind": "Drill", "apiVersion": API_VERSION, **found}


def _shown(state: State) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(state)
    return {"kind": "Rotation", "apiVersion": API_VERSION, **found}
