"""Pipelines of ONNX files and Python functions: they answer as their steps would one after the other; the impossible is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_ai.serve import engine, pipeline
from edge_ai.serve.engine import How, Onnx
from edge_ai.serve.errors import LoadFailed, ModelFailed
from edge_ai.serve.pipeline import Pipeline
from tests.edge_ai import onnx_models

STEPS = """
import numpy as np
def scale(x): return {"x": (x / np.float32(2)).astype(np.float32)}
def name(y): return {"label": np.array(["big" if value > 5 else "small" for value in y[:, 0]], dtype=object)}
def spell(y):
    for letter in "abc":
        yield {"label": np.array([letter] * len(y), dtype=object)}
def wrong(y): return {"label": np.zeros((1, 2))}
def list_(y): return [1]
def raises(y): raise KeyError("no such thing")
"""
DOCUMENT: dict[str, Any] = {
    "inputs": [{"name": "picture", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}, {"name": "score", "datatype": "FP32", "shape": [-1, 4]}],
    "steps": [
        {"python": "steps.py", "function": "scale", "inputs": {"x": "picture"}, "outputs": {"x": "half"}},
        {"onnx": "model.onnx", "inputs": {"x": "half"}, "outputs": {"y": "score"}},
        {"python": "steps.py", "function": "name", "inputs": {"y": "score"}, "outputs": {"label": "label"}},
    ],
}


def make(folder: Path, document: Any = DOCUMENT) -> Path:
    onnx_models.constant(folder, 7.0)
    (folder / "steps.py").write_text(STEPS)
    (folder / pipeline.FILE).write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


def last(function: str) -> dict[str, Any]:
    return DOCUMENT | {"steps": [*DOCUMENT["steps"][:2], DOCUMENT["steps"][2] | {"function": function}]}


def load(folder: Path, python: bool = True) -> Pipeline:
    return Pipeline(folder, lambda file: Onnx(file, 1), python)


def test_steps_hand_their_tensors_on(tmp_path: Path) -> None:
    made = load(make(tmp_path))
    label, score = made.run({"picture": np.ones((2, 4), np.float32)}, ["label", "score"])
    assert label.tolist() == ["big", "big"] and score.tolist() == [[7.0] * 4] * 2
    assert not made.streams and made.inputs["picture"].shape == (-1, 4)


def test_it_is_loaded_verified_and_warmed_up_as_any_model(tmp_path: Path) -> None:
    folder = make(tmp_path)
    model = engine.load("m", "1", folder, {}, How(python=True))
    assert model.platform == "banyan_pipeline" and model.seconds > 0 and model.size > 0
    with pytest.raises(LoadFailed, match="sha256"):
        engine.load("m", "1", folder, {"steps.py": "0" * 64}, How(python=True))
    digest = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("steps.py", "model.onnx")}
    assert engine.load("m", "1", folder, digest, How(python=True)).platform == "banyan_pipeline"
    del digest["steps.py"]
    with pytest.raises(LoadFailed, match=r"steps\.py is Python code that no digest was given for"):
        engine.load("m", "1", folder, digest, How(python=True))
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "pipeline.json", "steps.py"]  # and no bytecode


def test_a_generator_gives_several_answers_to_one_request(tmp_path: Path) -> None:
    made = load(make(tmp_path, last("spell")))
    given = {"picture": np.ones((1, 4), np.float32)}
    assert made.streams and [answer[0].tolist() for answer in made.stream(given, ["label"])] == [["a"], ["b"], ["c"]]
    assert made.run(given, ["label"])[0].tolist() == ["c"]


@pytest.mark.parametrize(
    ("function", "says"), [("wrong", "declared BYTES"), ("list_", "must give a dictionary"), ("raises", "KeyError: 'no such thing'")]
)
def test_what_a_function_does_wrong_fails_that_request_and_names_it(tmp_path: Path, function: str, says: str) -> None:
    made = load(make(tmp_path, last(function)))
    with pytest.raises(ModelFailed, match=says):
        made.run({"picture": np.ones((1, 4), np.float32)}, ["label"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nonsense", "not a pipeline"),
        ({"steps": []}, "needs inputs"),
        (DOCUMENT | {"more": 1}, "more"),
        (DOCUMENT | {"steps": DOCUMENT["steps"][1:]}, "takes half"),
        (DOCUMENT | {"steps": DOCUMENT["steps"][:2]}, "gives the output label"),
        (last("nobody"), "no function nobody"),
        (DOCUMENT | {"steps": [{"inputs": {}, "outputs": {}}]}, "either onnx or python"),
        (DOCUMENT | {"steps": [DOCUMENT["steps"][0] | {"python": "../steps.py"}]}, "leads out"),
        (DOCUMENT | {"steps": [DOCUMENT["steps"][0] | {"python": "none.py"}]}, "does not exist"),
        (DOCUMENT | {"steps": [{"onnx": "model.onnx", "inputs": {"q": "picture"}, "outputs": {"y": "score"}}]}, "no tensor q"),
        (DOCUMENT | {"steps": [{"onnx": "model.onnx", "inputs": {}, "outputs": {"y": "score"}}]}, "also takes x"),
        (DOCUMENT | {"inputs": [{"name": "picture", "datatype": "FLOAT", "shape": [1]}]}, "datatype one of"),
    ],
)
def test_what_cannot_work_is_refused_with_the_place(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(LoadFailed, match=says):
        load(make(tmp_path, change))


def test_code_is_run_only_where_that_was_said(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="--python-steps"):
        load(make(tmp_path), python=False)


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path)
    (folder / "steps.py").write_text("import nothing_of_this_name")
    with pytest.raises(LoadFailed, match=r"steps\.py cannot be imported: ModuleNotFoundError"):
        load(folder)


def test_a_generator_stands_last(tmp_path: Path) -> None:
    first = {"python": "steps.py", "function": "spell", "inputs": {"y": "picture"}, "outputs": {"label": "label"}}
    with pytest.raises(LoadFailed, match="only the last step"):
        load(make(tmp_path, DOCUMENT | {"steps": [first, *DOCUMENT["steps"][:2]]}))
