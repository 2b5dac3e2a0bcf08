"""Global minimum of the balanced unconstrained feature model, in closed form.

For balanced classes, d ≥ K−1, λ_W, λ_H > 0 and λ_b ≥ 0 (or no bias) every global minimiser is a
simplex ETF (Zhu et al. 2021, arXiv 2105.02375, theorem 3.1). With c = √(n λ_W λ_H):

    K c ≥ 1:  W = H = 0,  f* = log K
    K c < 1:  every wrong class has probability c,  margin t = log(1/c − (K−1)),
              f* = −log(1 − (K−1)c) + (K−1) c t,  ‖W‖² = (K−1) t √(n λ_H/λ_W)

Nothing here imports an optimiser or a probe: agreement with a simulation is evidence. Scalars are
computed in NumPy float64, whatever JAX's precision, and are right to rounding for all decays that
are normal numbers: near the threshold 1 − Kc is computed in exact arithmetic.
"""

from fractions import Fraction
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.check import Refused, normal_decays, shown
from ufm.model import layers
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.theory import geometry
from ufm.theory.shared import plain


def _decays(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(problem.lam_W, np.float64), np.asarray(problem.lam_H, np.float64)


def check_assumptions(problem: Problem) -> None:
    """Refuse a problem outside the theorem: it needs d ≥ K−1, equal counts and λ_W, λ_H > 0.

    Raises:
        Refused: naming the assumption that fails and what is still known there; a decay between 0
            and the smallest normal number.
    """
    layers.require_free(problem, "ufm.theory.minimum")
    if not plain(problem):
        raise Refused(
            f"got the loss {type(problem.loss).__name__} or targets: this is the closed form of "
            "cross-entropy with labels; ufm.theory answers for other losses where one is known"
        )
    normal_decays(problem)
    if not problem.balanced:
        raise Refused(
            f"got unequal class counts n={problem.n}: the closed form assumes balanced classes; "
            "use one n for all, or bound the optimum with ufm.certify, which holds for any counts"
        )
    check_uniform(problem)
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


def check_uniform(problem: Problem) -> None:
    """Refuse weights of classes, in the loss or in the decay.

    Raises:
        Refused: the problem has weights or decay_weights.
    """
    for name in ("weights", "decay_weights"):
        if getattr(problem, name) is not None:
            raise Refused(
                f"got {name}={shown(getattr(problem, name))}: the closed form assumes classes of "
                "one weight; bound the optimum with ufm.certify, which holds for any weights"
            )


def wrong_probability(problem: Problem):
    """min(c, 1/K), c = √(n λ_W λ_H): the probability of each wrong class at the minimum.

    Elementwise over array decays. Source: Zhu et al. 2021, arXiv 2105.02375, theorem 3.1.

    Raises:
        Refused: as `check_assumptions`.
    """
    return np.minimum(_c(problem), 1.0 / problem.K)[()]


def _c(problem: Problem) -> np.ndarray | np.float64:
    check_assumptions(problem)
    lam_W, lam_H = _decays(problem)
    # Factor by factor, so that small decays do not underflow in their product.
    with np.errstate(over="ignore"):
        return np.sqrt(float(problem.counts[0])) * np.sqrt(lam_W) * np.sqrt(lam_H)


def below_threshold(problem: Problem, lam_W: float, lam_H: float) -> Fraction:
    """1 − K² n λ_W λ_H in exact arithmetic: positive below the threshold."""
    sizes = problem.K**2 * int(problem.counts[0])
    return 1 - sizes * Fraction(float(lam_W)) * Fraction(float(lam_H))


def _distance(problem: Problem):
    """1 − Kc, to rounding, also where it nearly vanishes; −∞ where c overflows."""
    c = _c(problem)
    with np.errstate(over="ignore"):
        s = np.asarray(problem.K * c)
    distance = np.array(1 - s)
    lam_W, lam_H = np.broadcast_arrays(*_decays(problem))
    for i in zip(*np.nonzero(np.atleast_1d(abs(distance) < 0.5)), strict=True):
        i = i if s.ndim else ()
        distance[i] = float(below_threshold(problem, lam_W[i], lam_H[i])) / (1 + s[i])
    return distance[()]


def is_collapsed(problem: Problem):
    """Whether K² n λ_W λ_H ≥ 1, so that the global minimum is W = H = 0.

    Below this threshold the global minimisers are simplex ETFs of positive norm. Elementwise over
    array decays.

    Raises:
        Refused: as `check_assumptions`.
    """
    return np.asarray(_distance(problem) <= 0)[()]


def margin(problem: Problem):
    """t = z_y − z_j = log(1/c − (K−1)) for every wrong class j; 0 at and above the threshold.

    Elementwise over array decays.

    Raises:
        Refused: as `check_assumptions`.
    """
    # As 1 + (1 − Kc)/c, since 1/c − (K−1) would lose digits where t vanishes at the threshold.
    return np.log1p(np.maximum(_distance(problem), 0.0) / _c(problem))[()]


def global_value(problem: Problem):
    """f* = −log(1 − (K−1)c) + (K−1) c t, in nats; log K at and above the threshold.

    It equals the mean entropy of the predicted distributions at the minimum. Elementwise over array
    decays.

    Raises:
        Refused: as `check_assumptions`.
    """
    c, wrong = wrong_probability(problem), problem.K - 1
    # Near the threshold p_y = 1 − (K−1)c loses digits, and p_y = c + (1 − Kc) does not.
    near = np.log(c + np.maximum(_distance(problem), 0.0))
    log_p = np.where(wrong * c < 0.5, np.log1p(-wrong * c), near)
    return (-log_p + wrong * c * margin(problem))[()]


class Norms(NamedTuple):
    """Frobenius norms ‖W‖ and ‖H‖ at the global minimum."""

    W: float
    H: float


def norms(problem: Problem) -> Norms:
    """‖W‖ and ‖H‖ at the minimum: ‖W‖² = (K−1) t √(n λ_H/λ_W) and λ_W‖W‖² = λ_H‖H‖².

    Elementwise over array decays.

    Raises:
        Refused: as `check_assumptions`.
    """
    check_assumptions(problem)
    return norms_of(problem, margin(problem))


def norms_of(problem: Problem, t) -> Norms:
    """The norms of a balanced simplex ETF of margin t, as `norms`."""
    lam_W, lam_H = _decays(problem)
    # Roots first: the quotient of two decays may overflow.
    tilt = np.sqrt(np.sqrt(lam_H)) / np.sqrt(np.sqrt(lam_W))
    size = np.sqrt((problem.K - 1) * t * np.sqrt(float(problem.counts[0])))
    return Norms((size * tilt)[()], (size / tilt)[()])


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A global minimiser in a Haar-random orientation.

    W is ‖W‖/√K times a simplex ETF of unit rows, h_i = √(λ_W/(λ_H n)) w_{y_i}, b = 0. All global
    minimisers are of this form, up to b ∈ span(1) when λ_b = 0.

    Args:
        problem: balanced, d ≥ K−1, λ_W, λ_H > 0, with scalar decays.
        key: a JAX PRNG key; it draws the orientation.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: outside the theorem's assumptions; sizes that do not fit into memory.
    """
    return etf(problem, norms(problem), key, dtype)


def etf(problem: Problem, size: Norms, key: Array | None, dtype=None) -> Params:
    """The balanced simplex ETF of given norms in a Haar-random orientation, b = 0.

    Raises:
        Refused: a norm beyond the range of the dtype; sizes that do not fit into memory.
    """
    check_memory(problem, np.dtype(np.float32).itemsize)
    frame = geometry.simplex_etf(problem.K, problem.d, key, dtype)
    radii = size.W / problem.K**0.5, size.H / problem.N**0.5
    info = jnp.finfo(frame.dtype)
    for radius in radii:
        if radius and not float(info.tiny) <= radius <= float(info.max):
            raise Refused(
                f"got a minimiser with a row of W or a column of H of norm {radius:.3g}, beyond "
                f"the range of {frame.dtype}; allowed: a wider dtype, or λ_W and λ_H closer to one "
                "another"
            )
    return _scaled(frame, float(radii[0]), float(radii[1]), n=int(problem.counts[0]))


@partial(programs.once, level=1, static_argnames=("n",))
def _scaled(frame: Array, r_W: float, r_H: float, n: int) -> Params:
    """(W, H, 0) of the frame (K, d), n samples a class."""
    K, dtype = len(frame), frame.dtype
    W, means = frame * r_W, frame.T * r_H
    H = jnp.repeat(means, n, axis=1, total_repeat_length=K * n)
    return Params(W.astype(dtype), H.astype(dtype), jnp.zeros(K, dtype))
