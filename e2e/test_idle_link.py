"""What an idle link carries does not grow with what stands below it: counted on a real root's link to a region, with and without edges."""

import re
import time

from e2e.support import Site, Tree, until

HEARTBEAT = "1"
WATCHED = 5.0  # seconds: five heartbeats
HEARTBEAT_BYTES = 200  # question and answer, with TLS and WebSocket: less than that


def on_the_links(root: Site) -> int:
    """Bytes both ways over all links of the root, since they came up."""
    code, text = root.ask("GET", "/metrics")
    assert code == 200
    found = re.findall(r"^banyan_link_(?:received|sent)_bytes_total\{[^}]*\} ([0-9.e+]+)$", text.decode(), re.MULTILINE)
    assert found, text.decode()
    return int(sum(float(one) for one in found))


def carried(root: Site, seconds: float = WATCHED) -> int:
    before = on_the_links(root)
    time.sleep(seconds)
    return on_the_links(root) - before


def idle(root: Site) -> int:
    """Bytes of `WATCHED` seconds, once the link has nothing to say but heartbeats."""
    until("the link is idle", lambda: carried(root, 2.0) <= 4 * HEARTBEAT_BYTES)
    return carried(root)


def test_an_idle_uplink_costs_the_same_with_edges_below(tree: Tree) -> None:
    root = tree.site("root", BANYAN_HEARTBEAT_SECONDS=HEARTBEAT)
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
    root.run()
    region = tree.site("region-a", BANYAN_HEARTBEAT_SECONDS=HEARTBEAT)
    region.join(root.token(), "--tunnel-listen", "127.0.0.1:0", "--shim", "none")
    region.wait()
    until("the region is in", lambda: root.clusters().get("region-a", {}).get("phase") == "Ready")
    alone = idle(root)
    edges = [tree.site(f"edge-{number}", BANYAN_HEARTBEAT_SECONDS=HEARTBEAT, BANYAN_SHIM="none") for number in range(4)]
    for edge in edges:
        edge.join(region.token(), "--tunnel-listen", "")
    for edge in edges:
        edge.wait()
    until("all are in", lambda: [one["phase"] for one in root.clusters().values()] == ["Ready"] * 6)
    below = idle(root)
    print(f"\nin {WATCHED:g} s: {alone} bytes alone, {below} with four edges below")
    assert alone > 0
    assert below <= alone + 2 * HEARTBEAT_BYTES  # one that falls into this window and not into the other
