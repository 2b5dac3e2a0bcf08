"""The density of the Hessian's spectrum, by stochastic Lanczos quadrature."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.hessian.curvature import Linearization, apply, flatten, linearize, unflatten
from ufm.linalg.tridiagonal import tridiagonal
from ufm.model import layers
from ufm.model.points import check_point, in_float64
from ufm.model.problem import Params, Problem


class Density(NamedTuple):
    """Smoothed spectral density with its sampling error, and the quadrature behind it.

    grid: (points,) in the units of ∇²f.
    density: (points,), integrates to 1.
    standard_error: (points,), standard deviation over probes / √probes.
    width: standard deviation of the Gaussian that smooths, in the units of ∇²f.
    nodes, weights: (probes, steps), the quadrature of every probe. The weights of a probe add up to
        1, and Σ weights g(nodes) estimates tr g(∇²f)/size.
    """

    grid: Float[Array, " points"]
    density: Float[Array, " points"]
    standard_error: Float[Array, " points"]
    width: float
    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]


def density(
    problem: Problem,
    params: Params,
    key: Array,
    *,
    probes: int = 10,
    steps: int = 80,
    points: int = 512,
    width: float | None = None,
) -> Density:
    """(1/size) Σ_i N(x; λ_i, width²), by stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017).

    Every probe is a random sign vector v/√size, whose Lanczos matrix T = Q diag(θ) Qᵀ gives nodes
    θ_j and weights Q_1j². Lanczos vectors are fully reorthogonalised; if a Krylov space is
    exhausted (few distinct eigenvalues), the remaining nodes have weight 0.

    Args:
        problem, params: any point of a problem with free features.
        key: a JAX PRNG key, or an integer seed; it draws the probes.
        probes: at least 2, for an error bar.
        steps: Lanczos steps of each probe, at least 2; memory is steps × size numbers.
        points: length of the grid, which covers the nodes and 4 widths on either side.
        width: standard deviation of the smoothing, > 0, in the units of ∇²f; None takes 1/100 of
            the range of the nodes.

    Returns:
        A `Density`, in float64.

    Raises:
        Refused: probes, steps, points or width out of range; wrong shapes, non-finite entries;
            arrays that are not real floating, or mixed dtypes; features that are not free, a fixed
            classifier.
    """
    counts = (("probes", probes), ("steps", steps), ("points", points))
    probes, steps, points = (check.integer(name, value, 2, 2**31 - 1) for name, value in counts)
    if width is not None:
        width = check.real("width", width, above=0, also="or None")
    check_point(problem, params)
    layers.require_free(problem, "hessian.density")
    key = check.key(key)
    with jax.enable_x64(True):
        at = _linearized(problem, in_float64(params))
        nodes, weights = _quadrature(at, jax.random.split(key, probes), min(steps, problem.size))
        low, high = float(np.min(nodes)), float(np.max(nodes))
        if width is None:
            width = (high - low) / 100 or 1e-3 * max(abs(high), 1e-3)
        grid = jnp.asarray(np.linspace(low - 4 * width, high + 4 * width, points))
        mean, error = _smoothed(nodes, weights, grid, width)
        return Density(grid, mean, error, width, nodes, weights)


_linearized = jax.jit(linearize)


@jax.jit
def _smoothed(nodes: Array, weights: Array, grid: Array, width) -> tuple[Array, Array]:
    """Mean and standard error over probes of Σ_j weight_j N(grid; node_j, width²)."""
    bumps = jax.scipy.stats.norm.pdf(grid, nodes[..., None], width)
    each = jnp.sum(weights[..., None] * bumps, axis=1)
    return jnp.mean(each, axis=0), jnp.std(each, axis=0, ddof=1) / jnp.sqrt(len(each))


@partial(jax.jit, static_argnums=2)
def _quadrature(at: Linearization, keys: Array, steps: int) -> tuple[Array, Array]:
    """Gauss nodes and weights of every probe, (probes, steps) each."""
    size = at.problem.size

    def image(v):
        return flatten(at.problem, apply(at, unflatten(at.problem, v)))

    def one(key):
        start = jax.random.rademacher(key, (size,), at.G.dtype) / jnp.sqrt(size)
        nodes, vectors = jnp.linalg.eigh(tridiagonal(image, start, steps))
        return nodes, jnp.square(vectors[0])

    return jax.lax.map(one, keys)
