"""Replace: what is silent for long enough is held by others; back in reach the older replicas stay, and the count never falls."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.placement import replacing
from cluster_controller.placement.replace import OVERDUE, Outcome, Target, settle, stand_ins
from cluster_controller.store import Key, Tx

from .tree import Site, Tree, application, put_application

REPLACE = {"action": "Replace", "afterSeconds": 10}
counts = st.integers(min_value=0, max_value=6)


@st.composite
def target(draw: st.DrawFn) -> Target:
    share = draw(counts)
    silent = draw(st.none() | st.floats(0, 60))
    return Target(
        share=share,
        ceiling=share + draw(st.integers(0, 3)),
        confirmed=draw(st.none() | counts),
        silent=silent,
        back=draw(st.floats(0, 60)),
        replaced=draw(st.integers(0, share)),
        stands_in=draw(st.integers(0, share)),
    )


targets = st.dictionaries(st.sampled_from(["t1", "t2", "t3", "t4"]), target(), max_size=4)


def counted(shares: dict[str, int], replaced: dict[str, int]) -> int:
    return sum(share - replaced.get(uid, 0) for uid, share in shares.items())


@given(counts, st.none() | st.just(10.0), targets)
@settings(max_examples=300)
def test_what_counts_never_exceeds_what_was_allotted(allotted: int, after: float | None, among: dict[str, Target]) -> None:
    outcome = settle(allotted, after, among)
    before = sum(item.share - item.replaced for item in among.values())
    assert counted(outcome.shares, outcome.replaced) <= max(allotted, before)
    for uid, item in among.items():
        assert 0 <= outcome.replaced.get(uid, 0) <= outcome.shares[uid] <= item.share
        if item.silent is not None:
            assert outcome.shares[uid] in (item.share, min(item.share, allotted)), "silent: nothing is taken but what nobody wants"
        if uid in outcome.replaced:
            assert item.silent is not None or item.replaced
    if after is None:
        assert all(count <= among[uid].replaced for uid, count in outcome.replaced.items()), "Keep never doubles"


@given(counts, targets)
@settings(max_examples=300)
def test_while_there_is_time_only_what_is_ready_beyond_what_is_wanted_goes(allotted: int, among: dict[str, Target]) -> None:
    among = {uid: Target(**{name: getattr(item, name) for name in item.__struct_fields__} | {"back": 0.0}) for uid, item in among.items()}
    outcome = settle(allotted, 10.0, among)
    ready = sum(item.confirmed or 0 for item in among.values() if item.silent is None)
    taken = sum(item.share - outcome.shares[uid] for uid, item in among.items() if item.silent is None)
    assert ready - taken >= min(ready, allotted)


@given(counts, targets)
@settings(max_examples=200)
def test_the_surplus_ends_in_time(allotted: int, among: dict[str, Target]) -> None:
    late = {
        uid: Target(**{name: getattr(item, name) for name in item.__struct_fields__} | {"back": OVERDUE, "ceiling": item.share})
        for uid, item in among.items()
        if item.silent is None
    }
    outcome = settle(allotted, 10.0, late)
    assert not outcome.replaced
    assert outcome.again is None


@given(counts, targets)
@settings(max_examples=500)
def test_the_end_of_the_surplus_takes_what_is_not_ready_before_anything_that_is(allotted: int, among: dict[str, Target]) -> None:
    late = {
        uid: msgspec.structs.replace(item, silent=None, back=OVERDUE, ceiling=item.share, confirmed=min(item.share, item.confirmed or 0))
        for uid, item in among.items()
    }
    outcome = settle(allotted, 10.0, late)
    ready = sum(item.confirmed or 0 for item in late.values())
    assert sum(min(item.confirmed or 0, outcome.shares[uid]) for uid, item in late.items()) >= min(ready, allotted)


def test_a_stand_in_stays_when_somebody_else_fell_ill_meanwhile() -> None:
    """A leaf and its shim die while the share of another is replaced: eight are ready, and the surplus is the one that is not."""
    well = {f"leaf-{number}": Target(share=1, ceiling=1, confirmed=1) for number in range(6)}
    back = Target(share=1, ceiling=1, confirmed=1, back=OVERDUE, replaced=1)
    others = {"ill": Target(share=1, ceiling=1, confirmed=0), "spare": Target(share=1, ceiling=1, confirmed=1, stands_in=1)}
    outcome = settle(8, 5.0, {**well, "back": back, **others})
    assert (outcome.shares["ill"], outcome.shares["spare"], outcome.shares["back"], outcome.replaced) == (0, 1, 1, {})


def test_an_answer_from_before_the_cut_proves_nothing() -> None:
    remembered = settle(2, 10.0, {"old": Target(share=2, silent=10.0, confirmed=2), "new": Target()})
    assert (remembered.replaced, remembered.renew) == ({"old": 2}, frozenset({"old"}))
    back = {"old": Target(share=2, replaced=2), "new": Target(share=2, confirmed=2, stands_in=2)}
    assert settle(2, 10.0, back).shares == {"old": 2, "new": 2}
    back["old"] = Target(share=2, replaced=2, confirmed=2)
    healed = settle(2, 10.0, back)
    assert (healed.shares, healed.replaced) == ({"old": 2, "new": 0}, {})
    flapped = settle(2, 10.0, {"old": Target(share=2, replaced=2, confirmed=2, silent=1.0), "new": Target(share=2, stands_in=2)})
    assert (flapped.shares, flapped.renew) == ({"old": 2, "new": 2}, frozenset({"old"}))


def test_older_replicas_of_others_are_no_stand_ins() -> None:
    outcome = settle(5, 10.0, {"dead": Target(share=2, silent=11.0), "full": Target(share=3), "free": Target()})
    held = stand_ins({}, outcome, {"dead": 0, "full": 3, "free": 2})
    assert held == {"free": 2}
    back = {
        "dead": Target(share=2, replaced=2, confirmed=2),
        "full": Target(share=3, confirmed=3),
        "free": Target(share=2, confirmed=2, stands_in=2),
    }
    assert settle(5, 10.0, back).shares == {"dead": 2, "full": 3, "free": 0}


def test_one_that_comes_back_empty_loses_its_share_and_the_stand_in_stays() -> None:
    back = {"old": Target(share=2, replaced=2, confirmed=0, back=1.0), "new": Target(share=2, confirmed=2, stands_in=2)}
    waiting = settle(2, 10.0, back)
    assert (waiting.shares, waiting.again) == ({"old": 2, "new": 2}, OVERDUE - 1)
    back["old"] = Target(share=2, replaced=2, confirmed=0, back=OVERDUE)
    assert settle(2, 10.0, back) == Outcome(shares={"old": 0, "new": 2}, replaced={}, stands_in={})


# --- through a whole tree ---


async def grow(folder: Path, cpu: int = 600) -> Tree:
    tree = Tree(folder)
    await tree.add("root")
    for region in ("region-a", "region-b"):
        await tree.add(region, "root")
    for number, region in enumerate(("region-a", "region-a", "region-b", "region-b"), 1):
        await tree.add(f"edge-{number}", region, cpu, {"zone": region})
    await tree.quiet()
    return tree


def live(tree: Tree, uid: str, dead: str = "") -> int:
    """What runs where somebody in reach of the root sees it, and is ready."""
    out = {dead}
    for site in tree.sites.values():
        if site.name in tree.cut or (site.parent is not None and site.parent.name in out):
            out.add(site.name)
    return sum(
        max(0, sum(site.running.get(uid, {}).values()) - site.sick.get(uid, 0)) for site in tree.sites.values() if site.name not in out
    )


def events(site: Site, reason: str) -> list[str]:
    return [stored.key.name for stored in site.store.list("own", "Event") if f'"reason":"{reason}"'.encode() in stored.document]


@pytest.mark.parametrize("cut", ["edge-1", "region-a"])
def test_a_silent_share_is_replaced_and_the_older_replicas_stay(tmp_path: Path, cut: str) -> None:
    """At each level: a region for its leaf, the root for a region."""

    async def play() -> None:
        tree = await grow(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4, onUnreachable=REPLACE)
        await tree.quiet()
        old = {site.name: dict(site.running.get(uid, {})) for site in tree.sites.values()}
        lost = [name for name in old if name.startswith(cut) or (cut == "region-a" and name in {"edge-1", "edge-2"})]
        tree.set_cut(cut, True)
        await tree.quiet()
        assert live(tree, uid) < 4, "not before its time"
        await tree.wait(9)
        await tree.quiet()
        assert live(tree, uid) < 4
        await tree.wait(2)
        await tree.quiet()
        assert live(tree, uid) == 4
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.ready, status.phase, status.unplaced) == (4, "Running", 0)
        judge = tree.sites[cut].parent
        assert judge is not None
        assert sum(sum(per.values()) for per in replacing.of(judge.store, uid).replaced.values()) == sum(
            sum(old[name].values()) for name in lost
        )
        assert events(judge, "Replaced")
        assert judge.engine.replaced == sum(sum(old[name].values()) for name in lost)
        low = []
        tree.watch = lambda: low.append(live(tree, uid))
        tree.set_cut(cut, False)
        await tree.quiet()
        assert min(low) >= 4, "the count fell while the surplus went"
        assert tree.total(uid) == 4
        assert replacing.of(judge.store, uid).replaced == {}
        for name in lost:
            assert tree.sites[name].running.get(uid, {}) == old[name], "the older replicas stay"
        assert events(judge, "ReplacementEnded")
        assert judge.engine.replaced == 0
        await tree.close()

    asyncio.run(play())


def test_a_controllers_own_cluster_stands_in_too(tmp_path: Path) -> None:
    async def play() -> None:
        tree = Tree(tmp_path)
        root = await tree.add("root", cpu_millis=200)
        edge = await tree.add("edge-1", "root", 600)
        await tree.quiet()
        uid = await put_application(root, "emotion", 4, onUnreachable=REPLACE)
        await tree.quiet()
        before = (dict(root.running[uid]), dict(edge.running[uid]))
        assert before == ({"serve": 2}, {"serve": 2})
        await put_application(root, "emotion", 3, onUnreachable=REPLACE)
        await tree.quiet()
        held = sum(root.running[uid].values())
        tree.set_cut("edge-1", True)
        await tree.wait(11)
        await tree.quiet()
        assert sum(root.running[uid].values()) == 2, "as far as it has room"
        status = application(root, "emotion").status  # type: ignore[union-attr]
        assert (status.ready, status.unplaced) == (2, 1)
        tree.set_cut("edge-1", False)
        await tree.quiet()
        assert (tree.total(uid), sum(root.running[uid].values())) == (3, held)
        await tree.close()

    asyncio.run(play())


def test_after_a_restart_the_wait_begins_anew_and_what_was_replaced_stays_so(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4, onUnreachable=REPLACE)
        await tree.quiet()
        tree.set_cut("edge-1", True)
        await tree.wait(9)
        await tree.crash("region-a")
        await tree.quiet()
        await tree.wait(9)
        await tree.quiet()
        assert live(tree, uid) == 3, "nobody knows how long it was silent before"
        await tree.wait(2)
        await tree.quiet()
        assert live(tree, uid) == 4
        await tree.crash("region-a")
        await tree.quiet()
        assert (live(tree, uid), tree.total(uid)) == (4, 5)
        tree.set_cut("edge-1", False)
        await tree.quiet()
        assert (live(tree, uid), tree.total(uid)) == (4, 4)
        await tree.close()

    asyncio.run(play())


def test_a_region_that_is_cut_off_keeps_taints_and_vetoes(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path, 200)
        root, region = tree.sites["root"], tree.sites["region-a"]
        uid = await put_application(root, "emotion", 2, onUnreachable=REPLACE, clusterName="edge-1")
        await tree.quiet()
        await put_application(root, "emotion", 2, onUnreachable=REPLACE, clusterSelector={"matchLabels": {"zone": "region-a"}})
        await tree.quiet()
        assert sum(tree.sites["edge-1"].running[uid].values()) == 2
        vetoing, tainted = tree.sites["edge-2"], await tree.add("edge-5", "region-a", 200, {"zone": "region-a"})
        await tree.quiet()

        def write(tx: Tx, key: Key, change: Mapping[str, object]) -> None:
            stored = tx.get(key)
            document: dict[str, object] = {"metadata": {"name": key.name}}
            if stored is not None:
                document = msgspec.json.decode(stored.document)
            tx.put(key, msgspec.json.encode(document | change), uid=stored.uid if stored is not None else "policy")

        veto = {"spec": {"veto": [{"names": ["*"], "reason": "not here"}]}}
        await vetoing.store.commit(lambda tx: write(tx, Key("own", "SitePolicy", "", "site"), veto))
        taint = {"spec": {"taints": [{"key": "maker", "effect": "NoSchedule"}]}}
        await region.store.commit(lambda tx: write(tx, Key("own", "Cluster", "", "edge-5"), taint))
        await tree.quiet()
        tree.set_cut("region-a", True)
        tree.set_cut("edge-1", True)
        await tree.wait(11)
        await tree.quiet()
        assert [sum(site.running.get(uid, {}).values()) for site in (vetoing, tainted)] == [0, 0]
        await vetoing.store.commit(lambda tx: write(tx, Key("own", "SitePolicy", "", "site"), {"spec": {}}))
        await region.store.commit(lambda tx: write(tx, Key("own", "Cluster", "", "edge-5"), {"spec": {}}))
        await tree.quiet()
        assert sum(sum(site.running.get(uid, {}).values()) for site in (vetoing, tainted)) == 2
        await tree.close()

    asyncio.run(play())


def test_keep_never_doubles_however_long_it_takes(tmp_path: Path) -> None:
    async def play() -> None:
        tree = await grow(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4)
        await tree.quiet()
        tree.watch = lambda: check(tree.total(uid) <= 4)
        for cut in ("edge-1", "region-a"):
            tree.set_cut(cut, True)
            await tree.quiet()
            await tree.wait(10**6)
            await tree.quiet()
            assert tree.total(uid) == 4
            tree.set_cut(cut, False)
            await tree.quiet()
        await tree.close()

    asyncio.run(play())


def test_one_that_comes_back_sick_is_not_believed_by_its_memory(tmp_path: Path) -> None:
    """What it said before the cut lies in the store still: nobody is retired for it."""

    async def play() -> None:
        tree = await grow(tmp_path)
        root = tree.sites["root"]
        uid = await put_application(root, "emotion", 4, onUnreachable=REPLACE)
        await tree.quiet()
        tree.set_cut("region-a", True)
        await tree.wait(11)
        await tree.quiet()
        assert live(tree, uid) == 4
        for name in ("edge-1", "edge-2"):
            tree.sites[name].sick = {uid: 9}
        low = []
        tree.watch = lambda: low.append(live(tree, uid))
        tree.set_cut("region-a", False)
        await tree.settled()  # the link is there, and not a word has come over it
        await tree.quiet()
        await tree.wait(OVERDUE)
        await tree.quiet()
        assert min(low) >= 4
        assert (tree.total(uid), live(tree, uid)) == (4, 4)
        await tree.close()

    asyncio.run(play())


def check(holds: bool) -> None:
    assert holds


def test_a_region_that_is_cut_off_replaces_a_dead_leaf_within_what_it_was_given(tmp_path: Path) -> None:
    """By itself: on the leaf that is left, and on one that joined meanwhile; a tainted one is left alone, and nothing doubles when
    everybody meets again."""

    async def play() -> None:
        tree = await grow(tmp_path, 200)
        root, region = tree.sites["root"], tree.sites["region-a"]
        uid = await put_application(root, "emotion", 4, onUnreachable=REPLACE, clusterSelector={"matchLabels": {"zone": "region-a"}})
        await tree.quiet()
        tree.set_cut("region-a", True)
        tree.set_cut("edge-1", True)
        await tree.quiet()
        await tree.wait(11)
        await tree.quiet()
        assert live(tree, uid) == 0, "the root sees none of it"
        here = [tree.sites[name] for name in ("region-a", "edge-2")]
        assert sum(sum(site.running.get(uid, {}).values()) for site in here) == 2, "edge-2 is full"
        fresh = await tree.add("edge-5", "region-a", 200, {"zone": "region-a"})
        await tree.quiet()
        assert sum(fresh.running.get(uid, {}).values()) == 2
        replaced = sum(sum(per.values()) for per in replacing.of(region.store, uid).replaced.values())
        assert tree.assigned(region, uid) - replaced == 4
        tree.set_cut("region-a", False)
        tree.set_cut("edge-1", False)
        await tree.quiet()
        await tree.wait(OVERDUE)
        await tree.quiet()
        assert tree.total(uid) == 4
        assert sum(tree.sites["edge-1"].running[uid].values()) == 2
        await tree.close()

    asyncio.run(play())


async def storm(folder: Path, seed: int, steps: int) -> None:
    """Cuts, crashes, sickness, time and changes of mind in any order, with answers that come late and out of order."""
    chooser = random.Random(seed)
    tree = await grow(folder, 900)
    root = tree.sites["root"]
    wanted = highest = 4
    uid = await put_application(root, "emotion", wanted, onUnreachable=REPLACE)

    def bounded() -> None:
        for site in (root, *root.children.values()):
            replaced = sum(sum(per.values()) for per in replacing.of(site.store, uid).replaced.values())
            assert tree.assigned(site, uid) - replaced <= highest, site.name
        assert not tree.overbooked()

    tree.watch = bounded
    for _ in range(steps):
        what = chooser.random()
        if what < 0.05:
            wanted = chooser.randint(0, 7)
            highest = max(highest, wanted)
            await put_application(root, "emotion", wanted, onUnreachable=chooser.choice([REPLACE, REPLACE, {"action": "Keep"}]))
        elif what < 0.15:
            name = chooser.choice([name for name in tree.sites if name != "root"])
            tree.set_cut(name, name not in tree.cut)
        elif what < 0.22:
            await tree.wait(chooser.choice([1, 6, 11, 40]))
        elif what < 0.26:
            await tree.crash(chooser.choice(list(tree.sites)))
        elif what < 0.30:
            tree.sites[chooser.choice(["edge-1", "edge-3"])].sick = {uid: chooser.randint(0, 2)}
        await tree.step(chooser)
    for site in tree.sites.values():
        site.sick = {}
    for name in list(tree.cut):
        tree.set_cut(name, False)
    await tree.quiet()
    await tree.wait(OVERDUE)
    await tree.quiet()
    await tree.wait(OVERDUE)
    await tree.quiet()
    status = application(root, "emotion").status  # type: ignore[union-attr]
    assert (tree.total(uid), status.ready, status.unplaced) == (wanted, wanted, 0)
    assert not any(replacing.of(site.store, uid).replaced for site in tree.sites.values())
    await tree.close()


@pytest.mark.parametrize("seed", range(12))
def test_after_any_storm_the_counts_are_exact(tmp_path: Path, seed: int) -> None:
    asyncio.run(storm(tmp_path, seed, 120))
