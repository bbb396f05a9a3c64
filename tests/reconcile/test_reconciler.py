"""The reconciler: what the shim is told of Works and the documents they name, and what is written of what it sees."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cluster_controller.documents import decode
from cluster_controller.reconcile.reconciler import Reconciler
from cluster_controller.resources import kinds
from cluster_controller.store import Key
from cluster_shim.contract import (
    ByteStream,
    Description,
    Desired,
    Instance,
    Node,
    Observed,
    ObservedWork,
    OpenTarget,
    Phase,
    ShimError,
)
from tests.reconcile.bench import PASSWORD, SECONDS, FakeModels, command, component, play, running, saw, serve, until

# --- down


def test_the_shim_is_told_everything_first_and_then_changes(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            first = await bench.told(1)
            assert (first.full, first.works) == (True, ())
            await bench.work(1, command(), uid="a")
            second = await bench.told(2)
            assert (second.full, [work.uid for work in second.works], second.removed) == (False, ["a"], ())
            assert (second.works[0].version, second.works[0].name, second.works[0].origin) == (1, "emotion", "root")
            await bench.delete(Key("local", "Work", "", "a"))
            third = await bench.told(3)
            assert (third.works, third.removed) == ((), ("a",))
            assert bench.store.fact("reconcile/applied/a") is None

    play(main)


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (kinds.ApplyPolicy(), (False, False, False)),
        (kinds.ApplyPolicy(drift="Report"), (True, False, False)),
        (kinds.ApplyPolicy(conflicts="Force"), (False, True, False)),
        (kinds.ApplyPolicy(immutable_fields="Recreate"), (False, False, True)),
    ],
    ids=["as it is unless said otherwise", "drift", "conflicts", "immutableFields"],
)
def test_how_objects_are_to_be_kept_is_told(tmp_path: Path, policy: kinds.ApplyPolicy, told: tuple[bool, bool, bool]) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(), apply=policy)
            (work,) = (await bench.told(2)).works
            assert (work.report_drift, work.force_conflicts, work.recreate) == told

    play(main)


def test_what_instances_hold_of_the_accelerators_is_counted_by_node(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            greedy = command(resources=kinds.Resources(accelerators={"nvidia.com/gpu": 2}), replicas=2)
            await bench.work(1, greedy, command("modest"))
            assert bench.reconciler.sight.accelerators_held() == {}
            seen = saw((await bench.told(2)).works[0])
            instances = [msgspec.structs.replace(each, node="a") for each in seen.instances]
            await bench.see(msgspec.structs.replace(seen, instances=tuple(instances)), full=True)
            assert bench.reconciler.sight.accelerators_held() == {("a", "nvidia.com/gpu"): 4}

    play(main)


def test_a_model_that_has_not_arrived_keeps_the_component_as_it_was_also_after_a_restart(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1", "2")
            await bench.work(1, serve("1", 2, env=[kinds.EnvVar(name="A", value="old")]), command())
            before = (await bench.told(2)).works[0]
            assert component(before, "serve").model.version == "1"  # type: ignore[union-attr]
            await bench.see(saw(before), full=True)

            await bench.work(
                2, serve("2", 3, env=[kinds.EnvVar(name="A", value="new")]), command(), placement=kinds.Placement(node_name="b")
            )
            held = (await bench.told(3)).works[0]
            kept = component(held, "serve")
            assert (kept.revision, kept.replicas, kept.env) == (component(before, "serve").revision, 3, {"A": "old"})
            assert component(held, "pump").node == "b"
            assert models.asked == ["2"]
            await bench.see(saw(held))
            status = bench.status()
            assert status is not None
            assert (status.components[0].updated, status.components[0].message) == (0, "model emotion version 2 is on its way here")

        models = FakeModels("1")
        async with running(tmp_path, models) as bench:
            again = (await bench.told(1)).works[0]
            assert component(again, "serve").revision == component(before, "serve").revision
            await bench.work(3, serve("2", 1), command(), placement=kinds.Placement(node_name="c"))
            assert component((await bench.told(2)).works[0], "serve").revision == component(before, "serve").revision
            models.here.add("2")
            models.arrival.set()
            last = (await bench.told(3)).works[0]
            assert component(last, "serve").model.version == "2"  # type: ignore[union-attr]
            assert component(last, "serve").node == "c"

    play(main)


def test_a_work_that_cannot_be_told_at_all_says_why_and_is_told_when_it_can(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels()
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1")
            await bench.work(5, serve("1", 2))
            await until(lambda: bench.status() is not None)
            status = bench.status()
            assert status is not None
            (part,) = status.components
            assert (part.desired, part.ready, part.reason, part.message) == (
                2, 0, "NotReady", "model emotion version 1 is on its way here",
            )  # fmt: skip
            assert (status.version, len(bench.shim.told)) == (5, 1)
            for share in range(6, 16):  # looked at again and again while it is on its way: asked for once
                await bench.work(share, serve("1", 2))
            await bench.quiet()
            assert models.asked == ["1"]
            models.here.add("1")
            models.arrival.set()
            assert component((await bench.told(2)).works[0], "serve").replicas == 2

    play(main)


def test_two_applications_wait_for_one_model_even_when_the_first_goes(tmp_path: Path) -> None:
    async def main() -> None:
        models = FakeModels()
        async with running(tmp_path, models) as bench:
            await bench.told(1)
            await bench.model("1")
            await bench.work(1, serve(), uid="a")
            await until(lambda: models.asked)
            await bench.work(1, serve(), uid="b")
            await bench.delete(Key("local", "Work", "", "a"))
            await until(lambda: len(bench.shim.told) == 2)
            assert bench.shim.told[-1].removed == ("a",)
            models.here.add("1")
            models.arrival.set()
            await until(lambda: any(work.uid == "b" for one in bench.shim.told for work in one.works))
            assert models.asked == ["1"]

    play(main)


def test_a_secret_that_is_gone_stops_nothing_that_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("hunter2")
            await bench.work(1, command("a", env=PASSWORD), command("b"))
            before = (await bench.told(2)).works[0]
            assert component(before, "a").secret_env == {"P": "hunter2"}
            fact = bench.store.fact("reconcile/applied/app")
            assert fact is not None and b"hunter2" not in fact
            await bench.see(saw(before), full=True)
            await bench.delete(Key("desired", "Secret", "", "secret"))
            await bench.work(2, command("a", env=PASSWORD, replicas=2), command("b", env=[kinds.EnvVar(name="N", value="1")]))
            await until(lambda: bench.shim.last().version == 2)
            after = bench.shim.last()
            assert component(after, "a") == msgspec.structs.replace(component(before, "a"), replicas=2)
            assert component(after, "b").revision != component(before, "b").revision
            status = bench.status()
            assert status is not None and status.components[0].message == "Secret s is not here yet"  # said at once
            await bench.secret("hunter2")
            await bench.quiet()
            status = bench.status()
            assert status is not None and [part.message for part in status.components] == ["", ""]

    play(main)


def test_a_changed_secret_is_told_and_an_unchanged_world_is_not_told_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("one")
            await bench.work(1, command(env=PASSWORD))
            first = (await bench.told(2)).works[0]
            await bench.secret("one")  # no change, no event
            await bench.told(2)
            await bench.secret("two")
            second = (await bench.told(3)).works[0]
            assert first.components[0].revision != second.components[0].revision

    play(main)


# --- up


def test_pods_and_status_follow_what_is_seen_and_nothing_is_rewritten(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=2))
            work = (await bench.told(2)).works[0]
            nodes = (Node(name="box", architecture="amd64"),)
            await bench.see(saw(work), nodes=nodes, full=True)
            assert bench.pods() == ["pump-0", "pump-1"]
            assert bench.nodes == [1]
            assert [(name, instance.id) for name, instance in bench.reconciler.sight.instances()] == [
                ("emotion", "pump-0"),
                ("emotion", "pump-1"),
            ]
            await bench.see(saw(work), nodes=nodes, full=True)
            assert bench.wrote == 0
            used = (Node(name="box", architecture="amd64", used_cpu_millis=500),)
            await bench.see(nodes=used)
            assert (bench.wrote, bench.reconciler.nodes) == (0, used)  # usage is measured, never stored
            await bench.see(saw(work, instances=1))
            assert bench.pods() == ["pump-0"]
            await bench.see(nodes=(Node(name="other", architecture="arm64"),))
            assert [stored.key.name for stored in bench.store.list("observed", "Node")] == ["other"]

    play(main)


def test_a_removed_work_is_listed_until_the_shim_has_let_go_of_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=1))
            work = (await bench.told(2)).works[0]
            await bench.see(saw(work), full=True)
            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            status = bench.status()
            assert status is not None and bench.pods() == ["pump-0"]
            ending = Instance(id="pump-0", component="pump", revision="r", phase=Phase.STOPPING)
            await bench.see(ObservedWork(uid="app", version=0, instances=(ending,)))
            status = bench.status()
            assert status is not None and status.version == 0
            await bench.see(removed=("app",))
            assert (bench.status(), bench.pods(), list(bench.reconciler.sight.instances())) == (None, [], [])

    play(main)


def test_a_removed_work_without_instances_is_listed_until_the_shim_says_so_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=1))
            work = (await bench.told(2)).works[0]
            await bench.see(saw(work, ready=0, instances=0), full=True)
            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            assert bench.status() is not None
            await bench.see(removed=("app",))
            assert bench.status() is None

    play(main)


def test_a_full_observation_without_a_work_takes_its_pods_and_its_readiness(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("x")
            await bench.work(1, command(replicas=1, env=PASSWORD))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.see(full=True)
            status = bench.status()
            assert bench.pods() == []
            assert status is not None  # the Work is still wanted
            assert (status.components[0].ready, status.components[0].desired, status.version) == (0, 1, 0)

            await bench.delete(Key("local", "Work", "", "app"))
            await bench.told(3)
            await bench.see(full=True)
            assert bench.status() is None

    play(main)


def test_what_was_ready_before_a_reboot_is_not_ready_when_it_cannot_be_started(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.secret("x")
            await bench.work(1, command(replicas=1, env=PASSWORD))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.delete(Key("desired", "Secret", "", "secret"))
        async with running(tmp_path, FakeModels()) as bench:
            first = await bench.told(1)
            assert first.works == ()
            assert bench.pods() == ["pump-0"]  # until the shim has looked
            await bench.see(full=True)
            status = bench.status()
            assert status is not None and bench.pods() == []
            (part,) = status.components
            assert (part.ready, part.reason, part.message) == (0, "NotReady", "Secret s is not here yet")

    play(main)


def test_what_the_shim_runs_and_nobody_knows_is_not_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            instance = Instance(id="x-0", component="x", revision="r", phase=Phase.STOPPING)
            await bench.see(ObservedWork(uid="stranger", version=0, instances=(instance,)), full=True)
            assert (bench.status("stranger"), bench.pods()) == (None, [])
            assert [name for name, _ in bench.reconciler.sight.instances()] == ["stranger"]

    play(main)


def test_a_lower_share_is_acknowledged_when_the_rest_has_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command(replicas=3))
            await bench.see(saw((await bench.told(2)).works[0]), full=True)
            await bench.work(2, command(replicas=1))
            work = (await bench.told(3)).works[0]
            await bench.see(saw(work, instances=3))
            status = bench.status()
            assert status is not None and status.version == 0
            await bench.see(saw(work, instances=1))
            status = bench.status()
            assert status is not None and status.version == 2

    play(main)


def test_a_lost_shim_ends_the_run_and_the_next_one_tells_everything_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command())
            await bench.told(2)
            bench.shim.news.put_nowait(None)
            await asyncio.wait_for(bench.task, SECONDS)
            bench.task = asyncio.create_task(bench.reconciler.run())
            again = await bench.told(3)
            assert again.full and [work.uid for work in again.works] == ["app"]

    play(main)


def test_who_asks_is_told_when_the_shim_speaks_again_though_it_says_nothing_of_nodes(tmp_path: Path) -> None:
    """What the cluster says of itself carries the trouble: it has to be said anew."""

    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            bench.reconciler.trouble = "no answer"
            before = len(bench.nodes)
            await bench.see(full=True)
            assert bench.reconciler.trouble == ""
            assert len(bench.nodes) == before + 1

    play(main)


def test_a_shim_that_does_not_answer_after_a_restart_leaves_nothing_looking_fresh(tmp_path: Path) -> None:
    class Away:
        async def describe(self) -> Description:
            raise ShimError("no answer")

        async def open(self, target: OpenTarget) -> ByteStream:
            raise ShimError("no answer")

        async def reconcile(self, desired: AsyncIterator[Desired]) -> AsyncIterator[Observed]:
            raise ShimError("no answer")
            yield

    async def main() -> None:
        async with running(tmp_path, FakeModels()) as bench:
            await bench.told(1)
            await bench.work(1, command())
            await bench.see(saw((await bench.told(2)).works[0], instances=1), full=True)
            before = bench.status()
            assert before is not None and before.components[0].ready == 1
        async with running(tmp_path, FakeModels()) as bench:
            again = Reconciler(bench.store, Away(), bench.models, uid="me", name="edge-1", nodes_changed=lambda nodes: None)
            with pytest.raises(ShimError):
                await again.run()
            assert again.trouble == "no answer"
            status = bench.status()
            assert status is not None
            assert (status.components[0].desired, status.components[0].ready, status.components[0].reason) == (1, 0, "ShimLost")
            assert (status.clusters[0].ready, status.clusters[0].message) == (0, "no answer")
            (pod,) = (decode(stored.document, kinds.Pod) for stored in bench.store.list("observed", "Pod"))
            assert {condition.status for condition in pod.status.conditions} == {"Unknown"}

    play(main)
