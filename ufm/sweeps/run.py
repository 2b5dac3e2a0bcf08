"""A sweep: descent on every cell of a grid, shape by shape and batch by batch, into one table.

XLA multiplies small matrices one after the other on one core. On a CPU a long sweep therefore
distributes its batches over one process a core; a short one, which mostly compiles, distributes its
shapes. An executor distributes batches over other machines. Finished cells are rows of a table,
which grows on disk batch by batch.
"""

import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.descent import columns as recorded
from ufm.model.points import init_params
from ufm.runs import record
from ufm.runtime import executors, leader, processes
from ufm.sweeps import batches, extension, histories, stages
from ufm.sweeps.batches import Columns
from ufm.sweeps.grid import Plan, SweepCell
from ufm.sweeps.shapes import Shape

MEMORY = 2**30  # bytes of the compiled calls that run at a time
# A table is written whole: up to so many rows after every batch; beyond, once a fiftieth is new, so
# that a long sweep writes in proportion to its cells and a kill loses at most a fiftieth.
SMALL_TABLE, SHARE = 10_000, 50
# Batches of a shape with an executor, whose number of workers is not known.
BATCHES = 8
# Whole shapes are distributed over processes, which then compile concurrently, if every problem has
# at most SMALL variables, a call fits into SMALL_MEMORY bytes, and all steps of a shape take less
# than BRIEF seconds, as `ufm.sweeps.stages` estimates them.
SMALL, SMALL_MEMORY, BRIEF = 2500, 2**27, 30.0
Report = Callable[[float, str], None]


def sweep(
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    *,
    history: bool = False,
    memory: int = MEMORY,
    executor: Executor | None = None,
    report: Report | None = None,
) -> Columns:
    """Descend on every cell of a plan; a table as a dict of columns, one row a cell.

    Args:
        plan: the grids, and the settings that their runs share.
        out: the folder of the table, created if absent. If a sweep was killed, the same call
            computes only the missing cells; a finished one is only read. A plan with more cells
            (seeds, widths, …) or more steps than the stored one extends it: cells that ended at the
            limit of steps are run again, others are kept.
        history: keep every record of every cell.
        memory: most bytes that concurrent compiled calls may use, on all devices together; with an
            executor, those of one worker.
        executor: computes the batches, one at a time in a process; this process collects them. Any
            `concurrent.futures.Executor` whose workers can import ufm, such as that of a cluster,
            `dask.distributed.Client(address).get_executor()`. It is left open. None takes this
            process and, on a CPU, one more for each further core if the sweep takes long or has
            several shapes.
        report: called with the share of the cells that is done, and with the present task in words.

    Returns:
        Columns: `cell` (its number in `plan.cells()`); the fields of `Problem` and of the method,
        with the learning rate and momentum that were used (NaN where there is none) and `auto`,
        True for the step sizes "auto" and "safe"; status (as in `ufm.Run`), steps; value,
        lower_bound, gap, grad_norm, spectral_ratio (`ufm.Certificate`, float64); nc1 … nc4,
        norm_W, norm_H, norm_b, accuracy; f_star, the global minimum in closed form, NaN outside the
        theorem; last the columns of `plan.record`, at the end of each run. A diverged cell is a row
        like any other, measured at its last sound point.
        With history also "history/cell", "history/step", "history/loss", …, one row a record, cell
        after cell: `ufm.sweeps.history(table, cell)` returns that of one cell, and
        `ufm.sweeps.split` separates the two tables.

    Raises:
        Refused: an invalid cell; a budget too small for one cell; no executor of
            `concurrent.futures`; a process of `jax.distributed` with others, each of which would
            run all cells.
        RecordError: a folder that holds something else.
    """
    _check_place_and_plan(plan)
    executor = None if executor is None else executors.checked(executor)
    memory = check.integer("memory", memory, 1)
    history = check.flag("history", history)
    cells = plan.cells()
    _check_record(plan, cells)
    say = report or (lambda *_: None)
    task = _Task(plan, cells, memory, executor, history)
    if out is None:
        return histories.ordered(_rows(task, {}, say, lambda _: None))
    config = plan.plain() | ({"history": True} if history else {})
    growth = extension.growth(cells, config)
    with record.open_run(out, "sweep", config, precision=plan.precision, growth=growth) as handle:
        if handle.status == "complete":
            return leader.told(lambda: record.load_run(handle.path).arrays)
        checkpoint = record.load_checkpoint(handle)
        kept = {} if checkpoint is None else checkpoint[0]
        saved = len(kept["cell"]) if kept else 0

        def save(columns: Columns) -> None:
            nonlocal saved
            rows = len(columns["cell"])
            if rows - saved < (rows - SMALL_TABLE) / SHARE:
                return
            saved = rows
            state = {"done": rows, "of": len(cells)}
            record.save_checkpoint(handle, columns, state)

        columns = histories.ordered(_rows(task, kept, say, save))
        names, counts = np.unique(columns["status"], return_counts=True)
        results = {"cells": len(cells)} | dict(zip(map(str, names), map(int, counts), strict=True))
        record.close_run(handle, columns, results)
    return columns


def _check_place_and_plan(plan: Any) -> None:
    """Refuse to run in one of several processes, and a plan that is none."""
    if jax.process_count() > 1:
        raise Refused(
            f"got a sweep in one of {jax.process_count()} processes of jax.distributed; allowed: "
            "one process, which distributes the cells by executor=, such as "
            "dask.distributed.Client(address).get_executor()"
        )
    if not isinstance(plan, Plan):
        raise Refused(
            f"got a {type(plan).__name__} as plan; allowed: a ufm.Plan, such as "
            "ufm.Plan(ufm.Grid(lam_W=[1e-3, 1e-2]))"
        )


def load(path: str | os.PathLike[str]) -> tuple[Columns, dict[str, Any]]:
    """(table, manifest) of a sweep on disk, finished or not.

    Args:
        path: its folder. The table of a sweep that has no finished cell yet is empty.

    Raises:
        RecordError: no run there, or a damaged one.
        Refused: a run of another kind.
    """
    stored = record.load_latest(path)
    if stored.manifest["kind"] != "sweep":
        raise Refused(
            f"got {path}, a run of kind {stored.manifest['kind']!r}; allowed: one of `ufm sweep`"
        )
    return stored.arrays, stored.manifest


class _Task(NamedTuple):
    """A plan, its cells and how to run them."""

    plan: Plan
    cells: list[SweepCell]
    memory: int
    executor: Executor | None
    history: bool


def _check_record(plan: Plan, cells: list[SweepCell]) -> None:
    """Refuse functions of `plan.record` that cannot be compiled, for a cell of every shape."""
    record = recorded.split(plan.record)
    if not record.traced:
        return
    for cell in {Shape.of(cell): cell for cell in cells}.values():
        params = jax.eval_shape(partial(init_params, jax.random.key(0), cell.problem))
        recorded.check_traceable(record, cell.problem, params)


def _rows(task: _Task, columns: Columns, say: Report, save) -> Columns:
    """The table with the cells that `columns` lacks, shape by shape."""
    groups: dict[Shape, list[int]] = {}
    for i, cell in enumerate(task.cells):
        groups.setdefault(Shape.of(cell), []).append(i)
    done = set(columns["cell"].tolist()) if columns else set()
    left = [members for members in groups.values() if not done.issuperset(members)]
    apart = min(_calls(), len(left), task.memory // SMALL_MEMORY)
    if apart > 1 and task.executor is None and all(_is_brief(task, group) for group in left):
        return _side_by_side(task, left, apart, columns, say, save)
    for members in left:
        columns = _group(task, members, columns, say, save)
    return columns


def _is_brief(task: _Task, members: list[int]) -> bool:
    """Whether the cells of a shape are small, and run in a few times the time of compiling."""
    problem = task.cells[members[0]].problem
    taken = len(members) * task.plan.steps * stages.seconds(problem)
    return problem.size <= SMALL and taken < BRIEF


def _side_by_side(
    task: _Task, groups: list[list[int]], apart: int, columns: Columns, say: Report, save
) -> Columns:
    """The table with the cells that it lacks, whole shapes distributed over `apart` processes."""
    done, total = columns["cell"] if columns else np.zeros(0, int), len(task.cells)

    def keep(_: int, rows: Columns) -> None:
        nonlocal columns
        columns = _joined(columns, rows)
        save(columns)

    def watch(job: int, part: float) -> None:
        finished = len(columns["cell"]) if columns else 0
        say((finished + part * len(groups[job])) / total, _label(task.cells[groups[job][0]]))

    say(len(done) / total, f"{len(groups)} shapes: compiling")
    jobs = [
        (
            task.plan,
            [task.cells[i] for i in members],
            members,
            done,
            task.memory // apart,
            task.history,
        )
        for members in groups
    ]
    processes.run(_shape, jobs, apart, keep, watch, patience=0.0)
    return columns


def _shape(
    plan: Plan,
    cells: list[SweepCell],
    members: list[int],
    done: np.ndarray,
    memory: int,
    history: bool,
    share: Callable[[float], None],
) -> Columns:
    """The rows of the cells of one shape that are not done; `members`: the numbers of the cells."""
    size, _ = batches.fitted(plan, cells, memory, _calls(), history)
    cell = dict(zip(members, cells, strict=True))
    columns: Columns = {}
    for left in _cut(members, size, set(done.tolist())):
        rows = batches.rows(plan, [cell[i] for i in left], size, history, share)
        columns = _joined(columns, _numbered(left, rows, history))
    return columns


def _cut(members: list[int], size: int, done: set[int]) -> list[list[int]]:
    """The cells of one shape that are not done, batch by batch.

    Batches are formed from all cells of the shape, so that a resumed sweep runs the same programs
    as one that was not interrupted.
    """
    cuts = (members[at : at + size] for at in range(0, len(members), size))
    return [rest for cut in cuts if (rest := [i for i in cut if i not in done])]


def _numbered(numbers: list[int], rows: Columns, history: bool) -> Columns:
    """The rows of a batch, with the numbers of their cells."""
    rows = {"cell": np.array(numbers)} | rows
    if history:
        rows["history/cell"] = rows["cell"][rows["history/cell"]]
    return rows


def _joined(columns: Columns, rows: Columns) -> Columns:
    old = columns or {name: x[:0] for name, x in rows.items()}
    return {name: np.concatenate([old[name], x]) for name, x in rows.items()}


def _label(cell: SweepCell) -> str:
    problem = cell.problem
    return f"K={problem.K}, d={problem.d}, n={problem.n}, {cell.optimizer}"


def _group(
    task: _Task,
    members: list[int],
    columns: Columns,
    say: Report,
    save: Callable[[Columns], None],
) -> Columns:
    """The table with the cells of one shape that it lacks, batch by batch as the batches end."""
    done = set(columns["cell"].tolist()) if columns else set()
    plan, cells, memory, executor, history = task
    first, calls = cells[members[0]], _calls() if executor is None else BATCHES
    label = _label(first)
    say(len(done) / len(cells), f"{label}: compiling")
    size, used = batches.fitted(plan, [cells[i] for i in members], memory, calls, history)
    left = _cut(members, size, done)

    def keep(batch: int, rows: Columns) -> None:
        nonlocal columns
        columns = _joined(columns, _numbered(left[batch], rows, history))
        save(columns)

    def watch(batch: int, part: float) -> None:
        finished = len(columns["cell"]) if columns else 0
        say((finished + part * len(left[batch])) / len(cells), label)

    jobs = [(plan, [cells[i] for i in batch], size, history) for batch in left]
    if executor is None:
        processes.run(batches.rows, jobs, max(1, min(calls, memory // used)), keep, watch)
    else:
        executors.run(executor, batches.rows, jobs, keep, lambda: watch(0, 0.0))
    return columns


def _calls() -> int:
    """Compiled calls that may run at a time: one a core on a CPU that is one device, else one."""
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return (os.cpu_count() or 1) if alone else 1
