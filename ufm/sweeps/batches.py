"""Cells of one shape in one compiled call.

Cells that share sizes, optimiser and batch size form a batch of one program under vmap, whatever
their decays, step sizes and seeds. The batch is split over the devices of this process, and ends
when each of its cells has a status.
"""

import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm import certificate
from ufm.check import Refused
from ufm.descent import arguments, columns, loop, optimizers
from ufm.descent.loop import Limits, Method, State, Status
from ufm.descent.records import measurements
from ufm.model.objective import objective
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.runtime.threads import lapack_on_one_thread
from ufm.sweeps import histories, settings, shapes, stages
from ufm.sweeps.grid import Plan, SweepCell, describe
from ufm.sweeps.shapes import Asked, Lanes, Shape

# Most cells in a batch. On CPUs 16 small problems fit the cache, and 256 cost a third more each
# (`benchmarks/many.py`); all wait for the slowest. Accelerators need large batches.
MOST, MOST_ELSEWHERE = {"cpu": 16}, 1024
_RECORDS = 64  # capacity of the history of one call
Columns = dict[str, np.ndarray]


def fitted(
    plan: Plan, cells: Sequence[SweepCell], memory: int, calls: int, history: bool = False
) -> tuple[int, int]:
    """(cells of a call, bytes of a call): as many cells of one shape as fit into a budget.

    Args:
        plan: what the runs share.
        cells: all cells of the shape.
        memory: most bytes of one call, as XLA counts them, on all devices together.
        calls: how many calls may run at a time; the cells are distributed over all of them.
        history: as for `rows`.

    Raises:
        Refused: a budget too small for one cell.
    """
    devices = _mesh().devices.size
    most = min(MOST.get(jax.default_backend(), MOST_ELSEWHERE), -(-len(cells) // calls))
    size = -(-most // devices) * devices
    asked = Asked.of(plan, history)
    while True:
        shape = Shape.of(cells[0])
        stage, *_ = stages.stages(plan, cells[0].problem, shape.method(), size)
        program = _program(shape, size, plan.precision, asked.traced, stage.options)
        count = program.memory_analysis()
        used = devices * (  # the count is of one device
            count.argument_size_in_bytes + count.output_size_in_bytes + count.temp_size_in_bytes
        )
        if used <= memory:
            return size, used
        if size == devices:
            raise Refused(
                f"got a budget of {memory / 2**20:.3g} MiB; the least call, {size} times the cell "
                f"{describe(cells[0])}, needs {used / 2**20:.3g} MiB. Raise it"
            )
        fitting = min(size - 1, int(0.95 * size * memory / used))
        size = max(1, fitting // devices) * devices


def rows(
    plan: Plan,
    cells: Sequence[SweepCell],
    size: int,
    history: bool,
    share: Callable[[float], None],
) -> Columns:
    """Descend on cells of one shape until each has a status; the columns of `ufm.sweep`.

    Args:
        plan: what the runs share.
        cells: at most `size` of them; copies fill the batch, so that one program suffices.
        size: cells of a call, from `fitted`.
        history: keep every record; "history/cell" is then the position within `cells`.
        share: called about once a second with the share of the steps that is done.
    """
    devices = _mesh().devices.size  # may be those of another machine, with an executor
    size = -(-size // devices) * devices
    with jax.enable_x64(True), lapack_on_one_thread():
        lanes = shapes.lanes([cells[i % len(cells)] for i in range(size)])
        asked, placed = Asked.of(plan, history), jax.device_put(lanes, _spread())
        state, measured, kept = _run(plan, cells, asked, placed, share)
        found = {name: x[: len(cells)] for name, x in measured.items()}
        measured_here = cells if asked.record.host else ()
        ends = [_called(asked, cell, _point(state, i)) for i, cell in enumerate(measured_here)]
        return (
            settings.described(cells)
            | settings.options(plan, cells)
            | found
            | settings.predicted(lanes.problem, len(cells))
            | _stacked(asked, ends)
            | (histories.gathered(kept) if history else {})
        )


def _point(state: State, i: int) -> Params:
    """The point of one cell, in float64."""
    return Params(*(jnp.asarray(x[i], jnp.float64) for x in state.params))


def _called(asked: Asked, cell: SweepCell, params: Params) -> dict[str, float]:
    return columns.called(asked.record, cell.problem, params)


def _stacked(asked: Asked, rows: Sequence[dict[str, float]]) -> Columns:
    """The columns that Python computes, one number a cell."""
    return {name: np.array([row[name] for row in rows]) for name, _ in asked.record.host}


@partial(programs.once, level=1, static_argnames="dtype")
def _drawn(problem: Problem, seed, scale, *, dtype: str) -> tuple[Params, Any]:
    """(starts, keys of minibatches): those of `ufm descend` with these seeds, for every method."""

    def one(problem, seed):
        params_key, batch_key = jax.random.split(jax.random.key(seed))
        return init_params(params_key, problem, scale, jnp.dtype(dtype)), batch_key

    return jax.vmap(one)(problem, seed)


@partial(programs.once, static_argnames=("method", "dtype"))
def _begin(lanes: Lanes, params: Params, keys, *, method: Method, dtype: str) -> tuple[State, Any]:
    def one(lane: Lanes, params: Params, batch_key):
        step = lane.rate
        if not method.adapts and method.optimizer in optimizers.FULL_BATCH_ONLY:
            value = objective(lane.problem, params)
            safe = optimizers.safe_step(lane.problem, value, lane.momentum)
            step = jnp.where(lane.safe, safe, step)
        # In the precision of the run: otherwise velocities become float64.
        own = (step, lane.momentum)
        hyper = jax.tree.map(lambda x: x.astype(dtype), lane.given or own)
        key = None if method.batch_size is None else batch_key
        return loop.start(lane.problem, params, method, hyper, key), hyper

    return jax.vmap(one)(lanes, params, keys)


def _advance(
    problem, before: State, hyper, status, taken, limits, chunks, *, method: Method, record
):
    """The cells after up to `chunks` more records, and the history of this call.

    Cells that have a status do not change, and their rows of the history have step −1. The history
    is None without a record. `taken`, the steps so far, is the same for all cells that run: a
    scalar, so that every cell loops over the same number of steps.
    """
    state = before._replace(step=jnp.full_like(before.step, taken))
    new, history, code = loop.trajectory(
        problem, state, method, hyper, limits, _RECORDS, chunks, record, at=taken
    )
    going = status == Status.running
    choose = jax.vmap(lambda going, x, y: jnp.where(going, x, y))
    found = jax.tree.map(partial(choose, going), (new, code), (before, status.astype(code.dtype)))
    history["step"] = choose(going, history["step"], jnp.full_like(history["step"], -1))
    return *found, None if record is None else history


@partial(programs.once, static_argnames="record")
def _measured(problem: Problem, params: Params, *, record: columns.Traced) -> dict[str, Any]:
    """The results of a point in its row, in float64."""

    def one(problem, params):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        proof = certificate.certify(problem, params)
        names = ("value", "lower_bound", "gap", "grad_norm", "spectral_ratio")
        recorded = measurements(problem, params, record)
        del recorded["loss"]  # the value of the certificate
        return recorded | {name: getattr(proof, name) for name in names}

    return jax.vmap(one)(problem, params)


def _limits(plan: Plan) -> Limits:
    every, early = arguments.stride(plan.record_every)
    tolerances = (-np.inf if x is None else x for x in (plan.grad_tol, plan.gap_tol))
    grad_tol, gap_tol = map(np.float64, tolerances)
    return Limits(np.int32(plan.steps), np.int32(every), grad_tol, gap_tol, np.bool_(early))


def _run(
    plan: Plan,
    cells: Sequence[SweepCell],
    asked: Asked,
    lanes: Lanes,
    share: Callable[[float], None],
) -> tuple[State, Columns, list[dict[str, np.ndarray]]]:
    """Descend on all lanes until each has a status; their ends, columns and histories."""
    shape = Shape.of(cells[0])
    method = shape.method()
    drawn = _drawn(lanes.problem, lanes.seed, plan.scale, dtype=plan.precision)
    state, hyper = _begin(lanes, *drawn, method=method, dtype=plan.precision)
    status = np.full(len(lanes.seed), Status.running, np.int32)
    state, hyper, status = jax.device_put((state, hyper, status), _spread())
    state, codes, kept = _descended(plan, cells, asked, lanes, (state, hyper, status), share)
    row = _measured(lanes.problem, state.params, record=asked.record.traced)
    found = {
        # Read back from what ran: the decays and weights of the problem of the descent.
        **settings.read_back(lanes.problem),
        "seed": np.asarray(lanes.seed, np.int64),
        **_hyperparameters(shape, hyper, len(lanes.seed)),
        "auto": np.full(len(lanes.seed), shape.adapts) | np.asarray(lanes.safe),
        "status": np.array([Status(int(code)).name for code in codes]).astype("U12"),
        "steps": np.asarray(state.step, np.int64),
        **{name: np.asarray(x) for name, x in row.items()},
    }
    return state, found, kept


def _descended(
    plan: Plan,
    cells: Sequence[SweepCell],
    asked: Asked,
    lanes: Lanes,
    begun: tuple[State, Any, Any],
    share: Callable[[float], None],
) -> tuple[State, np.ndarray, list[dict[str, np.ndarray]]]:
    """The ends of the lanes, their status, and what each call has recorded."""
    shape, size, (state, hyper, status) = Shape.of(cells[0]), len(lanes.seed), begun
    limits, taken, chunks = _limits(plan), 0, 0 if asked.every else 1
    kept: list[dict[str, np.ndarray]] = []
    for stage in stages.stages(plan, cells[0].problem, shape.method(), size):
        program = _program(shape, size, plan.precision, asked.traced, stage.options)
        while stage.until is None or taken < stage.until:
            clock = time.perf_counter()
            state, status, history = program(
                lanes.problem, state, hyper, status, np.int32(taken), limits, np.int32(chunks)
            )
            if history is not None:
                kept.append(_recorded(asked, cells, state, history))
            codes = np.asarray(status)
            if not np.any(codes == Status.running):
                return state, codes, kept
            taken = int(np.max(np.asarray(state.step)[codes == Status.running]))
            share(taken / plan.steps)
            # Calls of about a second.
            fitting = min(int(chunks / (time.perf_counter() - clock)), 2 * chunks, _RECORDS - 1)
            chunks = max(1, min(fitting, stages.records(plan, taken, stage.until)))
            chunks = 1 if asked.every else chunks
    raise AssertionError("a run ends at its limit of steps")


def _recorded(
    asked: Asked, cells: Sequence[SweepCell], state: State, history: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The history of a call as arrays (cells, records), with the columns that Python computes.

    If there are any, a call ends at its only new record.
    """
    found = {name: np.asarray(x)[: len(cells)] for name, x in history.items()}
    if asked.every:
        steps = found["step"]
        last = np.max(np.nonzero(np.any(steps >= 0, axis=0))[0], initial=0)
        for name, _ in asked.record.host:
            found[name] = np.full(steps.shape, np.nan)
        for i in np.nonzero(steps[:, last] >= 0)[0].tolist():
            for name, x in _called(asked, cells[i], _point(state, i)).items():
                found[name][i, last] = x
    return {name: x.copy() for name, x in found.items()}


def _hyperparameters(shape: Shape, hyper: Any, cells: int) -> Columns:
    """Step size and momentum of every cell; NaN where the method has none or chooses it itself."""
    if isinstance(hyper, tuple):
        constant = shape.optimizer != "lbfgs" and not shape.adapts
        used = (constant, shape.optimizer in optimizers.MOMENTUM)
        hyper = {
            name: x
            for name, x, uses in zip(("learning_rate", "momentum"), hyper, used, strict=True)
            if uses
        }
    missing = np.full(cells, np.nan)
    names = ("learning_rate", "momentum")
    return {name: np.asarray(hyper.get(name, missing), float) for name in names}


@functools.lru_cache(maxsize=2)  # shapes are swept one after the other, in two stages
def _program(
    shape: Shape,
    size: int,
    precision: str,
    record: columns.Traced | None,
    options: tuple[tuple[str, Any], ...],
):
    """`_advance` compiled for `size` cells of a shape, spread over the devices."""
    programs.make_room()
    with jax.enable_x64(True):
        method, one = shape.method(), jax.ShapeDtypeStruct((), jnp.int32)
        lanes = jax.eval_shape(lambda: shapes.lanes([shape.example()] * size))
        drawn = jax.eval_shape(partial(_drawn, dtype=precision), lanes.problem, lanes.seed, 1.0)
        state, hyper = jax.eval_shape(
            partial(_begin, method=method, dtype=precision), lanes, *drawn
        )
        status = jax.ShapeDtypeStruct((size,), jnp.int32)
        mapped = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_spread()),
            (lanes.problem, state, hyper, status),
        )
        limits = _limits(Plan())
        advance = jax.jit(
            partial(_advance, method=method, record=record),
            compiler_options=dict(options),
        )
        return advance.lower(*mapped, one, limits, one).compile()


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("problems",))


def _spread() -> NamedSharding:
    """The sharding of cells over devices."""
    return NamedSharding(_mesh(), PartitionSpec("problems"))
