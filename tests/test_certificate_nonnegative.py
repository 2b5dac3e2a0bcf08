"""The certificate for H ≥ 0: never above the minimum, tight at it, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import few_examples, random_params, value_and_slope

import ufm
from ufm import certificate, certify, theory
from ufm.model import layers
from ufm.model.problem import Params, Problem

COUNTS = {"equal": 2, "unequal": (4, 3, 1), "far-apart": (300, 20, 1)}
DECAYS = [1e-12, 1e-6, 3e-4, 1e-2, 0.1, 1.0]
LOSSES = ["CrossEntropy", "CrossEntropy(smoothing=0.1)", "SquaredError", "BinaryCrossEntropy",
          "Focal(gamma=2)"]  # fmt: skip


def behind(n, lam, loss="CrossEntropy", **more):
    return Problem(3, 4, n, lam, 2 * lam, loss=loss, features="nonnegative", **more)


def feasible(problem, seed, scale):
    return layers.project(problem, random_params(problem, seed, scale))


@pytest.mark.parametrize("lam", DECAYS)
@pytest.mark.parametrize("n", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("loss", ["CrossEntropy", "SquaredError"])
def test_at_the_minimiser_the_gap_closes(loss, n, lam):
    problem = behind(n, lam, loss, bias=False)
    proof = certify(problem, theory.global_minimizer(problem, 1))
    # The squared error knows z − y, which is tiny here, to the rounding of z only.
    rounding = 1e-16 if loss == "SquaredError" else 0.0
    assert abs(proof.gap) <= 1e-9 * proof.value + rounding
    assert abs(proof.gap) <= 2 * proof.resolution + rounding
    assert proof.spectral_ratio <= 1 + 1e-9 + 4 * rounding / lam
    # The projected gradient; ∇f itself is large where classes press against zeros.
    assert proof.grad_norm <= 1e-13


@pytest.mark.parametrize("lam_b", [0.0, 1e-3, 0.3])
def test_with_a_bias_the_gap_closes_for_equal_classes(lam_b):
    problem = behind(3, 4e-3, lam_b=lam_b)
    proof = certify(problem, theory.global_minimizer(problem, 1))
    assert abs(proof.gap) <= proof.resolution


def descended(problem, x):
    """A way down by projected gradient steps."""
    for _ in range(400):
        slope = value_and_slope(problem, x)[1]
        x = layers.project(problem, Params(*(x - 0.5 * g for x, g in zip(x, slope, strict=True))))
    return x


@few_examples
@given(
    st.integers(0, 10**6), st.floats(0.01, 8), st.sampled_from(DECAYS),
    st.sampled_from(list(COUNTS.values())), st.sampled_from(["CrossEntropy", "SquaredError"]),
)  # fmt: skip
def test_no_point_has_a_bound_above_the_minimum(seed, scale, lam, n, loss):
    problem = behind(n, lam, loss, bias=False)
    proof = certify(problem, feasible(problem, seed, scale))
    least = theory.global_value(problem)
    assert proof.lower_bound <= least * (1 + 1e-14)
    assert proof.gap >= proof.value - least - proof.resolution


@pytest.mark.parametrize("loss", LOSSES)
def test_no_bound_is_above_the_value_at_another_point(loss):
    """Of many points, the ends of descents among them, one bounds the values of all."""
    bias = {"CrossEntropy": {"lam_b": 0.02}, "SquaredError": {"bias": False}}
    problem = behind((4, 3, 1), 0.01, loss, **bias.get(loss, {"lam_b": 0.0}))
    points = [feasible(problem, seed, 0.1 * 3 ** (seed % 5)) for seed in range(20)]
    ends = [descended(problem, x) for x in points[:3]]
    proofs = [certify(problem, x) for x in points + ends]
    assert max(x.lower_bound for x in proofs) <= min(x.value for x in proofs)


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 4.0)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_bound_is_that_of_class_means_by_loops(scale, weights):
    """−Σ w ℓ*(αr̄) − α²‖A1‖²/2λ_b with α from ρ, or from the norm of all residuals' means."""
    omega = None if weights is None else (2.0, 1.0, 0.3)
    problem = behind((4, 3, 1), 0.01, lam_b=0.02, weights=weights, decay_weights=omega)
    params = feasible(problem, 3, scale)
    w = problem.class_weights * problem.counts
    root = np.sqrt(problem.counts * (1.0 if omega is None else np.array(omega)))
    Z = np.asarray(params.W @ params.H + params.b[:, None])
    P = np.exp(Z - Z.max(axis=0))
    R = P / P.sum(axis=0) - np.eye(3)[:, problem.labels]
    means = np.stack([R[:, problem.labels == k].mean(axis=1) for k in range(3)], axis=1)
    A = means * w
    found = []
    gram = (A / root).T @ (A / root)
    for rho in (np.linalg.eigvalsh(gram)[-1], np.linalg.eigvalsh(np.maximum(gram, 0))[-1]):
        alpha = min(1, problem.mu / rho**0.5)
        p = np.eye(3) + alpha * means
        entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=0)
        penalty = alpha**2 * np.sum(A.sum(axis=1) ** 2) / (2 * problem.lam_b)
        found.append(w @ entropy - penalty)
    expected = max(*found, 0)
    np.testing.assert_allclose(certify(problem, params).lower_bound, expected, atol=1e-13)


def test_the_nuclear_bound_alone_would_leave_a_gap():
    problem = behind((9, 3, 1), 3e-3, bias=False)
    point = theory.global_minimizer(problem, 0)
    assert certify(problem, point).gap <= 1e-12
    free = certify(dataclasses.replace(problem, features="free"), point)
    assert free.gap > 1e-2


def test_a_spurious_minimum_keeps_its_gap():
    problem = Problem(4, 4, (9, 5, 3, 1), lam=4e-3, bias=False, features="nonnegative")
    found = theory.switched_off(problem)
    H = np.array(theory.global_minimizer(problem, None).H)
    W = np.array(theory.global_minimizer(problem, None).W)
    # The smallest class off, its axis shared with the first class: a KKT point.
    H[3], H[:, problem.labels == 3], W[:, 3] = H[0] / 2**0.5, 0, W[:, 0] / 2**0.5
    H[0], W[:, 0] = H[3], W[:, 3]
    point = Params(*(jnp.asarray(x) for x in (W, H, np.zeros(4))))
    proof = certify(problem, point)
    assert proof.grad_norm <= 1e-15
    assert proof.value == pytest.approx(found[1].value, rel=1e-14)
    assert proof.gap >= found[1].value - found[0].value - proof.resolution
    assert proof.spectral_ratio > 1


def test_samples_in_blocks_and_under_vmap_have_the_same_bound(monkeypatch):
    problem = behind((40, 30, 10), 0.01, lam_b=0.02)
    points = [feasible(problem, seed, 1.0) for seed in range(3)]
    expected = [certify(problem, x) for x in points]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *points)
    together = jax.jit(jax.vmap(lambda x: certify(problem, x)))(stacked)
    np.testing.assert_allclose(together.lower_bound, [x.lower_bound for x in expected], rtol=1e-12)
    monkeypatch.setattr("ufm.runtime.blocks.LIMIT", 1000)
    found = jax.jit(certificate.lower_bound)(problem, points[0]).proven
    np.testing.assert_allclose(found, expected[0].lower_bound, rtol=1e-12)


def test_negative_features_are_refused():
    problem = behind(2, 0.01)
    with pytest.raises(ufm.Refused, match=r"negative entries in H.*the most negative"):
        certify(problem, random_params(problem))
