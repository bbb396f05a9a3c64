"""What the supervisor shows of itself: the answers of its control socket. Pure."""

from typing import Any

from msgspec import Struct, field


class InstanceView(Struct, frozen=True, kw_only=True):
    """An instance as the supervisor shows it; ``labels`` are the ones that `command.spec` wrote."""

    id: str
    phase: str
    labels: dict[str, Any]
    pid: int = 0
    restarts: int = 0
    reason: str = ""
    message: str = ""
    exit_code: int = -1
    last_line: str = ""
    last_started_unix: float = 0.0
    finished_unix: float = 0.0
    failures: int = 0  # runs in a row that ended soon
    pause: float = 0.0  # seconds before the start that follows the last end
    started_unix: float = 0.0
    usage: list[str] = field(default_factory=list)  # cgroup folders; empty when there are none


class PortView(Struct, frozen=True, kw_only=True):
    name: str
    address: str
    port: int
    error: str = ""
    weight: int = 1  # share of the connections, beside the other sockets of this port
    source: str = ""  # who connects from this address reaches this socket, whatever the weights; empty: nobody can choose


class Hello(Struct, frozen=True, kw_only=True):
    pid: int
    version: str
    boot: str
    limits: str
    instances: list[InstanceView]
    ports: list[PortView]
