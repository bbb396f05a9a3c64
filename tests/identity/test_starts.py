"""Copies and restarts, played: data folders are copied, restored, started and stopped in any order."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cluster_controller.identity import starts
from cluster_controller.identity.starts import Decision, Record

ids = st.text("abcdef", min_size=1, max_size=4)


@given(ids, st.lists(ids, min_size=1, max_size=5), st.booleans())
def test_the_first_connection_of_a_cluster_is_admitted(start: str, listed: list[str], live: bool) -> None:
    assert starts.decide(Record(), listed, live) is (Decision.SUPERSEDE if live else Decision.ADMIT)


@given(st.lists(ids, min_size=1, max_size=200, unique=True))
def test_the_list_is_bounded_and_keeps_its_ends(many: list[str]) -> None:
    listed: tuple[str, ...] = ()
    for one in many:
        listed = starts.begin(listed, one)
    assert len(listed) <= starts.MAX_STARTS
    assert listed[0] == many[0] and listed[-1] == many[-1]


@given(st.lists(ids, min_size=1, max_size=20, unique=True), ids)
def test_an_acknowledged_start_begins_the_list(many: list[str], other: str) -> None:
    for at, one in enumerate(many):
        assert starts.acknowledged(many, one) == tuple(many[at:])
    if other not in many:
        assert starts.acknowledged(many, other) == tuple(many)


@dataclass
class Folder:
    """A data folder and, while it runs, its process."""

    listed: tuple[str, ...] = ()
    running: str = ""
    lineage: int = 0
    started: list[str] = field(default_factory=list)


class OneTree(RuleBasedStateMachine):
    """A parent and any number of copies of one child's data folder."""

    folders = Bundle("folders")

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()
        self.live: Folder | None = None
        self.held: list[str] = []
        self.counter = 0
        self.first = True
        self.copied = False

    @rule(target=folders)
    def make(self) -> object:
        if self.first:
            self.first = False
            return Folder()
        return multiple()

    @rule(target=folders, folder=folders)
    def copy(self, folder: Folder) -> Folder:
        self.copied = True
        return Folder(folder.listed)

    @rule(folder=folders)
    def start(self, folder: Folder) -> None:
        if self.live is folder:
            self.live = None
        self.counter += 1
        folder.running = f"s{self.counter}"
        folder.listed = starts.begin(folder.listed, folder.running)
        folder.started.append(folder.running)

    @rule(folder=folders)
    def stop(self, folder: Folder) -> None:
        folder.running = ""
        if self.live is folder:
            self.live = None

    @rule(folder=folders, answers=st.booleans())
    def connect(self, folder: Folder, answers: bool) -> None:
        if not folder.running:
            return
        decision = starts.decide(self.record, folder.listed, self.live is not None)
        if decision is Decision.PROBE:
            assert self.live is not None and self.live is not folder, "one's own folder is never taken for a copy"
            decision = starts.after_probe(answers)
        if decision in (Decision.HOLD, Decision.EXCLUDED):
            assert self.copied, "nobody is held who was never copied"
            if decision is Decision.HOLD and folder.running not in self.held:
                self.held.append(folder.running)
            return
        if decision is Decision.FULL_RESYNC:
            assert self.copied
        self.record = starts.admitted(self.record, folder.listed)
        self.live = folder
        folder.listed = starts.acknowledged(folder.listed, self.record.start)

    @rule(folder=folders)
    def keep(self, folder: Folder) -> None:
        """A person may keep what is connected or held."""
        if not folder.running or folder.running not in (self.record.start, *self.held):
            return
        self.record = starts.keep(self.record, folder.running, [self.record.start, *self.held])
        self.held = []
        if self.live is not None and self.live is not folder:
            self.live = None
        decision = starts.decide(self.record, folder.listed, self.live is not None)
        assert decision in (Decision.ADMIT, Decision.SUPERSEDE), "whoever is kept comes in"

    @rule(folder=consumes(folders))
    def delete(self, folder: Folder) -> None:
        if self.live is folder:
            self.live = None

    @invariant()
    def bounded(self) -> None:
        assert len(self.record.excluded) <= starts.MAX_EXCLUDED


TestOneTree = OneTree.TestCase
TestOneTree.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_two_copies_at_once_the_second_is_held_whoever_it_is() -> None:
    record = starts.admitted(Record(), ("s1",))
    first, second = ("s1", "s2"), ("s1", "s3")
    assert starts.decide(record, first, live=False) is Decision.ADMIT
    record = starts.admitted(record, first)
    assert starts.decide(record, second, live=True) is Decision.PROBE
    assert starts.after_probe(answered=True) is Decision.HOLD
    assert starts.after_probe(answered=False) is Decision.FULL_RESYNC
    assert starts.decide(record, second, live=False) is Decision.FULL_RESYNC


def test_who_was_decided_against_stays_out_and_who_was_kept_comes_in() -> None:
    record = starts.keep(Record("s2"), "s3", ["s2"])
    assert starts.decide(record, ("s1", "s2", "s9"), live=False) is Decision.EXCLUDED
    assert starts.decide(record, ("s1", "s3"), live=False) is Decision.ADMIT
    back = starts.keep(record, "s2", ["s3"])
    assert starts.decide(back, ("s1", "s2"), live=False) is Decision.ADMIT
