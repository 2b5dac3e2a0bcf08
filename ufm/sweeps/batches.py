"""Cells of one shape in one compiled call, side by side.

Cells that share sizes, optimiser and batch size are lanes of one mapped program, whatever their
decays, step sizes and seeds, spread over the devices of this process. A batch ends when each of
its lanes has a status.
"""

import functools
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ufm import certificate, theory
from ufm.check import Refused
from ufm.descent import factories, loop, optimizers
from ufm.descent.content import by_content
from ufm.descent.loop import Limits, Method, State, Status
from ufm.losses import names as losses
from ufm.model.objective import objective
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem
from ufm.runs import values
from ufm.runtime.programs import make_room
from ufm.runtime.threads import lapack_on_one_thread
from ufm.sweeps.grid import Plan, SweepCell, describe

# Most cells side by side. On CPUs 16 small problems fit the cache, and 256 cost a third more each
# (`benchmarks/many.py`); all wait for the slowest. Accelerators want many.
MOST, MOST_ELSEWHERE = {"cpu": 16}, 1024
_RECORDS = 64  # capacity of the history of one call
Columns = dict[str, np.ndarray]


class Shape(NamedTuple):
    """What the cells of one program share: all of a problem but its decays, and the method."""

    problem: Any  # the structure of its pytree
    leaves: tuple[tuple[int, ...], ...]  # the shapes of its decays and weights
    optimizer: str
    batch_size: int | None
    static: factories.Static = ()  # of a factory: what is compiled in, and the names of the numbers
    traced: tuple[str, ...] = ()

    @classmethod
    def of(cls, cell: SweepCell) -> "Shape":
        """The shape of a cell."""
        leaves, problem = jax.tree.flatten(cell.problem)
        static, traced = factories.split(dict(cell.settings().hyperparameters))
        sizes = tuple(map(np.shape, leaves))
        return cls(problem, sizes, cell.optimizer, cell.batch_size, static, tuple(traced))

    def example(self) -> SweepCell:
        """A cell of this shape."""
        problem = jax.tree.unflatten(self.problem, [np.ones(shape)[()] for shape in self.leaves])
        options = {name: x.value for name, x in self.static} | dict.fromkeys(self.traced, 0.5)
        named = tuple(options.items())
        return SweepCell(problem, self.optimizer, None, None, self.batch_size, 0, named)

    def method(self) -> Method:
        """The compiled part of the method."""
        if self.optimizer in optimizers.NAMES and not self.traced:
            return Method(self.optimizer, None, self.batch_size)
        factory = by_content(self.example().settings().optimizer)
        return Method(factory, None, self.batch_size, self.static)


class _Lanes(NamedTuple):
    """The cells of one call, each field behind one axis: a problem and its hyperparameters."""

    problem: Problem
    auto: Any
    rate: Any
    momentum: Any
    seed: Any
    given: dict[str, Any]  # all hyperparameters of a factory


def fitted(plan: Plan, cells: Sequence[SweepCell], memory: int, calls: int) -> tuple[int, int]:
    """(cells a call, bytes of a call): as many cells of one shape as a budget lets run together.

    Args:
        plan: what the runs share.
        cells: all cells of the shape.
        memory: most bytes of one call, by XLA's count, of all devices together.
        calls: how many calls may run at a time; the cells are dealt to all of them.

    Raises:
        Refused: a budget too small for one cell.
    """
    devices = _mesh().devices.size
    most = min(MOST.get(jax.default_backend(), MOST_ELSEWHERE), -(-len(cells) // calls))
    size = -(-most // devices) * devices
    while True:
        count = _program(Shape.of(cells[0]), size, plan.precision).memory_analysis()
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
    plan: Plan, cells: Sequence[SweepCell], size: int, share: Callable[[float], None]
) -> Columns:
    """Descend on cells of one shape until each has a status; the columns of `ufm.sweep`.

    Args:
        plan: what the runs share.
        cells: at most `size` of them; copies fill up what is missing, so that one program does.
        size: cells side by side, from `fitted`.
        share: called about once a second with the share of the steps that is done.
    """
    devices = _mesh().devices.size  # those of another machine, where an executor computes
    size = -(-size // devices) * devices
    with jax.enable_x64(True), lapack_on_one_thread():
        lanes = _lanes([cells[i % len(cells)] for i in range(size)])
        measured = _run(plan, Shape.of(cells[0]), jax.device_put(lanes, _spread()), share)
        found = {name: x[: len(cells)] for name, x in measured.items()}
        return (
            _described(cells)
            | _options(plan, cells)
            | found
            | _predicted(lanes.problem, len(cells))
        )


def _lanes(cells: Sequence[SweepCell]) -> _Lanes:
    first = cells[0]
    # Cells hold numbers, None or "auto": `ufm.sweeps.grid` has converted everything else.
    rates = [optimizers.rate(cell.optimizer, cell.learning_rate) for cell in cells]
    momentum = optimizers.MOMENTUM.get(first.optimizer, 0.0)
    given = [factories.split(dict(cell.settings().hyperparameters))[1] for cell in cells]
    momenta = [momentum if cell.momentum is None else cell.momentum for cell in cells]
    return _Lanes(
        jax.tree.map(lambda *x: np.array(x, float), *(cell.problem for cell in cells)),
        np.array([rate == "auto" for rate in rates]),
        np.array([0.0 if rate in ("auto", None) else rate for rate in rates], float),
        np.array(momenta, float),
        np.array([cell.seed for cell in cells], np.uint32),
        jax.tree.map(lambda *x: np.array(x, float), *given),
    )


@partial(jax.jit, static_argnames=("method", "dtype"))
def _begin(lanes: _Lanes, scale, *, method: Method, dtype: str) -> tuple[State, Any]:
    def one(lane: _Lanes):
        # The start and the minibatches of `ufm descend` with this seed.
        params_key, batch_key = jax.random.split(jax.random.key(lane.seed))
        params = init_params(params_key, lane.problem, scale, jnp.dtype(dtype))
        step = optimizers.auto_step(lane.problem, objective(lane.problem, params), lane.momentum)
        # In the precision of the run: otherwise velocities become float64.
        own = (jnp.where(lane.auto, step, lane.rate), lane.momentum)
        hyper = jax.tree.map(lambda x: x.astype(dtype), lane.given or own)
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
        proof = certificate.certify(problem, params)
        names = ("value", "lower_bound", "gap", "grad_norm", "spectral_ratio")
        recorded = loop.measurements(problem, params)
        del recorded["loss"]  # the value of the certificate
        return recorded | {name: getattr(proof, name) for name in names}

    return jax.vmap(one)(problem, params)


def _limits(plan: Plan) -> Limits:
    tolerances = (-np.inf if x is None else x for x in (plan.grad_tol, plan.gap_tol))
    return Limits(
        jnp.int32(plan.steps), jnp.int32(plan.record_every), *map(jnp.asarray, tolerances)
    )


def _run(plan: Plan, shape: Shape, lanes: _Lanes, share: Callable[[float], None]) -> Columns:
    """Descend on all lanes until each has a status; their columns."""
    method = shape.method()
    program = _program(shape, len(lanes.seed), plan.precision)
    state, hyper = _begin(lanes, plan.scale, method=method, dtype=plan.precision)
    status = jnp.full(len(lanes.seed), Status.running, jnp.int32)
    state, hyper, status = jax.device_put((state, hyper, status), _spread())
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
    return {
        # What ran, read back: decays and weights of the problem that was descended on.
        **_read_back(lanes.problem),
        "seed": np.asarray(lanes.seed, np.int64),
        **_hyperparameters(shape, hyper, len(lanes.seed)),
        "auto": np.asarray(lanes.auto),
        "status": np.array([Status(int(code)).name for code in codes]).astype("U12"),
        "steps": np.asarray(state.step, np.int64),
        **row,
    }


def _hyperparameters(shape: Shape, hyper: Any, cells: int) -> Columns:
    """Step size and momentum of every cell; NaN where the method has none, or has its default."""
    if isinstance(hyper, tuple):
        used = (shape.optimizer != "lbfgs", shape.optimizer in optimizers.MOMENTUM)
        hyper = {
            name: x
            for name, x, uses in zip(("learning_rate", "momentum"), hyper, used, strict=True)
            if uses
        }
    missing = np.full(cells, np.nan)
    names = ("learning_rate", "momentum")
    return {name: np.asarray(hyper.get(name, missing), float) for name in names}


def _read_back(problem: Problem) -> Columns:
    """The columns of a batch of problems that are traced: decays, weights, parameters of losses."""
    columns, count = {}, len(problem.lam_W)
    for path, x in jax.tree.leaves_with_path(problem):
        name = path[0].name
        if name == "loss":
            each = (jax.tree.map(lambda x, i=i: x[i], problem.loss) for i in range(count))
            columns[name] = np.array([losses.text_of(loss) for loss in each])
        elif name != "targets":
            columns[name] = _column(x)
    return columns


def _column(x: Any) -> np.ndarray:
    """One entry a cell: numbers as they are, weights of classes as text, as the flags take them."""
    x = np.asarray(x)
    return x if x.ndim == 1 else np.array([" ".join(f"{c:.17g}" for c in row) for row in x])


def _described(cells: Sequence[SweepCell]) -> Columns:
    """The fields of the cells that are not among the results; no weights are empty text."""
    problems = [cell.problem.describe(whole=True) for cell in cells]
    columns = {
        name: np.array([x[name] if x[name] is not None else "" for x in problems])
        for name in problems[0]
        if name not in ("n", "targets")
    }
    digests = (values.digest(x["targets"])[:12] if x["targets"] else "" for x in problems)
    columns["targets"] = np.array(list(digests))  # which matrix; the plan holds it
    return columns | {
        "n": np.array([x["n"] if isinstance(x["n"], int) else 0 for x in problems]),  # 0: unequal
        # As --n takes them: one number, or one a class.
        "counts": np.array([" ".join(map(str, np.atleast_1d(x["n"]))) for x in problems]),
        "N": np.array([cell.problem.N for cell in cells]),
        "optimizer": np.array([cell.optimizer for cell in cells]).astype("U32"),
        "batch_size": np.array([cell.batch_size or 0 for cell in cells]),  # 0: full batches
    }


def _options(plan: Plan, cells: Sequence[SweepCell]) -> Columns:
    """The further hyperparameters of every cell, if the plan has any."""
    if not any(grid.options for grid in plan.grids):
        return {}
    told = (", ".join(f"{name}={x}" for name, x in cell.options) for cell in cells)
    return {"options": np.array(list(told))}


def _predicted(problem: Problem, count: int) -> Columns:
    """f* of the problems that ran, in closed form; NaN outside the theorem."""
    ran = jax.tree.map(lambda x: np.asarray(x)[:count], problem)

    def closed(problem: Problem) -> np.ndarray:
        try:
            return np.asarray(theory.global_value(problem))
        except Refused:
            return np.array(np.nan)

    together = closed(ran)
    if together.shape:
        return {"f_star": together}
    # One of them is outside the theorem, or all.
    each = [closed(jax.tree.map(lambda x, i=i: x[i][()], ran)) for i in range(count)]
    return {"f_star": np.array(each)}


@functools.lru_cache(maxsize=1)  # one shape is swept after the other
def _program(shape: Shape, size: int, precision: str):
    """`_advance` compiled for `size` cells of a shape, spread over the devices."""
    make_room()
    with jax.enable_x64(True):
        method, one = shape.method(), jax.ShapeDtypeStruct((), jnp.int32)
        lanes = jax.eval_shape(lambda: _lanes([shape.example()] * size))
        state, hyper = jax.eval_shape(partial(_begin, method=method, dtype=precision), lanes, 1.0)
        status = jax.ShapeDtypeStruct((size,), jnp.int32)
        mapped = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_spread()),
            (lanes.problem, state, hyper, status),
        )
        limits = _limits(Plan())
        return _advance.lower(*mapped, one, limits, one, method=method).compile()


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), ("problems",))


def _spread() -> NamedSharding:
    """Cells over devices."""
    return NamedSharding(_mesh(), PartitionSpec("problems"))
