"""The shim of a k3s cluster: the Kubernetes one, and what k3s brings along.

k3s is Kubernetes, so everything is applied and observed as there; `HelmChart` objects (helm.cattle.io/v1) are manifests like any. Known
beside: where k3s writes its kubeconfig, and two things that it runs unless told otherwise. Its service load balancer (servicelb) puts
ports of LoadBalancer Services on every node, which is just what a site port is for devices on the LAN: so exposed components get such
a Service where it works and the site chose no other type. Its ingress (traefik) is only shown.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog
from msgspec import Struct, structs

from cluster_shim.contract import ShimError
from cluster_shim.kubernetes import render
from cluster_shim.kubernetes.api import Access, Api
from cluster_shim.kubernetes.owner import Owner
from cluster_shim.kubernetes.shim import KubernetesShim

log = structlog.get_logger()

KUBECONFIG = Path("/etc/rancher/k3s/k3s.yaml")
SERVICELB = ("/apis/apps/v1/namespaces/kube-system/daemonsets", ("labelSelector", "svccontroller.k3s.cattle.io/svcname"))
TRAEFIK = ("/apis/apps/v1/namespaces/kube-system/deployments", ("fieldSelector", "metadata.name=traefik"))
LABEL = "k3s.banyan.dev"


class _List(Struct, frozen=True):
    items: list[msgspec.Raw] = []


def access(given: Access, place: Path = KUBECONFIG, *, in_pod: bool | None = None) -> Access:
    """What was given, in a pod its service account, else the kubeconfig that k3s itself writes."""
    inside = "KUBERNETES_SERVICE_HOST" in os.environ if in_pod is None else in_pod
    if given.kubeconfig or inside:
        return given
    if not os.access(place, os.R_OK):
        why = "may not be read by this user" if place.exists() else "is not here"
        raise ShimError(f"{place} {why}; run this on a k3s server as root, or name a kubeconfig with --kubeconfig")
    return structs.replace(given, kubeconfig=str(place))


class K3sShim(KubernetesShim):
    """``service_type_chosen``: the site said in its settings what type of Service exposes a component."""

    kind = "k3s"

    def __init__(
        self,
        given: Access,
        settings: render.Settings,
        folder: Path,
        owner: Callable[[], Owner] | None = None,
        *,
        service_type_chosen: bool = False,
    ) -> None:
        super().__init__(given, settings, folder, owner)
        self._service_type_chosen = service_type_chosen

    def _access_now(self) -> Access:
        return access(self._access)

    async def _learn(self, api: Api) -> dict[str, str]:
        servicelb, traefik = await _any(api, *SERVICELB), await _any(api, *TRAEFIK)
        if servicelb and not self._service_type_chosen:
            self._settings = structs.replace(self._settings, service_type="LoadBalancer")
        if "+k3s" not in api.version:
            log.warning(
                "member.no_k3s", version=api.version, hint="it is taken for a k3s cluster all the same; --shim kubernetes fits others"
            )
        log.info("member.k3s", servicelb=servicelb, traefik=traefik, service_type=self._settings.service_type)
        return {f"{LABEL}/servicelb": str(servicelb).lower(), f"{LABEL}/traefik": str(traefik).lower()}


async def _any(api: Api, path: str, selector: tuple[str, str]) -> bool:
    return bool(msgspec.json.decode(await api.request("GET", path, query=[selector, ("limit", "1")]), type=_List).items)
