"""The second derivative of f over unit vectors, in orthonormal frames of tangents.

    Hess f = Fᵀ ∇²f F + diag(u_1, …, u_K, v_1, …, v_N) ⊗ I,

with F the frames of tangents at the rows of W and the columns of H, and u, v the multipliers of
their norms (`ufm.model.sphere`): the second derivative of f along great circles, at any point.
Where the samples of every class are equal, Hess f splits. One part has a single feature a class, in
the coordinate √n_k times its length. The other part has the differences within the classes, which
involve only the features of that class: n_k − 1 copies of the block of a feature.

**Symmetries.** f(W Qᵀ, Q H) = f(W, H) for every rotation Q. The tangents (−W A, A H), with A
antisymmetric, are in the null space of Hess f at critical points; r(r−1)/2 + r(d−r) of them are
linearly independent, with r the rank of [Wᵀ, H].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.check import Refused
from ufm.hessian import curvature
from ufm.model import objective as terms
from ufm.model import sphere
from ufm.model.evaluation import Evaluated, evaluate
from ufm.model.problem import Params, Problem
from ufm.theory.spectra import Spectrum, group

MOST = 2500  # tangents of rows and features, samples of a class merged, whose matrix is computed
_SAME = 1e-9  # distance up to which the features of a class are equal
_RANK = 1e-8  # of singular values, of the largest


class Tangents(NamedTuple):
    """Hess f at a point.

    matrix: in the frames of the rows of W and of the features, one feature a class where the
        samples of every class are equal.
    within: eigenvalues of the differences within the classes.  times: how often each occurs.
    turns: orthonormal rows, the tangents of the rotations, in the coordinates of the matrix.
    """

    matrix: Float[np.ndarray, "m m"]
    within: np.ndarray
    times: tuple[int, ...]
    turns: Float[np.ndarray, "orbit m"]


def matrix(
    problem: Problem, params: Params, rows: Array, columns: Array, G: Array
) -> Float[Array, "m m"]:
    """Hess f in the frames of rows and columns, (K+N)(d−1) tangents. Traceable.

    Args:
        problem, params: a point of unit vectors.
        rows, columns: `sphere.frames` of W and of Hᵀ.
        G: the gradient of the data term in the logits.
    """
    K, d, N = problem.K, problem.d, problem.N
    whole = curvature.matrix(problem, params)
    first = whole[:, : K * d].reshape(-1, K, d)
    second = whole[:, K * d :].reshape(-1, d, N)
    half = jax.vmap(lambda W, H: sphere.in_frames(W, H, rows, columns))(first, second).T
    first, second = half[:, : K * d].reshape(-1, K, d), half[:, K * d :].reshape(-1, d, N)
    inner = jax.vmap(lambda W, H: sphere.in_frames(W, H, rows, columns))(first, second)
    u, v = sphere.multipliers(params.W, params.H, G)
    inner = inner + jnp.diag(jnp.repeat(jnp.concatenate([u, v]), d - 1))
    return (inner + inner.T) / 2


@jax.jit
def _matrix(problem: Problem, params: Params) -> tuple[Array, Array, Array]:
    rows, columns = sphere.frames(params.W), sphere.frames(params.H.T)
    G = terms.data_gradient(problem, params)
    return matrix(problem, params, rows, columns, G), rows, columns


def size(problem: Problem) -> int:
    """The number of tangents (K + groups)(d − 1) of rows and features, one feature a class."""
    return (problem.K + problem.groups) * (problem.d - 1)


def _equal(at: Evaluated) -> Evaluated | None:
    """The point with one feature a class, where the features of every class are equal."""
    problem, (W, H, b) = at.problem, at.params
    starts = np.concatenate([[0], np.cumsum(problem.counts)[:-1]])
    first = H[:, starts]
    if problem.groups < problem.N:
        if np.max(np.linalg.norm(H - first[:, problem.labels], axis=0)) > _SAME:
            return None
        sums = np.add.reduceat(H, starts, axis=1)
        first = sums / np.linalg.norm(sums, axis=0)
    return evaluate(sphere.merged(problem), Params(W, first, b))


def tangents(at: Evaluated) -> Tangents:
    """Hess f at a point that has been evaluated.

    Args:
        at: a point of unit vectors.

    Raises:
        Refused: more than 2500 tangents.
    """
    merged = _equal(at)
    counts = np.ones(at.problem.N, int) if merged is None else at.problem.counts
    small = at if merged is None else merged
    problem, (W, H, _) = small.problem, small.params
    d = problem.d
    count = (problem.K + problem.N) * (d - 1)
    if count > MOST:
        apart = ", whose features differ within a class" if merged is None else ""
        raise Refused(
            f"got a point of {count} tangents of unit vectors{apart}; allowed: {MOST}, whose "
            "Hessian is computed. Lower K or d, or take a point whose classes have one feature each"
        )
    with jax.enable_x64(True):
        point = jax.tree.map(jnp.asarray, small.params)
        found, rows, columns = map(np.asarray, _matrix(problem, point))
    length = np.repeat(np.concatenate([np.ones(problem.K), 1 / np.sqrt(counts)]), d - 1)
    found = found * length * length[:, None]
    first = problem.K * (d - 1)
    blocks = [found[i : i + d - 1, i : i + d - 1] for i in range(first, count, d - 1)]
    within = np.linalg.eigvalsh(np.array(blocks)).ravel()
    times = np.repeat(counts - 1, d - 1)
    turns = _turns(W, H, rows, columns) / length
    return Tangents(found, within[times > 0], tuple(int(x) for x in times[times > 0]), _span(turns))


def _turns(W: np.ndarray, H: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(−W A, A H) in the frames, a row for each A = e_i e_jᵀ − e_j e_iᵀ, i < j."""
    i, j = np.triu_indices(W.shape[1], 1)
    first = rows[:, :, i] * W[:, None, j] - rows[:, :, j] * W[:, None, i]
    second = columns[:, :, i] * H.T[:, None, j] - columns[:, :, j] * H.T[:, None, i]
    return np.concatenate([x.reshape(-1, len(i)) for x in (first, second)]).T


def _span(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of rows, as rows."""
    _, s, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[s > _RANK * np.max(s, initial=0.0)]


def spectrum(problem: Problem, point: Params, tolerance: float | None = None) -> Spectrum:
    """The eigenvalues of Hess f with their multiplicities, (K+N)(d−1) in all, at any point.

    Args:
        problem: with features="sphere".
        point: any point of it.
        tolerance: eigenvalues at most this far apart count as one; None takes 1e-11 times the
            largest modulus.

    Raises:
        Refused: as `tangents` and `evaluate`.
    """
    found = tangents(evaluate(problem, point))
    inner = np.linalg.eigvalsh(found.matrix)
    values = np.concatenate([inner, found.within])
    if tolerance is None:
        tolerance = 1e-11 * float(np.max(np.abs(values)))
    return group(values, [1] * len(inner) + list(found.times), tolerance)
