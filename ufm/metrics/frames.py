"""K vectors compared with frames: norms, angles, distances to a simplex and an orthogonal frame.

Vectors are rows of NumPy arrays, whose squares must not over- or underflow. K × K matrices are
computed in blocks of rows, so that memory is about that of the vectors, for K = 8,000 classes and
more. Where a normalisation would divide by zero, the zero matrix is not normalised.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Bytes of one block of a matrix, so that several blocks fit into the caches.
LIMIT = 2**22


def slices(count: int, width: int, least: int = 1) -> Iterator[slice]:
    """Blocks of neighbouring rows of a matrix (count, width) in float64, of at most `LIMIT` bytes.

    A block has at least `least` rows, for computations whose cost per block is that of many rows.
    """
    step = max(least, LIMIT // (8 * max(width, 1)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def ratio(numerator, denominator, floor: float = 0.0):
    """numerator/denominator; for denominator 0, 0 up to the floor of rounding and ∞ above it."""
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


class Gram(NamedTuple):
    """Statistics of the products ⟨x_j, x_k⟩ of K vectors.

    simplex: ‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F with G = (⟨x_j, x_k⟩).
    angle: mean of |cos + 1/(K−1)| over pairs j ≠ k. angle_std: standard deviation of their cosines.
    """

    simplex: float
    angle: float
    angle_std: float


def gram(rows: np.ndarray) -> Gram:
    """`Gram` of the rows (K, d), in one pass over blocks of their products."""
    K, sizes = len(rows), _sizes(rows)
    inverse = 1 / np.where(sizes > 0, sizes, 1)
    units = (rows * inverse[:, None]).sum(axis=0)
    count = K * (K - 1)
    mean = (units @ units - np.count_nonzero(sizes)) / count
    size = _gram_norm(rows)
    own, other = _simplex(K)
    totals = np.zeros(3)
    for part, rest, G in _upper(rows):
        cos = G * inverse[part, None] * inverse[None, rest]
        figures = (G / (size or 1.0) - other) ** 2, abs(cos + 1 / (K - 1)), (cos - mean) ** 2
        diagonal = (G.diagonal() / (size or 1.0) - own) ** 2, 0.0, 0.0
        for i, (entries, values) in enumerate(zip(figures, diagonal, strict=True)):
            totals[i] += _twice_beyond(entries, values)
    return Gram(float(np.sqrt(totals[0])), float(totals[1] / count),
                float(np.sqrt(totals[2] / count)))  # fmt: skip


def _upper(rows: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of rows of the Gram matrix, each with the columns from its diagonal on."""
    K = len(rows)
    for part in slices(K, K):
        rest = slice(part.start, K)
        yield part, rest, rows[part] @ rows[rest].T


def _twice_beyond(block: np.ndarray, diagonal) -> float:
    """Sum over a block of `_upper` with another diagonal; columns right of its square twice."""
    m = len(block)
    np.fill_diagonal(block, diagonal)
    return float(block[:, :m].sum() + 2 * block[:, m:].sum())


def _gram_norm(rows: np.ndarray) -> float:
    """‖AAᵀ‖_F = ‖AᵀA‖_F."""
    small = rows if len(rows) <= rows.shape[1] else rows.T
    return float(np.linalg.norm(small @ small.T))


def _simplex(K: int) -> tuple[float, float]:
    """The entries of (I − 11ᵀ/K)/√(K−1): on the diagonal, and elsewhere."""
    return (1 - 1 / K) / np.sqrt(K - 1), -1 / K / np.sqrt(K - 1)


def to_simplex(A: np.ndarray, B: np.ndarray) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for rows A, B (K, d)."""
    own, other = _simplex(len(A))
    return _distance(A, B, np.full(len(A), own), other)


def to_orthogonal(A: np.ndarray, B: np.ndarray) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − I/√K‖_F for rows A, B (K, d)."""
    return _distance(A, B, np.full(len(A), 1 / np.sqrt(len(A))), 0.0)


def to_general_orthogonal(A: np.ndarray) -> float:
    """min_D ‖AAᵀ/‖AAᵀ‖_F − D‖_F over diagonal D with ‖D‖_F = 1, for rows A (K, d)."""
    lengths = np.einsum("kd,kd->k", A, A)
    size = np.linalg.norm(lengths)
    # The nearest D has the direction of the diagonal; all are equally far from zero.
    nearest = lengths / size if size > 0 else np.full(len(A), 1 / np.sqrt(len(A)))
    return _distance(A, A, nearest, 0.0)


def _distance(A: np.ndarray, B: np.ndarray, own: np.ndarray, other: float) -> float:
    """‖ABᵀ/‖ABᵀ‖_F − T‖_F, where T has the diagonal `own` (K,) and all other entries `other`.

    In two passes, since 2 − 2⟨·, T⟩ would lose half of the digits where the distance is small.
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

    Two means count as equal where their distance is below the rounding of the subtraction, and
    variances up to the floor count as rounding.
    """
    K, total = len(M), 0.0
    squares = np.einsum("kd,kd->k", M, M)
    for part, rest, G in _upper(M):
        scale = squares[part, None] + squares[None, rest]
        apart = scale - 2 * G
        apart[apart <= 4 * np.finfo(M.dtype).eps * scale] = 0
        pairs = ratio((variances[part, None] + variances[None, rest]) / 2, apart, floor)
        total += _twice_beyond(pairs, 0.0)
    return float(total / (K * (K - 1)))


def axes(M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(V (d, r), s (r,), kept (r,)) of M = U diag(s) Vᵀ (K, d), whose K rows sum to zero.

    The rank is at most K−1: the last of K singular values would be rounding, and its inverse would
    make NC1 negative or huge. kept: which singular values exceed rounding.
    """
    K, d = M.shape
    R = np.linalg.qr(M, mode="r") if d < K else M
    _, s, Vt = np.linalg.svd(R, full_matrices=False)
    r = min(d, K - 1)
    s, V = s[:r], Vt[:r].T
    return V, s, s > np.finfo(M.dtype).eps * max(M.shape) * (s[0] if r else 0)
