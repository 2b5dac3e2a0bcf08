"""Problems, points and results read from runs on disk, checked before they are used.

The hashes of a run prove that it was not changed, not that it was written by this program: a
manifest made by hand may lack any field.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np

from ufm.critical.verification import Cell
from ufm.model.points import check_params
from ufm.model.problem import Params, Problem
from ufm.runs import claims, values
from ufm.runs.claims import Verdict
from ufm.runs.values import RecordError

_NUMBER = (int, float, None)  # null is NaN
_MODEL = {"model": {"n": [int]}}
_TYPES: dict[Any, Any] = {bool: bool, int: int, float: _NUMBER}
_CELL = {name: _TYPES[kind] for name, kind in get_type_hints(Cell).items() if kind in _TYPES}
_CELLS = {"cells": [_CELL | {"problem": Mapping, "violations": [str]}], "of": int}
_COMPARED = ("measured", "predicted", "tolerance")
_VERDICT = {"claim": str, "outcome": str, **dict.fromkeys(_COMPARED, (int, float, str))}
_RESULTS = {
    "status": str,
    "steps": int,
    **dict.fromkeys(("value", "lower_bound", "gap", "grad_norm"), _NUMBER),
}


def problem(manifest: Mapping[str, Any], where: str) -> Problem:
    """The problem of a run of `ufm descend`.

    Args:
        manifest: of the run.
        where: its file, for the message.

    Raises:
        Refused: a field is missing, has the wrong type or an invalid value.
    """
    values.expect(manifest["config"], _MODEL, f"{where}: config")
    return Problem.from_description(manifest["config"]["model"], f"{where}: config: model")


def results(manifest: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The results of a finished run of `ufm descend`, null as NaN.

    Raises:
        RecordError: a field is missing or has the wrong type.
    """
    values.expect(manifest["results"], _RESULTS, f"{where}: results")
    return {name: np.nan if x is None else x for name, x in manifest["results"].items()}


def point(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> Params:
    """The last point of a finished run of `ufm descend`.

    Raises:
        Refused: an array is missing or does not fit the problem.
    """
    params = Params(*(array(arrays, name, where) for name in "WHb"))
    check_params(problem(manifest, where), params)
    return params


def array(arrays: Mapping[str, np.ndarray], name: str, where: str) -> np.ndarray:
    """The array of a run with the given name.

    Raises:
        RecordError: there is none.
    """
    if name not in arrays:
        raise RecordError(f"{where} lists no array {name!r}: {values.MEND}")
    return arrays[name]


def columns(arrays: Mapping[str, np.ndarray], names: Sequence[str], where: str) -> None:
    """Refuse arrays that are not a table with these columns.

    Raises:
        RecordError: a column is missing, or columns differ in length.
    """
    for name in names:
        array(arrays, name, where)
    if len({x.shape for x in arrays.values()}) > 1 or arrays[names[0]].ndim != 1:
        raise RecordError(f"{where} lists columns of different lengths: {values.MEND}")


def cells(told: Mapping[str, Any], where: str) -> list[Cell]:
    """The cells of `ufm verify`, as its manifest or its verify.json holds them.

    Raises:
        Refused: a field is missing, has the wrong type or an invalid value.
    """
    values.expect(told, _CELLS, where)
    return [
        Cell(
            problem=Problem.from_description(cell["problem"], f"{where}: cells[{i}]: problem"),
            violations=tuple(cell["violations"]),
            **{name: np.nan if cell[name] is None else cell[name] for name in _CELL},  # type: ignore
        )
        for i, cell in enumerate(told["cells"])
    ]


def verified(manifest: Mapping[str, Any], where: str) -> tuple[list[Cell], int]:
    """(the finished cells, the number of all cells) of a run of `ufm verify`.

    Raises:
        Refused: as `cells`.
    """
    kept = manifest["checkpoint"]
    told = manifest["results"] if kept is None else kept["state"]
    if not told and manifest["status"] != "complete":
        return [], 0  # it has only begun
    return cells(told, where), told["of"]


def verdicts(told: Any, where: str) -> list[Verdict]:
    """The verdicts of an experiment, as the file beside its figures holds them.

    Raises:
        RecordError: a field is missing, has the wrong type or an invalid value.
    """
    values.expect(told, {"verdicts": [_VERDICT]}, where)
    found = []
    for i, row in enumerate(told["verdicts"]):
        fields = {name: row[name] for name in Verdict._fields if name in row}
        try:
            found.append(claims.read(fields))
            claims.shown(found[-1])
        except ValueError as error:
            wrong = f"{where}: verdicts[{i}] is no verdict ({error})"
            raise RecordError(f"{wrong}: {values.MEND}") from None
    return found
