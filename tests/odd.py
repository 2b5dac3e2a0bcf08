"""Odd input for every door: what users pass by mistake, in all types and sizes (hypothesis)."""

import decimal
import fractions
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from ufm import check

# Powers of ten over the whole range of float64 and beyond, subnormal numbers among them.
exponents = st.integers(-330, 330)
sizes = st.builds(lambda m, e: float(f"{m}e{e}"), st.floats(1, 9.9), exponents)
floats = st.one_of(sizes, sizes.map(lambda x: -x), st.floats(), st.sampled_from([0.0, -0.0, 1.0]))
FLOATS = (np.float16, np.float32, np.float64, np.longdouble, jnp.bfloat16)
INTEGERS = (np.int8, np.uint8, np.int32, np.uint64, np.int64)


def _cast(kind, x):
    with np.errstate(all="ignore"):
        return kind(x)


def _decimal(x):
    return decimal.Decimal(x)


def _fraction(x):
    return fractions.Fraction(x) if math.isfinite(x) else x


integers = st.one_of(st.integers(-3, 9), st.integers(), st.integers(2**31 - 2, 2**63))
scalars = st.one_of(
    floats,
    integers,
    st.builds(_cast, st.sampled_from(FLOATS), floats),
    st.builds(_cast, st.sampled_from(INTEGERS), st.integers(0, 127)),
    floats.map(_decimal),
    floats.map(_fraction),
    floats.map(np.array),
    floats.map(lambda x: np.array(x, ">f8")),
    st.integers(-3, 9).map(jnp.asarray),
    st.floats(width=32).map(jnp.float32),
)
no_numbers = st.one_of(
    st.none(),
    st.booleans(),
    st.booleans().map(np.bool_),
    st.text(max_size=5),
    floats.map(str),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.complex_numbers().map(np.complex128),
    st.sampled_from(
        [
            np.ma.masked,
            np.ma.masked_array(1.0, mask=True),
            np.datetime64("2020"),
            np.timedelta64(3, "s"),
            np.array(None),
            np.array("1"),
            np.array(1j),
            ...,
            decimal.Decimal("sNaN"),
            {},
            {"a": 1},
            set(),
            object,
            10**400,
            -(10**400),
            decimal.Decimal("1e999"),
        ]
    ),
)
several = st.one_of(
    st.lists(scalars, max_size=3),
    st.lists(scalars, max_size=3).map(tuple),
    st.lists(st.floats(), max_size=3).map(np.array),
    st.lists(st.lists(st.integers(1, 4), max_size=3), max_size=2),
)
anything = st.one_of(scalars, no_numbers, several)


def value_of(x) -> float | None:
    """The number that an input is, by Python's own conversion; None if it is no real number."""
    if isinstance(x, bool | np.bool_ | np.timedelta64 | np.datetime64 | str | bytes | complex):
        return None
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        return None
    if check.several(x) is not None or getattr(getattr(x, "dtype", None), "kind", "f") in "bcmMOSU":
        return None
    try:
        number = float(x)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def integer_of(x) -> int | None:
    """The integer that an input is; None for floats, even whole ones."""
    if value_of(x) is None or isinstance(x, float | decimal.Decimal | np.floating):
        return None
    if isinstance(x, fractions.Fraction):
        return int(x) if x.denominator == 1 and isinstance(x, int) else None
    kind = getattr(getattr(x, "dtype", None), "kind", "i")
    return int(x) if kind in "iu" else None
