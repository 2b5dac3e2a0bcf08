"""The global minimum for a fixed classifier that treats all classes alike, in closed form.

Let W have rows of one length and one angle: P W Wᵀ P = αP with P = I − 11ᵀ/K, and 1ᵀWWᵀ ∝ 1ᵀ (a
simplex ETF of rows of norm ρ: α = ρ²K/(K−1); orthogonal rows: α = ρ²). Without a bias f is a sum
over the samples. The feature h_i = (m/α) Wᵀ(e_y − 1/K) has margin m over every wrong class, and a
sample of weight w in the loss and ω in the decay contributes

    w log(1 + (K−1)e^{−m}) + λ_H ω (K−1) m²/(2Kα),     least where  q(m) = λ_H ω m/(w K α),

q = e^{−m}/(1 + (K−1)e^{−m}) being the probability of each wrong class: one scalar equation, which
has one root m > 0 for any decay, so there is no threshold. Where the classes have one weight m is
the same for all of them *whatever their counts*, since each sample has the weight 1/N (Yang et al.
2022, arXiv 2203.09081). With a bias the same holds for equal classes, for which b = 0 is a minimum;
for unequal ones G1 ≠ 0 there, and no closed form is known (`ufm.solve`).
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported at first use

from ufm.check import Refused, normal_decays
from ufm.model.fixed import classifier
from ufm.model.problem import Problem, check_problem
from ufm.theory import shared

SOURCE = "Yang et al. 2022, arXiv 2203.09081"
_ALIKE = 1e-10  # how far from αP + β11ᵀ the Gram matrix of W may be, relative to its largest entry


class FixedMinimum(NamedTuple):
    """The minimum over (H, b) for a fixed classifier.

    value: f*, in nats, (λ_W/2)‖W‖² included.
    margins: (K,), z_y − z_j over every wrong class j, of the samples of each class.
    lengths: (K,), ‖h‖ of a sample of each class.
    """

    value: float
    margins: np.ndarray
    lengths: np.ndarray


def claims(problem: Problem) -> tuple[shared.Claim, ...]:
    """What is known where the classifier is fixed."""
    needed = shared.joined(shared.convex(problem), _decay(problem))
    return (
        shared.Claim(
            "convex in (H, b)",
            "Every critical point is a global minimiser for its W, unique in H.",
            needed,
            SOURCE,
        ),
        shared.Claim(
            "certificate",
            "At a critical point the bound of ufm.certify equals f.",
            needed,
            SOURCE,
        ),
        shared.Claim(
            "one norm",
            "For a simplex ETF or orthogonal rows the features of all classes have one margin and "
            "one norm, those of ufm.theory.fixed_minimum, whatever the counts.",
            shared.joined(needed, fails(problem)),
            SOURCE,
        ),
    )


def _decay(problem: Problem) -> str | None:
    return None if float(problem.lam_H) > 0 else f"lam_H > 0 (got lam_H={problem.lam_H})"


def fails(problem: Problem) -> str | None:
    """The first assumption of the closed form that a problem does not meet, or None."""
    if problem.fixed != ("W",):
        return 'a fixed classifier, fixed=("W",)'
    if (reason := shared.cross_entropy(problem) or _decay(problem)) is not None:
        return reason
    if problem.bias and not problem.uniform:
        return "no bias, or equal classes"
    return None


def fixed_minimum(problem: Problem, W) -> FixedMinimum:
    """The global minimum over (H, b) for a W that treats all classes alike, to rounding.

    Formula and source: `ufm.theory.fixed`.

    Args:
        problem: with fixed=("W",), plain cross-entropy and λ_H > 0; any counts, weights and decay
            weights without a bias, equal classes with one.
        W: (K, d), a simplex ETF, orthogonal rows of one norm, or any other W whose Gram matrix is
            a multiple of I plus one of 11ᵀ.

    Raises:
        Refused: naming the assumption that fails; array-valued decays; a W of another shape or
            Gram matrix.
    """
    check_problem(problem)
    normal_decays(problem)
    if (reason := fails(problem)) is not None:
        raise Refused(
            f"got a problem outside the closed form, which needs {reason}; take ufm.solve, whose "
            "point is the global minimum of a fixed classifier, and ufm.certify"
        )
    W, K = classifier(problem, W), problem.K
    alpha = _alike(W)
    pull = problem.class_decays / (problem.class_weights * (K * alpha))
    margins = np.array([_margin(K, x) for x in pull.tolist()])
    lengths = margins * ((K - 1) / (K * alpha)) ** 0.5
    data = np.log1p((K - 1) * np.exp(-margins)) * problem.class_weights
    each = data + problem.class_decays * lengths**2 / 2
    value = float(problem.counts @ each) + float(problem.lam_W) * float(np.sum(W**2)) / 2
    return FixedMinimum(value, margins, lengths)


def _alike(W: np.ndarray) -> float:
    """α, where W Wᵀ is αP plus a multiple of 11ᵀ.

    Raises:
        Refused: a Gram matrix of another form.
    """
    K, gram = len(W), W @ W.T
    apart = gram[~np.eye(K, dtype=bool)]
    diagonal, beside = float(np.mean(np.diagonal(gram))), float(np.mean(apart))
    alike = np.full((K, K), beside) + (diagonal - beside) * np.eye(K)
    if not np.max(np.abs(gram - alike)) <= _ALIKE * np.max(np.abs(gram)) or diagonal <= beside:
        raise Refused(
            "got a W whose rows differ in length or angle; allowed: rows of one length and one "
            "angle, such as ufm.geometry.etf_classifier(K, d) or orthogonal rows. For others take "
            "ufm.solve"
        )
    return diagonal - beside


def _margin(K: int, pull: float) -> float:
    """The m > 0 with e^{−m}/(1 + (K−1)e^{−m}) = pull m, by Brent's method on the logarithms."""

    def excess(m: float) -> float:  # small decays make both sides themselves very small
        return -m - np.log1p((K - 1) * np.exp(-m)) - np.log(pull) - np.log(m)

    most = 1 / (K * pull)  # where pull · m is 1/K, the value of the left side at m = 0
    least = min(most, 1e-3) / 2
    while excess(least) < 0:
        least /= 2
    return float(scipy.optimize.brentq(excess, least, most, xtol=1e-300, rtol=1e-15, maxiter=500))
