"""Programs that are quick to compile compute the same, and no user's flag is overruled."""

import functools
import os
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm.model.objective import gradient, objective
from ufm.runtime import programs


@pytest.fixture
def flags(monkeypatch):
    """Sets XLA_FLAGS and says what becomes of it; JAX has read its own long ago."""

    def after(given: str | None, level: int | None = None) -> str | None:
        for name in ("XLA_FLAGS", programs._OWN):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        if given is not None:
            monkeypatch.setenv("XLA_FLAGS", given)
        programs.compile_quickly(level)
        return os.environ.get("XLA_FLAGS")

    return after


def test_flags_of_the_user_stay(flags):
    own = "--xla_force_host_platform_device_count=4"
    assert flags(own).split() == [own, "--xla_cpu_use_fusion_emitters=false"]
    chosen = "--xla_cpu_use_fusion_emitters=true"
    assert flags(chosen) == chosen
    assert flags(None) == "--xla_cpu_use_fusion_emitters=false"


@pytest.mark.parametrize("given", [None, "--xla_backend_optimization_level=0"])
def test_a_level_of_the_process_is_that_of_every_program(flags, given):
    both = {"--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"}
    brief = {
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_disable_hlo_passes=while-loop-invariant-code-motion,simplify-while-loops",
    }
    # A user who chooses the level gets nothing else with it.
    assert set(flags(given, level=0).split()) == (both if given else both | brief)
    assert programs.options() == {"xla_cpu_use_fusion_emitters": False}


def test_an_xla_that_was_not_tried_gets_no_flag(flags, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.10.99")
    assert flags(None) is None
    assert programs.options() == {}


def test_programs_by_either_generation_agree_to_rounding():
    problem = ufm.Problem(K=5, d=7, n=[3, 1, 4, 1, 5], lam_W=1e-2, lam_H=3e-3, lam_b=1e-3)
    params = ufm.init_params(jax.random.key(0), problem, dtype=jnp.float64)

    def both(params):
        return objective(problem, params), gradient(problem, params)

    ours, newer = (
        jax.jit(both, compiler_options=options)(params)
        for options in (programs.options(), {"xla_cpu_use_fusion_emitters": True})
    )
    # A few roundings of terms of size 1.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-15), ours, newer)


def test_a_program_that_runs_once_computes_the_same_inside_other_transformations():
    def f(x):
        return jnp.sum(jnp.exp(x) * x)

    x = jnp.linspace(0.0, 1.0, 7)
    program = programs.once(f)
    for change in (lambda g: g, jax.jit, jax.grad, lambda g: jax.jit(jax.grad(g))):
        np.testing.assert_allclose(change(program)(x), change(f)(x), rtol=1e-15)
    mapped = jax.vmap(program)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped, [f(x), f(2 * x)], rtol=1e-15)
    # A constant inside a jit is one of its values.
    np.testing.assert_allclose(jax.jit(lambda: program(np.asarray(x)))(), f(x), rtol=1e-15)


def test_random_starts_have_the_digits_of_a_program_that_is_optimised():
    problem = ufm.Problem(7, 13, 11, 1e-3, 1e-3, 1e-3)
    for dtype in (jnp.float32, jnp.float64):
        drawn = ufm.init_params(3, problem, 0.7, dtype)
        draw = functools.partial(ufm.init_params, 3, problem, 0.7, dtype)
        full = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
        optimised = jax.jit(draw, compiler_options=full)()
        jax.tree.map(np.testing.assert_array_equal, drawn, optimised)
