"""Reading request bodies, bounded, and refusing what is not JSON before a byte of it is parsed."""

from typing import Any

from starlette.requests import ClientDisconnect, Request

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import patch, validate
from cluster_controller.resources.registry import ResourceType
from cluster_controller.resources.shape import depth_problem, without_nulls
from openapi import protobuf
from openapi.errors import ApiError

LARGEST_BODY = validate.LARGEST_DOCUMENT
JSON_PATCH, MERGE_PATCH, STRATEGIC = "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"
APPLY = ("application/apply-patch+yaml", "application/apply-patch+cbor")


async def read_body(request: Request, limit: int = LARGEST_BODY) -> bytes:
    """The whole body; 413 as soon as it is known to be longer than ``limit`` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and len(declared) < 20 and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its request was complete") from None
    return bytes(body)


async def read_document(request: Request) -> dict[str, Any]:
    """The JSON object of a POST or PUT."""
    return parse_document(request, await read_body(request))


def parse_document(request: Request, body: bytes) -> dict[str, Any]:
    media = media_type(request)
    if media == protobuf.MEDIA:
        return protobuf.decode(body)
    if media not in ("", "application/json"):
        raise ApiError(415, f"the body is {media[:80]}; send application/json")
    return validate.parse(body)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_patch(request: Request, resource: ResourceType) -> "PatchBody":
    media = media_type(request)
    if media in APPLY:
        raise ApiError(
            415,
            "server-side apply is not served yet: use kubectl apply without --server-side, which computes the same change on the client",
        )
    if media == STRATEGIC and resource.group:
        raise ApiError(415, f"strategic merge is for core kinds; for {resource.kind} use --type=merge or --type=json ({MERGE_PATCH})")
    if media not in (JSON_PATCH, MERGE_PATCH, STRATEGIC):
        raise ApiError(415, f"the patch is {media[:80] or 'of no type'}; send {JSON_PATCH} or {MERGE_PATCH}")
    return PatchBody(media, validate.parse_json(await read_body(request)))


class PatchBody:
    """A patch that was read, to be applied to whatever is there when its turn comes."""

    def __init__(self, media: str, content: object) -> None:
        self._media = media
        self._content = content

    def apply(self, document: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._media == JSON_PATCH:
                result = patch.json_patch(document, self._content)
            elif self._media == MERGE_PATCH:
                result = patch.merge_patch(document, self._content)
            else:
                result = patch.strategic_merge(document, self._content)
        except InvalidInput as error:
            raise ApiError(422, str(error)) from None
        problem = depth_problem(result)
        if problem:
            raise ApiError(422, problem)
        cleaned: dict[str, Any] = without_nulls(result)
        return cleaned


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request body has more than {limit} bytes, the most that is taken")
