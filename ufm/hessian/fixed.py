"""What a point is where the classifier is fixed: every critical point is a global minimiser.

f is convex in (H, b) for a convex loss, and its certificate exceeds f − f* by no more than

    ‖∇_H f Ω^-½‖²/(2λ_H) + ‖∇_b f‖²/(2λ_b),

so its gap is 0 at every critical point, and no eigenvalue is needed. The problem is that of Yang et
al. 2022, arXiv 2203.09081.
"""

from typing import Literal

from ufm.certificate import Certificate
from ufm.check import Refused
from ufm.hessian.stationarity import CAUTION, SHARE, Stationarity, logit_rounding
from ufm.model.problem import Problem

Known = Literal["global minimiser", "not critical", "undecided"]


def decided(problem: Problem, slope: Stationarity, proof: Certificate) -> tuple[Known, str]:
    """(kind, reason) of a point that has been measured and certified: see `ufm.hessian.verdict`.

    A critical point with a positive certified gap is "undecided", as a loss that is not convex may
    leave one.

    Args:
        problem: with a fixed classifier.
        slope, proof: the `Stationarity` and the certificate of the point.

    Raises:
        Refused: λ_H = 0, where f need not have a minimum.
    """
    if not float(problem.lam_H) > 0:
        raise Refused(
            f"got lam_H={problem.lam_H} with a fixed classifier; a verdict needs lam_H > 0: "
            "without decay of the features the infimum need not be attained"
        )
    if not slope.critical:
        return "not critical", f"{slope.told()}; polish the point with ufm.solve"
    gap, value = float(proof.gap), float(proof.value)
    error = logit_rounding(slope.at.params) + slope.uncertainty**2
    slack = 16 * float(proof.resolution) + CAUTION * error * value
    if gap <= slack <= SHARE * value:
        return "global minimiser", (
            f"f exceeds the global minimum for this classifier by at most {gap:.3g} (slack "
            f"{slack:.3g})"
        )
    return "undecided", (
        f"the certified gap is {gap:.3g} of f = {value:.3g} (slack {slack:.3g}): the point is not "
        f"known well enough{'' if problem.loss.convex else ', and the loss is not convex'}"
    )
