"""The compiled loop of descent: a step, a chunk of steps, a recorded trajectory; all traceable.

    x_{t+1} = x_t + u_t,   u_t = optimizer(∇f(x_t)), or of a minibatch estimate of ∇f

(where H ≥ 0 and on the sphere the projection of that, `ufm.descent.projected`).

The loop runs in chunks of `record_every` steps, or of fewer at first. After each chunk the point is
measured and the stopping rules are tested, all inside the compiled program. A failure becomes a
status; it raises no exception and returns no NaN.
"""

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ufm.descent import blockwise, factories, lbfgs, minibatch, optimizers, projected
from ufm.descent.columns import Traced
from ufm.descent.content import ByContent
from ufm.descent.records import Told, criteria, history, measurements, names, nothing
from ufm.descent.transformation import Transformation
from ufm.linalg.scaling import anyone
from ufm.model import layers
from ufm.model import objective as terms
from ufm.model.fixed import held
from ufm.model.objective import add_decay, gradient, objective
from ufm.model.problem import Params, Problem
from ufm.runtime import loops, programs


class Status(IntEnum):
    """How a run ended."""

    running = 0
    step_limit = 1
    converged = 2
    certified = 3
    diverged = 4
    underflow = 5

    @property
    def sentence(self) -> str:
        """How a run with this status ended, in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.running: "it has not ended",
    Status.step_limit: "all steps were taken before a tolerance was reached",
    Status.converged: "the gradient norm is at most grad_tol",
    Status.certified: "the certified gap, with its rounding, is at most gap_tol",
    Status.diverged: "the next point was not finite, or its objective exploded",
    Status.underflow: "on the sphere, f is so small that float numbers lose its digits",
}


# f may increase for a while, but not by four orders of magnitude.
EXPLOSION = 1e4


class State(NamedTuple):
    """Everything that the next step depends on; a run resumes from it bit for bit.

    params, opt_state: the point and the state of the optimiser.  step: steps taken.
    start: f at the first point, the reference for divergence.
    key, order: PRNG key of the minibatches and the permutation of samples of the current epoch;
        None for full batches.
    """

    params: Params
    opt_state: Any
    step: Any
    start: Any
    key: Any = None
    order: Any = None


class Method(NamedTuple):
    """The part of the optimiser that is compiled in.

    optimizer: its name, or a transformation or a factory.
    schedule: the learning rate of a named one, if it is a schedule.
    batch_size: of minibatches.  static: hyperparameters of a factory that are not numbers.
    adapts: whether a named one tests its steps (`ufm.descent.adaptive`).
    """

    optimizer: str | ByContent
    schedule: ByContent | None
    batch_size: int | None
    static: factories.Static = ()
    adapts: bool = False

    def transformation(self, hyper) -> Transformation:
        """The transformation at the (traced) hyperparameters.

        Args:
            hyper: (learning rate, momentum) of a named method; for a factory, a dict by name.
        """
        if isinstance(self.optimizer, ByContent):
            import optax

            found = self.optimizer.value
            if not isinstance(found, optax.GradientTransformation):
                found = factories.build(found, self.static, hyper)
            return Transformation(*optax.with_extra_args_support(found))
        learning_rate, momentum = hyper
        schedule = self.schedule.value if self.schedule else None
        return optimizers.named(self.optimizer, schedule or learning_rate, momentum, self.adapts)


SMALL, FEW = 2500, 1000  # variables


def is_brief(problem: Problem, method: Method) -> bool:
    """Whether a descent is faster than its compilation: L-BFGS takes some hundred small steps."""
    return method.optimizer == "lbfgs" and problem.size <= SMALL


def options(problem: Problem, method: Method) -> dict[str, Any]:
    """`compiler_options` of a descent from one start in one program.

    At 628 variables L-BFGS takes half the time in a fresh process with the fewest optimisations,
    0.9 s for 1.8 s, and a thousand steps more take 0.15 s for 0.05 s. The older compiler saves a
    third of the time and 150 MiB for other methods; their steps take up to 1.4 times as long.
    """
    if problem.size > SMALL:
        return {}
    return programs.options(level=0 if is_brief(problem, method) and problem.size <= FEW else 1)


class Limits(NamedTuple):
    """Traced stopping rules: limit on steps, steps between records, tolerances of ‖∇f‖ and gap.

    early: whether records are denser at first, until the steps between them are record_every.
    """

    steps: Any
    record_every: Any
    grad_tol: Any
    gap_tol: Any
    early: Any = False

    def stride(self, at):
        """Steps from the record after `at` steps to the next: record_every, or at first at/4."""
        every = self.record_every
        dense = jnp.minimum(jnp.maximum(1, at // 4), every - at)
        return jnp.minimum(jnp.where(self.early & (at < every), dense, every), self.steps - at)


def start(
    problem: Problem,
    params: Params,
    method: Method,
    hyper,
    key=None,
    value: Any = None,
    slope: Params | None = None,
) -> State:
    """The state before the first step. Traceable.

    Args:
        problem, params: where to start.
        method, hyper: the compiled and the traced part of the optimiser.
        key: of the minibatches; None for full batches.
        value, slope: f and ∇f at params, where they are known; L-BFGS needs both.
    """
    opt_state = method.transformation(hyper).init(params)
    order = None if method.batch_size is None else minibatch.epoch_order(problem, key, 0)
    value = objective(problem, params) if value is None else value
    if method.optimizer == "lbfgs":
        slope = gradient(problem, params) if slope is None else slope
        opt_state = opt_state[0], lbfgs.Known(value, slope)
    return State(params, opt_state, jnp.int32(0), value, key, order)


def _evaluated(problem: Problem, params: Params) -> tuple[Array, Params]:
    return objective(problem, params), gradient(problem, params)


def closed_form(problem: Problem) -> Callable[[Params], Array]:
    """f as a function of params alone, whose derivative is the closed-form gradient."""
    value_fn = jax.custom_vjp(partial(objective, problem))
    value_fn.defvjp(
        lambda params: (objective(problem, params), params),
        lambda params, weight: (jax.tree.map(lambda g: weight * g, gradient(problem, params)),),
    )
    return value_fn


def step(problem: Problem, method: Method, hyper, state: State) -> State:
    """One step of the optimiser. Traceable."""
    optimizer, params, order = method.transformation(hyper), state.params, state.order
    given = method.batch_size is None and not method.adapts
    if given and blockwise.applies(problem, method.optimizer, params.H):
        params, opt_state = blockwise.step(problem, optimizer, params, state.opt_state)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1)
    extra: dict[str, Any] = {}
    if method.batch_size is not None:
        columns, order = minibatch.draw(
            problem, state.key, state.step, state.order, method.batch_size
        )
        data = minibatch.gradient(problem, params, columns)
        grad = layers.of(problem).along(params, data)
    elif method.optimizer == "lbfgs":
        # The line search has evaluated the point that it chose; its state holds ∇f there.
        data, grad = None, state.opt_state[1].grad
        extra = {"evaluate": partial(_evaluated, problem)}
    else:
        data = terms.pullback(problem, params)
        grad = layers.of(problem).along(params, add_decay(problem, params, data))
        extra = {
            # A tested step has evaluated its point.
            "value": (
                jnp.where(state.step == 0, state.start, state.opt_state.value)
                if method.adapts
                else objective(problem, params)
            ),
            "grad": grad,
            "value_fn": closed_form(problem),
        }
        if not layers.is_free(problem):
            extra["project"] = partial(layers.project, problem)
    updates, opt_state = optimizer.update(grad, state.opt_state, params, **extra)
    if data is not None:
        # Every update waits for both products, which read the old W and H: otherwise XLA copies W
        # and H before each step. Without decay, which would make the factor read W and H once more.
        read = (data.W[0, 0] < jnp.inf) & (data.H[0, 0] < jnp.inf)
        done = jnp.where(read, 1, jnp.nan)
        updates = jax.tree.map(lambda u: u * done.astype(u.dtype), updates)
    updates = held(problem, updates)  # an optimiser's own decay or noise would move a fixed W
    params, opt_state = projected.moved(
        problem, None if method.adapts else method.optimizer, params, updates, opt_state
    )
    return state._replace(params=params, opt_state=opt_state, step=state.step + 1, order=order)


def _sound(value, first):
    """Whether f is finite and has not exploded; first: f at the start."""
    return jnp.isfinite(value) & (value <= EXPLOSION * (1 + first))


def _verdict(problem: Problem, row: dict[str, Array], state: State, limits: Limits) -> Array:
    """Status of a freshly measured, sound point; on the sphere tolerances are shares of f."""
    unit = layers.of(problem).unit(row["loss"])
    eps = jnp.finfo(row["loss"].dtype).eps
    rounding = 4 * eps * (2 * row["loss"] - row["gap"])
    status = jnp.where(state.step >= limits.steps, Status.step_limit, Status.running)
    status = jnp.where(row["grad_norm"] <= limits.grad_tol * unit, Status.converged, status)
    met = row["gap"] + rounding <= limits.gap_tol * unit
    status = jnp.where(met, Status.certified, status)
    status = jnp.where(jnp.isnan(unit), Status.underflow, status)
    return status.astype(jnp.int32)


def advanced(problem: Problem, state: State, method: Method, hyper, limits, told: Told, i) -> State:
    """The state at record i: the start itself, or after the steps since the record before.

    Unchanged where the run has ended. Traceable.
    """
    ended = (i == 0) | (told.status != Status.running)
    count = jnp.where(ended, 0, limits.stride(state.step))
    return loops.repeat(count, partial(step, problem, method, hyper), state)


def judged(
    problem: Problem,
    new: State,
    old: State | None,
    told: Told,
    i,
    limits: Limits,
    record: Traced | None,
) -> tuple[State, Told]:
    """(the state after record i, what is recorded with it). Traceable.

    Args:
        problem: of the run.
        new: the state at the record.
        old: the state to return where the run has ended or diverges; None for `new`.
        told: so far.
        i, limits, record: as for `trajectory`.
    """
    steps, table, status = told
    row = (criteria if record is None else partial(measurements, record=record))(
        problem, new.params
    )
    running = status == Status.running
    sound = _sound(row["loss"], new.start) & jnp.isfinite(row["grad_norm"])
    going = running & sound
    kept = new if old is None else jax.lax.cond(going, lambda: new, lambda: old)
    written = jnp.array([row[name] for name in names(record)], table.dtype)
    # `.at[].set` would be a scatter, which is a loop on CPUs.
    put = partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
    steps = put(steps, jnp.where(going, new.step, steps[i]))
    table = put(table, jnp.where(going, written, table[i]))
    code = jnp.where(sound, _verdict(problem, row, new, limits), jnp.int32(Status.diverged))
    return kept, Told(steps, table, jnp.where(running, code, status))


def trajectory(
    problem: Problem,
    state: State,
    method: Method,
    hyper: Any,
    limits: Limits,
    records: int,
    chunks: Any = None,
    record: Traced | None = (),
    keep: bool = True,
    at: Any = None,
) -> tuple[State, dict[str, Array], Array]:
    """Up to `chunks` chunks of `limits.stride` steps from `state`; pure and traceable.

    A run in one program. For a sweep, problem, state and hyper have a leading axis of runs, which
    take the same steps in one loop; `jax.vmap` of this function over decays, starts or
    hyperparameters gives the same, but takes three times as long to trace.

    Args:
        problem, state, method, hyper: see `start`.
        limits: stopping rules; `steps` and `record_every` must not be mapped over.
        records: static capacity of the history, at least chunks + 1.
        chunks: how many chunks to run, by default records − 1.
        record: further columns of the history, or None for no column but "step"; static.
        keep: whether a diverged run, and one that has ended while others under the map go on,
            returns the state of its last sound record; this takes the memory of a second state.
        at: the steps so far, one number, for states with a leading axis; all of them go on.

    Returns:
        (state, history, status): history holds arrays of length `records`, whose row 0 is the
        start and whose rows past the end of the run are NaN (step: −1); a leading axis of runs
        comes first.
    """
    chunks = records - 1 if chunks is None else chunks

    def ahead(problem, hyper, state):
        return step(problem, method, hyper, state)

    def measured(problem, new, old, told, i):
        return judged(problem, new, old if keep else None, told, i, limits, record)

    told = nothing(jnp, state, records, record)
    if at is None:
        # Batched from the start, like the state: vmap traces a loop again if its carry becomes so.
        at, mapped = state.step, jnp.isnan(state.start)
        told = jax.tree.map(lambda x: jnp.where(mapped, x, x), told)
    else:
        ahead, measured = jax.vmap(ahead), jax.vmap(measured, in_axes=(0, 0, 0, 0, None))

    def body(i, carry):
        at, state, told = carry
        # Row 0 is the start itself, a chunk of 0 steps: so the program measures in one place only.
        count = jnp.where(i == 0, 0, limits.stride(at))

        def chunk():
            new = loops.repeat(count, partial(ahead, problem, hyper), state)
            return measured(problem, new, state, told, i)

        going = anyone(jnp.any(told.status == Status.running))
        return at + count, *jax.lax.cond(going, chunk, lambda: (state, told))

    _, state, told = jax.lax.fori_loop(0, chunks + 1, body, (at, state, told))
    return state, history(told, record), told.status


def last_sound(problem: Problem, state: State, method: Method, hyper, count) -> State:
    """The last sound state of a chunk that diverged, by repeating it one checked step at a time."""

    def ahead(state):
        return step(problem, method, hyper, state)

    def sound(state):
        finite = jnp.array([jnp.all(jnp.isfinite(x)) for x in state.params])
        return jnp.all(finite) & _sound(objective(problem, state.params), state.start)

    limit = state.step + count
    return jax.lax.while_loop(
        lambda pair: sound(pair[1]) & (pair[0].step < limit),
        lambda pair: (pair[1], ahead(pair[1])),
        (state, ahead(state)),
    )[0]
