"""One filled example of every message of the shim contract. Fixtures recorded from them prove that a later version still reads
what an earlier one wrote: ``python -m tests.shim.samples`` records those that are missing and never touches one that is there.
"""

from pathlib import Path
from typing import Any

from banyan.shim.v1 import shim_pb2 as pb
from google.protobuf.message import Message
from msgspec import Struct
from msgspec.structs import replace

from cluster_shim import contract as c
from cluster_shim.grpc.convert import to_message

FIXTURES = Path(__file__).parent / "fixtures"

_PROBE = c.Probe(http_path="/live", port=81, initial_delay_seconds=1.5, period_seconds=5.0, timeout_seconds=2.0, failure_threshold=4)
_COMPONENT = c.Component(
    name="serve",
    replicas=3,
    revision="sha256:1",
    model=c.ModelRef("emotion", "2", "uid-m", "/models/m", (c.ModelFile("model.onnx", "ab" * 32, 248_832),), "onnx"),
    command=("run", "--now"),
    env={"LEVEL": "info"},
    secret_env={"PASSWORD": "hidden"},
    files=(c.File("conf/a", b"\x00\xff", 0o600, True),),
    volumes=(c.Volume("data", "var"),),
    resources=c.Resources(250, 128 << 20, {"nvidia.com/gpu": 1}),
    port=8500,
    takes_socket=False,
    liveness=_PROBE,
    readiness=c.Probe(command=("test", "-e", "ok"), success_threshold=2),
    grace_seconds=12.5,
    node="node-1",
)
_TOLERATION = c.Toleration("gpu", "Exists", "yes", "NoSchedule")
_WHERE: dict[str, Any] = {"node_labels": {"disk": "ssd"}, "architecture": "arm64", "tolerations": (_TOLERATION,)}
_CHART = c.Chart("/blobs/c.tgz", "cd" * 32, b'{"replicas":2}', True)
_SERVING = c.Serving(True, True, 8, 16, 2, 3)
_OBJECT = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m"}}'
_WORK = c.Work(uid="uid-a", name="emotion", namespace="default", origin="root", version=9, components=(_COMPONENT,))
_INSTANCE = c.Instance(
    id="emotion-serve-1",
    component="serve",
    revision="sha256:1",
    phase=c.Phase.BACKOFF,
    ready=True,
    restarts=2,
    reason="Error",
    message="it exited with code 3",
    node="node-1",
    pid=4711,
    started_unix=1_790_000_000.25,
    cpu_millis=-1,
    memory_bytes=12 << 20,
)
_ENDED = c.Ended(
    reason="Error",
    message="it exited with code 3",
    exit_code=3,
    last_line="no such table: readings",
    started_unix=1_790_000_000.25,
    finished_unix=1_790_000_001.5,
)
_PART = c.ObservedComponent(name="serve", desired=3, ready=1, updated=2, reason="Starting", message="waiting", port=8500)
_SEEN = c.ObservedWork(uid="uid-a", version=9, components=(_PART,), instances=(_INSTANCE,))
_NODE = c.Node(
    name="node-1",
    architecture="arm64",
    kernel="6.1",
    boot_id="b",
    ready=False,
    cpu_millis=4000,
    memory_bytes=8 << 30,
    allocatable_cpu_millis=3900,
    allocatable_memory_bytes=7 << 30,
    used_cpu_millis=-1,
    used_memory_bytes=1 << 30,
    accelerators={"google.com/coral": 2},
    labels={"tier": "edge"},
)
_TARGET = c.OpenTarget("logs", "uid-a", "serve", "emotion-serve-1", {"follow": "true"})
_DESCRIPTION = c.Description("process", "1.2.3", "banyan.shim.v1", ("model",), "cgroup-v2")
_DESIRED = c.Desired((_WORK,), ("uid-b",), True)
_OBSERVED = c.Observed((_SEEN,), ("uid-b",), (_NODE,), True)

STRUCTS: dict[str, tuple[Struct, type[Message]]] = {
    "Description": (_DESCRIPTION, pb.Description),
    "OpenTarget": (_TARGET, pb.OpenTarget),
    "Desired": (_DESIRED, pb.Desired),
    "Work": (_WORK, pb.Work),
    "Component": (_COMPONENT, pb.Component),
    "ComponentTakesSocket": (c.Component(name="serve", replicas=1, revision="sha256:1", takes_socket=True), pb.Component),
    "ComponentContainer": (c.Component(name="web", replicas=2, revision="r", image="web:1", command=("run",), args=("-v",)), pb.Component),
    "ComponentManifests": (c.Component(name="rules", replicas=1, revision="r", manifests=(_OBJECT,)), pb.Component),
    "ComponentHelm": (c.Component(name="chart", replicas=1, revision="r", chart=_CHART), pb.Component),
    "ComponentSomewhere": (c.Component(name="web", replicas=1, revision="r", **_WHERE), pb.Component),
    "ComponentServing": (c.Component(name="serve", replicas=1, revision="r", model=_COMPONENT.model, serving=_SERVING), pb.Component),
    "Serving": (_SERVING, pb.Serving),
    "Toleration": (_TOLERATION, pb.Toleration),
    "Chart": (_CHART, pb.Chart),
    "WorkKept": (replace(_WORK, report_drift=True, force_conflicts=True, recreate=True), pb.Work),
    "Resources": (_COMPONENT.resources, pb.Resources),
    "Probe": (_PROBE, pb.Probe),
    "ProbeTcp": (c.Probe(tcp=True, port=81), pb.Probe),
    "File": (_COMPONENT.files[0], pb.File),
    "Volume": (_COMPONENT.volumes[0], pb.Volume),
    "ModelRef": (_COMPONENT.model or c.ModelRef("", "", "", ""), pb.ModelRef),
    "ModelFile": (c.ModelFile("model.onnx", "ab" * 32, 248_832), pb.ModelFile),
    "Observed": (_OBSERVED, pb.Observed),
    "ObservedUnchangedNodes": (c.Observed(removed=("uid-b",)), pb.Observed),
    "ObservedNoNodes": (c.Observed(nodes=()), pb.Observed),
    "ObservedWork": (_SEEN, pb.ObservedWork),
    "ObservedComponent": (_PART, pb.ObservedComponent),
    "Instance": (_INSTANCE, pb.Instance),
    "InstanceEnded": (replace(_INSTANCE, ended=_ENDED), pb.Instance),
    "Ended": (_ENDED, pb.Ended),
    "Node": (_NODE, pb.Node),
    "NodeReady": (replace(_NODE, ready=True), pb.Node),
}

ENVELOPES: dict[str, Message] = {
    "DescribeRequest": pb.DescribeRequest(),
    "DescribeResponse": pb.DescribeResponse(description=to_message(_DESCRIPTION, pb.Description)),
    "ReconcileRequest": pb.ReconcileRequest(desired=to_message(_DESIRED, pb.Desired)),
    "ReconcileResponse": pb.ReconcileResponse(observed=to_message(_OBSERVED, pb.Observed)),
    "OpenRequestTarget": pb.OpenRequest(target=to_message(_TARGET, pb.OpenTarget)),
    "OpenRequestData": pb.OpenRequest(data=b"\x00\x01"),
    "OpenResponseOpened": pb.OpenResponse(opened=pb.Opened()),
    "OpenResponseData": pb.OpenResponse(data=b""),
    "Opened": pb.Opened(),
    "NodeList": pb.NodeList(nodes=[to_message(_NODE, pb.Node)]),
}


def messages() -> dict[str, Message]:
    return {**ENVELOPES, **{name: to_message(value, kind) for name, (value, kind) in STRUCTS.items()}}


if __name__ == "__main__":
    for name, message in messages().items():
        path = FIXTURES / f"{name}.bin"
        if not path.exists():
            path.write_bytes(message.SerializeToString(deterministic=True))
