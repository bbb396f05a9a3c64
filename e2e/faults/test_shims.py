"""A shim in a process of its own that is killed or hangs: what it runs serves on, nothing stale looks fresh, and nothing is made twice."""

import signal
from collections.abc import Iterator

import pytest

from e2e.faults.figures import Figures
from e2e.faults.served import ServedShim
from e2e.support import APPS, Site, growing, program, until


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedShim]:
    shim = ServedShim(tmp_path_factory.mktemp("shim") / "far", "process")
    shim.start()
    yield shim
    remains = Site(shim.folder, {})
    remains.process = None
    shim.kill()
    remains.destroy()


@pytest.fixture(scope="module")
def sites(shim: ServedShim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """root → edge-1, whose cluster the shim manages; three instances run there."""
    with growing(tmp_path_factory.mktemp("tree")) as tree:
        root = tree.root()
        edge = tree.site("edge-1")
        edge.join(root.token(), "--tunnel-listen", "", "--shim", shim.address)
        edge.wait()
        until("both are Ready", lambda: [one["phase"] for one in root.clusters().values()] == ["Ready"] * 2)
        code, answer = root.ask("POST", APPS, program("far", replicas=3))
        assert code == 201, answer
        until("three run", lambda: root.status("far").get("ready") == 3)
        yield root, edge


def ready(root: Site) -> int:
    return int(root.status("far").get("ready", 0))


def wanted(root: Site, replicas: int) -> None:
    spec = program("far", replicas=replicas)["spec"]
    code, answer = root.ask("PATCH", f"{APPS}/far", {"spec": {"components": spec["components"]}}, "application/merge-patch+json")
    assert code == 200, answer


@pytest.mark.exact
def test_a_shim_is_killed(shim: ServedShim, sites: tuple[Site, Site], figures: Figures) -> None:
    root, _ = sites
    before = shim.instances()
    assert len(before) == 3
    shim.kill()
    figures.begin()
    until("nothing stale looks fresh", lambda: ready(root) == 0)
    figures.mark("missed at the root")
    assert shim.instances() == before, "what runs does not notice"
    wanted(root, 4)
    shim.start()
    figures.begin()
    until("four run", lambda: ready(root) == 4 and len(shim.instances()) == 4)
    figures.mark("what was wanted meanwhile is done after it")
    assert before <= shim.instances(), "a healthy one was stopped"
    wanted(root, 3)
    until("three run", lambda: ready(root) == 3 and len(shim.instances()) == 3)


@pytest.mark.exact
def test_a_shim_hangs(shim: ServedShim, sites: tuple[Site, Site], figures: Figures) -> None:
    """Its connection stays open and it says nothing: it is missed all the same. What it was told meanwhile it does, once."""
    root, edge = sites
    before = shim.instances()
    assert len(before) == 3
    shim.signal(signal.SIGSTOP)
    figures.begin()
    try:
        until("it is missed", lambda: ready(root) == 0)
        figures.mark("missed at the root")
        assert "has not answered for" in edge.log(200)
        reasons = {row.get("reason") for row in root.status("far")["clusters"]}
        assert reasons == {"ShimLost"}, reasons
        wanted(root, 4)
        assert shim.instances() == before
    finally:
        shim.signal(signal.SIGCONT)
    figures.begin()
    until("four run", lambda: ready(root) == 4 and len(shim.instances()) == 4)
    figures.mark("what was wanted meanwhile is done after it")
    assert before <= shim.instances(), "a healthy one was stopped"
    wanted(root, 3)
    until("three run", lambda: ready(root) == 3 and len(shim.instances()) == 3)
