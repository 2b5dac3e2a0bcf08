"""JSON values: converted from Python values, hashed, compared, and checked when read."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ufm.check import Refused

MEND = "restore it from a copy, or remove the folder and run again"
DEEPEST = 100  # of nested values


class RecordError(Refused):
    """A run that cannot be opened, written or read; the message says why, and what to do."""


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Convert a value to JSON's types; raise RecordError, naming its place, if it has none.

    Tuples become lists and 0-d arrays numbers; NaN and infinities are kept. A value that contains
    itself, or is nested deeper than `DEEPEST`, is refused.
    """
    if depth > DEEPEST:
        raise RecordError(
            f"{where[:60]}… is nested more than {DEEPEST} deep, or holds itself: use flat values"
        )
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecordError(f"{where} has the key {key!r}: keys must be strings")
        return {key: plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if getattr(value, "shape", None) == () and isinstance(value.item(), (bool, int, float, str)):
        return value.item()
    raise RecordError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold: use numbers, strings, "
        "None, lists and dicts; arrays go with the arrays"
    )


def text(value: Any) -> str:
    """JSON that every reader accepts: NaN and infinities, which JSON lacks, become null.

    For what is printed and for files that other programs read; numbers of NumPy are accepted too.
    """
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """A JSON value with None, JSON's null, for every number that is not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text: keys sorted, no white space, ASCII."""
    return hashlib.sha256(canonical(value)).hexdigest()


def differences(got: Any, kept: Any) -> list[str]:
    """The sorted places where two JSON values differ, as "config.K: got 5, kept 4".

    Values are compared by their JSON text: NaN equals NaN, 2 differs from 2.0, and the order of
    an object's keys means nothing.
    """
    new, old = _flat(got), _flat(kept)
    return [
        f"{'.'.join(name)}: got {new.get(name, 'nothing')}, kept {old.get(name, 'nothing')}"
        for name in sorted(new | old)
        if new.get(name) != old.get(name)
    ]


def expect(value: Any, form: Any, where: str) -> None:
    """Check a JSON value against a form; raise RecordError naming the place where it differs.

    Args:
        value: what was read.
        form: a type, or a tuple of types with None for null; a compiled pattern for text;
            {key: form} for an object with at least these keys, {str: form} for one with any keys;
            [form] for a list.
        where: the file and the place in it, for the message.
    """
    if isinstance(form, dict):
        expect(value, Mapping, where)
        fields = dict.fromkeys(value, form[str]) if str in form else form
        for key, inner in fields.items():
            if key not in value:
                raise RecordError(f"{where} lacks the field {key!r}: {MEND}")
            expect(value[key], inner, f"{where}: {key}")
    elif isinstance(form, list):
        expect(value, list, where)
        for i, item in enumerate(value):
            expect(item, form[0], f"{where}[{i}]")
    elif isinstance(form, re.Pattern):
        if not isinstance(value, str) or not form.fullmatch(value):
            raise RecordError(f"{where}: got {json.dumps(value)[:60]}: {MEND}")
    else:
        kinds = form if isinstance(form, tuple) else (form,)
        kinds = tuple(type(None) if kind is None else kind for kind in kinds)
        # A boolean is an int to Python.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise RecordError(f"{where}: got {json.dumps(value)[:60]}: {MEND}")


def canonical(value: Any) -> bytes:
    """The canonical text of a JSON value, of which `digest` is the hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _flat(value: Any, where: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if isinstance(value, dict) and value:
        parts = (_flat(item, (*where, key)) for key, item in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {where: json.dumps(value)}
