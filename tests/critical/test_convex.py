"""The proximal step on the products, held against the optimality condition that defines it."""

import dataclasses

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from ufm import theory
from ufm.critical import convex
from ufm.losses import Focal, SquaredError
from ufm.model.objective import gradient, norm, objective
from ufm.model.problem import Params, Problem

WEIGHTS, DECAYS = np.array([0.5, 1.0, 2.0, 1.5]), np.array([2.0, 0.3, 1.0, 0.8])
PROBLEMS = {
    "balanced": Problem(4, 4, 3, lam_W=2e-3, lam_H=5e-4, lam_b=1e-2),
    "wide": Problem(3, 9, 2, lam_W=1e-2, lam_H=4e-3, lam_b=0.0),
    "weighted": Problem(
        4,
        6,
        (1, 3, 2, 5),
        lam_W=3e-3,
        lam_H=1e-4,
        bias=False,
        weights=WEIGHTS,
        decay_weights=DECAYS,
    ),
    "squared": Problem(5, 5, 2, lam_W=1e-3, lam_H=1e-3, lam_b=1e-3, loss=SquaredError()),
}
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


def roots(problem):
    """√ω of every column, by the definition."""
    omega = np.ones(problem.K) if problem.decay_weights is None else problem.decay_weights
    return np.sqrt(omega)[np.asarray(problem.labels)]


def products(problem, params):
    return np.asarray(params.W @ params.H) * roots(problem)


@EACH
@pytest.mark.parametrize("eta", [0.3, 20.0, 3000.0])
def test_the_step_solves_its_proximal_problem(problem, eta):
    """Y − Z⁺ is ημ times a subgradient of the nuclear norm at Z⁺: ‖·‖₂ ≤ 1, ⟨·, Z⁺⟩ = ‖Z⁺‖_*."""
    params = laws.random_params(problem, 1)
    # ∂ℓ/∂H = WᵀG: the gradient in Z by a route that knows only automatic differentiation.
    decays = {"lam_W": 0.0, "lam_H": 0.0, "lam_b": 0.0, "decay_weights": None}
    free = dataclasses.replace(problem, d=problem.K, **decays)
    at = Params(jnp.eye(problem.K), params.W @ params.H, params.b)
    slope = np.asarray(jax.grad(lambda H: objective(free, at._replace(H=H)))(at.H))
    target = products(problem, params) - eta * slope / roots(problem)
    found = convex.proximal(problem, params, eta)
    Z = products(problem, found)
    mu = (problem.lam_W * problem.lam_H) ** 0.5
    subgradient = (target - Z) / (eta * mu)
    size = np.linalg.norm(target, 2) / (eta * mu)  # which rounding is relative to
    assert np.linalg.norm(subgradient, 2) <= 1 + 1e-13 * size
    nuclear = np.linalg.svd(Z, compute_uv=False).sum()
    assert np.sum(subgradient * Z) == pytest.approx(nuclear, rel=1e-12, abs=1e-13 * size * nuclear)
    # The factors are balanced: their decay is the nuclear norm.
    W, H = np.asarray(found.W), np.asarray(found.H) * roots(problem)
    np.testing.assert_allclose(
        problem.lam_W * W.T @ W, problem.lam_H * H @ H.T, atol=1e-12 * mu * max(nuclear, 1e-9)
    )


@EACH
def test_a_step_lowers_f_and_leaves_a_minimiser(problem):
    start = laws.random_params(problem, 2)
    found = convex.step(problem, start)
    assert objective(problem, found) < objective(problem, start)
    zero = laws.zeros(problem)
    assert objective(problem, convex.step(problem, zero)) < objective(problem, zero)
    if problem.uniform and not isinstance(problem.loss, SquaredError):
        least = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
        again = convex.step(problem, least)
        assert norm(gradient(problem, again)) <= 1e-12
        assert float(objective(problem, again)) == pytest.approx(
            float(objective(problem, least)), rel=1e-14
        )


def test_fewer_dimensions_keep_the_largest_singular_values():
    problem = Problem(5, 2, 2, lam_W=1e-3, lam_H=1e-3, lam_b=1e-3)
    wide = Problem(5, 5, 2, lam_W=1e-3, lam_H=1e-3, lam_b=1e-3)
    start = laws.random_params(problem)
    padded = Params(jnp.pad(start.W, ((0, 0), (0, 3))), jnp.pad(start.H, ((0, 3), (0, 0))), start.b)
    U, s, Vt = np.linalg.svd(products(wide, convex.proximal(wide, padded, 5.0)))
    kept = (U[:, :2] * s[:2]) @ Vt[:2]
    found = products(problem, convex.proximal(problem, start, 5.0))
    np.testing.assert_allclose(found, kept, atol=1e-13)


def test_it_applies_where_the_problem_is_convex_in_the_products():
    decays = {"lam_W": 1e-3, "lam_H": 1e-3, "lam_b": 1e-3}
    assert convex.applies(Problem(5, 4, 2, **decays))
    assert convex.applies(Problem(5, 1, 1, **decays, targets=np.eye(5)[:, :2]))
    assert not convex.applies(Problem(5, 3, 2, **decays))
    assert not convex.applies(Problem(5, 5, 2, **decays, loss=Focal(gamma=2.0)))
    assert not convex.applies(Problem(5, 5, 2, **decays, features="nonnegative"))
    assert not convex.applies(Problem(5, 5, 2, **decays, fixed=("W",)))
