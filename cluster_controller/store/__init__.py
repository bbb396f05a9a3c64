"""What is written stays written: objects, their journal, their history, in one SQLite file mirrored in memory."""

from cluster_controller.store.health import Trouble
from cluster_controller.store.history import History
from cluster_controller.store.model import Event, Expired, Key, Limits, Stored
from cluster_controller.store.store import Store
from cluster_controller.store.tx import Tx

__all__ = ["Event", "Expired", "History", "Key", "Limits", "Store", "Stored", "Trouble", "Tx"]
