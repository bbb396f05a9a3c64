"""Cut off, killed, healed: what runs goes on, and the tree agrees with its leaves afterwards."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from banyanctl.demo.ports import free_port
from e2e.support import APPS, Asker, Tree, infer, model_application, publish, talker, until


def three(tree: Tree) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)


@pytest.mark.exact
def test_the_workload_outlives_its_manager(tree: Tree) -> None:
    """Restart, SIGKILL and a new version of the application, while a client asks the site's own port all the time."""
    three(tree)
    root, edge = tree.sites["root"], tree.sites["edge-1"]
    publish(root, "1")
    publish(root, "2")
    port = free_port(8700)
    code, answer = root.ask("POST", APPS, model_application(port=port))
    assert code == 201, answer
    url = f"http://{edge.environment['BANYAN_SITE_BIND']}:{port}/v2/models/emotion/infer"
    until("it answers", lambda: infer(url)["label"] == "happy")
    asker = Asker(url)
    try:
        edge.kill()
        edge.run()
        assert edge.stop() == 0
        edge.run()
        supervisor = [pid for pid in edge.everything() if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert supervisor
        os.kill(supervisor[0], signal.SIGKILL)
        document = root.get(f"{APPS}/emotion")
        document["spec"]["components"][0]["model"]["version"] = "2"
        code, answer = root.ask("PUT", f"{APPS}/emotion", document)
        assert code == 200, answer
        until("version 2 answers", lambda: infer(url)["version"] == "2")
        until("the root knows", lambda: root.status()["updated"] == 1)
        report = asker.end()
    finally:
        asker.destroy()
    assert report["failures"] == 0, report
    assert report["requests"] > 50
    pods = edge.get("/api/v1/pods")["items"]
    assert len(pods) == 1


@pytest.mark.needs("kubectl")
def test_a_cut_off_edge_starts_from_its_own_disk_and_shows_stale_above(tree: Tree) -> None:
    three(tree)
    root, region, edge = (tree.sites[name] for name in ("root", "region-a", "edge-1"))
    publish(root)
    port = free_port(8800)
    assert root.ask("POST", APPS, model_application(port=port))[0] == 201
    url = f"http://{edge.environment['BANYAN_SITE_BIND']}:{port}/v2/models/emotion/infer"
    until("it answers", lambda: infer(url)["label"] == "happy")
    region.kill()
    edge.destroy()
    shutil.rmtree(edge.folder / "blobs")  # what is laid out serves, whatever the cache has dropped
    edge.run()
    until("it answers with no parent in reach", lambda: infer(url)["confidence"] >= 0.9)
    stale = until("the root shows it stale", lambda: {k: v for k, v in root.clusters().items() if v["phase"] == "Unknown"} or None)
    assert set(stale) == {"region-a", "edge-1"}
    assert stale["edge-1"]["brokenHop"] == "root → region-a"
    tree_text = root.banyan("tree").stdout
    assert re.search(r"edge-1.*heard.*ago.*broken: root → region-a", tree_text), tree_text
    assert root.status().get("ready", 0) == 0
    for wide in ((), ("-o", "wide")):
        shown = root.kubectl("get", "applications", *wide)
        assert re.search(r"emotion +0/1 .*\(root → region-a silent ≥?\d+", shown), shown
    assert re.search(r"silent ≥?\d+", root.banyan("get", "applications").stdout)
    said = root.banyan("status", "emotion").stdout
    assert re.search(r"out of reach: root → region-a is cut, heard ≥?\d+", said), said
    explained = root.banyan("explain", "emotion").stdout
    assert re.search(r"out of reach behind root → region-a.*last heard", explained, re.DOTALL), explained
    # Deleting returns at once; the leaf withdraws it when it is back.
    assert "deleted" in root.kubectl("delete", "app", "emotion", "--timeout=20s")
    until("the root lists what is withdrawing", lambda: "default/emotion" in root.clusters()["edge-1"].get("withdrawing", []))
    assert infer(url)["label"] == "happy"
    # Another one of that name, at once: the leaf gets it when it is back, and never takes it for the old one.
    code, successor = root.ask("POST", APPS, talker("emotion", clusterName="edge-1"))
    assert code == 201
    until("it waits for the leaf", lambda: "out of reach" in root.status()["components"][0]["message"])
    assert infer(url)["label"] == "happy"
    region.run()
    until("only the new one runs", lambda: [owner(pod) for pod in edge.get("/api/v1/pods")["items"]] == [successor["metadata"]["uid"]])
    until("and the root knows", lambda: "withdrawing" not in root.clusters()["edge-1"] and root.status().get("ready") == 1)


def owner(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"]["banyan.dev/application-uid"])


@pytest.mark.needs("kubectl")
def test_a_region_acts_alone_and_the_root_hears_of_it(tree: Tree) -> None:
    three(tree)
    root, region, edge = (tree.sites[name] for name in ("root", "region-a", "edge-1"))
    root.kill()
    until("region-a notices", lambda: "Ready" in region.banyan("tree").stdout)
    assert region.ask("POST", APPS, talker("local"))[0] == 201
    until("it runs", lambda: region.status("local").get("ready") == 1)
    edge.kill()
    edge.run()
    until("it still runs", lambda: len(edge.get("/api/v1/pods")["items"]) == 1)
    root.run()
    until("the root sees it", lambda: re.search(r"local\.region-a.* 1/1 .*Running", root.kubectl("get", "subtreeapplications")))
    region.kill()
    until("it is stale", lambda: re.search(r"0/1 .*Unknown \(root → region-a silent", root.kubectl("get", "subtreeapplications")))


def test_logs_and_usage_reach_the_one_who_asks(tree: Tree) -> None:
    three(tree)
    root, edge = tree.sites["root"], tree.sites["edge-1"]
    assert root.ask("POST", APPS, talker("talker"))[0] == 201
    until("it runs", lambda: root.status("talker").get("ready") == 1)
    until("it has said something", lambda: "line 2" in root.banyan("logs", "talker", check=False).stdout)
    metrics = edge.ask("GET", "/metrics")[1].decode()
    for name in ("banyan_links 1.0", "banyan_store_objects", "banyan_link_received_bytes_total", "banyan_placements_total"):
        assert name in metrics, metrics
