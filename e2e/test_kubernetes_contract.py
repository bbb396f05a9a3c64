"""The contract suite on real clusters: the Kubernetes shim in this process, and the k3s shim in one of its own, spoken to over gRPC.

`tests/shim/test_contract.py` runs the same checks against processes, with the same results: pods start, serve, fail and keep their files.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cluster_shim import verify
from cluster_shim.contract import Shim
from cluster_shim.grpc.client import GrpcShim
from cluster_shim.kubernetes.api import Access
from cluster_shim.kubernetes.render import Settings
from cluster_shim.kubernetes.shim import KubernetesShim
from e2e.support import ROOT
from e2e.testbed.fixtures import begin
from e2e.testbed.member import Member, Shape, Testbed

pytestmark = pytest.mark.needs("kubectl")
IMAGE = "banyan-edge:0.1.0"  # as `edge_image` names it
Check = Callable[[Shim], Awaitable[None]]


def furnish(member: Member, image: Path) -> None:
    """What a site gives its cluster: the worker's image, and a volume that a claim of any size below it gets."""
    member.load_image(image)
    folder = f"/var/lib/banyan-contract-{member.name}"
    member.machine.run(["mkdir", "-p", folder])
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [member.name]}]}]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "contract"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "local": {"path": folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    }
    member.kubectl("apply", "-f", "-", stdin=json.dumps(volume))


def strip(member: Member) -> None:
    member.kubectl("delete", "pvc", "--all", "-n", "default", "--wait=false")
    member.kubectl("delete", "pv", "contract", "--wait=false")
    member.machine.run(["rm", "-rf", f"/var/lib/banyan-contract-{member.name}"])


@pytest.fixture(scope="module")
def kubernetes(whole_member: Member, edge_image: Path) -> Iterator[Member]:
    furnish(whole_member, edge_image)
    yield whole_member
    strip(whole_member)


@pytest.fixture(scope="module")
def k3s_address(_shared_members: Testbed, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A k3s-style cluster with a node where pods run, behind `banyan shim serve k3s`."""
    member = begin(_shared_members, "k3s-node", Shape.k3s(node=True))
    furnish(member, edge_image)
    folder = tmp_path_factory.mktemp("shim")
    address = f"unix:{folder}/shim.sock"
    argv = [sys.executable, "-m", "banyanctl", "--data", str(folder), "shim", "serve", "k3s", "--listen", address]
    argv += ["--kubeconfig", str(member.kubeconfig), "--kubernetes", f"worker_image={IMAGE}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving {address}\n"
        yield address
        process.terminate()
    _shared_members.remove("k3s-node")


def judge(result: verify.Result) -> None:
    assert result.ok, result.message


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
def test_kubernetes(kubernetes: Member, tmp_path: Path, wanted: Check) -> None:
    async def scenario() -> None:
        shim = KubernetesShim(Access(kubeconfig=str(kubernetes.kubeconfig)), Settings(worker_image=IMAGE), tmp_path)
        try:
            judge(await verify.check(shim, wanted))
        finally:
            await shim.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
def test_k3s_over_grpc(k3s_address: str, wanted: Check) -> None:
    async def scenario() -> None:
        shim = GrpcShim(k3s_address)
        try:
            judge(await verify.check(shim, wanted))
            assert (await shim.describe()).kind == "k3s"
        finally:
            await shim.close()

    asyncio.run(scenario())
