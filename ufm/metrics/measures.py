"""Measures of neural collapse, NC1–NC4, of the features of any network.

The formulas stand in `ufm.metrics.result`; nothing here knows the model. NumPy arrays are measured
in NumPy at float64 (`ufm.metrics.streaming`); JAX arrays in JAX at their own precision (half
precisions at float32), also under jit. H and W are divided by powers of two first, so that no
square of their entries over- or underflows.
"""

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics import streaming
from ufm.metrics.features import finite, fit, numbers
from ufm.metrics.result import Collapse
from ufm.runtime import blocks


def collapse(
    W, H, b=None, labels=None, *, classes=None, ignore=None, mean="class", means=None,
    missing="refuse",
) -> Collapse:  # fmt: skip
    """Measure NC1–NC4 of a classifier (W, b) on features H, for any network.

    Args:
        W: classifier (K, d), one row a class.
        H: features (d, N), columns are samples; of any size that is at hand or mapped from disk,
            since NumPy arrays are gone through in pieces.
        b: bias (K,); None where there is none.
        labels: (N,) concrete: integers 0 … K−1, which are rows of W, or others with `classes`.
        classes: the K labels in the order of the rows of W, where they are not 0 … K−1.
        ignore: label, or labels, of samples to leave out.
        mean: what the class means are centred by: "class", their own mean, with which a perfect
            simplex reads 0 for any counts, as in the code of Papyan et al.; or "sample", the mean
            of all samples. The same for equal counts.
        means: class means (K, d), a row a class, to measure about, as those of training features
            for test features: `ufm.metrics.Accumulator.class_means`. None: those of H.
        missing: "refuse" classes without samples, or "skip" them: NC1, NC4 of those present, and
            None for what needs all means. Not asked where `means` are given.

    Returns:
        A `Collapse` of scalars: Python floats for NumPy input, JAX scalars for JAX input, of which
        less than 32 bits count as float32. With `means`, or classes skipped, floats always. JAX
        arrays beyond 64 MiB on a CPU are gone through in pieces too, in float64; on other devices
        they are measured there, as a whole.

    Raises:
        Refused: arrays that are not real and finite or do not fit together, W or H of subnormal
            numbers alone, K < 2, a label that is no row, a class without samples; see
            `ufm.metrics.labels.samples`.
    """
    W, H, b = numbers("W", W), numbers("H", H), None if b is None else numbers("b", b)
    check.choice("mean", mean, streaming.MEANS)
    every = means is None and check.choice("missing", missing, streaming.MISSING) == "refuse"
    in_jax = any(isinstance(x, jax.Array) for x in (W, H, b))
    chosen = fit(W, H, b, labels, classes, ignore, every)
    if in_jax and every and not _large(W, H, b):
        W, H, index = _floating("W", W), _floating("H", chosen.of(H)), chosen.rows
        b = jnp.zeros(len(W), W.dtype) if b is None else _floating("b", b)
        return _measure_compiled(W, H, b, index, mean=mean)
    found = streaming.whole(W, H, b, chosen, mean, means, missing, classes).collapse()
    if in_jax and every:
        dtype = jnp.result_type(W, H, jnp.float32)
        return Collapse(*(jnp.asarray(x, dtype) for x in found))
    return found


def _large(W, H, b) -> bool:
    """Whether to go through the samples in pieces: arrays of a CPU that would take much memory."""
    if check.traced(W, H, b):
        return False
    places = H.devices() if isinstance(H, jax.Array) else set()
    if len(places) > 1 or any(place.platform != "cpu" for place in places):
        return False
    return max(H.nbytes, H.dtype.itemsize * len(W) ** 2) > blocks.LIMIT


def _floating(name: str, x):
    """x as a JAX array in its own precision, sound unless it is traced."""
    if not x.dtype.isnative:
        x = x.astype(np.float64)
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(float)
    x = jnp.asarray(x)
    if not check.traced(x):
        if name != "b":
            _check_normal(name, x)
        return finite(name, x)
    return x


def _check_normal(name: str, x) -> None:
    """Refuse W and H of subnormal numbers alone: digits are lost, and XLA takes them for 0."""
    least = float(jnp.finfo(x.dtype).tiny)
    if not x.size or not float(jnp.max(jnp.abs(x))) < least:
        return
    top = float(np.max(np.abs(np.asarray(x, np.float64))))
    if top > 0:
        raise Refused(
            f"got {name} whose largest entry is {top:.3g}, below the smallest normal number "
            f"{least:.3g} of {x.dtype}; allowed: 0, or larger ones. Look for an underflow where "
            f"{name} was made"
        )


def measure(xp: ModuleType, W, H, b, index, logits=None, mean="class") -> Collapse:
    """The formulas of `Collapse` without checks; xp is numpy or jax.numpy. Traceable.

    Args:
        xp: numpy or jax.numpy.
        W, H, b: the arrays that are measured.
        index: (N,), the row of W that each sample belongs to, every class at least once.
        logits: H ↦ WH + b, where the caller makes these too; None makes them within range.
        mean: "class" or "sample".
    """
    K, N = W.shape[0], H.shape[1]
    # In units of the largest entries; their logits in a unit common to WH and b.
    unit = 1 / scaling.binade(xp, H)
    W, V, c, exponent = _units(xp, W, unit, b)
    logits = logits or (lambda H: _product(xp, V * unit, H) + c[:, None])
    squares = xp.sum(xp.sum((H * unit) ** 2, axis=0))
    sums, spread = _over_classes(xp, K, index, H)
    counts = sums(xp.ones((1, N), H.dtype), 1)[0]
    means = sums(H, unit) / counts
    weights = counts[:, None] / N if mean == "sample" else xp.full((K, 1), 1 / K, H.dtype)
    mean = _product(xp, means, weights)
    # Mean squared rounding of a feature: below it, class means coincide and variance is none.
    floor = (8 * xp.finfo(H.dtype).eps) ** 2 * squares / N
    M = means - mean
    M = xp.where(xp.sum(M**2) > K * floor, M, 0)
    deviations = H * unit - spread(means)
    variances = sums(xp.sum(deviations**2, axis=0)[None, :], 1)[0] / counts
    tr_W, tr_B = xp.sum(counts * variances) / N, xp.sum(M**2) / K
    disagreements = partial(_disagreements, xp, logits, M, mean, unit)
    return Collapse(
        nc1=_nc1(xp, M, deviations, tr_W, floor),
        nc1_trace_ratio=_ratio(xp, tr_W, tr_B, floor),
        nc1_cdnv=_cdnv(xp, M, variances, floor),
        nc2=_distance_to_etf(xp, _product(xp, W, W.T)),
        nc2_centred=_distance_to_etf(xp, _gram(xp, W - xp.mean(W, axis=0))),
        nc2_means=_distance_to_etf(xp, _gram(xp, M.T)),
        nc2_equinorm_W=_equinorm(xp, W),
        nc2_equinorm_means=_equinorm(xp, M.T),
        nc2_equiangularity_W=_equiangularity(xp, W),
        nc2_equiangularity_means=_equiangularity(xp, M.T),
        nc3=_distance_to_etf(xp, _product(xp, W, M)),
        nc3_duality=xp.sqrt(xp.sum((_direction(xp, W).T - _direction(xp, M)) ** 2)),
        nc4=blocks.total(disagreements, H, index, K) / N,
        nc4_mean_logit=_times_power(
            xp, xp.sqrt(xp.sum((_product(xp, V, mean)[:, 0] + c) ** 2)), exponent
        ),
    )


_measure_compiled = jax.jit(partial(measure, jnp), static_argnames="mean")


def _over_classes(xp: ModuleType, K: int, index, H):
    """Two maps, (r, N) → (r, K) and back: the sums over each class, and a copy a sample.

    The sums are those of A times a number, which keeps them within range.

    Known labels in K equal blocks, as those of a balanced problem, need a mere change of shape.
    """
    N = len(index)
    if isinstance(index, np.ndarray) and np.array_equal(index, np.repeat(np.arange(K), N // K)):
        return (
            lambda A, unit: xp.sum((A * unit).reshape(len(A), K, N // K), axis=2),
            lambda A: xp.repeat(A, N // K, axis=1),
        )

    # A product with one 1 a column picks entries exactly, and faster than a gather in JAX.
    def one(index):
        return (xp.arange(K)[:, None] == index[None, :]).astype(H.dtype)

    def sums(A, unit):
        return blocks.total(lambda A, index: _product(xp, A, unit * one(index).T), A, index, K)

    def spread(A):
        return blocks.sweep(lambda _, index: ((), _product(xp, A, one(index))), H, index, K)[1]

    return sums, spread


def first_largest(xp: ModuleType, A):
    """The row of the largest entry of every column, the first of equal ones: argmax over rows.

    In two plain reductions: XLA's argmax on CPUs walks down one column after the other.
    """
    K = A.shape[0]
    return xp.min(xp.where(xp.max(A, axis=0) == A, xp.arange(K)[:, None], K), axis=0)


def _product(xp: ModuleType, A, B):
    if xp is np:
        return A @ B
    return jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)


def _gram(xp: ModuleType, A):
    return _product(xp, A, A.T)


def _ratio(xp: ModuleType, numerator, denominator, floor=0.0):
    """numerator/denominator; over zero it is 0 up to the floor of rounding, and ∞ above."""
    safe = xp.where(denominator > 0, denominator, 1)
    return xp.where(denominator > 0, numerator / safe, xp.where(numerator > floor, xp.inf, 0.0))


def _direction(xp: ModuleType, A):
    """A/‖A‖_F, and 0 for A = 0."""
    size = xp.sqrt(xp.sum(A**2))
    return A / xp.where(size > 0, size, 1)


def _nc1(xp: ModuleType, M, deviations, tr_W, floor):
    """tr(Σ_W Σ_B^†)/K = Σ_j u_jᵀΣ_W u_j/s_j² over the singular pairs (u_j, s_j) of M.

    M has rank ≤ K−1 since Σ_k n_k M_k = 0: its last singular value is rounding, and inverting it
    is what makes NC1 negative or huge in float32. Σ_W is never formed, so the sum is of squares.
    """
    U, s, _ = xp.linalg.svd(M, full_matrices=False)
    r = min(M.shape[0], M.shape[1] - 1)
    U, s = U[:, :r], s[:r]
    kept = s > xp.finfo(M.dtype).eps * max(M.shape) * s[0]

    def squares(deviations, _):
        return xp.sum(_product(xp, U.T, deviations) ** 2, axis=1)

    N = deviations.shape[1]
    along = blocks.total(squares, deviations, np.zeros(N, bool), r) / N
    nc1 = xp.sum(xp.where(kept, along / xp.where(kept, s, 1) ** 2, 0))
    return xp.where(s[0] > 0, nc1, xp.where(tr_W > floor, xp.inf, 0.0))


def _cdnv(xp: ModuleType, M, variances, floor):
    gram = _gram(xp, M.T)
    squares = xp.diagonal(gram)
    scale = squares[:, None] + squares[None, :]
    distances = scale - 2 * gram
    # Below the rounding of the subtraction two means count as one.
    distances = xp.where(distances > 4 * xp.finfo(M.dtype).eps * scale, distances, 0)
    K = M.shape[1]
    pairs = _ratio(xp, (variances[:, None] + variances[None, :]) / 2, distances, floor)
    return xp.sum(xp.where(xp.eye(K, dtype=bool), 0, pairs)) / (K * (K - 1))


def _distance_to_etf(xp: ModuleType, A):
    """‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for a (K, K) matrix A."""
    K = A.shape[0]
    etf = (xp.eye(K, dtype=A.dtype) - 1 / K) / np.sqrt(K - 1.0).item()
    return xp.sqrt(xp.sum((_direction(xp, A) - etf) ** 2))


def _equinorm(xp: ModuleType, rows):
    sizes = xp.sqrt(xp.sum(rows**2, axis=1))
    return _ratio(xp, xp.std(sizes), xp.mean(sizes))


def _equiangularity(xp: ModuleType, rows):
    K = rows.shape[0]
    sizes = xp.sqrt(xp.sum(rows**2, axis=1, keepdims=True))
    cosines = _gram(xp, rows / xp.where(sizes > 0, sizes, 1))
    deviations = xp.abs(cosines + 1 / (K - 1))
    return xp.sum(xp.where(xp.eye(K, dtype=bool), 0, deviations)) / (K * (K - 1))


def _units(xp: ModuleType, W, unit, b):
    """(W/s, V, c, e) with W h + b = 2^e (V u h + c) for u = `unit`; |V| and |c| are below 4.

    e is an integer of any size: logits beyond the largest number still have a largest one.
    """
    s = scaling.binade(xp, W)
    e_W, e_H, e_b = (xp.frexp(x)[1] - 1 for x in (s, 1 / unit, scaling.binade(xp, b)))
    exponent = xp.where(xp.any(b != 0), xp.maximum(e_W + e_H, e_b), e_W + e_H)
    W = W * (1 / s)
    V = _times_power(xp, W, e_W + e_H - exponent)
    return W, V, _times_power(xp, b, -exponent), exponent


def _times_power(xp: ModuleType, x, exponent):
    """2^e x for any integer e, in two steps: 2^e alone may be out of range.

    By scalars that XLA computes once, where it would repeat an ldexp of x for every use of it.
    """
    half, one = exponent // 2, xp.ones((), x.dtype)
    return x * xp.ldexp(one, half) * xp.ldexp(one, exponent - half)


def _disagreements(xp: ModuleType, logits, M, mean, unit, H, _):
    """Number of samples whose predicted class is not that of the nearest class mean."""
    predicted = first_largest(xp, logits(H))
    # ‖h − μ_k‖² = const − 2(⟨h − μ_G, M_k⟩ − ‖M_k‖²/2), taken around μ_G against cancellation.
    nearness = _product(xp, M.T, H * unit - mean) - xp.sum(M**2, axis=0)[:, None] / 2
    return xp.sum((predicted != first_largest(xp, nearness)).astype(H.dtype))
