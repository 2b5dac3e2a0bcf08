"""A lower bound on the global minimum from any point, by duality, up to rounding.

Decay on both factors amounts to a nuclear norm, so f is bounded below by a convex problem,

    f(W, H, b) ≥ min_{Z, b} g(Z + b1ᵀ) + μ‖ZΩ^½‖_* + (λ_b/2)‖b‖²,    μ = √(λ_W λ_H),

g = Σ_i w_i ℓ_i the data term and Ω the weights of the samples in the decay, 1 by default. Every A
with columns w_i r_i, r_i in the domain of ℓ*_i, and ‖AΩ^-½‖₂ ≤ μ is feasible for its Fenchel dual;
the gradient G of the data term, scaled by α = min(1, μ/‖GΩ^-½‖₂), is one. This gives

    f* ≥ −Σ_i w_i ℓ*_i(α r_i) − α²‖G1‖²/(2λ_b)

for every width d and any class counts and weights, tight at the global minimum wherever the convex
problem has a solution of rank ≤ d (Zhu et al. 2021, proof of theorem 3.2, use the same convex
problem). For cross-entropy −ℓ* is the entropy of the distribution y + αr. For λ_b = 0 the dual asks
for A1 = 0, and G is moved there first, as it is where λ_b is so small that the rounding of G1
would decide the last term; without a bias that term is absent.

**Features H ≥ 0.** Over W the smallest of ⟨A, WH⟩ + (λ_W/2)‖W‖² is −‖AHᵀ‖²/(2λ_W), and for rows of
H that are not negative ‖AHᵀ‖² ≤ ρ ‖HΩ^½‖², ρ the spectral radius of the entrywise positive part of
Ω^-½AᵀAΩ^-½. So ρ ≤ μ² will do in place of ‖AΩ^-½‖₂ ≤ μ, and the larger of the two bounds is taken.
Both are of class means of the r_i: as f has a minimiser of equal features in each class, and ℓ* is
convex, nothing is lost by it, and the matrix has a row a class whatever N is.

**Unit vectors** (`ufm.model.sphere`). There ⟨A, WH⟩ ≥ −½(Σu + Σv) − ½(K+G) max(0, −λ_min(M)),
M = [[diag u, A], [Aᵀ, diag v]], for any u and v, those of the point among them; A again of class
means of the r_i. At critical points the bound is tight where M ≥ 0.

**A fixed classifier.** f is then convex as it is, and with α = 1 its own dual,

    f* ≥ (λ_W/2)‖W‖² − Σ_i w_i ℓ*_i(r_i) − Σ_i w_i²‖Wᵀr_i‖²/(2λ_H ω_i) − ‖A1‖²/(2λ_b),

falls short of f by ‖∇_H f Ω^-½‖²/(2λ_H) + ‖∇_b f‖²/(2λ_b) alone (arXiv 2203.09081 for the problem).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ufm.check import Refused, normal_decays, one_problem, traced
from ufm.linalg import perron, scaling
from ufm.linalg.products import matmul
from ufm.model import fixed, layers, magnitudes, quotient, sphere
from ufm.model import objective as terms
from ufm.model.dual import feasible, penalised
from ufm.model.evaluation import Evaluated
from ufm.model.objective import gradient_norm, mean_weighed, objective, weighed
from ufm.model.points import check_finite, check_params, check_precision, in_float64
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


class Certificate(NamedTuple):
    """What duality says of a point, in floating-point arithmetic: true up to rounding.

    value: f at the point, in nats.
    lower_bound: no point of this problem has a smaller objective.
    gap: value − lower_bound ≥ value − f* ≥ 0: the point is suboptimal by at most this much.
    grad_norm: ‖∇f‖, where H ≥ 0 and on the sphere that of the projected gradient.
    spectral_ratio: ‖GΩ^-½‖₂/μ (infinite where μ = 0 and G ≠ 0). Under a convex loss a critical
        point where it is at most 1 is a global minimum, and from d = K−1 on only such points are (d
        = K for losses that change under shifts). If λ_b = 0, or below ε min(μ, 1), the mean column
        of G is subtracted first, which changes nothing at a critical point. Where H ≥ 0 it is √ρ/μ,
        ρ as at the head of `ufm.certificate`, if that is smaller.
    resolution: an estimate of the rounding errors in gap, not a bound by interval arithmetic; a
        gap below it cannot be told from 0.

    Where the classifier is fixed and on the sphere there is no spectral_ratio (NaN): the gap alone
    decides.
    """

    value: Float[Array, ""] | float
    lower_bound: Float[Array, ""] | float
    gap: Float[Array, ""] | float
    grad_norm: Float[Array, ""] | float
    spectral_ratio: Float[Array, ""] | float
    resolution: Float[Array, ""] | float


class Bound(NamedTuple):
    """A lower bound on f, and what it was made of.

    value: the bound, at least the trivial 0.
    proven: the same, lowered by its rounding errors.
    spectral_norm: ‖GΩ^-½‖₂; without `penalised`, after the mean column of G is subtracted.
    rounding: size of the rounding errors in the bound.
    """

    value: Float[Array, ""]
    proven: Float[Array, ""]
    spectral_norm: Float[Array, ""]
    rounding: Float[Array, ""]


def _root(gram: Float[Array, "m m"], any_size: bool) -> Scalar:
    """‖A‖₂, the largest singular value of A, from the Gram matrix A Aᵀ or Aᵀ A."""
    s = scaling.binade(jnp, jnp.diagonal(gram)) if any_size else 1
    return jnp.sqrt(s * jnp.maximum(jnp.linalg.eigvalsh(gram / s)[-1], 0))


def lower_bound(
    problem: Problem, params: Params, R: Array | None = None, any_size: bool = True
) -> Bound:
    """The dual bound of the module's head from a point's residuals R. Traceable.

    Args:
        problem, params: any point.
        R: its residuals where they are at hand; None makes them, in blocks of samples where they
            are large.
        any_size: whether G is multiplied by √(largest number)/2 over the largest entry of R that
            there may be: their squares vanish nowhere then. Otherwise the bound is as valid,
            but loose where μ is below √(smallest number); the G of a record is used as it is.
    """
    columns = params.H if R is None else R

    def residual(part, labels):
        if R is not None:
            return part
        return terms.residual(problem, params._replace(H=part), labels)

    if problem.fixed:
        return _of_fixed(problem, params.W, columns, residual)
    if not layers.is_free(problem):
        if R is None:
            means = quotient.means_of(problem, residual, params.H)
        else:
            means = quotient.class_means(problem, R)
        return _OF_MEANS[problem.features](problem, params, means, any_size)
    return _bound(problem, columns, residual, any_size)


def _of_fixed(problem: Problem, W: Array, columns: Array, residual: Callable) -> Bound:
    """`lower_bound` where W is fixed, by the dual of the convex problem in (H, b)."""
    dual, K, labels = feasible(problem, columns, residual), problem.K, problem.labels
    unknown, unit = jnp.full((), jnp.nan, columns.dtype), 24 * float(jnp.finfo(columns.dtype).eps)
    if not problem.loss.dual:
        return Bound(unknown, unknown, unknown, jnp.zeros((), columns.dtype))
    if not problem.loss.convex:
        dual = partial(_scaled, dual, _reach(problem, dual, columns, jnp.ones((), columns.dtype)))

    def summed(part, labels):
        A = weighed(problem, dual(part, labels), labels)
        return fixed.conjugate(problem, W, A, labels), jnp.sum(A, axis=1)

    (pulled, doubt), sums = blocks.total(summed, columns, labels, K)
    penalty = pulled + doubt + _bias_penalty(problem, jnp.sqrt(jnp.sum(jnp.square(sums))))
    constant = jnp.sum(jnp.square(jnp.sqrt(jnp.asarray(problem.lam_W, W.dtype)) * W)) / 2
    rounding = unit * (penalty + constant)
    bound = _proven(problem, columns, dual, penalty - constant + rounding, unknown)
    return bound._replace(rounding=bound.rounding + doubt + rounding)


def _reach(problem: Problem, dual: Callable, columns: Array, most: Scalar) -> Scalar:
    """The largest α up to `most` with all αr'_i in the domain of ℓ*: of a hull of fewer slopes."""

    def reach(part, labels):
        return problem.loss.reach(dual(part, labels), problem.target(labels))

    found = blocks.total(reach, columns, problem.labels, problem.K, jnp.minimum)
    return jnp.minimum(most, found)


def _bias_penalty(problem: Problem, pull: Scalar, alpha: Any = 1.0) -> Scalar:
    """α²‖A1‖²/(2λ_b) where b pays by its decay, from ‖A1‖."""
    penalty = jnp.zeros((), pull.dtype)
    if problem.bias:
        pays = penalised(problem, pull.dtype)
        root = jnp.sqrt(jnp.where(pays, jnp.asarray(problem.lam_b, pull.dtype), 1))
        slope = alpha * pull / root
        penalty = jnp.where(pays, jnp.square(slope) / 2, 0)
    return penalty


def _behind_zeros(problem: Problem, _: Params, means: Array, any_size: bool) -> Bound:
    """The bound for H ≥ 0 from the mean residuals of the classes, one column each."""
    merged = quotient.of_width(problem, problem.d)
    found = _bound(merged, means, lambda R, _: R, any_size)
    # μ of the merged columns holds the count of balanced classes, which weigh nothing else.
    unit = problem.n**0.5 if isinstance(problem.n, int) else 1.0
    return found._replace(spectral_norm=found.spectral_norm / unit)


def _on_the_sphere(problem: Problem, params: Params, means: Array, _: bool) -> Bound:
    """The bound for unit vectors from the mean residuals of the classes, one column each."""
    small, H = sphere.merged(problem), quotient.class_means(problem, params.H)
    unknown, alpha = jnp.full((), jnp.nan, means.dtype), jnp.ones((), means.dtype)
    if not problem.loss.dual:
        return Bound(unknown, unknown, unknown, jnp.zeros((), means.dtype))

    def dual(part, _):
        return part

    if not problem.loss.convex:
        alpha = _reach(small, dual, means, alpha)
        dual = partial(_scaled, dual, alpha)
    A = weighed(small, means, small.labels)
    penalty, rounding = sphere.penalty(params.W, H, A)
    bound = _proven(small, means, dual, alpha * (penalty + rounding), unknown)
    return bound._replace(rounding=bound.rounding + 2 * rounding)


# By the features, from class means of residuals.
_OF_MEANS = {"nonnegative": _behind_zeros, "sphere": _on_the_sphere}


def _bound(problem: Problem, columns: Array, residual: Callable, any_size: bool) -> Bound:
    """`lower_bound` from R, which `residual` makes of a block of columns and its labels."""
    K, N, labels, dtype = problem.K, problem.N, problem.labels, columns.dtype
    dual = feasible(problem, columns, residual)
    scale: Array | float = 1.0
    inverse: Array | float = 1.0
    if any_size:
        # With its inverse: XLA takes x/(c/y) for xy/c, which overflows.
        inverse = magnitudes.largest_weight(problem, dtype)
        inverse = inverse * magnitudes.longest_residual(problem, dual, columns)
        inverse = inverse * 2.0 ** (2 - jnp.finfo(dtype).maxexp // 2)
        scale = 1 / inverse
    omega = problem.decay_weights
    omega = None if omega is None else jnp.asarray(omega, dtype)

    def moments(part, labels):
        A = weighed(problem, dual(part, labels) * scale, labels)
        B = A if omega is None else A / jnp.sqrt(omega)[labels]
        return (matmul(B, B.T) if K <= N else matmul(B.T, B)), jnp.sum(A, axis=1)

    # Beyond N classes the Gram matrix of the samples is the smaller one, and they stay together.
    gram, sums = blocks.total(moments, columns, labels, K) if K <= N else moments(columns, labels)
    sigma = _root(gram, any_size) * inverse
    pull = jnp.sqrt(jnp.sum(jnp.square(sums))) * inverse  # ‖A1‖
    nuclear = _at(problem, columns, dual, pull, sigma, any_size)
    if layers.is_free(problem):
        return nuclear
    B = weighed(problem, dual(columns, labels) * scale, labels)
    B = B if omega is None else B / jnp.sqrt(omega)[labels]
    s = scaling.binade(jnp, B) if any_size else 1
    root = s * jnp.sqrt(perron.radius(B / s)) * inverse
    positive = _at(problem, columns, dual, pull, root, any_size)
    better = positive.proven > nuclear.proven
    larger = Bound(*(jnp.where(better, x, y) for x, y in zip(positive, nuclear, strict=True)))
    return larger._replace(spectral_norm=jnp.minimum(root, sigma))


def _at(
    problem: Problem, columns: Array, dual: Callable, pull: Scalar, sigma: Scalar, any_size: bool
) -> Bound:
    """The bound at dual variables A, scaled so that a norm σ of theirs is at most μ."""
    K, N, dtype = problem.K, problem.N, columns.dtype
    mu, info = jnp.asarray(problem.mu, dtype), jnp.finfo(dtype)
    # Entries whose squares are below the smallest normal number are lost, √(KN) of them in all.
    safe = sigma + (float(info.tiny) * (1 if any_size else info.tiny**-0.5)) * (K * N) ** 0.5
    alpha = jnp.where(safe > mu, mu / safe, 1)
    if not problem.loss.dual:
        unknown = jnp.full((), jnp.nan, dtype)
        return Bound(unknown, unknown, sigma, jnp.zeros((), dtype))
    if not problem.loss.convex:  # slopes that its hull has not are outside the domain of ℓ*
        alpha = _reach(problem, dual, columns, alpha)
    penalty = _bias_penalty(problem, pull, alpha)
    return _proven(problem, columns, partial(_scaled, dual, alpha), penalty, sigma)


def _scaled(dual: Callable, alpha: Scalar, part: Array, labels: Array) -> Array:
    """α r'_i of a block of samples."""
    return alpha * dual(part, labels)


def _proven(problem: Problem, columns: Array, dual: Callable, penalty: Scalar, sigma: Scalar):
    """The `Bound` −Σ w_i ℓ*_i − penalty at feasible dual variables, and its rounding."""
    loss, unit = problem.loss, 8 * float(jnp.finfo(columns.dtype).eps)

    def entropy(part, labels):
        return -loss.conjugate(dual(part, labels), problem.target(labels))

    def moduli(part, labels):
        return loss.magnitude(dual(part, labels), problem.target(labels))

    entropies = mean_weighed(problem, entropy, columns)
    value = entropies - penalty
    # Factor by factor: a small number less a smaller one may leave the normal numbers.
    size, proven = entropies, entropies * (1 - unit) - penalty * (1 + unit)
    if not loss.definite(problem.targets):
        size = mean_weighed(problem, moduli, columns)
        proven = entropies - unit * size - penalty * (1 + unit)
    rounding = jnp.where(value > 0, unit * (size + penalty), 0)
    return Bound(jnp.maximum(value, 0), jnp.maximum(proven, 0), sigma, rounding)


def _certificate(problem: Problem, params: Params) -> Certificate:
    value, bound = objective(problem, params), lower_bound(problem, params)
    return _summed(problem, params, value, gradient_norm(problem, params), bound)


def _certificate_at(problem: Problem, params: Params, value, grad_norm, residual) -> Certificate:
    """`_certificate` from R at the point."""
    bound = lower_bound(problem, params, residual)
    return _summed(problem, params, value, grad_norm, bound)


def _summed(problem: Problem, params: Params, value, grad_norm, bound: Bound) -> Certificate:
    _, proven, sigma, rounding = bound
    mu = jnp.asarray(problem.mu, sigma.dtype)
    ratio = jnp.where(mu > 0, sigma / jnp.where(mu > 0, mu, 1), jnp.where(sigma > 0, jnp.inf, 0))
    ratio = jnp.where(jnp.isnan(sigma), sigma, ratio)
    info = jnp.finfo(value.dtype)
    # Rounding may not lift the bound above the minimum, nor above f itself.
    least = jnp.minimum(proven, value)
    resolution = (
        16 * info.eps * jnp.abs(value) + 2 * rounding + magnitudes.value_rounding(problem, params)
        + 16 * float(info.tiny)
    )  # fmt: skip
    return Certificate(value, least, value - least, grad_norm, ratio, resolution)


_certificate_compiled = jax.jit(_certificate)
_certificate_at_compiled = jax.jit(_certificate_at)


def certify(problem: Problem, params: Params) -> Certificate:
    """Bound the suboptimality of any point, for any class counts, any d, with or without bias.

    Computed in float64 whatever the precision of params and of JAX's configuration, and returned
    as Python floats. Under jit or vmap the precision is that of params, and fields are arrays,
    infinite or NaN where f exceeds the largest number.

    Args:
        problem: any problem; with λ_W λ_H = 0 the bound is the trivial 0.
        params: any point of it.

    Returns:
        A `Certificate`; gap ≥ f − f* ≥ 0 up to `resolution`.

    Raises:
        Refused: wrong shapes, or entries that are not finite;
            arrays that are not real floating, or mixed dtypes; half precision under jit;
            negative features where H ≥ 0, vectors that are not of norm 1 on the sphere;
            array-valued decays, or decays
            between 0 and the smallest normal number; a point at which f or ‖∇f‖ exceeds the
            largest one.
    """
    check_params(problem, params)
    layers.check_feasible(problem, params)
    if not problem.loss.dual:
        raise Refused(
            f"got the loss {type(problem.loss).__name__}, whose conjugate is not known, and so no "
            "certificate; allowed: a loss with all of ufm.losses.Loss. ufm.hessian.verdict and "
            "ufm.hessian.inertia judge critical points without it"
        )
    if traced(problem, params):
        check_precision(params)
        return _certificate(problem, params)
    one_problem(problem)
    check_finite(params)
    normal_decays(problem)
    with jax.enable_x64(True):
        params = layers.project(problem, in_float64(params))
        certificate = Certificate(*map(float, _certificate_compiled(problem, params)))
    _check_range(certificate, params)
    return certificate


def certified(at: Evaluated) -> Certificate:
    """`certify` of a point that has been evaluated; NaN for a bound where none is known."""
    normal_decays(at.problem)
    with jax.enable_x64(True):
        found = _certificate_at_compiled(at.problem, at.params, at.value, at.grad_norm, at.residual)
    certificate = Certificate(*map(float, found))
    _check_range(certificate, at.params)
    return certificate


def _check_range(certificate: Certificate, params: Params) -> None:
    for name, symbol in (("value", "f"), ("grad_norm", "|grad f|"), ("resolution", "a logit")):
        if not math.isfinite(getattr(certificate, name)):
            largest = ", ".join(
                f"|{entry}| up to {float(jnp.max(jnp.abs(x))):.3g}"
                for entry, x in zip("WHb", params, strict=True)
            )
            raise Refused(
                f"got a point with {largest}, at which {symbol} exceeds the largest float64 "
                "number; allowed: a point and decays for which it does not. Scale it down"
            )
