"""Where replicas without a place could go if others gave way: the clusters of one decision as `preempt` looks at them. Pure.

Below, a share is simply given: whoever has the cluster decides who gives way there, and reports what still finds no place. On the own
cluster nothing is raised before those who give way have ended; until then the replicas wait, and their room is kept (`placement.contest`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from cluster_controller.placement.bins import NOTHING, place_of, promised, weight_of
from cluster_controller.placement.capacity import Space, add
from cluster_controller.placement.divide import takes_more
from cluster_controller.placement.model import ClusterRecord, ComponentDemand, Demand, Given, Preempting, Request, Resident
from cluster_controller.placement.preempt import MOST_REPLICAS, Room, Seized, room, seek


class Rivals(Struct, frozen=True):
    """Of the own cluster: who runs there, and what is kept for others who may not be passed by."""

    residents: tuple[Resident, ...] = ()
    promised: Request = Request()


class Foreseen(NamedTuple):
    """What the division gives each cluster without anybody giving way, and of that what is new."""

    counts: Mapping[str, int]
    added: Mapping[str, int]


class Contender:
    """``rivals`` is asked only when something finds no place. ``pending`` as for `place`."""

    def __init__(self, demand: Demand, space: Space, rivals: Callable[[], Rivals], pending: Mapping[str, Request]) -> None:
        self.demand = demand
        self._space = space
        self._rivals = rivals
        self._pending = pending
        self._spent: dict[str, Request] = {}  # cluster → what earlier components of this decision take there
        self._gone: dict[str, dict[int, int]] = {}  # cluster → resident, by its place in the list → replicas that give way already
        self.found: list[Preempting] = []

    def seek(
        self,
        component: ComponentDemand,
        missing: int,
        among: Sequence[ClusterRecord],
        given: Mapping[str, Given],
        foreseen: Foreseen,
    ) -> dict[str, int]:
        """Per cluster, of ``missing`` replicas those that get room when others give way."""
        demand = self.demand
        if not demand.preempts or not component.request:
            return {}
        counts, added = foreseen
        self._spend(component, added)
        if missing <= 0:
            return {}
        rooms: list[Room] = []
        for cluster in among:
            stands = given.get(cluster.via, NOTHING)
            most = self._most(component, cluster, counts.get(cluster.uid, 0))
            if cluster.cordoned or most <= 0 or not takes_more(stands):
                continue
            found = self._room(component, cluster, stands, most)
            if found is not None:
                rooms.append(found)
        hard = [spread for spread in demand.spread if spread.hard]
        places = {each.uid: tuple(place_of(spread, each) for spread in hard) for each in among} if hard else {}
        skews = [spread.skew for spread in hard]

        def allowed(more: Mapping[str, int], there: Room) -> bool:
            for number, skew in enumerate(skews):
                sums: dict[str, int] = {}
                for uid, where in places.items():
                    sums[where[number]] = sums.get(where[number], 0) + counts.get(uid, 0) + more.get(uid, 0)
                if sums[places[there.uid][number]] + 1 - min(sums.values()) > skew:
                    return False
            return True

        seized = seek(missing, component.request, rooms, demand.priority, allowed if hard else None)
        for each in seized:
            self._take(component, each)
        return {each.uid: each.replicas for each in seized}

    def _most(self, component: ComponentDemand, cluster: ClusterRecord, count: int) -> int:
        dividing = self.demand.dividing
        if dividing.by == "Weights" and weight_of(dividing.weights, cluster) <= 0:
            return 0
        most = dividing.most - count if dividing.most else MOST_REPLICAS
        return min(most, 1 - count) if component.single else most

    def _room(self, component: ComponentDemand, cluster: ClusterRecord, stands: Given, most: int) -> Room | None:
        everybody = self._rivals().residents if cluster.own else cluster.residents
        gone = self._gone.get(cluster.uid, {})
        residents = [
            msgspec.structs.replace(each, count=each.count - gone[index]) if index in gone else each
            for index, each in enumerate(everybody)
            if each.application != self.demand.application
        ]
        lower = any(each.priority < self.demand.priority for each in residents)
        if not lower and not (cluster.own and cluster.uid in self._pending):
            return None
        taken = self._spent.get(cluster.uid, Request())
        if cluster.own:
            return room(component, cluster, residents, add(taken, self._rivals().promised), most=most)
        if len(self._space.behind(cluster.via)) > 1:
            return room(component, self._space.now(cluster), residents, taken, most=most)
        taken = _add(taken, component.request, promised(component, [cluster], stands))
        return room(component, cluster, residents, add(taken, self._pending.get(cluster.via, Request())), most=most)

    def _take(self, component: ComponentDemand, each: Seized) -> None:
        self._spent[each.uid] = _add(self._spent.get(each.uid, Request()), component.request, each.replicas)
        yields = tuple((one.resident, one.count) for one in each.yields)
        self.found.append(Preempting(each.uid, component.name, each.replicas, yields))
        cluster = self._space.of(each.uid)
        everybody = self._rivals().residents if cluster is None or cluster.own else cluster.residents
        gone = self._gone.setdefault(each.uid, {})
        for resident, count in yields:
            index = next(
                index
                for index, one in enumerate(everybody)
                if msgspec.structs.replace(one, count=0) == msgspec.structs.replace(resident, count=0)
            )
            gone[index] = gone.get(index, 0) + count
            # What gives way is room for whatever of this application comes next.
            self._spent[each.uid] = _add(self._spent[each.uid], resident.request, -count)

    def _spend(self, component: ComponentDemand, added: Mapping[str, int]) -> None:
        for uid, count in added.items():
            self._spent[uid] = _add(self._spent.get(uid, Request()), component.request, count)


def _add(one: Request, each: Request, times: int) -> Request:
    return add(one, each, times) if times else one
