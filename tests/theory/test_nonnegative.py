"""Closed forms for H ≥ 0, against minimisation by SciPy that knows nothing of this package."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

import ufm
from ufm import theory
from ufm.model.problem import Problem
from ufm.theory import nonnegative

BEHIND = {"features": "nonnegative", "bias": False}
# Sizes and counts: with classes off, weights, unlike decays, more axes than classes.
PROBLEMS = {
    "unequal": Problem(4, 4, (7, 4, 2, 2), 5e-3, 2e-3, **BEHIND),
    "one-class-off": Problem(3, 5, (20, 6, 1), 1.6e-2, 1.6e-2, **BEHIND),
    "equal": Problem(5, 6, 3, 2e-3, 1e-3, **BEHIND),
    "two-classes": Problem(2, 3, (5, 2), 3e-2, 1e-2, **BEHIND),
    "weights": Problem(
        3, 3, (4, 3, 1), 6e-3, 2e-3, weights=(1.0, 0.5, 3.0), decay_weights=(0.25, 1.0, 2.0),
        **BEHIND,
    ),
    "equal-with-bias": Problem(3, 4, 2, 4e-3, 8e-3, 1e-2, features="nonnegative"),
    "squared": Problem(3, 4, (5, 2, 1), 2e-2, 1e-2, loss="SquaredError", **BEHIND),
    "squared-free-bias": Problem(
        3, 3, 2, 2e-2, 3e-2, 0.0, features="nonnegative", loss="SquaredError"
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


def minimised(problem, starts=40, off=()):
    """The least f that L-BFGS-B finds over one column a class, h ≥ 0; h = 0 for classes `off`."""
    K, d, rng = problem.K, problem.d, np.random.default_rng(0)
    w, omega = problem.class_weights * problem.counts, problem.class_decays * problem.counts
    squared = "Squared" in type(problem.loss).__name__

    def f(x):
        W, H, b = np.split(x, [K * d, 2 * K * d])
        W, H, b = W.reshape(K, d), H.reshape(d, K), b * problem.bias
        Z = W @ H + b[:, None]
        if squared:
            R = Z - np.eye(K)
            loss = np.sum(R**2, axis=0) / 2
        else:
            top = logsumexp(Z, axis=0)
            R, loss = np.exp(Z - top) - np.eye(K), top - np.diagonal(Z)
        G = R * w
        lam_b = problem.lam_b * problem.bias
        value = w @ loss + (problem.lam_W * np.sum(W**2) + omega @ np.sum(H**2, axis=0)) / 2
        slope = [(G @ H.T + problem.lam_W * W).ravel(), (W.T @ G + omega * H).ravel()]
        slope.append((G.sum(axis=1) + lam_b * b) * problem.bias)
        return value + lam_b * b @ b / 2, np.concatenate(slope)

    free = [(None, None)]
    held = [(0, 0 if k in off else None) for _ in range(d) for k in range(K)]
    bounds = K * d * free + held + K * free
    options = {"maxiter": 5000, "ftol": 0, "gtol": 1e-12, "maxcor": 40}
    found = []
    for _ in range(starts):
        x = rng.standard_normal(2 * K * d + K)
        x[K * d : 2 * K * d] = np.abs(x[K * d : 2 * K * d]) * [b[1] is None for b in held]
        found.append(minimize(f, x, jac=True, bounds=bounds, method="L-BFGS-B", options=options))
    return np.array([one.fun for one in found])


@EACH
def test_the_value_is_the_least_that_minimisation_finds(problem):
    least = minimised(problem, 8).min()
    # The one is exact, the other stops where f does not fall any more in float64.
    assert abs(least - theory.global_value(problem)) <= 1e-9 * least


@EACH
def test_the_minimiser_is_feasible_has_the_value_and_the_norms(problem):
    for key in (None, 3):
        W, H, b = params = theory.global_minimizer(problem, key)
        assert float(H.min()) >= 0
        value = float(ufm.objective(problem, params))
        np.testing.assert_allclose(value, theory.global_value(problem), rtol=1e-14)
        found = theory.norms(problem)
        np.testing.assert_allclose(found.W, np.linalg.norm(W), rtol=1e-14)
        np.testing.assert_allclose(found.H, np.linalg.norm(H), rtol=1e-14)
        Z = np.asarray(W @ H + b[:, None])[:, np.cumsum(problem.counts) - 1]
        wrong = np.where(np.eye(problem.K, dtype=bool), -np.inf, Z).max(axis=0)
        np.testing.assert_allclose(np.diagonal(Z) - wrong, theory.margins(problem), atol=1e-14)


@EACH
def test_means_are_orthogonal_and_those_of_equal_classes_a_simplex_once_centred(problem):
    _, H, _ = theory.global_minimizer(problem, 0)
    M = np.asarray(H)[:, np.cumsum(problem.counts) - 1]
    gram = M.T @ M
    np.testing.assert_array_equal(gram - np.diag(np.diagonal(gram)), 0)
    told = theory.geometry_of(problem)
    if problem.uniform:
        np.testing.assert_allclose(
            told.means / told.means[0, 0], (np.eye(problem.K) - 1 / problem.K)
            / (1 - 1 / problem.K), atol=1e-14,
        )  # fmt: skip


def test_a_class_is_on_from_its_threshold_on():
    """n_k ≤ N²λ_Wλ_H·K/(K−1), just above and just below."""
    K, counts = 3, (40, 9, 2)
    N = sum(counts)
    edge = (2 * (K - 1) / K) ** 0.5 / N
    for factor, on in ((1 - 1e-9, True), (1 + 1e-9, False)):
        problem = Problem(K, 3, counts, edge * factor, edge * factor, **BEHIND)
        assert (theory.margins(problem)[2] > 0) == on
        assert not theory.is_collapsed(problem)
    problem = Problem(K, 3, counts, 1.0, 1.0, **BEHIND)
    assert theory.is_collapsed(problem)
    assert theory.global_value(problem) == pytest.approx(np.log(3), rel=1e-15)


@pytest.mark.parametrize("name", ["unequal", "equal", "weights"])
def test_values_with_classes_off_are_the_least_with_these_features_zero(name):
    problem = PROBLEMS[name]
    rows = theory.switched_off(problem)
    # Every set of classes, the empty one left out, where all can be on.
    assert len(rows) == 2**problem.K - 1
    assert rows[0] == ((), theory.global_value(problem))
    for row in rows[1:4]:
        least = minimised(problem, 6, row.off).min()
        assert abs(least - row.value) <= 1e-9 * least


def test_the_spurious_minima_of_four_classes():
    problem = Problem(4, 5, (9, 5, 3, 1), lam=4e-3, **BEHIND)
    rows = {row.off: row.value for row in theory.switched_off(problem)}
    assert rows[()] == pytest.approx(0.15503, abs=5e-6)
    assert rows[(3,)] == pytest.approx(0.21527, abs=5e-6)
    # Fewer axes than classes hold fewer sets.
    narrow = theory.switched_off(dataclasses.replace(problem, d=2))
    assert max(4 - len(row.off) for row in narrow) == 2
    assert len(narrow) == 4 + 6


def test_what_the_closed_form_assumes_is_named():
    sound = PROBLEMS["unequal"]
    for change, reason in (
        ({"d": 3}, "d >= K"),
        ({"bias": True}, "no bias, or classes alike"),
        ({"loss": "Focal(gamma=2)"}, "cross-entropy or the squared error"),
        ({"lam_W": 0.0}, "lam_W, lam_H > 0"),
    ):
        with pytest.raises(ufm.Refused, match=reason):
            theory.global_value(dataclasses.replace(sound, **change))
    with pytest.raises(ufm.Refused, match="features='nonnegative'"):
        theory.margins(dataclasses.replace(sound, features="free"))
    with pytest.raises(ufm.Refused, match="a margin of its own"):
        theory.margin(sound)
    assert nonnegative.fails(sound) is None


def test_claims_name_the_paper_for_what_it_states_alone():
    plain, weighed = PROBLEMS["unequal"], PROBLEMS["weights"]
    first = theory.claims(plain)[0]
    assert (first.status, first.fails) == ("theorem", None)
    assert "2401.02058" in first.source
    assert theory.claims(weighed)[0].status == "candidate"
    held = {one.name for one in theory.claims(plain) if one.fails is None}
    # Nothing that is known of free features alone.
    assert held == {"orthogonal means", "classes that stay off"}


def test_key_and_none_give_axes_of_their_own():
    problem = PROBLEMS["equal"]
    first, other = (theory.global_minimizer(problem, key) for key in (None, jax.random.key(5)))
    assert np.any(np.asarray(first.H) != np.asarray(other.H))
    np.testing.assert_allclose(first.W @ first.H, other.W @ other.H, rtol=1e-15)
