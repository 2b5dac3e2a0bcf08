"""NC2 and NC3 relative to a predicted geometry, where the minimum is not a simplex.

With unequal counts, weights in the loss or the decay, or the squared error without a bias, the
minimum is not a simplex ETF, and NC2 and NC3 of `Collapse` do not tend to 0. Here the same
distances are measured both to the Gram matrices that a theory predicts (`ufm.theory.geometry_of`
gives those of a model) and to those of the simplex.

With H ≥ 0 the class means of the minimum are orthogonal without centring. Their Gram matrix about
0, which is then diagonal, is compared as well, since centred means do not show it. NumPy, float64.
"""

from typing import NamedTuple

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.metrics.features import finite
from ufm.metrics.generalised import as_pair


class Geometry(NamedTuple):
    """The geometry of K classes up to orientation and scale; M the centred class means (d, K).

    rows: WWᵀ.  means: MᵀM.  product: WM; each (K, K).  name: a description of the geometry.
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
    against: the name of the predicted geometry, which nc2, nc2_means, nc3 and nc2_uncentred use.
    nc2_uncentred: of [⟨μ_j, μ_k⟩], the class means about 0.

    Caution: no field depends on the sizes of W and H, so a point may have the predicted geometry
    without being a minimum; use `ufm.certify`.
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
    """The geometry of a classifier and class means, to which `alignment` compares others.

    Args:
        W: classifier (K, d), a row a class.
        means: class means (K, d), a row a class, in the order of W.
        name: a description, such as "the codes of run 3".

    Raises:
        Refused: arrays that are not real and finite or do not fit, K < 2; a name that is no text.
    """
    if not isinstance(name, str) or not name:
        raise Refused(f"got name={name!r}; allowed: a description of the geometry, as text")
    rows, centred, product, about_zero = _grams(W, means)
    return Geometry(rows, centred, product, name, about_zero)


def alignment(W, means, predicted: Geometry) -> Alignment:
    """NC2 and NC3 of a classifier and class means, relative to a prediction and to the simplex.

    Args:
        W: classifier (K, d), a row a class.
        means: class means (K, d), a row a class, as `Accumulator.class_means` has them.
        predicted: from `ufm.theory.geometry_of(problem)`, or from `geometry`.

    Raises:
        Refused: arrays that are not real and finite or do not fit, K < 2; another number of
            classes in `predicted`, or one of its matrices zero.
    """
    *centred, about_zero = _grams(W, means)
    K = len(about_zero)
    if not isinstance(predicted, Geometry):
        raise Refused(
            f"got predicted={check.shown(predicted)}; allowed: a Geometry, as "
            "ufm.theory.geometry_of(problem) gives it"
        )
    for field, matrix in predicted._asdict().items():
        if field == "name":
            continue
        if np.shape(matrix) != (K, K) or not np.any(matrix):
            raise Refused(
                f"got predicted.{field} of shape {np.shape(matrix)}; allowed: ({K}, {K}), not zero"
            )
    *targets, name, uncentred = predicted
    near = [_apart(A, finite("predicted", B)) for A, B in zip(centred, targets, strict=True)]
    far = [_apart(A, np.eye(K) - 1 / K) for A in centred]
    raw = _apart(about_zero, finite("predicted", uncentred))
    return Alignment(near[0], near[1], near[2], far[0], far[1], far[2], name, raw)


def _grams(W, means) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(WWᵀ, MᵀM, WM, [⟨μ_j, μ_k⟩]), each up to a power of two."""
    W, means = as_pair(W, means)
    check.fits(f"K={len(W)}: Gram matrices (K, K)", 48 * len(W) ** 2, "Give fewer classes", True)
    M = means - means.mean(axis=0)
    return W @ W.T, M @ M.T, W @ M.T, means @ means.T


def _apart(A: np.ndarray, B: np.ndarray) -> float:
    """‖A/‖A‖_F − B/‖B‖_F‖_F; 1 for A = 0, which has no direction."""
    sizes = (np.linalg.norm(A) or 1.0), np.linalg.norm(B)
    return float(np.linalg.norm(A / sizes[0] - B / sizes[1]))
