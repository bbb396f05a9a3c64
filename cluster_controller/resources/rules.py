"""What a well-shaped document must also mean: the rules of each kind that its struct's types cannot say.

Each rule looks at a struct, at the one that an update would replace (or None), and reports problems by dotted path.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, policy, quantity
from cluster_controller.resources.names import (
    DATA_KEY,
    ENVIRONMENT,
    IMAGE,
    MODEL_VERSION,
    label_problem,
    path_problem,
    shown,
    subdomain_problem,
)
from cluster_controller.resources.overriding import overrides
from cluster_controller.resources.placing_rules import hourly_cost_problem, users, wishes
from cluster_controller.resources.rollout_rules import gates, starts, waves
from cluster_controller.resources.selectors import check_key, check_value, from_struct
from cluster_controller.resources.shape import Problem

MOST_PROBLEMS = 50
MOST_COMPONENTS = 20
MOST_ADMITTED = 500  # names in a SitePolicy
MOST_SUBJECTS = 100  # vetoes, and pins, in a SitePolicy
MOST_PATTERN = 253
MOST_REASON = 500
DATA_BYTES = 1024 * 1024


class Report:
    """Collects problems, bounded."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def __call__(self, field: str, message: str, reason: str = "FieldValueInvalid") -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(field, message, reason))

    def run(self, field: str, check: Callable[[str], object], value: str) -> None:
        """A check that raises InvalidInput; its own field, if it names one, is below ``field``."""
        try:
            check(value)
        except InvalidInput as error:
            self(field, str(error))

    def unique(self, field: str, values: Iterable[object]) -> None:
        seen: set[object] = set()
        for index, value in enumerate(values):
            if value in seen:
                self(f"{field}[{index}]", f"{str(value)[:80]!r} appears twice", "FieldValueDuplicate")
            seen.add(value)

    def exactly_one(self, field: str, given: Mapping[str, object]) -> None:
        present = [name for name, value in given.items() if value]
        if not present:
            self(field, f"one of {', '.join(given)} is required", "FieldValueRequired")
        elif len(present) > 1:
            self(field, f"has {' and '.join(present)}; exactly one of {', '.join(given)} is allowed", "FieldValueForbidden")


def application(app: kinds.Application, previous: kinds.Application | None, report: Report) -> None:
    components = app.spec.components
    if not components:
        report("spec.components", "at least one component is required", "FieldValueRequired")
    if len(components) > MOST_COMPONENTS:
        report("spec.components", f"has {len(components)} components; at most {MOST_COMPONENTS}", "FieldValueTooMany")
    report.unique("spec.components", (each.name for each in components))
    report.unique("spec.components.expose.port", (each.expose.port for each in components if each.expose))
    for index, component in enumerate(components):
        _component(component, f"spec.components[{index}]", report)
    _placement(app.spec.placement, "spec.placement", report)
    if app.spec.rollout is not None:
        waves(app.spec.rollout, "spec.rollout", report)
        gates(app.spec.rollout, "spec.rollout", [component.name for component in components], report)
    starts(app, report)
    overrides(app, component_problems, report)


def component_problems(component: kinds.Component) -> list[tuple[str, str]]:
    """(field, what is wrong) of one component by itself."""
    report = Report()
    _component(component, component.name, report)
    return [(problem.field, problem.message) for problem in report.problems]


def _component(component: kinds.Component, path: str, report: Report) -> None:
    _label(f"{path}.name", component.name, report)
    report.exactly_one(
        path,
        {
            "model": component.model,
            "command": component.command,
            "container": component.container,
            "manifests": component.manifests,
            "helm": component.helm,
        },
    )
    if component.model is not None:
        _reference(f"{path}.model", component.model, report)
    elif component.serving is not None:
        report(f"{path}.serving", "says how a model is served; the component has no model")
    if component.helm is not None:
        _reference(f"{path}.helm.chart", component.helm.chart, report)
    if component.container is not None:
        _container(component.container, f"{path}.container", report)
    if component.manifests or component.helm is not None:
        _objects(component, path, report)
    if component.command and not component.command[0]:
        report(f"{path}.command[0]", "the program to run is required", "FieldValueRequired")
    for index, word in enumerate(component.command):
        if "\0" in word:
            report(f"{path}.command[{index}]", "a NUL character cannot be passed to a program")
    _resources(component.resources, f"{path}.resources", report)
    _environment(component, path, report)
    _mounts(component, path, report)
    for name, probe in (("liveness", component.liveness), ("readiness", component.readiness)):
        if probe is not None:
            _probe(probe, component, f"{path}.{name}", report)


def _reference(path: str, reference: kinds.ModelReference, report: Report) -> None:
    _problem(f"{path}.name", subdomain_problem(reference.name), report)
    if reference.version and MODEL_VERSION.fullmatch(reference.version) is None:
        report(f"{path}.version", f"{shown(reference.version)} is no version name")


def _container(container: kinds.ContainerImage, path: str, report: Report) -> None:
    if IMAGE.fullmatch(container.image) is None:
        report(f"{path}.image", f"{shown(container.image)} is no image reference, as in registry.example/shop/web:1.4")
    for name, words in (("command", container.command), ("args", container.args)):
        for index, word in enumerate(words):
            if "\0" in word:
                report(f"{path}.{name}[{index}]", "a NUL character cannot be passed to a program")


def _objects(component: kinds.Component, path: str, report: Report) -> None:
    """Objects are what they are: what shapes an instance belongs into them, not beside them."""
    for name in ("env", "env_from", "files", "volumes", "liveness", "readiness", "expose"):
        if getattr(component, name):
            report(f"{path}.{_camel(name)}", "means nothing beside manifests and helm; write it into the objects", "FieldValueForbidden")
    if component.replicas not in (0, 1):
        report(f"{path}.replicas", "manifests and helm are applied once per cluster; replicas belong into the objects")
    for index, item in enumerate(component.manifests):
        where = f"{path}.manifests[{index}]"
        for name in ("apiVersion", "kind"):
            if not isinstance(item.get(name), str) or not item[name]:
                report(f"{where}.{name}", "is required", "FieldValueRequired")
        meta = item.get("metadata")
        if not isinstance(meta, dict) or not isinstance(meta.get("name"), str) or not meta["name"]:
            report(f"{where}.metadata.name", "is required: without it each attempt would make another object", "FieldValueRequired")


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _resources(resources: kinds.Resources, path: str, report: Report) -> None:
    for name, value, read in (("cpu", resources.cpu, quantity.millis), ("memory", resources.memory, quantity.units)):
        if value != "":
            _quantity(f"{path}.{name}", value, read, report)
    for key in resources.accelerators:
        report.run(f"{path}.accelerators.{key[:80]}", check_key, key)


def _quantity(path: str, value: kinds.Quantity, read: Callable[[kinds.Quantity], int], report: Report) -> None:
    try:
        read(value)
    except InvalidInput as error:
        report(path, str(error))


def _environment(component: kinds.Component, path: str, report: Report) -> None:
    for index, variable in enumerate(component.env):
        where = f"{path}.env[{index}]"
        if ENVIRONMENT.fullmatch(variable.name) is None:
            report(f"{where}.name", f"{shown(variable.name)} is no environment variable name")
        if "\0" in variable.value:
            report(f"{where}.value", "a NUL character cannot stand in an environment variable")
        if variable.value_from is not None:
            if variable.value:
                report(where, "has value and valueFrom; exactly one is allowed", "FieldValueForbidden")
            source = variable.value_from
            report.exactly_one(f"{where}.valueFrom", {"configMapKeyRef": source.config_map_key_ref, "secretKeyRef": source.secret_key_ref})
            for ref in (source.config_map_key_ref, source.secret_key_ref):
                if ref is not None:
                    _label(f"{where}.valueFrom.name", ref.name, report)
                    _data_key(f"{where}.valueFrom.key", ref.key, report)
    for index, source_of_all in enumerate(component.env_from):
        where = f"{path}.envFrom[{index}]"
        report.exactly_one(where, {"configMapRef": source_of_all.config_map_ref, "secretRef": source_of_all.secret_ref})
        if source_of_all.prefix and ENVIRONMENT.fullmatch(source_of_all.prefix) is None:
            report(f"{where}.prefix", f"{shown(source_of_all.prefix)} cannot begin an environment variable name")
        for reference in (source_of_all.config_map_ref, source_of_all.secret_ref):
            if reference is not None:
                _label(f"{where}.name", reference.name, report)


def _mounts(component: kinds.Component, path: str, report: Report) -> None:
    report.unique(f"{path}.files", (each.path for each in component.files))
    for index, file in enumerate(component.files):
        where = f"{path}.files[{index}]"
        _problem(f"{where}.path", path_problem(file.path), report)
        report.exactly_one(where, {"configMap": file.config_map, "secret": file.secret})
        for source in (file.config_map, file.secret):
            if source is not None:
                _label(f"{where}.name", source.name, report)
                if source.key:
                    _data_key(f"{where}.key", source.key, report)
    report.unique(f"{path}.volumes", (each.path for each in component.volumes))
    for index, volume in enumerate(component.volumes):
        _label(f"{path}.volumes[{index}].name", volume.name, report)
        _problem(f"{path}.volumes[{index}].path", path_problem(volume.path), report)


def _probe(probe: kinds.Probe, component: kinds.Component, path: str, report: Report) -> None:
    report.exactly_one(path, {"httpGet": probe.http_get, "tcpSocket": probe.tcp_socket, "exec": probe.exec})
    for name, asked in (("httpGet", probe.http_get), ("tcpSocket", probe.tcp_socket)):
        if asked is not None and asked.port is None and component.expose is None:
            report(f"{path}.{name}.port", "a port is required where the component exposes none", "FieldValueRequired")
    if probe.http_get is not None and not probe.http_get.path.startswith("/"):
        report(f"{path}.httpGet.path", f"{shown(probe.http_get.path)} does not begin with '/'")
    if probe.http_get is not None and any(char <= " " or char == "\x7f" for char in probe.http_get.path):
        report(f"{path}.httpGet.path", "has a blank or control character; write it as %20 and the like")
    if probe.exec is not None and not (probe.exec.command and probe.exec.command[0]):
        report(f"{path}.exec.command", "the program to run is required", "FieldValueRequired")


def _placement(placement: kinds.Placement, path: str, report: Report) -> None:
    try:
        from_struct(placement.cluster_selector, f"{path}.clusterSelector")
    except InvalidInput as error:
        report(error.field or f"{path}.clusterSelector", str(error))
    if placement.cluster_name and placement.cluster_names:
        report(path, "has clusterName and clusterNames; one is enough", "FieldValueForbidden")
    for name in filter(None, (placement.cluster_name, *placement.cluster_names)):
        _problem(f"{path}.clusterNames", subdomain_problem(name), report)
    if placement.on_unreachable.action == "Replace" and placement.strategy == "Duplicated":
        where = f"{path}.onUnreachable.action"
        report(where, "means nothing with strategy Duplicated: every cluster has its own replicas; use Keep", "FieldValueForbidden")
    if placement.on_unreachable.action == "Keep" and placement.on_unreachable.after_seconds:
        report(f"{path}.onUnreachable.afterSeconds", "means nothing with action Keep; leave it out, or set action: Replace")
    if placement.node_name:
        _problem(f"{path}.nodeName", subdomain_problem(placement.node_name), report)
    for key, value in placement.node_selector.items():
        report.run(f"{path}.nodeSelector.{key[:80]}", check_key, key)
        report.run(f"{path}.nodeSelector.{key[:80]}", check_value, value)
    if placement.architecture:
        _label(f"{path}.architecture", placement.architecture, report)
    for index, toleration in enumerate(placement.tolerations):
        where = f"{path}.tolerations[{index}]"
        if toleration.key:
            report.run(f"{where}.key", check_key, toleration.key)
        elif toleration.operator != "Exists":
            report(f"{where}.operator", "must be Exists where the key is empty")
        if toleration.operator == "Exists" and toleration.value:
            report(f"{where}.value", "must be empty where the operator is Exists")
    wishes(placement, path, report)


def model(new: kinds.Model, previous: kinds.Model | None, report: Report) -> None:
    if not new.spec.versions:
        report("spec.versions", "at least one version is required", "FieldValueRequired")
    report.unique("spec.versions", (each.name for each in new.spec.versions))
    for index, version in enumerate(new.spec.versions):
        where = f"spec.versions[{index}]"
        if MODEL_VERSION.fullmatch(version.name) is None:
            report(f"{where}.name", f"{shown(version.name)} is no version name: letters, digits, '.', '_' and '-', at most 63")
        if not version.files:
            report(f"{where}.files", "at least one file is required", "FieldValueRequired")
        report.unique(f"{where}.files", (each.path for each in version.files))
        for number, file in enumerate(version.files):
            _problem(f"{where}.files[{number}].path", path_problem(file.path), report)
    if previous is not None:
        before = {each.name: each for each in previous.spec.versions}
        for index, version in enumerate(new.spec.versions):
            old = before.get(version.name)
            if old is not None and (old.files, old.runtime) != (version.files, version.runtime):
                report(
                    f"spec.versions[{index}]",
                    f"version {version.name!r} is published and never changes; publish its files under a new name",
                    "FieldValueForbidden",
                )


def cluster(new: kinds.Cluster, previous: kinds.Cluster | None, report: Report) -> None:
    report.unique("spec.taints", ((each.key, each.effect) for each in new.spec.taints))
    for index, taint in enumerate(new.spec.taints):
        report.run(f"spec.taints[{index}].key", check_key, taint.key)
        report.run(f"spec.taints[{index}].value", check_value, taint.value)
    users(new.spec.users, "spec.users", report)
    price = new.metadata.labels.get(kinds.HOURLY_COST)
    if price is not None:
        _problem(f"metadata.labels.{kinds.HOURLY_COST}", hourly_cost_problem(price), report)


def join_token(new: kinds.JoinToken, previous: kinds.JoinToken | None, report: Report) -> None:
    for name, value in (("parent", new.spec.parent), ("replace", new.spec.replace), ("clusterName", new.spec.cluster_name)):
        if value:
            _problem(f"spec.{name}", subdomain_problem(value), report)
    for key, value in new.spec.labels.items():
        report.run(f"spec.labels.{key[:80]}", check_key, key)
        report.run(f"spec.labels.{key[:80]}", check_value, value)
    if previous is not None and previous.spec != new.spec:
        report("spec", "a token never changes; delete it and create another", "FieldValueForbidden")


def site_policy(new: kinds.SitePolicy, previous: kinds.SitePolicy | None, report: Report) -> None:
    if new.metadata.name != policy.NAME:
        report("metadata.name", f"a site has one policy, and its name is {policy.NAME}")
    entry = policy.entry_of(new)
    for index, group in enumerate(entry.groups):
        if group not in policy.GROUPS:
            report(f"spec.entry.groups[{index}]", f"{shown(group)} is no group; it is one of {', '.join(policy.GROUPS)}")
    if len(entry.users) > MOST_ADMITTED:
        report("spec.entry.users", f"has {len(entry.users)} names; at most {MOST_ADMITTED}", "FieldValueTooMany")
    for index, name in enumerate(entry.users[:MOST_ADMITTED]):
        _problem(f"spec.entry.users[{index}]", subdomain_problem(name), report)
    report.unique("spec.entry.users", entry.users)
    for name, subjects in (("veto", new.spec.veto), ("pins", new.spec.pins)):
        if len(subjects) > MOST_SUBJECTS:
            report(f"spec.{name}", f"has {len(subjects)} entries; at most {MOST_SUBJECTS}", "FieldValueTooMany")
        for index, subject in enumerate(subjects[:MOST_SUBJECTS]):
            _subject(subject, f"spec.{name}[{index}]", report)
    parents = new.spec.parents or []
    if len(parents) > MOST_ADMITTED:
        report("spec.parents", f"has {len(parents)} entries; at most {MOST_ADMITTED}", "FieldValueTooMany")
    for index, name in enumerate(parents[:MOST_ADMITTED]):
        if not name or len(name) > MOST_PATTERN:
            report(f"spec.parents[{index}]", f"must have between 1 and {MOST_PATTERN} characters")
    _resources(kinds.Resources(cpu=new.spec.caps.cpu, memory=new.spec.caps.memory), "spec.caps", report)


def _subject(subject: policy.Subject, path: str, report: Report) -> None:
    """It must say whom it means: an empty one would mean everybody, and is more likely a mistake."""
    patterns = {"namespaces": subject.namespaces, "names": subject.names, "origins": subject.origins}
    if isinstance(subject, policy.Veto):
        patterns |= {"images": subject.images, "models": subject.models}
        if len(subject.reason) > MOST_REASON:
            report(f"{path}.reason", f"has {len(subject.reason)} characters; at most {MOST_REASON}", "FieldValueTooLong")
    if subject.selector is None and not any(patterns.values()):
        report(path, f"says nobody: give one of {', '.join(patterns)}, selector; names: ['*'] means everybody", "FieldValueRequired")
    for name, given in patterns.items():
        if len(given) > MOST_ADMITTED:
            report(f"{path}.{name}", f"has {len(given)} entries; at most {MOST_ADMITTED}", "FieldValueTooMany")
        for index, pattern in enumerate(given[:MOST_ADMITTED]):
            if not pattern or len(pattern) > MOST_PATTERN:
                report(f"{path}.{name}[{index}]", f"must have between 1 and {MOST_PATTERN} characters")
    try:
        from_struct(subject.selector, f"{path}.selector")
    except InvalidInput as error:
        report(error.field or f"{path}.selector", str(error))


def user(new: kinds.User, previous: kinds.User | None, report: Report) -> None:
    if not new.spec.grants:
        report("spec.grants", "at least one grant is required, as in {role: view}", "FieldValueRequired")
    report.unique("spec.grants", ((each.role, each.namespace) for each in new.spec.grants))
    for index, grant in enumerate(new.spec.grants):
        if grant.namespace:
            _label(f"spec.grants[{index}].namespace", grant.namespace, report)
    if previous is not None and previous.spec.credential != new.spec.credential:
        report("spec.credential", "cannot be changed; create another user", "FieldValueForbidden")
    if previous is not None and previous.spec.revoked and not new.spec.revoked:
        report("spec.revoked", "a revocation cannot be taken back; create another user", "FieldValueForbidden")


def config_map(new: kinds.ConfigMap, previous: kinds.ConfigMap | None, report: Report) -> None:
    _data({"data": new.data, "binaryData": new.binary_data}, ("binaryData",), report)
    for key in set(new.data) & set(new.binary_data):
        report(f"binaryData.{key[:80]}", "is in data too", "FieldValueDuplicate")
    if previous is not None and previous.immutable:
        _unchanged((previous.data, previous.binary_data, True), (new.data, new.binary_data, new.immutable), report)


def secret(new: kinds.Secret, previous: kinds.Secret | None, report: Report) -> None:
    _data({"data": new.data}, ("data",), report)
    if previous is not None and previous.type != new.type:
        report("type", "cannot be changed", "FieldValueForbidden")
    if previous is not None and previous.immutable:
        _unchanged((previous.data, True), (new.data, new.immutable), report)


def event(new: kinds.Event, previous: kinds.Event | None, report: Report) -> None:
    if len(new.message.encode()) > 4096:
        report("message", "has more than 4096 bytes", "FieldValueTooLong")
    if new.involved_object.namespace not in ("", new.metadata.namespace):
        report("involvedObject.namespace", "must be the event's own namespace")


def _unchanged(before: object, after: object, report: Report) -> None:
    if before != after:
        report("immutable", "it is immutable: delete it and create another", "FieldValueForbidden")


def _data(parts: Mapping[str, Mapping[str, str]], encoded: tuple[str, ...], report: Report) -> None:
    size = 0
    for part, data in parts.items():
        for key, value in data.items():
            _data_key(f"{part}.{key[:80]}", key, report)
            size += len(value)
            if part in encoded:
                _base64(f"{part}.{key[:80]}", value, report)
    if size > DATA_BYTES:
        report("data", f"has {size} bytes; at most {DATA_BYTES}", "FieldValueTooLong")


def _base64(path: str, value: str, report: Report) -> None:
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        report(path, "is not base64")


def _data_key(path: str, key: str, report: Report) -> None:
    if DATA_KEY.fullmatch(key) is None or key in (".", ".."):
        report(path, f"{shown(key)} is no key: letters, digits, '-', '_' and '.', at most 253")


def _label(path: str, name: str, report: Report) -> None:
    _problem(path, label_problem(name), report)


def _problem(path: str, problem: str, report: Report) -> None:
    if problem:
        report(path, problem)


RULES: Mapping[str, Callable[[Any, Any, Report], None]] = {
    "Application": application,
    "Cluster": cluster,
    "ConfigMap": config_map,
    "Event": event,
    "JoinToken": join_token,
    "Model": model,
    "Secret": secret,
    "SitePolicy": site_policy,
    "User": user,
}
