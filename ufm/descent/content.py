"""Functions compared by content: their code, and all values that it can access.

JAX compares functions that are compiled into a program by identity: a schedule such as
`optax.cosine_decay_schedule(0.1, 1000)`, made twice, would be compiled twice. Here two functions
are equal if their code is equal and their defaults, enclosed variables and the globals that they
name are equal in turn. Numbers, text, arrays, tuples, lists, dicts, partial functions and functions
can be compared; an object that contains anything else equals only itself. Globals of optax, JAX,
NumPy and this package are assumed not to change.
"""

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

FIXED = {"builtins", "math", "jax", "jaxlib", "numpy", "optax", "ufm"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


@dataclass(frozen=True)
class ByContent:
    """A value to be compiled in; equal to another whose content is equal.

    value: the value itself.
    content: what is compared, hashable.
    """

    value: Any = field(compare=False)
    content: Any


class _Unknown(Exception):
    """A value whose content cannot be compared."""


def by_content(value: Any) -> ByContent:
    """A value with its content, or with its identity where that cannot be compared.

    Hashable, so that it can be a static argument of a compiled function.
    """
    try:
        return ByContent(value, _content(value, ()))
    except _Unknown:
        # The value stays alive, so that no other object gets its id.
        return ByContent(value, ("itself", id(value)))


def _content(x: Any, above: tuple[Any, ...]) -> Any:
    """The content of x; above: the functions that contain it, for references in a circle."""
    kind = type(x)
    if isinstance(x, _PLAIN):
        return kind, repr(x)
    if isinstance(x, np.ndarray | np.generic | jax.Array) and not isinstance(x, jax.core.Tracer):
        held = np.asarray(x)
        if held.dtype.hasobject:
            raise _Unknown
        return kind, held.dtype.str, held.shape, held.tobytes()
    if isinstance(x, tuple | list):
        return kind, tuple(_content(y, above) for y in x)
    if isinstance(x, dict):
        return kind, tuple((_content(k, above), _content(v, above)) for k, v in x.items())
    if isinstance(x, functools.partial):
        return kind, tuple(_content(y, above) for y in (x.func, x.args, x.keywords))
    if isinstance(x, types.FunctionType):
        return _function(x, above)
    if _fixed(x):
        return "itself", x
    raise _Unknown


def _fixed(x: Any) -> bool:
    """Whether x is a module, a type or a function of a library that does not change."""
    if isinstance(x, types.ModuleType):
        return x.__name__.partition(".")[0] in FIXED
    home = getattr(x, "__module__", None) if callable(x) else None
    made = isinstance(x, type | np.dtype | np.ufunc | types.BuiltinFunctionType)
    known = made or hasattr(x, "__wrapped__")
    return isinstance(x, np.dtype) or (known and str(home).partition(".")[0] in FIXED)


def _function(f: types.FunctionType, above: tuple[Any, ...]) -> Any:
    if f in above:
        return "above", above.index(f)
    above = (*above, f)
    try:
        enclosed = [cell.cell_contents for cell in f.__closure__ or ()]
    except ValueError:  # a variable that has no value yet
        raise _Unknown from None
    seen: dict[str, Any] = {}
    if f.__module__ is None or f.__module__.partition(".")[0] not in FIXED:
        names = sorted(set(_names(f.__code__)))
        seen = {name: f.__globals__[name] for name in names if name in f.__globals__}
    parts = (f.__defaults__, f.__kwdefaults__, enclosed, seen)
    return f.__code__, tuple(_content(part, above) for part in parts)


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names in a code and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
