"""What a command does in the simulated world: its first word says whether it ever becomes ready, and what its metrics say.

``never-N`` runs and is never ready, ``crash-N`` ends soon after each start, ``bad-N`` is ready and answers every second request with an
error. All others are well.
"""

from collections.abc import Mapping
from typing import Any

NEVER, CRASH, BAD = "never-", "crash-", "bad-"
RATE = 10.0  # requests per second
CRASH_LOOP = "CrashLoopBackOff"
GATE = {
    "name": "errors", "errors": {"metric": "errors_total"}, "requests": {"metric": "requests_total"},
    "max": 0.05, "windowSeconds": 5, "minCount": 5,
}  # fmt: skip


def becomes_ready(command: str) -> bool:
    return not command.startswith((NEVER, CRASH))


def crashes(command: str) -> bool:
    return command.startswith(CRASH)


def metrics(command: str, seconds: float) -> str:
    """Of an instance that has been running for so long."""
    requests = int(seconds * RATE)
    errors = requests // 2 if command.startswith(BAD) else 0
    return f"# TYPE requests_total counter\nrequests_total {requests}\n# TYPE errors_total counter\nerrors_total {errors}\n"


def broken(spec: Mapping[str, Any]) -> bool:
    """Can this version ever be well?"""
    commands = [each["command"][0] for each in spec["components"]]
    gated = bool((spec.get("rollout") or {}).get("gates"))
    return any(not becomes_ready(each) or (gated and each.startswith(BAD)) for each in commands)
