"""Requests as a person writes them with curl or a device with sockets: the standard library alone, and what client libraries never send."""

import http.client
import json
import socket
import struct
import sys
from typing import Any

from probes import check, main, probe


class Hand:
    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get("Content-Type") == "application/json"
        return answer.status, json.loads(content) if is_json else content, {key.lower(): value for key, value in answer.headers.items()}


COUNT = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [2]}]}


@probe
def json_without_a_content_type_is_taken(hand: Hand) -> None:
    status, document, _ = hand.ask("POST", "/v2/models/count/infer", json.dumps(COUNT).encode())
    check(status == 200 and document["outputs"][0]["data"] == [1], document)


@probe
def a_content_type_with_a_charset_is_taken(hand: Hand) -> None:
    status, document, _ = hand.ask(
        "POST", "/v2/models/count/infer", json.dumps(COUNT).encode(), Content_Type="application/json; charset=UTF-8"
    )
    check(status == 200, document)


@probe
def the_body_of_readiness_says_live_and_ready(hand: Hand) -> None:
    check(hand.ask("GET", "/v2/health/ready")[:2] == (200, {"live": True, "ready": True}), hand.ask("GET", "/v2/health/ready"))


@probe
def the_body_of_liveness_says_live(hand: Hand) -> None:
    check(hand.ask("GET", "/v2/health/live")[1]["live"] is True, hand.ask("GET", "/v2/health/live"))


@probe
def binary_tensors_by_hand(hand: Hand) -> None:
    raw = struct.pack("<f", 3)
    item = {"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [item], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    status, body, headers = hand.ask("POST", "/v2/models/count/infer", head + raw, Inference_Header_Content_Length=str(len(head)))
    size = int(headers["inference-header-content-length"])
    document = json.loads(body[:size])
    check(status == 200 and document["outputs"][0]["parameters"] == {"binary_data_size": 8}, document)
    check(struct.unpack("<q", body[size:]) == (2,), body)


@probe
def binary_data_that_are_too_few_or_too_many_are_refused(hand: Hand) -> None:
    for size, raw in ((4, b"123"), (4, b"12345"), (3, b"123"), (-1, b"1234")):
        head = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": size}}]}
        ).encode()
        status, document, _ = hand.ask("POST", "/v2/models/count/infer", head + raw, Inference_Header_Content_Length=str(len(head)))
        check(status == 400 and document["error"], (size, raw, document))


@probe
def fields_that_are_null_or_unknown_do_no_harm(hand: Hand) -> None:
    body = COUNT | {"id": None, "parameters": None, "outputs": None, "more": 1}
    status, document, _ = hand.ask("POST", "/v2/models/count/infer", json.dumps(body).encode())
    check(status == 200 and document["outputs"][0]["data"] == [1], document)


@probe
def errors_are_json_with_a_reason(hand: Hand) -> None:
    for body in (b"", b"{", b"[]", b"{}", b'{"inputs": 1}', b"\xff", b"[" * 100_000):
        status, document, _ = hand.ask("POST", "/v2/models/count/infer", body)
        check(status == 400 and document["error"], (body[:20], document))


@probe
def other_methods_are_told_which_one_fits(hand: Hand) -> None:
    status, _, headers = hand.ask("GET", "/v2/models/count/infer")
    check(status == 405 and headers["allow"] == "POST", headers)


@probe
def a_chunked_body_is_taken(hand: Hand) -> None:
    body = json.dumps(COUNT).encode()
    connection = http.client.HTTPConnection(hand.address, timeout=30)
    connection.request(
        "POST", "/v2/models/count/infer", iter([body[:10], body[10:]]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    answer = connection.getresponse()
    check(answer.status == 200, answer.read())
    connection.close()


@probe
def requests_that_come_at_once_are_answered_in_order(hand: Hand) -> None:
    host, _, port = hand.address.rpartition(":")
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host, int(port)), 30) as made:
        made.sendall(request)
        said = b""
        while piece := made.recv(65536):
            said += piece
    check(said.index(b"HTTP/1.1 200") < said.index(b"HTTP/1.1 404"), said)


@probe
def a_client_of_http_1_0_is_answered_and_let_go(hand: Hand) -> None:
    host, _, port = hand.address.rpartition(":")
    with socket.create_connection((host, int(port)), 30) as made:
        made.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        said = b""
        while piece := made.recv(65536):
            said += piece
    check(b" 200 " in said and said.endswith(b'{"live":true}'), said)


@probe
def metrics_are_prometheus_text(hand: Hand) -> None:
    status, body, headers = hand.ask("GET", "/metrics")
    check(
        status == 200 and headers["content-type"].startswith("text/plain") and b"# TYPE banyan_serve_requests_total counter" in body,
        body[:300],
    )


if __name__ == "__main__":
    main(Hand(sys.argv[1]))
