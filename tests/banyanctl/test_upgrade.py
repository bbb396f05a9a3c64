"""The plan of an upgrade: what is where, leaves before their parents, and what is in the way."""

from typing import Any

import click
import pytest

from banyanctl import cli
from banyanctl.upgrade import make, minor, order
from cluster_controller.errors import InvalidInput


def cluster(name: str, version: str, *path: str, status: str = "Ready", conflicts: int = 0) -> dict[str, Any]:
    return {"name": name, "version": version, "path": [*path], "status": status, "conflicts": conflicts}


TREE = [
    cluster("root", "0.1.0"),
    cluster("region-a", "0.1.0", "region-a"),
    cluster("edge-1", "0.1.0", "region-a", "edge-1"),
    cluster("edge-2", "0.1.0", "region-a", "edge-2"),
    cluster("edge-3", "0.1.0", "region-a", "edge-3"),
    cluster("edge-4", "0.1.0", "region-a", "edge-4", status="Unknown"),
]


def test_one_leaf_goes_first_then_the_others_then_upwards() -> None:
    plan = make(TREE, "0.2.0")
    assert [step.clusters for step in plan.steps] == [("edge-1",), ("edge-2", "edge-3"), ("region-a",), ("root",)]
    assert plan.blocking == () and plan.versions == {"0.1.0": ("edge-1", "edge-2", "edge-3", "edge-4", "region-a", "root")}
    assert any("edge-4" in note and "when they are back" in note for note in plan.notes)
    assert any("banyan backup" in note for note in plan.notes)


def test_half_way_only_the_rest_is_left() -> None:
    rows = [cluster("root", "0.1.3"), cluster("edge-1", "0.2.0", "edge-1"), cluster("edge-2", "0.2.0rc1", "edge-2")]
    plan = make(rows, "0.2.0")
    assert [step.clusters for step in plan.steps] == [("edge-2",), ("root",)]
    assert list(plan.versions) == ["0.1.3", "0.2.0rc1", "0.2.0"]
    done = make([cluster("root", "0.2.0"), cluster("edge-1", "0.2.0+local", "edge-1")], "0.2.0")
    assert done.steps == () and done.blocking == () and done.notes == ()


def test_who_is_too_far_behind_or_ahead_is_in_the_way() -> None:
    plan = make([cluster("root", "0.3.0"), cluster("edge-1", "0.1.9", "edge-1")], "0.3.0")
    assert plan.blocking == ("more than one minor version behind 0.3.0: edge-1 (0.1.9); go to 0.2 first",)
    plan = make([cluster("root", "0.3.0"), cluster("edge-1", "0.2.0", "edge-1")], "0.2.0")
    assert len(plan.blocking) == 1 and "newer than 0.2.0 already: root" in plan.blocking[0]


def test_who_says_nothing_or_waits_for_a_decision_is_named() -> None:
    plan = make([cluster("root", "0.1.0", conflicts=2), cluster("edge-1", "", "edge-1", status="Pending")], "0.2.0")
    assert plan.versions["unknown"] == ("edge-1",)
    assert any("edge-1" in note and "which version" in note for note in plan.notes)
    assert any("cluster conflicts" in note and "root" in note for note in plan.notes)


def test_versions_are_read_as_people_write_them() -> None:
    assert minor("v0.2.1") == (0, 2) and minor("0.2") == (0, 2) and minor("latest") is None
    assert order("0.10.0") > order("0.9.9") > order("0.9.9rc1") > order("0.9.8")
    with pytest.raises(InvalidInput, match="no version"):
        make([], "latest")


def test_it_is_a_group_although_it_has_one_command() -> None:
    command = cli.load(cli.ENTRIES["upgrade"])
    assert isinstance(command, click.Group) and list(command.commands) == ["plan"]
