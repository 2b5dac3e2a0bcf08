"""Measures of neural collapse, NC1–NC4, of the features of any network.

The formulas are in `ufm.metrics.result`; nothing here depends on the model. NumPy arrays are
measured in NumPy in float64 (`ufm.metrics.streaming`); JAX arrays in JAX in their own precision
(half precisions in float32), also under jit. H and W are divided by powers of two first, so that no
square of their entries over- or underflows.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.linalg import scaling
from ufm.linalg.products import matmul
from ufm.metrics import streaming
from ufm.metrics.features import finite, fit, normal, numbers
from ufm.metrics.result import Collapse
from ufm.runtime import blocks

# Classes beyond which a gather is faster than a product with K rows.
MANY = 64
# Bytes of JAX arrays on a CPU from which on they are read in pieces.
PIECES = 2**26


def collapse(
    W, H, b=None, labels=None, *, classes=None, ignore=None, mean="class", means=None,
    missing="refuse",
) -> Collapse:  # fmt: skip
    """Measure NC1–NC4 of a classifier (W, b) on features H, for any network.

    Args:
        W: classifier (K, d), one row a class.
        H: features (d, N), columns are samples; in memory or mapped from disk, since NumPy arrays
            are read in pieces.
        b: bias (K,), or None.
        labels: (N,), concrete: integers 0 … K−1, which are rows of W, or others with `classes`.
        classes: the K labels in the order of the rows of W, where they are not 0 … K−1.
        ignore: label, or labels, of samples to leave out.
        mean: the centre of the class means: "class", their own mean, for which a perfect simplex
            gives 0 for any counts, as in the code of Papyan et al.; or "sample", the mean of all
            samples. Both are equal for equal counts.
        means: class means (K, d), a row a class, about which to measure, for example the means of
            training features for test features (`ufm.metrics.Accumulator.class_means`). None takes
            the means of H.
        missing: "refuse" classes without samples, or "skip" them: then NC1 and NC4 are those of the
            classes present, and measures that need all means are None. Ignored if `means` are
            given.

    Returns:
        A `Collapse` of scalars: Python floats for NumPy input; JAX scalars for JAX input, float32
        for half precisions. With `means` or skipped classes they are always Python floats. JAX
        arrays beyond 64 MiB on a CPU are read in pieces too, in float64; on other devices they are
        measured as a whole, on the device.

    Raises:
        Refused: arrays that are not real and finite or do not fit together, W or H of subnormal
            numbers alone, K < 2, a label without a row, a class without samples; see
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
    """Whether to read the samples in pieces: arrays on a CPU that would need much memory."""
    if check.traced(W, H, b):
        return False
    places = H.devices() if isinstance(H, jax.Array) else set()
    if len(places) > 1 or any(place.platform != "cpu" for place in places):
        return False
    return max(H.nbytes, H.dtype.itemsize * len(W) ** 2) > PIECES


def _floating(name: str, x):
    """x as a JAX array in its own precision; checked unless it is traced."""
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
    """Refuse W and H of subnormal numbers alone, which have lost digits and are 0 for XLA."""
    if x.size and float(jnp.max(jnp.abs(x))) < float(jnp.finfo(x.dtype).tiny):
        normal(name, float(np.max(np.abs(np.asarray(x, np.float64)))), x.dtype)


def measure(W, H, b, index, mean="class") -> Collapse:
    """The formulas of `Collapse` without checks; arguments as for `some`. Traceable."""
    return Collapse(**some(Collapse._fields, W, H, b, index, mean=mean))


def some(names, W, H, b, index, predicted=None, mean="class") -> dict[str, jax.Array]:
    """The named fields of `Collapse` without checks, and nothing else is computed. Traceable.

    Args:
        names: of fields.
        W, H, b: arrays (K, d), (d, N) and (K,).
        index: (N,), the row of W that each sample belongs to; every class occurs.
        predicted: (N,), the row of the largest entry of Wh + b for every sample, if it is known;
            None computes WH + b without overflow.
        mean: "class" or "sample".
    """
    K, N = W.shape[0], H.shape[1]
    # In units of the largest entries; the logits in a common unit of WH and b.
    unit, s = 1 / scaling.binade(jnp, H), scaling.binade(jnp, W)
    parts = cache(partial(_units, W, s, unit, b))
    W = W * (1 / s)
    sums = _over_classes(K, index)
    M, means, mean, counts, floor = _centred(sums, K, H, unit, mean)
    U, values, Vt = jnp.linalg.svd(M, full_matrices=False)
    within, rows = partial(_within, M, (U, values, Vt), means, unit), _rows(K, H)
    along, (apart, nearest) = blocks.sweep(within, H, index, rows)
    variances = sums(apart[None, :], 1)[0] / counts
    tr_W = jnp.sum(counts * variances) / N

    def largest(H, _):
        V, c, _ = parts()
        return (), first_largest(matmul(V * unit, H) + c[:, None])

    def misplaced():
        found = blocks.sweep(largest, H, index, rows)[1] if predicted is None else predicted
        return jnp.sum((found != nearest).astype(H.dtype)) / N

    def mean_logit():
        V, c, exponent = parts()
        return _times_power(jnp.sqrt(jnp.sum((matmul(V, mean)[:, 0] + c) ** 2)), exponent)

    each = {
        "nc1": lambda: _nc1(M, values, along / N, tr_W, floor),
        "nc1_trace_ratio": lambda: _ratio(tr_W, jnp.sum(M**2) / K, floor),
        "nc1_cdnv": lambda: _cdnv(M, variances, floor),
        "nc2": lambda: _distance_to_etf(matmul(W, W.T)),
        "nc2_centred": lambda: _distance_to_etf(_gram(W - jnp.mean(W, axis=0))),
        "nc2_means": lambda: _distance_to_etf(_gram(M.T)),
        "nc2_equinorm_W": lambda: _equinorm(W),
        "nc2_equinorm_means": lambda: _equinorm(M.T),
        "nc2_equiangularity_W": lambda: _equiangularity(W),
        "nc2_equiangularity_means": lambda: _equiangularity(M.T),
        "nc3": lambda: _distance_to_etf(matmul(W, M)),
        "nc3_duality": lambda: jnp.sqrt(jnp.sum((_direction(W).T - _direction(M)) ** 2)),
        "nc4": misplaced,
        "nc4_mean_logit": mean_logit,
    }
    return {name: each[name]() for name in names}


def _centred(sums, K: int, H, unit, mean):
    """(M, class means, their centre, counts, mean squared rounding of a feature), times `unit`.

    Below that rounding class means coincide, M is 0, and variances are 0.
    """
    N = H.shape[1]
    counts = sums(jnp.ones((1, N), H.dtype), 1)[0]
    means = sums(H, unit) / counts
    weights = counts[:, None] / N if mean == "sample" else jnp.full((K, 1), 1 / K, H.dtype)
    centre = matmul(means, weights)
    floor = (8 * jnp.finfo(H.dtype).eps) ** 2 * jnp.sum(jnp.sum((H * unit) ** 2, axis=0)) / N
    M = means - centre
    return jnp.where(jnp.sum(M**2) > K * floor, M, 0), means, centre, counts, floor


_measure_compiled = jax.jit(measure, static_argnames="mean")


def _over_classes(K: int, index):
    """The map (r, N) → (r, K) to the sums over each class.

    The sums are those of A times a given number, so that they do not over- or underflow. Known
    labels in K equal blocks, as those of a balanced problem, need only a reshape.
    """

    def sums(A, unit):
        short = blocks.count(_rows(K, A), A) == 1 or (K > MANY and blocks.devices(A) == 1)
        if _in_order(K, index) and short:
            return jnp.sum((A * unit).reshape(len(A), K, -1), axis=2)

        def block(A, index):
            return matmul(A, unit * _one(K, index, A.dtype).T)

        return blocks.total(block, A, index, _rows(K, A))

    return sums


def _rows(K: int, A) -> int:
    """Rows of what a block makes: logits, or copies of the means and the deviations from them."""
    return max(K, 2 * len(A))


def _in_order(K: int, index) -> bool:
    """Whether the rows are concrete and K equal blocks in order."""
    N = len(index)
    return isinstance(index, np.ndarray) and np.array_equal(index, np.repeat(np.arange(K), N // K))


def _one(K: int, index, dtype):
    """The (K, N) matrix with a 1 in the row of each sample.

    A product with it selects entries exactly, and faster than a gather in JAX.
    """
    return (jnp.arange(K)[:, None] == index[None, :]).astype(dtype)


def _copies(A, index):
    """The column of A (r, K) of each sample, (r, N)."""
    K = A.shape[1]
    if _in_order(K, index):
        return jnp.repeat(A, len(index) // K, axis=1)
    if K > MANY:
        return jnp.take(A, index, axis=1, mode="clip")  # labels are columns of A
    return matmul(A, _one(K, index, A.dtype))


def first_largest(A):
    """argmax over rows: the row of the largest entry of every column, the first one on ties.

    As two plain reductions, since XLA's argmax on CPUs reads one column after the other.
    """
    K = A.shape[0]
    return jnp.min(jnp.where(jnp.max(A, axis=0) == A, jnp.arange(K)[:, None], K), axis=0)


def _gram(A):
    return matmul(A, A.T)


def _ratio(numerator, denominator, floor=0.0):
    """numerator/denominator; for denominator 0, 0 up to the floor of rounding and ∞ above it."""
    safe = jnp.where(denominator > 0, denominator, 1)
    return jnp.where(denominator > 0, numerator / safe, jnp.where(numerator > floor, jnp.inf, 0.0))


def _direction(A):
    """A/‖A‖_F, and 0 for A = 0."""
    size = jnp.sqrt(jnp.sum(A**2))
    return A / jnp.where(size > 0, size, 1)


def _within(M, decomposed, means, unit, H, index):
    """(Σ_i a_i², (‖h_i − μ_{y_i}‖², the class of the nearest mean of every sample)).

    With M = U diag(s) Vᵀ and a_i = Uᵀ(h_i − μ_{y_i}),

        ‖h_i − μ_k‖² = const − 2(⟨V_k ∘ s, a_i⟩ + ⟨M_k, M_{y_i}⟩ − ‖M_k‖²/2),

    relative to μ_G against cancellation, with one product over all features.
    """
    U, s, Vt = decomposed
    deviations = H * unit - _copies(means, index)
    a, gram = matmul(U.T, deviations), _gram(M.T)
    own = _copies(gram - jnp.sum(M**2, axis=0)[:, None] / 2, index)
    nearest = first_largest(matmul(Vt.T * s, a) + own)
    return jnp.sum(a**2, axis=1), (jnp.sum(deviations**2, axis=0), nearest)


def _nc1(M, s, along, tr_W, floor):
    """tr(Σ_W Σ_B^†)/K = Σ_j u_jᵀΣ_W u_j/s_j² over the singular pairs (u_j, s_j) of M.

    M has rank ≤ K−1, since a weighted sum of its columns is 0: its last singular value is rounding,
    and its inverse would make NC1 negative or huge in float32. `along` is u_jᵀΣ_W u_j, a sum of
    squares; Σ_W is never formed.
    """
    r = min(M.shape[0], M.shape[1] - 1)
    s, along = s[:r], along[:r]
    kept = s > jnp.finfo(M.dtype).eps * max(M.shape) * s[0]
    nc1 = jnp.sum(jnp.where(kept, along / jnp.where(kept, s, 1) ** 2, 0))
    return jnp.where(s[0] > 0, nc1, jnp.where(tr_W > floor, jnp.inf, 0.0))


def _cdnv(M, variances, floor):
    gram = _gram(M.T)
    squares = jnp.diagonal(gram)
    scale = squares[:, None] + squares[None, :]
    distances = scale - 2 * gram
    # Distances below the rounding of the subtraction count as 0.
    distances = jnp.where(distances > 4 * jnp.finfo(M.dtype).eps * scale, distances, 0)
    K = M.shape[1]
    pairs = _ratio((variances[:, None] + variances[None, :]) / 2, distances, floor)
    return jnp.sum(jnp.where(jnp.eye(K, dtype=bool), 0, pairs)) / (K * (K - 1))


def _distance_to_etf(A):
    """‖A/‖A‖_F − (I − 11ᵀ/K)/√(K−1)‖_F for a (K, K) matrix A."""
    K = A.shape[0]
    etf = (jnp.eye(K, dtype=A.dtype) - 1 / K) / np.sqrt(K - 1.0).item()
    return jnp.sqrt(jnp.sum((_direction(A) - etf) ** 2))


def _equinorm(rows):
    sizes = jnp.sqrt(jnp.sum(rows**2, axis=1))
    return _ratio(jnp.std(sizes), jnp.mean(sizes))


def _equiangularity(rows):
    K = rows.shape[0]
    sizes = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    cosines = _gram(rows / jnp.where(sizes > 0, sizes, 1))
    deviations = jnp.abs(cosines + 1 / (K - 1))
    return jnp.sum(jnp.where(jnp.eye(K, dtype=bool), 0, deviations)) / (K * (K - 1))


def _units(W, s, unit, b):
    """(V, c, e) with W h + b = 2^e (V u h + c) for u = `unit`; |V| and |c| are below 4.

    s is the `binade` of W. e is an integer of any size: logits beyond the largest number still have
    a largest one.
    """
    e_W, e_H, e_b = (jnp.frexp(x)[1] - 1 for x in (s, 1 / unit, scaling.binade(jnp, b)))
    exponent = jnp.where(jnp.any(b != 0), jnp.maximum(e_W + e_H, e_b), e_W + e_H)
    V = _times_power(W * (1 / s), e_W + e_H - exponent)
    return V, _times_power(b, -exponent), exponent


def _times_power(x, exponent):
    """2^e x for any integer e, in two steps, since 2^e alone may over- or underflow.

    By scalar factors, which XLA computes once, while it would repeat an ldexp of x for every use.
    """
    half, one = exponent // 2, jnp.ones((), x.dtype)
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)
