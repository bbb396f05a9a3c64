"""What is written, what is left alone, and in which order."""

from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_shim.kubernetes import fields, names, plan, seen
from cluster_shim.kubernetes.plan import Contest, Item
from cluster_shim.kubernetes.render import Rendered
from cluster_shim.kubernetes.seen import Key, Seen, Settled

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no defect
UID = "app-1"


def rendered(
    kind: str = "ConfigMap", name: str = "a", *, component: str = "c", version: str = "v1", order: int = 2, **rest: Any
) -> Rendered:
    return Rendered({"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest}, component, order)


def item(kind: str = "ConfigMap", name: str = "a", *, group: str = "", namespaced: bool = True, **rest: Any) -> Item:
    return plan.complete(rendered(kind, name, **rest), group, namespaced, "default", "applyset-x-v1")


def there(made: Item, *, uid: str = UID, digest: str = "d", **changes: Any) -> Seen:
    found = Seen(
        namespace=made.key.namespace,
        name=made.key.name,
        uid="u",
        resource_version="1",
        application=uid,
        component=made.component,
        applied=made.mark,
        keep=False,
        owned=False,
        deleting=False,
        finalizers=(),
        digest=digest,
        fields=b"",
        hands=(),
    )
    return msgspec.structs.replace(found, **changes)


def settled(made: Item) -> dict[Key, Settled]:
    return {made.key: Settled(made.mark, "d")}


def action(made: Item, found: Seen | None, known: dict[Key, Settled] | None = None) -> str | None:
    return plan.judge(made, found, (known or {}).get(made.key))


def test_what_is_as_it_was_left_is_not_written() -> None:
    made = item()
    assert action(made, there(made), settled(made)) is None
    assert action(made, None) == "create"
    assert action(made, there(made, applied="other")) == "change"
    assert action(made, there(made, digest="less"), settled(made)) == "correct"
    assert action(made, there(made, applied="other"), settled(made)) == "correct"
    assert action(made, there(made, deleting=True), settled(made)) == "wait"


def test_after_a_restart_our_entry_alone_says_whether_everything_is_ours() -> None:
    made = item(data={"a": "1"})
    entry = {
        "f:metadata": {"f:labels": {f"f:{names.PART_OF}": {}}, "f:annotations": {f"f:{names.APPLIED}": {}}},
        "f:data": {"f:a": {}},
    }
    whole = msgspec.json.encode(entry)
    assert action(made, there(made, fields=whole)) is None
    del entry["f:data"]
    assert action(made, there(made, fields=msgspec.json.encode(entry))) == "correct"
    todo = plan.plan(UID, [made], {made.key: there(made, fields=whole)}, {})
    assert todo.steps == []
    assert todo.settled == {made.key: Settled(made.mark, "d")}


def test_an_object_of_another_application_is_not_taken() -> None:
    made = item()
    todo = plan.plan(UID, [made], {made.key: there(made, uid="app-2")}, {})
    assert todo.steps == []
    assert todo.prune == []
    assert [found.application for _, found in todo.foreign] == ["app-2"]


def test_what_is_wanted_no_more_is_pruned_but_not_what_could_not_be_rendered() -> None:
    kept, gone, unsure = item(name="kept"), item(name="gone"), item(name="unsure", component="broken")
    found = {one.key: there(one) for one in (kept, gone, unsure)}
    assert plan.plan(UID, [kept], found, settled(kept), {"broken"}).prune == [gone.key]
    assert plan.plan(UID, [kept], found, settled(kept)).prune == [gone.key, unsure.key]


def test_steps_come_in_order_and_what_holds_others_is_removed_last() -> None:
    namespace = item("Namespace", "n", namespaced=False, order=0)
    crd = item(plan.CRD, "d", group="apiextensions.k8s.io", namespaced=False, order=1)
    thing = item("Thing", "t", group="x.io", order=5)
    todo = plan.plan(UID, [thing, crd, namespace], {}, {})
    assert [step.item for step in todo.steps] == [namespace, crd, thing]
    left = {one.key: there(one) for one in (namespace, crd, thing)}
    assert plan.removal(left) == [thing.key]
    del left[thing.key]
    assert plan.removal(left) == [crd.key]
    del left[crd.key]
    assert plan.removal(left) == [namespace.key]
    assert plan.backwards([namespace.key, crd.key, thing.key]) == [thing.key, crd.key, namespace.key]


def test_an_object_that_waits_for_a_finalizer_holds_what_comes_after_it_and_is_named() -> None:
    thing = item("Thing", "t", group="x.io")
    crd = item(plan.CRD, "d", group="apiextensions.k8s.io", namespaced=False)
    left = {thing.key: there(thing, deleting=True, finalizers=("x.io/hold",)), crd.key: there(crd)}
    assert plan.removal(left) == []
    assert plan.held(left) == {"c": "Thing default/t waits for its finalizers x.io/hold"}
    many = {one.key: there(one, deleting=True, finalizers=("f",)) for one in (item(name=f"n{at}") for at in range(5))}
    assert plan.held(many)["c"].endswith("and 2 more")
    assert plan.held({crd.key: there(crd)}) == {}


def test_an_object_is_completed_with_what_it_lacks_and_without_what_nobody_applies() -> None:
    odd = {
        "name": "s",
        "namespace": "else",
        "uid": "u",
        "resourceVersion": "1",
        "creationTimestamp": None,
        "managedFields": [],
        "labels": {"x": "y"},
    }
    made = Rendered(
        {"apiVersion": "v1", "kind": "Secret", "metadata": odd, "stringData": {"a": "b"}, "data": {"c": "ZA=="}, "status": {}}, "c", 2
    )
    done = plan.complete(made, "", True, "default", "set")
    assert done.key == Key("", "Secret", "else", "s")
    assert done.body["metadata"] == {"name": "s", "namespace": "else", "labels": {"x": "y", names.PART_OF: "set"}}
    assert done.body["data"] == {"a": "Yg==", "c": "ZA=="}
    assert "stringData" not in done.body and "status" not in done.body
    wide = plan.complete(
        Rendered({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "x"}}, "c"), "", False, "default", "set"
    )
    assert wide.key.namespace == "" and "namespace" not in wide.body["metadata"]
    assert str(done.key) == "Secret else/s" and str(wide.key) == "Node n"


def test_two_components_cannot_bring_the_same_object() -> None:
    assert plan.twins([item(component="a"), item(component="b"), item(name="other", component="b")]) == {
        "b": "ConfigMap default/a is brought by component a too; leave one out"
    }
    assert plan.twins([item(), item(name="b")]) == {}


def test_a_component_cannot_bring_an_object_twice_with_its_namespace_and_without() -> None:
    spelt = Rendered({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}, "data": {"b": "c"}}, "c")
    both = [item(), plan.complete(spelt, "", True, "default", "set")]
    assert plan.twins(both) == {"c": "ConfigMap default/a is brought twice; leave one out"}


def test_a_job_that_has_run_is_not_made_again_until_it_is_another() -> None:
    job = item("Job", "j", group="batch", order=5)
    changed = item("Job", "j", group="batch", order=5, spec={"parallelism": 2})
    ran = {job.key: job.mark}
    todo = plan.plan(UID, [job], {}, {}, (), ran)
    assert (todo.steps, todo.over) == ([], [job])
    assert [step.action for step in plan.plan(UID, [changed], {}, {}, (), ran).steps] == ["create"]
    there_still = plan.plan(UID, [changed], {job.key: there(job)}, settled(job), (), ran)
    assert [step.action for step in there_still.steps] == ["change"]


# --- carried out, a plan leaves nothing to do ---

KINDS = (("ConfigMap", "", True, 2), ("Namespace", "", False, 0), (plan.CRD, "apiextensions.k8s.io", False, 1), ("Job", "batch", True, 5))
THINGS = [
    item(kind, name, group=group, namespaced=namespaced, order=order, component=component, data={"v": value})
    for kind, group, namespaced, order in KINDS
    for name in "abc"
    for component in "xy"
    for value in "12"
]
wanted = st.lists(st.sampled_from(THINGS), max_size=8, unique_by=lambda one: one.key)


@calm
@given(wanted, wanted, st.sets(st.sampled_from("abcd"), max_size=2))
def test_a_plan_carried_out_leaves_nothing_to_do(before: list[Item], after: list[Item], changed: set[str]) -> None:
    world = {one.key: there(one) for one in before}
    known = {one.key: Settled(one.mark, "d") for one in before}
    for key, found in world.items():
        if key.name in changed:
            found.digest = "by hand"
    todo = plan.plan(UID, after, world, known)
    written = [step.item for step in todo.steps]
    assert [one.order for one in written] == sorted(one.order for one in written)
    for one in after:
        old = world.get(one.key)
        untouched = old is not None and old.applied == one.mark and one.key.name not in changed
        assert (one in written) is not untouched
    for one in written:
        world[one.key] = there(one)
        known[one.key] = Settled(one.mark, "d")
    for key in todo.prune:
        del world[key]
    again = plan.plan(UID, after, world, known)
    assert (again.steps, again.prune, again.foreign) == ([], [], [])
    assert set(world) == {one.key for one in after}


@calm
@given(wanted)
def test_a_removal_ends_and_never_takes_what_holds_something(made: list[Item]) -> None:
    world = {one.key: there(one) for one in made}
    rounds = 0
    while world:
        now = plan.removal(world)
        assert now
        if any(key.kind in plan.LAST for key in now):
            assert all(key.kind in plan.LAST for key in world)
        for key in now:
            del world[key]
        rounds += 1
    assert rounds <= 3


# --- somebody who changes an object again and again ---


@calm
@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=200))
def test_a_contest_is_slowed_down(pauses: list[float]) -> None:
    now, contest, corrected = 1000.0, Contest(), []
    for pause in pauses:
        now += pause
        turn = contest.next(now)
        if isinstance(turn, Contest):
            contest = turn
            corrected.append(now)
        else:
            assert 0 < turn <= plan.CLIMB[-1]
    for at in corrected:
        assert sum(at <= one < at + 60 for one in corrected) <= len(plan.CLIMB)


def test_an_object_left_alone_is_set_right_at_once_again() -> None:
    contest = Contest(50, 1000.0)
    assert contest.next(1001.0) == plan.CLIMB[-1] - 1.0
    assert contest.next(1000.0 + plan.CALM_SECONDS + 1) == Contest(1, 1000.0 + plan.CALM_SECONDS + 1)
    assert Contest().next(5.0) == Contest(1, 5.0)


# --- seen ---


def test_an_object_is_read_from_its_metadata() -> None:
    document = {
        "kind": "PartialObjectMetadata",
        "metadata": {
            "name": "a",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "7",
            "deletionTimestamp": "2026-11-21T00:00:00Z",
            "finalizers": ["f"],
            "labels": {names.APPLICATION_UID: UID, names.COMPONENT_LABEL: "c", names.PART_OF: "set"},
            "annotations": {names.APPLIED: "m", "helm.sh/resource-policy": "keep"},
            "ownerReferences": [{"controller": True}],
            "managedFields": [
                {"manager": "kubectl-edit", "operation": "Update", "time": "2026-11-21T00:00:02Z", "fieldsV1": {"f:x": {}}},
                {"manager": "first", "operation": "Update", "time": "2026-11-21T00:00:01Z", "fieldsV1": {}},
                {"manager": "banyan", "operation": "Apply", "fieldsV1": {"f:data": {}}},
                {"manager": "controller", "operation": "Update", "subresource": "status", "fieldsV1": {}},
            ],
        },
    }
    found = seen.decode(msgspec.json.encode(document))
    assert (found.application, found.component, found.applied) == (UID, "c", "m")
    assert found.keep and found.owned and found.deleting and found.finalizers == ("f",)
    assert found.fields == b'{"f:data":{}}' and found.digest == fields.digest(found.fields)
    assert found.hands == ("first", "kubectl-edit")
    assert found.metadata is found


def test_a_job_says_whether_it_is_over() -> None:
    def job(*conditions: dict[str, str]) -> str:
        return seen.decode_job(msgspec.json.encode({"metadata": {"name": "j"}, "status": {"conditions": conditions}})).finished

    assert job() == ""
    assert job({"type": "Suspended", "status": "True"}, {"type": "Complete", "status": "False"}) == ""
    assert job({"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}) == "Complete"
    assert job({"type": "Failed", "status": "True"}) == "Failed"


def test_the_newer_of_two_versions() -> None:
    assert seen.newer("10", "9") and not seen.newer("9", "10") and not seen.newer("9", "9")
    assert seen.newer("a", "b") and not seen.newer("a", "a")
