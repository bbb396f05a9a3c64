"""`banyan explain` for a person: when, from what, how each cluster was judged, and of each node why not."""

from pathlib import Path
from typing import Any

import pytest

from banyanctl import application
from cluster_controller.errors import InvalidInput

ANSWER: dict[str, Any] = {
    "decision": {"time": "2026-01-01T00:00:00Z", "generation": 3, "clusters": 2, "reachable": 1, "supposed": True,
                 "division": "LowestCost"},
    "components": [{"name": "serve", "replicas": 3, "unplaced": 1, "waiting": 1, "notes": ["takes no socket"]}],
    "missing": ["Model default/emotion"],
    "clusters": [
        {
            "cluster": "edge-1",
            "components": [
                {
                    "component": "serve", "replicas": 1, "planned": 2,
                    "score": {"preference": 5, "hourlyCost": 0.04, "latencyMillis": 12.0, "modelPresent": True},
                    "nodes": [{"node": "n1", "room": 4}, {"node": "n2", "filter": "Capacity", "reason": "has no room: cpu"}],
                }
            ],
        },
        {"cluster": "edge-2", "components": [{"component": "serve", "filter": "Cordoned", "reason": "is cordoned", "remedy": "uncordon"}]},
    ],
}  # fmt: skip


def test_it_says_when_from_what_and_how_each_was_judged(capsys: pytest.CaptureFixture[str]) -> None:
    application._explained(ANSWER, nodes=True)
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "supposed, nothing is changed at 2026-01-01T00:00:00Z, generation 3, 1 of 2 clusters in reach, divided by LowestCost",
        "serve: 3 wanted, 1 that no cluster takes, 1 on the move",
        "missing: Model default/emotion",
        "edge-1 serve 1 2 wish 5, 0.04/h, 12 ms, has the model",
        "is cordoned",
        "edge-1 n1 serve 4",
        "edge-1 n2 serve 0 has no room: cpu",
    ):
        assert words in said


def test_without_anything_judged_there_is_no_column_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    application._explained({"clusters": [ANSWER["clusters"][1]]}, nodes=False)
    assert "JUDGED" not in capsys.readouterr().out


def test_a_file_must_have_that_application_once(tmp_path: Path) -> None:
    file = tmp_path / "changed.yaml"
    file.write_text(
        "apiVersion: banyan.dev/v1alpha1\nkind: Application\nmetadata: {name: emotion}\nspec: {components: []}\n", encoding="utf-8"
    )
    assert application._spec(file, "emotion") == {"components": []}
    with pytest.raises(InvalidInput, match="has 0 manifests of application other"):
        application._spec(file, "other")
