"""The shim of a Kubernetes cluster in a process of its own that is killed or hangs: pods run on, nothing stale looks fresh, and when it
speaks again what was wanted meanwhile is done once. Played on a real API server, whose audit log says what was made and deleted."""

import json
import signal
from collections.abc import Iterator

import pytest

from e2e.faults.figures import Figures
from e2e.faults.served import ServedShim
from e2e.place import Place, busybox
from e2e.support import Site, growing, until
from e2e.testbed import Member

pytestmark = [pytest.mark.needs("kubectl"), pytest.mark.exact]
EDGE = "edge-far-shim"
SLEEP = busybox("sleep", "3600")


@pytest.fixture(scope="module")
def shim(kwok_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedShim]:
    kwok_member.disown()
    shim = ServedShim(tmp_path_factory.mktemp("shim") / "far", "kubernetes", "--kubeconfig", str(kwok_member.kubeconfig))
    shim.start()
    yield shim
    shim.kill()


@pytest.fixture(scope="module")
def sites(shim: ServedShim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Site]]:
    """root, and a controller that speaks to the member through the shim."""
    with growing(tmp_path_factory.mktemp("tree")) as tree:
        root = tree.root()
        edge = tree.site(EDGE)
        edge.join(root.token(), "--tunnel-listen", "", "--shim", shim.address)
        edge.wait()
        until("it has nodes", lambda: root.clusters()[EDGE].get("facts", {}).get("nodes") == 3)
        yield root, edge


@pytest.fixture
def place(sites: tuple[Site, Site], kwok_member: Member) -> Iterator[Place]:
    """Three instances run."""
    place = Place(*sites, kwok_member, EDGE)
    place.create("steady", SLEEP | {"replicas": 3})
    place.until_ready("steady", 3)
    yield place
    place.clear()


def pods(place: Place) -> set[str]:
    """uids of those that run."""
    return {pod["metadata"]["uid"] for pod in place.objects("pods")}


def deleted(place: Place) -> int:
    """Objects that were deleted in the namespace, as the API server's audit log says, by whomever."""
    count = 0
    for line in place.member.audit_log.read_text(encoding="utf-8").splitlines():
        if place.namespace in line and '"verb":"delete' in line:
            entry = json.loads(line)
            count += entry["stage"] == "ResponseComplete" and entry["objectRef"].get("namespace") == place.namespace
    return count


def wanted(place: Place, replicas: int) -> None:
    patch = [{"op": "replace", "path": "/spec/components/0/replicas", "value": replicas}]
    place.root.kubectl("patch", "application", "steady", "-n", place.namespace, "--type=json", "-p", json.dumps(patch))


def is_missed(place: Place) -> bool:
    """Its word no longer counts: nothing is ready, and why is said."""
    row = place.row("steady")
    return place.status("steady").get("ready", 0) == 0 and row.get("ready", 0) == 0 and row.get("reason") == "ShimLost"


def until_done(place: Place, before: set[str], replicas: int) -> None:
    """What was wanted meanwhile is there, and all that ran before still is; nothing was made twice, nothing was deleted."""
    place.until_ready("steady", replicas)
    place.until_ready("meanwhile")
    assert before <= pods(place), "a healthy one was stopped"
    assert place.each_once(2), place.made()
    assert place.each_once(replicas + 1, "pods"), place.made("pods")
    assert deleted(place) == 0
    until("the nodes are told of as before", lambda: place.root.clusters()[EDGE].get("facts", {}).get("nodes") == 3)


def test_it_is_killed_and_started_again(shim: ServedShim, place: Place, figures: Figures) -> None:
    before = pods(place)
    shim.kill()
    figures.begin()
    until("it is missed", lambda: is_missed(place))
    figures.mark("missed at the root")
    wanted(place, 4)
    place.create("meanwhile", SLEEP)
    assert pods(place) == before
    shim.start()
    figures.begin()
    until_done(place, before, 4)
    figures.mark("what was wanted meanwhile is done after it")


def test_it_hangs_and_goes_on(shim: ServedShim, place: Place, figures: Figures) -> None:
    """Its connections stay open, to the controller and to the API server, and it says nothing: it is missed all the same."""
    before = pods(place)
    shim.signal(signal.SIGSTOP)
    figures.begin()
    try:
        until("it is missed", lambda: is_missed(place))
        figures.mark("missed at the root")
        assert "has not answered for" in place.edge.log(200)
        wanted(place, 4)
        place.create("meanwhile", SLEEP)
        assert pods(place) == before
    finally:
        shim.signal(signal.SIGCONT)
    figures.begin()
    until_done(place, before, 4)
    figures.mark("what was wanted meanwhile is done after it")
