"""What a placement must also mean: selectors that parse, numbers that fit each other, and nothing that would be ignored."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import kinds, quantity
from cluster_controller.resources.names import label_problem, shown, subdomain_problem
from cluster_controller.resources.selectors import check_key, from_struct

MOST_TERMS = 50  # of each list


class Report(Protocol):
    def __call__(self, field: str, message: str, reason: str = "FieldValueInvalid") -> None: ...
    def run(self, field: str, check: Callable[[str], object], value: str) -> None: ...
    def unique(self, field: str, values: Iterable[object]) -> None: ...


def wishes(placement: kinds.Placement, path: str, report: Report) -> None:
    """Affinity, spread, division, cost and latency; how long taints are tolerated."""
    division = placement.division
    _bounded(placement, path, report)
    for index, each in enumerate(placement.affinity.clusters):
        _selector(each.selector, f"{path}.affinity.clusters[{index}].selector", report)
    for name, terms in (("affinity", placement.affinity.applications), ("antiAffinity", placement.anti_affinity.applications)):
        for index, term in enumerate(terms):
            problem = label_problem(term.name)
            if problem:
                report(f"{path}.{name}.applications[{index}].name", problem)
            if term.topology_key:
                report.run(f"{path}.{name}.applications[{index}].topologyKey", check_key, term.topology_key)
            if term.weight and placement.strategy == "Duplicated":
                report(
                    f"{path}.{name}.applications[{index}].weight", "a wish means nothing with strategy Duplicated", "FieldValueForbidden"
                )
    for index, weight in enumerate(division.weights):
        _selector(weight.selector, f"{path}.division.weights[{index}].selector", report)
    for index, spread in enumerate(placement.spread):
        if spread.topology_key:
            report.run(f"{path}.spread[{index}].topologyKey", check_key, spread.topology_key)
    if division.weights and division.by != "Weights":
        report(f"{path}.division.weights", f"means nothing with by: {division.by}; set by: Weights", "FieldValueForbidden")
    if division.by == "Weights" and not any(each.weight for each in division.weights):
        report(f"{path}.division.weights", "by: Weights needs at least one weight above 0", "FieldValueRequired")
    if division.max and division.min > division.max:
        report(f"{path}.division.min", f"is more than max, {division.max}")
    for index, toleration in enumerate(placement.tolerations):
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            report(
                f"{path}.tolerations[{index}].tolerationSeconds", "counts for NoExecute only; set effect: NoExecute", "FieldValueForbidden"
            )
    _objective(placement, path, report)
    if placement.rebalance is not None and division.by == "LowestCost":
        report(f"{path}.rebalance", "means nothing with division: {by: LowestCost}, which never moves what stands", "FieldValueForbidden")
    if placement.rebalance is not None and placement.strategy == "Duplicated":
        report(f"{path}.rebalance", "means nothing with strategy Duplicated: every cluster has all replicas", "FieldValueForbidden")
    if placement.strategy == "Duplicated":
        _duplicated(placement, path, report)


def _objective(placement: kinds.Placement, path: str, report: Report) -> None:
    cheapest = placement.division.by == "LowestCost"
    if placement.cost is not None and not cheapest:
        report(f"{path}.cost", "means nothing without division: {by: LowestCost}", "FieldValueForbidden")
    latency = placement.latency
    if latency is None:
        return
    if not latency.to and not latency.users:
        report(f"{path}.latency.to", "at least one cluster, or one name of users, is required: to whom?", "FieldValueRequired")
    for index, name in enumerate(latency.to):
        problem = subdomain_problem(name)
        if problem:
            report(f"{path}.latency.to[{index}]", problem)
    for index, name in enumerate(latency.users):
        problem = label_problem(name)
        if problem:
            report(f"{path}.latency.users[{index}]", problem)
    if not cheapest and not latency.max_millis:
        report(f"{path}.latency", "means nothing without maxMillis or division: {by: LowestCost}", "FieldValueForbidden")


def _duplicated(placement: kinds.Placement, path: str, report: Report) -> None:
    for name, given in (
        ("affinity.clusters", placement.affinity.clusters),
        ("spread", placement.spread),
        ("division", placement.division != kinds.Division()),
    ):
        if given:
            report(f"{path}.{name}", "means nothing with strategy Duplicated: every cluster has all replicas", "FieldValueForbidden")


def _bounded(placement: kinds.Placement, path: str, report: Report) -> None:
    lists: tuple[tuple[str, int], ...] = (
        ("affinity.clusters", len(placement.affinity.clusters)),
        ("affinity.applications", len(placement.affinity.applications)),
        ("antiAffinity.applications", len(placement.anti_affinity.applications)),
        ("spread", len(placement.spread)),
        ("division.weights", len(placement.division.weights)),
        ("latency.to", len(placement.latency.to) if placement.latency is not None else 0),
        ("latency.users", len(placement.latency.users) if placement.latency is not None else 0),
    )
    for name, count in lists:
        if count > MOST_TERMS:
            report(f"{path}.{name}", f"has {count} entries; at most {MOST_TERMS}", "FieldValueTooMany")


def _selector(selector: kinds.LabelSelector | None, path: str, report: Report) -> None:
    try:
        from_struct(selector, path)
    except InvalidInput as error:
        report(error.field or path, str(error))


def users(points: Sequence[kinds.UserPoint], path: str, report: Report) -> None:
    """Names of users, each with what tells how far they are."""
    if len(points) > kinds.MOST_USERS:
        report(path, f"has {len(points)} entries; at most {kinds.MOST_USERS}", "FieldValueTooMany")
    report.unique(path, (each.name for each in points))
    for index, each in enumerate(points):
        where = f"{path}[{index}]"
        problem = label_problem(each.name)
        if problem:
            report(f"{where}.name", problem)
        if bool(each.address) == (each.millis is not None):
            report(where, "needs either address, which is measured, or millis, which is taken for true", "FieldValueRequired")
        host, _, port = each.address.rpartition(":")
        if each.address and not (host.strip("[]") and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            report(f"{where}.address", f"{shown(each.address)} is not HOST:PORT, as in 10.0.0.5:443 or [2001:db8::5]:443")


def hourly_cost_problem(value: str) -> str:
    """Why the value of the label that says a price is none, or ""."""
    try:
        quantity.micros(value)
    except InvalidInput:
        return f"{shown(value)} is no price: a quantity of the currency an hour, as in 0.12 or 120m"
    return ""
