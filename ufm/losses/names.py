"""Losses by name, as the command line, TOML files and stored runs write them.

    CrossEntropy          CrossEntropy(smoothing=0.1)

The text of a loss is its class with the fields that differ from their defaults.
"""

import difflib
import re
from dataclasses import fields
from typing import Any

from ufm import check
from ufm.check import Refused
from ufm.losses.crossentropy import CrossEntropy
from ufm.losses.loss import Loss

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (CrossEntropy,)}
_TEXT = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*")


def text_of(loss: Any) -> str:
    """The text that `named` reads back as this loss.

    Raises:
        Refused: a loss of one's own, which no file can name; parameters that are arrays or traced.
    """
    kind = type(loss)
    if KINDS.get(kind.__name__) is not kind:
        raise Refused(
            f"got a loss of type {kind.__name__}, which a file cannot name; allowed: "
            f"{', '.join(KINDS)}. A loss of your own is used from Python, without a run folder"
        )
    given = []
    for f in fields(kind):
        value = check.real(f.name, getattr(loss, f.name))
        if value != f.default:
            given.append(f"{f.name}={value!r}")
    return kind.__name__ + (f"({', '.join(given)})" if given else "")


def named(loss: Any) -> Any:
    """A loss from its text; a loss as it is.

    Raises:
        Refused: an unknown name or parameter, a value out of range, or what is no loss at all.
    """
    if not isinstance(loss, str):
        if isinstance(loss, type) or not isinstance(loss, Loss):
            way = f"; write {loss.__name__}()" if isinstance(loss, type) else ""
            raise Refused(
                f"got loss={check.shown(loss)}; allowed: a loss of ufm.losses, or its text such as "
                f"'CrossEntropy'{way}"
            )
        return loss
    found = _TEXT.fullmatch(loss)
    name, inside = found.groups() if found else (loss, None)
    if name not in KINDS:
        near = difflib.get_close_matches(str(name), KINDS, n=1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise Refused(f"got loss={loss!r}; allowed: {', '.join(KINDS)}{hint}")
    kind, given = KINDS[name], {}
    allowed = [f.name for f in fields(kind)]
    for part in (inside or "").split(","):
        if not part.strip():
            continue
        key, equals, value = (x.strip() for x in part.partition("="))
        try:
            given[key] = float(value)
        except ValueError:
            equals = ""
        if not equals or key not in allowed:
            raise Refused(
                f"got loss={loss!r} with {part.strip()!r}; allowed in {name}(…): "
                + (", ".join(f"{x}=number" for x in allowed) or "nothing")
            )
    return kind(**given)
