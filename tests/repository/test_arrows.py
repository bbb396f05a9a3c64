"""What an edge controller loads, asked of a fresh interpreter: the import contracts read the source, this sees what happens."""

import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import cluster_controller
import cluster_shim
import openapi

FORBIDDEN = {"kubernetes", "grpc", "numpy", "onnxruntime", "alembic", "rich", "typer", "click", "yaml", "pytest"}
# Rooms that a controller with the process shim never enters.
NOT_ON_AN_EDGE = ("cluster_shim.grpc", "cluster_shim.k3s", "cluster_shim.kubernetes", "cluster_shim.verify")

LIST_ROOTS = """
import importlib, json, sys
from banyanctl import run
run.keep_out()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module is not None})))
"""


def modules_of_an_edge() -> Iterator[str]:
    for package in (cluster_controller, cluster_shim, openapi):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.startswith(NOT_ON_AN_EDGE) and not found.name.endswith("__main__"):
                yield found.name
    yield "banyanctl.main"
    yield "banyanctl.service"


def test_no_module_of_an_edge_controller_loads_what_it_must_not() -> None:
    names = list(modules_of_an_edge())
    assert "cluster_controller.errors" in names
    done = subprocess.run([sys.executable, "-c", LIST_ROOTS, json.dumps(names)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "cluster_controller" in loaded
    assert not loaded & FORBIDDEN
