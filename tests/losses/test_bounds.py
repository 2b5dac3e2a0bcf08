"""Certificates of every loss at 10⁴ points: below the least value known, and tight there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import ufm
from ufm.losses import BinaryCrossEntropy, CrossEntropy, Focal, LogitAdjusted, SquaredError

SOFT = np.array([[0.5, 0.1, 0.2], [0.25, 0.9, 0.2], [0.25, 0.0, 0.6]])
TAGS = np.array([[1, 0, 0, 1, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]], float)
REAL = np.array([[0.4, -1.0, 2.0, 0.3], [1.5, 0.2, -0.7, 0.0], [-0.3, 0.8, 0.1, -2.0]])
D = {"lam_W": 5e-3, "lam_H": 7e-3, "lam_b": 1e-2}
FREE = D | {"lam_b": 0.0}
COUNTS = (3, 2, 1)
PROBLEMS = {
    "cross-entropy": ufm.Problem(3, 4, COUNTS, **D),
    "smoothed, free bias": ufm.Problem(3, 4, COUNTS, **FREE, loss=CrossEntropy(0.1)),
    "soft": ufm.Problem(3, 4, 2, **FREE, targets=SOFT),
    "tags": ufm.Problem(3, 4, (3, 2, 1, 1, 1), **D, targets=TAGS),
    "squared, no bias": ufm.Problem(3, 4, COUNTS, 5e-3, 7e-3, bias=False, loss=SquaredError()),
    "rescaled": ufm.Problem(3, 4, COUNTS, **FREE, loss=SquaredError(5, 3)),
    "regression": ufm.Problem(3, 4, 1, **D, loss=SquaredError(), targets=REAL),
    "rescaled as in its paper": ufm.Problem(3, 4, COUNTS, **D, loss=SquaredError(5, 15)),
    "counts of tokens": ufm.Problem(3, 4, 1, **FREE, targets=np.round(1000 * SOFT)),
    "binary": ufm.Problem(3, 4, COUNTS, **D, loss=BinaryCrossEntropy()),
    "binary tags": ufm.Problem(3, 4, 1, **FREE, loss=BinaryCrossEntropy(), targets=TAGS),
    "focal": ufm.Problem(3, 4, COUNTS, **FREE, loss=Focal(2)),
    "adjusted": ufm.Problem(3, 4, COUNTS, **D, loss=LogitAdjusted(3, [0, 0.5, 1])),
    "scaled": ufm.Problem(
        3, 4, COUNTS, **FREE, loss=LogitAdjusted([1, 2, 3], np.eye(3) * [0.1, -0.4, 2])
    ),
}  # fmt: skip
POINTS = 10_000
SCALES = np.array([1e-3, 0.1, 1.0, 4.0, 30.0])


@functools.cache
def best(name):
    """The lowest end of quasi-Newton from a few random starts."""
    problem = PROBLEMS[name]
    zero = ufm.init_params(0, problem, 1.0, jnp.float64)
    flat, back = ravel_pytree(zero)
    both = jax.jit(jax.value_and_grad(lambda x: ufm.objective(problem, back(x))))
    free = np.ones(len(flat))
    free[len(flat) - problem.K :] = problem.bias

    def function(x):
        value, slope = both(x)
        return float(value), np.asarray(slope) * free

    options = {"ftol": 0, "gtol": 1e-11, "maxiter": 3000, "maxcor": 40}
    rng = np.random.default_rng(0)
    ends = [
        scipy.optimize.minimize(
            function, free * start, jac=True, method="L-BFGS-B", options=options
        )
        for start in rng.standard_normal((2, len(flat)))
    ]
    end = min(ends, key=lambda x: x.fun)
    return back(jnp.asarray(end.x)), end.fun


def points(name):
    """Random points of every scale, and as many beside the best one, where bounds are tight."""
    problem, (end, _) = PROBLEMS[name], best(name)
    rng, half = np.random.default_rng(1), POINTS // 2
    scale = rng.choice(SCALES, half)
    near = 10.0 ** rng.uniform(-8, 0, half)

    def drawn(x):
        noise = rng.standard_normal((POINTS, *x.shape))
        wide = noise[:half] * scale.reshape(-1, *[1] * x.ndim)
        beside = np.asarray(x) + noise[half:] * near.reshape(-1, *[1] * x.ndim)
        return jnp.asarray(np.concatenate([wide, beside]))

    W, H, b = map(drawn, end)
    return ufm.Params(W, H, b if problem.bias else jnp.zeros_like(b))


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_certificate_at_ten_thousand_points_exceeds_the_least_value_known(name):
    problem, (end, least) = PROBLEMS[name], best(name)
    proofs = jax.jit(jax.vmap(lambda x: ufm.certify(problem, x)))(points(name))
    bounds, resolution = np.asarray(proofs.lower_bound), np.asarray(proofs.resolution)
    assert bounds.shape == (POINTS,)
    assert np.all(np.isfinite(bounds))
    assert np.max(bounds) <= least * (1 + 1e-13)
    assert np.all(np.asarray(proofs.gap) >= -resolution)
    # Tight at the best point, so that none of this is a trivial zero.
    assert float(ufm.certify(problem, end).gap) <= 1e-6 * (1 + least)
    assert least > 1e-2
