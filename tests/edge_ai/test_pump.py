"""The farewell is put between two frames of the server, never inside one, and changes nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from edge_ai.serve.pump import GOAWAY, FrameEdges, Inner

SETTINGS, HEADERS, CONTINUATION, DATA = 0x4, 0x1, 0x9, 0x0


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + (1).to_bytes(4, "big") + payload


payloads = st.binary(max_size=30)
groups = st.one_of(
    payloads.map(lambda payload: [frame(DATA, 0, payload)]),
    payloads.map(lambda payload: [frame(HEADERS, 0x4, payload)]),
    st.tuples(payloads, payloads, payloads).map(
        lambda parts: [frame(HEADERS, 0x1, parts[0]), frame(CONTINUATION, 0, parts[1]), frame(CONTINUATION, 0x4, parts[2])]
    ),
)


class Sink:
    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data


@given(st.lists(groups, max_size=8), st.lists(st.integers(1, 60), max_size=20), st.integers(0, 20))
def test_goaway_comes_once_at_an_edge_and_all_bytes_pass(groups: list[list[bytes]], cuts: list[int], retire_after: int) -> None:
    inner, outer, sink = Inner(), Inner(), Sink()
    inner.other, outer.transport = outer, sink  # type: ignore[assignment]
    stream = b"".join([frame(SETTINGS, 0, b""), *[part for group in groups for part in group]])
    edges, position = set(), len(frame(SETTINGS, 0, b""))
    edges.add(position)
    for group in groups:
        position += sum(len(part) for part in group)
        edges.add(position)
    start, retired_at = 0, len(stream)
    for number, cut in enumerate([*cuts, len(stream)]):
        if number == retire_after:
            inner.retire()
            retired_at = start
        inner.data_received(stream[start : start + cut])
        start = min(start + cut, len(stream))
    if retire_after > len(cuts):
        inner.retire()
    assert sink.written.count(GOAWAY) == 1
    at = sink.written.index(GOAWAY)
    assert bytes(sink.written.replace(GOAWAY, b"")) == stream
    assert at == min(edge for edge in edges if edge >= min(retired_at, len(stream)))


def test_nothing_is_put_in_before_the_servers_settings() -> None:
    edges = FrameEdges()
    assert not edges.open
    assert edges.feed(frame(SETTINGS, 0, b"x" * 6)[:5], stop=True) == 5 and not edges.open
    assert edges.feed(frame(SETTINGS, 0, b"x" * 6)[5:], stop=True) == 10 and edges.open
