"""Candidates for minima below d = K−1: a code, scaled as the decays ask for it.

With unit rows u_k, W = aU and the features of class k at c u_k,

    f = Σ_k s_k log Σ_j e^{r(⟨u_j, u_k⟩ − 1)} + μ r ‖U‖ (Σ_k n_k ω_k‖u_k‖²)^½,    r = ac,

at the best a/c, s_k the weight of class k: convex in r. The least value over r is one of f at a
point of the problem, so f* is no larger. For a simplex it is f*; for codes whose symmetries carry
every vector to every other and leave no direction apart (polygon, orthoplex, icosahedron) the point
is critical: octahedron, K = 6, d = 3, n = 1: min_r log(1 + 4e^{−r} + e^{−2r}) + 6μr. That it is the
lowest is a candidate for a claim, held against descents by experiment c17. The limit λ → 0 is that
of Jiang et al. 2023, arXiv 2310.05351. On the sphere a code has one scale, the temperature's
(`ufm.theory.sphere`).
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported at first use

from ufm.check import Refused, normal_decays
from ufm.model import layers
from ufm.model.fixed import check_free, classifier
from ufm.model.problem import Params, Problem
from ufm.theory import minimum, sphere
from ufm.theory.softmax_codes import SOURCE, codes

_FAR = 2.0**10  # the largest logit that is looked at


class CodeMinimum(NamedTuple):
    """The least value of f over the scalings of a code.

    value: in nats, never below f*. scale: r = ac for W = aU and features c u_k, 0 where decay wins;
        τ on the sphere.
    params: the point, float64 of NumPy, b = 0.
    """

    value: float
    scale: float
    params: Params


def fails(problem: Problem) -> str | None:
    """The first assumption of `code_minimum` that a problem does not meet, or None."""
    if not minimum.plain(problem):
        return "plain cross-entropy of labels"
    if not min(float(problem.lam_W), float(problem.lam_H)) > 0:
        return f"lam_W, lam_H > 0 (got lam_W={problem.lam_W}, lam_H={problem.lam_H})"
    return None


def claim(problem: Problem) -> tuple[str, str, str | None, str, str]:
    """What is conjectured below d = K−1, as the fields of `ufm.theory.Claim`."""
    alike = None if problem.balanced and problem.uniform else "equal classes of one weight"
    failed = "; ".join(x for x in (fails(problem), alike) if x is not None) or None
    statement = (
        "As the decays fall to 0 the rows of the minimum tend to a softmax code in direction; "
        "ufm.theory.code_minimum gives the value of a scaled code, which for an orthoplex (K = 2d) "
        "or a polygon is a critical point and the lowest found at small decays."
    )
    return "code", statement, failed, f"{SOURCE}; experiment c17", "candidate"


def code_minimum(problem: Problem, rows=None, key=0) -> CodeMinimum:
    """The least value of f over W = aU and h = c u_k for a code U, and the point that has it.

    Args:
        problem: plain cross-entropy with labels, λ_W, λ_H > 0; any counts and weights, any bias.
            On the sphere cross-entropy with one temperature; rows of norm 1 then.
        rows: (K, d), the code; None takes `ufm.theory.codes(K, d, key)`.
        key: seed or JAX PRNG key of the search for a code.

    Raises:
        Refused: naming the assumption that fails; rows of another shape; array-valued decays.
    """
    check_free(problem)
    if problem.features == "sphere":
        K, d = problem.K, problem.d
        U = codes(K, d, key).rows if rows is None else classifier(problem, rows)
        return CodeMinimum(*sphere.at_rows(problem, U))
    layers.require_free(problem, "theory.code_minimum")
    normal_decays(problem)
    if (reason := fails(problem)) is not None:
        raise Refused(f"got a problem outside the form, which needs {reason}; take ufm.solve")
    U = codes(problem.K, problem.d, key).rows if rows is None else classifier(problem, rows)
    shares = problem.class_weights * problem.counts
    depths = U @ U.T
    depths = (depths - np.diagonal(depths)[:, None]).T  # column k: ⟨u_j, u_k⟩ − ‖u_k‖² over j
    square = np.sum(U**2, axis=1)
    left = float(problem.lam_W) * float(np.sum(square))
    right = float(problem.counts @ (problem.class_decays * square))
    pull = (left * right) ** 0.5

    def slope(r: float) -> float:
        P = scipy.special.softmax(r * depths, axis=0)
        return pull + float(shares @ np.sum(P * depths, axis=0))

    r = 0.0
    if slope(0.0) < 0:
        far = 1.0
        while slope(far) < 0 and far < _FAR:
            far *= 2
        r = float(scipy.optimize.brentq(slope, 0.0, far, xtol=1e-14)) if slope(far) >= 0 else far
    value = float(shares @ scipy.special.logsumexp(r * depths, axis=0)) + pull * r
    tilt = (right / left) ** 0.25 if pull > 0 else 1.0
    W, H = r**0.5 * tilt * U, r**0.5 / tilt * U.T[:, problem.labels]
    return CodeMinimum(value, r, Params(W, H, np.zeros(problem.K)))
