"""Which applications name which Models, ConfigMaps and Secrets: a change of one marks its users, and nobody else."""

from cluster_controller.store import Stored

Use = tuple[str, str, str]  # kind, namespace, name; below the origin kind, "", uid


class Uses:
    """Kept in memory; learnt anew after a start."""

    def __init__(self) -> None:
        self._uses: dict[str, frozenset[Use]] = {}  # application → documents that it names
        self._users: dict[Use, set[str]] = {}  # and back

    def learn(self, application: str, uses: frozenset[Use]) -> None:
        """These and no others are what it names."""
        before = self._uses.pop(application, frozenset())
        for use in before - uses:
            self._users[use].discard(application)
            if not self._users[use]:
                del self._users[use]
        for use in uses - before:
            self._users.setdefault(use, set()).add(application)
        if uses:
            self._uses[application] = uses

    def of(self, stored: Stored) -> set[str]:
        """Applications that a change of this document concerns."""
        namespace = stored.key.namespace if stored.key.space == "own" else ""
        users = set(self._users.get((stored.key.kind, namespace, stored.key.name), ()))
        if stored.key.kind == "Model" and stored.key.space == "desired":  # an own Application may name it NAME.ORIGIN
            for use, named in self._users.items():
                if use[0] == "Model" and "." in use[2]:
                    users |= named
        return users
