"""The state machine over in-memory links: any interleaving, any sizes, loss at any message, and what a peer must not do."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_controller.errors import Exhausted, InvalidInput, ProtocolError
from cluster_controller.tunnel.limits import Limits
from cluster_controller.tunnel.messages import (
    CloseCode,
    GoAway,
    Lane,
    Open,
    Reset,
    ResetCode,
    Revocation,
    Revoked,
    Routes,
    Withdrawal,
)
from cluster_controller.tunnel.protocol import codec, frames
from cluster_controller.tunnel.protocol.connection import Connection
from tests.tunnel.memory import Cable, Ear, Node, check, settle

SMALL = Limits(initial_window=4096, max_window=16384, link_budget=65536, max_streams=8, send_buffer=4096)
LANES = [Lane.INTERACTIVE, Lane.SYNC, Lane.BULK]


def pair(limits: Limits = SMALL) -> tuple[Node, Node, Cable]:
    parent, child = Node("parent", limits), Node("child", limits)
    return parent, child, Cable(parent, child)


def tree(limits: Limits = SMALL) -> tuple[list[Node], list[Cable]]:
    """Three hops: a - b - c - d."""
    nodes = [Node(name, limits) for name in "abcd"]
    cables = [Cable(upper, lower) for upper, lower in itertools.pairwise(nodes)]
    for node, cable in zip(nodes[1:], cables[1:], strict=False):
        node.onward = cable.down
    return nodes, cables


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(LANES), st.booleans()),
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 20_000)),
        st.tuples(st.just("read"), st.integers(0, 15), st.integers(1, 9_000)),
        st.tuples(st.just("end"), st.integers(0, 15), st.just(0)),
        st.tuples(st.just("send"), st.integers(0, 5), st.integers(0, 65_000)),
        st.tuples(st.just("deliver"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("time"), st.integers(0, 3), st.just(0)),
    ),
    max_size=120,
)


class Play:
    """Carries out hypothesis' actions over a chain of nodes and remembers every stream."""

    def __init__(self, nodes: list[Node], cables: list[Cable]) -> None:
        self.nodes, self.cables = nodes, cables
        self.first, self.last = nodes[0], nodes[-1]
        self.near: list[Ear] = []
        self.tags: list[bytes] = []

    def ears(self) -> list[Ear]:
        return [*self.near, *(self.last.ears[tag] for tag in self.tags if tag in self.last.ears)]

    def act(self, name: str, one: int, two: int) -> None:
        ears = self.ears()
        if name == "open" and len(self.near) < 8:
            tag = b"%d" % len(self.near)
            self.tags.append(tag)
            self.near.append(self.first.open(self.cables[0].down, self.last.name, tag, Lane(one)))
        elif name == "write" and ears:
            ear = ears[one % len(ears)]
            ear.write(bytes((len(ear.sent) + i) % 251 for i in range(two)))
        elif name == "read" and ears:
            ears[one % len(ears)].read(two)
        elif name == "end" and ears:
            ears[one % len(ears)].end()
        elif name == "time":
            for cable in self.cables:
                cable.now += (0.0001, 0.01, 0.5, 3.0)[one]
        elif name in ("send", "deliver"):
            cable = self.cables[one // 2 % len(self.cables)]
            connection = cable.down if one & 1 else cable.up
            if name == "send":
                cable.send(connection, two)
            else:
                cable.deliver(connection)
        for cable in self.cables:
            check(cable.down)
            check(cable.up)

    def finish(self) -> None:
        settle(self.cables, self.ears())
        for ear in self.ears():
            ear.end()
        settle(self.cables, self.ears())


@settings(deadline=None)
@given(ACTIONS)
def test_every_byte_arrives_once_and_in_order_whatever_the_interleaving(actions: list[tuple[str, int, int]]) -> None:
    parent, child, cable = pair()
    play = Play([parent, child], [cable])
    for action in actions:
        play.act(*action)
    play.finish()
    for tag, near in zip(play.tags, play.near, strict=True):
        far = child.ears[tag]
        assert (near.reset, far.reset) == (None, None)
        assert bytes(far.received) == bytes(near.sent)
        assert bytes(near.received) == bytes(far.sent)
    for connection in (cable.down, cable.up):
        assert not connection.streams
        assert connection._budget == SMALL.link_budget


@settings(deadline=None)
@given(ACTIONS)
def test_three_hops_relay_every_byte_once_and_in_order(actions: list[tuple[str, int, int]]) -> None:
    nodes, cables = tree()
    play = Play(nodes, cables)
    for action in actions:
        play.act(*action)
    play.finish()
    for tag, near in zip(play.tags, play.near, strict=True):
        far = nodes[-1].ears[tag]
        assert (near.reset, far.reset) == (None, None)
        assert bytes(far.received) == bytes(near.sent)
        assert bytes(near.received) == bytes(far.sent)
    assert not any(connection.streams for cable in cables for connection in (cable.down, cable.up))


@settings(deadline=None)
@given(ACTIONS, st.integers(0, 119), st.integers(0, 2))
def test_a_link_lost_at_any_point_ends_what_it_carried_and_nothing_doubles(
    actions: list[tuple[str, int, int]], moment: int, which: int
) -> None:
    nodes, cables = tree()
    play = Play(nodes, cables)
    for step, action in enumerate(actions):
        if step == moment:
            cables[which].lose()
        if not (action[0] == "open" and cables[0].cut):
            play.act(*action)
    cables[which].lose()
    settle(cables, play.ears())
    for tag, near in zip(play.tags, play.near, strict=True):
        far = nodes[-1].ears.get(tag)
        if far is None:
            assert near.reset is not None
            continue
        assert bytes(near.sent).startswith(bytes(far.received))
        assert bytes(far.sent).startswith(bytes(near.received))
        assert near.state.forgotten or near.reset or not cables[0].cut
    for cable in cables:
        for connection in (cable.down, cable.up):
            assert not [stream for stream in connection.streams.values() if stream.onward is None and stream.handle is None]


def test_a_relay_decodes_nothing_once_the_stream_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hops carry bytes that are no message of anything, with every decoder and encoder out of order."""
    nodes, cables = tree()
    near = nodes[0].open(cables[0].down, "d", b"tag", Lane.INTERACTIVE)
    settle(cables, [])
    far = nodes[-1].ears[b"tag"]

    def broken(*_: object) -> object:
        raise AssertionError("a relay looked into what it carries")

    for name in ("decode_payload", "decode_control", "encode_payload", "encode_control"):
        monkeypatch.setattr(codec, name, broken)
    payload = bytes(range(256)) * 200
    while len(near.sent) < len(payload) or len(far.sent) < len(payload):
        for ear in (near, far):
            ear.write(payload[len(ear.sent) :])
        settle(cables, [near, far])
    near.end()
    far.end()
    settle(cables, [near, far])
    assert bytes(near.received) == bytes(far.received) == payload
    assert all(connection.stats.relayed for cable in cables[:-1] for connection in (cable.up,))
    assert not any(connection.streams for cable in cables for connection in (cable.down, cable.up))


def test_a_stalled_reader_stops_its_own_stream_and_nothing_else() -> None:
    nodes, cables = tree()
    stalled = [nodes[0].open(cables[0].down, "d", b"stalled%d" % i, Lane.BULK) for i in range(6)]
    moving = nodes[0].open(cables[0].down, "d", b"moving", Lane.SYNC)
    payload = bytes(range(256)) * 8
    for _ in range(300):
        for ear in stalled:
            ear.write(payload)
        moving.write(payload)
        for cable in cables:
            cable.pump()
            check(cable.down)
            check(cable.up)
        if b"moving" in nodes[-1].ears:
            nodes[-1].ears[b"moving"].read(1 << 20)
    settle(cables, [nodes[-1].ears[b"moving"]])
    far = nodes[-1].ears[b"moving"]
    assert bytes(far.received) == bytes(moving.sent)
    assert len(moving.sent) > 200_000
    for ear in stalled:
        hops = 3
        assert len(ear.sent) <= hops * SMALL.max_window + SMALL.send_buffer
        assert ear.write(payload) == 0


def test_the_lanes_keep_their_shares_when_all_have_more_than_fits() -> None:
    parent, child, cable = pair(Limits())
    ears = {lane: parent.open(cable.down, "child", lane.name.encode(), lane) for lane in LANES}
    taken = dict.fromkeys(LANES, 0)
    for _ in range(400):
        for ear in ears.values():
            ear.write(b"x" * 65536)
        cable.send(cable.down)
        cable.deliver(cable.down)
        for lane in LANES:
            if lane.name.encode() in child.ears:
                taken[lane] += child.ears[lane.name.encode()].read(1 << 20)
        cable.send(cable.up)
        cable.deliver(cable.up)
    total = sum(taken.values())
    assert taken[Lane.INTERACTIVE] > taken[Lane.SYNC] > taken[Lane.BULK]
    assert taken[Lane.SYNC] > 0.2 * total
    assert taken[Lane.BULK] > 0.06 * total


def test_what_is_urgent_is_in_the_next_message_however_much_bulk_waits() -> None:
    parent, _child, cable = pair(Limits())
    bulk = parent.open(cable.down, "child", b"bulk", Lane.BULK)
    for _ in range(20):
        bulk.write(b"x" * 65536)
        cable.send(cable.down)
    urgent = parent.open(cable.down, "child", b"urgent", Lane.INTERACTIVE)
    urgent.write(b"ping")
    cable.send(cable.down)
    last = cable.under_way[cable.down][-1]
    assert b"ping" in last


def test_no_bulk_leaves_when_its_bound_is_spent_but_everything_else_does() -> None:
    parent, _child, cable = pair(Limits())
    bulk = parent.open(cable.down, "child", b"bulk", Lane.BULK)
    sync = parent.open(cable.down, "child", b"sync", Lane.SYNC)
    bulk.write(b"B" * 1000)
    sync.write(b"S" * 1000)
    message = bytes(cable.down.message(0.0, 0))
    assert message.count(b"S" * 1000) == 1
    assert b"B" * 10 not in message
    assert cable.down.bulk_waits()
    small = bytes(cable.down.message(0.0, 160))
    assert 0 < len(small) <= 160


def test_bulk_that_waits_for_its_bound_keeps_nobody_from_waking_the_link() -> None:
    woken: list[int] = []
    parent, _, cable = pair(Limits())
    cable.down.wake = lambda: woken.append(1)
    bulk = parent.open(cable.down, "child", b"bulk", Lane.BULK)
    sync = parent.open(cable.down, "child", b"sync", Lane.SYNC)
    bulk.write(b"B" * 1000)
    cable.down.message(0.0, 0)
    assert not cable.down.message(0.0, 0)
    before = len(woken)
    sync.write(b"S")
    assert len(woken) == before + 1


def test_windows_grow_while_they_are_the_bottleneck_and_never_beyond_the_budget() -> None:
    limits = Limits(initial_window=4096, max_window=65536, link_budget=40_000, max_streams=8, send_buffer=65536)
    parent, child, cable = pair(limits)
    ears = [parent.open(cable.down, "child", b"%d" % i, Lane.SYNC) for i in range(4)]
    for connection in (cable.down, cable.up):
        connection.liveness.rtt = 0.1
    for _ in range(200):
        cable.now += 0.01
        for ear in ears:
            ear.write(b"x" * 30_000)
        cable.pump()
        for ear in child.ears.values():
            ear.read(1 << 20)
        check(cable.up)
    windows = [stream.window for stream in cable.up.streams.values()]
    assert max(windows) > 4096
    assert sum(windows) <= limits.link_budget


def test_an_open_beyond_the_budget_or_the_count_is_refused_on_both_sides() -> None:
    parent, _child, cable = pair(Limits(initial_window=4096, link_budget=10_000, max_streams=8))
    parent.open(cable.down, "child", b"1", Lane.SYNC)
    parent.open(cable.down, "child", b"2", Lane.SYNC)
    with pytest.raises(Exhausted, match="budget"):
        parent.open(cable.down, "child", b"3", Lane.SYNC)
    few = Limits(initial_window=16, max_streams=2)
    parent, _child, cable = pair(few)
    for tag in (b"1", b"2"):
        parent.open(cable.down, "child", tag, Lane.SYNC)
    with pytest.raises(Exhausted, match="2 streams"):
        parent.open(cable.down, "child", b"3", Lane.SYNC)


def test_the_receiver_refuses_what_a_sender_that_does_not_count_opens() -> None:
    _parent, _child, cable = pair(SMALL)
    for number in range(1, 12):
        cable.up.receive(open_frame(number * 2), 0.0)
    assert len(cable.up.streams) == SMALL.max_streams
    answers = list(split(bytes(cable.up.message(0.0))))
    refused = [codec.decode_payload(Reset, payload).code for kind, _, _, payload in answers if kind == frames.RESET]
    assert refused == [ResetCode.EXHAUSTED] * 3
    assert cable.up.stats.streams_refused == 3


def test_ids_are_odd_for_the_dialler_rise_and_are_never_used_again() -> None:
    _parent, child, cable = pair()
    seen = []
    for round in range(20):
        ear = child.open(cable.up, "parent", b"%d" % round, Lane.SYNC)
        seen.append(ear.state.id)
        ear.state.connection.reset(ear.state, ResetCode.CANCELLED, "")
        settle([cable], [])
    assert seen == list(range(1, 40, 2))
    cable.up._next_id = frames.MAX_STREAM_ID + 2
    with pytest.raises(Exhausted, match="used up"):
        child.open(cable.up, "parent", b"last", Lane.SYNC)


def test_reset_tells_the_far_end_why_and_at_which_hop() -> None:
    nodes, cables = tree()
    nodes[1].onward = None
    ear = nodes[0].open(cables[0].down, "d", b"x", Lane.SYNC)
    settle(cables, [])
    assert ear.reset == Reset(code=ResetCode.UNREACHABLE, reason="no way on", hop="b")


def test_a_writer_that_has_finished_and_reads_no_more_loses_none_of_what_it_wrote() -> None:
    nodes, cables = tree()
    near = nodes[0].open(cables[0].down, "d", b"x", Lane.SYNC)
    settle(cables, [])
    far = nodes[-1].ears[b"x"]
    far.write(b"answer" * 500)
    far.state.connection.abandon(far.state)
    settle(cables, [near])
    assert bytes(near.received) == b"answer" * 500
    assert near.state.end_received
    assert not any(connection.streams for cable in cables for connection in (cable.down, cable.up))


def test_going_away_lets_open_streams_finish_and_begins_none() -> None:
    parent, child, cable = pair()
    ear = parent.open(cable.down, "child", b"x", Lane.SYNC)
    settle([cable], [])
    cable.down.go_away(GoAway(reason="upgrade"))
    settle([cable], [])
    assert child.drained
    with pytest.raises(Exhausted, match="going away"):
        child.open(cable.up, "parent", b"y", Lane.SYNC)
    ear.write(b"still")
    settle([cable], [child.ears[b"x"]])
    assert bytes(child.ears[b"x"].received) == b"still"


def test_a_large_control_message_is_put_together_again() -> None:
    _parent, child, cable = pair()
    message = Revoked(revocations=tuple(Revocation(uid=f"u{i}", reason="r" * 50) for i in range(3000)))
    cable.down.send_control(message)
    settle([cable], [])
    assert child.controls == [message]


def test_control_goes_out_with_no_credit_left_anywhere() -> None:
    parent, child, cable = pair()
    ear = parent.open(cable.down, "child", b"x", Lane.SYNC)
    while ear.write(b"z" * 1000) or cable.send(cable.down):
        pass
    cable.down.send_control(Routes(withdraw=(Withdrawal(uid="w", attach=1),)))
    settle([cable], [])
    assert child.controls == [Routes(withdraw=(Withdrawal(uid="w", attach=1),))]


# -- what a peer must not do ------------------------------------------------------------------------------------------------


def open_frame(id: int, lane: Lane = Lane.SYNC) -> bytes:
    return frames.frame(frames.OPEN, id, codec.encode_payload(Open(destination=("child",), metadata=b"%d" % id, lane=lane)))


def split(message: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while message:
        kind, flags, _, id, length = frames.HEADER.unpack_from(message)
        found.append((kind, flags, id, message[12 : 12 + length]))
        message = message[12 + length :]
    return found


def data(id: int, payload: bytes = b"x", flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, id, payload, flags)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"\x04", CloseCode.PROTOCOL),
        (frames.HEADER.pack(frames.DATA, 0, 0, 2, 100), CloseCode.TOO_BIG),
        (frames.HEADER.pack(frames.DATA, 0, 0, 2, 0xFFFFFFFF), CloseCode.TOO_BIG),
        (data(2), CloseCode.PROTOCOL),
        (data(0), CloseCode.PROTOCOL),
        (open_frame(3), CloseCode.PROTOCOL),
        (open_frame(0), CloseCode.PROTOCOL),
        (open_frame(4) + open_frame(4), CloseCode.PROTOCOL),
        (open_frame(4) + open_frame(2), CloseCode.PROTOCOL),
        (open_frame(2) + data(2, b"x" * 4085), CloseCode.FLOW_CONTROL),
        (open_frame(2) + data(2, b"x" * 2000) * 3, CloseCode.FLOW_CONTROL),
        (open_frame(2) + data(2, b"", frames.END) + data(2), CloseCode.FLOW_CONTROL),
        (open_frame(2) + frames.frame(frames.CREDIT, 2, b"\x7f\xff\xff\xff"), CloseCode.FLOW_CONTROL),
        (open_frame(2) + frames.frame(frames.CREDIT, 2, b"\x00\x00\x01"), CloseCode.PROTOCOL),
        (frames.frame(frames.CREDIT, 7, b"\x00\x00\x00\x01"), CloseCode.PROTOCOL),
        (frames.frame(frames.OPEN, 2, b"\xff\xff\xff"), CloseCode.PROTOCOL),
        (frames.frame(frames.CONTROL, 0, b"\x0a\xff"), CloseCode.PROTOCOL),
    ],
)  # fmt: skip
def test_a_violation_ends_the_link_with_its_code(message: bytes, code: CloseCode) -> None:
    _, _, cable = pair()
    with pytest.raises(ProtocolError) as caught:
        cable.up.receive(message, 0.0)
    assert caught.value.code == code


def test_a_control_message_without_end_is_bounded() -> None:
    _, _, cable = pair(Limits(max_control=100_000))
    endless = frames.frame(frames.CONTROL, 0, b"x" * 16000, frames.MORE)
    with pytest.raises(ProtocolError, match="100000") as caught:
        for _ in range(10):
            cable.up.receive(endless, 0.0)
    assert caught.value.code == CloseCode.TOO_BIG


def test_a_peer_that_makes_us_answer_and_does_not_read_loses_the_link() -> None:
    _, _, cable = pair(Limits(control_queue=10_000))
    for number in range(1, 3000):
        cable.up.receive(open_frame(number * 2, Lane.CONTROL), 0.0)
        if cable.up.failure is not None:
            break
    assert cable.up.failure is not None
    assert cable.up.failure.code == CloseCode.OVERLOADED
    assert cable.up._control_bytes <= 10_000


def test_a_flood_of_heartbeats_is_answered_once_per_message() -> None:
    _, _, cable = pair()
    question = frames.frame(frames.HEARTBEAT, 0, b"\x08\x05")
    for _ in range(100):
        cable.up.receive(question * 1000, 0.0)
    assert len(cable.up.message(0.0)) == 14


def test_frames_of_an_unknown_type_are_skipped_and_counted() -> None:
    _, _, cable = pair()
    cable.up.receive(frames.frame(99, 5, b"later version") + frames.frame(frames.CONTROL, 0, b"\xfa\x7f\x01x"), 0.0)
    assert cable.up.stats.ignored == 2


def test_no_stream_before_welcome() -> None:
    node = Node("child", SMALL)
    connection = Connection(SMALL, node, 0.0, dialled=True, wake=lambda: None)
    with pytest.raises(ProtocolError, match="before Welcome"):
        connection.receive(open_frame(2), 0.0)
    with pytest.raises(Exhausted):
        connection.open(Open(destination=("x",)))


def test_open_states_what_is_wrong_with_what_it_was_given() -> None:
    parent, _, cable = pair()
    with pytest.raises(InvalidInput, match="control lane"):
        parent.open(cable.down, "child", b"", Lane.CONTROL)
    with pytest.raises(InvalidInput, match="metadata"):
        parent.open(cable.down, "child", b"x" * 20_000, Lane.SYNC)
    assert not cable.down.streams


KINDS = st.integers(0, 9)
HOSTILE = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda kind, flags, id, payload: frames.HEADER.pack(kind, flags, 0, id, len(payload)) + payload,
            KINDS, st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 4, 5, 6, 1001, 0xFFFFFFFF]), st.binary(max_size=60),
        ),
        st.sampled_from([2, 4, 6, 8]).map(open_frame),
        st.tuples(st.sampled_from([2, 4, 6]), st.integers(0, 600)).map(lambda pair: data(pair[0], b"x" * pair[1])),
    ),
    max_size=30,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(HOSTILE, st.booleans())
def test_whatever_a_peer_sends_costs_a_protocol_error_at_most(pieces: list[bytes], together: bool) -> None:
    _, _, cable = pair()
    try:
        for message in [b"".join(pieces)] if together else pieces:
            cable.up.receive(message, 0.0)
            check(cable.up)
            cable.up.message(0.0)
    except ProtocolError as error:
        assert error.code in set(CloseCode)
        cable.up.lost("violation")
        assert not cable.up.streams
