"""`make demo-kubernetes` as a reader sees it: it plays to its end, and nothing of it stays, also when a person ends it."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.telling import Telling
from e2e.testbed import Shape, registry
from e2e.testbed.fixtures import need

pytestmark = [pytest.mark.needs("kubectl"), pytest.mark.needs("root")]
PLAY_SECONDS = 400.0


class Played(Telling):
    def __init__(self, folder: Path, image: Path) -> None:
        self._places = folder / "places"  # TMPDIR: its folders, and nobody else's
        self._places.mkdir()
        own = {"BANYAN_EDGE_IMAGE": str(image), "TMPDIR": str(self._places), "BANYAN_TESTBED": str(registry.base())}
        super().__init__([sys.executable, "-m", "e2e.kubernetes_demo"], folder / "said", PLAY_SECONDS, os.environ | own)

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
    need(Shape.whole())
    need(Shape.k3s())
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
