"""A NATS leaf node as the relay: a hub, a leaf node of it, both with TLS, and clients in the peer's own environment, on our cores.

The leaf node has the core that our relay has; hub, publisher and subscribers share the other one, as our source and sink do.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Struct

from benchmarks.peers import environments
from benchmarks.relay_ends import Process
from cluster_controller import clock

PROGRAM = Path(__file__).parent / "peers" / "nats_peer.py"
READY_SECONDS = 30.0
NAME = "NATS leaf node, TLS"


class Ends(Struct):
    """What can be asked."""

    source: Process
    sink: Process


def python() -> Path:
    """Of the peer's environment, which is made if it is not there."""
    return environments.python("nats")


@contextmanager
def running(folder: Path, subscribers: int, cores: list[int]) -> Iterator[Ends]:
    """Hub and leaf node, with ``subscribers`` clients of the leaf and one publisher at the hub."""
    with ExitStack() as stack:
        hub, leaf, certificate = servers(stack, folder, cores)
        yield Ends(
            sink=client(stack, cores[-1], "sink", leaf, certificate, subscribers),
            source=client(stack, cores[-1], "source", hub, certificate),
        )


@contextmanager
def tunnel(folder: Path, cores: list[int]) -> Iterator[Process]:
    """A source at the hub that does what `benchmarks.tunnels` asks, with one client of the leaf as its sink."""
    with ExitStack() as stack:
        hub, leaf, certificate = servers(stack, folder, cores)
        client(stack, cores[-1], "tunnel-sink", leaf, certificate)
        yield client(stack, cores[-1], "tunnel-source", hub, certificate)


def servers(stack: ExitStack, folder: Path, cores: list[int]) -> tuple[int, int, Path]:
    """Hub and leaf node: where each takes clients, and what vouches for them."""
    certificate, key = certificates(folder)
    program = python().parent / "nats-server"
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    hub, leaves, leaf = free_port(), free_port(), free_port()
    remote = f'url: "tls://localhost:{leaves}", tls {{ ca_file: "{certificate}" }}'
    nodes = {
        "hub": (hub, cores[-1], f"leafnodes {{ listen: 127.0.0.1:{leaves}\n{tls} }}"),
        "leaf": (leaf, cores[0], f"leafnodes {{ remotes: [ {{ {remote} }} ] }}"),
    }
    for name, (port, core, nodes_of) in nodes.items():
        (folder / f"{name}.conf").write_text(f"listen: 127.0.0.1:{port}\n{tls}\n{nodes_of}\n", encoding="utf-8")
        serve(stack, program, folder / f"{name}.conf", port, core)
    return hub, leaf, certificate


def client(stack: ExitStack, core: int, role: str, *words: object) -> Process:
    process = Process(core, role, *words, program=(str(python()), str(PROGRAM)))
    stack.callback(process.kill)
    process.read()
    return process


def serve(stack: ExitStack, program: Path, settings: Path, port: int, core: int) -> None:
    with settings.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([str(program), "-c", str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.kill)
    os.sched_setaffinity(process.pid, {core})
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the peer nats-server does not listen: {settings.with_suffix('.log').read_text(encoding='utf-8')[-1000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificates(folder: Path) -> tuple[Path, Path]:
    """A server certificate that is its own anchor, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nats")])
    hosts = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(clock.wall() - timedelta(hours=1)).not_valid_after(clock.wall() + timedelta(days=1))
        .add_extension(hosts, critical=False).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate, secret = folder / "nats.pem", folder / "nats.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.touch(0o600)
    plain = serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return certificate, secret
