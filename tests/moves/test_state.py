"""Whatever is lost, repeated or cut on the way: a move ends with the cluster under exactly one parent, and counted there once."""

from typing import Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.moves import state, words
from cluster_controller.moves.state import Ask, Move, Phase
from cluster_controller.moves.words import Answer, Gone, No, NotYet, Stayed, Yes

HELD = {"app": {"main": 2}}


def move(**fields: object) -> Move:
    made = Move(
        id="m",
        cluster="edge",
        name="edge",
        parent="new",
        parent_name="new",
        old="old",
        old_name="old",
        out=("way-out", "old", "edge"),
        into=("way-in", "new", "edge"),
        names={"edge": "edge"},
    )
    return msgspec.structs.replace(made, **fields)


class World:
    """The players, each with what is on its disk; ``refusing`` says no when it is asked for the first time."""

    def __init__(self, refusing: str = "") -> None:
        self.move = move()
        self.parent: Literal["old", "new"] = "old"
        self.off = False
        self.linked = "old"  # to whom the cluster has a link
        self.at_new: Literal["", "expected", "member", "counted"] = ""
        self.at_old: Literal["member", "leaving", "left"] = "member"
        self.counts = 0
        self.refusing = refusing

    def answer(self, ask: Ask) -> Answer:
        question = ask.question
        if self.refusing == ask.whom and isinstance(question, words.Check | words.Prepare | words.Depart | words.Go):
            if isinstance(question, words.Go):
                self.off = True
                return Stayed(reason="it will not")
            return No(reason="it will not")
        match question:
            case words.Check():
                return Yes()
            case words.Prepare():
                self.at_new = self.at_new or "expected"
                return Yes(addresses=("new:1",))
            case words.Depart():
                self.at_old = "leaving" if self.at_old == "member" else self.at_old
                return Yes()
            case words.Go() | words.Stay() if self.parent == "new":
                return Gone(held=HELD, after=7)
            case words.Go():
                if self.off:
                    return Stayed(reason="called off")
                assert self.at_new == "expected" and self.at_old == "leaving" and question.addresses == ("new:1",)
                self.parent, self.linked = "new", ""
                return Gone(held=HELD, after=7)
            case words.Stay():
                self.off = True
                return Stayed()
            case words.Where():
                return Gone(held=HELD, after=7) if self.parent == "new" else NotYet()
            case words.Complete():
                if self.counts and self.at_new in ("member", "counted"):
                    self.at_new = "counted"
                    return Yes()
                return NotYet(reason="not here")
            case words.Forget():
                self.at_old = "left"
                return Yes()
            case words.Release():
                if ask.whom == "new" and self.at_new == "expected":
                    self.at_new = ""
                if ask.whom == "old" and self.at_old == "leaving":
                    self.at_old = "member"
                return Yes()
        raise AssertionError(question)

    def arrive(self) -> None:
        """The cluster connects to whom its disk names."""
        self.linked = self.parent
        if self.parent == "new":
            assert self.at_new, "it is let in only where it is expected"
            self.at_new = "member" if self.at_new == "expected" else self.at_new

    def look(self) -> None:
        """The common ancestor sees where the cluster is, and counts when it may."""
        if self.linked == "new":
            self.move = state.seen(self.move)
        if self.move.phase is Phase.ARRIVING and self.move.held is not None and self.linked == "new":
            assert self.parent == "new" and self.move.held == HELD
            self.counts += 1
            self.move = state.counted(self.move, ("app",))

    def ask(self, number: int, fate: str) -> None:
        due = state.asks(self.move, self.move.counted)
        if not due:
            return
        ask = due[number % len(due)]
        if self.move.phase is Phase.GOING:
            self.move = state.telling(self.move)
        if fate == "lost":
            self.move = state.unanswered(self.move, "nobody answers")
            return
        answer = self.answer(ask)
        if fate == "unheard":
            self.move = state.unanswered(self.move, "nobody answers")
            return
        self.move = state.heard(self.move, ask, answer)
        if fate == "twice":
            again = self.answer(ask) if ask.key in {one.key for one in state.asks(self.move)} else answer
            self.move = state.heard(self.move, ask, again)

    def check(self) -> None:
        assert self.counts <= 1
        if self.move.phase is Phase.UNDONE:
            assert self.parent == "old" and not self.counts
        if self.move.phase is Phase.DONE:
            assert self.parent == "new" and self.counts == 1


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "arrive", "look", "call off", "restart"]), st.integers(0, 5),
              st.sampled_from(["", "", "lost", "unheard", "twice"])),
    max_size=40,
)  # fmt: skip


@settings(max_examples=500)
@given(STEPS, st.sampled_from(["", "", "", "way-out", "way-in", "old", "new", "edge"]))
def test_a_move_ends_in_exactly_one_parent(steps: list[tuple[str, int, str]], refusing: str) -> None:
    world = World(refusing)
    for what, number, fate in steps:
        match what:
            case "ask":
                world.ask(number, fate)
            case "arrive":
                world.arrive()
            case "look":
                world.look()
            case "call off":
                world.move = state.call_off(world.move, "called off")
            case "restart":  # what is on the disk is what there was
                world.move = msgspec.json.decode(msgspec.json.encode(world.move), type=Move)
        world.check()
    for number in range(60):
        world.arrive()
        world.look()
        world.ask(number, "")
        world.check()
    assert not world.move.active, world.move
    if world.move.phase is Phase.DONE:
        assert (world.parent, world.at_new, world.at_old, world.counts) == ("new", "counted", "left", 1)
    else:
        assert (world.parent, world.at_new, world.at_old, world.counts) == ("old", "", "member", 0)
        assert world.move.reason


def test_nobody_is_told_to_go_before_all_have_agreed() -> None:
    one = move()
    asked = {ask.whom for ask in state.asks(one)}
    assert asked == {"way-out", "old", "way-in", "new"}
    for ask in state.asks(one):
        assert one.phase is Phase.ASKING
        one = state.heard(one, ask, Yes(addresses=("new:1",) if ask.whom == "new" else ()))
    assert [(ask.whom, type(ask.question)) for ask in state.asks(one)] == [("edge", words.Go)]
    assert state.go(one).addresses == ("new:1",)


def test_somebody_out_of_reach_ends_what_has_not_begun() -> None:
    one = move()
    for _ in range(state.ASKING_TRIES):
        one = state.unanswered(one, "way-in does not answer")
    assert one.phase is Phase.UNDOING and one.reason == "way-in does not answer"
    going = move(phase=Phase.GOING, told=True)
    for _ in range(3 * state.ASKING_TRIES):
        going = state.unanswered(going, "edge does not answer")
    assert going.phase is Phase.GOING  # it may have gone: only its own word ends it


def test_a_rehearsal_changes_nothing_and_asks_the_same() -> None:
    asks = state.rehearsal(move(addresses=("new:1",)))
    assert {ask.whom for ask in asks} == {"way-out", "old", "way-in", "new", "edge"}
    assert all(getattr(ask.question, "dry_run", True) for ask in asks)


def test_words_are_read_as_they_were_written() -> None:
    for ask in (*state.rehearsal(move()), Ask("edge", words.Where(move="m", parent="new"))):
        assert words.question(words.encode(ask.question)) == ask.question
    assert words.answer(words.encode(Gone(held=HELD, after=7))) == Gone(held=HELD, after=7)


def test_an_answer_to_what_is_not_asked_changes_nothing() -> None:
    one = move(phase=Phase.CLOSING, counted=("app",))
    assert state.heard(one, Ask("edge", state.go(one)), Gone(held={}, after=9)) is one
    assert state.call_off(one, "too late") is one
    forget = next(ask for ask in state.asks(one) if ask.whom == "old")
    assert state.heard(one, forget, NotYet(reason="it waits")).reason == "it waits"
