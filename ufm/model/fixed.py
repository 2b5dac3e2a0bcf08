"""A classifier that does not move: W is given with the point, and only H and b are variables.

    f(H, b) = Σ_i w_i ℓ(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2) Σ_i ω_i‖h_i‖² + (λ_b/2)‖b‖²

is convex for a convex loss, so every critical point is a global minimiser (Yang et al. 2022, arXiv
2203.09081). This module decides which functions accept such a problem: those written for a
variable W refuse it.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ufm import check
from ufm.check import Refused
from ufm.linalg.products import matmul
from ufm.model.problem import Params, Problem, require


def held(problem: Problem, tangent: Params) -> Params:
    """A gradient or an update of params, 0 in W where the classifier is fixed."""
    return tangent._replace(W=jnp.zeros_like(tangent.W)) if problem.fixed else tangent


def conjugate(
    problem: Problem, W: Array, A: Float[Array, "K N"], labels: Array | np.ndarray
) -> tuple[Scalar, Scalar]:
    """Σ_i ‖Wᵀa_i‖²/(2λ_H ω_i), the conjugate of the decay of H at WᵀA, and its rounding from above.

    The rounding includes that of Wᵀa: (2 + √K) ε |W|ᵀ|a| an entry. Traceable.

    Args:
        problem: with λ_H > 0, otherwise the sum is infinite where WᵀA is not 0.
        W: (K, d).
        A: dual variables w_i r_i of samples with these labels.
    """
    root = jnp.asarray(problem.lam_H, W.dtype)
    if problem.decay_weights is not None:
        root = root * jnp.asarray(problem.decay_weights, W.dtype)[labels]
    root = jnp.sqrt(jnp.where(root > 0, root, jnp.finfo(W.dtype).tiny))
    pulled = matmul(W.T, A) / root
    doubt = (2 + problem.K**0.5) * jnp.finfo(W.dtype).eps * matmul(jnp.abs(W).T, jnp.abs(A)) / root
    total = jnp.sum(jnp.square(pulled)) / 2
    return total, jnp.sum(jnp.abs(pulled) * doubt + jnp.square(doubt) / 2)


def require_free(problem: Problem) -> None:
    """Refuse what is no problem, and one whose classifier is fixed.

    Raises:
        Refused: naming what answers for a fixed classifier.
    """
    require(problem)
    if problem.fixed:
        raise Refused(
            f"got a problem with fixed={problem.fixed!r}; allowed here: fixed=(), since the answer "
            "is that of the model in which W moves. For a fixed classifier take ufm.descend, "
            "ufm.solve, ufm.certify, ufm.hessian.verdict, ufm.theory.fixed_minimum or "
            "ufm.theory.claims"
        )


def check_free(problem: Problem) -> None:
    """`require_free` of one problem with a number for each decay.

    Raises:
        Refused: as `require_free`; traced decays, decays that are arrays.
    """
    require_free(problem)
    check.one_problem(problem)


def classifier(problem: Problem, W) -> np.ndarray:
    """A classifier that fits the problem, (K, d), in NumPy float64.

    Raises:
        Refused: no real matrix, another shape, entries that are not finite.
    """
    require(problem)
    try:
        found = check.array(W)
    except ValueError:
        found = np.asarray(None)
    if found.dtype.kind not in "iuf" or found.shape != (problem.K, problem.d):
        got = f"W of shape {found.shape}" if found.dtype.kind in "iuf" else f"W={check.shown(W)}"
        raise Refused(
            f"got {got}; allowed: a real matrix (K, d) = {(problem.K, problem.d)}, a row a class"
        )
    if not np.all(np.isfinite(found)):
        raise Refused("got W with entries that are not finite; allowed: finite numbers")
    return found.astype(np.float64)
