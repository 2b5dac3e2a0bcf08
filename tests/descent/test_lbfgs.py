"""The compact form of L-BFGS against the dense update of BFGS and against optax's two loops."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import pytest

import ufm
from ufm.descent import lbfgs, loop

SIZE = 4
# The last parameter of `nothing` is the memory's size.
OURS = optax.GradientTransformation(lambda x: lbfgs.nothing(x, SIZE), lbfgs.direction)


def dense(pairs: list, gamma: float, g: np.ndarray) -> np.ndarray:
    """−H g with H⁺ = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ from γ I, ρ = 1/sᵀy, pair by pair."""
    H = gamma * np.eye(len(g))
    for s, y in pairs:
        V = np.eye(len(g)) - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    return -H @ g


def walk(seed: int, count: int, *, convex: bool) -> tuple[np.ndarray, np.ndarray]:
    """Points of a random walk and slopes A x there, (count, 7) each, A symmetric."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(7, 7))
    A = A @ A.T + np.eye(7) if convex else A + A.T
    x = np.cumsum(rng.normal(size=(count, 7)), axis=0)
    return x, x @ A


def directions(method: optax.GradientTransformation, x: np.ndarray, g: np.ndarray) -> list:
    """The direction that a method takes at every point, in two arrays of unlike shapes."""

    def tree(v):
        return {"a": jnp.asarray(v[:6]).reshape(2, 3), "b": jnp.asarray(v[6:])}

    state, found = method.init(tree(x[0])), []
    for point, slope in zip(x, g, strict=True):
        p, state = method.update(tree(slope), state, tree(point))
        found.append(np.concatenate([np.ravel(p["a"]), p["b"]]))
    return found


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_direction_is_that_of_the_dense_update(seed, convex):
    x, g = walk(seed, 3 * SIZE, convex=convex)
    slots, gamma = [], min(1, 1 / np.linalg.norm(g[0]))
    for k, p in enumerate(directions(OURS, x, g)):
        if k:
            s, y = x[k] - x[k - 1], g[k] - g[k - 1]
            sound = s @ y > np.finfo(float).eps * y @ y
            slots.append((s, y) if sound else None)  # a pair left out keeps its place
            gamma = s @ y / (y @ y) if sound else gamma
        pairs = [pair for pair in slots[-SIZE:] if pair is not None]
        # Pairs of a random walk are well apart: what is lost is a few digits of R⁻¹.
        np.testing.assert_allclose(p, dense(pairs, gamma, g[k]), rtol=1e-8, atol=1e-10)
    assert (None in slots) != convex


def test_the_direction_is_that_of_two_loops():
    x, g = walk(0, 3 * SIZE, convex=True)
    loops = directions(optax.chain(optax.scale_by_lbfgs(SIZE), optax.scale(-1.0)), x, g)
    for p, q in zip(directions(OURS, x, g), loops, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("d", "size"), [(20, lbfgs.MEMORY), (2200, lbfgs.MEMORY_OF_LARGE)])
def test_large_points_keep_fewer_pairs(d, size):
    problem = ufm.Problem(3, d, 10, 5e-3, 5e-3, 5e-3)
    run = ufm.descend(problem, ufm.init_params(0, problem), "lbfgs", steps=1)
    memory, _ = run.state.opt_state
    assert {len(x) for x in jax.tree.leaves((memory.S, memory.Y))} == {size}
    assert lbfgs.pairs(problem.size) == size


def test_a_descent_is_that_of_optax_with_the_same_line_search():
    problem = ufm.Problem(4, 5, 6, 5e-3, 5e-3, 5e-3)
    params = ufm.init_params(jax.random.key(0), problem)
    run = ufm.descend(problem, params, "lbfgs", steps=15, record_every=1)
    value_fn = loop.closed_form(problem)
    method = optax.lbfgs()

    @jax.jit
    def step(params, state):
        value, grad = optax.value_and_grad_from_state(value_fn)(params, state=state)
        updates, state = method.update(
            grad, state, params, value=value, grad=grad, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state

    state, losses = method.init(params), [float(ufm.objective(problem, params))]
    for _ in range(15):
        params, state = step(params, state)
        losses.append(float(ufm.objective(problem, params)))
    # The two differ by rounding, which fifteen steps towards the minimum do not blow up.
    np.testing.assert_allclose(run.history["loss"], losses, rtol=1e-9)


@pytest.mark.parametrize("lam", [1e-30, 1e-12])
def test_gradients_whose_squares_vanish_end_no_run(lam):
    """In float32, below 1e-19: such pairs are left out, and f does not rise."""
    problem = ufm.Problem(4, 5, 2, lam=lam)
    start = laws.random_params(problem, scale=1e-3, dtype=jnp.float32)
    run = ufm.descend(problem, start, "lbfgs", steps=300)
    assert run.status == "step_limit"
    assert run.history["grad_norm"][-1] < 1e-16
    assert np.all(np.diff(run.history["loss"]) <= 1e-6 * run.history["loss"][:-1])
