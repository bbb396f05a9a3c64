"""Rows know whether they met their target and keep their rounds; a result says of what, where and when."""

from pathlib import Path

import pytest

from benchmarks import records
from benchmarks.records import Options, Row

ROWS = [
    Row(
        what="memory | at rest", target=64, measured=46.87, unit="MiB", peer="KubeEdge 1.23, 5 pods", peer_measured=90, note="over a minute"
    ),
    Row(what="frames", target=200_000, measured=199_999, unit="/s", least=True, peer="websockets", peer_source="measured in this run"),
    Row(what="for understanding", measured=0.0123, unit="s", note="over a minute"),
]


def test_a_row_judges_itself_by_the_direction_of_its_target() -> None:
    assert [row.met for row in ROWS] == [True, False, None]
    assert Row(what="x", target=1, measured=1, unit="s").met
    assert Row(what="x", target=1, measured=1, unit="/s", least=True).met
    assert not Row(what="x", target=1, measured=1.001, unit="s").met


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.012"), (1.234, "1.23"), (46.87, "46.9"), (99.95, "100.0"), (123.4, "123"), (289_125.4, "289,125"), (None, "–")],
)
def test_numbers_have_as_many_digits_as_mean_something(value: float | None, text: str) -> None:
    assert records.number(value) == text


def test_the_source_of_a_peer_is_named() -> None:
    assert ROWS[0].peer_source == records.COMPARABLE
    assert ROWS[2].peer_source == ""
    assert records.notes(ROWS) == [
        "over a minute",
        f"KubeEdge 1.23: {records.COMPARABLE}",
        "websockets: measured in this run",
    ]


def written(folder: Path, name: str = "footprint", *, quick: bool = False) -> records.Result:
    made = records.result(name, Options(folder=folder, quick=quick, seed=7), ROWS, 12.34)
    assert records.load(records.save(made, folder)) == made
    return made


def test_a_result_says_where_when_and_of_what_it_was_measured(tmp_path: Path) -> None:
    made = written(tmp_path)
    assert made.machine.cores >= 1
    assert made.machine.cpu
    assert made.machine.kernel
    assert made.versions["python"].startswith("3.")
    assert made.seed == 7
    assert len(made.commit.rstrip("+")) >= 7


def test_rounds_are_kept_and_their_middle_and_range_shown() -> None:
    row = records.rounds("frames", [10.0, 30.0, 20.0], "/s", target=25, least=True, peer="bare", theirs=[5.0, 15.0, 10.0])
    assert (row.measured, row.peer_measured, row.met) == (20.0, 10.0, False)
    assert records.measured(row) == "20 /s (10 to 30, 3 rounds)"
    assert records.peer(row) == "bare: 10 /s; this is × 2 (2 to 2)"
    assert records.verdict(row) == "SHORT"
    assert any(note.startswith("“this is ×”: geometric mean") for note in records.notes([row]))
    assert records.rounds("frames", [0.0], "/s", peer="bare", theirs=[1.0]).ratio is None
    alone = records.rounds("frames", [10.0], "/s")
    assert (records.measured(alone), alone.ratio, alone.peer_measured) == ("10 /s", None, None)


def test_a_result_says_how_busy_the_machine_was_before_and_what_lay_between(tmp_path: Path) -> None:
    before = records.machine()
    made = records.result("idle", Options(folder=tmp_path), ROWS, 1.0, where=before, network="a wire")
    loaded = records.load(records.save(made, tmp_path))
    assert (loaded.machine, loaded.network) == (before, "a wire")
    assert loaded.machine.load is not None and loaded.machine.load >= 0


def test_a_result_of_before_there_were_rounds_is_read(tmp_path: Path) -> None:
    text = (
        '{"name":"x","machine":{"cpu":"c","cores":2,"memory_gib":1,"kernel":"k"},"versions":{},"commit":"a","date":"2026-01-01","seed":1,'
        '"quick":false,"seconds":1,"rows":[{"what":"w","target":1,"measured":2,"unit":"s","met":false}]}'
    )
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    made = records.load(tmp_path / "x.json")
    assert (made.rows[0].met, made.rows[0].rounds, made.machine.load, made.network) == (False, [], None, records.LOOPBACK)


def test_a_result_of_another_version_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "relay.json").write_text('{"machine": "x86_64", "rows": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"relay\.json was written by another version .* make bench-relay"):
        records.load(tmp_path / "relay.json")
