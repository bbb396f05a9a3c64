"""A controller whose cluster is managed by a shim in another process: over a Unix socket, and over TCP with certificates of its own."""

import contextlib
import datetime
import ipaddress
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from banyanctl.demo.ports import free_port
from e2e.support import APPS, ROOT, Site, Tree, program, until


@contextlib.contextmanager
def shim(folder: Path, address: str, *files: Path) -> Iterator[None]:
    argv = [sys.executable, "-m", "e2e.shim_program", str(folder), address, *map(str, files)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.terminate()


def runs_on(site: Site) -> None:
    until("its node is known", lambda: [node["metadata"]["name"] for node in site.get("/api/v1/nodes")["items"]] == ["far"])
    code, answer = site.ask("POST", APPS, program("far", expose={"port": 18501}, placement={"clusterName": "root"}))
    assert code == 201, answer
    until("it runs", lambda: site.status("far").get("ready") == 1)
    code, answer = site.ask("GET", f"{APPS}/far/proxy/")
    assert code == 200, answer
    assert answer["env"]["BANYAN_NODE"] == "far"
    assert "serving" in site.banyan("logs", "far").stdout


def started(tree: Tree, address: str) -> Site:
    root = tree.site("root")
    root.banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "", "--shim", address)
    return root


def test_over_a_unix_socket_and_again_after_it_was_away(tree: Tree, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/shim.sock"
    root = started(tree, address)
    root.launch("run", "--data", str(root.folder))
    until("it waits for its shim", lambda: "see whether it runs" in root.log())
    with shim(tmp_path / "far", address):
        runs_on(root.wait())
    assert "Traceback" not in root.log(500)
    until("nothing stale looks fresh", lambda: root.status("far").get("ready", 0) == 0)
    with shim(tmp_path / "far", address):
        until("it runs again", lambda: root.status("far").get("ready") == 1)
        root.stop()


def test_over_tcp_with_certificates_of_its_own(tree: Tree, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port(18600)}"
    root = started(tree, address)
    refused = root.banyan("run", check=False)
    assert refused.returncode == 2
    assert "ca.pem" in refused.stderr
    folder = root.folder / "shim"
    folder.mkdir()
    write_certificates(folder)
    with shim(tmp_path / "far", address, *(folder / name for name in ("ca.pem", "certificate.pem", "key.pem"))):
        runs_on(root.run())
        root.stop()


def write_certificates(folder: Path) -> None:
    """One certificate that signs itself, shown by both sides."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shim")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    for file in ("ca.pem", "certificate.pem"):
        (folder / file).write_bytes(pem)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(private)


@pytest.mark.parametrize("given", ["docker", "unix:relative.sock", "host-without-port"])
def test_an_address_that_is_none(tmp_path: Path, given: str) -> None:
    refused = Site(tmp_path / "refused", {"BANYAN_SHIM": given}).banyan("init", "root", check=False)
    assert refused.returncode == 2, refused.stderr
    assert "unix:/PATH or HOST:PORT" in refused.stderr
    Site(tmp_path / "root", {}).banyan("init", "root", "--api-listen", "127.0.0.1:0", "--tunnel-listen", "")
    done = Site(tmp_path / "root", {"BANYAN_SHIM": given}).banyan("run", check=False)
    assert done.returncode == 2, done.stderr
    assert "unix:/PATH or HOST:PORT" in done.stderr
