"""What targets said that they could not place, remembered until something changes there."""

from typing import NamedTuple

from cluster_controller.resources import kinds


class _Word(NamedTuple):
    placed: int  # replicas that it had a place for
    why: str


_NOTHING: tuple[int, dict[tuple[str, str], _Word]] = (0, {})


class Refused:
    """Who said of which component that it found no place for all of it, and why; until something changes there.

    Without it a share would go back and forth between targets that only look as if they had room. Kept in memory: after a restart
    each is asked once more.
    """

    def __init__(self) -> None:
        self._why: dict[str, tuple[int, dict[tuple[str, str], _Word]]] = {}  # application → (generation, (target, component) → word)

    def answer(
        self, application: kinds.ApplicationReference, target: str, component: str, part: kinds.ComponentStatus | None, share: int
    ) -> None:
        """``part`` answers the newest share, of ``share`` replicas, of a target that was given any; None: there is no such answer.

        That it has room for fewer takes nothing back: else two full targets would hand one replica to each other for ever.
        """
        generation, why = self._why.get(application.uid, (application.generation, {}))
        if generation != application.generation:
            why = {}
        if part is not None and part.unplaced:
            why[target, component] = _Word(share - min(share, part.unplaced), part.message or "has no place for it")
        elif part is not None and (target, component) in why and share > why[target, component].placed:
            del why[target, component]
        if why:
            self._why[application.uid] = application.generation, why
        else:
            self._why.pop(application.uid, None)

    def why(self, application: kinds.ApplicationReference, target: str, component: str) -> str:
        word = self._why.get(application.uid, _NOTHING)[1].get((target, component))
        return word.why if word is not None else ""

    def of(self, application: str, component: str) -> list[tuple[str, str]]:
        """Targets with their reasons."""
        words = self._why.get(application, _NOTHING)[1].items()
        return sorted((target, word.why) for (target, name), word in words if name == component)

    def forget(self, target: str) -> None:
        """Something changed there: it may be asked again."""
        for application, (_, why) in list(self._why.items()):
            for key in [key for key in why if key[0] == target]:
                del why[key]
            if not why:
                del self._why[application]

    def drop(self, application: str) -> None:
        self._why.pop(application, None)
