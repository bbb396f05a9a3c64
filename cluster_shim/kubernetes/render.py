"""From one Work to the objects that carry it out in a member. Pure; charts come rendered (`helm`).

A model or command component and a container become a Deployment, with a ConfigMap and a Secret for what it reads and a Service where
it is exposed; manifests are taken as they are. What is written here is all that server-side apply owns: a field that is not named
belongs to whoever sets it. Names and labels: `names`.
"""

import base64
import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from cluster_shim import contract
from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import names

Object = dict[str, Any]

CACHE_MOUNT = "/var/cache/banyan/models"
IN_USE_MOUNT = "/var/cache/banyan/in-use"
IN_USE = "in-use"  # the part of the cache that servers write to (`edge_ai.fetch`)
WORK_FOLDER = "/var/lib/banyan/work"  # where relative paths of a component begin
FETCH_MOUNT = "/etc/banyan/fetch"
FETCH_SUFFIX = "-fetch"  # of the Secret that is mounted there
WORKER_USER = 65532  # of the worker image
HTTP = "http"
UNPROVEN_SECONDS = 10  # a version that has no probe, and ends soon after its start, does not take the place of the one that serves
MODEL_PORT = 8080  # of a model that exposes none: requests that come through the tree still find it


class Settings(Struct, frozen=True, kw_only=True):
    """How a site's Kubernetes is used; from the controller's configuration."""

    worker_image: str = ""  # runs models and commands, and fetches model files
    pull_policy: str = "IfNotPresent"
    service_type: str = "ClusterIP"  # or NodePort, LoadBalancer
    cache: str = "hostPath:/var/lib/banyan/models"  # or pvc:CLAIM, emptyDir
    files_url: str = ""  # https://HOST:PORT where pods of this cluster find `files`; found out if it is not said
    files_listen: str = ""  # HOST:PORT where `files` listens, if that is not every address and the port of files_url
    take_over: str = ""  # uid of the cluster whose controller managed this member before and is gone for good (`owner`)


class Source(Struct, frozen=True):
    """Where the pods of one Work read model files: a token that opens these alone, and the CA to expect.

    They stand in a Secret of their own that pods read when they start: another address or CA restarts nothing.
    """

    url: str
    token: str
    ca: str


class Rendered(Struct, frozen=True):
    object: Object
    component: str  # of the Work
    order: int = 5  # lower comes first


def render(
    work: contract.Work, settings: Settings, source: Source | None, charts: Mapping[str, Sequence[Object]] | None = None
) -> list[Rendered]:
    """Every object of ``work``, in the order in which they are applied. ShimError names the component that cannot be."""
    found: list[Rendered] = []
    for component in work.components:
        kind = contract.component_kind(component)
        if kind == "manifests":
            objects = _manifests(component)
        elif kind == "helm":
            objects = list((charts or {}).get(component.name, ()))
        else:
            objects = _workload(work, component, settings, source)
        own = kind not in ("manifests", "helm")
        for made in objects:
            found.append(Rendered(_ours(made, work, component, own), component.name, order_of(made)))
    return sorted(found, key=lambda item: item.order)


FIRST = ("Namespace", "CustomResourceDefinition", "PriorityClass", "StorageClass", "IngressClass", "RuntimeClass")
SECOND = (
    *("ServiceAccount", "ResourceQuota", "LimitRange", "Secret", "ConfigMap", "PersistentVolume", "PersistentVolumeClaim"),
    *("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "Service"),
)
LAST = ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService", "HorizontalPodAutoscaler", "PodDisruptionBudget")


def order_of(made: Object) -> int:
    """0 what others live in, 1 what defines kinds, 2 what workloads read, 5 the rest, 8 what would stand in the way of the rest."""
    kind = made.get("kind", "")
    if kind in FIRST:
        return FIRST.index(kind) if kind in FIRST[:2] else 1
    if kind in SECOND:
        return 2
    return 8 if kind in LAST else 5


def _ours(made: Object, work: contract.Work, component: contract.Component, own: bool) -> Object:
    """A copy with the labels by which it is found again."""
    meta = dict(made.get("metadata") or {})
    labels = dict(meta.get("labels") or {})
    labels |= {names.APPLICATION_UID: work.uid, names.COMPONENT_LABEL: component.name}
    labels.setdefault(names.MANAGED_BY, names.MANAGER)
    if own:
        labels |= {names.NAME: names.label_value(work.name), names.COMPONENT: component.name}
    meta["labels"] = labels
    annotations = dict(meta.get("annotations") or {})
    annotations[names.APPLICATION] = f"{work.namespace}/{work.name} of {work.origin}"
    meta["annotations"] = annotations
    return {**made, "metadata": meta}


def _manifests(component: contract.Component) -> list[Object]:
    made: list[Object] = []
    for document in component.manifests:
        try:
            found = msgspec.json.decode(document)
        except msgspec.DecodeError as error:
            raise ShimError(f"component {component.name}: a manifest is no JSON object: {error}") from None
        items = found.get("items") if isinstance(found, dict) and str(found.get("kind", "")).endswith("List") else [found]
        for item in items or []:
            check_manifest(item, component.name)
            made.append(item)
    return made


def check_manifest(item: object, component: str) -> None:
    """ShimError for what is no object, or would be another one at each attempt."""
    if not isinstance(item, dict) or not item.get("apiVersion") or not item.get("kind"):
        raise ShimError(f"component {component}: a manifest lacks apiVersion or kind")
    meta = item.get("metadata")
    if not isinstance(meta, dict) or not meta.get("name"):
        hint = "; generateName would make a new object each time" if isinstance(meta, dict) and meta.get("generateName") else ""
        raise ShimError(f"component {component}: {item['kind']} has no metadata.name{hint}")


# --- model, command, container ---


def _workload(work: contract.Work, component: contract.Component, settings: Settings, source: Source | None) -> list[Object]:
    name = names.object_name(work.name, component.name, work.uid)
    namespace = names.namespace_of(work.namespace)
    meta = {"name": name, "namespace": namespace}
    selector = {names.APPLICATION_UID: work.uid, names.COMPONENT_LABEL: component.name}
    pod, objects = _pod(work, component, settings, source, meta)
    labels = selector | {
        names.NAME: names.label_value(work.name),
        names.COMPONENT: component.name,
        names.MANAGED_BY: names.MANAGER,
        names.REVISION: names.label_value(component.revision),
    }
    objects.append(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": component.replicas,
                "revisionHistoryLimit": 2,
                "minReadySeconds": 0 if component.readiness is not None or component.model is not None else UNPROVEN_SECONDS,
                "selector": {"matchLabels": selector},
                "strategy": _strategy(component),
                "template": {"metadata": {"labels": labels, "annotations": _content(objects)}, "spec": pod},
            },
        }
    )
    if component.port:
        port = {
            "name": HTTP if component.model is not None else "port",
            "port": component.port,
            "targetPort": component.port,
            "protocol": "TCP",
        }
        if settings.service_type == "NodePort" and 30000 <= component.port <= 32767:
            port["nodePort"] = component.port
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"type": settings.service_type, "selector": selector, "ports": [port]},
            }
        )
    return objects


def _strategy(component: contract.Component) -> Object:
    """The next revision is ready before the last one stops; a folder that outlives its pods has one writer at a time."""
    if component.volumes:
        return {"type": "Recreate"}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def _content(objects: Sequence[Object]) -> dict[str, str]:
    """A pod reads files and variables when it starts: other contents are another pod template. Not where it finds its model."""
    read = [
        made.get("data")
        for made in objects
        if made["kind"] in ("ConfigMap", "Secret") and not made["metadata"]["name"].endswith(FETCH_SUFFIX)
    ]
    return {"banyan.dev/content": hashlib.sha256(msgspec.json.encode(read, order="sorted")).hexdigest()[:16]} if any(read) else {}


def _pod(
    work: contract.Work, component: contract.Component, settings: Settings, source: Source | None, meta: Object
) -> tuple[Object, list[Object]]:
    objects: list[Object] = []
    volumes: list[Object] = []
    mounts: list[Object] = []
    env = _environment(work, component)
    if component.secret_env:
        objects.append(_secret(meta, "-env", {key: value.encode() for key, value in component.secret_env.items()}))
        secret = objects[-1]["metadata"]["name"]
        env += [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for key in sorted(component.secret_env)]
    _files(component, meta, objects, volumes, mounts)
    for volume in component.volumes:
        claim = names.object_name(work.name, f"{component.name}-{volume.name}", work.uid, limit=names.MAX_NAME)
        objects.append(_claim(claim, meta["namespace"]))
        volumes.append({"name": f"volume-{len(volumes)}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": volumes[-1]["name"], "mountPath": _inside(volume.path)})
    pod: Object = {"terminationGracePeriodSeconds": int(component.grace_seconds), "automountServiceAccountToken": False}
    pod["enableServiceLinks"] = False
    pod |= _where(component)
    container: Object = {"name": component.name, "resources": _resources(component.resources)}
    if component.model is not None:
        _serve_model(work, component, settings, source, meta, objects, volumes, mounts, pod, container)
    else:
        _run(component, settings, container)
        if component.volumes and not component.image:
            pod["securityContext"] = {"fsGroup": WORKER_USER, "fsGroupChangePolicy": "OnRootMismatch"}  # else a new volume is root's
    if env:
        container["env"] = env
    if mounts:
        container["volumeMounts"] = mounts
    if component.port:
        container["ports"] = [{"name": HTTP if component.model is not None else "port", "containerPort": component.port, "protocol": "TCP"}]
    for field, probe in (("livenessProbe", component.liveness), ("readinessProbe", component.readiness)):
        if probe is not None:
            container[field] = _probe(probe, component)
    pod["containers"] = [container]
    if volumes:
        pod["volumes"] = volumes
    return pod, objects


def _environment(work: contract.Work, component: contract.Component) -> list[Object]:
    """What a program is told on every cluster, and then what the component says itself."""
    told = {"BANYAN_APPLICATION": work.name, "BANYAN_NAMESPACE": work.namespace, "BANYAN_COMPONENT": component.name}
    if component.port and component.command and not component.image:
        told |= {"PORT": str(component.port), "HOST": "0.0.0.0"}  # noqa: S104  (in a pod: its own address, whatever that is)
    told |= component.env
    for key in component.secret_env:
        told.pop(key, None)
    fields = {"BANYAN_INSTANCE": "metadata.name", "BANYAN_NODE": "spec.nodeName"}
    found: list[Object] = [{"name": key, "value": value} for key, value in sorted(told.items())]
    found += [
        {"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for key, path in fields.items()
        if key not in {*told, *component.secret_env}
    ]
    return found


def _run(component: contract.Component, settings: Settings, container: Object) -> None:
    image = component.image or settings.worker_image
    if not image:
        raise ShimError(
            f"component {component.name} runs a command, and this site has no image for it; set kubernetes.worker_image, or name an image"
        )
    container |= {"image": image, "imagePullPolicy": settings.pull_policy}
    if component.command:
        container["command"] = list(component.command)
    if component.args:
        container["args"] = list(component.args)
    if not component.image:
        container["workingDir"] = WORK_FOLDER


HARDENED: Object = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def port_of(component: contract.Component) -> int:
    """Where the pods of a component listen; 0: nobody said so."""
    return component.port or (MODEL_PORT if component.model is not None else 0)


def _serve_model(  # noqa: PLR0917  what a pod is made of, filled in one place
    work: contract.Work,
    component: contract.Component,
    settings: Settings,
    source: Source | None,
    meta: Object,
    objects: list[Object],
    volumes: list[Object],
    mounts: list[Object],
    pod: Object,
    container: Object,
) -> None:
    model = component.model
    assert model is not None
    if not settings.worker_image:
        raise ShimError(
            f"component {component.name} serves a model, and this site has no image for the worker; set kubernetes.worker_image"
        )
    files = _folder(model)
    folder = f"{CACHE_MOUNT}/{files}"
    fetch: Object = {
        "name": "fetch-model",
        "image": settings.worker_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python3", "-m", "edge_ai.fetch"],
        "args": ["--folder", folder, *(f"--file={file.path}={file.sha256}:{file.size}" for file in model.files)],
        "volumeMounts": [{"name": "models", "mountPath": CACHE_MOUNT}],
        "resources": _resources(msgspec.structs.replace(component.resources, accelerators={})),  # a quota counts the larger of the two
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": dict(HARDENED),
    }
    if source is not None:
        secret = {"url": source.url.encode(), "token": source.token.encode(), "ca.pem": source.ca.encode()}
        objects.append(_secret(meta, FETCH_SUFFIX, secret))
        volumes.append({"name": "fetch", "secret": {"secretName": objects[-1]["metadata"]["name"], "defaultMode": 0o440}})
        fetch["args"] += ["--source", FETCH_MOUNT]
        fetch["volumeMounts"].append({"name": "fetch", "mountPath": FETCH_MOUNT, "readOnly": True})
    volumes.append({"name": "models", **cache_volume(settings.cache)})
    pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": WORKER_USER, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.cache.startswith("hostPath:"):
        # The kubelet makes that folder, and makes it root's: root without a single capability writes there, and the server reads.
        fetch["securityContext"] |= {"runAsUser": 0, "runAsNonRoot": False}
    else:
        pod["securityContext"] |= {"fsGroup": WORKER_USER, "fsGroupChangePolicy": "OnRootMismatch"}
    mounts.append({"name": "models", "mountPath": CACHE_MOUNT, "readOnly": True})
    mounts.append({"name": "models", "mountPath": IN_USE_MOUNT, "subPath": IN_USE})
    pod["initContainers"] = [fetch]
    port = port_of(component)
    container |= {
        "image": settings.worker_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python3", "-m", "edge_ai.serve"],
        "args": [
            *("--name", model.name, "--version", model.version, "--model-folder", folder, "--listen", f"0.0.0.0:{port}"),
            *("--in-use", f"{IN_USE_MOUNT}/{files}"),
            *(f"--digest={file.path}={file.sha256}" for file in model.files),
            *(component.serving.arguments() if component.serving is not None else ()),
        ],
        "ports": [{"name": HTTP, "containerPort": port, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": port}, "periodSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": port}, "periodSeconds": 10, "failureThreshold": 6},
        "securityContext": dict(HARDENED),
    }


def _folder(model: contract.ModelRef) -> str:
    """A folder in the node's cache that holds exactly these files: named by what they are, so that it is never another model's."""
    return hashlib.sha256(msgspec.json.encode([[file.path, file.sha256] for file in model.files])).hexdigest()[:32]


def cache_volume(setting: str) -> Object:
    """Where model files are, as a volume of a pod."""
    kind, _, value = setting.partition(":")
    if kind == "hostPath" and value.startswith("/"):
        return {"hostPath": {"path": value, "type": "DirectoryOrCreate"}}
    if kind == "pvc" and value:
        return {"persistentVolumeClaim": {"claimName": value}}
    if kind == "emptyDir":
        return {"emptyDir": {}}
    raise ShimError(f"kubernetes.cache {setting!r}: it is hostPath:/PATH, pvc:CLAIM or emptyDir")


def _files(component: contract.Component, meta: Object, objects: list[Object], volumes: list[Object], mounts: list[Object]) -> None:
    """Every file by a mount of its own (subPath), so that its folder keeps what the image has there."""
    for secret in (False, True):
        files = [file for file in component.files if file.secret is secret]
        if not files:
            continue
        keys = {f"f{number}": file.content for number, file in enumerate(files)}
        made = _secret(meta, "-files", keys) if secret else _config_map(meta, "-files", keys)
        objects.append(made)
        name = "secret-files" if secret else "files"
        items = [{"key": f"f{number}", "path": f"f{number}", "mode": file.mode} for number, file in enumerate(files)]
        place = {"secretName" if secret else "name": made["metadata"]["name"], "items": items}
        volumes.append({"name": name, "secret" if secret else "configMap": place})
        for number, file in enumerate(files):
            mounts.append({"name": name, "mountPath": _inside(file.path), "subPath": f"f{number}", "readOnly": True})


def _inside(path: str) -> str:
    return posixpath.normpath(posixpath.join(WORK_FOLDER, path))


def _config_map(meta: Object, suffix: str, data: Mapping[str, bytes]) -> Object:
    text: dict[str, str] = {}
    binary: dict[str, str] = {}
    for key, value in data.items():
        try:
            text[key] = value.decode()
        except UnicodeDecodeError:
            binary[key] = base64.b64encode(value).decode()
    made: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {**meta, "name": meta["name"] + suffix}}
    return made | ({"data": text} if text else {}) | ({"binaryData": binary} if binary else {})


def _secret(meta: Object, suffix: str, data: Mapping[str, bytes]) -> Object:
    encoded = {key: base64.b64encode(value).decode() for key, value in sorted(data.items())}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {**meta, "name": meta["name"] + suffix}, "type": "Opaque", "data": encoded}


def _claim(name: str, namespace: str) -> Object:
    """What is kept in it outlives the application: it is let go of, never deleted."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    meta = {"name": name, "namespace": namespace, "annotations": {names.KEEP: "true"}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def _where(component: contract.Component) -> Object:
    """What placement asked of the node, for the member's own scheduler."""
    selector = dict(component.node_labels)
    if component.architecture:
        selector["kubernetes.io/arch"] = component.architecture
    made: Object = {"nodeSelector": selector} if selector else {}
    if component.node:
        # By its name: the label kubernetes.io/hostname is often another.
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [component.node]}]}
        made["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}
    if component.tolerations:
        made["tolerations"] = [
            {key: value for key, value in msgspec.structs.asdict(each).items() if value} for each in component.tolerations
        ]
    return made


def _resources(wanted: contract.Resources) -> Object:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    if wanted.cpu_millis:
        requests["cpu"] = f"{wanted.cpu_millis}m"
    if wanted.memory_bytes:
        requests["memory"] = limits["memory"] = str(wanted.memory_bytes)
    for name, count in sorted(wanted.accelerators.items()):
        limits[name] = str(count)
    return ({"requests": requests} if requests else {}) | ({"limits": limits} if limits else {})


def _probe(probe: contract.Probe, component: contract.Component) -> Object:
    port = probe.port or component.port
    made: Object = {
        "initialDelaySeconds": int(probe.initial_delay_seconds),
        "periodSeconds": max(1, int(probe.period_seconds)),
        "timeoutSeconds": max(1, int(probe.timeout_seconds)),
        "failureThreshold": probe.failure_threshold,
        "successThreshold": probe.success_threshold,
    }
    if probe.command:
        return made | {"exec": {"command": list(probe.command)}}
    if not port:
        raise ShimError(f"component {component.name}: its probe names no port, and the component exposes none")
    return made | ({"tcpSocket": {"port": port}} if probe.tcp else {"httpGet": {"path": probe.http_path or "/", "port": port}})
