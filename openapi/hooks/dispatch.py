"""One `KindHooks` for all kinds: each kind's own where it has one, nothing elsewhere."""

from collections.abc import Mapping
from typing import Any

from openapi.services import Ask, KindHooks, NoHooks, Write


class Hooks:
    def __init__(self, by_kind: Mapping[str, KindHooks]) -> None:
        self._by_kind = by_kind
        self._none = NoHooks()

    def _of(self, kind: str) -> KindHooks:
        return self._by_kind.get(kind, self._none)

    def prepare_create(self, write: Write) -> Mapping[str, Any] | None:
        return self._of(write.resource.kind).prepare_create(write)

    def prepare_update(self, write: Write) -> Mapping[str, Any] | None:
        return self._of(write.resource.kind).prepare_update(write)

    def prepare_delete(self, write: Write) -> None:
        self._of(write.resource.kind).prepare_delete(write)

    async def subresource(self, ask: Ask) -> Mapping[str, Any]:
        return await self._of(ask.resource.kind).subresource(ask)
