"""A link that loses every tenth packet, either way: what is wanted comes down once, what is seen comes up, nothing is lost or doubled."""

from collections import Counter

import pytest

from banyanctl.demo import processes
from e2e.netns import weaving
from e2e.placed import PlacedSite
from e2e.support import APPS, Tree, application, growing, until

pytestmark = [pytest.mark.needs("root"), pytest.mark.exact]

LOSS = 10  # of a hundred packets
COUNT = 50
LOST = 10  # packets at least; how many there are depends on how much goes into one


def planted(tree: Tree, root: PlacedSite, edge: PlacedSite, address: str) -> None:
    tree.sites |= {"root": root, "edge": edge}
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", f"{address}:0", "--shim", "none")
    root.run()
    edge.join(root.token(), "--tunnel-listen", "")
    edge.wait()
    until("both are Ready", lambda: [one["phase"] for one in root.clusters().values()] == ["Ready"] * 2)


def test_fifty_changes_come_once_over_a_link_that_loses_a_tenth(tmp_path_factory: pytest.TempPathFactory) -> None:
    with weaving() as fabric, growing(tmp_path_factory.mktemp("lossy")) as tree:
        above, below = fabric.namespace("root"), fabric.namespace("edge")
        link = fabric.link(above, below)
        given = {"BANYAN_SITE_BIND": "127.0.1.1", "BANYAN_CAPACITY": "cpu=4,memory=4Gi"}
        root, edge = (PlacedSite(tree.folder / name, given, space) for name, space in (("root", above), ("edge", below)))
        planted(tree, root, edge, link.upper.address)
        link.lose(LOSS)
        wanted = {f"change-{number}" for number in range(COUNT)}
        for name in wanted:
            component = {"name": "rest", "command": ["/bin/sleep", "1000"], "takesSocket": False}
            code, answer = root.ask("POST", APPS, application(name, [component]))
            assert code == 201, answer

        def ready() -> set[str]:
            return {item["metadata"]["name"] for item in root.get(APPS)["items"] if item.get("status", {}).get("ready") == 1}

        until("each runs, and the root was told", lambda: ready() == wanted)
        assert processes.instances(edge.folder) == Counter(wanted)
        pods = edge.get("/api/v1/pods")["items"]
        assert sorted(pod["metadata"]["labels"]["banyan.dev/application"] for pod in pods) == sorted(wanted)
        assert {pod["status"]["containerStatuses"][0].get("restartCount", 0) for pod in pods} == {0}
        gone = {f"change-{number}" for number in range(0, COUNT, 2)}
        for name in gone:
            assert root.ask("DELETE", f"{APPS}/{name}")[0] == 200
        until("half of them ended", lambda: processes.instances(edge.folder) == Counter(wanted - gone))
        until("and the root was told", lambda: {item["metadata"]["name"] for item in root.get(APPS)["items"]} == wanted - gone)
        assert link.lost() >= LOST, "the link lost next to nothing"
