"""The closed form of the minimum that a problem has, chosen by its features, loss and classes.

Plain cross-entropy: `ufm.theory.minimum`, and `ufm.theory.groups` for unequal classes. Other losses
that treat all classes alike: `ufm.theory.symmetric`. The squared error: `ufm.theory.squared`.
Features H ≥ 0: `ufm.theory.nonnegative`; unit vectors: `ufm.theory.sphere`. A problem outside all
of these is refused, and the message names the assumption that fails.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check
from ufm.check import Refused, normal_decays
from ufm.losses import SquaredError
from ufm.metrics.alignment import Geometry, geometry
from ufm.model import layers
from ufm.model.fixed import require_free
from ufm.model.problem import Params, Problem, check_problem, require
from ufm.theory import groups, minimum, nonnegative, shared, sphere, squared, symmetric
from ufm.theory.minimum import Norms

# The modules of features that are not free.
_MEMBERS = {"nonnegative": nonnegative, "sphere": sphere}


def _member(problem: Problem) -> Any:
    """The module of the features, None for free ones; refuses what is no single problem."""
    require(problem)
    if layers.is_free(problem):
        return None
    check_problem(problem)
    normal_decays(problem)
    return _MEMBERS[problem.features]


def _is_squared(problem: Problem) -> bool:
    require_free(problem)
    return isinstance(problem.loss, SquaredError)


def _is_grouped(problem: Problem) -> bool:
    """Cross-entropy of classes that differ, whose minimum is computed and certified."""
    return shared.plain(problem) and not problem.uniform


def global_value(problem: Problem) -> Any:
    """f*, the value of the global minimum, in nats for a negative log-likelihood.

    For cross-entropy of equal classes f* = −log(1 − (K−1)c) + (K−1) c t (log K at and above the
    threshold), elementwise over array decays, with c = √(n λ_W λ_H) and t the margin (Zhu et al.
    2021, arXiv 2105.02375, theorem 3.1). For unequal classes it is the value of
    `ufm.theory.certified_minimum`, whose certified error is far below 1e-12 f*. Formulas and
    sources for other losses and features: `ufm.theory.symmetric`, `ufm.theory.squared`,
    `ufm.theory.nonnegative`, `ufm.theory.sphere`.

    Raises:
        Refused: naming the assumption of the closed form that fails.
    """
    if member := _member(problem):
        return member.global_value(problem)
    if _is_squared(problem):
        return squared.global_value(problem)
    if _is_grouped(problem):
        return groups.least(problem).value
    if shared.plain(problem):
        return minimum.global_value(problem)
    return symmetric.least(problem).value


def is_collapsed(problem: Problem) -> Any:
    """Whether decay is so strong that the global minimum is W = H = 0.

    For cross-entropy of equal classes this is K² n λ_W λ_H ≥ 1, elementwise over array decays. On
    the sphere it is False.

    Raises:
        Refused: as `global_value`.
    """
    if member := _member(problem):
        return member.is_collapsed(problem)
    if _is_squared(problem):
        return squared.is_collapsed(problem)
    if _is_grouped(problem):
        return groups.is_collapsed(problem)
    if shared.plain(problem):
        return minimum.is_collapsed(problem)
    return symmetric.least(problem).t == 0


def margin(problem: Problem) -> Any:
    """t = z_y − z_j at the global minimum, for every wrong class j; 0 if the minimum is W = H = 0.

    For cross-entropy of equal classes t = log(1/c − (K−1)), c = √(n λ_W λ_H) < 1/K, elementwise
    over array decays; on the sphere t = K/(K−1), that of the logits WH before the temperature.

    Raises:
        Refused: as `global_value`; unequal classes, which have no common margin (for H ≥ 0 take
            `ufm.theory.margins`).
    """
    if member := _member(problem):
        return member.margin(problem)
    if _is_squared(problem):
        return squared.margin(problem)
    return minimum.margin(problem) if shared.plain(problem) else symmetric.least(problem).t


def norms(problem: Problem) -> Norms:
    """Frobenius norms ‖W‖ and ‖H‖ at the global minimum; λ_W‖W‖² = λ_H‖H‖² with uniform decay.

    For a simplex ETF of margin t ‖W‖² = (K−1) t √(n λ_H/λ_W); on the sphere ‖W‖² = K, ‖H‖² = N.

    Raises:
        Refused: as `global_value`; cross-entropy of free features with decay_weights.
    """
    if member := _member(problem):
        return Norms(*member.norms(problem))
    if _is_squared(problem):
        return Norms(*squared.norms(problem))
    if _is_grouped(problem):
        return Norms(*groups.norms(problem))
    if shared.plain(problem):
        return minimum.norms(problem)
    return minimum.norms_of(problem, symmetric.least(problem).t)


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A global minimiser (W, H, b) in a Haar-random orientation.

    For equal classes under most losses W is a simplex ETF and h_i = √(λ_W/(λ_H n)) w_{y_i}; see
    `global_value` for the modules that hold the other forms. For H ≥ 0 the orientation is a random
    choice of axes.

    Args:
        problem: within the assumptions of its closed form, with scalar decays.
        key: a JAX PRNG key, or an integer seed; it draws the orientation. None takes a fixed one.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: as `global_value`; no valid key; sizes that do not fit into memory.
    """
    key, dtype = None if key is None else check.key(key), check.floating("dtype", dtype)
    if member := _member(problem):
        return member.global_minimizer(problem, key, dtype)
    if _is_squared(problem):
        return squared.global_minimizer(problem, key, dtype)
    if _is_grouped(problem):
        return groups.global_minimizer(problem, key, dtype)
    if shared.plain(problem):
        return minimum.global_minimizer(problem, key, dtype)
    found = symmetric.least(problem)
    params = minimum.etf(problem, minimum.norms_of(problem, found.t), key, dtype)
    return jax.tree.map(jnp.asarray, params._replace(b=params.b + found.beta))


def geometry_of(problem: Problem) -> Geometry:
    """The Gram matrices of the global minimum, for comparison by `ufm.metrics.alignment`.

    They are those of a simplex for equal classes under most losses; of the minimum that
    `ufm.theory.certified_minimum` computes for unequal classes; of the closed form for the squared
    error. For H ≥ 0 the class means are orthogonal, and the centred means of equal classes form a
    simplex.

    Args:
        problem: as `global_minimizer` takes it, with labels.

    Raises:
        Refused: as `global_value`; targets, whose columns are not classes; a minimum W = H = 0,
            which has no geometry; the squared error where d is so small that modes of equal gain
            compete for the last dimension.
    """
    require_free(problem)
    if problem.targets is not None:
        raise Refused(
            f"got targets with {problem.groups} columns; allowed: labels, since each class has a "
            "row of W"
        )
    if layers.is_free(problem) and _is_squared(problem):
        squared.check_unique(problem)
    if is_collapsed(problem):
        raise Refused("got a problem whose minimum is W = H = 0, without a geometry; lower lam")
    W, H, _ = global_minimizer(problem, jax.random.key(0), jnp.float64)
    first = np.concatenate([[0], np.cumsum(problem.counts)[:-1]])
    model = ", ".join(f"{name}={x}" for name, x in problem.describe().items())
    return geometry(W, np.asarray(H)[:, first].T, f"the global minimum of {model}")
