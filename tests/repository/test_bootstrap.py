"""`make setup` on machines that lack something: it says what, and how to get it, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import check

ROOT = Path(__file__).parent.parent.parent


def bootstrap(folder: Path, python: str, path: str = "/usr/bin:/bin") -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": path, "PYTHON": python, "HOME": str(folder)}
    argv = ["sh", str(ROOT / "tools" / "bootstrap.sh"), str(folder / "venv"), str(ROOT / "requirements" / "installer.lock")]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def interpreter(folder: Path, refuses: str) -> str:
    """A Python that fails whenever its code contains one of these words, as one does whose modules are packaged apart."""
    path = folder / "python"
    tests = "".join(f'case "$2" in *"{word}"*) exit 1;; esac\n' for word in refuses.split())
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then\n{tests}fi\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("refuses", "said"),
    [("ensurepip pip", "sudo apt install python3-venv"), ("version_info", "Banyan needs 3.11 or newer")],
)
def test_what_is_missing_is_named_with_the_remedy(tmp_path: Path, refuses: str, said: str) -> None:
    done = bootstrap(tmp_path, interpreter(tmp_path, refuses))
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "venv").exists()


def test_no_registry_in_reach_is_said_with_the_remedy(tmp_path: Path) -> None:
    lock = tmp_path / "empty.lock"
    lock.write_text("uv==0.0.0 --hash=sha256:" + "0" * 64 + "\n")
    # Nobody listens at port 9, and a name that never resolves is no registry either.
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)} | nowhere
    argv = ["sh", str(ROOT / "tools" / "bootstrap.sh"), str(tmp_path / "venv"), str(lock)]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "Is a package registry in reach?" in done.stderr and "HTTPS_PROXY" in done.stderr


def test_no_python_at_all(tmp_path: Path) -> None:
    done = bootstrap(tmp_path, "python-of-nobody")
    assert done.returncode == 1
    assert "no python-of-nobody here" in done.stderr


def test_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ))
    for target in ("setup", "demo", "test", "e2e", "lint", "bench"):
        assert f"make {target} " in done.stdout


def test_ci_runs_what_the_makefile_offers() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in script.splitlines():
        if line.startswith("make "):
            assert f"\n{line.removeprefix('make ')}:" in makefile


def test_what_needs_a_cluster_is_known_by_name() -> None:
    """Each end-to-end test runs in exactly one of `make test` and `make test-kubernetes`."""
    fixtures = ("control_plane", "kwok_member", "k3s_member", "whole_member", "testbed_members", "edge_image")
    words = re.compile(rf"from e2e\.testbed|from e2e\.at_site|\b({'|'.join(fixtures)}): ")
    needing = {f"e2e/{path.name}" for path in (ROOT / "e2e").glob("test_*.py") if words.search(path.read_text(encoding="utf-8"))}
    assert needing == set(check.ON_KUBERNETES)
