"""What a seed draws before anything runs: the tree, and the steps that happen in it."""

from typing import Any

from msgspec import Struct

ROUNDS = 5
ROUND_SECONDS = 720.0


class Step(Struct, frozen=True):
    """Something happens ``at`` so many seconds into the run. What is meant by ``args`` is its kind's to say."""

    at: float
    kind: str
    place: str
    seconds: float = 0.0
    args: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.at:8.1f} {self.kind} {self.place} {self.seconds:.1f} s {self.args or ''}"


class Plan(Struct, frozen=True):
    """``tree``: name → name of the parent, parents first."""

    seed: int
    tree: dict[str, str]
    steps: tuple[Step, ...]
    rounds: int = ROUNDS
    round_seconds: float = ROUND_SECONDS
    heartbeat: float = 5.0
    certificate_days: float = 90.0
    families: tuple[str, ...] = ()  # of steps besides the usual ones
