"""`banyan drill` on a real tree: a cut ends although the program that asked is dead, a restart keeps every instance."""

import json
import subprocess
import sys

from e2e.support import APPS, Tree, talker, until


def test_a_drill_ends_by_itself_and_keeps_what_runs(tree: Tree) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    assert root.ask("POST", APPS, talker("talker"))[0] == 201
    until("it runs", lambda: root.status("talker").get("ready") == 1)
    assert edge.process is not None
    before = set(edge.everything()) - {edge.process.pid}

    asked = root.banyan("drill", "cut", "edge-1", check=False)
    assert (
        asked.returncode != 0 and "1 instances, which shall run on" in asked.stderr and "--yes" in asked.stderr
    )  # nobody can be asked here
    assert "is the root" in root.banyan("drill", "cut", "root", "--yes", check=False).stderr

    playing = subprocess.Popen(
        [sys.executable, "-m", "banyanctl", "--data", str(root.folder), "drill", "cut", "edge-1", "--for", "6s", "--yes"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until("it is cut off", lambda: root.clusters()["edge-1"]["phase"] == "Unknown")
    finally:
        playing.kill()  # the program dies; the drill does not
        playing.wait()
    until("it is back by itself", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    until("the report is there", lambda: report(tree, "edge-1")["state"] == "ended")
    kept = report(tree, "edge-1")
    assert (kept["fault"], kept["kept"], kept["instances"], kept["lost"], kept["parent"]) == ("cut", 1, 1, [], True)

    done = json.loads(root.banyan("drill", "kill", "edge-1", "default/talker", "--yes", "-o", "json").stdout)
    assert (done["fault"], done["kept"], done["fresh"], done["recovered"]) == ("kill", 0, 1, True), done
    done = json.loads(root.banyan("drill", "freeze", "edge-1", "talker", "--for", "1s", "--yes", "-o", "json").stdout)
    assert (done["fault"], done["kept"], done["fresh"], done["recovered"]) == ("freeze", 1, 0, True), done
    assert "nothing of default/other runs" in root.banyan("drill", "kill", "edge-1", "other", "--yes", check=False).stderr
    before = set(edge.everything()) - {edge.process.pid}

    pid = edge.process.pid
    done = json.loads(root.banyan("drill", "restart", "edge-1", "--yes", "-o", "json").stdout)
    assert (done["fault"], done["state"], done["kept"], done["instances"], done["fresh"]) == ("restart", "ended", 1, 1, 0)
    assert edge.process.poll() is None and edge.process.pid == pid  # begun anew in the same process: a service manager sees no end
    assert before <= set(edge.everything())
    until("the tree is well", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    assert "1 of 1 instances" in root.banyan("drill", "status", "edge-1").stdout
    seen = root.banyan("--at", "edge-1", "events", "--reason", "DrillBegan,DrillEnded").stdout
    assert seen.count("DrillBegan") == 4 and "ran on" in seen


def report(tree: Tree, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(tree.sites["root"].banyan("drill", "status", name, "-o", "json").stdout)
    return found
