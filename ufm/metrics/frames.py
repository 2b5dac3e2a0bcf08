"""K vectors held against frames: norms, angles, distances to a simplex, an orthogonal frame.

Vectors are rows, in NumPy, within range of their squares. K × K matrices are made a block of rows
at a time, so that memory stays near that of the vectors, for K = 8,000 classes and more. Where a
normalisation divides by zero the matrix itself stands for its direction: zero has no geometry.
"""

from collections.abc import Iterator

import numpy as np

# Bytes of one block of a matrix: beyond the caches, a small part of any memory.
LIMIT = 2**24


def slices(count: int, width: int) -> Iterator[slice]:
    """Neighbouring rows, of a matrix (count, width) in float64, that fit `LIMIT` together."""
    step = max(1, LIMIT // (8 * max(width, 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def ratio(numerator, denominator, floor: float = 0.0):
    """numerator/denominator; over zero it is 0 up to the floor of rounding, and ∞ above."""
    safe = np.where(denominator > 0, denominator, 1)
    with np.errstate(over="ignore"):
        above = np.where(numerator > floor, np.inf, 0.0)
        return np.where(denominator > 0, numerator / safe, above)


def equinorm(rows: np.ndarray) -> float:
    """Standard deviation of the norms over their mean; 0 if all are 0."""
    sizes = _sizes(rows)
    return float(ratio(np.std(sizes), np.mean(sizes)))


def directions(rows: np.ndarray) -> np.ndarray:
    """x/‖x‖ of each row, and 0 for x = 0."""
    sizes = _sizes(rows)[:, None]
    return rows / np.where(sizes > 0, sizes, 1)


def _sizes(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("kd,kd->k", rows, rows))


def cosines(rows: np.ndarray) -> tuple[float, float]:
    """(mean of |cos + 1/(K−1)|, standard deviation of cos), over the pairs of different rows."""
    K, units = len(rows), directions(rows)
    away, total = 0.0, 0.0
    for part in slices(K, K):
        cos = _without_own(units[part] @ units.T, part, 0.0)
        total += cos.sum()
        away += _without_own(abs(cos + 1 / (K - 1)), part, 0.0).sum()
    pairs = K * (K - 1)
    mean, squares = total / pairs, 0.0
    for part in slices(K, K):
        squares += (_without_own(units[part] @ units.T - mean, part, 0.0) ** 2).sum()
    return float(away / pairs), float(np.sqrt(squares / pairs))


def _without_own(block: np.ndarray, part: slice, value: float) -> np.ndarray:
    """A block of rows of a K × K matrix, its diagonal entries replaced."""
    block[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = value
    return block


def to_simplex(A: np.ndarray, B: np.ndarray) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for rows A, B (K, d)."""
    K = len(A)
    return _distance(A, B, np.full(K, (1 - 1 / K) / np.sqrt(K - 1)), -1 / K / np.sqrt(K - 1))


def to_orthogonal(A: np.ndarray, B: np.ndarray) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − I/√K‖_F for rows A, B (K, d)."""
    return _distance(A, B, np.full(len(A), 1 / np.sqrt(len(A))), 0.0)


def to_general_orthogonal(A: np.ndarray) -> float:
    """min_D ‖AAᵀ/‖AAᵀ‖_F − D‖_F over diagonal D with ‖D‖_F = 1, for rows A (K, d)."""
    lengths = np.einsum("kd,kd->k", A, A)
    size = np.linalg.norm(lengths)
    # The nearest has the direction of the diagonal itself; zero is as far from all.
    nearest = lengths / size if size > 0 else np.full(len(A), 1 / np.sqrt(len(A)))
    return _distance(A, A, nearest, 0.0)


def _distance(A: np.ndarray, B: np.ndarray, own: np.ndarray, other: float) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − T‖_F, T with the diagonal `own` (K,) and elsewhere the number `other`.

    In two sweeps: 2 − 2⟨·, T⟩ would lose half of the digits where the distance is small.
    """
    K = len(A)
    squares = sum(float(((A[part] @ B.T) ** 2).sum()) for part in slices(K, K))
    unit, total = 1 / np.sqrt(squares) if squares > 0 else 1.0, 0.0
    for part in slices(K, K):
        block = (A[part] @ B.T) * unit
        at = np.arange(part.stop - part.start), np.arange(part.start, part.stop)
        left = block[at] - own[part]
        block -= other
        block[at] = left
        total += float((block**2).sum())
    return float(np.sqrt(total))


def cdnv(M: np.ndarray, variances: np.ndarray, floor: float) -> float:
    """Mean over pairs j ≠ k of (v_j + v_k)/(2‖μ_j − μ_k‖²), for means M (K, d), variances (K,).

    Two means count as one where their distance is below the rounding of the subtraction; up to the
    floor a variance is rounding.
    """
    K, total = len(M), 0.0
    squares = np.einsum("kd,kd->k", M, M)
    for part in slices(K, K):
        scale = squares[part, None] + squares[None, :]
        apart = scale - 2 * (M[part] @ M.T)
        apart = np.where(apart > 4 * np.finfo(M.dtype).eps * scale, apart, 0)
        pairs = ratio((variances[part, None] + variances[None, :]) / 2, apart, floor)
        total += _without_own(pairs, part, 0.0).sum()
    return float(total / (K * (K - 1)))


def axes(M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(V (d, r), s (r,), kept (r,)) of M = U diag(s) Vᵀ (K, d), whose K rows sum to zero.

    So the rank is at most K−1: of K singular values the last is rounding, and to invert it makes
    NC1 negative or huge.
    """
    K, d = M.shape
    R = np.linalg.qr(M, mode="r") if d < K else M
    _, s, Vt = np.linalg.svd(R, full_matrices=False)
    r = min(d, K - 1)
    s, V = s[:r], Vt[:r].T
    return V, s, s > np.finfo(M.dtype).eps * max(M.shape) * (s[0] if r else 0)
