"""Critical points: solve for one, search for all, distinguish their orbits, classify each.

Which to use: `solve` takes any start to a critical point, to rounding; `census` lists the orbits of
critical points of a problem, each with its index and verdict; `judge` classifies one polished
point; `escape` descends from a saddle; `verify` compares all of these with the theory.
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
