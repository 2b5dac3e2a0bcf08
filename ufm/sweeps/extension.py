"""A sweep on disk, extended to more cells or more steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ufm.descent.loop import Status
from ufm.runs import values
from ufm.runs.record import Growth
from ufm.sweeps.grid import Plan, SweepCell
from ufm.sweeps.histories import PREFIX

Columns = dict[str, np.ndarray]


def growth(cells: Sequence[SweepCell], config: Mapping[str, Any]) -> Growth:
    """How a sweep continues a smaller one (`ufm.record.Growth`).

    Args:
        cells: of the sweep.
        config: of the sweep, as its folder holds it.
    """
    numbers = {cell: i for i, cell in enumerate(cells)}

    def fits(manifest: Mapping[str, Any]) -> bool:
        old = manifest["config"]
        if values.differences(_rest(config), _rest(old)):
            return False
        if not isinstance(old.get("steps"), int) or config["steps"] < old["steps"]:
            return False
        return all(cell in numbers for cell in Plan.from_plain(old).cells())

    def arrays(manifest: Mapping[str, Any], stored: Columns) -> Columns:
        old = manifest["config"]
        if not stored:
            return {}
        if missing := {"cell", "status"} - stored.keys():
            columns = ", ".join(sorted(missing))
            raise values.RecordError(f"got a sweep without the columns {columns}: {values.MEND}")
        places = np.array([numbers[cell] for cell in Plan.from_plain(old).cells()])
        if "options" not in stored and any(cell.options for cell in cells):
            stored = stored | {"options": np.full(len(stored["cell"]), "")}
        if "fixed" not in stored:  # of a version in which every W moved
            stored = stored | {"fixed": np.full(len(stored["cell"]), "")}
        return _renumbered(stored, places, longer=config["steps"] > old["steps"])

    return Growth(fits, arrays)


def _rest(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that must be the same."""
    return {name: x for name, x in config.items() if name not in ("grids", "steps")}


def _renumbered(stored: Columns, places: np.ndarray, longer: bool) -> Columns:
    """The rows of the cells that need not run again, under their new numbers."""
    again = stored["cell"][stored["status"] == Status.step_limit.name] if longer else []
    found: Columns = {}
    for prefix in ("", PREFIX):
        names = [name for name in stored if name.startswith(PREFIX) == bool(prefix)]
        if names:
            cells = stored[f"{prefix}cell"]
            kept = ~np.isin(cells, again)
            found |= {name: stored[name][kept] for name in names}
            found[f"{prefix}cell"] = places[cells[kept]]
    return found if len(found["cell"]) else {}
