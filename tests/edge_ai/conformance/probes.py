"""What the scripts of this folder share: each is a client of its own, in a process of its own, that asks a worker and says what it found.

    SCRIPT ADDRESS      one JSON line per probe: {"probe": NAME, "wrong": ""}; the exit code is 0 when all were tried

Nothing of the project is imported here: KServe's clients run in an environment without it. No test modules: test_conformance.py runs them.
The worker serves the model `identity` (one input and one output for each datatype) as versions 1 and 2, of which 2 is the default, and
`count`, which streams as many answers as its input says, and takes a second over -1.
"""

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPE = [3, 2]
VALUES: dict[str, Any] = {
    "BOOL": [True, False, True, True, False, False],
    "UINT8": [0, 1, 255, 3, 4, 5],
    "UINT16": [0, 1, 65535, 3, 4, 5],
    "UINT32": [0, 1, 2**32 - 1, 3, 4, 5],
    "UINT64": [0, 1, 2**64 - 1, 3, 4, 5],
    "INT8": [0, -128, 127, 3, 4, 5],
    "INT16": [0, -32768, 32767, 3, 4, 5],
    "INT32": [0, -(2**31), 2**31 - 1, 3, 4, 5],
    "INT64": [0, -(2**63), 2**63 - 1, 3, 4, 5],
    "FP16": [0, -1.5, 65504, 3, 4, 5],
    "FP32": [0, -1.5, 3e38, 3, 4, 5],
    "FP64": [0, -1.5, 1e308, 3, 4, 5],
    "BYTES": ["", "ä", "three", "4", "5", "6"],
}
DTYPES: dict[str, Any] = {
    "BOOL": bool, "FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BYTES": object,
} | {f"{sign}INT{bits}": getattr(np, f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}  # fmt: skip

_probes: list[Callable[[Any], Any]] = []


class Wrong(Exception):
    """It is not as the protocol says."""


def probe(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """One thing that is looked at; given what `main` was given."""
    _probes.append(function)
    return function


def check(condition: Any, what: object) -> None:
    if not condition:
        raise Wrong(str(what))


def given() -> dict[str, Any]:
    """An array for each of the model's inputs."""
    made = {}
    for name, values in VALUES.items():
        elements = [value.encode() for value in values] if name == "BYTES" else values
        made[name] = np.array(elements, dtype=DTYPES[name]).reshape(SHAPE)
    return made


def same(name: str, back: Any, expected: Any) -> None:
    """Texts may come as `str` or as `bytes`."""
    check(back is not None, f"{name}: no output")
    if name == "BYTES":
        back = np.array([item if isinstance(item, bytes) else item.encode() for item in back.ravel()], object).reshape(back.shape)
    check(list(back.shape) == list(expected.shape) and (back == expected).all(), f"{name}: {back!r}")


def main(client: Any) -> None:
    """Each probe on its own, so that one that fails hides no other."""
    for function in _probes:
        try:
            made = function(client)
            if inspect.isawaitable(made):
                raise TypeError(f"{function.__name__} is asynchronous: use main_async")
        except Exception as error:
            said(function, error)
        else:
            said(function)


async def main_async(client: Any) -> None:
    for function in _probes:
        try:
            await asyncio.wait_for(function(client), 30)
        except Exception as error:
            said(function, error)
        else:
            said(function)


def said(function: Callable[[Any], Any], error: Exception | None = None) -> None:
    if error is not None and not isinstance(error, Wrong):
        traceback.print_exception(error, file=sys.stderr)
    wrong = "" if error is None else f"{type(error).__name__}: {error}"[:2000]
    print(json.dumps({"probe": function.__name__, "wrong": wrong}), flush=True)
