"""Descent with H ≥ 0: projected steps, their proof, and what the record shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import random_params

import ufm
from ufm.descent import loop, optimizers
from ufm.descent.loop import Method
from ufm.model import layers
from ufm.model.objective import gradient, objective
from ufm.model.problem import Problem

P = Problem(3, 4, (4, 2, 1), 1e-2, 5e-3, bias=False, features="nonnegative")
BIASED = Problem(3, 4, (4, 2, 1), 1e-2, 5e-3, 2e-2, features="nonnegative")


def start(problem, seed=0):
    return layers.project(problem, random_params(problem, seed))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "gd"}, {"optimizer": "heavy_ball"},
        {"optimizer": "nesterov", "learning_rate": 0.3},
        {"optimizer": "sgd", "batch_size": 3, "key": 0}, {"optimizer": "adam"},
        {"optimizer": "adam", "batch_size": 2, "key": 1},
        {"optimizer": "adamw", "learning_rate": 1e-2},
        {"optimizer": optax.rmsprop(1e-2)},
    ],
    ids=lambda x: str(x["optimizer"])[:10] + str(x.get("batch_size", "")),
)  # fmt: skip
def test_every_method_stays_at_features_that_are_not_negative(options):
    run = ufm.descend(BIASED, start(BIASED), steps=60, **options)
    assert float(run.params.H.min()) == 0
    assert run.history["loss"][-1] < run.history["loss"][0]
    assert np.all(run.history["gap"] >= run.history["loss"] - run.history["loss"].min() - 1e-12)


@pytest.mark.parametrize("name", ["gd", "heavy_ball", "nesterov"])
def test_a_step_is_the_projection_of_that_of_the_way_gone(name):
    """x⁺ = P(x + βv − η∇f), v the last displacement (for Nesterov −ηβ times its share too)."""
    eta, beta = 0.2, 0.9 if name != "gd" else 0.0
    method, hyper = Method(name, None, None), (jnp.float64(eta), jnp.float64(beta))
    x = start(P)
    state = loop.start(P, x, method, hyper)
    v = jax.tree.map(jnp.zeros_like, x)
    for _ in range(6):
        g = gradient(P, x)
        velocity = jax.tree.map(lambda v, g: beta * v - eta * g, v, g)
        if name == "nesterov":
            wanted = jax.tree.map(lambda u, g: beta * u - eta * g, velocity, g)
        else:
            wanted = velocity
        new = layers.project(P, jax.tree.map(jnp.add, x, wanted))
        share = np.where(wanted.H == 0, 1, (new.H - x.H) / np.where(wanted.H == 0, 1, wanted.H))
        v = velocity._replace(H=velocity.H * share)
        x, state = new, loop.step(P, method, hyper, state)
        for told, found in zip(x, state.params, strict=True):
            np.testing.assert_allclose(found, told, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_falls_at_every_automatic_step(seed, beta):
    """E = f + (β/2η)‖x − x⁻‖² for twice the step "safe", the limit of the proof."""
    x = start(P, seed)
    eta = 1.99 * float(optimizers.safe_step(P, objective(P, x), beta))
    method = Method("heavy_ball", None, None)
    hyper = (jnp.float64(eta), jnp.float64(beta))
    step = jax.jit(lambda state: loop.step(P, method, hyper, state))
    state, energies = loop.start(P, x, method, hyper), []
    for _ in range(200):
        before, state = state.params, step(state)
        v = jax.tree.map(jnp.subtract, state.params, before)
        square = sum(float(jnp.sum(u**2)) for u in v)
        energies.append(float(objective(P, state.params)) + beta / (2 * eta) * square)
    assert np.all(np.diff(energies) <= 1e-15)


def test_the_record_shows_the_projected_gradient_and_ends_by_it():
    run = ufm.descend(P, start(P), "gd", steps=100_000, learning_rate=2.0, grad_tol=1e-9)
    assert run.status == "converged"
    slope = gradient(P, run.params)
    inner = layers.slope(P, run.params, slope)
    np.testing.assert_allclose(
        run.history["grad_norm"][-1], np.sqrt(sum(float(jnp.sum(x**2)) for x in inner)), rtol=1e-6
    )
    # ∇f itself does not vanish: multipliers hold against it.
    assert float(jnp.linalg.norm(slope.H)) > 1e-3
    held = np.asarray(slope.H)[np.asarray(run.params.H) == 0]
    assert held.min() > -1e-9


def test_of_free_features_the_step_is_the_same_program():
    """No maximum or comparison with H enters: the operations are those of optax alone."""
    free = dataclasses.replace(P, features="free")
    method, hyper = Method("heavy_ball", None, None), (jnp.float64(0.1), jnp.float64(0.9))
    x = start(free)
    state = loop.start(free, x, method, hyper)
    text = str(jax.make_jaxpr(lambda s: loop.step(free, method, hyper, s))(state))
    behind = str(jax.make_jaxpr(lambda s: loop.step(P, method, hyper, s))(state))
    of_H = f"f64[{free.d},{free.N}]"
    assert f"{of_H} = max" in behind
    assert f"{of_H} = max" not in text


def test_what_has_no_projected_step_is_refused_with_a_way_out():
    for name, words in (
        ("lbfgs", "got optimizer='lbfgs' with features='nonnegative'; allowed: gd, heavy_ball"),
        ("nesterov", "'auto' for 'nesterov'.*'heavy_ball'"),
    ):
        with pytest.raises(ufm.Refused, match=words):
            ufm.descend(P, start(P), name, steps=5)
    with pytest.raises(ufm.Refused, match="in the column 'index'"):
        ufm.descend(P, start(P), "gd", steps=5, record="index")
    with pytest.raises(ufm.Refused, match="negative entries in H"):
        ufm.descend(P, random_params(P), "gd", steps=5)


def test_a_sweep_takes_them_as_an_axis():
    grid = ufm.Grid(K=3, d=4, n=2, lam=1e-2, bias=False, features=("free", "nonnegative"),
                    optimizer="heavy_ball")  # fmt: skip
    table = ufm.sweep(ufm.Plan(grid, steps=50))
    assert sorted(table["features"]) == ["free", "nonnegative"]
    for i in range(2):
        problem = Problem(3, 4, 2, lam=1e-2, bias=False, features=str(table["features"][i]))
        np.testing.assert_allclose(table["f_star"][i], ufm.theory.global_value(problem))
    with pytest.raises(ufm.Refused, match="got optimizer='lbfgs' with features"):
        ufm.Plan(ufm.Grid(features="nonnegative")).cells()


@pytest.mark.parametrize("name", ["gd", "heavy_ball"])
def test_tested_steps_stay_in_the_orthant_below_the_start_and_end_at_a_stationary_point(name):
    run = ufm.descend(P, start(P, 0), name, steps=3000, record_every=1, grad_tol=1e-9)
    assert run.status == "converged"
    assert float(jnp.min(run.params.H)) == 0  # on the border, and not beyond
    loss = run.history["loss"]
    assert np.all(loss <= loss[0])
    if name == "gd":
        assert np.all(np.diff(loss) <= 1e-14)
