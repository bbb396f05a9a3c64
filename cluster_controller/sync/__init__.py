"""One space, two stores: replication that is acknowledged after commit, resumed by cursor and repaired by digest."""

from cluster_controller.sync.conflicts import resolve
from cluster_controller.sync.session import SyncSession
from cluster_controller.sync.source import SyncLimits

__all__ = ["SyncLimits", "SyncSession", "resolve"]
