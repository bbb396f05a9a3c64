"""The adapter of a controller's own cluster, made from its settings. Each is loaded only where it is asked for."""

import os
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cluster_controller import config, durable, identity
from cluster_controller.config import Config
from cluster_controller.errors import InvalidInput, NotFound
from cluster_controller.resources import quantity

if TYPE_CHECKING:
    from cluster_shim.contract import Shim
    from cluster_shim.kubernetes.shim import KubernetesShim, Owner

KUBERNETES = ("kubernetes", "k3s")
OWNER = "owner"  # in DATA/kubernetes
SHIM_CREDENTIALS = ("ca.pem", "certificate.pem", "key.pem")  # in DATA/shim, for a shim that is spoken to over TCP


def check(settings: Config) -> None:
    """What can be known before anything is made and a token is spent: InvalidInput when `of` would refuse these settings for ever."""
    if settings.shim in KUBERNETES:
        kubernetes(settings)
        if settings.member_kubeconfig and not Path(settings.member_kubeconfig).is_file():
            raise InvalidInput(f"--kubeconfig {settings.member_kubeconfig}: there is no such file", "member_kubeconfig")
        return
    if settings.member_kubeconfig or settings.member_context or settings.kubernetes:
        raise InvalidInput("--kubeconfig, --context and --kubernetes go with --shim kubernetes or k3s", "shim")
    if settings.shim == "process":
        _capacity(settings)
    elif settings.shim != "none":
        _check_address(settings.shim)


def _check_address(shim: str) -> None:
    if not shim.startswith("unix:/"):
        try:
            config.split_address(shim, "shim")
        except InvalidInput:
            raise InvalidInput(f"shim {shim!r}: it is process, kubernetes, k3s, none, unix:/PATH or HOST:PORT", "shim") from None


def of(settings: Config) -> "Shim | None":
    """The adapter of this controller's own cluster."""
    if settings.shim == "none":
        return None
    if settings.shim in KUBERNETES:
        return kubernetes(settings)
    if settings.shim != "process":
        return _outside(settings)
    from cluster_shim.process.shim import Capacity, ProcessShim

    given = _capacity(settings)
    capacity = Capacity(cpu_millis=given[0], memory_bytes=given[1]) if given is not None else None
    name = settings.node_name or os.uname().nodename.lower()
    return ProcessShim(
        settings.process_folder, node_name=name, bind=settings.site_bind, capacity=capacity, usage_seconds=settings.report_usage_seconds
    )


def _capacity(settings: Config) -> tuple[int, int] | None:
    """Millicores and bytes that stand for what the machine has; None for all that it has."""
    if not settings.capacity:
        return None
    if set(settings.capacity) != {"cpu", "memory"}:
        raise InvalidInput("capacity: give both and nothing else, as in cpu=2,memory=4Gi", "capacity")
    cpu, memory = settings.capacity["cpu"], settings.capacity["memory"]
    try:
        return quantity.millis(cpu, "capacity.cpu"), quantity.units(memory, "capacity.memory")
    except InvalidInput as error:
        raise InvalidInput(f"capacity: {error}", error.field) from None


def _outside(settings: Config) -> "Shim":
    """A shim in another process, ``unix:PATH`` or ``HOST:PORT``. gRPC is loaded for it alone."""
    _check_address(settings.shim)
    try:
        from cluster_shim.grpc.client import GrpcShim, credentials
    except ImportError as error:
        raise InvalidInput("a shim outside this process needs gRPC: pip install 'banyan-edge[shim]'", "shim") from error
    if settings.shim.startswith("unix:"):
        return GrpcShim(settings.shim)
    ca, certificate, key = (_credential(settings, name) for name in SHIM_CREDENTIALS)
    return GrpcShim(settings.shim, credentials(ca=ca, key=key, certificate=certificate))


def _credential(settings: Config, name: str) -> bytes:
    path = settings.data / "shim" / name
    try:
        return path.read_bytes()
    except OSError as error:
        needed = ", ".join(SHIM_CREDENTIALS)
        raise InvalidInput(
            f"shim {settings.shim}: {path} cannot be read ({error.strerror}); over TCP put {needed} (PEM) there, or use unix:/PATH", "shim"
        ) from error


def kubernetes(settings: Config) -> "KubernetesShim":
    """An existing cluster, by its API server. The official client is loaded for it alone."""
    try:
        from cluster_shim.contract import ShimError
        from cluster_shim.k3s.shim import K3sShim
        from cluster_shim.kubernetes import settings as meaning
        from cluster_shim.kubernetes.render import Settings
        from cluster_shim.kubernetes.shim import Access, KubernetesShim
    except ImportError as error:
        raise InvalidInput(
            f"shim {settings.shim} needs the Kubernetes client: pip install 'banyan-edge[kubernetes]' ({error.name} is missing)", "shim"
        ) from error
    try:
        chosen = msgspec.convert(settings.kubernetes, Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"kubernetes: {error}", "kubernetes") from error
    unknown = sorted(set(settings.kubernetes) - {info.name for info in msgspec.structs.fields(Settings)})
    if unknown:
        known = ", ".join(info.name for info in msgspec.structs.fields(Settings))
        raise InvalidInput(f"kubernetes: there is no {unknown[0]}; it has {known}", "kubernetes")
    try:
        meaning.check(chosen)
    except ShimError as error:
        raise InvalidInput(str(error), "kubernetes") from None
    access = Access(kubeconfig=settings.member_kubeconfig, context=settings.member_context)
    owner = partial(_owner, settings)
    if settings.shim == "k3s":
        return K3sShim(access, chosen, settings.kubernetes_folder, owner, service_type_chosen="service_type" in settings.kubernetes)
    return KubernetesShim(access, chosen, settings.kubernetes_folder, owner)


def _owner(settings: Config) -> "Owner":
    """Who manages a member: this cluster, by the uid that a backup brings back too. A shim in a process of its own has none, and gives
    itself one that stays with its folder. Reads the disk."""
    from cluster_shim.kubernetes.shim import Owner

    try:
        return Owner(identity.load(settings.data / "identity").uid, settings.name)
    except NotFound:
        path = settings.kubernetes_folder / OWNER
        if not path.exists():
            durable.write(path, secrets.token_hex(13).encode())
        return Owner(path.read_text(encoding="ascii"))
