"""A root's disk is lost; it comes back from an older backup that was made under load, and takes nothing from the field.

While all of this happens a device asks the application at its site, and not one of its requests fails.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.support import API, APPS, Asker, Site, Tree, model_application, publish, talker, until

PASSPHRASE = "a passphrase of the test"


def test_a_root_that_lost_its_disk_comes_back_from_an_older_backup(tree: Tree, device: Callable[[str], Asker]) -> None:
    root = tree.root()
    edge = tree.edge("edge-1", root)
    until("the edge is in", lambda: root.clusters()["edge-1"]["phase"] == "Ready")
    publish(root)
    assert root.ask("POST", APPS, model_application(port=8500))[0] == 201
    for name in ("kept-as-root-has-it", "kept-as-the-field-has-it", "ended"):
        assert root.ask("POST", APPS, talker(name))[0] == 201
    until("all run", lambda: len(running(edge)) == 4)
    until("the model serves", lambda: root.status().get("ready") == 1)
    asker = device(f"http://{edge.environment['BANYAN_SITE_BIND']}:8500/v2/models/emotion/infer")
    secret = root.token()

    backup = tree.folder / "root.backup"
    made = json.loads(command(root, "backup", str(backup), "-o", "json").stdout)
    assert made["objects"] > 5 and backup.stat().st_mode & 0o777 == 0o600 and b"identity" not in backup.read_bytes()

    # What happens after it: changes, a removal, a new application, a new cluster, which nothing in the backup knows.
    for name in ("kept-as-root-has-it", "kept-as-the-field-has-it"):
        change(root, name, "later")
    root.banyan("delete", "application", "ended")
    assert root.ask("POST", APPS, talker("newer"))[0] == 201
    late = tree.edge("edge-2", root)
    until("all of it has arrived", lambda: running(edge) == ["emotion", "kept-as-root-has-it", "kept-as-the-field-has-it", "newer"])
    until("the changed ones run", lambda: all(word(edge, name) == "later" for name in ("kept-as-root-has-it", "kept-as-the-field-has-it")))
    root.kill()
    shutil.rmtree(root.folder)

    told = json.loads(command(root, "restore", str(backup), "-o", "json").stdout)
    assert told["tokensVoided"] == 1 and told["members"] == ["edge-1"]
    root.run()
    refused = tree.site("edge-3")
    refused.folder.mkdir()
    assert "revoked" in refused.banyan("join", secret, "--name", "edge-3", "--no-run", check=False).stderr

    until("the conflict is shown", lambda: root.clusters()["edge-1"]["facts"].get("conflicts", 0) >= 4)
    until("who is not in the backup is named", lambda: "not in the backup: edge-2" in restored_condition(root))
    assert running(edge) == ["emotion", "kept-as-root-has-it", "kept-as-the-field-has-it", "newer"]
    assert word(edge, "kept-as-root-has-it") == "later"  # no rollback of the field
    conflicts = {item["object"] or item["name"]: item for item in listed(root)}
    until("the late one is in", lambda: root.clusters()["edge-2"]["phase"] == "Ready")
    assert late.process is not None and late.process.poll() is None

    one = next(item["name"] for item in conflicts.values() if item["object"] == "default/kept-as-the-field-has-it")
    root.banyan("cluster", "conflicts", "edge-1", "--keep", "field", "--kind", "Work", "--object", one)
    assert one not in [item["name"] for item in listed(root)]
    root.banyan("cluster", "conflicts", "edge-1", "--keep", "root")
    until("what root has runs, but for the one that was kept", lambda: running(edge) == sorted(["emotion", "ended", *KEPT]))
    until("root's state is there", lambda: word(edge, "kept-as-root-has-it") == "")
    assert word(edge, "kept-as-the-field-has-it") == "later"
    until("the conflict is over", lambda: not root.clusters()["edge-1"]["facts"].get("conflicts"))

    change(root, "kept-as-the-field-has-it", "newest")  # a change made after the decision counts again
    until("the newest is there", lambda: word(edge, "kept-as-the-field-has-it") == "newest")
    report = asker.end()
    assert report["failures"] == 0 and report["requests"] > 0, report


KEPT = ("kept-as-root-has-it", "kept-as-the-field-has-it")


def test_a_region_that_is_restored_takes_its_place_again(tree: Tree) -> None:
    """Its parent has gone on, its children too: it is brought up to date from above, and what its child has from its lost days waits."""
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    assert root.ask("POST", APPS, talker("older"))[0] == 201
    until("it runs", lambda: root.status("older").get("ready") == 1)
    backup = tree.folder / "region.backup"
    assert "through other controllers" in command(root, "backup", str(backup), "--at", "region-a", check=False).stderr
    command(region, "backup", str(backup))
    assert root.ask("POST", APPS, talker("later"))[0] == 201
    until("it runs too", lambda: root.status("later").get("ready") == 1)
    instances = pods(edge)
    region.kill()
    shutil.rmtree(region.folder)
    command(region, "restore", str(backup))
    region.run()
    until("all are Ready again", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    # What it has forgotten deciding it decides again, from what comes from above; until then "not known there" is no last word.
    until("it has caught up", lambda: (found := listed(root)) and all(item["parentHas"] for item in found))
    root.banyan("cluster", "conflicts", "edge-1", "--keep", "root")
    until("both run", lambda: root.status("older").get("ready") == root.status("later").get("ready") == 1)
    until("nothing waits for a person", lambda: not root.clusters()["edge-1"]["facts"].get("conflicts"))
    assert pods(edge) == instances  # and nothing that runs was touched


def test_a_controller_that_does_not_run_is_backed_up_and_one_that_runs_is_not_overwritten(tree: Tree) -> None:
    root = tree.root()
    uid = root.clusters()["root"]["uid"]
    backup = tree.folder / "a.backup"
    assert "runs; stop it" in command(root, "restore", str(backup), check=False).stderr
    root.stop()
    command(root, "backup", str(backup))
    assert "never overwrites" in command(root, "backup", str(backup), check=False).stderr
    assert "exists" in command(root, "restore", str(backup), check=False).stderr
    shutil.rmtree(root.folder)
    wrong = root.banyan("restore", str(backup), "--passphrase-file", str(passphrase(tree.folder, "not this one")), check=False)
    assert "passphrase" in wrong.stderr and not (root.folder / "store.db").exists()
    command(root, "restore", str(backup))
    assert root.run().clusters()["root"]["uid"] == uid


# --- helpers ---


def passphrase(folder: Path, text: str = PASSPHRASE) -> Path:
    file = folder / "passphrase"
    file.write_text(text)
    return file


def command(site: Site, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return site.banyan(*arguments, "--passphrase-file", str(passphrase(site.folder.parent)), check=check)


def change(root: Site, name: str, value: str) -> None:
    document = root.get(f"{APPS}/{name}")
    document["spec"]["components"][0]["env"] = [{"name": "WORD", "value": value}]
    code, answer = root.ask("PUT", f"{APPS}/{name}", document)
    assert code == 200, answer


def running(edge: Site) -> list[str]:
    return sorted({pod["metadata"]["labels"]["banyan.dev/application"] for pod in edge.get("/api/v1/pods")["items"]})


def pods(edge: Site) -> set[str]:
    return {pod["metadata"]["uid"] for pod in edge.get("/api/v1/pods")["items"]}


def word(edge: Site, name: str) -> str:
    """What the newest line of the instance's log says of WORD; a dying instance of an older version still has the older word."""
    found = [pod["metadata"] for pod in edge.get("/api/v1/pods")["items"] if pod["metadata"]["labels"]["banyan.dev/application"] == name]
    newest = max(found, key=lambda metadata: metadata["creationTimestamp"])
    code, log = edge.ask("GET", f"/api/v1/namespaces/{newest['namespace']}/pods/{newest['name']}/log?tailLines=1")
    assert code == 200, log
    _, _, line = log.decode().partition("line ")
    assert line, log
    return str(line.partition(" ")[2].strip())


def listed(root: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(root.banyan("cluster", "conflicts", "edge-1", "-o", "json").stdout)["items"]
    return found


def restored_condition(root: Site) -> str:
    conditions = root.get(f"{API}/clusters/root")["status"].get("conditions", [])
    return "".join(item["message"] for item in conditions if item["type"] == "Restored")
