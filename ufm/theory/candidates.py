"""Candidates for minima below d = K−1: a code whose scale is optimised.

With code vectors u_k as rows of U, W = aU and features c u_k of class k,

    f = Σ_k s_k log Σ_j e^{r(⟨u_j, u_k⟩ − ‖u_k‖²)} + μ r ‖U‖ (Σ_k n_k ω_k‖u_k‖²)^½,    r = ac,

at the best ratio a/c, where s_k is the weight of class k in the loss; f is convex in r. Its least
value over r is attained at a point of the problem, so f* is no larger; for a simplex and equal
classes it is f*. For codes with a transitive symmetry group that fixes no direction (polygon,
orthoplex, icosahedron) the point is critical; for the octahedron, K = 6, d = 3, n = 1, the value is
min_r log(1 + 4e^{−r} + e^{−2r}) + 6μr. That this is the lowest value is conjectured; experiment c17
compares it with descents. The limit λ → 0 is treated by Jiang et al. 2023, arXiv 2310.05351. On
the sphere r is the inverse temperature τ of the loss (`ufm.theory.sphere`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported at first use

from ufm.check import Refused, normal_decays
from ufm.losses.crossentropy import probabilities
from ufm.model import layers
from ufm.model.fixed import check_free, classifier
from ufm.model.problem import Params, Problem
from ufm.theory import shared, sphere
from ufm.theory.softmax_codes import SOURCE, codes

_FAR = 2.0**10  # the largest r that is tried


class CodeMinimum(NamedTuple):
    """The least value of f over the scalings of a code.

    value: in nats, never below f*.
    scale: r = ac for W = aU and features c u_k; 0 where the decays make W = H = 0 the best scaling;
        τ on the sphere.
    params: W (K, d), H (d, N) and b = 0 (K,) there, in NumPy float64.
    """

    value: float
    scale: float
    params: Params


def fails(problem: Problem) -> str | None:
    """The assumptions of `code_minimum` that a problem does not meet, or None."""
    return shared.joined(shared.cross_entropy(problem), shared.decays(problem))


def claim(problem: Problem) -> shared.Claim:
    """What is conjectured below d = K−1."""
    return shared.Claim(
        "code",
        "As the decays fall to 0 the rows of the minimum tend to a softmax code in direction; "
        "ufm.theory.code_minimum gives the value of a scaled code, which for an orthoplex (K = 2d) "
        "or a polygon is a critical point and the lowest found at small decays.",
        shared.joined(fails(problem), shared.alike(problem)),
        f"{SOURCE}; experiment c17",
        "candidate",
    )


def code_minimum(problem: Problem, rows=None, key=0) -> CodeMinimum:
    """The least value of f over W = aU and h = c u_k for a code U, and the point that attains it.

    Source: Jiang et al. 2023, arXiv 2310.05351, for the limit; formula at `ufm.theory.candidates`.

    Args:
        problem: plain cross-entropy with labels, λ_W, λ_H > 0; any counts and weights, any bias.
            On the sphere, cross-entropy with one temperature.
        rows: (K, d), the code U, of unit rows on the sphere; None takes
            `ufm.theory.codes(K, d, key)`.
        key: seed or JAX PRNG key for the search of a code.

    Raises:
        Refused: the assumption that fails; rows of another shape; array-valued decays.
    """
    check_free(problem)
    if problem.features == "sphere":
        return CodeMinimum(*sphere.at_rows(problem, _rows(problem, rows, key)))
    layers.require_free(problem, "theory.code_minimum")
    normal_decays(problem)
    if (reason := fails(problem)) is not None:
        raise Refused(f"got a problem outside the form, which needs {reason}; take ufm.solve")
    U = _rows(problem, rows, key)
    shares = problem.class_weights * problem.counts
    depths = U @ U.T
    depths = (depths - np.diagonal(depths)[:, None]).T  # column k: ⟨u_j, u_k⟩ − ‖u_k‖² over j
    square = np.sum(U**2, axis=1)
    # Roots first: the product of two small decays would underflow.
    left = (float(problem.lam_W) * float(np.sum(square))) ** 0.5
    right = float(problem.counts @ (problem.class_decays * square)) ** 0.5
    pull = left * right

    def slope(r: float) -> float:
        with jax.enable_x64(True):
            P = np.asarray(probabilities(jnp.asarray(r * depths)))
        return pull + float(shares @ np.sum(P * depths, axis=0))

    r = 0.0
    if slope(0.0) < 0:
        far = 1.0
        while slope(far) < 0 and far < _FAR:
            far *= 2
        r = float(scipy.optimize.brentq(slope, 0.0, far, xtol=1e-14)) if slope(far) >= 0 else far
    # log(1 + Σ over the wrong classes), with full relative accuracy where that sum is small.
    wrong = scipy.special.logsumexp(r * depths, axis=0, b=1 - np.eye(len(U)))
    value = float(shares @ np.logaddexp(0, wrong)) + pull * r
    ratio = (right / left) ** 0.5 if pull > 0 else 1.0
    W, H = r**0.5 * ratio * U, r**0.5 / ratio * U.T[:, problem.labels]
    return CodeMinimum(value, r, Params(W, H, np.zeros(problem.K)))


def _rows(problem: Problem, rows, key) -> np.ndarray:
    """The code that is given, or the one of `codes`, (K, d)."""
    return codes(problem.K, problem.d, key).rows if rows is None else classifier(problem, rows)
