"""What runs in the member, as far as anybody here asks: pods by application and by what keeps them, workloads, nodes, warnings.

Built from informers alone, on the loop, object by object; so it is as true as they are, and stays readable while the API server is
away (`health` says since when it is not to be taken for the present). Where only one kind cannot be read (a right that was taken away,
an API whose storage is broken), the rest is shown as it is: `hidden` names the kind for each application that it concerns. What pods do
not say of themselves is asked for beside (`hints`, `usage`).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import structlog
from msgspec import structs

from cluster_controller import clock
from cluster_controller.tasks import Tasks
from cluster_shim import contract
from cluster_shim.kubernetes import names, narrow, nodes, status
from cluster_shim.kubernetes.api import Api
from cluster_shim.kubernetes.hints import Hinter
from cluster_shim.kubernetes.informer import Change, Informer
from cluster_shim.kubernetes.status import Hints
from cluster_shim.kubernetes.usage import Usage, Used

WORKLOADS = {
    "Deployment": "/apis/apps/v1/deployments",
    "StatefulSet": "/apis/apps/v1/statefulsets",
    "DaemonSet": "/apis/apps/v1/daemonsets",
    "Job": "/apis/batch/v1/jobs",
}
log = structlog.get_logger()

UNREAD_SECONDS = 11.0  # that a kind fails until it counts as one that cannot be read
LOOK_SECONDS = 1.0  # between looks, at the beginning
Place = tuple[str, str, str]  # namespace, kind, name
Label = TypeVar("Label")
Entry = TypeVar("Entry")
Value = TypeVar("Value")


class _Filed(NamedTuple):
    """Where a pod is filed, whatever it says of itself by now."""

    pod: narrow.Pod
    uid: str  # of the application that its label names; ""
    place: Place | None  # what keeps it


class Picture:
    """``changed`` hears the uids of applications that look different now; ``nodes_changed`` that a node does. ``labels``: for all nodes."""

    def __init__(
        self, api: Api, changed: Callable[[Iterable[str]], None], nodes_changed: Callable[[], None], labels: Mapping[str, str]
    ) -> None:
        self._labels = labels
        self._changed = changed
        self._nodes_changed = nodes_changed
        self._tasks = Tasks("shim/kubernetes/picture")
        self.pods: Informer[narrow.Pod] = Informer(api, "/api/v1/pods", narrow.Pod)
        self.nodes: Informer[narrow.Node] = Informer(api, "/api/v1/nodes", narrow.Node)
        self._workload_informers: dict[str, Informer[narrow.Workload]] = {
            kind: Informer(api, path, narrow.Workload, selector=names.APPLICATION_UID) for kind, path in WORKLOADS.items()
        }
        self._unread: dict[str, str] = {}  # kinds that cannot be read, and why
        self.ledger = nodes.Ledger()
        self._hinter = Hinter(api, self._hinted)
        self._usage = Usage(api, self._node_names, self._is_ours, self._measured)
        self._filed: dict[str, _Filed] = {}  # pod uid →
        self._ours: dict[tuple[str, str], tuple[str, str]] = {}  # namespace and name of a pod → application uid, pod uid
        self._by_uid: dict[str, dict[str, narrow.Pod]] = {}  # application uid → pod uid → pod, by label
        self._by_place: dict[Place, dict[str, narrow.Pod]] = {}  # what keeps them → pod uid → pod
        self._workloads: dict[str, dict[Place, narrow.Workload]] = {}  # application uid →
        self._owner: dict[Place, str] = {}  # workload → application uid
        self.pods.subscribe(self._pods)
        self.nodes.subscribe(lambda changes: nodes_changed())
        for kind, informer in self._workload_informers.items():
            informer.subscribe(lambda changes, kind=kind: self._take_workloads(kind, changes))  # type: ignore[misc]

    def start(self) -> None:
        for informer in self.informers():
            self._tasks.keep(informer.path, informer.run)
        self._tasks.keep("usage", self._usage.run)

    async def close(self) -> None:
        await self._hinter.close()
        await self._tasks.close()

    def informers(self) -> Iterator[Informer]:  # type: ignore[type-arg]
        yield self.pods
        yield self.nodes
        yield from self._workload_informers.values()

    async def synced(self) -> None:
        """Until everything has been listed once, but for kinds of workloads that cannot be."""
        await asyncio.gather(self.pods.synced.wait(), self.nodes.synced.wait())
        for kind, informer in self._workload_informers.items():
            while not informer.synced.is_set() and (self.look() or kind not in self._unread):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await informer.synced.wait()

    def failing(self) -> str:
        """Why nothing of what is watched is up to date; "" while anything is."""
        errors = [one.error for one in self.informers() if one.failing_since is not None]
        return errors[0] if len(errors) == 2 + len(self._workload_informers) else ""

    def look(self) -> bool:
        """Whether other kinds than before cannot be read. To be asked every few seconds."""
        late = clock.boottime() - UNREAD_SECONDS
        named: dict[str, Informer] = {"Pod": self.pods, "Node": self.nodes, **self._workload_informers}  # type: ignore[type-arg]
        found = {kind: one.error for kind, one in named.items() if one.failing_since is not None and one.failing_since <= late}
        for kind in found.keys() - self._unread.keys():
            log.warning("member.kind_unread", kind=kind, reason=found[kind])
        was, self._unread = self._unread, found
        return was != found

    def hidden(self, uid: str) -> tuple[str, str] | None:
        """The kind that an application is made of and that cannot be read, and why; of one of which nothing is seen, any may be it."""
        kinds = {kind for _, kind, _ in self._workloads.get(uid, {})} or set(self._workload_informers)
        return next(((kind, why) for kind, why in self._unread.items() if kind == "Pod" or kind in kinds), None)

    @property
    def nodes_hidden(self) -> bool:
        """Nodes cannot be read: what they were is not the present."""
        return "Node" in self._unread

    def hurry(self) -> None:
        """The API server answers again."""
        for informer in self.informers():
            informer.hurry()

    # --- what is there ---

    def uids(self) -> set[str]:
        """Applications of which something runs or is to run."""
        return {*self._by_uid, *self._workloads}

    def workloads_of(self, uid: str) -> dict[str, list[narrow.Workload]]:
        """By component."""
        found: dict[str, list[narrow.Workload]] = {}
        for workload in self._workloads.get(uid, {}).values():
            found.setdefault(workload.metadata.labels.get(names.COMPONENT_LABEL, ""), []).append(workload)
        return found

    def pods_of(self, uid: str) -> dict[str, dict[str, tuple[narrow.Pod, bool]]]:
        """By component and uid: those that say whose they are (True), and those that a workload of the application keeps."""
        found: dict[str, dict[str, tuple[narrow.Pod, bool]]] = {}
        for place, workload in self._workloads.get(uid, {}).items():
            component = workload.metadata.labels.get(names.COMPONENT_LABEL, "")
            for pod in self._by_place.get(place, {}).values():
                found.setdefault(component, {})[pod.metadata.uid] = pod, False
        for pod in self._by_uid.get(uid, {}).values():
            component = pod.metadata.labels.get(names.COMPONENT_LABEL, "")
            found.setdefault(component, {})[pod.metadata.uid] = pod, True
        return found

    def find(self, uid: str, component: str = "", instance: str = "") -> list[tuple[str, narrow.Pod]]:
        """Component and pod, of one application, or by the pod's name alone where it is one of ours; empty strings: any."""
        if not uid:
            uid = next((owner for (_, name), (owner, _) in self._ours.items() if name == instance), "")
        return [
            (name, pod)
            for name, pods in self.pods_of(uid).items()
            for pod, _ in pods.values()
            if (not component or name == component) and (not instance or pod.metadata.name == instance)
        ]

    def node_list(self) -> tuple[contract.Node, ...]:
        return nodes.observe_all(self.nodes.items.values(), self._usage.now.nodes, self.ledger.of, self._labels)

    def hints(self, uid: str, pod: narrow.Pod) -> Hints:
        return self._hinter.of(pod, uid)

    def used(self, pod: narrow.Pod) -> Used:
        return self._usage.now.pods.get((pod.metadata.namespace, pod.metadata.name), (-1, -1))

    def _node_names(self) -> Iterable[str]:
        return (node.metadata.name for node in self.nodes.items.values() if nodes.is_ready(node))

    def _is_ours(self, namespace: str, pod: str) -> bool:
        return (namespace, pod) in self._ours

    # --- changes ---

    def _pods(self, changes: list[Change[narrow.Pod]]) -> None:
        touched: set[str] = set()
        room = False
        for change in changes:
            pod = change.object
            if change.kind == "put":
                room |= self.ledger.put(pod)
            else:
                room |= self.ledger.drop(pod.metadata.uid)
            touched |= self._take_out(pod.metadata.uid)
            if change.kind == "put":
                touched |= self._put_in(pod)
            else:
                self._hinter.drop(pod.metadata.uid)
        if touched:
            self._changed(touched)
        if room:
            self._nodes_changed()

    def _put_in(self, pod: narrow.Pod) -> set[str]:
        """Whose it is."""
        meta, place = pod.metadata, status.workload_of(pod)
        uid = meta.labels.get(names.APPLICATION_UID, "")
        if uid:
            self._by_uid.setdefault(uid, {})[meta.uid] = pod
        if place is not None:
            self._by_place.setdefault(place, {})[meta.uid] = pod
        if uid or place is not None:
            self._filed[meta.uid] = _Filed(pod, uid, place)
        owner = uid or (self._owner.get(place, "") if place is not None else "")
        if not owner:
            return set()
        self._ours[meta.namespace, meta.name] = owner, meta.uid
        return {owner}

    def _take_out(self, pod_uid: str) -> set[str]:
        """Whose it was: by what was filed, for a pod that another application has by now says nothing of the one before."""
        filed = self._filed.pop(pod_uid, None)
        if filed is None:
            return set()
        _drop(self._by_uid, filed.uid, pod_uid)
        if filed.place is not None:
            _drop(self._by_place, filed.place, pod_uid)
        where = filed.pod.metadata.namespace, filed.pod.metadata.name
        owner, known = self._ours.get(where, ("", ""))
        if known != pod_uid:
            return set()
        del self._ours[where]
        return {owner}

    def _hinted(self, owner: str) -> None:
        self._changed((owner,))

    def _measured(self) -> None:
        self._changed({owner for owner, _ in self._ours.values()})
        self._nodes_changed()

    def _take_workloads(self, kind: str, changes: list[Change[narrow.Workload]]) -> None:
        touched: set[str] = set()
        for change in changes:
            workload = structs.replace(change.object, kind=kind)
            meta = workload.metadata
            place = meta.namespace, kind, meta.name
            before = self._owner.get(place, "")
            known = self._workloads.get(before, {}).get(place)
            if change.kind == "delete" and (known is None or known.metadata.uid != meta.uid):
                continue  # one that has been made anew under its name is not gone
            owner = meta.labels.get(names.APPLICATION_UID, "") if change.kind == "put" else ""
            touched |= {uid for uid in (before, owner) if uid}
            if before != owner:
                _drop(self._workloads, before, place)
                self._owner.pop(place, None)
            if owner:
                self._workloads.setdefault(owner, {})[place] = workload
                self._owner[place] = owner
            if before != owner:
                for pod in list(self._by_place.get(place, {}).values()):
                    touched |= self._take_out(pod.metadata.uid) | self._put_in(pod)
        if touched:
            self._changed(touched)


def _drop(index: dict[Label, dict[Entry, Value]], label: Label, entry: Entry) -> None:
    """Out of an index; no empty entries stay."""
    entries = index.get(label, {})
    entries.pop(entry, None)
    if not entries:
        index.pop(label, None)
