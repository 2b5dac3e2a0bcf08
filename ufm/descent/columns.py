"""Columns that a user adds to a history: functions of (problem, params), by name.

A function that JAX can trace becomes part of the compiled loop. One that it cannot trace, marked
by `host`, is called in Python at every record: the run then needs one compiled call for each.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.descent.content import ByContent, by_content
from ufm.model import layers
from ufm.model.problem import Params, Problem

Function = Callable[[Problem, Params], Any]
Traced = tuple[tuple[str, ByContent], ...]


@dataclass(frozen=True)
class Host:
    """A function of (problem, params) that Python calls, as `host` marks it."""

    function: Function


def host(function: Function) -> Host:
    """Mark a function that JAX cannot trace, for `record=` of a descent or of a sweep.

    The run is then split into one compiled call for each record.

    Args:
        function: of (problem, params), called at every record; it may use NumPy, SciPy or any
            other library, and returns one real number.

    Raises:
        Refused: no function of two arguments.
    """
    return Host(_function("function", function))


def _index(problem: Problem, params: Params) -> int:
    from ufm import hessian  # imports SciPy, which most runs do without

    return hessian.inertia(problem, params).negative


def _smallest(problem: Problem, params: Params) -> float:
    from ufm import hessian

    return hessian.smallest(problem, params)


def _off_the_orbit(problem: Problem, params: Params) -> float:
    from ufm import hessian

    return hessian.smallest(problem, params, orbit=True)


# Columns that can be named, in float64 whatever the precision of the run. Near a critical point the
# eigenvalues of the orbit are of the order of ‖∇f‖; `index` counts those below 0.
NAMED = {
    "index": Host(_index),  # Morse index: negative eigenvalues of ∇²f
    "lam_min": Host(_smallest),  # smallest eigenvalue of ∇²f
    "lam_min_off_orbit": Host(_off_the_orbit),  # off the tangents of the symmetry orbit
}


class Columns(NamedTuple):
    """The columns of a run beyond those of every history.

    traced: compiled into the loop.  host: called in Python at every record.
    """

    traced: Traced = ()
    host: tuple[tuple[str, Function], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(name for name, _ in (*self.traced, *self.host))


Record = tuple[tuple[str, Any], ...]
# What a user gives: names; or by the name of the column a function, a marked one or a name.
Recorded = Sequence[str] | Mapping[str, Function | Host | str] | None


def given(record: Any, taken: tuple[str, ...]) -> Record:
    """The columns asked for, checked: pairs of a name and a function, marked or not.

    Args:
        record: names of `NAMED`, or a dict from names of columns to functions or such names; None
            or an empty one for no columns.
        taken: the names of the columns that exist already.

    Raises:
        Refused: another name, no function of (problem, params), a column that exists.
    """
    if isinstance(record, tuple) and all(isinstance(x, tuple) and len(x) == 2 for x in record):
        record = dict(record)  # of a plan that was made already
    if record is not None and not isinstance(record, Mapping):
        several = check.several([record] if isinstance(record, str) else record)
        if several is None or not all(isinstance(x, str) for x in several):
            raise Refused(
                f"got record={check.shown(record)}; allowed: names ({', '.join(NAMED)}), or a dict "
                "of functions of (problem, params) by the names of their columns"
            )
        record = {name: name for name in several}
    return tuple((_name(name, taken), _function(name, f)) for name, f in (record or {}).items())


def _name(name: Any, taken: tuple[str, ...]) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise Refused(
            f"got record with the column {check.shown(name)}; allowed: letters, digits and _, not "
            "beginning with a digit"
        )
    if name in taken:
        raise Refused(
            f"got record with the column {name!r}, which every run has; allowed: another name than "
            f"{', '.join(taken)}"
        )
    return name


def _function(name: Any, f: Any) -> Any:
    """A function of two arguments, or the one that a name of `NAMED` stands for."""
    if isinstance(f, Host):
        return f
    if isinstance(f, str) and f in NAMED:
        return NAMED[f]
    if isinstance(f, str) or not callable(f):
        raise Refused(
            f"got {check.shown(f)} for the column {check.shown(name)}; allowed: a function of "
            f"(problem, params), ufm.host(f), or a name: {', '.join(NAMED)}"
        )
    try:
        inspect.signature(f).bind(None, None)
    except TypeError as error:
        raise Refused(
            f"got {check.shown(f)} for the column {check.shown(name)} ({error}); allowed: a "
            "function of (problem, params)"
        ) from None
    except ValueError:  # of a builtin, whose signature Python does not know
        pass
    return f


def split(record: Record) -> Columns:
    """The columns, split into those that are compiled and those that are called."""
    host = tuple((name, f.function) for name, f in record if isinstance(f, Host))
    traced = tuple((name, by_content(f)) for name, f in record if not isinstance(f, Host))
    return Columns(traced, host)


def described(record: Record) -> dict[str, str]:
    """The columns as a run stores them: functions by their names."""
    names = {f: name for name, f in NAMED.items()}
    return {name: names.get(f) or _told(f) for name, f in record}


def _told(f: Any) -> str:
    if isinstance(f, Host):
        return f"host {_told(f.function)}"
    return str(getattr(f, "__qualname__", type(f).__name__))


def check_traceable(columns: Columns, problem: Problem, params: Params) -> None:
    """Refuse a function that cannot be compiled, or that returns no number, before anything runs.

    Args:
        columns: of the run.
        problem, params: a point, or the shapes of one.

    Raises:
        Refused: with JAX's message.
    """
    for name, f in columns.traced:
        try:
            found = jax.eval_shape(lambda *at, f=f: jnp.asarray(f.value(*at)), problem, params)
        except (jax.errors.JAXTypeError, TypeError, Refused) as error:
            reason = str(error).partition("\n")[0]
            raise Refused(
                f"got record with a function for {name!r} that JAX cannot trace ({reason}); "
                "allowed: a traceable function, or ufm.host(f) for one that Python calls at every "
                "record"
            ) from None
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != () or jax.dtypes.issubdtype(dtype, np.complexfloating):
            raise Refused(
                f"got record with a function for {name!r} that returns {check.shown(found)}; "
                "allowed: one real number"
            )


def check_features(columns: Columns, problem: Problem) -> None:
    """Refuse the columns of `NAMED` where features are constrained: they are of the whole ∇²f.

    Raises:
        Refused: naming the column.
    """
    known = [f.function for f in NAMED.values()]
    for name, f in columns.host:
        if f in known:
            layers.require_free(problem, f"the column {name!r}")


def called(columns: Columns, problem: Problem, params: Params) -> dict[str, float]:
    """The columns that Python computes, at a point.

    Raises:
        Refused: a function that returns no number.
    """
    return {name: _number(name, f(problem, params)) for name, f in columns.host}


def _number(name: str, value: Any) -> float:
    try:
        found = np.asarray(value)
        if found.shape == () and found.dtype.kind in "biuf":
            return float(found)
    except (TypeError, ValueError):
        pass
    raise Refused(
        f"got {check.shown(value)} from the function for {name!r}; allowed: one real number"
    )
