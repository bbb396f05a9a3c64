"""Joins decided in any order by any crowd: a token admits one key, a name belongs to one cluster."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.identity import starts
from cluster_controller.identity.join import Cause
from cluster_controller.tree import admission
from cluster_controller.tree.admission import Admitted, Applicant, Caller, Entry, Member, Names, Place, Refused, Token
from tests.identity.family import LONG_AGO, NOW, below, edge, region, root

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ["a", "b", "me"]
ME = Place("me", ("top", "me"))


class Parent:
    """What a parent has committed."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = {token.id: token for token in tokens}
        self.members: dict[str, Member] = {}

    def names(self) -> Names:
        taken = {one.name: uid for uid, one in self.members.items() if one.state in admission.STANDING_STATES}
        return Names({**taken, "me": "me"})

    def join(self, token_id: str, uid: str, name: str, now: datetime) -> Admitted | Refused:
        token = self.tokens[token_id]
        outcome = admission.judge_join(token, Applicant(uid=uid, name=name), self.names(), self.members, now)
        again = admission.judge_join(token, Applicant(uid=uid, name=name), self.names(), self.members, now)
        assert outcome == again, "asking twice gives the same answer"
        if isinstance(outcome, Admitted):
            if outcome.replaced is not None:
                self.members[outcome.replaced.uid] = msgspec.structs.replace(outcome.replaced, state="replaced")
            self.members[uid] = outcome.member
            self.tokens[token_id] = msgspec.structs.replace(token, used_by=uid)
        return outcome


tokens = st.builds(
    Token,
    id=st.sampled_from(["t1", "t2", "t3"]),
    digest=st.just(""),
    expires=st.integers(1, 100).map(lambda hours: BEGIN + timedelta(hours=hours)),
    approve=st.booleans(),
    replace=st.sampled_from(["", "", "a"]),
    cluster_name=st.sampled_from(["", "", "b"]),
    revoked=st.just(False),
)
moves = st.lists(
    st.tuples(
        st.sampled_from(["join", "join", "join", "approve", "revoke", "revoke-token"]),
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from(["u1", "u2", "u3"]),
        st.sampled_from(NAMES),
    ),
    max_size=30,
)


@settings(max_examples=400, deadline=None)
@given(st.lists(tokens, min_size=3, max_size=3, unique_by=lambda token: token.id), moves)
def test_a_token_admits_one_key_and_a_name_one_cluster(given_tokens: list[Token], played: list[tuple[str, str, str, str]]) -> None:
    parent, now, approved = Parent(given_tokens), BEGIN, set()
    certified: dict[str, set[str]] = {}
    for move, token_id, uid, name in played:
        now += timedelta(hours=1)
        token, before = parent.tokens[token_id], parent.members.get(uid)
        if move == "join":
            outcome = parent.join(token_id, uid, name, now)
            if isinstance(outcome, Refused):
                continue
            assert not token.revoked and (token.used_by in ("", uid))
            assert token.used_by or now < token.expires
            assert (outcome.member.name != "me" and before is None) or before is None or before.state != "revoked"
            if not outcome.waiting:
                assert not token.approve or uid in approved, "nobody comes in who has to be approved first"
                certified.setdefault(token_id, set()).add(uid)
        elif move == "approve" and before is not None and before.state == "pending":
            parent.members[uid] = msgspec.structs.replace(before, state="approved")
            approved.add(uid)
        elif move == "revoke" and before is not None:
            parent.members[uid] = msgspec.structs.replace(before, state="revoked")
        elif move == "revoke-token":
            parent.tokens[token_id] = msgspec.structs.replace(token, revoked=True)
        held = [one.name for one in parent.members.values() if one.state in admission.STANDING_STATES]
        assert len(held) == len(set(held)), "one name, one cluster"
        assert all(len(uids) == 1 for uids in certified.values()), "one token, one key"


def token(**change: object) -> Token:
    return msgspec.structs.replace(Token(id="t", digest="", expires=BEGIN + timedelta(hours=1)), **change)


def refused(outcome: Admitted | Refused) -> Cause | None:
    return outcome.cause if isinstance(outcome, Refused) else None


def test_each_reason_is_told() -> None:
    one = Member(uid="u1", name="a", state="member")
    names, members = Names({"a": "u1", "me": "me"}), {"u1": one}

    def ask(given: Token, uid: str = "u9", name: str = "z", now: datetime = BEGIN, **labels: str) -> Cause | None:
        return refused(admission.judge_join(given, Applicant(uid=uid, name=name, labels=labels), names, members, now))

    assert ask(token()) is None
    assert ask(token(), now=BEGIN + timedelta(hours=1)) is Cause.EXPIRED
    assert ask(token(revoked=True)) is Cause.REVOKED
    assert ask(token(used_by="u1")) is Cause.USED
    assert ask(token(used_by="u9")) is Cause.USED  # it was a member once, and is none any more
    assert ask(token(), name="a") is Cause.NAME_TAKEN
    assert ask(token(), uid="u1", name="a") is None
    assert ask(token(), name="me") is Cause.NAME_TAKEN
    assert ask(token(), name="A") is Cause.INVALID
    assert ask(token(), **{f"l{number}": "" for number in range(65)}) is Cause.INVALID
    assert ask(token(), label="x" * 600) is Cause.INVALID
    assert ask(token(cluster_name="b")) is Cause.INVALID
    assert ask(token(replace="z")) is Cause.INVALID
    assert ask(token(replace="a"), name="a") is None
    connected = Names(names.taken, frozenset({"u1"}))
    outcome = admission.judge_join(token(replace="a"), Applicant(uid="u9", name="a"), connected, members, BEGIN)
    assert refused(outcome) is Cause.NAME_TAKEN


def test_who_may_say_hello() -> None:
    here = Place(region().uid, region().path)
    peer = edge().peer
    record = Member(uid=peer.uid, name="edge-1", state="member")
    judge = admission.judge_peer
    assert judge(peer, record, {}, here, NOW) is None
    assert judge(peer, None, {}, here, NOW) is None, "its own signature is enough"
    assert judge(below(root(), "elsewhere").peer, None, {}, here, NOW) is Entry.NOT_A_CHILD
    assert judge(root().peer, None, {}, here, NOW) is Entry.LOOP
    for state, entry in (
        ("revoked", Entry.REVOKED), ("replaced", Entry.REVOKED), ("left", Entry.NOT_A_CHILD), ("removed", Entry.NOT_A_CHILD),
        ("pending", Entry.NOT_A_CHILD), ("approved", Entry.NOT_A_CHILD),
    ):  # fmt: skip
        assert judge(peer, msgspec.structs.replace(record, state=state), {}, here, NOW) is entry, state
    old = below(region(), "old", LONG_AGO).peer
    assert judge(old, None, {}, here, NOW) is Entry.EXPIRED
    assert judge(old, None, {}, here, LONG_AGO) is None


@given(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.sampled_from([("s1",), ("s1", "s2"), ("s3",)]))
def test_a_replayed_attach_never_comes_in(known_attach: int, shown: int, live: bool, listed: tuple[str, ...]) -> None:
    record = Member(uid=edge().uid, name="e", state="member", attach=known_attach, started=starts.Record("s1"))
    caller = Caller(peer=edge().peer, attach=shown, starts=listed)
    entry = admission.judge_hello(caller, record, live)
    if entry is Entry.PROBE:
        assert live and "s1" not in listed
        assert admission.judge_probed(caller, record, answered=True) is Entry.HOLD
        entry = admission.judge_probed(caller, record, answered=False)
    if entry in (Entry.ADMIT, Entry.SUPERSEDE, Entry.FULL_RESYNC):
        assert shown > known_attach
        fresh = admission.welcomed(caller, record, number=7, address="", addresses=(), now=NOW)
        assert (fresh.attach, fresh.started.start, fresh.start_number) == (shown, listed[-1], 7)
    else:
        assert entry is Entry.REPLAYED and shown <= known_attach


def test_the_instances_that_wait_are_bounded() -> None:
    record = Member(uid="u", name="e", state="member", started=starts.Record("s0", excluded=("gone",)))
    for number in range(200):
        record = admission.held(record, f"h{number}")
    assert len(record.held) == starts.MAX_EXCLUDED and record.held[-1] == "h199"
    assert admission.held(record, "h199") == record and admission.held(record, "gone") == record
    kept = admission.keep(record, "h199")
    assert kept.held == () and kept.started.start == "h199" and "s0" not in kept.held
    assert len(kept.started.excluded) <= starts.MAX_EXCLUDED
