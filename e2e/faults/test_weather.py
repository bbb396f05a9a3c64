"""Bad links: loss, delay, a trickle, a black hole for large packets, each with a model on its way down and changes in both directions."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.faults.exact import Before, until_exact
from e2e.faults.ground import LOCAL, Ground, Machine, events
from e2e.support import APPS, EMOTION, model_application, until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

ENVIRONMENT = {
    "BANYAN_HEARTBEAT_SECONDS": "3"
}  # a modem's queue alone lasts longer than the patience that the other faults are played with
KIBIBYTE = 1 << 10
CHANGES = 100
HOLE = 1280  # bytes: the smallest that IPv6 lets a link have, so what tunnels and radios leave over is hardly ever less


class Model:
    """A model with some ballast that is published at the root and served on edge-1 by nobody else."""

    def __init__(self, ground: Ground, folder: Path, name: str, ballast: int) -> None:
        self.ground, self.name = ground, name
        (folder / "ballast.bin").write_bytes(os.urandom(ballast))
        self._files = (str(EMOTION / "model-1" / "model.onnx"), str(folder / "ballast.bin"))
        ground.root.banyan("model", "publish", name, *self._files, "--version", "1")

    def send(self) -> None:
        document = model_application(self.name, clusterName="edge-1")
        document["spec"]["components"][0]["model"]["name"] = self.name
        code, answer = self.ground.root.ask("POST", APPS, document)
        assert code == 201, answer

    def until_served(self, seconds: float = 120) -> None:
        until(f"{self.name} is served", lambda: self.ground.root.status(self.name).get("ready") == 1, seconds)

    def end(self) -> None:
        self.ground.delete(self.ground.root, self.name)


def arrived(site: Machine) -> int:
    """Bytes of blobs on a site's disk, the unfinished included."""
    return sum(path.stat().st_size for path in (site.folder / "blobs").rglob("*") if path.is_file())


@contextmanager
def losing(ground: Ground, percent: int) -> Iterator[None]:
    links = [ground.links["region-a"], ground.links["edge-1"]]
    for link in links:
        link.lose(percent)
    yield
    assert sum(link.lost() for link in links) >= 10, "the links lost next to nothing"
    for link in links:
        link.lose_none()


def busy(ground: Ground) -> None:
    """Changes of what is wanted that stop nobody, as fast as the API takes them; one more replica below."""
    for number in range(CHANGES):
        body = {"spec": {"placement": {"onUnreachable": {"action": "Replace", "afterSeconds": 100 + number}}}}
        code, answer = ground.root.ask("PATCH", f"{APPS}/turn-{number % 4}", body, "application/merge-patch+json")
        assert code == 200, answer
    ground.change(ground.region, LOCAL, replicas=3)


@pytest.fixture
def turning(ground: Ground) -> Iterator[None]:
    names = [f"turn-{number}" for number in range(4)]
    for name in names:
        ground.create(ground.root, name)
    for name in names:
        ground.until_runs(ground.root, name, 1)
    yield
    for name in names:
        ground.delete(ground.root, name)
    ground.change(ground.region, LOCAL, replicas=2)
    until_exact(Before(ground).less(*names, LOCAL))


@pytest.mark.usefixtures("turning")
def test_a_tenth_of_all_packets_is_lost(ground: Ground, tmp_path: Path) -> None:
    model = Model(ground, tmp_path, "lossy", 512 * KIBIBYTE)
    before = Before(ground)
    with losing(ground, 10):
        model.send()
        busy(ground)
        model.until_served()
        until_exact(before, 120)
    model.end()
    until_exact(before.less("lossy"))


@pytest.mark.usefixtures("turning")
def test_three_hundred_milliseconds_each_way(ground: Ground, tmp_path: Path) -> None:
    model = Model(ground, tmp_path, "distant", 512 * KIBIBYTE)
    before, begun = Before(ground), time.time()
    ground.cable.delay = 0.3
    try:
        model.send()
        busy(ground)
        model.until_served()
        until_exact(before)
        assert ground.root.banyan("--at", "edge-1", "get", "pods").stdout
        assert events(ground.root, "link.lost", begun) == []
    finally:
        ground.cable.delay = 0.0
    model.end()
    until_exact(before.less("distant"))


@pytest.mark.usefixtures("turning")
def test_a_trickle_of_64_kbit(ground: Ground, tmp_path: Path) -> None:
    """The model takes its time; nobody else waits for it, and no link is given up."""
    model = Model(ground, tmp_path, "slow", 48 * KIBIBYTE)
    before, begun = Before(ground), time.time()
    ground.links["region-a"].shape("64kbit", 64 * KIBIBYTE, "2kb")
    try:
        model.send()
        until("the model is on its way", lambda: arrived(ground.region) > 0)
        busy(ground)
        model.until_served()
        until_exact(before)
        assert events(ground.root, "link.lost", begun) == [], ground.log()
    finally:
        ground.links["region-a"].unshape()
    model.end()
    until_exact(before.less("slow"))


@pytest.mark.usefixtures("turning")
def test_large_packets_vanish(ground: Ground, tmp_path: Path) -> None:
    """A black hole: who sends little is heard, who sends much is not, and no router says why. The link is made anew with smaller packets
    while it lasts, and with large ones some time after."""
    model = Model(ground, tmp_path, "holed", 512 * KIBIBYTE)
    before, begun = Before(ground), time.time()
    ground.cable.largest = HOLE
    try:
        model.send()
        busy(ground)
        until("the link was given up", lambda: events(ground.region, "link.lost", begun), 120)
        until("smaller packets are tried", lambda: events(ground.region, "dial.small_segments", begun), 120)
        model.until_served()
        until_exact(before, 120)
    finally:
        ground.cable.largest = 65535
    assert ground.cable.vanished > 0
    model.end()
    until_exact(before.less("holed"))
