"""Cut off, killed, healed: what runs goes on, and the tree agrees with its leaves afterwards."""

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from banyanctl.demo import processes
from banyanctl.demo.ports import free_port
from e2e.support import APPS, ROOT, Asker, Site, Tree, application, infer, model_application, publish, talker, until


def three(tree: Tree) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)


@pytest.mark.exact
def test_the_workload_outlives_its_manager(tree: Tree, tmp_path: Path) -> None:
    """SIGKILL, an upgrade, the supervisor's death and a new version of the application, while a client asks its port all the time."""
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
        before = supervisors(edge)
        edge.environment |= upgraded(tmp_path / "installed")
        edge.run()
        until("another version runs", lambda: root.clusters()["edge-1"]["facts"]["version"] == NEXT)
        until("its supervisor is another program, and the same process", lambda: supervisors(edge) == dict.fromkeys(before, NEXT))
        os.kill(next(iter(before)), signal.SIGKILL)
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


NEXT = "0.2.0"
PACKAGES = ("cluster_controller", "cluster_shim", "openapi", "edge_ai", "banyanctl")


def upgraded(folder: Path) -> dict[str, str]:
    """Another installation, of the next minor version: the environment in which a controller is that one."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "cluster_shim" / "process" / "supervisor" / "core.py").open("a") as source:
        source.write(f"# {NEXT}\n")
    metadata = folder / f"banyan_edge-{NEXT}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.4\nName: banyan-edge\nVersion: {NEXT}\n")
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


def supervisors(site: Site) -> dict[int, str]:
    """Their pids, and the version of each by where its program lies."""
    found = {}
    for pid in site.everything():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        if "/cluster_shim/process/supervisor" in command:
            found[pid] = "this checkout" if f"{ROOT}/cluster_shim" in command else NEXT
    return found


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


def value(site: Site, name: str, **labels: str) -> float:
    """The sum of what a metric says with these labels; KeyError when it says nothing."""
    found = [
        float(line.rpartition(" ")[2])
        for line in site.ask("GET", "/metrics")[1].decode().splitlines()
        if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{wanted}"' in line for key, wanted in labels.items())
    ]
    if not found:
        raise KeyError(f"{site.name} says nothing of {name} {labels}")
    return sum(found)


BUSY = "while True:\n    pass"


def test_logs_and_usage_reach_the_one_who_asks(tree: Tree) -> None:
    """Every number is one that something made happen here."""
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region, BANYAN_REPORT_USAGE_SECONDS="1")
    assert root.ask("POST", APPS, talker("talker"))[0] == 201
    busy = application("busy", [{"name": "spin", "command": [sys.executable, "-S", "-c", BUSY], "takesSocket": False}])
    assert root.ask("POST", APPS, busy)[0] == 201
    until("they run", lambda: [root.status(name).get("ready") for name in ("talker", "busy")] == [1, 1])
    until("it has said something", lambda: "line 2" in root.banyan("logs", "talker", check=False).stdout)
    assert value(edge, "banyan_links") == 1
    assert value(region, "banyan_links") == 2
    for what in ("frames", "bytes", "messages"):
        assert value(edge, f"banyan_link_received_{what}_total", peer="region-a") > 0
        assert value(edge, f"banyan_link_sent_{what}_total", peer="region-a") > 0
    assert value(edge, "banyan_store_objects") > 0
    assert value(edge, "banyan_store_journal_bytes") > 0
    assert value(root, "banyan_placements_total") >= 2
    assert value(root, "banyan_tasks") > 5
    until("usage is measured", lambda: value(edge, "banyan_instance_cpu_cores", application="busy") > 0.1)
    assert value(edge, "banyan_instance_memory_bytes", application="busy") > 1 << 20
    assert value(edge, "banyan_instance_restarts_total", application="busy") == 0
    # Its parent is silent: what it has to say waits, and is counted until it is heard.
    until("everything is told", lambda: value(edge, "banyan_sync_lag_revisions", peer="region-a") == 0)
    assert region.process is not None
    region.process.send_signal(signal.SIGSTOP)
    try:
        (spinning,) = (found.pid for found in processes.below(edge.folder) if found.application == "busy")
        os.kill(spinning, signal.SIGKILL)
        until("it is started again", lambda: value(edge, "banyan_instance_restarts_total", application="busy") >= 1)
        until("the lag grows", lambda: value(edge, "banyan_sync_lag_revisions", peer="region-a") > 0)
    finally:
        region.process.send_signal(signal.SIGCONT)
    until("and is made up for", lambda: value(edge, "banyan_sync_lag_revisions", peer="region-a") == 0)
    assert value(edge, "banyan_instance_restarts_total", application="talker") == 0
