"""How one controller is configured: one file, environment variables and flags, each overriding the one before.

The file is ``DATA/banyan.toml``, written by ``banyan init`` and ``banyan join``; the variables are ``BANYAN_`` and the field's
name in capitals; the flags are those of ``banyan run``. Every field is documented here, and nowhere else.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from cluster_controller.errors import InvalidInput
from cluster_controller.resources import quantity
from cluster_controller.windows import Windows

FILE_NAME = "banyan.toml"
FILE_LIMIT_BYTES = 256 * 1024
SECONDS = (0.05, 3600.0)  # what a time may be set to


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one controller. Addresses are ``HOST:PORT``; port 0 takes any free one; an empty address turns a listener off."""

    data: Path
    """Folder of this controller: identity, store, blobs, workloads. Owned by one running controller at a time."""
    name: str
    """Name of the cluster, a DNS label, unique among its siblings."""
    api_listen: str = "127.0.0.1:8443"
    """Where people, CI and kubectl connect (HTTPS)."""
    api_advertise: tuple[str, ...] = ()
    """Host names and addresses that the API certificate also names; kubeconfigs made for others name the first."""
    tunnel_listen: str = "0.0.0.0:10000"
    """Where children dial in (wss). Empty: this controller takes no children."""
    tunnel_advertise: tuple[str, ...] = ()
    """HOST:PORT that children dial, put into tokens. Default: the host's name and addresses with the tunnel's port."""
    proxy: str = ""
    """HTTP(S) CONNECT proxy towards the parent, http://user:password@host:port. Default: HTTPS_PROXY and NO_PROXY."""
    shim: str = "process"
    """process: run applications as processes here. kubernetes, k3s: in an existing cluster, through its API server. none: no cluster of
    its own. unix:PATH or HOST:PORT: a shim that speaks gRPC. Over TCP DATA/shim holds ca.pem, certificate.pem and key.pem."""
    member_kubeconfig: str = ""
    """With shim kubernetes or k3s: how its API server is reached. Default: KUBECONFIG and ~/.kube/config, in a pod its service account,
    with k3s /etc/rancher/k3s/k3s.yaml."""
    member_context: str = ""
    """Which context of the kubeconfig. Default: the current one."""
    kubernetes: dict[str, str] = field(default_factory=dict)
    """With shim kubernetes or k3s: worker_image runs models and commands; pull_policy; service_type is ClusterIP, NodePort or
    LoadBalancer; cache, where nodes keep model files, is hostPath:/PATH, pvc:CLAIM or emptyDir; files_url is where pods find this
    controller's model files; take_over names the uid whose controller managed that cluster before and is gone for good."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that the site gives itself; ancestors may add theirs on top."""
    node_name: str = ""
    """Name of this machine as a node. Default: the host's name."""
    capacity: dict[str, str] = field(default_factory=dict)
    """Allocatable cpu and memory as Kubernetes quantities, when less than the machine has shall be used."""
    site_bind: str = "127.0.0.1"
    """Address on which applications' stable site ports listen; 0.0.0.0 offers them on the LAN."""
    blob_budget: str = "4Gi"
    """Disk budget of the model cache; least recently used models that nothing runs are dropped first."""
    model_rate: str = ""
    """Bytes a second at which models may come over the link to the parent, 2M or 256Ki; the rest of the link is for everything else.
    Default: whatever the link has to spare."""
    model_windows: tuple[str, ...] = ()
    """When models may come over it, by this site's clock: 22:00-06:00,12:30-13:30. What runs runs on. Default: at any time."""
    heartbeat_seconds: float = 5.0
    """Pause after which a silent link is asked for a sign of life; it is dead after three."""
    failover_allow: bool = True
    """Whether this cluster may be carried by another controller while its parent is lost. false: it waits for its parent."""
    failover_alternates: tuple[str, ...] = ()
    """Names of the controllers that may carry it, in order, of those that its parent permits. Default: all of them."""
    failover_return_seconds: float = 10.0
    """For how long a lost parent must answer again before this cluster returns to it; longer after each time that it was lost again."""
    guests: int = 1000
    """How many children of other controllers are carried here at once while their parents are lost. 0: none."""
    report_usage_seconds: float = 15.0
    """How often usage of nodes and instances is sampled for /metrics."""
    log_format: str = "auto"
    """human, json or auto (human on a terminal)."""
    log_level: str = "info"
    """debug, info, warning or error."""

    @property
    def identity_folder(self) -> Path:
        return self.data / "identity"

    @property
    def blob_folder(self) -> Path:
        return self.data / "blobs"

    @property
    def model_folder(self) -> Path:
        return self.data / "models"

    @property
    def process_folder(self) -> Path:
        return self.data / "process"

    @property
    def kubernetes_folder(self) -> Path:
        return self.data / "kubernetes"

    @property
    def admin_kubeconfig(self) -> Path:
        """The loopback admin credential of this site, 0600."""
        return self.data / "admin.kubeconfig"


def load(data: Path, environment: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of the controller in ``data``; InvalidInput names the field, the place it came from and the remedy."""
    path = data / FILE_NAME
    merged: dict[str, Any] = {}
    if path.exists():
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise InvalidInput(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; it cannot be a banyan configuration")
        try:
            merged.update(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror}; it must belong to the user who runs the controller") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} is not valid TOML: {error}; mend that line or write the file anew with `banyan join`") from error
    merged.update(_from_environment(environment))
    merged.update({key: value for key, value in (overrides or {}).items() if value is not None})
    merged["data"] = data
    if "name" not in merged:
        raise InvalidInput(f"no cluster lives in {data}: create a root with `banyan init` or a member with `banyan join`", "name")
    try:
        return _checked(msgspec.convert(merged, Config, strict=False, dec_hook=_path))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"configuration of {data} ({FILE_NAME}, BANYAN_… variables, flags): {error}") from error


def _checked(config: Config) -> Config:
    """Refuse what nothing could work with before anything is started: addresses, sizes, times at which links die at once or never."""
    for name in ("api_listen", "tunnel_listen"):
        if getattr(config, name) or name == "api_listen":
            split_address(getattr(config, name), name)
    try:
        quantity.units(config.blob_budget)
    except InvalidInput as error:
        raise InvalidInput(f"blob_budget: {error}", "blob_budget") from error
    try:
        quantity.units(config.model_rate or "0")
    except InvalidInput as error:
        raise InvalidInput(f"model_rate: {error}", "model_rate") from error
    Windows(config.model_windows)
    if config.guests < 0:
        raise InvalidInput(f"guests {config.guests}: it is a number of children, 0 for none", "guests")
    for name in ("heartbeat_seconds", "report_usage_seconds", "failover_return_seconds"):
        seconds = getattr(config, name)
        if not (math.isfinite(seconds) and SECONDS[0] <= seconds <= SECONDS[1]):
            raise InvalidInput(f"{name} {seconds}: it lies between {SECONDS[0]} and {SECONDS[1]} seconds", name)
    return config


def _path(wanted: type, given: Any) -> Any:
    """msgspec knows no paths."""
    return Path(given) if wanted is Path else given


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for info in msgspec.structs.fields(Config):
        text = environment.get(f"BANYAN_{info.name.upper()}")
        if text is None or info.name == "data":
            continue
        if info.type == dict[str, str]:
            found[info.name] = parse_labels(text, f"BANYAN_{info.name.upper()}")
        elif info.type == tuple[str, ...]:
            found[info.name] = [part.strip() for part in text.split(",") if part.strip()]
        else:
            found[info.name] = text
    return found


def parse_labels(text: str, where: str) -> dict[str, str]:
    """``k=v,k2=v2`` → mapping; InvalidInput names the part that has no ``=``."""
    labels = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not key:
            raise InvalidInput(f"{where}: {part!r} is not KEY=VALUE", where)
        labels[key] = value
    return labels


def save(config: Config) -> None:
    """Write ``DATA/banyan.toml`` atomically, with only what differs from the defaults."""
    lines = ["# Settings of this cluster controller; `banyan run --help` explains each of them.", f"name = {_toml(config.name)}"]
    for info in msgspec.structs.fields(Config):
        value = getattr(config, info.name)
        if info.name in {"data", "name"} or value == _default(info):
            continue
        lines.append(f"{info.name} = {_toml(value)}")
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = config.data / f".{FILE_NAME}.new"
    with partial.open("w", encoding="utf-8") as file:
        partial.chmod(0o600)  # it may hold a proxy's password
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(config.data / FILE_NAME)
    folder = os.open(config.data, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _default(info: msgspec.structs.FieldInfo) -> Any:
    return info.default_factory() if info.default is msgspec.NODEFAULT and info.default_factory is not msgspec.NODEFAULT else info.default


def _toml(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case dict():
            return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in sorted(value.items())) + "}"
        case tuple() | list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
        case _:
            # A JSON string is a valid TOML basic string, but for this one control character.
            return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")


def split_address(address: str, where: str) -> tuple[str, int]:
    """``HOST:PORT`` → parts; IPv6 hosts stand in brackets. InvalidInput names ``where`` it was given."""
    host, separator, port = address.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit() and len(port) <= 5) or int(port) > 65535:
        raise InvalidInput(f"{where}: {address!r} is not HOST:PORT", where)
    return host.strip("[]"), int(port)
