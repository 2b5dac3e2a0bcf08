"""Stationary points with H ≥ 0: solved to rounding, judged on their face, counted in a census."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import random_params, value
from laws import slope as slope_of

import ufm
from ufm import theory
from ufm.critical import kkt
from ufm.hessian import faces
from ufm.losses import BinaryCrossEntropy, CrossEntropy, LogitAdjusted, SquaredError
from ufm.model import layers
from ufm.model.evaluation import evaluate
from ufm.model.problem import Params, Problem

P = Problem(3, 4, (5, 3, 1), 6e-3, 6e-3, bias=False, features="nonnegative")


def start(problem, seed, scale=1.0):
    return layers.project(problem, random_params(problem, seed, scale))


def off(problem, k):
    """The local minimum in which class k is off, its axes those of class 0 (d > K allowed)."""
    W, H, b = (np.array(x) for x in theory.global_minimizer(problem, None))
    shared = [i for i in range(problem.d) if i == 0 or i == k or i >= problem.K]
    w, h = W[:, 0] / len(shared) ** 0.5, H[0, 0] / len(shared) ** 0.5
    for i in shared:
        W[:, i], H[i] = w, np.where(problem.labels == 0, h, 0)
    return Params(*(jnp.asarray(x) for x in (W, H, b)))


@functools.cache
def taken():
    return ufm.critical.census(P, 1, starts=48, rounds=1)


@pytest.mark.parametrize(
    "change",
    [{}, {"bias": True, "lam_b": 0.02}, {"lam_W": 6e-7, "lam_H": 60.0}],
    ids=str,
)
def test_every_start_ends_at_a_stationary_point_at_rounding(change):
    problem = dataclasses.replace(P, **change)
    starts = jax.tree.map(lambda *x: jnp.stack(x), *(start(problem, seed) for seed in range(8)))
    found = ufm.solve(problem, starts)
    assert set(found.status) == {"converged"}
    for i in range(8):
        point = jax.tree.map(lambda x, i=i: x[i], found.params)
        slope = slope_of(problem, point)
        H, M = np.asarray(point.H), np.asarray(slope.H)
        # Karush, Kuhn, Tucker, by hand.
        limit = 4e-14 * found.scale[i]
        assert H.min() >= 0
        assert np.linalg.norm(np.where(H > 0, M, np.minimum(M, 0))) <= limit
        assert np.linalg.norm(slope.W) <= limit
        assert found.multiplier[i] == np.min(M[H == 0], initial=np.inf)
        # The samples of a class are equal.
        assert all(np.ptp(H[:, problem.labels == k], axis=1).max() == 0 for k in range(3))
        assert value(problem, point) <= value(problem, start(problem, i))


@pytest.mark.parametrize("n", [(6, 3, 1), 2], ids=["unequal", "equal"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "loss",
    [SquaredError(), CrossEntropy(), BinaryCrossEntropy(), CrossEntropy(0.1), LogitAdjusted()],
    ids=["squared", "cross-entropy", "binary", "smoothed", "adjusted"],
)
def test_no_loss_stalls_at_multipliers_that_are_zero(loss, bias, n):
    """Those of the squared error without a bias are all 0 at its minima: Newton needs few steps.

    Any λ off the thresholds at which a class turns off, where minima are flat to fourth order.
    """
    problem = Problem(3, 4, n, loss=loss, bias=bias, features="nonnegative", lam=1e-3)
    for seed, (lam_W, lam_H) in enumerate([(1e-3, 1e-3), (3e-2, 2e-3), (5e-3, 2e-2)]):
        changed = dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H)
        starts = [start(changed, 10 * seed + i, 0.3 * 3**i) for i in range(3)]
        found = ufm.solve(changed, jax.tree.map(lambda *x: jnp.stack(x), *starts))
        assert set(found.status) == {"converged"}
        assert np.all(found.residual <= 4e-14 * found.scale)
        assert np.median(found.newton_steps) <= 4  # 15 to 45 where rotations are halved
        assert np.all(found.multiplier >= -1e-13)


def test_one_start_gives_python_numbers_and_free_features_no_multiplier():
    found = ufm.solve(P, start(P, 0))
    assert type(found.residual) is type(found.multiplier) is float
    free = dataclasses.replace(P, features="free")
    assert ufm.solve(free, start(P, 0)).multiplier is None


def test_negative_starts_and_problems_beyond_matrices_are_refused():
    with pytest.raises(ufm.Refused, match="negative entries in H"):
        ufm.solve(P, random_params(P))
    with pytest.raises(ufm.Refused, match="variables of class means"):
        kkt.check(dataclasses.replace(P, d=2000))


def test_the_minimum_a_class_off_and_the_origin_are_told_apart():
    kinds = {
        "global minimiser": theory.global_minimizer(P, 0),
        "local minimiser": off(P, 2),
        "strict saddle": jax.tree.map(jnp.zeros_like, start(P, 0)),
    }
    for kind, point in kinds.items():
        assert ufm.hessian.verdict(P, point).kind == kind
    assert ufm.hessian.verdict(P, start(P, 0)).kind == "not critical"


@pytest.mark.parametrize("d", [2, 3, 5, 8])
@pytest.mark.parametrize("n", [(5, 3, 1), 2], ids=["unequal", "equal"])
def test_classes_that_stay_off_are_local_minima_for_any_width(n, d):
    """Also for equal classes, where no imbalance is needed."""
    problem = dataclasses.replace(P, n=n, d=max(d, 3))
    point = off(problem, 2)
    if d < 3:  # two classes on two axes
        kept = [0, 1]
        problem = dataclasses.replace(problem, d=2)
        W, H = point.W[:, kept] * jnp.array([2**0.5, 1]), point.H[jnp.array(kept)]
        point = Params(W, H * jnp.array([[2**0.5], [1]]), point.b)
    at = evaluate(problem, point)
    assert at.value == pytest.approx(next(
        x.value for x in theory.switched_off(problem) if x.off == (2,)), rel=1e-14)  # fmt: skip
    proof = ufm.certify(problem, point)
    found = faces.judged(at, proof.gap, proof.resolution)
    assert found.kind == "local minimiser"
    assert found.multiplier > 1e-5
    # Class 0 may turn among its axes: a sphere of one dimension less.
    assert found.symmetries == problem.d - 2
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2):
        for _ in range(100):
            moved = (x + size * rng.standard_normal(x.shape) for x in point)
            moved = layers.project(problem, Params(*moved)._replace(b=point.b))
            assert value(problem, moved) >= at.value


def test_an_idle_axis_lets_a_class_turn_on():
    """The same zeros with an axis that no class has: a saddle, and the way down is along it."""
    point = theory.global_minimizer(P, None)
    H = jnp.where(jnp.asarray(P.labels) == 2, 0, point.H)
    point = point._replace(W=point.W.at[:, 2].set(0), H=H)
    found = ufm.hessian.verdict(P, point)
    assert found.kind == "strict saddle"
    assert "idle axis" in found.reason
    G = np.asarray(evaluate(P, point).G)[:, P.labels == 2]
    t = 1e-3
    down = point._replace(
        W=point.W.at[:, 2].set(-t * G[:, 0] / np.linalg.norm(G[:, 0])),
        H=point.H.at[2].set(jnp.where(jnp.asarray(P.labels) == 2, t, 0)),
    )
    change = float(value(P, down) - value(P, point)) / (t**2 * (1 + G.shape[1]) / 2)
    assert change < 0


def test_the_census_finds_the_minima_with_classes_off():
    found = taken()
    values = {row.off: row.value for row in theory.switched_off(P)}
    minima = [x for x in found.orbits if x.kind in ("global minimiser", "local minimiser")]
    assert found.orbits[0].kind == "global minimiser"
    assert found.orbits[0].value == pytest.approx(values[()], rel=1e-12)
    # Nothing but the values of theory, and the first class off among them.
    for orbit in minima:
        assert min(abs(orbit.value / x - 1) for x in values.values()) <= 1e-10
    assert any(abs(x.value / values[(2,)] - 1) <= 1e-10 for x in minima)
    assert all(x.kind != "undecided" for x in found.orbits)
    assert found.refused["descended"] == 0


def test_fingerprints_forget_the_order_of_axes_and_know_idle_ones():
    point = off(P, 2)
    turned = point._replace(W=point.W[:, ::-1], H=point.H[::-1])
    prints = [ufm.critical.fingerprint(P, x) for x in (point, turned)]
    np.testing.assert_allclose(*prints, atol=1e-14)
    size = 3**0.5  # class 0 on one axis, the two others idle
    alone = point._replace(
        W=point.W.at[:, 2:].set(0).at[:, 0].multiply(size),
        H=point.H.at[2:].set(0).at[0].multiply(size),
    )
    other = ufm.critical.fingerprint(P, alone)
    assert float(jnp.max(jnp.abs(other - prints[0]))) >= 1
    np.testing.assert_allclose(other[:-1], prints[0][:-1], atol=1e-14)
