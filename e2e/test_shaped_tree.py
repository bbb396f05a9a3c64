"""The shipped `banyan run` over links of 20 Mbit/s: root → region → edge, each in its own network, a model on its way down.

What `test_shaped_link` shows of the tunnel alone is shown here of the product: people's requests, desired state and heartbeats pass
beside a model that fills the link, and a client that stops reading an endless answer costs every hop a window and no more.
"""

import os
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from banyanctl.client import Client, tls_context
from banyanctl.endpoint import ADMIN_KUBECONFIG, read
from cluster_controller.tunnel import Limits
from cluster_controller.tunnel.protocol.pacing import FRAME_TIME, TARGET_DELAY
from e2e.netns import Fabric, weaving
from e2e.placed import HEARTBEAT, PlacedSite
from e2e.support import API, APPS, EMOTION, Site, Tree, growing, model_application, program, talker, until
from e2e.test_shaped_link import MEBIBYTE, RATE

pytestmark = pytest.mark.needs("root")

BALLAST = 24 * MEBIBYTE  # ten seconds of the link


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[PlacedSite]]:
    with weaving() as fabric, growing(tmp_path_factory.mktemp("shaped")) as tree:
        yield plant(fabric, tree)


def plant(fabric: Fabric, tree: Tree) -> list[PlacedSite]:
    spaces = {name: fabric.namespace(name) for name in ("root", "region", "edge")}
    upper, lower = fabric.link(spaces["root"], spaces["region"]), fabric.link(spaces["region"], spaces["edge"])
    for link in (upper, lower):
        link.shape(RATE)
    sites = []
    for name, space in spaces.items():
        site = PlacedSite(tree.folder / name, {"BANYAN_SITE_BIND": "127.0.1.1", "BANYAN_CAPACITY": "cpu=2,memory=1Gi"}, space)
        tree.sites[name] = site
        sites.append(site)
    root, region, edge = sites
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", f"{upper.upper.address}:0", "--shim", "none")
    root.run()
    region.join(root.token(), "--tunnel-listen", f"{lower.upper.address}:0", "--shim", "none")
    region.wait()
    edge.join(region.token(), "--tunnel-listen", "", "--labels", "tier=edge")
    edge.wait()
    until("all are Ready", lambda: [one["phase"] for one in root.clusters().values()] == ["Ready"] * 3)
    return sites


def round_trips(root: PlacedSite, rounds: int) -> float:
    """Median seconds of a person's small request to the edge's own API, through the root and two hops."""
    taken = []
    with root.space.entered(), Client(read(root.folder / ADMIN_KUBECONFIG), 20.0) as client:
        for _ in range(rounds):
            began = time.perf_counter()
            assert client.request("GET", f"{API}/clusters/edge/banyan/version").status == 200
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def deployed(root: Site, name: str) -> float:
    """Seconds from an Application's creation at the root until its instance on the edge is ready in the root's eyes."""
    began = time.monotonic()
    code, answer = root.ask("POST", APPS, talker(name, clusterName="edge"))
    assert code == 201, answer
    until(f"{name} is ready", lambda: root.status(name).get("ready") == 1)
    return time.monotonic() - began


def losses(sites: list[PlacedSite]) -> int:
    return sum((site.folder.parent / f"{site.name}.log").read_text().count("link.lost") for site in sites)


def test_requests_and_desired_state_pass_beside_a_model_that_fills_the_link(placed: list[PlacedSite], tmp_path: Path) -> None:
    root, region, _ = placed
    (tmp_path / "ballast.bin").write_bytes(os.urandom(BALLAST))
    model = EMOTION / "model-1" / "model.onnx"
    root.banyan("model", "publish", "emotion", str(model), str(tmp_path / "ballast.bin"), "--version", "1")
    alone, sync_alone = round_trips(root, 30), deployed(root, "before")
    lost, memory = losses(placed), [site.pss() for site in placed]
    began = time.monotonic()
    code, answer = root.ask("POST", APPS, model_application(clusterName="edge"))
    assert code == 201, answer
    until("the model is on its way", lambda: arrived(region) > MEBIBYTE)
    beside, sync_beside = round_trips(root, 30), deployed(root, "beside")
    assert arrived(region) < BALLAST  # it was under way all the time
    until("the model serves", lambda: root.status().get("ready") == 1, 120)
    took = time.monotonic() - began
    grown = [site.pss() - was for site, was in zip(placed, memory, strict=True)]
    print(f"\nrequest {alone:.4f} s alone, {beside:.4f} beside; deployed {sync_alone:.2f} / {sync_beside:.2f}; {took:.1f} s; PSS {grown}")
    assert beside - alone < 2 * 2 * (TARGET_DELAY + FRAME_TIME)
    assert sync_beside < 3 * sync_alone + 1
    assert losses(placed) == lost
    assert max(grown) < BALLAST / 2


def arrived(site: PlacedSite) -> int:
    """Bytes of blobs on a site's disk, the unfinished included."""
    return sum(path.stat().st_size for path in (site.folder / "blobs").rglob("*") if path.is_file())


def test_a_client_that_stops_reading_costs_each_hop_a_window(placed: list[PlacedSite]) -> None:
    root, _, edge = placed
    code, answer = root.ask("POST", APPS, program("source", placement={"clusterName": "edge"}, expose={"port": 18301}))
    assert code == 201, answer
    until("it is ready", lambda: root.status("source").get("ready") == 1)
    alone, lost, memory = round_trips(root, 30), losses(placed), [site.pss() for site in placed]
    endpoint = read(root.folder / ADMIN_KUBECONFIG)
    with root.space.entered(), socket.create_connection(endpoint.address, timeout=20) as plain:
        connection = tls_context(endpoint).wrap_socket(plain, server_hostname=endpoint.address[0])
    with connection:
        connection.sendall(f"GET {APPS}/source/proxy/bytes/100000000 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
        time.sleep(4 * HEARTBEAT)  # long enough to fill what can be filled, and for a link to die if heartbeats waited
        grown = [site.pss() - was for site, was in zip(placed, memory, strict=True)]
        beside, sync = round_trips(root, 30), deployed(root, "stalled")
    print(f"\nrequest {alone:.4f} s alone, {beside:.4f} beside a stalled client; deployed in {sync:.2f} s; PSS grew by {grown}")
    assert max(grown) < 4 * Limits().max_window
    assert beside < 3 * alone + FRAME_TIME
    assert losses(placed) == lost
    assert edge.process is not None and edge.process.poll() is None
