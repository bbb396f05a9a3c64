"""Join tokens: one word that carries all it says, and no slip of it passes."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster_controller.errors import InvalidInput
from cluster_controller.identity import token
from cluster_controller.identity.join import TokenAltered
from cluster_controller.identity.token import Flag, JoinToken

PARENT = "abcdefghijklmnopqrstuvwxyz"
addresses = st.lists(st.from_regex(r"[a-z0-9.-]{1,40}:[1-9][0-9]{0,4}", fullmatch=True), min_size=1, max_size=8).map(tuple)


def make(
    identifier: str = "t1", parent_name: str = "region-a", where: tuple[str, ...] = ("10.0.0.1:10000",), flags: Flag = Flag.NONE
) -> JoinToken:
    return token.new(parent=PARENT, parent_name=parent_name, addresses=where, tree_ca_digest="ab" * 32, identifier=identifier, flags=flags)


MADE = make()
WHOLE = token.encode(MADE)


@given(addresses, st.sampled_from([Flag.NONE, Flag.APPROVE, Flag.APPROVE | Flag.REPLACE]))
def test_what_is_encoded_is_decoded(where: tuple[str, ...], flags: Flag) -> None:
    made = make(where=where, flags=flags)
    text = token.encode(made)
    assert token.decode(text) == made
    assert text.isalnum() and text == text.lower()


@given(st.data())
def test_a_token_survives_line_breaks_and_capitals(data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(WHOLE)))
    assert token.decode(f"  {WHOLE[:cut]}\n  {WHOLE[cut:].upper()}\r\n") == MADE


@given(st.integers(0, len(WHOLE) - 1), st.characters(codec="utf-8", exclude_categories=["Cs"]))
def test_an_altered_character_is_recognised(at: int, other: str) -> None:
    assume(not other.isspace() and other.lower() != WHOLE[at])
    with pytest.raises(TokenAltered):
        token.decode(WHOLE[:at] + other + WHOLE[at + 1 :])


def test_every_single_altered_character_is_recognised() -> None:
    for at in range(len(WHOLE)):
        for other in "abcdefghijklmnopqrstuvwxyz234567":
            if other != WHOLE[at]:
                with pytest.raises(TokenAltered):
                    token.decode(WHOLE[:at] + other + WHOLE[at + 1 :])


@given(st.integers(0, len(WHOLE) - 1))
def test_a_token_cut_short_is_recognised(length: int) -> None:
    with pytest.raises(TokenAltered):
        token.decode(WHOLE[:length])


@given(st.text(max_size=200) | st.text("abcdefghijklmnopqrstuvwxyz234567", max_size=300).map(lambda text: token.PREFIX + text))
def test_anything_else_is_refused_without_another_error(text: str) -> None:
    with pytest.raises(TokenAltered):
        token.decode(text)


def test_a_whole_token_with_senseless_content_is_refused() -> None:
    for broken in (
        JoinToken("short", "p", ("a:1",), b"x" * 32, "t1", b"s" * 16),
        JoinToken(PARENT, "p", (), b"x" * 32, "t1", b"s" * 16),
        JoinToken(PARENT, "p", ("a:1",), b"x" * 31, "t1", b"s" * 16),
        JoinToken(PARENT, "p", ("a:1",), b"x" * 32, "../t1", b"s" * 16),
        JoinToken(PARENT, "p", ("a:1",), b"x" * 32, "t1", b"s"),
    ):
        with pytest.raises(TokenAltered):
            token.decode(token.encode(broken))


def test_no_address_is_no_token() -> None:
    with pytest.raises(InvalidInput) as caught:
        make(where=())
    assert caught.value.field == "tunnel_advertise"


def test_the_secret_is_not_shown() -> None:
    made = make()
    assert made.secret.hex() not in repr(made) and str(made.secret) not in repr(made)


@given(st.binary(min_size=16, max_size=32), st.binary(min_size=16, max_size=32))
def test_secrets_are_matched_by_their_salted_hash(secret: bytes, other: bytes) -> None:
    stored = token.hash_secret(secret)
    assert token.matches(secret, stored)
    assert token.matches(other, stored) == (other == secret)
    assert token.hash_secret(secret) != stored
    assert secret.hex() not in stored


@given(st.text(max_size=100))
def test_a_stored_hash_of_another_kind_matches_nothing(stored: str) -> None:
    assert not token.matches(b"x" * 16, stored)


def test_a_bearer_token_is_split_into_what_finds_and_what_proves() -> None:
    text, identifier, secret = token.new_bearer()
    assert token.split_bearer(text) == (identifier, secret)
    for broken in (text[:-1], text + "0", text.upper(), "Bearer " + text, ""):
        assert token.split_bearer(broken) is None
