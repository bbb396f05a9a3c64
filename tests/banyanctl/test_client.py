"""The client against a real HTTPS server: credentials, errors in the API's own words, pages, kept connections."""

import socket
from pathlib import Path

import pytest

from banyanctl import client as module
from banyanctl.client import Client, resource_path
from banyanctl.endpoint import below
from cluster_controller.errors import (
    AlreadyExists,
    BanyanError,
    Conflict,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unreachable,
)
from tests.banyanctl.https import Asked, Authority, Reply, endpoint, serving


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_a_bearer_token_and_a_path_prefix_are_sent(authority: Authority, tmp_path: Path) -> None:
    with serving(authority, lambda _: (200, {"ok": 1}), tmp_path) as (url, asked), Client(endpoint(url, authority, token="t0k")) as client:
        assert client.json("GET", "/version", {"a": "b c", "empty": ""}) == {"ok": 1}
        with client.at("edge-1") as below_client:
            below_client.json("GET", "/version")
    assert asked[0].headers["authorization"] == "Bearer t0k"
    assert asked[0].path == "/version?a=b+c"
    assert asked[1].path == "/apis/banyan.dev/v1alpha1/clusters/edge-1/banyan/version"


def test_a_client_certificate_is_presented_from_memory(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.person()
    with serving(authority, lambda _: (200, {}), tmp_path) as (url, asked):
        with Client(endpoint(url, authority, certificate=certificate, key=key)) as client:
            client.json("GET", "/")
        with Client(endpoint(url, authority)) as nobody:
            nobody.json("GET", "/")
    assert asked[0].peer
    assert not asked[1].peer


def test_a_key_of_another_certificate_is_said_to_be_one(authority: Authority) -> None:
    certificate, _ = authority.person()
    _, other = authority.person()
    with (
        pytest.raises(InvalidInput, match="do not fit together"),
        Client(endpoint("https://127.0.0.1:1", authority, certificate=certificate, key=other)) as client,
    ):
        client.json("GET", "/")


def test_a_server_of_another_tree_is_refused(authority: Authority, tmp_path: Path) -> None:
    with serving(authority, lambda _: (200, {}), tmp_path) as (url, asked), Client(endpoint(url, Authority())) as client:
        with pytest.raises(Unauthenticated, match="not the controller that the kubeconfig names"):
            client.json("GET", "/")
    assert not asked


def test_nobody_there_is_unreachable_with_the_remedy(authority: Authority) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        with (
            pytest.raises(Unreachable, match="banyan run"),
            Client(endpoint(f"https://127.0.0.1:{taken.getsockname()[1]}", authority)) as client,
        ):
            client.json("GET", "/")


def test_silence_is_unreachable(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = endpoint(f"https://127.0.0.1:{silent.getsockname()[1]}", authority)
        with pytest.raises(Unreachable, match="did not answer"), Client(address, timeout=0.1) as client:
            client.json("GET", "/")


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (400, "BadRequest", InvalidInput),
        (401, "Unauthorized", Unauthenticated),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (410, "Expired", Conflict),
        (418, "Teapot", BanyanError),
        (422, "Invalid", InvalidInput),
        (429, "TooManyRequests", Exhausted),
        (500, "InternalError", BanyanError),
        (503, "ServiceUnavailable", Unreachable),
        (504, "Timeout", Unreachable),
    ],
)
def test_each_answer_becomes_the_error_that_the_command_exits_with(
    authority: Authority, tmp_path: Path, code: int, reason: str, error: type[BanyanError]
) -> None:
    status = {"kind": "Status", "reason": reason, "message": "the thing, the reason, the remedy"}
    with serving(authority, lambda _: (code, status), tmp_path) as (url, _), Client(endpoint(url, authority)) as client:
        with pytest.raises(error, match="the thing, the reason") as raised:
            client.json("GET", "/")
    assert type(raised.value) is error


def test_an_error_that_is_no_status_is_shown_as_it_is(authority: Authority, tmp_path: Path) -> None:
    with serving(authority, lambda _: (502, b"<html>bad gateway</html>"), tmp_path) as (url, _), Client(endpoint(url, authority)) as client:
        with pytest.raises(Unreachable, match="bad gateway"):
            client.json("GET", "/")


def test_an_answer_that_is_no_json_is_no_controller(authority: Authority, tmp_path: Path) -> None:
    with serving(authority, lambda _: (200, b"hello"), tmp_path) as (url, _), Client(endpoint(url, authority)) as client:
        with pytest.raises(Unreachable, match="is it a Banyan controller"):
            client.json("GET", "/")


def test_pages_are_followed_to_the_last(authority: Authority, tmp_path: Path) -> None:
    def answer(asked: Asked) -> Reply:
        if "continue=two" in asked.path:
            return 200, {"metadata": {}, "items": [{"n": 3}]}
        return 200, {"metadata": {"continue": "two"}, "items": [{"n": 1}, {"n": 2}]}

    with serving(authority, answer, tmp_path) as (url, asked), Client(endpoint(url, authority)) as client:
        assert client.items("/things", {"labelSelector": "a=b"}) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert all("labelSelector=a%3Db" in one.path and "limit=500" in one.path for one in asked)
    assert asked[0].connection == asked[1].connection


def test_a_kept_connection_that_was_closed_is_no_error_for_a_get(authority: Authority, tmp_path: Path) -> None:
    replies = iter([(200, {"n": 1}), None, (200, {"n": 2})])
    with serving(authority, lambda _: next(replies), tmp_path) as (url, asked), Client(endpoint(url, authority)) as client:
        assert client.json("GET", "/")["n"] == 1
        assert client.json("GET", "/")["n"] == 2
    assert len(asked) == 3


def test_a_post_is_never_sent_twice(authority: Authority, tmp_path: Path) -> None:
    replies = iter([(200, {}), None])
    with serving(authority, lambda _: next(replies), tmp_path) as (url, asked), Client(endpoint(url, authority)) as client:
        client.json("GET", "/")
        with pytest.raises(Unreachable):
            client.json("POST", "/", body={})
    assert [one.method for one in asked] == ["GET", "POST"]
    assert asked[0].connection != asked[1].connection


def test_an_endless_answer_is_cut(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_LIMIT_BYTES", 1000)
    with serving(authority, lambda _: (200, b"x" * 1001), tmp_path) as (url, _), Client(endpoint(url, authority)) as client:
        with pytest.raises(Exhausted, match="ask for less"):
            client.json("GET", "/")


def test_lines_come_until_the_end_and_errors_before_the_first(authority: Authority, tmp_path: Path) -> None:
    replies = iter([(200, b"one\ntwo\n"), (404, {"kind": "Status", "message": "no such pod"})])
    with serving(authority, lambda _: next(replies), tmp_path) as (url, _), Client(endpoint(url, authority)) as client:
        assert list(client.lines("/log")) == [b"one\n", b"two\n"]
        with pytest.raises(NotFound, match="no such pod"):
            list(client.lines("/log"))


def test_paths_are_quoted() -> None:
    assert resource_path("", "v1", "pods", "a b", "c/d", "log") == "/api/v1/namespaces/a%20b/pods/c%2Fd/log"
    assert resource_path("g", "v1", "clusters") == "/apis/g/v1/clusters"
    assert below(endpoint("https://h:1", Authority()), "edge-1", "proxy").path.endswith("/clusters/edge-1/proxy")
