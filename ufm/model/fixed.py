"""Fixed classifiers: W is given with the point, and only H and b are variables.

    f(H, b) = Σ_i w_i ℓ(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2) Σ_i ω_i‖h_i‖² + (λ_b/2)‖b‖²

is convex for a convex loss, so every critical point is a global minimiser (Yang et al. 2022, arXiv
2203.09081). Functions that are written for a variable W refuse such a problem by `require_free`.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ufm import check
from ufm.check import Refused
from ufm.linalg.products import matmul
from ufm.metrics.features import in_numpy
from ufm.model.problem import Params, Problem, require


def held(problem: Problem, tangent: Params) -> Params:
    """A gradient or an update of params, 0 in W where the classifier is fixed."""
    return tangent._replace(W=jnp.zeros_like(tangent.W)) if problem.fixed else tangent


def conjugate(
    problem: Problem, W: Array, A: Float[Array, "K N"], labels: Array | np.ndarray
) -> tuple[Scalar, Scalar]:
    """Σ_i ‖Wᵀa_i‖²/(2λ_H ω_i), the conjugate of the decay of H at WᵀA, and a bound on its rounding.

    The bound includes the rounding of Wᵀa, (2 + √K) ε |W|ᵀ|a| in each entry. Traceable.

    Args:
        problem: with λ_H > 0; for λ_H = 0 the sum is infinite unless WᵀA = 0.
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
    """Refuse what is no problem, and a problem with a fixed classifier.

    Raises:
        Refused: naming the functions that accept a fixed classifier.
    """
    require(problem)
    if problem.fixed:
        raise Refused(
            f"got a problem with fixed={problem.fixed!r}; allowed here: fixed=(), since the result "
            "is that of the model in which W is variable. For a fixed classifier take ufm.descend, "
            "ufm.solve, ufm.certify, ufm.hessian.verdict, ufm.theory.fixed_minimum or "
            "ufm.theory.claims"
        )


def check_free(problem: Problem) -> None:
    """`require_free` for a single problem, whose decays are numbers.

    Raises:
        Refused: as `require_free`; traced decays, decays that are arrays.
    """
    require_free(problem)
    check.one_problem(problem)


def classifier(problem: Problem, W) -> np.ndarray:
    """A classifier that fits the problem, (K, d), in NumPy float64.

    Raises:
        Refused: not a real matrix, another shape, entries that are not finite.
    """
    require(problem)
    found = in_numpy("W", W)
    if found.shape != (problem.K, problem.d):
        raise Refused(
            f"got W of shape {found.shape}; allowed: a real matrix (K, d) = "
            f"{(problem.K, problem.d)}, a row a class"
        )
    if not np.all(np.isfinite(found)):
        raise Refused("got W with entries that are not finite; allowed: finite numbers")
    return found.astype(np.float64)
