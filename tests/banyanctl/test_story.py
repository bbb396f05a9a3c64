"""How the story of an Application is put together and drawn."""

from typing import Any

from banyanctl import output, story


def cluster(name: str, *path: str, status: str = "Ready", **more: str) -> dict[str, Any]:
    return {"uid": f"u-{name}", "name": name, "path": [*path], "status": status, "heard": "7s", "brokenHop": "", **more}


CLUSTERS = [
    cluster("root"),
    cluster("region-a", "region-a", status="Unknown", since="2026-11-21T10:00:00Z", brokenHop="root → region-a"),
    cluster("edge-1", "region-a", "edge-1", status="Unknown", since="2026-11-21T10:00:00Z", brokenHop="root → region-a"),
    cluster("edge-2", "region-a", "edge-2"),
    cluster("edge-3", "edge-3", adoptedBy="region-a"),
    cluster("edge-4", "edge-4"),
]
ROWS = [
    {"cluster": "u-edge-1", "desired": 2, "ready": 0, "reason": "Unreachable"},
    {"cluster": "u-edge-3", "desired": 1, "ready": 1, "reason": ""},
]


def test_each_level_has_the_sum_of_what_is_below_it() -> None:
    place = story.divide("root", CLUSTERS, {"u-edge-1": 2, "u-edge-2": 1, "u-edge-3": 1}, {"status": {"clusters": ROWS}})
    assert place.total() == 4 and place.below["region-a"].total() == 3
    assert sorted(place.below) == ["edge-3", "region-a"]  # edge-4 has nothing of it
    assert story.plain(place)["below"][1]["below"][0] == {
        "name": "edge-1", "status": "Unknown", "total": 2, "replicas": 2, "ready": 0, "below": [],
    }  # fmt: skip
    assert [one["name"] for one in story.silent(place)] == ["region-a", "edge-1"]


def test_it_is_drawn_with_what_is_silent_since_when_and_who_adopted_whom() -> None:
    place = story.divide("root", CLUSTERS, {"u-edge-1": 2, "u-edge-3": 1}, {"status": {"clusters": ROWS}})
    lines = [line for line, _ in output._lines(story.draw(place))]
    assert lines[0] == "root  3"
    assert "runs 1, 1 ready" in lines[1] and "adopted by region-a" in lines[1]
    assert "Unknown since 2026-11-21T10:00:00Z, heard 7s ago  broken: root → region-a" in lines[2]
    assert "runs 2, 0 ready by its last report" in lines[3]
    moods = [mood for _, mood in output._lines(story.draw(place))]
    assert moods == ["good", "good", "bad", "bad"]


def test_a_cluster_that_the_list_does_not_know_is_drawn_by_its_name() -> None:
    place = story.divide("root", [cluster("edge-9", "gone", "edge-9")], {"u-edge-9": 1}, {})
    assert place.below["gone"].status == "" and place.below["gone"].below["edge-9"].replicas == 1
