"""Deliberate bugs that the families of further steps are to find, each with its family."""

from typing import Any

import msgspec

from cluster_controller.rollout import waves
from cluster_controller.rollout.keeping import Rolling
from tests.simulation.deliberate import mutant, put

# --- rollouts ---


@mutant("a wave is taken for well as soon as it was told", "rollouts")
def waves_do_not_wait() -> Any:
    return put(waves, "_done", lambda member, state: member.revision == state.current.revision)


@mutant("a rollout that is paused goes on", "rollouts")
def pauses_are_ignored() -> Any:
    original = waves.step

    def step(state: Any, watch: Any, rollout: Any, *more: Any, **named: Any) -> Any:
        return original(state, watch, msgspec.structs.replace(rollout, paused=False), *more, **named)

    return put(waves, "step", step)


@mutant("what never gets well is not taken back", "rollouts")
def nothing_is_rolled_back() -> Any:
    return put(Rolling, "_back", lambda self, tx, task, state: False)


@mutant("a version that failed goes to the next ones all the same", "rollouts")
def failures_do_not_stop() -> Any:
    original = waves._due

    def due(state: Any, rollout: Any, order: Any) -> Any:
        return original(msgspec.structs.replace(state, phase="Complete") if state.phase == "Failed" else state, rollout, order)

    return put(waves, "_due", due)
