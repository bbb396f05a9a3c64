"""What became of a Work in a member, in the contract's words: one model of status for whatever kind of object carries it out. Pure.

An instance is a pod. Why it is not ready is said as the member says it (ImagePullBackOff, the scheduler's sentence, how the last run
ended) and not in our own paraphrase. A component is told about by the worst of its wanted instances, and where there are none, by
the object that should have made them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct, structs

from cluster_shim import contract
from cluster_shim.contract import Ended, Instance, ObservedComponent, ObservedWork, Phase
from cluster_shim.kubernetes import names, narrow

CRASH_LOOP = "CrashLoopBackOff"
IMAGE = "ImagePullBackOff"
NOT_READY = "NotReady"
STARTING = "Starting"
QUOTA = "QuotaExceeded"
JOB_FAILED = "JobFailed"
LATE = "ProgressDeadlineExceeded"
LOOP_RESTARTS = 3  # from here on, one that is not ready yet is still said to be in a loop
PROGRESS = frozenset({"", "ContainerCreating", "PodInitializing"})  # what every start goes through
MAX_LINE = 300
MAX_MESSAGE = 600
SAID_ELSEWHERE = frozenset({"BackOff", "FailedScheduling", "Failed", "Preempting"})  # by the pod's own status, and better
OUT_OF_SIGHT = "ApiServerUnreachable"
KIND_UNREAD = "KindNotRead"
OWN_KINDS = ("model", "command", "container")


class Trouble(Struct, frozen=True):
    """Why a component's objects are not as they should be: what applying them met."""

    reason: str
    message: str


class Hints(Struct, frozen=True):
    """What a pod's own status does not say."""

    last_line: str = ""  # of the log of the run before
    unhealthy: str = ""  # the kubelet's word about its readiness probe, while that fails
    warning: str = ""  # the newest warning about it otherwise: a volume that cannot be mounted, say


NO_HINTS = Hints()


def instance(pod: narrow.Pod, component: str, hints: Hints = NO_HINTS, used: tuple[int, int] = (-1, -1), *, own: bool = True) -> Instance:
    """One pod. ``own``: made by an object of ours, so that it says its revision. ``used``: millicores and bytes, measured."""
    status, ready = pod.status, is_ready(pod)
    phase, reason, message = _state(pod, ready, hints)
    ended = _ended(pod, hints.last_line)
    return Instance(
        id=pod.metadata.name,
        component=component,
        revision=pod.metadata.labels.get(names.REVISION, "") if own else "",
        phase=phase,
        ready=phase is Phase.RUNNING and ready,
        restarts=sum(item.restart_count for item in status.container_statuses),
        reason=reason,
        message=message[:MAX_MESSAGE],
        node=pod.spec.node_name,
        started_unix=unix(status.start_time),
        cpu_millis=used[0],
        memory_bytes=used[1],
        ended=ended,
    )


def is_ready(pod: narrow.Pod) -> bool:
    """Whether it shall be sent requests."""
    status = pod.status
    ready = status.phase == "Running" and any(item.type == "Ready" and item.status == "True" for item in status.conditions)
    return ready and pod.metadata.deletion_timestamp is None


def container_of(pod: narrow.Pod, component: str) -> str:
    """Whose log is the instance's: the container named after the component, else the first."""
    containers = [container.name for container in pod.spec.containers]
    return component if component in containers or not containers else containers[0]


def _state(pod: narrow.Pod, ready: bool, hints: Hints) -> tuple[Phase, str, str]:
    status = pod.status
    if pod.metadata.deletion_timestamp is not None:
        return Phase.STOPPING, "", ""
    if status.phase == "Failed":
        terminated = next((item.state.terminated for item in status.container_statuses if item.state.terminated is not None), None)
        reason = status.reason or (terminated.reason if terminated is not None else "") or "Error"
        said = status.message or (_run(terminated, hints.last_line) if terminated is not None else "")
        return Phase.FAILED, reason, said
    if ready:
        return Phase.RUNNING, "", ""
    scheduled = next((item for item in status.conditions if item.type == "PodScheduled"), None)
    if not pod.spec.node_name:
        if scheduled is not None and scheduled.status == "False":
            return Phase.PENDING, scheduled.reason or "Unschedulable", scheduled.message
        return Phase.PENDING, "", ""
    for item in (*status.init_container_statuses, *status.container_statuses):
        found = _container(item, hints)
        if found is not None:
            return found
    if status.container_statuses and all(item.state.running is not None for item in status.container_statuses):
        if hints.unhealthy:
            return Phase.RUNNING, NOT_READY, hints.unhealthy
        return Phase.STARTING, "", ""
    return (Phase.STARTING, "", "") if not hints.warning else (Phase.STARTING, STARTING, hints.warning)


def _container(item: narrow.ContainerStatus, hints: Hints) -> tuple[Phase, str, str] | None:
    """What keeps this container from being ready; None: nothing that is worth a word."""
    waiting, terminated, last = item.state.waiting, item.state.terminated, item.last_state.terminated
    if waiting is not None and waiting.reason == CRASH_LOOP:
        return Phase.BACKOFF, CRASH_LOOP, _loop(item, last, hints)
    if waiting is not None and waiting.reason not in PROGRESS:
        reason = IMAGE if waiting.reason in ("ErrImagePull", IMAGE) else waiting.reason
        return Phase.BACKOFF, reason, waiting.message
    if terminated is not None and (terminated.exit_code or not item.ready) and terminated.reason != "Completed":
        return Phase.BACKOFF, terminated.reason or "Error", _run(terminated, hints.last_line)
    if (
        not item.ready
        and item.restart_count >= LOOP_RESTARTS
        and last is not None
        and (waiting is not None or item.state.running is not None)
    ):
        return Phase.STARTING, CRASH_LOOP, f"{_loop(item, last, hints)}; restart {item.restart_count} is not ready yet"
    return None


def _loop(item: narrow.ContainerStatus, last: narrow.Terminated | None, hints: Hints) -> str:
    return _run(last, hints.last_line) if last is not None else f"container {item.name} ended {item.restart_count} times"


def _run(run: narrow.Terminated, last_line: str) -> str:
    how = f"ended with exit code {run.exit_code}" if not run.signal else f"was ended by signal {run.signal}"
    parts = [how if run.reason in ("", "Error") else f"{run.reason}: {how}"]
    if run.message:
        parts.append(run.message.strip()[-MAX_LINE:])
    if last_line:
        parts.append(f"its last log line: {last_line}")
    return "; ".join(parts)


def _ended(pod: narrow.Pod, last_line: str) -> Ended | None:
    """The newest run that is over, of any container."""
    runs = [run for item in pod.status.container_statuses for run in (item.state.terminated, item.last_state.terminated) if run is not None]
    if not runs:
        return None
    run = max(runs, key=lambda run: run.finished_at or "")
    return Ended(
        reason=run.reason or "Error",
        message=run.message[:MAX_LINE],
        exit_code=run.exit_code,
        last_line=last_line,
        started_unix=unix(run.started_at),
        finished_unix=unix(run.finished_at),
    )


def crashed(pod: narrow.Pod) -> tuple[str, int] | None:
    """(container, which restart) whose last run's log explains why the pod is not ready; None: it needs no explaining."""
    if pod.metadata.deletion_timestamp is not None:
        return None
    for item in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        over = item.state.terminated or item.last_state.terminated
        if over is not None and not item.ready and over.reason != "Completed":
            return item.name, item.restart_count
    return None


def runs_again(pod: narrow.Pod, container: str) -> bool:
    """Whether the container's own log is that of its next run already."""
    found = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    return any(item.name == container and item.state.running is not None for item in found)


def puzzling(pod: narrow.Pod) -> bool:
    """Whether somebody may want to know why it is not ready, and its own status does not say all of it."""
    if pod.metadata.deletion_timestamp is not None or not pod.spec.node_name or pod.status.phase == "Succeeded":
        return False
    return not any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions)


def hints(events: Iterable[narrow.Event], line: str) -> Hints:
    """From the warnings about one pod and the last line of its last run."""
    unhealthy = warning = ""
    for event in sorted(events, key=lambda event: event.last_timestamp or event.event_time or ""):
        if event.reason == "Unhealthy":
            unhealthy = event.message if event.message.startswith("Readiness") else unhealthy
        elif event.reason not in SAID_ELSEWHERE:
            warning = f"{event.reason}: {event.message}"
    return Hints(last_line=line, unhealthy=unhealthy[:MAX_MESSAGE], warning=warning[:MAX_MESSAGE])


def last_line(log: bytes) -> str:
    """The last line of a log that says something: printable, and short enough for a status."""
    lines = [line.strip() for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    text = "".join(letter if letter.isprintable() else " " for letter in lines[-1]) if lines else ""
    return text[:MAX_LINE]


def is_finished(pod: narrow.Pod) -> bool:
    """It ran to its end, or was evicted and something else takes its place: no instance any more."""
    owner = controller_of(pod)
    return pod.status.phase == "Succeeded" or (pod.status.phase == "Failed" and owner is not None and owner.kind != "Job")


def controller_of(pod: narrow.Pod) -> narrow.Owner | None:
    return next((owner for owner in pod.metadata.owner_references if owner.controller), None)


def workload_of(pod: narrow.Pod) -> tuple[str, str, str] | None:
    """(namespace, kind, name) of what keeps the pod; for a ReplicaSet of a Deployment the Deployment."""
    owner = controller_of(pod)
    if owner is None:
        return None
    if owner.kind == "ReplicaSet":
        template = pod.metadata.labels.get("pod-template-hash", "")
        if template and owner.name.endswith(f"-{template}"):
            return pod.metadata.namespace, "Deployment", owner.name.removesuffix(f"-{template}")
    return pod.metadata.namespace, owner.kind, owner.name


def unseen(seen: ObservedWork, since: str, why: str) -> ObservedWork:
    """The same once the member cannot be seen any more: wanted as before, nothing known to be ready, and nothing said to be dead."""
    message = f"the member's API server has not been heard since {since}; what ran there runs on, nothing is known of it: {why}"
    return _hidden(seen, OUT_OF_SIGHT, message)


def unread(seen: ObservedWork, kind: str, why: str) -> ObservedWork:
    """The same where the member answers, and only the objects of one kind that it is made of cannot be read."""
    return _hidden(seen, KIND_UNREAD, f"{kind} of the member cannot be read; what ran there runs on, nothing is known of it: {why}")


def _hidden(seen: ObservedWork, reason: str, message: str) -> ObservedWork:
    message = message[:MAX_MESSAGE]
    return structs.replace(
        seen,
        components=tuple(structs.replace(item, ready=0, updated=0, reason=reason, message=message) for item in seen.components),
        instances=tuple(structs.replace(item, ready=False, reason=reason, message=message) for item in seen.instances),
    )


# --- components ---


def observe(  # noqa: PLR0917  all that is known of one Work
    uid: str,
    work: contract.Work | None,
    pods: Mapping[str, Sequence[Instance]],
    workloads: Mapping[str, Sequence[narrow.Workload]],
    troubles: Mapping[str, Trouble],
    applied: bool,
) -> ObservedWork:
    """``pods``, ``workloads``: by component. ``work`` None: withdrawn, what is left of it is ending. ``applied``: all objects were."""
    if work is None:
        told = tuple(_leaving(name, trouble) for name, trouble in sorted(troubles.items()))
    else:
        told = tuple(
            _component(item, pods.get(item.name, ()), workloads.get(item.name, ()), troubles.get(item.name), applied)
            for item in work.components
        )
    instances = sorted((one for found in pods.values() for one in found), key=lambda one: one.id)
    return ObservedWork(uid=uid, version=work.version if work is not None else 0, components=told, instances=tuple(instances))


def _leaving(name: str, trouble: Trouble) -> ObservedComponent:
    """One that is withdrawn, and why it is not gone."""
    return ObservedComponent(name=name, desired=0, ready=0, updated=0, reason=trouble.reason, message=trouble.message)


def _component(
    component: contract.Component,
    instances: Sequence[Instance],
    workloads: Sequence[narrow.Workload],
    trouble: Trouble | None,
    applied: bool,
) -> ObservedComponent:
    if contract.component_kind(component) in OWN_KINDS:
        return _own(component, instances, workloads, trouble, applied)
    return _foreign(component, instances, workloads, trouble, applied)


def _own(
    component: contract.Component,
    instances: Sequence[Instance],
    workloads: Sequence[narrow.Workload],
    trouble: Trouble | None,
    applied: bool,
) -> ObservedComponent:
    wanted = [one for one in instances if one.revision == component.revision and one.phase is not Phase.STOPPING]
    updated = sum(one.ready for one in wanted)
    reason, message = _why(wanted, workloads, trouble, updated >= component.replicas and applied)
    return ObservedComponent(
        name=component.name,
        desired=component.replicas,
        ready=sum(one.ready for one in instances),
        updated=updated,
        reason=reason,
        message=message,
        port=component.port if applied else 0,
    )


def _foreign(
    component: contract.Component,
    instances: Sequence[Instance],
    workloads: Sequence[narrow.Workload],
    trouble: Trouble | None,
    applied: bool,
) -> ObservedComponent:
    """Manifests and charts are one thing: ready when everything in them is."""
    unready = [item for item in workloads if not is_current(item)]
    good = applied and not unready and trouble is None
    reason, message = _why([one for one in instances if one.phase is not Phase.STOPPING], unready, trouble, good)
    if reason == STARTING and unready:
        first = unready[0]
        message = f"{first.kind} {first.metadata.name} has {have(first)} ready"
    ready = component.replicas if good else 0
    return ObservedComponent(name=component.name, desired=component.replicas, ready=ready, updated=ready, reason=reason, message=message)


def _why(wanted: Sequence[Instance], workloads: Iterable[narrow.Workload], trouble: Trouble | None, good: bool) -> tuple[str, str]:
    """What applying met, then the worst wanted instance, then what the objects say that should have made more of them."""
    if trouble is not None:
        return trouble.reason, trouble.message
    if good:
        return "", ""
    for phases in ((Phase.BACKOFF, Phase.FAILED), (Phase.PENDING,), (Phase.RUNNING, Phase.STARTING)):
        for one in wanted:
            if one.phase in phases and not one.ready and one.reason:
                return one.reason, f"{one.id}: {one.message}"
    for workload in workloads:
        found = _failing(workload)
        if found is not None:
            return found
    return STARTING, "waiting until the new instances are ready"


def _failing(workload: narrow.Workload) -> tuple[str, str] | None:
    for condition in workload.status.conditions:
        text = f"{workload.kind or 'workload'} {workload.metadata.name}: {condition.message}"
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return (QUOTA if "exceeded quota" in condition.message else condition.reason), text
        if condition.type == "Progressing" and condition.status == "False":
            return condition.reason or LATE, text
        if condition.type == "Failed" and condition.status == "True":  # of a Job
            return JOB_FAILED, f"{text} ({condition.reason})"
    return None


def is_current(workload: narrow.Workload) -> bool:
    """The newest generation has been rolled out, and all of it is ready (a Job: is done, or suspended)."""
    status, kind = workload.status, workload.kind
    if kind == "Job":
        return any(item.type in ("Complete", "Suspended") and item.status == "True" for item in status.conditions)
    if status.observed_generation < workload.metadata.generation:
        return False
    if kind == "DaemonSet":
        return status.number_ready >= status.desired_number_scheduled <= status.updated_number_scheduled
    wanted = 1 if workload.spec.replicas is None else workload.spec.replicas
    return status.ready_replicas >= wanted <= status.updated_replicas


def unproven(component: contract.Component, instances: Iterable[Instance], workloads: Iterable[narrow.Workload]) -> bool:
    """Whether applying this revision now would end what serves: two revisions are there, this is a third, and what is ready has not been
    for long. To a rollout an instance that is not proven is as good as a broken one, and the oldest of these go first."""
    if component.volumes or not component.replicas or contract.component_kind(component) not in OWN_KINDS:
        return False
    there = [one for one in instances if one.phase is not Phase.STOPPING]
    revisions = {one.revision for one in there}
    if len(revisions) < 2 or component.revision in revisions or not any(one.ready for one in there):
        return False
    return any(item.kind == "Deployment" and item.status.available_replicas < item.status.ready_replicas for item in workloads)


def have(workload: narrow.Workload) -> str:
    status = workload.status
    if workload.kind == "DaemonSet":
        return f"{status.number_ready} of {status.desired_number_scheduled}"
    if workload.kind == "Job":
        return f"{status.succeeded} of {workload.spec.completions or 1}"
    return f"{status.ready_replicas} of {1 if workload.spec.replicas is None else workload.spec.replicas}"


def unix(time: str | None) -> float:
    """RFC 3339 → seconds; 0.0 for none, or one that is no time."""
    if not time:
        return 0.0
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0
