"""Global minimum of the balanced unconstrained feature model, in closed form.

For balanced classes, d ≥ K−1, λ_W, λ_H > 0 and λ_b ≥ 0 (or no bias) every global minimiser is a
simplex ETF (Zhu et al. 2021, arXiv 2105.02375, theorem 3.1). With c = √(n λ_W λ_H):

    K c ≥ 1:  W = H = 0,  f* = log K
    K c < 1:  wrong classes get softmax probability c,  margin t = log(1/c − (K−1)),
              f* = −log(1 − (K−1)c) + (K−1) c t,  ‖W‖² = (K−1) t √(n λ_H/λ_W)

Nothing here imports an optimiser or a probe: agreement with a simulation is evidence. Scalars are
computed in NumPy float64, whatever JAX's precision.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import geometry
from ufm.check import Refused
from ufm.problem import Params, Problem


def _decays(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(problem.lam_W, np.float64), np.asarray(problem.lam_H, np.float64)


def check_assumptions(problem: Problem) -> None:
    """Refuse a problem outside the theorem: it needs d ≥ K−1, equal counts and λ_W, λ_H > 0.

    Raises:
        Refused: naming the assumption that fails and what is still known there.
    """
    if not problem.balanced:
        raise Refused(
            f"got unequal class counts n={problem.n}: the closed form assumes balanced classes; "
            "use one n for all, or bound the optimum with ufm.certify, which holds for any counts"
        )
    if problem.d < problem.K - 1:
        raise Refused(
            f"got d={problem.d} < K-1={problem.K - 1}: the closed form assumes d >= K-1, since a "
            "simplex ETF spans K-1 dimensions; raise d, or bound the optimum with ufm.certify"
        )
    for name, lam in zip(("lam_W", "lam_H"), _decays(problem), strict=True):
        if np.any(lam <= 0):
            raise Refused(
                f"got {name}={getattr(problem, name)}: the closed form assumes lam_W > 0 and "
                "lam_H > 0; without decay the infimum is not attained"
            )


def wrong_probability(problem: Problem):
    """c = √(n λ_W λ_H), at most 1/K: softmax probability of each wrong class at the minimum."""
    return np.minimum(_c(problem), 1.0 / problem.K)[()]


def _c(problem: Problem) -> np.ndarray | np.float64:
    check_assumptions(problem)
    lam_W, lam_H = _decays(problem)
    # Factor by factor, so that tiny decays do not underflow in their product.
    return np.sqrt(float(problem.counts[0])) * np.sqrt(lam_W) * np.sqrt(lam_H)


def is_collapsed(problem: Problem):
    """K² n λ_W λ_H ≥ 1: decay wins, and the global minimum has collapsed to W = H = 0.

    Below this threshold the global minimisers are simplex ETFs of positive norm. Elementwise over
    array decays.
    """
    return np.asarray(problem.K * _c(problem) >= 1.0)[()]


def margin(problem: Problem):
    """t = z_y − z_j = log(1/c − (K−1)) for every wrong class j; 0 at and above the threshold."""
    c = _c(problem)
    # 1/c − (K−1) = 1 + (1 − Kc)/c keeps t accurate where it vanishes at the threshold.
    return np.log1p(np.maximum(1.0 - problem.K * c, 0.0) / c)[()]


def global_value(problem: Problem):
    """f* = −log(1 − (K−1)c) + (K−1) c t, in nats; log K at and above the threshold.

    It equals the mean entropy of the predicted distributions at the minimum.
    """
    c, wrong = wrong_probability(problem), problem.K - 1
    # p_y = 1 − (K−1)c loses digits near the threshold, where p_y = c + (1 − Kc) keeps them.
    near = np.log(c + np.maximum(1.0 - problem.K * c, 0.0))
    log_p = np.where(wrong * c < 0.5, np.log1p(-wrong * c), near)
    return (-log_p + wrong * c * margin(problem))[()]


class Norms(NamedTuple):
    """Frobenius norms ‖W‖ and ‖H‖ at the global minimum."""

    W: float
    H: float


def norms(problem: Problem) -> Norms:
    """‖W‖² = ρ = (K−1) t √(n λ_H/λ_W) and λ_W‖W‖² = λ_H‖H‖²."""
    check_assumptions(problem)
    lam_W, lam_H = _decays(problem)
    ratio = np.sqrt(lam_H / lam_W)
    rho = (problem.K - 1) * margin(problem) * np.sqrt(float(problem.counts[0])) * ratio
    return Norms(np.sqrt(rho)[()], (np.sqrt(rho) / ratio)[()])


def global_minimizer(problem: Problem, key: Array, dtype=None) -> Params:
    """A global minimiser in a Haar-random orientation.

    W is √(ρ/K) times a simplex ETF of unit rows, h_i = √(λ_W/(λ_H n)) w_{y_i}, b = 0. All global
    minimisers are of this form up to b ∈ span(1) when λ_b = 0.

    Args:
        problem: balanced, d ≥ K−1, λ_W, λ_H > 0, with scalar decays.
        key: a JAX PRNG key; it draws the orientation.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: outside the theorem's assumptions.
    """
    check_assumptions(problem)
    lam_W, lam_H = _decays(problem)
    n = int(problem.counts[0])
    radius = float(norms(problem).W / np.sqrt(problem.K))
    W = geometry.simplex_etf(problem.K, problem.d, key, dtype) * radius
    class_means = float(np.sqrt(lam_W / (lam_H * n))) * W.T
    H = jnp.repeat(class_means, n, axis=1, total_repeat_length=problem.N)
    return jax.tree.map(lambda x: x.astype(W.dtype), Params(W, H, jnp.zeros(problem.K)))
