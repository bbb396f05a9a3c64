"""The course: whom a controller dials, over days of virtual time with parents that come and go."""

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.tunnel.course import FOR_EVER, Course, Dial, Parent, Probe, Timing, Wait

HOME, A, B = Parent("home", "home", ("h:1",)), Parent("a", "a", ("a:1",)), Parent("b", "b", ("b:1",))
TIMING = Timing()


class World:
    """Parents that are up, refuse, or are silent, and a course that is carried out against them."""

    def __init__(self, parents: Sequence[Parent] = (HOME, A, B), seed: int = 1) -> None:
        self.course = Course(lambda: parents, TIMING, random.Random(seed).uniform)
        self.now = 100.0
        self.up = {one.uid for one in parents}
        self.frozen: set[str] = set()  # takes a connection and says nothing
        self.busy: dict[str, float] = {}  # refuses, with a wish
        self.holds: float | None = None  # home says that another instance speaks for this cluster, with a wish
        self.dialled: list[tuple[float, str]] = []
        self.arrivals: list[tuple[float, str]] = []

    def step(self) -> None:
        match self.course.next(self.now):
            case Wait(seconds):
                self.now += min(seconds, 1.0) if self.course.at else seconds
            case Probe(parent, seconds):
                self.now += seconds if parent.uid in self.frozen else 0.01
                self.course.probed(parent.uid in self.up, self.now)
            case Dial(parent, seconds):
                self.dialled.append((self.now, parent.uid))
                if parent == HOME and self.holds is not None and parent.uid in self.up:
                    self.course.held(self.now, self.holds)
                elif parent.uid in self.up and parent.uid not in self.busy:
                    self.now += 0.02
                    self.course.arrived(parent.uid, self.now)
                    self.arrivals.append((self.now, parent.uid))
                else:
                    self.now += (seconds or 20.0) if parent.uid in self.frozen else 0.001
                    self.course.failed(self.now, self.busy.get(parent.uid, 0.0))

    def until(self, uid: str, bound: float) -> float:
        """Seconds until that parent has taken us in."""
        began = self.now
        while self.course.at != uid:
            assert self.now - began < bound, self.dialled[-10:]
            self.step()
        return self.now - began

    def settle(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def kill(self, uid: str) -> None:
        self.up.discard(uid)
        if self.course.at == uid:
            self.course.lost(self.now)


@given(st.integers())
def test_a_killed_parent_is_followed_by_an_alternate_within_two_seconds(seed: int) -> None:
    world = World(seed=seed)
    assert world.until("home", 0.1) < 0.1
    world.settle(60)
    world.kill("home")
    assert world.until("a", 2.5) < 2.5
    assert world.course.away and [uid for _, uid in world.dialled].count("b") == 0


@given(st.integers())
def test_a_frozen_parent_costs_one_bounded_attempt(seed: int) -> None:
    world = World(seed=seed)
    world.until("home", 1)
    world.settle(60)
    world.frozen.add("home")
    world.kill("home")
    assert world.until("a", 4) < 4


@given(st.integers())
def test_two_dead_alternates_cost_two_bounded_attempts(seed: int) -> None:
    world = World(seed=seed)
    world.until("home", 1)
    world.settle(60)
    world.frozen |= {"home", "a"}
    world.kill("a")
    world.kill("home")
    assert world.until("b", 6) < 6


@given(st.integers())
def test_a_parent_that_restarts_at_once_keeps_its_child(seed: int) -> None:
    world = World(seed=seed)
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    gone = world.now
    while world.now < gone + 0.4:
        world.step()
    world.up.add("home")
    assert world.until("home", 1.0) < 1.0
    assert {uid for _, uid in world.arrivals} == {"home"}


@given(st.integers())
def test_home_is_returned_to_after_it_answered_for_long_enough(seed: int) -> None:
    world = World(seed=seed)
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    world.until("a", 3)
    world.settle(120)
    assert world.course.at == "a" and world.dialled[-1][1] == "a"  # asked, not dialled
    world.up.add("home")
    answered = world.now
    world.until("home", 60)
    assert world.now - answered >= TIMING.stable
    assert not world.course.away and world.course.next(world.now) == Wait(FOR_EVER)


def test_home_that_flaps_is_waited_for_longer_and_longer() -> None:
    world = World()
    world.until("home", 1)
    world.settle(60)
    waits = []
    for _ in range(4):
        world.kill("home")
        world.until("a", 5)
        world.up.add("home")
        waits.append(world.until("home", 400))
        world.settle(10)
    assert waits[1] >= 2 * TIMING.stable and waits[3] >= 8 * TIMING.stable
    world.settle(TIMING.flap)  # it has held
    world.kill("home")
    world.until("a", 5)
    assert world.course.stable == TIMING.stable


def test_home_that_answers_now_and_then_is_not_returned_to() -> None:
    world = World()
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    world.until("a", 3)
    for _ in range(100):
        world.up ^= {"home"}
        world.settle(6)
    assert world.course.at == "a"


def test_an_adopter_that_dies_is_followed_by_home_first() -> None:
    world = World()
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    world.until("a", 3)
    world.settle(6)
    world.dialled.clear()
    world.up.add("home")
    world.kill("a")
    world.until("home", 1)
    assert [uid for _, uid in world.dialled] == ["home"]


def test_with_everybody_gone_rounds_grow_apart_and_home_comes_first_in_each() -> None:
    world = World()
    world.until("home", 1)
    world.settle(60)
    world.dialled.clear()
    for uid in ("home", "a", "b"):
        world.kill(uid)
    world.settle(600)
    order = [uid for _, uid in world.dialled]
    rest = order[order.index("a") - 1 :]
    assert rest[: len(rest) // 3 * 3] == ["home", "a", "b"] * (len(rest) // 3)
    assert 60 < len(rest) / 3 < 600
    world.up |= {"b"}
    assert world.until("b", TIMING.backoff_cap + 1) <= TIMING.backoff_cap + 1


@given(st.integers(), st.floats(0.1, 30))
def test_a_parent_that_names_a_time_is_not_dialled_before_it(seed: int, wish: float) -> None:
    world = World(seed=seed)
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    world.busy = {"a": wish, "b": wish}
    while [uid for _, uid in world.dialled].count("b") == 0:
        world.step()
    refused = {uid: at for at, uid in world.dialled}
    world.busy = {}
    world.until("a" if refused["a"] + wish <= refused["b"] + wish else "b", 60)
    assert world.now >= refused["a"] + wish
    assert world.now <= refused["b"] + wish + TIMING.backoff_first + 1.0


@settings(max_examples=50)
@given(st.integers(0, 40), st.floats(0, 1), st.floats(0, 1000))
def test_one_parent_is_dialled_with_full_jitter_under_a_cap(failures: int, dice: float, wish: float) -> None:
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        bounds.append(high)
        assert low == 0
        return dice * high

    course = Course(lambda: (Parent(addresses=("h:1",)),), TIMING, uniform)
    now = 0.0
    for _ in range(failures):
        while isinstance(step := course.next(now), Wait):
            now += max(step.seconds, 1e-6)
        assert step == Dial(Parent(addresses=("h:1",)))  # nothing but the tunnel's limits bounds it
        course.failed(now)
        assert course.next(now) == Wait(course._due - now) or course._due == now
        assert course._due - now <= TIMING.backoff_cap
    assert bounds == [min(10.0, 0.25 * 2.0**n) for n in range(failures)]
    now = course._due
    course.failed(now, wish)
    assert min(wish, 60.0) <= course._due - now + 1e-6 <= min(wish, 60.0) + TIMING.backoff_cap + 1e-6


def test_alternates_may_change_between_rounds() -> None:
    parents = [HOME]
    course = Course(lambda: parents, TIMING, lambda low, high: high)
    assert course.next(0.0) == Dial(HOME)
    course.failed(0.0)
    parents.append(A)
    now = course._due
    assert course.next(now) == Dial(HOME, TIMING.attempt * 2)
    course.failed(now)
    assert course.next(now) == Dial(A, TIMING.attempt * 2)
    course.arrived("a", now)
    assert isinstance(course.next(now), Wait) and isinstance(course.next(course._due), Probe)


def test_a_way_home_that_is_refused_leaves_the_child_where_it_is() -> None:
    world = World()
    world.until("home", 1)
    world.settle(60)
    world.kill("home")
    world.until("a", 3)
    world.up.add("home")
    world.busy = {"home": 20.0}
    world.settle(60)
    assert world.course.at == "a"
    dials = [at for at, uid in world.dialled if uid == "home"][-2:]
    assert dials[1] - dials[0] >= 20.0
    world.busy = {}
    world.until("home", 120)


@given(st.integers(), st.sampled_from(["at home", "at an adopter", "new"]))
def test_whom_home_holds_asks_nobody_else_until_home_takes_it_in(seed: int, where: str) -> None:
    world = World(seed=seed)
    if where != "new":
        world.until("home", 1)
        world.settle(60)
    if where == "at an adopter":
        world.kill("home")
        world.until("a", 3)
        world.up.add("home")
    world.holds = 10.0
    while not world.course._held:
        world.kill("home") if world.course.at == "home" else world.step()
        world.up.add("home")
    if world.course.at == "a":
        world.kill("a")  # home has told it that this one is none of its
        world.up.add("a")
    began = len(world.dialled)
    world.settle(120)
    world.kill("home")
    world.settle(120)
    asked = world.dialled[began:]
    assert {uid for _, uid in asked} == {"home"} and world.course.at is None
    assert len(asked) <= 60
    world.up.add("home")
    world.holds = None
    world.until("home", 60)
    world.settle(60)
    world.kill("home")
    world.until("a", 3)
