"""Laws of the descent loop: what it minimises, how it stops, and that it can be repeated."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import ufm
from ufm import cli
from ufm.descent import loop, minibatch, optimizers, segments
from ufm.descent import run as descent
from ufm.descent.records import HISTORY
from ufm.model.objective import norm

PROBLEM = ufm.Problem(K=4, d=5, n=6, lam_W=5e-3, lam_H=2e-3, lam_b=1e-2)
UNEQUAL = ufm.Problem(K=3, d=4, n=(2, 5, 3), lam_W=5e-3, lam_H=2e-3, lam_b=1e-2)


objective, gradient = jax.jit(ufm.objective), jax.jit(ufm.gradient)


def start(problem=PROBLEM, seed=0, scale=0.3, dtype=None):
    return ufm.init_params(jax.random.key(seed), problem, scale, dtype)


def python_loop(problem, params, steps, learning_rate, momentum=0.0, nesterov=False):
    """Momentum descent written out, one NumPy step at a time."""
    velocity = [np.zeros_like(x) for x in params]
    point = [np.asarray(x) for x in params]
    for _ in range(steps):
        grad = [np.asarray(g) for g in gradient(problem, ufm.Params(*map(jnp.asarray, point)))]
        velocity = [momentum * v + g for v, g in zip(velocity, grad, strict=True)]
        ahead = velocity
        if nesterov:
            ahead = [g + momentum * v for g, v in zip(grad, velocity, strict=True)]
        point = [x - learning_rate * a for x, a in zip(point, ahead, strict=True)]
    return ufm.Params(*point)


@pytest.mark.parametrize(
    ("name", "momentum", "nesterov"),
    [("gd", 0.0, False), ("heavy_ball", 0.8, False), ("nesterov", 0.8, True)],
)
def test_compiled_loop_equals_the_loop_written_out(name, momentum, nesterov):
    options = {} if name == "gd" else {"momentum": momentum}
    run = ufm.descend(PROBLEM, start(), name, steps=37, learning_rate=0.3, **options)
    slow = python_loop(PROBLEM, start(), 37, 0.3, momentum, nesterov)
    for fast, reference in zip(run.params, slow, strict=True):
        # 37 contracting steps of two orders of summation: a few hundred ulps.
        np.testing.assert_allclose(fast, reference, rtol=1e-12, atol=1e-13)


def test_any_optax_transformation_is_followed_step_by_step():
    optimizer = optax.chain(optax.clip_by_global_norm(0.05), optax.adamw(1e-2))
    run = ufm.descend(PROBLEM, start(), optimizer, steps=20)
    params = start()
    state = optimizer.init(params)
    for _ in range(20):
        updates, state = optimizer.update(gradient(PROBLEM, params), state, params)
        params = optax.apply_updates(params, updates)
    for fast, slow in zip(run.params, params, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-12)


def test_a_run_is_shown_in_one_line():
    run = ufm.descend(PROBLEM, start(), "gd", learning_rate=0.1, steps=20)
    loss, gap = (f"{run.history[name][-1]:.6g}" for name in ("loss", "gap"))
    records = len(run.history["step"])
    shapes = ", ".join(f"{name} {x.shape}" for name, x in zip("WHb", run.params, strict=True))
    told = f"Run(step_limit, steps=20, loss={loss}, gap={gap}, records={records}, {shapes})"
    assert repr(run) == told


def test_schedules_reach_the_named_optimisers():
    schedule = optax.piecewise_constant_schedule(0.4, {10: 0.1})
    run = ufm.descend(PROBLEM, start(), "gd", steps=25, learning_rate=schedule)
    middle = python_loop(PROBLEM, start(), 10, 0.4)
    slow = python_loop(PROBLEM, middle, 15, 0.04)
    np.testing.assert_allclose(run.params.W, slow.W, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("problem", [PROBLEM, UNEQUAL], ids=["balanced", "unequal"])
@pytest.mark.parametrize("bias", [True, False])
def test_mean_minibatch_gradient_over_all_batches_is_the_gradient(problem, bias):
    problem = ufm.Problem(problem.K, problem.d, problem.n, 5e-3, 2e-3, 1e-2, bias)
    params = start(problem)
    batches = list(itertools.combinations(range(problem.N), 2))
    columns = jnp.array(batches)
    grads = jax.vmap(lambda c: minibatch.gradient(problem, params, c))(columns)
    for mean, exact in zip(
        jax.tree.map(lambda g: g.mean(axis=0), grads), gradient(problem, params), strict=True
    ):
        # An average over a few hundred float64 terms of size one.
        np.testing.assert_allclose(mean, exact, atol=1e-14)


@pytest.mark.parametrize("batch_size", [5, 8, 24])
def test_an_epoch_visits_every_sample_at_most_once_and_epochs_differ(batch_size):
    key = jax.random.key(3)
    order = minibatch.epoch_order(PROBLEM, key, 0)
    per_epoch = PROBLEM.N // batch_size
    draw = jax.jit(lambda step, order: minibatch.draw(PROBLEM, key, step, order, batch_size))
    epochs = []
    for epoch in range(2):
        seen = []
        for position in range(per_epoch):
            step = epoch * per_epoch + position
            columns, order = draw(step, order)
            seen.extend(np.asarray(columns).tolist())
        assert len(set(seen)) == len(seen) == per_epoch * batch_size
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_records_come_densely_at_first_and_then_every_hundred_steps():
    run = ufm.descend(PROBLEM, start(), "gd", steps=330, learning_rate=0.5)
    found = run.history["step"].tolist()
    assert found[-5:] == [97, 100, 200, 300, 330]
    gaps = np.diff(found[:-4])
    assert np.all(gaps == np.maximum(1, np.array(found[:-5]) // 4))
    # The steps are those of any other records.
    other = ufm.descend(PROBLEM, start(), "gd", steps=330, learning_rate=0.5, record_every=100)
    assert other.history["step"].tolist() == [0, 100, 200, 300, 330]
    np.testing.assert_array_equal(run.params.W, other.params.W)
    cut = ufm.descend(PROBLEM, start(), "gd", steps=12, learning_rate=0.5)
    cut = ufm.descend(PROBLEM, start(), "gd", steps=330, learning_rate=0.5, resume=cut)
    np.testing.assert_array_equal(cut.history["step"], run.history["step"])


def test_full_batch_sgd_is_heavy_ball():
    key = jax.random.key(0)
    sgd = ufm.descend(PROBLEM, start(), "sgd", steps=30, batch_size=PROBLEM.N, key=key)
    ball = ufm.descend(PROBLEM, start(), "heavy_ball", steps=30, learning_rate=0.05)
    np.testing.assert_allclose(sgd.params.H, ball.params.H, rtol=1e-11, atol=1e-13)


def test_minibatches_are_decided_by_the_key():
    runs = [
        ufm.descend(PROBLEM, start(), "sgd", steps=30, batch_size=6, key=jax.random.key(seed))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(runs[0].params.H, runs[1].params.H)
    assert not np.array_equal(runs[0].params.H, runs[2].params.H)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gd", {"learning_rate": 1.5, "steps": 40_000}),
        ("heavy_ball", {"learning_rate": 0.5, "steps": 20_000}),
        ("nesterov", {"learning_rate": 0.5, "steps": 20_000}),
        ("adam", {"learning_rate": optax.cosine_decay_schedule(0.1, 4000), "steps": 4000}),
        ("lbfgs", {"steps": 500}),
    ],
)
def test_every_optimiser_reaches_the_certified_global_minimum(name, options):
    run = ufm.descend(PROBLEM, start(), name, gap_tol=1e-8, **options)
    assert run.status == "certified"
    # The certificate computed afresh, and the closed form, which know nothing of the run.
    assert ufm.certify(PROBLEM, run.params).gap <= 1e-8
    assert abs(objective(PROBLEM, run.params) - ufm.theory.global_value(PROBLEM)) <= 1e-8


@pytest.mark.parametrize("name", ["gd", "heavy_ball", "nesterov"])
@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("problem", [PROBLEM, UNEQUAL], ids=["balanced", "unequal"])
def test_the_auto_step_never_lets_the_objective_pass_its_start(name, scale, problem):
    run = ufm.descend(problem, start(problem, scale=scale), name, steps=300, record_every=1)
    loss = run.history["loss"]
    assert run.status == "step_limit"
    assert np.all(loss <= loss[0] * (1 + 1e-12))
    if name == "gd":
        assert np.all(np.diff(loss) <= 1e-12 * loss[0])


@pytest.mark.parametrize("problem", [PROBLEM, UNEQUAL], ids=["balanced", "unequal"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_curvature_bound_holds_at_points_of_its_sublevel_set(problem, scale):
    params = start(problem, scale=scale)
    flat, unflatten = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda x: ufm.objective(problem, unflatten(x))))(flat)
    bound = optimizers.curvature_bound(problem, objective(problem, params))
    assert float(jnp.linalg.norm(hessian, 2)) <= float(bound)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_nesterov_energy_is_a_semidefinite_form_up_to_its_limit(momentum):
    # P, Q, C of the quadratic form in the head of ufm.optimizers, at eta L = 2(1 - beta).
    ell = 2 * (1 - momentum)
    alpha = 1 + momentum - momentum**2 - ell * (1 + 2 * momentum) / 2
    P = -(1 + momentum) + ell * (1 + momentum) ** 2 / 2 + alpha / 2
    Q = -(momentum**2) + ell * momentum**2 / 2 - alpha / 2
    C = 2 * momentum + momentum**2 - ell * momentum * (1 + momentum)
    assert alpha >= momentum**2 - 1e-12
    assert pytest.approx(Q, abs=1e-12) == P
    assert np.linalg.eigvalsh([[P, C / 2], [C / 2, Q]])[-1] <= 1e-12


def test_history_rows_are_the_measurements_of_their_points():
    run = ufm.descend(PROBLEM, start(), "gd", steps=25, record_every=10, learning_rate=0.5)
    assert run.history["step"].tolist() == [0, 10, 20, 25]
    for row, steps in ((1, 10), (3, 25)):
        params = python_loop(PROBLEM, start(), steps, 0.5)
        params = ufm.Params(*map(jnp.asarray, params))
        collapse = ufm.metrics.collapse(*map(np.asarray, params), PROBLEM.labels)
        expected = {
            "loss": objective(PROBLEM, params),
            "grad_norm": norm(gradient(PROBLEM, params)),
            "gap": ufm.certify(PROBLEM, params).gap,
            "norm_W": jnp.linalg.norm(params.W),
            "norm_H": jnp.linalg.norm(params.H),
            "nc1": collapse.nc1,
            "nc2": collapse.nc2,
            "nc3": collapse.nc3,
            "nc4": collapse.nc4,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(run.history[name][row], value, rtol=1e-9, err_msg=name)


def test_recording_more_often_does_not_change_the_run():
    coarse = ufm.descend(PROBLEM, start(), "heavy_ball", steps=60, record_every=60)
    fine = ufm.descend(PROBLEM, start(), "heavy_ball", steps=60, record_every=7)
    np.testing.assert_array_equal(coarse.params.H, fine.params.H)


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [("adam", {}), ("sgd", {"batch_size": 5, "key": jax.random.key(1)}), ("lbfgs", {})],
)
def test_a_resumed_run_ends_with_the_same_bits(name, options, segmented):
    options |= {"record_every": 10}
    if segmented:
        options |= {"on_segment": lambda _: None}
    whole = ufm.descend(PROBLEM, start(), name, steps=60, **options)
    half = ufm.descend(PROBLEM, start(), name, steps=30, **options)
    again = ufm.descend(PROBLEM, start(), name, steps=60, resume=descent.pack(half), **options)
    direct = ufm.descend(PROBLEM, start(), name, steps=60, resume=half, **options)
    for run in (again, direct):
        for x, y in zip(run.params, whole.params, strict=True):
            np.testing.assert_array_equal(x, y)
        for quantity in HISTORY:
            np.testing.assert_array_equal(run.history[quantity], whole.history[quantity])


def test_a_resumed_run_does_not_depend_on_the_params_of_the_call():
    options = {"learning_rate": "safe", "record_every": 10}
    whole = ufm.descend(PROBLEM, start(), "gd", steps=60, **options)
    half = ufm.descend(PROBLEM, start(), "gd", steps=30, **options)
    other = start(seed=1, scale=1.0)
    for resume in (half, descent.pack(half)):
        again = ufm.descend(PROBLEM, other, "gd", steps=60, resume=resume, **options)
        for x, y in zip(again.params, whole.params, strict=True):
            np.testing.assert_array_equal(x, y)


def test_arrays_of_another_optimiser_are_refused():
    run = ufm.descend(PROBLEM, start(), "gd", steps=5)
    with pytest.raises(ValueError, match="another run"):
        ufm.descend(PROBLEM, start(), "adam", steps=9, resume=descent.pack(run))
    with pytest.raises(ValueError, match="another run"):
        ufm.descend(PROBLEM, start(), "gd", steps=9, resume=descent.pack(run) | {"state/0": [1]})


def test_a_diverging_run_returns_its_last_sound_point():
    rate = 60.0
    run = ufm.descend(PROBLEM, start(), "gd", steps=1000, learning_rate=rate, record_every=100)
    assert run.status == "diverged"
    slow = python_loop(PROBLEM, start(), run.steps, rate)
    first = float(objective(PROBLEM, start()))
    limit = loop.EXPLOSION * (1 + first)
    here = objective(PROBLEM, ufm.Params(*map(jnp.asarray, slow)))
    beyond = python_loop(PROBLEM, start(), run.steps + 1, rate)
    beyond = objective(PROBLEM, ufm.Params(*map(jnp.asarray, beyond)))
    assert np.all(np.isfinite(run.params.H))
    assert here <= limit
    assert not beyond <= limit
    # The map is chaotic here: compare only that both routes are on the same scale.
    assert np.isfinite(objective(PROBLEM, run.params))


def test_a_diverged_run_ends_where_a_loop_that_keeps_its_last_sound_point_does():
    """The loop of `descend` keeps none and takes its steps again: the same bits."""
    rate, params = 20.0, start()
    run = ufm.descend(PROBLEM, params, "gd", steps=1000, learning_rate=rate, record_every=1)
    assert run.status == "diverged"
    assert len(run.history["step"]) > 2
    method, hyper = descent.prepare(PROBLEM, 1.0, "gd", rate)
    state = loop.start(PROBLEM, params, method, hyper)
    limits = loop.Limits(jnp.int32(1000), jnp.int32(1), -jnp.inf, -jnp.inf)
    kept = jax.jit(loop.trajectory, static_argnames=("method", "records"))
    last, history, _ = kept(PROBLEM, state, method, hyper, limits, 1001)
    assert run.steps == int(last.step)
    assert np.array_equal(run.history["step"], history["step"][history["step"] >= 0])
    np.testing.assert_array_equal(run.params.H, last.params.H)


def test_tolerances_end_a_run_with_their_own_status():
    by_gradient = ufm.descend(PROBLEM, start(), "lbfgs", steps=500, grad_tol=1e-6, record_every=5)
    assert by_gradient.status == "converged"
    assert norm(gradient(PROBLEM, by_gradient.params)) <= 1e-6
    by_steps = ufm.descend(PROBLEM, start(), "gd", steps=3, grad_tol=1e-9)
    assert (by_steps.status, by_steps.steps) == ("step_limit", 3)


def test_float32_stays_float32_and_its_gap_is_confirmed_in_float64():
    params = start(dtype=jnp.float32)
    run = ufm.descend(PROBLEM, params, "lbfgs", steps=500, gap_tol=1e-5, record_every=10)
    assert run.status == "certified"
    assert {x.dtype for x in run.params} == {jnp.dtype("float32")}
    assert ufm.certify(PROBLEM, run.params).gap <= 1e-5


def test_one_compilation_serves_all_decays_step_sizes_and_lengths():
    traces = 0

    def counted(problem, state, method, hyper, limits, records, chunks):
        nonlocal traces
        traces += 1
        return loop.trajectory(problem, state, method, hyper, limits, records, chunks)

    compiled = jax.jit(counted, static_argnames=("method", "records"))
    for lam, rate, steps in ((1e-3, 0.1, 40), (2e-3, 0.2, 50), (5e-3, 0.3, 60)):
        problem = ufm.Problem(4, 5, 6, lam, lam, lam)
        method, hyper = descent.prepare(problem, 1.0, "gd", rate)
        state = loop.start(problem, start(), method, hyper)
        limits = loop.Limits(jnp.int32(steps), jnp.int32(10), -1.0, -1.0)
        state = compiled(problem, state, method, hyper, limits, 8, jnp.int32(steps // 10))[0]
        assert int(state.step) == steps
    assert traces == 1


@pytest.mark.parametrize("name", ["gd", "lbfgs"])
def test_a_run_of_any_length_compiles_nothing_after_its_first_segment(name, monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_RECORDS", 8)
    own = {"learning_rate": "safe"} if name == "gd" else {}
    with compilations() as first:
        short = ufm.descend(PROBLEM, start(), name, steps=6, record_every=2, **own)
    assert first
    with compilations() as later:
        # Of another length, in two segments and more, with other intervals, resumed, and watched.
        long = ufm.descend(PROBLEM, start(), name, steps=81, record_every=3, **own)
        ufm.descend(PROBLEM, start(), name, steps=200, record_every=3, resume=long, **own)
        ufm.descend(
            PROBLEM, start(), name, steps=9, record_every=1, on_segment=lambda _: None, **own
        )
        if name == "gd":
            ufm.descend(PROBLEM, start(), name, steps=9, record_every=1, learning_rate=0.1)
    assert not later
    assert short.steps == 6
    assert long.history["step"].tolist() == list(range(0, 82, 3))


@pytest.mark.parametrize("name", ["gd", "lbfgs"])
def test_segments_do_not_change_the_bits_of_a_run(name, monkeypatch):
    whole = ufm.descend(PROBLEM, start(), name, steps=50, record_every=2)
    monkeypatch.setattr(segments, "SEGMENT_RECORDS", 8)
    cut = ufm.descend(PROBLEM, start(), name, steps=50, record_every=2)
    for x, y in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_that_has_taken_more_steps_than_asked_ends_at_once():
    run = ufm.descend(PROBLEM, start(), "gd", steps=50, record_every=2)
    again = ufm.descend(PROBLEM, start(), "gd", steps=10, record_every=2, resume=run)
    assert (again.status, again.steps) == ("step_limit", 50)
    np.testing.assert_array_equal(again.history["step"], run.history["step"])


def begun(name, lam):
    """(problem, state, method, hyper) at a decay, which may be mapped over."""
    problem = ufm.Problem(4, 5, 6, lam, lam, lam)
    method, hyper = descent.prepare(problem, 1.0, name, None if name == "lbfgs" else 0.2)
    return problem, loop.start(problem, start(problem), method, hyper), method, hyper


@pytest.mark.parametrize("name", ["heavy_ball", pytest.param("lbfgs", marks=pytest.mark.long)])
def test_a_mapped_trajectory_equals_its_single_runs(name):
    lams = jnp.array([2e-3, 5e-3, 2e-2])
    limits = loop.Limits(30, 10, -1.0, -1.0)

    def single(lam):
        return loop.trajectory(*begun(name, lam), limits, 4)

    state, history, status = jax.jit(jax.vmap(single))(lams)
    assert status.tolist() == [loop.Status.step_limit] * 3
    for i, lam in enumerate(lams):
        alone = jax.jit(single)(lam)
        np.testing.assert_allclose(state.params.W[i], alone[0].params.W, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(history["gap"][i], alone[1]["gap"], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ["heavy_ball", pytest.param("lbfgs", marks=pytest.mark.long)])
def test_runs_along_a_leading_axis_are_the_mapped_trajectory(name):
    lams = jnp.array([2e-3, 5e-3, 2e-2])
    limits = loop.Limits(40, 10, -1.0, -1.0)
    *_, method, _ = begun(name, 1e-2)

    def along(lams):
        def numbers(lam):
            problem, state, _, hyper = begun(name, lam)
            return problem, state, hyper

        problem, state, hyper = jax.vmap(numbers)(lams)
        return loop.trajectory(problem, state, method, hyper, limits, 4, at=jnp.int32(0))

    def mapped(lams):
        return jax.vmap(lambda lam: loop.trajectory(*begun(name, lam), limits, 4))(lams)

    found, expected = jax.jit(along)(lams), jax.jit(mapped)(lams)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


def test_a_diverged_member_of_a_mapped_run_leaves_the_others_alone():
    def single(rate):
        method, hyper = descent.prepare(PROBLEM, 1.0, "gd", rate)
        state = loop.start(PROBLEM, start(), method, hyper)
        limits = loop.Limits(200, 50, -1.0, -1.0)
        return loop.trajectory(PROBLEM, state, method, hyper, limits, 5)

    state, _, status = jax.jit(jax.vmap(single))(jnp.array([0.2, 60.0]))
    assert status.tolist() == [loop.Status.step_limit, loop.Status.diverged]
    assert np.all(np.isfinite(state.params.H))
    alone = ufm.descend(PROBLEM, start(), "gd", steps=200, learning_rate=0.2)
    np.testing.assert_allclose(state.params.H[0], alone.params.H, rtol=1e-10, atol=1e-12)


BAD = {
    "unknown optimiser": ({"optimizer": "newton"}, "got optimizer='newton'"),
    "no steps": ({"steps": 0}, "got steps=0"),
    "a truth value for steps": ({"steps": True}, "got steps=True"),
    "no stride": ({"record_every": 0}, "got record_every=0"),
    "negative rate": ({"learning_rate": -0.1}, "got learning_rate=-0.1"),
    "NaN rate": ({"learning_rate": float("nan")}, "got learning_rate=nan"),
    "word for a rate": ({"learning_rate": "fast"}, "got learning_rate='fast'"),
    "auto for adam": ({"optimizer": "adam", "learning_rate": "auto"}, "'auto'"),
    "rate for lbfgs": ({"optimizer": "lbfgs", "learning_rate": 0.1}, "line search"),
    "momentum for gd": ({"momentum": 0.9}, "got momentum=0.9 for 'gd'"),
    "momentum of one": ({"optimizer": "heavy_ball", "momentum": 1.0}, "got momentum=1.0"),
    "batch of a full method": ({"batch_size": 4}, "full-batch"),
    "sgd without batch": ({"optimizer": "sgd"}, "without batch_size"),
    "empty batch": ({"optimizer": "sgd", "batch_size": 0}, "got batch_size=0"),
    "batch beyond N": ({"optimizer": "sgd", "batch_size": 25}, "1 to N=24"),
    "batch without key": ({"optimizer": "sgd", "batch_size": 4}, "without key"),
    "rate beside optax": (
        {"optimizer": optax.sgd(0.1), "learning_rate": 0.1},
        "beside an optax transformation",
    ),
    "negative tolerance": ({"gap_tol": -1e-3}, "got gap_tol=-0.001"),
    "tolerance below eps": ({"gap_tol": 1e-17}, "resolves"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_with_what_was_got(case):
    options, message = BAD[case]
    options = {"optimizer": "gd", "steps": 10} | options
    with pytest.raises((ValueError, TypeError), match=message):
        ufm.descend(PROBLEM, start(), options.pop("optimizer"), **options)


def test_a_start_with_nan_is_refused():
    params = start()
    params = params._replace(H=params.H.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="got 1 non-finite entries in H"):
        ufm.descend(PROBLEM, params, "gd", steps=3)


def test_objective_seen_by_line_searches_has_the_closed_form_derivative():
    value_fn = loop.closed_form(PROBLEM)
    value, grad = jax.jit(jax.value_and_grad(value_fn))(start())
    exact = jax.jit(jax.grad(partial(ufm.objective, PROBLEM)))(start())
    # One sum of 24 losses in two compiled programs.
    np.testing.assert_allclose(value, objective(PROBLEM, start()), rtol=1e-14)
    assert norm(jax.tree.map(jnp.subtract, grad, exact)) <= 1e-14


def test_every_status_has_its_sentence_and_the_command_says_it(capsys):
    assert len({status.sentence for status in loop.Status}) == len(loop.Status)
    sizes = ["--K", "3", "--d", "3", "--n", "2", "--steps", "2"]
    assert cli.main(["descend", *sizes]) == 0
    assert f"step_limit: {loop.Status.step_limit.sentence}"[:40] in capsys.readouterr().out
    assert cli.main(["descend", *sizes, "--json"]) == 0
    assert '"status": "step_limit"' in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gd", "nesterov", "adam", "lbfgs", "sgd"])
def test_a_run_uses_up_nothing_that_its_caller_has(name, monkeypatch):
    """Only the state that it made itself; also of large problems, and where it diverges."""
    params, key = start(UNEQUAL), jax.random.key(1)
    batches = {"batch_size": 5, "key": key} if name == "sgd" else {}
    run = partial(ufm.descend, UNEQUAL, params, name, record_every=4, **batches)
    first = run(steps=8)
    monkeypatch.setattr(segments, "LARGE", 0)
    whole = run(steps=16)
    for _ in range(2):  # a run can be gone on from twice
        again = run(steps=16, resume=first)
        jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    if name in ("gd", "nesterov", "sgd"):
        far = run(steps=16, learning_rate=1e9)
        assert far.status == "diverged"
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(far.params))
    assert all(np.all(np.isfinite(x)) for x in (*params, jax.random.key_data(key)))
