"""Requests to an application from the root, through two hops: HTTP, large bodies, WebSocket, gRPC, and one question to many clusters."""

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from banyanctl.client import Client, tls_context
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from e2e.support import APPS, NEIGHBOURHOOD, Site, Tree, model_application, program, publish, until
from e2e.test_workloads import BOTH, create

MEGABYTES = 5_000_000


@pytest.fixture
def echo(grove: Tree) -> Site:
    """The root of a tree where `echo` is ready on edge-2."""
    root = grove.sites["root"]
    create(root, program("echo", placement={"clusterName": "edge-2"}, expose={"port": 18201}))
    return root


def test_one_connection_serves_many_requests_and_five_megabytes_both_ways(echo: Site) -> None:
    endpoint = read(echo.folder / ADMIN_KUBECONFIG)
    connection = http.client.HTTPSConnection(*endpoint.address, context=tls_context(endpoint), timeout=20)
    connection.connect()
    before: socket.socket = connection.sock
    sent = os.urandom(MEGABYTES)
    for _ in range(3):
        connection.request("GET", f"{APPS}/echo/proxy/")
        answer = connection.getresponse()
        assert json.loads(answer.read())["env"]["BANYAN_APPLICATION"] == "echo"
        assert answer.headers["Banyan-Route"] == "root, region-a, edge-2"
        connection.request("POST", f"{APPS}/echo/proxy/echo", body=sent)
        assert connection.getresponse().read() == sent
        connection.request("GET", f"{APPS}/echo/proxy/bytes/{MEGABYTES}")
        assert len(connection.getresponse().read()) == MEGABYTES
        connection.request("GET", f"{APPS}/echo/proxy/no/such/page")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (404, b"nothing here")
    assert connection.sock is before
    connection.close()


def test_a_websocket_through_two_hops(echo: Site) -> None:
    endpoint = read(echo.folder / ADMIN_KUBECONFIG)
    host, port = endpoint.address

    async def talk() -> None:
        url = f"wss://{host}:{port}{APPS}/echo/proxy/socket"
        async with connect(url, ssl=tls_context(endpoint), proxy=None) as websocket:
            for message in ("hello", "é" * 10_000, b"\x00" * 30_000):
                await websocket.send(message)
                assert await websocket.recv() == message

    asyncio.run(talk())


def test_what_cannot_be_reached_says_why(echo: Site) -> None:
    code, answer = echo.ask("GET", f"{APPS}/nonesuch/proxy/")
    assert (code, answer["reason"]) == (404, "NotFound")
    assert "no application default/nonesuch" in answer["message"]
    create(echo, program("nowhere", placement={"clusterSelector": {"matchLabels": {"zone": "none"}}}), ready=0)
    code, answer = echo.ask("GET", f"{APPS}/nowhere/proxy/")
    assert code == 503
    assert "nowhere" in answer["message"]
    done = echo.banyan("--at", "edge-9", "get", "pods", check=False)
    assert done.returncode == 3
    assert "edge-9" in done.stderr


def test_one_question_to_many_clusters_and_one_that_fails(grove: Tree) -> None:
    root = grove.sites["root"]
    create(root, program("two", placement=BOTH | {"strategy": "Duplicated"}, expose={"port": 18202}), ready=2)
    done = root.banyan("invoke", "--clusters", "tier=edge", "two", "/health", "-o", "json")
    rows = {row["cluster"]: row for row in json.loads(done.stdout)["items"]}
    assert {name: row["code"] for name, row in rows.items()} == {"edge-1": 200, "edge-2": 200}
    assert grove.sites["edge-1"].ask("GET", "/api/v1/pods")[0] == 200
    root.banyan("--at", "edge-1", "invoke", "two.root", "/sick", check=False)
    # Only edge-1's instance is sick: its own answer is told, the other's is not spoilt.
    sick = subprocess.run(["curl", "-s", f"http://127.0.{NEIGHBOURHOOD}.1:18202/sick"], capture_output=True, timeout=10, check=False)
    assert sick.returncode == 0
    done = root.banyan("invoke", "--clusters", "tier=edge", "two", "/health", "-o", "json", check=False)
    rows = {row["cluster"]: row for row in json.loads(done.stdout)["items"]}
    assert {name: row["code"] for name, row in rows.items()} == {"edge-1": 500, "edge-2": 200}


def test_one_question_to_many_clusters_and_one_that_is_cut_off(tree: Tree) -> None:
    """Code, body and age of each: the one that answers is as old as now, the other as long as it is silent, and the broken hop is named."""
    root = tree.root()
    edges = [tree.edge(name, root) for name in ("edge-1", "edge-2")]
    until("all are Ready", lambda: [item["phase"] for item in root.clusters().values()] == ["Ready"] * 3)
    create(root, program("two", placement=BOTH | {"strategy": "Duplicated"}, expose={"port": 18203}), ready=2)
    question = ("invoke", "--clusters", "tier=edge", "two", "/health", "-o", "json")

    def asked(check: bool = True) -> dict[str, dict[str, Any]]:
        return {row["cluster"]: row for row in json.loads(root.banyan(*question, check=check).stdout)["items"]}

    both = asked()
    assert {name: (row["code"], row["age"]) for name, row in both.items()} == {"edge-1": (200, 0.0), "edge-2": (200, 0.0)}
    edges[1].kill()
    until("the root knows", lambda: root.clusters()["edge-2"]["phase"] == "Unknown")
    first = asked(check=False)
    assert first["edge-1"] | {"milliseconds": 0} == both["edge-1"] | {"milliseconds": 0}
    cut = first["edge-2"]
    assert (cut["code"], cut["brokenHop"]) == (503, "root → edge-2"), cut
    assert cut["age"] > 0 and "edge-2" in cut["message"] and "body" not in cut
    assert root.banyan(*question, check=False).returncode == 1
    until("it grows older", lambda: asked(check=False)["edge-2"]["age"] > cut["age"])
    shown = root.banyan("invoke", "--clusters", "tier=edge", "two", "/health", check=False).stdout.splitlines()
    assert [line.split()[:2] for line in shown[1:]] == [["edge-1", "200"], ["edge-2", "503"]]
    edges[1].run()
    until("it answers again", lambda: asked(check=False)["edge-2"]["code"] == 200)


GRPC = """
import sys, grpc, numpy
from tritonclient.grpc import service_pb2 as pb, service_pb2_grpc as service
address, ca, certificate, key = sys.argv[1:]
read = lambda path: open(path, "rb").read()
channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(read(ca), read(key), read(certificate)))
stub = service.GRPCInferenceServiceStub(channel)
where = (("banyan-application", "default/emotion"),)
print(stub.ModelReady(pb.ModelReadyRequest(name="emotion"), metadata=where, timeout=20).ready)
meta = stub.ModelMetadata(pb.ModelMetadataRequest(name="emotion"), metadata=where, timeout=20)
shape = [abs(n) for n in meta.inputs[0].shape]
request = pb.ModelInferRequest(model_name="emotion")
request.inputs.add(name=meta.inputs[0].name, datatype=meta.inputs[0].datatype, shape=shape)
request.raw_input_contents.append(numpy.zeros(shape, numpy.float32).tobytes())
for _ in range(5):
    answer = stub.ModelInfer(request, metadata=where, timeout=20)
print(len(answer.raw_output_contents))
"""


def test_grpc_inference_through_the_roots_front(grove: Tree, tmp_path: Path) -> None:
    root = grove.sites["root"]
    publish(root)
    create(root, model_application(port=18203, clusterName="edge-1"))
    endpoint = read(root.folder / ADMIN_KUBECONFIG)
    files = {"ca": endpoint.ca, "certificate": endpoint.certificate, "key": endpoint.key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    host, port = endpoint.address
    argv = [sys.executable, "-W", "ignore", "-c", GRPC, f"{host}:{port}", *(str(tmp_path / name) for name in files)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "True"
    assert int(done.stdout.split()[1]) >= 1
    with Client(endpoint) as client:
        assert client.request("GET", f"{APPS}/emotion/proxy/v2/models/emotion/ready").status == 200
    until("it is still ready", lambda: root.status().get("ready") == 1)
