"""What a member's nodes have and use, at its controller's /metrics: from a metrics server behind the real aggregator, and a device plugin's
resource on a node.
"""

import base64
import http.server
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.place import Place, busybox, join
from e2e.support import Site, Tree, until
from e2e.testbed import Member

pytestmark = pytest.mark.needs("kubectl")
NODE, GPU = "kwok-0", "nvidia.com/gpu"
GROUP, VERSION = "metrics.k8s.io", "v1beta1"
CORES, BYTES = 1.25, 3 << 30


def answers(path: str) -> dict[str, Any] | None:
    """Of a metrics server that knows one node."""
    base = f"/apis/{GROUP}/{VERSION}"
    kinds = {"nodes": "NodeMetrics", "pods": "PodMetrics"}
    if path == base:
        resources = [{"name": name, "kind": kind, "namespaced": name == "pods", "verbs": ["get", "list"]} for name, kind in kinds.items()]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}", "resources": resources}
    used = {"metadata": {"name": NODE}, "timestamp": "2026-11-21T12:00:00Z", "window": "20s"}
    items = {"nodes": [used | {"usage": {"cpu": f"{int(CORES * 1e9)}n", "memory": f"{BYTES >> 10}Ki"}}], "pods": []}
    name = path.removeprefix(f"{base}/")
    if name in items:
        return {"kind": f"{kinds[name]}List", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items[name]}
    return None


@contextmanager
def metrics_server(member: Member, service: str) -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers(self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*member.authority.issue(service, service, hosts=[f"{service}.default.svc"]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def registered(member: Member) -> Iterator[None]:
    """The metrics server as an API of the member's own, asked through its aggregator."""
    name = f"metrics-{secrets.token_hex(3)}"
    with metrics_server(member, name) as port:
        meta = {"name": name, "namespace": "default"}
        service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": "ExternalName", "externalName": "localhost"}}
        authority = base64.b64encode(member.authority.certificate.read_bytes()).decode()
        spec = {"group": GROUP, "version": VERSION, "groupPriorityMinimum": 100, "versionPriority": 100, "caBundle": authority}
        api = {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{VERSION}.{GROUP}"},
            "spec": spec | {"service": {**meta, "port": port}},
        }
        try:
            for made in (service, api):
                member.kubectl("apply", "-f", "-", stdin=json.dumps(made))
            member.kubectl("wait", "--for=condition=Available", f"apiservice/{VERSION}.{GROUP}", "--timeout=50s")
            yield
        finally:
            member.kubectl("delete", f"apiservice/{VERSION}.{GROUP}", "--ignore-not-found", check=False)
            member.kubectl("delete", "service", name, "--ignore-not-found", check=False)


@contextmanager
def device_plugin(member: Member, count: int) -> Iterator[None]:
    """As one leaves it in the status of its node."""

    def offer(value: str | None) -> None:
        status = {"status": {"capacity": {GPU: value}, "allocatable": {GPU: value}}}
        member.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps(status))

    offer(str(count))
    try:
        yield
    finally:
        offer(None)


def metric(site: Site, name: str, **labels: str) -> float | None:
    code, text = site.ask("GET", "/metrics")
    assert code == 200, text
    wanted = f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in sorted(labels.items()))}}} "
    found = [line for line in text.decode().splitlines() if line.startswith(wanted)]
    return float(found[0].removeprefix(wanted)) if found else None


def test_what_nodes_have_and_use_is_at_the_controllers_metrics(kwok_member: Member, tree: Tree) -> None:
    root = tree.root()
    with registered(kwok_member), device_plugin(kwok_member, 4):
        edge = join(tree, root, "edge-metrics", kwok_member)
        place = Place(root, edge, kwok_member, "edge-metrics")
        until("what a node uses is known", lambda: metric(edge, "banyan_node_cpu_used_cores", node=NODE) == CORES)
        assert metric(edge, "banyan_node_memory_used_bytes", node=NODE) == BYTES
        assert metric(edge, "banyan_node_cpu_used_cores", node="kwok-1") is None  # nobody knows
        assert metric(edge, "banyan_node_cpu_capacity_cores", node=NODE) == 64
        assert metric(edge, "banyan_node_memory_allocatable_bytes", node=NODE) == 256 << 30
        until("its accelerators are", lambda: metric(edge, "banyan_node_accelerators", accelerator=GPU, node=NODE) == 4)
        place.create("greedy", busybox("sleep", "3600", resources={"accelerators": {GPU: 3}}))
        place.until_ready("greedy")
        until("one is free", lambda: metric(edge, "banyan_node_accelerators_free", accelerator=GPU, node=NODE) == 1)
        assert metric(edge, "banyan_node_accelerators", accelerator=GPU, node=NODE) == 4  # what is ours takes no room from us
        place.clear()
        until("all are free", lambda: metric(edge, "banyan_node_accelerators_free", accelerator=GPU, node=NODE) == 4)
