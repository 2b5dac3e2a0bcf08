"""Away from a saddle: descent that starts beside it, timed against its linearisation.

    x_0 = x* + ε u,   ⟨q, x_t − x*⟩ = ε ‖Pu‖ (1 + η|λ|)^t   as long as it is small,   q = Pu/‖Pu‖

u is a random unit tangent, λ < 0 the least eigenvalue of ∇²f(x*) and P the projection on its whole
eigenspace. Gradient descent with step η multiplies this eigenspace by one factor, so the direction
q does not change, whatever the multiplicity of λ (idle dimensions and symmetries make it larger
than 1). A run has left the saddle when |⟨q, x_t − x*⟩| reaches δ, which is predicted for

    t = log(δ/(ε‖Pu‖)) / log(1 + η|λ|).

‖x_t − x*‖ is at least as large, so the run has left the ball of radius δ, too; but the other
unstable directions, through which that length depends on the whole spectrum, do not enter into t.
The same descent then continues until the certificate proves that f is the global minimum.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import certificate, check
from ufm.check import Refused
from ufm.critical import newton
from ufm.descent import arguments, loop
from ufm.descent.content import by_content
from ufm.descent.loop import Method, State, Status
from ufm.hessian.curvature import dense, flatten, in_float64, unflatten
from ufm.hessian.stationarity import measured
from ufm.model import layers, points
from ufm.model.evaluation import evaluate
from ufm.model.problem import Params, Problem

GAP_TOL, SGD_GAP_TOL = 1e-6, 1e-5  # nats; the noise of minibatches decays slowly
_EVERY = 50  # steps between two certificates
_FADE = 4  # SGD's step size falls as (1 − step/steps)⁴
_CLUSTER = 1e-8  # eigenvalues this far apart, in units of ‖∇²f‖, count as one


class Escape(NamedTuple):
    """How a run left a saddle and where it ended; arrays with an entry per run for several runs.

    params: the last point, float64.
    left: steps until |⟨q, x − x*⟩| ≥ δ; −1 if that never happened.
    predicted: log(δ/(ε‖Pu‖))/log(1 + η|λ|), the prediction for gradient descent, in steps.
    steps: in all.  gap: certified bound on f − f* at the last point, in nats.
    status: "certified" (gap ≤ gap_tol), "step_limit" or "diverged".
    smallest, multiplicity: λ and the dimension of its eigenspace.  part: ‖Pu‖.
    learning_rate: η.
    resolution: ‖P∇f(x*)‖/|λ|, the distance in the eigenspace between the given point and the exact
        saddle; a smaller ε‖Pu‖ is meaningless.
    """

    params: Params
    left: Any
    predicted: Any
    steps: Any
    gap: Any
    status: Any
    smallest: float
    multiplicity: int
    part: float
    learning_rate: float
    resolution: float


class Unstable(NamedTuple):
    """A direction of escape.

    u, q: flattened unit tangents, q = Pu/‖Pu‖.  largest: eigenvalue of ∇²f.
    part, smallest, multiplicity, resolution: as in `Escape`.
    """

    u: np.ndarray
    q: np.ndarray
    part: float
    smallest: float
    multiplicity: int
    largest: float
    resolution: float


def escape(
    problem: Problem,
    saddle: Params,
    key: Array,
    epsilon=1e-6,
    *,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    delta: float = 1e-3,
    steps: int = 40_000,
    gap_tol: float | None = None,
) -> Escape:
    """Descend from saddle + ε u until the certified gap is at most gap_tol.

    u is a random unit tangent, and q the direction of its part in the eigenspace of the least
    eigenvalue of ∇²f (see `ufm.critical.unstable`). Computed in float64 whatever the precision of
    the saddle and of JAX's configuration; compiled once for each shape and number of runs.

    Args:
        problem: any with free features, λ_W, λ_H > 0 and at most 2500 variables.
        saddle: a critical point with a negative eigenvalue, polished (`ufm.solve` with
            descend=False, `ufm.critical.census`): its residual limits how small ε may be.
        key: a JAX PRNG key or an integer seed; it draws the direction u, and minibatches.
        epsilon: length of the perturbation, in (0, δ), or an array of lengths along one u.
        batch_size: samples of a minibatch (SGD); None takes gradient descent.
        learning_rate: η, for SGD decreasing to 0 as η(1 − step/steps)⁴. None takes the inverse of
            the largest eigenvalue at the saddle, at most K; for SGD it is multiplied by
            batch_size/N, since the curvature of a batch can be N/batch_size times as large.
        delta: δ, the distance along q from which on the saddle counts as left.
        steps: limit on all steps.
        gap_tol: certified gap to reach, > 0, in nats; None takes 1e-6, for SGD 1e-5.

    Returns:
        An `Escape`. Its gap can reach `gap_tol` only where the certificate is tight, d ≥ K−1.

    Raises:
        Refused: a point that is no strict saddle, too many variables, an argument out of range,
            wrong shapes or entries that are not finite; arrays that are not real floating,
            array-valued decays, traced values; features that are not free, a fixed classifier.
    """
    points.check_types(problem, saddle)
    layers.require_free(problem, "critical.escape")
    key, delta = check.key(key), check.real("delta", delta, above=0)
    lengths, steps = _lengths(problem, epsilon, delta), arguments.limit("steps", steps)
    if batch_size is not None:
        batch_size = check.integer("batch_size", batch_size, 1, problem.N, f"N={problem.N}")
    learning_rate = arguments.tolerance("learning_rate", learning_rate)
    gap_tol = arguments.tolerance("gap_tol", gap_tol) or (SGD_GAP_TOL if batch_size else GAP_TOL)
    points.check_point(problem, saddle)
    with jax.enable_x64(True):
        point = in_float64(saddle)
        way = unstable(problem, point, key)
        rate = learning_rate or _rate(problem, way, batch_size)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(lengths))
        vectors = unflatten(problem, jnp.asarray(way.u)), jnp.asarray(way.q)
        limits = np.int32(steps), np.float64(delta), np.float64(gap_tol)
        last, left, gap, codes = _runs(
            problem, point, *vectors, jnp.asarray(lengths), keys, np.float64(rate),
            limits, batch_size,
        )  # fmt: skip
    found = Escape(
        params=last.params,
        left=np.asarray(left),
        predicted=np.log(delta / (lengths * way.part)) / np.log1p(-rate * way.smallest),
        steps=np.asarray(last.step),
        gap=np.asarray(gap),
        status=np.array([Status(int(code)).name for code in codes]),
        smallest=way.smallest,
        multiplicity=way.multiplicity,
        part=way.part,
        learning_rate=float(rate),
        resolution=way.resolution,
    )
    if np.ndim(epsilon):
        return found
    only: list[Any] = [x[0].item() if isinstance(x, np.ndarray) else x for x in found[1:]]
    return Escape(jax.tree.map(lambda x: x[0], found.params), *only)


def _rate(problem: Problem, way: Unstable, batch_size: int | None) -> float:
    share = batch_size / problem.N if batch_size else 1.0
    return share * min(1 / way.largest, problem.K)


def _lengths(problem: Problem, epsilon: Any, delta: float) -> np.ndarray:
    """The lengths ε as an array; refuses those beyond δ and a problem that is too large."""
    each = check.several(epsilon)
    given = [epsilon] if each is None else each
    lengths = np.array([check.real("epsilon", x, above=0) for x in given])
    if problem.size > newton.DENSE_SIZE:
        raise Refused(
            f"got a problem of {problem.size} variables; allowed are {newton.DENSE_SIZE}, since "
            "the whole eigenspace is computed. Lower n: the problem "
            "ufm.model.quotient.of_width(problem, d) has the same saddles with one sample a class"
        )
    if not (lengths.size and np.all(lengths < delta)):
        raise Refused(
            f"got epsilon={lengths} with delta={delta}; allowed: 0 < epsilon < delta, a number or "
            "one axis of them"
        )
    return lengths


def unstable(problem: Problem, saddle: Params, key: Array) -> Unstable:
    """A random unit tangent and its part in the eigenspace of the least eigenvalue of ∇²f.

    Raises:
        Refused: if the point is not critical, or has no negative eigenvalue.
    """
    at = evaluate(problem, saddle)
    found = measured(at)
    if not found.critical:
        raise Refused(
            f"got a point with {found.told()}; allowed: a saddle. Polish it with "
            "ufm.solve(problem, point, descend=False)"
        )
    values, vectors = np.linalg.eigh(np.asarray(dense(problem, saddle)))
    size = max(-values[0], values[-1])
    if not values[0] < -_CLUSTER * size:
        raise Refused(
            f"got a point whose least eigenvalue is {values[0]:.3g}; allowed: a strict saddle, "
            "with a negative one"
        )
    space = vectors[:, values <= values[0] + _CLUSTER * size]
    drawn = np.asarray(jax.random.normal(key, (problem.size,), np.float64))
    u = drawn / np.linalg.norm(drawn)
    inside = space @ (space.T @ u)
    part = float(np.linalg.norm(inside))
    slope = np.asarray(flatten(problem, at.gradient))
    resolution = float(np.linalg.norm(space.T @ slope)) / -float(values[0])
    return Unstable(
        u, inside / part, part, float(values[0]), space.shape[1], float(values[-1]), resolution
    )


@partial(jax.jit, static_argnums=8)
def _runs(problem, saddle, u, q, lengths, keys, rate, limits, batch_size):
    """All lengths side by side: (last state, steps until left, gap, status)."""
    run = partial(_run, problem, saddle, u, q, rate=rate, limits=limits, batch_size=batch_size)
    return jax.vmap(lambda length, key: run(length, key))(lengths, keys)


def _run(
    problem: Problem,
    saddle: Params,
    u: Params,
    q: Float[Array, " size"],
    length: Array,
    key: Array,
    *,
    rate: Array,
    limits: tuple[Array, Array, Array],
    batch_size: int | None,
) -> tuple[State, Array, Array, Array]:
    steps, delta, gap_tol = limits

    def fading(count):
        return rate * (1 - count / steps) ** _FADE

    method = (
        Method("sgd", by_content(fading), batch_size) if batch_size else Method("gd", None, None)
    )
    hyper = (rate, 0.0)

    def ahead(state: State) -> State:
        return loop.step(problem, method, hyper, state)

    def beside(state: State) -> Array:
        away = jax.tree.map(jnp.subtract, state.params, saddle)
        return jnp.abs(jnp.vdot(q, flatten(problem, away))) < delta

    def certified(state: State) -> tuple[Array, Array]:
        proof = certificate.certify(problem, state.params)
        status = jnp.where(state.step >= steps, Status.step_limit, Status.running)
        status = jnp.where(proof.gap + proof.resolution <= gap_tol, Status.certified, status)
        sound = proof.value <= loop.EXPLOSION * (1 + state.start)  # False for NaN
        return jnp.asarray(proof.gap), jnp.where(sound, status, Status.diverged).astype(jnp.int32)

    def on(carry):
        count = jnp.minimum(_EVERY, steps - carry[0].step)
        state = jax.lax.fori_loop(0, count, lambda _, x: ahead(x), carry[0])
        return state, *certified(state)

    begin = jax.tree.map(lambda x, v: x + length * v, saddle, u)
    state = loop.start(problem, begin, method, hyper, key if batch_size else None)
    state = jax.lax.while_loop(lambda x: beside(x) & (x.step < steps), ahead, state)
    left = jnp.where(beside(state), -1, state.step)
    state, gap, status = jax.lax.while_loop(
        lambda carry: carry[2] == Status.running, on, (state, *certified(state))
    )
    return state, left, gap, status
