"""How an Application wants to be placed beyond where it may be: what is wished, how replicas are divided, what they may cost."""

from typing import Annotated, Literal

from msgspec import Meta, field

from cluster_controller.resources.meta import Count, Document, LabelSelector

HOURLY_COST = "banyan.dev/hourly-cost"  # label of a cluster or a node: what an hour of it costs, as in 0.12

Weighing = Annotated[int, Meta(ge=1, le=100)]
Importance = Annotated[int, Meta(ge=0, le=1000)]


class ClusterPreference(Document, frozen=True, kw_only=True):
    weight: Weighing  # how much it counts; of several that match, the sum
    selector: LabelSelector  # labels of the clusters that are wished for


class ApplicationTerm(Document, frozen=True, kw_only=True):
    name: str  # of another Application, in the same namespace, written at the same controller
    topology_key: str = ""  # a label of clusters, each value of which is one place; empty: each cluster is one
    weight: Annotated[int, Meta(ge=0, le=100)] = 0  # 0: it must be so when a replica is placed; else a wish that counts so much


class Affinity(Document, frozen=True, kw_only=True):
    """Where it would rather run, and beside whom. What must hold of clusters is clusterSelector."""

    clusters: list[ClusterPreference] = field(default_factory=list)  # clusters that are filled before others
    applications: list[ApplicationTerm] = field(default_factory=list)  # beside which it runs


class AntiAffinity(Document, frozen=True, kw_only=True):
    applications: list[ApplicationTerm] = field(default_factory=list)  # from which it stays away


class SpreadConstraint(Document, frozen=True, kw_only=True):
    topology_key: str = ""  # a label of clusters, each value of which is one place; empty: each cluster is one
    max_skew: Annotated[int, Meta(ge=1, le=100_000)] = 1  # by how many replicas two places may differ
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = "DoNotSchedule"  # the first: replicas wait; the second: at best


class DivisionWeight(Document, frozen=True, kw_only=True):
    weight: Count  # parts of the whole, for each cluster that matches
    selector: LabelSelector | None = None  # labels of the clusters; none: all. The first entry that matches counts


class Division(Document, frozen=True, kw_only=True):
    """How replicas are divided among the clusters that qualify. What stands is not moved for it."""

    by: Literal["Even", "Weights", "FreeCapacity", "LowestCost"] = "Even"  # equal numbers, parts, free room, or cost and latency
    weights: list[DivisionWeight] = field(default_factory=list)  # with Weights; a cluster that matches none gets nothing
    min: Count = 0  # replicas of a component that each cluster shall have before any has more
    max: Count = 0  # replicas of a component that one cluster may have at most; 0: no bound


class CostWish(Document, frozen=True, kw_only=True):
    weight: Importance = 1  # with LowestCost: of a thousandth of the currency an hour, beside a millisecond's weight


class LatencyWish(Document, frozen=True, kw_only=True):
    """Measured round trips: to clusters along the links of the tree, to users as each cluster measures it."""

    to: list[str] = field(default_factory=list)  # names of clusters that it serves; the farthest counts
    users: list[str] = field(default_factory=list)  # names of users that it serves, from spec.users of a Cluster; the farthest counts
    weight: Importance = 1  # with LowestCost: of a millisecond, beside the weight of a thousandth of the currency an hour
    max_millis: Annotated[int, Meta(ge=0, le=3_600_000)] = 0  # clusters farther away do not qualify; 0: any distance
