"""One controller for each Kubernetes cluster: a second one is refused before it has done anything, and says whose the cluster is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_shim.kubernetes.rights import OWNER, OWNER_NAMESPACE
from e2e.place import Place, busybox, join
from e2e.support import Site, Tree, growing, until
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
FIRST, SECOND = "edge-first", "edge-second"
SLEEP = busybox("sleep", "3600")
PASSPHRASE = "a passphrase of some length"


@pytest.fixture(scope="module")
def grown(kwok_member: Member, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tree, Site, Site]]:
    """root, and the controller that manages the member."""
    with growing(tmp_path_factory.mktemp("owner")) as tree:
        root = tree.root()
        first = join(tree, root, FIRST, kwok_member)
        until("it is Ready", lambda: root.clusters()[FIRST]["phase"] == "Ready")
        yield tree, root, first


@pytest.fixture
def place(grown: tuple[Tree, Site, Site], kwok_member: Member) -> Place:
    _, root, first = grown
    return Place(root, first, kwok_member, FIRST)


def holder(member: Member) -> str:
    lease = json.loads(member.kubectl("get", "lease", OWNER, "-n", OWNER_NAMESPACE, "-o", "json"))
    return str(lease["spec"]["holderIdentity"])


def uid(root: Site, name: str) -> str:
    return str(root.clusters()[name]["uid"])


def pods(place: Place) -> dict[str, str]:
    """uid by name."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in place.objects("pods")}


def test_it_goes_on_at_once_when_it_was_killed_or_its_backup_is_restored(
    grown: tuple[Tree, Site, Site], place: Place, tmp_path: Path
) -> None:
    _, root, first = grown
    place.create("steady", SLEEP | {"replicas": 2})
    place.until_ready("steady", 2)
    before = pods(place)
    assert holder(place.member) == uid(root, FIRST)
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    first.banyan("backup", str(tmp_path / "first.backup"), "--passphrase-file", str(secret))
    first.kill()
    first.folder.rename(tmp_path / "lost")
    first.banyan("restore", str(tmp_path / "first.backup"), "--passphrase-file", str(secret))
    first.run()
    place.create("later", SLEEP)
    place.until_ready("later")
    place.until_ready("steady", 2)
    assert before.items() <= pods(place).items()
    assert holder(place.member) == uid(root, FIRST)
    place.clear()


def test_it_moves_to_another_parent_with_what_it_runs(grown: tuple[Tree, Site, Site], place: Place) -> None:
    """From the root to a region: the same pods, and the same owner of the member."""
    tree, root, _ = grown
    tree.region("region-b", root)
    place.create("steady", SLEEP | {"replicas": 3})
    place.until_ready("steady", 3)
    before = pods(place)
    done = root.banyan("move", FIRST, "--parent", "region-b", "--yes", "-o", "json")
    assert json.loads(done.stdout)["phase"] == "Done"
    until("the root sees it there", lambda: root.clusters()[FIRST]["path"] == ["region-b", FIRST])
    place.until_ready("steady", 3)
    place.create("after", SLEEP)
    place.until_ready("after")
    assert before.items() <= pods(place).items()
    assert place.each_once(2) and place.each_once(4, "pods"), (place.made(), place.made("pods"))
    assert holder(place.member) == uid(root, FIRST)
    place.clear()


def test_a_second_controller_is_refused_and_one_that_is_told_to_takes_over(grown: tuple[Tree, Site, Site], place: Place) -> None:
    tree, root, first = grown
    place.create("steady", SLEEP | {"replicas": 2})
    place.until_ready("steady", 2)
    before = pods(place)

    second = tree.site(SECOND)
    second.join(root.token(), "--tunnel-listen", "", "--shim", "kubernetes", "--kubeconfig", str(place.member.kubeconfig))
    second.wait()
    until("it has joined", lambda: root.clusters()[SECOND]["phase"] == "Ready")
    other = Place(root, second, place.member, SECOND)
    other.create("hopeful", SLEEP)
    refused = f"managed by the controller of another cluster already, {FIRST} ({uid(root, FIRST)})"

    def told() -> bool:
        (component,) = other.status("hopeful")["components"]
        return refused in component["message"] and f"--kubernetes take_over={uid(root, FIRST)}" in component["message"]

    until("it is told at the root, with the remedy", told)
    assert refused in second.log(200)
    place.create("meanwhile", SLEEP)
    place.until_ready("meanwhile")
    assert before.items() <= pods(place).items()
    assert other.made() == {} and other.objects() == []
    assert holder(place.member) == uid(root, FIRST)

    second.stop()
    second.environment["BANYAN_KUBERNETES"] = f"take_over={uid(root, FIRST)}"
    second.run()
    other.until_ready("hopeful")
    assert holder(place.member) == uid(root, SECOND)
    until("the first one has let go", lambda: "member.owner_lost" in first.log(200))
    assert f"managed by the controller of another cluster already, {SECOND}" in first.log(200)
    until("what it says no longer looks fresh", lambda: place.status("steady").get("ready", 0) == 0)
    other.clear()
