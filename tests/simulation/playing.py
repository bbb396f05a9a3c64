"""All families of steps: importing this is what makes them known."""

from tests.simulation import documents, moving, rollouts, shims
from tests.simulation.families import FAMILIES, extend

PLAYED = (rollouts.Rollouts, moving.Moving, shims.Shims, documents.Documents)

__all__ = ["FAMILIES", "PLAYED", "extend"]
