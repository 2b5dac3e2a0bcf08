"""Points of a problem: shapes and precisions that fit, finite entries, random starts, memory.

Every public function that takes (problem, params) checks them here first.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check
from ufm.check import Refused
from ufm.model import layers
from ufm.model.fixed import classifier
from ufm.model.problem import Params, Problem, require
from ufm.runtime import programs


def check_types(problem: Any, params: Any) -> None:
    """Refuse what is no problem or no params, for example the two in the wrong order.

    Raises:
        Refused: naming the types.
    """
    require(problem)
    if not isinstance(params, Params):
        raise Refused(
            f"got a {type(params).__name__} as params; allowed: ufm.Params(W, H, b), as "
            "ufm.init_params makes them"
        )


def check_params(problem: Problem, params: Params) -> None:
    """Refuse params whose shapes or dtypes do not fit the problem; works on tracers too.

    Raises:
        Refused: a shape differs from W (K, d), H (d, N), b (K,); a part is not an array of floats,
            or dtypes are mixed.
    """
    check_types(problem, params)
    K, d, N = problem.K, problem.d, problem.N
    dtypes = set()
    for name, value, shape in zip("WHb", params, ((K, d), (d, N), (K,)), strict=True):
        if not _is_floating(value):
            got = getattr(value, "dtype", type(value).__name__)
            raise Refused(
                f"got {name} of {got}; allowed: a real floating array of NumPy or JAX"
                f"{check.array_hint(name, value)}"
            )
        if value.shape != shape:
            raise Refused(
                f"got {name} with shape {value.shape}; this problem (K={K}, d={d}, N={N}) needs "
                f"{shape}" + (": columns of H are samples" if name == "H" else "")
            )
        dtypes.add(jnp.dtype(value.dtype))
    if len(dtypes) > 1:
        raise Refused(
            f"got mixed dtypes {sorted(map(str, dtypes))} in params; cast W, H and b to one, for "
            "example with jax.tree.map(lambda x: x.astype(jnp.float64), params)"
        )


def _is_floating(value: Any) -> bool:
    if not isinstance(value, np.ndarray | jax.Array) or isinstance(value, np.ma.MaskedArray):
        return False
    return jnp.issubdtype(value.dtype, jnp.floating)


def check_precision(params: Params) -> None:
    """Refuse params that are neither float32 nor float64, the precisions that LAPACK supports.

    Raises:
        Refused: naming the dtype.
    """
    dtype = params.W.dtype
    if dtype not in (np.float32, np.float64):
        raise Refused(
            f"got params in {dtype}; allowed: float32 or float64, the precision in which this is "
            "computed; cast them, for example with jax.tree.map(lambda x: "
            "x.astype(numpy.float32), params)"
        )


def in_float64(params: Params) -> Params:
    """The point as JAX arrays in float64, from floating arrays of any width and byte order."""
    return jax.tree.map(
        lambda x: jnp.asarray(
            np.asarray(x, np.float64) if isinstance(x, np.ndarray) else x, jnp.float64
        ),
        params,
    )


def check_point(problem: Problem, params: Params) -> None:
    """Refuse what is no concrete point of a single problem, for functions that run on the host.

    Raises:
        Refused: other types, traced values, decays that are arrays, params that do not fit, entries
            that are not finite.
    """
    check_types(problem, params)
    if check.traced(problem, params):
        raise Refused("got traced values: this runs on the host; call it outside jit and vmap")
    check.one_problem(problem)
    check_params(problem, params)
    check_finite(params)


def check_finite(params: Params) -> None:
    """Refuse NaN and infinities in concrete params; tracers pass.

    Raises:
        Refused: naming the array and how many of its entries are not finite.
    """
    for name, value in zip("WHb", params, strict=True):
        if check.traced(value):
            continue
        value = on_host(value)
        xp = np if isinstance(value, np.ndarray) else jnp
        bad = int(xp.sum(~xp.isfinite(value)))
        if bad:
            raise Refused(
                f"got {bad} non-finite entries in {name} of shape {value.shape}; allowed: finite "
                "numbers. Look for a diverged run, or for NaN in the features that were loaded"
            )


def on_host(value: Any) -> Any:
    """A JAX array of one CPU device as a NumPy array, without a copy; any other unchanged.

    Functions of NumPy on it compile no program.
    """
    if isinstance(value, np.ndarray) or len(value.sharding.device_set) > 1:
        return value
    return np.asarray(value) if next(iter(value.devices())).platform == "cpu" else value


def init_params(
    key: Array, problem: Problem, scale: float = 0.1, dtype=None, *, W: Any = None
) -> Params:
    """A random point: entries of W (K, d) and H (d, N) drawn from N(0, scale²), b = 0 (K,).

    For H ≥ 0 the features are |h|; on the sphere rows of W and features are divided by their norms.

    Args:
        key: a JAX PRNG key, or an integer seed.
        problem: gives the shapes.
        scale: standard deviation, ≥ 0.
        dtype: floating dtype; None takes JAX's default (float64 if x64 is enabled).
        W: classifier (K, d) to start with, and to stay fixed if the problem says so; None draws it.

    Raises:
        Refused: a W that does not fit the problem, on the sphere one with rows that are not of
            norm 1; a scale that is negative or not finite, or 0 on the sphere; no valid key; a
            dtype that is not floating; sizes beyond the available memory.
    """
    require(problem)
    if not check.traced(scale):
        scale = check.real("scale", scale, least=0)
        layers.check_scale(problem, scale)
    dtype = check.floating("dtype", dtype)
    check_memory(problem, dtype.itemsize)
    shapes = (problem.K, problem.d), (problem.d, problem.N)
    params = layers.of(problem).draw(_drawn(check.key(key), scale, shapes, dtype))
    if W is not None:
        params = params._replace(W=jnp.asarray(classifier(problem, W), dtype))
    layers.check_feasible(problem, params)
    return params


# Up to so many entries W and H are drawn in one array, which compiles in half the time. Entries of
# JAX's default generator depend on their position, not on the shape: the draws are the same.
_JOINT = 2**16


@partial(programs.once, level=1, static_argnames=("shapes", "dtype"))
def _drawn(key: Array, scale: Any, shapes: tuple, dtype: Any) -> Params:
    """A Gaussian point, drawn in one compiled program."""
    keys, sizes = jax.random.split(key), [math.prod(shape) for shape in shapes]
    if max(sizes) <= _JOINT:
        rows = jax.vmap(lambda one: jax.random.normal(one, (max(sizes),), dtype))(keys)
        normal = [
            row[:size].reshape(shape) for row, size, shape in zip(rows, sizes, shapes, strict=True)
        ]
    else:
        normal = [jax.random.normal(*x, dtype) for x in zip(keys, shapes, strict=True)]
    # Without it XLA multiplies the scale with factors of the draw, and the last digits differ.
    W, H = jax.lax.optimization_barrier(normal)
    return Params(scale * W, scale * H, jnp.zeros(shapes[0][0], dtype))


def check_memory(problem: Problem, itemsize: int, copies: int = 1, records: bool = False) -> None:
    """Refuse sizes whose params do not fit into memory, before any array is made.

    Args:
        problem: gives the sizes.
        itemsize: bytes of a number.
        copies: number of copies of all params that are in memory at a time.
        records: whether NC1–NC4 and the certificate are computed, from matrices K × K.

    Raises:
        Refused: naming the bytes.
    """
    K, d, N = problem.K, problem.d, problem.N
    times = f" {copies} times" if copies > 1 else ""
    grams = 3 * K**2 if records else 0  # WWᵀ, MᵀM and WM, at the least
    what = f", and three matrices {K} × {K}" if records else ""
    check.fits(
        f"K={K}, d={d}, N={N}: W (K, d), H (d, N) and b (K,) held{times}{what}",
        itemsize * (copies * (K * d + d * N + K) + grams),
        "Lower n, d or K (a balanced problem's critical points are those of n = 1 with λ_H → nλ_H)",
    )
