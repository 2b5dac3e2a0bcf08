"""Sums about given class means: variances, NC1 along the means, and nearest means.

The second pass over samples whose means are known, or the only pass about given means, such as
those of training features for test features. NumPy, float64, in units of a power of two.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics import frames

# If features exceed the means by more than this power of two, their squares may overflow.
MOST = 400


class Logits(NamedTuple):
    """Wh + b = 2^e (V h/scale + c) with |V| and |c| below 4, for features in units of `scale`."""

    V: np.ndarray
    c: np.ndarray
    exponent: int


def logits(W: np.ndarray, b: np.ndarray, scale: float) -> Logits:
    """The logits of W (K, d) and b (K,) in a common unit, in which they do not overflow."""
    e_W, e_H, e_b = (_exponent(x) for x in (scaling.binade(np, W), scale, scaling.binade(np, b)))
    e = max(e_W + e_H, e_b) if b.any() else e_W + e_H
    return Logits(np.ldexp(W, e_H - e), np.ldexp(b, -e), e)


def _exponent(power: float) -> int:
    return int(np.frexp(power)[1]) - 1


class Centres(NamedTuple):
    """Class means in units of `scale`, and relative to their centre.

    there (K,): which classes have a mean. means, M (K, d): the means, and the means less the
    centre, 0 for classes without a mean. centre (d,). V (d, r), s, kept (r,): `frames.axes` of M.
    """

    scale: float
    there: np.ndarray
    means: np.ndarray
    M: np.ndarray
    centre: np.ndarray
    V: np.ndarray
    s: np.ndarray
    kept: np.ndarray


def centres(
    means: np.ndarray, weights: np.ndarray, there: np.ndarray, scale: float, floor: float
) -> Centres:
    """The means (K, d), in units of `scale`, around their mean with the given weights (K,).

    Means whose mean square about the centre is below `floor`, that of rounding, count as equal.
    """
    # The weighted mean of differences, since sums of equal means would round.
    base = means[np.argmax(there)]
    centre = base + (weights @ np.where(there[:, None], means - base, 0)) / weights.sum()
    M = np.where(there[:, None], means - centre, 0)
    if (M**2).sum() <= there.sum() * floor:
        M = np.zeros_like(M)
    return Centres(scale, there, means, M, centre, *frames.axes(M[there]))


def rounding(squares: float, N: int) -> float:
    """Mean squared rounding of a feature where Σ‖h‖² is `squares`; less variance counts as 0."""
    return (8 * np.finfo(np.float64).eps) ** 2 * squares / max(N, 1)


@dataclass
class Sums:
    """Sums over the samples about the means of `at`; `add` changes them in place.

    counts, squares (K,): samples of each class and Σ‖h − μ_k‖². along (r,): Σ_i (v_jᵀ(h_i −
    μ_{y_i}))². total: Σ‖h‖². Counts of samples of each class, (K,): agree, whose nearest mean is
    that of argmax(Wh + b); near, whose nearest mean is that of the class; right, whose
    argmax(Wh + b) is the class.
    """

    at: Centres
    logits: Logits
    total: float = 0.0
    counts: np.ndarray = field(init=False)
    squares: np.ndarray = field(init=False)
    along: np.ndarray = field(init=False)
    agree: np.ndarray = field(init=False)
    near: np.ndarray = field(init=False)
    right: np.ndarray = field(init=False)

    def __post_init__(self):
        K = len(self.at.M)
        self.counts, self.agree, self.near, self.right = np.zeros((4, K), np.int64)
        self.squares, self.along = np.zeros(K), np.zeros(len(self.at.s))
        at, (V, c, _) = self.at, self.logits
        # ‖h − μ_k‖² = const − 2(⟨h − μ_G, M_k⟩ − ‖M_k‖²/2), relative to μ_G against cancellation,
        # and likewise the logits, so that one product gives both.
        nearness = np.where(at.there, np.einsum("kd,kd->k", at.M, at.M) / -2, -np.inf)
        self._both = np.concatenate([V, at.M])
        self._beside = np.concatenate([c + V @ at.centre, nearness])

    def add(self, X: np.ndarray, rows: np.ndarray) -> None:
        """Add samples X (m, d), finite, of the classes rows (m,).

        Raises:
            Refused: features so much larger than the means that their squares may overflow.
        """
        for part in frames.slices(len(X), max(self.at.M.shape)):
            self._add(self._scaled(X[part]), rows[part])

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        X = X.astype(np.float64)
        top = scaling.binade(np, X)
        if X.any() and _exponent(top) - _exponent(self.at.scale) > MOST:
            raise Refused(
                f"got features of size {float(top):.1e} about means of size {self.at.scale:.1e}; "
                "allowed: features of about the size of the means. Are both of one network?"
            )
        X *= 1 / self.at.scale
        return X

    def _add(self, X: np.ndarray, rows: np.ndarray) -> None:
        at, K = self.at, len(self.at.M)
        self.total += float(np.einsum("id,id->", X, X))
        self.counts += np.bincount(rows, minlength=K)
        own = X - at.means[rows]
        self.squares += np.bincount(rows, np.einsum("id,id->i", own, own), K)
        self.along += ((own @ at.V) ** 2).sum(axis=0)
        predicted, nearest = self._decide(X)
        for counts, hits in (
            (self.agree, predicted == nearest),
            (self.near, nearest == rows),
            (self.right, predicted == rows),
        ):
            counts += np.bincount(rows[hits], minlength=K)

    def _decide(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(argmax(Wh + b), the class of the nearest mean) of each row; the first one on ties."""
        both = (X - self.at.centre) @ self._both.T
        both += self._beside
        K = len(self.at.M)
        return both[:, :K].argmax(axis=1), both[:, K:].argmax(axis=1)
