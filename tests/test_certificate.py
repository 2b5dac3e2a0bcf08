"""The certificate of global optimality: validity everywhere, tightness at the optimum."""

import dataclasses
import functools

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
from ufm.certificate import Certificate, certify
from ufm.model.problem import Params

EACH = pytest.mark.parametrize("problem", laws.PROBLEMS.values(), ids=laws.PROBLEMS.keys())
EACH_CLOSED_FORM = pytest.mark.parametrize(
    "problem", laws.CLOSED_FORM.values(), ids=laws.CLOSED_FORM.keys()
)
PENALISED = {name: p for name, p in laws.PROBLEMS.items() if p.lam_b > 0 or not p.bias}
SCALES = [1e-3, 0.1, 1.0, 4.0, 30.0]


@functools.cache
def best_point(name, seed=0):
    """Quasi-Newton from a random start, on the compiled objective and gradient."""
    problem = laws.PROBLEMS[name]
    start = [np.asarray(block) for block in laws.random_params(problem, seed, scale=0.5)]
    cuts = np.cumsum([block.size for block in start])[:-1]

    def unflatten(x):
        blocks = zip(np.split(x, cuts), start, strict=True)
        return Params(*(jnp.asarray(part.reshape(block.shape)) for part, block in blocks))

    def function(x):
        value, slope = laws.value_and_slope(problem, unflatten(x))
        return float(value), np.concatenate([np.ravel(block) for block in slope])

    x = np.concatenate([block.ravel() for block in start])
    options = {"ftol": 0, "gtol": 1e-10, "maxiter": 3000, "maxfun": 6000, "maxcor": 40}
    result = scipy.optimize.minimize(function, x, jac=True, method="L-BFGS-B", options=options)
    return unflatten(result.x)


# Validity


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES))
def test_gap_is_never_negative_beyond_rounding(problem, seed, scale):
    certificate = certify(problem, laws.random_params(problem, seed, scale))
    assert np.all(np.isfinite(certificate))
    assert certificate.gap >= -certificate.resolution
    assert certificate.resolution <= 1e-12 * (certificate.value + abs(certificate.lower_bound))


@EACH_CLOSED_FORM
@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES))
def test_gap_bounds_the_suboptimality_from_above(problem, seed, scale):
    certificate = certify(problem, laws.random_params(problem, seed, scale))
    optimum = theory.global_value(problem)
    assert certificate.gap >= certificate.value - optimum - certificate.resolution
    assert certificate.lower_bound <= optimum + certificate.resolution


@pytest.mark.parametrize(
    "name", ["narrow", "unequal-counts", "unequal-counts-free-bias", "unequal-counts-no-bias"]
)
@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES))
def test_no_bound_exceeds_the_best_value_found(name, seed, scale):
    # Where no closed form is known, a value reached by descent is an upper bound on the minimum.
    problem = laws.PROBLEMS[name]
    certificate = certify(problem, laws.random_params(problem, seed, scale))
    best = float(laws.value(problem, best_point(name)))
    assert certificate.lower_bound <= best + certificate.resolution


@pytest.mark.parametrize("problem", PENALISED.values(), ids=PENALISED.keys())
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_bound_equals_the_reference(problem, scale):
    params = laws.random_params(problem, seed=5, scale=scale)
    arguments = laws.reference_arguments(problem, params)
    certificate = certify(problem, params)
    expected = max(reference.lower_bound(*arguments), 0)  # no cross-entropy is below 0
    # Relative to the penalty |G1|^2/(2 lam_b), the largest term, and to the entropies below log K.
    atol = 1e-13 * (abs(expected) + np.log(problem.K))
    np.testing.assert_allclose(certificate.lower_bound, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(certificate.value, reference.objective(*arguments), rtol=1e-13)
    slopes = [block for block in reference.gradient(*arguments) if block is not None]
    norm = np.sqrt(sum(np.sum(block**2) for block in slopes))
    np.testing.assert_allclose(certificate.grad_norm, norm, rtol=1e-13)
    G = reference.scaled_residuals(*arguments[:4])
    ratio = np.linalg.norm(G, 2) / np.sqrt(problem.lam_W * problem.lam_H)
    np.testing.assert_allclose(certificate.spectral_ratio, ratio, rtol=1e-13)
    # The gap of the loops differs by rounding, which the certificate's own estimate has to cover.
    gap = reference.objective(*arguments) - expected
    assert abs(certificate.gap - gap) <= certificate.resolution


@pytest.mark.parametrize(
    "name", ["d-is-K", "free-bias", "no-bias", "unequal-counts", "unequal-counts-free-bias"]
)
def test_saturated_logits_give_finite_certificates(name):
    problem = laws.PROBLEMS[name]
    own = 100 * np.eye(problem.K, problem.d)
    H = own[laws.class_of_samples(problem)].T
    first_class = 100 * np.outer(np.arange(problem.K) == 0, np.ones(problem.d))
    for W in (own, -own, own[::-1], first_class, -first_class):
        blocks = (jnp.asarray(block) for block in (W, H, np.zeros(problem.K)))
        certificate = certify(problem, Params(*blocks))
        assert np.all(np.isfinite(certificate)), W
        assert certificate.gap >= -certificate.resolution


@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.floats(0.5, 6.0))
def test_a_free_bias_never_breaks_the_bound(seed, scale):
    # With lam_b = 0 the dual point is moved onto G 1 = 0, up to the edge of the simplex. Columns
    # far from certain, and far from each other, are where the edge is met.
    problem = laws.PROBLEMS["unequal-counts-free-bias"]
    params = laws.random_params(problem, seed, scale)
    params = params._replace(b=10 * scale * params.b)
    certificate = certify(problem, params)
    assert np.all(np.isfinite(certificate))
    # f >= 0 always, and so is a mean entropy: the bound is no worse than the trivial one.
    assert certificate.lower_bound >= 0
    assert certificate.gap >= -certificate.resolution


def strongly_decayed_with_a_free_bias():
    """W = H = 0 is optimal, and f* is the entropy of the class frequencies, met at b = log pi."""
    problem = laws.PROBLEMS["unequal-counts-free-bias"]
    frequencies = np.bincount(laws.class_of_samples(problem)) / problem.N
    return dataclasses.replace(problem, lam_W=1.0, lam_H=1.0), frequencies


@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from(SCALES))
def test_a_free_bias_may_not_be_paid_for_with_row_sums_of_the_dual(seed, scale):
    # Nothing is scaled down here (|G| < mu), so that a dual point with G 1 != 0 would give a bound
    # above the minimum: at b = 0 it would be log K.
    problem, frequencies = strongly_decayed_with_a_free_bias()
    optimum = reference.entropy(frequencies)
    for params in (laws.zeros(problem), laws.random_params(problem, seed, scale)):
        certificate = certify(problem, params)
        assert certificate.lower_bound <= optimum + certificate.resolution
    assert optimum < np.log(problem.K) - 0.1


# Tightness


def test_gap_vanishes_at_the_class_frequencies_where_nothing_else_pays():
    problem, frequencies = strongly_decayed_with_a_free_bias()
    params = laws.zeros(problem)._replace(b=jnp.asarray(np.log(frequencies)))
    certificate = certify(problem, params)
    np.testing.assert_allclose(certificate.value, reference.entropy(frequencies), rtol=1e-14)
    assert abs(certificate.gap) <= certificate.resolution
    assert certificate.grad_norm < 1e-15


@EACH_CLOSED_FORM
def test_gap_vanishes_at_the_closed_form_minimiser(problem):
    params = laws.minimizer(problem)
    certificate = certify(problem, params)
    assert abs(certificate.gap) <= certificate.resolution
    np.testing.assert_allclose(certificate.value, theory.global_value(problem), rtol=1e-14)
    assert certificate.grad_norm < 1e-14


@EACH_CLOSED_FORM
def test_spectral_ratio_at_the_minimiser_is_at_most_one(problem):
    params = laws.minimizer(problem)
    ratio = certify(problem, params).spectral_ratio
    # G = (P - Y)/N loses digits to the rounding of the logits, amplified by the margin.
    assert ratio <= 1 + 64 * laws.eps(jnp.float64) * (1 + theory.margin(problem))
    if not theory.is_collapsed(problem):
        np.testing.assert_allclose(ratio, 1, rtol=1e-13)


@pytest.mark.parametrize("fraction", [0.01, 0.9, 0.999999, 1.000001, 1.1, 50.0])
@pytest.mark.parametrize("problem", laws.CLOSED_FORM.values(), ids=laws.CLOSED_FORM.keys())
def test_spectral_ratio_at_the_origin_is_one_over_the_distance_to_the_threshold(problem, fraction):
    # There G = (11^T/K - Y)/N has norm 1/(K sqrt n): the ratio is 1/(K c), c = sqrt(n) mu.
    K = problem.K
    lam_W = float(fraction / (K * np.sqrt(problem.n))) ** 2 / problem.lam_H
    problem = dataclasses.replace(problem, lam_W=lam_W)
    certificate = certify(problem, laws.zeros(problem))
    np.testing.assert_allclose(certificate.spectral_ratio, 1 / fraction, rtol=1e-13)
    assert (certificate.spectral_ratio <= 1) == theory.is_collapsed(problem)
    np.testing.assert_allclose(certificate.value, np.log(K), rtol=1e-15)
    if fraction > 1:
        assert abs(certificate.gap) <= certificate.resolution
    else:
        assert certificate.gap >= np.log(K) - theory.global_value(problem) - certificate.resolution
        assert certificate.gap > 1e-14


@pytest.mark.parametrize(
    "name", ["unequal-counts", "unequal-counts-no-bias", "unequal-counts-free-bias"]
)
def test_certificate_decides_optimality_for_unequal_counts(name):
    # d >= K-1 leaves room for the rank of the convex problem's solution.
    certificate = certify(laws.PROBLEMS[name], best_point(name))
    assert certificate.grad_norm < 1e-7
    assert certificate.spectral_ratio <= 1 + 1e-5
    assert certificate.gap < 1e-6


def test_gap_stays_open_at_a_saddle():
    problem = laws.PROBLEMS["d-is-K"]
    certificate = certify(problem, laws.zeros(problem))
    assert certificate.grad_norm < 1e-15
    assert certificate.spectral_ratio > 1
    open_gap = np.log(3) - theory.global_value(problem)
    assert open_gap > 1
    assert certificate.gap >= open_gap - certificate.resolution


def test_without_decay_the_bound_is_the_trivial_zero():
    for change in ({"lam_W": 0.0}, {"lam_H": 0.0}):
        problem = dataclasses.replace(laws.PROBLEMS["d-is-K"], **change)
        certificate = certify(problem, laws.random_params(problem))
        assert certificate.lower_bound == 0
        value = reference.objective(*laws.reference_arguments(problem, laws.random_params(problem)))
        np.testing.assert_allclose(certificate.gap, value, rtol=1e-13)
        assert certificate.spectral_ratio == np.inf


# Precision, transformations, refusals


@pytest.mark.parametrize("name", ["d-is-K", "free-bias", "no-bias"])
def test_single_precision_params_get_a_double_precision_certificate(name):
    problem = laws.PROBLEMS[name]
    params = laws.random_params(problem, dtype=jnp.float32)
    certificate = certify(problem, params)
    assert all(type(field) is float for field in certificate)
    widened = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    assert certificate == certify(problem, widened)
    value = reference.objective(*laws.reference_arguments(problem, params))
    np.testing.assert_allclose(certificate.value, value, rtol=1e-13)


def test_certificate_is_the_same_with_x64_switched_off():
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem, dtype=jnp.float32)
    expected = certify(problem, params)
    with jax.enable_x64(False):
        assert certify(problem, params) == expected
        assert jnp.ones(()).dtype == jnp.float32


def test_certificate_under_vmap_equals_a_loop():
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem)
    decays = [(1e-3, 4e-3, 2e-2), (1e-2, 1e-2, 0.0), (0.0, 1e-2, 1.0)]
    lam_W, lam_H, lam_b = np.array(decays).T
    stacked = dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
    together = jax.jit(jax.vmap(certify, in_axes=(0, None)))(stacked, params)
    assert isinstance(together, Certificate)
    for j, (lam_W, lam_H, lam_b) in enumerate(decays):
        one = dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
        np.testing.assert_allclose(
            [field[j] for field in together], certify(one, params), rtol=1e-12
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", ["W", "H", "b"])
def test_entries_that_are_not_finite_are_refused(block, value):
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem)
    spoilt = params._replace(**{block: getattr(params, block).at[..., :2].set(value)})
    count = 2 * getattr(params, block)[..., 0].size
    with pytest.raises(ValueError, match=f"{count} non-finite entries in {block}"):
        certify(problem, spoilt)


def test_params_that_do_not_fit_are_refused():
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem)
    with pytest.raises(ValueError, match=r"H with shape \(12, 3\)"):
        certify(problem, params._replace(H=params.H.T))
    with pytest.raises(TypeError, match="int64"):
        certify(problem, params._replace(b=jnp.zeros(3, int)))
    with pytest.raises(TypeError, match="complex128"):
        certify(problem, params._replace(W=params.W + 0j))
