"""Descent on the model by any optimiser: `descend`, its result, and a result as plain arrays.

The steps run in the compiled loop of `ufm.descent.loop`; Python sees the run at its end, or after
every segment if it asks for segments (progress, checkpoints).
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.check import Refused
from ufm.descent import columns, factories, optimizers, segments
from ufm.descent.arguments import EARLY, Checked, check
from ufm.descent.content import by_content
from ufm.descent.loop import Limits, Method, State, Status, start
from ufm.descent.records import HISTORY
from ufm.descent.segments import Run, joined, run_segment
from ufm.model.problem import Params, Problem
from ufm.runtime import leader, programs


@partial(programs.once, static_argnames="method")
def _start(problem: Problem, params: Params, method: Method, hyper, key, value) -> State:
    """The state before the first step without its params: a program would give back copies."""
    begun = start(problem, params, method, hyper, key, value)
    return begun._replace(params=None)  # type: ignore[arg-type]


def descend(
    problem: Problem,
    params: Params,
    optimizer: Any = "heavy_ball",
    *,
    steps: int,
    learning_rate: optimizers.LearningRate = None,
    momentum: float | None = None,
    batch_size: int | None = None,
    key: Array | None = None,
    record_every: int | None = None,
    grad_tol: float | None = None,
    gap_tol: float | None = None,
    record: columns.Recorded = None,
    on_segment: Callable[[Run], None] | None = None,
    resume: "Run | Mapping[str, np.ndarray] | None" = None,
    **hyperparameters: Any,
) -> Run:
    """Minimise f from params by the named optimiser, any optax transformation or its factory.

    Args:
        problem: the model.
        params: where to start; its dtype is the precision of the run. With `resume` its values do
            not matter, only its shapes and dtype.
        optimizer: "gd", "heavy_ball", "nesterov" (full batch), "sgd" (minibatches, momentum),
            "adam", "lbfgs"; an optax transformation, schedules included; or a factory of optax by
            name or as a function ("adamw", optax.adamw, your own), whose hyperparameters are
            keywords. Numbers among these are traced, so that all learning rates share a program.
        steps: limit on the steps in all, those of a resumed run included.
        learning_rate: a number, an optax schedule, or for the full-batch methods "auto" (each step
            is tested before it is taken and grows where the landscape is flat:
            `ufm.descent.adaptive`) or "safe" (the constant `optimizers.safe_step`); with both f
            provably never exceeds its start. By default "auto" for the full-batch methods, 0.05
            for sgd and 1e-3 for adam (Zhu et al. 2021).
        momentum: β for heavy_ball, nesterov and sgd, 0.9 by default.
        batch_size: minibatches of this size, drawn without replacement epoch by epoch.
        key: PRNG key of the minibatches, or an integer seed; needed with batch_size.
        record_every: steps between records; tolerances are tested, and runs end, at records. By
            default 100, and fewer at first: every step, then a quarter of the steps taken.
        grad_tol: end with status "converged" once ‖∇f‖ ≤ grad_tol; on the sphere, where f has no
            natural scale, once ‖∇f‖ ≤ grad_tol f.
        gap_tol: end with status "certified" once the certified gap plus its rounding is ≤ gap_tol,
            in nats; on the sphere once it is ≤ gap_tol f.
        record: further columns of the history, as a dict by their names: functions of (problem,
            params), compiled into the loop; functions marked by `ufm.host`, called in Python at
            every record; or "index" (negative eigenvalues of ∇²f), "lam_min" (the smallest one),
            "lam_min_off_orbit". A sequence of these names also works: ("index", "lam_min").
        on_segment: splits the run into compiled calls of about a second; it is called with the run
            so far after each of them (progress, checkpoints). The result does not depend on it.
        resume: an earlier run of the same problem and optimiser to continue, or its arrays as
            returned by `pack`.
        hyperparameters: of a factory, such as b2=0.99; learning_rate and momentum are passed to it
            if they are given.

    Returns:
        A `Run`; its status is "converged", "certified", "step_limit", "diverged", or, on the
        sphere, "underflow" where f is so small that floating point loses its digits.

    Raises:
        Refused: for arguments outside these ranges, before a step is taken.
    """
    asked = check(
        problem, params, optimizer, steps=steps, learning_rate=learning_rate, momentum=momentum,
        batch_size=batch_size, key=key, record_every=record_every, grad_tol=grad_tol,
        gap_tol=gap_tol, record=record, hyperparameters=hyperparameters,
    )  # fmt: skip
    if not (resume is None or isinstance(resume, Run | Mapping)):
        raise Refused(
            f"got a {type(resume).__name__} as resume; allowed: a ufm.Run, its arrays as "
            "ufm.descent.pack gave them, or None"
        )
    method, hyper, run, again = _begun(problem, params, asked, resume)
    return _driven(problem, method, hyper, run, asked, on_segment, again)


def _begun(
    problem: Problem, params: Params, asked: Checked, resume: "Run | Mapping | None"
) -> tuple[Method, tuple, Run, Callable[[], State] | None]:
    """(method, its traced part, the run before its next step, what makes a new state again)."""
    value = resume.state.start if isinstance(resume, Run) else asked.value
    method, hyper = _prepared(problem, params, asked, value)
    if isinstance(resume, Run):
        run = _continued(problem, params, method, hyper, asked.key, resume)
    else:
        fresh = partial(_start, problem, params, method, hyper, asked.key, asked.value)
        state = fresh()._replace(params=jax.tree.map(jnp.asarray, params))
        if resume is None:
            return method, hyper, Run(params, {}, 0, Status.running.name, state), fresh
        run = unpack(state, resume)
        # "safe" follows from f at the first point of the run, which params need not be.
        hyper = _prepared(problem, params, asked, run.state.start)[1]
    if run.history:
        _check_columns(run, asked.record)
    return method, hyper, run, None


def _prepared(problem: Problem, params: Params, asked: Checked, value: Any) -> tuple[Method, Any]:
    """`prepare` with Python's numbers, so that "safe" and 0.1 are one program."""
    method, hyper = prepare(problem, value, *asked.settings)
    _check_step(problem, params, hyper)
    return method, jax.tree.map(float, hyper)


def _check_columns(run: Run, record: columns.Columns) -> None:
    """Refuse to continue a run that records other columns."""
    kept, wanted = set(run.history) - set(HISTORY), set(record.names)
    if kept != wanted:
        raise Refused(
            f"got resume=a run that records {sorted(kept) or 'nothing else'}, with "
            f"record={sorted(wanted)}; allowed: the columns of that run"
        )


def _driven(
    problem: Problem,
    method: Method,
    hyper: tuple,
    run: Run,
    asked: Checked,
    on_segment: Callable[[Run], None] | None,
    again: Callable[[], State] | None,
) -> Run:
    """The finished run, computed segment by segment."""
    limits = Limits(
        np.int32(asked.steps),
        np.int32(asked.record_every),
        _tolerance(asked.grad_tol),
        _tolerance(asked.gap_tol),
        np.bool_(asked.early),
    )
    pace = 1.0 if on_segment else segments.SEGMENT_RECORDS - 1.0  # chunks a compiled call
    parts = [run.history] if run.history else []
    while run.status == Status.running.name:
        left = max(0, math.ceil((asked.steps - run.steps) / asked.record_every))
        left += EARLY if asked.early else 0
        begun, chunks = time.perf_counter(), min(left, max(1, int(pace)))
        run = run_segment(problem, run, method, hyper, limits, chunks, asked.record, again)
        again = None
        parts.append(run.history)
        if on_segment is not None:
            parts = [joined(parts)]
            on_segment(run._replace(history=parts[0]))
            seconds = time.perf_counter() - begun
            pace = min(chunks / seconds, 2 * chunks, segments.SEGMENT_RECORDS - 1)
    return run._replace(history=joined(parts))


def _check_step(problem: Problem, params: Params, hyper: Any) -> None:
    """Refuse a step size that is 0 in the precision of the run, with which no point would move."""
    if (
        not isinstance(hyper, tuple)
        or not hyper
        or hyper[0] is None
        or float(np.asarray(hyper[0], params.W.dtype)) > 0
    ):
        return
    raise Refused(
        f"got a learning rate of {float(hyper[0]):g}, which is 0 in {params.W.dtype}: 'safe' is "
        f"proportional to the smaller of lam_W={problem.lam_W:g} and lam_H={problem.lam_H:g}. Give "
        "learning_rate a number or 'auto', or use 'lbfgs'"
    )


def _continued(
    problem: Problem, params: Params, method: Method, hyper: Any, key: Array | None, run: Run
) -> Run:
    """An earlier run, ready to continue, if its state belongs to this method."""
    like = jax.eval_shape(lambda: start(problem, params, method, hyper, key))
    got, wanted = (
        jax.tree.map(lambda x: (jnp.shape(x), x.dtype), state) for state in (run.state, like)
    )
    if got != wanted:
        raise Refused(
            "got resume=a run of another problem, precision or optimiser; allowed: one with the "
            "arguments of this call, or resume=None to begin anew"
        )
    return run._replace(status=Status.running.name)


def prepare(
    problem: Problem,
    value,
    optimizer,
    learning_rate: Any = None,
    momentum: Any = None,
    batch_size: int | None = None,
    hyperparameters: Any = (),
) -> tuple[Method, Any]:
    """(static part, traced part) of an optimiser, with defaults filled in. Traceable.

    Args:
        problem: the model.
        value: f at the start, from which "safe" derives the step.
        optimizer, learning_rate, momentum, batch_size, hyperparameters: the fields of
            `optimizers.Settings`; learning_rate and momentum may be traced.
    """
    if not isinstance(optimizer, str):
        static, traced = factories.split(dict(hyperparameters))
        return Method(by_content(optimizer), None, batch_size, static), traced
    learning_rate = optimizers.rate(optimizer, learning_rate)
    if learning_rate is None:
        return Method(optimizer, None, batch_size), (1.0, 0.0)
    momentum = optimizers.MOMENTUM.get(optimizer, 0.0) if momentum is None else momentum
    if callable(learning_rate):
        return Method(optimizer, by_content(learning_rate), batch_size), (None, momentum)
    if learning_rate == "auto":
        return Method(optimizer, None, batch_size, adapts=True), (1.0, momentum)
    if isinstance(learning_rate, str):
        learning_rate = optimizers.safe_step(problem, value, momentum)
    return Method(optimizer, None, batch_size), (learning_rate, momentum)


def pack(run: Run) -> dict[str, np.ndarray]:
    """A run as plain arrays, "state/…" and "history/…", for a file; `unpack` is the inverse.

    Raises:
        Refused: no `Run`.
    """
    if not isinstance(run, Run):
        raise Refused(f"got a {type(run).__name__} as run; allowed: a ufm.Run")
    arrays = {f"state/{i}": _plain(leaf) for i, leaf in enumerate(jax.tree.leaves(run.state))}
    return arrays | {f"history/{name}": x for name, x in run.history.items()}


def unpack(like: State, arrays: Mapping[str, np.ndarray]) -> Run:
    """The run that `pack` took apart, with status "running".

    Args:
        like: a state of the same problem, optimiser and key, which gives the structure
            (`ufm.descent.loop.start`).
        arrays: what `pack` returned.

    Raises:
        Refused: arrays of another structure, or incomplete ones.
    """
    leaves, structure = jax.tree.flatten(like)
    restored = []
    for i, leaf in enumerate(leaves):
        x = arrays.get(f"state/{i}")
        x = None if x is None else np.asarray(x)
        plain = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        if x is None or x.shape != plain.shape or x.dtype != plain.dtype:
            got = "nothing" if x is None else f"{x.dtype}{x.shape}"
            raise Refused(
                f"got {got} for state/{i}, which this optimiser keeps as "
                f"{plain.dtype}{plain.shape}: the arrays belong to another run"
            )
        data = jax.device_put(x, leaf.sharding)  # over the devices of its mesh
        impl = jax.random.key_impl(leaf) if _is_key(leaf) else None
        restored.append(data if impl is None else jax.random.wrap_key_data(data, impl=impl))
    state = jax.tree.unflatten(structure, restored)
    if missing := [name for name in HISTORY if f"history/{name}" not in arrays]:
        raise Refused(f"got arrays without history/{missing[0]}; allowed: those of `pack`, whole")
    names = [name for name in arrays if name.startswith("history/")]
    history = {name.removeprefix("history/"): arrays[name] for name in names}
    return Run(state.params, history, int(state.step), Status.running.name, state)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf) -> np.ndarray:
    return np.asarray(leader.whole(jax.random.key_data(leaf) if _is_key(leaf) else leaf))


def _tolerance(tolerance: float | None) -> np.float64:
    return np.float64(-np.inf if tolerance is None else tolerance)
