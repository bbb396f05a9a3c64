"""The tree's key and an issuing key are changed under load: no request fails, and a branch that was cut off catches up."""

import json
from collections.abc import Callable
from typing import Any

from e2e.support import API, APPS, Asker, Site, Tree, model_application, publish, talker, until


def test_the_trees_key_is_changed_under_load_and_a_cut_off_branch_catches_up(tree: Tree, device: Callable[[str], Asker]) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    away = tree.edge("edge-2", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
    publish(root)
    assert root.ask("POST", APPS, model_application(port=8500, clusterName="edge-1"))[0] == 201
    until("it serves", lambda: root.status().get("ready") == 1)
    person = tree.folder / "person.kubeconfig"
    root.banyan("user", "create", "alice", "--group", "view", "--kubeconfig-out", str(person))
    assert edge.process is not None
    instances = set(edge.everything()) - {edge.process.pid}
    asker = device(f"http://{edge.environment['BANYAN_SITE_BIND']}:8500/v2/models/emotion/infer")
    away.stop()

    region.banyan("rotate", "issuing")  # what it signed before counts on
    before = state(root)["authority"]
    code, answer = root.ask("GET", f"{API}/clusters/region-a/rotate")
    assert code == 403 and "answered at region-a" in answer["message"]
    root.banyan("rotate", "tree-key")
    until("all in reach have the new key", lambda: [one["name"] for one in state(root)["missing"]] == ["edge-2"])
    assert state(root)["authority"] != before and state(root)["users"] == ["alice"]
    refused = root.banyan("rotate", "finish", check=False)
    assert refused.returncode != 0 and "edge-2" in refused.stderr and "alice" in refused.stderr

    late = tree.edge("edge-3", region)  # joins while both count
    away.run()
    until("the branch that was away has caught up", lambda: not state(root)["missing"])
    for name in ("region-a", "edge-1"):  # with the same connections or new ones, every controller goes on
        tree.sites[name].kill()
        tree.sites[name].run()
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 5)
    assert "edge-1" in root.banyan("--kubeconfig", str(person), "get", "clusters").stdout  # an older credential, while both count
    root.banyan("user", "revoke", "alice")
    root.banyan("rotate", "finish")
    until("the old one is dropped everywhere", lambda: all(len(trusted(site)) == 1 for site in tree.sites.values()))
    assert len({trusted(site)[0] for site in tree.sites.values()}) == 1
    for site in (region, away, late):
        site.kill()
        site.run()
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 5)
    assert root.ask("POST", APPS, talker("after", clusterName="edge-3"))[0] == 201
    until("changes arrive", lambda: root.status("after").get("ready") == 1)
    newcomer = tree.edge("edge-4", root)
    until("who joins afterwards has the new key alone", lambda: trusted(newcomer) == trusted(root))
    assert "two keys" not in root.banyan("rotate", "status").stdout

    report = asker.end()
    assert report["failures"] == 0 and report["requests"] > 0, report
    assert instances <= set(edge.everything())  # nothing that runs there was ever started again
    reasons = {item["reason"] for item in root.get("/api/v1/events")["items"]}
    assert {"RotationBegan", "RotationFinished"} <= reasons


def state(root: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(root.banyan("rotate", "status", "-o", "json").stdout)
    return found


def trusted(site: Site) -> list[str]:
    saved = json.loads((site.folder / "identity" / "identity.json").read_text())
    return [f"-----BEGIN{part}" for part in saved["tree_ca"].split("-----BEGIN")[1:]]
