"""What a store that came from a backup must not believe, and what it cannot know: told to people until they have looked.

Open join tokens are void, since nobody knows which of them were used after the backup was made: `settle` does so in one commit
before anything listens, and again does nothing, so a restore that was cut off anywhere is finished by the next start. Children
that joined later come in by their certificate, which this controller or an earlier life of it signed; they are named in the
condition Restored of the own Cluster and in an Event each, so that a person can say whether they belong here.
"""

from collections.abc import Callable, Sequence

import msgspec
import structlog

from cluster_controller import events
from cluster_controller.documents import decode
from cluster_controller.events import Reason
from cluster_controller.resources import kinds
from cluster_controller.settling import Settler
from cluster_controller.store import Event, Key, Store, Tx
from cluster_controller.store.backup import RESTORED, Restored
from cluster_controller.tree import records

log = structlog.get_logger()

CONDITION = "Restored"
NAMED = 20  # clusters that a condition names; every one has an Event
FACT_TOLD = "restored/told"


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """uids of children that came in without a join that this store knows."""

    before: tuple[str, ...] = ()  # already so in the backup
    since: tuple[str, ...] = ()


def read(view: records.View) -> Restored | None:
    """Where this store came from; None when it has always been here."""
    found = view.fact(RESTORED)
    return msgspec.json.decode(found, type=Restored) if found else None


async def settle(store: Store) -> Restored | None:
    """Void the open join tokens of a store that has just been restored. None when it was not."""
    found = read(store)
    if found is None or found.settled:
        return found

    def work(tx: Tx) -> Restored:
        opened = [one.metadata.name for one in records.tokens(tx) if one.status.phase in ("Open", "Pending")]
        for name in opened:
            records.revoke_token(tx, name)
        done = msgspec.structs.replace(found, settled=True, voided=len(opened))
        tx.set_fact(RESTORED, msgspec.json.encode(done))
        tx.set_fact(FACT_TOLD, msgspec.json.encode(Told(before=tuple(_strangers(tx)))))
        return done

    done = await store.commit(work)
    log.warning("store.restored", made=done.made, revision=done.revision, tokens_voided=done.voided)
    return done


def _strangers(view: records.View) -> dict[str, str]:
    """Names by uid of members whose join is not written down: they were let in by their certificate."""
    return {one.uid: one.name for one in records.members(view).values() if one.state == "member" and not one.token_id}


class AfterRestore:
    """Keeps the condition and the Events. Of a store that was never restored it asks nothing."""

    heeds = ("Cluster", "Member")  # kinds of what `changed` is called for

    def __init__(self, store: Store, *, uid: str, timestamp: Callable[[], str]) -> None:
        self._store = store
        self._uid = uid
        self._timestamp = timestamp
        self._restored = read(store) is not None
        self._settler = Settler(store, self.settle)

    def load(self) -> None:
        if self._restored:
            self._settler.mark(self._uid)

    def changed(self, changes: Sequence[Event]) -> None:
        if not self._restored:
            return
        for event in changes:
            key = event.stored.key
            appeared = key.space == records.OWN and key.kind == "Cluster" and event.stored.uid == self._uid and event.previous is None
            if key.space == records.MEMBERS or appeared:
                self._settler.mark(self._uid)

    async def run(self) -> None:
        await self._settler.run()

    def settle(self, tx: Tx, uid: str) -> None:
        restored, stored = read(tx), tx.find(records.OWN, "Cluster", uid)
        if restored is None or stored is None:
            return
        fact = tx.fact(FACT_TOLD)
        told = msgspec.json.decode(fact, type=Told) if fact else Told()
        strangers = {key: name for key, name in _strangers(tx).items() if key not in told.before}
        for key in strangers.keys() - set(told.since):
            self._tell(tx, key, strangers[key], restored)
        tx.set_fact(FACT_TOLD, msgspec.json.encode(msgspec.structs.replace(told, since=tuple(sorted(strangers)))))
        self._write(tx, stored.key, _words(restored, sorted(strangers.values())))

    def _tell(self, tx: Tx, uid: str, name: str, restored: Restored) -> None:
        message = (
            f"{name} joined after the backup of {restored.made} was made and was let in by its certificate; if it does not belong here, "
            f"`banyan cluster revoke {name}`"
        )
        log.warning("cluster.not_in_backup", cluster=name, uid=uid, made=restored.made)
        events.cluster(tx, name, uid, Reason.NOT_IN_BACKUP, message, component="restored", timestamp=self._timestamp())

    def _write(self, tx: Tx, key: Key, message: str) -> None:
        stored = tx.get(key)
        if stored is None:
            return
        before = decode(stored.document, kinds.Cluster).status.conditions
        old = next((one for one in before if one.type == CONDITION), None)
        if old is not None and old.message == message:
            return
        since = old.last_transition_time if old is not None else self._timestamp()
        fresh = kinds.Condition(type=CONDITION, status="True", reason="FromBackup", message=message, last_transition_time=since)
        conditions = [*(one for one in before if one.type != CONDITION), fresh]
        records.set_status(tx, key, conditions=[msgspec.to_builtins(one) for one in conditions])


def _words(restored: Restored, strangers: Sequence[str]) -> str:
    voided = f"{restored.voided} open join token{'s were' if restored.voided != 1 else ' was'} voided"
    lost = "users, revocations and members of after that moment are not known"
    if not strangers:
        return f"restored from the backup of {restored.made}; {voided}; {lost}"
    more = f" and {len(strangers) - NAMED} more" if len(strangers) > NAMED else ""
    return f"restored from the backup of {restored.made}; {voided}; {lost}; not in the backup: {', '.join(strangers[:NAMED])}{more}"
