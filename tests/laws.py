"""Laws that hold for every problem, and the problems they are checked on.

Critical-point identities and symmetries of f (theory: Zhu et al. 2021, arXiv 2105.02375), written
once and used by the tests of every module. Checkers raise AssertionError.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings

from ufm import theory
from ufm.model.objective import gradient, objective
from ufm.model.problem import Params, Problem

# Compilation makes the first example slow, and a shared machine makes any example slow.
few_examples = settings(deadline=None, max_examples=20, derandomize=True)

# Around d = K-1, equal and unequal counts and decays, with and without bias. Decays are traced, so
# problems of one shape share their compilations: few shapes, many decays.
PROBLEMS = {
    "two-classes-one-dimension": Problem(K=2, d=1, n=3, lam_W=1e-2, lam_H=2e-2, lam_b=1e-2),
    "narrow": Problem(K=5, d=2, n=2, lam_W=3e-3, lam_H=1e-3, lam_b=1e-2),
    "d-is-K-minus-1": Problem(K=4, d=3, n=2, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3),
    "d-is-K": Problem(K=3, d=3, n=4, lam_W=1e-3, lam_H=4e-3, lam_b=2e-2),
    "free-bias": Problem(K=3, d=3, n=4, lam_W=1e-2, lam_H=5e-3, lam_b=0.0),
    "above-the-threshold": Problem(K=3, d=3, n=4, lam_W=0.5, lam_H=0.4, lam_b=0.1),
    "wide-one-sample-a-class": Problem(K=4, d=6, n=1, lam_W=2e-2, lam_H=3e-4, lam_b=7e-3),
    "no-bias": Problem(K=3, d=4, n=3, lam_W=1e-2, lam_H=5e-3, bias=False),
    "unequal-counts": Problem(K=4, d=5, n=(1, 3, 3, 5), lam_W=8e-3, lam_H=2e-3, lam_b=1e-2),
    "unequal-counts-free-bias": Problem(
        K=4, d=5, n=(1, 3, 3, 5), lam_W=4e-3, lam_H=9e-3, lam_b=0.0
    ),
    "unequal-counts-no-bias": Problem(K=3, d=2, n=(2, 5, 2), lam_W=8e-3, lam_H=4e-3, bias=False),
}

# The closed form's assumptions: equal counts, d >= K-1.
CLOSED_FORM = {name: p for name, p in PROBLEMS.items() if p.balanced and p.d >= p.K - 1}


@jax.jit
def value_and_slope(problem, params):
    """f and its closed-form gradient in one compilation."""
    return objective(problem, params), gradient(problem, params)


def value(problem, params):
    """f, compiled."""
    return value_and_slope(problem, params)[0]


def slope(problem, params):
    """The closed-form gradient, compiled."""
    return value_and_slope(problem, params)[1]


@functools.cache
def minimizer(problem, seed=0, dtype=jnp.float64):
    """The closed-form global minimiser."""
    return theory.global_minimizer(problem, jax.random.key(seed), dtype=dtype)


def zeros(problem):
    """The origin."""
    return jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape)), random_params(problem))


def eps(dtype):
    """Unit in the last place of 1."""
    return float(jnp.finfo(dtype).eps)


def random_params(problem, seed=0, scale=1.0, dtype=jnp.float64):
    """Gaussian W and H of standard deviation `scale`; a Gaussian b if the problem has one."""
    generator = np.random.default_rng(seed)
    shapes = [(problem.K, problem.d), (problem.d, problem.N), (problem.K,)]
    W, H, b = (scale * generator.standard_normal(shape) for shape in shapes)
    b = b if problem.bias else np.zeros(problem.K)
    return Params(*(jnp.asarray(value, dtype) for value in (W, H, b)))


def reference_point(problem, params):
    """(W, H, b) of params in NumPy float64; b is None where the problem has no bias."""
    W, H, b = (np.asarray(value, np.float64) for value in params)
    return W, H, (b if problem.bias else None)


def reference_arguments(problem, params):
    """Arguments of the functions in `reference`, with the decays in float64."""
    decays = (float(problem.lam_W), float(problem.lam_H), float(problem.lam_b))
    return (*reference_point(problem, params), class_of_samples(problem), *decays)


def class_of_samples(problem):
    """Labels grouped by class, from the counts alone."""
    n = [problem.n] * problem.K if isinstance(problem.n, int) else problem.n
    return [k for k, count in enumerate(n) for _ in range(count)]


def matrix_scale(problem, params):
    """Bound on the numbers that are added up in f and its gradient, for stating rounding."""
    W, H, b = (np.abs(np.asarray(value, np.float64)) for value in params)
    logits = np.max(W @ H + b[:, None])
    decays = max(float(problem.lam_W), float(problem.lam_H), float(problem.lam_b))
    return (1 + logits) * (1 + max(np.max(W), np.max(H), np.max(b))) * (1 + decays)


def assert_close(first, second, atol):
    """All leaves of two trees agree within atol."""
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    for left, right in leaves:
        np.testing.assert_allclose(left, right, rtol=0, atol=atol)


# Identities


def check_gradient_identities(problem, params, atol):
    """Identities of the gradient at every point.

    W^T grad_W - grad_H H^T = lam_W W^T W - lam_H H H^T  (f is invariant under O(d)),
    1^T grad_W = lam_W 1^T W and 1^T grad_b = lam_b 1^T b  (the data term ignores such shifts).
    """
    point = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    uphill = jax.tree.map(lambda x: np.asarray(x, np.float64), slope(problem, params))
    lam_W, lam_H, lam_b = float(problem.lam_W), float(problem.lam_H), float(problem.lam_b)
    turning = point.W.T @ uphill.W - uphill.H @ point.H.T
    balance = lam_W * point.W.T @ point.W - lam_H * point.H @ point.H.T
    np.testing.assert_allclose(turning, balance, rtol=0, atol=atol)
    np.testing.assert_allclose(uphill.W.sum(0), lam_W * point.W.sum(0), rtol=0, atol=atol)
    shift = lam_b * point.b.sum() if problem.bias else 0.0
    np.testing.assert_allclose(uphill.b.sum(), shift, rtol=0, atol=atol)


def check_critical_point(problem, params, atol):
    """What theory says of every critical point with lam_W, lam_H > 0.

    The gradient vanishes, lam_W W^T W = lam_H H H^T, 1^T W = 0, 1^T b = 0 if lam_b > 0, and all
    samples of a class share their features. `atol` bounds the entries of the gradient; what
    follows from the gradient is scaled by the decays and norms that it is divided by.
    """
    point = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    lam_W, lam_H, lam_b = float(problem.lam_W), float(problem.lam_H), float(problem.lam_b)
    assert_close(slope(problem, params), zeros(problem), atol)
    size = problem.N * (1 + max(np.max(np.abs(point.W)), np.max(np.abs(point.H))))
    balance = lam_W * point.W.T @ point.W - lam_H * point.H @ point.H.T
    np.testing.assert_allclose(balance, 0, atol=size * atol)
    np.testing.assert_allclose(point.W.sum(axis=0), 0, atol=problem.K * atol / lam_W)
    if problem.bias and lam_b > 0:
        np.testing.assert_allclose(point.b.sum(), 0, atol=problem.K * atol / lam_b)
    labels = np.array(class_of_samples(problem))
    for k in range(problem.K):
        features = point.H[:, labels == k]
        # Each h_i solves a strictly convex problem whose curvature is at least lam_H.
        spread = features - features[:, :1]
        np.testing.assert_allclose(spread, 0, atol=2 * problem.d * atol / lam_H)


# Symmetries


def rotated(params, Q):
    """(W Q^T, Q H, b) for Q in O(d)."""
    W, H, b = map(np.asarray, params)
    return Params(W @ Q.T, Q @ H, b)


def classes_permuted(problem, params, order):
    """Class order[k] takes the place of class k; their counts must be equal."""
    labels = np.array(class_of_samples(problem))
    counts = np.bincount(labels)
    if not np.array_equal(counts[list(order)], counts):
        raise ValueError(f"order {order} moves a class to one of another count: {counts}")
    W, H, b = map(np.asarray, params)
    columns = np.concatenate([np.flatnonzero(labels == k) for k in order])
    return Params(W[list(order)], H[:, columns], b[list(order)])


def samples_permuted(params, columns):
    """The samples in another order."""
    W, H, b = map(np.asarray, params)
    return Params(W, H[:, columns], b)


def swappable_orders(problem):
    """All orders of the classes that keep every count in its place."""
    counts = np.bincount(class_of_samples(problem))
    orders = itertools.permutations(range(problem.K))
    return [order for order in orders if np.array_equal(counts[list(order)], counts)]


def check_symmetry(problem, params, move, atol):
    """f(move(x)) = f(x) and grad f(move(x)) = move(grad f(x)) for an orthogonal, linear move."""
    before, uphill = value_and_slope(problem, params)
    assert_close(value_and_slope(problem, move(params)), (before, move(uphill)), atol)
