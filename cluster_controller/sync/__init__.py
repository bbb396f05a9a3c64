"""One space, two stores: replication that is acknowledged after commit, resumed by cursor and repaired by digest."""

from cluster_controller.sync.conflicts import resolve
from cluster_controller.sync.limits import SyncLimits
from cluster_controller.sync.session import SyncSession

__all__ = ["SyncLimits", "SyncSession", "resolve"]
