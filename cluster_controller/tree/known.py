"""What a controller knows of one cluster of its subtree, and since when: the words of the census, read by those that show it."""

from typing import Literal

from msgspec import Struct

from cluster_controller.resources import kinds
from cluster_controller.store import Stored

Ready = Literal["True", "False", "Unknown"]


class Heard(Struct, frozen=True):
    """How long ago, in seconds; ``at_least`` when nobody can know how much longer it was."""

    seconds: float
    at_least: bool = False
    broken_hop: str = ""


class Known(Struct, frozen=True, kw_only=True):
    """What is known of one cluster before overlays: its own word, through whom it came, and whether that way is open."""

    uid: str
    name: str
    parent: str
    parent_name: str
    via: str
    facts: kinds.ClusterFacts
    ready: Ready
    reason: str = ""
    broken_hop: str = ""
    since: str = ""
    children: int = 0
    withdrawing: list[str]
    adopted_by: str = ""
    relayed: Stored | None = None  # the report that this is word for word
