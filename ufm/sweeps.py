"""A sweep: every cell of a grid descended on, all cells of one shape in compiled, mapped calls.

Cells that share sizes, optimiser and batch size share one program, whatever their decays, step
sizes and seeds; they run side by side, as many as a memory budget allows, spread over the devices
of this process. Finished cells are rows of a table; on disk it grows batch by batch.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm import certificate, loop, metrics, optimizers, record, theory
from ufm.grid import Cell, Plan, describe
from ufm.loop import Limits, Method, State, Status
from ufm.problem import Params, Problem, init_params, logits, objective
from ufm.threads import lapack_on_one_thread

MEMORY = 2**30  # bytes of a compiled call
# Most cells side by side. On CPUs 16 small problems fit the cache, and 256 cost a third more each
# (`benchmarks/many.py`); all wait for the slowest. Accelerators want many.
MOST, MOST_ELSEWHERE = {"cpu": 16}, 1024
_RECORDS = 64  # capacity of the history of one call
Columns = dict[str, np.ndarray]
Report = Callable[[float, str], None]


class _Lanes(NamedTuple):
    """The cells of one call, each field behind one axis: a problem and its hyperparameters."""

    problem: Problem
    auto: Any
    rate: Any
    momentum: Any
    seed: Any


def sweep(
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    *,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Columns:
    """Descend on every cell of a plan; a table as a dict of columns, one row a cell.

    Args:
        plan: the grids and what their runs share.
        out: a folder that keeps the table, made if absent. A sweep that was killed goes on there
            with the cells that are missing; a finished one is only read.
        memory: most bytes that one compiled call may use, of all devices together.
        report: called with the share of the cells that is done, and what is being done.

    Returns:
        Columns: `cell` (its number in `plan.cells()`), the fields of `grid.Cell`, with the
        learning rate and momentum that were used (NaN where there is none) and `auto` for a step
        size from the curvature bound; status (as in `ufm.Run`), steps; value, lower_bound, gap,
        grad_norm, spectral_ratio (`ufm.Certificate`, float64); nc1 … nc4, norm_W, norm_H, norm_b,
        accuracy; f_star, the global minimum in closed form, NaN outside the theorem. A diverged
        cell is a row like any other, measured at its last sound point.

    Raises:
        ValueError, TypeError: a cell that makes no sense; a budget too small for one cell.
        RecordError: a folder that holds something else.
    """
    cells = plan.cells()
    say = report or (lambda *_: None)
    if out is None:
        return _sorted(_rows(plan, cells, {}, memory, say, lambda _: None))
    config = plan.plain()
    with record.open_run(out, "sweep", config, precision=plan.precision) as handle:
        if handle.status == "complete":
            return record.load_run(handle.path).arrays
        checkpoint = record.load_checkpoint(handle)
        kept = {} if checkpoint is None else checkpoint[0]

        def save(columns: Columns) -> None:
            state = {"done": len(columns["cell"]), "of": len(cells)}
            record.save_checkpoint(handle, columns, state)

        columns = _sorted(_rows(plan, cells, kept, memory, say, save))
        names, counts = np.unique(columns["status"], return_counts=True)
        results = {"cells": len(cells)} | dict(zip(map(str, names), map(int, counts), strict=True))
        record.close_run(handle, columns, results)
    return columns


def load(path: str | os.PathLike[str]) -> tuple[Columns, dict[str, Any]]:
    """The table of a sweep on disk, finished or not, and its manifest.

    Raises:
        RecordError: no run there, or a damaged one.
        ValueError: a run of another kind.
    """
    stored = record.load_latest(path)
    if stored.manifest["kind"] != "sweep":
        raise ValueError(
            f"got {path}, a run of kind {stored.manifest['kind']!r}; allowed: one of `ufm sweep`"
        )
    return stored.arrays, stored.manifest


def _sorted(columns: Columns) -> Columns:
    order = np.argsort(columns["cell"])
    return {name: x[order] for name, x in columns.items()}


def _rows(
    plan: Plan, cells: list[Cell], columns: Columns, memory: int, say: Report, save
) -> Columns:
    """The table with the cells that `columns` lacks, shape by shape, batch by batch."""
    done = set(columns["cell"].tolist()) if columns else set()
    groups: dict[tuple, list[int]] = {}
    for i, cell in enumerate(cells):
        if i not in done:
            shape = (cell.K, cell.d, cell.n, cell.bias, cell.optimizer, cell.batch_size)
            groups.setdefault(shape, []).append(i)
    for members in groups.values():
        first = cells[members[0]]
        label = f"K={first.K}, d={first.d}, n={first.n}, {first.optimizer}"
        before = len(columns["cell"]) if columns else 0

        def tell(more: float, label: str = label, before: int = before) -> None:
            say((before + more) / len(cells), label)

        say(before / len(cells), f"{label}: compiling")
        for rows in _group(plan, cells, members, memory, tell):
            old = columns or {name: x[:0] for name, x in rows.items()}
            columns = {name: np.concatenate([old[name], x]) for name, x in rows.items()}
            save(columns)
    return columns


def _group(
    plan: Plan, cells: list[Cell], members: list[int], memory: int, tell: Callable[[float], None]
) -> Iterator[Columns]:
    """Rows of the cells of one shape, batch after batch of one size."""
    with jax.enable_x64(True):
        method = Method(cells[members[0]].optimizer, None, cells[members[0]].batch_size)
        mesh = Mesh(np.array(jax.local_devices()), ("problems",))
        size, program = _compiled(plan, cells, members, method, memory, mesh)
        for at in range(0, len(members), size):
            batch = members[at : at + size]
            # The last batch is filled up with copies: one program for all.
            lanes = _lanes([cells[i] for i in np.resize(batch, size)])
            lanes = jax.device_put(lanes, _spread(mesh))

            def share(done: float, at: int = at, count: int = len(batch)) -> None:
                tell(at + done * count)

            measured = _run(plan, lanes, method, program, share)
            share(1.0)
            chosen = [cells[i] for i in batch]
            rows = {name: x[: len(batch)] for name, x in measured.items()}
            yield {"cell": np.array(batch)} | _described(chosen) | rows | _predicted(chosen)


def _lanes(cells: list[Cell]) -> _Lanes:
    first = cells[0]

    def column(name: str, default: float = 0.0) -> np.ndarray:
        values = (getattr(cell, name) for cell in cells)
        return np.array([x if isinstance(x, int | float) else default for x in values], float)

    auto = [
        cell.learning_rate == "auto"
        or (cell.learning_rate is None and cell.optimizer in ("gd", "heavy_ball", "nesterov"))
        for cell in cells
    ]
    decays = (column("lam_W"), column("lam_H"), column("lam_b"))
    return _Lanes(
        Problem(first.K, first.d, first.n, *decays, bias=first.bias),
        np.array(auto),
        column("learning_rate", optimizers.LEARNING_RATE.get(first.optimizer, 0.0)),
        column("momentum", optimizers.MOMENTUM.get(first.optimizer, 0.0)),
        np.array([cell.seed for cell in cells], np.uint32),
    )


@partial(jax.jit, static_argnames=("method", "dtype"))
def _begin(lanes: _Lanes, scale, *, method: Method, dtype: str) -> tuple[State, Any]:
    def one(lane: _Lanes):
        # The start and the minibatches of `ufm descend` with this seed.
        params_key, batch_key = jax.random.split(jax.random.key(lane.seed))
        params = init_params(params_key, lane.problem, scale, jnp.dtype(dtype))
        step = optimizers.auto_step(lane.problem, objective(lane.problem, params), lane.momentum)
        hyper = (jnp.where(lane.auto, step, lane.rate), lane.momentum)
        key = None if method.batch_size is None else batch_key
        return loop.start(lane.problem, params, method, hyper, key), hyper

    return jax.vmap(one)(lanes)


@partial(jax.jit, static_argnames=("method",))
def _advance(problem, state: State, hyper, status, taken, limits, chunks, *, method: Method):
    """The cells still running, `chunks` records further; the others as they are.

    `taken`, the steps of all that run, is one number: a loop of as many steps for every cell.
    """

    def one(problem, state, hyper, status):
        new, _, code = loop.trajectory(
            problem, state._replace(step=taken), method, hyper, limits, _RECORDS, chunks
        )
        going = status == Status.running
        return jax.tree.map(
            lambda x, y: jnp.where(going, x, y), (new, code), (state, status.astype(code.dtype))
        )

    return jax.vmap(one)(problem, state, hyper, status)


@jax.jit
def _measured(problem: Problem, params: Params) -> dict[str, Any]:
    """What a row says of a point, in float64."""

    def one(problem, params):
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        labels = problem.labels
        proof = certificate.certify(problem, params)
        collapse = metrics.measure(jnp, params.W, params.H, params.b, labels)
        Z = logits(problem, params)
        hits = metrics.first_largest(jnp, Z) == labels
        row = {name: getattr(proof, name) for name in
               ("value", "lower_bound", "gap", "grad_norm", "spectral_ratio")}  # fmt: skip
        row |= {name: getattr(collapse, name) for name in ("nc1", "nc2", "nc3", "nc4")}
        row |= {f"norm_{name}": jnp.linalg.norm(x) for name, x in zip("WHb", params, strict=True)}
        return row | {"accuracy": jnp.mean(hits.astype(jnp.float64))}

    return jax.vmap(one)(problem, params)


def _limits(plan: Plan) -> Limits:
    tolerances = (-np.inf if x is None else x for x in (plan.grad_tol, plan.gap_tol))
    return Limits(
        jnp.int32(plan.steps), jnp.int32(plan.record_every), *map(jnp.asarray, tolerances)
    )


def _run(plan: Plan, lanes: _Lanes, method: Method, program, share) -> Columns:
    """Descend on all lanes until each has a status; their columns."""
    spread = lanes.seed.sharding
    with lapack_on_one_thread():
        state, hyper = _begin(lanes, plan.scale, method=method, dtype=plan.precision)
        status = jnp.full(len(lanes.seed), Status.running, jnp.int32)
        state, hyper, status = jax.device_put((state, hyper, status), spread)
        limits, taken, chunks = _limits(plan), 0, 1
        while True:
            begun = time.perf_counter()
            state, status = program(
                lanes.problem, state, hyper, status, jnp.int32(taken), limits, jnp.int32(chunks)
            )
            codes = np.asarray(status)
            if not np.any(codes == Status.running):
                break
            taken = int(np.max(np.asarray(state.step)[codes == Status.running]))
            share(taken / plan.steps)
            seconds = time.perf_counter() - begun
            # Calls of about a second.
            left = -(-(plan.steps - taken) // plan.record_every)
            chunks = max(1, min(left, int(chunks / seconds), 2 * chunks, _RECORDS - 1))
        row = {name: np.asarray(x) for name, x in _measured(lanes.problem, state.params).items()}
    rate, momentum = (np.asarray(x, float) for x in hyper)
    uses_momentum = method.optimizer in optimizers.MOMENTUM
    return {
        "learning_rate": np.where(method.optimizer == "lbfgs", np.nan, rate),
        "auto": np.asarray(lanes.auto),
        "momentum": momentum if uses_momentum else np.full_like(momentum, np.nan),
        "status": np.array([Status(int(code)).name for code in codes]).astype("U12"),
        "steps": np.asarray(state.step, np.int64),
        **row,
    }


def _described(cells: list[Cell]) -> Columns:
    """The fields of the cells that are not among the results."""
    counts = [cell.n if isinstance(cell.n, int) else 0 for cell in cells]
    return {
        "K": np.array([cell.K for cell in cells]),
        "d": np.array([cell.d for cell in cells]),
        "n": np.array(counts),  # 0 where the classes differ
        "N": np.array([cell.problem().N for cell in cells]),
        "lam_W": np.array([cell.lam_W for cell in cells], float),
        "lam_H": np.array([cell.lam_H for cell in cells], float),
        "lam_b": np.array([cell.lam_b for cell in cells], float),
        "bias": np.array([cell.bias for cell in cells]),
        "optimizer": np.array([cell.optimizer for cell in cells]).astype("U12"),
        "batch_size": np.array([cell.batch_size or 0 for cell in cells]),  # 0: full batches
        "seed": np.array([cell.seed for cell in cells], np.int64),
    }


def _predicted(cells: list[Cell]) -> Columns:
    def one(problem: Problem) -> float:
        try:
            return float(theory.global_value(problem))
        except ValueError:  # outside the theorem
            return float("nan")

    return {"f_star": np.array([one(cell.problem()) for cell in cells])}


def _compiled(
    plan: Plan, cells: list[Cell], members: list[int], method: Method, memory: int, mesh: Mesh
) -> tuple[int, Any]:
    """(cells side by side, the program that advances them): as many as XLA's count fits in."""
    devices = mesh.devices.size
    most = MOST.get(jax.default_backend(), MOST_ELSEWHERE)
    size = -(-min(most, len(members)) // devices) * devices
    while True:
        program = _program(plan, _lanes([cells[i] for i in np.resize(members, size)]), method, mesh)
        count = program.memory_analysis()  # of one device
        used = devices * (
            count.argument_size_in_bytes + count.output_size_in_bytes + count.temp_size_in_bytes
        )
        if used <= memory:
            return size, program
        if size == devices:
            raise ValueError(
                f"got a budget of {memory / 2**20:.3g} MiB; the least call, {size} times the cell "
                f"{describe(cells[members[0]])}, needs {used / 2**20:.3g} MiB. Raise it"
            )
        fitting = min(size - 1, int(0.95 * size * memory / used))
        size = max(1, fitting // devices) * devices


def _program(plan: Plan, lanes: _Lanes, method: Method, mesh: Mesh):
    """`_advance` compiled for lanes like these, spread over the mesh."""
    shapes = jax.eval_shape(lambda x: x, lanes)
    state, hyper = jax.eval_shape(
        partial(_begin, method=method, dtype=plan.precision), shapes, plan.scale
    )
    status = jax.ShapeDtypeStruct((len(lanes.seed),), jnp.int32)
    spread = _spread(mesh)
    mapped = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread),
        (shapes.problem, state, hyper, status),
    )
    one = jax.ShapeDtypeStruct((), jnp.int32)
    return _advance.lower(*mapped, one, _limits(plan), one, method=method).compile()


def _spread(mesh: Mesh) -> NamedSharding:
    """Cells over devices."""
    return NamedSharding(mesh, PartitionSpec("problems"))
