"""Show an ancestor the Applications that were written below it: `SubtreeApplication`, read-only, named NAME.ORIGIN.

Each controller reports its own Applications, keeps what its children report as SubtreeApplications of its own, and passes it on.
Level-triggered like the other rooms of the tree: events mark, `run` writes what differs. What came through a child that fell silent
is shown as Unknown, with the broken hop and nothing counted as ready (ARCHITECTURE law 5), here and to those above.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from cluster_controller.documents import Documents, put_changed
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.resources.reasons import Reason
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Key, Store, Tx

KIND = "SubtreeApplication"


class Upward:
    """``silent`` names, per direct child out of reach, the broken hop; ``strays`` are descendants that are heard by way of adopters: they
    speak for their own while their home cannot (`tree.away`)."""

    heeds = ("Application", KIND, "Cluster")  # kinds of what `changed` is called for

    def __init__(
        self,
        store: Store,
        reporter: Reporter,
        *,
        uid: str,
        name: str,
        silent: Callable[[], Mapping[str, str]],
        timestamp: Callable[[], str],
        strays: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._store = store
        self._reporter = reporter
        self._silent = silent
        self._strays = strays
        self._timestamp = timestamp
        self._uid = uid
        self._name = name
        self._documents = Documents(store.get)
        self._settler = Settler(store, self.settle)
        self._holders: dict[str, str] = {}  # application → the space that speaks for it

    def load(self) -> None:
        for stored in self._store.list("own", "Application"):
            self._mark(stored.uid, "own")
        for space in self._store.spaces():
            if space.startswith("up/"):
                for stored in self._store.list(space, KIND):
                    self._mark(stored.key.name, space)
            elif space.startswith("stray/"):
                for stored in self._store.list(space, KIND):
                    self._stray(stored.key.name, space)
        for stored in [*self._store.list("report", KIND), *self._store.list("own", KIND)]:
            self._mark(stored.uid, self._holders.get(stored.uid, ""))

    def changed(self, events: Sequence[Event]) -> None:
        for event in events:
            space, kind = event.stored.key.space, event.stored.key.kind
            if kind == "Application" and space == "own":
                self._mark(event.stored.uid, "own")
            elif kind == KIND and space.startswith("stray/"):
                self._stray(event.stored.key.name, space)
            elif kind == KIND and space.startswith("up/") and not self._carried(self._holders.get(event.stored.key.name, "")):
                self._mark(event.stored.key.name, space if event.kind_of == "put" else self._holder(event.stored.key.name, space))
            elif kind == "Cluster" and space == "own":  # perhaps a link was lost or is back
                self.link_changed(event.stored.uid)

    def link_changed(self, child: str) -> None:
        """The link to a direct child came up or was lost: what it speaks for is looked at anew."""
        space = f"up/{child}"
        for stored in self._store.list(f"stray/{child}", KIND):
            self._stray(stored.key.name, f"stray/{child}")
        self._settler.mark_all(application for application, holder in self._holders.items() if holder == space)

    def _mark(self, application: str, space: str) -> None:
        self._holders[application] = space
        self._settler.mark(application)

    def _stray(self, application: str, space: str) -> None:
        """It speaks for its own as long as it is heard; then whoever its home is, or was."""
        heard = self._carried(space) and self._store.get(Key(space, KIND, "", application)) is not None
        self._mark(application, space if heard else self._others(application, space))

    def _carried(self, space: str) -> bool:
        """Is it the space of a stray that is heard?"""
        return space.startswith("stray/") and space.removeprefix("stray/") in self._strays()

    def _hop(self, space: str) -> str | None:
        """Which hop is cut between here and whoever speaks; None when they are heard."""
        kind, _, child = space.partition("/")
        if kind == "stray" and not self._carried(space):
            stored = self._store.find("own", "Cluster", child)
            return f"the way to {stored.key.name if stored is not None else child}"
        return self._silent().get(child)

    def _others(self, application: str, gone: str) -> str:
        spaces = (space for space in self._store.spaces() if space.startswith("up/"))
        return next((space for space in spaces if self._store.get(Key(space, KIND, "", application)) is not None), gone)

    def _holder(self, application: str, gone: str) -> str:
        """Who speaks for an application that ``gone`` no longer reports: perhaps another child does, when its origin moved."""
        if self._holders.get(application, gone) != gone:
            return self._holders[application]
        return self._others(application, gone)

    async def run(self) -> None:
        await self._settler.run()

    def settle(self, tx: Tx, application: str) -> None:
        space = self._holders.get(application, "")
        summary = self._own(application) if space == "own" else self._reported(tx, application, space)
        report = Key("report", KIND, "", application)
        if summary is None:
            self._holders.pop(application, None)
            tx.delete(report)
            there = tx.find("own", KIND, application)
            if there is not None:
                tx.delete(there.key)
            return
        relayed = tx.get(Key(space, KIND, "", application)) if self._hop(space) is None else None
        self._reporter.put(tx, report, summary, application, relayed=relayed)
        if space != "own":
            reference = summary.spec.application
            name = self._name_of(tx, reference)
            there = tx.find("own", KIND, application)
            if there is not None and there.key.name != name:
                tx.delete(there.key)
            shown = msgspec.structs.replace(
                summary,
                metadata=kinds.Metadata(
                    name=name, namespace=reference.namespace, uid=application, creation_timestamp=summary.metadata.creation_timestamp
                ),
            )
            put_changed(tx, Key("own", KIND, reference.namespace, name), shown, application)

    def _name_of(self, tx: Tx, reference: kinds.ApplicationReference) -> str:
        """NAME.ORIGIN; where another origin of that name has an application of that name, the origin's uid tells them apart."""
        name = f"{reference.name}.{reference.origin_name}"
        taken = tx.get(Key("own", KIND, reference.namespace, name))
        return name if taken is None or taken.uid == reference.uid else f"{reference.name}.{reference.origin}"

    def _own(self, application: str) -> kinds.SubtreeApplication | None:
        stored = self._store.find("own", "Application", application)
        if stored is None:
            return None
        document = self._documents.read(stored, kinds.Application)
        return kinds.SubtreeApplication(
            metadata=kinds.Metadata(name=application, uid=application, creation_timestamp=document.metadata.creation_timestamp),
            spec=kinds.SubtreeApplicationSpec(
                application=kinds.ApplicationReference(
                    uid=application,
                    name=document.metadata.name,
                    namespace=document.metadata.namespace,
                    origin=self._uid,
                    origin_name=self._name,
                    generation=document.metadata.generation,
                ),
                components=[_without_values(component) for component in document.spec.components],
                placement=document.spec.placement,
            ),
            status=msgspec.structs.replace(document.status, history=[]),
        )

    def _reported(self, tx: Tx, application: str, space: str) -> kinds.SubtreeApplication | None:
        stored = tx.get(Key(space, KIND, "", application)) if space else None
        if stored is None:
            return None
        summary = self._documents.read(stored, kinds.SubtreeApplication)
        hop = self._hop(space)
        if hop is None:
            return summary
        before = tx.get(Key("report", KIND, "", application))
        shown = self._documents.read(before, kinds.SubtreeApplication).status if before is not None else kinds.ApplicationStatus()
        since = next((item.last_transition_time for item in shown.conditions if item.type == "Ready" and item.status == "Unknown"), "")
        return msgspec.structs.replace(summary, status=stale(summary.status, hop, since or self._timestamp()))


def stale(status: kinds.ApplicationStatus, hop: str, since: str) -> kinds.ApplicationStatus:
    """The same, as it is known once ``hop`` is cut: what was wanted stands, nothing counts as ready. Pure."""
    message = f"out of reach: {hop} is cut"
    ready = kinds.Condition(type="Ready", status="Unknown", reason=Reason.UNREACHABLE.value, message=message, last_transition_time=since)
    return msgspec.structs.replace(
        status,
        phase="Unknown",
        ready=0,
        updated=0,
        components=[
            msgspec.structs.replace(item, ready=0, updated=0, confirmed=0, reason=Reason.UNREACHABLE.value, message=message)
            for item in status.components
        ],
        clusters=[msgspec.structs.replace(row, ready=0, reason=Reason.UNREACHABLE.value, message=message) for row in status.clusters],
        conditions=[*(item for item in status.conditions if item.type != "Ready"), ready],
    )


def _without_values(component: kinds.Component) -> kinds.Component:
    """An ancestor sees what runs, not with which settings."""
    return msgspec.structs.replace(component, env=[], env_from=[], files=[])
