"""Steps that are tested: the method written out, its energy, its speed, rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import descent
from ufm.model.objective import gradient, objective

METHODS = ("gd", "heavy_ball", "nesterov")
EACH = pytest.mark.parametrize("name", METHODS)
PROBLEM = ufm.Problem(3, 4, (3, 2, 2), lam=5e-3)
BETA = 0.9


def start(problem=PROBLEM, scale=0.3, seed=0, dtype=jnp.float64):
    return ufm.init_params(seed, problem, scale, dtype)


def flat(params):
    return np.concatenate([np.ravel(x) for x in params])


def written_out(name, params, steps):
    """(points, steps η, energies) by the formulas of the module's head, trial by trial."""
    beta = 0.0 if name == "gd" else BETA
    c = (1 + beta) / 4 if name == "nesterov" else beta / 2
    _, unflatten = jax.flatten_util.ravel_pytree(params)
    f = lambda x: float(objective(PROBLEM, unflatten(jnp.asarray(x))))  # noqa: E731
    x, u, eta, growth = flat(params), np.zeros(PROBLEM.size), 1.0, 2.0
    points, etas, energies = [], [], []
    for _ in range(steps):
        g = flat(gradient(PROBLEM, unflatten(jnp.asarray(x))))
        trial, count = eta * growth, 1
        while True:
            v = beta * min(1, np.sqrt(trial / eta)) * u + trial * g
            move = trial * g + beta * v if name == "nesterov" else v
            energy = f(x) + (c / max(trial, eta) * u @ u if name != "gd" else 0)
            if f(x - move) + v @ v / (2 * trial) <= energy:
                break
            trial, count = trial / 2, count + 1
        growth = growth if count == 1 else 1.1
        x, u, eta = x - move, v, trial
        points.append(x)
        etas.append(eta)
        energies.append(f(x) + c / eta * u @ u)
    return points, etas, energies


@EACH
def test_the_compiled_steps_are_the_formulas_written_out(name):
    points, etas, energies = written_out(name, start(), 25)
    run = ufm.descend(PROBLEM, start(), name, steps=25, record_every=1)
    np.testing.assert_allclose(flat(run.params), points[-1], rtol=1e-9, atol=1e-11)
    assert float(run.state.opt_state.eta) == pytest.approx(etas[-1], rel=1e-12)
    np.testing.assert_allclose(run.history["loss"][1:], [
        float(objective(PROBLEM, jax.flatten_util.ravel_pytree(start())[1](jnp.asarray(x))))
        for x in points
    ], rtol=1e-10)  # fmt: skip
    assert len(set(etas)) > 5  # it grew, and was halved
    if name != "gd":
        assert np.all(np.diff(energies) <= 1e-15)


@EACH
def test_the_energy_falls_and_the_objective_stays_below_its_start_at_any_scale(name):
    for scale, dtype in ((1e-9, jnp.float64), (30.0, jnp.float64), (1.0, jnp.float32)):
        params = start(scale=scale, dtype=dtype)
        run = ufm.descend(PROBLEM, params, name, steps=200, record_every=1)
        loss = run.history["loss"]
        slack = 64 * float(jnp.finfo(dtype).eps) * loss[0]
        assert np.all(loss <= loss[0] + slack)
        if name == "gd":
            assert np.all(np.diff(loss) <= slack)


@EACH
def test_it_is_within_five_times_the_best_constant_step(name):
    problem = ufm.Problem(4, 8, 20, lam=5e-3)  # a size of experiment c01
    params = start(problem, 0.1)

    def steps(**rate):
        run = ufm.descend(problem, params, name, steps=2000, record_every=5, grad_tol=1e-8, **rate)
        return run.steps if run.status == "converged" else np.inf

    best = min(steps(learning_rate=rate) for rate in np.geomspace(0.3, 100, 12))
    assert np.isfinite(best)
    assert steps() <= 5 * best


@EACH
def test_it_converges_to_rounding_where_the_objective_no_longer_tells_points_apart(name):
    # ‖∇f‖² η is then some 1e-24, and f rounds at 1e-17.
    run = ufm.descend(PROBLEM, start(), name, steps=2000, record_every=5, grad_tol=5e-13)
    assert run.status == "converged"
    assert bool(run.state.opt_state.blind)
    assert ufm.certify(PROBLEM, run.params).gap <= 1e-12  # of the order of ‖∇f‖


def test_a_start_beside_the_saddle_at_the_origin_is_left():
    # f is flat to rounding there for many steps: the step must not shrink.
    problem = ufm.Problem(3, 4, 2, lam=5e-3)
    run = ufm.descend(problem, start(problem, 1e-9), "gd", steps=200, gap_tol=1e-8)
    assert run.status == "certified"


@EACH
def test_a_run_that_was_cut_goes_on_to_the_same_bits(name):
    whole = ufm.descend(PROBLEM, start(), name, steps=40, record_every=10)
    half = ufm.descend(PROBLEM, start(), name, steps=20, record_every=10)
    for resume in (half, descent.pack(half)):
        again = ufm.descend(PROBLEM, start(), name, steps=40, record_every=10, resume=resume)
        np.testing.assert_array_equal(flat(again.params), flat(whole.params))
        np.testing.assert_array_equal(again.history["loss"], whole.history["loss"])


def test_without_decay_and_with_a_loss_of_ones_own_no_bound_is_needed():
    loss = ufm.losses.FromValue(lambda z, t: jnp.sum((z - jnp.eye(3)[t]) ** 4))
    for problem in (ufm.Problem(3, 4, 2, lam=0.0), ufm.Problem(3, 4, 2, lam=1e-3, loss=loss)):
        run = ufm.descend(problem, start(problem), "gd", steps=200)
        assert run.status == "step_limit"
        assert run.history["loss"][-1] < 0.5 * run.history["loss"][0]
    zero = ufm.Problem(3, 4, 2, lam=0.0)
    with pytest.raises(ufm.Refused, match="which is 0 in float64: 'safe'"):
        ufm.descend(zero, start(zero), "gd", steps=2, learning_rate="safe")


def test_rows_of_a_sweep_name_both_steps():
    grid = ufm.Grid(
        K=3, d=4, n=2, lam=1e-2, optimizer="gd", learning_rate=["auto", "safe", 0.5], seed=[0, 1]
    )
    table = ufm.sweep(ufm.Plan((grid,), steps=30))
    assert table["auto"].tolist() == [True] * 4 + [False] * 2
    assert np.isnan(table["learning_rate"]).tolist() == [True] * 2 + [False] * 4
    short = ufm.sweeps.grouped(table, "learning_rate")
    assert short["learning_rate"].tolist() == ["auto", "safe", "0.5"]
    problem = ufm.Problem(3, 4, 2, lam=1e-2)
    params = ufm.init_params(jax.random.split(jax.random.key(1))[0], problem)
    for i, rate in ((1, "auto"), (3, "safe")):
        run = ufm.descend(problem, params, "gd", steps=30, learning_rate=rate)
        assert table["value"][i] == pytest.approx(run.history["loss"][-1], rel=1e-9)
