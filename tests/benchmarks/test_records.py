"""Rows know whether they met their target, and the document's tables come from result files alone."""

from pathlib import Path

import pytest

from benchmarks import records, report
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


def test_the_document_changes_between_its_markers_only(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    results = tmp_path / "results"
    written(results)
    written(results, "size", quick=True)
    for _ in range(2):  # a second time changes nothing
        report.write(["footprint", "size", "lists"], results, document)
        text = document.read_text(encoding="utf-8")
        assert text.startswith(f"before\n{report.BEGIN}\n## footprint\n")
        assert text.endswith(f"{report.END}\nafter\n")
        assert "| memory \\| at rest | ≤ 64 MiB | **46.9** MiB | yes | KubeEdge 1.23, 5 pods: 90 MiB |\n" in text
        assert "| frames | ≥ 200,000 /s | **199,999** /s | NO | websockets |\n" in text
        assert "| for understanding | – | **0.012** s | – | – |\n" in text
        assert "## size\n\nNot measured yet: `make bench-size`." in text  # a quick run is no measurement
        assert "## lists\n\nNot measured yet" in text
        assert "old" not in text


def test_a_document_without_markers_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="needs the lines"):
        report.write(["footprint"], tmp_path, document)
    assert document.read_text(encoding="utf-8") == "nothing here\n"


def test_the_document_of_this_repository_has_its_markers() -> None:
    text = report.DOCUMENT.read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1


def test_a_result_of_another_version_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "relay.json").write_text('{"machine": "x86_64", "rows": []}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"relay\.json was written by another version .* make bench-relay"):
        records.load(tmp_path / "relay.json")
