"""Turn a component into something that the supervisor can run: arguments, environment, folder, files.

What a program finds:

- its working folder with ``files``, and a link for each volume at its path (a leading ``/`` is taken off: a process cluster has
  no mount namespaces); ``BANYAN_VOLUME_NAME`` holds the absolute path too;
- with ``port`` and ``takes_socket``: the site's listening socket as LISTEN_FDS descriptor 3, named ``site``. It is shared by all
  replicas and by the next revision, so a program accepts on it only once it is able to serve. A command that has an HTTP or
  TCP probe without a port of its own also gets a private Unix listening socket, descriptor 4, named ``probe``: serving the probe
  there lets it be asked in person (see `probes` for what happens when it does not);
- without ``takes_socket``: ``PORT`` and ``HOST``, to bind by itself;
- ``BANYAN_INSTANCE``, ``BANYAN_APPLICATION``, ``BANYAN_NAMESPACE``, ``BANYAN_COMPONENT``, ``BANYAN_NODE``, and for a model
  ``BANYAN_MODEL_FOLDER``, ``_NAME``, ``_VERSION``;
- nothing of the controller's own environment.
"""

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cluster_shim.contract import Component, ShimError, Work
from cluster_shim.process.plan import port_name

CONTROL = "control.sock"  # in the instance's folder: a model worker's private HTTP
PRIVATE = "probe.sock"
_SUN_PATH = 100  # sun_path holds 108 bytes
_SUFFIX = "abcdefghijklmnopqrstuvwxyz0123456789"


class Setting(Struct, frozen=True):
    """Of this cluster, the same for all instances."""

    folder: Path  # DATA/process
    node: str
    python: str
    bind: str
    usage_seconds: float = 0.0  # how often usage is measured; 0 for `session.USAGE_SECONDS`


def instance_id(work: Work, component: str) -> str:
    """NAME-COMPONENT-HASH-SUFFIX: tells people what it is; never equal for two applications of one name."""
    digest = hashlib.sha256(work.uid.encode()).hexdigest()[:5]
    suffix = "".join(secrets.choice(_SUFFIX) for _ in range(5))
    room = 63 - len(digest) - len(suffix) - 3
    name = work.name[: room - min(len(component), room // 2)].strip("-")
    return f"{name}-{component[: room - len(name)].strip('-')}-{digest}-{suffix}"


def stage(setting: Setting, work: Work, component: Component, name: str) -> None:
    """Write everything the instance needs to ``staging/NAME``; the supervisor's start makes it an instance. Blocks on the disk."""
    staged = setting.folder / "staging" / name
    shutil.rmtree(staged, ignore_errors=True)
    working = staged / "work"
    working.mkdir(parents=True, mode=0o700)
    for volume in component.volumes:
        home = setting.folder / "volumes" / work.uid / component.name / volume.name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        link = _inside(working, volume.path, component.name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(home)
    for file in component.files:
        target = _inside(working, file.path, component.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, file.content, 0o600 if file.secret else file.mode)
    _write(staged / "spec.json", json.dumps(spec(setting, work, component, name)).encode(), 0o600)


def spec(setting: Setting, work: Work, component: Component, name: str) -> dict[str, Any]:
    """The supervisor's ``spec.json``; its keys are `supervisor.record.Spec`'s."""
    home = setting.folder / "instances" / name
    takes = component.port > 0 and component.takes_socket
    private = _wants_private(component)
    return {
        "argv": _argv(setting, component, home),
        "env": _environment(setting, work, component, name),
        "cwd": str(home / "work"),
        "sockets": [["site", port_name(work.uid, component.name, component.revision)]] if takes else [],
        "private": str(home / PRIVATE) if private else "",
        "cpu_millis": component.resources.cpu_millis,
        "memory_bytes": component.resources.memory_bytes,
        "grace": component.grace_seconds,
        "labels": {
            "uid": work.uid,
            "component": component.name,
            "revision": component.revision,
            "accelerators": component.resources.accelerators,
            "cpu_millis": component.resources.cpu_millis,
            "memory_bytes": component.resources.memory_bytes,
            "port": component.port,
            "shared": takes,
            "model": component.model is not None,
            "liveness": msgspec.to_builtins(component.liveness),
            "readiness": msgspec.to_builtins(component.readiness),
        },
    }


def _wants_private(component: Component) -> bool:
    probes = (component.liveness, component.readiness)
    asked = any(probe is not None and not probe.command and not probe.port for probe in probes)
    return asked and component.model is None and component.takes_socket


def _argv(setting: Setting, component: Component, home: Path) -> list[str]:
    model = component.model
    if model is None:
        return list(component.command)
    worker = [setting.python, "-m", "edge_ai.serve", "--model-folder", model.folder, "--name", model.name, "--version", model.version]
    for file in model.files:
        worker += ["--digest", f"{file.path}={file.sha256}"]
    if component.serving is not None:
        worker += component.serving.arguments()
    return [*worker, "--control", f"unix:{control_path(home)}"]


def control_path(home: Path) -> str:
    """Absolute if it fits into a socket address, else relative to the working folder."""
    path = str(home / CONTROL)
    return path if len(path.encode()) <= _SUN_PATH else f"../{CONTROL}"


def _environment(setting: Setting, work: Work, component: Component, name: str) -> dict[str, str]:
    home = setting.folder / "instances" / name
    env = {
        "PATH": os.pathsep.join((str(Path(setting.python).parent), "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")),
        "HOME": str(home / "work"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",  # a log that is a file would else show nothing for a long time
        "BANYAN_INSTANCE": name,
        "BANYAN_APPLICATION": work.name,
        "BANYAN_NAMESPACE": work.namespace,
        "BANYAN_COMPONENT": component.name,
        "BANYAN_NODE": setting.node,
    }
    if component.port and not component.takes_socket:
        env.update(PORT=str(component.port), HOST=setting.bind)
    if component.model is not None:
        env.update(
            BANYAN_MODEL_FOLDER=component.model.folder,
            BANYAN_MODEL_NAME=component.model.name,
            BANYAN_MODEL_VERSION=component.model.version,
            BANYAN_CONTROL=f"unix:{control_path(home)}",
        )
    for volume in component.volumes:
        key = "".join(letter if letter.isalnum() else "_" for letter in volume.name).upper()
        env[f"BANYAN_VOLUME_{key}"] = str(setting.folder / "volumes" / work.uid / component.name / volume.name)
    return {**env, **component.env, **component.secret_env}


def _inside(folder: Path, path: str, component: str) -> Path:
    target = folder / path.lstrip("/")
    if ".." in target.parts or target == folder:
        raise ShimError(f"component {component}: path {path!r} does not lie inside the working folder; name a path below it")
    return target


def _write(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        os.fchmod(fd, mode)
        file.flush()
        os.fdatasync(fd)
