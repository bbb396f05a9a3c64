"""Keep a Cluster object for this controller and for every cluster below it, and tell the parent of them.

Level-triggered like placement: events and links only mark clusters as dirty, `settle` writes what differs. The transition from
Ready to Unknown is written by whoever lost the link, for the child and for all that it holds below, in one commit
(ARCHITECTURE law 5); how long ago something was heard is computed when shown (`heard`), never stored.
"""

from collections.abc import Callable, Mapping, Sequence

import structlog

from cluster_controller.documents import Documents, encode, recall
from cluster_controller.events import Reason, record, record_status
from cluster_controller.events import cluster as cluster_event
from cluster_controller.reports import Reporter
from cluster_controller.resources import kinds
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Key, Store, Stored, Tx
from cluster_controller.tree import records
from cluster_controller.tree.known import Heard, Known
from cluster_controller.tree.listing import DECIDED, alias
from cluster_controller.tree.merge import Merged, merge, users_of
from cluster_controller.tree.overlays import Overlays

log = structlog.get_logger()
OURS = frozenset({"Ready", "Conflict", "NameConflict"})  # condition types that this room writes


class Census:
    """The clusters of this controller's subtree.

    ``links``: for each direct child in reach, and each stray, the boot-time clock at which it was last heard. A *stray* is a descendant
    whose home is out of reach and whose words come by way of an adopter, into ``stray/CHILD`` (`tree.away`): for what it reports it stands
    in the place of the child that cannot. ``adopter`` names who has taken this cluster itself in, "" when it is at home,
    ``carried`` by whom each of the others is that is heard by way of an adopter: known before its own word arrives.
    ``way``: by which direct child a cluster is reached, where several speak of it, as those do between which it was moved.
    ``facts`` is what this cluster says of itself now; ``timestamp`` the wall clock for people; ``path`` the uids of those above,
    from the root down to here.
    """

    heeds: tuple[str, ...] = ()  # `changed` is called for every kind: of some spaces each counts

    def __init__(
        self,
        store: Store,
        reporter: Reporter,
        *,
        uid: str,
        name: str,
        parent: Callable[[], tuple[str, str]],
        facts: Callable[[], kinds.ClusterFacts],
        links: Callable[[], Mapping[str, float]],
        now: Callable[[], float],
        timestamp: Callable[[], str],
        path: Callable[[], Sequence[str]] = tuple,
        adopter: Callable[[], str] = str,
        carried: Callable[[], Mapping[str, str]] = dict,
        way: Callable[[str], str | None] = lambda uid: None,
    ) -> None:
        self._store = store
        self._reporter = reporter
        self._uid = uid
        self._name = name
        self._parent = parent
        self._facts = facts
        self._links = links
        self._now = now
        self._timestamp = timestamp
        self._adopter = adopter
        self._carried = carried
        self._way = way
        self._started = now()
        self._documents = Documents(store.get)
        self._settler = Settler(store, self.settle, order=self._order)
        self._direct: dict[str, str] | None = None  # names of direct children by uid, until a Cluster changes
        self._via: dict[str, str] = {}  # cluster → the direct child, or the stray, that reports it
        self._strays: set[str] = set()
        self.users: Sequence[kinds.UserPoint] = ()  # whose distance from here is asked for (`cluster_controller.distance`)
        self.users_named: Callable[[], None] = lambda: None  # told when they are others
        self._written: dict[str, Stored] = {}  # cluster → its Cluster as this room wrote it last
        self._overlays = Overlays(uid, name, path, self._documents)
        self._lost: dict[str, float] = {}  # direct child → when it was last heard
        self._told: dict[str, float] = {}  # cluster → when we were told that it fell silent

    # --- what changed ---

    def load(self) -> None:
        for space in self._store.spaces():
            kind, _, child = space.partition("/")
            if kind in ("up", "stray"):
                if kind == "stray":
                    self._strays.add(child)
                for stored in self._store.list(space, "ClusterStatus"):
                    self._via[stored.key.name] = self._reporter_of(stored.key.name, child)
            elif space.startswith("down/"):
                self._settler.mark_all(self._overlays.load(self._store.list(space, "ClusterOverlay")))
        if self._strays:
            self._choose(list(self._via))
        for stored in self._store.list("own", "Cluster"):
            self._settler.mark(stored.uid)
        self._settler.mark(self._uid)

    def changed(self, events: Sequence[Event]) -> None:
        for event in events:
            space, kind = event.stored.key.space, event.stored.key.kind
            if kind == "ClusterStatus" and space.startswith(("up/", "stray/")):
                self._reported(event)
            elif kind == "Cluster" and space == "own":
                self._direct = None
                if event.stored is not self._written.get(event.stored.uid):  # what this room wrote is as it should be
                    self._settler.mark(event.stored.uid)
                if event.stored.uid == self._uid and self._named(event):
                    self._settler.mark_all(self._via)
                if event.previous is None or event.kind_of == "delete":
                    self._settler.mark(self._uid)  # how many children it has
            elif kind == "ClusterOverlay" and space == "desired":
                cluster = self._documents.read(event.stored, kinds.ClusterOverlay).spec.cluster
                self._settler.mark(cluster)
                if cluster == self._uid:
                    self._settler.mark_all(self._via)  # the users that are named for here are named for all below
            elif space == "conflict/desired" or (kind == "Work" and space == "local") or (kind == "Pod" and space == "observed"):
                self._settler.mark(self._uid)
            elif event.kind_of == "delete" and (
                (kind == "Work" and space.startswith("down/")) or (kind == "WorkStatus" and space.startswith("up/"))
            ):
                self._mark_below(space.partition("/")[2])  # what it has yet to withdraw

    def _named(self, event: Event) -> bool:
        """Does the own Cluster name other users than before?"""
        before = recall(event.previous.document, kinds.Cluster).spec.users if event.previous is not None else []
        return before != self._documents.read(event.stored, kinds.Cluster).spec.users

    def _reported(self, event: Event) -> None:
        uid, (kind, _, via) = event.stored.key.name, event.stored.key.space.partition("/")
        if kind == "stray":
            self._strays.add(via)
        if self._strays:
            self._choose([uid])
        elif event.kind_of == "put":
            self._via[uid] = self._reporter_of(uid, via)
        elif self._via.get(uid) == via:  # perhaps another child reports it too: it moved, and both said so in this order
            others = (space for space in self._store.spaces() if space.startswith("up/"))
            other = next((space for space in others if self._store.get(Key(space, "ClusterStatus", "", uid)) is not None), None)
            if other is not None:
                self._via[uid] = other.removeprefix("up/")
        self._settler.mark(uid)

    def _reporter_of(self, uid: str, via: str) -> str:
        """Whose word about a cluster counts: that of the child by which it is reached, if that says anything; else ``via``."""
        way = self._way(uid)
        return way if way and way != via and self._store.get(Key(f"up/{way}", "ClusterStatus", "", uid)) is not None else via

    def _choose(self, clusters: Sequence[str]) -> None:
        """Through whom each of these is known: that child by which it is reached, if it says anything; else a stray that is in reach, as
        its own home may speak of one that has left it since; else a child that is in reach, or was."""
        links = self._links()
        ways = [(kind, via) for kind, _, via in (space.partition("/") for space in self._store.spaces()) if kind in ("up", "stray")]
        ways.sort(key=lambda way: (way[1] not in links, way[0] != "stray"))
        self._strays = {via for kind, via in ways if kind == "stray"}
        for uid in clusters:
            found = [(kind, via) for kind, via in ways if self._store.get(Key(f"{kind}/{via}", "ClusterStatus", "", uid)) is not None]
            if found:
                via = found[0][1]
                self._via[uid] = self._reporter_of(uid, via) if via in links else via

    def _space(self, via: str) -> str:
        return f"stray/{via}" if via in self._strays else f"up/{via}"

    def link_changed(self, child: str, last_heard: float | None) -> None:
        """A link to a direct child came up (None) or was lost, and when it was last heard; likewise the words of a stray."""
        if last_heard is None:
            self._lost.pop(child, None)
        else:
            self._lost[child] = last_heard
        if self._strays:
            told = {stored.key.name for stored in self._store.list(self._space(child), "ClusterStatus")}
            self._choose([*told, *(uid for uid, via in self._via.items() if via == child)])
            self._settler.mark_all(told)
        self._mark_below(child)

    def self_changed(self) -> None:
        """What this cluster says of itself may have changed."""
        self._settler.mark(self._uid)

    def _mark_below(self, child: str) -> None:
        self._settler.mark(child)
        for uid, via in self._via.items():
            if via == child:
                self._settler.mark(uid)

    # --- what is shown ---

    def silent(self) -> dict[str, str]:
        """Direct children out of reach, with the broken hop in words."""
        if self._direct is None:
            documents = ((stored, self._documents.read(stored, kinds.Cluster)) for stored in self._store.list("own", "Cluster"))
            self._direct = {
                stored.uid: stored.key.name
                for stored, document in documents
                if stored.uid != self._uid and document.status.parent_uid == self._uid
            }
        links = self._links()
        return {uid: f"{self._name} → {name}" for uid, name in self._direct.items() if uid not in links}

    def silence(self, uid: str) -> float:
        """For how many seconds a direct child out of reach was not heard; since this start, when nobody can know how much longer."""
        return self._now() - self._lost.get(uid, self._started)

    def heard(self, uid: str) -> Heard | None:
        """How long ago this cluster was heard of; None for the own one and for one that nobody knows."""
        if uid == self._uid:
            return None
        stored = self._store.find("own", "Cluster", uid)
        if stored is None:
            return None
        now = self._now()
        via = self._via.get(uid, uid)
        links = self._links()
        if via not in links:
            hop = self.silent().get(via, "")
            if via in self._lost:
                return Heard(now - self._lost[via], broken_hop=hop)
            return Heard(now - self._started, at_least=True, broken_hop=hop)
        status = self._documents.read(stored, kinds.Cluster).status
        if status.phase == "Ready":
            return Heard(now - links[via])
        return Heard(now - self._told.get(uid, self._started), at_least=True, broken_hop=status.broken_hop)

    # --- settling ---

    async def run(self) -> None:
        await self._settler.run()

    def _order(self, uid: str) -> tuple[bool, bool, str]:
        """This cluster, then direct children, then what is below them: a path needs its parents."""
        return uid != self._uid, self._via.get(uid, uid) != uid, uid

    def settle(self, tx: Tx, uid: str) -> None:
        """Write the Cluster of ``uid``, what is said of it upwards, and what is laid over it downwards."""
        known = self._known(tx, uid)
        stored = tx.find("own", "Cluster", uid)
        if known is None:
            self._gone(tx, uid, stored)
            return
        own = self._documents.read(stored, kinds.Cluster) if stored is not None else None
        overlays = self._overlays.of(tx, uid, own)
        if uid == self._uid:
            before, self.users = self.users, users_of(overlays)
            if before != self.users:
                self.users_named()
        else:
            overlays = self._overlays.inherited(overlays, uid, self._here(tx))
        merged = merge(known.name, known.facts.labels, overlays)
        self._write_cluster(tx, known, stored, own, merged)
        self._write_report(tx, known)
        if known.via != self._uid and known.via not in self._strays:  # what was laid on its way home stays there
            self._overlays.write(tx, known.uid, known.via, overlays)

    def _here(self, tx: Tx) -> list[kinds.ClusterOverlaySpec]:
        """What is laid over this controller itself, for users that it names for all below."""
        stored = tx.find("own", "Cluster", self._uid)
        return self._overlays.of(tx, self._uid, self._documents.read(stored, kinds.Cluster) if stored is not None else None)

    def _known(self, tx: Tx, uid: str) -> Known | None:
        if uid == self._uid:
            parent, parent_name = self._parent()
            return Known(
                uid=uid,
                name=self._name,
                parent=parent,
                parent_name=parent_name,
                via=uid,
                facts=self._facts(),
                ready="True",
                children=self._children(tx, uid),
                withdrawing=[],
                adopted_by=self._adopter(),
            )
        via = self._via.get(uid, uid)
        report = tx.get(Key(self._space(via), "ClusterStatus", "", uid))
        silent = via not in self._links()
        if report is None:
            return self._unheard(tx, uid, silent)
        document = self._documents.read(report, kinds.ClusterStatus)
        status = document.status
        child = uid == via and via not in self._strays
        adopted_by = status.adopted_by or self._carried().get(uid, "")
        return Known(
            uid=uid,
            name=document.spec.name,
            parent=self._uid if child else document.spec.parent,
            parent_name=self._name if child else document.spec.parent_name,
            via=via,
            facts=status.facts,
            ready="Unknown" if silent else status.ready,
            reason=Reason.LOST.value if silent else status.reason,
            broken_hop=self._hop(tx, via) if silent else status.broken_hop,
            since=status.since,
            children=status.children,
            withdrawing=self._withdrawing(tx, uid, via) if silent and via not in self._strays else status.withdrawing,
            adopted_by="" if silent else adopted_by,
            relayed=None if silent or adopted_by != status.adopted_by else report,
        )

    def _unheard(self, tx: Tx, uid: str, silent: bool) -> Known | None:
        """A direct child that joined and has not said anything yet."""
        stored = tx.find("own", "Cluster", uid)
        if stored is None:
            return None
        document = self._documents.read(stored, kinds.Cluster)
        if document.status.parent_uid != self._uid:
            return None
        return Known(
            uid=uid,
            name=stored.key.name,
            parent=self._uid,
            parent_name=self._name,
            via=uid,
            facts=document.status.facts,
            ready="Unknown",
            reason=Reason.LOST.value if silent else Reason.NEVER_REPORTED.value,
            broken_hop=self._hop(tx, uid) if silent else "",
            withdrawing=[],
        )

    def _hop(self, tx: Tx, child: str) -> str:
        stored = tx.find("own", "Cluster", child)
        return f"{self._name} → {stored.key.name if stored is not None else child}"

    def _withdrawing(self, tx: Tx, uid: str, via: str) -> list[str]:
        """Applications that were taken back while the cluster was out of reach: it may still run them."""
        names = []
        for stored in tx.list(f"up/{via}", "WorkStatus"):
            if tx.get(Key(f"down/{via}", "Work", "", stored.key.name)) is not None:
                continue
            document = self._documents.read(stored, kinds.WorkStatus)
            if any(row.cluster == uid for row in document.status.clusters):
                names.append(f"{document.spec.application.namespace}/{document.spec.application.name}")
        return sorted(names)

    def _children(self, tx: Tx, uid: str) -> int:
        return sum(1 for stored in tx.list("own", "Cluster") if self._documents.read(stored, kinds.Cluster).status.parent_uid == uid)

    def _gone(self, tx: Tx, uid: str, stored: Stored | None) -> None:
        """No longer reported: removed by its parent. A direct child goes only by `banyan cluster remove`."""
        for remembered in (self._via, self._told, self._lost, self._written):
            remembered.pop(uid, None)
        self._overlays.remove(tx, uid)
        if stored is not None and self._documents.read(stored, kinds.Cluster).status.parent_uid != self._uid:
            tx.delete(stored.key)
        tx.delete(Key("report", "ClusterStatus", "", uid))

    def _write_cluster(self, tx: Tx, known: Known, stored: Stored | None, own: kinds.Cluster | None, merged: Merged) -> None:
        before = own.status if own is not None else kinds.ClusterState()
        name = stored.key.name if stored is not None else self._free_name(tx, known)
        phase = {"True": "Ready", "False": "NotReady", "Unknown": "Unknown"}[known.ready]
        if before.phase in DECIDED:
            phase = before.phase  # what a person or the membership decided stands until they end it
        if phase != before.phase:
            self._transition(tx, known, before.phase, phase)
        carried = known.adopted_by if known.ready == "True" else before.adopted_by  # of one that is silent, as it was last
        if carried != before.adopted_by:
            self._moved(tx, known, before.adopted_by)
        since = next((old.last_transition_time for old in before.conditions if old.type == "Ready" and old.status == known.ready), "")
        condition = kinds.Condition(
            type="Ready",
            status=known.ready,
            reason=known.reason or ("Heard" if known.ready == "True" else ""),
            message=f"{known.broken_hop} is cut" if known.broken_hop else "",
            last_transition_time=since or self._timestamp(),
        )
        status = kinds.ClusterState(
            uid=known.uid,
            parent=known.parent_name,
            parent_uid=known.parent,
            path=self._path(tx, known),
            phase=phase,
            broken_hop=known.broken_hop,
            adopted_by=carried,
            facts=known.facts,
            labels=merged.labels,
            taints=merged.taints,
            unschedulable=merged.unschedulable,
            sources=merged.sources,
            children=known.children,
            conditions=[
                condition,
                *self._conflict(known, before),
                *alias(name, known, before, self._timestamp()),
                *(item for item in before.conditions if item.type not in OURS),
            ],
            withdrawing=known.withdrawing,
            address=before.address,
            joined=before.joined,
        )
        if stored is not None and own is not None:
            if status != before:
                self._written[known.uid] = records.write_status(tx, stored, status)
            return
        document = kinds.Cluster(
            metadata=kinds.Metadata(name=name, uid=known.uid, creation_timestamp=self._timestamp(), generation=1), status=status
        )
        self._written[known.uid] = tx.put(Key("own", "Cluster", "", name), encode(document), uid=known.uid)

    def _conflict(self, known: Known, before: kinds.ClusterState) -> list[kinds.Condition]:
        """Shown for as long as objects wait for a person, at the cluster and at every ancestor."""
        if not known.facts.conflicts:
            return []
        message = f"{known.facts.conflicts} objects would be changed by a parent with another history (a restored backup?); they run on"
        condition = kinds.Condition(
            type="Conflict",
            status="True",
            reason="ForeignHistory",
            message=f"{message}; decide with `banyan cluster conflicts {known.name}`",
            last_transition_time=next(
                (item.last_transition_time for item in before.conditions if item.type == "Conflict"), self._timestamp()
            ),
        )
        return [condition]

    def _transition(self, tx: Tx, known: Known, before: str, after: str) -> None:
        """Say it in the log, and in an Event of the same commit."""
        about = kinds.ObjectReference(api_version=kinds.API_VERSION, kind="Cluster", name=known.name, uid=known.uid)
        if after == "Ready":
            self._told.pop(known.uid, None)
            log.info("cluster.ready", cluster=known.name, was=before or "new")
            message = f"{known.name} is Ready" + (f", it was {before}" if before else "")
            record(tx, about=about, reason=Reason.RETURNED, message=message, component="census", timestamp=self._timestamp())
            return
        self._told[known.uid] = self._now()
        log.warning("cluster.silent", cluster=known.name, phase=after, broken_hop=known.broken_hop, reason=known.reason)
        message = f"{known.broken_hop} is cut" if known.broken_hop else f"{known.name} is {after}"
        reason = known.reason or after
        record_status(tx, about=about, kind="Warning", reason=reason, message=message, component="census", timestamp=self._timestamp())

    def _moved(self, tx: Tx, known: Known, before: str) -> None:
        """Say who carries the words of a cluster now, in an Event."""
        home = known.parent_name or known.parent
        if known.adopted_by:
            reason, message = Reason.ADOPTED, f"{known.name} is carried by {known.adopted_by}, for it has lost its home parent {home}"
        else:
            reason, message = Reason.HOME, f"{known.name} is back at its home parent {home}; {before} has carried it"
        cluster_event(tx, known.name, known.uid, reason, message, component="census", timestamp=self._timestamp())

    def _free_name(self, tx: Tx, known: Known) -> str:
        """Its own name, or NAME.PARENT where another cluster of the subtree has that name (condition NameConflict there).

        Parents of equal names may stand in different branches: then the parent's uid tells them apart.
        """
        names = (known.name, f"{known.name}.{known.parent_name or known.parent}", f"{known.name}.{known.parent}")
        for name in names:
            taken = tx.get(Key("own", "Cluster", "", name))
            if taken is None or taken.uid == known.uid:
                return name
        return f"{known.name}.{known.uid}"

    def _path(self, tx: Tx, known: Known) -> list[str]:
        """Names from this controller's child down to the cluster; empty for the own one."""
        if known.uid == self._uid:
            return []
        path = [known.name]
        parent = known.parent
        for _ in range(64):
            if parent in {self._uid, ""}:
                return path[::-1]
            stored = tx.find("own", "Cluster", parent)
            if stored is None:
                return path[::-1]
            path.append(stored.key.name)
            parent = self._documents.read(stored, kinds.Cluster).status.parent_uid
        return path[::-1]

    def _write_report(self, tx: Tx, known: Known) -> None:
        key = Key("report", "ClusterStatus", "", known.uid)
        document = kinds.ClusterStatus(
            metadata=kinds.Metadata(name=known.uid, uid=known.uid),
            spec=kinds.ClusterStatusSpec(cluster=known.uid, name=known.name, parent=known.parent, parent_name=known.parent_name),
            status=kinds.ClusterStatusStatus(
                facts=known.facts,
                ready=known.ready,
                reason=known.reason,
                broken_hop=known.broken_hop,
                since=known.since,
                withdrawing=known.withdrawing,
                children=known.children,
                adopted_by=known.adopted_by,
            ),
        )
        self._reporter.put(tx, key, document, known.uid, relayed=known.relayed)
