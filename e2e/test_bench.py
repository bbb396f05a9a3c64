"""`banyan bench` on a real tree: hop by hop, changes on their way, an application under load, and a record that a rerun is held against."""

import json
from pathlib import Path
from typing import Any

from banyanctl.bench.spread import LABEL
from cluster_controller.errors import Unreachable
from e2e.support import API, APPS, Site, Tree, program
from e2e.test_workloads import create

QUICK = ("--rounds", "2", "--seconds", "0.2")


def bench(site: Site, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.banyan("bench", *arguments, "-o", "json").stdout)
    return found


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in found["rows"]}


def test_a_tree_is_measured_hop_by_hop_and_a_rerun_is_held_against_it(grove: Tree, tmp_path: Path) -> None:
    root, kept = grove.sites["root"], tmp_path / "before.json"
    made = rows(bench(root, *QUICK, "--record", str(kept)))
    for name, hops in (("region-a", "1 hop"), ("edge-1", "2 hops"), ("edge-2", "2 hops")):
        assert made[f"round trip to {name} ({hops})"]["value"] > 0
        assert made[f"rate from {name} ({hops})"]["value"] > 0
        assert made[f"a change here → told by {name}"]["value"] > 0
    assert {"added by the hop root → region-a", "added by the hop region-a → edge-2"} <= set(made)
    assert made["a change here → told by the last of 3 clusters"]["samples"] == 2
    for item in root.get(f"{API}/clusters")["items"]:
        assert LABEL not in (item["metadata"].get("labels") or {})

    again = root.banyan("bench", *QUICK, "--compare", str(kept), "--tolerance", "1", "-o", "wide")
    count = len([row for row in made.values() if row.get("compared", True)])
    assert f"{count} of {count} rows agree" in again.stderr
    assert "agrees" in again.stdout

    record = json.loads(kept.read_bytes())
    record["rows"][0]["value"] *= 1000  # so slow was no loopback ever
    kept.write_text(json.dumps(record), encoding="utf-8")
    apart = root.banyan("bench", *QUICK, "--compare", str(kept), "--tolerance", "0.99", check=False)
    assert apart.returncode == 1
    assert f"{record['rows'][0]['what']}: better" in apart.stderr


def test_from_a_region_it_is_the_regions_own_tree(grove: Tree) -> None:
    found = bench(grove.sites["root"], "hops", *QUICK, "--at", "region-a", "-l", "site=edge-1")
    assert "round trip to edge-1 (1 hop)" in rows(found)
    assert not any("edge-2" in what for what in rows(found))
    assert found["clusters"] == 1


def test_an_application_is_started_on_every_process_cluster_and_ended(grove: Tree) -> None:
    root = grove.sites["root"]
    found = rows(bench(root, "start"))
    assert set(found) == {
        "an application on 2 process clusters: created → shown ready here",
        "an application on 2 process clusters: deleted → ended everywhere",
    }
    assert not [item for item in root.get(APPS)["items"] if item["metadata"]["name"].startswith("bench-")]


def test_an_application_under_load_in_the_four_loadgen_scenarios(grove: Tree) -> None:
    root = grove.sites["root"]
    create(root, program("asked", placement={"clusterName": "edge-2"}, expose={"port": 18231}))
    given = ("--application", "asked", "/health", "--seconds", "0.5", "--connections", "2", "--within", "60000")
    found = rows(bench(root, *given))
    for scenario in ("SingleStream", "MultiStream", "Server", "Offline"):
        assert found[f"{scenario}: answers"]["value"] > 0
        assert found[f"{scenario}: this machine's processors"]["value"] > 0
        assert found[f"{scenario}: processor time of root for an answer" if scenario != "SingleStream" else "SingleStream: an answer"]
    for controller in ("root", "region-a", "edge-2"):
        assert found[f"Offline: processor time of {controller} for an answer"]["unit"] == "ms of processor"
    assert found["SingleStream: an answer"]["samples"] >= 10
    assert found["Server: 99 of 100 answers"]["note"].startswith("at ")

    done = root.banyan("bench", "--application", "nonesuch", "/", "--seconds", "0.5", check=False)
    assert done.returncode == Unreachable.exit_code
    assert "does not answer GET" in done.stderr and "no application default/nonesuch" in done.stderr
