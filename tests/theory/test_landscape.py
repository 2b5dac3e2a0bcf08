"""The theorems on the landscape against dense spectra, everywhere and at what censuses find."""

import functools
import itertools
import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference

import ufm
from ufm import hessian, theory
from ufm.critical import census
from ufm.model import quotient
from ufm.model.evaluation import evaluate
from ufm.model.problem import Params, Problem

BIASES = {"bias": {"lam_b": 2e-2}, "free-bias": {"lam_b": 0.0}, "no-bias": {"bias": False}}
COUNTS = {"equal": 2, "unequal": (3, 2, 1)}


def norm_of_G(problem, params):
    """‖G‖₂ by the loops."""
    point = laws.reference_point(problem, params)
    return np.linalg.norm(
        reference.scaled_residuals(*point, np.array(laws.class_of_samples(problem))), 2
    )


def least(problem, params):
    """(least eigenvalue of the dense Hessian, rounding of it)."""
    eigenvalues = np.linalg.eigvalsh(hessian.dense(problem, params))
    return eigenvalues[0], 1e-13 * np.max(np.abs(eigenvalues))


# The bound, at any point


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_no_eigenvalue_lies_below_the_bound_at_any_point(bias, counts, d):
    for seed, (lam_W, lam_H) in enumerate(
        [(1e-2, 1e-2), (3e-1, 1e-3), (1e-4, 2e-1), (0.0, 1e-2), (1.0, 2.0), (0.0, 0.0)]
    ):
        problem = Problem(3, d, COUNTS[counts], lam_W, lam_H, **BIASES[bias])
        for scale in (0.1, 1.0, 10.0):
            point = laws.random_params(problem, seed, scale)
            found, rounding = least(problem, point)
            norm = norm_of_G(problem, point)
            assert found >= theory.least_eigenvalue_bound(problem, norm) - rounding


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("strong", [0.0, 1.0])
def test_the_bound_is_the_least_eigenvalue_where_a_direction_is_free(bias, counts, strong):
    """At points that are not critical too; `strong` decay, at which λ₋ > 0 and λ_b may be least."""
    problem = Problem(3, 4, COUNTS[counts], 1e-2 + strong, 3e-3 + 2 * strong, **BIASES[bias])
    for seed in range(6):
        W, H, b = laws.random_params(problem, seed)
        Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0][:, :3]
        point = Params(W @ Q @ Q.T, Q @ (Q.T @ H), b)
        found, rounding = least(problem, point)
        assert (
            abs(found - theory.least_eigenvalue_bound(problem, norm_of_G(problem, point)))
            <= rounding
        )
    free = theory.least_free_eigenvalue(problem, norm_of_G(problem, point))
    assert (free > 0) == bool(strong)


def test_a_decay_of_the_bias_is_an_eigenvalue_at_any_point():
    for lam_b in (0.0, 0.3, 40.0):
        problem = Problem(4, 3, (3, 1, 2, 2), 1e-2, 3e-2, lam_b)
        eigenvalues = np.linalg.eigvalsh(hessian.dense(problem, laws.random_params(problem)))
        distance = np.min(np.abs(eigenvalues - lam_b))
        assert distance <= 1e-14 * max(np.max(np.abs(eigenvalues)), 1)


@pytest.mark.parametrize("off", [1e-3, 1e-8, 1e-13])
@pytest.mark.parametrize("side", [-1, 1])
def test_the_eigenvalue_of_the_plane_has_all_digits_near_zero(off, side):
    lam_W, lam_H = 3e-2, 5e-4
    problem = Problem(3, 3, 1, lam_W, lam_H)
    mu = math.sqrt(lam_W) * math.sqrt(lam_H)
    norm = mu * (1 + side * off)
    with localcontext() as context:
        context.prec = 60
        w, h, g = Decimal(lam_W), Decimal(lam_H), Decimal(norm)
        exact = (w + h) / 2 - (((w - h) / 2) ** 2 + g * g).sqrt()
    # μ itself is known to an ulp or two: the digits of what is left of μ − ‖G‖₂, and no fewer.
    error = 4 * laws.eps("float64") * mu * 2 * norm / (lam_W + lam_H)
    assert abs(theory.least_free_eigenvalue(problem, norm) - float(exact)) <= error
    assert theory.least_free_eigenvalue(problem, norm) * side < 0


@pytest.mark.parametrize("norm", [-1.0, float("nan"), "x"])
def test_a_norm_that_is_none_is_refused(norm):
    with pytest.raises(ufm.Refused, match="spectral_norm"):
        theory.least_eigenvalue_bound(Problem(3, 3, 1, 1e-2, 1e-2), norm)


# Censuses at d = K − 1, and their points wider and narrower

SEARCHED = {
    "three": Problem(3, 2, 1, 1e-2, 2e-2, 1e-2),
    "three-free-bias": Problem(3, 2, 2, 2e-2, 1e-2, 0.0),
    "three-unequal": Problem(3, 2, (3, 2, 1), 4e-3, 1e-2, 1e-2),
    "three-unequal-no-bias": Problem(3, 2, (4, 1, 1), 1e-2, 4e-3, bias=False),
    "three-on-a-line": Problem(3, 1, (3, 2, 1), 4e-3, 1e-2, 1e-2),
    "four": Problem(4, 3, 1, 5e-3, 1e-2, 1e-2),
    "four-unequal": Problem(4, 3, (4, 3, 2, 1), 2e-3, 3e-3, 1e-2),
}
CENSUS, WIDE = (
    pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.long) if problem.K > 3 else name
            for name, problem in SEARCHED.items()
            if problem.d >= problem.K - below
        ],
    )
    for below in (2, 1)
)


@functools.cache
def orbits_of(name):
    """(orbit, its point in the problem's own variables) of a small census."""
    problem = SEARCHED[name]
    found = census(problem, jax.random.key(1), starts=24, rounds=1)
    assert len(found.orbits) >= 2
    frame = jnp.eye(problem.d, found.orbits[0].params.W.shape[1], dtype=jnp.float64)
    points = [Params(*map(jnp.asarray, x.params)) for x in found.orbits]
    return [
        (x, quotient.lift(problem, point, frame))
        for x, point in zip(found.orbits, points, strict=True)
    ]


@WIDE
def test_every_orbit_at_d_of_k_minus_1_is_a_global_minimiser_or_a_strict_saddle(name):
    problem = SEARCHED[name]
    for orbit, point in orbits_of(name):
        found, rounding = least(problem, point)
        ratio, full = norm_of_G(problem, point) / problem.mu, orbit.rank == problem.K - 1
        # Points are polished to 1e-14, and the smallest singular value of W is of order 1.
        assert abs(ratio - 1) < 1e-10 if full else orbit.rank < problem.K - 1
        if ratio > 1 + 1e-10:
            assert found < -rounding
            assert orbit.kind == "strict saddle"
            assert "by the theorem for d >= K-1" in orbit.reason
        else:
            assert orbit.kind == "global minimiser"
            assert ufm.certify(problem, point).gap < 1e-12


@CENSUS
def test_the_bound_holds_at_every_orbit_and_is_attained_from_d_of_k_minus_1_on(name):
    problem = SEARCHED[name]
    (equality,) = (x for x in theory.claims(problem) if x.name == "least eigenvalue, equality")
    for _, point in orbits_of(name):
        found, rounding = least(problem, point)
        bound = theory.least_eigenvalue_bound(problem, norm_of_G(problem, point))
        assert found >= bound - rounding - 1e-12
        if equality.fails is None:
            assert found == pytest.approx(bound, abs=rounding + 1e-12)


def test_with_two_classes_on_a_line_the_minimum_is_above_the_bound():
    """The one case with d = K−1 in which the bound is not attained: no orbit, and no free axis."""
    problem = Problem(2, 1, 3, 1e-2, 2e-2, 1e-2)
    point = laws.minimizer(problem)
    bound = theory.least_eigenvalue_bound(problem, norm_of_G(problem, point))
    assert abs(bound) < 1e-15
    assert least(problem, point)[0] > 1e-3
    names = {x.name for x in theory.claims(problem) if x.fails is not None}
    assert names == {"SELI", "least eigenvalue, equality"}


def test_a_saddle_whose_rank_is_full_by_rounding_alone_is_one_by_the_theorem():
    problem = SEARCHED["three"]
    saddles = [x for x, _ in orbits_of("three") if x.rank == 1]
    assert saddles
    for orbit in saddles:
        W, H, b = map(np.array, orbit.params)
        # A second dimension as long as rounding leaves it; critical to 1e-8 all the same.
        W[:, 1] += 1e-12 * np.array([1.0, -1.0, 0.0])
        W, H = W @ (Q := np.linalg.qr([[1.0, 2.0], [3.0, 1.0]])[0]), Q.T @ H
        found = hessian.verdict(problem, Params(W, H, b))
        assert found.kind == "strict saddle"
        assert "by the theorem for d >= K-1 (d=2, K=3)" in found.reason


# Which theorems hold


def test_the_theorem_of_the_simplex_asks_for_what_the_closed_form_asks_for():
    for K, d, n, lams in itertools.product(
        (2, 4), (1, 2, 3, 5), (2, (3, 1, 2, 2)), ((1e-2, 1e-2), (0.0, 1e-2), (1e-2, 0.0))
    ):
        problem = Problem(K, d, n if isinstance(n, int) else n[:K], *lams)
        try:
            theory.check_assumptions(problem)
            refused = False
        except ufm.Refused:
            refused = True
        (simplex,) = (x for x in theory.claims(problem) if x.name == "simplex")
        assert (simplex.fails is not None) == refused


GROUPED = ("groups", "within a group", "SELI")


@pytest.mark.parametrize(
    ("problem", "fails"),
    [
        (Problem(4, 3, (4, 3, 2, 1), 1e-2, 1e-2), {"simplex", "SELI"}),
        (
            Problem(4, 2, 3, 1e-2, 1e-2),
            {"simplex", "full rank", "benign landscape", "least eigenvalue, equality", *GROUPED},
        ),
        (
            Problem(4, 6, 3, 1e-2, 0.0),
            {"simplex", "samples", "certificate", "full rank", "benign landscape",
             "least eigenvalue, equality", *GROUPED},
        ),
        (Problem(4, 3, 3, 1e-2, 1e-2, bias=False), set()),
    ],
)  # fmt: skip
def test_the_theorems_that_fail_are_those_whose_assumptions_do(problem, fails):
    assert {x.name for x in theory.claims(problem) if x.fails} == fails


@pytest.mark.parametrize("omega", [None, (0.25, 0.5, 4.0)])
def test_the_claims_name_the_norm_that_is_mu_at_the_minimum(omega):
    """‖G‖₂, and ‖GΩ^-½‖₂ with weights in the decay."""
    problem = Problem(3, 3, (4, 2, 1), 5e-3, 1e-2, decay_weights=omega)
    G = evaluate(problem, theory.global_minimizer(problem, 0, jnp.float64)).G
    roots = np.sqrt(1.0 if omega is None else np.asarray(omega))
    scaled = G / (roots if omega is None else roots[problem.labels])
    assert np.linalg.norm(scaled, 2) == pytest.approx(problem.mu, rel=1e-6)
    name = "‖G‖₂" if omega is None else "‖GΩ^-½‖₂"
    stated = {x.name: x.statement for x in theory.claims(problem)}
    assert f" {name} ≤ μ" in stated["certificate"]
    assert f" {name} = μ" in stated["full rank"]


def test_claims_make_nothing_of_the_size_of_k_for_equal_classes():
    shape = {"K": 2**51 + 1, "d": 20, "n": 1, "lam": 1e-3}
    for more in ({}, {"features": "nonnegative"}, {"loss": ufm.losses.Focal(2.0)}):
        found = {one.name: one.fails for one in theory.claims(Problem(**shape, **more))}
        assert "K-1" in found["benign landscape"]
    with pytest.raises(ufm.Refused, match=r"needs at least .* GiB"):
        theory.claims(Problem(**shape, loss=ufm.losses.SquaredError()))
