"""Whom `banyan leave` takes for the controller that runs, and what it leaves in the folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from banyanctl import leaving
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput
from cluster_controller.store.folder import FolderLock


def test_the_owner_of_a_folder_is_who_has_its_lock_open(tmp_path: Path) -> None:
    assert leaving.owner(tmp_path) is None
    lock = FolderLock(tmp_path)
    assert leaving.owner(tmp_path) == os.getpid()
    lock.release()
    assert leaving.owner(tmp_path) is None  # the pid is still written there, of a process that lives


@pytest.mark.parametrize("text", ["", "1", "99999999", "-1", "none", "\xff"])
def test_a_stranger_is_never_taken_for_the_controller(tmp_path: Path, text: str) -> None:
    """A lock file from another pid namespace, or of a process that is gone, whose number somebody else has now."""
    (tmp_path / "store.lock").write_text(text, encoding="latin-1")
    assert leaving.owner(tmp_path) is None


def test_stopping_ends_the_owner_and_nobody_else(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cluster_controller.store.folder import FolderLock;"
        "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    site = leaving.Site(Config(data=tmp_path, name="edge-1"), "edge-1", "root", None)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            leaving.stop(site)
            assert process.wait(10) == -15
        finally:
            process.kill()
    leaving.stop(site)  # nobody is there any more


def test_where_nobody_can_be_asked_the_option_is_named() -> None:
    from banyanctl import output

    with pytest.raises(InvalidInput, match="--yes"):
        output.ask("edge-1 leaves root. Go on?", "--yes")
