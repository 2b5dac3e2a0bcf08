"""Extreme eigenpairs of the Hessian at any point, from products alone.

The search of `ufm.linalg.lanczos` in float64, preconditioned by a model of ∇²f whose eigenvectors
have a closed form. With G = UΣVᵀ, S̄ = Σ w_i S_i, m = Σ w_i and Q the eigenvectors of WᵀW + HHᵀ, it
has one 2×2 block for each singular value g_j and each axis q_a,

    [[λ_W + α_j χ_a, g_j], [g_j, λ_H + ω_a]]   on   (u_j q_aᵀ, q_a v_jᵀ),

α_j = u_jᵀ S̄ u_j/m,  χ_a = Σ w_i ⟨q_a, h_i⟩²,  ω_a = q_aᵀ WᵀS̄W q_a/(mN), and λ_H + ω_a on the
columns of H orthogonal to V. It contains all of ∇²f but the Gauss–Newton part, of which it has the
diagonal. |model − θ|⁻¹ is the preconditioner, in the sense of Davidson; the eigenpairs returned are
measured with ∇²f itself. Small Hessians are formed and solved densely.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.hessian import curvature
from ufm.hessian.curvature import Linearization, OrbitTangents, apply, flatten, unflatten
from ufm.hessian.signs import inertia
from ufm.linalg import lanczos
from ufm.linalg.products import matmul
from ufm.model import layers, points
from ufm.model import objective as terms
from ufm.model.problem import Params, Problem

FLOOR = 1e-4  # the least |model − θ|, relative to the largest |θ| of the model: its own error
DENSE = 500  # rows up to which the matrix is solved: less to compile, in tens of milliseconds


class Extreme(NamedTuple):
    """Extreme eigenpairs of ∇²f, outermost first.

    values: (k,) float64, in the units of ∇²f.
    vectors: (k, size), orthonormal rows in the order W row-major, H row-major, b
        (`hessian.unflatten` turns them into tangents).
    residuals: (k,), ‖∇²f v − θ v‖; there is an eigenvalue within that distance of θ.
    converged: (k,), whether residual ≤ tol · norm and the search has ended.
    signs: (k,), −1 or 1, or 0 where |value| ≤ residual + resolution: the sign is undecided.
    resolution: how far rounding of the params to their own precision may move an eigenvalue
        (a bound to first order): about 1e-7 relative for float32, 1e-16 for float64.
    norm: an estimate of ‖∇²f‖ from below.
    products: the number of Hessian products with one vector.
    status: "converged", "iteration_limit" or "not_finite".
    missed: with `exact`, how many eigenvalues beyond the last value were not found; otherwise None.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k size"]
    residuals: Float[Array, " k"]
    converged: Array
    signs: Array
    resolution: float
    norm: float
    products: int
    status: str
    missed: int | None


class Preconditioner(NamedTuple):
    """The closed-form model of ∇²f at a point; see the module's docstring.

    U (K, K), V (N, K) with zero columns where g_j vanishes, Q (d, d); eigenvalues (K, d, 2) and
    axes (K, d, 2, 2) of the blocks; rest (d,) = λ_H + ω; bias: the eigenvalue for b, λ_b + Σ_j α_j
    m/K.
    """

    U: Array
    V: Array
    Q: Array
    values: Array
    axes: Array
    rest: Array
    bias: Array


def preconditioner(at: Linearization) -> Preconditioner:
    """The model at a point, in O(K³ + d³) and two products of the size of the point. Traceable."""
    W, H, _ = at.params
    N, dtype = at.problem.N, at.G.dtype
    lam_W, lam_H, lam_b = terms.decays(at.problem, dtype)
    lam_H = jnp.mean(lam_H)
    weights = terms.weighed(at.problem, jnp.ones(N, dtype), at.problem.labels)
    mass = jnp.sum(weights)
    S = at.S.total(weights) / mass
    squares, U = jnp.linalg.eigh(matmul(at.G, at.G.T))
    g = jnp.sqrt(jnp.maximum(squares, 0))
    g = jnp.where(g > 1e-7 * g[-1], g, 0)
    V = matmul(at.G.T, U) * jnp.where(g > 0, 1 / jnp.where(g > 0, g, 1), 0)
    moment = matmul(H, H.T)
    _, Q = jnp.linalg.eigh(matmul(W.T, W) + moment)
    alpha = jnp.sum(U * matmul(S, U), axis=0)
    chi = jnp.sum(Q * matmul(matmul(H * weights, H.T), Q), axis=0)
    WQ = matmul(W, Q)
    omega = jnp.sum(WQ * matmul(S, WQ), axis=0) / N
    upper = lam_W + alpha[:, None] * chi
    lower = jnp.broadcast_to(lam_H + omega, upper.shape)
    beside = jnp.broadcast_to(g[:, None], upper.shape)
    blocks = jnp.stack([jnp.stack([upper, beside], -1), jnp.stack([beside, lower], -1)], -2)
    values, axes = jnp.linalg.eigh(blocks)
    return Preconditioner(U, V, Q, values, axes, lam_H + omega, lam_b + mass * jnp.mean(alpha))


def _steer(
    problem: Problem, at: Preconditioner, orbit: OrbitTangents | None, block: Array, theta: Array
) -> Array:
    """|model − θ|⁻¹ on a block of rows; with an orbit, off the orbit, and a multiple of 1 on it."""
    whole = unflatten(problem, block)
    dW, dH, db = inner = whole if orbit is None else curvature.project_out(orbit, whole)
    floor = FLOOR * jnp.max(jnp.abs(at.values))
    floor = jnp.where(floor > 0, floor, 1)

    def inverse(values):
        return 1 / jnp.maximum(jnp.abs(values - theta), floor)

    W = matmul(matmul(at.U.T, dW), at.Q)
    turned = matmul(at.Q.T, dH)
    H = jnp.swapaxes(matmul(turned, at.V), -1, -2)
    pair = jnp.stack([W, H], -1)[..., None, :]
    pair = jnp.sum(pair * jnp.swapaxes(at.axes, -1, -2), axis=-1) * inverse(at.values)
    pair = jnp.sum(pair[..., None, :] * at.axes, axis=-1)
    weight = inverse(at.rest)[:, None]
    inside = jnp.swapaxes(pair[..., 1] - H * weight.T, -1, -2)
    out = Params(
        matmul(matmul(at.U, pair[..., 0]), at.Q.T),
        matmul(at.Q, matmul(inside, at.V.T) + weight * turned),
        db * inverse(at.bias),
    )
    if orbit is not None:
        out = curvature.project_out(orbit, out)
        least = jnp.min(inverse(at.values))
        out = jax.tree.map(lambda x, full, part: x + least * (full - part), out, whole, inner)
    return flatten(problem, out)


def _image(at: Linearization, orbit: OrbitTangents | None, push: Array, block: Array) -> Array:
    """∇²f on a block of rows; with an orbit P∇²fP + push(I − P), P the projection off it."""
    tangent = unflatten(at.problem, block)
    if orbit is None:
        return flatten(at.problem, apply(at, tangent))
    inner = curvature.project_out(orbit, tangent)
    image = curvature.project_out(orbit, apply(at, inner))
    pushed = jax.tree.map(lambda x, full, part: x + push * (full - part), image, tangent, inner)
    return flatten(at.problem, pushed)


@jax.jit
def _prepared(problem: Problem, params: Params) -> tuple[Linearization, OrbitTangents]:
    return curvature.linearize(problem, params), curvature.orbit(problem, params)


_preconditioner = jax.jit(preconditioner)


@functools.partial(jax.jit, static_argnames="rows")
def _started(
    problem: Problem,
    at: Preconditioner,
    orbit: OrbitTangents | None,
    key: Array,
    sign: int,
    rows: int,
) -> Array:
    """The model's own extreme eigenvectors; random rows if they are fewer than a block."""
    draws = jax.random.normal(key, (rows, problem.size), at.values.dtype)
    found = min(rows, at.values.size)
    _, places = jax.lax.top_k(-sign * at.values.ravel(), found)
    j, a, i = jnp.unravel_index(places, at.values.shape)
    pair, q = at.axes[j, a, :, i], at.Q.T[a]
    W = pair[:, :1, None] * at.U.T[j][:, :, None] * q[:, None, :]
    H = pair[:, 1:, None] * q[:, :, None] * at.V.T[j][:, None, :]
    tangents = Params(W, H, jnp.zeros((found, problem.K), W.dtype))
    tangents = tangents if orbit is None else curvature.project_out(orbit, tangents)
    return draws.at[:found].set(flatten(problem, tangents))


def resolution(problem: Problem, params: Params) -> float:
    """How far an eigenvalue moves at most, to first order, if params are rounded to their dtype.

    With u the unit roundoff, β = sup‖S_i‖, c = ‖W‖₂ + ‖[H; 1]‖₂, ‖δz_i‖ ≤ u(2‖W‖_F‖h_i‖ + ‖b‖),
    ‖δS_i‖ ≤ max(2β, (2β)^{3/2})‖δz_i‖ and w = max w_i it is

        w[2β(c u(‖W‖_F + ‖H‖_F) + ½(Σ‖δz_i‖²)^½) + max(2β, (2β)^{3/2}) max‖δz_i‖ c²],

    plus the rounding of the float64 computation itself. 2β is 1 for cross-entropy, and taken as 1
    where the loss has no bound. The bound on δS_i holds for cross-entropy, with soft targets and
    scaled logits too, for binary cross-entropy and for the squared error; for other losses it is
    an estimate.

    Args:
        problem, params: any point.

    Returns:
        A number in the units of ∇²f.
    """
    curved = 2 * float(problem.loss.smoothness(problem.targets))
    curved = curved if np.isfinite(curved) else 1.0
    u = max(float(jnp.finfo(params.W.dtype).eps) / 2, float(np.finfo(np.float64).eps) / 2)
    W, H, b = (np.asarray(x, np.float64) for x in params)
    lifted = np.vstack([H, np.ones((int(problem.bias), problem.N))])
    c = np.linalg.norm(W, 2) + np.linalg.norm(lifted, 2)
    length = np.linalg.norm(W)
    dz = u * (2 * length * np.linalg.norm(H, axis=0) + np.linalg.norm(b))
    moved = curved * (c * u * (length + np.linalg.norm(H)) + np.linalg.norm(dz) / 2)
    moved += max(curved, curved**1.5) * np.max(dz) * c**2
    decays = max(float(problem.lam_W), np.max(problem.class_decays), float(problem.lam_b))
    data = np.max(problem.class_weights) * np.array([moved, curved * c**2])
    return float(data[0] + 8 * np.finfo(np.float64).eps * (decays + data[1]))


def extreme(
    problem: Problem,
    params: Params,
    k: int = 1,
    which: Literal["smallest", "largest"] = "smallest",
    *,
    key: Array | None = None,
    orbit: bool = False,
    exact: bool = False,
    tol: float = 1e-10,
    max_products: int = 100_000,
) -> Extreme:
    """The k smallest or largest eigenvalues of ∇²f at any point, with vectors and residuals.

    Memory: 2(k + 40) vectors. A multiple eigenvalue is returned as often as it occurs, up to k;
    copies may be missed (see `ufm.linalg.lanczos`), and `exact` counts them.

    Args:
        problem, params: any point of a problem with free features; float32 params are taken as
            exact, and `resolution` bounds the effect of their rounding.
        k: the number of pairs, 1 … size.
        which: "smallest" (most negative) or "largest".
        key: a JAX PRNG key or an integer seed for the start; None takes a fixed key.
        orbit: restrict ∇²f to the tangents orthogonal to the O(d) orbit (and to b ∝ 1 if λ_b = 0),
            along which it vanishes at critical points.
        exact: count by `hessian.inertia` the eigenvalues beyond the last value; see `missed`.
        tol: the residual allowed, relative to ‖∇²f‖.
        max_products: most Hessian products; if the search reaches it, no pair counts as converged.
            A matrix, for up to 500 variables, takes size + k.

    Returns:
        An `Extreme`.

    Raises:
        Refused: k out of range (with `orbit`: beyond size − d(d−1)/2 − 1), `exact` with
            `orbit`, an unknown end, wrong shapes, entries that are not finite; arrays that are not
            real floating, mixed dtypes, array-valued decays, traced values; features that are not
            free, a fixed classifier.
    """
    points.check_point(problem, params)
    layers.require_free(problem, "hessian.extreme")
    key = None if key is None else check.key(key)
    orbit, exact = check.flag("orbit", orbit), check.flag("exact", exact)
    size, along = problem.size, problem.d * (problem.d - 1) // 2 + 1
    room = size - along if orbit else size
    k = check.integer("k", k, 1, room, f"this Hessian has {room} eigenpairs")
    max_products = check.integer("max_products", max_products, 1, 2**31 - 1)
    if orbit and exact:
        raise Refused("got exact and orbit; inertia counts on all tangents: choose one of them")
    sizes, sign = lanczos.plan(size, k, which), 1 if which == "smallest" else -1
    with jax.enable_x64(True):
        at, tangents = _prepared(problem, points.in_float64(params))
        off = tangents if orbit else None
        key = jax.random.key(0) if key is None else key
        draw, key = jax.random.split(key)
        operator = jax.tree_util.Partial(_image, at, None, np.zeros(()))
        small = size <= DENSE and size + k <= max_products
        options: dict[str, Any] = {"dense": size * small}
        if orbit or not small:
            options["norm"] = norm = lanczos.norm_estimate(operator, size, draw)
        if off is not None:
            operator = jax.tree_util.Partial(_image, at, off, sign * norm)
        if not small:
            closed = _preconditioner(at)
            options["preconditioner"] = jax.tree_util.Partial(_steer, problem, closed, off)
            options["start"] = _started(problem, closed, off, draw, sign, k + sizes.width)
        found = lanczos.extreme_pairs(
            operator, size, k, key, which=which, tol=tol, max_products=max_products, **options
        )
        coarse = resolution(problem, params)
        signs = _signs(found, coarse)
    missed = _missed(problem, params, found, sign) if exact else None
    return Extreme(
        found.values, found.vectors, found.residuals, found.converged, signs, coarse,
        float(found.norm), int(found.products), found.status, missed,
    )  # fmt: skip


def _signs(found: lanczos.Eigenpairs, coarse: float) -> Array:
    """Signs of the values, 0 where residual and rounding of the params do not decide."""
    values, residuals = np.asarray(found.values), np.asarray(found.residuals)
    decided = np.abs(values) > residuals + coarse
    return jnp.asarray(np.where(decided, np.sign(values), 0).astype(np.int32))


def _missed(problem: Problem, params: Params, found: lanczos.Eigenpairs, sign: int) -> int:
    """Eigenvalues outside the last value by more than the residuals, less those that were found."""
    values = np.asarray(found.values)
    slack = 4 * float(jnp.max(found.residuals)) + 1e-12 * float(found.norm)
    counts = inertia(problem, params, float(values[-1]) - sign * slack)
    edge = counts.shift - sign * counts.tolerance
    outside = counts.negative if sign > 0 else counts.positive
    return outside - int(np.sum(sign * values < sign * edge))
