"""A step on the convex problem in the products Z = W H, for starts far from any critical point.

For d ≥ min(K, N) the least decay of all (W, H) with a given product is a nuclear norm (Srebro,
Rennie and Jaakkola 2004; Haeffele and Vidal, arXiv 1506.07540), so f is bounded below by

    F(Z, b) = ℓ(Z, b) + μ ‖Z Ω^½‖_*,   μ = √(λ_W λ_H),

with equality at balanced factors, and F is convex if ℓ is. Its proximal step takes μη off the
singular values of (Z − η ∇ℓ) Ω^½ (Cai, Candès and Shen 2010, arXiv 0810.3286). Gradients with
respect to W and H move a singular value of Z in proportion to itself, so that those near 0 take
hundreds of steps to grow; here all of them grow at once.
"""

import jax
import jax.numpy as jnp

from ufm.linalg.products import matmul
from ufm.model import objective as terms
from ufm.model.problem import Params, Problem

# The longest change of a logit by η∇ℓ, in steps that are tried. They end far above the logits of
# minimisers, which are about log(1/μ).
_CHANGES = (1.0, 4.0, 16.0, 64.0, 256.0)


def applies(problem: Problem) -> bool:
    """Whether f is this convex problem: a convex loss, free features and d ≥ min(K, N) − 1.

    One dimension less than min(K, N) is enough, since minimisers have 1ᵀW = 0 for losses that are
    invariant under shifts; for others the step is one that keeps the largest singular values.
    """
    free = problem.features == "free" and not problem.fixed
    return free and bool(problem.loss.convex) and problem.d >= min(problem.K, problem.N) - 1


def proximal(problem: Problem, params: Params, eta) -> Params:
    """The proximal step of length η on F from Z = W H, in balanced factors of rank at most d.

    S(Y) thresholds the singular values of Y by ημ; of more than d the largest are kept:

        W H Ω^½ = S((W₀ H₀ − η ∇ℓ Ω⁻¹) Ω^½),   λ_W WᵀW = λ_H H Ω Hᵀ.   Traceable.

    Args:
        problem: one that `applies`.
        params: any point (W₀, H₀, b), whose b is left as it is.
        eta: η > 0.
    """
    dtype = params.W.dtype
    lams = terms.decays(problem, dtype)
    lam_H, mu = jnp.asarray(problem.lam_H, dtype), jnp.asarray(problem.mu, dtype)
    root, side = jnp.sqrt(lams.H / lam_H), (lam_H / lams.W) ** 0.25
    slope = terms.data_gradient(problem, params) / root
    start = matmul(params.W, params.H) * root
    U, s, Vt = jnp.linalg.svd(start - eta * slope, full_matrices=False)
    kept = min(problem.d, len(s))
    sizes = jnp.sqrt(jnp.maximum(s - eta * mu, 0))[:kept]
    W, H = U[:, :kept] * (sizes * side), (sizes / side)[:, None] * Vt[:kept] / root
    more = (0, problem.d - kept)
    return Params(jnp.pad(W, ((0, 0), more)), jnp.pad(H, (more, (0, 0))), params.b)


def step(problem: Problem, params: Params) -> Params:
    """The proximal step from params that lowers f most, of a few lengths; params if none does.

    Args:
        problem: one that `applies`.
        params: any point. Traceable.
    """
    unit = 1 / jnp.max(jnp.abs(terms.data_gradient(problem, params)))

    def tried(best, change):
        found = proximal(problem, params, change * unit)
        value = terms.objective(problem, found)
        lower = value < best[0]  # False for NaN
        return jax.tree.map(lambda x, y: jnp.where(lower, x, y), (value, found), best), None

    first = terms.objective(problem, params), params
    (_, found), _ = jax.lax.scan(tried, first, jnp.asarray(_CHANGES, params.W.dtype))
    return found
