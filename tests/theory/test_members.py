"""Closed forms of the family: values proved by certificates, spectra by dense Hessians."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import hessian, theory
from ufm.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    FromValue,
    LogitAdjusted,
    SquaredError,
)

BASE = ufm.Problem(4, 5, 3, 2e-3, 3e-3, 4e-3)
LDAM = 3.0 * (0.2 - 0.7 * np.eye(4))
SYMMETRIC = {
    "smoothing .1": replace(BASE, loss=CrossEntropy(0.1)),
    "smoothing .6, no bias": replace(BASE, loss=CrossEntropy(0.6), bias=False),
    "focal .5": replace(BASE, loss=Focal(0.5)),
    "focal 2": replace(BASE, loss=Focal(2), lam_b=0.0),
    "focal 5, K = 2": ufm.Problem(2, 1, 2, 2e-3, 3e-3, 4e-3, loss=Focal(5)),
    "temperature 4": replace(BASE, loss=LogitAdjusted(4.0)),
    "margin": replace(BASE, loss=LogitAdjusted(2.0, LDAM)),
    "binary": replace(BASE, loss=BinaryCrossEntropy(), lam_b=0.0),
    "binary, K = 7": ufm.Problem(7, 6, 2, 1e-3, 2e-3, 0.0, loss=BinaryCrossEntropy()),
    "smoothing, collapsed": replace(BASE, loss=CrossEntropy(0.2), lam_W=0.2, lam_H=0.1),
    "focal, collapsed": replace(BASE, loss=Focal(2), lam_W=0.4, lam_H=0.3),
    "binary, collapsed": replace(BASE, loss=BinaryCrossEntropy(), lam_W=0.4, lam_H=0.3, lam_b=0.0),
}  # fmt: skip
REAL = np.array([[0.4, -1.0, 2.0, 0.3], [1.5, 0.2, -0.7, 0.0], [-0.3, 0.8, 0.1, -2.0]])
SQUARED = {
    "counts, no bias": ufm.Problem(3, 4, (6, 3, 1), 5e-3, 7e-3, bias=False, loss=SquaredError()),
    "counts, free bias": ufm.Problem(4, 4, (6, 3, 2, 1), 5e-3, 7e-3, 0.0, loss=SquaredError()),
    "balanced": ufm.Problem(4, 5, 3, 2e-3, 3e-3, 0.0, loss=SquaredError()),
    "regression": ufm.Problem(3, 5, 2, 5e-3, 7e-3, 0.0, loss=SquaredError(), targets=REAL),
    "collapsed": ufm.Problem(3, 4, 2, 0.5, 0.7, bias=False, loss=SquaredError()),
    "ETF, decayed bias": ufm.Problem(4, 3, 3, 2e-3, 3e-3, 0.01, loss=SquaredError()),
    "on the way": ufm.Problem(4, 4, 3, 2e-2, 3e-2, 0.4, loss=SquaredError()),
    "decayed bias, collapsed": ufm.Problem(4, 4, 3, 0.5, 0.6, 0.4, loss=SquaredError()),
    "centred regression": ufm.Problem(
        3, 5, 2, 5e-3, 7e-3, 0.3, loss=SquaredError(), targets=REAL - REAL.mean(1, keepdims=True)
    ),
}
EVERY = {**SYMMETRIC, **SQUARED}
EACH = pytest.mark.parametrize("problem", EVERY.values(), ids=EVERY)


@EACH
def test_the_minimiser_is_critical_certified_and_has_the_value_of_the_closed_form(problem):
    point = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    proof = ufm.certify(problem, point)
    assert abs(proof.value - theory.global_value(problem)) <= 1e-12 * (1 + proof.value)
    assert proof.grad_norm <= 1e-12
    assert -proof.resolution <= proof.gap <= 1e-9 * proof.value
    for norm, x in zip(theory.norms(problem), point, strict=False):
        assert abs(norm - np.linalg.norm(x)) <= 1e-11 * (1 + norm)
    assert bool(theory.is_collapsed(problem)) == (not np.any(point.W))


ETF = SYMMETRIC | {
    "squared": SQUARED["balanced"],
    "squared, K = 2": ufm.Problem(2, 3, 4, 2e-2, 3e-3, 0.0, loss=SquaredError()),
    "squared, collapsed": ufm.Problem(3, 4, 2, 0.5, 0.7, 0.0, loss=SquaredError()),
}


@pytest.mark.parametrize("problem", ETF.values(), ids=ETF)
def test_margins_and_spectra_are_those_of_the_minimiser(problem):
    point = theory.global_minimizer(problem, jax.random.key(1), jnp.float64)
    Z = np.asarray(point.W @ point.H)
    own = Z[problem.labels, np.arange(problem.N)]
    wrong = np.delete(Z.T.ravel(), np.arange(problem.N) * problem.K + problem.labels)
    t = np.repeat(own, problem.K - 1) - wrong
    np.testing.assert_allclose(t, theory.margin(problem), rtol=1e-11, atol=1e-13)
    values = np.linalg.eigvalsh(hessian.dense(problem, point))
    spectrum = theory.hessian_spectrum(problem)
    found = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-12 * values[-1])
    off = values[values > 1e-9 * values[-1]]
    if not theory.is_collapsed(problem):
        assert theory.condition_number(problem) == pytest.approx(off[-1] / off[0], rel=1e-9)


@pytest.mark.parametrize("name", ["smoothing .1", "focal 2", "temperature 4", "margin"])
def test_the_spectrum_at_the_origin_is_that_of_the_dense_hessian(name):
    problem = SYMMETRIC[name]
    zero = jax.tree.map(jnp.zeros_like, ufm.init_params(0, problem, 1.0, jnp.float64))
    spectrum = theory.origin_spectrum(problem)
    found = np.repeat(spectrum.eigenvalues, spectrum.multiplicities)
    values = np.linalg.eigvalsh(hessian.dense(problem, zero))
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-13)


def test_without_its_parameter_each_loss_is_cross_entropy():
    for loss in (Focal(0), LogitAdjusted(1.0)):
        problem = replace(BASE, loss=loss)
        for form in (theory.global_value, theory.margin, theory.condition_number):
            assert form(problem) == pytest.approx(form(BASE), rel=1e-12)


def test_smoothing_worsens_the_conditioning_of_the_full_hessian():
    """K=4, n=3, λ=1e-2: 9.1 at ε=0, 16.7 at ε=.1."""
    problem = ufm.Problem(4, 4, 3, 1e-2, 1e-2, 1e-2)
    told = [theory.condition_number(replace(problem, loss=CrossEntropy(eps))) for eps in (0.0, 0.1)]
    np.testing.assert_allclose(told, [9.1, 16.7], atol=0.06)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["counts, no bias", "counts, free bias", "regression"])
def test_critical_points_of_the_squared_error_are_critical_with_their_index(name, d):
    problem = replace(SQUARED[name], d=d)
    points = theory.critical_points(problem)
    kinds = [x.morse_index for x in points]
    assert kinds.count(0) == 1
    assert kinds[0] == 0
    assert points[0].value == pytest.approx(theory.global_value(problem), rel=1e-14)
    T = np.eye(problem.K) if problem.targets is None else problem.targets
    mean = T @ problem.counts / problem.N if problem.bias else np.zeros(problem.K)
    U, sigma, Vt = np.linalg.svd((T - mean[:, None]) * np.sqrt(problem.counts), full_matrices=False)
    tilt = (problem.lam_H / problem.lam_W) ** 0.25
    for told in points:
        s = np.sqrt(sigma[list(told.modes)] - problem.N * problem.mu)
        W, H = np.zeros((problem.K, d)), np.zeros((d, problem.groups))
        W[:, : told.rank] = tilt * U[:, told.modes] * s
        H[: told.rank] = (Vt[told.modes, :].T * s).T / np.sqrt(problem.counts) / tilt
        b = mean - W @ H @ problem.counts / problem.N if problem.bias else np.zeros(problem.K)
        params = ufm.Params(*(jnp.asarray(x) for x in (W, H[:, problem.labels], b)))
        assert float(ufm.objective(problem, params)) == pytest.approx(told.value, rel=1e-12)
        assert np.linalg.norm(hessian.flatten(problem, ufm.gradient(problem, params))) <= 1e-14
        values = np.linalg.eigvalsh(hessian.dense(problem, params))
        assert np.sum(values < -1e-10) == told.morse_index
        assert np.sum(np.abs(values) <= 1e-10) == told.nullity


def test_claims_name_what_fails_for_each_member():
    def fails(problem):
        return {x.name for x in theory.claims(problem) if x.fails is not None}

    assert fails(BASE) == {"SELI"}
    assert fails(replace(BASE, bias=False)) == set()
    assert fails(replace(BASE, loss=CrossEntropy(0.1))) == set()
    focal = fails(replace(BASE, loss=Focal(2)))
    assert "simplex" not in focal
    assert {"benign landscape", "certificate", "full rank"} <= focal
    squared = replace(SQUARED["balanced"], d=3)
    assert "benign landscape" in fails(squared)
    assert "squared landscape" not in fails(squared)
    (candidate,) = (x for x in theory.claims(squared) if x.status == "candidate")
    assert candidate.name == "squared landscape"
    assert "simplex" in fails(replace(BASE, targets=np.eye(4)[:, [0, 1, 2, 3, 3]]))


REFUSED = {
    "unequal counts": replace(BASE, n=(3, 2, 1, 1), loss=CrossEntropy(0.1)),
    "narrow": replace(BASE, d=2, loss=Focal(2)),
    "binary with decayed bias": replace(BASE, loss=BinaryCrossEntropy()),
    "one scale a class": replace(BASE, loss=LogitAdjusted([1, 2, 3, 4])),
    "one shift a logit": replace(BASE, loss=LogitAdjusted(1, [1, 2, 3, 4])),
    "rescaled squared error": replace(BASE, loss=SquaredError(2, 3), lam_b=0.0),
    "squared error, unequal counts with decayed bias": replace(
        BASE, n=(3, 2, 1, 1), loss=SquaredError()
    ),
    "targets": replace(BASE, targets=np.eye(4)),
    "own loss": replace(BASE, loss=FromValue(lambda *x: jnp.sum(x[0] ** 2))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_closed_forms_outside_their_assumptions_are_refused_with_the_reason(case):
    for form in (theory.global_value, theory.margin, theory.norms, theory.is_collapsed):
        with pytest.raises(ufm.Refused, match=r"needs|assumes|closed form"):
            form(REFUSED[case])
    with pytest.raises(ufm.Refused):
        theory.global_minimizer(REFUSED[case], jax.random.key(0))
    with pytest.raises(ufm.Refused):
        theory.critical_points(REFUSED[case])


def aligned(height, lam_b, d, lam=(5e-3, 7e-3)):
    """Targets whose mean is orthogonal to their contrasts, with a decayed bias."""
    contrasts = REAL - REAL.mean(1, keepdims=True)
    T = np.vstack([np.full(4, height), contrasts[:2]])
    return ufm.Problem(3, d, 2, *lam, lam_b, loss=SquaredError(), targets=T)


DECAYED = {
    "two classes": ufm.Problem(2, 2, 3, 2e-2, 3e-2, 0.8, loss=SquaredError()),
    "two classes, d = 1": ufm.Problem(2, 1, 3, 2e-2, 3e-2, 0.8, loss=SquaredError()),
    "aligned, d = 1": aligned(1.0, 0.3, 1),
    "aligned, d = 3": aligned(1.0, 0.3, 3),
    "aligned, a high mean, d = 2": aligned(2.9, 3.0, 2),
    "centred regression": replace(SQUARED["centred regression"], d=2),
}


@pytest.mark.parametrize("name", DECAYED)
def test_critical_points_with_a_decayed_bias_have_their_index(name):
    problem = DECAYED[name]
    points = theory.critical_points(problem)
    assert [x.morse_index for x in points].count(0) == 1
    assert points[0].value == pytest.approx(theory.global_value(problem), rel=1e-13)
    T = np.eye(problem.K) if problem.targets is None else problem.targets
    mean, root = T.mean(axis=1), np.sqrt(problem.n)
    U, sigma, Vt = np.linalg.svd((T - mean[:, None]) * root, full_matrices=False)
    size = np.linalg.norm(mean) or 1.0
    U, G = np.column_stack([U, mean / size]), problem.groups
    Vt, sigma = np.vstack([Vt, np.full(G, G**-0.5)]), np.append(sigma, problem.N**0.5 * size)
    rho = np.append(np.ones(len(sigma) - 1), problem.lam_b / (1 + problem.lam_b))
    tilt, d = (problem.lam_H / problem.lam_W) ** 0.25, problem.d
    for told in points:
        at = list(told.modes)
        s = np.sqrt(sigma[at] - problem.N * problem.mu / rho[at])
        W, H = np.zeros((problem.K, d)), np.zeros((d, G))
        W[:, : told.rank] = tilt * U[:, at] * s
        H[: told.rank] = (Vt[at].T * s).T / root / tilt
        b = (mean - (W @ H).mean(axis=1)) / (1 + problem.lam_b)
        params = ufm.Params(*(jnp.asarray(x) for x in (W, H[:, problem.labels], b)))
        assert float(ufm.objective(problem, params)) == pytest.approx(told.value, rel=1e-12)
        assert np.linalg.norm(hessian.flatten(problem, ufm.gradient(problem, params))) <= 1e-14
        values = np.linalg.eigvalsh(hessian.dense(problem, params))
        assert np.sum(values < -1e-10) == told.morse_index
        assert np.sum(np.abs(values) <= 1e-10) == told.nullity


@pytest.mark.parametrize("name", ["two classes", "aligned, d = 1", "aligned, a high mean, d = 2"])
def test_a_census_with_a_decayed_bias_finds_these_critical_points_and_no_other(name):
    problem = DECAYED[name]
    found = ufm.critical.census(problem, 0, starts=48, rounds=1)
    seen = sorted((x.value, x.rank, x.morse_index, x.nullity) for x in found.orbits)
    told = [(x.value, *x[1:2], *x[3:]) for x in theory.critical_points(problem)]
    assert [x[1:] for x in seen] == [x[1:] for x in told]
    np.testing.assert_allclose([x[0] for x in seen], [x[0] for x in told], rtol=0, atol=1e-12)


def test_a_mean_that_mixes_with_a_contrast_is_refused_and_makes_a_spurious_minimum():
    """Each alone is a local minimum at d = 1: no list, but the least is still known."""
    problem = aligned(5.9, 0.1, 1, lam=(5e-2, 7e-2))
    with pytest.raises(ufm.Refused, match="mixes the two"):
        theory.critical_points(problem)
    assert {x.name for x in theory.claims(problem) if x.fails} >= {"squared landscape"}
    contrast = np.linalg.svd(problem.targets - problem.targets.mean(axis=1, keepdims=True))
    rng, ends = np.random.default_rng(0), []
    for w, h in ((np.eye(3)[:, 0], np.ones(4)), (contrast[0][:, 0], 2 * contrast[2][0])):
        W, H = w[:, None] + rng.normal(0, 1e-2, (3, 1)), np.repeat(h, 2)[None]
        found = ufm.solve(problem, ufm.Params(*map(jnp.asarray, (W, H, np.zeros(3)))))
        assert found.status == "converged"
        # Isolated minima: d = 1 has no orbit but the sign.
        assert np.linalg.eigvalsh(hessian.dense(problem, found.params))[0] > 1e-6
        ends.append(float(ufm.objective(problem, found.params)))
    assert min(ends) == pytest.approx(theory.global_value(problem), rel=1e-12)
    assert max(ends) > min(ends) + 1e-3


@pytest.mark.parametrize(("height", "lam_b"), [(0.5, 9.0), (1.2, 0.3), (4.0, 9.0)])
def test_fewer_dimensions_than_modes_take_those_of_the_largest_gain(height, lam_b):
    problem = aligned(height, lam_b, 1)
    ends = []
    for seed in range(3):
        start = ufm.init_params(jax.random.key(seed), problem, 1.0, jnp.float64)
        ends.append(float(ufm.objective(problem, ufm.solve(problem, start).params)))
    assert theory.global_value(problem) == pytest.approx(min(ends), rel=1e-12)


@pytest.mark.parametrize("name", ["balanced", "ETF, decayed bias", "on the way"])
def test_the_logits_of_the_squared_error_have_the_margin_told(name):
    point = theory.global_minimizer(SQUARED[name], jax.random.key(1), jnp.float64)
    Z = np.asarray(point.W @ point.H)[:, ::3]
    told = np.diagonal(Z)[None] - Z
    np.testing.assert_allclose(
        told[~np.eye(4, dtype=bool)], theory.margin(SQUARED[name]), rtol=1e-12
    )


def test_the_cosine_of_class_means_passes_from_the_simplex_to_the_orthogonal_frame():
    """-1/(K-1) up to λ_b = κ/(1-κ), then (s₁-s)/(s₁+(K-1)s)."""
    K, n, mu = 4, 3, 0.03
    kappa = K * n**0.5 * mu
    turn = kappa / (1 - kappa)
    for lam_b in (0.5 * turn, turn, 1.5 * turn, 10.0, 1e6):
        problem = ufm.Problem(K, K, n, mu, mu, lam_b, loss=SquaredError())
        H = np.asarray(theory.global_minimizer(problem, jax.random.key(0), jnp.float64).H)[:, ::n]
        s, s1 = 1 - kappa, max(1 - kappa - kappa / lam_b, 0)
        cosine = H[:, 0] @ H[:, 1] / np.linalg.norm(H[:, 0]) / np.linalg.norm(H[:, 1])
        assert abs(cosine - (s1 - s) / (s1 + (K - 1) * s)) <= 1e-12


def test_no_margin_where_the_modes_taken_are_a_choice():
    with pytest.raises(ufm.Refused, match="one margin"):
        theory.margin(replace(SQUARED["balanced"], d=3, bias=False))


def test_equal_singular_values_have_no_list_of_critical_points():
    with pytest.raises(ufm.Refused, match="some are equal"):
        theory.critical_points(SQUARED["balanced"])


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()])
def test_sizes_beyond_the_memory_are_refused_before_any_array_is_made(loss):
    problem = ufm.Problem(3, 10**8, (10**7, 2, 1), 1e-9, 1e-9, 0.0, loss=loss)
    with pytest.raises(ufm.Refused, match=r"needs at least .* GiB"):
        theory.global_minimizer(problem, 0)


@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()])
def test_wide_problems_need_no_matrix_of_their_width(loss):
    """d² numbers would be 80 GB."""
    problem = ufm.Problem(3, 100_000, (3, 2, 1), 1e-3, 1e-3, 0.0, loss=loss)
    point = theory.global_minimizer(problem, 0, jnp.float64)
    expected = theory.global_value(problem)
    assert float(ufm.objective(problem, point)) == pytest.approx(expected, rel=1e-5)
