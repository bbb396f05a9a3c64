"""What a pod, and a workload, is said to be: from the documents that real kubelets, schedulers and controllers write."""

from typing import Any

import msgspec
import pytest
from msgspec import structs

from cluster_shim import contract
from cluster_shim.contract import Phase
from cluster_shim.kubernetes import names, narrow, status
from cluster_shim.kubernetes.status import Hints, Trouble
from tests.kubernetes.documents import NOT_READY, container, ended, pod, waiting, workload

COMPONENT = contract.Component(name="main", replicas=2, revision="r1", image="x", port=80)
WORK = contract.Work(uid="app-1", name="web", namespace="default", origin="root", version=4, components=(COMPONENT,))
BAD_IMAGE = 'Back-off pulling image "registry.invalid/x"'
UNSCHEDULABLE = "0/3 nodes are available: 3 Insufficient cpu."


def told(made: narrow.Pod, hints: Hints = status.NO_HINTS) -> tuple[Phase, str, str]:
    seen = status.instance(made, "main", hints)
    return seen.phase, seen.reason, seen.message


def test_a_ready_pod() -> None:
    seen = status.instance(pod(containerStatuses=[container(ready=True, restartCount=2)]), "main", used=(30, 1024))
    assert (seen.phase, seen.ready, seen.reason, seen.restarts, seen.revision, seen.node) == (Phase.RUNNING, True, "", 2, "r1", "n1")
    assert (seen.cpu_millis, seen.memory_bytes) == (30, 1024)
    assert seen.started_unix == 1795255200.0
    assert status.instance(pod(), "main", own=False).revision == ""


def test_one_that_is_being_deleted_is_stopping_and_not_ready_though_its_condition_says_so() -> None:
    seen = status.instance(pod(deleted="2026-11-21T10:01:00Z"), "main")
    assert (seen.phase, seen.ready) == (Phase.STOPPING, False)


PODS: list[tuple[dict[str, Any], Hints, Phase, str, str]] = [
    ({"phase": "Pending", "node": "", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                                       "message": UNSCHEDULABLE}]}, Hints(), Phase.PENDING, "Unschedulable", UNSCHEDULABLE),
    ({"phase": "Pending", "node": "", "conditions": []}, Hints(), Phase.PENDING, "", ""),
    ({"phase": "Pending", "node": "", "conditions": [{"type": "PodScheduled", "status": "True"}]}, Hints(), Phase.PENDING, "", ""),
    ({"phase": "Pending", "conditions": [NOT_READY], "containerStatuses": [container(state=waiting("ErrImagePull", BAD_IMAGE))]},
     Hints(), Phase.BACKOFF, "ImagePullBackOff", BAD_IMAGE),
    ({"phase": "Pending", "conditions": [NOT_READY], "containerStatuses": [container(state=waiting("CreateContainerError", "no key"))]},
     Hints(), Phase.BACKOFF, "CreateContainerError", "no key"),
    ({"phase": "Pending", "conditions": [NOT_READY], "containerStatuses": [container(state=waiting("ContainerCreating"))]},
     Hints(), Phase.STARTING, "", ""),
    ({"phase": "Pending", "conditions": [NOT_READY], "containerStatuses": [container(state=waiting("ContainerCreating"))]},
     Hints(warning="FailedMount: no volume"), Phase.STARTING, "Starting", "FailedMount: no volume"),
    ({"conditions": [NOT_READY], "containerStatuses": [container(restartCount=4, state=waiting("CrashLoopBackOff"), lastState=ended(3))]},
     Hints(last_line="no space"), Phase.BACKOFF, "CrashLoopBackOff", "ended with exit code 3; its last log line: no space"),
    ({"conditions": [NOT_READY], "containerStatuses": [container(restartCount=4, state=waiting("CrashLoopBackOff"))]},
     Hints(), Phase.BACKOFF, "CrashLoopBackOff", "container main ended 4 times"),
    ({"conditions": [NOT_READY], "containerStatuses": [container(restartCount=1, state=ended(137, "OOMKilled", signal=9))]},
     Hints(), Phase.BACKOFF, "OOMKilled", "OOMKilled: was ended by signal 9"),
    ({"conditions": [NOT_READY], "containerStatuses": [container(state=ended(2, message="config.yaml: no such file\n"))]},
     Hints(), Phase.BACKOFF, "Error", "ended with exit code 2; config.yaml: no such file"),
    ({"conditions": [NOT_READY], "initContainerStatuses": [container(name="g", state=waiting("CrashLoopBackOff"), lastState=ended(1))],
      "containerStatuses": [container(state=waiting("PodInitializing"))]},
     Hints(), Phase.BACKOFF, "CrashLoopBackOff", "ended with exit code 1"),
    ({"conditions": [NOT_READY], "initContainerStatuses": [container(name="get", ready=True, state=ended(0, "Completed"))],
      "containerStatuses": [container()]}, Hints(), Phase.STARTING, "", ""),
    ({"conditions": [NOT_READY], "containerStatuses": [container()]},
     Hints(unhealthy="Readiness probe failed: 500"), Phase.RUNNING, "NotReady", "Readiness probe failed: 500"),
    ({"conditions": [NOT_READY], "containerStatuses": [container(restartCount=3, lastState=ended(1))]},
     Hints(), Phase.STARTING, "CrashLoopBackOff", "ended with exit code 1; restart 3 is not ready yet"),
    ({"phase": "Failed", "conditions": [], "reason": "Evicted", "message": "The node was low on resource: memory."},
     Hints(), Phase.FAILED, "Evicted", "The node was low on resource: memory."),
    ({"phase": "Failed", "conditions": [], "containerStatuses": [container(state=ended(5))]}, Hints(last_line="bye"), Phase.FAILED, "Error",
     "ended with exit code 5; its last log line: bye"),
    ({"phase": "Failed", "conditions": []}, Hints(), Phase.FAILED, "Error", ""),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "hints", "phase", "reason", "message"), PODS)
def test_why_a_pod_is_not_ready(fields: dict[str, Any], hints: Hints, phase: Phase, reason: str, message: str) -> None:
    assert told(pod(**fields), hints) == (phase, reason, message)
    assert not status.instance(pod(**fields), "main", hints).ready


def test_how_the_newest_run_that_is_over_ended() -> None:
    made = pod(
        containerStatuses=[
            container(lastState=ended(1, at="2026-11-21T10:00:05Z")),
            container(name="b", lastState=ended(2, at="2026-11-21T10:00:09Z")),
        ]
    )
    seen = status.instance(made, "main", Hints(last_line="oh"))
    assert seen.ended is not None
    assert (seen.ended.exit_code, seen.ended.last_line, seen.ended.finished_unix) == (2, "oh", 1795255209.0)
    assert status.instance(pod(), "main").ended is None


def test_whose_log_explains_a_pod() -> None:
    crashing = pod(
        conditions=[NOT_READY], containerStatuses=[container(restartCount=2, state=waiting("CrashLoopBackOff"), lastState=ended(1))]
    )
    assert status.crashed(crashing) == ("main", 2)
    assert not status.runs_again(crashing, "main")
    flapping = pod(conditions=[NOT_READY], containerStatuses=[container(restartCount=2, lastState=ended(1))])
    assert status.runs_again(flapping, "main")
    assert status.crashed(pod(containerStatuses=[container(ready=True, lastState=ended(1))])) is None
    assert status.crashed(pod(containerStatuses=[container(state=ended(0, "Completed"))])) is None
    assert status.crashed(pod(deleted="2026-11-21T10:01:00Z", containerStatuses=[container(state=ended(1))])) is None


def test_which_pods_are_puzzling() -> None:
    assert status.puzzling(pod(conditions=[NOT_READY]))
    assert not status.puzzling(pod())
    assert not status.puzzling(pod(conditions=[NOT_READY], node=""))
    assert not status.puzzling(pod(conditions=[NOT_READY], phase="Succeeded"))
    assert not status.puzzling(pod(conditions=[NOT_READY], deleted="2026-11-21T10:01:00Z"))


def test_hints_from_events() -> None:
    def event(reason: str, message: str, at: str) -> narrow.Event:
        return msgspec.convert({"metadata": {}, "reason": reason, "message": message, "lastTimestamp": at}, narrow.Event)

    found = status.hints(
        [
            event("Unhealthy", "Readiness probe failed: 503", "2026-11-21T10:00:02Z"),
            event("Unhealthy", "Readiness probe failed: refused", "2026-11-21T10:00:01Z"),
            event("Unhealthy", "Liveness probe failed: x", "2026-11-21T10:00:03Z"),
            event("BackOff", "restarting", "2026-11-21T10:00:09Z"),
            event("FailedMount", "no such claim", "2026-11-21T10:00:04Z"),
        ],
        "last",
    )
    assert found == Hints("last", "Readiness probe failed: 503", "FailedMount: no such claim")
    assert status.hints([], "") == status.NO_HINTS


def test_the_last_line_of_a_log() -> None:
    assert status.last_line(b"one\ntwo\x1b[0m \xff\n\n  \n") == "two [0m \ufffd"
    assert status.last_line(b"") == ""
    assert len(status.last_line(b"x" * 5000)) == status.MAX_LINE


def test_what_keeps_a_pod() -> None:
    assert status.workload_of(pod()) == ("default", "Deployment", "web-main-abc123")
    assert status.workload_of(pod(owner={"kind": "StatefulSet", "name": "db", "controller": True})) == ("default", "StatefulSet", "db")
    assert status.workload_of(pod(labels={})) == ("default", "ReplicaSet", "web-main-abc123-6d5f")
    assert status.workload_of(pod(owner=None)) is None
    assert status.workload_of(pod(owner={"kind": "Thing", "name": "x"})) is None


def test_what_is_finished() -> None:
    assert status.is_finished(pod(phase="Succeeded"))
    assert status.is_finished(pod(phase="Failed"))  # a ReplicaSet makes another one
    assert not status.is_finished(pod(phase="Failed", owner={"kind": "Job", "name": "j", "controller": True}))
    assert not status.is_finished(pod(phase="Failed", owner=None))
    assert not status.is_finished(pod())


def test_whose_log_is_the_instances() -> None:
    two = pod(spec={"containers": [{"name": "proxy"}, {"name": "main"}]})
    assert status.container_of(two, "main") == "main"
    assert status.container_of(two, "other") == "proxy"
    assert status.container_of(pod(spec={"containers": []}), "other") == "other"


# --- components ---


def observed(*pods: narrow.Pod, trouble: Trouble | None = None, applied: bool = True, workloads: list[narrow.Workload] | None = None,
             component: contract.Component = COMPONENT) -> contract.ObservedComponent:  # fmt: skip
    work = msgspec.structs.replace(WORK, components=(component,))
    instances = {"main": [status.instance(each, "main") for each in pods]}
    troubles = {"main": trouble} if trouble else {}
    (found,) = status.observe("app-1", work, instances, {"main": workloads or []}, troubles, applied).components
    return found


def test_a_component_that_is_as_it_should_be() -> None:
    seen = observed(pod("a"), pod("b"))
    assert (seen.desired, seen.ready, seen.updated, seen.reason, seen.port) == (2, 2, 2, "", 80)


def test_a_component_whose_new_revision_does_not_come_keeps_counting_the_old() -> None:
    new = pod("new", phase="Pending", conditions=[NOT_READY], containerStatuses=[container(state=waiting("ImagePullBackOff", BAD_IMAGE))])
    component = msgspec.structs.replace(COMPONENT, revision="r2")
    new = msgspec.structs.replace(
        new, metadata=msgspec.structs.replace(new.metadata, labels={**new.metadata.labels, "banyan.dev/revision": "r2"})
    )
    seen = observed(pod("old"), new, component=component)
    assert (seen.ready, seen.updated, seen.reason, seen.message) == (1, 0, "ImagePullBackOff", f"new: {BAD_IMAGE}")


def test_the_worst_instance_speaks_for_the_component() -> None:
    pending = pod(
        "p", phase="Pending", node="", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no"}]
    )
    crashing = pod("c", conditions=[NOT_READY], containerStatuses=[container(state=waiting("CrashLoopBackOff"), lastState=ended(1))])
    assert observed(pending).reason == "Unschedulable"
    assert observed(pending, crashing).reason == "CrashLoopBackOff"
    assert observed(pod("s", conditions=[NOT_READY], containerStatuses=[container()])).reason == "Starting"


def test_what_applying_met_comes_first() -> None:
    seen = observed(pod("a"), pod("b"), trouble=Trouble("Conflict", "kubectl owns .spec.replicas"), applied=False)
    assert (seen.ready, seen.reason, seen.port) == (2, "Conflict", 0)


QUOTA = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": 'pods "x" is forbidden: exceeded quota: small'}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (workload(conditions=[QUOTA]), "QuotaExceeded"),
        (workload(conditions=[{**QUOTA, "message": "no service account"}]), "FailedCreate"),
        (workload(conditions=[{"type": "Progressing", "status": "False"}]), "ProgressDeadlineExceeded"),
        (workload(conditions=[{"type": "Progressing", "status": "True"}, {"type": "Available", "status": "False"}]), "Starting"),
        (workload("Job", conditions=[{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]), "JobFailed"),
    ],
)  # fmt: skip
def test_what_workloads_say_when_no_pod_does(found: narrow.Workload, reason: str) -> None:
    assert observed(workloads=[found]).reason == reason


def test_withdrawn_work_shows_only_what_is_ending() -> None:
    seen = status.observe("app-1", None, {"main": [status.instance(pod(), "main")]}, {}, {}, False)
    assert (seen.version, seen.components, len(seen.instances)) == (0, (), 1)


def test_manifests_are_ready_when_everything_in_them_is() -> None:
    component = contract.Component(name="main", replicas=1, revision="r", manifests=(b"{}",))
    good = workload(spec={"replicas": 2}, observedGeneration=1, readyReplicas=2, updatedReplicas=2)
    bad = workload("StatefulSet", spec={"replicas": 3}, observedGeneration=1, readyReplicas=1, updatedReplicas=3)
    assert observed(component=component, workloads=[good]).ready == 1
    assert observed(component=component).ready == 1  # nothing in it that could be unready
    assert observed(component=component, applied=False).ready == 0
    seen = observed(component=component, workloads=[good, bad])
    assert (seen.ready, seen.reason, seen.message) == (0, "Starting", "StatefulSet web has 1 of 3 ready")


CURRENT: list[tuple[narrow.Workload, bool, str]] = [
    (workload(generation=2, observedGeneration=1, readyReplicas=1, updatedReplicas=1), False, "1 of 1"),
    (workload(observedGeneration=1, readyReplicas=1, updatedReplicas=1), True, "1 of 1"),
    (workload(observedGeneration=1, readyReplicas=1), False, "1 of 1"),
    (workload(spec={"replicas": 0}, observedGeneration=1), True, "0 of 0"),
    (workload("DaemonSet", observedGeneration=1, desiredNumberScheduled=2, numberReady=2, updatedNumberScheduled=2), True, "2 of 2"),
    (workload("DaemonSet", observedGeneration=1, desiredNumberScheduled=2, numberReady=2, updatedNumberScheduled=1), False, "2 of 2"),
    (workload("Job", succeeded=1, conditions=[{"type": "Complete", "status": "True"}]), True, "1 of 1"),
    (workload("Job", spec={"completions": 3}, succeeded=1), False, "1 of 3"),
]


@pytest.mark.parametrize(("found", "current", "have"), CURRENT)
def test_whether_a_workload_is_rolled_out(found: narrow.Workload, current: bool, have: str) -> None:
    assert status.is_current(found) is current
    assert status.have(found) == have


def test_out_of_sight_is_neither_ready_nor_dead() -> None:
    seen = status.observe("app-1", WORK, {"main": [status.instance(pod(), "main")]}, {}, {}, True)
    blind = status.unseen(seen, "2026-11-21T10:00:00Z", "no answer")
    assert (blind.components[0].desired, blind.components[0].ready, blind.components[0].reason) == (2, 0, "ApiServerUnreachable")
    assert (blind.instances[0].phase, blind.instances[0].ready) == (Phase.RUNNING, False)
    assert "2026-11-21T10:00:00Z" in blind.components[0].message
    assert blind.version == WORK.version
    unread = status.unread(seen, "Job", "no right to list")
    assert (unread.components[0].ready, unread.components[0].reason) == (0, "KindNotRead")
    assert "Job of the member cannot be read" in unread.components[0].message and "no right to list" in unread.components[0].message


def test_times_that_are_none() -> None:
    assert status.unix("yesterday") == status.unix(None) == 0.0


def test_a_third_revision_waits_while_what_serves_has_not_been_ready_for_long() -> None:
    """A rollout ends the oldest instance that is not proven first, were it the only one that serves."""
    none = [workload(readyReplicas=1, availableReplicas=0)]
    one = contract.Component(name="main", replicas=1, revision="r3", command=("run",), port=80)
    serves = status.instance(pod("a"), "main")
    fails = status.instance(pod("b", labels={names.REVISION: "r2"}, conditions=[NOT_READY]), "main")
    assert status.unproven(one, (serves, fails), none)
    assert not status.unproven(one, (serves, fails), [workload(readyReplicas=1, availableReplicas=1)])
    assert not status.unproven(one, (serves,), none)  # a rollout from one to the next ends nothing too early
    assert not status.unproven(one, (fails,), none)  # nothing serves
    assert not status.unproven(structs.replace(one, revision="r2"), (serves, fails), none)  # it is under way
    assert not status.unproven(structs.replace(one, replicas=0), (serves, fails), none)
    assert not status.unproven(structs.replace(one, volumes=(contract.Volume(name="d", path="d"),)), (serves, fails), none)
