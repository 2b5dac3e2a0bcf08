"""Closed-form spectra against eigenvalues of Hessians built by loops, and what they predict."""

import dataclasses

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference

from ufm import theory
from ufm.model.problem import Params, Problem
from ufm.theory import decimals, spectra
from ufm.theory.spectra import (
    condition_number,
    gd_rate,
    hessian_spectrum,
    optimal_step,
    origin_spectrum,
)

EPS = laws.eps(jnp.float64)

BIASES = [{"lam_b": 1e-2}, {"lam_b": 0.0}, {"bias": False}]
DECAYS = [(3e-3, 2e-3), (4e-3, 4e-3), (1e-2, 3e-4)]
# Every K, d from K-1 to 2K, n = 1, 2, 5; biases and decays in turn.
SIZES = [(K, d, n) for K in (2, 3, 4, 5, 7) for d in sorted({K - 1, K, 2 * K}) for n in (1, 2, 5)]
PROBLEMS = [
    Problem(K=K, d=d, n=n, lam_W=lams[0], lam_H=lams[1], **bias)
    for i, (K, d, n) in enumerate(SIZES)
    for lams, bias in [(DECAYS[i % 3], BIASES[(i // 3) % 3])]
    if K * d * (n + 1) <= 300
]
# Each bias with each decay, where every representation of S_K is there.
PROBLEMS += [
    Problem(K=4, d=5, n=2, lam_W=lam_W, lam_H=lam_H, **bias)
    for lam_W, lam_H in DECAYS
    for bias in BIASES
]
EACH = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def etf_minimiser(problem):
    """The minimiser from the formulas of the paper, in the first K-1 coordinates."""
    arguments = (problem.K, problem.n, problem.lam_W, problem.lam_H)
    values, vectors = np.linalg.eigh(reference.global_gram(*arguments))
    W = np.zeros((problem.K, problem.d))
    W[:, : problem.K - 1] = vectors[:, 1:] * np.sqrt(values[1:])
    H = np.repeat(np.sqrt(problem.lam_W / problem.lam_H / problem.n) * W.T, problem.n, axis=1)
    return Params(W, H, np.zeros(problem.K))


def eigenvalues_by_loops(problem, params):
    """All eigenvalues of the reference Hessian."""
    return np.linalg.eigvalsh(reference.hessian(*laws.reference_arguments(problem, params)))


def assert_same_spectrum(spectrum, eigenvalues):
    """Equal eigenvalue by eigenvalue to 1e-13 of the largest."""
    expanded = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    atol = 1e-13 * np.max(np.abs(eigenvalues))
    np.testing.assert_allclose(expanded, eigenvalues, rtol=0, atol=atol)


# The global minimum


@EACH
def test_hessian_spectrum_is_that_of_the_dense_hessian_at_the_minimiser(problem):
    spectrum = hessian_spectrum(problem)
    assert_same_spectrum(spectrum, eigenvalues_by_loops(problem, etf_minimiser(problem)))
    assert sum(spectrum.multiplicities) == problem.size


@EACH
def test_at_most_16_eigenvalues_are_distinct_and_none_is_negative(problem):
    spectrum = hessian_spectrum(problem)
    assert len(spectrum.eigenvalues) <= 16
    assert np.all(np.diff(spectrum.eigenvalues) > 0)
    assert spectrum.eigenvalues[0] >= 0


@EACH
def test_nullity_is_the_dimension_of_the_symmetry_orbit(problem):
    K, d = problem.K, problem.d
    free_bias = problem.bias and problem.lam_b == 0
    values, multiplicities = hessian_spectrum(problem)
    nullity = multiplicities[0] if values[0] == 0 else 0
    assert nullity == d * (K - 1) - K * (K - 1) // 2 + free_bias
    assert nullity == spectra.orbit_dimension(problem, K - 1)


def table_of_cross_entropy(problem):
    """Trace and determinant of each block, and the other eigenvalues, in c, β and t alone."""
    K, d, n, lam_W, lam_H = problem.K, problem.d, problem.n, problem.lam_W, problem.lam_H
    c = np.sqrt(n * lam_W * lam_H)
    beta, t = 1 - K * c, np.log(1 / c - (K - 1))
    p2, q2 = t * np.sqrt(lam_W / (n * lam_H)), t * np.sqrt(lam_H / (n * lam_W))
    blocks = [
        (lam_W + lam_H + kappa * (p2 + q2), 4 * kappa * t * np.sqrt(lam_W * lam_H / n), often)
        for kappa, often in ((c / K * (1 + (K - 1) * beta), 1), (c / K, K * (K - 3) // 2))
    ]
    single = [
        (lam_W + lam_H + c / K * (p2 + q2), (K - 1) * (K - 2) // 2),
        (lam_H + q2 * c / K, K * (K - 2) * (n - 1)),
        (lam_H + q2 * c * (1 - (K - 1) * c), K * (n - 1)),
        (lam_H, K * (d - K + 1) * (n - 1)),
        (lam_W + lam_H, (K - 1) * (d - K + 1)),
    ]
    return blocks, single


@EACH
def test_the_table_in_three_numbers_is_that_of_cross_entropy(problem):
    values = np.repeat(*map(np.asarray, hessian_spectrum(problem)))
    tolerance = 1e-13 * np.max(values)
    blocks, single = table_of_cross_entropy(problem)
    for trace, determinant, often in blocks:
        root = np.sqrt(trace**2 / 4 - determinant)
        single += [(trace / 2 + root, often), (determinant / (trace / 2 + root), often)]
    for value, often in single:
        assert np.sum(np.abs(values - value) <= tolerance) >= often


def test_a_spectrum_of_billions_of_eigenvalues_is_exact_to_the_last_one():
    problem = Problem(K=1000, d=2048, n=1300, lam_W=1e-7, lam_H=1e-8, lam_b=1e-6)
    values, multiplicities = hessian_spectrum(problem)
    assert all(type(m) is int for m in multiplicities)
    assert sum(multiplicities) == problem.size == 1000 * 2048 + 2048 * 1_300_000 + 1000
    assert (values[0], multiplicities[0]) == (0.0, 2048 * 999 - 1000 * 999 // 2)
    assert len(values) == 16


def test_a_problem_beyond_the_threshold_has_the_spectrum_of_the_origin():
    problem = Problem(K=3, d=4, n=2, lam_W=0.5, lam_H=0.4, lam_b=0.1)
    assert theory.is_collapsed(problem)
    for found, expected in zip(hessian_spectrum(problem), origin_spectrum(problem), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert hessian_spectrum(problem).eigenvalues[0] > 0


# The origin


@pytest.mark.parametrize("bias", BIASES, ids=str)
@pytest.mark.parametrize(
    ("K", "d", "n"), [(2, 1, 1), (2, 3, 4), (3, 1, 2), (4, 2, 3), (5, 5, 2), (7, 8, 1)]
)
def test_origin_spectrum_is_that_of_the_dense_hessian_for_any_width(K, d, n, bias):
    problem = Problem(K=K, d=d, n=n, lam_W=1e-2, lam_H=3e-4, **bias)
    origin = Params(np.zeros((K, d)), np.zeros((d, K * n)), np.zeros(K))
    spectrum = origin_spectrum(problem)
    assert_same_spectrum(spectrum, eigenvalues_by_loops(problem, origin))
    assert sum(spectrum.multiplicities) == problem.size


@pytest.mark.parametrize("fraction", [0.5, 0.999999, 1.000001, 2.0])
def test_morse_index_of_the_origin_drops_to_zero_at_the_threshold(fraction):
    K, d, n = 4, 5, 3
    problem = Problem(K=K, d=d, n=n, lam_W=0.01, lam_H=(fraction / K) ** 2 / (n * 0.01), lam_b=0.1)
    values, multiplicities = origin_spectrum(problem)
    index = sum(m for v, m in zip(values, multiplicities, strict=True) if v < 0)
    assert index == (d * (K - 1) if fraction < 1 else 0)


def test_the_smallest_eigenvalue_at_the_origin_keeps_its_digits_near_the_threshold():
    # At K sqrt(n lam_W lam_H) = 1 - e the lower eigenvalue is (mu^2 - s^2)/upper with
    # mu = s(1 - e) and s = 1/(K sqrt n), that is -2 e s^2/(2s) = -e s to first order in e.
    K, n, e = 2, 1, 1e-9
    s = 0.5
    problem = Problem(K=K, d=2, n=n, lam_W=s * (1 - e), lam_H=s * (1 - e), lam_b=0.1)
    np.testing.assert_allclose(origin_spectrum(problem).eigenvalues[0], -e * s, rtol=1e-6)


# Conditioning


@EACH
def test_condition_number_is_the_ratio_of_extremes_off_the_orbit(problem):
    values = eigenvalues_by_loops(problem, etf_minimiser(problem))
    nonzero = values[values > 1e-12 * values[-1]]
    np.testing.assert_allclose(condition_number(problem), nonzero[-1] / nonzero[0], rtol=1e-8)


def test_condition_number_is_infinite_where_the_minimum_is_degenerate():
    problem = Problem(K=2, d=2, n=1, lam_W=0.5, lam_H=0.5, lam_b=0.1)
    assert theory.is_collapsed(problem)
    assert condition_number(problem) == float("inf")
    assert gd_rate(problem, 0.1) == 1.0


@EACH
def test_optimal_step_has_the_smallest_rate_and_doubling_it_diverges(problem):
    step, kappa = optimal_step(problem), condition_number(problem)
    best = gd_rate(problem, step)
    np.testing.assert_allclose(best, (kappa - 1) / (kappa + 1), rtol=1e-12)
    assert best < gd_rate(problem, 0.9 * step)
    assert best < gd_rate(problem, 1.1 * step)
    assert gd_rate(problem, 2 * step) > 1


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_gradient_descent_near_the_minimum_contracts_at_the_predicted_rate(share):
    problem = Problem(K=3, d=4, n=2, lam_W=2e-2, lam_H=1e-2, lam_b=5e-2)
    eta = share * optimal_step(problem)
    start = etf_minimiser(problem)
    generator = np.random.default_rng(0)
    nudged = Params(*(jnp.asarray(x + 1e-4 * generator.standard_normal(x.shape)) for x in start))

    def step(params, _):
        slope = laws.slope(problem, params)
        length = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in slope))
        return jax.tree.map(lambda x, g: x - eta * g, params, slope), length

    lengths = jax.lax.scan(step, nudged, length=120)[1]
    # By then the slowest modes alone are left, and 0.85^120 is still far above rounding.
    measured = (lengths[119] / lengths[79]) ** (1 / 40)
    np.testing.assert_allclose(measured, gd_rate(problem, eta), rtol=1e-3)


# Grouping


def test_grouping_sorts_merges_neighbours_and_keeps_an_exact_zero():
    spectrum = spectra.group([3.0, 1e-17, 0.0, 1.0, 1.0 + 1e-15, 9.0], [1, 2, 3, 4, 5, 0], 1e-14)
    np.testing.assert_array_equal(spectrum.eigenvalues, [0.0, 1.0, 3.0])
    assert spectrum.multiplicities == (5, 9, 1)


def test_grouping_without_tolerance_merges_only_equal_eigenvalues():
    spectrum = spectra.group([1.0, 1.0, 1.0 + 1e-15], [1, 2, 3])
    np.testing.assert_array_equal(spectrum.eigenvalues, [1.0, 1.0 + 1e-15])
    assert spectrum.multiplicities == (3, 3)


# Refusals


@pytest.mark.parametrize("probe", [hessian_spectrum, condition_number, optimal_step])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 2}, "d=2 < K-1=3"),
        ({"n": (1, 2, 2, 2)}, "unequal class counts"),
        ({"lam_H": 0.0}, "lam_H=0.0"),
    ],
)
def test_problems_outside_the_theorem_are_refused_by_name(probe, change, message):
    problem = Problem(K=4, d=4, n=2, lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)
    with pytest.raises(ValueError, match=message):
        probe(dataclasses.replace(problem, **change))


def test_the_origin_of_unequal_counts_is_refused():
    problem = Problem(K=3, d=4, n=(1, 2, 2), lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)
    with pytest.raises(ValueError, match="unequal class counts"):
        origin_spectrum(problem)


@pytest.mark.parametrize("probe", [hessian_spectrum, origin_spectrum])
def test_array_valued_decays_are_refused(probe):
    problem = Problem(K=3, d=4, n=2, lam_W=np.array([1e-2, 2e-2]), lam_H=1e-2, lam_b=1e-2)
    with pytest.raises(TypeError, match="a problem at a time"):
        probe(problem)


def test_traced_decays_are_refused():
    problem = Problem(K=3, d=4, n=2, lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda p: hessian_spectrum(p).eigenvalues)(problem)


@pytest.mark.parametrize("seed", range(12))
def test_fewer_digits_than_the_most_give_the_same_numbers(seed, monkeypatch):
    """`decimals.digits` depends on how far the decays are from 1; every bit is that of the most."""
    generator = np.random.default_rng(seed)
    K, n = int(generator.integers(2, 12)), int(generator.integers(1, 200))
    span = (1.0, 5.0, 30.0, 120.0)[seed % 4]
    lam_W, lam_H, lam_b = (float(x) for x in 10 ** generator.uniform(-span, 0.5, 3))
    problem = Problem(K, K + 1, n, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
    assert 80 < decimals.digits(problem) <= decimals.DIGITS
    found = spectra.hessian_spectrum(problem)
    monkeypatch.setattr(decimals, "digits", lambda _: decimals.DIGITS)
    for name in ("_minimum_table", "_origin_table"):  # anew, with an empty cache
        monkeypatch.setattr(spectra, name, decimals.exact(getattr(spectra, name).__wrapped__))
    most = spectra.hessian_spectrum(problem)
    assert np.array_equal(found.eigenvalues, most.eigenvalues)
    assert found.multiplicities == most.multiplicities
