"""Counts, means and scatter of classes for samples that come in batches, in one pass.

A batch with counts m_k, means c_k and scatter S_B is added to n_k samples with means μ_k by

    μ_k ← μ_k + m_k/(n_k + m_k) δ_k,    S ← S + S_B + Σ_k n_k m_k/(n_k + m_k) δ_k δ_kᵀ,

δ_k = c_k − μ_k: sums of squares only, so nothing cancels (Chan, Golub and LeVeque 1983, "Algorithms
for computing the sample variance"; Welford 1962 for single samples). δ_k itself would be a
difference of rounded means; therefore means are stored relative to the first sample of their class
in float32, so that collapsed features far from the origin lose no digits. Memory: K·d numbers for
the means, half as much for these samples and d² for the scatter, if wanted. All is in float64, in
units of a power of two that follows the largest entry so far, so that no square over- or
underflows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas

from ufm.linalg import scaling
from ufm.metrics.frames import slices


@dataclass
class Moments:
    """Moments of the samples so far, all of h/scale; `absorb` changes them in place.

    counts (K,): samples of each class. points (K, d) in float32 and offsets (K, d): μ_k = points +
    offsets, 0 for a class without samples. squares (K,): Σ‖h − μ_k‖². scatter (d, d), or None: the
    upper triangle of Σ_i (h − μ)(h − μ)ᵀ. scale: a power of two; 0 while every entry was 0.
    """

    counts: np.ndarray
    points: np.ndarray
    offsets: np.ndarray
    squares: np.ndarray
    scatter: np.ndarray | None
    scale: float = 0.0

    @property
    def unit(self) -> float:
        """The divisor of features: `scale`, or 1 where that is 0."""
        return self.scale or 1.0

    @property
    def N(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @property
    def means(self) -> np.ndarray:
        """μ_k of h/scale, (K, d)."""
        return self.points + self.offsets

    def total(self) -> float:
        """Σ‖h/scale‖² of all samples."""
        means = self.means
        sizes = np.einsum("kd,kd->k", means, means)
        return float(self.squares.sum() + self.counts @ sizes)


def empty(K: int, d: int, scatter: bool) -> Moments:
    """The moments of no samples."""
    S = np.zeros((d, d), order="F") if scatter else None
    points, offsets = np.zeros((K, d), np.float32), np.zeros((K, d))
    return Moments(np.zeros(K, np.int64), points, offsets, np.zeros(K), S)


def absorb(moments: Moments, X: np.ndarray, rows: np.ndarray) -> None:
    """Add a batch: X (m, d) finite, of any real dtype; rows (m,) the classes."""
    # The scatter has the size of d samples, and every block reads and writes it.
    least = 1 if moments.scatter is None else X.shape[1]
    for part in slices(len(X), X.shape[1], least):
        _absorb(moments, *sorted_block(X[part], rows[part]))


def sorted_block(X: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A block in float64 with the samples of each class together, and their classes."""
    order = np.argsort(rows, kind="stable")
    return X[order].astype(np.float64, copy=False), rows[order]


def grouped(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(classes, where each begins, counts) of rows that are sorted."""
    return np.unique(rows, return_index=True, return_counts=True)


def rescale(moments: Moments, X: np.ndarray) -> np.ndarray:
    """X/scale, exactly, after the scale has been raised to that of X if this is larger."""
    top = binade(X)
    if top > moments.scale:
        shrink = moments.scale / top
        means = moments.means * shrink
        # Points that become subnormal are rounded; the offsets compensate for it.
        moments.points[:] = moments.points * shrink
        moments.offsets[:] = means - moments.points
        moments.squares *= shrink**2
        if moments.scatter is not None:
            moments.scatter *= shrink**2
        moments.scale = top
    return X * (1 / moments.unit)


def binade(X: np.ndarray) -> float:
    """The power of two just below max|X|; 2^-1023 for subnormal numbers, 0 for zeros."""
    top = float(np.max(abs(X), initial=0))
    tiny = float(np.finfo(np.float64).tiny)
    return float(scaling.binade(np, X)) if top >= tiny else (tiny / 2 if top else 0.0)


def _absorb(moments: Moments, X: np.ndarray, rows: np.ndarray) -> None:
    X = rescale(moments, X)
    classes, starts, counts = grouped(rows)
    before = moments.counts[classes]
    moments.points[classes[before == 0]] = X[starts[before == 0]]
    X -= np.repeat(moments.points[classes], counts, axis=0)
    centres = np.add.reduceat(X, starts, axis=0) / counts[:, None]
    X -= np.repeat(centres, counts, axis=0)
    own = np.add.reduceat(np.einsum("id,id->i", X, X), starts)
    share = counts / (before + counts)
    shift = centres - moments.offsets[classes]
    weights = before * share
    moments.counts[classes] += counts
    moments.offsets[classes] += shift * share[:, None]
    moments.squares[classes] += own + weights * np.einsum("kd,kd->k", shift, shift)
    if moments.scatter is not None:
        add_squares(moments.scatter, X)
        if weights.any():
            add_squares(moments.scatter, shift * np.sqrt(weights)[:, None])


def add_squares(S: np.ndarray, A: np.ndarray) -> None:
    """S += AᵀA in place, the upper triangle: S (d, d) in Fortran order, A (m, d) in C order."""
    blas.dsyrk(1.0, A.T, beta=1.0, c=S, overwrite_c=1)


def along(S: np.ndarray, V: np.ndarray) -> np.ndarray:
    """vᵀSv of every column of V (d, r), for S (d, d) as its upper triangle."""
    return np.einsum("dr,dr->r", V, blas.dsymm(1.0, S, np.asfortranarray(V)))


def columns(H: np.ndarray, kept: np.ndarray | None, width: int) -> Iterator[np.ndarray]:
    """Blocks (m, d) of the columns of H (d, N), of those kept if given, in order and H's dtype."""
    N = H.shape[1] if kept is None else len(kept)
    for part in slices(N, width):
        yield (H[:, part] if kept is None else H[:, kept[part]]).T
