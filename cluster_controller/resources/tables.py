"""Server-side printing: the columns of each kind and the cells of one object (`kubectl get`).

Ages are computed here, at the moment of asking: nothing stale looks fresh (ARCHITECTURE law 5). Cells read plain documents,
not structs, because a row must be shown for every object that is stored, whoever wrote it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from cluster_controller.resources.registry import FINALIZER_WITHDRAW

Json = Mapping[str, Any]


class Column(Struct, frozen=True):
    name: str
    description: str
    type: str = "string"
    format: str = ""
    priority: int = 0  # 1: only with -o wide


class Heard(Struct, frozen=True):
    """How long ago something was heard of a cluster. Computed when shown, never stored."""

    seconds: float
    at_least: bool = False
    broken_hop: str = ""


class Context(Struct, frozen=True):
    now: datetime
    heard: Callable[[str], Heard | None] = lambda uid: None


class Table(Struct, frozen=True):
    columns: tuple[Column, ...]
    cells: Callable[[Json, Context], list[Any]]


def table_of(kind: str) -> Table:
    return _TABLES.get(kind, _DEFAULT)


def short_duration(seconds: float) -> str:
    """As Kubernetes shows ages: 45s, 12m, 3h20m, 5d."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, rest = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{rest}m" if rest else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, rest = divmod(hours, 24)
    if hours < 192:
        return f"{days}d{rest}h" if rest else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    return f"{days // 365}y"


def age(timestamp: object, now: datetime) -> str:
    """Since an RFC 3339 timestamp; `<unknown>` when there is none."""
    if not isinstance(timestamp, str) or not timestamp:
        return "<unknown>"
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<invalid>"
    return short_duration((now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def heard_text(heard: Heard | None) -> str:
    if heard is None:
        return ""
    return f"{'≥' if heard.at_least else ''}{short_duration(heard.seconds)}"


# --- reading documents that may lack anything ---


def _at(document: Any, *path: str) -> Any:
    for part in path:
        document = document.get(part) if isinstance(document, Mapping) else None
    return document


def _text(document: Any, *path: str) -> str:
    value = _at(document, *path)
    return "" if value is None else str(value)


def _number(document: Any, *path: str) -> int:
    value = _at(document, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _list(document: Any, *path: str) -> Sequence[Any]:
    value = _at(document, *path)
    return value if isinstance(value, list) else ()


def _name(document: Json) -> str:
    return _text(document, "metadata", "name")


def _age(document: Json, context: Context) -> str:
    return age(_at(document, "metadata", "creationTimestamp"), context.now)


def _joined(values: Sequence[Any], most: int = 3) -> str:
    texts = [str(each) for each in values if each]
    return ",".join(texts[:most]) + (f",+{len(texts) - most}" if len(texts) > most else "") or "<none>"


def _replicas(components: Sequence[Any]) -> int:
    return sum(1 if _at(each, "replicas") is None else _number(each, "replicas") for each in components)


def _condition(document: Json, kind: str) -> Json:
    return next((each for each in _list(document, "status", "conditions") if isinstance(each, Mapping) and each.get("type") == kind), {})


# --- cells ---


def _default(document: Json, context: Context) -> list[Any]:
    return [_name(document), _age(document, context)]


def _application(document: Json, context: Context) -> list[Any]:
    components = _list(document, "spec", "components")
    status = _at(document, "status")
    desired = _number(status, "desired") or _replicas(components)
    phase = _text(status, "phase") or "Pending"
    if _at(document, "metadata", "deletionTimestamp"):
        held = any(each != FINALIZER_WITHDRAW for each in _list(document, "metadata", "finalizers"))
        phase = f"{phase},DeletionWaits" if held else "Withdrawing"
    rows = [each for each in _list(status, "clusters") if isinstance(each, Mapping)]
    phase += _silence(rows, context)
    reasons = [_text(each, "reason") for each in _list(status, "components")]
    models = [_at(each, "model") for each in components if _at(each, "model")]
    return [
        _name(document), f"{_number(status, 'ready')}/{desired}", _number(status, "updated"), _number(status, "unplaced"), phase,
        _number(status, "clusterCount"), _age(document, context),
        _joined([f"{_text(each, 'name')}:{_text(each, 'version') or 'latest'}" for each in models]),
        _joined([_text(each, "name") for each in rows]), _joined(sorted(set(filter(None, reasons)))),
        _number(document, "spec", "priority"),
    ]  # fmt: skip


def _silence(rows: Iterable[Json], context: Context) -> str:
    """Which hop is broken on the way to those that are out of reach, and for how long; the longest, when there are several."""
    silent = [context.heard(_text(each, "cluster")) for each in rows if _text(each, "reason") == "Unreachable"]
    oldest = max((each for each in silent if each is not None), key=lambda each: each.seconds, default=None)
    return f" ({oldest.broken_hop or 'a cluster'} silent {heard_text(oldest)})" if oldest is not None else ""


def _subtree_application(document: Json, context: Context) -> list[Any]:
    origin = _text(document, "spec", "application", "originName") or _text(document, "spec", "application", "origin")
    cells = _application(document, context)
    return [cells[0], origin, *cells[1:]]


def _cluster(document: Json, context: Context) -> list[Any]:
    status = _at(document, "status")
    heard = context.heard(_text(status, "uid") or _text(document, "metadata", "uid"))
    phase = _text(status, "phase") or _text(_condition(document, "Ready"), "reason") or "Unknown"
    if _at(status, "unschedulable") or _at(document, "spec", "unschedulable"):
        phase += ",Cordoned"
    broken = (heard.broken_hop if heard is not None else "") or _text(status, "brokenHop")
    facts = _at(status, "facts")
    nodes = f"{_number(facts, 'nodesReady')}/{_number(facts, 'nodes')}"
    labels = _at(status, "labels")
    shown = [f"{key}={value}" for key, value in sorted(labels.items())] if isinstance(labels, Mapping) else []
    return [
        _name(document), _text(status, "parent") or "<none>", phase, heard_text(heard), broken, nodes,
        _number(facts, "applications"), _age(document, context),
        _silent_since(document), _text(status, "adoptedBy"),
        "/".join(str(each) for each in _list(status, "path")), _text(facts, "version"), _joined(_list(facts, "architectures")),
        _joined(shown, 8), _text(status, "uid"),
    ]  # fmt: skip


def _silent_since(document: Json) -> str:
    """When whoever lost it wrote so, by that clock: for people."""
    ready = _condition(document, "Ready")
    return _text(ready, "lastTransitionTime") if _text(ready, "status") not in ("", "True") else ""


def _model(document: Json, context: Context) -> list[Any]:
    versions = _list(document, "spec", "versions")
    size = sum(_number(file, "size") for each in versions for file in _list(each, "files"))
    states = {_text(each, "name"): bool(_at(each, "present")) for each in _list(document, "status", "versions")}
    present = sum(1 for each in versions if states.get(_text(each, "name")))
    return [
        _name(document), _joined([_text(each, "name") for each in versions]), f"{present}/{len(versions)}", _bytes(size),
        _age(document, context), _joined(sorted({_text(each, "runtime") or "onnx" for each in versions})),
    ]  # fmt: skip


def _work(document: Json, context: Context) -> list[Any]:
    app = _at(document, "spec", "application")
    where = f"{_text(app, 'namespace')}/{_text(app, 'name')}"
    replicas = _replicas(_list(document, "spec", "components"))
    return [_name(document), where, _text(app, "originName"), replicas, _age(document, context)]


def _join_token(document: Json, context: Context) -> list[Any]:
    spec, status = _at(document, "spec"), _at(document, "status")
    return [
        _name(document), _text(status, "parent") or _text(spec, "parent"), _text(status, "phase") or "Open",
        _until(_text(status, "expires"), context.now),
        bool(_at(spec, "approve")), _text(status, "usedByName") or _text(status, "usedBy"), _age(document, context),
        _text(status, "usedBy"),
    ]  # fmt: skip


def _site_policy(document: Json, context: Context) -> list[Any]:
    entry = _at(document, "spec", "entry")
    groups = _list(entry, "groups") if entry is not None else ["banyan:admin"]
    users = _list(entry, "users")
    return [_name(document), _joined(groups), len(users), _age(document, context), _joined(users)]


def _user(document: Json, context: Context) -> list[Any]:
    spec, status = _at(document, "spec"), _at(document, "status")
    grants = [f"{_text(each, 'role')}@{_text(each, 'namespace') or '*'}" for each in _list(spec, "grants")]
    phase = "Revoked" if _at(spec, "revoked") else _text(status, "phase") or "Active"
    return [
        _name(document), _joined(grants), phase, _until(_text(status, "expires"), context.now), _age(document, context),
        _text(spec, "credential") or "certificate",
    ]  # fmt: skip


def _namespace(document: Json, context: Context) -> list[Any]:
    return [_name(document), _text(document, "status", "phase") or "Active", _age(document, context)]


def _config_map(document: Json, context: Context) -> list[Any]:
    return [_name(document), len(_at(document, "data") or ()) + len(_at(document, "binaryData") or ()), _age(document, context)]


def _secret(document: Json, context: Context) -> list[Any]:
    return [_name(document), _text(document, "type") or "Opaque", len(_at(document, "data") or ()), _age(document, context)]


def _event(document: Json, context: Context) -> list[Any]:
    about = f"{_text(document, 'involvedObject', 'kind').lower()}/{_text(document, 'involvedObject', 'name')}"
    last = _at(document, "lastTimestamp") or _at(document, "eventTime") or _at(document, "metadata", "creationTimestamp")
    return [
        age(last, context.now), _text(document, "type"), _text(document, "reason"), about,
        _text(document, "message").strip(), _text(document, "source", "component"),
        age(_at(document, "firstTimestamp") or last, context.now), _number(document, "count") or 1, _name(document),
    ]  # fmt: skip


def _node(document: Json, context: Context) -> list[Any]:
    info = _at(document, "status", "nodeInfo")
    ready = _condition(document, "Ready").get("status")
    state = "Ready" if ready == "True" else "NotReady" if ready == "False" else "Unknown"
    if _at(document, "spec", "unschedulable"):
        state += ",SchedulingDisabled"
    capacity = _at(document, "status", "capacity")
    return [
        _name(document), state, _text(info, "architecture"), _text(capacity, "cpu"), _text(capacity, "memory"), _age(document, context),
        _text(info, "operatingSystem"), _text(info, "kernelVersion"), _text(info, "kubeletVersion"),
    ]  # fmt: skip


def _pod(document: Json, context: Context) -> list[Any]:
    status = _at(document, "status")
    containers = _list(status, "containerStatuses")
    total = len(_list(document, "spec", "containers"))
    ready = sum(1 for each in containers if _at(each, "ready") is True)
    waiting = next(filter(None, (_text(each, "state", "waiting", "reason") for each in containers)), "")
    state = (
        "Terminating" if _at(document, "metadata", "deletionTimestamp") else waiting or _text(status, "reason") or _text(status, "phase")
    )
    labels = _at(document, "metadata", "labels")
    return [
        _name(document), f"{ready}/{total}", state, sum(_number(each, "restartCount") for each in containers), _age(document, context),
        _text(status, "podIP") or "<none>", _text(document, "spec", "nodeName") or "<none>",
        _text(labels, "banyan.dev/application") or "<none>", _text(labels, "banyan.dev/component") or "<none>",
    ]  # fmt: skip


def _until(timestamp: str, now: datetime) -> str:
    if not timestamp:
        return ""
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<invalid>"
    left = ((then if then.tzinfo else then.replace(tzinfo=UTC)) - now).total_seconds()
    return f"in {short_duration(left)}" if left > 0 else f"{short_duration(-left)} ago"


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}TiB"


_NAME = Column("Name", "Unique within its namespace.", format="name")
_AGE = Column("Age", "Since it was created.")


def _wide(name: str, description: str, kind: str = "string") -> Column:
    return Column(name, description, kind, priority=1)


_APPLICATION = (
    Column("Ready", "Instances that are ready, of those wanted."),
    Column("Up-to-date", "Instances of the newest revision.", "integer"),
    Column("Unplaced", "Wanted instances that no cluster takes.", "integer"),
    Column("Status", "Its phase; DeletionWaits while others hold its deletion; which hop is silent, and for how long."),
    Column("Clusters", "How many clusters run it.", "integer"),
    _AGE,
    _wide("Models", "Models that it serves."),
    _wide("Where", "Clusters that run it, worst first."),
    _wide("Reason", "Why instances are missing."),
    _wide("Priority", "Where room is short, what has a lower one gives way.", "integer"),
)

_DEFAULT = Table((_NAME, _AGE), _default)
_TABLES: Mapping[str, Table] = {
    "Application": Table((_NAME, *_APPLICATION), _application),
    "SubtreeApplication": Table((_NAME, Column("Origin", "The cluster where it was written."), *_APPLICATION), _subtree_application),
    "Cluster": Table(
        (
            _NAME,
            Column("Parent", "The cluster that it is joined to."),
            Column("Status", "Ready, or why not."),
            Column("Heard", "How long ago something was heard of it; ≥ after a restart of the listener."),
            Column("Broken", "The hop on the way to it that is silent."),
            Column("Nodes", "Machines that are ready, of all."),
            Column("Apps", "Applications that run there.", "integer"),
            _AGE,
            _wide("Since", "When it fell silent, by the clock of whoever lost it."),
            _wide("Adopted by", "Under whom it is for the time being, its parent being out of reach."),
            _wide("Path", "Names from here down to it."),
            _wide("Version", "Of its controller."),
            _wide("Arch", "Architectures of its machines."),
            _wide("Labels", "Its own and all overlays, merged."),
            _wide("Uid", "The hash of its identity key."),
        ),
        _cluster,
    ),
    "Model": Table(
        (
            _NAME,
            Column("Versions", "Published versions."),
            Column("Present", "Versions whose files are all here, of all."),
            Column("Size", "Of all files."),
            _AGE,
            _wide("Runtime", "What runs it."),
        ),
        _model,
    ),
    "Work": Table(
        (
            _NAME,
            Column("Application", "Namespace and name at its origin."),
            Column("Origin", "The cluster where the application was written."),
            Column("Replicas", "This share.", "integer"),
            _AGE,
        ),
        _work,
    ),
    "JoinToken": Table(
        (
            _NAME,
            Column("Parent", "The cluster that may be joined with it."),
            Column("Status", "Open, Used, Expired or Revoked."),
            Column("Expires", "By the parent's clock."),
            Column("Approve", "Whether a person must approve who uses it.", "boolean"),
            Column("Used by", "The cluster that joined with it."),
            _AGE,
            Column("UID", "Of the cluster that joined with it.", priority=1),
        ),
        _join_token,
    ),
    "SitePolicy": Table(
        (
            _NAME,
            Column("Groups", "Of the tree, whose people may use the API of the site's cluster."),
            Column("Users", "Besides them, how many by name.", "integer"),
            _AGE,
            _wide("Names", "Who, by name."),
        ),
        _site_policy,
    ),
    "User": Table(
        (
            _NAME,
            Column("Grants", "Role and namespace."),
            Column("Status", "Active, Expired or Revoked."),
            Column("Expires", "When the credential ends."),
            _AGE,
            _wide("Credential", "certificate or token."),
        ),
        _user,
    ),
    "Namespace": Table((_NAME, Column("Status", "Active or Terminating."), _AGE), _namespace),
    "ConfigMap": Table((_NAME, Column("Data", "Number of keys.", "integer"), _AGE), _config_map),
    "Secret": Table((_NAME, Column("Type", "What it holds."), Column("Data", "Number of keys.", "integer"), _AGE), _secret),
    "Event": Table(
        (
            Column("Last Seen", "Since it last happened."),
            Column("Type", "Normal or Warning."),
            Column("Reason", "Why, in one word."),
            Column("Object", "What it is about."),
            Column("Message", "What happened."),
            _wide("Source", "Who reported it."),
            _wide("First Seen", "Since it first happened."),
            _wide("Count", "How often.", "integer"),
            Column("Name", "Unique within its namespace.", format="name", priority=1),
        ),
        _event,
    ),
    "Node": Table(
        (
            _NAME,
            Column("Status", "Ready, or why not."),
            Column("Arch", "Its architecture."),
            Column("Cpu", "Cores."),
            Column("Memory", "Bytes."),
            _AGE,
            _wide("Os", "Its operating system."),
            _wide("Kernel", "Its kernel."),
            _wide("Version", "Of the shim."),
        ),
        _node,
    ),
    "Pod": Table(
        (
            _NAME,
            Column("Ready", "Containers that are ready, of all."),
            Column("Status", "Its phase, or why it is not running."),
            Column("Restarts", "How often it was started again.", "integer"),
            _AGE,
            _wide("Ip", "Its address."),
            _wide("Node", "The machine that runs it."),
            _wide("Application", "The application that it belongs to."),
            _wide("Component", "The component that it is an instance of."),
        ),
        _pod,
    ),
}
