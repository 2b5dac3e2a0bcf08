"""NC2 and NC3 relative to a predicted geometry, where the minimum is not a simplex.

Unequal counts, weights in the loss or the decay, and the squared error without a bias have another
minimum than the simplex ETF: NC2 and NC3 of `Collapse` do not fall to 0 there. Here the same
distances are measured against the Gram matrices that a theory predicts (`ufm.theory.geometry_of`
gives those of a model) and against the simplex, side by side.

Features that are not negative have a mean that is not 0, which centred means do not show. With
H ≥ 0 the class means of the minimum are orthogonal as they are, so their Gram matrix about 0 is
diagonal; it is compared too. NumPy, float64.
"""

from typing import NamedTuple

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics.features import finite
from ufm.metrics.generalised import as_rows


class Geometry(NamedTuple):
    """The geometry of K classes up to orientation and scale; M the centred class means (d, K).

    rows: WWᵀ.  means: MᵀM.  product: WM; each (K, K).  name: whose geometry it is, in words.
    uncentred: ⟨μ_j, μ_k⟩ of the class means about 0, (K, K); diagonal at a minimum with H ≥ 0.
    """

    rows: np.ndarray
    means: np.ndarray
    product: np.ndarray
    name: str
    uncentred: np.ndarray


class Alignment(NamedTuple):
    """Distances ‖A/‖A‖_F − B/‖B‖_F‖_F of Gram matrices A to the predicted ones B, in [0, 2].

    nc2: of WWᵀ.  nc2_means: of MᵀM.  nc3: of WM, M = [μ_k − mean of the μ_k].
    nc2_simplex, nc2_means_simplex, nc3_simplex: the same for B = I − 11ᵀ/K, the fields nc2,
        nc2_means and nc3 of `Collapse`.
    against: whose geometry the first three and the last are measured against.
    nc2_uncentred: of [⟨μ_j, μ_k⟩], the class means about 0.

    Caution: none of them depends on the sizes of W and H, so a point may have the predicted
    geometry and not be a minimum; use `ufm.certify`.
    """

    nc2: float
    nc2_means: float
    nc3: float
    nc2_simplex: float
    nc2_means_simplex: float
    nc3_simplex: float
    against: str
    nc2_uncentred: float


def geometry(W, means, name: str) -> Geometry:
    """The geometry of a classifier and class means, with which `alignment` compares others.

    Args:
        W: classifier (K, d), a row a class.
        means: class means (K, d), a row a class, in the order of W.
        name: whose geometry it is, in words.

    Raises:
        Refused: arrays that are not real and finite or do not fit, K < 2; a name that is no text.
    """
    if not isinstance(name, str) or not name:
        raise Refused(f"got name={name!r}; allowed: whose geometry it is, in words")
    rows, centred, product, about_zero = _grams(W, means)
    return Geometry(rows, centred, product, name, about_zero)


def alignment(W, means, predicted: Geometry) -> Alignment:
    """NC2 and NC3 of a classifier and class means, from a predicted geometry and from the simplex.

    Args:
        W: classifier (K, d), a row a class.
        means: class means (K, d), a row a class, as `Accumulator.class_means` has them.
        predicted: from `ufm.theory.geometry_of(problem)`, or from `geometry`.

    Raises:
        Refused: arrays that are not real and finite or do not fit, K < 2; another number of
            classes in `predicted`, or one of its matrices zero.
    """
    *found, about_zero = _grams(W, means)
    K = len(about_zero)
    if not isinstance(predicted, Geometry):
        raise Refused(
            f"got predicted={check.shown(predicted)}; allowed: a Geometry, as "
            "ufm.theory.geometry_of(problem) gives it"
        )
    told = predicted[:3]
    for field, matrix in predicted._asdict().items():
        if field == "name":
            continue
        if np.shape(matrix) != (K, K) or not np.any(matrix):
            raise Refused(
                f"got predicted.{field} of shape {np.shape(matrix)}; allowed: ({K}, {K}), not zero"
            )
    simplex = np.eye(K) - 1 / K
    near = [_apart(A, finite("predicted", B)) for A, B in zip(found, told, strict=True)]
    far = [_apart(A, simplex) for A in found]
    raw = _apart(about_zero, finite("predicted", predicted.uncentred))
    return Alignment(near[0], near[1], near[2], far[0], far[1], far[2], predicted.name, raw)


def _grams(W, means) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(WWᵀ, MᵀM, WM, [⟨μ_j, μ_k⟩]) up to a power of two each."""
    W, means = as_rows("W", W), as_rows("means", means)
    if W.shape != means.shape:
        raise Refused(
            f"got W {W.shape} and means {means.shape}; allowed: both (K, d), a row a class"
        )
    check.fits(f"K={len(W)}: Gram matrices (K, K)", 48 * len(W) ** 2, "Give fewer classes", True)
    W, means = W / scaling.binade(np, W), means / scaling.binade(np, means)
    M = means - means.mean(axis=0)
    return W @ W.T, M @ M.T, W @ M.T, means @ means.T


def _apart(A: np.ndarray, B: np.ndarray) -> float:
    """‖A/‖A‖_F − B/‖B‖_F‖_F; 1 for A = 0, which has no direction."""
    sizes = (np.linalg.norm(A) or 1.0), np.linalg.norm(B)
    return float(np.linalg.norm(A / sizes[0] - B / sizes[1]))
