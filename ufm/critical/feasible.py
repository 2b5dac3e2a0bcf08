"""Where to look for stationary points with H ≥ 0: starts that are feasible, one function a source.

The starts of `ufm.critical.sources` with absolute values of the features, in the coordinates of
class means; what follows eigenvectors or deflates knows free features alone. Random starts find
minima once they have descended, and saddles by Newton's method on the free variables.
"""

import jax
import numpy as np
from jaxtyping import Array

from ufm.critical import kkt, sources
from ufm.model import layers
from ufm.model.problem import Params, Problem

STEPS = 10_000  # of descent, at most


def random(problem: Problem, key: Array, count: int) -> Params:
    """`sources.random` with absolute values of the features."""
    return layers.of(problem).draw(sources.random(problem, key, count))


def tied(problem: Problem, key: Array, count: int) -> Params:
    """`sources.tied` with absolute values of the features."""
    return layers.of(problem).draw(sources.tied(problem, key, count))


def padded(problem: Problem, key: Array, count: int) -> Params:
    """Random starts that use only the first 1 … d−1 axes, in turn; the others are idle."""
    starts = random(problem, key, count)
    used = np.arange(problem.d) < 1 + np.arange(count)[:, None] % max(problem.d - 1, 1)
    return Params(starts.W * used[:, None, :], starts.H * used[:, :, None], starts.b)


def descended(problem: Problem, key: Array, count: int) -> Params:
    """Where projected descent from random starts has come to: near minima."""
    return _descended(problem, random(problem, key, count))


@jax.jit
def _descended(problem: Problem, starts: Params) -> Params:
    return jax.lax.map(lambda x: kkt.downhill(problem, x, np.int32(STEPS))[0], starts)


SOURCES = (random, tied, padded, descended)
