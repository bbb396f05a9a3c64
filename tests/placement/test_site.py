"""A site's policy: what it refuses, caps and pins of what comes from above, and how those above see it."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from cluster_controller.metrics import EventNumbers
from cluster_controller.placement.model import Request
from cluster_controller.placement.site import Pinned, Taken, images, means, rule
from cluster_controller.resources import kinds
from cluster_controller.resources.policy import Caps, SitePolicySpec, Subject, Veto
from cluster_controller.resources.validate import InvalidDocument, check
from cluster_controller.store import Key, Tx

from .tree import Site, Tree, application, put_application

APP = kinds.ApplicationReference(uid="u", name="shop", namespace="games", origin="uid-root", origin_name="root")
WEB = kinds.Component(name="web", container=kinds.ContainerImage(image="docker.io/shop/web:1"), replicas=3)
SERVE = kinds.Component(name="serve", model=kinds.ModelReference(name="llm-7b"), replicas=2, resources=kinds.Resources(cpu="100m"))


@pytest.mark.parametrize(
    ("subject", "meant"),
    [
        (Subject(), False),
        (Subject(namespaces=["games"]), True),
        (Subject(namespaces=["g*"], names=["other"]), False),
        (Subject(origins=["root"]), True),
        (Subject(origins=["uid-root"]), True),
        (Subject(selector=kinds.LabelSelector(match_labels={"tier": "batch"})), True),
        (Subject(selector=kinds.LabelSelector(match_labels={"tier": "web"})), False),
    ],
)
def test_a_subject_is_meant_when_every_field_holds(subject: Subject, meant: bool) -> None:
    assert means(subject, APP, {"tier": "batch"}) is meant


@pytest.mark.parametrize(
    ("rule_", "refused"),
    [
        (Veto(namespaces=["games"]), {"web": 3, "serve": 2}),
        (Veto(images=["docker.io/*"]), {"web": 3}),
        (Veto(models=["llm-*"]), {"serve": 2}),
        (Veto(names=["other"], models=["llm-*"]), {}),
        (Veto(names=["shop"], models=["llm-*"], reason="no language models here"), {"serve": 2}),
    ],
)
def test_a_veto_refuses_what_it_names(rule_: Veto, refused: dict[str, int]) -> None:
    ruling = rule(SitePolicySpec(veto=[rule_]), APP, {}, [WEB, SERVE])
    assert {name: count for name, (count, _) in ruling.refused.items()} == refused
    assert all((rule_.reason or "the policy of the site") in why for _, why in ruling.refused.values())


def test_an_image_is_found_wherever_a_manifest_names_it() -> None:
    pod = {"spec": {"containers": [{"image": "ghcr.io/a"}], "initContainers": [{"image": "docker.io/b"}]}}
    component = kinds.Component(name="m", manifests=[{"kind": "Deployment", "spec": {"template": pod}}])
    assert images(component) == ["docker.io/b", "ghcr.io/a"]
    assert rule(SitePolicySpec(veto=[Veto(images=["docker.io/*"])]), APP, {}, [component]).refused["m"][0] == 1


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 500)), min_size=1, max_size=4),
    st.none() | st.integers(0, 12),
    st.integers(0, 3000),
    st.integers(0, 6),
)
def test_caps_hold_whatever_is_asked(parts: list[tuple[int, int]], replicas: int | None, cpu: int, others: int) -> None:
    components = [
        kinds.Component(name=f"c{number}", command=["x"], replicas=count, resources=kinds.Resources(cpu=f"{millis}m"))
        for number, (count, millis) in enumerate(parts)
    ]
    taken = Taken(Request(cpu_millis=100 * others), others)
    ruling = rule(SitePolicySpec(caps=Caps(cpu=f"{cpu}m", replicas=replicas)), APP, {}, components, others=taken)
    allowed = {component.name: component.replicas for component in ruling.components}
    asked = sum(allowed[f"c{number}"] * millis for number, (_, millis) in enumerate(parts))
    assert asked == 0 or asked + 100 * others <= cpu
    assert replicas is None or sum(allowed.values()) == 0 or sum(allowed.values()) + others <= replicas
    for number, (count, _) in enumerate(parts):
        assert allowed[f"c{number}"] + ruling.refused.get(f"c{number}", (0, ""))[0] == count


def test_what_is_pinned_keeps_its_version_in_the_numbers_that_are_asked() -> None:
    newer = msgspec.structs.replace(WEB, container=kinds.ContainerImage(image="docker.io/shop/web:2"), replicas=5)
    extra = kinds.Component(name="extra", command=["x"], replicas=1)
    ruling = rule(SitePolicySpec(), APP, {}, [newer, extra], pinned=Pinned((WEB,), 4))
    assert ruling.components[0] == msgspec.structs.replace(WEB, replicas=5)
    assert (ruling.components[1].replicas, ruling.refused["extra"][0]) == (0, 1)
    assert "(generation 4)" in ruling.pinned["web"]
    same = rule(SitePolicySpec(), APP, {}, [WEB], pinned=Pinned((WEB,), 4))
    assert (same.pinned, same.refused) == ({}, {})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"veto": [{}]}, "spec.veto[0]"),
        ({"veto": [{"reason": "x"}]}, "spec.veto[0]"),
        ({"veto": [{"names": [""]}]}, "spec.veto[0].names[0]"),
        ({"veto": [{"names": ["a"], "reason": "x" * 501}]}, "spec.veto[0].reason"),
        ({"pins": [{"selector": {"matchLabels": {"-": "x"}}}]}, "spec.pins[0].selector"),
        ({"pins": [{"names": ["a"]}] * 101}, "spec.pins"),
        ({"caps": {"cpu": "-1"}}, "spec.caps.cpu"),
        ({"caps": {"replicas": -1}}, "spec.caps.replicas"),
    ],
)
def test_a_bad_policy_is_refused_by_its_field(spec: dict[str, Any], field: str) -> None:
    document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "site"}, "spec": spec}
    with pytest.raises(InvalidDocument) as caught:
        check("SitePolicy", document, None)
    assert field in {problem.field for problem in caught.value.problems}


# --- through a tree ---


async def decide(site: Site, **spec: Any) -> None:
    def write(tx: Tx) -> None:
        document = {"apiVersion": "banyan.dev/v1alpha1", "kind": "SitePolicy", "metadata": {"name": "site"}, "spec": spec}
        tx.put(Key("own", "SitePolicy", "", "site"), msgspec.json.encode(document), uid="policy")

    await site.store.commit(write)


async def grow(folder: Path) -> Tree:
    tree = Tree(folder)
    await tree.add("root")
    await tree.add("region-a", "root")
    await tree.add("edge-1", "region-a", 1000, {"zone": "a"})
    await tree.add("edge-2", "region-a", 1000, {"zone": "a"})
    await tree.quiet()
    return tree


def runs(tree: Tree, name: str, uid: str) -> int:
    return sum(tree.sites[name].running.get(uid, {}).values())


def test_what_a_site_refuses_goes_elsewhere_and_the_reason_is_told_at_the_origin(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root, edge = tree.sites["root"], tree.sites["edge-1"]
        tree.watch = lambda: check_total(tree, uid, 4)
        uid = await put_application(root, "emotion", 4)
        await tree.quiet()
        assert runs(tree, "edge-1", uid) == 2
        tree.set_cut("edge-1", True)  # offline too
        before = told("Refused")
        await decide(edge, veto=[{"namespaces": ["default"], "reason": "no guests this week"}])
        own = await put_application(edge, "local", 1)
        await tree.quiet()
        assert (runs(tree, "edge-1", uid), runs(tree, "edge-1", own)) == (0, 1), "its own people are not meant"
        tree.set_cut("edge-1", False)
        await tree.quiet()
        assert (runs(tree, "edge-1", uid), runs(tree, "edge-2", uid)) == (0, 4)
        await put_application(root, "emotion", 4, clusterName="edge-1")
        await tree.quiet()
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (tree.total(uid), status.unplaced, status.phase) == (0, 4, "Pending")
        assert "edge-1 refuses 4: no guests this week" in status.conditions[0].message
        explained = await edge.store.commit(lambda tx: edge.engine.explain(tx, uid))
        assert explained is not None
        first = explained.placement.refusals[0]
        assert (first.filter, first.cluster) == ("SitePolicy", edge.uid)
        assert "refuses default/emotion of root: 4 of serve: no guests this week" in events(edge, "Refused")
        assert told("Refused") > before
        assert edge.engine.refused == 4
        await decide(edge)
        await tree.quiet()
        assert edge.engine.refused == 0
        assert "no longer refuses default/emotion of root" in events(edge, "RefusalEnded")
        assert (tree.total(uid), runs(tree, "edge-1", uid)) == (4, 4)
        await tree.close()

    asyncio.run(play())


def told(reason: str) -> float:
    """What /metrics says of it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(EventNumbers())
    found = re.search(rf'^banyan_happened_total{{reason="{reason}"}} (.+)$', generate_latest(registry).decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def events(site: Site, reason: str) -> set[str]:
    found = [msgspec.json.decode(stored.document, type=kinds.Event) for stored in site.store.list("own", "Event")]
    return {event.message for event in found if event.reason == reason}


def check_total(tree: Tree, uid: str, most: int) -> None:
    assert tree.total(uid) <= most


def test_a_cap_bounds_all_that_comes_from_above_together(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root, region = tree.sites["root"], tree.sites["region-a"]
        await decide(region, caps={"replicas": 5, "cpu": "450m"})
        first = await put_application(root, "first", 3)
        second = await put_application(root, "second", 3)
        own = await put_application(region, "own", 3)
        await tree.quiet()
        assert tree.total(first) + tree.total(second) == 4, "four times 100m"
        assert tree.total(own) == 3
        short = [application(root, name).status for name in ("first", "second")]  # type: ignore[union-attr]
        assert sum(status.unplaced for status in short) == 2
        assert any("caps what comes from above at cpu 450m" in status.conditions[0].message for status in short)
        await tree.crash("region-a")
        await tree.quiet()
        assert tree.total(first) + tree.total(second) == 4, "the account is taken anew from what was given"
        fuller = "first" if tree.total(first) == 3 else "second"
        await put_application(root, fuller, 1)
        await tree.quiet()
        assert tree.total(first) + tree.total(second) == 4, "what one gave back, the other has"
        await tree.close()

    asyncio.run(play())


def test_below_a_cap_the_highest_priority_has_its_part_and_of_equals_who_came_first(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root, region = tree.sites["root"], tree.sites["region-a"]
        await decide(region, caps={"replicas": 5})
        old = await put_application(root, "old", 2)
        await tree.quiet()
        new = await put_application(root, "new", 3)
        await tree.quiet()
        assert (tree.total(old), tree.total(new)) == (2, 3)
        equal = await put_application(root, "equal", 2)
        await tree.quiet()
        assert (tree.total(old), tree.total(new), tree.total(equal)) == (2, 3, 0), "an equal one takes nothing from anybody"
        await decide(region, caps={"replicas": 4})
        await tree.quiet()
        assert (tree.total(old), tree.total(new), tree.total(equal)) == (2, 2, 0)
        high = await put_application(root, "high", 3, spec={"priority": 5})
        tree.watch = lambda: check_cap(tree, (old, new, equal, high), 4)
        await tree.quiet()
        assert tree.total(high) == 3
        assert (tree.total(old), tree.total(new), tree.total(equal)) == (1, 0, 0)
        await tree.crash("region-a")
        await tree.quiet()
        assert (tree.total(high), tree.total(old), tree.total(new)) == (3, 1, 0), "the account is taken anew"
        await decide(region, caps={"replicas": 2})
        tree.watch = lambda: None
        await tree.quiet()
        assert (tree.total(high), tree.total(old), tree.total(new)) == (2, 0, 0)
        await tree.close()

    asyncio.run(play())


def check_cap(tree: Tree, uids: Iterable[str], most: int) -> None:
    """Over what the site was given to run; what ends may still run a moment longer."""
    assert sum(tree.assigned(tree.sites["region-a"], uid) for uid in uids) <= most


def test_a_pinned_application_keeps_its_version_here_and_takes_the_new_one_elsewhere(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root, edge = tree.sites["root"], tree.sites["edge-1"]

        def parts(version: str) -> list[dict[str, object]]:
            return [{"name": "serve", "command": [version], "replicas": 2, "resources": {"cpu": "100m"}}]

        def command(name: str, uid: str) -> list[str]:
            stored = tree.sites[name].store.get(Key("local", "Work", "", uid))
            assert stored is not None
            return msgspec.json.decode(stored.document, type=kinds.Work).spec.components[0].command

        uid = await put_application(root, "emotion", 2, parts("one"), strategy="Duplicated")
        await tree.quiet()
        await decide(edge, pins=[{"names": ["emotion"]}])
        await tree.quiet()
        await put_application(root, "emotion", 2, parts("two"), strategy="Duplicated")
        await tree.quiet()
        assert (command("edge-1", uid), command("edge-2", uid)) == (["one"], ["two"])
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.ready, status.updated, status.phase, status.conditions[1].reason) == (4, 2, "Running", "Pinned")
        await tree.crash("edge-1")
        await tree.quiet()
        assert command("edge-1", uid) == ["one"]
        await decide(edge)
        await tree.quiet()
        assert command("edge-1", uid) == ["two"]
        assert application(root, "emotion").status.updated == 4  # type: ignore[union-attr]
        await tree.close()

    asyncio.run(play())
