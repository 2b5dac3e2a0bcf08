"""The sphere: the closed form, and a bound that no point falls below."""

import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm import geometry, theory


def unit(rng, *shape):
    X = rng.normal(size=shape)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def direct(W, H, tau, s):
    """Mean cross-entropy by its definition."""
    Z = tau * W @ H
    return float(np.sum(s * (np.log(np.sum(np.exp(Z), axis=0)) - np.diagonal(Z))))


def minimised(K, d, tau, s, seed):
    rng = np.random.default_rng(seed)

    def parts(x):
        X = x.reshape(2, K, d)
        X = X / np.linalg.norm(X, axis=2, keepdims=True)
        return X[0], X[1].T

    best = scipy.optimize.minimize(
        lambda x: np.log(direct(*parts(x), tau, s)), rng.normal(size=2 * K * d), method="BFGS",
        options={"gtol": 1e-9, "maxiter": 2000},
    )  # fmt: skip
    return parts(best.x)


@pytest.mark.parametrize(("K", "d"), [(2, 1), (3, 2), (5, 4), (7, 9)])
@pytest.mark.parametrize("tau", [0.5, 5.0, 30.0])
def test_a_simplex_has_the_closed_form_and_a_certificate(K, d, tau):
    W = np.asarray(geometry.simplex_etf(K, d), np.float64)
    found = theory.sphere_bound(W, W.T, tau)
    least = theory.sphere_value(K, tau)
    assert found.value == pytest.approx(least, rel=1e-12)
    assert found.value == pytest.approx(direct(W, W.T, tau, 1 / K), rel=1e-9)
    assert -1e-15 <= found.gap <= 1e-9 * (1 + tau)
    assert found.gap <= 1e-9 * least + 1e-14


def test_no_point_is_below_the_bound_of_any_other():
    rng = np.random.default_rng(0)
    for _ in range(200):
        K, d, tau = int(rng.integers(2, 6)), int(rng.integers(1, 6)), 10 ** rng.uniform(-1, 1.3)
        s = rng.uniform(0.1, 1, K)
        s /= s.sum()
        pairs = [(unit(rng, K, d), unit(rng, K, d).T) for _ in range(3)]
        values = [direct(*pair, tau, s) for pair in pairs]
        bounds = [theory.sphere_bound(*pair, tau, s) for pair in pairs]
        assert [x.value for x in bounds] == pytest.approx(values, rel=1e-10)
        assert max(x.lower_bound for x in bounds) <= min(values) * (1 + 1e-12)


def test_spheres_do_not_cure_imbalance():
    """n = (5, 2, 1), τ = 4: a certified point below the simplex."""
    s = np.array([5.0, 2.0, 1.0]) / 8
    W, H = minimised(3, 3, 4.0, s, 1)
    found = theory.sphere_bound(W, H, 4.0, [5, 2, 1])
    assert found.gap <= 1e-6 * found.value
    assert found.value < 0.99 * theory.sphere_value(3, 4.0)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.eye(3), np.eye(3)[:, :2], 1.0), (2 * np.eye(3), np.eye(3), 1.0), (np.eye(3), "H", 1.0),
        (np.eye(3), np.eye(3), 0.0), (np.eye(3), np.eye(3), 1.0, [1, 2]),
        (np.eye(3), np.eye(3), 1.0, [1, 0, 1]), (np.full((3, 3), np.nan), np.eye(3), 1.0),
    ],
)  # fmt: skip
def test_what_is_no_point_of_the_sphere_is_refused(arguments):
    with pytest.raises(ufm.Refused, match="got"):
        theory.sphere_bound(*arguments)


def on_the_sphere(K, d, n=1, tau=5.0, **given):
    loss = ufm.losses.LogitAdjusted(tau)
    return ufm.Problem(K, d, n, bias=False, features="sphere", **{"loss": loss} | given)


@pytest.mark.parametrize("tau", [0.5, 5.0, 60.0])
def test_codes_have_the_closed_forms_of_polygon_and_orthoplex(tau):
    polygon = theory.code_minimum(on_the_sphere(7, 2, 2, tau))
    angles = 2 * np.pi * np.arange(1, 7) / 7
    wanted = np.log1p(np.sum(np.exp(-tau * (1 - np.cos(angles)))))
    assert polygon.value == pytest.approx(wanted, rel=1e-12)
    cross = theory.code_minimum(on_the_sphere(8, 4, 1, tau))
    wanted = np.log1p(6 * np.exp(-tau) + np.exp(-2 * tau))
    assert (cross.value, cross.scale) == (pytest.approx(wanted, rel=1e-12), tau)
    for problem, code in (
        (on_the_sphere(7, 2, 2, tau), polygon),
        (on_the_sphere(8, 4, 1, tau), cross),
    ):
        proof = ufm.certify(problem, code.params)
        assert proof.value == pytest.approx(code.value, rel=1e-12)
        assert proof.grad_norm <= 1e-12 * code.value * (1 + tau)


def test_a_simplex_as_a_code_is_the_minimum():
    problem = on_the_sphere(4, 3)
    assert theory.code_minimum(problem).value == pytest.approx(theory.global_value(problem))


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (on_the_sphere(5, 3), r"needs d >= K-1 \(got d=3, K-1=4\)"),
        (on_the_sphere(3, 2, (2, 1, 1)), "needs equal classes of one weight"),
        (on_the_sphere(3, 2, weights=(1, 2, 1)), "needs equal classes of one weight"),
        (on_the_sphere(3, 2, loss="SquaredError"), "needs cross-entropy with one temperature"),
        (on_the_sphere(3, 2, loss="LogitAdjusted(scale=(1,2,3))"), "with one temperature"),
        (
            on_the_sphere(3, 2, targets=np.eye(3), loss="CrossEntropy"),
            r"needs labels \(got targets",
        ),
    ],
)
def test_outside_the_closed_form_the_assumption_that_fails_is_named(problem, told):
    for ask in (theory.global_value, theory.is_collapsed, theory.margin, theory.norms):
        with pytest.raises(ufm.Refused, match=told):
            ask(problem)
    claim = theory.claims(problem)[0]
    assert claim.name == "simplex on the sphere"
    assert claim.fails is not None


def test_what_is_known_of_the_simplex_is_that_of_its_point():
    problem = on_the_sphere(4, 5, 3)
    W, H, b = theory.global_minimizer(problem, 2, np.float64)
    assert theory.norms(problem) == pytest.approx((np.linalg.norm(W), np.linalg.norm(H)))
    Z = np.asarray(W @ H)
    assert Z[0, 0] - Z[1, 0] == pytest.approx(theory.margin(problem))
    assert not theory.is_collapsed(problem)
    assert not b.any()
    assert theory.claims(problem)[0].fails is None
    with pytest.raises(ufm.Refused, match="rows that are not of norm 1"):
        theory.code_minimum(problem, rows=2 * W)
