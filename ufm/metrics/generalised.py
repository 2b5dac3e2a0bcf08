"""Geometry beyond the simplex: more classes than dimensions, orthogonal frames, OOD features.

For K > d + 1 no simplex fits, and some models collapse to an orthogonal frame (squared error
without a bias, features behind a ReLU). All functions take K vectors: rows of W, and class means as
`Accumulator.class_means` gives them. NumPy, float64.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported at first use

from ufm import check
from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics import frames
from ufm.metrics.features import finite, in_numpy


class Generalised(NamedTuple):
    """The geometry of W (K, d) and of class means μ_k; M = [μ_k − mean of the μ_k].

    uniformity_W, uniformity_means: hyperspherical energy, the mean over pairs j ≠ k of
        log(1/‖v_j − v_k‖) for directions v of the rows of W and of M (Liu et al. 2023,
        arXiv 2303.06484, their s = 0). Smaller is more uniform: the least value for K ≤ d + 1 is
        −½ log(2K/(K−1)), attained only by a simplex. For more classes the least value is not known
        in general: compare runs of equal (K, d). Infinite where two directions coincide.
    uniformity_std_W, uniformity_std_means: standard deviation of log(1/‖v_j − v_k‖) over pairs (Wu
        and Papyan 2024, arXiv 2405.17767, divide it by the mean, which may be 0). Infinite where
        two directions coincide.
    duality, duality_std: mean and standard deviation over classes of cos(w_k, M_k): uniform duality
        (Wu and Papyan) is a small deviation, self-duality a mean of 1.
    margin_W, margin_means: min_k of the distance from v_k to the convex hull of the other v_j, the
        one-vs-rest margin of directions (Jiang et al. 2023, arXiv 2310.05351); K/(K−1) for a
        simplex, the largest possible for K ≤ d + 1; 0 where some v_k is in the hull of the others.
    orthogonal_W, orthogonal_means, orthogonal_product: ‖G/‖G‖_F − I/√K‖_F for G = WWᵀ, the Gram
        matrix of the means *without centring*, and W times the means: distance to an orthogonal
        frame, to which models without a bias collapse (Dang et al. 2023, arXiv 2301.00437).
    general_orthogonal_W, general_orthogonal_means: distance to the nearest orthogonal vectors of
        any lengths, min_D ‖G/‖G‖_F − D‖_F over diagonal D of norm 1: with unequal counts the
        lengths differ (Dang et al. 2023). At most the distance to an orthogonal frame.

    Caution: the distance of a simplex from an orthogonal frame is √(2 − 2√((K−1)/K)), which is
    small for many classes. A common offset of the features changes the orthogonal_* fields of the
    means, but neither uniformity nor margins. Zero vectors have no direction and count as the
    origin.
    """

    uniformity_W: float
    uniformity_means: float
    uniformity_std_W: float
    uniformity_std_means: float
    duality: float
    duality_std: float
    margin_W: float
    margin_means: float
    orthogonal_W: float
    orthogonal_means: float
    orthogonal_product: float
    general_orthogonal_W: float
    general_orthogonal_means: float


def generalised(W, means) -> Generalised:
    """The geometry of a classifier and class means beyond the simplex.

    Args:
        W: classifier (K, d), a row a class.
        means: class means (K, d), a row a class, in the order of W.

    Returns:
        `Generalised`, of floats.

    Raises:
        Refused: arrays that are not real and finite or do not fit, K < 2.
    """
    W, means = as_pair(W, means)
    v, m = frames.directions(W), frames.directions(means - means.mean(axis=0))
    cosines = np.einsum("kd,kd->k", v, m)
    (energy_W, std_W), (energy_means, std_means) = _energy(v), _energy(m)
    return Generalised(
        uniformity_W=energy_W,
        uniformity_means=energy_means,
        uniformity_std_W=std_W,
        uniformity_std_means=std_means,
        duality=float(cosines.mean()),
        duality_std=float(cosines.std()),
        margin_W=float(distances_to_rest(v).min()),
        margin_means=float(distances_to_rest(m).min()),
        orthogonal_W=frames.to_orthogonal(W, W),
        orthogonal_means=frames.to_orthogonal(means, means),
        orthogonal_product=frames.to_orthogonal(W, means),
        general_orthogonal_W=frames.to_general_orthogonal(W),
        general_orthogonal_means=frames.to_general_orthogonal(means),
    )


def one_vs_rest(vectors, *, unit=True) -> np.ndarray:
    """dist(v_k, conv{v_j : j ≠ k}) of every vector, (K,): one-vs-rest margins.

    It equals max_{‖h‖ ≤ 1} min_{j≠k} ⟨v_k − v_j, h⟩, the margin by which the best unit feature
    separates class k from the others (Jiang et al. 2023, arXiv 2310.05351). The least of them is
    `Generalised.margin_W`.

    Args:
        vectors: (K, d), a row a class.
        unit: whether to take directions v/‖v‖, as the paper does.

    Raises:
        Refused: an array that is not real, finite, (K, d) with K ≥ 2; `unit` not True or False.
    """
    rows = as_rows("vectors", vectors)
    if check.flag("unit", unit):
        return distances_to_rest(frames.directions(rows / scaling.binade(np, rows)))
    size = scaling.binade(np, rows)
    return distances_to_rest(rows / size) * size


def ood_cosines(means, outside) -> np.ndarray:
    """|cos(μ_k, μ_out)| of every class mean and the mean of out-of-distribution features, (K,).

    The mean over classes is NC5 of NECO (Ben Ammar et al. 2023, arXiv 2310.06823); it tends to 0
    where in- and out-of-distribution features become orthogonal.

    Args:
        means: class means (K, d) of the training features, *not* centred.
        outside: out-of-distribution features (N, d), samples as rows.

    Caution: it is also 0 where μ_out = 0, and meaningless where μ_out is noise about 0; check its
    norm as well.

    Raises:
        Refused: arrays that are not real and finite or do not fit, no samples.
    """
    means, found = as_rows("means", means), finite("outside", in_numpy("outside", outside))
    if found.ndim != 2 or found.shape[1] != means.shape[1] or not len(found):
        raise Refused(
            f"got means {means.shape} and outside {found.shape}; allowed: (K, d) and (N, d) of one "
            "d, N >= 1 samples as rows"
        )
    size = scaling.binade(np, found.astype(np.float64))
    mean = np.zeros(found.shape[1])
    for part in frames.slices(*found.shape):
        mean += (found[part] / size).sum(axis=0) / len(found)
    units = frames.directions(means / scaling.binade(np, means))
    return abs(units @ frames.directions(mean[None] / scaling.binade(np, mean))[0])


def as_rows(name: str, x) -> np.ndarray:
    """K ≥ 2 vectors as rows of a NumPy array in float64.

    Raises:
        Refused: an array that is not real, finite, (K, d).
    """
    found = in_numpy(name, x).astype(np.float64)
    if found.ndim != 2 or len(found) < 2 or found.shape[1] < 1:
        raise Refused(
            f"got {name} of shape {found.shape}; allowed: (K, d), K >= 2 rows, one a class"
        )
    return finite(name, found)


def as_pair(W, means) -> tuple[np.ndarray, np.ndarray]:
    """W and class means of one shape (K, d), each divided by a power of two.

    Raises:
        Refused: as `as_rows`; two shapes.
    """
    W, means = as_rows("W", W), as_rows("means", means)
    if W.shape != means.shape:
        raise Refused(
            f"got W {W.shape} and means {means.shape}; allowed: both (K, d), a row a class"
        )
    return W / scaling.binade(np, W), means / scaling.binade(np, means)


def _energy(units: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over pairs of log(1/‖v_j − v_k‖), v the rows."""
    K = len(units)
    pairs = K * (K - 1)
    mean = sum(_logarithms(units, part).sum() for part in frames.slices(K, K)) / pairs
    if not np.isfinite(mean):
        return float("inf"), float("inf")
    squares = sum(((_logarithms(units, part) - mean) ** 2).sum() for part in frames.slices(K, K))
    return float(mean), float(np.sqrt(squares / pairs))


def _logarithms(units: np.ndarray, part: slice) -> np.ndarray:
    """log(1/‖v_j − v_k‖) for every j in a block of rows and every other k."""
    sizes = np.einsum("kd,kd->k", units, units)
    block = units[part]
    squares = sizes[part, None] + sizes[None, :] - 2 * (block @ units.T)
    # 2 − 2 cos loses the digits of small distances, which are computed from differences.
    for j, near in enumerate(squares < 1e-4):
        squares[j, near] = ((units[near] - block[j]) ** 2).sum(axis=1)
    # Directions that differ only by rounding count as equal.
    squares[squares < (8 * np.finfo(float).eps) ** 2] = 0
    off = np.arange(len(units)) != np.arange(part.start, part.stop)[:, None]
    with np.errstate(divide="ignore"):
        return -0.5 * np.log(squares[off])


def distances_to_rest(rows: np.ndarray) -> np.ndarray:
    """dist(v_k, conv{v_j : j ≠ k}) of the rows (K, d), whose squares must not over- or underflow.

    The point of least norm in conv{a_j} comes from non-negative least squares: a minimiser x ≥ 0 of
    ‖Ax‖² + (1ᵀx − 1)² is a positive multiple of the weights that minimise ‖Ax‖ on the simplex.
    """
    K = len(rows)
    found = np.empty(K)
    for k in range(K):
        A = np.delete(rows, k, axis=0) - rows[k]
        design = np.vstack([A.T, np.ones(K - 1)])
        x, _ = scipy.optimize.nnls(design, np.r_[np.zeros(rows.shape[1]), 1.0])
        found[k] = np.linalg.norm((x / x.sum()) @ A)
    return found
