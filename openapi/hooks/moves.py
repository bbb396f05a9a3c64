"""A cluster is given another parent: `clusters/NAME/move`, answered by the nearest controller above both parents."""

from collections.abc import Mapping
from typing import Any

from cluster_controller.errors import Conflict, InvalidInput
from cluster_controller.moves.driver import Driver, Planned
from cluster_controller.moves.state import Move
from cluster_controller.resources.kinds import API_VERSION
from openapi.services import Ask


class MoveHook:
    def __init__(self, moves: Driver) -> None:
        self._moves = moves

    async def answer(self, ask: Ask) -> Mapping[str, Any]:
        """GET: the move that is under way, or the last one. POST {parent}, dryRun for the plan alone; POST {callOff: true}."""
        if ask.method == "GET":
            return _shown(self._moves.last(ask.name))
        if ask.body.get("callOff") is True:
            if ask.dry_run:
                raise InvalidInput("calling off cannot be tried without doing it; GET says how far the move is", "dryRun")
            return _shown(await self._moves.call_off(ask.name, ask.user.name))
        parent = ask.body.get("parent")
        if not isinstance(parent, str) or not parent:
            raise InvalidInput("parent is the name of the controller that shall be the new parent", "parent")
        planned = await self._moves.rehearse(ask.name, parent)
        if ask.dry_run:
            return _plan(planned)
        if planned.troubles:
            raise Conflict(f"{ask.name} cannot be moved to {parent}: {'; '.join(planned.troubles)}")
        return _shown(await self._moves.begin(ask.name, parent, ask.user.name))


def _shown(move: Move) -> dict[str, Any]:
    return {
        "kind": "Move",
        "apiVersion": API_VERSION,
        "id": move.id,
        "cluster": move.name,
        "uid": move.cluster,
        "from": move.old_name,
        "to": move.parent_name,
        "phase": move.phase.value,
        "active": move.active,
        "reason": move.reason,
        "by": move.by,
        "began": move.began,
        "ended": move.ended,
    }


def _plan(planned: Planned) -> dict[str, Any]:
    return {
        **_shown(planned.move),
        "kind": "MovePlan",
        "clusters": list(planned.clusters),
        "applications": list(planned.applications),
        "troubles": list(planned.troubles),
    }
