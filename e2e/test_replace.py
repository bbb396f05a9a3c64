"""Replace, with real processes: a region that is cut off replaces a dead leaf by itself, and the counts are exact when all are back."""

from e2e.faults.ground import metric
from e2e.support import APPS, Site, Tree, program, until


def ready(site: Site) -> list[str]:
    """Uids of instances that are ready on the site's own cluster."""
    return sorted(
        pod["metadata"]["uid"]
        for pod in site.get("/api/v1/pods")["items"]
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])
    )


def test_a_cut_off_region_replaces_a_dead_leaf_and_the_older_replicas_stay(tree: Tree) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    edges = [tree.edge(f"edge-{number}", region) for number in (1, 2)]
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
    document = program("twins", placement={"onUnreachable": {"action": "Replace", "afterSeconds": 10}}, replicas=4)
    code, answer = root.ask("POST", APPS, document)
    assert code == 201, answer
    until("four are ready", lambda: root.status("twins").get("ready") == 4)
    before = {edge.name: ready(edge) for edge in edges}
    assert [len(pods) for pods in before.values()] == [2, 2]
    dead, alive = edges
    root.kill()
    dead.destroy()
    until("the region alone has four again", lambda: len(ready(alive)) == 4)
    assert set(before[alive.name]) <= set(ready(alive)), "what was healthy was left alone"
    about = [event for event in region.get("/api/v1/events")["items"] if event["reason"] == "Replaced"]
    assert [event["involvedObject"]["name"] for event in about] == [dead.name]

    dead.run()
    root.run()

    counts: list[int] = []

    def healed() -> bool:
        counts.append(len(ready(alive)) + len(ready(dead)))  # in this order: who goes, goes after the other was seen
        return len(ready(dead)) == 2 and ready(alive) == before[alive.name] and root.status("twins").get("ready") == 4

    until("the older ones stay, the stand-ins have gone, and the root knows", healed)
    assert min(counts) >= 4, "the surplus went too early"
    assert [event["reason"] for event in region.get("/api/v1/events")["items"] if event["reason"] == "ReplacementEnded"]
    assert root.status("twins")["phase"] == "Running"


def test_the_root_replaces_a_silent_region_and_its_leaf_keeps_what_it_runs(tree: Tree) -> None:
    """The leaf may not be carried by others, so nobody hears of it; when the region is back, the leaf's replicas are the older ones."""
    root = tree.root()
    region = tree.region("region-a", root)
    far = tree.edge("edge-1", region, BANYAN_FAILOVER_ALLOW="false")
    near = tree.edge("edge-2", root)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 4)
    document = program("twins", placement={"onUnreachable": {"action": "Replace", "afterSeconds": 5}}, replicas=4)
    code, answer = root.ask("POST", APPS, document)
    assert code == 201, answer
    until("four are ready", lambda: root.status("twins").get("ready") == 4)
    before = {edge.name: ready(edge) for edge in (far, near)}
    assert before[far.name] and before[near.name]
    region.kill()
    until("the root has four without the region", lambda: root.status("twins").get("ready") == 4 and len(ready(near)) == 4)
    assert root.status("twins")["phase"] == "Running"
    assert ready(far) == before[far.name], "cut off is not stopped"
    assert "others hold its share until it is back" in root.banyan("explain", "twins").stdout
    until("it counts what others hold", lambda: metric(root, "banyan_replaced_replicas") == len(before[far.name]))
    region.run()
    until("the stand-ins have gone", lambda: ready(near) == before[near.name] and root.status("twins").get("ready") == 4)
    assert ready(far) == before[far.name], "the older ones stay"
    until("nothing counts as replaced", lambda: metric(root, "banyan_replaced_replicas") == 0)
