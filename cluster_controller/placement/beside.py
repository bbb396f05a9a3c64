"""Applications that want to be beside others, or away from them: who they are, and where those run.

They are named as in the Application, so of the same origin and namespace; every level finds them among what it places itself. Where one
runs is what its targets reported last, and what they were given and have not reported: of a target with many clusters, the worst 20
rows. Whoever names an application is placed again when that one is reported.

Keeping apart holds both ways, as in Kubernetes: what comes later does not land beside one that stays away from it.
"""

from collections.abc import Iterable

from cluster_controller.placement.model import Neighbour
from cluster_controller.placement.works import Reader, Works
from cluster_controller.resources import kinds

Name = tuple[str, str, str]  # origin, namespace, name


class Beside:
    """Which applications name which, and where they are."""

    def __init__(self, works: Works) -> None:
        self._works = works
        self._uids: dict[Name, str] = {}
        self._names: dict[str, Name] = {}
        self._watched: dict[Name, set[str]] = {}  # name → applications that name it
        self._watches: dict[str, set[Name]] = {}  # and back
        self._avoiding: dict[Name, dict[str, list[kinds.ApplicationTerm]]] = {}  # name → applications that stay away from it, and how

    def learn(self, application: str, name: Name, placement: kinds.Placement | None) -> None:
        """``placement`` None: the application is gone."""
        for watched in self._watches.pop(application, ()):
            self._watched[watched].discard(application)
            if not self._watched[watched]:
                del self._watched[watched]
            if self._avoiding.get(watched, {}).pop(application, None) is not None and not self._avoiding[watched]:
                del self._avoiding[watched]
        self._uids.pop(self._names.pop(application, ("", "", "")), None)
        if placement is None:
            return
        self._uids[name] = application
        self._names[application] = name
        named = {(*name[:2], term.name) for term in (*placement.affinity.applications, *placement.anti_affinity.applications)}
        for watched in named:
            self._watched.setdefault(watched, set()).add(application)
        if named:
            self._watches[application] = named
        for term in placement.anti_affinity.applications:
            self._avoiding.setdefault((*name[:2], term.name), {}).setdefault(application, []).append(term)

    def gone(self, application: str) -> None:
        self.learn(application, ("", "", ""), None)

    def watchers(self, application: str) -> Iterable[str]:
        """Applications that name this one, and those from which it stays away: they may come where it was."""
        avoided = (self._uids.get(name, "") for name in self._watches.get(application, ()) if application in self._avoiding.get(name, ()))
        return {*self._watched.get(self._names.get(application, ("", "", "")), ()), *filter(None, avoided)}

    def neighbours(self, tx: Reader, application: str, placement: kinds.Placement, origin: bool) -> tuple[Neighbour, ...]:
        """Below the ``origin`` one that nobody here has runs elsewhere: whoever gave the share has seen to it that it is near."""
        name = self._names.get(application)
        if name is None:
            return ()
        terms = [(term, False) for term in placement.affinity.applications if origin or (*name[:2], term.name) in self._uids]
        terms += [(term, True) for term in placement.anti_affinity.applications]
        named = [
            Neighbour(
                name=term.name,
                where=self._where(tx, self._uids.get((*name[:2], term.name), "")),
                apart=apart,
                topology=term.topology_key,
                weight=term.weight,
            )
            for term, apart in terms
        ]
        avoiding = [
            Neighbour(
                name=self._names[other][2],
                where=self._where(tx, other),
                apart=True,
                topology=term.topology_key,
                weight=term.weight,
                theirs=True,
            )
            for other, kept in sorted(self._avoiding.get(name, {}).items())
            if other != application
            for term in kept
        ]
        return tuple(named + avoiding)

    def _where(self, tx: Reader, application: str) -> frozenset[str]:
        found: set[str] = set()
        for target in self._works.targets(application):
            work, status = self._works.get(tx, target, application), self._works.status(tx, target, application)
            rows = {row.cluster for row in status.clusters if any(row.components.values())} if status is not None else set()
            if not rows and work is not None and any(component.replicas for component in work.components):
                rows = {target}
            found |= rows
        return frozenset(found)
