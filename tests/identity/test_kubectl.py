"""The real kubectl (Go's own X.509 verification, dates and all) against an API certificate, with the credentials that we issue."""

import asyncio
import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster_controller.identity import Identity, create_root, user_identity, verified_chain
from cluster_controller.identity.authority import UserCredential
from cluster_controller.identity.certificates import pem
from cluster_controller.identity.users import Grant
from tests.identity.family import below
from tools import needs

pytestmark = pytest.mark.needs("kubectl")
BODY = b'{"major":"1","minor":"34","gitVersion":"v1.34.0"}'


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kubeconfig(port: int, host: str, anchors: bytes, user: UserCredential) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"https://{host}:{port}", "certificate-authority-data": encoded(anchors)}}],
            "users": [{"name": "u", "user": {"client-certificate-data": encoded(user.certificate), "client-key-data": encoded(user.key)}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )


async def ask(tmp_path: Path, identity: Identity, host: str, anchors: bytes, user: UserCredential) -> tuple[int, str, tuple[bytes, ...]]:
    """`kubectl get --raw /version` at an API that shows ``identity``'s certificate: exit code, output, and what it presented."""
    shown: list[tuple[bytes, ...]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(verified_chain(writer.get_extra_info("ssl_object")))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
        )
        writer.close()

    now = datetime.now(UTC)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=identity.api_context([], now)) as server:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(server.sockets[0].getsockname()[1], host, anchors, user))
        process = await asyncio.create_subprocess_exec(
            needs.kubectl(), "--kubeconfig", str(path), "get", "--raw", "/version",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"HOME": str(tmp_path), "NO_PROXY": "*"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, (out + err).decode(), shown[0] if shown else ()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity, Identity]:
    now = datetime.now(UTC)
    top = create_root(tmp_path_factory.mktemp("root") / "identity", "root", now)
    # The region's own certificates ended years ago: it was cut off, and people on site go on working.
    region = below(top, "region-a", now - timedelta(days=2000))
    return top, region, below(region, "edge-1", now, leaf=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["root", "cut off region", "leaf"])
def test_kubectl_trusts_a_site_with_its_own_kubeconfig(
    tmp_path: Path, family: tuple[Identity, Identity, Identity], which: int, host: str
) -> None:
    identity, now = family[which], datetime.now(UTC)
    for user in (identity.admin_credential(now), identity.user_credential("alice", [Grant("view")], now, timedelta(days=1))):
        code, output, shown = asyncio.run(ask(tmp_path, identity, host, identity.api_anchors, user))
        assert code == 0 and "v1.34.0" in output, output
        assert user_identity(shown).admin == (user.id == "")


def test_kubectl_trusts_a_member_under_the_tree_ca(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    top = create_root(tmp_path / "identity", "root", now)
    region = below(top, "region-a", now)
    user = top.user_credential("alice", [Grant("view")], now, timedelta(days=1))
    code, output, shown = asyncio.run(ask(tmp_path, region, "localhost", pem(top.tree_ca), user))
    assert code == 0, output
    assert user_identity(shown).issuer == top.uid


Refusing = Callable[[tuple[Identity, Identity, Identity]], tuple[Identity, str, bytes]]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (lambda family: (family[2], "localhost", family[0].site.certificate), "unknown authority"),
        (lambda family: (family[1], "localhost", family[0].tree_ca), "expired"),
    ],
    ids=["another site's CA", "through certificates that ended"],
)
def test_kubectl_refuses(tmp_path: Path, family: tuple[Identity, Identity, Identity], case: Refusing, says: str) -> None:
    identity, host, anchor = case(family)
    user = identity.admin_credential(datetime.now(UTC))
    code, output, _ = asyncio.run(ask(tmp_path, identity, host, pem(anchor), user))
    assert code != 0 and says in output
