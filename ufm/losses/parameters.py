"""Helpers of the losses: registration as pytrees, checks of parameters and of target matrices."""

from dataclasses import fields
from typing import Any

import jax
import numpy as np

from ufm import check
from ufm.check import Refused


def registered(kind: Any) -> Any:
    """Register a frozen dataclass as a pytree whose leaves are the parameters not at defaults.

    A loss with default parameters adds no argument to a compiled function; losses with the same
    parameters off their defaults share one compiled function, whatever the values.
    """

    def flatten_with_keys(loss):
        names = tuple(f.name for f in fields(kind) if not _at_default(getattr(loss, f.name), f))
        leaves = [(jax.tree_util.GetAttrKey(x), _leaf(getattr(loss, x))) for x in names]
        return leaves, names

    def flatten(loss):
        leaves, names = flatten_with_keys(loss)
        return [x for _, x in leaves], names

    def unflatten(names, leaves):
        loss = object.__new__(kind)
        for f in fields(kind):
            object.__setattr__(loss, f.name, f.default)
        for name, x in zip(names, leaves, strict=True):
            object.__setattr__(loss, name, x)
        return loss

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)
    return kind


def _at_default(value: Any, f: Any) -> bool:
    return type(value) is type(f.default) and value == f.default


def _leaf(value: Any) -> Any:
    return np.array(value) if isinstance(value, tuple) else value


# Metadata of a field that is one number: an array stands for one loss per entry, to be mapped over.
NUMBER = {"number": True}


def parameter(loss: Any, name: str, **bounds: Any) -> None:
    """Convert and check a parameter that is one number, or an array of them to be mapped over.

    Raises:
        Refused: outside the bounds of `ufm.check.real`.
    """
    value = getattr(loss, name)
    if check.traced(value):
        return
    if isinstance(value, np.ndarray | jax.Array) and value.ndim:
        for i, x in enumerate(np.ravel(value).tolist()):
            check.real(f"{name}[{i}]", x, **bounds)
        return
    object.__setattr__(loss, name, check.real(name, value, **bounds))


def numbers(loss: Any, name: str, axes: int, **bounds: Any) -> None:
    """Convert and check a parameter that is one number, or an array of up to `axes` axes.

    Raises:
        Refused: entries that are not numbers, or outside the bounds; more axes.
    """
    value = getattr(loss, name)
    try:
        array = np.zeros(()) if check.traced(value) else check.array(value)
    except ValueError:  # ragged
        array = np.array([None])
    if not array.ndim:
        parameter(loss, name, **bounds)
        return
    if array.dtype.kind not in "iuf" or not 0 < array.ndim <= axes:
        raise Refused(
            f"got {name}={check.shown(value)}; allowed: a number, or up to {axes} axes of numbers"
        )
    flat = [check.real(f"{name}[{i}]", x, **bounds) for i, x in enumerate(array.ravel())]
    nested = np.reshape(flat, array.shape).tolist()
    object.__setattr__(loss, name, _tuples(nested))


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested


def labels_only(targets: Any, what: str) -> None:
    """Refuse a target matrix.

    Raises:
        Refused: targets is not None.
    """
    if targets is not None:
        raise Refused(f"got targets with {what}, which is a loss of labels; allowed: no targets")


def nonnegative(targets: np.ndarray, what: str, most: float = np.inf) -> None:
    """Refuse target columns with entries outside [0, most], or all zero.

    Raises:
        Refused: naming the column and its entry.
    """
    bad = (targets < 0) | (targets > most)
    if np.any(bad):
        j, i = (int(x[0]) for x in np.nonzero(bad))
        allowed = ">= 0" if most == np.inf else f"from 0 to {most:g}"
        raise Refused(
            f"got targets[{j}, {i}]={targets[j, i]} with {what}; allowed: entries {allowed}"
        )
    if most == np.inf and not np.all(np.sum(targets, axis=0) > 0):
        i = int(np.argmin(np.sum(targets, axis=0)))
        raise Refused(f"got column {i} of targets all zero; allowed with {what}: a sum > 0")
