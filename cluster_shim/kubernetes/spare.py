"""One connection ahead: who has just asked a member's API server something will soon ask again.

kubectl makes several requests in a row, each on a stream and so on a connection of its own; with a connection at hand none but the first
pays for connecting and TLS. A spare lives for `KEPT_SECONDS` after the last request, well below the half minute that an API server
gives a connection to say something. Nothing was ever sent on it.
"""

import asyncio
import contextlib

from cluster_controller.tasks import Tasks
from cluster_shim.contract import ByteStream, ShimError
from cluster_shim.kubernetes.api import Api

KEPT_SECONDS = 20.0


class Spare:
    def __init__(self, api: Api, tasks: Tasks, kept_seconds: float = KEPT_SECONDS) -> None:
        self._api = api
        self._tasks = tasks
        self._kept_seconds = kept_seconds
        self._made: tuple[ByteStream, object] | None = None  # the connection, and for which way it was made
        self._keeper: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Have one at hand soon; where there is one, nothing is done."""
        if self._keeper is None or self._keeper.done():
            self._keeper = self._tasks.spawn("spare", self._keep())

    async def take(self) -> ByteStream | None:
        """The spare, if it still stands and leads where the API server is now."""
        made, keeper = self._made, self._keeper
        if made is None or keeper is None:
            return None
        self._made = None
        keeper.cancel()
        await asyncio.wait([keeper])
        connection, way = made
        if keeper.cancelled() and way is self._api.way:
            return connection
        connection.abort("not needed")
        return None

    async def _keep(self) -> None:
        way = self._api.way
        try:
            connection = await self._api.connect()
        except ShimError:
            return  # whoever asks next connects for itself, and hears why not
        self._made = connection, way
        try:
            with contextlib.suppress(TimeoutError, ShimError):
                async with asyncio.timeout(self._kept_seconds):
                    await connection.read(1)  # nothing but its end can come
        finally:
            if self._made is not None:  # nobody took it
                self._made = None
                connection.abort("not needed")
