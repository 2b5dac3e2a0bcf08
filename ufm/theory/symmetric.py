"""Global minimum of balanced classes under losses that treat all classes alike, in closed form.

Let the loss be invariant under permutations of the classes and convex (or the focal loss, whose
minimum is that of its convex hull), with n samples a class and d ≥ K−1. Then the logits of the
minimum are t(e_y − 1/K), plus β1 from b where the loss is not invariant under shifts, and

    f* = min_{t ≥ 0} φ(t) + (K−1) c t,     φ(t) = ℓ(t(e_y − 1/K) + β1; y),     c = √(n λ_W λ_H).

The minimiser is a simplex ETF of margin t, ‖W‖² = (K−1) t √(n λ_H/λ_W), or the origin if t = 0.

    label smoothing ε        p_wrong = c + ε/K,  t = log(1/p_wrong − (K−1));  0 iff Kc ≥ 1 − ε
    one scale a, shifts ι    p_wrong = c/a,  t = [log(a/c − (K−1)) − ι_own + ι_wrong]₊/a
    focal γ                  φ′(t) = −(K−1)c, by bisection
    binary, λ_b = 0          σ(z_wrong) = c,  1 − σ(z_own) = (K−1)c;  0 iff Kc ≥ 1

Sources: Zhou et al. 2022 (arXiv 2210.02192) for smoothing and focal; arXiv 2402.03979 for
smoothing; arXiv 2505.05813 for the binary loss. The tests compare the formulas with descents and
certificates. Scalars are computed in float64.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm.check import Refused, normal_decays
from ufm.losses import BinaryCrossEntropy, CrossEntropy, Focal, LogitAdjusted
from ufm.model import layers
from ufm.model.problem import Problem, check_problem
from ufm.runtime import programs
from ufm.theory import shared

_HALVINGS = 200


class Symmetric(NamedTuple):
    """The minimum for equal classes under a loss that treats all classes alike.

    t: margin, 0 at the origin.  beta: b = β1.  value: f*, in nats.
    own, wrong: uᵀSu and vᵀSv, u ∝ e_y − 1/K and v ∝ e_j − e_k, of the loss's Hessian S there.
    mean, mixed: 1ᵀS1/K and uᵀS1/√K; 0 for a loss that is invariant under shifts.
    """

    t: float
    beta: float
    value: float
    own: float
    wrong: float
    mean: float
    mixed: float


def fails(problem: Problem) -> str | None:
    """The first assumption that a problem does not meet, or None."""
    loss = problem.loss
    if (failed := shared.free(problem) or shared.labels(problem)) is not None:
        return failed
    if not isinstance(loss, CrossEntropy | BinaryCrossEntropy | Focal | LogitAdjusted):
        return f"a loss with a closed form (got {type(loss).__name__})"
    failed = shared.equal(problem) or shared.wide(problem) or shared.decays(problem)
    if failed is not None:
        return failed
    if isinstance(loss, BinaryCrossEntropy) and not (problem.bias and float(problem.lam_b) == 0):
        return "a bias without decay, lam_b = 0, for the binary loss"
    if isinstance(loss, LogitAdjusted) and _shifts(loss, problem.K) is None:
        return "one scale, and one shift of the own and one of the other logits"
    return None


def least(problem: Problem) -> Symmetric:
    """The minimum of a problem with scalar decays; formulas and sources at the module's head.

    Raises:
        Refused: naming the assumption that fails; array-valued or traced decays.
    """
    check_problem(problem)
    layers.require_free(problem, "ufm.theory.symmetric")
    normal_decays(problem)
    reason = fails(problem)
    if reason is not None:
        raise Refused(
            f"got a problem outside the closed form, which needs {reason}; bound the optimum with "
            "ufm.certify, or find it with ufm.solve"
        )
    K, loss = problem.K, problem.loss
    c = float(problem.n) ** 0.5 * float(problem.lam_W) ** 0.5 * float(problem.lam_H) ** 0.5
    if isinstance(loss, BinaryCrossEntropy):
        t, beta = _binary(K, c)
    else:
        t, beta = _MARGINS[type(loss)](loss, K, c), 0.0
    with jax.enable_x64(True):
        value, *curvature = _at(loss, K, t, beta)
    return Symmetric(t, beta, value + (K - 1) * c * t, *curvature)


def check_origin(problem: Problem) -> None:
    """Refuse a problem whose origin has no spectrum in closed form here.

    Raises:
        Refused: a loss that does not treat the classes alike, or changes under shifts where b has a
            decay.
    """
    loss = problem.loss
    free = problem.bias and float(problem.lam_b) == 0
    alike = (
        isinstance(loss, CrossEntropy | Focal)
        or (isinstance(loss, BinaryCrossEntropy) and free)
        or (isinstance(loss, LogitAdjusted) and _shifts(loss, problem.K) is not None)
    )
    if not alike or problem.targets is not None:
        raise Refused(
            f"got the loss {type(loss).__name__}: the closed form at the origin is that of losses "
            "that treat all classes alike and are invariant under shifts, or have a free bias; "
            "take ufm.hessian.spectrum at the critical point itself"
        )


def at_origin(problem: Problem) -> tuple[float, float, float]:
    """(‖G‖₂, s, 1ᵀS1/K) at W = H = 0, b = β1, where S is s times the identity on 1^⊥.

    S is the mean of the loss's Hessians over the classes; β = −log(K−1) for the binary loss and 0
    otherwise.
    """
    K, loss = problem.K, problem.loss
    beta = -float(np.log(K - 1)) if isinstance(loss, BinaryCrossEntropy) else 0.0
    with jax.enable_x64(True):
        Z, label = jnp.full((K, 1), beta), jnp.zeros(1, int)
        pull = -float(loss.residual(Z, label)[0, 0])
        _, own, wrong, mean, _ = _at(loss, K, 0.0, beta)
    return pull / ((K - 1) * float(problem.n) ** 0.5), (own + (K - 2) * wrong) / (K - 1), mean


def _at(loss, K: int, t: float, beta: float) -> tuple[float, float, float, float, float]:
    """φ(t) and own, wrong, mean, mixed there."""
    Z, label = np.zeros((K, 1)), np.zeros(1, int)
    Z[0] = t
    Z = Z - t / K + beta
    u = np.full(K, -1.0 / K)
    u[0] += 1
    v = np.zeros(K)
    v[1:3] = [1, -1] if K > 2 else [0]
    S, value = jax.tree.map(np.asarray, _evaluated(loss, Z, label))
    S = S.matrices()[0]
    own, size = float(u @ S @ u / (u @ u)), float(v @ v)
    mean, mixed = 0.0, 0.0
    if loss.null(K) is None:
        mean, mixed = float(np.sum(S) / K), float(u @ S.sum(axis=1) / (u @ u * K) ** 0.5)
    wrong = float(v @ S @ v / size) if size else own
    return float(value[0]), own, wrong, mean, mixed


@partial(programs.once, level=1)
def _evaluated(loss, Z, label):
    return loss.curvature(Z, label), loss.value(Z, label)


def _smoothed(loss: CrossEntropy, K: int, c: float) -> float:
    eps = float(loss.smoothing)
    wrong = c + eps / K
    return float(np.log1p(max(1 - eps - K * c, 0.0) / wrong))


def _adjusted(loss: LogitAdjusted, K: int, c: float) -> float:
    a, (own, other) = float(loss.scale), _shifts(loss, K) or (0.0, 0.0)
    if a <= (K - 1) * c:
        return 0.0
    return max(float((np.log(a / c - (K - 1)) - own + other) / a), 0.0)


def _shifts(loss: LogitAdjusted, K: int) -> tuple[float, float] | None:
    """(ι_own, ι_wrong) where there is one scale and these are common to all classes."""
    if np.ndim(loss.scale):
        return None
    shift = np.asarray(loss.shift, float)
    if shift.ndim < 2:
        return (0.0, 0.0) if np.ptp(shift) == 0 else None
    own, other = np.diagonal(shift), shift[~np.eye(K, dtype=bool)]
    if np.ptp(own) or np.ptp(other):
        return None
    return float(own[0]), float(other[0])


def _binary(K: int, c: float) -> tuple[float, float]:
    if K * c >= 1:
        return 0.0, -float(np.log(K - 1))
    other = float(np.log(c) - np.log1p(-c))
    wrong = (K - 1) * c
    t = float(np.log1p(-wrong) - np.log(wrong)) - other
    return t, other + t / K


def _focal(loss: Focal, K: int, c: float) -> float:
    """The largest t with φ′(t) ≤ −(K−1)c, unless the origin is lower."""
    with jax.enable_x64(True):
        return float(_halved(loss, K, c))


@partial(jax.jit, static_argnums=1)
def _halved(loss: Focal, K: int, c):
    label = jnp.zeros(1, int)

    def at(t):
        return jnp.zeros((K, 1)).at[0].set(t) - t / K

    def steep(t):  # φ′ = ⟨r, e_y − 1/K⟩ = r_y, since 1ᵀr = 0
        return loss.residual(at(t), label)[0, 0] < -(K - 1) * c

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        down = steep(middle)
        return jnp.where(down, middle, low), jnp.where(down, high, middle)

    ends = jnp.zeros(()), jnp.full((), 1600.0)
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    t = (low + high) / 2
    f = [loss.value(at(x), label)[0] + (K - 1) * c * x for x in (jnp.zeros(()), t)]
    return jnp.where(steep(0.0) | (f[1] < f[0]), t, 0.0)


_MARGINS: dict[Any, Any] = {CrossEntropy: _smoothed, Focal: _focal, LogitAdjusted: _adjusted}
