"""Clusters that are heard by way of an adopter, as the census of an ancestor shows them."""

from pathlib import Path

from cluster_controller.documents import encode
from cluster_controller.resources import kinds
from cluster_controller.store import Key
from tests.tree.test_census import Bench, play


async def said(bench: Bench, space: str, uid: str, name: str, parent: tuple[str, str], **status: object) -> None:
    document = kinds.ClusterStatus(
        metadata=kinds.Metadata(name=uid, uid=uid),
        spec=kinds.ClusterStatusSpec(cluster=uid, name=name, parent=parent[0], parent_name=parent[1]),
        status=kinds.ClusterStatusStatus(**({"ready": "True"} | status)),  # type: ignore[arg-type]
    )
    await bench.store.commit(lambda tx: tx.put(Key(space, "ClusterStatus", "", uid), encode(document), uid=uid))
    await bench.quiet()


async def family(bench: Bench) -> None:
    """home is a child, edge stands below it, and leaf below that; home falls silent."""
    await bench.joins("home", "home")
    await bench.connects("home")
    await bench.says("home", "home", "home")
    await bench.says("home", "edge", "edge", parent=("home", "home"))
    await bench.says("home", "leaf", "leaf", parent=("edge", "edge"))
    await bench.loses("home")
    assert [bench.cluster(name).status.phase for name in ("home", "edge", "leaf")] == ["Unknown"] * 3


async def heard(bench: Bench) -> None:
    bench.live["edge"] = bench.now
    await said(bench, "stray/edge", "edge", "edge", ("home", "home"), adopted_by="other", children=1)
    await said(bench, "stray/edge", "leaf", "leaf", ("edge", "edge"))
    bench.census.link_changed("edge", None)
    await bench.quiet()


def test_a_stray_is_ready_and_adopted_below_a_home_that_is_not(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await heard(bench)
        edge, leaf = bench.cluster("edge").status, bench.cluster("leaf").status
        assert (edge.phase, edge.adopted_by, edge.parent, edge.path) == ("Ready", "other", "home", ["home", "edge"])
        assert (leaf.phase, leaf.adopted_by, leaf.path) == ("Ready", "", ["home", "edge", "leaf"])
        assert bench.cluster("home").status.phase == "Unknown" and bench.report("edge").status.adopted_by == "other"
        assert "Adopted: edge is carried by other, for it has lost its home parent home" in bench.events()
        assert not bench.sent_down("edge") and bench.census.silent() == {"home": "region → home"}
        assert bench.census.heard("edge") is not None and bench.census.heard("edge").broken_hop == ""  # type: ignore[union-attr]

    play(tmp_path, main)


def test_a_stray_that_falls_silent_is_unknown_again_and_home_takes_over_when_it_is_back(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await heard(bench)
        await bench.loses("edge")
        assert (bench.cluster("edge").status.phase, bench.cluster("leaf").status.phase) == ("Unknown", "Unknown")
        assert not [text for text in bench.events() if text.startswith("ReturnedHome")]
        await bench.connects("home")
        await bench.says("home", "edge", "edge", parent=("home", "home"), facts=kinds.ClusterFacts(version="2"))
        edge = bench.cluster("edge").status
        assert (edge.phase, edge.adopted_by, edge.facts.version) == ("Ready", "", "2")
        assert "ReturnedHome: edge is back at its home parent home; other has carried it" in bench.events()

    play(tmp_path, main)


def test_after_a_restart_whoever_is_heard_counts(tmp_path: Path) -> None:
    async def main(bench: Bench) -> None:
        await family(bench)
        await heard(bench)
        again = Bench(bench.store)
        again.live = {"edge": again.now}
        again.census.load()
        await again.quiet()
        assert again.cluster("edge").status.phase == "Ready"
        await again.close()

    play(tmp_path, main)
