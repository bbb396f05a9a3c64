"""An ensemble in one model folder: steps that hand tensors to each other inside one process, served as one model.

``pipeline.json`` beside the steps' files:

    {"inputs":  [{"name": "image", "datatype": "UINT8", "shape": [-1, 48, 48]}],
     "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1]}],
     "steps":   [{"onnx": "scale.onnx", "inputs": {"x": "image"}, "outputs": {"y": "pixels"}},
                 {"onnx": "model.onnx", "inputs": {"x": "pixels"}, "outputs": {"scores": "scores"}},
                 {"python": "labels.py", "function": "best", "inputs": {"scores": "scores"}, "outputs": {"label": "label"}}]}

A step's ``inputs`` say which tensor each of its inputs takes, its ``outputs`` under which name each of its outputs is known from then on.
A Python step is called with arrays by keyword and returns a dictionary of arrays; when the last step is a generator function, each
dictionary that it yields is one answer of a streamed request. Python files are code: they are run only where the worker was told so
(``--python-steps``). Everything is checked when it is loaded: names, files, that each tensor is made before it is taken.
"""

import inspect
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from edge_ai.serve.errors import LoadFailed, ModelFailed, RequestError
from edge_ai.serve.model import Executor
from edge_ai.serve.tensors import DATATYPES, MAX_DIMENSIONS, Array, TensorSpec

FILE = "pipeline.json"
PLATFORM = "banyan_pipeline"
MOST_STEPS = 32


class _Tensor(Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: list[int]


class _Step(Struct, forbid_unknown_fields=True):
    inputs: dict[str, str]
    outputs: dict[str, str]
    onnx: str = ""
    python: str = ""
    function: str = "run"


class _Document(Struct, forbid_unknown_fields=True):
    inputs: list[_Tensor] = field(default_factory=list)
    outputs: list[_Tensor] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)


class _Code:
    """A function of a Python file, as a step."""

    def __init__(self, file: Path, name: str, outputs: Sequence[str]) -> None:
        self._file = file
        self._name = name
        self._outputs = outputs
        self.function = _function(file, name)
        self.streams = inspect.isgeneratorfunction(self.function)

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        try:
            made = self.function(**inputs)
            for answer in made if self.streams else (made,):
                yield self._checked(answer)
        except RequestError:
            raise
        except Exception as error:  # a person's code: whatever it raises is its failure on this request
            raise ModelFailed(f"{self._file.name}: {self._name} failed on this request: {type(error).__name__}: {error}") from error

    def _checked(self, answer: Any) -> dict[str, Array]:
        if not isinstance(answer, dict) or not all(isinstance(answer.get(name), np.ndarray) for name in self._outputs):
            raise ModelFailed(
                f"{self._file.name}: {self._name} must give a dictionary with an array for each of: {', '.join(self._outputs)}"
            )
        return answer


class _Onnx:
    """An ONNX file, as a step."""

    streams = False

    def __init__(self, executor: Executor, outputs: Sequence[str]) -> None:
        self._executor = executor
        self._outputs = list(outputs)

    def stream(self, inputs: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        yield dict(zip(self._outputs, self._executor.run(inputs, self._outputs), strict=True))


class Pipeline:
    """An `Executor`."""

    platform = PLATFORM

    def __init__(self, folder: Path, load_onnx: Callable[[Path], Executor], python: bool, verified: Collection[str] = ()) -> None:
        """``python``: whether Python steps may be run; where files were ``verified``, only those. Raises `LoadFailed`."""
        document = _read(folder / FILE)
        self.inputs = {item.name: _spec(item) for item in document.inputs}
        self.outputs = {item.name: _spec(item) for item in document.outputs}
        self._steps: list[tuple[_Code | _Onnx, dict[str, str], dict[str, str]]] = []
        known = set(self.inputs)
        for number, step in enumerate(document.steps, start=1):
            where = f"{FILE}, step {number}"
            if missing := [name for name in step.inputs.values() if name not in known]:
                raise LoadFailed(f"{where}: takes {', '.join(missing)}, which no input and no step before it gives")
            known.update(step.outputs.values())
            if step.python and python and verified and step.python not in verified:
                raise LoadFailed(f"{where}: {step.python} is Python code that no digest was given for")
            self._steps.append((_step(folder, step, where, load_onnx, python), step.inputs, step.outputs))
        if missing := [name for name in self.outputs if name not in known]:
            raise LoadFailed(f"{FILE}: no step gives the output {', '.join(missing)}")
        if any(step.streams for step, _, _ in self._steps[:-1]):
            raise LoadFailed(f"{FILE}: only the last step may be a generator")
        self.streams = self._steps[-1][0].streams

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """The last answer is the one that counts where there are several."""
        answers = deque(self.stream(inputs, outputs), maxlen=1)
        if not answers:
            raise ModelFailed("the pipeline gave no answer to this request")
        return answers[0]

    def stream(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Iterator[list[Array]]:
        tensors = dict(inputs)
        *before, last = self._steps
        for step, takes, gives in before:
            for answer in step.stream({own: tensors[name] for own, name in takes.items()}):
                tensors.update({name: answer[own] for own, name in gives.items()})
        step, takes, gives = last
        for answer in step.stream({own: tensors[name] for own, name in takes.items()}):
            tensors.update({name: answer[own] for own, name in gives.items()})
            yield [self._as_declared(name, tensors[name]) for name in outputs]

    def _as_declared(self, name: str, value: Array) -> Array:
        """What goes out is what the metadata promise; a step of a person's own may have been careless."""
        spec = self.outputs[name]
        fits = value.ndim == len(spec.shape) and all(want in (-1, size) for want, size in zip(spec.shape, value.shape, strict=True))
        kind = DATATYPES[spec.datatype].dtype
        if not fits or (spec.datatype != "BYTES" and not np.can_cast(value.dtype, kind, "same_kind")):
            raise ModelFailed(f"output '{name}' is {value.dtype} of shape {list(value.shape)}; declared {spec.datatype} {list(spec.shape)}")
        return value.astype(kind, copy=False)


def _read(file: Path) -> _Document:
    try:
        document = msgspec.json.decode(file.read_bytes(), type=_Document)
    except OSError as error:
        raise LoadFailed(f"{file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LoadFailed(f"{file} is not a pipeline: {error}") from None
    if not document.inputs or not document.outputs or not 1 <= len(document.steps) <= MOST_STEPS:
        raise LoadFailed(f"{file} needs inputs, outputs, and 1 to {MOST_STEPS} steps")
    return document


def _spec(item: _Tensor) -> TensorSpec:
    if item.datatype not in DATATYPES or len(item.shape) > MAX_DIMENSIONS or any(size < -1 for size in item.shape):
        raise LoadFailed(f"tensor '{item.name}': datatype one of {', '.join(DATATYPES)}, sizes from 0, or -1 for any")
    return TensorSpec(item.name, item.datatype, tuple(item.shape), tuple("" for _ in item.shape))


def _step(folder: Path, step: _Step, where: str, load_onnx: Callable[[Path], Executor], python: bool) -> _Code | _Onnx:
    if bool(step.onnx) == bool(step.python):
        raise LoadFailed(f"{where}: give either onnx or python, a file beside {FILE}")
    file = folder / (step.onnx or step.python)
    if not file.resolve().is_relative_to(folder.resolve()):
        raise LoadFailed(f"{where}: {step.onnx or step.python} leads out of the model folder")
    if not file.is_file():
        raise LoadFailed(f"{where}: {file} does not exist")
    if step.python:
        if not python:
            raise LoadFailed(f"{where}: {file.name} is Python code; --python-steps (serving.pythonSteps of an Application) lets it run")
        return _Code(file, step.function, list(step.outputs))
    executor = load_onnx(file)
    if unknown := [name for name in step.inputs if name not in executor.inputs] + [
        name for name in step.outputs if name not in executor.outputs
    ]:
        raise LoadFailed(f"{where}: {file.name} has no tensor {', '.join(unknown)}")
    if missing := [name for name in executor.inputs if name not in step.inputs]:
        raise LoadFailed(f"{where}: {file.name} also takes {', '.join(missing)}")
    return _Onnx(executor, list(step.outputs))


def _function(file: Path, name: str) -> Callable[..., Any]:
    """Compiled from the file itself: a cache beside it would be code that nobody verified, in a folder that is not ours to write to."""
    module = types.ModuleType(f"banyan_step_{file.stem}")
    module.__file__ = str(file)
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))  # noqa: S102  that it may was asked before
    except Exception as error:  # a person's code: whatever it raises, the model is not loaded
        raise LoadFailed(f"{file} cannot be imported: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise LoadFailed(f"{file} has no function {name}")
    made: Callable[..., Any] = function
    return made
