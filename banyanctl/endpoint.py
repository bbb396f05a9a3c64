"""Which controller to talk to, and as whom: a kubeconfig file, read and written.

Order, first match wins: `--kubeconfig FILE`, `--data DIR` (DIR/admin.kubeconfig, the on-site admin credential), `BANYAN_KUBECONFIG`,
`BANYAN_DATA`, `~/.config/banyan/config`, the default data folder. The format is kubectl's, so one file serves both programs.
Files with credentials are written 0600.
"""

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import structs

from banyanctl import manifests
from banyanctl.credential import ADVERTISED, Endpoint, document
from banyanctl.places import default_data, personal_config
from cluster_controller.errors import InvalidInput, NotFound

FILE_LIMIT_BYTES = 1024 * 1024
ADMIN_KUBECONFIG = "admin.kubeconfig"


def resolve(kubeconfig: str | None, data: str | None, environment: Mapping[str, str] = os.environ) -> Endpoint:
    """The endpoint to use; NotFound says every place that was looked at and how to get one."""
    if kubeconfig:
        return read(Path(kubeconfig))
    if data:
        return _of_data(Path(data))
    if given := environment.get("BANYAN_KUBECONFIG"):
        return read(Path(given))
    if environment.get("BANYAN_DATA"):
        return _of_data(default_data(environment))
    places = [personal_config(environment), default_data(environment) / ADMIN_KUBECONFIG]
    for place in places:
        if place.exists():
            return read(place)
    raise NotFound(
        f"no controller to talk to: neither {places[0]} nor {places[1]} exists. Say which with --data DIR (a controller on this machine)"
        " or --kubeconfig FILE, or make one with `banyan init NAME` and `banyan run`"
    )


def _of_data(folder: Path) -> Endpoint:
    place = folder / ADMIN_KUBECONFIG
    if not place.exists():
        hint = "start it with" if (folder / "banyan.toml").exists() else "create it with `banyan init NAME` and start it with"
        raise NotFound(f"{place} does not exist: the controller in {folder} has not run yet; {hint} `banyan run --data {folder}`")
    return read(place)


def read(path: Path) -> Endpoint:
    """The current context of a kubeconfig file; InvalidInput names what is missing in it."""
    try:
        if path.stat().st_size > FILE_LIMIT_BYTES:
            raise InvalidInput(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; that is no kubeconfig")
        documents = manifests.loads(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist; make one with `banyan kubeconfig > {path}` where a controller is in reach") from error
    except PermissionError as error:
        raise InvalidInput(f"{path} may not be read by you: it holds another user's credential") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not text") from error
    return parse(documents[0] if documents else None, path)


def parse(document: Any, path: Path) -> Endpoint:
    if not isinstance(document, dict) or document.get("kind") not in ("Config", None):
        raise InvalidInput(f"{path} is not a kubeconfig (kind: Config)")
    context_name = document.get("current-context")
    context = _named(document, "contexts", context_name, "context", path)
    cluster = _named(document, "clusters", context.get("cluster"), "cluster", path)
    user = _named(document, "users", context.get("user"), "user", path)
    server = cluster.get("server", "")
    if urlsplit(server).scheme != "https" or not urlsplit(server).hostname:
        raise InvalidInput(f"{path}: cluster {context.get('cluster')!r} has server {server!r}; wanted is https://HOST:PORT")
    return Endpoint(
        server=server.rstrip("/"),
        ca=_pem(cluster, "certificate-authority", path),
        certificate=_pem(user, "client-certificate", path),
        key=_pem(user, "client-key", path),
        token=user.get("token", ""),
        namespace=context.get("namespace") or "default",
        tls_server_name=cluster.get("tls-server-name", ""),
        source=str(path),
        advertised=_advertised(cluster),
    )


def _advertised(cluster: Mapping[str, Any]) -> str:
    for each in cluster.get("extensions") or []:
        if isinstance(each, dict) and each.get("name") == ADVERTISED and isinstance(each.get("extension"), dict):
            return str(each["extension"].get("server", ""))
    return ""


def _named(document: Mapping[str, Any], table: str, name: Any, field: str, path: Path) -> Mapping[str, Any]:
    for entry in document.get(table) or []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(field), dict):
            found: Mapping[str, Any] = entry[field]
            return found
    raise InvalidInput(f"{path}: {table} has no entry {name!r}" if name else f"{path}: nothing names the {field} to use (current-context)")


def _pem(entry: Mapping[str, Any], field: str, path: Path) -> str:
    """A PEM given inline (FIELD-data, base64) or as a file beside the kubeconfig (FIELD)."""
    if inline := entry.get(f"{field}-data"):
        try:
            return base64.b64decode(inline, validate=True).decode("ascii")
        except ValueError as error:
            raise InvalidInput(f"{path}: {field}-data is not base64 of a PEM") from error
    if name := entry.get(field):
        return (path.parent / str(name)).read_text(encoding="ascii")
    return ""


def render(endpoint: Endpoint, name: str, user: str) -> str:
    """The kubeconfig file for an endpoint, with its credential inside."""
    return manifests.dumps(document(endpoint, name, user))


def below(endpoint: Endpoint, cluster: str, door: str = "banyan") -> Endpoint:
    """The endpoint of a descendant, reached through this one; ``door`` is banyan (its controller) or proxy (its member's API)."""
    return structs.replace(endpoint, server=f"{endpoint.server}/apis/banyan.dev/v1alpha1/clusters/{cluster}/{door}")


def added(path: Path, endpoint: Endpoint, name: str, user: str) -> str:
    """The text of a kubeconfig file with this endpoint as its context ``name``, everything else in it as it was.

    InvalidInput for a file that is none: nothing of somebody's is replaced by mistake.
    """
    new = document(endpoint, name, user)
    if not path.exists() or not path.stat().st_size:
        return manifests.dumps(new)
    if path.stat().st_size > FILE_LIMIT_BYTES:
        raise InvalidInput(f"{path} is larger than {FILE_LIMIT_BYTES} bytes; that is no kubeconfig")
    found = manifests.loads(path.read_text(encoding="utf-8"), str(path))
    if len(found) != 1 or not isinstance(found[0], dict) or found[0].get("kind", "Config") != "Config":
        raise InvalidInput(f"{path} is not a kubeconfig (kind: Config); name another file")
    old: dict[str, Any] = found[0]
    for table in ("clusters", "users", "contexts"):
        (mine,) = new[table]
        others = [each for each in old.get(table) or [] if not (isinstance(each, dict) and each.get("name") == mine["name"])]
        old[table] = [*others, mine]
    return manifests.dumps({"apiVersion": "v1", "kind": "Config"} | old | {"current-context": old.get("current-context") or name})


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.new")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    partial.replace(path)
