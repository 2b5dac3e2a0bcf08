"""Starts for Newton's method in a search for critical points, one function a source.

From random starts Newton's method mostly converges to the origin. Therefore there are several
sources, each of which uses some structure: tied classes, fewer dimensions than allowed, slow phases
of descent, the neighbourhood and the eigenvectors of known points, and deflation of known points.
Every function takes a problem in the coordinates of `ufm.model.quotient`, a JAX PRNG key and the
number of starts, and returns `Params` of so many starts along a leading axis. NumPy computes what
follows a draw, since JAX would compile every such operation for every shape.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.critical import downhill, newton
from ufm.hessian.curvature import dense, flatten, unflatten
from ufm.linalg.products import matmul
from ufm.model import objective as terms
from ufm.model.objective import gradient
from ufm.model.problem import Params, Problem
from ufm.runtime import programs

# Standard deviations of random starts, in units of the entries at a global minimum.
SCALES = (0.3, 1.0, 1.7, 3.0)
# Descent that passes close to saddles: its distance at the start from 0 and from a tied point, in
# units of the entries at a minimum (small, so that it passes near them); its step where the
# gradient is small; how many points of it are recorded, and how many steps apart.
_NEAR_ORIGIN, _NEAR_TIED = 1e-3, 1e-4
_PASSAGE_STEP, _PASSAGE_RECORDS, _PASSAGE_STRIDE = 4.0, 80, 25
# Noise about known points, in the same units: from the neighbourhood of one to far away.
_NOISE = np.geomspace(0.03, 1.0, 7)
# Deflation: steps, the strength s of m, and what keeps m finite at a known point.
_DEFLATED_STEPS, _DEFLATION, _APART = 12, 0.1, 1e-12


def units(problem: Problem) -> tuple[Array, Array]:
    """Root mean square entries (W, H) at a global minimum, by the closed form for equal classes.

    ‖W‖² = (K−1) t √(n λ_H/λ_W) and ‖H‖² = (K−1) t √(n λ_W/λ_H)/n for one feature a class, with the
    margin t but at least 1, and with n the mean of n_k ω_k. Traceable.
    """
    K: int = problem.K
    n: Any = problem.N / problem.groups
    if problem.decay_weights is not None:
        n = jnp.mean(problem.counts * jnp.asarray(problem.decay_weights, float))
    c = jnp.sqrt(n * jnp.asarray(problem.lam_W, float) * problem.lam_H)
    t = jnp.maximum(jnp.log(jnp.maximum(1 / c - (K - 1), 1.0)), 1.0)
    ratio = jnp.sqrt(n * problem.lam_H / jnp.asarray(problem.lam_W, float))
    spread = (K - 1) * t / (K * problem.d)
    return jnp.sqrt(spread * ratio), jnp.sqrt(spread / ratio)


def partitions(K: int, largest: int | None = None) -> Iterator[tuple[int, ...]]:
    """The partitions of K classes into groups, by the sizes of the groups, largest first."""
    if check.integer("K", K, 0) == 0:
        yield ()
        return
    for size in range(min(K, largest or K), 0, -1):
        for rest in partitions(K - size, size):
            yield (size, *rest)


def random(problem: Problem, key: Array, count: int) -> Params:
    """Gaussian entries at the scales of `SCALES` in turn."""
    return _gaussian(problem, key, np.resize(SCALES, count))


def _gaussian(problem: Problem, key: Array, scales: Float[np.ndarray, " count"]) -> Params:
    count, (K, d, N) = len(scales), (problem.K, problem.d, problem.N)
    unit_W, unit_H = map(np.asarray, _units(problem))
    shapes = (count, K, d), (count, d, N), (count, K)
    sizes = [math.prod(shape) for shape in shapes]
    # Entries of JAX's default generator depend on their position, not on the shape, so one program
    # draws for all shapes up to a power of two.
    rows = np.asarray(_normals(key, len(sizes), 1 << (max(sizes) - 1).bit_length()))
    W, H, b = (x[:size].reshape(s) for x, size, s in zip(rows, sizes, shapes, strict=True))
    scales = scales.astype(W.dtype)
    W, H = unit_W * scales[:, None, None] * W, unit_H * scales[:, None, None] * H
    return jax.device_put(Params(W, H, scales[:, None] * b if problem.bias else np.zeros_like(b)))


# At level 1 draws have the digits of any higher level.
_units = programs.once(units, level=1)


@partial(programs.once, level=1, static_argnames=("rows", "size"))
def _normals(key: Array, rows: int, size: int) -> Array:
    return jax.vmap(lambda one: jax.random.normal(one, (size,), float))(jax.random.split(key, rows))


def _mapped(f: Callable[..., np.ndarray], *points: Params) -> Params:
    """f of W, of H and of b as NumPy arrays."""
    return jax.tree.map(lambda *parts: jax.device_put(f(*map(np.asarray, parts))), *points)


def tied(problem: Problem, key: Array, count: int) -> Params:
    """Random starts in which the classes of a group share row, feature and bias.

    Every partition of the classes with 2 … K−1 groups in turn, the classes in a random order. For
    equal counts the tied points are the fixed space of a group of symmetries: Newton's method stays
    in it, and critical points of f restricted to it are critical points of f (principle of
    symmetric criticality, Palais 1979).
    """
    if problem.targets is not None:  # columns are no classes that could be tied to rows of W
        return random(problem, key, count)
    sizes = [p for p in partitions(problem.K) if 1 < len(p) < problem.K] or [(1,) * problem.K]
    table = np.stack([np.repeat(np.arange(len(p)), p) for p in sizes])
    key_order, key_start = jax.random.split(key)
    groups = jax.device_put(np.resize(table, (count, problem.K)))
    groups = np.asarray(jax.random.permutation(key_order, groups, axis=1, independent=True))
    W, H, b = map(np.asarray, random(problem, key_start, count))
    first = np.argmax(groups[:, :, None] == groups[:, None, :], axis=2)  # leader of each group
    samples = np.cumsum(problem.counts) - problem.counts
    W = np.take_along_axis(W, first[:, :, None], axis=1)
    H = np.take_along_axis(H, samples[first][:, None, problem.labels], axis=2)
    return jax.device_put(Params(W, H, np.take_along_axis(b, first, axis=1)))


def padded(problem: Problem, key: Array, count: int) -> Params:
    """Random starts that use only the first 1 … d−1 dimensions, in turn; the others are zero.

    Points with these zeros are a fixed space of reflections, so Newton's method and descent do not
    leave it. Every second round of ranks starts from the end of a descent: the lowest critical
    points of each rank are minima of the narrower problem, and saddles of this one.
    """
    ranks = max(problem.d - 1, 1)
    widths = 1 + np.arange(count) % ranks
    used = np.arange(problem.d) < widths[:, None]
    W, H, b = map(np.asarray, random(problem, key, count))
    # Fewer dimensions share the same norms.
    gain = np.sqrt(problem.d / widths)[:, None, None].astype(W.dtype)
    starts = Params(gain * W * used[:, None, :], gain * H * used[:, :, None], b)
    # All descend, so that `descended` uses the same program, which takes seconds to compile.
    points, _ = downhill.from_many(problem, starts)
    down = np.arange(count) // ranks % 2 == 1

    def chosen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(down.reshape([-1] + [1] * (x.ndim - 1)), y, x)

    return _mapped(chosen, starts, points)


def passages(problem: Problem, key: Array, count: int) -> Params:
    """Local minima of ‖∇f‖ along runs of gradient descent from small starts.

    Half of the runs start near the origin, half near a tied point. Descent is slow near saddles,
    which it passes in order of decreasing index.
    """
    key_small, key_tied, key_noise, key_pick = jax.random.split(key, 4)
    runs = max(count // 4, 2)
    near = random(problem, key_small, runs // 2)
    ties = tied(problem, key_tied, runs - runs // 2)
    noise = random(problem, key_noise, runs - runs // 2)
    starts = _mapped(
        lambda x, y, z: np.concatenate([_NEAR_ORIGIN * x, y + _NEAR_TIED * z]), near, ties, noise
    )
    points, slopes = jax.tree.map(np.asarray, _ways(problem, starts))
    inner = slopes[:, 1:-1]
    low = (inner <= slopes[:, :-2]) & (inner <= slopes[:, 2:]) & np.isfinite(inner)
    run, at = np.nonzero(low)
    if len(run) == 0:
        run, at = np.arange(runs), np.full(runs, _PASSAGE_RECORDS - 2)
    chosen = np.resize(np.asarray(jax.random.permutation(key_pick, len(run))), count)
    return _mapped(lambda x: x[run[chosen], at[chosen] + 1], points)


def descended(problem: Problem, key: Array, count: int) -> Params:
    """End points of descent from random starts, near minima."""
    return downhill.from_many(problem, random(problem, key, count))[0]


@jax.jit
def _ways(problem: Problem, starts: Params) -> tuple[Params, Array]:
    """Points of normalised gradient descent and ‖∇f‖ there, (runs, records, …)."""

    def step(_, params):
        g = gradient(problem, params)
        # A step of length 1 at most where the gradient is large: only the path matters.
        eta = _PASSAGE_STEP / (1 + _PASSAGE_STEP * terms.norm(g))
        return jax.tree.map(lambda x, y: x - eta * y, params, g)

    def record(params, _):
        new = jax.lax.fori_loop(0, _PASSAGE_STRIDE, step, params)
        return new, (new, terms.norm(gradient(problem, new)))

    def way(params):
        return jax.lax.scan(record, params, None, length=_PASSAGE_RECORDS)[1]

    return jax.vmap(way)(starts)


def perturbed(problem: Problem, key: Array, count: int, known: Params) -> Params:
    """Known points with Gaussian noise of 3 % to 100 % of the entries at a minimum."""
    index = np.resize(np.arange(len(known.W)), count)
    noise = _gaussian(problem, key, np.resize(_NOISE, count))
    return _mapped(lambda x, y: x[index] + y, known, noise)


def followed(problem: Problem, key: Array, count: int, known: Params) -> Params:
    """Known points moved along eigenvectors of their 2K lowest eigenvalues, by random lengths.

    From a saddle, a negative eigenvector points towards saddles of neighbouring index.
    """
    key_pick, key_length = jax.random.split(key)
    vectors = np.asarray(_eigenvectors(problem, known))
    orbits, which = len(known.W), min(problem.size, 2 * problem.K)
    order = np.asarray(jax.random.permutation(key_pick, orbits * which))
    index = np.resize(order, count)
    unit_W, unit_H = map(float, _units(problem))
    unit = np.sqrt(problem.size) * (unit_W + unit_H) / 2
    lengths = unit * np.asarray(jax.random.uniform(key_length, (count,), float, -1.0, 1.0))
    moves = lengths[:, None] * vectors[index // which, index % which]
    points = _mapped(lambda x: x[index // which], known)
    return _mapped(np.add, points, unflatten(problem, moves))


@jax.jit
def _eigenvectors(problem: Problem, known: Params) -> Array:
    """Eigenvectors of ∇²f in ascending order of eigenvalues, (orbits, 2K, size)."""
    which = min(problem.size, 2 * problem.K)
    return jax.lax.map(lambda x: jnp.linalg.eigh(dense(problem, x))[1].T[:which], known)


def deflated(problem: Problem, key: Array, count: int, known: Params) -> Params:
    """Newton's method from random starts for an equation that the known points do not solve.

    m(x) ∇f(x) = 0 with m = Π_j (1 + s/‖φ(x) − φ_j‖²) is solved by the critical points of f except
    the known ones; its Newton step is that of ∇f times 1/(1 − ⟨∇ log m, s_N⟩) (Farrell, Birkisson
    and Funke 2015). φ are invariants of the symmetries, tr (WWᵀ)^p and tr (HᵀH)^p, so that a whole
    orbit is deflated at once.
    """
    return _deflated(problem, random(problem, key, count), known)


@jax.jit
def _deflated(problem: Problem, starts: Params, known: Params) -> Params:
    unit_W, unit_H = units(problem)

    def invariants(params):
        powers = []
        for A, unit in ((params.W, unit_W), (params.H.T, unit_H)):
            gram = matmul(A.T, A) / (unit**2 * problem.K * problem.d)
            square = matmul(gram, gram)
            powers += [jnp.trace(gram), jnp.trace(square), jnp.trace(matmul(square, gram))]
        return jnp.stack(powers)

    roots = jax.vmap(invariants)(known)

    def log_m(x):
        distances = jnp.sum((invariants(unflatten(problem, x)) - roots) ** 2, axis=1)
        return jnp.sum(jnp.log1p(_DEFLATION / (distances + _APART)))

    def step(_, x):
        s = newton.step(problem, x, 1.0)
        stretch = 1 / (1 - jnp.vdot(jax.grad(log_m)(x), s))
        length = jnp.linalg.norm(s)
        # The stretched step is at most as long as the region of interest is wide.
        most = problem.size**0.5 * (unit_W + unit_H) / 2
        most = most / jnp.maximum(length, jnp.finfo(x.dtype).tiny)
        stretch = jnp.clip(stretch, -most, most)
        new = x + stretch * s
        return jnp.where(jnp.all(jnp.isfinite(new)), new, x)

    def one(params):
        return unflatten(
            problem, jax.lax.fori_loop(0, _DEFLATED_STEPS, step, flatten(problem, params))
        )

    return jax.vmap(one)(starts)
