"""The objective f and its parts: logits, decay, the gradient of the data term and its pullback.

    f(W, H, b) = Σ_i w_i ℓ(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2) Σ_i ω_i‖h_i‖² + (λ_b/2)‖b‖²
    ∇f = (GHᵀ + λ_W W, WᵀG + λ_H HΩ, G1 + λ_b b),   G = [w_i r_i],   r_i = ∇ℓ at the logits of i

with w_i = c_{y_i}/N and Ω = diag(ω_{y_i}). In the model of Zhu et al. 2021 (arXiv 2105.02375) c =
ω = 1, and r = p − e_y for cross-entropy. Everything is traceable.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ufm.linalg import scaling
from ufm.linalg.products import matmul
from ufm.linalg.scaling import squared_norm
from ufm.model import layers
from ufm.model.fixed import held
from ufm.model.points import check_params
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


def logits(problem: Problem, params: Params) -> Float[Array, "K N"]:
    """Z = W H + b 1ᵀ, (K, N); Z = W H without a bias."""
    Z = matmul(params.W, params.H)
    return Z + params.b[:, None] if problem.bias else Z


def weighed(problem: Problem, X: Array, labels: Array | np.ndarray) -> Array:
    """w_i x_i with w_i = c_{y_i}/N, for columns (or entries) x_i of samples with these labels."""
    if problem.weights is None:
        return X / problem.N
    return X * (jnp.asarray(problem.weights, X.dtype)[labels] / problem.N)


def mean_weighed(problem: Problem, f: Callable[[Array, Array], Array], H: Array) -> Scalar:
    """Σ_i w_i f_i, where f maps a block of columns and its labels (H_B, y_B) to the f_i, (B,)."""
    if problem.weights is None:
        total = blocks.total(lambda *part: jnp.sum(f(*part)), H, problem.labels, problem.K)
        return total / problem.N

    def block(H, labels):
        return jnp.sum(weighed(problem, f(H, labels), labels))

    return blocks.total(block, H, problem.labels, problem.K)


def decays(problem: Problem, dtype, labels: Array | np.ndarray | None = None) -> Params:
    """(λ_W, λ_H, λ_b) in a dtype; λ_b = 0 without a bias.

    With decay_weights the second one is λ_H ω, one number for each column of H, for samples with
    these labels (None: all samples).
    """
    lam_b = problem.lam_b if problem.bias else 0.0
    lams = Params(*(jnp.asarray(x, dtype) for x in (problem.lam_W, problem.lam_H, lam_b)))
    if problem.decay_weights is None:
        return lams
    omega = jnp.asarray(problem.decay_weights, dtype)
    return lams._replace(H=lams.H * omega[problem.labels if labels is None else labels])


def decay(problem: Problem, params: Params, squares: Params | None = None) -> Scalar:
    """(λ_W/2)‖W‖² + (λ_H/2) Σ ω_i‖h_i‖² + (λ_b/2)‖b‖²; infinite only if the result overflows.

    Args:
        problem, params: any point.
        squares: `scaling.squares` of W, H and b, if known; not used with decay_weights.
    """
    lams, (W, H, b) = decays(problem, params.W.dtype), params
    if lams.H.ndim:  # √ω into H, which leaves one λ_H
        H = H * jnp.sqrt(jnp.asarray(problem.decay_weights, H.dtype))[problem.labels]
        lams = lams._replace(H=jnp.asarray(problem.lam_H, H.dtype))
        squares = None
    half = map(_half_square, lams, squares or map(_small_squares, lams, (W, H, b)))
    return sum(half, jnp.zeros((), params.W.dtype))


def _small_squares(lam: Scalar, x: Array) -> tuple[Scalar, Scalar]:
    """`scaling.squares` without a pass over x for its size: in units of a power of two near 1/√λ.

    Such a square is about (λ/2)‖x‖², so it over- or underflows only if that does.
    """
    s = scaling.binade(jnp, jnp.sqrt(lam))
    return squared_norm(s * x), 1 / s


def _half_square(lam: Scalar, squares: tuple[Scalar, Scalar]) -> Scalar:
    """(λ/2)‖x‖² from ‖x/s‖² and s; one factor s at a time stays between λ and the result."""
    total, s = squares
    return jnp.where((lam > 0) | (total < jnp.inf), lam / 2 * s * s * total, 0)


def objective(problem: Problem, params: Params) -> Scalar:
    """f(W, H, b) = Σ_i w_i ℓ(W h_i + b, y_i) + decay (Zhu et al. 2021, arXiv 2105.02375, eq. 4).

    In nats for a negative log-likelihood, in the dtype of params.

    Args:
        problem: any problem; decays and weights may be traced.
        params: any point: W (K, d), H (d, N), b (K,).

    Raises:
        Refused: if shapes or dtypes of params do not fit the problem.
    """
    check_params(problem, params)

    def loss(H, labels):
        Z = logits(problem, params._replace(H=H))
        return problem.loss.value(Z, problem.target(labels))

    return mean_weighed(problem, loss, params.H) + decay(problem, params)


def data_gradient(problem: Problem, params: Params) -> Float[Array, "K N"]:
    """G = [w_i r_i], (K, N), the gradient of the data term in Z; (P − Y)/N for cross-entropy."""
    return weighed(problem, residual(problem, params, problem.labels), problem.labels)


def residual(problem: Problem, params: Params, labels: Array | np.ndarray) -> Array:
    """R = [∇ℓ_i] at the logits of the columns of H, which are samples with these labels."""
    return problem.loss.residual(logits(problem, params), problem.target(labels))


def pullback(problem: Problem, params: Params, G: Float[Array, "K N"] | None = None) -> Params:
    """(G Hᵀ, Wᵀ G, G 1), the gradient of the data term in (W, H, b); G 1 is 0 without a bias.

    Args:
        problem, params: any point; with a given G, H may consist of the columns of G alone.
        G: the gradient in the logits, if known; None computes it, in blocks of samples if it is
            large.
    """
    W, H, b = params
    if G is None:

        def block(H, labels):
            part = Params(W, H, b)
            G = weighed(problem, residual(problem, part, labels), labels)
            dW, dH, db = pullback(problem, part, G)
            return (dW, db), dH

        (dW, db), dH = blocks.sweep(block, H, problem.labels, problem.K)
        return Params(dW, dH, db)
    db = jnp.sum(G, axis=1) if problem.bias else jnp.zeros_like(b)
    # Wᵀ as a separate array: XLA's product on CPUs is up to twice as slow with a transposed left
    # factor, above all when many small problems are mapped over.
    Wt = jax.lax.optimization_barrier(W.T)
    return Params(matmul(G, H.T), matmul(Wt, G), db)


def add_decay(
    problem: Problem,
    params: Params,
    data: Params,
    labels: Array | np.ndarray | None = None,
) -> Params:
    """The gradient of f from that of its data term: λ x is added to each part; 0 for a fixed W.

    Args:
        problem, params, data: any point, and the gradient of the data term there.
        labels: of the columns of H, if these are only some of the samples.
    """
    lams = decays(problem, params.W.dtype, labels)
    return held(
        problem, Params(*(g + lam * x for g, lam, x in zip(data, lams, params, strict=True)))
    )


def gradient(problem: Problem, params: Params, G: Float[Array, "K N"] | None = None) -> Params:
    """∇_W f = G Hᵀ + λ_W W,  ∇_H f = Wᵀ G + λ_H HΩ,  ∇_b f = G 1 + λ_b b,  G = [w_i r_i].

    In closed form, equal to automatic differentiation of `objective`; ∇_b = 0 without a bias, and
    ∇_W = 0 where the classifier is fixed.

    Args:
        problem, params: any point.
        G: (K, N) of the point, if known.

    Returns:
        `Params` with the shapes and dtype of params.

    Raises:
        Refused: if shapes or dtypes of params do not fit the problem.
    """
    check_params(problem, params)
    return add_decay(problem, params, pullback(problem, params, G))


def gradient_norm(problem: Problem, params: Params, G: Float[Array, "K N"] | None = None) -> Scalar:
    """‖∇f‖ at a point, without over- or underflow; G (K, N) of the point, if known.

    For H ≥ 0 and on the sphere it is the norm of the projected gradient (`ufm.model.layers.slope`),
    which is 0 at stationary points.

    Raises:
        Refused: if shapes or dtypes of params do not fit the problem.
    """

    def slope() -> Params:
        return layers.slope(problem, params, gradient(problem, params, G))

    if problem.size <= scaling.SMALL:
        return scaling.length(*slope())
    rows = max(problem.K, problem.d)
    if layers.is_free(problem) and blocks.count(rows, params.H) > 1:
        return scaling.norm(_slope_squared(problem, params, rows), slope)
    W, H, b = map(squared_norm, slope())
    return scaling.norm(W + H + b, slope)


def _slope_squared(problem: Problem, params: Params, rows: int) -> Scalar:
    """‖∇f‖² without an array as large as H."""

    def sums(H, labels):
        part = params._replace(H=H)
        G = weighed(problem, residual(problem, part, labels), labels)
        data = pullback(problem, part, G)
        return data.W, squared_norm(add_decay(problem, part, data, labels).H), data.b

    dW, squares, db = blocks.total(sums, params.H, problem.labels, rows)
    nothing = jnp.zeros((problem.d, 0), dW.dtype)
    whole = add_decay(
        problem, params._replace(H=nothing), Params(dW, nothing, db), problem.labels[:0]
    )
    return squared_norm(whole.W) + squares + squared_norm(whole.b)


def norm(tree: Params | tuple[Array, ...]) -> Scalar:
    """√(‖W‖² + ‖H‖² + ‖b‖²) of a point, gradient or tangent, without over- or underflow."""
    if sum(x.size for x in tree) <= scaling.SMALL:
        return scaling.length(*tree)
    squares = [squared_norm(x) for x in tree]
    return scaling.norm(sum(squares[1:], squares[0]), lambda: tree)
