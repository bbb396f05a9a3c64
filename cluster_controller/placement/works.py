"""The Works that this controller gives to its children and its own cluster, and what it remembers of them.

Work for a child lives in ``down/CHILD``, for the own cluster in ``local``; what the child answers arrives in ``up/CHILD``, the
own cluster's answer in ``observed``. Each change of a Work gets a new share id from one counter of this controller; an answer
names the share id that it answers, so an acknowledgement can never be taken for that of another share. The number of each start
(`reports`) lifts the counter: a store that was restored from a backup gives no id again that its earlier life gave to another share.
"""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from cluster_controller import delivered
from cluster_controller.documents import Documents, encode
from cluster_controller.placement.allotment import Allotment, work_key
from cluster_controller.placement.model import Given
from cluster_controller.placement.transfer import Shifted, kept
from cluster_controller.reports import START
from cluster_controller.resources import kinds
from cluster_controller.resources.carry import Carrier
from cluster_controller.rollout.keeping import NOTHING, Rolled
from cluster_controller.rollout.revision import Order, with_shares
from cluster_controller.store import Key, Store, Stored, Tx

DIVIDED = ("components", "placement", "rollout", "apply")  # what a share takes over from what it is a share of
CARRY_APPLICATION, CARRY_WORK = Carrier(kinds.Application, DIVIDED), Carrier(kinds.Work, DIVIDED)
CARRY_ALL = Carrier(kinds.Work)
COUNTER = "placement/share-id"
WORK_NAMESPACE = uuid.UUID("5bd0f2b0-6a5b-4f5e-9b1d-2f4f4b5f6d01")  # uids of Works are derived: the same Work, the same uid


class Reader(Protocol):
    """A transaction, or the store as it was committed last."""

    def get(self, key: Key) -> Stored | None: ...
    def fact(self, name: str) -> bytes | None: ...


class Works:
    """Reads and writes Works inside one transaction; keeps two small indexes in memory."""

    def __init__(self, uid: str, current: Callable[[Key], Stored | None]) -> None:
        self._uid = uid
        self.lent: Callable[[Tx, str, str], list[kinds.Lent]] = _nothing_lent  # (target, application): of its share, what others hold
        self._documents = Documents(current)
        self._targets: dict[str, set[str]] = {}  # application → targets that have, had or answer a Work
        self._users: dict[tuple[str, str, str], set[str]] = {}  # (target, kind, uid) → applications that need it there
        self._needs: dict[tuple[str, str], set[tuple[str, str]]] = {}  # (target, application) → (kind, uid)

    def load(self, store: Store) -> set[str]:
        """Learn from the store which targets have or answer Works, anew; returns the applications met."""
        for index in (self._targets, self._users, self._needs):
            index.clear()
        for space in store.spaces():
            target = self._target_of(space)
            if target is None:
                continue
            for stored in store.list(space, "Work"):
                self._targets.setdefault(stored.key.name, set()).add(target)
                for link in self._documents.read(stored, kinds.Work).spec.references:
                    self._need(target, stored.key.name, link.kind, link.uid)
            for stored in store.list(space, "WorkStatus"):
                self._targets.setdefault(stored.key.name, set()).add(target)
        return set(self._targets)

    def applications(self) -> set[str]:
        return set(self._targets)

    def of_target(self, target: str) -> list[str]:
        """Applications that this target was given, or answers for."""
        return [application for application, targets in self._targets.items() if target in targets]

    def targets(self, application: str) -> list[str]:
        return sorted(self._targets.get(application, ()))

    def get(self, tx: Reader, target: str, application: str) -> kinds.WorkSpec | None:
        stored = tx.get(work_key(self._space(target), application))
        return self._documents.read(stored, kinds.Work).spec if stored is not None else None

    def status(self, tx: Reader, target: str, application: str) -> kinds.WorkStatusStatus | None:
        stored = tx.get(self._status_key(target, application))
        return self._documents.read(stored, kinds.WorkStatus).status if stored is not None else None

    def reporting(self, tx: Tx, application: str) -> list[str]:
        """Targets that still answer for the application: it may be running there."""
        return [target for target in self.targets(application) if tx.get(self._status_key(target, application)) is not None]

    def ceilings(self, tx: Reader, application: str) -> dict[str, dict[str, int]]:
        """Per target, what it may still be running beyond its share."""
        stored = tx.fact(f"placement/ceiling/{application}")
        return msgspec.json.decode(stored, type=dict[str, dict[str, int]]) if stored else {}

    def confirm(self, tx: Tx, application: str, target: str) -> None:
        """``target`` has acknowledged its newest share: nothing above it is running there any more."""
        ceilings = self.ceilings(tx, application)
        if ceilings.pop(target, None) is not None:
            self._set_ceilings(tx, application, ceilings)

    def write(
        self,
        tx: Tx,
        allotment: Allotment,
        shares: Mapping[str, Mapping[str, int]],
        given: Mapping[str, Mapping[str, Given]],
        renew: Collection[str] = (),
        *,
        rolled: Rolled = NOTHING,
        shifted: Shifted | None = None,
    ) -> bool:
        """Make the Works say ``shares``; a target that has nothing keeps a Work of zero replicas until it has answered.

        ``renew``: targets whose Work gets a new share id in any case. ``rolled``: who is told something else than the newest version
        and its whole share. Whether anything was written.
        """
        application = allotment.application.uid
        if shifted is not None and shifted.after:  # or an answer to its old parent's share could be taken for one to ours
            tx.set_fact(COUNTER, str(max(shifted.after, int(tx.fact(COUNTER) or b"0"))).encode())
        ceilings = self.ceilings(tx, application)
        before = dict(ceilings)
        changed = False
        for target in sorted(set(shares) | set(given)):
            newest = with_shares(allotment.components, shares.get(target, {}))
            order = rolled.orders.get(target) or Order(revision=allotment.revision, components=newest, references=[])
            wanted = {component.name: component.replicas for component in order.components}
            held = {name: item.ceiling for name, item in given.get(target, {}).items()}
            if not any(wanted.values()) and not any(held.values()):
                self._remove(tx, target, application)
                ceilings.pop(target, None)  # nothing of it is left there, also where it went away with its cluster
                changed = True
                continue
            brought = shifted.onward.get(target, []) if shifted is not None else []
            if self._put(tx, target, allotment, order, rollout=rolled.rollout, renew=target in renew, transfers=brought):
                changed = True
                raised = {name: max(wanted.get(name, 0), held.get(name, 0)) for name in {*wanted, *held}}
                ceilings[target] = {name: count for name, count in raised.items() if count}
        if ceilings != before:
            self._set_ceilings(tx, application, ceilings)
        return changed

    def remove_all(self, tx: Tx, application: str) -> None:
        for target in self.targets(application):
            self._remove(tx, target, application)

    # --- one target ---

    def _put(
        self,
        tx: Tx,
        target: str,
        allotment: Allotment,
        order: Order,
        *,
        rollout: kinds.Rollout | None,
        renew: bool,
        transfers: Sequence[kinds.Transfer] = (),
    ) -> bool:
        application = allotment.application.uid
        key = work_key(self._space(target), application)
        stored = tx.get(key)
        links = self._deliver(tx, target, allotment, order)
        spec = kinds.WorkSpec(
            application=allotment.application,
            cluster=target,
            shares=[*allotment.chain, kinds.Share(allotter=self._uid, id=0)],
            components=order.components,
            priority=allotment.priority,
            preemption_policy=allotment.preemption_policy,
            placement=allotment.placement,
            rollout=rollout,
            revision=order.revision,
            resume=allotment.resume,
            apply=allotment.apply,
            references=links,
            labels=dict(allotment.labels),
            lent=self.lent(tx, target, application),
            transfers=list(transfers),
            overrides=order.overrides,
            overridden=order.overridden,
            unpatched=dict(order.unpatched),
        )
        if stored is not None:
            now = self._documents.read(stored, kinds.Work).spec
            spec = msgspec.structs.replace(spec, transfers=kept(now.transfers, transfers))
            if not renew and msgspec.structs.replace(spec, shares=[*allotment.chain, now.shares[-1]]) == now:
                return False
        share = kinds.Share(allotter=self._uid, id=self.next_share(tx))
        work = kinds.Work(
            metadata=kinds.Metadata(name=application, uid=work_uid(application, target)),
            spec=msgspec.structs.replace(spec, shares=[*allotment.chain, share]),
        )
        tx.put(key, self._as_written(tx, encode(work), allotment, order), uid=work.metadata.uid)
        self._targets.setdefault(application, set()).add(target)
        self._drop_needs(tx, target, application, keep={(link.kind, link.uid) for link in links})
        return True

    def renew(self, tx: Tx, target: str, application: str, lent: list[kinds.Lent]) -> None:
        """The same Work under a new share id, with what others hold of it now."""
        key = work_key(self._space(target), application)
        stored = tx.get(key)
        if stored is None:
            return
        work = self._documents.read(stored, kinds.Work)
        share = kinds.Share(allotter=self._uid, id=self.next_share(tx))
        spec = msgspec.structs.replace(work.spec, shares=[*work.spec.shares[:-1], share], lent=lent)
        tx.put(key, CARRY_ALL(encode(msgspec.structs.replace(work, spec=spec)), stored.document), uid=stored.uid)

    def _as_written(self, tx: Tx, encoded: bytes, allotment: Allotment, order: Order) -> bytes:
        """With what a later version wrote into the Application, or the Work, that this is a share of."""
        source = tx.get(allotment.key)
        if source is None or not _newest(order, allotment):
            return encoded  # of a version before: what is in the newest belongs to that
        return (CARRY_WORK if allotment.key.kind == "Work" else CARRY_APPLICATION)(encoded, source.document)

    def _deliver(self, tx: Tx, target: str, allotment: Allotment, order: Order) -> list[kinds.WorkReference]:
        """Put what the Work needs beside it, as the writer wrote it; returns what it may refer to. The own cluster finds it where it is."""
        application = allotment.application
        newest = {each.link.uid: each for each in allotment.references} if _newest(order, allotment) else {}
        newest = {uid: each for uid, each in newest.items() if (each.link.kind, each.link.name) not in order.without}
        links = []
        for link in [*(each.link for each in newest.values()), *order.references]:
            source = newest[link.uid].stored if link.uid in newest else _source(tx, link, application.namespace)
            key = Key(self._space(target), link.kind, "", link.uid)
            there = tx.get(key) if target != self._uid else None
            if source is None and there is None and target != self._uid:
                continue  # of a version before, and gone: whoever runs that keeps what it has
            links.append(link)
            self._need(target, application.uid, link.kind, link.uid)
            if source is None or target == self._uid:
                continue
            if there is None or there.version != source.version or there.hash != source.hash:
                tx.put(key, source.document, uid=source.uid, version=source.version)
        return links

    def _remove(self, tx: Tx, target: str, application: str) -> None:
        tx.delete(work_key(self._space(target), application))
        self._drop_needs(tx, target, application, keep=set())
        if tx.get(self._status_key(target, application)) is None:
            self._targets.get(application, set()).discard(target)
            if not self._targets.get(application):
                self._targets.pop(application, None)

    def _need(self, target: str, application: str, kind: str, uid: str) -> None:
        self._users.setdefault((target, kind, uid), set()).add(application)
        self._needs.setdefault((target, application), set()).add((kind, uid))

    def _drop_needs(self, tx: Tx, target: str, application: str, keep: set[tuple[str, str]]) -> None:
        needs = self._needs.get((target, application), set())
        for kind, uid in sorted(needs - keep):
            needs.discard((kind, uid))
            users = self._users.get((target, kind, uid), set())
            users.discard(application)
            if not users:
                self._users.pop((target, kind, uid), None)
                if target != self._uid:
                    tx.delete(Key(self._space(target), kind, "", uid))
        if not needs:
            self._needs.pop((target, application), None)

    # --- names ---

    def _space(self, target: str) -> str:
        return "local" if target == self._uid else f"down/{target}"

    def _status_key(self, target: str, application: str) -> Key:
        return Key("observed" if target == self._uid else f"up/{target}", "WorkStatus", "", application)

    def _target_of(self, space: str) -> str | None:
        if space in {"local", "observed"}:
            return self._uid
        prefix, _, target = space.partition("/")
        return target if prefix in {"down", "up"} and target else None

    def next_share(self, tx: Tx) -> int:
        number = max(int(tx.fact(COUNTER) or b"0") + 1, int(tx.fact(START) or b"0"))
        tx.set_fact(COUNTER, str(number).encode())
        return number

    def _set_ceilings(self, tx: Tx, application: str, ceilings: Mapping[str, Mapping[str, int]]) -> None:
        tx.set_fact(f"placement/ceiling/{application}", msgspec.json.encode(ceilings) if ceilings else None)


def _newest(order: Order, allotment: Allotment) -> bool:
    return (order.version or order.revision) == allotment.revision


def _nothing_lent(tx: Tx, target: str, application: str) -> list[kinds.Lent]:
    return []


def _source(tx: Tx, link: kinds.WorkReference, namespace: str) -> Stored | None:
    """A document that the newest version does not name: delivered from above, or of the same name here."""
    found = delivered.reference(tx, link.kind, link.uid)
    own = tx.get(Key("own", link.kind, namespace, link.name))
    return found or (own if own is not None and own.uid == link.uid else None)


def work_uid(application: str, target: str) -> str:
    return str(uuid.uuid5(WORK_NAMESPACE, f"{application}/{target}"))
