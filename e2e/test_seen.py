"""What a person sees of a branch that is cut off: since when, by which hop, what runs there by its last report, and what happened."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.support import APPS, Site, Tree, talker, until


class Watching:
    """`banyan events -w -o json` of a site, as it prints."""

    def __init__(self, site: Site, *options: str) -> None:
        self.seen: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "banyanctl", "--data", str(site.folder), "events", "-w", "-o", "json", *options],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(json.loads(line))

    def reasons(self, name: str) -> list[str]:
        return [event["reason"] for event in list(self.seen) if event["involvedObject"]["name"] == name]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def watching() -> Iterator[list[Watching]]:
    made: list[Watching] = []
    yield made
    for one in made:
        one.close()


def test_a_cut_is_seen_with_its_hop_its_time_and_what_runs_there(tree: Tree, watching: list[Watching]) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    edge = tree.edge("edge-1", region)
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    assert root.ask("POST", APPS, talker("talker"))[0] == 201
    until("it runs", lambda: root.status("talker").get("ready") == 1)
    watching.append(Watching(root, "--for", "cluster/edge-1"))
    watching.append(Watching(root, "--warnings"))
    story = json.loads(root.banyan("status", "talker", "-o", "json").stdout)["story"]
    assert story["origin"] == "root" and story["silent"] == []
    assert story["division"]["below"][0]["name"] == "region-a" and story["division"]["below"][0]["below"][0]["replicas"] == 1

    edge.kill()
    until("the loss is told as it happens", lambda: all("LinkLost" in one.reasons("edge-1") for one in watching))
    drawn = {line.split("○")[0].strip("├└─│ "): line for line in root.banyan("tree", "--broken").stdout.splitlines() if "○" in line}
    assert list(drawn) == ["edge-1"], drawn
    assert "silent since 20" in drawn["edge-1"] and "broken: region-a → edge-1" in drawn["edge-1"]
    assert "1 app, 1 running by its last report" in drawn["edge-1"] and "heard" in drawn["edge-1"]
    told = root.banyan("status", "talker").stdout
    assert "written at root" in told and "Unknown since 20" in told and "by its last report" in told, told
    story = json.loads(root.banyan("status", "talker", "-o", "json").stdout)["story"]
    assert [(one["name"], one["broken"]) for one in story["silent"]] == [("edge-1", "region-a → edge-1")]
    assert story["division"]["total"] == 1  # it keeps its share

    root.kill()  # the watch outlives it
    root.run()
    edge.run()
    until("the return is told", lambda: watching[0].reasons("edge-1")[-1:] == ["Ready"])
    until("nothing is silent", lambda: "silent" not in root.banyan("tree").stdout)
    assert "LinkLost" in root.banyan("events", "--for", "cluster/edge-1", "--reason", "linklost").stdout
