"""Newton's method for ∇f = 0 with steps of minimum length, from near a critical point to rounding.

    s(σ) = −Re (∇²f + iσ)⁻¹ ∇f = −Σ_j λ_j/(λ_j² + σ²) ⟨v_j, ∇f⟩ v_j

over the eigenpairs (λ_j, v_j) of ∇²f: the Levenberg–Marquardt step for the equation ∇f = 0, by one
complex factorisation, as well conditioned as ∇²f + iσ itself. As σ → 0 it becomes the Newton step
of least length, which does not move along the symmetry orbit; it converges to saddles and minima
alike. σ is proportional to ‖∇f‖, so convergence is quadratic wherever the critical points near by
are one orbit and ∇²f vanishes along that orbit only (Yamashita and Fukushima 2001, with the error
bound that Morse–Bott points have). Every accepted step lowers ‖∇f‖. If no step does, the method
reports that it has stalled: ‖∇f‖ has local minima that are not zeros.

Where λ_W and λ_H are far apart, lengths are those of (W/r, H r, b), see `stretch`: otherwise one of
W and H would be long with small curvature, the other short with large curvature, and no σ would
suit both. A column of H with weight ω_i in the decay has the length of √(ω_i/ω̄) h_i, so that a
merged column of n samples is as long as these samples together. With D the diagonal matrix of these
units, the step is −D Re (D∇²f D + iσ)⁻¹ D∇f.

Problems too large for a matrix, and `refine` close to a minimum, take the step of MINRES (Paige and
Saunders 1975) from zero, which also has least length. Everything here is traceable and meant for
float64.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ufm.hessian.curvature import apply, flatten, linearize, matrix, unflatten
from ufm.hessian.stationarity import POLISHED
from ufm.linalg.minres import minres
from ufm.model import magnitudes
from ufm.model import objective as terms
from ufm.model.problem import Params, Problem

DENSE_SIZE = 2500  # variables up to which a step factorises the matrix
EPS = 2.0**-52
# Least σ/‖∇²f‖: rounding in the zero modes then moves a point by at most 1e-16/1e-10, and
# eigenvalues of 1e-5 ‖∇²f‖ still converge by five digits a step.
FLOOR = 1e-10
RECORDS = 128  # residuals kept of a polish
# Rounding counts up to this share of the terms that cancel in ∇f. Where it is larger, float64 does
# not tell whether ∇f = 0 to six digits: at logits beyond 1e12, say.
COARSEST = 1e-6
_LEAST, _MOST = 1e-3, 1e9  # range of σ(1 + ‖x‖)/‖∇f‖; beyond it no step lowers ‖∇f‖
_INEXACT = 0.1  # largest relative residual of a MINRES step


class Arrival(IntEnum):
    """How a polish ended."""

    running = 0
    converged = 1  # ‖∇f‖ ≤ `tolerance`
    stalled = 2  # no step lowers ‖∇f‖ any more
    step_limit = 3
    underflow = 4  # on the sphere: f is too small for its digits


class Polished(NamedTuple):
    """A polished point.

    params: the last point.  residual, tolerance: ‖∇f‖ and `tolerance` there.
    newton_step: length of the last Newton step tried, an estimate of the distance from its start
        to the critical point.
    steps: how many steps were tried.  status: code of `Arrival`.
    residuals: (RECORDS,), ‖∇f‖ before each of the first steps, NaN past the end.
    """

    params: Params
    residual: Float[Array, ""]
    tolerance: Float[Array, ""]
    newton_step: Float[Array, ""]
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residuals: Float[Array, " records"]


class _Loop(NamedTuple):
    x: Array
    g: Array
    tolerance: Array
    factor: Array
    newton_step: Array
    steps: Array
    status: Array
    residuals: Array


def length(x: Array) -> Scalar:
    """Euclidean norm of all entries, scaled before squaring: 1e-200 and 1e200 stay in range."""
    largest = jnp.max(jnp.abs(x))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.linalg.norm(jnp.ravel(x / unit))


def scale(problem: Problem, params: Params, G: Float[Array, "K N"]) -> Scalar:
    """(‖W‖ + ‖H‖ + √N)‖G‖ + λ_W‖W‖ + λ_H‖HΩ‖ + λ_b‖b‖: size of the terms that cancel in ∇f = 0.

    Without a bias √N is replaced by ε√N: features shorter by ε than at logits of order 1 count as
    the origin, where ∇f = 0. Rounding leaves a residual of about 1e-16 scale if the entries of G
    have their relative accuracy (otherwise see `rounding`); unlike ‖∇f‖ alone, ‖∇f‖/scale is not
    small just because a point is near the origin. Traceable.

    Args:
        problem, params: any point.
        G: the gradient of the data term in the logits there.
    """
    lams = terms.decays(problem, G.dtype)
    if lams.H.ndim:
        decay = sum(length(lam * x) for lam, x in zip(lams, params, strict=True))
    else:
        decay = sum(lam * length(x) for lam, x in zip(lams, params, strict=True))
    return _pull(problem, params) * length(G) + decay


def _pull(problem: Problem, params: Params) -> Scalar:
    """The factor of ‖G‖ in `scale`."""
    offset = problem.N**0.5 * (1.0 if problem.bias else EPS)
    return length(params.W) + length(params.H) + offset


def rounding(problem: Problem, params: Params) -> Scalar:
    """(‖W‖ + ‖H‖ + √N)‖E‖: a bound on the error of ∇f by errors of up to E in G. Traceable.

    E is `ufm.model.magnitudes.gradient_rounding`. It is proportional to |G| where the entries of G
    have their relative accuracy, as for cross-entropy with labels: the bound is then below 1e-14
    `scale` for logits up to 40. Where they are differences of larger terms, such as z − t of the
    squared error, it is in proportion to these terms, and larger at a minimum with small decays.
    """
    R = terms.residual(problem, params, problem.labels)
    return _pull(problem, params) * length(magnitudes.gradient_rounding(problem, params, R))


def tolerance(problem: Problem, params: Params, G: Float[Array, "K N"]) -> Scalar:
    """‖∇f‖ up to which a point is critical to rounding: 1e-14 `scale`, or `floor` if larger.

    Traceable; arguments as for `scale`.
    """
    size = scale(problem, params, G)
    return jnp.maximum(POLISHED * size, floor(problem, params, size))


def floor(problem: Problem, params: Params, size: Scalar) -> Scalar:
    """`rounding`, at most 1e-6 of `scale`, which is given as size. Traceable."""
    return jnp.minimum(rounding(problem, params), COARSEST * size)


def _slope(problem: Problem, x: Array) -> tuple[Array, Array]:
    """(∇f as a vector, `tolerance`) at a flattened point."""
    params = unflatten(problem, x)
    G = terms.data_gradient(problem, params)
    return flatten(problem, terms.gradient(problem, params, G)), tolerance(problem, params, G)


def stretch(problem: Problem, dtype) -> Scalar:
    """`ratio` to the nearest power of two; 1 if that is 1/4 to 4.

    (W/r, H r) has the same logits, and with the decays (λ_W r², λ_H/r²), which are nearly equal,
    the same f. At critical points W/r and H r are about equally long. Traceable.
    """
    exponent = jnp.round(_exponent(problem, dtype))
    far = jnp.abs(exponent) > 2
    return jnp.ldexp(jnp.ones((), dtype), jnp.where(far, exponent, 0).astype(jnp.int32))


def ratio(problem: Problem, dtype) -> Scalar:
    """r = (λ_H ω̄/λ_W)^¼, with which λ_W r² = λ_H ω̄/r²; 1 if a decay is 0. Traceable."""
    return jnp.exp2(_exponent(problem, dtype))


def _exponent(problem: Problem, dtype) -> Scalar:
    """log₂ of `ratio`."""
    lam_W, lam_H = (jnp.asarray(x, dtype) for x in (problem.lam_W, problem.lam_H))
    lam_H = lam_H * _mean_weight(problem, dtype)
    exponent = (jnp.log2(lam_H) - jnp.log2(lam_W)) / 4
    return jnp.where(jnp.isfinite(exponent), exponent, 0)


def units(problem: Problem, dtype) -> Array:
    """D, the unit of every entry of a flattened point, (size,): r in W, √(ω̄/ω_i)/r in H, 1 in b.

    All are rounded to powers of two. Traceable.
    """
    r, (K, d, N) = stretch(problem, dtype), (problem.K, problem.d, problem.N)
    columns = jnp.full(N, 1 / r)
    if problem.decay_weights is not None:
        omega = jnp.asarray(problem.decay_weights, dtype)
        exponents = jnp.round(jnp.log2(_mean_weight(problem, dtype) / omega) / 2)
        columns = (
            columns * jnp.ldexp(jnp.ones((), dtype), exponents.astype(jnp.int32))[problem.labels]
        )
    units = Params(jnp.full((K, d), r), jnp.broadcast_to(columns, (d, N)), jnp.ones(K, dtype))
    return flatten(problem, units)


def _mean_weight(problem: Problem, dtype) -> Scalar:
    """ω̄, the mean over the samples of their weights in the decay."""
    if problem.decay_weights is None:
        return jnp.ones((), dtype)
    share = jnp.asarray(problem.counts / problem.N, dtype)
    return jnp.sum(share * jnp.asarray(problem.decay_weights, dtype))


def _dense_step(problem: Problem, x: Array, g: Array, D: Array, sigma: Array) -> Array:
    """−Re (D∇²f D + iσ)⁻¹ g."""
    H = matrix(problem, unflatten(problem, x)) * D * D[:, None]
    floor = FLOOR * jnp.max(jnp.sum(jnp.abs(H), axis=1))
    shifted = H + 1j * jnp.maximum(sigma, floor) * jnp.eye(problem.size)
    return -jnp.linalg.solve(shifted, g.astype(shifted.dtype)).real


def _free_step(problem: Problem, x: Array, g: Array, D: Array, sigma: Array) -> Array:
    """The same step by MINRES on D∇²f D s = −g, damped in that a larger σ ends it earlier."""
    at = linearize(problem, unflatten(problem, x))
    tolerance = jnp.clip(sigma, 1e-4, _INEXACT)

    def curved(v):
        return D * flatten(problem, apply(at, unflatten(problem, D * v)))

    return minres(curved, -g, tolerance, 500)


def step(problem: Problem, x: Float[Array, " size"], factor) -> Float[Array, " size"]:
    """The step s(σ) from a flattened point with σ = factor ‖∇f‖/(1 + ‖x‖). Traceable."""
    g, _ = _slope(problem, x)
    return _step(_default_step(problem), problem, x, g, units(problem, x.dtype), factor)


def _default_step(problem: Problem) -> Callable:
    return _dense_step if problem.size <= DENSE_SIZE else _free_step


def _step(one: Callable, problem: Problem, x: Array, g: Array, D: Array, factor) -> Array:
    sigma = factor * length(D * g) / (1 + length(x / D))
    return D * one(problem, x, D * g, D, sigma)


def iterate(
    problem: Problem,
    x: Float[Array, " size"],
    measure: Callable[[Array], tuple[Array, Array]],
    step: Callable[[Array, Array, Array], Array],
    limit: Any,
    moved: Callable[[Array, Array], Array] = jnp.add,
    D: Array | float = 1.0,
) -> Polished:
    """Steps damped until they lower the gradient norm, down to rounding. Traceable.

    Args:
        problem: of the point.
        x: where to start, flattened.
        measure: x ↦ (g, tolerance): the gradient to be made 0, and its norm that counts as 0.
        step: (x, g, factor) ↦ the step s, shorter for a larger factor.
        limit: most steps; may be traced.
        moved: (x, s) ↦ the point after the step.
        D: unit of every entry. A step is accepted if it lowers ‖Dg‖.
    """

    def judged(g, zero, factor, steps):
        status = jnp.where(steps >= limit, Arrival.step_limit, Arrival.running)
        status = jnp.where(factor > _MOST, Arrival.stalled, status)
        status = jnp.where(length(g) <= zero, Arrival.converged, status)
        return status.astype(jnp.int32)

    def body(state: _Loop) -> _Loop:
        s = step(state.x, state.g, state.factor)
        new = moved(state.x, s)
        g, zero = measure(new)
        better = length(D * g) < (1 - 1e-4) * length(D * state.g)  # False for NaN
        x, g = jnp.where(better, new, state.x), jnp.where(better, g, state.g)
        zero = jnp.where(better, zero, state.tolerance)
        factor = jnp.where(better, jnp.maximum(state.factor / 8, _LEAST), state.factor * 8)
        steps = state.steps + 1
        residuals = state.residuals.at[steps].set(length(g), mode="drop")
        distance, status = length(s), judged(g, zero, factor, steps)
        return _Loop(x, g, zero, factor, distance, steps, status, residuals)

    g, zero = measure(x)
    none, factor = jnp.int32(0), jnp.ones((), x.dtype)
    residuals = jnp.full(RECORDS, jnp.nan, x.dtype).at[0].set(length(g))
    untried, status = jnp.zeros((), x.dtype), judged(g, zero, factor, none)
    first = _Loop(x, g, zero, factor, untried, none, status, residuals)
    last = jax.lax.while_loop(lambda state: state.status == Arrival.running, body, first)
    return Polished(
        unflatten(problem, last.x), length(last.g), last.tolerance, last.newton_step,
        last.steps, last.status, last.residuals,
    )  # fmt: skip


def polish(problem: Problem, params: Params, limit=100) -> Polished:
    """From params to the critical point that Newton's method finds from there. Traceable.

    Args:
        problem: any problem with free features; decays may be mapped over.
        params: where to start, in float64.
        limit: most steps; may be traced.

    Returns:
        A `Polished`; under `jax.vmap` its fields have an entry for every start.
    """
    return _polished(_default_step(problem), problem, params, limit)


def refine(problem: Problem, params: Params, limit=100) -> Polished:
    """`polish` without a matrix, from close to a minimum, where MINRES needs few products."""
    return _polished(_free_step, problem, params, limit)


def _polished(one: Callable, problem: Problem, params: Params, limit) -> Polished:
    x = flatten(problem, params)
    D = units(problem, x.dtype)
    return iterate(
        problem,
        x,
        lambda x: _slope(problem, x),
        lambda x, g, factor: _step(one, problem, x, g, D, factor),
        limit,
        D=D,
    )
