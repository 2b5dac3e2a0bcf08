"""Two reductions that make Hessians of any size small, and the exact spectrum they give.

Each is an orthogonal change of variables, so every eigenvalue stays in place:

* **Equal samples.** m samples of one class with equal features are one column of weight m in the
  coordinate √m h, and m−1 copies of the block λ_H I + WᵀS_jW/N (their differences).
* **Idle dimensions.** In each of the d − s directions orthogonal to the s-dimensional row space of
  [Wᵀ, H] what is left is [[λ_W I, Ĝ], [Ĝᵀ, λ_H I]], Ĝ = [√m_j g_j]: for every singular value g of
  Ĝ the eigenvalues (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + g²), and λ_W or λ_H for the rest.

The remaining core has K(s+1) + sM variables for M distinct columns: at a critical point with
λ_H > 0 all samples of a class are equal and W and H share their row space of dimension r < K, so
it is an eigenproblem of size 2Kr + K whatever d and n are.

Everything here is NumPy in float64 on the host, independent of JAX's configuration.
"""

from typing import NamedTuple

import numpy as np

from ufm.check import Refused, real
from ufm.hessian.stationarity import EPS, Stationarity, measured
from ufm.linalg import pair
from ufm.model.evaluation import Evaluated, Residuals, evaluate, residuals
from ufm.model.problem import Params, Problem
from ufm.theory.spectra import Spectrum, group

MATRIX_LIMIT = 2**31  # bytes of one square matrix: 16,384 rows
SAMPLE_BLOCK = 256


class Core(NamedTuple):
    """A point after merging equal samples and turning idle dimensions away, in NumPy float64.

    W (K, s), H (s, M), b (K,), P and G = (p − y)/N (K, M), weights (M,): samples merged in each
    column, which is their mean.
    rank: the first `rank` of the s dimensions hold the rows of W; the others see only H.
    frame: (d, s), orthonormal; W frameᵀ and frame H are the point itself.
    idle: d − s.  owner: column of every sample, (N,).
    """

    W: np.ndarray
    H: np.ndarray
    b: np.ndarray
    P: np.ndarray
    G: np.ndarray
    weights: np.ndarray
    rank: int
    frame: np.ndarray
    idle: int
    owner: np.ndarray
    N: int
    decays: tuple[float, float, float]
    bias: bool


def reduce(problem: Problem, point: Params, spread: float | None = None) -> Core:
    """Merge equal samples of each class and split off the idle dimensions.

    Args:
        problem: any problem, with scalar decays.
        point: any point, upcast to float64.
        spread: a class whose features differ by at most this much in every entry counts as
            equal and is replaced by its mean; None takes rounding, 64 ε max|H|.

    Raises:
        Refused: as `ufm.model.evaluation.evaluate`.
    """
    return reduced(residuals(problem, point), spread)


def reduced(at: Evaluated | Residuals, spread: float | None = None) -> Core:
    """`reduce` of a point that has been evaluated."""
    problem, (W, H, b) = at.problem, at.params
    spread = 64 * EPS * np.max(np.abs(H)) if spread is None else spread
    equal = [
        bool(np.max(np.abs(x - np.mean(x, axis=1, keepdims=True))) <= spread)
        for x in _by_class(problem, H)
    ]
    H, P, G = (_merged(problem, equal, x) for x in (H, at.P, at.G))
    owner, (frame, rank) = _owners(problem, equal), _frame(W, H)
    return Core(
        W=W @ frame,
        H=frame.T @ H,
        b=b,
        P=P,
        G=G,
        weights=np.bincount(owner).astype(np.float64),
        rank=rank,
        frame=frame,
        idle=problem.d - frame.shape[1],
        owner=owner,
        N=problem.N,
        decays=(float(problem.lam_W), float(problem.lam_H), float(problem.lam_b)),
        bias=problem.bias,
    )


def _by_class(problem: Problem, X: np.ndarray) -> list[np.ndarray]:
    """The columns of the samples, class by class."""
    return np.split(X, np.cumsum(problem.counts)[:-1], axis=1)


def _merged(problem: Problem, equal: list[bool], X: np.ndarray) -> np.ndarray:
    """The mean column of every class whose samples are equal, all columns of the others."""
    parts = zip(equal, _by_class(problem, X), strict=True)
    columns = [np.mean(x, axis=1, keepdims=True) if same else x for same, x in parts]
    return np.concatenate(columns, axis=1)


def _owners(problem: Problem, equal: list[bool]) -> np.ndarray:
    """The column that every sample has become a part of, (N,)."""
    own = [np.arange(1 if same else m) for same, m in zip(equal, problem.counts, strict=True)]
    starts = np.cumsum([0, *map(len, own)])
    return np.concatenate(
        [
            first + np.broadcast_to(columns, m)
            for first, columns, m in zip(starts[:-1], own, problem.counts, strict=True)
        ]
    )


def _frame(W: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, int]:
    """Orthonormal basis of the rows of W and the columns of H, those of W first; their number."""
    _, values, rows = np.linalg.svd(W, full_matrices=True)
    rank = int(np.sum(values > 32 * EPS * values[0]))
    rest = rows[rank:].T
    if rest.shape[1] and np.any(H):
        outer, sizes, _ = np.linalg.svd(rest.T @ H, full_matrices=False)
        rest = rest @ outer[:, sizes > 32 * EPS * np.linalg.norm(H, 2)]
    else:
        rest = rest[:, :0]
    return np.concatenate([rows[:rank].T, rest], axis=1), rank


def curvatures(P: np.ndarray) -> np.ndarray:
    """S_j = diag(p_j) − p_j p_jᵀ, (M, K, K), without cancellation: the row sums vanish."""
    S = -P.T[:, :, None] * P.T[:, None, :]
    classes = np.arange(P.shape[0])
    S[:, classes, classes] = 0
    S[:, classes, classes] = -S.sum(axis=2)
    return S


def feature_eigenvalues(core: Core, columns: np.ndarray) -> np.ndarray:
    """Eigenvalues of WᵀS_jW/N in the row space of W for some columns j, (len(columns), rank)."""
    W = core.W[:, : core.rank]
    found = [np.zeros((0, core.rank))]
    for start in range(0, len(columns), SAMPLE_BLOCK):
        S = curvatures(core.P[:, columns[start : start + SAMPLE_BLOCK]])
        found.append(np.linalg.eigvalsh(W.T @ (S @ W) / core.N))
    return np.maximum(np.concatenate(found), 0.0)


def outside(core: Core) -> tuple[np.ndarray, list[int]]:
    """Eigenvalues outside the core, with multiplicities: idle dimensions and merged samples."""
    lam_W, lam_H, _ = core.decays
    K, M = core.G.shape
    g = np.linalg.svd(core.G * np.sqrt(core.weights), compute_uv=False)
    lower, upper = pair.eigenvalues(np, lam_W, lam_H, g)
    copies = core.weights.astype(int) - 1
    merged = np.flatnonzero(copies)
    differences = lam_H + feature_eigenvalues(core, merged)
    values = np.concatenate([lower, upper, [lam_W, lam_H, lam_H], differences.ravel()])
    multiplicities = [core.idle] * (2 * len(g)) + [
        core.idle * max(K - M, 0),
        core.idle * max(M - K, 0),
        int(copies.sum()) * (core.W.shape[1] - core.rank + core.idle),
        *np.repeat(copies[merged], core.rank).tolist(),
    ]
    return values, multiplicities


def lifted(core: Core) -> np.ndarray:
    """h̃_j = (h_j, 1), or h_j without a bias, (M, s+1)."""
    return np.vstack([core.H, np.ones((int(core.bias), core.H.shape[1]))]).T


def decay_diagonal(core: Core, width: int) -> np.ndarray:
    """Decay of (W, b) in the order (class, dimension), the bias last within its class."""
    lam_W, _, lam_b = core.decays
    diagonal = np.full((core.W.shape[0], width), lam_W)
    if core.bias:
        diagonal[:, -1] = lam_b
    return diagonal.ravel()


def core_matrix(core: Core) -> np.ndarray:
    """∇²f on the core, in the order (W, b) by class, then √m_j h_j column by column."""
    (K, s), M = core.W.shape, core.H.shape[1]
    features, root = lifted(core), np.sqrt(core.weights)
    width = features.shape[1]
    S = curvatures(core.P) / core.N
    B = S @ core.W
    weighted = S * core.weights[:, None, None]
    own = np.einsum("jkl,ja,jb->kalb", weighted, features, features, optimize=True)
    coupling = np.einsum("j,ja,jkc->kajc", root, features, B, optimize=True)
    for a in range(s):
        coupling[:, a, :, a] += core.G * root
    size = K * width
    matrix = np.zeros((size + M * s, size + M * s))
    matrix[:size, :size] = own.reshape(size, size) + np.diag(decay_diagonal(core, width))
    matrix[:size, size:] = coupling.reshape(size, M * s)
    matrix[size:, :size] = matrix[:size, size:].T
    for j, block in enumerate(core.W.T @ B + core.decays[1] * np.eye(s)):
        at = slice(size + j * s, size + (j + 1) * s)
        matrix[at, at] = block
    return matrix


def check_memory(size: int, what: str, core: Core) -> None:
    """Refuse a square matrix of more than 2 GiB.

    Raises:
        Refused: with its size, and what to use in its place.
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

    Beside the origin, closer than anything f can tell, it is that of the origin
    (`stationarity.settled`).

    Raises:
        Refused: if the point is not critical (see `ufm.hessian.stationarity`), or its classes have
            not collapsed (possible at a critical point only if λ_H = 0).
    """
    return collapsed(measured(evaluate(problem, point)))


def collapsed(found: Stationarity) -> Core:
    """`critical_core` of a point that has been measured."""
    if not found.critical:
        raise Refused(
            f"got a point with {found.told()}. Polish it with ufm.solve(problem, point), or use "
            "hessian.inertia, which counts at any point"
        )
    # At a critical point λ_H (h_i − mean) is bounded by the residual.
    problem, lam_H = found.at.problem, float(found.at.problem.lam_H)
    spread = 4 * found.residual / lam_H if lam_H > 0 else 0.0
    core = reduced(found.at, max(spread, 64 * EPS * float(np.max(np.abs(found.at.params.H)))))
    if len(core.weights) != problem.K:
        raise Refused(
            f"got a point with {len(core.weights)} distinct feature columns for K={problem.K} "
            "classes: the reduction needs collapsed classes, which criticality implies only for "
            f"lam_H > 0 (lam_H={lam_H})"
        )
    return core


def spectrum(problem: Problem, point: Params, tolerance: float | None = None) -> Spectrum:
    """All eigenvalues of ∇²f at a critical point with their multiplicities, whatever d and n.

    An eigenproblem of size 2Kr + K (r the rank of W) on the core, and closed forms for the rest:
    λ_H + eig(WᵀS_kW/N) n_k − 1 times for each class, and for every singular value g of
    Ĝ = [√n_k g_k] the pair (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + g²), d − r times. Holds for unequal
    counts too.

    Args:
        problem: any class counts, with scalar decays.
        point: a critical point, in float64.
        tolerance: eigenvalues at most this far apart count as one; None takes 1e-11 ‖∇²f‖, and 0
            leaves every computed eigenvalue by itself.

    Returns:
        A `Spectrum`; multiplicities add up to `problem.size`. `inertia_of` reads off the index.

    Raises:
        Refused: a point that is not critical, or a core beyond 2 GiB; wrong shapes or entries
            that are not finite;
            arrays that are not real floating, array-valued decays, traced values.
    """
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, least=0, also="or None")
    core = critical_core(problem, point)
    K, s = core.W.shape
    check_memory(K * (2 * s + core.bias), "core Hessian", core)
    inner = np.linalg.eigvalsh(core_matrix(core))
    values, multiplicities = outside(core)
    values = np.concatenate([inner, values])
    if tolerance is None:
        tolerance = 1e-11 * float(np.max(np.abs(values)))
    return group(values, [1] * len(inner) + multiplicities, tolerance)
