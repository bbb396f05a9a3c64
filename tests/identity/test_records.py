"""Signed records (attach, standing), revocations, renewal and users: what each is believed for."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import Forbidden, InvalidInput
from cluster_controller.identity import Grant, attach, renewal, revocation, standing
from cluster_controller.identity.attach import Attach
from cluster_controller.identity.certificates import PeerCertificate
from cluster_controller.identity.renewal import Dates
from cluster_controller.identity.revocation import Revocation
from cluster_controller.identity.standing import PermittedParent, Standing
from cluster_controller.identity.users import allows, groups_of
from tests.identity.family import LONG_AGO, NOW, below, edge, region, root


def fields(change: dict[str, object]) -> str:
    """A test's name: the same in every worker, unlike the keys in the values."""
    return "-".join(change)


def record(attach_number: int = 1) -> Attach:
    return attach.sign(edge().uid, region().uid, attach_number, edge().spki, edge().sign)


def test_a_record_is_believed_as_it_was_signed() -> None:
    attach.verify(record())


@pytest.mark.parametrize(
    "change",
    [
        {"attach": 2},
        {"attach": 0},
        {"attach": attach.MAX_ATTACH},
        {"parent": root().uid},
        {"uid": region().uid},
        {"nonce": b"other"},
        {"nonce": b"x" * 65},
        {"signature": b""},
        {"signature": b"x" * 70},
        {"public_key": region().spki},
        {"public_key": b""},
        {"public_key": b"x" * 300},
    ],
    ids=fields,
)
def test_a_changed_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        attach.verify(msgspec.structs.replace(record(), **change))


def test_a_signature_for_another_purpose_is_worth_nothing() -> None:
    genuine = record()
    statement = attach._statement(genuine.uid, genuine.parent, genuine.attach, genuine.nonce)
    with pytest.raises(InvalidInput, match="not signed"):
        attach.verify(msgspec.structs.replace(genuine, signature=edge().sign(statement)))


@given(st.integers(1, 2**60), st.integers(1, 2**60))
def test_a_restored_counter_catches_up_in_a_handful_of_connections(mine: int, theirs: int) -> None:
    refusals = 0
    while not attach.newer(mine, theirs) and refusals < 20:
        refusals += 1
        mine = attach.after_replayed(mine, refusals)
        assert mine < attach.MAX_ATTACH
    assert refusals <= 16


def signed(serial: int = 1, child: str = "") -> Standing:
    parents = [PermittedParent(region().uid, "region-a", ("a:1",)), PermittedParent(root().uid, "root", ("r:1",))]
    return standing.sign(child or edge().uid, parents, serial, region().peer.chain, region().sign)


def test_a_standing_is_verified_offline_and_adopted_by_whom_it_names() -> None:
    standing.verify(signed(), root().tree_ca)
    standing.adopt(signed(), edge().peer, root().uid)
    standing.adopt(signed(), edge().peer, region().uid)
    for held, child, me in (
        (signed(), edge().peer, "nobody"),
        (signed(), region().peer, root().uid),
        (signed(child=region().uid), region().peer, root().uid),
    ):
        with pytest.raises(Forbidden):
            standing.adopt(held, child, me)


@pytest.mark.parametrize(
    "change",
    [
        {"serial": 2},
        {"child": "another"},
        {"parents": ()},
        {"parents": (PermittedParent(root().uid, "root", ("r:1",)),)},
        {"parents": (PermittedParent(region().uid, "region-a", ("evil:1",)),)},
        {"parents": tuple(PermittedParent(region().uid, "x", ()) for _ in range(17))},
        {"chain": root().peer.chain},
        {"chain": ()},
        {"signature": b"x"},
    ],
    ids=fields,
)
def test_a_changed_standing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        standing.verify(msgspec.structs.replace(signed(), **change), root().tree_ca)


def test_a_standing_of_another_tree_is_refused() -> None:
    with pytest.raises(InvalidInput):
        standing.verify(signed(), root("other").tree_ca)


def test_the_higher_serial_or_another_home_replaces() -> None:
    elsewhere = standing.sign(edge().uid, [PermittedParent(root().uid, "root", ())], 1, root().peer.chain, root().sign)
    assert standing.replaces(signed(1), None) and standing.replaces(signed(2), signed(1))
    assert not standing.replaces(signed(1), signed(1)) and not standing.replaces(signed(1), signed(2))
    assert standing.replaces(elsewhere, signed(9))


# --- revocations ---


def bars(peer: PeerCertificate, *revocations: Revocation) -> bool:
    return revocation.cluster(revocation.index(revocations), peer) is not None


def test_a_revocation_bars_the_cluster_and_all_below_it() -> None:
    revoked = Revocation("cluster", region().uid)
    assert bars(region().peer, revoked) and bars(edge().peer, revoked)
    assert not bars(below(root(), "region-b").peer, revoked) and not bars(root().peer, revoked)


def test_a_child_bars_only_what_stands_below_it() -> None:
    assert bars(edge().peer, Revocation("cluster", edge().uid, via=(region().uid,)))
    assert bars(edge().peer, Revocation("cluster", region().uid, via=(root().uid,)))
    for lie in (
        Revocation("cluster", edge().uid, via=("a-sibling",)),
        Revocation("cluster", region().uid, via=(region().uid,)),
        Revocation("cluster", root().uid, via=(region().uid,)),
        Revocation("cluster", edge().uid, via=(edge().uid,)),
        Revocation("cluster", edge().uid, via=(region().uid, "its-sibling")),
        Revocation("user", edge().uid),
    ):
        assert not bars(edge().peer, lie), lie


def test_people_are_revoked_from_above_only() -> None:
    known = revocation.index([Revocation("user", "c1"), Revocation("user", "c2", via=("child",)), Revocation("cluster", "c3")])
    assert revocation.user(known, "c1") is not None
    assert revocation.user(known, "c2") is None and revocation.user(known, "c3") is None


# --- dates ---


def test_only_the_issuer_judges_dates() -> None:
    old = below(region(), "old", LONG_AGO).peer
    assert renewal.judge(old, region().uid, NOW) is Dates.EXPIRED
    assert renewal.judge(old, root().uid, NOW) is Dates.GOOD
    assert renewal.judge(edge().peer, region().uid, NOW) is Dates.GOOD
    assert renewal.judge(edge().peer, region().uid, LONG_AGO) is Dates.AHEAD


@given(st.integers(-100, 500), st.floats(0, 1, exclude_max=True))
def test_renewal_is_due_once_and_well_before_the_end(days: int, spread: float) -> None:
    begin, end = NOW, NOW + timedelta(days=90)
    now = NOW + timedelta(days=days)
    pause = renewal.due(begin, end, now, spread)
    assert pause >= timedelta(0)
    if now < begin:
        assert not pause, "a clock that went back does not delay a renewal"
    elif pause:
        assert begin + timedelta(days=50) <= now + pause <= begin + timedelta(days=60)
    else:
        assert days >= 50


def test_failed_renewals_are_tried_ever_less_often_within_bounds() -> None:
    pauses = [renewal.retry(attempt) for attempt in range(40)]
    assert pauses == sorted(pauses) and pauses[0] == timedelta(minutes=1) and pauses[-1] == timedelta(hours=6)


def test_a_skewed_clock_is_told_with_both_times() -> None:
    assert renewal.skew(NOW, NOW + timedelta(minutes=4)) is None
    text = renewal.skew(NOW, LONG_AGO)
    assert text is not None and "2026-01-01 00:00:00" in text and f"{LONG_AGO:%Y-%m-%d}" in text


# --- people ---


def test_roles_nest_and_namespaces_divide() -> None:
    grants = (Grant("edit", "shop"), Grant("view"))
    assert allows(grants, "edit", "shop") and allows(grants, "view", "shop") and allows(grants, "view", "other")
    assert allows(grants, "view") and not allows(grants, "edit") and not allows(grants, "edit", "other")
    assert not allows(grants, "admin", "shop") and not allows((), "view", "shop")
    assert allows((Grant("admin"),), "edit", "anything") and not allows((Grant("admin", "shop"),), "view")
    assert groups_of(grants) == ("banyan:edit:shop", "banyan:view", "system:authenticated")
