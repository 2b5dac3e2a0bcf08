"""The closed form of the global minimum against measurements, exact arithmetic and its limits."""

import dataclasses
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from ufm import theory
from ufm.model.problem import Problem

EPS = laws.eps(jnp.float64)
EACH = pytest.mark.parametrize("problem", laws.CLOSED_FORM.values(), ids=laws.CLOSED_FORM.keys())


def make(K, n, lam_W, lam_H, lam_b=1e-3, d=None):
    return Problem(K=K, d=d or K, n=n, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)


def exact(problem):
    """(c, t, f*) below the threshold; enough digits that 1 - (K-1)c is seen at c = 1e-200."""
    with localcontext() as context:
        context.prec = 400
        K, n = Decimal(problem.K), Decimal(problem.n)
        c = (n * Decimal(float(problem.lam_W)) * Decimal(float(problem.lam_H))).sqrt()
        t = (1 / c - (K - 1)).ln()
        return c, t, -(1 - (K - 1) * c).ln() + (K - 1) * c * t


def at_fraction_of_the_threshold(K, n, fraction):
    """A problem with K sqrt(n lam_W lam_H) close to `fraction`."""
    lam_W = 0.01
    return make(K, n, lam_W, (fraction / K) ** 2 / (n * lam_W))


# The minimiser


@EACH
def test_objective_at_the_minimiser_is_the_global_value(problem):
    params = laws.minimizer(problem)
    value = laws.value(problem, params)
    np.testing.assert_allclose(value, theory.global_value(problem), rtol=1e-14)


@EACH
def test_the_minimiser_is_a_critical_point(problem):
    # Terms of size lam |W| and lam |H|, below 1, cancel: a few units in their last place remain.
    laws.check_critical_point(problem, laws.minimizer(problem), 8 * EPS)


@EACH
def test_margin_probability_and_norms_equal_the_measured_ones(problem):
    check_measured_scalars(problem, jnp.float64)


def test_a_single_precision_minimiser_has_the_scalars_to_single_precision():
    check_measured_scalars(laws.PROBLEMS["d-is-K"], jnp.float32)


def check_measured_scalars(problem, dtype):
    params = laws.minimizer(problem, dtype=dtype)
    assert all(leaf.dtype == dtype for leaf in params)
    W, H, b = laws.reference_point(problem, params)
    Z = reference.logits(W, H, b)
    unit = 32 * laws.eps(dtype)
    size = 1 + float(theory.margin(problem))
    for i, y in enumerate(laws.class_of_samples(problem)):
        wrong = [j for j in range(problem.K) if j != y]
        margins = Z[y, i] - Z[wrong, i]
        np.testing.assert_allclose(margins, theory.margin(problem), atol=unit * size)
        probabilities = reference.softmax(Z[:, i])[wrong]
        np.testing.assert_allclose(
            probabilities, theory.wrong_probability(problem), rtol=unit * size
        )
    measured = (np.linalg.norm(W), np.linalg.norm(H))
    np.testing.assert_allclose(measured, theory.norms(problem), rtol=unit)
    np.testing.assert_array_equal(np.asarray(params.b), np.zeros(problem.K))


@EACH
def test_the_minimiser_is_a_simplex_with_self_dual_features(problem):
    W, H, _ = map(np.asarray, laws.minimizer(problem))
    sizes = (problem.K, problem.n, problem.lam_W, problem.lam_H)
    gram = reference.global_gram(*sizes)
    np.testing.assert_allclose(W @ W.T, gram, atol=32 * EPS * (1 + np.max(gram)))
    ratio = np.sqrt(problem.lam_W / (problem.lam_H * problem.n))
    expected = ratio * W[laws.class_of_samples(problem)].T
    np.testing.assert_allclose(H, expected, rtol=8 * EPS)


@EACH
def test_scalars_equal_the_reference(problem):
    sizes = (problem.K, problem.n, problem.lam_W, problem.lam_H)
    assert theory.is_collapsed(problem) == reference.is_collapsed(*sizes)
    np.testing.assert_allclose(theory.global_value(problem), reference.global_value(*sizes))
    np.testing.assert_allclose(theory.margin(problem), reference.margin(*sizes))
    np.testing.assert_allclose(
        theory.wrong_probability(problem), reference.wrong_probability(*sizes)
    )
    np.testing.assert_allclose(theory.norms(problem), reference.global_norms(*sizes))


def test_keys_turn_the_minimiser_along_its_orbit():
    problem = laws.PROBLEMS["wide-one-sample-a-class"]
    points = [map(np.asarray, laws.minimizer(problem, seed)) for seed in (0, 1)]
    (first_W, first_H, _), (second_W, second_H, _) = points
    assert np.max(np.abs(first_W - second_W)) > 0.1
    np.testing.assert_allclose(first_W @ first_H, second_W @ second_H, atol=64 * EPS)


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 5.0]))
def test_no_point_lies_below_the_global_value(problem, seed, scale):
    step = laws.random_params(problem, seed, scale)
    value = theory.global_value(problem)
    minimiser = laws.minimizer(problem)
    nearby = jax.tree.map(lambda x, dx: np.asarray(x) + np.asarray(dx), minimiser, step)
    for params in (step, nearby):
        assert laws.value(problem, params) >= value - 8 * EPS * (1 + value)


@pytest.mark.parametrize("seed", [0, 1])
def test_descent_on_the_reference_reaches_the_global_value(seed):
    # An independent route: quasi-Newton on the loops. d > K has no spurious minima (Zhu et al.).
    problem = make(3, 2, 2e-2, 1e-2, d=4)
    shapes = [(3, 4), (4, 6), (3,)]
    arguments = (laws.class_of_samples(problem), 2e-2, 1e-2, 1e-3)

    def function(x):
        W, H, b = (
            part.reshape(shape) for part, shape in zip(np.split(x, [12, 36]), shapes, strict=True)
        )
        slope = reference.gradient(W, H, b, *arguments)
        return reference.objective(W, H, b, *arguments), np.concatenate([s.ravel() for s in slope])

    start = np.random.default_rng(seed).standard_normal(39)
    options = {"ftol": 0, "gtol": 1e-9, "maxiter": 500}
    result = scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options)
    # The value exceeds the minimum by about |gradient|^2 / curvature.
    np.testing.assert_allclose(result.fun, theory.global_value(problem), rtol=1e-12)


# The threshold


@pytest.mark.parametrize(
    ("K", "n", "lam_W", "lam_H"),
    [(2, 1, 0.5, 0.5), (2, 2, 0.5, 0.25), (4, 4, 2.0**-7, 2.0), (8, 64, 2.0**-6, 2.0**-6)],
)
def test_exactly_at_the_threshold_everything_has_collapsed(K, n, lam_W, lam_H):
    # Powers of two, so that K^2 n lam_W lam_H = 1 without rounding.
    problem = make(K, n, lam_W, lam_H)
    assert theory.is_collapsed(problem)
    assert theory.global_value(problem) == pytest.approx(np.log(K), rel=4 * EPS)
    assert theory.margin(problem) == 0
    assert tuple(theory.norms(problem)) == (0, 0)
    assert theory.wrong_probability(problem) == 1 / K
    below = dataclasses.replace(problem, lam_W=lam_W * (1 - 1e-12))
    assert not theory.is_collapsed(below)
    assert theory.margin(below) > 0
    assert theory.norms(below).W > 0


@pytest.mark.parametrize(("K", "n"), [(2, 1), (3, 5), (10, 100), (1000, 7)])
@pytest.mark.parametrize("fraction", [1.001, 1.5, 100.0])
def test_above_the_threshold_the_value_is_that_of_the_origin(K, n, fraction):
    problem = at_fraction_of_the_threshold(K, n, fraction)
    assert theory.is_collapsed(problem)
    np.testing.assert_allclose(theory.global_value(problem), np.log(K), rtol=4 * EPS)
    assert theory.margin(problem) == 0
    np.testing.assert_allclose(theory.wrong_probability(problem), 1 / K, rtol=2 * EPS)


def test_the_minimiser_above_the_threshold_is_exactly_zero():
    problem = laws.PROBLEMS["above-the-threshold"]
    assert theory.is_collapsed(problem)
    laws.assert_close(laws.minimizer(problem), laws.zeros(problem), 0)


@pytest.mark.parametrize(("K", "n"), [(2, 1), (3, 5), (10, 100), (1000, 7)])
@pytest.mark.parametrize("fraction", [0.999, 0.5, 1e-3])
def test_below_the_threshold_the_minimiser_beats_the_origin(K, n, fraction):
    problem = at_fraction_of_the_threshold(K, n, fraction)
    assert not theory.is_collapsed(problem)
    assert theory.global_value(problem) < np.log(K)
    assert theory.margin(problem) > 0
    assert 0 < theory.wrong_probability(problem) < 1 / K


@pytest.mark.parametrize(("K", "n"), [(2, 1), (10, 100), (1000, 7), (10**5, 10**6)])
def test_the_value_is_continuous_and_grows_with_the_decay_across_the_threshold(K, n):
    slack = 8 * EPS * np.log(K)
    for gap in (1e-2, 1e-4, 1e-8, 1e-12):
        below, above = (at_fraction_of_the_threshold(K, n, 1 + s * gap) for s in (-1, 1))
        low, high = theory.global_value(below), theory.global_value(above)
        # df*/dc = (K-1) t, and c moves by gap/K up to log K.
        drop = (K - 1) / K * theory.margin(below) * gap
        assert -slack <= np.log(K) - low <= drop * (1 + 1e-3) + slack
        assert abs(high - np.log(K)) <= slack
    fractions = [0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0, 2.0]
    values = [theory.global_value(at_fraction_of_the_threshold(K, n, x)) for x in fractions]
    assert np.all(np.diff(values) >= -slack)
    assert values[0] < values[-1] - 0.5


# Far from any computation


@pytest.mark.parametrize(
    ("K", "n", "lam_W", "lam_H"),
    [
        (10, 100, 5e-4, 5e-4),
        (10, 100, 1e-2, 9.9e-3),
        (1000, 1300, 1e-5, 1e-7),
        (10**5, 10**6, 1e-9, 1e-9),
        (10**5, 10**6, 1e-10, 1e-300),
        (2, 1, 1e-200, 1e-200),
        (2, 10**6, 1e-8, 1.0),
    ],
)
def test_scalars_are_accurate_at_any_size(K, n, lam_W, lam_H):
    problem = make(K, n, lam_W, lam_H)
    c, t, value = (float(x) for x in exact(problem))
    assert not theory.is_collapsed(problem)
    np.testing.assert_allclose(theory.wrong_probability(problem), c, rtol=8 * EPS)
    # 1/c - (K-1) magnifies the rounding of c by up to K near the threshold.
    amplified = 8 * EPS * (1 + K * c / (1 - K * c))
    np.testing.assert_allclose(theory.margin(problem), t, rtol=8 * EPS, atol=amplified)
    np.testing.assert_allclose(theory.global_value(problem), value, rtol=32 * EPS)
    square = (K - 1) * t * np.sqrt(n) * np.sqrt(lam_H) / np.sqrt(lam_W)
    norm_W, norm_H = theory.norms(problem)
    np.testing.assert_allclose(norm_W, np.sqrt(square), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(lam_W) * norm_W, np.sqrt(lam_H) * norm_H, rtol=8 * EPS)


@pytest.mark.parametrize("K", [2, 10, 10**3, 10**5])
@pytest.mark.parametrize("n", [1, 100, 10**6])
def test_scalars_are_finite_up_to_a_million_samples_a_class(K, n):
    for lam in (1e-12, 1e-6, 1e-3, 1.0, 1e6):
        problem = make(K, n, lam, lam)
        numbers = [
            theory.global_value(problem),
            theory.margin(problem),
            theory.wrong_probability(problem),
            *theory.norms(problem),
        ]
        assert np.all(np.isfinite(numbers))
        assert np.all(np.array(numbers) >= 0)
        assert theory.global_value(problem) <= np.log(K) * (1 + 4 * EPS)


def test_scalars_are_elementwise_over_arrays_of_decays():
    lam_W, lam_H = np.array([1e-3, 1e-2, 1.0]), np.array([1e-3, 5e-2, 1.0])
    together = make(4, 5, lam_W, lam_H, lam_b=np.zeros(3))
    apart = [make(4, 5, a, b) for a, b in zip(lam_W.tolist(), lam_H.tolist(), strict=True)]
    for function in (
        theory.is_collapsed,
        theory.global_value,
        theory.margin,
        theory.wrong_probability,
    ):
        np.testing.assert_array_equal(function(together), [function(one) for one in apart])
    assert set(np.asarray(theory.is_collapsed(together)).tolist()) == {True, False}


def test_scalars_stay_in_double_precision_for_single_precision_params():
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.minimizer(problem, dtype=jnp.float32)
    assert np.asarray(theory.global_value(problem)).dtype == np.float64
    value, slope = laws.value_and_slope(problem, params)
    np.testing.assert_allclose(value, theory.global_value(problem), rtol=1e-6)
    assert all(np.max(np.abs(leaf)) < 1e-7 for leaf in slope)


# Where the theorem ends


@pytest.mark.parametrize(
    "function",
    [
        theory.is_collapsed,
        theory.global_value,
        theory.margin,
        theory.wrong_probability,
        theory.norms,
        lambda problem: theory.global_minimizer(problem, jax.random.key(0)),
    ],
    ids=["is_collapsed", "global_value", "margin", "probability", "norms", "minimizer"],
)
@pytest.mark.parametrize(
    ("change", "got", "assumption"),
    [
        ({"d": 2}, "d=2", "d >= K-1"),
        ({"lam_W": 0.0}, "lam_W=0.0", "lam_W > 0"),
        ({"lam_H": 0.0}, "lam_H=0.0", "lam_H > 0"),
    ],
)
def test_outside_the_theorem_the_failing_assumption_is_named(function, change, got, assumption):
    problem = dataclasses.replace(make(4, 2, 1e-3, 1e-3, d=3), **change)
    with pytest.raises(ValueError, match=got) as caught:
        function(problem)
    assert assumption in str(caught.value)


@pytest.mark.parametrize("function", [theory.margin, theory.wrong_probability])
def test_one_margin_for_all_classes_assumes_equal_ones(function):
    problem = dataclasses.replace(make(4, 2, 1e-3, 1e-3, d=3), n=(1, 2, 3, 4))
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4\).*balanced"):
        function(problem)
