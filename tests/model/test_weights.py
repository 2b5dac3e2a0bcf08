"""Weights of classes in the loss and in the decay: every quantity against loops and dense matrices.

The merged problem of `ufm.model.quotient` is held against the problem that it stands for.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from laws import eps

import ufm
from ufm import hessian, theory
from ufm.critical import census, newton, sources, unstable
from ufm.critical.search import polish
from ufm.descent import minibatch, optimizers
from ufm.hessian import reduction
from ufm.hessian.decision import judged
from ufm.model import quotient
from ufm.model.evaluation import evaluate

DECAYS = {"lam_W": 5e-3, "lam_H": 7e-3, "lam_b": 4e-3}
PROBLEMS = {
    "both": ufm.Problem(
        3, 4, (4, 2, 1), **DECAYS, weights=(1.0, 2.5, 0.7), decay_weights=(0.25, 0.5, 3.0)
    ),
    "loss": ufm.Problem(3, 2, (1, 3, 2), **DECAYS, weights=(4.0, 1.0, 0.2)),
    "decay, no bias": ufm.Problem(
        4, 3, 2, 2e-3, 1e-3, bias=False, decay_weights=(1.0, 10.0, 0.1, 2.0)
    ),
    "layer-peeled": ufm.Problem(
        3, 3, (6, 2, 1), 5e-3, 3e-2, 0.0, decay_weights=(1 / 6, 1 / 2, 1.0)
    ),
}
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def point_of(problem, seed=0, scale=0.5):
    params = ufm.init_params(jax.random.key(seed), problem, scale, jnp.float64)
    b = jax.random.normal(jax.random.key(seed + 1), (problem.K,), jnp.float64)
    return params._replace(b=b if problem.bias else jnp.zeros_like(b))


def ones(weights, K):
    return np.ones(K) if weights is None else np.asarray(weights)


def loops(problem, params):
    """f by a loop over the samples."""
    W, H, b = map(np.asarray, params)
    c, omega = ones(problem.weights, problem.K), ones(problem.decay_weights, problem.K)
    total, decay = 0.0, 0.0
    for i, y in enumerate(problem.labels):
        total += c[y] * reference.cross_entropy(W @ H[:, i] + b, y) / problem.N
        decay += float(problem.lam_H) / 2 * omega[y] * np.sum(H[:, i] ** 2)
    decay += float(problem.lam_W) / 2 * np.sum(W**2)
    return total + decay + float(problem.lam_b) / 2 * np.sum(b**2)


def automatic(problem, params):
    """(gradient, Hessian) by automatic differentiation of the objective, flattened."""

    def f(x):
        return ufm.objective(problem, hessian.unflatten(problem, x))

    x = hessian.flatten(problem, params)
    return jax.jit(jax.grad(f))(x), np.asarray(jax.jit(jax.hessian(f))(x))


@EACH
def test_value_gradient_and_hessian_are_those_of_the_weighted_sum(problem):
    params = point_of(problem)
    value = float(ufm.objective(problem, params))
    assert abs(value - loops(problem, params)) <= 16 * eps(float) * value
    slope, dense = automatic(problem, params)
    got = hessian.flatten(problem, ufm.gradient(problem, params))
    np.testing.assert_allclose(got, slope, rtol=0, atol=16 * eps(float))
    np.testing.assert_allclose(hessian.dense(problem, params), dense, rtol=0, atol=32 * eps(float))
    at = evaluate(problem, params)
    np.testing.assert_allclose(hessian.flatten(problem, at.gradient), slope, atol=16 * eps(float))


@EACH
def test_the_mean_over_minibatches_is_the_gradient(problem):
    params = point_of(problem)
    each = [minibatch.gradient(problem, params, jnp.array([i])) for i in range(problem.N)]
    mean = jax.tree.map(lambda *x: sum(x) / problem.N, *each)
    for x, y in zip(mean, ufm.gradient(problem, params), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=32 * eps(float))


@EACH
@pytest.mark.parametrize("shift", [0.0, 2e-3, 1.3e-2, 0.2])
def test_inertia_counts_the_eigenvalues_of_the_dense_hessian(problem, shift):
    params = point_of(problem, 3)
    values = np.linalg.eigvalsh(hessian.dense(problem, params))
    counts = hessian.inertia(problem, params, shift)
    # A shift of λ_b = 0 or λ_W is an eigenvalue itself.
    assert counts.negative == np.sum(values < shift - counts.tolerance)
    assert counts.zero == np.sum(np.abs(values - shift) <= counts.tolerance)


@EACH
def test_the_smallest_and_largest_eigenpairs_are_those_of_the_dense_hessian(problem):
    params = point_of(problem, 4)
    values = np.linalg.eigvalsh(hessian.dense(problem, params))
    for which, expected in (("smallest", values[0]), ("largest", values[-1])):
        found = hessian.extreme(problem, params, which=which)
        assert found.status == "converged"
        assert abs(found.values[0] - expected) <= 1e-9 * np.max(np.abs(values))


@EACH
@pytest.mark.parametrize("seed", range(2))
def test_critical_points_their_spectra_and_their_quotient(problem, seed):
    """Solved, certified or a saddle; the merged problem has its value, verdict and index."""
    start = point_of(problem, seed)
    for found in (ufm.solve(problem, start), ufm.solve(problem, start, descend=False)):
        assert found.status == "converged"
        params = found.params
        values = np.linalg.eigvalsh(hessian.dense(problem, params))
        spectrum = hessian.spectrum(problem, params, 0.0)
        got = np.sort(np.repeat(spectrum.eigenvalues, spectrum.multiplicities))
        np.testing.assert_allclose(got, values, rtol=0, atol=1e-13 * max(1, np.max(values)))
        verdict = hessian.verdict(problem, params)
        assert (verdict.kind == "strict saddle") == (values[0] < -1e-9)
        small = quotient.of_width(problem, problem.d)
        means = params._replace(H=quotient.class_means(problem, params.H))
        assert abs(ufm.objective(small, means) - ufm.objective(problem, params)) <= 1e-14
        merged = judged(evaluate(small, means))
        assert merged.verdict.kind == verdict.kind
        core = reduction.spread_out(problem, merged.core)
        again = reduction.spectrum_of(core, 0.0)
        np.testing.assert_allclose(
            np.repeat(again.eigenvalues, again.multiplicities), values, rtol=0, atol=1e-12
        )
        lowest = reduction.free_direction(core)[2]
        if core.idle:
            assert abs(min(lowest, float(problem.lam_b) if problem.bias else 1) - values[0]) < 1e-12


@EACH
def test_the_certificate_is_never_above_the_minimum_and_tight_there(problem):
    least = ufm.solve(problem, point_of(problem)).params
    proof = ufm.certify(problem, least)
    assert hessian.verdict(problem, least).kind == "global minimiser"
    assert -proof.resolution <= proof.gap <= 1e-9 * proof.value
    for seed in range(40):
        params = point_of(problem, seed, scale=10.0 ** (seed / 10 - 2))
        bound = ufm.certify(problem, params)
        assert bound.lower_bound <= proof.value
        assert bound.value >= proof.lower_bound


@EACH
def test_weights_scale_with_what_they_weigh(problem):
    """s c is s times the loss; ω and λ_H occur as their product only."""
    params, s = point_of(problem, 5), 3.0
    c, omega = ones(problem.weights, problem.K), ones(problem.decay_weights, problem.K)
    parts = {name: getattr(problem, name) for name in ("lam_W", "lam_H", "lam_b")}
    scaled = replace(problem, weights=s * c, **{name: s * x for name, x in parts.items()})
    assert abs(ufm.objective(scaled, params) / ufm.objective(problem, params) / s - 1) <= 1e-15
    a, b = ufm.certify(scaled, params), ufm.certify(problem, params)
    assert abs(a.lower_bound - s * b.lower_bound) <= 1e-14 * s * b.lower_bound + 1e-300
    other = replace(problem, decay_weights=s * omega, lam_H=problem.lam_H / s)
    np.testing.assert_allclose(ufm.certify(other, params), b, rtol=1e-13)
    for name in ("weights", "decay_weights"):
        assert getattr(replace(problem, **{name: [1] * problem.K}), name) is None


@EACH
def test_equal_weights_are_a_rescaled_problem(problem):
    """c = s for all classes is f = s (the problem with decays / s), in every entry."""
    plain = replace(problem, weights=None, decay_weights=None)
    same = replace(plain, weights=[2.0] * problem.K, decay_weights=[3.0] * problem.K)
    params = point_of(problem, 6)
    halves = {name: getattr(plain, name) / 2 for name in ("lam_W", "lam_b")}
    other = replace(plain, lam_H=plain.lam_H * 3 / 2, **halves)
    for x, y in zip(ufm.gradient(same, params), ufm.gradient(other, params), strict=True):
        np.testing.assert_allclose(x, 2 * y, rtol=0, atol=64 * eps(float))
    np.testing.assert_allclose(
        hessian.dense(same, params), 2 * hessian.dense(other, params), rtol=0, atol=1e-14
    )


@EACH
def test_auto_steps_bound_the_curvature_and_descend(problem):
    params = point_of(problem, 7)
    bound = float(optimizers.curvature_bound(problem, ufm.objective(problem, params)))
    for seed in range(8):
        other = point_of(problem, seed, 0.3)
        if ufm.objective(problem, other) <= ufm.objective(problem, params):
            assert np.linalg.norm(hessian.dense(problem, other), 2) <= bound
    run = ufm.descend(problem, params, "gd", steps=200, record_every=1, learning_rate="safe")
    assert np.all(np.diff(run.history["loss"]) <= 0)
    for optimizer, options in (("lbfgs", {}), ("sgd", {"batch_size": 2, "key": 0})):
        last = ufm.descend(problem, params, optimizer, steps=300, **options).history["loss"][-1]
        assert last < ufm.objective(problem, params)


def test_samples_merged_by_weight_have_the_descent_of_the_class_means():
    """Equal samples of a class stay equal under gradient descent, and weights stand for them."""
    problem = ufm.Problem(3, 2, (6, 3, 1), 5e-3, 5e-3, 5e-3)
    small = quotient.of_width(problem, 2)
    means = point_of(small)
    params = means._replace(H=means.H[:, problem.labels])
    slope, merged = ufm.gradient(problem, params), ufm.gradient(small, means)
    np.testing.assert_allclose(slope.W, merged.W, atol=1e-16)
    np.testing.assert_allclose(slope.b, merged.b, atol=1e-16)
    sums = np.stack([slope.H[:, problem.labels == k].sum(axis=1) for k in range(3)], axis=1)
    np.testing.assert_allclose(sums, merged.H, atol=1e-16)


@pytest.mark.parametrize("counts", [(3, 2, 1), (10**6, 30, 7)])
def test_a_census_of_unequal_counts_finds_saddles_and_one_minimum(counts):
    problem = ufm.Problem(3, 4, counts, 2e-6 if max(counts) > 10 else 5e-3, 5e-3, 5e-3)
    found = census(problem, jax.random.key(0), starts=24, rounds=2)
    kinds = [orbit.kind for orbit in found.orbits]
    assert kinds.count("global minimiser") == 1
    assert set(kinds) <= {"global minimiser", "strict saddle"}
    for orbit in found.orbits:
        assert abs(orbit.smallest - min(orbit.predicted, problem.lam_b)) <= 1e-12
        assert (orbit.morse_index == 0) == (orbit.kind == "global minimiser")


def test_a_census_tells_classes_of_unlike_weights_apart():
    """With two classes of three merged there is one orbit for each class that stands alone."""
    problem = ufm.Problem(3, 2, 1, 2e-2, 2e-2, 2e-2, weights=(1.0, 1.1, 0.9))
    found = census(problem, jax.random.key(1), starts=48, rounds=2)
    equal = census(replace(problem, weights=None), jax.random.key(1), starts=48, rounds=2)
    assert [o.rank for o in equal.orbits].count(1) * 3 == [o.rank for o in found.orbits].count(1)


def test_descent_leaves_a_weighted_saddle_for_the_certified_minimum():
    problem = PROBLEMS["both"]
    origin = jax.tree.map(jnp.zeros_like, point_of(problem))
    saddle = ufm.solve(problem, origin, descend=False).params
    left = unstable.escape(problem, saddle, jax.random.key(0))
    assert left.status == "certified"
    assert abs(left.left - left.predicted) <= 0.02 * left.predicted + 2


@pytest.mark.parametrize("name", ["weights", "decay_weights"])
@pytest.mark.parametrize(
    "value",
    [[1, 2], [1, 2, 0], [1, 2, -1], [1, 2, np.nan], "123", 2.0, [1, 2, "3"], [True, 1, 2],
     np.ones((3, 1)), [1, 2, np.inf], {1: 2}],
    ids=str,
)  # fmt: skip
def test_weights_that_are_none_are_refused(name, value):
    with pytest.raises(ufm.Refused, match=name):
        ufm.Problem(3, 4, 2, 1e-3, 1e-3, **{name: value})


def test_closed_forms_refuse_weights_by_name():
    for name in ("weights", "decay_weights"):
        problem = ufm.Problem(3, 4, 2, 1e-3, 1e-3, **{name: [1, 2, 3]})
        for form in (theory.hessian_spectrum, theory.origin_spectrum):
            with pytest.raises(ufm.Refused, match=name):
                form(problem)
    told = {x.name: x.fails for x in theory.claims(problem)}
    assert told["benign landscape"] is None
    assert "weight" in told["simplex"]
    assert "decay" in told["least eigenvalue, equality"]


def test_newton_arrives_however_unlike_the_counts():
    """With a column as long as its million samples are together; otherwise 23 of 64 do."""
    problem = quotient.of_width(ufm.Problem(3, 4, (10**6, 10**5, 10**4), 1e-5, 1e-5, 1e-2), 2)
    starts = sources.random(problem, jax.random.key(0), 64)
    arrived = polish(problem, starts).status == newton.Arrival.converged
    assert np.sum(arrived) > 48
