"""Unequal classes: the block form against certificates and descent, laws within groups."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import ufm
from ufm import Problem, theory
from ufm.losses import CrossEntropy
from ufm.theory import groups

CASES = {
    "balanced": Problem(4, 4, 3, 1e-2, 2e-2, 1e-2),
    "two groups": Problem(6, 6, (9, 2, 9, 2, 9, 2), 1e-3, 2e-3, 0.0),
    "two groups, no bias": Problem(6, 5, (9, 2, 9, 2, 9, 2), 1e-2, 2e-2, bias=False),
    "merged": Problem(6, 7, (9, 9, 9, 1, 1, 1), 3e-2, 4e-2, 0.01),
    "all differ": Problem(4, 4, (8, 4, 2, 1), 1e-3, 2e-3, 1e-2),
    "layer-peeled": Problem(
        5, 6, (50, 50, 50, 2, 2), 2e-3, 1e-2, 0.0, decay_weights=[0.02] * 3 + [0.5] * 2
    ),
    "cost-sensitive": Problem(4, 5, (6, 6, 2, 2), 3e-3, 4e-3, 1e-2, weights=[1, 1, 3, 3]),
    "collapsed": Problem(3, 3, (2, 1, 1), 5.0, 5.0, 1e-2),
}
EACH = pytest.mark.parametrize("problem", CASES.values(), ids=CASES)


@EACH
def test_the_minimiser_is_certified_and_has_the_value_told(problem):
    told = groups.least(problem)
    point = groups.global_minimizer(problem, jax.random.key(0), jnp.float64)
    proof = ufm.certify(problem, point)
    assert abs(proof.value - told.value) <= 1e-13 * (1 + told.value)
    assert told.error <= 1e-12
    assert proof.gap <= 1e-12
    assert proof.grad_norm <= 1e-12
    assert np.linalg.matrix_rank(point.W, 1e-6) == told.rank
    if problem.decay_weights is None:
        np.testing.assert_allclose(
            groups.norms(problem), [np.linalg.norm(x) for x in point[:2]], rtol=1e-9, atol=1e-12
        )


@EACH
def test_own_less_other_within_a_group_follows_the_law(problem):
    told, law = groups.least(problem), theory.separation(problem)
    at = groups.groups(problem).of
    np.testing.assert_allclose((told.own - told.other)[at], law, rtol=0, atol=1e-10)
    t = np.where(np.isnan(law), np.nan, told.t[at])
    np.testing.assert_array_equal(theory.merged(problem), t == 0)


def test_the_value_is_that_of_descent_from_a_random_start():
    problem = CASES["two groups"]
    start = ufm.init_params(jax.random.key(1), problem, 1.0, jnp.float64)
    found = ufm.solve(problem, start)
    assert found.status == "converged"
    value = float(ufm.objective(problem, found.params))
    assert value == pytest.approx(theory.global_value(problem), rel=1e-12)


def test_equal_classes_have_the_closed_form_of_equal_classes():
    problem = CASES["balanced"]
    assert groups.least(problem).value == pytest.approx(theory.global_value(problem), rel=1e-13)
    np.testing.assert_allclose(groups.norms(problem), theory.norms(problem), rtol=1e-9)


@pytest.mark.parametrize("lam_b", [0.0, 1e-2])
def test_no_point_lies_below_the_certified_value(lam_b):
    problem = replace(CASES["all differ"], lam_b=lam_b)
    told, generator = groups.least(problem), np.random.default_rng(0)
    near = groups.global_minimizer(problem, jax.random.key(0), jnp.float64)
    for size in (1e-6, 1e-3, 1e-1, 1.0):
        for _ in range(5):
            moved = [x + size * generator.standard_normal(x.shape) for x in near]
            lams = problem.lam_W, problem.lam_H, problem.lam_b
            f = reference.objective(*moved, problem.labels, *lams)
            assert f >= told.value - told.error - 1e-15


@pytest.mark.parametrize("plain", [True, False])
def test_classes_merge_at_the_threshold(plain):
    """√n_k = Nμ, with decay_weights 1/n_k: n_k = Nμ."""
    n = (9, 9, 9, 4, 4)
    level = (2.0 if plain else 4.0) / sum(n)
    omega = None if plain else [1 / k for k in n]
    for share, expected in ((0.999, False), (1.001, True)):
        mu = level * share
        problem = Problem(5, 5, n, mu, mu, 0.0, decay_weights=omega)
        assert theory.merged(problem).tolist() == [False] * 3 + [expected] * 2
        W = np.asarray(groups.global_minimizer(problem, jax.random.key(0), jnp.float64).W)
        assert (np.linalg.norm(W[3] - W[4]) <= 1e-9) == expected


def test_a_thousand_classes_in_three_groups():
    n = (50,) * 500 + (20,) * 300 + (5,) * 200
    problem = Problem(1000, 1200, n, 1e-5, 1e-5, 0.0)
    told = groups.least(problem)
    assert told.error <= 1e-12
    assert told.rank == 999
    law = 1 - problem.N * problem.mu / np.sqrt([50, 20, 5])
    np.testing.assert_allclose(told.own - told.other, law, rtol=1e-9)


def test_seli_is_optimal_and_the_logits_tend_to_it():
    problem = CASES["all differ"]
    errors = []
    for lam in (1e-2, 1e-4, 1e-6, 1e-8):
        small = replace(problem, lam_W=lam, lam_H=lam, bias=False)
        assert theory.seli_is_optimal(small)
        point = theory.global_minimizer(small, jax.random.key(0), jnp.float64)
        Z = np.asarray(point.W @ point.H)[:, np.cumsum((0, 8, 4, 2))]
        Z, limit = Z - Z.mean(axis=0), theory.seli(small)
        errors.append(np.linalg.norm(Z / np.linalg.norm(Z) - limit / np.linalg.norm(limit)))
    assert all(np.diff(errors) < 0)
    assert errors[-1] < 0.1
    assert theory.seli_is_optimal(replace(problem, n=(1000, 10, 1, 1)))


def test_theory_answers_for_unequal_classes_and_says_so():
    problem = CASES["two groups"]
    fails = {claim.name: claim.fails for claim in theory.claims(problem)}
    assert fails["groups"] is None
    assert fails["within a group"] is None
    assert "equal class counts" in fails["simplex"]
    assert groups.norms(problem) == pytest.approx(theory.norms(problem))
    assert not theory.is_collapsed(problem)
    assert theory.is_collapsed(CASES["collapsed"])
    with pytest.raises(ufm.Refused, match="unequal class counts"):
        theory.margin(problem)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": CrossEntropy(0.1)}, "cross-entropy with labels"),
        ({"targets": np.eye(6)}, "cross-entropy with labels"),
        ({"d": 4}, "d >= K-1"),
        ({"lam_H": 0.0}, "lam_W, lam_H > 0"),
        ({"K": 20, "d": 20, "n": tuple(range(1, 21))}, "at most 16 groups"),
    ],
)
def test_problems_without_a_block_form_are_refused_with_the_reason(change, reason):
    problem = replace(CASES["two groups"], **change)
    for form in (groups.least, theory.separation, theory.merged, theory.seli_is_optimal):
        with pytest.raises(ufm.Refused, match=reason):
            form(problem)


def test_norms_with_weights_in_the_decay_are_refused():
    with pytest.raises(ufm.Refused, match="one norm of H"):
        theory.norms(CASES["layer-peeled"])
