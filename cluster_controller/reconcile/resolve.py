"""Turn a Work document and the documents that it names into what the shim is told. Pure.

Everything that a component depends on (its specification, the model's digests, values out of ConfigMaps and Secrets) goes into its
revision, so a change of any of them is a new revision and nothing else is.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, quantity
from cluster_shim import contract

T = TypeVar("T", bound=msgspec.Struct)
Found = Mapping[tuple[str, str], bytes]  # (kind, name as the application writes it) → document


class ModelNeed(Struct, frozen=True):
    """A model version that a component runs; ``key`` is the same for the same files."""

    name: str
    version: str
    uid: str
    files: tuple[contract.ModelFile, ...]
    runtime: str

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode([self.name, self.version, self.runtime, self.files])).hexdigest()[:32]


def model_need(component: kinds.Component, found: Found) -> ModelNeed | None:
    """Which files the component's model or chart consists of; None for the others. InvalidInput when the version does not exist."""
    reference = component.helm.chart if component.helm is not None else component.model
    what = "helm.chart" if component.helm is not None else "model"
    if reference is None:
        return None
    document = found.get(("Model", reference.name))
    if document is None:
        raise InvalidInput(f"model {reference.name} is not here yet", f"components[{component.name}].{what}.name")
    model = _read(document, kinds.Model, reference.name)
    wanted = reference.version or (model.spec.versions[-1].name if model.spec.versions else "")
    for version in model.spec.versions:
        if version.name == wanted:
            _fits(component, reference, version)
            files = tuple(contract.ModelFile(path=file.path, sha256=file.sha256, size=file.size) for file in version.files)
            return ModelNeed(
                name=model.metadata.name or reference.name,
                version=version.name,
                uid=model.metadata.uid,
                files=files,
                runtime=version.runtime,
            )
    have = ", ".join(version.name for version in model.spec.versions) or "none"
    raise InvalidInput(f"model {reference.name} has no version {wanted!r}; it has {have}", f"components[{component.name}].{what}.version")


def model_before(component: kinds.Component, found: Found) -> Sequence[kinds.ModelFile]:
    """The files of the version that the Model lists before the one that the component runs; none before the first."""
    reference = component.helm.chart if component.helm is not None else component.model
    document = found.get(("Model", reference.name)) if reference is not None else None
    if reference is None or document is None:
        return ()
    versions = _read(document, kinds.Model, reference.name).spec.versions
    names = [version.name for version in versions]
    place = names.index(reference.version) if reference.version in names else len(names) - 1
    return versions[place - 1].files if place > 0 else ()


def _fits(component: kinds.Component, reference: kinds.ModelReference, version: kinds.ModelVersion) -> None:
    """A chart is one archive for helm, and helm's archives are nothing that a worker serves."""
    if component.helm is None and version.runtime == "helm":
        raise InvalidInput(
            f"version {version.name} of {reference.name} is a Helm chart; name it under helm.chart", f"components[{component.name}].model"
        )
    if component.helm is not None and (version.runtime != "helm" or len(version.files) != 1):
        raise InvalidInput(
            f"version {version.name} of {reference.name} is no Helm chart; publish its archive with --runtime helm, as one file",
            f"components[{component.name}].helm.chart",
        )


def component(spec: kinds.Component, placement: kinds.Placement, found: Found, model: contract.ModelRef | None) -> contract.Component:
    """One component with everything looked up. InvalidInput names what is missing."""
    env, secret_env = _environment(spec, found)
    resolved = contract.Component(
        name=spec.name,
        replicas=spec.replicas,
        revision="",
        model=model if spec.helm is None else None,
        serving=_serving(spec.serving),
        command=tuple(spec.container.command if spec.container is not None else spec.command),
        image=spec.container.image if spec.container is not None else "",
        args=tuple(spec.container.args) if spec.container is not None else (),
        manifests=tuple(msgspec.json.encode(item) for item in spec.manifests),
        chart=_chart(spec.helm, model) if spec.helm is not None and model is not None else None,
        env=env,
        secret_env=secret_env,
        files=_files(spec, found),
        volumes=tuple(contract.Volume(name=volume.name, path=volume.path) for volume in spec.volumes),
        resources=_resources(spec.resources),
        port=spec.expose.port if spec.expose is not None else 0,
        takes_socket=spec.takes_socket or spec.model is not None,
        liveness=_probe(spec.liveness),
        readiness=_probe(spec.readiness),
        grace_seconds=float(spec.termination_grace_period_seconds),
        node=placement.node_name,
        node_labels=dict(placement.node_selector),
        architecture=placement.architecture,
        tolerations=tuple(contract.Toleration(each.key, each.operator, each.value, each.effect) for each in placement.tolerations),
    )
    return msgspec.structs.replace(resolved, revision=_revision(resolved))


def _serving(spec: kinds.Serving | None) -> contract.Serving | None:
    """None also for one that says nothing: instances are not made anew for that."""
    if spec is None:
        return None
    found = contract.Serving(
        python_steps=spec.python_steps,
        no_batching=not spec.batching,
        max_batch=spec.max_batch or 0,
        queue=spec.queue or 0,
        runs=spec.runs or 0,
        threads=spec.threads or 0,
    )
    return None if found == contract.Serving() else found


def _chart(spec: kinds.Chart, archive: contract.ModelRef) -> contract.Chart:
    """``archive.folder`` is empty while no replica is wanted here: then nothing is rendered."""
    file = archive.files[0]
    path = f"{archive.folder}/{file.path}" if archive.folder else ""
    return contract.Chart(path=path, sha256=file.sha256, values=msgspec.json.encode(spec.values), ignore_hooks=spec.hooks == "Ignore")


def _revision(resolved: contract.Component) -> str:
    """Hash over all that an instance is made of. The replica count is not part of an instance; nor is where its files lie here.

    Fields at their default are left out, so that a later version of the contract, with more fields, restarts nothing.
    """
    model, chart = resolved.model, resolved.chart
    bare = msgspec.structs.replace(
        resolved,
        replicas=0,
        revision="",
        model=msgspec.structs.replace(model, folder="") if model else None,
        chart=msgspec.structs.replace(chart, path="") if chart else None,
    )
    return hashlib.sha256(msgspec.json.encode(_set_fields(bare), order="deterministic")).hexdigest()[:12]


def _set_fields(value: object) -> object:
    """``value`` with structs as mappings of what differs from the default."""
    if isinstance(value, msgspec.Struct):
        found = [(field, getattr(value, field.name)) for field in msgspec.structs.fields(value)]
        return {field.name: _set_fields(item) for field, item in found if item != _default(field)}
    if isinstance(value, tuple):
        return [_set_fields(item) for item in value]
    return value


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _resources(spec: kinds.Resources) -> contract.Resources:
    return contract.Resources(
        cpu_millis=quantity.millis(spec.cpu) if spec.cpu != "" else 0,
        memory_bytes=quantity.units(spec.memory) if spec.memory != "" else 0,
        accelerators=dict(spec.accelerators),
    )


def _probe(spec: kinds.Probe | None) -> contract.Probe | None:
    if spec is None:
        return None
    port = 0
    if spec.http_get is not None:
        port = spec.http_get.port or 0
    elif spec.tcp_socket is not None:
        port = spec.tcp_socket.port or 0
    return contract.Probe(
        http_path=spec.http_get.path if spec.http_get is not None else "",
        tcp=spec.tcp_socket is not None,
        command=tuple(spec.exec.command) if spec.exec is not None else (),
        port=port,
        initial_delay_seconds=float(spec.initial_delay_seconds),
        period_seconds=float(spec.period_seconds),
        timeout_seconds=float(spec.timeout_seconds),
        failure_threshold=spec.failure_threshold,
        success_threshold=spec.success_threshold,
    )


def _environment(spec: kinds.Component, found: Found) -> tuple[dict[str, str], dict[str, str]]:
    """Plain and secret variables; no name is in both, so what is named by itself wins over what comes with a whole object."""
    values: dict[str, tuple[bytes, bool]] = {}  # name → its text, and whether it is secret
    for whole in spec.env_from:
        if whole.config_map_ref is not None:
            for key, value in _data(found, "ConfigMap", whole.config_map_ref.name, whole.config_map_ref.optional).items():
                values[whole.prefix + key] = value, False
        if whole.secret_ref is not None:
            for key, value in _data(found, "Secret", whole.secret_ref.name, whole.secret_ref.optional).items():
                values[whole.prefix + key] = value, True
    for variable in spec.env:
        source = variable.value_from
        if source is None:
            values[variable.name] = variable.value.encode(), False
        elif source.config_map_key_ref is not None:
            text = _key(found, "ConfigMap", source.config_map_key_ref)
            if text is not None:
                values[variable.name] = text, False
        elif source.secret_key_ref is not None:
            text = _key(found, "Secret", source.secret_key_ref)
            if text is not None:
                values[variable.name] = text, True
    plain = {name: _text(name, value) for name, (value, secret) in values.items() if not secret}
    return plain, {name: _text(name, value) for name, (value, secret) in values.items() if secret}


def _text(name: str, value: bytes) -> str:
    if b"\0" in value:
        raise InvalidInput(f"the value of {name} has a zero byte, which no environment variable can hold; mount it as a file", "env")
    return value.decode(errors="replace")


def _files(spec: kinds.Component, found: Found) -> tuple[contract.File, ...]:
    files: list[contract.File] = []
    for mount in spec.files:
        source = mount.config_map or mount.secret
        if source is None:
            continue
        secret = mount.secret is not None
        data = _data(found, "Secret" if secret else "ConfigMap", source.name, source.optional)
        if source.key:
            if source.key in data:
                files.append(contract.File(path=mount.path, content=data[source.key], mode=mount.mode, secret=secret))
            elif not source.optional:
                raise InvalidInput(
                    f"{source.name} has no key {source.key}; it has {', '.join(sorted(data)) or 'none'}", f"files[{mount.path}]"
                )
        else:
            files += [
                contract.File(path=f"{mount.path}/{key}", content=value, mode=mount.mode, secret=secret)
                for key, value in sorted(data.items())
            ]
    return tuple(files)


def _key(found: Found, kind: str, selector: kinds.KeySelector) -> bytes | None:
    data = _data(found, kind, selector.name, selector.optional)
    if selector.key in data:
        return data[selector.key]
    if selector.optional:
        return None
    raise InvalidInput(f"{kind} {selector.name} has no key {selector.key}; it has {', '.join(sorted(data)) or 'none'}", "env")


def _data(found: Found, kind: str, name: str, optional: bool) -> dict[str, bytes]:
    document = found.get((kind, name))
    if document is None:
        if optional:
            return {}
        raise InvalidInput(f"{kind} {name} is not here yet", "references")
    if kind == "Secret":
        return _decoded(kind, name, _read(document, kinds.Secret, name).data)
    config = _read(document, kinds.ConfigMap, name)
    plain = {key: value.encode() for key, value in config.data.items()}
    return plain | _decoded(kind, name, config.binary_data)


def _decoded(kind: str, name: str, data: Mapping[str, str]) -> dict[str, bytes]:
    decoded = {}
    for key, value in data.items():
        try:
            decoded[key] = base64.b64decode(value)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"{kind} {name}: the value of {key} is not base64", f"data[{key}]") from error
    return decoded


def _read(document: bytes, as_type: type[T], name: str) -> T:
    """What arrived from elsewhere is judged per component: one object that cannot be read must not silence the others."""
    try:
        return msgspec.json.decode(document, type=as_type)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{as_type.__name__} {name} cannot be read here: {error}", "references") from error
