"""`Collapse` and `Detail` from sums over the samples."""

from typing import Any, NamedTuple

import numpy as np

from ufm.linalg import scaling
from ufm.metrics import frames
from ufm.metrics.centred import Centres, Logits, Sums, rounding
from ufm.metrics.result import Collapse, Detail


class Known(NamedTuple):
    """The sums of one or two passes, fields as of `Sums`; agree and near may be None."""

    W: np.ndarray
    at: Centres
    logits: Logits
    total: float
    counts: np.ndarray
    squares: np.ndarray
    along: np.ndarray
    agree: np.ndarray | None
    near: np.ndarray | None
    right: np.ndarray

    @classmethod
    def second(cls, W: np.ndarray, s: Sums) -> "Known":
        """The sums of a pass about fixed means."""
        return cls(
            W, s.at, s.logits, s.total, s.counts, s.squares, s.along, s.agree, s.near, s.right
        )


def collapsed(known: Known) -> Collapse:
    """NC1–NC4."""
    at, N = known.at, known.counts.sum()
    W = known.W / scaling.binade(np, known.W)
    M, floor = at.M, rounding(known.total, N)
    tr_W, tr_B = known.squares.sum() / N, (M**2).sum() / at.there.sum()
    centred = W - W.mean(axis=0)
    whole = bool(at.there.all())
    of_W, of_M = frames.gram(W), frames.gram(M)
    return Collapse(
        nc1=_nc1(known, tr_W, floor),
        nc1_trace_ratio=float(frames.ratio(tr_W, tr_B, floor)),
        nc1_cdnv=_cdnv(known, floor),
        nc2=of_W.simplex,
        nc2_centred=frames.gram(centred).simplex,
        nc2_means=of_M.simplex if whole else None,
        nc2_equinorm_W=frames.equinorm(W),
        nc2_equinorm_means=frames.equinorm(M) if whole else None,
        nc2_equiangularity_W=of_W.angle,
        nc2_equiangularity_means=of_M.angle if whole else None,
        nc3=frames.to_simplex(W, M) if whole else None,
        nc3_duality=_duality(W, M) if whole else None,
        nc4=None if known.agree is None else float(1 - known.agree.sum() / N),
        nc4_mean_logit=_mean_logit(known) if whole else None,
    )


def detailed(known: Known, missing: tuple[Any, ...]) -> Detail:
    """Accuracies, further statistics of angles and variances, and values of each class."""
    at, counts = known.at, known.counts
    N, M = counts.sum(), at.M
    whole, some = bool(at.there.all()), counts > 0

    def shares(hits):
        return np.where(some, hits / np.maximum(counts, 1), np.nan)

    mean = counts @ M / N
    between = counts @ ((M - mean) ** 2).sum(axis=1)
    inside = known.squares.sum()
    W = frames.directions(known.W / scaling.binade(np, known.W))
    cosines = np.einsum("kd,kd->k", W, frames.directions(M))
    near = known.near
    return Detail(
        accuracy=float(known.right.sum() / N),
        nearest_centre=None if near is None else float(near.sum() / N),
        within=float(frames.ratio(inside, inside + between)),
        cosine_std_W=frames.gram(W).angle_std,
        cosine_std_means=frames.gram(M).angle_std if whole else None,
        missing=missing,
        counts=counts.copy(),
        variances=shares(known.squares) * at.scale * at.scale,
        cosines=np.where(at.there, cosines, np.nan),
        class_accuracy=shares(known.right),
        class_nearest=None if near is None else shares(near),
    )


def _nc1(known: Known, tr_W: float, floor: float) -> float:
    """tr(Σ_W Σ_B^†)/K = Σ_j v_jᵀΣ_W v_j/s_j² over the axes v_j of M, a sum of terms ≥ 0."""
    s, kept = known.at.s, known.at.kept
    if not kept.any():
        return float("inf") if tr_W > floor else 0.0
    return float(np.sum(known.along[kept] / known.counts.sum() / s[kept] ** 2))


def _cdnv(known: Known, floor: float) -> float | None:
    """Over the pairs of classes that have samples; None for fewer than two of them."""
    some = known.counts > 0
    if some.sum() < 2:
        return None
    return frames.cdnv(known.at.M[some], known.squares[some] / known.counts[some], floor)


def _duality(W: np.ndarray, M: np.ndarray) -> float:
    sizes = (np.linalg.norm(W) or 1.0), (np.linalg.norm(M) or 1.0)
    return float(np.linalg.norm(W / sizes[0] - M / sizes[1]))


def _mean_logit(known: Known) -> float:
    """‖Wμ_G + b‖."""
    V, c, exponent = known.logits
    return float(np.ldexp(np.linalg.norm(V @ known.at.centre + c), exponent))
