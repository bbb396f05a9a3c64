"""What ancestors lay over a cluster: labels by rank, restrictions by strictness, and everybody who set a thing is named."""

from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.resources import kinds
from cluster_controller.tree.merge import merge

labels = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), max_size=3)
taints = st.lists(
    st.builds(
        kinds.Taint, key=st.sampled_from("kl"), value=st.sampled_from(["", "1"]), effect=st.sampled_from(["NoSchedule", "NoExecute"])
    ),
    max_size=3,
)  # fmt: skip
overlays = st.lists(st.tuples(labels, taints, st.booleans()), max_size=4).map(
    lambda made: [
        kinds.ClusterOverlaySpec(cluster="c", set_by=f"up-{hops}", labels=own, taints=list(tainted), unschedulable=cordon)
        for hops, (own, tainted, cordon) in enumerate(made)
    ]
)


def marks(merged_taints: list[kinds.Taint]) -> set[tuple[str, str, str]]:
    return {(taint.key, taint.value, taint.effect) for taint in merged_taints}


@given(labels, overlays)
def test_the_strictest_wins_and_the_farthest_has_the_last_word_on_labels(
    site: dict[str, str], above: list[kinds.ClusterOverlaySpec]
) -> None:
    merged = merge("site", site, above)
    assert merged.unschedulable == any(overlay.unschedulable for overlay in above)
    assert marks(merged.taints) == {mark for overlay in above for mark in marks(overlay.taints)}
    assert len(merged.taints) == len(marks(merged.taints))
    wanted = dict(site)
    for overlay in above:
        wanted |= overlay.labels
    assert merged.labels == wanted


@given(labels, overlays)
def test_everything_that_counts_has_a_source(site: dict[str, str], above: list[kinds.ClusterOverlaySpec]) -> None:
    sources = merge("site", site, above).sources
    setters = {overlay.set_by: overlay for overlay in above}
    for source in sources:
        if source.key == "cordon":
            assert setters[source.set_by].unschedulable
        elif source.key.startswith("taint "):
            assert any(source.key == f"taint {taint.key}:{taint.effect}" for taint in setters[source.set_by].taints)
        else:
            said = site if source.set_by == "site" else setters[source.set_by].labels
            assert said[source.key] == source.value
    assert [source.set_by for source in sources if source.key == "cordon"] == [one.set_by for one in above if one.unschedulable]


@given(labels, overlays, st.integers(0, 3))
def test_taking_one_overlay_back_never_makes_it_stricter(site: dict[str, str], above: list[kinds.ClusterOverlaySpec], which: int) -> None:
    less = above[:which] + above[which + 1 :]
    whole, rest = merge("site", site, above), merge("site", site, less)
    assert marks(rest.taints) <= marks(whole.taints)
    assert rest.unschedulable <= whole.unschedulable


def test_tolerating_one_ancestors_value_is_not_tolerating_anothers() -> None:
    team = [
        kinds.ClusterOverlaySpec(cluster="c", set_by=name, taints=[kinds.Taint(key="team", value=name, effect="NoSchedule")])
        for name in ("region", "root")
    ]
    merged = merge("site", {}, team)
    assert marks(merged.taints) == {("team", "region", "NoSchedule"), ("team", "root", "NoSchedule")}
    assert [source.set_by for source in merged.sources] == ["region", "root"]
