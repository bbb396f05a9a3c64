"""Routes from signed attach records: what a child may say, what wins, and that nothing goes in circles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_controller.errors import Exhausted, Forbidden, ProtocolError
from cluster_controller.tunnel import AttachRecord, CloseCode, Router, Routes, Verdict, Withdrawal
from tests.tunnel.support import identity, record_of, root, verify


def rec(uid: str, parent: str, attach: int = 1) -> AttachRecord:
    return AttachRecord(uid=uid, parent_uid=parent, attach=attach)


def router(**limits: int) -> Router:
    made = Router("me", lambda record: record.signature != b"false", **limits)
    made.attach(rec("a", "me"))
    made.attach(rec("b", "me"))
    return made


def test_what_is_below_a_child_is_reached_by_way_of_it() -> None:
    r = router()
    applied = r.apply("a", Routes(announce=(rec("a1", "a"), rec("a11", "a1"))))
    assert applied.refused == ()
    assert applied.onward == Routes(announce=(rec("a1", "a"), rec("a11", "a1")))
    assert (r.next_hop("a11"), r.path("a11")) == ("a", ("a", "a1", "a11"))
    assert r.next_hop("stranger") is None
    assert r.announcement() == Routes(announce=(rec("a", "me"), rec("b", "me"), rec("a1", "a"), rec("a11", "a1")), full=True)


def test_what_a_new_child_shows_is_judged_without_changing_anything() -> None:
    r = router(max_routes=4)
    r.apply("b", Routes(announce=(rec("b1", "b", 5),)))
    before = r.announcement()
    assert r.judge(rec("c", "me")) is Verdict.ADDED
    assert r.judge(rec("a", "me")) is Verdict.ADDED  # replays by the same way are the membership's to judge
    assert r.judge(rec("c", "a")) is r.judge(rec("me", "me")) is Verdict.NOT_YOURS
    assert r.judge(rec("b1", "me", 5)) is Verdict.STALE
    assert r.judge(rec("b1", "me", 6)) is Verdict.ADDED
    assert r.judge(AttachRecord(uid="c", parent_uid="me", attach=1, signature=b"false")) is Verdict.UNSIGNED
    r.apply("b", Routes(announce=(rec("b2", "b"),)))
    assert r.judge(rec("c", "me")) is Verdict.FULL
    assert r.judge(rec("b2", "me", 2)) is Verdict.ADDED
    r.apply("b", Routes(withdraw=(Withdrawal(uid="b2", attach=1),)))
    assert r.announcement() == before


def test_a_child_cannot_announce_its_sibling_nor_what_is_below_it() -> None:
    r = router()
    r.apply("b", Routes(announce=(rec("b1", "b"),)))
    applied = r.apply("a", Routes(announce=(rec("b", "me", 9), rec("b1", "b", 9), rec("a", "me", 9), rec("x", "unknown"), rec("a1", "a"))))
    assert [verdict for _, verdict in applied.refused] == [Verdict.NOT_YOURS] * 4
    assert applied.onward == Routes(announce=(rec("a1", "a"),))
    assert (r.next_hop("b"), r.next_hop("b1")) == ("b", "b")


def test_a_record_that_its_cluster_did_not_sign_is_refused() -> None:
    top, edge, other = root(), identity("edge", "region"), identity("other", "region")
    region = identity("region")
    r = Router(top.uid, verify)
    r.attach(record_of(region, top.uid, 1))
    stolen = record_of(edge, region.uid, 1)
    forged = AttachRecord(**{name: getattr(stolen, name) for name in stolen.__struct_fields__} | {"uid": other.uid})
    applied = r.apply(region.uid, Routes(announce=(stolen, forged)))
    assert [(record.uid, verdict) for record, verdict in applied.refused] == [(other.uid, Verdict.UNSIGNED)]
    with pytest.raises(Forbidden, match="does not match"):
        Router(top.uid, verify).attach(AttachRecord(uid=region.uid, parent_uid=top.uid, attach=5, public_key=region.spki))


def test_the_higher_attach_wins_whoever_relays_it_and_late_words_change_nothing() -> None:
    r = router()
    r.apply("a", Routes(announce=(rec("x", "a", 3), rec("x1", "x"))))
    r.apply("b", Routes(announce=(rec("x", "b", 4),)))
    assert (r.next_hop("x"), r.next_hop("x1")) == ("b", "b")
    assert r.apply("a", Routes(announce=(rec("x", "a", 3),))).onward is None
    assert r.apply("a", Routes(withdraw=(Withdrawal(uid="x1", attach=1), Withdrawal(uid="x", attach=3)))).onward is None
    assert r.next_hop("x") == "b"
    assert r.apply("b", Routes(withdraw=(Withdrawal(uid="x", attach=3),))).onward is None
    gone = r.apply("b", Routes(withdraw=(Withdrawal(uid="x", attach=4),))).onward
    assert gone == Routes(withdraw=(Withdrawal(uid="x", attach=4), Withdrawal(uid="x1", attach=1)))


def test_a_replayed_attach_of_a_child_is_refused() -> None:
    r = router()
    r.attach(rec("a", "me", 5))
    with pytest.raises(Forbidden, match="newer attach"):
        r.attach(rec("a", "me", 4))
    with pytest.raises(Forbidden, match="another parent"):
        r.attach(rec("c", "somebody"))


def test_ones_own_uid_from_below_is_a_loop() -> None:
    with pytest.raises(ProtocolError, match="loop") as caught:
        router().apply("a", Routes(announce=(rec("me", "a"),)))
    assert caught.value.code == CloseCode.LOOP


def test_what_holds_a_loop_changes_nothing_so_that_the_parent_above_misses_nothing() -> None:
    r = router()
    r.apply("a", Routes(announce=(rec("a1", "a"),)))
    before = r.announcement()
    with pytest.raises(ProtocolError):
        r.apply("a", Routes(announce=(rec("a2", "a"), rec("me", "a")), withdraw=(Withdrawal(uid="a1", attach=1),), full=True))
    assert r.announcement() == before
    assert r.detach("a") == Routes(withdraw=(Withdrawal(uid="a", attach=1), Withdrawal(uid="a1", attach=1)))


def test_a_cluster_cannot_be_announced_below_itself() -> None:
    r = router()
    r.apply("a", Routes(announce=(rec("x", "a", 1), rec("y", "x", 1))))
    applied = r.apply("a", Routes(announce=(rec("x", "y", 2),)))
    assert [verdict for _, verdict in applied.refused] == [Verdict.NOT_YOURS]
    assert r.path("y") == ("a", "x", "y")


def test_losing_a_child_loses_all_below_it() -> None:
    r = router()
    r.apply("a", Routes(announce=(rec("a1", "a"), rec("a2", "a"), rec("a11", "a1"))))
    told = r.detach("a")
    assert told is not None
    assert [one.uid for one in told.withdraw] == ["a", "a1", "a2", "a11"]
    assert len(r) == 1
    assert r.detach("a") is None


def test_a_guest_that_went_home_stays_routed_when_its_old_link_ends_after_its_home_has_told() -> None:
    r = router()
    r.attach(rec("guest", "me", 5))
    assert r.apply("a", Routes(announce=(rec("guest", "a", 6),))).onward == Routes(announce=(rec("guest", "a", 6),))
    assert r.detach("guest") is None
    assert r.next_hop("guest") == "a"
    assert r.detach("a") is not None
    assert r.next_hop("guest") is None


def test_what_was_outdone_and_never_withdrawn_counts_again_when_the_higher_attach_is_withdrawn() -> None:
    """A copied data folder connects elsewhere and goes away; the cluster itself has stood under its home all the while."""
    r = router()
    r.apply("a", Routes(announce=(rec("x", "a", 3), rec("x1", "x"))))
    r.apply("b", Routes(announce=(rec("x", "b", 4),)))
    assert r.path("x1") == ("b", "x", "x1")
    told = r.apply("b", Routes(withdraw=(Withdrawal(uid="x", attach=4), Withdrawal(uid="x1", attach=1)))).onward
    assert told is not None and told.announce == (rec("x", "a", 3), rec("x1", "x"))
    assert r.path("x1") == ("a", "x", "x1")
    r.apply("b", Routes(announce=(rec("x", "b", 5),)))
    assert r.apply("a", Routes(announce=(rec("x", "a", 3),), full=True)).onward is None, "said anew, and outdone still"
    assert (told := r.detach("b")) is not None and told.announce == (rec("x", "a", 3),)
    assert r.path("x") == ("a", "x")
    r.apply("a", Routes(announce=(rec("y", "x"), rec("x", "y", 6))))
    assert r.detach("a") is not None and r.next_hop("x") is None


@pytest.mark.parametrize("end", ["link", "word"])
def test_what_its_child_says_no_more_does_not_count_again(end: str) -> None:
    r = router()
    if end == "link":
        r.attach(rec("x", "me", 1))
    else:
        r.apply("a", Routes(announce=(rec("x", "a", 1),)))
    r.apply("b", Routes(announce=(rec("x", "b", 2),)))
    assert (r.detach("x") if end == "link" else r.apply("a", Routes(full=True)).onward) is None
    gone = r.apply("b", Routes(withdraw=(Withdrawal(uid="x", attach=2),))).onward
    assert gone == Routes(withdraw=(Withdrawal(uid="x", attach=2),))


def test_a_record_that_is_outdone_and_not_signed_is_not_kept() -> None:
    r = Router("me", lambda record: record.signature != b"false")
    for uid in "ab":
        r.attach(rec(uid, "me"))
    r.apply("b", Routes(announce=(rec("x", "b", 4),)))
    r.apply("a", Routes(announce=(AttachRecord(uid="x", parent_uid="a", attach=3, signature=b"false"),)))
    r.apply("b", Routes(withdraw=(Withdrawal(uid="x", attach=4),)))
    assert r.next_hop("x") is None


def test_a_full_announcement_replaces_what_was_known_by_way_of_that_child() -> None:
    r = router()
    r.apply("a", Routes(announce=(rec("a1", "a"), rec("a2", "a"))))
    r.apply("b", Routes(announce=(rec("b1", "b"),)))
    told = r.apply("a", Routes(announce=(rec("a2", "a"), rec("a3", "a")), full=True)).onward
    assert told == Routes(announce=(rec("a3", "a"),), withdraw=(Withdrawal(uid="a1", attach=1),))
    assert r.next_hop("b1") == "b"


def test_the_table_is_bounded() -> None:
    r = router(max_routes=3)
    applied = r.apply("a", Routes(announce=(rec("a1", "a"), rec("a2", "a"))))
    assert [verdict for _, verdict in applied.refused] == [Verdict.FULL]
    with pytest.raises(Exhausted, match="3 clusters"):
        r.attach(rec("c", "me"))


UIDS = st.sampled_from(["me", "a", "b", "c", "d", "e"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("attach"), UIDS, st.builds(rec, UIDS, st.just("me"), st.integers(1, 5))),
        st.tuples(st.just("announce"), UIDS, st.builds(rec, UIDS, UIDS, st.integers(1, 5))),
        st.tuples(st.just("full"), UIDS, st.builds(rec, UIDS, UIDS, st.integers(1, 5))),
        st.tuples(st.just("withdraw"), UIDS, st.builds(rec, UIDS, UIDS, st.integers(1, 5))),
        st.tuples(st.just("detach"), UIDS, st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_is_said_no_loops_and_a_parent_that_follows_knows_the_same(steps: list[tuple[str, str, AttachRecord]]) -> None:
    r = Router("me", lambda record: True)
    above = Router("top", lambda record: True)
    above.attach(rec("me", "top"))
    for name, child, record in steps:
        told: Routes | None = None
        direct = child != "me" and r.path(child) == (child,)
        try:
            if name == "attach" and record.uid != "me":
                told = r.attach(record)
            elif name == "detach" and direct:
                told = r.detach(child)
            elif name in ("announce", "full") and direct:
                told = r.apply(child, Routes(announce=(record,), full=name == "full")).onward
            elif name == "withdraw" and direct:
                told = r.apply(child, Routes(withdraw=(Withdrawal(uid=record.uid, attach=record.attach),))).onward
        except (Forbidden, ProtocolError):
            pass
        if told is not None:
            assert above.apply("me", told).refused == ()
        for uid in "abcde":
            path = r.path(uid)
            assert len(set(path)) == len(path)
            assert (r.next_hop(uid) is None) == (not path)
            if path:
                assert path[0] == r.next_hop(uid)
                assert above.path(uid) == ("me", *path)
            else:
                assert above.next_hop(uid) is None
    for uid in "abcde":
        r.detach(uid)
    assert len(r) == 0 and not r._outdone, "nothing is kept of links that have ended"
