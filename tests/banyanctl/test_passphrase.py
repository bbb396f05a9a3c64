"""Where a backup's passphrase comes from, and that none is ever taken from the command line."""

from pathlib import Path

import pytest

from banyanctl.backup import VARIABLE, passphrase
from cluster_controller.errors import BanyanError, InvalidInput


def test_a_file_comes_before_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_text("from the file\n")
    assert passphrase(str(file), twice=True, environment={VARIABLE: "from the variable"}) == "from the file"
    assert passphrase("", twice=True, environment={VARIABLE: "from the variable"}) == "from the variable"


@pytest.mark.parametrize("content", ["", "short\n", "x" * 5000])
def test_what_is_no_passphrase_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "passphrase"
    file.write_text(content)
    with pytest.raises(BanyanError, match="passphrase"):
        passphrase(str(file), twice=False, environment={})


def test_where_nobody_can_be_asked_both_ways_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"--passphrase-file FILE or set {VARIABLE}"):
        passphrase("", twice=False, environment={})
    with pytest.raises(InvalidInput, match="cannot be read"):
        passphrase(str(tmp_path / "none"), twice=False, environment={})
