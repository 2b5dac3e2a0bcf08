"""A run and its segments: compiled calls of the loop, each of which continues a `Run`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ufm.descent import columns
from ufm.descent.loop import (
    Limits,
    Method,
    State,
    Status,
    last_sound,
    options,
    trajectory,
)
from ufm.descent.records import HISTORY, LARGE
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.runtime.threads import lapack_on_one_thread

# Capacity of a segment's history; one number, so that runs of any length share a program. A segment
# measures its first point once more: with 64 records a run is up to 1.3 times as slow by that, with
# 1024 it is not. 32,768 records are 2.9 MB, beyond the cache, and up to 1.2 times as slow again.
SEGMENT_RECORDS = 1024


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


def _copied(tree: Any) -> Any:
    """A copy in memory, without compiling: neither the copy nor a program that takes it."""

    def copied(x: Any) -> Array:
        place = x.sharding if getattr(x, "committed", False) else None
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
        program = _trajectory(**options(problem, method))
        args = (
            problem, begun, opt_state, method, hyper, limits, SEGMENT_RECORDS, np.int32(chunks),
            record.traced,
        )  # fmt: skip
        logits = problem.K * problem.N * begun.params.W.itemsize
        if max(begun.params.H.nbytes, logits) >= LARGE:
            programs.compile_apart(program, *args)
        return program(*args)

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
