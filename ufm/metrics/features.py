"""Checks and conversion of features of any network: numbers, shapes, samples by class.

Every function that takes (W, H, b, labels) uses it. `ufm.metrics.labels` interprets the labels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm.check import Refused, traced
from ufm.metrics.labels import Samples, as_array, samples


class Grouped(NamedTuple):
    """A classifier and features whose columns are grouped by class, as for `ufm.Problem`.

    W (K, d), H (d, M), b (K,), zeros without a bias. counts (K,): samples of each class. bias:
    whether there is one.
    """

    W: Any
    H: Any
    b: Any
    counts: np.ndarray
    bias: bool


def grouped(W, H, b, labels, features=None, classes=None, ignore=None) -> Grouped:
    """Features of any network, their columns sorted by class, in the given order within a class.

    Args:
        W: classifier (K, d), one row a class.
        H: features (d, N), columns are samples; None if `features` are given.
        b: bias (K,), or None.
        labels, classes, ignore: as `samples` takes them.
        features: features (N, d), rows are samples, in place of H.

    Returns:
        NumPy arrays in float64; JAX arrays of one dtype, at least float32, if JAX arrays are given.

    Raises:
        Refused: arrays that are not real and finite, traced, or do not fit together; labels as in
            `samples`.
    """
    if traced(W, H, b, features):
        raise Refused("got traced arrays: from_features runs on the host; call it outside jit")
    W, b = numbers("W", W), None if b is None else numbers("b", b)
    H = columns(W, H, features)
    chosen = fit(W, H, b, labels, classes, ignore)
    order = np.argsort(chosen.rows, kind="stable")
    order = order if chosen.kept is None else chosen.kept[order]
    if not np.array_equal(order, np.arange(H.shape[1])):
        H = H[:, order]
    counts, bias = np.bincount(chosen.rows, minlength=len(W)), b is not None
    b = np.zeros(len(W)) if b is None else b
    in_jax = any(isinstance(x, jax.Array) for x in (W, H, b))
    dtype = jnp.result_type(W, H, jnp.float32) if in_jax else np.float64
    convert = jnp.asarray if in_jax else np.asarray
    W, H, b = (finite(name, convert(x, dtype)) for name, x in zip("WHb", (W, H, b), strict=True))
    return Grouped(W, H, b, counts, bias)


def columns(W, H, features=None):
    """The features as columns, (d, N), from H (d, N) or from `features` (N, d).

    Raises:
        Refused: both or neither given, not real numbers, or `features` that do not fit W (K, d).
    """
    if (H is None) == (features is None):
        got = "no features" if H is None else "both H and features"
        raise Refused(f"got {got}; allowed: one of features (N, d) and H (d, N)")
    if features is None:
        return numbers("H", H)
    features = numbers("features", features)
    if features.ndim != 2 or W.ndim != 2 or features.shape[1] != W.shape[1]:
        turned = features.ndim == 2 and W.ndim == 2 and features.shape[0] == W.shape[1]
        hint = "; these look transposed: give them as H" if turned else ""
        raise Refused(
            f"got W {W.shape} and features {features.shape}; allowed: W (K, d) and features "
            f"(N, d), samples as rows{hint}"
        )
    return features.T


def fit(W, H, b, labels, classes=None, ignore=None, every=True) -> Samples:
    """The samples of features H that count, after checking that all arrays fit together.

    Args:
        W: classifier (K, d).
        H: features (d, N).
        b: bias (K,), or None.
        labels, classes, ignore, every: as `samples` takes them.

    Raises:
        Refused: shapes that do not fit, fewer than two rows; labels as in `samples`.
    """
    classifier(W, b)
    if H.ndim != 2 or W.shape[1] != H.shape[0]:
        turned = H.ndim == 2 and H.shape[-1] == W.shape[-1]
        hint = "; H looks transposed" if turned else ""
        raise Refused(
            f"got W {W.shape} and H {H.shape}; allowed: W (K, d) and H (d, N), samples as "
            f"columns{hint}"
        )
    return samples(labels, len(W), H.shape[1], classes, ignore, every=every)


def classifier(W, b) -> None:
    """Check that W is (K, d) and b (K,), or None.

    Raises:
        Refused: other shapes, fewer than two rows.
    """
    if W.ndim == 1 or (W.ndim == 2 and len(W) == 1):
        raise Refused(
            f"got W of shape {W.shape}, one logit for two classes; allowed: a row for each class. "
            "Write w = W.ravel(); W = np.vstack([-w, w]) / 2, and likewise b = np.array([-b, b]) "
            "/ 2 with the number b, if there is one"
        )
    if W.ndim != 2 or len(W) < 2 or W.shape[1] < 1:
        raise Refused(f"got W of shape {W.shape}; allowed: K >= 2 rows, one a class, of d >= 1")
    if b is not None and b.shape != (len(W),):
        raise Refused(f"got b with shape {b.shape}; allowed: ({len(W)},), one entry a row of W")


def balanced(lam_W: float, W, H) -> float:
    """λ_H = λ_W‖W‖²/‖H‖², the only value for which (W, H) can be a critical point.

    Raises:
        Refused: λ_W > 0, but the value is 0 or not finite.
    """
    sizes = []
    for x in (W, H):
        # Scaled, so that no square over- or underflows.
        top = float(abs(x).max()) or 1.0
        sizes.append(top * float(((x / top) ** 2).sum() ** 0.5))
    ratio = sizes[0] / sizes[1] if sizes[1] else 0.0
    lam_H = lam_W * ratio * ratio
    if not 0 < lam_H < np.inf and lam_W > 0:
        raise Refused(
            f"got ‖W‖={sizes[0]:g} and ‖H‖={sizes[1]:g}, whose balance λ_H = λ_W‖W‖²/‖H‖² is "
            f"{lam_H:g}; allowed: a balance > 0. Give lam_H"
        )
    return lam_H


def numbers(name: str, x):
    """Real numbers of any library: JAX arrays unchanged, all others as NumPy arrays.

    Floats of less than 32 bits become float32, those of more than 64 bits float64.

    Raises:
        Refused: complex numbers, truth values, text, dates, objects, masked or sparse arrays.
    """
    if x is None:
        raise Refused(f"got no {name}; allowed: an array of real numbers")
    given, x = x, x if isinstance(x, jax.Array) else as_array(name, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating) or not (
        jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    ):
        hint = "" if x.dtype != object else _object_hint(name, given)
        raise Refused(f"got {name} of dtype {x.dtype}; allowed: real numbers{hint}")
    if jnp.issubdtype(x.dtype, jnp.floating) and not 4 <= x.dtype.itemsize <= 8:
        return x.astype(np.float32 if x.dtype.itemsize < 4 else np.float64)
    return x


def in_numpy(name: str, x) -> np.ndarray:
    """Real numbers of any library as a NumPy array, otherwise as `numbers`.

    Raises:
        Refused: traced arrays; as `numbers`.
    """
    if traced(x):
        raise Refused(f"got traced {name}: this runs on the host; call it outside jit and vmap")
    return np.asarray(numbers(name, x))


def finite(name: str, x):
    """The array, if none of its entries is NaN or infinite.

    Raises:
        Refused: some are; says how many.
    """
    bad = int((~(np if isinstance(x, np.ndarray) else jnp).isfinite(x)).sum())
    if bad:
        raise Refused(
            f"got {bad} non-finite entries in {name} of shape {x.shape}; allowed: finite numbers. "
            "Drop or repair the samples they come from"
        )
    return x


def normal(name: str, top: float, dtype: Any = np.float64) -> None:
    """Refuse an array whose largest |entry| is a subnormal number, which has lost digits.

    Raises:
        Refused: 0 < top < the smallest normal number of dtype.
    """
    least = float(jnp.finfo(dtype).tiny)
    if 0 < top < least:
        raise Refused(
            f"got {name} whose largest entry is {top:.3g}, below the smallest normal number "
            f"{least:.3g} of {np.dtype(dtype)}; allowed: 0, or larger ones. Look for an underflow "
            f"where {name} was made"
        )


def _object_hint(name: str, given: Any) -> str:
    if isinstance(given, list | tuple):
        return ", each of them a number and none a truth value"
    if name == "b":
        return ". Where there is no bias leave b out, or give None itself"
    return f". Write np.array({name}.tolist(), float)"
