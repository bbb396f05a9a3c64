"""Jobs that have run: what is gone because it is over is not made again.

A Job with `ttlSecondsAfterFinished` removes itself when it has ended. To whoever only compares what is wanted with what is there it
looks as if somebody had deleted it, and it would run again for ever. So it is remembered, on the disk, which Job ran with which mark
(`plan`): it is made again only when its template changes, when somebody deletes it before it has ended, or in another application.

At most `MOST` are remembered; the longest known are forgotten first, and run again if they are wanted still.
"""

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct

from cluster_controller import durable
from cluster_shim.kubernetes.plan import Item
from cluster_shim.kubernetes.seen import Key, Seen

log = structlog.get_logger()

FILE = "jobs.json"
MOST = 2_000
FAILED = "Failed"


class Ran(Struct, frozen=True, omit_defaults=True):
    namespace: str
    name: str
    application: str  # uid
    mark: str
    ended: str = ""  # Complete or Failed; "" when it had not ended when it was seen last

    @property
    def key(self) -> Key:
        return Key("batch", "Job", self.namespace, self.name)


class Jobs:
    """``path``: where they are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ran: dict[Key, Ran] = {}
        self._saving = asyncio.Lock()
        self._changed = False

    def load(self) -> None:
        """Blocks on the disk. A record that cannot be read is as if there was none: that is told, and the site goes on."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=list[Ran])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("member.jobs_unknown", path=str(self._path), reason=str(error), hint="Jobs that removed themselves may run again")
            return
        self._ran = {one.key: one for one in found}

    async def save(self) -> None:
        """If anything has changed."""
        async with self._saving:
            if not self._changed:
                return
            self._changed = False
            data = msgspec.json.encode(list(self._ran.values()))
            try:
                await asyncio.to_thread(durable.write, self._path, data)
            except OSError as error:
                self._changed = True
                log.warning("member.jobs_not_kept", path=str(self._path), reason=str(error))

    def marks(self) -> Mapping[Key, str]:
        """With which mark each has run; of those that are not there, these are not made again."""
        return {key: one.mark for key, one in self._ran.items()}

    def failed(self, key: Key) -> bool:
        return key in self._ran and self._ran[key].ended == FAILED

    def there(self, item: Item, found: Seen) -> None:
        """It is in the member as it was applied: worth remembering once it has ended, or when it will remove itself."""
        spec = item.body.get("spec")
        removes_itself = isinstance(spec, Mapping) and spec.get("ttlSecondsAfterFinished") is not None
        if is_job(item.key) and found.applied == item.mark and (found.finished or removes_itself):
            self._put(Ran(item.key.namespace, item.key.name, found.application, item.mark, found.finished))

    def gone(self, key: Key, last: Seen, *, watched: bool) -> None:
        """``last``: as it was seen last; ``watched``: and that is how it ended. One that was deleted in the middle is made again."""
        known = self._ran.get(key)
        if last.finished:
            self._put(Ran(key.namespace, key.name, last.application, last.applied, last.finished))
        elif watched and known is not None and known.mark == last.applied:
            del self._ran[key]
            self._changed = True

    def keep(self, application: str, wanted: Collection[Key]) -> None:
        """What else has run for this application is wanted no more."""
        for key in [key for key, one in self._ran.items() if one.application == application and key not in wanted]:
            del self._ran[key]
            self._changed = True

    def _put(self, ran: Ran) -> None:
        if self._ran.get(ran.key) == ran:
            return
        self._ran.pop(ran.key, None)
        self._ran[ran.key] = ran
        if len(self._ran) > MOST:
            del self._ran[next(iter(self._ran))]
        self._changed = True


def is_job(key: Key) -> bool:
    return (key.group, key.kind) == ("batch", "Job")
