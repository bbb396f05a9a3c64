"""A parent's store restored from an older backup takes nothing from its children, until a person decides."""

import json
import shutil

from e2e.support import APPS, Tree, talker, until


def test_what_a_restored_root_does_not_know_runs_on_until_a_person_decides(tree: Tree) -> None:
    root = tree.root()
    edge = tree.edge("edge-1", root)
    until("the edge is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    assert root.ask("POST", APPS, talker("older"))[0] == 201
    until("it runs", lambda: root.status("older").get("ready") == 1)
    root.stop()
    backup = tree.folder / "backup"
    shutil.copytree(root.folder, backup)
    root.run()
    assert root.ask("POST", APPS, talker("newer"))[0] == 201
    until("both run", lambda: len(edge.get("/api/v1/pods")["items"]) == 2)
    root.stop()
    shutil.rmtree(root.folder)
    shutil.copytree(backup, root.folder)
    root.run()
    until("the root shows the conflict", lambda: root.clusters()["edge-1"]["facts"].get("conflicts", 0) >= 1)
    conditions = {item["type"]: item for item in root.clusters()["edge-1"]["conditions"]}
    assert "banyan cluster conflicts edge-1" in conditions["Conflict"]["message"]
    assert len(edge.get("/api/v1/pods")["items"]) == 2  # nothing was taken
    listed = json.loads(root.banyan("cluster", "conflicts", "edge-1", "-o", "json").stdout)["items"]
    assert [item["kind"] for item in listed if not item["parentHas"]] == ["Work"]
    root.banyan("cluster", "conflicts", "edge-1", "--keep", "root")
    until("what the root does not know has gone", lambda: len(edge.get("/api/v1/pods")["items"]) == 1)
    until("the conflict is over", lambda: "conflicts" not in root.clusters()["edge-1"]["facts"])
    pods = edge.get("/api/v1/pods")["items"]
    assert pods[0]["metadata"]["labels"]["banyan.dev/application"] == "older"
