"""A run and its segments: compiled calls of the loop, each of which continues a `Run`."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ufm.descent import columns
from ufm.descent.loop import (
    SMALL,
    Limits,
    Method,
    State,
    Status,
    advanced,
    judged,
    last_sound,
    options,
    trajectory,
)
from ufm.descent.records import HISTORY, LARGE, Told, history, nothing
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.runtime.threads import lapack_on_one_thread

# Capacity of a segment's history; one number, so that runs of any length share a program. A segment
# measures its first point once more: with 64 records a run is up to 1.3 times as slow by that, with
# 1024 it is not. 32,768 records are 2.9 MB, beyond the cache, and up to 1.2 times as slow again.
SEGMENT_RECORDS = 1024
# With so few steps between records, and for small problems, steps and records are one program; else
# they are two, each of which takes less memory and time to compile.
DENSE = 8
# Records between looks at whether a run has ended; those that are asked for after its end change
# nothing.
LOOK = 16


class Run(NamedTuple):
    """A finished or interrupted descent.

    params: the last point (the last finite one if the run diverged).
    history: dict of NumPy arrays (records,): step, loss (f, in nats), grad_norm (‖∇f‖), gap
        (certified, in the precision of params), nc1 … nc4 (`ufm.metrics.Collapse`), norm_W,
        norm_H, norm_b (Frobenius), accuracy (share of samples with argmax(Wh+b) = y), and the
        columns of `record`.
    steps: steps taken to reach params.
    status: one of the names of `Status`, as a string.
    state: from which `descend(…, resume=run)` continues.
    """

    params: Params
    history: dict[str, np.ndarray]
    steps: int
    status: str
    state: State

    def __repr__(self) -> str:
        """How it ended, and where; its arrays would fill pages."""
        last = "".join(
            f", {name}={self.history[name][-1]:.6g}"
            for name in ("loss", "gap")
            if len(self.history.get(name, ()))
        )
        shapes = ", ".join(f"{k} {x.shape}" for k, x in zip("WHb", self.params, strict=True))
        records = len(self.history.get("step", ()))
        return f"Run({self.status}, steps={self.steps}{last}, records={records}, {shapes})"


def _taken(
    problem: Problem, state: State, opt_state: Any, method: Method, hyper: Any, limits: Limits,
    records: int, chunks: Any, record: columns.Traced,
) -> Any:  # fmt: skip
    state = state._replace(opt_state=opt_state)
    return trajectory(problem, state, method, hyper, limits, records, chunks, record, keep=False)


@functools.cache
def _trajectory(**options: Any) -> Callable:
    """`_taken` compiled; the memory of its opt_state is reused, so that there is only one."""
    return jax.jit(
        _taken,
        static_argnums=(3, 6, 8),  # method, records, record
        donate_argnums=2,
        compiler_options=options,
    )


@partial(jax.jit, static_argnames="method", donate_argnames="state")
def _advanced(problem, state: State, method: Method, hyper, limits: Limits, told: Told, i) -> State:
    return advanced(problem, state, method, hyper, limits, told, i)


@functools.cache
def _judged() -> Callable:
    """A record; compiled apart from the steps, since it takes as much to compile and runs rarely.

    By the compiler that takes little memory: together they would take four times as much.
    """

    def record_of(problem, at: State, told: Told, i, limits: Limits, record) -> Told:
        return jax.lax.cond(
            told.status == Status.running,
            lambda: judged(problem, at, None, told, i, limits, record)[1],
            lambda: told,
        )

    return jax.jit(
        record_of,
        static_argnames="record",
        compiler_options=programs.options(),
    )


def _apart(
    problem: Problem, state: State, method: Method, hyper: Any, limits: Limits, records: int,
    chunks: int, record: columns.Traced, apart: bool,
) -> Any:  # fmt: skip
    """As `_taken`, with steps and records in programs of their own; `state` is used up.

    apart: whether to return the memory of the compiler before the first step.
    """
    # Placed like f at the start: on a mesh everywhere, as later ones are.
    told = _copied(nothing(np, state, records, record), like=state.start)
    for i in range(chunks + 1):
        row = np.int32(i)
        # Now and then only, and at fixed records on every process of a mesh: waiting takes time.
        if (i % LOOK == 0 or i.bit_count() == 1) and int(told.status) != Status.running:
            break
        if apart and i == 0:
            programs.compile_apart(_advanced, problem, state, method, hyper, limits, told, row)
        state = _advanced(problem, state, method, hyper, limits, told, row)
        at = state._replace(opt_state=None, key=None, order=None)
        if apart and i == 0:
            programs.compile_apart(_judged(), problem, at, told, row, limits, record)
        told = _judged()(problem, at, told, row, limits, record)
    told = jax.device_get(told)
    return state, history(told, record), told.status


def _copied(tree: Any, like: Any = None) -> Any:
    """A copy in memory, without compiling: neither the copy nor a program that takes it.

    Where the arrays are, or where `like` is.
    """

    def copied(x: Any) -> Array:
        placed = x if like is None else like
        place = placed.sharding if getattr(placed, "committed", False) else None
        return jax.device_put(x, place, may_alias=False)

    return jax.tree.map(copied, tree)


_last_sound = jax.jit(last_sound, static_argnames="method")


def run_segment(
    problem,
    run: Run,
    method: Method,
    hyper,
    limits: Limits,
    chunks: int,
    record: columns.Columns,
    again: Callable[[], State] | None,
) -> Run:
    """The run after so many chunks, with the history of these alone.

    Args:
        problem, method, hyper, limits: see `ufm.descent.loop.trajectory`.
        run: the run so far; only a new one, whose history is empty, records its first point.
        chunks: how many, at most.
        record: the further columns.
        again: makes the state of a new run once more; None for a run that is continued.
    """
    if not record.host:
        return _call(problem, run, method, hyper, limits, chunks, record, again)
    parts: list[dict[str, np.ndarray]] = []
    while len(parts) < max(1, chunks) and run.status == Status.running.name:
        # The first call of a new run only measures its start.
        chunk = 1 if run.history else 0
        run = _call(problem, run, method, hyper, limits, chunk, record, again)
        again = None
        if len(run.history["step"]):
            found = columns.called(record, problem, run.params)
            run.history.update({name: np.array([x]) for name, x in found.items()})
        else:
            run.history.update({name: np.zeros(0) for name, _ in record.host})
        parts.append(run.history)
    return run._replace(history=joined(parts))


def _call(
    problem,
    run: Run,
    method: Method,
    hyper,
    limits: Limits,
    chunks: int,
    record: columns.Columns,
    again: Callable[[], State] | None,
) -> Run:
    """One compiled call: `run_segment` without the columns that Python computes."""
    begun = run.state._replace(opt_state=None)

    def ahead(chunks: int, opt_state: Any) -> Any:
        if problem.size <= SMALL or int(limits.record_every) <= DENSE:
            program = _trajectory(**options(problem, method))
            return program(
                problem, begun, opt_state, method, hyper, limits, SEGMENT_RECORDS,
                np.int32(chunks), record.traced,
            )  # fmt: skip
        logits = problem.K * problem.N * begun.params.W.itemsize
        # A run that begins will compile; a large one would do without the memory whenever it does.
        apart = again is not None or max(begun.params.H.nbytes, logits) >= LARGE
        state = _copied(begun)._replace(opt_state=opt_state)
        return _apart(
            problem, state, method, hyper, limits, SEGMENT_RECORDS, chunks, record.traced, apart
        )

    with lapack_on_one_thread():
        kept = run.state.opt_state
        state, history, code = ahead(chunks, kept if again else _copied(kept))
        status = Status(int(code))  # waits for the end
        sound = int(np.sum(np.asarray(history["step"]) >= 0))
        if status is Status.diverged:
            # The program keeps no earlier point: it repeats the steps up to the last sound record.
            kept = again().opt_state if again else kept
            state = begun._replace(opt_state=kept)
            state = ahead(sound - 1, _copied(kept))[0] if sound else state
            state = _last_sound(problem, state, method, hyper, limits.record_every)
    rows = slice(1 if run.history else 0, sound)
    history = {name: np.asarray(x)[rows] for name, x in history.items()}
    return Run(state.params, history, int(state.step), status.name, state)


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Histories one after the other."""
    names = [*HISTORY, *(name for name in parts[0] if name not in HISTORY)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
