"""What is one version, and what a target is told while it waits."""

import msgspec

from cluster_controller.resources.kinds import ApplicationReference, Component, EnvVar, Share, WorkReference, WorkSpec
from cluster_controller.rollout.revision import Version, digest, of_work, order, rolled_back

REFERENCE = ApplicationReference(uid="u", name="shop")
WEB = Component(name="web", command=["run"], replicas=2)
OLD_LINKS = [WorkReference(kind="ConfigMap", name="old", uid="1")]
NEW_LINKS = [WorkReference(kind="ConfigMap", name="new", uid="2")]


def version(*components: Component, links: list[WorkReference]) -> Version:
    return Version(revision=digest(components), components=list(components), references=links)


def work(*components: Component, revision: str = "") -> WorkSpec:
    share = [Share(allotter="me", id=1)]
    return WorkSpec(application=REFERENCE, cluster="c", shares=share, components=list(components), revision=revision, references=OLD_LINKS)


OLD = version(WEB, Component(name="gone", command=["x"], replicas=1), links=OLD_LINKS)
NEW = version(msgspec.structs.replace(WEB, command=["newer"]), Component(name="fresh", command=["y"]), links=NEW_LINKS)


def told(components: list[Component]) -> dict[str, tuple[list[str], int]]:
    return {component.name: (component.command, component.replicas) for component in components}


def test_replicas_make_no_version_everything_else_does() -> None:
    assert digest([WEB]) == digest([msgspec.structs.replace(WEB, replicas=9)])
    assert digest([WEB]) != digest([msgspec.structs.replace(WEB, env=[EnvVar(name="A", value="b")])])


def test_a_work_of_before_the_first_rollout_is_recognised() -> None:
    assert of_work(work(WEB)) == digest([WEB])
    assert of_work(work(WEB, revision="given")) == "given"
    assert of_work(None) == ""


def test_who_is_due_is_told_the_newest_and_what_those_below_still_need() -> None:
    found = order(NEW, OLD, work(*OLD.components), due=True, shares={"web": 3, "fresh": 1}, extra=OLD_LINKS)
    assert (found.revision, found.references) == (NEW.revision, OLD_LINKS)
    assert told(found.components) == {"web": (["newer"], 3), "fresh": (["y"], 1)}


def test_who_is_not_due_keeps_what_it_has_in_the_number_that_placement_says() -> None:
    found = order(NEW, OLD, work(*OLD.components), due=False, shares={"web": 5, "fresh": 1})
    assert (found.revision, found.references) == (OLD.revision, OLD_LINKS)
    assert told(found.components) == {"web": (["run"], 5), "gone": (["x"], 1)}


def test_who_gives_everything_back_keeps_nothing() -> None:
    found = order(NEW, OLD, work(*OLD.components), due=False, shares={})
    assert told(found.components) == {"web": (["run"], 0), "gone": (["x"], 0)}


def test_who_comes_in_the_middle_is_given_the_stable_version_or_nothing_without_one() -> None:
    found = order(NEW, OLD, None, due=False, shares={"web": 1})
    assert (found.revision, told(found.components)) == (OLD.revision, {"web": (["run"], 1), "gone": (["x"], 0)})
    assert order(NEW, None, None, due=False, shares={"web": 1}).components == []


def test_the_way_back_keeps_the_replicas_that_people_gave_meanwhile() -> None:
    present = [msgspec.structs.replace(NEW.components[0], replicas=7)]
    assert told(rolled_back(OLD, present)) == {"web": (["run"], 7), "gone": (["x"], 1)}
