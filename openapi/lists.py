"""Lists in pages: every page of one list shows the same revision, and no page holds the event loop for long.

The first page fixes the revision; the continue token carries it and the last key. A revision past the journal is 410 and the
client lists again. A long page is encoded in slices, giving the loop a turn between them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from msgspec import Struct

from cluster_controller.resources.registry import ResourceType
from cluster_controller.store import Store, Stored
from openapi.present import Printer, labels_of
from openapi.query import Continue, ListOptions, encode_continue

SLICE = 200  # objects encoded without giving way


class Page(Struct):
    items: list[Stored]
    revision: int
    next: str = ""
    remaining: int = 0


def matcher(options: ListOptions) -> Callable[[Stored], bool] | None:
    """Whether an object is in the list; None when every one is."""
    labels, fields = options.labels, options.fields
    if not labels and not fields:
        return None

    def matches(stored: Stored) -> bool:
        if labels and not labels.matches(labels_of(stored)):
            return False
        return not fields or fields.matches(_with_names(stored))

    return matches


def page_of(store: Store, resource: ResourceType, namespace: str, options: ListOptions) -> Page:
    """Raises Expired when the wanted revision is past the journal."""
    revision, after = store.revision, None
    if options.page is not None:
        revision, after = options.page.revision, (options.page.namespace, options.page.name)
    elif options.match == "Exact" and options.version:
        revision = options.version
    where = namespace or None
    single = options.fields.exactly("metadata.namespace")
    if where is None and single is not None and resource.namespaced:
        where = single
    matches = matcher(options)
    if matches is None:
        items, remaining = store.list_at(resource.space, resource.kind, revision, where, after=after, limit=options.limit)
        return Page(items, revision, _next(items, revision) if remaining else "", remaining)
    everything, _ = store.list_at(resource.space, resource.kind, revision, where, after=after)
    found: list[Stored] = []
    for stored in everything:
        if matches(stored):
            if options.limit and len(found) == options.limit:
                return Page(found, revision, _next(found, revision))
            found.append(stored)
    return Page(found, revision)


async def encode_page(page: Page, printer: Printer) -> AsyncIterator[bytes]:
    metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
    if page.next:
        metadata["continue"] = page.next
    if page.remaining:
        metadata["remainingItemCount"] = page.remaining
    head, tail = printer.list_frame(metadata)
    yield head
    for start in range(0, len(page.items), SLICE):
        body = b",".join(map(printer.item, page.items[start : start + SLICE]))
        yield b"," + body if start else body
        await asyncio.sleep(0)
    yield tail


def _next(items: list[Stored], revision: int) -> str:
    last = items[-1].key
    return encode_continue(Continue(revision, last.namespace, last.name))


def _with_names(stored: Stored) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(stored.document)
    metadata = document.get("metadata") or {}
    document["metadata"] = {**metadata, "name": stored.key.name, "namespace": stored.key.namespace}
    return document
