"""The measures of neural collapse: definitions, and the papers that they come from.

With class means μ_k, their centre μ_G, M = [μ_1 − μ_G … μ_K − μ_G],

    Σ_W = (1/N) Σ_i (h_i − μ_{y_i})(h_i − μ_{y_i})ᵀ,    Σ_B = (1/K) M Mᵀ.

μ_G is the mean of the class means, as in the code of Papyan et al. (`mean="class"`), or the mean
over all samples (`mean="sample"`); both are equal for equal counts. At perfect collapse features
equal their class means, which form a simplex ETF around their centre, and W is proportional to the
means less that centre. Then with "class" every field is 0 for any class counts (nc4_mean_logit if b
= −Wμ_G, for example b = 0 and μ_G = 0). With "sample" the fields that depend on the centre of M
(nc2_means, nc2_equinorm_means, nc2_equiangularity_means, nc3, nc3_duality, nc4_mean_logit) are 0
for equal counts only.

Sources: Papyan, Han and Donoho 2020; Zhu et al. 2021 (arXiv 2105.02375, section 5.1);
class-distance normalised variance: Galanti, György and Hutter 2021 (arXiv 2112.15121).
"""

from typing import Any, NamedTuple

import numpy as np


class Collapse(NamedTuple):
    """NC1–NC4 of a set of features: scalars without unit that are 0 at perfect collapse.

    nc1: tr(Σ_W Σ_B^†)/K (Papyan; Zhu). The pseudo-inverse comes from an SVD of M truncated at
        rank K−1. Infinite if M = 0 while Σ_W ≠ 0.
    nc1_trace_ratio: tr Σ_W / tr Σ_B. Infinite if M = 0 while Σ_W ≠ 0.
    nc1_cdnv: mean over class pairs j ≠ k of (v_j + v_k)/(2‖μ_j − μ_k‖²), v_k the mean of
        ‖h − μ_k‖² in class k (Galanti). Infinite where two means coincide while v > 0.
    nc2: ‖WWᵀ/‖WWᵀ‖_F − (I − 11ᵀ/K)/√(K−1)‖_F (Zhu). It changes under a row shift W + 1aᵀ, which
        does not change the cross-entropy.
    nc2_centred: the same with the mean row of W subtracted first.
    nc2_means: the same for the centred class means, MᵀM in place of WWᵀ.
    nc2_equinorm_W, nc2_equinorm_means: standard deviation of the norms over their mean, for the
        rows of W and for the columns of M (Papyan).
    nc2_equiangularity_W, nc2_equiangularity_means: mean over pairs of |cos + 1/(K−1)| for the same
        vectors (Papyan: maximal angle). `Detail` has the standard deviation of the cosines.
    nc3: ‖WM/‖WM‖_F − (I − 11ᵀ/K)/√(K−1)‖_F (Zhu).
    nc3_duality: ‖Wᵀ/‖W‖_F − M/‖M‖_F‖_F, W not centred; Papyan reports its square.
    nc4: share of samples whose argmax(Wh + b) is not the nearest class mean (Papyan).
    nc4_mean_logit: ‖Wμ_G + b‖, reported as NC4 by the code of Zhu et al. The only field that
        changes with the size of H; infinite on overflow.

    Where a normalisation would divide by zero (W = 0, or M = 0 up to the rounding of H) the zero
    matrix is not normalised: nc2 = nc3 = 1 then, and norms count as equal.

    None means that a measure is not available: nc4 in a single pass without given means; where
    classes without samples are left out, all measures that need every class mean (nc2_means,
    nc2_equinorm_means, nc2_equiangularity_means, nc3, nc3_duality, nc4_mean_logit).
    """

    nc1: Any
    nc1_trace_ratio: Any
    nc1_cdnv: Any
    nc2: Any
    nc2_centred: Any
    nc2_means: Any
    nc2_equinorm_W: Any
    nc2_equinorm_means: Any
    nc2_equiangularity_W: Any
    nc2_equiangularity_means: Any
    nc3: Any
    nc3_duality: Any
    nc4: Any
    nc4_mean_logit: Any


class Detail(NamedTuple):
    """Accuracies, further statistics of angles and variances, and values of each class.

    accuracy: share of samples whose argmax(Wh + b) is their label (top-1).
    nearest_centre: share of samples whose nearest class mean is that of their label; None in a
        single pass without given means.
    within: tr Σ_W / (tr Σ_W + Σ_k (n_k/N)‖μ_k − μ̄‖²), μ̄ the mean of μ_k over samples: within-class
        variance over total variance, in [0, 1] where nc1_trace_ratio is unbounded; 0 where all
        features are equal. With given means the variances are about these. (η² of the analysis of
        variance is 1 − within.)
    cosine_std_W, cosine_std_means: standard deviation of the cosines over pairs of rows of W and
        of columns of M: Papyan's measure of equiangularity, 0 for any common angle. For the means
        None if a class has no mean.
    missing: labels of the classes without samples.
    counts, variances: samples of each class and the mean of ‖h − μ_k‖², (K,); variances are NaN
        without samples and infinite on overflow.
    cosines: cos(w_k, μ_k − μ_G), (K,): duality class by class; NaN where a class has no mean.
    class_accuracy, class_nearest: accuracy and nearest_centre of each class, (K,); NaN without
        samples, None where the scalar is.

    Caution: on ties argmax is the first row, so W = 0 classifies class 0 correctly.
    """

    accuracy: float
    nearest_centre: float | None
    within: float
    cosine_std_W: float
    cosine_std_means: float | None
    missing: tuple[Any, ...]
    counts: np.ndarray
    variances: np.ndarray
    cosines: np.ndarray
    class_accuracy: np.ndarray
    class_nearest: np.ndarray | None
