"""Waves, step by step and at random: order, pauses, people, health, and what a failure leaves alone."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.resources.kinds import Component, LabelSelector, Rollout, Wave
from cluster_controller.rollout.revision import Version
from cluster_controller.rollout.waves import LATE, RETURN_SECONDS, ROLLED_BACK, Member, State, Step, Watch, assign, begin, step

OLD = Version(revision="old", components=[Component(name="serve", command=["old"])], references=[])
NEW = Version(revision="new", components=[Component(name="serve", command=["new"])], references=[])
NEWER = Version(revision="newer", components=[Component(name="serve", command=["newer"])], references=[])


class Field:
    """Targets that are told what a rollout says; how they are is up to the test."""

    def __init__(self, rollout: Rollout, names: list[str], **labels: Mapping[str, str]) -> None:
        self.rollout = rollout
        self.state = State(current=OLD, phase="Complete")
        self.members = {name: Member(uid=name, name=name, revision="old", verdict="done", labels=(labels.get(name, {}),)) for name in names}
        self.watch = Watch()
        self.now = 1000.0
        self.resume = ""

    def put(self, version: Version) -> None:
        self.state = begin(self.state, version, None, first=False)

    def turn(self, name: str, **fields: Any) -> None:
        self.members[name] = msgspec.structs.replace(self.members[name], **fields)

    def look(self, seconds: float = 0.0) -> Step:
        """One settling: whoever is due is told, and has not answered yet."""
        self.now += seconds
        found = step(self.state, self.watch, self.rollout, list(self.members.values()), resume=self.resume, now=self.now, wanted=True)
        self.state, self.watch = found.state, found.watch
        for name in sorted(found.due):
            if self.members[name].revision != self.state.current.revision:
                self.turn(name, revision=self.state.current.revision, verdict="going")
        return found

    def well(self, *names: str) -> None:
        for name in names:
            self.turn(name, verdict="done")

    def has(self, version: str) -> set[str]:
        return {name for name, member in self.members.items() if member.revision == version}


def sizes(rollout: Rollout, count: int) -> list[int]:
    members = [Member(uid=f"{number:02}", name=f"{number:02}") for number in range(count)]
    return [len(wave) for wave in assign(rollout, members, "new")]


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        (Rollout(), [7]),
        (Rollout(wave=1), [1] * 7),
        (Rollout(wave=3), [3, 3, 1]),
        (Rollout(waves=[Wave(count=2)]), [2, 5]),
        (Rollout(waves=[Wave(count=2)], wave=4), [2, 4, 1]),
        (Rollout(waves=[Wave(percent=10), Wave(percent=50)]), [1, 4, 2]),
        (Rollout(waves=[Wave(percent=100)]), [7]),
        (Rollout(waves=[Wave(count=9), Wave(count=1)]), [7, 0]),
    ],
)
def test_waves_by_count_and_percent(rollout: Rollout, expected: list[int]) -> None:
    assert sizes(rollout, 7) == expected


def test_nobody_is_one_wave_of_nobody() -> None:
    assert sizes(Rollout(wave=2), 0) == [0]


def test_a_wave_by_label_takes_a_branch_in_which_any_cluster_has_it() -> None:
    selector = LabelSelector(match_labels={"canary": "true"})
    members = [
        Member(uid="a", name="a", labels=({}, {"tier": "edge"})),
        Member(uid="b", name="b", labels=({}, {"canary": "true"})),
        Member(uid="c", name="c"),
    ]
    waves = assign(Rollout(waves=[Wave(cluster_selector=selector)], wave=1), members, "new")
    assert [[member.name for member in wave] for wave in waves] == [["b"], ["a"], ["c"]]


def test_wave_by_wave_each_only_when_all_before_are_well() -> None:
    field = Field(Rollout(wave=1), ["a", "b", "c"])
    field.put(NEW)
    for done, nxt in (((), "a"), (("a",), "b"), (("a", "b"), "c")):
        field.well(*done)
        field.look()
        assert field.has("new") == {*done, nxt}
        assert field.look().status.phase == "Progressing"
        assert field.has("new") == {*done, nxt}, "looking twice changes nothing"
    field.well("a", "b", "c")
    assert field.look().status.phase == "Complete"
    assert field.state.current == NEW
    assert field.state.stable == OLD


def test_the_next_wave_waits_while_an_earlier_one_is_not_well_any_more() -> None:
    field = Field(Rollout(wave=1), ["a", "b", "c"])
    field.put(NEW)
    field.look()
    field.well("a")
    field.look()
    field.well("b")
    field.turn("a", verdict="going", message="1 of 2 ready")
    found = field.look()
    assert field.has("new") == {"a", "b"}
    assert found.status.message == "wave 2 of 3: waits for a (1 of 2 ready)"


def test_a_pause_counts_from_when_the_wave_is_well_and_begins_anew_when_it_is_not() -> None:
    field = Field(Rollout(wave=1, pause_seconds=10), ["a", "b"])
    field.put(NEW)
    field.look()
    field.well("a")
    found = field.look(100)
    assert (found.again, found.status.reason) == (10, "Pausing")
    field.turn("a", verdict="going")
    field.look(5)
    field.well("a")
    assert field.look(5).again == 10
    assert field.look(9).again == 1
    assert field.has("new") == {"a"}
    field.look(1)
    assert field.has("new") == {"a", "b"}


def test_a_pause_goes_on_after_a_reboot_from_what_is_certain() -> None:
    field = Field(Rollout(wave=1, pause_seconds=10), ["a", "b"])
    field.put(NEW)
    field.look()
    field.well("a")
    field.look()
    field.now = 4.0  # the machine has started anew
    assert field.look().again == 6
    field.look(6)
    assert field.has("new") == {"a", "b"}


def test_the_last_wave_is_followed_by_no_pause() -> None:
    field = Field(Rollout(pause_seconds=10), ["a"])
    field.put(NEW)
    field.look()
    field.well("a")
    assert field.look().status.phase == "Complete"


def test_a_manual_wave_waits_for_a_person_each_time() -> None:
    field = Field(Rollout(waves=[Wave(count=1, manual=True), Wave(count=1, manual=True)]), ["a", "b", "c"])
    field.put(NEW)
    field.look()
    field.well("a")
    assert (field.look().status.phase, field.has("new")) == ("Paused", {"a"})
    assert field.look(10**6).again is None
    field.resume = "go"
    field.look()
    field.well("b")
    assert (field.look().status.reason, field.has("new")) == ("Manual", {"a", "b"})
    field.resume = "go on"
    field.look()
    assert field.has("new") == {"a", "b", "c"}


def test_paused_tells_nobody_further_and_its_time_is_nobodys_delay() -> None:
    field = Field(Rollout(wave=1, progress_deadline_seconds=60), ["a", "b"])
    field.put(NEW)
    field.look()
    field.look()
    going, paused = field.rollout, msgspec.structs.replace(field.rollout, paused=True)
    field.rollout = paused
    assert field.look(10**6).status.phase == "Paused"
    field.well("a")
    assert (field.look().status.phase, field.has("new")) == ("Paused", {"a"})
    field.turn("a", verdict="going")
    field.rollout = going
    assert field.look().status.phase == "Progressing"
    field.well("a")
    field.look()
    assert field.has("new") == {"a", "b"}


def test_who_has_it_keeps_its_place_when_others_come_back() -> None:
    field = Field(Rollout(wave=1), ["a", "b", "c"])
    field.turn("a", reachable=False)
    field.put(NEW)
    field.look()
    field.turn("a", reachable=True)
    field.look()
    assert field.has("new") == {"b"}, "one at a time"


def test_who_comes_back_after_a_failure_is_not_told() -> None:
    field = Field(Rollout(wave=2), ["a", "b", "c"])
    for name in ("b", "c"):
        field.turn(name, reachable=False)
    field.put(NEW)
    field.look()
    field.turn("a", verdict="failed")
    field.look()
    for name in ("b", "c"):
        field.turn(name, reachable=True)
    field.look()
    assert field.has("new") == {"a"}


def test_paused_from_the_beginning_nobody_is_told() -> None:
    field = Field(Rollout(paused=True), ["a", "b"])
    field.put(NEW)
    field.look()
    assert field.has("new") == set()


def test_a_wave_that_does_not_get_ready_fails_after_its_time_and_stops_everything() -> None:
    field = Field(Rollout(wave=1, progress_deadline_seconds=60), ["a", "b"])
    field.put(NEW)
    field.look()
    assert field.look().again == 60
    field.turn("a", ready=1)
    assert field.look(50).again == 60, "that was progress"
    field.turn("a", ready=0, message="serve: 0 of 2 ready")
    assert field.look(30).again == 30, "that was none"
    found = field.look(30)
    assert (found.status.phase, found.status.reason, found.again) == ("Failed", LATE, None)
    assert found.status.message == "wave 1 of 2 failed: not ready after 60 s: a (serve: 0 of 2 ready)"
    field.well("a")
    assert field.look().status.phase == "Failed", "a person decides"
    assert field.has("new") == {"a"}


def test_what_ends_again_and_again_fails_at_once_but_not_after_a_person_said_to_go_on() -> None:
    field = Field(Rollout(wave=1, progress_deadline_seconds=60), ["a", "b"])
    field.put(NEW)
    field.look()
    field.turn("a", verdict="failed", reason="CrashLoopBackOff", message="serve: it ended")
    found = field.look()
    assert (found.status.reason, found.status.message) == ("CrashLoopBackOff", "wave 1 of 2 failed: a (serve: it ended)")
    field.resume = "again"
    assert field.look().status.phase == "Progressing"
    assert field.look(59).status.phase == "Progressing"
    assert field.look(1).status.reason == LATE


def test_a_controller_that_judges_itself_is_waited_for_without_a_deadline() -> None:
    field = Field(Rollout(wave=1, progress_deadline_seconds=60), ["a", "b"])
    field.put(NEW)
    field.look()
    field.turn("a", verdict="judging")
    found = field.look(10**6)
    assert (found.status.phase, found.again) == ("Progressing", None)
    field.turn("a", verdict="asking", message="wave 1 of 2 is well")
    found = field.look(10**6)
    assert (found.status.phase, found.status.reason) == ("Paused", "AsksBelow")
    assert found.status.message == "wave 1 of 2: a (wave 1 of 2 is well)"


def test_who_is_out_of_reach_is_skipped_listed_and_follows_when_back() -> None:
    field = Field(Rollout(wave=1), ["a", "b", "c"])
    field.turn("a", reachable=False)
    field.put(NEW)
    field.look()
    assert field.has("new") == {"b"}
    field.well("b")
    field.look()
    field.well("c")
    found = field.look()
    assert (found.status.phase, found.status.skipped, field.has("new")) == ("Complete", ["a"], {"b", "c"})
    field.turn("a", reachable=True)
    field.look()
    assert field.has("new") == {"a", "b", "c"}


def test_one_that_falls_silent_after_it_was_told_is_not_waited_for_longer_than_a_link_needs_to_return() -> None:
    field = Field(Rollout(wave=1), ["a", "b"])
    field.put(NEW)
    field.look()
    field.turn("a", reachable=False)
    field.look()
    field.look(RETURN_SECONDS)
    assert field.has("new") == {"a", "b"}
    assert field.look().status.phase == "Progressing", "nobody in reach has shown that it is good"
    field.well("b")
    found = field.look()
    assert (found.status.phase, found.status.skipped) == ("Complete", ["a"])
    assert "a" in found.due, "it keeps what it was told"


def test_nobody_in_reach_proves_nothing() -> None:
    field = Field(Rollout(waves=[Wave(cluster_selector=LabelSelector(match_labels={"canary": "true"}))]), ["a", "b"], a={"canary": "true"})
    field.turn("a", reachable=False)
    field.put(NEW)
    found = field.look(10**6)
    assert (field.has("new"), found.status.phase, found.again) == (set(), "Progressing", None)
    assert found.status.message == "wave 1 of 2: nobody in reach has it yet; out of reach: a"


def test_a_wave_that_takes_nobody_is_passed_over() -> None:
    field = Field(Rollout(waves=[Wave(cluster_selector=LabelSelector(match_labels={"canary": "true"}), manual=True)]), ["a", "b"])
    field.put(NEW)
    field.look()
    field.look()
    assert field.has("new") == {"a", "b"}


def test_what_fails_after_the_end_is_told_and_stops_nothing() -> None:
    field = Field(Rollout(wave=1), ["a", "b"])
    field.turn("b", reachable=False)
    field.put(NEW)
    field.look()
    field.well("a")
    field.look()
    field.turn("b", reachable=True)
    field.look()
    field.turn("b", verdict="failed", message="serve: it ended")
    found = field.look()
    assert (found.status.phase, found.due) == ("Complete", {"a", "b"})
    assert found.status.message == "every cluster in reach runs this version; failed since: b (serve: it ended)"


def test_the_first_version_goes_to_all_at_once_and_so_does_the_way_back() -> None:
    field = Field(Rollout(wave=1), ["a", "b", "c"])
    for name in field.members:
        field.turn(name, revision="")
    field.state = begin(None, OLD, None, first=True)
    assert field.look().due == {"a", "b", "c"}
    assert field.look().status.waves == 1
    field.well("a", "b", "c")
    assert field.look().status.phase == "Complete"
    field.put(NEW)
    field.look()
    field.turn("a", verdict="failed", reason="CrashLoopBackOff")
    field.look()
    field.state = msgspec.structs.replace(field.state, reason=ROLLED_BACK, message="rolled back: wave 1 failed")
    field.put(OLD)
    found = field.look()
    assert found.due == {"a", "b", "c"}
    assert found.passed_on.wave == 0
    field.well("a")
    found = field.look()
    assert (found.status.phase, found.status.reason, found.status.message) == ("Complete", ROLLED_BACK, "rolled back: wave 1 failed")
    field.put(NEWER)
    assert (field.state.stable, field.state.reason) == (OLD, "")


def test_the_first_version_and_the_way_back_are_for_those_out_of_reach_too() -> None:
    field = Field(Rollout(wave=1), ["a", "b"])
    for name in field.members:
        field.turn(name, revision="", reachable=name == "b")
    field.state = begin(None, OLD, None, first=True)
    field.look()
    assert field.has("old") == {"a", "b"}, "others may carry what is below it, and nobody else holds its part"
    field.well("b")
    assert (found := field.look()).status.phase == "Complete"
    assert found.status.skipped == ["a"], "told, but nobody has heard that it runs there"
    field.turn("a", revision="new")
    field.state = begin(State(current=NEW, stable=OLD, reason=ROLLED_BACK), OLD, None, first=False)
    assert field.look().due == {"a", "b"}


def test_who_has_nothing_and_is_out_of_reach_is_told_what_is_complete_and_no_more() -> None:
    field = Field(Rollout(wave=1), ["a", "b"])
    field.put(NEW)
    field.look()
    field.members["c"] = Member(uid="c", name="c", labels=({},), reachable=False)
    field.look()
    assert field.has("new") == {"a"}, "its waves are under way"
    field.well("a")
    field.look()
    field.well("b")
    assert field.look().status.phase == "Complete"
    assert field.has("new") == {"a", "b", "c"}


def test_a_version_that_never_was_complete_is_none_to_go_back_to() -> None:
    field = Field(Rollout(wave=1), ["a", "b"])
    field.put(NEW)
    field.look()
    field.put(NEWER)
    assert field.state.stable == OLD
    field.look()
    assert field.has("newer") == {"a"}
    assert field.has("old") == {"b"}


def test_without_a_state_what_runs_is_what_one_goes_back_to() -> None:
    state = begin(None, NEW, OLD, first=False)
    assert (state.stable, state.at_once) == (OLD, False)


def test_nobody_running_it_is_no_success_while_replicas_are_wanted() -> None:
    state = begin(None, NEW, None, first=True)
    for wanted, phase in ((True, "Progressing"), (False, "Complete")):
        assert step(state, Watch(), Rollout(), [], resume="", now=1.0, wanted=wanted).status.phase == phase


def test_what_many_levels_say_is_cut() -> None:
    field = Field(Rollout(), ["a", "b", "c", "d"])
    field.put(NEW)
    field.look()
    for name in field.members:
        field.turn(name, message="x" * 10_000)
    assert 1000 < len(field.look().status.message) <= 1024
    field.turn("a", verdict="failed")
    assert 400 < len(field.look().status.message) < 500


def test_a_long_list_is_cut() -> None:
    field = Field(Rollout(), [f"c{number:02}" for number in range(30)])
    for name in list(field.members)[:25]:
        field.turn(name, reachable=False)
    field.put(NEW)
    found = field.look()
    assert len(found.status.skipped) == 20
    assert found.status.message.endswith("out of reach: c00, c01, c02, c03, c04 and 20 more")


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["well", "sick", "crash", "cut", "back", "wait", "pause", "go", "resume", "version", "join"]), st.integers(0, 7)
    ),
    max_size=60,
)
ROLLOUTS = st.builds(
    Rollout,
    waves=st.lists(
        st.one_of(
            st.builds(Wave, count=st.integers(1, 3), manual=st.booleans()), st.builds(Wave, percent=st.integers(1, 100)),
            st.builds(Wave, cluster_selector=st.just(LabelSelector(match_labels={"odd": "yes"})), pause_seconds=st.integers(0, 5)),
        ),
        max_size=3,
    ),
    wave=st.integers(0, 3),
    pause_seconds=st.integers(0, 5),
    progress_deadline_seconds=st.just(30),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(ROLLOUTS, ACTIONS)
def test_whatever_happens_nobody_is_told_too_early_and_in_the_end_all_have_it(rollout: Rollout, actions: list[tuple[str, int]]) -> None:
    names = [f"m{number}" for number in range(8)]
    field = Field(rollout, names[:6], **{name: {"odd": "yes"} for name in names[1::2]})
    field.put(NEW)
    for number, (what, which) in enumerate(actions):
        name = names[which] if names[which] in field.members else names[0]
        match what:
            case "well" | "sick" if field.members[name].revision == field.state.current.revision:
                field.turn(name, verdict="done" if what == "well" else "going")
            case "crash" if field.members[name].revision == field.state.current.revision:
                field.turn(name, verdict="failed")
            case "cut" | "back":
                field.turn(name, reachable=what == "back")
            case "pause" | "go":
                field.rollout = msgspec.structs.replace(field.rollout, paused=what == "pause")
            case "resume":
                field.resume = str(number)
            case "version":
                field.put(msgspec.structs.replace(NEW, revision=f"v{number}"))
            case "join" if len(field.members) < len(names):
                name = names[len(field.members)]
                field.members[name] = Member(uid=name, name=name, labels=({},))
        had = field.has(field.state.current.revision)
        having = {member.name for member in field.members.values() if member.revision}
        sick = {
            member.name for member in field.members.values()
            if member.name in had and member.reachable and member.verdict != "done"
        }  # fmt: skip
        was = field.state
        found = field.look(1.0 if what == "wait" else 0.0)
        fresh = field.has(field.state.current.revision) - had
        away = {each for each in fresh if not field.members[each].reachable}
        assert not away or field.state.at_once or (field.state.phase == "Complete" and not away & having), "out of reach, and told"
        if field.rollout.paused or field.state.phase == "Failed":
            assert not fresh, "stopped, and told"
        if sick and was.current == field.state.current and not was.at_once and was.phase == "Progressing" and field.state.wave > was.wave:
            raise AssertionError(f"{sick} are not well, and the next wave has begun")
        assert field.look().state == found.state, "looking twice is no step"
        assert had <= set(found.due), "whoever has it keeps it"
    field.rollout = msgspec.structs.replace(field.rollout, paused=False)
    for name in field.members:
        field.turn(name, reachable=True)
    for number in range(60):
        field.well(*field.has(field.state.current.revision))
        field.resume = f"end {number}"
        if field.look(10.0).status.phase == "Complete" and field.has(field.state.current.revision) == set(field.members):
            return
    raise AssertionError(f"it never ends: {field.state}")


def test_who_was_told_and_fell_silent_before_it_was_well_is_waited_for_before_others_are_told() -> None:
    """A controller that has just begun hears nobody at first: it does not tell those who come first what is still to be proven."""
    field = Field(Rollout(wave=2), ["a", "b", "c", "d"])
    field.put(NEW)
    field.look()
    assert field.has("new") == {"a", "b"}
    for name in ("a", "b"):
        field.turn(name, reachable=False)
    field.watch = Watch()  # it was restarted
    found = field.look()
    assert field.has("new") == {"a", "b"}
    assert found.again == RETURN_SECONDS
    field.look(RETURN_SECONDS / 2)
    assert field.has("new") == {"a", "b"}
    field.turn("a", reachable=True)
    field.look(RETURN_SECONDS)
    assert field.has("new") == {"a", "b"}, "it is back, and not well yet"
    field.well("a")
    field.look()
    assert field.has("new") == {"a", "b", "c", "d"}, "it is well; who is still away is skipped"
