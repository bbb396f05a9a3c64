"""Serve the clusters below a silent branch that are heard by way of adopters: what their home would tell them, were it there.

At the ancestor: once a branch has not answered its newest Work, each stray below it that reports to hold a part of that share is
given that part directly, with everything else as the branch has it: a Work in ``lend/STRAY``, and the documents that it needs. The
branch's Work says so (`WorkSpec.lent`), under a later share id, in the same commit; so its controller, when it is back, takes the part
over as it is, and what it then says counts as newer than what was served (`moving`). What the stray makes of it is `borrowing`.

Invariants: nobody is given what it did not report, nor all of them more than the branch's share; a part is never raised here; nothing
is taken back from a stray before its home has answered the Work that speaks of it; nobody is served while somebody above or below it is,
for their parts are one; a controller that came from a backup serves nobody below a branch that it has not met since.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from cluster_controller.documents import Documents, encode
from cluster_controller.placement.carried import space_of as stray_space
from cluster_controller.placement.moving import apart, caught_up, unheard
from cluster_controller.placement.telling import answers
from cluster_controller.placement.works import Works, work_uid
from cluster_controller.resources import kinds
from cluster_controller.resources.carry import Carrier
from cluster_controller.store import Key, Store, Tx
from cluster_controller.store.backup import RESTORED, Restored

LEND = "lend/"
CARRY = Carrier(kinds.Work)
REFERENCED = ("Model", "ConfigMap", "Secret")

Counts = Mapping[str, int]


def lend_space(cluster: str) -> str:
    """What an ancestor gives to a stray."""
    return f"{LEND}{cluster}"


class Lending:
    """``heard``: strays whose words come now; ``kept``: all that are not back; ``way``: the direct child below which somebody stands,
    "" when nobody knows; ``above``: those between it and here, and further up; ``silent``: direct children out of reach."""

    def __init__(
        self,
        uid: str,
        documents: Documents,
        works: Works,
        *,
        heard: Callable[[], Collection[str]],
        kept: Callable[[], Collection[str]],
        way: Callable[[Tx, str], str],
        above: Callable[[Tx, str], Collection[str]],
        silent: Callable[[], Collection[str]],
    ) -> None:
        self._uid = uid
        self._documents = documents
        self._works = works
        self._heard = heard
        self._kept = kept
        self._way = way
        self._above = above
        self._silent = silent
        self._lent: dict[str, set[str]] = {}  # application → strays that were given a part of it
        works.lent = self.of_share

    def load(self, store: Store) -> set[str]:
        """Learn anew who was served; returns the applications."""
        self._lent.clear()
        for space in store.spaces():
            if space.startswith(LEND):
                for stored in store.list(space, "Work"):
                    self._lent.setdefault(stored.key.name, set()).add(space.removeprefix(LEND))
        return set(self._lent)

    def applications(self, cluster: str) -> list[str]:
        """Of which that cluster was given a part."""
        return [application for application, clusters in self._lent.items() if cluster in clusters]

    @property
    def count(self) -> int:
        """Parts of shares that strays hold directly, for /metrics."""
        return sum(len(clusters) for clusters in self._lent.values())

    # --- what the branch is told ---

    def of_share(self, tx: Tx, target: str, application: str) -> list[kinds.Lent]:
        """What is held directly of a branch's share: by this controller's gift, or by that of one above."""
        found = {}
        for cluster in sorted(self._lent.get(application, ())):
            work = self._get(tx, cluster, application)
            if work is not None and self._way(tx, cluster) == target != cluster:
                counts = {component.name: component.replicas for component in work.components}
                found[cluster] = kinds.Lent(cluster=cluster, allotter=self._uid, id=work.shares[-1].id, components=counts)
        stored = tx.get(Key("desired", "Work", "", application))
        for one in self._documents.read(stored, kinds.Work).spec.lent if stored is not None else ():
            if self._way(tx, one.cluster) == target != one.cluster:
                found.setdefault(one.cluster, one)
        return [found[cluster] for cluster in sorted(found)]

    def held(self, tx: Tx, target: str, application: str) -> dict[str, int]:
        """Replicas that strays below ``target`` hold directly and are heard of, by component, but for those that they have no place for."""
        total: dict[str, int] = {}
        for cluster in sorted(self._lent.get(application, set()) & set(self._heard())):
            work = self._get(tx, cluster, application) if self._way(tx, cluster) == target else None
            unplaced = {item.name: item.unplaced for item in self._status(tx, cluster, application).components}
            for component in work.components if work is not None else ():
                count = max(0, component.replicas - unplaced.get(component.name, 0))
                total[component.name] = total.get(component.name, 0) + count
        return total

    # --- giving ---

    def serve(self, tx: Tx, application: str, *, duplicated: bool) -> bool:
        """Give the strays what their branches have; whether anything was written."""
        changed = False
        self._meet(tx, application)
        for branch, clusters in self._branches(tx, application).items():
            work = self._works.get(tx, branch, application)
            if work is None or not self._met(tx, branch):
                continue
            before = {cluster: _held(given, work) for cluster in clusters if (given := self._get(tx, cluster, application)) is not None}
            fresh = sorted(set(clusters) - before.keys())
            if not self._behind(tx, branch, work):
                fresh = []  # everybody below has the newest already
            said = {cluster: counts for cluster in fresh if (counts := self._reported(tx, cluster, work)) is not None}
            lines = {cluster: set(self._above(tx, cluster)) for cluster in (*before, *said)}
            taken = {one for cluster in before for one in lines[cluster]}  # who stands above somebody that is served already
            reported = {cluster: said[cluster] for cluster in said if cluster not in taken and lines[cluster].isdisjoint(lines)}
            parts = apart(_counts(work), reported, before, duplicated=duplicated)
            written = [self._put(tx, cluster, work, counts, branch) for cluster, counts in parts.held.items()]
            if any(written):
                self._works.renew(tx, branch, application, self.of_share(tx, branch, application))
                changed = True
        return changed

    def withdraw(self, tx: Tx, application: str) -> None:
        """It shall run nowhere any more: those who are heard are told, where it is known that it was this controller's to give."""
        for branch, clusters in self._branches(tx, application).items():
            work = self._works.get(tx, branch, application)
            known = work is not None or self._works.status(tx, branch, application) is not None
            for cluster in clusters:
                given = self._get(tx, cluster, application)
                reported = tx.get(Key(stray_space(cluster), "WorkStatus", "", application))
                if given is None and (reported is None or not known or not self._met(tx, branch)):
                    continue
                if given is not None:
                    spec = given
                elif reported is not None:
                    reference = self._documents.read(reported, kinds.WorkStatus).spec.application
                    chain = work.shares if work is not None else [kinds.Share(allotter=self._uid, id=0)]
                    spec = kinds.WorkSpec(application=reference, cluster=cluster, shares=chain)
                self._put(tx, cluster, msgspec.structs.replace(spec, components=[], references=[]), {}, branch)

    def sweep(self, tx: Tx, application: str) -> None:
        """Forget what strays were given that are back at home, once their home has answered what speaks of it."""
        for cluster in sorted(self._lent.get(application, ())):
            if cluster in self._kept():
                continue
            branch = self._way(tx, cluster)
            work = self._works.get(tx, branch, application) if branch else None
            if work is not None and branch != cluster and branch in self._silent():
                continue
            status = self._works.status(tx, branch, application) if branch else None
            if work is None or branch == cluster or (status is not None and status.seen >= work.shares[-1].id):
                self._remove(tx, cluster, application)

    def _behind(self, tx: Tx, branch: str, work: kinds.WorkSpec) -> bool:
        """May there be something newer than what the branch has passed on? An answer speaks of the Work; a document may be newer."""
        application, space = work.application.uid, f"down/{branch}"
        stored = tx.get(Key(space, "Work", "", application))
        documents = (tx.get(Key(space, link.kind, "", link.uid)) for link in work.references)
        return not answers(work, self._works.status(tx, branch, application)) or any(
            stored is not None and each is not None and each.revision > stored.revision for each in documents
        )

    def _branches(self, tx: Tx, application: str) -> dict[str, list[str]]:
        """Silent direct children → the clusters below them to be looked at."""
        found: dict[str, list[str]] = {}
        clusters = self._lent.get(application, set()) | set(self._heard())
        silent = self._silent() if clusters else ()
        for cluster in sorted(clusters):
            branch = self._way(tx, cluster)
            if branch in silent and branch != cluster:
                found.setdefault(branch, []).append(cluster)
        return found

    def _met(self, tx: Tx, branch: str) -> bool:
        """After a restore, a branch may be newer than what is known here of it, until it has been in reach once."""
        stored = tx.fact(RESTORED)
        return stored is None or tx.fact(_met_fact(branch)) == _stamp(stored)

    def _meet(self, tx: Tx, application: str) -> None:
        """Note which branches are in reach since the restore, if there was one."""
        stored = tx.fact(RESTORED)
        for branch in self._works.targets(application) if stored is not None else ():
            if stored is not None and branch not in self._silent() and tx.fact(_met_fact(branch)) != _stamp(stored):
                tx.set_fact(_met_fact(branch), _stamp(stored))

    def _get(self, tx: Tx, cluster: str, application: str) -> kinds.WorkSpec | None:
        stored = tx.get(Key(lend_space(cluster), "Work", "", application))
        return self._documents.read(stored, kinds.Work).spec if stored is not None else None

    def _reported(self, tx: Tx, cluster: str, work: kinds.WorkSpec) -> dict[str, int] | None:
        """What a stray has of its branch's share: what it says, without what went from it with a cluster that was moved, and with what
        came. None: nothing."""
        said = self._status(tx, cluster, work.application.uid)
        counts = {item.name: item.desired for item in said.components}
        return caught_up(counts, unheard(work.transfers, said.transferred), cluster) if any(counts.values()) else None

    def _status(self, tx: Tx, cluster: str, application: str) -> kinds.WorkStatusStatus:
        stored = tx.get(Key(stray_space(cluster), "WorkStatus", "", application))
        return self._documents.read(stored, kinds.WorkStatus).status if stored is not None else kinds.WorkStatusStatus()

    def _put(self, tx: Tx, cluster: str, work: kinds.WorkSpec, counts: Counts, branch: str) -> bool:
        """``work`` is the branch's; its last share becomes one of the stray's own."""
        application, space = work.application.uid, lend_space(cluster)
        components = [msgspec.structs.replace(each, replicas=counts.get(each.name, 0)) for each in work.components]
        ways = [one for one in work.transfers if cluster in one.out or cluster in one.into]
        spec = msgspec.structs.replace(work, cluster=cluster, components=components, lent=[], transfers=ways)
        self._deliver(tx, space, f"down/{branch}", work.references)
        before = self._get(tx, cluster, application)
        if before is not None and msgspec.structs.replace(spec, shares=[*spec.shares[:-1], before.shares[-1]]) == before:
            return False
        share = kinds.Share(allotter=self._uid, id=self._works.next_share(tx))
        spec = msgspec.structs.replace(spec, shares=[*spec.shares[:-1], share])
        document = encode(kinds.Work(metadata=kinds.Metadata(name=application, uid=work_uid(application, cluster)), spec=spec))
        source = tx.get(Key(f"down/{branch}", "Work", "", application))
        tx.put(
            Key(space, "Work", "", application),
            CARRY(document, source.document) if source is not None and components else document,
            uid=work_uid(application, cluster),
        )
        self._lent.setdefault(application, set()).add(cluster)
        self._drop_documents(tx, space)
        return True

    def _remove(self, tx: Tx, cluster: str, application: str) -> None:
        tx.delete(Key(lend_space(cluster), "Work", "", application))
        self._lent[application].discard(cluster)
        if not self._lent[application]:
            del self._lent[application]
        self._drop_documents(tx, lend_space(cluster))

    def _deliver(self, tx: Tx, space: str, source: str, links: Iterable[kinds.WorkReference]) -> None:
        """What the Work needs, beside it, as the branch has it."""
        for link in links:
            stored = tx.get(Key(source, link.kind, "", link.uid))
            there = tx.get(Key(space, link.kind, "", link.uid))
            if stored is not None and (there is None or (there.version, there.hash) != (stored.version, stored.hash)):
                tx.put(Key(space, link.kind, "", link.uid), stored.document, uid=stored.uid, version=stored.version)

    def _drop_documents(self, tx: Tx, space: str) -> None:
        works = [self._documents.read(stored, kinds.Work).spec for stored in tx.list(space, "Work")]
        needed = {(link.kind, link.uid) for work in works for link in work.references}
        for kind in REFERENCED:
            for stored in tx.list(space, kind):
                if (kind, stored.key.name) not in needed:
                    tx.delete(stored.key)


def _counts(work: kinds.WorkSpec) -> dict[str, int]:
    return {component.name: component.replicas for component in work.components}


def _held(given: kinds.WorkSpec, work: kinds.WorkSpec) -> dict[str, int]:
    """What a stray was given of the share of ``work``, and what went from it, or came to it, with a cluster that was moved since."""
    return caught_up(_counts(given), unheard(work.transfers, (one.move for one in given.transfers)), given.cluster)


def _met_fact(branch: str) -> str:
    return f"lend/met/{branch}"


def _stamp(stored: bytes) -> bytes:
    found = msgspec.json.decode(stored, type=Restored)
    return f"{found.made}/{found.revision}/{found.restored}".encode()
