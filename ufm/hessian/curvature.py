"""The Hessian as an operator: products, the dense matrix, projection off the symmetry orbit.

    ∇²f[Δ, Δ] = Σ_i w_i δz_iᵀ S_i δz_i + 2⟨G, ΔW ΔH⟩ + λ_W‖ΔW‖² + λ_H Σ_i ω_i‖Δh_i‖² + λ_b‖Δb‖²
    δZ = ΔW H + W ΔH + Δb 1ᵀ,   S_i = ∇²ℓ,   G = [w_i ∇ℓ] at the logits

The first term is the Gauss–Newton part, positive semidefinite for a convex loss; the second then
carries all negative curvature. Products run in the dtype of the params and inside jit; `dense`
works in float64. Vectors are ordered W row-major, H row-major, b (left out without a bias). The
probes that read numbers off the Hessian are in `ufm.hessian`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.linalg.products import matmul
from ufm.losses.loss import Curvature
from ufm.model import objective as terms
from ufm.model import points
from ufm.model.evaluation import Evaluated
from ufm.model.fixed import require_free
from ufm.model.points import in_float64
from ufm.model.problem import Params, Problem

DENSE_LIMIT = 2**31  # bytes of the dense matrix: 16,384 variables
_BLOCK_BYTES = 2**26  # working memory of one block of products


class Linearization(NamedTuple):
    """A point with S and G, computed once for all products at that point.

    problem, params: the point.
    S: the Hessians S_i of the loss in the logits, one for each sample.
    G: [w_i ∇ℓ], (K, N).
    """

    problem: Problem
    params: Params
    S: Curvature
    G: Float[Array, "K N"]


def linearize(problem: Problem, params: Params) -> Linearization:
    """Compute S and G at a point once, for many products by `apply`. Traceable.

    Args:
        problem: any problem whose classifier is not fixed.
        params: any point, in the dtype in which the products are to run.

    Raises:
        Refused: shapes or dtypes of params that do not fit the problem; a fixed classifier.
    """
    require_free(problem)
    points.check_params(problem, params)
    targets = problem.target(problem.labels)
    S = problem.loss.curvature(terms.logits(problem, params), targets)
    return Linearization(problem, params, S.prepared(), terms.data_gradient(problem, params))


def linearized(at: Evaluated) -> Linearization:
    """`linearize` of a point that has been evaluated, in float64."""
    with jax.enable_x64(True):
        params, S, G = jax.device_put((at.params, at.S, at.G))  # jnp.asarray compiles a copy
        return Linearization(at.problem, params, S.prepared(), G)


def gauss_newton(at: Linearization, tangent: Params) -> Params:
    """(R Hᵀ, WᵀR, R1) with R_i = w_i S_i δz_i: the Gauss–Newton part of the data, without decay.

    Args:
        at: from `linearize`.
        tangent: `Params` of the point's shapes, or with common leading axes for many tangents.
    """
    W, H, _ = at.params
    dZ = matmul(tangent.W, H) + matmul(W, tangent.H)
    if at.problem.bias:
        dZ = dZ + tangent.b[..., None]
    R = terms.weighed(at.problem, at.S.apply(dZ), at.problem.labels)
    db = jnp.sum(R, axis=-1) if at.problem.bias else jnp.zeros_like(tangent.b)
    return Params(matmul(R, H.T), matmul(W.T, R), db)


def remainder(at: Linearization, tangent: Params) -> Params:
    """(G ΔHᵀ + λ_W ΔW, ΔWᵀ G + λ_H ΔH Ω, λ_b Δb): the Hessian less its Gauss–Newton part.

    Args:
        at: from `linearize`.
        tangent: `Params` of the point's shapes, or with common leading axes for many tangents.
    """
    dW, dH, db = tangent
    lam_W, lam_H, lam_b = terms.decays(at.problem, at.G.dtype)
    out_W = matmul(at.G, jnp.swapaxes(dH, -1, -2)) + lam_W * dW
    out_H = matmul(jnp.swapaxes(dW, -1, -2), at.G) + lam_H * dH
    return Params(out_W, out_H, lam_b * db)


def apply(at: Linearization, tangent: Params) -> Params:
    """∇²f[tangent] at a point from `linearize`, in closed form: six matrix products. Traceable.

    Args:
        at: from `linearize`.
        tangent: `Params` of the point's shapes, or with common leading axes for many tangents.

    Returns:
        `Params` of the same shapes, 0 in b if there is no bias.
    """
    return jax.tree.map(jnp.add, gauss_newton(at, tangent), remainder(at, tangent))


def check_tangent(problem: Problem, params: Params, tangent: Params) -> None:
    """Refuse tangents whose shapes or dtypes do not fit the point.

    Raises:
        Refused: trailing shapes other than W (K, d), H (d, N), b (K,), or different leading axes;
            a dtype other than that of the params; params that do not fit the problem.
    """
    points.check_params(problem, params)
    points.check_types(problem, tangent)
    leading = set()
    for name, point, part in zip("WHb", params, tangent, strict=True):
        shape = jnp.shape(part)
        batch = len(shape) - point.ndim
        if batch < 0 or shape[batch:] != point.shape:
            raise Refused(
                f"got a tangent whose {name} has shape {shape}; allowed: {point.shape}, or that "
                "behind leading axes for many tangents at once"
            )
        if getattr(part, "dtype", None) != point.dtype:
            raise Refused(
                f"got a tangent whose {name} is {getattr(part, 'dtype', type(part).__name__)} "
                f"at params of {point.dtype}; cast one of them"
            )
        leading.add(shape[:batch])
    if len(leading) > 1:
        raise Refused(
            f"got leading axes {sorted(leading)} in one tangent; W, H and b must share them"
        )


def product(problem: Problem, params: Params, tangent: Params) -> Params:
    """∇²f(params)[tangent], in the dtype of the params; equal to forward-over-reverse autodiff.

    Traceable. `linearize` and `apply` share the evaluation of the point between many products.

    Args:
        problem: any problem whose classifier is not fixed.
        params: any point.
        tangent: `Params` of the point's shapes, or with common leading axes for many tangents.

    Returns:
        `Params` of the shapes of the tangent, 0 in b if there is no bias.

    Raises:
        Refused: shapes or dtypes that do not fit; a fixed classifier.
    """
    check_tangent(problem, params, tangent)
    return apply(linearize(problem, params), tangent)


def gauss_newton_product(problem: Problem, params: Params, tangent: Params) -> Params:
    """The Gauss–Newton part of `product`, without decay: Σ_i w_i J_iᵀ S_i J_i [tangent].

    J_i = ∂z_i/∂(W, H, b). Arguments and result are those of `product`.

    Raises:
        Refused: shapes or dtypes that do not fit; a fixed classifier.
    """
    check_tangent(problem, params, tangent)
    return gauss_newton(linearize(problem, params), tangent)


def flatten(problem: Problem, tangent: Params) -> Float[Array, "... size"]:
    """A tangent as a vector: W row-major, H row-major, b (left out without a bias).

    Leading axes, one tangent each, stay in front. Traceable.

    Raises:
        Refused: no `Params`; a problem whose classifier is fixed.
    """
    points.check_types(problem, tangent)
    require_free(problem)
    batch = tangent.b.shape[:-1]
    parts = [tangent.W.reshape(*batch, -1), tangent.H.reshape(*batch, -1)]
    return jnp.concatenate(parts + ([tangent.b] if problem.bias else []), axis=-1)


def unflatten(problem: Problem, vector: Float[Array, "... size"]) -> Params:
    """The inverse of `flatten`; b = 0 without a bias. Traceable.

    Raises:
        Refused: a last axis that is not `problem.size` long; a fixed classifier.
    """
    require_free(problem)
    K, d, N = problem.K, problem.d, problem.N
    shape = getattr(vector, "shape", ())
    if not shape or shape[-1] != problem.size:
        got = f"length {shape[-1]}" if shape else f"type {type(vector).__name__}"
        raise Refused(f"got a vector of {got}; this problem has {problem.size} variables")
    batch = vector.shape[:-1]
    W = vector[..., : K * d].reshape(*batch, K, d)
    H = vector[..., K * d : K * d + d * N].reshape(*batch, d, N)
    b = vector[..., K * d + d * N :] if problem.bias else jnp.zeros((*batch, K), vector.dtype)
    return Params(W, H, b)


def matrix(problem: Problem, params: Params) -> Float[Array, "size size"]:
    """∇²f as a symmetric matrix in the order of `flatten`, in the dtype of params. Traceable.

    All columns are computed at once where this takes little memory, otherwise block by block.
    """
    at, size = linearize(problem, params), problem.size
    row_bytes = 8 * (4 * problem.K * problem.N + 4 * size)

    def image(unit):
        return flatten(problem, apply(at, unflatten(problem, unit)))

    if size * row_bytes <= _BLOCK_BYTES:
        rows = image(jnp.eye(size, dtype=at.G.dtype))
    else:
        rows = jax.lax.map(
            lambda i: image(jnp.zeros(size, at.G.dtype).at[i].set(1)),
            jnp.arange(size), batch_size=max(1, _BLOCK_BYTES // row_bytes),
        )  # fmt: skip
    return (rows + rows.T) / 2


_matrix_compiled = jax.jit(matrix)


def dense(problem: Problem, params: Params) -> Float[Array, "size size"]:
    """∇²f as a symmetric matrix in the order W row-major, H row-major, b (none without a bias).

    Computed and returned in float64 whatever the precision of params; under jit or vmap in that
    of the params.

    Args:
        problem: any problem whose classifier is not fixed, with at most 16,384 variables.
        params: any point.

    Raises:
        Refused: wrong shapes, entries that are not finite, or a matrix beyond 2 GiB;
            arrays that are not real floating, or mixed dtypes; a fixed classifier.
    """
    require_free(problem)
    points.check_params(problem, params)
    size = problem.size
    if 8 * size**2 > DENSE_LIMIT:
        raise Refused(
            f"got {size} variables: the dense Hessian would take {8 * size**2 / 2**30:.1f} GiB, "
            f"allowed are {DENSE_LIMIT / 2**30:.0f}. Use hessian.extreme for single eigenpairs, "
            "hessian.inertia for the index, hessian.spectrum at critical points"
        )
    if check.traced(problem, params):
        return matrix(problem, params)
    points.check_finite(params)
    with jax.enable_x64(True):
        return _matrix_compiled(problem, in_float64(params))


class OrbitTangents(NamedTuple):
    """The tangent space of the symmetry orbit at a point, in the form that `project_out` takes.

    W, H: the point.
    axes: eigenvectors of M = WᵀW + HHᵀ, (d, d).
    inverse: 1/(s_i + s_j) for the eigenvalues s of M, 0 where both vanish, (d, d).
    free_bias: the unit direction of b along which f is constant, (K,): n/‖n‖ with n the null
        direction of the loss (1 for one that is invariant under shifts) if λ_b = 0; otherwise 0.
    """

    W: Float[Array, "K d"]
    H: Float[Array, "d N"]
    axes: Float[Array, "d d"]
    inverse: Float[Array, "d d"]
    free_bias: Float[Array, " K"]


def orbit(problem: Problem, params: Params) -> OrbitTangents:
    """The tangents (W Aᵀ, A H, 0), A antisymmetric, and (0, 0, n) if λ_b = 0, n ℓ's null direction.

    The Hessian vanishes along them at a critical point. Rotations within the directions in which W
    and H are zero to rounding do not move the point and are left out. Traceable.
    """
    W, H, b = params
    s, axes = jnp.linalg.eigh(matmul(W.T, W) + matmul(H, H.T))
    total = s[:, None] + s[None, :]
    floor = 16 * problem.d * jnp.finfo(s.dtype).eps * s[-1]
    inverse = jnp.where(total > floor, 1 / jnp.where(total > floor, total, 1), 0)
    null = problem.loss.null(problem.K) if problem.bias else None
    n = jnp.zeros_like(b) if null is None else jnp.asarray(null, b.dtype)
    n = n / jnp.maximum(jnp.linalg.norm(n), jnp.finfo(b.dtype).tiny)
    free = jnp.asarray(problem.lam_b, b.dtype) == 0
    return OrbitTangents(W, H, axes, inverse, jnp.where(free, n, 0))


def project_out(at: OrbitTangents, tangent: Params) -> Params:
    """The part of a tangent orthogonal to the orbit, by least squares: O(d³), without a basis.

    The minimum of ‖(ΔW, ΔH) − (W Aᵀ, A H)‖ over antisymmetric A solves AM + MA = C − Cᵀ with
    M = WᵀW + HHᵀ and C = ΔH Hᵀ + ΔWᵀW, an equation that is diagonal in the eigenvectors of M.
    Leading axes, one tangent each, stay in front. Traceable.
    """
    W, H, axes, inverse, free_bias = at
    dW, dH, db = tangent
    C = matmul(dH, H.T) + matmul(jnp.swapaxes(dW, -1, -2), W)
    C = C - jnp.swapaxes(C, -1, -2)
    A = matmul(axes, matmul(inverse * matmul(axes.T, matmul(C, axes)), axes.T))
    out_b = db - free_bias * jnp.sum(free_bias * db, axis=-1, keepdims=True)
    return Params(dW - matmul(W, jnp.swapaxes(A, -1, -2)), dH - matmul(A, H), out_b)
