"""What holds whether float64 is switched on in JAX or not: both ways here, and as a session.

`JAX_ENABLE_X64=0 pytest tests/test_precision.py` runs it as in a script that never switches
float64 on. A float64 that JAX silently takes for float32 warns, and warnings are errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import Problem, hessian, theory

PROBLEM = Problem(K=3, d=4, n=5, lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)


ON = pytest.param(True, id="x64", marks=pytest.mark.slow)  # every other test has it on
OFF = pytest.param(False, id="x32")


@pytest.fixture(params=[ON, OFF])
def wide(request):
    """Whether float64 is on in JAX; a session that has it off stays off."""
    on = request.param and jax.config.read("jax_enable_x64")
    with jax.enable_x64(on):
        yield on


def default_dtype(wide: bool):
    return jnp.float64 if wide else jnp.float32


@pytest.mark.slow
def test_params_and_descent_are_in_the_default_precision(wide):
    params = ufm.init_params(jax.random.key(0), PROBLEM)
    run = ufm.descend(PROBLEM, params, "lbfgs", steps=200, gap_tol=1e-4)
    assert run.status == "certified"
    assert {x.dtype for x in (*params, *run.params)} == {jnp.dtype(default_dtype(wide))}


def test_a_certificate_and_the_closed_forms_are_float64_either_way(wide):
    point = theory.global_minimizer(PROBLEM, jax.random.key(0))
    certificate = ufm.certify(PROBLEM, point)
    resolution = 1e-12 if wide else 1e-6  # rounding of the point, not of the proof
    assert abs(certificate.value - theory.global_value(PROBLEM)) < resolution
    assert certificate.gap < resolution
    assert isinstance(theory.global_value(PROBLEM), np.float64)
    assert np.asarray(certificate.value).dtype == np.float64


@pytest.mark.slow
@pytest.mark.usefixtures("wide")
def test_curvature_is_judged_in_float64_either_way():
    point = theory.global_minimizer(PROBLEM, jax.random.key(0))
    solution = ufm.solve(PROBLEM, point)
    assert solution.status == "converged"
    assert {np.asarray(x).dtype for x in solution.params} == {np.dtype(np.float64)}
    assert hessian.verdict(PROBLEM, solution.params).kind == "global minimiser"
    found = hessian.inertia(PROBLEM, solution.params)
    assert (found.negative, found.zero) == (0, theory.orbit_dimension(PROBLEM, 2))


@pytest.mark.usefixtures("wide")
def test_features_are_measured_at_the_precision_they_have():
    rng = np.random.default_rng(0)
    W, H, b = rng.normal(size=(3, 4)), rng.normal(size=(4, 15)), np.zeros(3)
    exact = ufm.metrics.collapse(W, H, b, PROBLEM.labels)
    rounded = ufm.metrics.collapse(*map(jnp.asarray, (W, H, b)), PROBLEM.labels)
    assert np.asarray(exact.nc1).dtype == np.float64
    np.testing.assert_allclose(np.array(rounded, float), np.array(exact, float), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.usefixtures("wide")
def test_a_sweep_runs_in_the_precision_of_its_plan(precision):
    grid = ufm.Grid(K=3, d=4, n=5, lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)
    table = ufm.sweep(ufm.Plan((grid,), steps=200, gap_tol=1e-4, precision=precision))
    assert table["status"].tolist() == ["certified"]
    assert table["value"].dtype == np.float64
