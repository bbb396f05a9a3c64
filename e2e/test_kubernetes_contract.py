"""The contract suite on real clusters: the Kubernetes shim in this process and over gRPC, and the k3s shim over gRPC.

`tests/shim/test_contract.py` runs the same checks against processes, with the same results: pods start, serve, fail and keep their files.
"""

import asyncio
import contextlib
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
from e2e.at_site import load_worker
from e2e.support import ROOT
from e2e.testbed.fixtures import begin
from e2e.testbed.member import Member, Shape, Testbed

pytestmark = pytest.mark.needs("kubectl")
Check = Callable[[Shim], Awaitable[None]]


def furnish(member: Member, image: Path) -> str:
    """What a site gives its cluster: a volume that a claim of any size below it gets, and the worker's image, whose name this returns."""
    member.disown()
    member.give_volume("contract", "1Gi")
    return load_worker(member, image)


def strip(member: Member) -> None:
    member.kubectl("delete", "pvc", "--all", "-n", "default", "--wait=false")
    member.take_volume("contract")


@pytest.fixture(scope="module")
def kubernetes(whole_member: Member, edge_image: Path) -> Iterator[tuple[Path, str]]:
    """Its kubeconfig, and the worker's image there."""
    image = furnish(whole_member, edge_image)
    whole_member.give_volume("contract-over-grpc", "1Gi")  # one that was claimed serves no second claim
    yield whole_member.kubeconfig, image
    strip(whole_member)
    whole_member.take_volume("contract-over-grpc")


@pytest.fixture(scope="module")
def k3s_address(_shared_members: Testbed, edge_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A k3s-style cluster with a node where pods run, behind `banyan shim serve k3s`."""
    member = begin(_shared_members, "k3s-node", Shape.k3s(node=True))
    image = furnish(member, edge_image)
    with served("k3s", member.kubeconfig, image, tmp_path_factory.mktemp("shim")) as address:
        yield address
    _shared_members.remove("k3s-node")


@pytest.fixture(scope="module")
def kubernetes_address(kubernetes: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    kubeconfig, image = kubernetes
    with served("kubernetes", kubeconfig, image, tmp_path_factory.mktemp("shim")) as address:
        yield address


@contextlib.contextmanager
def served(kind: str, kubeconfig: Path, image: str, folder: Path) -> Iterator[str]:
    """`banyan shim serve` as a process of its own; its address."""
    address = f"unix:{folder}/shim.sock"
    argv = [sys.executable, "-m", "banyanctl", "--data", str(folder), "shim", "serve", kind, "--listen", address]
    argv += ["--kubeconfig", str(kubeconfig), "--kubernetes", f"worker_image={image}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"serving {address}\n"
            yield address
        finally:
            process.terminate()


def judge(result: verify.Result) -> None:
    assert result.ok, result.message


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
def test_kubernetes(kubernetes: tuple[Path, str], tmp_path: Path, wanted: Check) -> None:
    kubeconfig, image = kubernetes

    async def scenario() -> None:
        shim = KubernetesShim(Access(kubeconfig=str(kubeconfig)), Settings(worker_image=image), tmp_path)
        try:
            judge(await verify.check(shim, wanted))
        finally:
            await shim.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
def test_kubernetes_over_grpc(kubernetes_address: str, wanted: Check) -> None:
    over_grpc(kubernetes_address, "kubernetes", wanted)


@pytest.mark.parametrize("wanted", verify.CHECKS, ids=lambda wanted: wanted.__name__)
def test_k3s_over_grpc(k3s_address: str, wanted: Check) -> None:
    over_grpc(k3s_address, "k3s", wanted)


def over_grpc(address: str, kind: str, wanted: Check) -> None:
    async def scenario() -> None:
        shim = GrpcShim(address)
        try:
            judge(await verify.check(shim, wanted))
            assert (await shim.describe()).kind == kind
        finally:
            await shim.close()

    asyncio.run(scenario())
