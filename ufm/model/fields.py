"""Checks and conversion of the fields of a problem: counts, targets, weights and decays."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ufm import check
from ufm.check import MOST, Refused, integer, real, several, shown, traced

FEATURES = ("free", "nonnegative", "sphere")
BOUNDED = "since a negative decay leaves the objective unbounded below"


def class_counts(n: Any, K: int) -> int | tuple[int, ...]:
    """Samples of each class: one integer, or K of them, which become one where they are equal.

    Raises:
        Refused: counts that are not integers, below 1, or not K of them.
    """
    each = several(n)
    if each is None:
        if getattr(n, "ndim", 0):
            raise Refused(f"got n with shape {np.shape(n)}; allowed: an integer, or K={K} counts")
        return integer("n", n, 1, MOST, "every class needs a sample")
    if len(each) != K:
        raise Refused(
            f"got n={shown(n)} with {len(each)} counts; allowed: an integer, or K={K} "
            "counts, one a class"
        )
    why = "no class may be empty"
    counts = tuple(integer(f"n[{k}]", m, 1, MOST, why) for k, m in enumerate(each))
    return counts[0] if len(set(counts)) == 1 else counts


def target_matrix(value: Any, K: int | None = None) -> Any:
    """A matrix of finite real numbers with K rows, in NumPy float64; None and tracers pass.

    Raises:
        Refused: another shape, text, or entries that are not finite.
    """
    if value is None or traced(value):
        return value
    if callable(getattr(value, "detach", None)):
        value = value.detach().cpu().numpy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for masked entries, which would become NaN
            array = check.array(value)
    except (ValueError, UserWarning, RuntimeWarning):
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or isinstance(value, np.ma.MaskedArray):
        got = f"{type(value).__name__} of {array.dtype}"
        raise Refused(f"got targets, a {got}; allowed: a (K, G) matrix of real numbers")
    if array.ndim != 2 or K not in (None, array.shape[0]) or array.size == 0:
        hint = f". It has K={K} columns: give its transpose" if array.shape[1:] == (K,) else ""
        rows = "" if K is None else f" with K={K}"
        raise Refused(
            f"got targets of shape {array.shape}; allowed: (K, G){rows}, a column for each "
            f"group of samples{hint}"
        )
    if not np.all(np.isfinite(array)):
        j, i = (int(x[0]) for x in np.nonzero(~np.isfinite(array)))
        raise Refused(f"got targets[{j}, {i}]={array[j, i]}; allowed: finite numbers")
    array = np.array(array, np.float64)
    array.setflags(write=False)
    return array


# Products of weights in this range, such as c/√ω in the certificate, do not overflow in float64.
WEIGHTS = 1e-100, 1e100


def class_weights(name: str, value: Any, K: int) -> tuple[float, ...] | None:
    """One weight > 0 for each class as Python floats; None where all are 1. Tracers pass.

    Raises:
        Refused: anything but K real numbers from 1e-100 to 1e100.
    """
    if value is None or traced(value):
        return value
    each = several(np.asarray(value) if isinstance(value, jax.Array) else value)
    if each is None or len(each) != K:
        got = f"{len(each)} numbers" if each is not None else shown(value)
        raise Refused(f"got {name}={got}; allowed: K={K} numbers > 0, one a class, or None")
    found = tuple(
        real(f"{name}[{k}]", x, least=WEIGHTS[0], below=WEIGHTS[1]) for k, x in enumerate(each)
    )
    return None if set(found) == {1.0} else found


def fixed_parts(value: Any) -> tuple[str, ...]:
    """The parts of a point that are fixed, as a tuple: () or ("W",).

    Raises:
        Refused: anything else.
    """
    each = several(value)
    if each is None or tuple(map(str, each)) not in ((), ("W",)):
        raise Refused(
            f'got fixed={shown(value)}; allowed: () or ("W",), which fixes the classifier. Give '
            "its matrix as the W of the params"
        )
    return tuple(map(str, each))


def default_decays(features: Any) -> dict[str, float]:
    """The defaults of decays that may be omitted: λ_b, and on the sphere all three, which are 0."""
    names = ("lam_W", "lam_H", "lam_b") if str(features) == "sphere" else ("lam_b",)
    return dict.fromkeys(names, 0.0)


def check_sphere(d: int, lams: Mapping[str, Any], bias: bool, decay_weights: Any) -> None:
    """Refuse what has no meaning where the rows of W and the features have norm 1.

    Args:
        d: width of the features.
        lams: λ_W and λ_H by name; traced ones pass.
        bias, decay_weights: fields of the problem.

    Raises:
        Refused: d = 1, a decay that is not 0, a bias, weights in the decay.
    """
    where = "with features='sphere'"
    if d < 2:
        raise Refused(f"got d={d} {where}; allowed: d >= 2, where unit vectors can move")
    for name, value in lams.items():
        if not traced(value) and (np.ndim(value) or float(value) != 0):
            raise Refused(
                f"got {name}={shown(value)} {where}; allowed: 0 (lam=0, --lam 0), or none given "
                "in Python, since all norms are 1 there. A temperature is that of the loss: "
                "ufm.losses.LogitAdjusted(scale=tau)"
            )
    if bias:
        raise Refused(
            f"got bias=True {where}; allowed: bias=False (--no-bias), since no certificate of it "
            "with a bias is known here"
        )
    if decay_weights is not None:
        raise Refused(f"got decay_weights {where}; allowed: None, since nothing decays there")


def decay(name: str, value: Any) -> Any:
    """A decay as a Python float; arrays, to be mapped over, and tracers pass unchanged.

    Raises:
        Refused: entries that are not finite real numbers >= 0.
    """
    if traced(value):
        return value
    if isinstance(value, np.ndarray | jax.Array) and np.ndim(value):
        kinds = np.floating, np.integer
        is_real = any(jax.dtypes.issubdtype(value.dtype, kind) for kind in kinds)
        if not is_real or isinstance(value, np.ma.MaskedArray):
            raise Refused(
                f"got {name}={shown(value)}; allowed: a number >= 0, or an array of real "
                "numbers for jax.vmap to map over"
            )
        bad = np.asarray(value)[~(np.isfinite(value) & (value >= 0))]
        if bad.size:
            raise Refused(f"got {name} with the entry {bad[0]}; allowed: finite and >= 0")
        return value
    return real(name, value, least=0, also=BOUNDED)


def decays(given: Mapping[str, Any], lam: Any, defaults: Mapping[str, float]) -> dict[str, Any]:
    """Decays by name; those that are None are taken from λ, or else from their defaults.

    Raises:
        Refused: as `decay`; λ although all decays are given; a missing decay without a default.
    """
    missing = [name for name, x in given.items() if x is None]
    if lam is not None and not missing:
        raise Refused(
            f"got lam={shown(lam)} beside {', '.join(given)}; allowed: lam for those that "
            "are not given, or each by itself"
        )
    if lam is not None:
        defaults = dict.fromkeys(given, decay("lam", lam))
    found = {}
    for name, x in given.items():
        if x is None and name not in defaults:
            raise Refused(f"got no {name}; allowed: a number >= 0, or lam=… for all decays")
        found[name] = defaults[name] if x is None else decay(name, x)
    return found
