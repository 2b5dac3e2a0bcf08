"""The smallest and the largest eigenvalue of ∇²f at any point; large problems without the matrix.

Outside the core of `ufm.hessian.reduction` all eigenvalues have closed forms; a core of a few
hundred rows is solved as a matrix. For a larger one, a σ below all eigenvalues of the H-block is an
eigenvalue exactly if the complement C(σ) of `ufm.hessian.schur` is singular. The eigenvalues of
C(σ), in order, decrease with σ, since

    C'(σ) = −1 − B (A − σ)⁻² Bᵀ,

so the smallest eigenvalue of ∇²f is the only zero of the lowest one, which Brent's method finds in
about ten steps; above the H-block the same holds for the largest. If there is no eigenvalue below
the H-block, the smallest one is found by bisection on the count of negative eigenvalues.

Off the symmetry orbit, with the rows of Q an orthonormal basis of its q tangents, the eigenvalues
of ∇²f on the complement of Q are those of the bordered matrix [[∇²f − σ, Qᵀ], [Q, 0]], which has q
negative eigenvalues more than there are below σ.
"""

from collections.abc import Callable

import numpy as np
import scipy  # scipy.optimize is imported at first use
import scipy.linalg

from ufm import check
from ufm.hessian import reduction, schur, signs
from ufm.hessian.reduction import EPS, SAMPLE_BLOCK, Core, lifted
from ufm.model import layers
from ufm.model.evaluation import residuals
from ufm.model.problem import Params, Problem
from ufm.runtime.threads import lapack_on_one_thread

DENSE = 600  # rows of a core up to which it is solved as a matrix: as fast as ten complements
BESIDE = 1e-10  # how near to an eigenvalue of the H-block a zero is looked for, relative to it


def smallest(problem: Problem, params: Params, *, orbit: bool = False) -> float:
    """The smallest eigenvalue of ∇²f, to rounding (about 1e-15 ‖∇²f‖), in the units of ∇²f.

    For convex ℓ and d ≥ K: (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²) at a critical point that is not
    a global minimiser (`ufm.theory.landscape`), and 0, along the symmetry orbit, at a minimiser
    other than the origin.

    Args:
        problem: any problem with free features, any class counts, with scalar decays.
        params: any point, converted to float64.
        orbit: restrict ∇²f to the tangents orthogonal to the O(d) orbit (and to b ∝ 1 if λ_b = 0),
            along which it vanishes at critical points, as `extreme` does.

    Raises:
        Refused: a matrix beyond 2 GiB; wrong shapes, entries that are not finite; arrays that are
            not real floating, array-valued decays, traced values; features that are not free, a
            fixed classifier.
    """
    orbit = check.flag("orbit", orbit)
    layers.require_free(problem, "hessian.smallest")
    return of_core(problem, reduction.reduced(residuals(problem, params)), orbit)


def of_core(problem: Problem, core: Core, orbit: bool = False) -> float:
    """`smallest` at a point that has been reduced to its core.

    Raises:
        Refused: a matrix beyond 2 GiB.
    """
    rows = tangents(problem, core) if orbit else np.zeros((0, size_of(core)))
    outer = _outside(core, orbit)
    if size_of(core) <= DENSE:
        return min(outer, _dense(core, rows)[0])
    reduction.check_memory(len(rows) + schur.width_of(core), "Schur complement", core)
    error = signs.rounding(core)
    poles = schur.poles(core)
    least = _least(core, error.size)
    top = float(min(outer, np.min(poles)))
    top -= BESIDE * abs(top) + 64 * EPS * error.size

    def lowest(sigma: float) -> float:
        C = _bordered(core, rows, sigma) if orbit else schur.complement(core, sigma)
        return _eigenvalue(C, len(rows))

    if least >= top:
        return outer
    if lowest(top) < 0:
        least -= 64 * EPS * error.size + BESIDE * abs(least)
        return min(outer, float(_zero(lowest, least, top, error.size)))
    if outer <= np.min(poles):
        return outer
    return min(outer, _bisected(core, rows, poles, (top, float(np.max(poles) + 2 * error.size))))


def largest(problem: Problem, params: Params) -> float:
    """The largest eigenvalue of ∇²f, to rounding (about 1e-15 ‖∇²f‖), in the units of ∇²f.

    Args:
        problem: any problem with free features, any class counts, with scalar decays.
        params: any point, converted to float64.

    Raises:
        Refused: as `smallest`.
    """
    layers.require_free(problem, "hessian.largest")
    core = reduction.reduced(residuals(problem, params))
    outer = float(np.max(_present(*reduction.outside(core)), initial=-np.inf))
    if size_of(core) <= DENSE:
        return max(outer, _dense(core, np.zeros((0, size_of(core))))[1])
    reduction.check_memory(schur.width_of(core), "Schur complement", core)
    error, top = signs.rounding(core), float(np.max(schur.poles(core)))
    low = top + BESIDE * abs(top) + 64 * EPS * error.size

    def highest(sigma: float) -> float:
        C = schur.complement(core, sigma)
        return _eigenvalue(C, len(C) - 1)

    if highest(low) <= 0:
        return max(outer, top)
    return max(outer, _zero(highest, low, low + 2 * (error.size + error.pairing), error.size))


def outermost(core: Core, k: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """(θ, ‖∇²f v − θv‖) of the k smallest and of the k largest eigenvalues, outermost first.

    Eigenvalues are repeated according to their multiplicity. For a core of at most `DENSE` rows,
    which is solved as a matrix, without compiling. Outside the core, where θ and v have closed
    forms, the residual is the rounding of θ.

    Args:
        core: of a point.
        k: at most the number of eigenvalues.

    Returns:
        (smallest, largest), a pair of arrays (k,) each, in the units of ∇²f.
    """
    matrix = reduction.core_matrix(core)
    values, vectors = np.linalg.eigh(matrix)
    residuals = np.linalg.norm(matrix @ vectors - vectors * values, axis=0)
    outer, multiplicities = reduction.outside(core)
    outer = np.repeat(outer, np.minimum(multiplicities, k))
    values = np.concatenate([values, outer])
    rounding = EPS * np.max(np.abs(values))
    residuals = np.concatenate([residuals, np.full(len(outer), rounding)])
    orders = (np.argsort(sign * values, kind="stable")[:k] for sign in (1, -1))
    return tuple((values[order], residuals[order]) for order in orders)


def size_of(core: Core) -> int:
    """K(s+1) + sM, the rows of the matrix of a core."""
    return schur.width_of(core) + core.H.size


def tangents(problem: Problem, core: Core) -> np.ndarray:
    """An orthonormal basis, as rows, of the tangents of the symmetry orbit in the core.

    (W Aᵀ, A H) for antisymmetric A, and the null direction of the loss in b if λ_b = 0; the columns
    are in the order of `reduction.core_matrix`.

    Raises:
        Refused: a basis beyond 2 GiB.
    """
    (K, s), M = core.W.shape, core.H.shape[1]
    pairs, width = np.stack(np.tril_indices(s, -1), axis=1), s + core.bias
    null = problem.loss.null(K) if core.bias and core.decays[2] == 0 else None
    count = len(pairs) + (null is not None)
    reduction.check_memory(int((count * size_of(core)) ** 0.5), "basis of the orbit", core)
    outer, inner = np.zeros((count, K, width)), np.zeros((count, M, s))
    root = np.sqrt(core.merged)
    for row, (a, b) in enumerate(pairs):
        outer[row, :, a], outer[row, :, b] = -core.W[:, b], core.W[:, a]
        inner[row, :, a], inner[row, :, b] = -core.H[b] * root, core.H[a] * root
    if null is not None:
        outer[-1, :, s] = null
    parts = outer.reshape(count, K * width), inner.reshape(count, M * s)
    rows = np.concatenate(parts, axis=1)
    return np.linalg.qr(rows.T)[0].T


def _dense(core: Core, rows: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest eigenvalue of the core on the complement of orthonormal rows."""
    matrix = reduction.core_matrix(core)
    if not len(matrix) - len(rows):
        return np.inf, -np.inf
    if len(rows):
        # (1 − QᵀQ) M (1 − QᵀQ), plus a multiple of QᵀQ beyond its largest eigenvalue.
        half = rows @ matrix
        matrix = matrix - rows.T @ half - half.T @ rows + rows.T @ (half @ rows.T) @ rows
        matrix += 2 * np.max(np.sum(np.abs(matrix), axis=1)) * (rows.T @ rows)
    values = np.linalg.eigvalsh(matrix)
    return float(values[0]), float(values[len(values) - len(rows) - 1])


def _present(values: np.ndarray, multiplicities: list[int]) -> np.ndarray:
    return np.asarray(values)[np.asarray(multiplicities) > 0]


def _outside(core: Core, orbit: bool) -> float:
    """The smallest eigenvalue outside the core, ∞ where there is none."""
    values = _present(*reduction.outside(core._replace(idle=0) if orbit else core))
    least = float(np.min(values, initial=np.inf))
    if orbit and core.idle:
        # An idle dimension a holds the tangents (W c aᵀ, a cᵀH) of the orbit, one for each c.
        rows = np.concatenate([core.W.T, core.H * np.sqrt(core.merged)], axis=1)
        Q = np.linalg.qr(rows.T)[0]
        matrix = reduction.free_matrix(core)
        half = matrix @ Q
        matrix = matrix - half @ Q.T - Q @ half.T + Q @ (Q.T @ half) @ Q.T
        matrix += 2 * np.max(np.sum(np.abs(matrix), axis=1)) * (Q @ Q.T)
        least = min(least, float(np.linalg.eigvalsh(matrix)[0]))
    return least


def _least(core: Core, size: float) -> float:
    """A lower bound on all eigenvalues: min(λ_b, λ₋) for a convex loss (`ufm.theory.landscape`)."""
    bounds = [float(np.min(reduction.free(core)[0]))] + [core.decays[2]] * core.bias
    return min(bounds) - (0.0 if core.convex else size)


def _eigenvalue(C: np.ndarray, index: int) -> float:
    with lapack_on_one_thread():
        return float(scipy.linalg.eigvalsh(C, subset_by_index=[index, index])[0])


def _zero(f: Callable[[float], float], low: float, high: float, size: float) -> float:
    """The zero of a decreasing function between low and high, to rounding of `size`."""
    while f(low) < 0:  # by rounding, where the zero is at low itself
        low -= 1e-8 * size
    if f(high) > 0:
        return high
    return float(scipy.optimize.brentq(f, low, high, xtol=4 * EPS * size, rtol=4 * EPS))


def _bisected(core: Core, rows: np.ndarray, poles: np.ndarray, ends: tuple[float, float]) -> float:
    """The smallest eigenvalue on the complement of rows, where it is not below the H-block."""
    low, high = ends
    while high - low > 64 * EPS * max(abs(low), abs(high)):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        C = _bordered(core, rows, middle)
        if schur.negatives(C) + int(np.sum(poles < middle)) > len(rows):
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _bordered(core: Core, rows: np.ndarray, sigma: float) -> np.ndarray:
    """C(σ) of [[∇²f − σ, Qᵀ], [Q, 0]] on (W, b) and the border; see the module's docstring."""
    (K, s), (q, n) = core.W.shape, (len(rows), schur.width_of(core))
    features, width = lifted(core), n // K
    F = np.zeros((n + q, n + q))
    F[:n, :n] = np.diag(reduction.decay_diagonal(core, width) - sigma)
    F[n:, :n] = rows[:, :n]
    F[:n, n:] = rows[:, :n].T
    border = rows[:, n:].reshape(q, -1, s)
    for start in range(0, len(features), SAMPLE_BLOCK):
        part = slice(start, start + SAMPLE_BLOCK)
        h, root = features[part], np.sqrt(core.merged[part])
        S = core.S.columns(part).matrices() * core.weight[part, None, None]
        B = S @ core.W
        own = np.einsum("jkl,ja,jb->kalb", S * (root**2)[:, None, None], h, h, optimize=True)
        F[:n, :n] += own.reshape(n, n)
        E = np.zeros((len(h), s, n + q))
        coupling = np.einsum("j,ja,jkc->jcka", root, h, B, optimize=True)
        for a in range(s):
            coupling[:, a, :, a] += core.pairing[:, part].T
        E[:, :, :n] = coupling.reshape(len(h), s, n)
        E[:, :, n:] = border[:, part].transpose(1, 2, 0)
        A = core.W.T @ B + (core.decay[part] - sigma)[:, None, None] * np.eye(s)
        solved = np.linalg.solve(A, E)
        F -= E.reshape(-1, n + q).T @ solved.reshape(-1, n + q)
    return (F + F.T) / 2
