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
    interpreter, (certificate, key) = python(), certificates(folder)
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with ExitStack() as stack:
        hub, leaves, leaf = free_port(), free_port(), free_port()
        (folder / "hub.conf").write_text(
            f"listen: 127.0.0.1:{hub}\n{tls}\nleafnodes {{ listen: 127.0.0.1:{leaves}\n{tls} }}\n", encoding="utf-8"
        )
        remote = f'url: "tls://localhost:{leaves}", tls {{ ca_file: "{certificate}" }}'
        (folder / "leaf.conf").write_text(
            f"listen: 127.0.0.1:{leaf}\n{tls}\nleafnodes {{ remotes: [ {{ {remote} }} ] }}\n", encoding="utf-8"
        )
        for name, port, core in (("hub", hub, cores[-1]), ("leaf", leaf, cores[0])):
            serve(stack, interpreter.parent / "nats-server", folder / f"{name}.conf", port, core)
        program = (str(interpreter), str(PROGRAM))
        made = []
        for role, *words in (("sink", leaf, certificate, subscribers), ("source", hub, certificate)):
            process = Process(cores[-1], str(role), *words, program=program)
            stack.callback(process.kill)
            process.read()
            made.append(process)
        yield Ends(source=made[1], sink=made[0])


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
