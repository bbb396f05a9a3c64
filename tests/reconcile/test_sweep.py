"""What models of versions past leave behind goes as soon as nobody can need it, and no sooner."""

import asyncio
from pathlib import Path

from cluster_controller.reconcile.holds import Holds
from cluster_controller.resources import kinds
from cluster_controller.store import Key, Store
from cluster_shim.contract import Observed
from tests.reconcile.bench import Bench, FakeModels, command, play, running, saw, serve, until


def names(bench: Bench) -> set[str]:
    """The folders that the last sweep was to leave; a fake library lays versions out under their names."""
    return {name for name in bench.models.swept[-1] if len(name) == 1}


def test_a_folder_stays_while_an_instance_of_its_version_runs(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels("1", "2")
        async with running(tmp_path, models) as bench:
            await bench.model("1", "2")
            await bench.work(1, serve("1"))
            await until(lambda: bench.shim.told and bench.shim.told[-1].works)
            before = bench.shim.last()
            await bench.see(saw(before))
            await until(lambda: models.swept)
            assert names(bench) == {"1"}
            await bench.work(2, serve("2"))
            await until(lambda: bench.shim.last().version == 2)
            count = len(models.swept)
            await bench.see(saw(before))  # the old revision still runs, and may have to be started again
            assert len(models.swept) == count
            await bench.see(saw(bench.shim.last()))
            await until(lambda: len(models.swept) > count)
            assert names(bench) == {"2"}
            count = len(models.swept)
            await bench.see(saw(bench.shim.last()))  # nothing changed, so nothing is looked for
            assert len(models.swept) == count

    play(main)


def test_a_removed_work_gives_its_folder_back_when_the_shim_has_let_go(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            await bench.model("1")
            await bench.work(1, serve("1"))
            await until(lambda: bench.shim.told and bench.shim.told[-1].works)
            await bench.see(saw(bench.shim.last()))
            await until(lambda: models.swept)
            count = len(models.swept)
            await bench.delete(Key("local", "Work", "", "app"))
            await until(lambda: bench.shim.told[-1].removed)
            await bench.see(saw(bench.shim.last()))
            assert len(models.swept) == count
            bench.shim.news.put_nowait(Observed(removed=("app",)))
            await until(lambda: len(models.swept) > count)
            assert models.swept[-1] == set()

    play(main)


def test_what_is_still_on_its_way_is_needed_and_so_is_what_serves_meanwhile(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            await bench.model("1", "2")
            await bench.work(1, serve("1"))
            await until(lambda: bench.shim.told and bench.shim.told[-1].works)
            await bench.work(2, serve("2"))
            await until(lambda: models.asked and bench.shim.last().version == 2)
            await bench.see(saw(bench.shim.last()))
            await until(lambda: models.swept)
            assert names(bench) == {"1"}
            assert len(models.swept[-1]) == 2, "and the key of version 2"

    play(main)


class Held:
    """The blobs that are held now, by owner."""

    def __init__(self) -> None:
        self.by: dict[str, set[str]] = {}
        self.kept: dict[str, set[str]] = {}

    def keep(self, owner: str, digests: object) -> None:
        self.kept[owner] = {digest[0] for digest in digests}  # type: ignore[attr-defined]

    def hold(self, owner: str, digests: object) -> None:
        self.by[owner] = set(digests)  # type: ignore[call-overload]

    def all(self) -> set[str]:
        return {digest[0] for digests in self.by.values() for digest in digests}


def test_blobs_of_the_version_that_runs_are_held_and_those_of_the_ones_before_are_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels("1", "2")) as bench:
            held = Held()
            holds = Holds(bench.store, held)
            holds.load()
            bench.store.subscribe(holds.changed, kinds=holds.heeds)
            await bench.work(1, serve("1"), command())
            assert held.all() == set(), "the Model has yet to come"
            await bench.model("1", "2")
            assert held.all() == {"1"}
            await bench.work(2, serve("2"))
            assert held.all() == {"2"}
            assert held.kept == {"work/app": {"1"}}, "the version before is kept while there is room"
            again = Held()
            Holds(bench.store, again).load()
            assert again.all() == {"2"} and again.kept == {"work/app": {"1"}}, "after a restart it is the one that the Model lists before"
            await bench.work(3, serve("1"))
            assert held.all() == {"1"} and held.kept == {"work/app": {"2"}}, "what ran before, wherever it is listed"
            await bench.delete(Key("local", "Work", "", "app"))
            assert held.all() == set() and held.kept == {"work/app": set()}

    play(main)


def test_blobs_of_a_published_model_are_held_until_it_is_deleted(tmp_path: Path) -> None:
    async def main() -> None:
        store = await Store.open(tmp_path)
        held = Held()
        holds = Holds(store, held)
        store.subscribe(holds.changed, kinds=holds.heeds)
        versions = [kinds.ModelVersion(name=one, files=[kinds.ModelFile(path="m", sha256=one * 64, size=1)]) for one in "12"]
        document = kinds.Model(metadata=kinds.Metadata(name="emotion", uid="m"), spec=kinds.ModelSpec(versions=versions))
        from cluster_controller.documents import encode

        key = Key("own", "Model", "default", "emotion")
        await store.commit(lambda tx: tx.put(key, encode(document), uid="m"))
        assert held.all() == {"1", "2"}
        await store.commit(lambda tx: tx.delete(key))
        assert held.all() == set()
        await store.close()

    asyncio.run(main())
