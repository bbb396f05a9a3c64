"""A Kubernetes cluster as a member under the faults that process clusters know from `e2e/faults`: its site's link is cut, its controller's
machine loses its power with what was not synced, its clock jumps. Pods that ran are the same pods afterwards, by uid and by how often
their container was started; each object was made once, as the API server's audit log says; both ends hold the same.

The member is a whole one behind NAT, its controller runs at the site.
"""

import contextlib
import itertools
import json
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cluster_controller.errors import BanyanError
from e2e.at_site import CONTROLLER, SiteController, wait_ready
from e2e.faults import exact
from e2e.faults.figures import Figures
from e2e.faults.preloaded import Clocks, Power
from e2e.place import Place, busybox
from e2e.support import API, Site, application, growing, until
from e2e.testbed import Member

pytestmark = [pytest.mark.needs("kubectl"), pytest.mark.needs("cc"), pytest.mark.exact]
EDGE = "edge-site"
SLEEP = busybox("sleep", "3600")
SEED, LUCKY = 7, 0.3
YEAR = 366 * 86400
THERE = f"{API}/clusters/{EDGE}/banyan/api/v1/namespaces/default/configmaps"
WRITERS = 3


class Rooted(NamedTuple):
    root: Site
    edge: SiteController
    power: Power
    clocks: Clocks


class Held(NamedTuple):
    """A controller, by what it keeps on disk (`exact.Kept`)."""

    name: str
    folder: Path
    uid: str
    parent_uid: str


@pytest.fixture(scope="module")
def rooted(whole_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooted]:
    folder = tmp_path_factory.mktemp("outages")
    power, clocks = Power(tmp_path_factory.mktemp("power"), SEED, LUCKY), Clocks(tmp_path_factory.mktemp("clocks"))
    quick = {"BANYAN_HEARTBEAT_SECONDS": "1"}
    disk, clock = power.environment(folder / EDGE), clocks.environment(folder / EDGE)
    both = {"LD_PRELOAD": f"{disk['LD_PRELOAD']}:{clock['LD_PRELOAD']}"}
    with growing(folder) as tree:
        root = tree.site("root", **quick)
        root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", f"{whole_member.wan_host}:0", "--shim", "none")
        root.run()
        edge = SiteController(whole_member, EDGE, folder / EDGE, quick | disk | clock | both)
        edge.join(root.token())
        try:
            wait_ready(root, edge)
            yield Rooted(root, edge, power, clocks)
        finally:
            whole_member.heal_uplink()
            whole_member.machine.stop(CONTROLLER)


@pytest.fixture
def place(rooted: Rooted, whole_member: Member) -> Iterator["Outage"]:
    """Two instances run."""
    place = Outage(rooted, whole_member)
    place.create("steady", SLEEP | {"replicas": 2})
    place.until_ready("steady", 2)
    place.until_exact()
    yield place
    if not rooted.edge.member.machine.runs(CONTROLLER):
        rooted.edge.run()  # a test that fails must not take the next one with it
    place.clear()


class Outage(Place):
    """A namespace in the member, and what has to be so there whatever happened."""

    def __init__(self, rooted: Rooted, member: Member) -> None:
        super().__init__(rooted.root, rooted.root, member, EDGE)
        self.at = rooted

    def pods(self) -> dict[str, int]:
        """By uid, how often the container was started again."""
        return {
            pod["metadata"]["uid"]: sum(one["restartCount"] for one in pod["status"].get("containerStatuses", []))
            for pod in self.objects("pods")
            if "deletionTimestamp" not in pod["metadata"]
        }

    def is_stale(self) -> bool:
        """The root shows the cluster as unheard, and nothing of it as ready."""
        return bool(self.root.clusters()[EDGE]["phase"] == "Unknown" and self.status("steady").get("ready", 0) == 0)

    def patch(self, name: str, replicas: int) -> None:
        patch = [{"op": "replace", "path": "/spec/components/0/replicas", "value": replicas}]
        self.root.kubectl("patch", "application", name, "-n", self.namespace, "--type=json", "-p", json.dumps(patch))

    def create_at_site(self, name: str) -> None:
        """Somebody there writes an Application, with nobody above in reach."""
        document = application(name, [SLEEP | {"name": "main"}])
        self.at.edge.banyan("apply", "-f", "-", stdin=json.dumps(document))

    def ready_at_site(self, name: str) -> int:
        return int(self.at.edge.get("application", name).get("status", {}).get("ready", 0))

    def until_exact(self) -> None:
        root, edge = self.at.root, self.at.edge
        uid = edge.parent_uid

        def check() -> bool:
            kept = [Held("root", root.folder, uid, ""), Held(EDGE, edge.folder, edge.uid, uid)]
            said = list(exact.unequal(kept))
            assert not said, "\n  ".join(["", *said[:12]])
            return bool(root.clusters()[EDGE]["phase"] == "Ready")

        try:
            until("both ends hold the same", check)
        except BaseException:
            print(edge.log())
            raise


def test_the_sites_link_is_cut_and_both_sides_change_what_is_theirs(place: Outage, figures: Figures) -> None:
    before = place.pods()
    figures.begin()
    place.member.cut_uplink()
    try:
        until("the root shows it stale", place.is_stale)
        figures.mark("shown stale by the root")
        place.patch("steady", 3)
        place.create("from-above", SLEEP)
        place.create_at_site("from-below")
        until("what is created there runs", lambda: place.ready_at_site("from-below") == 1)
        assert place.pods() == before
    finally:
        place.member.heal_uplink()
    figures.begin()
    place.until_ready("steady", 3)
    place.until_ready("from-above")
    place.until_exact()
    figures.mark("all exact after it")
    assert before.items() <= place.pods().items()
    assert place.each_once(2) and place.each_once(4, "pods"), place.writes()
    place.at.edge.banyan("delete", "application", "from-below")


def test_its_controllers_machine_loses_its_power_with_writes_under_way(place: Outage, figures: Figures) -> None:
    """What was acknowledged is there; pods do not notice; nothing is made again by a controller that forgot that it made it."""
    at, before = place.at, place.pods()
    acknowledged: set[str] = set()
    over = threading.Event()

    def write() -> None:
        """One after the other, until the power is gone: then there is one that nobody acknowledges."""
        for number in itertools.count():
            name = f"kept-{secrets.token_hex(3)}-{number}"
            body: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "x" * 500}}
            with contextlib.suppress(BanyanError):  # an answer that never came
                if not over.is_set() and at.root.ask("POST", THERE, body)[0] == 201:
                    acknowledged.add(name)
                    continue
            return

    with ThreadPoolExecutor(WRITERS) as people:
        writing = [people.submit(write) for _ in range(WRITERS)]
        try:
            place.patch("steady", 3)
            place.create("meanwhile", SLEEP)
            until("some are written", lambda: len(acknowledged) >= 20)
            figures.begin()
            figures.note("files that lost something", str(at.power.fail(at.edge)))
        finally:
            over.set()
        for one in writing:
            one.result(60)
    until("the root shows it stale", place.is_stale)
    figures.mark("shown stale by the root")
    assert before.items() <= place.pods().items()
    at.edge.run()
    figures.begin()
    place.until_ready("steady", 3)
    place.until_ready("meanwhile")
    place.until_exact()
    figures.mark("all exact after it")
    assert before.items() <= place.pods().items()
    assert place.each_once(2) and place.each_once(4, "pods"), place.writes()
    there = {item["metadata"]["name"] for item in at.root.get(THERE)["items"]}
    assert acknowledged <= there, acknowledged - there


@pytest.mark.parametrize("ahead", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_its_clock_jumps_by_a_year_and_the_controller_starts_with_it(place: Outage, ahead: int, figures: Figures) -> None:
    """So far off that it takes the API server's certificate for expired, or for not valid yet: that is said at the Application, pods run
    on, and once the clock is right it goes on by itself."""
    at, before = place.at, place.pods()
    at.clocks.set(EDGE, ahead)
    try:
        at.edge.kill()
        at.edge.run()
        place.create("meanwhile", SLEEP)
        place.until("meanwhile", "says why it cannot be", lambda: "certificate" in json.dumps(place.status("meanwhile")))
        assert place.pods() == before
    finally:
        at.clocks.set(EDGE, 0)
    figures.begin()
    place.until_ready("meanwhile")
    place.until_ready("steady", 2)
    place.until_exact()
    figures.mark("all exact after it")
    assert before.items() <= place.pods().items()
    assert place.each_once(3, "pods"), place.writes()
