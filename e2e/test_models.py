"""Models on their way down the tree: what is no model never replaces what serves, and a region fetches once for all its edges."""

import hashlib
import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from banyanctl.client import Client
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from e2e.support import API, APPS, EMOTION, NEIGHBOURHOOD, WAIT_SECONDS, Site, Tree, infer, model_application, publish, until
from e2e.test_workloads import change, create, pods

MEBIBYTE = 1 << 20
FLOAT = onnx.TensorProto.FLOAT
MODELS = f"{API}/namespaces/default/models"


def test_what_is_no_onnx_never_replaces_what_serves(grove: Tree, tmp_path: Path) -> None:
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    publish(root)
    name = create(root, model_application(port=18401, clusterName="edge-1"))
    url = f"http://127.0.{NEIGHBOURHOOD}.1:18401/v2/models/emotion/infer"
    assert infer(url)["version"] == "1"
    (tmp_path / "model.onnx").write_bytes(b"this is no model" * 1000)
    root.banyan("model", "publish", "emotion", str(tmp_path / "model.onnx"), "--version", "broken")
    change(root, name, model={"name": "emotion", "version": "broken"})
    until("it is said what is wrong", lambda: "exited with code 3" in str(root.status(name)["components"]))
    assert infer(url)["version"] == "1"
    assert root.status(name)["ready"] == 1
    root.banyan("undo", name)
    until("it is as before", lambda: root.status(name).get("updated") == 1 and len(pods(edge, name)) == 1)


@pytest.mark.needs("kubectl")
def test_a_digest_that_is_not_that_of_the_bytes(grove: Tree) -> None:
    root = grove.sites["root"]
    sent = b"some bytes"
    wrong = hashlib.sha256(b"others").hexdigest()
    files = [{"path": "model.onnx", "sha256": wrong, "size": len(sent)}]
    document: dict[str, Any] = {"apiVersion": "banyan.dev/v1alpha1", "kind": "Model", "metadata": {"name": "hollow"}}
    code, answer = root.ask("POST", MODELS, document | {"spec": {"versions": [{"name": "1", "files": files}]}})
    assert code == 201, answer
    blob = f"{MODELS}/hollow/blobs/sha256/{wrong}"
    with Client(read(root.folder / ADMIN_KUBECONFIG)) as client:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(sent))}
        refused = client.request("PUT", blob, body=sent, headers=headers)
        assert refused.status in (400, 422), refused.body
        assert wrong[:12] in refused.body.decode()
        assert client.request("HEAD", blob).status == 404
        unlisted = client.request("PUT", f"{MODELS}/hollow/blobs/sha256/{'0' * 64}", body=sent, headers=headers)
        assert unlisted.status == 404, unlisted.body
    application = model_application("hollow", clusterName="edge-1")
    application["spec"]["components"][0]["model"]["name"] = "hollow"
    create(root, application, ready=0)
    until("it says what is missing", lambda: wrong[:12] in str(root.status("hollow")))
    root.kubectl("delete", "model", "hollow", "--wait=false")


@pytest.mark.parametrize("where", ["region-a", "edge-2"])
def test_a_model_may_be_pushed_to_any_controller_and_serves_below_it(grove: Tree, where: str) -> None:
    site, port = grove.sites[where], 18403
    publish(site)
    name = create(site, model_application(port=port, clusterName="edge-2"))
    assert infer(f"http://127.0.{NEIGHBOURHOOD}.2:{port}/v2/models/emotion/infer")["label"] == "happy"
    site.banyan("delete", "application", name, "--wait")
    site.banyan("delete", "model", "emotion")


def test_versions_past_leave_nothing_laid_out(grove: Tree) -> None:
    """Else the folder of each version that ever ran would keep its bytes, whatever the budget of the cache says."""
    root, edge = grove.sites["root"], grove.sites["edge-1"]
    publish(root, "1")
    publish(root, "2")
    laid_out = edge.folder / "models"
    before = set(laid_out.glob("*")) if laid_out.exists() else set()
    name = create(root, model_application(port=18402, clusterName="edge-1"))
    until("version 1 is laid out", lambda: len(set(laid_out.glob("[!.]*")) - before) >= 1)
    (first,) = set(laid_out.glob("[!.]*")) - before
    change(root, name, model={"name": "emotion", "version": "2"})
    url = f"http://127.0.{NEIGHBOURHOOD}.1:18402/v2/models/emotion/infer"
    until("version 2 took its place", lambda: infer(url)["version"] == "2" and not first.exists())
    root.banyan("delete", "application", name, "--wait")
    until("nothing is left", lambda: list(laid_out.glob("*")) == [])


def received(site: Site, peer: str) -> float:
    """Bytes that came over the link of now."""
    text = site.ask("GET", "/metrics")[1].decode()
    (line,) = (line for line in text.splitlines() if line.startswith(f'banyan_link_received_bytes_total{{peer="{peer}"}}'))
    return float(line.rpartition(" ")[2])


def test_a_region_fetches_a_model_once_and_a_cut_goes_on_where_it_was(tree: Tree, tmp_path: Path) -> None:
    root = tree.root()
    region = tree.region("region-a", root)
    for edge in ("edge-1", "edge-2"):
        tree.edge(edge, region)
    until("all are in", lambda: len(root.clusters()) == 4)
    size = 192 << 20
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes((EMOTION / "model-1" / "model.onnx").read_bytes())
    (tmp_path / "model" / "ballast").write_bytes(os.urandom(size))
    root.banyan("model", "publish", "heavy", str(tmp_path / "model"), "--version", "1")
    document = model_application("heavy", strategy="Duplicated", clusterSelector={"matchLabels": {"tier": "edge"}})
    document["spec"]["components"][0]["model"]["name"] = "heavy"
    assert root.ask("POST", APPS, document)[0] == 201

    def kept() -> int:
        return max((path.stat().st_size for path in (region.folder / "blobs").rglob("partial/*")), default=0)

    deadline = time.monotonic() + WAIT_SECONDS
    while kept() < 32 << 20:  # not `until`: the rest comes within a second
        assert time.monotonic() < deadline
    root.kill()
    before = kept()
    assert 32 << 20 <= before < size - (32 << 20)
    root.run()
    until("both serve", lambda: root.status("heavy").get("ready") == 2)
    assert received(region, "root") < size - before + (4 << 20)
    for edge in ("edge-1", "edge-2"):
        assert len(tree.sites[edge].get("/api/v1/pods")["items"]) == 1


def sent(site: Site) -> dict[str, float]:
    """Bytes that left over each link of now, by the peer's name."""
    text = site.ask("GET", "/metrics")[1].decode()
    lines = (line for line in text.splitlines() if line.startswith("banyan_link_sent_bytes_total{"))
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def test_chunks_flow_on_as_they_come_and_each_link_has_one_copy(tree: Tree, tmp_path: Path) -> None:
    """A root, two regions with two edges each; and a third region that has no room for the model, whose edge gets it all the same."""
    root = tree.root()
    size = 24 << 20
    regions = []
    for name in ("region-a", "region-b"):
        region = tree.site(name, BANYAN_MODEL_RATE="2Mi")  # twelve seconds
        region.join(root.token(), "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
        regions.append(region.wait())
    narrow = tree.site("narrow", BANYAN_BLOB_BUDGET="1Mi")
    narrow.join(root.token(), "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
    narrow.wait()
    edges = [tree.edge(f"edge-{number}", regions[number % 2]) for number in range(4)]
    last = tree.edge("edge-4", narrow)
    until("all are in", lambda: len(root.clusters()) == 9)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes((EMOTION / "model-1" / "model.onnx").read_bytes())
    ballast = os.urandom(size)
    (tmp_path / "model" / "ballast").write_bytes(ballast)
    digest = hashlib.sha256(ballast).hexdigest()
    root.banyan("model", "publish", "wide", str(tmp_path / "model"), "--version", "1")
    before = {site.name: sent(site) for site in (root, *regions)}
    document = model_application("wide", strategy="Duplicated", clusterSelector={"matchLabels": {"tier": "edge"}})
    document["spec"]["components"][0]["model"]["name"] = "wide"
    assert root.ask("POST", APPS, document)[0] == 201

    def whole(site: Site) -> bool:
        return (site.folder / "blobs" / "sha256" / digest[:2] / digest).exists()

    def flows(edge: Site) -> bool:
        partial = edge.folder / "blobs" / "partial" / digest
        return whole(edge) or (partial.exists() and partial.stat().st_size >= 4 << 20)

    until("an edge has some of it", lambda: flows(edges[0]))
    assert not whole(regions[0]), "the edge had nothing before its region had all"
    until("all have it", lambda: all(whole(site) for site in (*regions, *edges, last)))
    assert not whole(narrow)
    for site in (root, *regions):
        for peer, bytes_ in sent(site).items():
            copies = (bytes_ - before[site.name].get(peer, 0)) / size
            if peer != ("root" if site is not root else ""):
                assert 1 <= copies < 1.2, f"{copies:.2f} copies from {site.name} to {peer}"
    until("all serve", lambda: root.status("wide").get("ready") == 5)
    hops = json.loads(root.banyan("model", "status", "wide", "-o", "json").stdout)["hops"]
    assert {hop["cluster"] for hop in hops if hop["state"] == "Here"} == {site.name for site in tree.sites.values()} - {"narrow"}
    assert all(hop["files"] == hop["ofFiles"] == 2 and hop["received"] == hop["size"] > size for hop in hops if hop["state"] == "Here")


def classifier(path: Path, head: int) -> None:
    """A model of 8 MB with two hidden layers that are always the same, and a head of its own."""
    shapes = {"one": (64, 1024), "two": (1024, 1900), "head": (1900, 10)}
    nodes, weights, last = [], [], "x"
    for name, shape in shapes.items():
        made = np.random.default_rng(head if name == "head" else 1).standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)
        weights.append(onnx.numpy_helper.from_array(made, name))
        nodes.append(onnx.helper.make_node("MatMul", [last, name], [f"{name}-out"]))
        last = f"{name}-out"
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", FLOAT, [None, 64]), (last, FLOAT, [None, 10]))]
    graph = onnx.helper.make_graph(nodes, "classifier", ends[:1], ends[1:], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)


def answered(port: int) -> tuple[str, list[float]]:
    """Which version answered, and what."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 64], "data": [1.0] * 64}
    url = f"http://127.0.{NEIGHBOURHOOD}.1:{port}/v2/models/classifier/infer"
    request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        told = json.load(answer)
    return told["model_version"], told["outputs"][0]["data"]


def test_a_new_head_costs_its_own_chunks_and_serves(grove: Tree, tmp_path: Path) -> None:
    root, region, edge, port = grove.sites["root"], grove.sites["region-a"], grove.sites["edge-1"], 18404
    path = tmp_path / "model.onnx"
    classifier(path, 2)
    root.banyan("model", "publish", "classifier", str(path), "--version", "1")
    document = model_application("classifier", port=port, clusterName="edge-1")
    document["spec"]["components"][0]["model"]["name"] = "classifier"
    name = create(root, document)
    version, before = answered(port)
    assert version == "1"
    above = {site.name: received(site, peer) for site, peer in ((region, "root"), (edge, "region-a"))}
    classifier(path, 3)
    root.banyan("model", "publish", "classifier", str(path), "--version", "2")
    change(root, name, model={"name": "classifier", "version": "2"})
    until("version 2 serves", lambda: answered(port)[0] == "2")
    assert answered(port)[1] != before
    for site, peer in ((region, "root"), (edge, "region-a")):
        assert MEBIBYTE / 2 < received(site, peer) - above[site.name] < 2 * MEBIBYTE, "the head's chunk, and what else is said"
    root.banyan("delete", "application", name, "--wait")
    root.banyan("delete", "model", "classifier")
