"""What is known of k3s beside Kubernetes: where its kubeconfig is, and what it brings along."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cluster_shim.contract import ShimError
from cluster_shim.k3s.shim import K3sShim, access
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.render import Settings
from tests.kubernetes.scripted import Exchange, Scripted, kubeconfig, scripted

DAEMONSETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
DEPLOYMENTS = "/apis/apps/v1/namespaces/kube-system/deployments"


def test_the_kubeconfig_that_k3s_writes_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    place = tmp_path / "k3s.yaml"
    place.touch()
    assert access(Access(context="site"), place, in_pod=False) == Access(kubeconfig=str(place), context="site")
    assert access(Access(kubeconfig="/mine"), place, in_pod=False) == Access(kubeconfig="/mine")
    assert access(Access(), place, in_pod=True) == Access()


def test_a_place_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ShimError, match=r"k3s\.yaml is not here; run this on a k3s server as root, or name a kubeconfig"):
        access(Access(), tmp_path / "k3s.yaml", in_pod=False)


def member(version: str, servicelb: bool, traefik: bool) -> Callable[[Exchange], None]:
    """One with something else in kube-system too: only what is asked for counts."""

    def script(asked: Exchange) -> None:
        if asked.path == "/version":
            asked.say({"gitVersion": version})
        elif asked.path == "/api/v1/namespaces/kube-system":
            asked.say({"metadata": {"uid": "u"}})
        elif asked.path == DAEMONSETS and asked.query.get("labelSelector") == "svccontroller.k3s.cattle.io/svcname":
            asked.listed(*([{"metadata": {"name": "svclb-traefik-1"}}] if servicelb else []))
        elif asked.path == DEPLOYMENTS and asked.query.get("fieldSelector") == "metadata.name=traefik":
            asked.listed(*([{"metadata": {"name": "traefik"}}] if traefik else []))
        else:
            asked.listed({"metadata": {"name": "coredns"}})

    return script


@contextmanager
def learning(folder: Path, version: str, *, servicelb: bool, traefik: bool) -> Iterator[Scripted]:
    with scripted(member(version, servicelb, traefik)) as server:
        kubeconfig(folder / "kubeconfig", server.url)
        yield server


def learn(folder: Path, settings: Settings, *, chosen: bool = False) -> tuple[dict[str, str], str, list[str]]:
    """Labels for nodes, the type of Services from now on, and what is logged as a warning."""

    async def ask() -> dict[str, str]:
        api = await Api.open(given)
        try:
            return await shim._learn(api)
        finally:
            await api.close()

    given = Access(kubeconfig=str(folder / "kubeconfig"))
    shim = K3sShim(given, settings, folder, service_type_chosen=chosen)
    with capture_logs() as logs:
        labels = asyncio.run(ask())
    return labels, shim._settings.service_type, [one["event"] for one in logs if one["log_level"] == "warning"]


@pytest.mark.parametrize("servicelb", [True, False])
@pytest.mark.parametrize("traefik", [True, False])
def test_what_k3s_brings_along_is_noticed_and_its_load_balancer_used(tmp_path: Path, servicelb: bool, traefik: bool) -> None:
    with learning(tmp_path, "v1.34.2+k3s1", servicelb=servicelb, traefik=traefik):
        labels, service_type, warnings = learn(tmp_path, Settings())
    assert labels == {"k3s.banyan.dev/servicelb": str(servicelb).lower(), "k3s.banyan.dev/traefik": str(traefik).lower()}
    assert service_type == ("LoadBalancer" if servicelb else "ClusterIP")
    assert warnings == []


def test_a_type_of_service_that_the_site_chose_stays(tmp_path: Path) -> None:
    with learning(tmp_path, "v1.34.2+k3s1", servicelb=True, traefik=True):
        assert learn(tmp_path, Settings(service_type="ClusterIP"), chosen=True)[1] == "ClusterIP"


def test_another_distribution_is_taken_for_k3s_with_a_warning(tmp_path: Path) -> None:
    with learning(tmp_path, "v1.34.2", servicelb=False, traefik=False):
        assert learn(tmp_path, Settings())[2] == ["member.no_k3s"]
