"""All families of steps: importing this is what makes them known."""

from tests.simulation import rollouts
from tests.simulation.families import FAMILIES, extend

PLAYED = (rollouts.Rollouts,)

__all__ = ["FAMILIES", "PLAYED", "extend"]
