"""Index and nullity on the face of a point with H ≥ 0, against the matrix without its zeros."""

import dataclasses

import jax
import numpy as np
import pytest

import ufm
from ufm import Params, Problem, hessian
from ufm.losses import BinaryCrossEntropy, CrossEntropy, Focal, SquaredError

LOSSES = (CrossEntropy(), SquaredError(), BinaryCrossEntropy(), CrossEntropy(0.1), Focal(2.0))


def drawn(seed, loss):
    """A random problem of any counts, weights and bias, and a random point with zeros in H."""
    generator = np.random.default_rng(seed)
    K, d = int(generator.integers(2, 5)), int(generator.integers(1, 7))
    n = tuple(int(x) for x in generator.integers(1, 5, K))
    lam_W, lam_H = (float(x) for x in 10 ** generator.uniform(-4, -1, 2))
    lam_b = (0.0, 3e-3)[seed % 2]
    weighed = {}
    if seed % 3 == 0:
        weighed = {
            "weights": tuple(generator.uniform(0.1, 1, K)),
            "decay_weights": tuple(generator.uniform(0.5, 2, K)),
        }
    problem = Problem(
        K, d, n, lam_W, lam_H, lam_b, loss=loss, bias=seed % 4 > 0, features="nonnegative",
        **weighed,
    )  # fmt: skip
    W, H = generator.standard_normal((K, d)), generator.standard_normal((d, sum(n)))
    if seed % 2:  # some classes have equal samples, one of them no features at all
        starts = np.cumsum([0, *n[:-1]])
        H[:, problem.labels > 0] = H[:, starts][:, problem.labels][:, problem.labels > 0]
        H[:, problem.labels == 1] = 0
    b = generator.standard_normal(K) if problem.bias else np.zeros(K)
    return problem, Params(W, np.maximum(H, 0), b)


def eigenvalues(problem, point):
    """Those of ∇²f without the rows and columns of the zeros of H."""
    with jax.enable_x64(True):
        matrix = np.asarray(hessian.dense(problem, point))
    W, H, b = point
    free = [np.ones(W.size, bool), H.ravel() > 0, np.ones(len(b) if problem.bias else 0, bool)]
    chosen = np.concatenate(free)
    return np.linalg.eigvalsh(matrix[np.ix_(chosen, chosen)])


def counts(values, shift, tolerance):
    """(below, within, above) of a list of eigenvalues."""
    below, above = np.sum(values < shift - tolerance), np.sum(values > shift + tolerance)
    return int(below), int(len(values) - below - above), int(above)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("seed", range(4))
def test_counts_on_the_face_are_those_of_the_dense_matrix_at_any_point(seed, loss):
    problem, point = drawn(seed, loss)
    values = eigenvalues(problem, point)
    # Below λ_H nothing but the complement is indefinite (of a convex loss); above it H is too.
    for shift in (0.0, 0.5 * problem.lam_H, -0.01, 3.1 * problem.lam_H + 0.0123, 0.3):
        found = hessian.inertia(problem, point, shift)
        assert found.tolerance < 1e-7
        assert found[:3] == counts(values, shift, found.tolerance), shift
    flat = problem.bias and float(problem.lam_b) == 0 and loss.null(problem.K) is not None
    assert hessian.inertia(problem, point).zero == flat


def test_at_a_minimum_the_zeros_are_the_symmetries_of_the_face():
    problem = Problem(3, 5, 2, 4e-3, 6e-3, 0.0, features="nonnegative")
    solution = ufm.solve(problem, ufm.init_params(jax.random.key(0), problem))
    found = hessian.inertia(problem, solution.params, tolerance=1e-9)
    verdict = hessian.verdict(problem, solution.params)
    assert verdict.kind in ("global minimiser", "local minimiser")
    # Equal samples are merged in the verdict: each of them adds the axes in use, all positive.
    assert found[:2] == verdict.inertia[:2]
    assert sum(found[:3]) == 3 * 5 + 3 + np.sum(np.asarray(solution.params.H) > 0)


def test_where_no_feature_is_zero_the_face_is_everything():
    problem, point = drawn(1, CrossEntropy())
    point = point._replace(H=point.H + 0.1)
    free = dataclasses.replace(problem, features="free")
    assert hessian.inertia(problem, point)[:3] == hessian.inertia(free, point)[:3]


def test_the_origin_has_a_face_of_W_and_b_alone():
    problem = Problem(4, 6, 3, 1e-2, 1e-2, 1e-2, features="nonnegative")
    origin = Params(np.zeros((4, 6)), np.zeros((6, 12)), np.zeros(4))
    assert hessian.inertia(problem, origin)[:3] == (0, 0, 28)


def test_negative_features_are_refused():
    problem, point = drawn(1, CrossEntropy())
    with pytest.raises(ufm.Refused, match="negative entries in H"):
        hessian.inertia(problem, point._replace(H=point.H - 1))


def test_many_samples_cost_no_matrix_of_their_own():
    """20,000 samples of 12 features: the dense matrix would have 120,000 rows."""
    generator = np.random.default_rng(0)
    problem = Problem(3, 12, (9000, 8000, 3000), 1e-3, 1e-5, 1e-3, features="nonnegative")
    H = np.maximum(generator.standard_normal((12, problem.N)), 0)
    point = Params(generator.standard_normal((3, 12)), H, np.zeros(3))
    found = hessian.inertia(problem, point)
    assert found.zero == 0
    assert found.tolerance < problem.lam_H
    assert found.negative + found.positive == 39 + np.sum(H > 0)
    # Of K(d+1) eigenvalues of the complement; every A_j is positive.
    assert 0 < found.negative <= 39
