"""Steps and records as two programs: the same run as in one, at every length and every end."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from compiling import compilations

import ufm
from ufm.descent import segments
from ufm.runtime import programs

PROBLEM = ufm.Problem(4, 5, 6, 5e-3, 2e-3, 1e-2)
OWN = {"heavy_ball": {"learning_rate": 0.3}, "gd": {"learning_rate": "safe"}, "lbfgs": {},
       "sgd": {"batch_size": 6, "learning_rate": 0.1, "key": jax.random.key(3)}}  # fmt: skip
EACH = pytest.mark.parametrize("name", OWN)


@pytest.fixture
def apart(monkeypatch):
    """Small problems as large ones."""
    monkeypatch.setattr(segments, "SMALL", 0)
    monkeypatch.setattr(segments, "DENSE", 0)


def descended(name, problem=PROBLEM, **given):
    begun = laws.random_params(problem, 0, 0.3)
    return ufm.descend(problem, begun, name, **OWN[name] | given)


def same_bits(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not (isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)):
            np.testing.assert_array_equal(x, y)


@EACH
def test_two_programs_take_the_run_of_one(name, monkeypatch):
    whole = descended(name, steps=60)
    monkeypatch.setattr(segments, "SMALL", 0)
    two = descended(name, steps=60)
    assert (two.status, two.steps) == (whole.status, whole.steps)
    assert list(two.history) == list(whole.history)
    for quantity, x in two.history.items():
        np.testing.assert_allclose(x, whole.history[quantity], rtol=1e-8, atol=1e-10)


@EACH
@pytest.mark.usefixtures("apart")
def test_segments_and_a_resumed_run_have_the_bits_of_one_segment(name, monkeypatch):
    whole = descended(name, steps=50, record_every=2)
    begun = descended(name, steps=20, record_every=2)
    resumed = descended(name, steps=50, record_every=2, resume=begun)
    same_bits(resumed, whole)
    monkeypatch.setattr(segments, "SEGMENT_RECORDS", 8)
    same_bits(descended(name, steps=50, record_every=2), whole)


@pytest.mark.usefixtures("apart")
def test_nothing_is_compiled_after_the_first_segment(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_RECORDS", 8)
    other = ufm.Problem(4, 5, 7, 5e-3, 2e-3, 1e-2)  # no other test compiles it
    with compilations() as first:
        short = descended("heavy_ball", other, steps=6, record_every=2)
    assert first
    with compilations() as later:
        long = descended("heavy_ball", other, steps=81, record_every=3)
        descended("heavy_ball", other, steps=200, record_every=3, resume=long)
        descended("heavy_ball", other, steps=9, record_every=1, on_segment=lambda _: None)
        descended("heavy_ball", other, steps=9, record_every=1, learning_rate=0.1)
    assert not later
    assert short.steps == 6
    assert long.history["step"].tolist() == list(range(0, 82, 3))


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("record_every", [1, 3, 100])
def test_a_run_ends_at_the_record_that_meets_the_tolerance(record_every):
    """Whenever the host looks: rows after the end, and steps, are not taken."""
    run = descended("lbfgs", steps=5000, gap_tol=1e-9, record_every=record_every)
    assert run.status == "certified"
    gaps = run.history["gap"]
    assert gaps[-1] <= 1e-9
    assert (gaps[:-1] > 0.9e-9).all()
    assert run.steps == run.history["step"][-1] == record_every * (len(gaps) - 1)
    assert not np.isnan(np.concatenate(list(run.history.values()))).any()


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("record_every", [2, 50])
def test_a_diverged_run_returns_its_last_finite_point(record_every):
    run = descended("heavy_ball", steps=400, learning_rate=1e3, record_every=record_every)
    assert run.status == "diverged"
    assert all(np.isfinite(x).all() for x in run.params)
    assert run.history["step"][-1] <= run.steps < 400
    plain = descended("heavy_ball", steps=run.steps + 1, learning_rate=1e3)
    assert plain.status == "diverged" or plain.steps > run.steps


@pytest.mark.usefixtures("apart")
def test_the_start_and_the_state_of_the_caller_stay_as_they_were():
    """Buffers that the loop reuses are its own."""
    begun = laws.random_params(PROBLEM, 0, 0.3)
    kept = jax.tree.map(np.array, begun)
    run = ufm.descend(PROBLEM, begun, "heavy_ball", steps=20, learning_rate=0.3)
    state = jax.tree.map(np.array, run.state)
    ufm.descend(PROBLEM, begun, "heavy_ball", steps=40, learning_rate=0.3, resume=run)
    same_bits(begun, kept)
    same_bits(run.state, state)


@pytest.mark.usefixtures("apart")
def test_compiling_apart_gives_the_same_run(monkeypatch):
    plain = descended("heavy_ball", steps=20)
    monkeypatch.setattr(segments, "LARGE", 0)
    compiled = []
    real = programs.compile_apart
    monkeypatch.setattr(
        programs, "compile_apart", lambda *args: compiled.append(args[0]) or real(*args)
    )
    same_bits(descended("heavy_ball", steps=20), plain)
    assert len(compiled) == 2


@pytest.mark.usefixtures("apart")
def test_float32_and_further_columns_pass_through(monkeypatch):
    record = {"longest": lambda _, params: jnp.max(jnp.abs(params.W))}
    begun = laws.random_params(PROBLEM, 0, 0.3)
    begun = jax.tree.map(lambda x: x.astype(jnp.float32), begun)
    two = ufm.descend(PROBLEM, begun, "gd", steps=30, record=record)
    assert {x.dtype for x in two.params} == {jnp.dtype("float32")}
    monkeypatch.setattr(segments, "SMALL", 10**6)
    one = ufm.descend(PROBLEM, begun, "gd", steps=30, record=record)
    np.testing.assert_allclose(two.history["longest"], one.history["longest"], rtol=1e-5)
