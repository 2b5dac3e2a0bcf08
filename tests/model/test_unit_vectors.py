"""Unit vectors: what a problem on the sphere takes and refuses, its points, slopes and bound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm import Problem, theory
from ufm.commands.shared import ModelFlags
from ufm.losses import CrossEntropy, LogitAdjusted
from ufm.model import objective, sphere

ON = {"features": "sphere", "bias": False}
P = Problem(4, 3, (3, 2, 1, 2), loss=LogitAdjusted(5.0), weights=(1, 2, 0.5, 1), **ON)


def point(problem, seed=0):
    return ufm.init_params(seed, problem, dtype=np.float64)


def test_a_problem_on_the_sphere_has_no_decays_and_is_read_back_from_its_description():
    assert (P.lam_W, P.lam_H) == (0, 0)
    zero = Problem(4, 3, (3, 2, 1, 2), lam=0, loss=P.loss, weights=P.weights, **ON)
    assert zero == P
    assert Problem.from_description(P.describe()) == P
    assert P.describe()["features"] == "sphere"
    flags = ModelFlags(K=3, d=2, lam=0, bias=False, features="sphere")
    assert flags.problem().features == flags.config()["features"] == "sphere"
    assert jax.tree.unflatten(jax.tree.structure(P), jax.tree.leaves(P)) == P


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"lam_W": 1e-3}, r"got lam_W=0\.001 with features='sphere'; allowed: 0"),
        ({"lam": 1e-3}, "got lam_W"),
        ({"lam_H": np.array([0.0, 1.0])}, "got lam_H"),
        ({"bias": True}, "got bias=True with features='sphere'; allowed: bias=False"),
        ({"decay_weights": (1, 2, 3, 4)}, "got decay_weights with features='sphere'"),
        ({"d": 1}, "got d=1 with features='sphere'; allowed: d >= 2"),
        ({"fixed": ("W",)}, "got fixed="),
    ],
)
def test_what_has_no_meaning_there_is_refused(given, told):
    with pytest.raises(ufm.Refused, match=told):
        Problem(**{"K": 4, "d": 3, "n": 1} | ON | given)


def test_starts_are_uniform_on_the_sphere_and_none_is_zero():
    for dtype, digits in ((np.float64, 1e-15), (np.float32, 1e-6)):
        W, H, b = ufm.init_params(1, P, 7.0, dtype)
        assert np.abs(np.linalg.norm(W, axis=1) - 1).max() <= 2 * digits
        assert np.abs(np.linalg.norm(H, axis=0) - 1).max() <= 2 * digits
        assert not b.any()
    with pytest.raises(ufm.Refused, match="a zero vector has no direction"):
        ufm.init_params(1, P, 0.0)
    with pytest.raises(ufm.Refused, match="4 rows of W off norm 1, one of 2"):
        ufm.init_params(1, P, W=2 * np.eye(3)[[0, 1, 2, 0]])


@pytest.mark.parametrize(
    "ask",
    [
        ufm.certify,
        ufm.hessian.verdict,
        lambda problem, params: ufm.descend(problem, params, "gd", steps=1),
        ufm.solve,
    ],
)
def test_points_off_the_sphere_are_refused_with_a_word(ask):
    x = point(P)
    for W, told in ((x.W.at[1].set(0), "zero vector"), (1.001 * x.W, "4 rows of W off norm 1")):
        with pytest.raises(ufm.Refused, match=told):
            ask(P, x._replace(W=W))
    with pytest.raises(ufm.Refused, match="1 columns of H off norm 1"):
        ask(P, x._replace(H=x.H.at[:, 2].multiply(0.5)))


def test_the_slope_is_the_derivative_of_f_of_normalised_vectors():
    x = point(P)

    def f(W, H):
        return objective.objective(P, sphere.project(x._replace(W=W, H=H)))

    with jax.enable_x64(True):
        wanted = jax.jit(jax.grad(f, argnums=(0, 1)))(x.W, x.H)
        found = sphere.tangent(x, objective.gradient(P, x))
        for slope, own in zip(found, wanted, strict=False):
            assert slope == pytest.approx(np.asarray(own), abs=1e-14)
        norm = float(objective.gradient_norm(P, x))
    assert norm == pytest.approx(float(jnp.sqrt(sum(jnp.sum(g**2) for g in wanted))), rel=1e-13)


def test_frames_are_orthonormal_tangents():
    X = np.concatenate([np.random.default_rng(0).normal(size=(5, 4)), np.eye(4), -np.eye(4)])
    X = jnp.asarray(X / np.linalg.norm(X, axis=1, keepdims=True))
    with jax.enable_x64(True):
        F = np.asarray(sphere.frames(X))
    assert np.einsum("kad,kbd->kab", F, F) == pytest.approx(np.broadcast_to(np.eye(3), (13, 3, 3)))
    assert np.einsum("kad,kd->ka", F, X) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("K", "d"), [(3, 2), (4, 3), (4, 6), (10, 9)])
@pytest.mark.parametrize("tau", [1.0, 10.0, 40.0])
def test_the_certificate_closes_at_the_simplex(K, d, n, tau):
    problem = Problem(K, d, n, loss=LogitAdjusted(tau), **ON)
    found = ufm.certify(problem, theory.global_minimizer(problem, 1, np.float64))
    least = theory.sphere_value(K, tau)
    assert theory.global_value(problem) == least
    assert found.value == pytest.approx(least, rel=1e-12)
    assert 0 <= found.gap <= 1e-9 * least
    assert found.gap <= found.resolution <= 1e-9 * least
    assert found.grad_norm <= 1e-11 * least


def value(x, problem):
    """f and the normalised point, from an own parametrisation."""
    K, d, N, tau = problem.K, problem.d, problem.N, float(problem.loss.scale)
    W, H = x[: K * d].reshape(K, d), x[K * d :].reshape(d, N)
    W, H = W / np.linalg.norm(W, axis=1)[:, None], H / np.linalg.norm(H, axis=0)
    Z = tau * W @ H
    top = Z.max(axis=0)
    losses = top + np.log(np.exp(Z - top).sum(axis=0)) - Z[problem.labels, np.arange(N)]
    c = np.ones(K) if problem.weights is None else np.asarray(problem.weights)
    return float(np.sum(c[problem.labels] * losses) / N), (W, H)


@pytest.mark.parametrize(
    ("K", "d", "n", "tau", "weights"),
    [
        (3, 2, 2, 2.0, None),
        (4, 3, (6, 3, 2, 1), 5.0, None),
        (4, 2, (1, 2, 1, 1), 3.0, (1, 2, 0.5, 1)),
        (5, 3, 1, 4.0, None),
    ],
)
def test_no_minimum_of_scipy_is_below_the_certificate_of_any_point(K, d, n, tau, weights):
    problem = Problem(K, d, n, loss=LogitAdjusted(tau), weights=weights, **ON)
    rng = np.random.default_rng(3)
    starts = rng.normal(size=(4, K * d + d * problem.N))
    ends = [
        scipy.optimize.minimize(lambda x: np.log(value(x, problem)[0]), x, tol=1e-12)
        for x in starts
    ]
    best = min(ends, key=lambda end: end.fun)
    least, (W, H) = value(best.x, problem)
    at = ufm.Params(W, H, np.zeros(K))
    proof = ufm.certify(problem, at)
    assert proof.value == pytest.approx(least, rel=1e-12)
    for x in starts:
        W, H = value(x, problem)[1]
        assert ufm.certify(problem, ufm.Params(W, H, np.zeros(K))).lower_bound <= least
    # Tight where the width lets it, unequal classes and weights included.
    if d >= K - 1:
        assert proof.gap <= 1e-4 * least


def test_values_are_those_of_cross_entropy_at_the_temperature():
    plain = dataclasses.replace(P, loss=CrossEntropy())
    warm = dataclasses.replace(P, loss=LogitAdjusted(1.0))
    x = point(P)
    assert ufm.certify(plain, x).value == pytest.approx(ufm.certify(warm, x).value, rel=1e-14)
    flat = np.concatenate([np.ravel(x.W), np.ravel(x.H)])
    assert ufm.certify(P, x).value == pytest.approx(value(flat, P)[0], rel=1e-13)


def test_single_precision_points_are_judged_on_the_sphere():
    x = point(P)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), x)
    assert ufm.certify(P, single).value == pytest.approx(ufm.certify(P, x).value, rel=1e-6)


@pytest.mark.parametrize(
    "ask",
    [
        lambda problem, _: ufm.critical.census(problem, 0),
        lambda problem, x: ufm.critical.escape(problem, x, 0),
        lambda problem, x: ufm.critical.fingerprint(problem, x),
        lambda problem, x: ufm.critical.judge(problem, x, 0.0, {}),
        lambda problem, x: ufm.hessian.extreme(problem, x),
        lambda problem, x: ufm.hessian.smallest(problem, x),
        lambda problem, x: ufm.hessian.witness(problem, x),
        lambda problem, _: theory.hessian_spectrum(problem),
        lambda problem, _: theory.check_assumptions(problem),
        lambda problem, _: theory.certified_minimum(problem),
        lambda problem, x: ufm.descend(problem, x, "gd", steps=1, record="index"),
    ],
)
def test_what_does_not_know_the_sphere_says_so(ask):
    with pytest.raises(ufm.Refused, match=r"got features='sphere' in|got a problem.*features"):
        ask(P, point(P))
