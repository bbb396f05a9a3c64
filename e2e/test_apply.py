"""Works into a real API server: order, conflicts, drift, pruning, namespaces."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster_shim import contract
from cluster_shim.contract import Desired
from cluster_shim.kubernetes import applyset, names
from cluster_shim.kubernetes.shim import Access, KubernetesShim
from e2e.applying import (
    APPLY,
    SETTINGS,
    Bench,
    bench,
    config_map,
    configs,
    container,
    definition,
    deployment,
    eventually,
    manifest,
    of_manifests,
    unique,
    with_components,
    work,
)
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
SCALE = {"apiVersion": "autoscaling/v1", "kind": "Scale"}


# --- what is written ---


def test_an_unchanged_work_costs_no_write(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            web = container(env={"A": "1"}, files=(contract.File(path="f", content=b"x"),))
            mine = work(web)
            assert await b.apply(mine) == {}
            made = await b.get(deployment(mine))
            assert made["metadata"]["labels"][names.PART_OF] == applyset.id_of("default")
            # A controller that has just started knows nothing but what the member says.
            async with bench(control_plane) as again:
                assert mine.uid in again.applier.uids()
                before = b.writes()
                for one in (b, b, again, again):
                    assert await one.apply(mine) == {}
                assert (await b.get(deployment(mine)))["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
                changed = with_components(mine, msgspec.structs.replace(web, env={"A": "2"}))
                assert await again.apply(changed) == {}
            name = names.object_name("app", "web", mine.uid)

            async def logged() -> bool:
                return b.writes()[len(before) :] == [("patch", "deployments", name)]

            await eventually("the one change is all that was written", logged)
            await b.remove(mine.uid)
            assert await b.get(deployment(mine)) == {}
            assert mine.uid not in b.applier.uids()

    asyncio.run(run())


def test_what_is_wanted_no_more_goes_and_what_cannot_be_rendered_stays(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            first, second = unique("first"), unique("second")
            mine = work(of_manifests(config_map(first)), of_manifests(config_map(second), name="more"))
            assert await b.apply(mine) == {}
            broken = contract.Component(name="more", replicas=1, revision="2", manifests=(b"{}",))
            said = await b.apply(with_components(mine, of_manifests(config_map(first)), broken))
            assert said["more"][0] == "NotRendered" and "apiVersion" in said["more"][1]
            assert await b.get(configs(second))
            assert await b.apply(with_components(mine, of_manifests(config_map(second)))) == {}
            assert await b.get(configs(first)) == {}
            await b.remove(mine.uid)

    asyncio.run(run())


def test_one_component_in_trouble_does_not_hold_the_others(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            bad = manifest("apps/v1", "Deployment", "Not A Name", spec={})
            unknown = manifest("nowhere.example/v1", "Thing", "t")
            mine = work(container(), of_manifests(bad, name="bad"), of_manifests(unknown, name="unknown"))
            said = await b.apply(mine)
            assert said["bad"][0] == "Invalid" and "Deployment default/Not A Name" in said["bad"][1]
            assert said["unknown"][0] == "UnknownKind" and "Thing" in said["unknown"][1]
            assert set(said) == {"bad", "unknown"}
            assert await b.get(deployment(mine))
            await b.remove(mine.uid)

    asyncio.run(run())


def test_an_object_belongs_to_one_application(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("one")
            first, second = work(of_manifests(config_map(name, a="1"))), work(of_manifests(config_map(name, a="2")))
            assert await b.apply(first) == {}
            said = await b.apply(second)
            assert said["things"][0] == "OwnedByAnother" and first.uid in said["things"][1]
            assert (await b.get(configs(name)))["data"] == {"a": "1"}
            await b.remove(first.uid)
            assert await b.apply(second) == {}
            await b.remove(second.uid)

    asyncio.run(run())


# --- definitions of kinds ---


def test_a_definition_comes_before_its_objects_and_goes_after_them(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            plural = unique("wheels").replace("-", "")
            wheel = manifest(f"{plural}.dev/v1", "Wheel", "front", spec={"size": 3})
            mine = work(of_manifests(wheel, definition(plural, "Wheel", f"{plural}.dev")))
            assert await b.apply(mine) == {}
            path = f"/apis/{plural}.dev/v1/namespaces/default/{plural}"
            assert (await b.get(f"{path}/front"))["spec"] == {"size": 3}
            kinds = (await b.get(configs(applyset.PARENT)))["metadata"]["annotations"][applyset.KINDS].split(",")
            assert f"Wheel.{plural}.dev" in kinds and kinds == sorted(kinds)
            await b.remove(mine.uid)
            assert await b.get(f"{path}/front") == {}

            async def gone() -> bool:
                return await b.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{plural}.dev") == {}

            await eventually("the definition is gone too", gone)

    asyncio.run(run())


def test_a_definition_with_objects_of_others_is_let_go_and_stays(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            plural = unique("doors").replace("-", "")
            crd = definition(plural, "Door", f"{plural}.dev")
            mine = work(of_manifests(crd))
            assert await b.apply(mine) == {}
            path = f"/apis/{plural}.dev/v1/namespaces/default/{plural}"
            theirs = manifest(f"{plural}.dev/v1", "Door", "theirs")

            async def made() -> bool:
                return bool(await b.get(path)) and bool(await b.by_hand("POST", path, theirs))

            await eventually("somebody makes one", made)
            await b.remove(mine.uid)
            assert mine.uid not in b.applier.uids()
            assert await b.get(f"{path}/theirs")
            left = (await b.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{plural}.dev"))["metadata"]
            assert left["annotations"][names.KEPT_FROM] == mine.uid
            assert names.APPLICATION_UID not in left.get("labels", {})
            assert await b.apply(mine) == {}  # and is ours again when it is wanted again
            await b.by_hand("DELETE", f"{path}/theirs")
            await b.remove(mine.uid)

    asyncio.run(run())


# --- conflicts ---


def test_what_another_manager_declares_is_left_to_it_and_the_rest_is_applied(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("shared")
            mine = work(of_manifests(config_map(name, ours="1", theirs="1")))
            assert await b.apply(mine) == {}
            await b.by_hand("PATCH", configs(name), config_map(name, theirs="2"), manager="argocd", content=APPLY, force=True)
            await b.until_touched(mine.uid)
            changed = with_components(mine, of_manifests(config_map(name, ours="3", theirs="3")))
            for _ in range(2):  # and says so again
                said = await b.apply(changed)
                assert said["things"][0] == "Conflict"
                assert ".data.theirs by argocd" in said["things"][1] and f"ConfigMap default/{name}" in said["things"][1]
                assert (await b.get(configs(name)))["data"] == {"ours": "3", "theirs": "2"}
            assert await b.apply(msgspec.structs.replace(changed, force_conflicts=True)) == {}
            assert (await b.get(configs(name)))["data"] == {"ours": "3", "theirs": "3"}
            await b.remove(mine.uid)

    asyncio.run(run())


def test_an_autoscaler_keeps_the_scale_and_a_person_does_not(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            mine = work(container(replicas=2))
            assert await b.apply(mine) == {}
            scale = {"spec": {"replicas": 5}}
            await b.by_hand("PATCH", f"{deployment(mine)}/scale", scale, manager="kubectl")
            await b.until_touched(mine.uid)
            assert await b.apply(mine) == {}
            assert (await b.get(deployment(mine)))["spec"]["replicas"] == 2
            await b.by_hand("PATCH", f"{deployment(mine)}/scale", scale, manager="kube-controller-manager")
            await b.until_touched(mine.uid)
            changed = with_components(mine, container(replicas=2, image="nowhere/web:2"))
            said = await b.apply(changed)
            assert said["web"][0] == "Conflict" and ".spec.replicas by kube-controller-manager (its scale)" in said["web"][1]
            spec = (await b.get(deployment(mine)))["spec"]
            assert spec["replicas"] == 5
            assert spec["template"]["spec"]["containers"][0]["image"] == "nowhere/web:2"
            await b.remove(mine.uid)

    asyncio.run(run())


def test_what_is_there_already_is_not_taken_over_unless_it_is_said(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("theirs")
            await b.by_hand("POST", configs("").rstrip("/"), config_map(name, a="theirs"), manager="kubectl-create")
            mine = work(of_manifests(config_map(name, a="ours")))
            said = await b.apply(mine)
            assert said["things"][0] == "Conflict" and "is not ours" in said["things"][1] and "kubectl-create" in said["things"][1]
            assert (await b.get(configs(name)))["data"] == {"a": "theirs"}
            assert await b.apply(msgspec.structs.replace(mine, force_conflicts=True)) == {}
            assert (await b.get(configs(name)))["data"] == {"a": "ours"}
            await b.remove(mine.uid)

    asyncio.run(run())


# --- drift ---


async def change_by_hand(b: Bench, mine: contract.Work, name: str) -> None:
    await b.by_hand("PATCH", configs(name), {"data": {"a": "by hand", "extra": "theirs"}})
    await b.until_touched(mine.uid)


def test_drift_is_set_right_and_what_others_add_stays(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("drift")
            mine = work(of_manifests(config_map(name, a="1", b="1")))
            assert await b.apply(mine) == {}
            await change_by_hand(b, mine, name)
            assert await b.apply(mine) == {}
            assert (await b.get(configs(name)))["data"] == {"a": "1", "b": "1", "extra": "theirs"}
            # A field that is taken away, and our labels.
            labels = {"labels": {names.COMPONENT_LABEL: None}}
            await b.by_hand("PATCH", configs(name), {"data": {"b": None}, "metadata": labels})
            await b.until_touched(mine.uid)
            assert await b.apply(mine) == {}
            await b.by_hand("PATCH", configs(name), {"metadata": {"labels": {names.APPLICATION_UID: "nobody", names.PART_OF: None}}})
            await b.until_touched(mine.uid)
            assert await b.apply(mine) == {}
            found = await b.get(configs(name))
            assert found["data"]["b"] == "1"
            assert found["metadata"]["labels"][names.APPLICATION_UID] == mine.uid
            # Deleted altogether.
            await b.by_hand("DELETE", configs(name))
            await b.until_touched(mine.uid)
            assert await b.apply(mine) == {}
            assert (await b.get(configs(name)))["data"] == {"a": "1", "b": "1"}
            await b.remove(mine.uid)

    asyncio.run(run())


def test_drift_while_nobody_watched_is_seen_at_the_next_start(control_plane: Member) -> None:
    async def run() -> None:
        name = unique("unseen")
        mine = work(of_manifests(config_map(name, a="1", b="1")))
        async with bench(control_plane) as b:
            assert await b.apply(mine) == {}
        async with bench(control_plane) as b:
            await b.by_hand("PATCH", configs(name), {"data": {"b": None}})  # leaves no trace but in our own entry
        async with bench(control_plane) as b:
            assert await b.apply(mine) == {}
            assert (await b.get(configs(name)))["data"] == {"a": "1", "b": "1"}
            await b.remove(mine.uid)

    asyncio.run(run())


def test_drift_is_only_told_where_the_application_says_so(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            name = unique("told")
            mine = work(of_manifests(config_map(name, a="1", b="1")), report_drift=True)
            assert await b.apply(mine) == {}
            await change_by_hand(b, mine, name)
            version = (await b.get(configs(name)))["metadata"]["resourceVersion"]
            for _ in range(2):
                said = await b.apply(mine)
                assert said["things"][0] == "Drifted"
                assert f"ConfigMap default/{name}" in said["things"][1] and ".data.a by kubectl-edit" in said["things"][1]
            assert (await b.get(configs(name)))["metadata"]["resourceVersion"] == version
            await b.by_hand("PATCH", configs(name), {"data": {"a": "1", "b": None}})
            await b.until_touched(mine.uid)
            said = await b.apply(mine)
            assert said["things"][0] == "Drifted" and ".data.b" in said["things"][1]
            assert await b.apply(msgspec.structs.replace(mine, report_drift=False)) == {}
            assert (await b.get(configs(name)))["data"]["b"] == "1"
            await b.remove(mine.uid)

    asyncio.run(run())


# --- namespaces ---


def test_a_namespace_is_made_and_goes_with_the_last_of_ours(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            place = unique("ours")
            one, two = work(container(), namespace=place), work(of_manifests(config_map("c")), namespace=place)
            assert await b.apply(one) == {}
            assert await b.apply(two) == {}
            made = await b.get(f"/api/v1/namespaces/{place}")
            assert made["metadata"]["labels"][names.OWN_NAMESPACE] == "true"
            await b.remove(one.uid)
            assert (await b.get(f"/api/v1/namespaces/{place}"))["status"]["phase"] == "Active"
            await b.remove(two.uid)
            left = await b.get(f"/api/v1/namespaces/{place}")
            assert left == {} or left["metadata"].get("deletionTimestamp")

    asyncio.run(run())


def test_a_namespace_with_something_of_others_stays(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            place, other = unique("shared"), unique("before")
            mine = work(container(), namespace=place)
            assert await b.apply(mine) == {}
            await b.by_hand("POST", f"/api/v1/namespaces/{place}/secrets", manifest("v1", "Secret", "theirs"))
            await b.remove(mine.uid)
            assert "deletionTimestamp" not in (await b.get(f"/api/v1/namespaces/{place}"))["metadata"]
            assert await b.get(f"/api/v1/namespaces/{place}/secrets/theirs")
            assert await b.get(configs(applyset.PARENT, place)) == {}
            # One that was there before is not ours to remove, empty as it may be.
            await b.namespace(other)
            mine = work(container(), namespace=other)
            assert await b.apply(mine) == {}
            await b.remove(mine.uid)
            assert "deletionTimestamp" not in (await b.get(f"/api/v1/namespaces/{other}"))["metadata"]

    asyncio.run(run())


def test_what_an_application_keeps_outlives_it(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            mine = work(container(volumes=(contract.Volume(name="data", path="data"),)))
            assert await b.apply(mine) == {}
            claims = "/api/v1/namespaces/default/persistentvolumeclaims"
            name = names.object_name("app", "web-data", mine.uid, limit=names.MAX_NAME)
            uid = (await b.get(f"{claims}/{name}"))["metadata"]["uid"]
            await b.remove(mine.uid)
            assert mine.uid not in b.applier.uids()
            assert await b.get(deployment(mine)) == {}
            assert (await b.get(f"{claims}/{name}"))["metadata"]["uid"] == uid
            assert await b.apply(mine) == {}  # it comes back, and finds it
            assert (await b.get(f"{claims}/{name}"))["metadata"]["uid"] == uid
            await b.remove(mine.uid)
            await b.by_hand("DELETE", f"{claims}/{name}")

    asyncio.run(run())


# --- the whole shim ---


CHANGES = 12  # each of another object: of one that is changed again and again the correction waits ever longer
DRIFT_SECONDS = 2.0  # within which a change by hand is seen and set right: a promise, not a patience


async def corrected(b: Bench, name: str) -> float:
    """Seconds from a change by hand until it is set right."""
    await b.by_hand("PATCH", configs(name), {"data": {"a": "by hand"}})
    changed = time.monotonic()
    async with asyncio.timeout(DRIFT_SECONDS):
        while (await b.get(configs(name)))["data"] != {"a": "1"}:
            await asyncio.sleep(0.01)
    return time.monotonic() - changed


def test_the_shim_sets_right_what_somebody_changed(control_plane: Member, tmp_path: Path) -> None:
    async def run() -> None:
        shim = KubernetesShim(Access(kubeconfig=str(control_plane.kubeconfig)), SETTINGS, tmp_path)
        name, *beside = (unique("whole") for _ in range(CHANGES))
        mine = work(of_manifests(*(config_map(each, a="1") for each in (name, *beside))))
        wanted: asyncio.Queue[Desired | None] = asyncio.Queue()
        told: dict[str, Any] = {}

        async def desired() -> Any:
            while (one := await wanted.get()) is not None:
                yield one

        async def listen() -> None:
            async for observed in shim.reconcile(desired()):
                told.update({one.uid: one for one in observed.works})
                for uid in observed.removed:
                    told.pop(uid, None)

        async with bench(control_plane) as b:
            listening = asyncio.create_task(listen())
            await wanted.put(Desired(works=(mine,), full=True))

            async def data() -> Any:
                return (await b.get(configs(name))).get("data")

            async def is_right() -> bool:
                return await data() == {"a": "1"}

            async def are_there() -> bool:
                return all([await b.get(configs(each)) for each in (name, *beside)])

            await eventually("they are there", are_there)
            took = [await corrected(b, each) for each in (name, *beside)]
            print(f"\nset right after {sorted(round(each * 1000) for each in took)} ms")
            await b.by_hand("DELETE", configs(name))
            await eventually("it is made anew", is_right)
            await b.by_hand("PATCH", configs(name), {"metadata": {"finalizers": ["e2e.banyan.dev/hold"]}})
            await wanted.put(Desired(removed=(mine.uid,)))

            async def held() -> bool:
                return any(one.reason == "Terminating" and "e2e.banyan.dev/hold" in one.message for one in told[mine.uid].components)

            await eventually("what holds it is told", held)
            await b.by_hand("PATCH", configs(name), {"metadata": {"finalizers": None}})

            async def gone() -> bool:
                return mine.uid not in told

            await eventually("it is gone", gone)
            await wanted.put(None)
            await listening
        await shim.close()

    asyncio.run(run())


def test_the_parent_of_an_applyset_is_as_the_specification_has_it(control_plane: Member) -> None:
    async def run() -> None:
        async with bench(control_plane) as b:
            place, elsewhere = unique("set"), unique("elsewhere")
            await b.namespace(elsewhere)
            mine = work(container(), of_manifests(config_map("far", elsewhere)), namespace=place)
            assert await b.apply(mine) == {}
            meta = (await b.get(configs(applyset.PARENT, place)))["metadata"]
            assert meta["labels"]["applyset.kubernetes.io/id"] == applyset.id_of(place)
            assert meta["annotations"]["applyset.kubernetes.io/tooling"].startswith("banyan/v")
            assert meta["annotations"]["applyset.kubernetes.io/contains-group-kinds"] == "ConfigMap,Deployment.apps,Service"
            assert meta["annotations"]["applyset.kubernetes.io/additional-namespaces"] == elsewhere
            said = json.loads(
                control_plane.kubectl("get", "deploy,svc", "-n", place, "-l", f"{names.PART_OF}={applyset.id_of(place)}", "-o", "json")
            )
            assert len(said["items"]) == 2
            await b.remove(mine.uid)
            assert await b.get(configs("far", elsewhere)) == {}

    asyncio.run(run())


def test_a_job_that_removes_itself_runs_once_also_for_a_controller_that_was_away(kwok_member: Member, tmp_path: Path) -> None:
    """To an applier that compares what is wanted with what is there it looks deleted; for one that was away nothing was seen to end."""
    place, name = unique("jobs"), unique("once")

    def job(parallelism: int = 1) -> dict[str, Any]:
        pod = {"containers": [{"name": "it", "image": "nowhere/it:1"}], "restartPolicy": "Never"}
        spec = {"ttlSecondsAfterFinished": 0, "parallelism": parallelism, "template": {"spec": pod}}
        return manifest("batch/v1", "Job", name, spec=spec)

    async def run() -> None:
        mine = work(of_manifests(job()), namespace=place)
        path = f"/apis/batch/v1/namespaces/{place}/jobs/{name}"

        def runs(b: Bench) -> int:
            return sum(resource == "jobs" and of == name for _, resource, of in b.writes())

        async def gone(b: Bench) -> bool:
            return not await b.get(path)

        async def seen(b: Bench, times: int = 2) -> bool:
            return runs(b) >= times

        async with bench(kwok_member, remembered=tmp_path) as b:
            await b.namespace(place)
            assert await b.apply(mine) == {}
        async with bench(kwok_member, remembered=tmp_path) as b:
            await eventually("the job has run and removed itself", lambda: gone(b))
            for _ in range(3):
                assert await b.apply(mine) == {}
            assert await gone(b)
            changed = with_components(mine, of_manifests(job(2)))
            assert await b.apply(changed) == {}
            await b.until_touched(mine.uid)
            await eventually("the other one has run and removed itself", lambda: gone(b))
            assert await b.apply(changed) == {}
            await eventually("both are in the log", lambda: seen(b))
            assert runs(b) == 2
            await b.remove(mine.uid)
            assert await b.apply(mine) == {}, "an application that is made anew runs it anew"
            await eventually("it runs", lambda: seen(b, 3))
            await b.remove(mine.uid)

    asyncio.run(run())
