"""`POST /backup`: an encrypted backup of this controller, made while it works, streamed to whoever may have it.

It holds the private keys of the tree's issuer. So it is given to an admin who asks this controller itself: what came through other
controllers would have passed each of them together with its passphrase. One is made at a time; the file lies in the data folder,
already without a name, for as long as it is being sent.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cluster_controller.errors import Conflict, InvalidInput
from cluster_controller.store.backup import PASSPHRASE_LENGTH, Summary
from cluster_controller.tree.times import format_time
from openapi import access
from openapi.bodies import read_document
from openapi.errors import ApiError
from openapi.services import ApiServices, User

log = structlog.get_logger()

PARTIAL = ".backup-"
CHUNK_BYTES = 256 * 1024
LONGEST_PASSPHRASE = 1024
CHARTS = "charts"  # of DATA/kubernetes: rendered again when they are needed
MEDIA = "application/vnd.banyan.backup"


def included(folder: Path) -> tuple[str, ...]:
    """What of a data folder belongs into its backup beside the store: who this is, its settings, what its shim remembers of its cluster."""
    kubernetes = folder / "kubernetes"
    remembered = sorted(path.name for path in kubernetes.iterdir() if path.name != CHARTS) if kubernetes.is_dir() else []
    return ("identity", "banyan.toml", "shim", *(f"kubernetes/{name}" for name in remembered))


class Backups:
    """Answers for one controller."""

    def __init__(self, services: ApiServices) -> None:
        self._services = services
        self._busy = asyncio.Lock()

    async def respond(self, request: Request) -> Response:
        user: User = request.scope["banyan.user"]
        services = self._services
        if not access.has_role(user, "admin", ""):
            raise ApiError(403, f'User "{user.name}" cannot make a backup of {services.name}: that needs the role admin in all namespaces')
        if user.entry != services.uid:
            raise ApiError(
                403,
                f"a backup of {services.name} holds its private keys and is given to nobody who asks through another controller: "
                f"ask {services.name} itself, on its own API address",
            )
        passphrase = (await read_document(request)).get("passphrase")
        if not isinstance(passphrase, str) or not PASSPHRASE_LENGTH <= len(passphrase) <= LONGEST_PASSPHRASE:
            raise InvalidInput(f"passphrase is a text of {PASSPHRASE_LENGTH} to {LONGEST_PASSPHRASE} characters", "passphrase")
        if self._busy.locked():
            raise Conflict(f"a backup of {services.name} is being made; try again when it is done")
        async with self._busy:
            file, summary = await self._make(passphrase)
        size = os.fstat(file.fileno()).st_size
        log.info("backup.made", user=user.name, revision=summary.revision, objects=summary.objects, bytes=size)
        headers = {
            "content-length": str(size),
            "cache-control": "no-store",
            "banyan-backup-made": summary.made,
            "banyan-backup-objects": str(summary.objects),
            "banyan-backup-revision": str(summary.revision),
        }
        return StreamingResponse(_content(file), 200, headers, MEDIA)

    async def _make(self, passphrase: str) -> tuple[BinaryIO, Summary]:
        store = self._services.store
        for left in store.folder.glob(f"{PARTIAL}*"):  # of a controller that was killed meanwhile
            left.unlink(missing_ok=True)
        target = store.folder / f"{PARTIAL}{secrets.token_hex(8)}"
        try:
            summary = await store.backup(target, passphrase, included(store.folder), format_time(self._services.now()))
            return target.open("rb"), summary
        finally:
            target.unlink(missing_ok=True)


async def _content(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk
