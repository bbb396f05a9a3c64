"""For how long a cluster has had a taint, as this controller saw it: what `tolerationSeconds` are counted from.

No clock is compared across hosts (ARCHITECTURE law 4), so it is counted from when this controller first looked, by its own boot-time clock;
after a restart it counts anew, and evicts later, never sooner. Pure: ``now`` is an argument.
"""

from collections.abc import Iterable

import msgspec

from cluster_controller.placement.filters import grace
from cluster_controller.placement.fleet import Fleet
from cluster_controller.placement.model import ClusterRecord, Demand, Taint

EVICTS = "NoExecute"


class TaintAges:
    """When each taint that evicts was first seen on each cluster."""

    def __init__(self) -> None:
        self._since: dict[str, dict[Taint, float]] = {}  # cluster → taint → when

    def look(self, demand: Demand, fleet: Fleet, now: float) -> tuple[Fleet, float | None]:
        """The fleet with the age of its taints, and in how many seconds the first of those that ``demand`` tolerates for a while is
        tolerated no more. Nothing is looked at for a demand that tolerates nothing for a while."""
        if not any(each.seconds is not None for each in demand.tolerations):
            return fleet, None
        tainted = [record for record in fleet if any(taint.effect == EVICTS for taint in record.taints)]
        gone = self._since.keys() - {record.uid for record in tainted}
        for uid in gone:
            del self._since[uid]
        aged = {record.uid: self._aged(record, now) for record in tainted}
        return fleet.view(aged), min(self._ends(demand, aged.values()), default=None)

    def _aged(self, record: ClusterRecord, now: float) -> ClusterRecord:
        before = self._since.get(record.uid, {})
        since = self._since[record.uid] = {taint: before.get(taint, now) for taint in record.taints if taint.effect == EVICTS}
        taints = tuple(msgspec.structs.replace(taint, age=now - since[taint]) if taint in since else taint for taint in record.taints)
        return msgspec.structs.replace(record, taints=taints)

    @staticmethod
    def _ends(demand: Demand, records: Iterable[ClusterRecord]) -> Iterable[float]:
        for record in records:
            left = [grace(taint, demand.tolerations) for taint in record.taints if taint.effect == EVICTS]
            yield from (seconds for seconds in left if seconds > 0)
