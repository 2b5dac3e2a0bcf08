"""One float64 evaluation of a concrete point, shared by all functions that classify the point.

    r_i = ∇ℓ,  S_i = ∇²ℓ at the logits of sample i,  G = [w_i r_i],
    ∇f = (GHᵀ + λ_W W, WᵀG + λ_H HΩ, G1 + λ_b b)

`ufm.hessian.stationarity`, `ufm.certificate`, `ufm.hessian.reduction` and `ufm.hessian.decision`
take an `Evaluated` in place of (problem, params), so that a point is evaluated once. It is computed
in one compiled call and stored in NumPy.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ufm.check import Refused
from ufm.losses.loss import Curvature
from ufm.model import layers, points
from ufm.model import objective as terms
from ufm.model.magnitudes import gradient_rounding
from ufm.model.problem import Params, Problem

LARGEST = 1e150  # entries of a point, whose squares float64 holds


class Residuals(NamedTuple):
    """What the Hessian depends on at a point, in NumPy float64; fields as in `Evaluated`."""

    problem: Problem
    params: Params
    S: Curvature
    residual: Float[np.ndarray, "K N"]

    @property
    def G(self) -> Float[np.ndarray, "K N"]:
        """G = [w_i r_i], the gradient of the data term in the logits."""
        return _gradient_in_logits(self.problem, self.residual)


class Evaluated(NamedTuple):
    """A point with f, ∇f, and residuals and Hessians of the loss there, in NumPy float64.

    problem: with scalar decays.  params: W (K, d), H (d, N), b (K,), which is 0 without a bias.
    value: f, in nats.
    S: the Hessians S_i of the loss in the logits of every sample.
    residual: R = [r_i], (K, N); P − Y for cross-entropy.
    gradient: ∇f; its part in b is 0 without a bias.  grad_norm: ‖∇f‖, where H ≥ 0 and on the
        sphere that of the projected gradient.
    rounding: bounds on the errors of the entries of G (`ufm.model.magnitudes.gradient_rounding`).
    """

    problem: Problem
    params: Params
    value: float
    S: Curvature
    residual: Float[np.ndarray, "K N"]
    gradient: Params
    grad_norm: float
    rounding: Float[np.ndarray, "K N"]

    @property
    def G(self) -> Float[np.ndarray, "K N"]:
        """G = [w_i r_i], the gradient of the data term in the logits."""
        return _gradient_in_logits(self.problem, self.residual)


def _gradient_in_logits(problem: Problem, residual: np.ndarray) -> np.ndarray:
    if problem.weights is None:
        return residual / problem.N
    return residual * problem.class_weights[problem.labels]


def evaluate(problem: Problem, params: Params) -> Evaluated:
    """f, ∇f, residuals and Hessians of the loss at a point, in float64 under any configuration.

    Args:
        problem: any problem, with scalar decays.
        params: any point of it, in any precision. Memory: five matrices of K × N numbers.

    Returns:
        An `Evaluated`.

    Raises:
        Refused: wrong shapes, entries that are not finite or beyond 1e150; negative features
            where H ≥ 0, vectors that are not of norm 1 on the sphere; arrays that are not real
            floating, mixed dtypes, array-valued decays, traced values.
    """
    point = _on_the_host(problem, params)
    with jax.enable_x64(True):
        found = jax.device_get(_evaluated(problem, point))
    value, S, residual, gradient, norm, rounding = found
    return Evaluated(problem, point, float(value), S, residual, gradient, float(norm), rounding)


def residuals(problem: Problem, params: Params) -> Residuals:
    """The part of `evaluate` that counting eigenvalues needs: neither f nor ∇f.

    Raises:
        Refused: as `evaluate`.
    """
    point = _on_the_host(problem, params)
    with jax.enable_x64(True):
        return Residuals(problem, point, *jax.device_get(_residuals_compiled(problem, point)))


def _residuals(problem: Problem, params: Params) -> tuple[Curvature, Array]:
    Z, targets = terms.logits(problem, params), problem.target(problem.labels)
    return problem.loss.curvature(Z, targets), problem.loss.residual(Z, targets)


_residuals_compiled = jax.jit(_residuals)


@jax.jit
def _evaluated(problem: Problem, params: Params) -> tuple:
    """The fields of `Evaluated` from `value` on."""
    S, residual = _residuals(problem, params)
    G = terms.weighed(problem, residual, problem.labels)
    gradient = terms.gradient(problem, params, G)
    slope = layers.slope(problem, params, gradient)
    rounding = gradient_rounding(problem, params, residual)
    value = terms.objective(problem, params)
    return value, S, residual, gradient, terms.norm(slope), rounding


def _on_the_host(problem: Problem, point: Params) -> Params:
    """(W, H, b) in NumPy float64, b = 0 without a bias; refuses as `evaluate` says."""
    points.check_point(problem, point)
    host = Params(*(np.asarray(x, np.float64) for x in point))
    check_entries(host)
    layers.check_feasible(problem, point)
    host = layers.project(problem, host)  # norms were 1 in the precision of the point
    return host._replace(b=host.b if problem.bias else np.zeros_like(host.b))


def check_entries(params: Params) -> None:
    """Refuse entries that are not finite, or beyond 1e150, whose squares may overflow.

    Raises:
        Refused: naming the array, and how many are not finite or the largest one.
    """
    for name, x in zip("WHb", params, strict=True):
        x = points.on_host(x)
        largest = max(float(x.max()), -float(x.min()))  # NaN if there is one
        if not largest <= LARGEST:
            points.check_finite(params)
            raise Refused(
                f"got entries of {name} up to {largest:.3g}; allowed: up to {LARGEST:g}, so that "
                "their squares do not overflow. Look for a diverged run"
            )
