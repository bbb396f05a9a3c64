"""All families of steps: importing this is what makes them known."""

from tests.simulation import bulk, documents, journals, moving, rollouts, shims
from tests.simulation.families import FAMILIES, extend

PLAYED = (rollouts.Rollouts, moving.Moving, shims.Shims, documents.Documents, journals.Journals, bulk.Bulk)

__all__ = ["FAMILIES", "PLAYED", "extend"]
