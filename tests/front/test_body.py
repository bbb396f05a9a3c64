"""Bodies of requests and answers mean the same however they are split, and what can be read in two ways is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openapi.front.body import LAST_CHUNK, MAX_CHUNK_LINE, BodyError, ChunkedDecoder, LengthDecoder, chunk, decoder
from openapi.front.head import CHUNKED, UNTIL_CLOSE

cuts = st.lists(st.integers(1, 40), max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, position = [], 0
    for size in [*sizes, len(data)]:
        if position < len(data):
            found.append(data[position : position + size])
            position += size
    return found


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=10), st.binary(max_size=40), cuts)
def test_chunks_come_back_however_they_are_split(body: list[bytes], after: bytes, sizes: list[int]) -> None:
    wire = b"".join(chunk(piece) for piece in body) + LAST_CHUNK + after
    reader, payload, rest = ChunkedDecoder(), b"", b""
    for piece in pieces(wire, sizes):
        if reader.done:
            rest += piece
        else:
            payload += reader.feed(piece)
    assert reader.done
    assert payload == b"".join(body)
    assert reader.rest + rest == after


@given(st.binary(max_size=200), cuts)
def test_any_bytes_decode_or_fail_the_same_way_however_split(data: bytes, sizes: list[int]) -> None:
    def run(parts: list[bytes]) -> tuple[bytes, bool, bool]:
        reader, payload = ChunkedDecoder(), b""
        try:
            for piece in parts:
                if not reader.done:
                    payload += reader.feed(piece)
        except BodyError:
            return b"", False, True
        return payload, reader.done, False

    assert run([data]) == run(pieces(data, sizes))


@given(st.integers(0, 100), st.binary(max_size=150), cuts)
def test_length(length: int, data: bytes, sizes: list[int]) -> None:
    reader, payload, rest = LengthDecoder(length), b"", b""
    for piece in pieces(data, sizes):
        if reader.done:
            rest += piece
        else:
            payload += reader.feed(piece)
    assert payload == data[:length]
    assert reader.done is (len(data) >= length)
    assert reader.rest + rest == data[length:]


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
        b"3 3\r\nabc\r\n",
        b"ffffffffffffffff\r\n",
        b"3\nabc\r\n",
        b"3\r\nabc\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"3;\x00\r\nabc\r\n",
        b"1" * (MAX_CHUNK_LINE + 2),
        b"0\r\n" + b"a: b\r\n" * 4000,
        b"0\r\n" + b"a" * 20000,
    ],
)
def test_broken_chunks(wire: bytes) -> None:
    with pytest.raises(BodyError):
        ChunkedDecoder().feed(wire)


def test_extensions_and_trailers_are_read_and_dropped() -> None:
    reader = ChunkedDecoder()
    assert reader.feed(b"3;a=b\r\nabc\r\n0\r\nTrailer: x\r\n\r\nnext") == b"abc"
    assert (reader.done, reader.rest) == (True, b"next")


def test_ends() -> None:
    whole = decoder(UNTIL_CLOSE)
    assert whole.feed(b"x") == b"x"
    whole.end()
    assert whole.done
    for length in (3, CHUNKED):
        with pytest.raises(BodyError, match="ended"):
            decoder(length).end()
    decoder(0).end()
