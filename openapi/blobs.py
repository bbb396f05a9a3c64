"""`models/NAME/blobs/sha256/DIGEST`: the files of a Model, in and out, streamed.

Only files that the Model lists are taken, and no more bytes than it says: so an upload is bounded before its first byte, and
whoever may write the Model is who may write its files. Bytes are believed only when their digest agrees.
"""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cluster_controller.errors import InvalidInput
from openapi.errors import ApiError
from openapi.services import ApiServices

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=([0-9]{1,16})-")


async def respond(services: ApiServices, request: Request, model: Mapping[str, Any], rest: list[str]) -> Response:
    digest, size = _listed(model, rest)
    if request.method == "PUT":
        declared = request.headers.get("content-length")
        if declared is not None and declared != str(size):
            raise ApiError(
                400, f"the body has {declared[:20]} bytes; Model {model['metadata']['name']} says that sha256:{digest} has {size}"
            )
        try:
            await services.put_blob(digest, size, _chunks(request, size))
        except InvalidInput as error:
            raise ApiError(422, str(error)) from None
        return JSONResponse({"digest": f"sha256:{digest}", "size": size}, status_code=201)
    offset = _offset(request.headers.get("range", ""), size)
    blob = await services.get_blob(digest, offset)
    headers = {"content-length": str(size - offset), "etag": f'"sha256:{digest}"', "accept-ranges": "bytes"}
    if offset:
        headers["content-range"] = f"bytes {offset}-{size - 1}/{size}"
    body = blob.chunks if request.method == "GET" else _nothing()
    return StreamingResponse(body, 206 if offset else 200, headers, "application/octet-stream")


def _listed(model: Mapping[str, Any], rest: list[str]) -> tuple[str, int]:
    name = model["metadata"]["name"]
    if len(rest) != 2 or rest[0] != "sha256" or _DIGEST.fullmatch(rest[1]) is None:
        raise ApiError(404, f"the files of Model {name} are at blobs/sha256/DIGEST, 64 hexadecimal digits")
    for version in (model.get("spec") or {}).get("versions") or ():
        for file in version.get("files") or ():
            if file.get("sha256") == rest[1]:
                return rest[1], int(file["size"])
    raise ApiError(404, f"Model {name} lists no file with sha256:{rest[1]}; add it to spec.versions[].files first")


def _offset(header: str, size: int) -> int:
    if not header:
        return 0
    match = _RANGE.fullmatch(header)
    if match is None:
        return 0  # a range that is not understood may be ignored (RFC 9110, 14.2)
    offset = int(match[1])
    if offset >= size:
        error = ApiError(416, f"the file has {size} bytes; byte {offset} is past its end")
        error.headers["Content-Range"] = f"bytes */{size}"
        raise error
    return offset


async def _chunks(request: Request, size: int) -> AsyncIterator[bytes]:
    left = size
    try:
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                raise ApiError(413, f"the body has more than the {size} bytes that the Model says")
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise ApiError(400, f"the client went away with {left} bytes still to come") from None


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
