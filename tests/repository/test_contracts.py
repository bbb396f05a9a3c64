"""The two import contracts of our own do what they say: a contract that nothing can break is no contract."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import contracts

CONFIG = """
[importlinter]
root_packages =
    room
include_external_packages = True
contract_types =
    pure: tools.contracts.PureContract
    adapter: tools.contracts.AdapterContract

[importlinter:contract:pure]
name = pure
type = pure
modules =
    room.core
may_import =
    msgspec

[importlinter:contract:adapters]
name = adapters
type = adapter
libraries =
    yaml: room.shell
"""


def lint(folder: Path, core: str, shell: str) -> subprocess.CompletedProcess[str]:
    package = folder / "room"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text(core, encoding="utf-8")
    (package / "shell.py").write_text(shell, encoding="utf-8")
    (folder / ".importlinter").write_text(CONFIG, encoding="utf-8")
    tool = Path(sys.executable).parent / "lint-imports"
    argv = [str(tool), "--no-cache", "--config", str(folder / ".importlinter")]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "400"}
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_tidy_room_passes(tmp_path: Path) -> None:
    done = lint(tmp_path, "import json\nimport msgspec\n", "import os\nimport yaml\nfrom room import core\n")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("core", "shell", "said"),
    [
        ("import socket\n", "", "room.core is pure and must not import socket"),
        ("import time\n", "", "room.core is pure and must not import time"),
        ("from room import shell\n", "", "room.core is pure and must not import room.shell"),
        ("import yaml\n", "", "room.core imports yaml, which belongs to another room"),
    ],
)
def test_each_wrong_import_is_named(tmp_path: Path, core: str, shell: str, said: str) -> None:
    done = lint(tmp_path, core, shell)
    assert done.returncode == 1
    assert said in " ".join(done.stdout.split())


def test_the_pure_list_names_modules_that_exist() -> None:
    root = contracts.CONFIG.parent
    for module in contracts.pure_modules():
        path = root / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), f"{module} is declared pure in .importlinter and does not exist"
