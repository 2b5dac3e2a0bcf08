"""How the program of a batch is compiled: at first quickly, and better if the batch runs on.

Most batches of small cells reach their tolerance in less time than their program takes to compile.
They begin in one that is compiled with the fewest optimisations, in a quarter of the processor time
and two to four times as slow. The step at which those that still run go over to a better one
follows from the plan alone, and not from a clock, so that a sweep can be repeated bit for bit.
"""

from typing import Any, NamedTuple

from ufm.descent import arguments, loop
from ufm.descent.loop import Method
from ufm.model.problem import Problem
from ufm.runtime import programs
from ufm.sweeps.grid import Plan

# A step of a cell is estimated to take STEP seconds, plus its multiplications at RATE a second,
# those of a slow core.
STEP, RATE = 1e-5, 1e9
# Seconds of steps, by that estimate, before the better program; and fewest steps worth a first one.
QUICK, FEWEST = 0.5, 300


class Stage(NamedTuple):
    """Options of the compiler, as pairs, and the step at which the stage ends; None for no end."""

    options: tuple[tuple[str, Any], ...]
    until: int | None


def seconds(problem: Problem) -> float:
    """The estimated time of a step of one cell."""
    return STEP + 6 * problem.K * problem.d * problem.N / RATE


def stages(plan: Plan, problem: Problem, method: Method, size: int) -> tuple[Stage, ...]:
    """The stages of a batch.

    Without a tolerance the number of steps is known, and one stage is enough.

    Args:
        plan: gives the steps and tolerances.
        problem: a cell, or all; only its sizes matter.
        method: of the batch.
        size: cells in it.
    """
    full = programs.options() if loop.is_brief(problem, method) else {}
    better = Stage(tuple(full.items()), None)
    quick = Stage(tuple(programs.quickest().items()), None)
    steps = int(QUICK / (size * seconds(problem)))
    if not quick.options or steps < FEWEST:
        return (better,)
    if plan.grad_tol is None and plan.gap_tol is None:
        return (quick,) if plan.steps <= steps else (better,)
    return quick._replace(until=steps), better


def records(plan: Plan, at: int, until: int | None) -> int:
    """How many records there are after the step `at` up to the first one at `until` or later."""
    every, early = arguments.stride(plan.record_every)
    end, count = plan.steps if until is None else min(until, plan.steps), 0
    while at < end and early and at < every:
        at, count = at + min(max(1, at // 4), every - at), count + 1
    return count + max(0, -(-(end - at) // every))
