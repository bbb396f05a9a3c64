"""What the links between controllers need to know of who belongs to whom: guests, arrivals, and this cluster's own ancestors.

Implements `cluster_controller.links.Kinship` and the tunnel's policy for streams that leave a subtree upwards: nothing does but what
carries sync, and that only for clusters that were adopted. The first hop is the strict one, for it knows who is its guest; those above
it let pass what came to them from further below; whoever the stream ends at judges it by what it shows.
"""

from collections.abc import Callable, Sequence

import structlog

from cluster_controller.errors import Unreachable
from cluster_controller.identity.holder import Identity
from cluster_controller.links import BLOB, CARRIED
from cluster_controller.tree import away, failover, records, wire
from cluster_controller.tree.away import Arrival, Away
from cluster_controller.tree.child import Child, chain_of
from cluster_controller.tree.guests import Guests
from cluster_controller.tree.links import Links
from cluster_controller.tunnel.messages import CloseCode

log = structlog.get_logger()


class Kin:
    """``live``: as `Kinship` says."""

    def __init__(
        self, view: records.View, identity: Callable[[], Identity], links: Links, *, child: Child, guests: Guests, away: Away
    ) -> None:
        self._view = view
        self._identity = identity
        self._links = links
        self._child = child
        self._guests = guests
        self._away = away
        self.live = away.live

    def is_guest(self, uid: str) -> bool:
        return self._guests.get(uid) is not None

    async def arrived(self, metadata: bytes, source: Sequence[str]) -> tuple[str, bool, str]:
        return await self._away.arrived(metadata, source)

    def arrival(self) -> bytes:
        parent = self._links.parent
        if parent is None or parent.hello is None or parent.hello.attach is None:
            raise Unreachable("the link to the adopter is gone")
        begun = records.starts(self._view)
        shown = Arrival(
            attach=wire.attach_record(parent.hello.attach),
            starts=begun.ids,
            number=begun.number,
            chain=chain_of(self._identity()),
            adopter=parent.peer_name,
        )
        return away.encode(shown)

    def disowned(self, reason: str) -> None:
        self._child.trouble = reason
        log.error("cluster.disowned", reason=reason, instance=self._child.instance)
        if self._links.parent is not None:
            self._links.parent.close(CloseCode.HELD, reason)

    def ancestors(self) -> Sequence[str]:
        identity, parent = self._identity(), self._links.parent
        if parent is None or parent.peer_uid == identity.parent_uid:
            return (identity.parent_uid,)
        return failover.home_ancestors(identity.parent_uid, identity.path[:-1])

    def may_leave(self, source: str, destination: str, service: str) -> bool:
        """May a stream of ``source`` for somebody outside this subtree go up?"""
        if service not in CARRIED:
            return False
        identity = self._identity()
        if source == identity.uid:
            return destination in identity.path and destination != identity.uid
        guest = self._guests.get(source)
        if guest is not None:
            return destination in guest.ancestors
        if self._links.router.next_hop(source) is None:
            return False
        # What this cluster has no room for, its children may ask its ancestors for.
        return self._links.get(source) is None or (service == BLOB and destination in identity.path)
