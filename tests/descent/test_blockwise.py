"""Steps through blocks of samples: the steps of the whole, in the memory of the state."""

from functools import partial

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import ufm
from ufm import losses
from ufm.descent import blockwise, loop
from ufm.model.problem import Problem

PROBLEMS = {
    name: laws.PROBLEMS[name] for name in ("d-is-K", "no-bias", "unequal-counts", "narrow")
} | {
    "weights": Problem(3, 4, (2, 3, 5), 5e-3, 2e-3, 1e-2, weights=(1.0, 2.0, 0.5),
                       decay_weights=(1.0, 0.5, 3.0)),
    "squared": Problem(3, 4, 5, 5e-3, 2e-3, 1e-2, loss=losses.SquaredError()),
    "targets": Problem(3, 4, 5, 5e-3, 2e-3, 1e-2, loss=losses.SquaredError(),
                       targets=np.random.default_rng(0).standard_normal((3, 15))),
    "fixed": Problem(3, 4, 5, 5e-3, 2e-3, 1e-2, fixed=("W",)),
}  # fmt: skip
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
METHODS = pytest.mark.parametrize("name", blockwise.METHODS)


def in_blocks(monkeypatch):
    """Blocks of four samples for problems of any size; the last one may have fewer."""
    monkeypatch.setattr(blockwise, "LARGE", 0)
    monkeypatch.setattr(blockwise, "BLOCK", 0)
    monkeypatch.setattr(blockwise, "WIDTH", 4)


def method(name):
    return loop.Method(name, None, None), (0.05, None if name in ("gd", "adam") else 0.9)


def steps(problem, begun, name, count=4, mapped=False):
    of, hyper = method(name)
    advance = partial(loop.step, problem, of, hyper)

    def all_of(begun):
        state = loop.start(problem, begun, of, hyper)
        return jax.lax.fori_loop(0, count, lambda _, state: advance(state), state)

    return jax.jit(jax.vmap(all_of) if mapped else all_of)(begun)


def agree(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@EACH
@METHODS
def test_steps_through_blocks_are_those_of_the_whole(problem, name, monkeypatch):
    begun = laws.random_params(problem, 1)
    whole = steps(problem, begun, name)
    in_blocks(monkeypatch)
    agree(steps(problem, begun, name), whole)


def test_steps_of_many_starts_are_those_of_each(monkeypatch):
    problem = PROBLEMS["unequal-counts"]
    starts = [laws.random_params(problem, seed) for seed in range(3)]
    each = [steps(problem, begun, "heavy_ball") for begun in starts]
    in_blocks(monkeypatch)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    found = steps(problem, stacked, "heavy_ball", mapped=True)
    agree(found, jax.tree.map(lambda *x: jnp.stack(x), *each))


def test_a_run_records_the_same_and_a_point_that_is_not_finite_ends_it(monkeypatch):
    problem = PROBLEMS["unequal-counts"]
    begun = laws.random_params(problem, 1)

    def run(rate):
        return ufm.descend(problem, begun, "gd", steps=30, learning_rate=rate, record_every=10)

    whole, lost = run(0.05), run(1e200)
    in_blocks(monkeypatch)
    jax.clear_caches()
    found = run(0.05)
    for name, x in found.history.items():
        np.testing.assert_allclose(x, whole.history[name], rtol=1e-8, atol=1e-10)
    again = run(1e200)
    assert (again.status, again.steps) == (lost.status, lost.steps) == ("diverged", 0)


@METHODS
def test_no_step_has_an_array_of_the_size_of_the_features_beside_its_state(name):
    problem = Problem(10, 64, 13_110, 5e-3, 5e-3, 5e-3)
    assert 4 * problem.d * problem.N >= blockwise.LARGE
    (of, hyper), begun = method(name), ufm.init_params(0, problem, dtype=jnp.float32)
    state = jax.eval_shape(lambda x: loop.start(problem, x, of, hyper), begun)
    advance = jax.jit(partial(loop.step, problem, of, hyper), donate_argnums=0)
    memory = advance.lower(state).compile().memory_analysis()
    assert memory.temp_size_in_bytes < begun.H.nbytes / 2
    assert memory.alias_size_in_bytes > memory.output_size_in_bytes / 2


def test_only_entrywise_methods_of_known_steps_go_through_blocks(monkeypatch):
    problem = PROBLEMS["d-is-K"]
    begun = laws.random_params(problem, 1)
    sphere = Problem(3, 4, 5, 0, 0, bias=False, features="sphere")
    in_blocks(monkeypatch)
    assert blockwise.applies(problem, "gd", begun.H)
    assert not any(blockwise.applies(problem, name, begun.H) for name in ("lbfgs", "sgd", object()))
    assert not blockwise.applies(sphere, "gd", begun.H)
    monkeypatch.setattr(blockwise, "step", None)  # steps that are tested evaluate f
    assert ufm.descend(problem, begun, "gd", steps=3).steps == 3
