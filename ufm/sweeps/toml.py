"""Plans of sweeps in TOML files, in the form that `ufm.sweeps.grid` describes."""

import difflib
import re
import tomllib
from dataclasses import fields
from pathlib import Path

from ufm import check
from ufm.check import Refused
from ufm.sweeps.grid import ALIASES, AXES, Grid, Plan


def read(path: Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        Refused: no such file, no TOML, values that a grid does not take, or an unknown key; the
            message gives its line and the allowed keys.
    """
    check.regular_file(path, "a TOML file")
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text, parse_float=check.number_text)
    except OSError as error:
        raise Refused(f"got {path}, which cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"got {path}, which is no TOML: {error}") from None
    shared = [f.name for f in fields(Plan) if f.name != "grids"]
    grids = table.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise Refused(f"got {path} with a key `grid`; allowed: tables [[grid]], each a grid")
    axes = [*AXES, "options"]
    for place, keys in enumerate((table, *grids)):
        allowed = [*axes, *shared] if place == 0 else axes
        for key in keys:
            if key not in allowed:
                raise Refused(_unknown(path, text, place, key, allowed))
    common = {name: x for name, x in table.items() if name in axes}
    rest = {name: x for name, x in table.items() if name in shared}
    try:
        return Plan(tuple(Grid(**common | grid) for grid in grids), **rest)
    except Refused as error:
        raise Refused(f"{error} (in {path})") from None


def _unknown(path: Path, text: str, place: int, key: str, allowed: list[str]) -> str:
    """The refusal of a key of the `place`-th table [[grid]], or at the top of the file for 0."""
    found, tables = "?", 0
    for i, line in enumerate(text.splitlines(), start=1):
        tables += re.match(r"\s*\[\[\s*grid\s*\]\]", line) is not None
        if tables == place and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            found = str(i)
            break
    near = [ALIASES[key]] if key in ALIASES else difflib.get_close_matches(key, allowed, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return f"got the key {key!r} in {path}, line {found}; allowed: {', '.join(allowed)}{hint}"
