"""What a point is where the classifier is fixed: every critical point is a global minimiser.

f is convex in (H, b) for a convex loss, and its certificate exceeds f − f* by no more than

    ‖∇_H f Ω^-½‖²/(2λ_H) + ‖∇_b f‖²/(2λ_b),

so it closes at every critical point: no eigenvalue is asked for (arXiv 2203.09081 for the problem).
"""

from typing import Literal

from ufm.certificate import Certificate
from ufm.check import Refused
from ufm.hessian.stationarity import Stationarity, logit_rounding
from ufm.model.problem import Problem

Known = Literal["global minimiser", "not critical", "undecided"]

SHARE = 1e-6  # of f*, by which a global minimiser may exceed it
_CAUTION = 64  # times an estimated error is certain


def decided(problem: Problem, slope: Stationarity, proof: Certificate) -> tuple[Known, str]:
    """(kind, reason) of a point that has been measured and certified: see `ufm.hessian.verdict`.

    A loss that is not convex leaves a critical point whose certificate does not close "undecided".

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
    slack = 16 * float(proof.resolution) + _CAUTION * error * value
    if gap <= slack <= SHARE * value:
        return "global minimiser", (
            f"f exceeds the global minimum for this classifier by at most {gap:.3g} (slack "
            f"{slack:.3g})"
        )
    return "undecided", (
        f"the certified gap is {gap:.3g} of f = {value:.3g} (slack {slack:.3g}): the point is not "
        f"known well enough{'' if problem.loss.convex else ', and the loss is not convex'}"
    )
