"""The ways between machines: how good they are, and where nothing passes."""

from typing import NamedTuple


class Conditions:
    """Of the way between a machine and the others. ``bandwidth`` in bytes a second."""

    __slots__ = ("bandwidth", "delay", "jitter", "loss")

    def __init__(self, delay: float = 0.005, jitter: float = 0.001, loss: float = 0.0, bandwidth: float = 12.5e6) -> None:
        self.delay, self.jitter, self.loss, self.bandwidth = delay, jitter, loss, bandwidth


class Cut(NamedTuple):
    """Nothing passes between these two sets of machines, silently; ``one_way``: only from the first to the second nothing does."""

    one: frozenset[str]
    other: frozenset[str]
    one_way: bool = False

    def blocks(self, source: str, target: str) -> bool:
        if source in self.one and target in self.other:
            return True
        return not self.one_way and source in self.other and target in self.one
