"""What is different on some sites, and versions judged by their own metrics, with real processes: root, region, two edges."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.support import APPS, SITE_PROGRAM, Site, Tree, growing, program, until

EDGES = ("edge-1", "edge-2")
PORT = 8871
GATE = {
    "name": "errors",
    "errors": {"metric": "work_total", "labels": {"code": "5*"}},
    "requests": {"metric": "work_total"},
    "max": 0.1,
    "windowSeconds": 3,
    "minCount": 10,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    with growing(tmp_path_factory.mktemp("overrides")) as tree:
        root = tree.root()
        region = tree.region("region-a", root)
        for name in EDGES:
            tree.edge(name, region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
        yield tree


def put(root: Site, version: str, *, fails: str = "0", **spec: Any) -> None:
    document = program(
        "shop",
        placement={"strategy": "Duplicated", "clusterSelector": {"matchLabels": {"tier": "edge"}}},
        command=[sys.executable, str(SITE_PROGRAM)],
        env=[{"name": "VERSION", "value": version}, {"name": "FAILS", "value": fails}],
        expose={"port": PORT},
        readiness={"httpGet": {"path": "/health"}, "periodSeconds": 1},
    )
    document["spec"] |= spec
    code, answer = root.ask("GET", f"{APPS}/shop")
    if code == 200:
        answer["metadata"].pop("resourceVersion")  # statuses are written all the time
        document["metadata"] = answer["metadata"]
    code, answer = root.ask("PUT" if code == 200 else "POST", f"{APPS}/shop" if code == 200 else APPS, document)
    assert code in {200, 201}, answer


def ask(site: Site, path: str = "/") -> dict[str, Any]:
    connection = http.client.HTTPConnection(site.environment["BANYAN_SITE_BIND"], PORT, timeout=10)
    try:
        connection.request("GET", path)
        body = connection.getresponse().read()
        return json.loads(body) if path == "/" else {}  # type: ignore[no-any-return]
    finally:
        connection.close()


def versions(tree: Tree) -> list[str]:
    return [str(ask(tree.sites[name])["env"]["VERSION"]) for name in EDGES]


def pids(tree: Tree) -> list[int]:
    return [int(ask(tree.sites[name])["pid"]) for name in EDGES]


class Load:
    """Requests that count, at every edge, for as long as it lasts."""

    def __init__(self, *sites: Site) -> None:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(site,)) for site in sites]

    def _ask(self, site: Site) -> None:
        while not self._ended.wait(0.05):
            try:
                ask(site, "/work")
            except (OSError, http.client.HTTPException):
                continue  # while an instance is exchanged; other tests count those

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)


def test_an_override_changes_one_site_alone_and_the_other_is_not_restarted(tree: Tree) -> None:
    root = tree.sites["root"]
    put(root, "1")
    until("it serves everywhere", lambda: root.status("shop").get("phase") == "Running" and versions(tree) == ["1", "1"])
    before = pids(tree)
    special = {"name": "special", "clusters": {"names": ["edge-2"]}, "merge": {"env": [{"name": "VERSION", "value": "special"}]}}
    put(root, "1", overrides=[special])
    until("edge-2 has its own", lambda: versions(tree) == ["1", "special"])
    assert pids(tree)[0] == before[0]
    until(
        "the status says so",
        lambda: {row["name"]: row.get("overrides") for row in root.status("shop")["clusters"]}["edge-2"] == ["special"],
    )
    assert "overrides: special" in root.banyan("explain", "shop").stdout
    told = root.banyan("status", "shop").stdout
    assert "special" in told
    document = root.get(f"{APPS}/shop")
    assert document["spec"]["overrides"] == [special], "what was written is what is read"
    document["spec"]["overrides"] = [special | {"merge": {"replicas": 2}}]
    code, answer = root.ask("PUT", f"{APPS}/shop", document)
    assert code == 422, answer
    assert answer["details"]["causes"][0]["field"] == "spec.overrides[0].merge"
    put(root, "1")
    until("it is as everywhere again", lambda: versions(tree) == ["1", "1"])
    assert pids(tree)[0] == before[0]


def test_a_version_whose_errors_rise_stops_at_its_first_site_and_goes_back(tree: Tree) -> None:
    root = tree.sites["root"]
    plan = {"rollout": {"wave": 1, "rollback": "Automatic", "gates": [GATE]}}
    put(root, "1", **plan)
    until("version 1 is complete", lambda: (root.status("shop").get("rollout") or {}).get("phase") == "Complete")
    before = pids(tree)
    with Load(*(tree.sites[name] for name in EDGES)):
        put(root, "2", fails="0.5", **plan)
        until("it was taken back", lambda: "RolledBack" in root.status("shop")["rollout"]["reason"])
        until("all serve version 1", lambda: versions(tree) == ["1", "1"])
        assert "requests failed, at most 0.1 is allowed" in root.status("shop")["rollout"]["message"]
        assert pids(tree)[1] == before[1], "the second wave never began"
        until("the way back is complete", lambda: root.status("shop")["rollout"]["phase"] == "Complete")
        put(root, "3", **plan)
        until("a good version passes its gates everywhere", lambda: versions(tree) == ["3", "3"])
        until("and is complete", lambda: root.status("shop")["rollout"]["phase"] == "Complete")
    root.banyan("rollout", "undo", "shop")
    until("undo goes to the last version that was well, not to the one that was taken back", lambda: versions(tree) == ["1", "1"])
