"""`banyan bench` without a tree: what agrees with a record, what is read of a machine, and LoadGen against a real HTTPS server."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banyanctl.bench import load, loadgen, machine, record, way
from banyanctl.bench.loadgen import Outcome, Plan
from banyanctl.bench.record import Record
from banyanctl.client import Client
from cluster_controller.errors import InvalidInput, Unreachable
from tests.banyanctl.https import Asked, Authority, Reply, endpoint, serving

VALUES = st.floats(0.01, 1e6)


def made(*rows: record.Row, **settings: object) -> Record:
    return Record(
        format=record.FORMAT,
        at="2026-01-01T00:00:00Z",
        entry="https://x",
        version="1",
        clusters=1,
        host={},
        settings=settings,
        rows=list(rows),
    )


# --- rows and records ---


def test_a_row_is_the_middle_of_its_samples_with_their_range() -> None:
    found = record.row("x", [3.0, 1.0, 2.0], "ms")
    assert (found.value, found.low, found.high, found.p99, found.samples) == (2.0, 1.0, 3.0, None, 3)
    assert record.row("x", [1.23456], "ms").value == 1.235
    assert record.row("x", list(map(float, range(1, 201))), "ms").p99 == 198.0
    with pytest.raises(ValueError, match="nothing was measured"):
        record.row("x", [], "ms")


@given(VALUES, VALUES, st.floats(0, 1))
def test_what_agrees_does_so_both_ways_round(before: float, now: float, tolerance: float) -> None:
    there, back = record.judge(before, now, "ms", tolerance), record.judge(now, before, "ms", tolerance)
    assert back == {"better": "worse", "worse": "better"}.get(there, there)
    if before <= now <= before * (1 + tolerance):
        assert there == "agrees"


@pytest.mark.parametrize(
    ("before", "now", "unit", "verdict"),
    [
        (10.0, 13.0, "ms", "agrees"), (10.0, 20.0, "ms", "worse"), (20.0, 10.0, "ms", "better"), (0.2, 0.9, "ms", "agrees"),
        (100.0, 50.0, "MiB/s", "worse"), (100.0, 200.0, "/s", "better"), (1.0, 9.0, "cows", "differs"),
    ],
)  # fmt: skip
def test_the_direction_of_a_change_is_that_of_its_unit(before: float, now: float, unit: str, verdict: str) -> None:
    assert record.judge(before, now, unit, 0.3) == verdict


def test_a_comparison_says_what_only_one_of_them_has_and_that_is_no_agreement() -> None:
    here, there = record.row("here", [1.0], "ms"), record.row("there", [1.0], "ms")
    hidden = record.row("busy", [90.0], "% of a core", compared=False)
    both = record.compare(made(here, hidden), made(here), 0.3)
    assert record.agree(both)
    found = record.compare(made(there), made(here), 0.3)
    assert [(each.what, each.verdict) for each in found] == [("here", "only now"), ("there", "only before")]
    assert not record.agree(found)


def test_records_of_other_settings_are_not_compared() -> None:
    with pytest.raises(InvalidInput, match="other settings"):
        record.compare(made(parts=["hops"]), made(parts=["hops", "start"]), 0.3)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', "[1]"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="no record of"):
        record.read(text.encode(), "x.json")


def test_a_record_is_read_as_it_was_written_and_one_of_another_format_is_named() -> None:
    before = made(record.row("x", [1.0, 2.0], "ms", "a note"))
    assert record.read(msgspec.json.encode(before), "x") == before
    with pytest.raises(InvalidInput, match="has format 99"):
        record.read(msgspec.json.encode(msgspec.structs.replace(before, format=99)), "x")


# --- the way ---


def cluster(name: str, *path: str, phase: str = "Ready") -> dict[str, object]:
    return {"metadata": {"name": name}, "status": {"path": list(path), "phase": phase}}


def test_the_nearest_are_asked_and_what_is_left_out_is_counted() -> None:
    listed = [
        cluster("edge-1", "region-a", "edge-1"),
        cluster("region-a", "region-a"),
        cluster("root"),
        cluster("edge-2", "region-a", "edge-2", phase="Unknown"),
        cluster("edge-3", "region-a", "edge-3"),
    ]
    found, left = way.stops(listed, 2)
    assert [(stop.name, stop.title, stop.parent, stop.hops) for stop in found] == [
        ("", "root", "", 0), ("region-a", "region-a", "", 1), ("edge-1", "edge-1", "region-a", 2),
    ]  # fmt: skip
    assert left == 1


# --- the machine ---


def rapl(folder: Path, joules: int, most: int = 100) -> None:
    for name, value in (("energy_uj", joules), ("max_energy_range_uj", most)):
        for domain in ("intel-rapl:0", "intel-rapl:0:0"):
            (folder / domain).mkdir(exist_ok=True)
            (folder / domain / name).write_text(f"{value * 1_000_000}\n", encoding="ascii")


def test_energy_is_that_of_the_packages_also_when_a_counter_begins_anew(tmp_path: Path) -> None:
    rapl(tmp_path, 90)
    before = machine.reading(tmp_path)
    rapl(tmp_path, 15)
    spent = machine.spent(before, machine.reading(tmp_path))
    assert spent.joules == pytest.approx(25)
    assert spent.seconds >= 0
    assert spent.busy_seconds >= 0
    assert "only root" in machine.why_no_energy(tmp_path)


def test_where_there_is_no_counter_there_is_no_energy(tmp_path: Path) -> None:
    before = machine.reading(tmp_path)
    assert machine.spent(before, machine.reading(tmp_path)).joules is None
    assert "shows no energy counters" in machine.why_no_energy(tmp_path)


# --- LoadGen ---


def test_scenarios_are_known_in_any_case_and_another_is_named() -> None:
    assert load.chosen(["server", "OFFLINE", "Server"]) == ["Server", "Offline"]
    assert load.chosen([]) == ["SingleStream", "MultiStream", "Server", "Offline"]
    with pytest.raises(InvalidInput, match="no LoadGen scenario 'burst'"):
        load.chosen(["burst"])


def test_without_loadgen_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    load.needed()
    monkeypatch.setattr(load, "PACKAGE", "no_such_package")
    with pytest.raises(InvalidInput, match=r"pip install 'banyan-edge\[bench\]'"):
        load.needed()


def plan(url: str, authority: Authority, **given: object) -> Plan:
    made = Plan(
        endpoint=endpoint(url, authority, token="t"),
        method="POST",
        path="/app",
        body=b"x",
        scenarios=[],
        seconds=0.3,
        workers=2,
        timeout=10.0,
    )
    return msgspec.structs.replace(made, within_ms=60_000.0, **given)


def server(asked: Asked) -> Reply:
    assert asked.method == "POST"
    return (200, {"ok": True}) if asked.path == "/app" else (503, {"message": "no instance is ready"})


@pytest.mark.parametrize("name", loadgen.SCENARIOS)
def test_each_scenario_is_played_and_every_query_answered(name: str, tmp_path: Path) -> None:
    authority = Authority()
    with serving(authority, server, tmp_path) as (url, asked):
        found = load.play(plan(url, authority, scenarios=[name]))
    assert (found.scenario, found.failed, found.trouble) == (name, 0, "")
    assert found.answers == len(found.latencies_ms) >= loadgen.FEWEST
    assert found.rate > 0
    assert len(asked) == found.answers + loadgen.FEWEST  # those with which it begins
    rows = {row.what: row for row in load.shown(found)}
    assert rows[f"{name}: answers"].value == pytest.approx(found.rate, rel=1e-3)
    assert (f"{name}: an answer" in rows) is (name != "Offline")


def test_an_application_that_does_not_answer_is_said_before_any_load(tmp_path: Path) -> None:
    authority = Authority()
    with serving(authority, server, tmp_path) as (url, asked), pytest.raises(Unreachable, match=r"503: .*no instance is ready"):
        load.play(plan(url, authority, path="/gone", scenarios=["Server"]))
    assert len(asked) == loadgen.FEWEST


def test_a_credential_stands_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan goes by standard input: what a process was told there nobody else can read."""
    given: list[list[str]] = []
    popen = subprocess.Popen

    def start(argv: list[str], **more: Any) -> "subprocess.Popen[bytes]":
        given.append(argv)
        return popen(argv, **more)

    monkeypatch.setattr(load.subprocess, "Popen", start)
    authority = Authority()
    with serving(authority, server, tmp_path) as (url, _):
        load.play(plan(url, authority, scenarios=["SingleStream"]))
    assert [argv[1:] for argv in given] == [["-m", "banyanctl.bench.loadgen"]]


def test_what_loadgens_log_says_is_read_and_nonsense_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('noise\n:::MLLOG {"key": "a", "value": 1}\n:::MLLOG {"key": "a", "value": 2}\n:::MLLOG {half\n', encoding="utf-8")
    assert loadgen.told(path) == {"a": 2}


def test_processor_time_is_asked_of_each_controller_on_the_way(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        if "/clusters/edge-2/" in asked.path:
            return 403, {"message": "not for you"}
        return 200, f"# HELP\n{load.METRIC} {2.5 if '/clusters/' in asked.path else 1.5}\n".encode()

    authority = Authority()
    with serving(authority, answer, tmp_path) as (url, _), Client(endpoint(url, authority, token="t")) as client:
        assert load.processor(client, ["root", "region-a", "edge-2"]) == {"root": 1.5, "region-a": 2.5}


def test_rows_say_what_a_scenario_is_about() -> None:
    outcome = Outcome(
        scenario="Server", answers=100, failed=0, seconds=1.0, latencies_ms=[float(n) for n in range(1, 101)], rate=100, wanted_rate=90
    )
    rows = {row.what: row for row in load.shown(outcome)}
    assert rows["Server: 99 of 100 answers"].value == 99
    assert not rows["Server: answers"].compared  # it is what was asked for
    assert load.shown(msgspec.structs.replace(outcome, latencies_ms=[])) == []
    assert json.loads(msgspec.json.encode(rows["Server: an answer"]))["unit"] == "ms"
