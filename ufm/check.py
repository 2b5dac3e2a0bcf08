"""Checks of arguments: what counts as a number, a name or a problem, in one place.

Every function returns the value as plain Python or raises `Refused`, whose message says what was
got, what is allowed and how to mend it. Numbers of any library are taken (Python, NumPy, JAX,
PyTorch, Decimal, Fraction), zero-dimensional arrays among them; text, booleans, complex numbers,
dates, masked values, NaN and infinities are not, unless a function says so.
"""

import contextlib
import dataclasses
import decimal
import math
import numbers
import os
import stat
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

MOST = 2**53  # the largest count that float64 holds exactly


class Refused(ValueError, TypeError):
    """Input that ufm does not take: what was got, what is allowed, how to mend it.

    One class for all refusals, whatever is wrong (a type, a value, a shape, a file), so that
    `except ufm.Refused` catches these and nothing else. The command turns them into exit status 2;
    any other exception is a fault of the program.
    """


def traced(*trees: Any) -> bool:
    """Whether a tree holds values of a jit or vmap under way."""
    leaves = jax.tree.leaves(trees, is_leaf=lambda x: isinstance(x, Iterator))
    return any(isinstance(x, jax.core.Tracer) for x in leaves)


def host(value: Any) -> Any:
    """A zero-dimensional array as the Python number that it holds, anything else as it is."""
    if np.ma.is_masked(value) or traced(value) or isinstance(value, np.datetime64 | np.timedelta64):
        return value
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()
    return value


def real(
    name: str,
    value: Any,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    also: str = "",
) -> float:
    """A real, finite number as a Python float.

    Args:
        name: of the value, for the message.
        value: what was given.
        least, above, below: least ≤ value, above < value < below.
        also: what else is allowed, for the message, such as "or None".

    Raises:
        Refused: no real number, or outside the range.
    """
    bounds = [f">= {least:g}"] * math.isfinite(least) + [f"> {above:g}"] * math.isfinite(above)
    bounds += [f"< {below:g}"] * math.isfinite(below)
    allowed = " ".join(["a finite number", " and ".join(bounds)]).strip()
    allowed += f", {also}" if also else ""
    number = host(value)
    odd = isinstance(number, bool | np.bool_ | np.timedelta64) or np.ma.is_masked(value)
    if odd or not isinstance(number, numbers.Real | decimal.Decimal):
        raise Refused(f"got {name}={shown(value)}; allowed: {allowed}{_hint(value)}")
    try:
        result = float(number)
    except (OverflowError, ValueError):
        result = math.nan
    if not (math.isfinite(result) and result >= least and above < result < below):
        raise Refused(f"got {name}={shown(value)}; allowed: {allowed}")
    if result == 0 and number != 0:
        raise Refused(f"got {name}={shown(value)}, which float64 takes for 0; allowed: {allowed}")
    return result


def number_text(text: str) -> float | decimal.Decimal:
    """A number in decimal notation as float64, or as it stands where float64 would take it for 0.

    `real` refuses the latter by its value.
    """
    number = float(text)
    if number == 0 and (exact := decimal.Decimal(text)) != 0:
        return exact
    return number


def integer(
    name: str, value: Any, least: int | None = None, most: int | None = None, why: str = ""
) -> int:
    """An integer as a Python int: integers of any library, no floats, no booleans.

    Args:
        name: of the value, for the message.
        value: what was given.
        least, most: inclusive bounds.
        why: the reason of the bounds, for the message.

    Raises:
        Refused: no integer, or outside the range.
    """
    allowed = "an integer" if least is None else f"an integer >= {least}"
    if most is not None:
        allowed += f" and <= {most}" if most < 2**32 else f" and <= 2^{math.log2(most):.3g}"
    number = host(value)
    odd = isinstance(number, bool | np.bool_ | np.timedelta64) or np.ma.is_masked(value)
    if odd or not isinstance(number, numbers.Integral):
        hint = _hint(value)
        if isinstance(number, float) and number.is_integer():
            hint = f"; write {int(number)}" if abs(number) < 1e16 else "; write it as an integer"
        raise Refused(f"got {name}={shown(value)}; allowed: {allowed}{hint}")
    result = int(number)
    if (least is not None and result < least) or (most is not None and result > most):
        reason = f" ({why})" if why else ""
        raise Refused(f"got {name}={shown(result)}; allowed: {allowed}{reason}")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False, also as NumPy or JAX hold them.

    Raises:
        Refused: anything else, numbers included.
    """
    answer = host(value)
    if not isinstance(answer, bool | np.bool_):
        raise Refused(f"got {name}={shown(value)}; allowed: True or False")
    return bool(answer)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of some names.

    Raises:
        Refused: another name, or no text.
    """
    if not isinstance(value, str) or value not in allowed:
        raise Refused(f"got {name}={shown(value)}; allowed: {', '.join(map(repr, allowed))}")
    return str(value)


def floating(name: str, value: Any) -> np.dtype:
    """A floating dtype as JAX has it under its present configuration; None is its default.

    Raises:
        Refused: no dtype, or one that is not real floating.
    """
    try:
        dtype = jax.dtypes.canonicalize_dtype(float if value is None else value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or not jax.dtypes.issubdtype(dtype, np.floating):
        raise Refused(f"got {name}={shown(value)}; allowed: a real floating dtype, or None")
    return dtype


def several(value: Any) -> list[Any] | None:
    """The entries of a sequence or array of one axis; None for anything else, text included."""
    if isinstance(value, str | bytes) or traced(value):
        return None
    if isinstance(value, Sequence):
        return list(value)
    if len(getattr(value, "shape", ())) == 1:
        return list(value)
    return None


def array(value: Any) -> np.ndarray:
    """NumPy's array of a value. Of dtype object where an entry among numbers is none.

    By itself NumPy takes [True, 0.5] for [1.0, 0.5], and leaves Decimals and Fractions as objects.
    """
    found = np.asarray(value)
    if not isinstance(value, list | tuple) or found.dtype.kind not in "iufO":
        return found
    entries = np.asarray(value, object)
    if any(isinstance(x, bool | np.bool_) for x in entries.flat):
        return entries
    if found.dtype == object:
        with contextlib.suppress(Refused):
            return np.reshape([real("entry", x) for x in entries.flat], entries.shape)
    return found


def one_problem(problem: Any) -> None:
    """Refuse a problem whose decays are arrays, to be mapped over, or traced.

    Raises:
        Refused: naming the decay.
    """
    for name in ("lam_W", "lam_H", "lam_b"):
        lam = getattr(problem, name)
        if traced(lam):
            raise Refused(
                f"got a traced {name}: this runs on the host; call it outside jit and vmap"
            )
        if np.ndim(lam):
            raise Refused(
                f"got {name} with shape {np.shape(lam)}; allowed: one number, a problem at a time. "
                "Loop over the values, or give a traceable function to jax.vmap"
            )
    one_loss(problem.loss)
    for x in (problem.weights, problem.decay_weights):
        if x is not None and (traced(x) or np.ndim(x) != 1):
            raise Refused(
                f"got weights of shape {np.shape(x)}; allowed: numbers, one a class, of one problem"
            )


def one_loss(loss: Any) -> None:
    """Refuse a loss that is several, by a parameter that is an array.

    Raises:
        Refused: naming the parameter.
    """
    for f in dataclasses.fields(loss) if dataclasses.is_dataclass(loss) else ():
        if f.metadata.get("number") and np.ndim(getattr(loss, f.name)):
            raise Refused(
                f"got {f.name} with shape {np.shape(getattr(loss, f.name))}; allowed: one number, "
                "a loss at a time. Loop over the values, or give a traceable function to jax.vmap"
            )


def shown(value: Any) -> str:
    """A value in a message: its repr, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # an object whose repr fails, or an int beyond Python's limit of digits
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]}… ({type(value).__name__})"


def _hint(value: Any) -> str:
    """How to mend a value of the wrong kind."""
    if isinstance(value, str | bytes):
        return ". It is text: write the number without quotes"
    if isinstance(value, np.ma.MaskedArray):
        return ". It is masked: fill or drop the entry"
    if several(value) is not None:
        return ". It holds several values: give one"
    if isinstance(value, Iterator | Set):
        return ". As several values, where these are allowed, give a list of them: list(…)"
    return ""


def key(value: Any) -> jax.Array:
    """A JAX PRNG key: a typed key, the data of one, or an integer seed.

    Raises:
        Refused: anything else, many keys among them.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        if value.dtype == np.uint32 and value.shape == (2,):
            return jax.random.wrap_key_data(jax.numpy.asarray(value))
    elif isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    elif isinstance(host(value), numbers.Integral) and not isinstance(host(value), bool):
        return jax.random.key(integer("key", value, 0, 2**32 - 1))
    raise Refused(
        f"got key={shown(value)}; allowed: one PRNG key, as jax.random.key(0) makes it, or an "
        "integer from 0 to 4294967295 as its seed"
    )


def fits(what: str, needed: int, mend: str, machine: bool = False) -> None:
    """Refuse what needs more bytes than the devices of this process have, before allocating it.

    Args:
        what: is to be held.
        needed: bytes, a lower bound.
        mend: what to do about it.
        machine: held by NumPy, in the memory of the machine, and not on devices.

    Raises:
        Refused: naming both numbers.
    """
    there = _machine() if machine else _memory()
    if needed > there:
        raise Refused(
            f"got {what}, which needs at least {needed / 2**30:,.1f} GiB; there are "
            f"{there / 2**30:,.1f} GiB of memory. {mend}"
        )


def _memory() -> int:
    """Bytes of memory of all devices: their own where they tell, else those of the machine."""
    own = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    return jax.process_count() * (sum(own) if all(own) else _machine())


def _machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def regular_file(path: Path, allowed: str) -> Path:
    """A path at which a plain file lies: no folder, and nothing that would block a reader.

    Raises:
        Refused: naming what lies there.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise Refused(f"got {path}, which does not exist; allowed: {allowed}") from None
    except (OSError, ValueError) as error:  # a loop of links, no permission; NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise Refused(
            f"got {shown(str(path))}, which cannot be read ({reason}); allowed: {allowed}"
        ) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise Refused(f"got {path}, which is {kind}; allowed: {allowed}")
    return path


def normal_decays(problem: Any) -> None:
    """Refuse decays of a problem between 0 and the smallest normal number of float64.

    Raises:
        Refused: naming the decay. Traced values pass.
    """
    tiny = float(np.finfo(np.float64).tiny)
    for name in ("lam_W", "lam_H", "lam_b"):
        lam = getattr(problem, name)
        if not traced(lam) and np.any((np.asarray(lam, float) > 0) & (np.asarray(lam) < tiny)):
            raise Refused(
                f"got {name}={shown(lam)}; allowed: 0, or at least {tiny:.4g}: JAX takes smaller "
                "numbers for 0"
            )


def array_hint(name: str, value: Any) -> str:
    """How to make a plain floating array of something that is none, for a message."""
    if isinstance(value, np.ma.MaskedArray):
        return f". It is masked: fill it or drop the samples, as in {name}.filled(0.0)"
    if callable(getattr(value, "toarray", None)):
        return f". It is sparse: give {name}.toarray()"
    if callable(getattr(value, "detach", None)):
        return f". It is a tensor: give {name}.detach().cpu().double().numpy()"
    if getattr(value, "dtype", None) is not None and getattr(value.dtype, "kind", "") == "V":
        return ". NumPy's files do not keep bfloat16 and its kin: save the array as float32"
    return f", for example numpy.asarray({name}, float)"
