"""`pods/NAME/log`: what an instance wrote, streamed from this cluster's shim with no more than one piece in memory."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from starlette.responses import Response, StreamingResponse

from cluster_controller.errors import InvalidInput
from cluster_controller.resources.registry import LABEL_APPLICATION_UID, LABEL_COMPONENT
from cluster_shim.contract import ByteStream, OpenTarget, ShimError
from openapi.errors import ApiError
from openapi.services import ApiServices

PIECE = 65536
_FLAGS = ("follow", "previous", "timestamps")
_NUMBERS = ("tailLines", "sinceSeconds", "limitBytes")


def log_options(query: Mapping[str, str], now: datetime) -> dict[str, str]:
    """The options that the shim understands; InvalidInput names what cannot be read or is not served."""
    options: dict[str, str] = {}
    for name in _FLAGS:
        text = query.get(name, "").lower()
        if text not in ("", "true", "false", "1", "0"):
            raise InvalidInput(f"{name} is {text[:40]!r}; it may be true or false", name)
        if text in ("true", "1"):
            options[name] = "true"
    for name in _NUMBERS:
        text = query.get(name, "")
        if text:
            if not (text.isascii() and text.isdigit() and len(text) < 16):
                raise InvalidInput(f"{name} is {text[:40]!r}; it is a whole number, zero or more", name)
            options[name] = text
    if text := query.get("sinceTime", ""):
        if "sinceSeconds" in options:
            raise InvalidInput("give sinceTime or sinceSeconds, not both", "sinceTime")
        options["sinceSeconds"] = str(_age(text, now))
    if query.get("stream", "All") not in ("", "All"):
        raise ApiError(422, "stream is not served: both streams are in one log")
    return options


def _age(text: str, now: datetime) -> int:
    """Seconds from then to now, rounded up; both are of this cluster's clock, as the log's own times are."""
    try:
        then = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        then = None
    if then is None or then.tzinfo is None:
        raise InvalidInput(f"sinceTime is {text[:40]!r}; write it as 2026-11-21T12:00:00Z", "sinceTime")
    return max(0, math.ceil((now - then).total_seconds()))


async def respond(
    services: ApiServices, pod: Mapping[str, Any], query: Mapping[str, str], draining: asyncio.Event | None = None
) -> Response:
    """``draining``: once it is set, a log that is followed ends; its reader asks again."""
    metadata = pod["metadata"]
    labels = metadata.get("labels") or {}
    containers = [each.get("name") for each in (pod.get("spec") or {}).get("containers") or ()]
    wanted = query.get("container")
    if wanted and wanted not in containers:
        raise ApiError(400, f"container {wanted[:80]} is not valid for pod {metadata['name']}; it has {', '.join(map(str, containers))}")
    target = OpenTarget(
        kind="logs", uid=labels.get(LABEL_APPLICATION_UID, ""), component=labels.get(LABEL_COMPONENT, ""),
        instance=metadata["name"], options=log_options(query, services.now()),
    )  # fmt: skip
    try:
        stream = await services.open_local(target)
    except ShimError as error:
        raise ApiError(400, f"the log of {metadata['name']} cannot be had: {error}") from None
    return StreamingResponse(_pieces(stream, draining), media_type="text/plain")


async def _pieces(stream: ByteStream, draining: asyncio.Event | None) -> AsyncIterator[bytes]:
    stopping = asyncio.create_task(draining.wait(), name="api/log-drain") if draining is not None else None
    try:
        await stream.close_write()
        while piece := await _read(stream, stopping):
            yield piece
    finally:
        if stopping is not None:
            stopping.cancel()
        stream.abort("the reader has gone")


async def _read(stream: ByteStream, stopping: "asyncio.Task[Literal[True]] | None") -> bytes:
    """The next piece; b"" at the end, or once the controller stops while there is nothing more to say."""
    if stopping is None:
        return await stream.read(PIECE)
    reading = asyncio.create_task(stream.read(PIECE), name="api/log-read")
    try:
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() else b""
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.wait((reading,))
