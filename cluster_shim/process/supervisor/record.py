"""What is on disk about an instance, and the order in which it gets there (write ahead).

``instances/ID/spec.json`` is written once, by the controller, in ``staging/ID``; one rename makes it an instance. From then on
it exists, whether or not anybody remembers having asked. ``state.json`` says what is wanted and which process it is:

1. the intention to start, with a fresh random token, is durable before a process exists;
2. the process (pid, start time, boot) is durable before it may run its program: until then it waits at a gate, and the gate
   closes with the supervisor, so a process that nobody recorded never runs anything;
3. the wish to stop is durable before the first signal.
"""

from __future__ import annotations

import os

from cluster_shim.process.supervisor import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RUN, STOP = "run", "stop"
ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
MAX_ID = 63


class BadSpec(ValueError):
    """The staged specification cannot be run; says which field."""


def valid_id(name: str) -> bool:
    return 0 < len(name) <= MAX_ID and set(name) <= ID_CHARACTERS and name[0] != "-"


def _of_revision(port: str, revision: str) -> str:
    """Ports are named UID/COMPONENT/REVISION; specifications of before there was steering leave out the last."""
    return f"{port}/{revision}" if port.count("/") == 1 else port


class Spec:
    """How to run an instance. Immutable: another revision is another instance."""

    __slots__ = ("argv", "cpu_millis", "cwd", "env", "grace", "id", "labels", "memory_bytes", "private", "sockets")

    def __init__(self, name: str, document: Any) -> None:
        try:
            self.id = name
            self.argv = [str(word) for word in document["argv"]]
            self.env = {str(key): str(value) for key, value in document["env"].items()}
            self.cwd = str(document["cwd"])
            revision = str(document["labels"].get("revision", ""))
            self.sockets = [(str(label), _of_revision(str(port), revision)) for label, port in document["sockets"]]  # (its name, port name)
            self.private = str(document["private"])  # path of a private unix socket to listen on for it, or ""
            self.cpu_millis = int(document["cpu_millis"])
            self.memory_bytes = int(document["memory_bytes"])
            self.grace = float(document["grace"])
            self.labels = dict(document["labels"])
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadSpec(f"instance {name}: spec.json cannot be used ({error!r})") from None
        if not self.argv:
            raise BadSpec(f"instance {name}: no command given")


class State:
    """What is wanted and which process it is. Every field is durable at the moments that the module's text names."""

    __slots__ = (
        "boot", "deadline", "exit_code", "finished_unix", "last_line", "last_started_unix", "message", "pid", "reason", "restarts", "start",
        "started_unix", "token", "wanted",
    )  # fmt: skip

    def __init__(self, document: Any = None) -> None:
        given = document or {}
        self.wanted: str = given.get("wanted", RUN)
        self.deadline: float = given.get("deadline", 0.0)  # boot-time clock: SIGKILL then; 0: not stopping
        self.token: str = given.get("token", "")
        self.pid: int = given.get("pid", 0)
        self.start: int = given.get("start", 0)
        self.boot: str = given.get("boot", "")
        self.restarts: int = given.get("restarts", 0)
        self.reason: str = given.get("reason", "")  # why the last run ended; empty: none has
        self.message: str = given.get("message", "")
        self.exit_code: int = given.get("exit_code", -1)
        self.last_line: str = given.get("last_line", "")
        self.last_started_unix: float = given.get("last_started_unix", 0.0)
        self.finished_unix: float = given.get("finished_unix", 0.0)
        self.started_unix: float = given.get("started_unix", 0.0)

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Folder:
    """The layout below DATA/process. All of it is 0700; files with secrets are 0600."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.instances = os.path.join(path, "instances")
        self.staging = os.path.join(path, "staging")
        self.trash = os.path.join(path, "trash")
        self.volumes = os.path.join(path, "volumes")
        self.socket = os.path.join(path, "supervisor.sock")
        self.lock = os.path.join(path, "supervisor.lock")
        self.log = os.path.join(path, "supervisor.log")
        self.upgrade = os.path.join(path, "upgrade.json")

    def make(self) -> None:
        for path in (self.path, self.instances, self.staging, self.trash, self.volumes):
            os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(self.path, 0o700)  # whoever made it may have been less careful

    def of(self, name: str) -> str:
        return os.path.join(self.instances, name)

    def admit(self, name: str) -> None:
        """Turn the staged folder into an instance. Idempotent: a second time it is there already."""
        if os.path.isdir(self.of(name)):
            return
        os.rename(os.path.join(self.staging, name), self.of(name))
        files.sync_folder(self.instances)

    def discard(self, name: str) -> str:
        """Move the instance's folder to the trash; returns where it is, for `files.remove_tree`."""
        trash = os.path.join(self.trash, name)
        files.remove_tree(trash)
        os.rename(self.of(name), trash)
        files.sync_folder(self.instances)
        return trash

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.instances) if valid_id(name))

    def spec(self, name: str) -> Spec:
        return Spec(name, files.read_json(os.path.join(self.of(name), "spec.json")))

    def state(self, name: str) -> State:
        return State(files.read_json(os.path.join(self.of(name), "state.json")))

    def save(self, name: str, state: State) -> None:
        files.write_json(os.path.join(self.of(name), "state.json"), state.document())
