"""Frames beyond the simplex, features outside, effective rank, regression, by slow references."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import ufm
from ufm import metrics
from ufm.metrics import frames

FEW = settings(deadline=None, max_examples=20, derandomize=True)
SEEDS = st.integers(0, 10**6)
SHAPES = [(2, 2), (3, 2), (4, 7), (9, 3), (6, 6)]


def unit(rows):
    return np.stack([row / np.sqrt(sum(row**2)) for row in rows])


def pairs(rows):
    return [(rows[j], rows[k]) for j, k in itertools.permutations(range(len(rows)), 2)]


def simplex(K, d):
    """Rows of a simplex of unit vectors, in any orientation."""
    frame = np.linalg.qr(np.random.default_rng(K).standard_normal((d, K)))[0]
    return unit((np.eye(K) - 1 / K) @ frame.T)


def reference(W, means):
    """The definitions, by loops over pairs."""
    M = means - sum(means) / len(means)
    K, v, m = len(W), unit(W), unit(M)
    logs = {
        name: [-np.log(np.sqrt(sum((x - y) ** 2))) for x, y in pairs(rows)]
        for name, rows in (("W", v), ("means", m))
    }
    cosines = [sum(x * y) for x, y in zip(v, m, strict=True)]

    def orthogonal(G):
        return np.linalg.norm(G / np.linalg.norm(G) - np.eye(K) / np.sqrt(K))

    def general(G):
        D = np.diag(np.diag(G))
        return np.linalg.norm(G / np.linalg.norm(G) - D / np.linalg.norm(D))

    return {
        "uniformity_W": np.mean(logs["W"]), "uniformity_means": np.mean(logs["means"]),
        "uniformity_std_W": np.std(logs["W"]), "uniformity_std_means": np.std(logs["means"]),
        "duality": np.mean(cosines), "duality_std": np.std(cosines),
        "orthogonal_W": orthogonal(W @ W.T), "orthogonal_means": orthogonal(means @ means.T),
        "orthogonal_product": orthogonal(W @ means.T),
        "general_orthogonal_W": general(W @ W.T),
        "general_orthogonal_means": general(means @ means.T),
    }  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@FEW
@given(seed=SEEDS)
def test_every_field_is_its_definition(shape, seed):
    W, means = np.random.default_rng(seed).standard_normal((2, *shape))
    found = metrics.generalised(W, means)._asdict()
    for name, value in reference(W, means).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    M = means - means.mean(axis=0)
    assert found["margin_W"] == min(metrics.one_vs_rest(W))
    # Centring once more only rounds.
    assert found["margin_means"] == pytest.approx(min(metrics.one_vs_rest(M)), abs=1e-7)


# Margins


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@FEW
@given(seed=SEEDS)
def test_a_margin_is_proved_by_a_point_of_the_hull_and_a_direction(shape, seed):
    rows = np.random.default_rng(seed).standard_normal(shape)
    for units in (True, False):
        found = metrics.one_vs_rest(rows, unit=units)
        points = unit(rows) if units else rows
        for k, distance in enumerate(found):
            A = np.delete(points, k, axis=0) - points[k]
            # From above: the least of any point, by a general solver started at the centre.
            start = np.full(len(A), 1 / len(A))
            best = minimize(
                lambda a: 0.5 * np.sum((a @ A) ** 2), start, jac=lambda a: A @ (a @ A),  # noqa: B023
                bounds=[(0, None)] * len(A), method="SLSQP", options={"ftol": 1e-14},
                constraints={"type": "eq", "fun": lambda a: a.sum() - 1,
                             "jac": lambda a: np.ones(len(a))},
            )  # fmt: skip
            assert distance <= np.linalg.norm(best.x @ A) + 1e-9
            # From below: a direction h that tells v_k from the others by as much.
            h = -(best.x @ A)
            if np.linalg.norm(h) > 1e-5:
                margin = np.min(-A @ h) / np.linalg.norm(h)
                assert distance >= margin - 1e-9
                assert distance == pytest.approx(margin, abs=1e-4)


@pytest.mark.parametrize(("K", "d"), [(2, 2), (3, 5), (7, 7)])
def test_a_simplex_has_the_least_energy_and_the_largest_margin(K, d):
    v = simplex(K, d)
    found = metrics.generalised(2 * v, 5 * v + 1.0)
    least = -0.5 * np.log(2 * K / (K - 1))
    assert found.uniformity_W == pytest.approx(least, rel=1e-12)
    assert found.uniformity_means == pytest.approx(least, rel=1e-12)
    # Logarithms of distances that are one but for rounding.
    assert found.uniformity_std_W < 1e-14
    assert found.margin_W == pytest.approx(K / (K - 1), rel=1e-12)
    assert found.margin_means == pytest.approx(K / (K - 1), rel=1e-12)
    assert found.duality == pytest.approx(1, rel=1e-14)
    assert found.duality_std < 1e-14
    assert found.orthogonal_W == pytest.approx(np.sqrt(2 - 2 * np.sqrt((K - 1) / K)), rel=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = unit(rng.standard_normal((K, d)))
        energy = metrics.generalised(other, other)
        assert energy.uniformity_W > least
        assert energy.margin_W < K / (K - 1)


@pytest.mark.parametrize("K", [4, 5, 12])
def test_points_on_a_circle_have_the_energy_of_roots_of_unity(K):
    # More classes than d + 1 = 3. The product of the distances from one root to the others is K.
    angles = 2 * np.pi * np.arange(K) / K
    v = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = metrics.generalised(v, v)
    assert found.uniformity_W == pytest.approx(-np.log(K) / (K - 1), rel=1e-12)
    # The chord of the two neighbours is nearest.
    assert found.margin_W == pytest.approx(1 - np.cos(2 * np.pi / K), rel=1e-10)


def test_directions_that_coincide_have_infinite_energy_and_no_margin():
    v = np.array([[1.0, 0], [3, 0], [0, 1]])
    found = metrics.generalised(v, v)
    assert found.uniformity_W == found.uniformity_std_W == np.inf
    assert found.margin_W < 1e-15
    assert np.isfinite(found.duality)
    zero = metrics.generalised(0 * v, 0 * v)
    assert not any(np.isnan(zero))
    assert zero.uniformity_means == np.inf
    # Near, but not one: the digits of the small distance survive.
    near = np.array([[1.0, 0], [1.0, 1e-9], [0, 1]])
    logs = [-np.log(1e-9), -np.log(np.sqrt(2)), -np.log(np.sqrt(2 - 2e-9))]
    assert metrics.generalised(near, v).uniformity_W == pytest.approx(np.mean(logs), rel=1e-9)


# Orthogonal frames


def test_orthogonal_vectors_of_any_lengths():
    frame = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 4)))[0].T
    equal = metrics.generalised(3 * frame, 2 * frame)
    for name in ("orthogonal_W", "orthogonal_means", "orthogonal_product",
                 "general_orthogonal_W", "general_orthogonal_means"):  # fmt: skip
        assert getattr(equal, name) < 1e-14, name
    lengths = np.array([[1.0], [2], [3], [4]])
    found = metrics.generalised(lengths * frame, lengths**2 * frame)
    assert found.general_orthogonal_W < 1e-14
    assert found.general_orthogonal_means < 1e-14
    D = lengths[:, 0] ** 2 / np.linalg.norm(lengths**2)
    assert found.orthogonal_W == pytest.approx(np.linalg.norm(D - 0.5), rel=1e-12)


@FEW
@given(seed=SEEDS)
def test_no_diagonal_of_norm_one_is_nearer_than_the_general_distance(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((5, 3))
    G = A @ A.T / np.linalg.norm(A @ A.T)
    found = frames.to_general_orthogonal(A)
    for _ in range(50):
        D = rng.standard_normal(5)
        assert np.linalg.norm(G - np.diag(D / np.linalg.norm(D))) >= found - 1e-14


@FEW
@given(seed=SEEDS, size=st.sampled_from([1e-300, 1e-160, 1.0, 1e160, 1e300]))
def test_sizes_and_rotations_mean_nothing(seed, size):
    rng = np.random.default_rng(seed)
    W, means = rng.standard_normal((2, 5, 4))
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    moved = metrics.generalised(size * W @ Q, size * means @ Q)
    np.testing.assert_allclose(moved, metrics.generalised(W, means), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        metrics.one_vs_rest(size * W, unit=False), size * metrics.one_vs_rest(W, unit=False),
        rtol=1e-6, atol=1e-7 * size,
    )  # fmt: skip


# Features outside


def test_cosines_with_the_mean_outside():
    rng = np.random.default_rng(0)
    means, outside = rng.standard_normal((4, 6)), rng.standard_normal((50, 6)) + 0.3
    center = outside.mean(axis=0)
    exact = [abs(m @ center) / np.linalg.norm(m) / np.linalg.norm(center) for m in means]
    for size in (1e-200, 1.0, 1e200):
        np.testing.assert_allclose(metrics.ood_cosines(means, size * outside), exact, rtol=1e-12)
    np.testing.assert_allclose(metrics.ood_cosines(np.eye(3, 4), np.eye(4)[3:]), 0)
    np.testing.assert_allclose(metrics.ood_cosines(jnp.eye(3), np.ones((5, 3))), 3**-0.5)
    assert not metrics.ood_cosines(np.eye(3), np.zeros((5, 3))).any()


# Effective rank


@FEW
@given(seed=SEEDS, d=st.integers(1, 6), N=st.integers(1, 40))
def test_the_effective_rank_is_its_definition_in_any_pieces(seed, d, N):
    X = np.random.default_rng(seed).standard_normal((N, d)) @ np.diag(10.0 ** -np.arange(d))
    s = np.sqrt(np.maximum(np.linalg.eigvalsh((X.T if d <= N else X) @ (X if d <= N else X.T)), 0))
    p = s[s > 1e-7 * s.max()] / s.sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "LIMIT", 8 * d)
        found = metrics.effective_rank(X)
    assert found == pytest.approx(np.exp(-sum(p * np.log(p))), rel=1e-5)
    assert found == pytest.approx(metrics.effective_rank(X), rel=1e-12)
    assert 1 - 1e-12 <= found <= min(N, d) + 1e-12


def test_the_effective_rank_of_a_simplex_is_one_less_than_its_classes():
    features = np.repeat(simplex(7, 9), 5, axis=0)
    assert metrics.effective_rank(features) == pytest.approx(6, rel=1e-6)
    assert metrics.effective_rank(1e300 * features) == pytest.approx(6, rel=1e-6)
    # Rank one, and the trap: an offset hides the rest.
    assert metrics.effective_rank(np.ones((5, 3))) == pytest.approx(1, abs=1e-12)
    assert metrics.effective_rank(features + 100) < 1.1


# Regression


def nrc(W, H, Y):
    """NRC1–NRC3 by loops, by an SVD of all features, and by a fine grid of γ."""
    n = len(W)
    H0 = H - sum(H) / len(H)
    P = np.linalg.svd(H0)[2][:n].T
    Q = np.linalg.qr(W.T)[0]
    parts = [h / np.linalg.norm(h) for h in H0]
    first = np.mean([np.sum((h - P @ (P.T @ h)) ** 2) for h in parts])
    second = np.mean([np.sum((h - Q @ (Q.T @ h)) ** 2) for h in parts])
    Y0 = Y - sum(Y) / len(Y)
    values, vectors = np.linalg.eigh(sum(np.outer(y, y) for y in Y0) / len(Y))
    S = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    G = W @ W.T / np.linalg.norm(W @ W.T)
    grid = np.linspace(0, np.sqrt(values[0]), 2001)[:-1]
    third = [
        np.sum((G - (S - r * np.eye(n)) / np.linalg.norm(S - r * np.eye(n))) ** 2) for r in grid
    ]
    return first, second, min(third)


@FEW
@given(seed=SEEDS, n=st.integers(1, 4))
def test_regression_collapse_is_its_definition(seed, n):
    rng = np.random.default_rng(seed)
    W, H = rng.standard_normal((n, 6)), rng.standard_normal((40, 6)) + 3
    Y = rng.standard_normal((40, n)) @ rng.standard_normal((n, n)) + 1
    found = metrics.regression(W, H, Y)
    np.testing.assert_allclose(found[:2], nrc(W, H, Y)[:2], rtol=1e-10)
    # A grid of two thousand comes this near to the least value, from above.
    assert nrc(W, H, Y)[2] - 1e-5 <= found.nrc3 <= nrc(W, H, Y)[2] + 1e-12
    assert 0 <= found.gamma <= np.linalg.eigvalsh(np.cov(Y.T, ddof=0).reshape(n, n))[0] + 1e-12
    scaled = metrics.regression(1e200 * W, 1e-200 * H, Y)
    np.testing.assert_allclose(scaled, found, rtol=1e-9, atol=1e-12)


def test_regression_collapse_vanishes_where_it_should():
    rng = np.random.default_rng(1)
    Y = rng.standard_normal((60, 3)) * [1.0, 2, 3]
    values, vectors = np.linalg.eigh(np.cov(Y.T, ddof=0))
    S = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    shape = S - np.sqrt(0.3) * np.eye(3)  # γ = 0.3, below the least variance
    frame = np.linalg.qr(rng.standard_normal((8, 3)))[0]
    root = np.linalg.cholesky(shape)
    W = root @ frame.T
    H = (Y - Y.mean(axis=0)) @ np.linalg.inv(S) @ W + rng.standard_normal(8)
    found = metrics.regression(W, H, Y)
    assert max(found[:3]) < 1e-25
    assert found.gamma == pytest.approx(0.3, rel=1e-9)
    one = metrics.regression(W[:1], H, Y[:, 0])  # the trap: a single target
    assert one.nrc3 < 1e-30
    same = metrics.regression(np.eye(3, 8), np.tile(H[:1], (60, 1)), Y)
    assert (same.nrc1, same.nrc2) == (0, 0)


def test_isotropic_targets_ask_for_orthogonal_rows():
    corners = np.array(list(itertools.product([-1.0, 1], repeat=3)))
    H = corners @ np.eye(3, 5)
    assert metrics.regression(np.eye(3, 5), H, corners).nrc3 < 1e-30
    G = np.diag([1.0, 2, 3])
    expected = np.sum((G**2 / np.linalg.norm(G**2) - np.eye(3) / np.sqrt(3)) ** 2)
    found = metrics.regression(G @ np.eye(3, 5), H, corners).nrc3
    assert found == pytest.approx(expected, rel=1e-12)


# Refusals

X = np.ones((3, 4))
BAD = {
    "W and means": (metrics.generalised, (X, X[:2]), r"W \(3, 4\) and means \(2, 4\)"),
    "one row": (metrics.one_vs_rest, (X[:1],), "K >= 2 rows"),
    "NaN": (metrics.generalised, (X, np.nan * X), "12 non-finite entries in means"),
    "text": (metrics.one_vs_rest, (X.astype(str),), "allowed: real numbers"),
    "no flag": (lambda: metrics.one_vs_rest(X, unit=1), (), "True or False"),
    "outside of other width": (metrics.ood_cosines, (X, X[:, :2]), r"outside \(3, 2\)"),
    "none outside": (metrics.ood_cosines, (X, X[:0]), "N >= 1"),
    "zero features": (metrics.effective_rank, (0 * X,), "all 0"),
    "flat features": (metrics.effective_rank, (X[0],), r"\(4,\); allowed: \(N, d\)"),
    "infinite features": (metrics.effective_rank, (X * np.inf,), "12 non-f"),
    "targets that do not vary": (metrics.regression, (X, np.eye(4), np.ones((4, 3))), "vary"),
    "targets of other count": (metrics.regression, (X, np.eye(4), X), r"targets \(3, 4\)"),
}


@pytest.mark.parametrize(("act", "arguments", "message"), BAD.values(), ids=BAD.keys())
def test_what_makes_no_sense_is_refused(act, arguments, message):
    with pytest.raises(ufm.Refused, match=message):
        act(*arguments)
