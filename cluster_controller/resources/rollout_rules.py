"""What a rollout and an order of starts must also mean: waves that say whom they take, and nobody who waits for himself."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds
from cluster_controller.resources.names import label_problem
from cluster_controller.resources.selectors import from_struct

MOST_WAVES = 50
MOST_GATES = 10
METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
MOST_DEPENDED = 20


class Report(Protocol):
    def __call__(self, field: str, message: str, reason: str = "FieldValueInvalid") -> None: ...
    def exactly_one(self, field: str, given: Mapping[str, object]) -> None: ...
    def unique(self, field: str, values: Sequence[object]) -> None: ...


def waves(rollout: kinds.Rollout, path: str, report: Report) -> None:
    if len(rollout.waves) > MOST_WAVES:
        report(f"{path}.waves", f"has {len(rollout.waves)} waves; at most {MOST_WAVES}: `wave` says how many clusters each further one has")
    for index, wave in enumerate(rollout.waves[:MOST_WAVES]):
        where = f"{path}.waves[{index}]"
        selects = wave.cluster_selector is not None
        report.exactly_one(where, {"clusterSelector": selects, "count": wave.count, "percent": wave.percent})
        try:
            from_struct(wave.cluster_selector, f"{where}.clusterSelector")
        except InvalidInput as error:
            report(error.field or f"{where}.clusterSelector", str(error))


def gates(rollout: kinds.Rollout, path: str, components: Sequence[str], report: Report) -> None:
    if len(rollout.gates) > MOST_GATES:
        report(f"{path}.gates", f"has {len(rollout.gates)} gates; at most {MOST_GATES}", "FieldValueTooMany")
    report.unique(f"{path}.gates", [gate.name for gate in rollout.gates if gate.name])
    for index, gate in enumerate(rollout.gates[:MOST_GATES]):
        where = f"{path}.gates[{index}]"
        report.exactly_one(where, {"latency": gate.latency, "errors and requests": gate.errors or gate.requests})
        if (gate.errors is None) != (gate.requests is None):
            missing = "errors" if gate.errors is None else "requests"
            report(f"{where}.{missing}", "is required: the figure is errors divided by requests", "FieldValueRequired")
        if gate.component and gate.component not in components:
            have = ", ".join(components)[:200]
            report(f"{where}.component", f"{gate.component[:80]!r} is no component of this application; it has {have}")
        if not gate.path.startswith("/") or any(char <= " " or char >= "\x7f" for char in gate.path):
            report(f"{where}.path", "begins with a slash and has no blank")
        if gate.latency is None and gate.max > 1:
            report(f"{where}.max", "is a part of all requests: 0.05 is 5 %")
        for name, series in (("errors", gate.errors), ("requests", gate.requests), ("latency", gate.latency)):
            if series is not None and METRIC.fullmatch(series.metric) is None:
                report(f"{where}.{name}.metric", f"{series.metric[:80]!r} is no name of a metric")


def starts(app: kinds.Application, report: Report) -> None:
    """`dependsOn` of components and of the Application."""
    components = app.spec.components
    known = {component.name for component in components}
    for index, component in enumerate(components):
        where = f"spec.components[{index}].dependsOn"
        _names(component.depends_on, where, report)
        for number, name in enumerate(component.depends_on[:MOST_DEPENDED]):
            if name not in known:
                report(f"{where}[{number}]", f"{name[:80]!r} is no component of this application; it has {', '.join(sorted(known))[:200]}")
    found = cycle({component.name: component.depends_on for component in components})
    if found:
        report("spec.components.dependsOn", f"{chain(found)}: nobody of them could ever start")
    _names(app.spec.depends_on, "spec.dependsOn", report)
    if app.metadata.name and app.metadata.name in app.spec.depends_on:
        report("spec.dependsOn", f"{chain([app.metadata.name] * 2)}: it could never start")


def _names(names: Sequence[str], path: str, report: Report) -> None:
    if len(names) > MOST_DEPENDED:
        report(path, f"has {len(names)} names; at most {MOST_DEPENDED}", "FieldValueTooMany")
    report.unique(path, names)
    for index, name in enumerate(names[:MOST_DEPENDED]):
        problem = label_problem(name)
        if problem:
            report(f"{path}[{index}]", problem)


def chain(names: Sequence[str]) -> str:
    return " waits for ".join(names)


def cycle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """A chain that leads back to its beginning, which it names twice; empty when there is none."""
    done: set[str] = set()
    for start in edges:
        way = [start] if start not in done else []
        ahead = [iter(edges[name]) for name in way]
        while way:
            onward = next((each for each in ahead[-1] if each in edges and each not in done), None)
            if onward is None:
                done.add(way.pop())
                ahead.pop()
            elif onward in way:
                return [*way[way.index(onward) :], onward]
            else:
                way.append(onward)
                ahead.append(iter(edges[onward]))
    return []
