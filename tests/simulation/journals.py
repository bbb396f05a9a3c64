"""Stores that forget soon: journals of a few rows, and rows that are taken off the disk one by one.

Whoever is out of reach for a moment is past the journal then and gets a snapshot, also in the midst of changes, and every object outlives
the record of most of what happened to it. Nothing else is different, and all that holds otherwise holds here.
"""

import contextlib
from collections.abc import Iterator
from random import Random
from unittest import mock

from cluster_controller import app
from cluster_controller.store import Limits
from cluster_controller.store import store as stores
from tests.simulation.families import Family, family


@family
class Journals(Family):
    name = "journals"

    @staticmethod
    @contextlib.contextmanager
    def stage(seed: int) -> Iterator[None]:
        rng = Random(f"journals {seed}")
        limits, dead = Limits(journal_rows=rng.choice((10, 40, 200))), rng.choice((1, 16))
        with (
            mock.patch.object(app, "STORE_LIMITS", limits),
            mock.patch.object(app, "LEAF_STORE_LIMITS", limits),
            mock.patch.object(stores, "DEAD_ROWS", dead),
        ):
            yield
