"""`make demo-kubernetes` as a reader sees it: it plays to its end, and nothing of it stays, also when a person ends it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.support import ROOT, until
from e2e.testbed import Shape, registry
from e2e.testbed.member import check
from tools.needs import Missing

pytestmark = [pytest.mark.needs("kubectl"), pytest.mark.needs("root")]
PLAY_SECONDS = 400.0


class Played:
    """One demo in a session of its own; what it says goes to a file, as plain lines."""

    def __init__(self, folder: Path, image: Path) -> None:
        self._said = folder / "said"
        self._places = folder / "places"  # TMPDIR: its folders, and nobody else's
        self._places.mkdir()
        environment = os.environ | {"BANYAN_EDGE_IMAGE": str(image), "TMPDIR": str(self._places)}
        environment["BANYAN_TESTBED"] = str(registry.base())
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "e2e.kubernetes_demo"],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, env=environment,
            )  # fmt: skip

    def said(self) -> str:
        return self._said.read_text(encoding="utf-8")

    def wait_for(self, words: str) -> None:
        def there() -> bool:
            if words in self.said():
                return True
            if self.process.poll() is not None:
                pytest.fail(f"the demo ended with {self.process.returncode} before it said {words!r}:\n{self.said()}")
            return False

        until(f"the demo says {words!r}", there, PLAY_SECONDS)

    def left(self) -> list[str]:
        """What still runs in its session or out of its folders, and members that are not removed."""
        found = [entry.name for entry in registry.base().iterdir() if re.search(r"-site-k(8|3)s$", entry.name)]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if str(self._places).encode() in command or (int(fields[3]) == self.process.pid and fields[0] != "Z"):
                    found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        return found


@pytest.fixture
def played(edge_image: Path, tmp_path: Path) -> Iterator[Played]:
    try:
        check(Shape.whole())
        check(Shape.k3s())
    except Missing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the testbed lacks something: {missing}", pytrace=False)
        pytest.skip(f"the testbed lacks something: {missing}")
    demo = Played(tmp_path, edge_image)
    yield demo
    if demo.process.poll() is None:
        demo.process.terminate()
        demo.process.wait(120)


def test_it_plays_to_its_end_and_leaves_nothing(played: Played) -> None:
    played.wait_for("What happened")
    assert played.process.wait(120) == 0, played.said()
    said = played.said()
    assert "happy, confidence 0.99" in said
    assert re.search(r"site-k8s +○ Unknown +heard ≥?\d+s ago .*broken: region-a → site-k8s", said), said
    assert re.search(r"a new pod serves after [\d.]+ s: happy 0\.99", said), said
    assert "makes it again" in said and "nothing runs twice" in said
    assert played.left() == []


def test_ctrl_c_while_clusters_join_leaves_nothing(played: Played) -> None:
    played.wait_for("2. both become members")
    played.process.send_signal(signal.SIGINT)
    assert played.process.wait(180) == 130, played.said()
    assert played.left() == []
