"""Starts for stationary points with H ≥ 0: feasible ones, one function a source.

The starts of `ufm.critical.sources` with absolute values of the features, in the coordinates of
class means. Sources that follow eigenvectors or deflate are for free features only. Random starts
lead to minima after descent, and to saddles by Newton's method on the free variables.
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
    """Random starts in which W and H are 0 on all but the first 1 … d−1 axes, in turn."""
    starts = random(problem, key, count)
    used = np.arange(problem.d) < 1 + np.arange(count)[:, None] % max(problem.d - 1, 1)
    return Params(starts.W * used[:, None, :], starts.H * used[:, :, None], starts.b)


def descended(problem: Problem, key: Array, count: int) -> Params:
    """End points of projected descent from random starts, near minima."""
    return _descended(problem, random(problem, key, count))


@jax.jit
def _descended(problem: Problem, starts: Params) -> Params:
    return jax.lax.map(lambda x: kkt.downhill(problem, x, np.int32(STEPS))[0], starts)


SOURCES = (random, tied, padded, descended)
