"""Where ∇f is 0 to rounding: bounds on its error for every loss, held against 40 digits."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import ufm
from ufm.critical import fixed, newton, solver
from ufm.hessian import stationarity
from ufm.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    FromValue,
    LogitAdjusted,
    SquaredError,
)
from ufm.model import objective as terms
from ufm.model.problem import Problem

mp.mp.dps = 40
K, D, N = 3, 4, 6
SEEDS = 8
GENERATOR = np.random.default_rng(0)
SOFT = GENERATOR.dirichlet(np.full(K, 0.5), N).T
REAL = 3 * GENERATOR.standard_normal((K, N))


def _naive(z, y):
    """Cross-entropy as it is often written: its gradient p − e_y cancels."""
    return jax.scipy.special.logsumexp(z) - z[y]


LOSSES = {
    "cross-entropy": (CrossEntropy(), None),
    "smoothed": (CrossEntropy(0.1), None),
    "hardly smoothed": (CrossEntropy(1e-6), None),
    "soft labels": (CrossEntropy(), SOFT),
    "labels as a matrix": (CrossEntropy(), np.eye(K)[:, np.repeat(range(K), N // K)]),
    "squared": (SquaredError(), None),
    "squared, rescaled": (SquaredError(3.0, 2.0), None),
    "squared, far": (SquaredError(5.0, 15.0), None),
    "regression": (SquaredError(), REAL),
    "binary": (BinaryCrossEntropy(), None),
    "binary, soft": (BinaryCrossEntropy(), SOFT),
    "focal": (Focal(2.0), None),
    "temperature": (LogitAdjusted(10.0), None),
    "far shifts": (LogitAdjusted((1.0, 2.0, 3.0), (0.0, 50.0, 100.0)), None),
    "by its value": (FromValue(_naive, convex=True, shift_invariant=True, bound=0.5), None),
}
# Those whose residual has entries of full relative accuracy, at moderate logits.
EXACT = ("cross-entropy", "hardly smoothed", "binary", "focal", "temperature")
# Decays at which the descents arrive: the valleys of the squared error are narrow at small ones.
CASES = [(name, 1e-3) for name in LOSSES] + [
    (name, 1e-6) for name, (loss, _) in LOSSES.items() if not isinstance(loss, SquaredError)
]
EACH = pytest.mark.parametrize(("name", "lam"), CASES, ids=lambda x: str(x))


@functools.cache
def problem_of(name, lam, **options):
    loss, targets = LOSSES[name]
    n = N // K if targets is None else 1
    return Problem(
        K, D, n, lam_W=lam, lam_H=2 * lam, lam_b=lam, loss=loss, targets=targets, **options
    )


@functools.cache
def solved(name, lam):
    return solver.solve(*started(problem_of(name, lam), SEEDS))


def started(problem, seeds):
    """The problem and several starts, stacked."""
    starts = [ufm.init_params(seed, problem, scale=1.0) for seed in range(seeds)]
    return problem, jax.tree.map(lambda *x: jnp.stack(x), *starts)


# The residuals of one column, by definition: 40 digits make up for what cancels.


def _softmax(z):
    powers = [mp.exp(x) for x in z]
    return [x / sum(powers) for x in powers]


def _cross_entropy(loss, z, t):
    eps, mass = mp.mpf(getattr(loss, "smoothing", 0.0)), sum(t)
    T = [(1 - eps) * x + eps * mass / len(t) for x in t]
    return [mass * p - x for p, x in zip(_softmax(z), T, strict=True)]


def _squared(loss, z, t):
    if sorted(t) != [0, 0, 1]:
        return [x - y for x, y in zip(z, t, strict=True)]
    return [loss.own * (x - loss.shift) if y else x for x, y in zip(z, t, strict=True)]


def _binary(loss, z, t):  # noqa: ARG001
    return [1 / (1 + mp.exp(-x)) - y for x, y in zip(z, t, strict=True)]


def _focal(loss, z, t):
    y, P = t.index(1), _softmax(z)
    p, gamma = P[y], loss.gamma
    slope = gamma * (1 - p) ** (gamma - 1) * p * mp.log(p) - (1 - p) ** gamma  # p dℓ/dp
    return [slope * (x - q) for x, q in zip(t, P, strict=True)]


def _adjusted(loss, z, t):
    a, shift = np.broadcast_to(loss.scale, K), np.broadcast_to(loss.shift, K)
    moved = [mp.mpf(u) * x + mp.mpf(v) for u, v, x in zip(a, shift, z, strict=True)]
    return [mp.mpf(u) * r for u, r in zip(a, _cross_entropy(loss, moved, t), strict=True)]


RESIDUALS = {
    CrossEntropy: _cross_entropy,
    SquaredError: _squared,
    BinaryCrossEntropy: _binary,
    Focal: _focal,
    LogitAdjusted: _adjusted,
    FromValue: _cross_entropy,
}


def exact_gradient(problem, params):
    """∇f of a float64 point in 40 digits, as three matrices."""
    W, H, b = (mp.matrix(np.asarray(x, np.float64).tolist()) for x in params)
    T = problem.targets if problem.targets is not None else np.eye(K)[:, problem.labels]
    G, Z = mp.matrix(K, N), W * H
    for i in range(N):
        z, t = [Z[k, i] + b[k] for k in range(K)], [mp.mpf(float(x)) for x in T[:, i]]
        for k, r in enumerate(RESIDUALS[type(problem.loss)](problem.loss, z, t)):
            G[k, i] = r / N
    lam_W, lam_H, lam_b = map(mp.mpf, (problem.lam_W, problem.lam_H, problem.lam_b))
    return G * H.T + lam_W * W, W.T * G + lam_H * H, G * mp.ones(N, 1) + lam_b * b


def length(parts):
    """The Euclidean norm of several matrices of mpmath together."""
    return float(mp.sqrt(sum(mp.norm(x) ** 2 for x in parts)))


@jax.jit
def evaluated(problem, params):
    G = terms.data_gradient(problem, params)
    numbers = newton.scale(problem, params, G), newton.rounding(problem, params)
    return terms.gradient(problem, params, G), *numbers


def point(solution, i):
    return jax.tree.map(lambda x: x[i], solution.params)


@EACH
def test_the_error_of_the_gradient_at_a_minimum_is_within_its_bound(name, lam):
    problem = problem_of(name, lam)
    for i in range(SEEDS):
        found = point(solved(name, lam), i)
        g, scale, bound = evaluated(problem, found)
        g = [mp.matrix(np.asarray(x).tolist()) for x in g]
        error = length([x - y for x, y in zip(g, exact_gradient(problem, found), strict=True)])
        # Beside the errors of G, the sums that make ∇f of G round by some 1e-16 of their terms.
        assert error <= bound + 4 * newton.EPS * scale
        assert bound <= 100 * error + 4 * newton.EPS * scale  # else it would hide what is not 0


@EACH
def test_no_search_stalls_where_the_gradient_is_zero_to_rounding(name, lam):
    """‖∇f‖ in 40 digits is below the bound on its error as well, up to what is converged."""
    solution, problem = solved(name, lam), problem_of(name, lam)
    assert solution.status.tolist() == ["converged"] * SEEDS
    for i in range(SEEDS):
        found = point(solution, i)
        _, scale, bound = evaluated(problem, found)
        zero = max(newton.POLISHED * scale, bound)
        assert solution.residual[i] <= 4 * zero
        assert length(exact_gradient(problem, found)) <= 5 * zero
        assert stationarity.stationarity(problem, found).critical


@pytest.mark.parametrize("lam", [1e-3, 1e-6])
@pytest.mark.parametrize("name", EXACT)
def test_where_nothing_cancels_in_the_residual_the_tolerance_is_that_of_the_terms(name, lam):
    problem = problem_of(name, lam)
    for i in range(SEEDS):
        found = point(solved(name, lam), i)
        G = terms.data_gradient(problem, found)
        expected = newton.POLISHED * newton.scale(problem, found, G)
        assert newton.tolerance(problem, found, G) == expected


@pytest.mark.parametrize("options", [{"features": "nonnegative"}, {"fixed": ("W",)}])
@pytest.mark.parametrize("name", ["squared, rescaled", "regression", "soft labels"])
def test_other_features_arrive_as_well(name, options):
    problem = problem_of(name, 1e-3, **options)
    found = solver.solve(*started(problem, 3))
    assert found.status.tolist() == ["converged"] * 3
    member = fixed if problem.fixed else newton
    for i, residual in enumerate(found.residual):
        G = terms.data_gradient(problem, point(found, i))
        assert residual <= 4 * member.tolerance(problem, point(found, i), G)
        assert ufm.hessian.verdict(problem, point(found, i)).kind != "not critical"


@pytest.mark.parametrize("features", ["free", "nonnegative"])
@pytest.mark.parametrize("lam", [1e-3, 1e-6, 1e-9])
def test_a_gradient_as_small_as_the_decays_is_not_taken_for_rounding(lam, features):
    name = "squared, rescaled"
    found = solver.solve(*started(problem_of(name, 1e-3, features=features), 1))
    # (4W, H/4) fits the targets as (W, H) does; only the decays are not balanced.
    uneven = point(found, 0)._replace(W=4 * found.params.W[0], H=found.params.H[0] / 4)
    problem = problem_of(name, lam, features=features)
    assert ufm.hessian.verdict(problem, uneven).kind == "not critical"
    cut = solver.solve(problem, uneven, descend=False, newton_steps=1)
    assert cut.status == "step_limit"
