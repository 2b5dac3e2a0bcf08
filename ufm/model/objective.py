"""f and what it is made of: logits, decay, the gradient of the data term and its pullback.

    f(W, H, b) = (1/N) Σ_i ℓ(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²
    ∇f = (GHᵀ + λ_W W, WᵀG + λ_H H, G1 + λ_b b),   G = (P − Y)/N

Everything is traceable.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ufm.linalg import scaling
from ufm.linalg.products import matmul
from ufm.linalg.scaling import squared_norm
from ufm.losses import softmax as losses
from ufm.model.problem import Params, Problem, check_params
from ufm.runtime import blocks


def logits(problem: Problem, params: Params) -> Float[Array, "K N"]:
    """Z = W H + b 1ᵀ (Z = W H without a bias)."""
    Z = matmul(params.W, params.H)
    return Z + params.b[:, None] if problem.bias else Z


def decays(problem: Problem, dtype) -> Params:
    """(λ_W, λ_H, λ_b) in the dtype of the params they meet; λ_b = 0 without a bias."""
    lam_b = problem.lam_b if problem.bias else 0.0
    return Params(*(jnp.asarray(x, dtype) for x in (problem.lam_W, problem.lam_H, lam_b)))


def decay(problem: Problem, params: Params) -> Scalar:
    """(λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²; infinite only where it exceeds all numbers."""
    lams = decays(problem, params.W.dtype)
    return sum(map(_half_square, lams, params), jnp.zeros((), params.W.dtype))


def _half_square(lam: Scalar, x: Array) -> Scalar:
    """(λ/2)‖x‖² from squares of s x, s the power of two below √λ.

    Such a square is as large as its share of the result: it over- or underflows only with it.
    """
    s = scaling.binade(jnp, jnp.sqrt(lam))
    squares = squared_norm(s * x)
    return lam / (2 * s * s) * jnp.where((lam > 0) | (squares < jnp.inf), squares, 0)


def objective(problem: Problem, params: Params) -> Scalar:
    """f(W, H, b) = (1/N) Σ_i ℓ(W h_i + b, y_i) + decay, in nats (Zhu et al. 2021, eq. 4).

    Raises:
        Refused: if shapes or dtypes of params do not fit the problem.
    """
    check_params(problem, params)

    def loss(H, labels):
        Z = logits(problem, params._replace(H=H))
        return jnp.sum(losses.cross_entropy(Z, labels))

    return blocks.total(loss, params.H, problem.labels, problem.K) / problem.N + decay(
        problem, params
    )


def data_gradient(problem: Problem, params: Params) -> Float[Array, "K N"]:
    """G = (P − Y)/N, the gradient of the data term in the logits Z."""
    return losses.residual(logits(problem, params), problem.labels) / problem.N


def pullback(problem: Problem, params: Params, G: Float[Array, "K N"] | None = None) -> Params:
    """(G Hᵀ, Wᵀ G, G 1), the gradient of the data term in (W, H, b); G 1 is 0 without a bias.

    Args:
        problem, params: any point; params may hold some columns of H alone, those of a given G.
        G: the gradient in the logits where it is at hand; None makes G = (P − Y)/N, in blocks of
            samples where it is large.
    """
    W, H, b = params
    if G is None:

        def block(H, labels):
            part = Params(W, H, b)
            G = losses.residual(logits(problem, part), labels) / problem.N
            dW, dH, db = pullback(problem, part, G)
            return (dW, db), dH

        (dW, db), dH = blocks.sweep(block, H, problem.labels, problem.K)
        return Params(dW, dH, db)
    db = jnp.sum(G, axis=1) if problem.bias else jnp.zeros_like(b)
    # Wᵀ as an array of its own: XLA's product for CPUs reads a transposed left factor up to twice
    # as slowly, most of all when many small problems are mapped over.
    Wt = jax.lax.optimization_barrier(W.T)
    return Params(matmul(G, H.T), matmul(Wt, G), db)


def add_decay(problem: Problem, params: Params, data: Params) -> Params:
    """The gradient of f from that of its data term: each part gains its λ x."""
    lams = decays(problem, params.W.dtype)
    return Params(*(g + lam * x for g, lam, x in zip(data, lams, params, strict=True)))


def gradient(problem: Problem, params: Params, G: Float[Array, "K N"] | None = None) -> Params:
    """∇_W f = G Hᵀ + λ_W W,  ∇_H f = Wᵀ G + λ_H H,  ∇_b f = G 1 + λ_b b,  G = (P − Y)/N.

    In closed form, equal to automatic differentiation of `objective`; ∇_b = 0 without a bias.

    Args:
        problem, params: any point.
        G: of the point, (P − Y)/N, where it is at hand.

    Raises:
        Refused: if shapes or dtypes of params do not fit the problem.
    """
    check_params(problem, params)
    return add_decay(problem, params, pullback(problem, params, G))


def gradient_norm(problem: Problem, params: Params) -> Scalar:
    """‖∇f‖ at a point; the gradient need not exist as a whole."""
    W, H, b = map(squared_norm, gradient(problem, params))
    return scaling.norm(W + H + b, lambda: gradient(problem, params))


def norm(tree: Params | tuple[Array, ...]) -> Scalar:
    """Euclidean norm √(‖W‖² + ‖H‖² + ‖b‖²) of a point, gradient or tangent, of any size."""
    squares = [squared_norm(x) for x in tree]
    return scaling.norm(sum(squares[1:], squares[0]), lambda: tree)
