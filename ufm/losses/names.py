"""Losses as text, for the command line, TOML files and stored runs.

    CrossEntropy    CrossEntropy(smoothing=0.1)    LogitAdjusted(scale=4.0, shift=(0.0, 0.5, 0.5))

The text of a loss is its class with the parameters that differ from their defaults.
"""

import ast
import difflib
from dataclasses import fields
from typing import Any

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.losses.adjusted import LogitAdjusted
from ufm.losses.binary import BinaryCrossEntropy
from ufm.losses.crossentropy import CrossEntropy
from ufm.losses.focal import Focal
from ufm.losses.loss import Loss
from ufm.losses.squared import SquaredError

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (
    CrossEntropy, SquaredError, BinaryCrossEntropy, Focal, LogitAdjusted,
)}  # fmt: skip
# What others call them, for the hint of a refusal.
_ALSO = {"mse": "SquaredError", "ce": "CrossEntropy", "bce": "BinaryCrossEntropy"}


def text_of(loss: Any) -> str:
    """The text that `named` reads back as this loss.

    Raises:
        Refused: a user-defined loss, which no file can name; parameters that are arrays or traced.
    """
    kind = type(loss)
    if KINDS.get(kind.__name__) is not kind:
        raise Refused(
            f"got a loss of type {kind.__name__}, which a file cannot name; allowed: "
            f"{', '.join(KINDS)}. A loss of your own is used from Python, without a run folder"
        )
    given = []
    for f in fields(kind):
        value = getattr(loss, f.name)
        value = _plain(value) if np.ndim(value) else check.real(f.name, value)
        if value != f.default:
            given.append(f"{f.name}={value!r}")
    return kind.__name__ + (f"({', '.join(given)})" if given else "")


def _plain(value: Any) -> Any:
    """Nested tuples of Python floats."""
    if np.ndim(value):
        return tuple(map(_plain, value))
    return float(value)


def named(loss: Any) -> Any:
    """The loss that a text names; a loss is returned unchanged.

    Raises:
        Refused: an unknown name or parameter, a value out of range, or an object that is no loss.
    """
    if not isinstance(loss, str):
        if isinstance(loss, type) or not isinstance(loss, Loss):
            hint = f"; write {loss.__name__}()" if isinstance(loss, type) else ""
            raise Refused(
                f"got loss={check.shown(loss)}; allowed: a loss of ufm.losses, or its text such as "
                f"'CrossEntropy'{hint}"
            )
        return loss
    name, given = _parsed(loss)
    if name not in KINDS:
        other = _ALSO.get(name.lower())
        near = [other] if other else difflib.get_close_matches(name, KINDS, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise Refused(f"got loss={loss!r}; allowed: {', '.join(KINDS)}{hint}")
    kind = KINDS[name]
    allowed = [f.name for f in fields(kind)]
    if given is None or (unknown := sorted(given.keys() - set(allowed))):
        what = f" with {unknown[0]!r}" if given is not None else ""
        raise Refused(
            f"got loss={loss!r}{what}; allowed: {name}"
            + (f"({', '.join(f'{x}=number' for x in allowed)})" if allowed else "")
        )
    return kind(**given)


def _parsed(text: str) -> tuple[str, dict[str, Any] | None]:
    """(name, parameters) of Name or Name(key=number, …); None where this cannot be read."""
    unread = text.partition("(")[0].strip(), None
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return node.func.id, {str(x.arg): ast.literal_eval(x.value) for x in node.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return unread
    return unread
