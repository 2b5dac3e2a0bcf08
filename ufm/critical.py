"""Critical points: solve for one, take a census of many, tell orbits apart, judge each.

Which to use: `solve` from any start to a critical point at rounding; `census` for the orbits of
critical points of a problem, each with its index and verdict; `judge` for one polished point.
"""

from ufm.census import NAMES, Census, census, hits
from ufm.orbits import Orbit, fingerprint, judge
from ufm.solver import Solution, solve
from ufm.sources import partitions

__all__ = [
    "NAMES",
    "Census",
    "Orbit",
    "Solution",
    "census",
    "fingerprint",
    "hits",
    "judge",
    "partitions",
    "solve",
]
