"""Critical points: solve for one, take a census of many, tell orbits apart, judge each.

Which to use: `solve` from any start to a critical point at rounding; `census` for the orbits of
critical points of a problem, each with its index and verdict; `judge` for one polished point;
`escape` for descent from a saddle; `verify` to compare all of it with the theory.
"""

from ufm.critical.orbits import Orbit, fingerprint, judge
from ufm.critical.search import NAMES, Batch, Census, census, hits
from ufm.critical.solver import Solution, solve
from ufm.critical.sources import partitions
from ufm.critical.unstable import Escape, escape
from ufm.critical.verification import Cell, verify

__all__ = [
    "NAMES",
    "Batch",
    "Cell",
    "Census",
    "Escape",
    "Orbit",
    "Solution",
    "census",
    "escape",
    "fingerprint",
    "hits",
    "judge",
    "partitions",
    "solve",
    "verify",
]
