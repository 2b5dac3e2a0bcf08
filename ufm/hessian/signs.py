"""Index and nullity of the Hessian at any point, however many samples there are.

After the reductions of `ufm.hessian.reduction` the H-block of ∇²f − σI is block diagonal with
blocks A_j = w_j WᵀS_jW + (λ_j−σ)I, λ_j = λ_H ω_j, so by Haynsworth's additivity of inertia (1968)

    #{λ < σ} = Σ_j #{negative eigenvalues of A_j} + #{negative eigenvalues of C(σ)},

C(σ) the Schur complement on (W, b), of size K(s+1) whatever N is. With h̃ = (h, 1), B = w_j S_jW,
U = BA_j⁻¹ and m_j the samples of column j it is a sum of Kronecker products: its entry at the
variables (k, a) and (l, b) of [W b] is

    decay − σδ + Σ_j m_j [ (w_j S_j − UBᵀ)_kl h̃_a h̃_b − h̃_a U_kb G_l − G_k U_la h̃_b
                           − G_k G_l (A_j⁻¹)_ab ]

(U and A_j⁻¹ are 0 at the bias), which is assembled as matrix products of shapes (s², M)·(M, K²)
over blocks of samples. Its negative eigenvalues are counted from an LDLᵀ factorisation.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ufm.check import Refused, real
from ufm.hessian import tangents
from ufm.hessian.reduction import (
    EPS,
    SAMPLE_BLOCK,
    Core,
    check_memory,
    decay_diagonal,
    feature_eigenvalues,
    lifted,
    outside,
    reduced,
)
from ufm.model import layers
from ufm.model.evaluation import residuals
from ufm.model.problem import Params, Problem, require
from ufm.runtime.threads import lapack_on_one_thread
from ufm.theory.spectra import Spectrum


class Inertia(NamedTuple):
    """How many eigenvalues of ∇²f lie below, at and above a shift.

    negative: those below shift − tolerance (the Morse index at shift 0).
    zero: those within the tolerance of the shift, exactly equal to it or not.
    positive: those above shift + tolerance.
    tolerance, shift: in the units of ∇²f.
    note: a warning if eigenvalues as small as the decays may be within the tolerance; otherwise
        empty.
    """

    negative: int
    zero: int
    positive: int
    tolerance: float
    shift: float
    note: str = ""


def width_of(core: Core) -> int:
    """Rows of C(σ): the variables W and b of the core."""
    return core.W.shape[0] * (core.W.shape[1] + core.bias)


# A bisection asks for the same few sizes again and again.
@lru_cache(maxsize=8)
def _upper(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(size)


def _packed_products(X: np.ndarray) -> np.ndarray:
    """x_a x_b for a ≤ b, one row a sample."""
    rows, columns = _upper(X.shape[1])
    return X[:, rows] * X[:, columns]


def _packed(A: np.ndarray) -> np.ndarray:
    """Upper triangles of symmetric matrices, one row each."""
    rows, columns = _upper(A.shape[1])
    return A[:, rows, columns]


@lru_cache(maxsize=8)
def _unpacked_index(size: int) -> np.ndarray:
    """Where entry (a, b) of a symmetric matrix lies in its packed upper triangle."""
    index = np.zeros((size, size), int)
    rows, columns = _upper(size)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return index


def complement(core: Core, sigma: float) -> np.ndarray:
    """C(σ), the Schur complement of ∇²f − σI on (W, b) in the core; see the module's head.

    Memory O((Ks)²) and O(K² + s²) a sample of a block, never O(Ks·N).
    """
    K, s, r = *core.W.shape, core.rank
    features = lifted(core)
    width = features.shape[1]
    own = np.zeros((width * (width + 1) // 2, K * (K + 1) // 2))
    mixed = np.zeros((K * r, width * K))
    turned = np.zeros((K * (K + 1) // 2, r * (r + 1) // 2))
    for start in range(0, len(features), SAMPLE_BLOCK):
        part = slice(start, start + SAMPLE_BLOCK)
        h, g, weights = features[part], core.G[:, part].T, core.merged[part, None]
        S = core.S.columns(part).matrices() * core.weight[part, None, None]
        B = S @ core.W[:, :r]
        A = core.W[:, :r].T @ B + (core.decay[part] - sigma)[:, None, None] * np.eye(r)
        # Solved for, not multiplied: B A⁻¹ Bᵀ is of order 1 where A⁻¹ is as large as 1/λ_H.
        units = np.broadcast_to(np.eye(r), A.shape)
        solved = np.linalg.solve(A, np.concatenate([B.transpose(0, 2, 1), units], axis=2))
        U, A_inverse = solved[:, :, :K].transpose(0, 2, 1), solved[:, :, K:]
        own += _packed_products(h).T @ (weights * _packed(S - U @ B.transpose(0, 2, 1)))
        pairs = (h[:, :, None] * g[:, None, :]).reshape(len(h), -1)
        mixed += (weights * U.reshape(len(h), -1)).T @ pairs
        turned += _packed_products(g).T @ (weights * _packed(A_inverse))
    classes, dims = _unpacked_index(K), _unpacked_index(width)
    C = own[dims[None, :, None, :], classes[:, None, :, None]]
    cross = mixed.reshape(K, r, width, K).transpose(0, 2, 3, 1)
    C[..., :r] -= cross
    C[:, :r] -= cross.transpose(2, 3, 0, 1)
    C[:, :r, :, :r] -= turned[classes[:, None, :, None], _unpacked_index(r)[None, :, None, :]]
    gram = (core.G * (core.merged / (core.decay - sigma))) @ core.G.T
    for a in range(r, s):
        C[:, a, :, a] -= gram
    C = C.reshape(K * width, K * width)
    C[np.diag_indices_from(C)] += decay_diagonal(core, width) - sigma
    return C


def negatives(C: np.ndarray) -> int:
    """Negative eigenvalues of a symmetric matrix, from its pivots (Bunch and Kaufman 1977).

    LDLᵀ with 1×1 and 2×2 pivots has the inertia of C (Sylvester); each 2×2 pivot is chosen with a
    negative determinant, so it holds one eigenvalue of either sign.
    """
    if C.shape[0] == 0:
        return 0
    # DCD has the same inertia. With a diagonal near 1 the large entries of W, of size ‖G‖²/λ_H, do
    # not round away the small ones of b. Powers of 2 are exact.
    unit = np.exp2(-np.round(np.log2(np.maximum(np.abs(np.diagonal(C)), np.finfo(float).tiny)) / 2))
    C = C * unit[:, None] * unit
    work, _ = scipy.linalg.lapack.dsytrf_lwork(C.shape[0], lower=1)
    # C is symmetric: its transpose is the same matrix in the order that LAPACK overwrites. On one
    # thread: its panels are many short calls, whose threads wait for each other (0.45 s at 3,250
    # rows against 2 to 14 s on two cores that have other work).
    with lapack_on_one_thread():
        factor, pivots, _ = scipy.linalg.lapack.dsytrf(C.T, lower=1, lwork=int(work), overwrite_a=1)
    singles = pivots > 0
    return int(np.sum(np.diagonal(factor)[singles] < 0)) + int(np.sum(~singles)) // 2


class Rounding(NamedTuple):
    """Size of the rounding errors of a count at σ: ε (‖∇²f‖ + |σ| + ‖Ĝ‖²/gap).

    gap is the distance from σ to the eigenvalues of the H-block, by which elimination divides.
    Below the least decay λ_H of a feature and λ_W it is λ_H − σ + λ_W − σ: elimination errs by
    E = ε‖Ĝ‖²/(λ_H − σ) in C(σ),
    which moves a zero of xᵀC(σ)x by E/(1 + ‖y‖²) only, y = A⁻¹Bᵀx its part in H; and where xᵀCx = 0
    by cancellation of G, (λ_H − σ)‖y‖² ≥ (λ_W − σ)‖x‖². Where G has no part in x, E must be small
    beside λ_W − σ for that.

    size: of ∇²f.  pairing: ‖Ĝ‖.  decays: λ_W and λ_H.
    """

    size: float
    pairing: float
    decays: tuple[float, float]

    def at(self, sigma: float, poles: np.ndarray) -> float:
        """The size of the errors at σ, with the eigenvalues of the H-block at poles."""
        gap = float(np.min(np.abs(poles - sigma), initial=np.inf))
        left = self.decays[0] - sigma
        if sigma < self.decays[1] and 64 * EPS * self.pairing**2 <= gap * left:
            gap += left
        coupled = self.pairing * min(self.pairing / gap, 1 / EPS) if gap > 0 else self.pairing / EPS
        return float(EPS * (self.size + abs(sigma) + coupled))


def rounding(core: Core) -> Rounding:
    """The size of the rounding errors at a point."""
    features = lifted(core) * np.sqrt(core.merged * core.weight)[:, None]
    moment = np.linalg.norm(features.T @ features, 2)
    data = np.linalg.norm(core.W, 2) ** 2 * np.max(core.weight) + moment
    size = max(*core.decays, float(np.max(core.decay))) + core.smoothness * data
    pairing = np.linalg.norm(core.pairing, 2)
    return Rounding(float(size), float(pairing), (core.decays[0], float(np.min(core.decay))))


def inertia(
    problem: Problem, point: Params, shift: float = 0.0, tolerance: float | None = None
) -> Inertia:
    """Count the eigenvalues of ∇²f below, at and above a shift, at any point, without the matrix.

    The features are eliminated, so that the largest matrix has K(s+1) ≤ K(d+1) rows whatever N is,
    s the rank of [Wᵀ, H] (see `ufm.hessian.signs`). zero = #{λ < shift + τ} − #{λ < shift − τ}.
    Only an eigenvalue within rounding (about 1e-16 ‖∇²f‖) of shift ± τ may fall on either side of
    it.

    At a critical point known to a residual r = ‖∇f‖ the eigenvalues along its symmetry orbit are
    not 0 but O(r/‖W‖): polish it first (`ufm.solve`), or give a tolerance above that.

    On the sphere of the Hessian in tangents, at any point (`ufm.hessian.tangents`), with a
    tolerance of 1e-11 times the largest modulus.

    Args:
        problem: any problem, any class counts, with scalar decays.
        point: any point, upcast to float64.
        shift: σ in the units of ∇²f.
        tolerance: τ > 0; None takes 1024 times the rounding errors; for a shift below λ_H at most a
            quarter of the distance to λ_H, but at least 64 times these errors. Eigenvalues that are
            known in closed form are then compared with the smaller errors of these forms.

    Raises:
        Refused: a tolerance below 32 times the rounding errors, which grow where σ ± τ meets an
            eigenvalue of the H-block (from λ_H on); a shift that is no finite number; a
            complement beyond 2 GiB; wrong shapes, or entries that are not finite or beyond 1e150;
            arrays that are not real floating, array-valued decays, traced values.
    """
    shift = real("shift", shift)
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, above=0, also="or None")
    require(problem)
    if problem.features == "sphere":
        return inertia_of(tangents.spectrum(problem, point, 0.0), shift, tolerance)
    layers.require_free(problem, "hessian.inertia")
    return counted(problem, reduced(residuals(problem, point)), shift, tolerance)


def counted(
    problem: Problem, core: Core, shift: float = 0.0, tolerance: float | None = None
) -> Inertia:
    """`inertia` at a point that has been reduced to its core."""
    check_memory(width_of(core), "Schur complement", core)
    lam_H = float(np.min(core.decay))
    margin, poles, needed = _margin(core, shift, tolerance)
    edges = (shift - margin, shift + margin)
    if not margin >= needed:
        raise Refused(
            f"got tolerance={margin:.3g} at shift={shift:.6g}, where rounding alone needs "
            f"{needed:.3g}: eigenvalues this close to the shift are undecided. Raise the "
            f"tolerance, or move the shift away from lam_H={lam_H:.6g}"
        )
    closed = _closed_margin(core, shift, margin) if tolerance is None else margin
    values, multiplicities = (np.asarray(x) for x in outside(core))
    below = []
    for edge, outer in zip(edges, (shift - closed, shift + closed), strict=True):
        count = int(np.sum(multiplicities[values < outer]))
        if edge > lam_H or not core.convex:
            count += int(np.sum(poles < edge))
        below.append(count + negatives(complement(core, edge)))
    lower, upper = below
    note = _note(core, shift, margin)
    return Inertia(lower, upper - lower, problem.size - upper, margin, shift, note)


def _margin(core: Core, shift: float, tolerance: float | None) -> tuple[float, np.ndarray, float]:
    """(τ, the eigenvalues of the H-block to keep away from, the least τ that rounding allows)."""
    lam_H, error = float(np.min(core.decay)), rounding(core)
    poles = np.array([lam_H])
    margin = 1024 * error.at(shift, poles) if tolerance is None else tolerance
    if tolerance is None and shift < lam_H:
        margin = min(margin, max(margin / 16, (lam_H - shift) / 4))
    if shift + margin >= lam_H or not core.convex:
        s, M = core.H.shape
        poles = (core.decay[:, None] + feature_eigenvalues(core, np.arange(M))).ravel()
        poles = np.append(poles, np.repeat(core.decay, s - core.rank))
        margin = 1024 * error.at(shift, poles) if tolerance is None else margin
    if tolerance is None:  # at a pole itself the errors are infinite, a little beside it not
        margin = min(margin, 64 * EPS**0.5 * (error.size + abs(shift) + error.pairing))

    def needed() -> float:
        return 32 * max(error.at(edge, poles) for edge in (shift - margin, shift + margin))

    while tolerance is None and margin < needed():
        margin *= 2
    return float(margin), poles, needed()


def _closed_margin(core: Core, shift: float, margin: float) -> float:
    """τ for the eigenvalues outside the core, whose only error is that of ‖Ĝ‖ and the decays.

    Those of merged samples are λ_H and more; from there on they have the errors of the others.
    """
    pairing = float(np.linalg.norm(core.pairing, 2))
    largest = max(core.decays[0], float(np.max(core.decay)))
    closed = 1024 * EPS * (largest + pairing + abs(shift))
    return min(margin, closed) if shift + closed < np.min(core.decay) else margin


def _note(core: Core, shift: float, margin: float) -> str:
    lam_W, lam_H, lam_b = core.decays[0], float(np.min(core.decay)), core.decays[2]
    least = min(lam for lam in (lam_W, lam_H, lam_b if core.bias else 0.0, np.inf) if lam > 0)
    if not abs(shift) <= margin or margin < least < np.inf:
        return ""
    return (
        f"the tolerance {margin:.3g} exceeds the smallest decay {least:.3g}: eigenvalues of that "
        "size count as zero"
    )


def inertia_of(spectrum: Spectrum, shift: float = 0.0, tolerance: float | None = None) -> Inertia:
    """Index and nullity of a spectrum: how many eigenvalues lie below, at and above a shift.

    Args:
        spectrum: from `spectrum`, or a closed form.
        shift: σ.
        tolerance: τ ≥ 0; None takes 1e-11 times the largest modulus.

    Raises:
        Refused: no spectrum, a shift or tolerance that is no finite number.
    """
    if not isinstance(spectrum, Spectrum):
        raise Refused(f"got a {type(spectrum).__name__} as spectrum; allowed: a hessian.Spectrum")
    values, shift = spectrum.eigenvalues, real("shift", shift)
    if tolerance is None:
        tolerance = 1e-11 * float(np.max(np.abs(values)))
    tolerance = real("tolerance", tolerance, least=0, also="or None")
    pairs = list(zip(values, spectrum.multiplicities, strict=True))
    lower = sum(m for v, m in pairs if v < shift - tolerance)
    upper = sum(m for v, m in pairs if v > shift + tolerance)
    return Inertia(lower, sum(spectrum.multiplicities) - lower - upper, upper, tolerance, shift)
