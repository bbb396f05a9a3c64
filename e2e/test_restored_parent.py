"""A parent's store restored from an older backup takes nothing from its children, until a person decides."""

import json
import shutil
from typing import Any

import pytest

from e2e.support import APPS, Site, Tree, talker, until


@pytest.mark.needs("kubectl")
def test_what_a_restored_root_does_not_know_runs_on_until_a_person_decides(tree: Tree) -> None:
    root = tree.root()
    edge = tree.edge("edge-1", root)
    until("the edge is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    assert root.ask("POST", APPS, talker("older"))[0] == 201
    until("it runs", lambda: root.status("older").get("ready") == 1)
    assert root.ask("POST", APPS, talker("ended"))[0] == 201
    until("it runs", lambda: root.status("ended").get("ready") == 1)
    root.stop()
    backup = tree.folder / "backup"
    shutil.copytree(root.folder, backup)
    root.run()
    root.kubectl("delete", "app", "ended")
    assert root.ask("POST", APPS, talker("newer"))[0] == 201
    until("both run", lambda: running(edge) == ["newer", "older"])
    root.stop()
    shutil.rmtree(root.folder)
    shutil.copytree(backup, root.folder)
    root.run()
    until("the root shows the conflict", lambda: root.clusters()["edge-1"]["facts"].get("conflicts", 0) >= 1)
    conditions = {item["type"]: item for item in root.clusters()["edge-1"]["conditions"]}
    assert "banyan cluster conflicts edge-1" in conditions["Conflict"]["message"]
    until("both are listed", lambda: len(conflicts(root)) == 2)
    assert running(edge) == ["newer", "older"]  # nothing was taken, and nothing that had ended came back
    listed = conflicts(root)
    assert [item["kind"] for item in listed if not item["parentHas"]] == ["Work"]
    assert [item["kind"] for item in listed if item["parentHas"]] == ["Work"]
    root.banyan("cluster", "conflicts", "edge-1", "--keep", "root")
    until("it is as the root has it", lambda: running(edge) == ["ended", "older"])
    until("the conflict is over", lambda: "conflicts" not in root.clusters()["edge-1"]["facts"])


def running(edge: Site) -> list[str]:
    return sorted(pod["metadata"]["labels"]["banyan.dev/application"] for pod in edge.get("/api/v1/pods")["items"])


def conflicts(root: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(root.banyan("cluster", "conflicts", "edge-1", "-o", "json").stdout)["items"]
    return found
