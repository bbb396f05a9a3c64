"""`banyan bench`: how fast a user's own tree is, on their own machines, with a record that a rerun can be held against."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from banyanctl import application, kinds, objects, output
from banyanctl.bench import load, machine, record, spread, way
from banyanctl.bench.loadgen import Plan
from banyanctl.bench.record import TOLERANCE, Compared, Record, Row
from banyanctl.cli import examples, settings
from banyanctl.client import Client
from banyanctl.invoke import _body as body_of
from banyanctl.invoke import _headers as headers_of
from cluster_controller.errors import InvalidInput
from cluster_controller.resources.selectors import parse_labels

PARTS = ("hops", "changes", "start")
DEFAULT = ("hops", "changes")
RECORD_LIMIT = 16 * 1024 * 1024


@examples(
    "banyan bench",
    "banyan bench hops -l tier=edge --rounds 50",
    "banyan bench changes start --record before.json",
    "banyan bench --compare before.json --tolerance 0.5",
    "banyan bench --application emotion /v2/models/emotion/infer -d @request.json",
    "banyan bench --application web / --scenario Server --rate 50",
)
def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[hops|changes|start]... [PATH]", help="What to measure. With --application: the path that is asked."),
    ] = None,
    selector: objects.Selector = "",
    most: Annotated[int, typer.Option("--clusters", min=1, max=100, help="At most so many clusters, the nearest first.")] = 20,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000, help="Rounds; each asks every cluster once.")] = 20,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, max=3600, help="Of each rate, and of each LoadGen scenario.")] = 5.0,
    called: Annotated[str, typer.Option("--application", metavar="NAME", help="Put this application under load, instead.")] = "",
    namespace: objects.Namespace = "",
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", help="SingleStream, MultiStream, Server or Offline; may be repeated.", show_default="all four"),
    ] = None,
    data: Annotated[str, typer.Option("-d", "--data-body", help="Body of the request; @FILE reads it.")] = "",
    header: Annotated[list[str] | None, typer.Option("-H", "--header", help="A header, as in 'Content-Type: application/json'.")] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Requests a second of the scenario Server.", show_default="half of what fits")
    ] = 0.0,
    within: Annotated[float, typer.Option("--within", min=0.1, help="Milliseconds that 99 of 100 answers of Server shall take.")] = 100.0,
    connections: Annotated[int, typer.Option("--connections", min=1, max=256, help="Requests that are under way at the same time.")] = 8,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that one answer may take.")] = 30.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of LoadGen's random moments.")] = 1,
    keep: Annotated[Path | None, typer.Option("--record", metavar="FILE", help="Keep what was measured, as JSON.")] = None,
    against: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Say whether it agrees with that record; exit 1 if not.")
    ] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", min=0, max=1, help="Part by which two medians may differ.")] = TOLERANCE,
) -> None:
    """Measure your own tree: round trips and rates hop by hop, changes on their way, an application under load.

    What is measured is what this machine sees, by its own clock. `changes` lays a label over each cluster and takes it away again; `start`
    starts a `sleep` on each process cluster and ends it. An application is put under load in the four LoadGen scenarios, with one request
    of yours again and again: it sees real load, so choose one that may.
    """
    before = record.read(_file(against), str(against)) if against is not None else None
    given = list(words or ())
    chosen: dict[str, Any]
    if called:
        load.needed()
        path = given[0] if given else "/"
        if len(given) > 1 or not path.startswith("/"):
            raise InvalidInput("with --application say one path that is asked, as in: banyan bench --application web /healthz", "PATH")
        scenarios = load.chosen(scenario or ())
        chosen = {"application": called, "path": path, "scenarios": scenarios, "rate": rate, "connections": connections, "seconds": seconds}
    else:
        parts = _parts(given)
        chosen = {"parts": parts, "selector": selector, "clusters": most}
    with settings().client() as client, output.progress("measuring") as say:
        if called:
            space = namespace or client.endpoint.namespace
            where = kinds.path(application.KIND, space, application.name_of(called), "proxy") + "/" + path.lstrip("/")
            body = body_of(data)
            plan = Plan(
                endpoint=client.endpoint, method="POST" if body else "GET", path=where, body=body or b"",
                headers=headers_of(header or [], has_body=bool(data)), scenarios=scenarios, seconds=seconds, workers=connections,
                timeout=timeout, rate=rate, within_ms=within, seed=seed,
            )  # fmt: skip
            rows, remarks = load.measure(client, plan, say)
            count = 0
        else:
            rows, remarks, count = _tree(client, parts, selector, most, rounds, seconds, timeout, say)
    made = Record(
        format=record.FORMAT, at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), entry=client.endpoint.server,
        version=version("banyan-edge"), clusters=count, host=machine.host(), settings=chosen, rows=rows,
    )  # fmt: skip
    if keep is not None:
        keep.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    for remark in remarks:
        output.note(remark)
    compared = record.compare(before, made, tolerance) if before is not None else []
    document = msgspec.to_builtins(made) | ({"compared": msgspec.to_builtins(compared), "tolerance": tolerance} if before else {})
    output.emit(document, settings().output, lambda: _table(rows, compared, wide=settings().output == "wide"))
    if before is not None:
        _judge(compared, tolerance, str(against))


def _parts(words: list[str]) -> list[str]:
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        hint = "; a path is asked of an application: add --application NAME" if unknown[0].startswith("/") else ""
        raise InvalidInput(f"there is nothing called {unknown[0]!r} to measure; there are: {', '.join(PARTS)}{hint}")
    return list(dict.fromkeys(words)) or list(DEFAULT)


def _tree(
    client: Client, parts: list[str], selector: str, most: int, rounds: int, seconds: float, timeout: float, say: Any
) -> tuple[list[Row], list[str], int]:
    wanted = parse_labels(selector)
    clusters = [
        item
        for item in client.items(kinds.path(way.CLUSTERS, ""))
        if not (item.get("status") or {}).get("path") or wanted.matches((item.get("status") or {}).get("labels") or {})
    ]
    stops, left = way.stops(clusters, most)
    remarks = [f"{left} clusters that are farther away are left out; --clusters says how many are asked"] if left else []
    rows: list[Row] = []
    if "hops" in parts:
        there = way.Way(client, stops, timeout)
        rows += there.round_trips(rounds, say)
        rows += there.rates(seconds, 3, say)
    if "changes" in parts:
        rows += spread.changes(client, stops, rounds, timeout, say)
    if "start" in parts:
        rows += spread.started(client, timeout, say)
    if len(stops) == 1:
        remarks.append("no cluster that is Ready stands below this controller: only it was asked")
    return rows, remarks, len(stops) - 1


def _table(rows: list[Row], compared: list[Compared], *, wide: bool) -> None:
    verdicts = {each.what: each for each in compared}
    heads = ["what", "median", "range"] + (["99 of 100", "rounds", "note"] if wide else []) + (["before", ""] if compared else [])
    lines = []
    for row in rows:
        cells: list[Any] = [row.what, f"{row.value:g} {row.unit}", f"{row.low:g} to {row.high:g}" if row.low is not None else ""]
        if wide:
            cells += [f"{row.p99:g} {row.unit}" if row.p99 is not None else "", row.samples, row.note]
        if compared:
            each = verdicts.get(row.what)
            cells += ["" if each is None or each.before is None else f"{each.before:g} {row.unit}", each.verdict if each else ""]
        lines.append(cells)
    output.table(heads, lines, empty="nothing was measured")


def _judge(compared: list[Compared], tolerance: float, name: str) -> None:
    """Says it on standard error, and ends with 1 when the two do not agree."""
    apart = [each for each in compared if each.verdict != "agrees"]
    same = len(compared) - len(apart)
    output.note(f"{same} of {len(compared)} rows agree with {name} within {tolerance:.0%}")
    for each in apart:
        output.note(f"  {each.what}: {each.verdict}" + (f", {each.before:g} then, {each.now:g} {each.unit} now" if _both(each) else ""))
    if not record.agree(compared):
        raise typer.Exit(1)


def _both(each: Compared) -> bool:
    return each.before is not None and each.now is not None


def _file(path: Path) -> bytes:
    try:
        if path.stat().st_size > RECORD_LIMIT:
            raise InvalidInput(f"{path} is larger than {RECORD_LIMIT // 2**20} MiB; that is no record of `banyan bench`", "--compare")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", "--compare") from error
