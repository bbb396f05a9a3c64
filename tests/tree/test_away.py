"""What an ancestor keeps of strays, and that nothing of it stays once they are back at home."""

import asyncio
from pathlib import Path
from typing import Any, cast

from cluster_controller.store import Key, Store
from cluster_controller.tree import records
from cluster_controller.tree.away import Away, space_of


def test_what_a_stray_was_still_saying_when_it_came_home_goes_too(tmp_path: Path) -> None:
    """Its last words may be on their way to the disk when home speaks of it again."""

    async def main() -> None:
        store = await Store.open(tmp_path)
        await store.commit(lambda tx: tx.set_fact(records.FACT_STRAYS, b'["edge"]'))
        nobody = cast("Any", None)
        away = Away(store, nobody, barring=nobody, links=nobody, wall=nobody)
        said = Key(space_of("edge"), "WorkStatus", "", "w")
        await asyncio.gather(store.commit(lambda tx: tx.put(said, b"{}", uid="w")), away._forget("edge"))
        assert store.get(said) is None and not records.strays(store)
        await away.close()
        await store.close()

    asyncio.run(main())
