"""Turn what the shim saw into documents: WorkStatus, Pods, Nodes, and the facts that the cluster reports of itself. Pure."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from cluster_controller.resources import kinds, quantity
from cluster_controller.resources.registry import LABEL_APPLICATION_UID, LABEL_COMPONENT
from cluster_shim import contract

NAMES_PER_CLASS = 20
MOST_HOMELESS = 1000  # replicas of one component that are looked at one by one
MOST_CLASSES = 20  # of nodes, in what a cluster says of itself


def work_status(
    application: kinds.ApplicationReference, cluster: str, name: str, seen: contract.ObservedWork, problems: Mapping[str, str]
) -> kinds.WorkStatus:
    """``problems`` say per component why it could not even be told to the shim (a model that is not here yet, say)."""
    components = [_component(item, problems.get(item.name, "")) for item in seen.components]
    known = {item.name for item in seen.components}
    components += [
        kinds.ComponentStatus(name=name, reason="NotReady", message=message)
        for name, message in sorted(problems.items())
        if name not in known
    ]
    # What is on its way is no news where something is broken.
    trouble = min((item for item in components if item.reason), key=lambda item: item.reason in kinds.UNDER_WAY, default=None)
    ready = sum(item.ready for item in components)
    desired = sum(item.desired for item in components)
    row = kinds.ClusterRow(
        cluster=cluster,
        name=name,
        ready=ready,
        desired=desired,
        reason=trouble.reason if trouble else "",
        message=trouble.message if trouble else "",
        port=next((item.port for item in seen.components if item.port), 0),
        components={item.name: item.desired for item in components if item.desired},
    )
    # Unplaced here is decided by placement, before anything reaches the shim; what a shim cannot run it reports as not ready.
    return kinds.WorkStatus(
        metadata=kinds.Metadata(name=application.uid, uid=application.uid),
        spec=kinds.WorkStatusSpec(application=application, cluster=cluster),
        status=kinds.WorkStatusStatus(
            version=seen.version if _settled(seen) else 0,
            seen=seen.version,
            components=components,
            clusters=[row] if desired or ready else [],
            cluster_count=1,
        ),
    )


def _settled(seen: contract.ObservedWork) -> bool:
    """Whether nothing above the share is running any more, ending instances included: only then is a lower share acknowledged."""
    running: dict[str, int] = {}
    for instance in seen.instances:
        running[instance.component] = running.get(instance.component, 0) + 1
    wanted = {item.name: item.desired for item in seen.components}
    return all(count <= wanted.get(name, 0) for name, count in running.items())


def _component(seen: contract.ObservedComponent, problem: str) -> kinds.ComponentStatus:
    reason, message = seen.reason, seen.message
    if problem:
        reason, message = reason or "NotReady", problem
    return kinds.ComponentStatus(
        name=seen.name,
        desired=seen.desired,
        ready=seen.ready,
        updated=0 if problem else seen.updated,
        confirmed=seen.ready,
        reason=reason,
        message=message,
    )


def lost(seen: contract.ObservedWork, why: str) -> contract.ObservedWork:
    """The same, as it looks once the shim has fallen silent: wanted as before, nothing known to be ready."""
    return msgspec.structs.replace(
        seen,
        components=tuple(msgspec.structs.replace(item, ready=0, updated=0, reason="ShimLost", message=why) for item in seen.components),
        instances=tuple(msgspec.structs.replace(item, ready=False, reason="ShimLost", message=why) for item in seen.instances),
    )


def lost_status(before: kinds.WorkStatus, why: str) -> kinds.WorkStatus:
    """The same for what was written before this controller started, when the shim has not spoken since."""
    status = before.status
    components = [
        msgspec.structs.replace(item, ready=0, updated=0, confirmed=0, reason="ShimLost", message=why) for item in status.components
    ]
    rows = [msgspec.structs.replace(row, ready=0, reason="ShimLost", message=why) for row in status.clusters]
    return msgspec.structs.replace(before, status=msgspec.structs.replace(status, components=components, clusters=rows))


def lost_pod(before: kinds.Pod, why: str) -> kinds.Pod:
    """The same for an instance."""
    status = before.status
    conditions = [msgspec.structs.replace(item, status="Unknown") for item in status.conditions]
    containers = [msgspec.structs.replace(item, ready=False) for item in status.container_statuses]
    replaced = msgspec.structs.replace(status, reason="ShimLost", message=why, conditions=conditions, container_statuses=containers)
    return msgspec.structs.replace(before, status=replaced)


def pod(work: contract.ObservedWork, application: kinds.ApplicationReference, instance: contract.Instance) -> kinds.Pod:
    """One running instance as kubectl shows it."""
    running = instance.phase in {contract.Phase.RUNNING, contract.Phase.STOPPING}
    started = _time(instance.started_unix)
    if running:
        state = kinds.ContainerState(running=kinds.ContainerStateRunning(started_at=started))
    else:
        state = kinds.ContainerState(
            waiting=kinds.ContainerStateWaiting(reason=instance.reason or str(instance.phase), message=instance.message)
        )
    phase = "Running" if running else "Failed" if instance.phase is contract.Phase.FAILED else "Pending"
    ready = "True" if instance.ready else "False"
    labels = {
        "banyan.dev/application": application.name,
        LABEL_APPLICATION_UID: application.uid,
        LABEL_COMPONENT: instance.component,
        "banyan.dev/origin": application.origin_name,
        "banyan.dev/revision": instance.revision,
    }
    return kinds.Pod(
        metadata=kinds.Metadata(
            name=instance.id,
            namespace=application.namespace,
            uid=f"{work.uid}-{instance.id}",
            labels={key: value for key, value in labels.items() if value},
            creation_timestamp=started,
        ),
        spec=kinds.PodSpec(
            containers=[kinds.Container(name=instance.component, image=f"process/{application.name}")],
            node_name=instance.node,
        ),
        status=kinds.PodStatus(
            phase=phase,
            reason=instance.reason,
            message=instance.message,
            start_time=started,
            conditions=[kinds.PodCondition(type="Ready", status=ready), kinds.PodCondition(type="ContainersReady", status=ready)],
            container_statuses=[
                kinds.ContainerStatus(
                    name=instance.component,
                    ready=instance.ready,
                    restart_count=instance.restarts,
                    image=f"process/{application.name}",
                    container_id=f"process://{instance.pid}" if instance.pid else "",
                    started=running,
                    state=state,
                    last_state=_last_state(instance.ended),
                )
            ],
        ),
    )


def _last_state(ended: contract.Ended | None) -> kinds.ContainerState:
    if ended is None:
        return kinds.ContainerState()
    message = "; ".join(part for part in (ended.message, f"its last log line: {ended.last_line}" if ended.last_line else "") if part)
    return kinds.ContainerState(
        terminated=kinds.ContainerStateTerminated(
            exit_code=ended.exit_code,
            reason=ended.reason,
            message=message,
            started_at=_time(ended.started_unix),
            finished_at=_time(ended.finished_unix),
        )
    )


def _time(unix: float) -> str | None:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if unix else None


def node(seen: contract.Node, version: str, created: str | None = None, taints: Sequence[kinds.Taint] = ()) -> kinds.Node:
    capacity = {"cpu": quantity.format_millis(seen.cpu_millis), "memory": quantity.format_bytes(seen.memory_bytes)}
    allocatable = {
        "cpu": quantity.format_millis(seen.allocatable_cpu_millis),
        "memory": quantity.format_bytes(seen.allocatable_memory_bytes),
    }
    for name, count in seen.accelerators.items():
        capacity[name] = allocatable[name] = str(count)
    ready = kinds.NodeCondition(
        type="Ready", status="True" if seen.ready else "False", reason="ShimReports" if seen.ready else "NodeNotReady"
    )
    return kinds.Node(
        metadata=kinds.Metadata(
            name=seen.name,
            uid=f"node-{seen.name}",
            creation_timestamp=created,
            labels={"kubernetes.io/hostname": seen.name, "kubernetes.io/arch": seen.architecture, "kubernetes.io/os": seen.os}
            | seen.labels,
        ),
        spec=kinds.NodeSpec(taints=list(taints)),
        status=kinds.NodeStatus(
            capacity=capacity,
            allocatable=allocatable,
            conditions=[ready],
            node_info=kinds.NodeInfo(
                boot_id=seen.boot_id,
                kernel_version=seen.kernel,
                os_image=seen.os,
                operating_system=seen.os,
                architecture=seen.architecture,
                kubelet_version=version,
                container_runtime_version="process",
            ),
        ),
    )


def node_classes(nodes: Iterable[contract.Node], requested: Mapping[str, kinds.ResourceSums]) -> list[kinds.NodeClass]:
    """Equal nodes with equally much free counted together; ``requested`` sums per node name what Works ask for there.

    Where that would make too many classes, nodes with nearly as much free are taken together with the least that one of them has: what is
    told is on each of them.
    """
    groups: dict[tuple[object, ...], list[contract.Node]] = {}
    for item in nodes:
        key = (
            item.architecture,
            item.allocatable_cpu_millis,
            item.allocatable_memory_bytes,
            tuple(sorted(item.accelerators.items())),
            tuple(sorted(item.labels.items())),
        )
        groups.setdefault(key, []).append(item)
    parts = max(1, MOST_CLASSES // max(1, len(groups)))
    return [_class(part, frees) for group in groups.values() for part, frees in _parts(group, requested, parts)]


def _parts(
    group: Sequence[contract.Node], requested: Mapping[str, kinds.ResourceSums], most: int
) -> Iterable[tuple[list[contract.Node], list[kinds.ResourceSums]]]:
    """The ready ones by how much is free, the emptiest first, in at most so many parts; the others with the first part."""
    ready = [(_free(item, requested.get(item.name, kinds.ResourceSums())), item) for item in group if item.ready]
    ready.sort(key=lambda each: (-each[0].cpu_millis, -each[0].memory_bytes, each[1].name))
    parts: list[list[tuple[kinds.ResourceSums, contract.Node]]] = []
    for each in ready:
        if parts and parts[-1][-1][0] == each[0]:
            parts[-1].append(each)
        else:
            parts.append([each])
    while len(parts) > most:  # the two neighbours that are nearest to each other
        gaps = [one[-1][0].cpu_millis - other[0][0].cpu_millis for one, other in itertools.pairwise(parts)]
        at = gaps.index(min(gaps))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    lost = [item for item in group if not item.ready]
    if not parts:
        yield lost, []
    for number, part in enumerate(parts):
        yield [item for _, item in part] + ([] if number else lost), [free for free, _ in part]


def _class(group: Sequence[contract.Node], frees: Sequence[kinds.ResourceSums]) -> kinds.NodeClass:
    first = group[0]
    return kinds.NodeClass(
        architecture=first.architecture,
        count=len(group),
        ready=len(frees),
        allocatable=kinds.ResourceSums(
            cpu_millis=first.allocatable_cpu_millis,
            memory_bytes=first.allocatable_memory_bytes,
            accelerators=dict(first.accelerators),
        ),
        free=_least(frees),
        labels=dict(first.labels),
        # Ready ones first: so the receiver knows which of the names those ``ready`` nodes are.
        names=[item.name for item in sorted(group, key=lambda item: (not item.ready, item.name))][:NAMES_PER_CLASS],
    )


def _least(frees: Sequence[kinds.ResourceSums]) -> kinds.ResourceSums:
    """What every one of them has."""
    if not frees:
        return kinds.ResourceSums()
    return kinds.ResourceSums(
        cpu_millis=min(free.cpu_millis for free in frees),
        memory_bytes=min(free.memory_bytes for free in frees),
        accelerators={name: min(free.accelerators.get(name, 0) for free in frees) for name in frees[0].accelerators},
    )


def charge(
    nodes: Sequence[contract.Node], asked: Iterable[tuple[kinds.ResourceSums, int, Mapping[str, int]]]
) -> dict[str, kinds.ResourceSums]:
    """What is asked for on each node: per component what one replica asks for, how many there are, and where the shim says that they run.

    What it does not say is put where it fits tightest, the largest first (best fit decreasing), or where most is left when it fits nowhere.
    """
    used = {node.name: kinds.ResourceSums() for node in nodes}
    homeless: list[kinds.ResourceSums] = []
    for each, count, where in asked:
        left = count
        for name, there in where.items():
            if name in used:
                takes = min(there, left)
                used[name] = _plus(used[name], each, takes)
                left -= takes
        homeless += [each] * min(left, MOST_HOMELESS)
    homeless.sort(key=lambda each: (-each.cpu_millis, -each.memory_bytes))
    for each in homeless:
        frees = [(_free(node, used[node.name]), node) for node in nodes if node.ready]
        fitting = [(free.cpu_millis, free.memory_bytes, node.name) for free, node in frees if _fits(each, free)]
        roomiest = [(-free.cpu_millis, -free.memory_bytes, node.name) for free, node in frees]
        chosen = min(fitting or roomiest, default=None)
        if chosen is not None:
            used[chosen[2]] = _plus(used[chosen[2]], each, 1)
    return used


def _fits(each: kinds.ResourceSums, free: kinds.ResourceSums) -> bool:
    enough = each.cpu_millis <= free.cpu_millis and each.memory_bytes <= free.memory_bytes
    return enough and all(count <= free.accelerators.get(name, 0) for name, count in each.accelerators.items())


def _plus(one: kinds.ResourceSums, each: kinds.ResourceSums, times: int) -> kinds.ResourceSums:
    names = {*one.accelerators, *each.accelerators}
    return kinds.ResourceSums(
        cpu_millis=one.cpu_millis + times * each.cpu_millis,
        memory_bytes=one.memory_bytes + times * each.memory_bytes,
        accelerators={name: one.accelerators.get(name, 0) + times * each.accelerators.get(name, 0) for name in names},
    )


def _free(seen: contract.Node, requested: kinds.ResourceSums) -> kinds.ResourceSums:
    return kinds.ResourceSums(
        cpu_millis=max(0, seen.allocatable_cpu_millis - requested.cpu_millis),
        memory_bytes=max(0, seen.allocatable_memory_bytes - requested.memory_bytes),
        accelerators={name: max(0, count - requested.accelerators.get(name, 0)) for name, count in seen.accelerators.items()},
    )
