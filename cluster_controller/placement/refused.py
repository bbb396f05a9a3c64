"""What targets said that they could not place, remembered until something changes there."""

from cluster_controller.resources import kinds


class Refused:
    """Who said of which component that it found no place for all of it, and why; until something changes there.

    Without it a share would go back and forth between targets that only look as if they had room. Kept in memory: after a restart
    each is asked once more.
    """

    def __init__(self) -> None:
        self._why: dict[str, tuple[int, dict[tuple[str, str], str]]] = {}  # application → (generation, (target, component) → why)

    def answer(self, application: kinds.ApplicationReference, target: str, component: str, part: kinds.ComponentStatus | None) -> None:
        """``part`` answers the newest share of a target that was given any; None: there is no such answer."""
        generation, why = self._why.get(application.uid, (application.generation, {}))
        if generation != application.generation:
            why = {}
        if part is not None and part.unplaced:
            why[target, component] = part.message or "has no place for it"
        elif part is not None:
            why.pop((target, component), None)
        if why:
            self._why[application.uid] = application.generation, why
        else:
            self._why.pop(application.uid, None)

    def why(self, application: kinds.ApplicationReference, target: str, component: str) -> str:
        return self._why.get(application.uid, (0, {}))[1].get((target, component), "")

    def of(self, application: str, component: str) -> list[tuple[str, str]]:
        """Targets with their reasons."""
        return sorted((target, why) for (target, name), why in self._why.get(application, (0, {}))[1].items() if name == component)

    def forget(self, target: str) -> None:
        """Something changed there: it may be asked again."""
        for application, (_, why) in list(self._why.items()):
            for key in [key for key in why if key[0] == target]:
                del why[key]
            if not why:
                del self._why[application]

    def drop(self, application: str) -> None:
        self._why.pop(application, None)
