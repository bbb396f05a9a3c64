"""Rollouts with real processes: root, region, three edges; what serves goes on serving, whatever the new version is like."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.support import API, APPS, SITE_PROGRAM, Site, Tree, program, until

EDGES = ("edge-1", "edge-2", "edge-3")
PORT = 8870


class Users:
    """Devices on the site's network: each asks its own site all the time, a new connection for each request."""

    def __init__(self, *sites: Site) -> None:
        self._ended = threading.Event()
        self.asked = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(site.environment["BANYAN_SITE_BIND"],)) for site in sites]

    def _ask(self, host: str) -> None:
        while not self._ended.wait(0.02):
            connection = http.client.HTTPConnection(host, PORT, timeout=20)
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                self.asked += 1
                if answer.status != 200:
                    self.failed.append(f"{host}: {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{host}: {error!r}")
            finally:
                connection.close()

    def __enter__(self) -> "Users":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture(scope="module")
def _grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    from e2e.support import growing

    with growing(tmp_path_factory.mktemp("rollout")) as tree:
        root = tree.root()
        region = tree.region("region-a", root)
        for name in EDGES:
            tree.edge(name, region)
        until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 5)
        yield tree


@pytest.fixture
def tree(_grown: Tree) -> Iterator[Tree]:
    """With version 1 of the application `shop` on each edge; gone afterwards."""
    root = _grown.sites["root"]
    put(root, "1")
    until("version 1 runs everywhere", lambda: versions(_grown) == ["1"] * 3 and root.status("shop").get("phase") == "Running")
    yield _grown
    for name in ("shop", "store"):
        root.ask("DELETE", f"{APPS}/{name}")
        until(f"{name} has gone", lambda name=name: root.ask("GET", f"{APPS}/{name}")[0] == 404)  # type: ignore[misc]


def put(root: Site, version: str, *, bad: bool = False, rollout: dict[str, Any] | None = None, **spec: Any) -> None:
    """Create or change; a bad version ends as soon as it is started."""
    command = [sys.executable, "-c", "raise SystemExit('no good')"] if bad else [sys.executable, str(SITE_PROGRAM)]
    document = program(
        "shop",
        placement={"strategy": "Duplicated", "clusterSelector": {"matchLabels": {"tier": "edge"}}},
        command=command,
        env=[{"name": "VERSION", "value": version}],
        expose={"port": PORT},
        readiness={"httpGet": {"path": "/health"}, "periodSeconds": 1},
    )
    document["spec"] |= {"rollout": {"wave": 1, "progressDeadlineSeconds": 120} | (rollout or {})} | spec
    code, answer = root.ask("GET", f"{APPS}/shop")
    if code == 200:
        document["metadata"] = answer["metadata"]
        code, answer = root.ask("PUT", f"{APPS}/shop", document)
    else:
        code, answer = root.ask("POST", APPS, document)
    assert code in {200, 201}, answer


def versions(tree: Tree) -> list[str]:
    """What answers on each edge's own port."""
    return [version(tree.sites[name]) for name in EDGES]


def version(site: Site) -> str:
    connection = http.client.HTTPConnection(site.environment["BANYAN_SITE_BIND"], PORT, timeout=10)
    try:
        connection.request("GET", "/")
        return str(json.loads(connection.getresponse().read())["env"]["VERSION"])
    finally:
        connection.close()


def told(site: Site) -> str:
    """The version that this edge was told, whether or not it serves."""
    works = site.get(f"{API}/works")["items"]
    return next((each["spec"]["components"][0]["env"][0]["value"] for each in works if each["spec"]["application"]["name"] == "shop"), "")


def rollout(root: Site) -> dict[str, Any]:
    found: dict[str, Any] = root.status("shop")["rollout"]
    return found


def test_a_good_version_goes_wave_by_wave_asks_and_fails_no_request(tree: Tree) -> None:
    root = tree.sites["root"]
    with Users(*(tree.sites[name] for name in EDGES)) as users:
        put(root, "2", rollout={"waves": [{"clusterSelector": {"matchLabels": {"site": "edge-2"}}, "manual": True}], "pauseSeconds": 1})
        until("the chosen one has it, and a person is asked", lambda: rollout(root)["phase"] == "Paused")
        assert versions(tree) == ["1", "2", "1"]
        assert "the next begins with `banyan rollout resume`" in root.banyan("rollout", "status", "shop", "--no-watch").stdout
        root.banyan("rollout", "pause", "shop")
        root.banyan("rollout", "resume", "shop")
        root.banyan("rollout", "status", "shop", "--timeout", "60")
        assert versions(tree) == ["2"] * 3
    assert users.asked > 100
    assert users.failed == []
    causes = [item["cause"] for item in root.get(f"{APPS}/shop/history")["items"]]
    assert causes == ["created", "updated"], "pausing is no version"


def test_a_bad_version_stops_at_the_first_wave_and_goes_back_while_all_serve(tree: Tree) -> None:
    root = tree.sites["root"]
    with Users(*(tree.sites[name] for name in EDGES)) as users:
        put(root, "2", bad=True, rollout={"rollback": "Automatic"})
        until("it went back", lambda: rollout(root)["reason"] == "RolledBack" and rollout(root)["phase"] == "Complete")
        done = root.banyan("rollout", "status", "shop", check=False)
        assert done.returncode == 1
        assert "edge-1" in done.stderr
        assert "its last log line: no good" in done.stderr
    assert users.asked > 100
    assert users.failed == []
    assert versions(tree) == ["1"] * 3
    events = {
        event["reason"] for event in root.get("/api/v1/namespaces/default/events")["items"] if event["involvedObject"]["name"] == "shop"
    }
    assert {"RolloutFailed", "RolledBack"} <= events
    assert "rollout: Complete, rolled back: wave 1 of 1 failed" in root.banyan("status", "shop").stdout
    assert 'banyan_rollouts{phase="Complete"} 1.0' in root.ask("GET", "/metrics")[1].decode()
    asked = root.banyan("rollout", "history", "shop").stdout
    assert "rolled back: wave 1 of 1 failed" in asked


def test_a_region_that_is_cut_off_and_a_root_that_restarts_in_the_middle_go_on(tree: Tree) -> None:
    root, region = tree.sites["root"], tree.sites["region-a"]
    put(root, "2", rollout={"pauseSeconds": 3})
    until("the first has it", lambda: versions(tree).count("2") >= 1)
    root.kill()
    until("the region goes on by itself", lambda: versions(tree) == ["2"] * 3)
    root.run()
    until("the root knows", lambda: rollout(root)["phase"] == "Complete" and root.status("shop")["phase"] == "Running")
    put(root, "3", rollout={"pauseSeconds": 3})
    until("the first has the next", lambda: versions(tree).count("3") >= 1)
    region.kill()
    before = [told(tree.sites[name]) for name in EDGES]
    region.run()
    until("it went on", lambda: versions(tree) == ["3"] * 3)
    assert before.count("3") < 3, "it was killed in the middle"
    until("the root knows", lambda: rollout(root)["phase"] == "Complete" and root.status("shop")["phase"] == "Running")


def test_applications_start_one_after_the_other_and_a_chain_that_bites_its_tail_is_refused(tree: Tree) -> None:
    root = tree.sites["root"]
    late = program("store", dependsOn=[]) | {}
    late["spec"]["dependsOn"] = ["never"]
    code, answer = root.ask("POST", APPS, late)
    assert code == 201, answer
    why = "waits for application never, which does not exist"
    until("it says why", lambda: root.status("store")["conditions"][-1]["message"].endswith(why))
    put(root, "1", dependsOn=["store"])
    assert versions(tree) == ["1"] * 3, "what runs is not taken back"
    late["spec"]["dependsOn"] = ["shop"]
    late["metadata"] = root.get(f"{APPS}/store")["metadata"]
    code, answer = root.ask("PUT", f"{APPS}/store", late)
    assert code == 422
    assert "store waits for shop waits for store" in answer["message"]
    late["spec"]["dependsOn"] = []
    assert root.ask("PUT", f"{APPS}/store", late)[0] == 200
    until("it runs", lambda: root.status("store")["phase"] == "Running")
