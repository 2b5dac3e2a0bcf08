"""Two reductions that make Hessians of any size small, and the exact spectrum they give.

Each is an orthogonal change of variables, which leaves all eigenvalues as they are:

* **Equal samples.** m samples of one class with equal features become one column in the coordinate
  √m h, and m−1 copies of the block λ_j I + w_j WᵀS_jW for their differences, with w_j the weight of
  one of them in the loss and λ_j = λ_H ω_j its decay.
* **Idle dimensions.** In each of the d − s directions orthogonal to the s-dimensional row space of
  [Wᵀ, H] the Hessian is [[λ_W I, Ĝ], [Ĝᵀ, diag λ_j]], Ĝ = [√m_j g_j]. Where all λ_j are λ_H, its
  eigenvalues are (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + g²) for every singular value g of Ĝ, and λ_W or
  λ_H for the rest.

The remaining core has K(s+1) + sM variables for M distinct columns. At a critical point with
λ_H > 0 all samples of a class are equal, and W and H have the same row space of dimension r < K: it
is then an eigenproblem of size 2Kr + K whatever d and n are.

Everything here is NumPy in float64 on the host, independent of JAX's configuration.
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import scipy.linalg

from ufm.check import Refused, real
from ufm.hessian import tangents
from ufm.hessian.stationarity import EPS, Stationarity, measured
from ufm.linalg import pair
from ufm.losses.loss import Curvature
from ufm.model import layers
from ufm.model.evaluation import Evaluated, Residuals, evaluate, residuals
from ufm.model.fixed import require_free
from ufm.model.problem import Params, Problem, require
from ufm.theory.spectra import Spectrum, group

MATRIX_LIMIT = 2**31  # bytes of one square matrix: 16,384 rows
SAMPLE_BLOCK = 256


class Core(NamedTuple):
    """A point with equal samples merged and idle dimensions removed, in NumPy float64.

    W (K, s), H (s, M), b (K,); S: Hessians of the loss in the logits of the M columns.
    G: (K, M), w_j ∇ℓ of one sample of each column.
    merged: (M,), how many samples each column, their mean, stands for.
    weight, decay: (M,), w_j and λ_j of one of these samples.
    rank: the rows of W lie in the first `rank` of the s dimensions; W is 0 in the others.
    frame: (d, s), orthonormal; W frameᵀ and frame H are the point itself.
    idle: d − s.
    decays: λ_W, λ_H, λ_b.  bias: whether the model has one.
    convex: whether ℓ is convex.  smoothness: a bound on ‖S_j‖₂.
    """

    W: np.ndarray
    H: np.ndarray
    b: np.ndarray
    S: Curvature
    G: np.ndarray
    merged: np.ndarray
    weight: np.ndarray
    decay: np.ndarray
    rank: int
    frame: np.ndarray
    idle: int
    decays: tuple[float, float, float]
    bias: bool
    convex: bool
    smoothness: float

    @property
    def owner(self) -> np.ndarray:
        """The column that stands for each sample, (N,)."""
        return np.repeat(np.arange(len(self.merged)), self.merged)

    @property
    def pairing(self) -> np.ndarray:
        """Ĝ = [√m_j g_j], (K, M)."""
        return self.G * np.sqrt(self.merged)

    @property
    def ratio(self) -> float:
        """‖GΩ^-½‖₂ of all samples; for convex ℓ critical points where it is ≤ μ are global."""
        lam_H = self.decays[1]
        scale = np.sqrt(lam_H / self.decay) if lam_H > 0 else 1.0
        return float(np.linalg.norm(self.pairing * scale, 2))


def reduce(problem: Problem, point: Params, spread: float | None = None) -> Core:
    """Merge equal samples of each class and split off the idle dimensions.

    Args:
        problem: any problem, with scalar decays.
        point: any point, upcast to float64.
        spread: features of a class that differ from their mean by at most this much in every entry
            count as equal and are replaced by the mean; None takes rounding, 64 ε max|H|.

    Raises:
        Refused: as `ufm.model.evaluation.evaluate`; features that are not free, a fixed classifier.
    """
    layers.require_free(problem, "hessian.reduction")
    return reduced(residuals(problem, point), spread)


def reduced(at: Evaluated | Residuals, spread: float | None = None) -> Core:
    """`reduce` of a point that has been evaluated."""
    require_free(at.problem)
    H = at.params.H
    spread = 64 * EPS * np.max(np.abs(H)) if spread is None else spread
    core = gathered(at, [_spread(x) <= spread for x in by_class(at.problem, H)])
    frame, rank = _frame(core.W, core.H)
    idle = at.problem.d - frame.shape[1]
    turned = core._replace(W=core.W @ frame, H=frame.T @ core.H)
    return turned._replace(rank=rank, frame=frame, idle=idle)


def _spread(x: np.ndarray) -> float:
    """The largest difference of an entry from the mean of its row."""
    return float(np.max(np.abs(x - np.mean(x, axis=1, keepdims=True))))


def gathered(at: Evaluated | Residuals, equal: list[bool]) -> Core:
    """The core of a point in its own coordinates, without idle dimensions removed.

    Args:
        at: the point.
        equal: for each class, whether its samples are merged.
    """
    problem, (W, H, b) = at.problem, at.params
    merge = partial(_merged, problem, equal)
    S = jax.tree.map(merge, at.S)
    each = zip(equal, problem.counts, strict=True)
    merged = np.concatenate([[m] if same else np.ones(m, int) for same, m in each])
    counts = np.where(equal, 1, problem.counts)  # columns of each class
    return Core(
        W=W,
        H=merge(H),
        b=b,
        S=S,
        G=merge(at.G),
        merged=merged,
        weight=np.repeat(problem.class_weights, counts),
        decay=np.repeat(problem.class_decays, counts),
        rank=problem.d,
        frame=np.eye(problem.d),
        idle=0,
        decays=(float(problem.lam_W), float(problem.lam_H), float(problem.lam_b)),
        bias=problem.bias,
        convex=problem.loss.convex,
        smoothness=_smoothness(problem, S),
    )


def _smoothness(problem: Problem, S: Curvature) -> float:
    """sup‖S‖ of the loss; where no bound is known, a bound on the S at hand."""
    bound = float(problem.loss.smoothness(problem.targets))
    return bound if np.isfinite(bound) else float(np.max(np.abs(S.matrices()).sum(axis=2)))


def spread_out(problem: Problem, core: Core) -> Core:
    """The core of a problem at a collapsed point, from the core of its class means.

    Args:
        problem: any counts; no array of size N is allocated.
        core: of a point of `ufm.model.quotient.of_width(problem, problem.d)`, whose column k stands
            for the n_k samples of class k.
    """
    return core._replace(
        G=core.G / problem.counts,
        merged=problem.counts,
        weight=problem.class_weights,
        decay=problem.class_decays,
        decays=(float(problem.lam_W), float(problem.lam_H), float(problem.lam_b)),
    )


def by_class(problem: Problem, X: np.ndarray) -> list[np.ndarray]:
    """The columns of X, one a sample, as one array a class."""
    return np.split(X, np.cumsum(problem.counts)[:-1], axis=-1)


def _merged(problem: Problem, equal: list[bool], X: np.ndarray) -> np.ndarray:
    """The mean column of every class whose samples are equal, all columns of the others."""
    parts = zip(equal, by_class(problem, X), strict=True)
    columns = [np.mean(x, axis=-1, keepdims=True) if same else x for same, x in parts]
    return np.concatenate(columns, axis=-1)


def _frame(W: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, int]:
    """(orthonormal basis of the rows of W and the columns of H, those of W first, rank of W)."""
    _, values, rows = np.linalg.svd(W, full_matrices=True)
    rank = int(np.sum(values > 32 * EPS * values[0]))
    rest = rows[rank:].T
    if rest.shape[1] and np.any(H):
        outer, sizes, _ = np.linalg.svd(rest.T @ H, full_matrices=False)
        rest = rest @ outer[:, sizes > 32 * EPS * np.linalg.norm(H, 2)]
    else:
        rest = rest[:, :0]
    return np.concatenate([rows[:rank].T, rest], axis=1), rank


def feature_eigenvalues(core: Core, columns: np.ndarray) -> np.ndarray:
    """Eigenvalues of w_j WᵀS_jW in the row space of W for the given columns, (columns, rank)."""
    W = core.W[:, : core.rank]
    found = [np.zeros((0, core.rank))]
    for start in range(0, len(columns), SAMPLE_BLOCK):
        block = columns[start : start + SAMPLE_BLOCK]
        S = core.S.columns(block).matrices() * core.weight[block, None, None]
        found.append(np.linalg.eigvalsh(W.T @ (S @ W)))
    values = np.concatenate(found)
    return np.maximum(values, 0.0) if core.convex else values


def free(core: Core) -> tuple[np.ndarray, list[int]]:
    """Eigenvalues of one idle dimension, [[λ_W I, Ĝ], [Ĝᵀ, diag λ_j]], with multiplicities."""
    lam_W, (K, M) = core.decays[0], core.G.shape
    if not same_decay(core):
        values = np.linalg.eigvalsh(free_matrix(core))
        return values, [1] * len(values)
    g = np.linalg.svd(core.pairing, compute_uv=False)
    lower, upper = pair.eigenvalues(np, lam_W, float(core.decay[0]), g)
    values = np.concatenate([lower, upper, [lam_W, float(core.decay[0])]])
    return values, [1] * (2 * len(g)) + [max(K - M, 0), max(M - K, 0)]


def same_decay(core: Core) -> bool:
    """Whether all features have one decay λ_j."""
    return bool(np.all(core.decay == core.decay[0]))


def free_matrix(core: Core) -> np.ndarray:
    """∇²f on one idle dimension, (K+M, K+M): W first, then H in the coordinates √m_j h_j."""
    K = len(core.G)
    matrix = np.diag(np.concatenate([np.full(K, core.decays[0]), core.decay]))
    matrix[:K, K:] = core.pairing
    matrix[K:, :K] = core.pairing.T
    return matrix


def free_direction(core: Core) -> tuple[np.ndarray, np.ndarray, float]:
    """(x, y, λ): the lowest eigenvector of ∇²f on an idle dimension and its eigenvalue.

    x (K,) is its part in W, y (M,) its part in H in the coordinates √m_j h_j.
    """
    lam_W, lam_H = core.decays[0], float(core.decay[0])
    if not same_decay(core):
        values, vectors = scipy.linalg.eigh(free_matrix(core), subset_by_index=[0, 0])
        x, y = np.split(vectors[:, 0], [len(core.G)])
        return x, y, float(values[0])
    U, g, Vt = np.linalg.svd(core.pairing, full_matrices=False)
    alpha, gamma = pair.lower_axis(lam_W, lam_H, -g[0])
    return alpha * U[:, 0], -gamma * Vt[0], float(pair.eigenvalues(np, lam_W, lam_H, g[0])[0])


def outside(core: Core) -> tuple[np.ndarray, list[int]]:
    """Eigenvalues outside the core, with multiplicities: idle dimensions and merged samples."""
    values, multiplicities = free(core)
    copies = core.merged - 1
    merged = np.flatnonzero(copies)
    differences = core.decay[merged, None] + feature_eigenvalues(core, merged)
    values = np.concatenate([values, core.decay, differences.ravel()])
    beside = core.W.shape[1] - core.rank + core.idle
    multiplicities = [core.idle * m for m in multiplicities] + [
        *(int(m) * beside for m in copies),
        *np.repeat(copies[merged], core.rank).tolist(),
    ]
    return values, multiplicities


def lifted(core: Core) -> np.ndarray:
    """h̃_j = (h_j, 1), or h_j without a bias, (M, s+1)."""
    return np.vstack([core.H, np.ones((int(core.bias), core.H.shape[1]))]).T


def decay_diagonal(core: Core, width: int) -> np.ndarray:
    """The decay of every variable of (W, b), class by class, with the bias last in its class."""
    lam_W, _, lam_b = core.decays
    diagonal = np.full((core.W.shape[0], width), lam_W)
    if core.bias:
        diagonal[:, -1] = lam_b
    return diagonal.ravel()


def core_matrix(core: Core) -> np.ndarray:
    """∇²f on the core: (W, b) class by class, then √m_j h_j column by column; K(s+1) + sM rows."""
    (K, s), M = core.W.shape, core.H.shape[1]
    features, root = lifted(core), np.sqrt(core.merged)
    width = features.shape[1]
    S = core.S.matrices() * core.weight[:, None, None]
    B = S @ core.W
    weighted = S * core.merged[:, None, None]
    own = np.einsum("jkl,ja,jb->kalb", weighted, features, features, optimize=True)
    coupling = np.einsum("j,ja,jkc->kajc", root, features, B, optimize=True)
    for a in range(s):
        coupling[:, a, :, a] += core.pairing
    size = K * width
    matrix = np.zeros((size + M * s, size + M * s))
    matrix[:size, :size] = own.reshape(size, size) + np.diag(decay_diagonal(core, width))
    matrix[:size, size:] = coupling.reshape(size, M * s)
    matrix[size:, :size] = matrix[:size, size:].T
    for j, block in enumerate(core.W.T @ B + core.decay[:, None, None] * np.eye(s)):
        at = slice(size + j * s, size + (j + 1) * s)
        matrix[at, at] = block
    return matrix


def check_memory(size: int, what: str, core: Core) -> None:
    """Refuse a square matrix of more than 2 GiB.

    Raises:
        Refused: with its size and the functions to use instead.
    """
    if 8 * size**2 > MATRIX_LIMIT:
        raise Refused(
            f"got a {what} of {size} rows ({8 * size**2 / 2**30:.1f} GiB) from K={len(core.W)} "
            f"classes in {core.W.shape[1]} dimensions; allowed are {MATRIX_LIMIT / 2**30:.0f} "
            "GiB. Use hessian.extreme for the smallest eigenvalue, or verdict.witness for an "
            "explicit direction of negative curvature"
        )


def critical_core(problem: Problem, point: Params) -> Core:
    """The core of a critical point, every class merged into its mean.

    A point within rounding of the origin has the core of the origin (`stationarity.settled`).

    Raises:
        Refused: a point that is not critical (see `ufm.hessian.stationarity`), or whose classes
            have not collapsed (possible at a critical point only if λ_H = 0); as `evaluate`.
    """
    require_free(problem)
    return collapsed(measured(evaluate(problem, point)))


def collapsed(found: Stationarity) -> Core:
    """`critical_core` of a point that has been measured."""
    if not found.critical:
        raise Refused(
            f"got a point with {found.told()}. Polish it with ufm.solve(problem, point), or use "
            "hessian.inertia, which counts at any point"
        )
    # At a critical point λ_H ω (h_i − mean) is bounded by the residual.
    problem = found.at.problem
    lam_H = float(np.min(problem.class_decays))
    spread = 4 * found.residual / lam_H if lam_H > 0 else 0.0
    core = reduced(found.at, max(spread, 64 * EPS * float(np.max(np.abs(found.at.params.H)))))
    # Features of a class are equal because ℓ + decay is strictly convex in each of them.
    if len(core.merged) != problem.groups and problem.loss.convex:
        raise Refused(
            f"got a point with {len(core.merged)} distinct feature columns for {problem.groups} "
            "classes: the reduction needs collapsed classes, which criticality implies only for "
            f"lam_H > 0 (lam_H={lam_H})"
        )
    return core


def spectrum(problem: Problem, point: Params, tolerance: float | None = None) -> Spectrum:
    """All eigenvalues of ∇²f at a critical point with their multiplicities, whatever d and n.

    An eigenproblem of size 2Kr + K (r the rank of W) on the core, and closed forms for the rest:
    λ_H ω_k + eig(w_k WᵀS_kW), n_k − 1 times for each class, and for every singular value g of
    Ĝ = [√n_k g_k] the pair (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + g²), d − r times (with weights in the
    decay, the eigenvalues of [[λ_W I, Ĝ], [Ĝᵀ, λ_H Ω]]). The counts may be unequal.

    On the sphere: those of the Hessian in tangents, at any point (`ufm.hessian.tangents`).

    Args:
        problem: any class counts, with scalar decays.
        point: a critical point, in float64.
        tolerance: eigenvalues at most this far apart count as one; None takes 1e-11 ‖∇²f‖, and 0
            keeps all computed eigenvalues apart.

    Returns:
        A `Spectrum`; multiplicities add up to `problem.size`. `inertia_of` reads off the index.

    Raises:
        Refused: a point that is not critical, or a core beyond 2 GiB; wrong shapes or entries
            that are not finite; arrays that are not real floating, array-valued decays, traced
            values; features that are not free, other than on the sphere, or a fixed classifier.
    """
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, least=0, also="or None")
    require(problem)
    if problem.features == "sphere":
        return tangents.spectrum(problem, point, tolerance)
    layers.require_free(problem, "hessian.spectrum")
    return spectrum_of(critical_core(problem, point), tolerance)


def spectrum_of(core: Core, tolerance: float | None = None) -> Spectrum:
    """`spectrum` of a critical point that has been reduced to its core."""
    K, s = core.W.shape
    check_memory(K * (2 * s + core.bias), "core Hessian", core)
    inner = np.linalg.eigvalsh(core_matrix(core))
    values, multiplicities = outside(core)
    values = np.concatenate([inner, values])
    if tolerance is None:
        tolerance = 1e-11 * float(np.max(np.abs(values)))
    return group(values, [1] * len(inner) + multiplicities, tolerance)
