"""One tree of two neighbouring versions, each above and below the other, upgraded and set back in any order under load.

There is no release before this one yet, so the neighbour is made: a copy of this program that says another version and has fields in
reports and in documents that this one does not know. What it writes must pass through controllers of this version unharmed.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2e.support import API, APPS, ROOT, Asker, Site, Tree, model_application, publish, until

PACKAGES = ("cluster_controller", "cluster_shim", "openapi", "banyanctl", "edge_ai", "proto", "banyan")
NEXT = "0.2.0"
FACT = '    version: str = ""  # of its controller\n'
TOLD = "        authority=authority,\n"
FIELD = "    model: ModelReference | None = None  # serve this model\n"
PATCHES = (
    ("cluster_controller/resources/cluster.py", FACT, FACT + '    shine: str = ""  # of a later version\n'),
    ("cluster_controller/facts.py", TOLD, TOLD + '        shine="bright",\n'),
    ("cluster_controller/resources/application.py", FIELD, FIELD + '    shine: str = ""  # of a later version\n'),
    ("banyanctl/service.py", "version=installed(DISTRIBUTION)", f'version="{NEXT}"'),
)


@pytest.fixture(scope="module")
def neighbour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the next version."""
    folder = tmp_path_factory.mktemp("next")
    for package in PACKAGES:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, after in PATCHES:
        text = (folder / name).read_text()
        assert before in text, f"{name} has changed: patch it elsewhere"
        (folder / name).write_text(text.replace(before, after, 1))
    return folder


def become(site: Site, folder: Path | None) -> None:
    """Another version on the same data folder."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        site.environment.pop(name, None)
    if folder is not None:
        site.environment |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    site.stop()
    site.run()


def versions(root: Site) -> dict[str, str]:
    return {name: status["facts"].get("version", "") for name, status in root.clusters().items()}


def test_two_versions_work_together_both_ways_in_any_order(tree: Tree, neighbour: Path, device: Callable[[str], Asker]) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    now = versions(root)["root"]
    publish(root)
    assert root.ask("POST", APPS, model_application(port=8500))[0] == 201
    until("it serves", lambda: root.status().get("ready") == 1)
    asker = device(f"http://{edge.environment['BANYAN_SITE_BIND']}:8500/v2/models/emotion/infer")
    plan = root.banyan("upgrade", "plan", "--to", NEXT).stdout
    assert re.search(r"1\. .*edge-1\n2\. .*region-a\n3\. .*root", plan), plan

    become(edge, neighbour)
    until("the leaf is of the next version", lambda: versions(root) == {"root": now, "region-a": now, "edge-1": NEXT})
    become(root, neighbour)  # this version between two of the next
    until("the root too", lambda: versions(root) == {"root": NEXT, "region-a": now, "edge-1": NEXT})
    until("what the leaf adds passes through the region", lambda: root.clusters()["edge-1"]["facts"].get("shine") == "bright")
    change(root, "replicas", 2)
    until("a change of the next version's root arrives", lambda: root.status().get("ready") == 2)
    change(root, "shine", "very")  # a field that the region between does not know
    until("it reaches the leaf as it was written", lambda: '"shine":"very"' in work(edge))

    become(region, neighbour)
    become(root, None)  # the next version between two of this
    become(edge, None)
    until("now the other way round", lambda: versions(root) == {"root": now, "region-a": NEXT, "edge-1": now})
    change(root, "replicas", 1)
    until("a change arrives", lambda: root.status().get("ready") == 1 and root.status().get("desired") == 1)
    document = root.get(f"{APPS}/emotion")
    assert document["spec"]["components"][0]["shine"] == "very"  # a step back loses nothing that was written
    become(region, None)
    until("all are as in the beginning", lambda: set(versions(root).values()) == {now})
    until("and well", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    report = asker.end()
    assert report["failures"] == 0 and report["requests"] > 0, report


def change(root: Site, field: str, value: Any) -> None:
    for _ in range(20):  # a status may be written between reading and writing: whoever has read the older one is told so
        document = root.get(f"{APPS}/emotion")
        document["spec"]["components"][0][field] = value
        code, answer = root.ask("PUT", f"{APPS}/emotion", document)
        if code != 409:
            break
    assert code == 200, answer


def work(edge: Site) -> str:
    """All Works of its own cluster, as they are kept."""
    code, answer = edge.ask("GET", f"{API}/works")
    assert code == 200
    return json.dumps(answer, separators=(",", ":"))
