"""Every loss of the family in the model, on labels and on target matrices.

Value, gradient and Hessian against loops and automatic differentiation, index and spectra against
dense matrices, certificates against minima.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import eps

import ufm
from ufm import hessian
from ufm.critical import census
from ufm.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    FromValue,
    LogitAdjusted,
    SquaredError,
)

D = {"lam_W": 5e-3, "lam_H": 7e-3, "lam_b": 4e-3}
SOFT = np.array([[0.7, 0.1, 0.2, 0.0], [0.2, 0.9, 0.3, 0.5], [0.1, 0.0, 0.5, 0.5]])
TAGS = np.array([[1, 0, 0, 1, 0], [0, 1, 0, 1, 1], [0, 0, 1, 0, 1]])
REAL = np.array([[0.4, -1.0, 2.0, 0.3], [1.5, 0.2, -0.7, 0.0], [-0.3, 0.8, 0.1, -2.0]])


def pseudo_huber(z, t):
    return jnp.sum(jnp.sqrt(1 + (z - t) ** 2) - 1)


PROBLEMS = {
    "smoothed": ufm.Problem(3, 4, (3, 2, 1), **D, loss=CrossEntropy(0.1)),
    "soft": ufm.Problem(3, 4, 2, 5e-3, 7e-3, 0.0, targets=SOFT),
    "tags": ufm.Problem(3, 2, (3, 2, 1, 1, 1), **D, targets=TAGS),
    "squared": ufm.Problem(3, 4, (3, 2, 1), **D, loss=SquaredError()),
    "rescaled": ufm.Problem(3, 3, (3, 2, 1), 5e-3, 7e-3, 0.0, loss=SquaredError(5, 3)),
    "regression": ufm.Problem(3, 4, 1, 5e-3, 7e-3, 0.0, loss=SquaredError(), targets=REAL),
    "binary": ufm.Problem(3, 4, (3, 2, 1), **D, loss=BinaryCrossEntropy()),
    "binary tags": ufm.Problem(
        3, 3, 1, 5e-3, 7e-3, 0.0, loss=BinaryCrossEntropy(), targets=TAGS, weights=[1, 2, 1, 1, 3]
    ),
    "focal": ufm.Problem(3, 4, (3, 2, 1), **D, loss=Focal(2)),
    "adjusted": ufm.Problem(3, 4, (3, 2, 1), **D, loss=LogitAdjusted(3, [0, 0.5, 1])),
    "scaled": ufm.Problem(
        3, 3, (3, 2, 1), 5e-3, 7e-3, 0.0, loss=LogitAdjusted([1, 2, 3], np.eye(3) * [0.1, -0.4, 2])
    ),
    "own": ufm.Problem(
        3, 4, 1, **D, loss=FromValue(pseudo_huber, convex=True, bound=1), targets=REAL
    ),
}
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
# Solving and descending compile a program a problem: a few in the fast suite, all in the slow one.
QUICK = ("smoothed", "binary tags", "squared", "focal")
SOME = pytest.mark.parametrize(
    "problem",
    [pytest.param(x, marks=[] if name in QUICK else pytest.mark.long)
     for name, x in PROBLEMS.items()],
    ids=PROBLEMS,
)  # fmt: skip


def point_of(problem, seed=1, scale=0.7):
    params = ufm.init_params(seed, problem, scale, jnp.float64)
    return params._replace(b=0.1 * jnp.arange(problem.K, dtype=float))


def one_loss(loss, z, t):
    """ℓ(z; t) of one sample in NumPy, written from the formulas; t is a label or a column."""
    K, label = len(z), np.ndim(t) == 0
    T = np.eye(K)[t] if label else t
    if isinstance(loss, CrossEntropy):
        T = (1 - loss.smoothing) * T + loss.smoothing * T.sum() / K
        return T.sum() * np.log(np.sum(np.exp(z))) - T @ z
    if isinstance(loss, SquaredError):
        weights = np.where(T, loss.own, 1.0) if label else 1.0
        return np.sum(weights * (z - loss.shift * T) ** 2) / 2
    if isinstance(loss, BinaryCrossEntropy):
        p = 1 / (1 + np.exp(-z))
        return -np.sum(T * np.log(p) + (1 - T) * np.log(1 - p))
    if isinstance(loss, Focal):
        p = np.exp(z[t]) / np.sum(np.exp(z))
        return -((1 - p) ** loss.gamma) * np.log(p)
    if isinstance(loss, LogitAdjusted):
        shift = np.asarray(loss.shift)
        z = np.asarray(loss.scale) * z + (shift[:, t] if shift.ndim == 2 else shift)
        return np.log(np.sum(np.exp(z))) - z[t]
    return np.sum(np.sqrt(1 + (z - t) ** 2) - 1)


def loops(problem, params):
    """f by a loop over the samples."""
    W, H, b = map(np.asarray, params)
    c = np.ones(problem.groups) if problem.weights is None else np.asarray(problem.weights)
    total = problem.lam_W / 2 * np.sum(W**2) + problem.lam_H / 2 * np.sum(H**2)
    total += problem.lam_b / 2 * np.sum(b**2)
    for i, y in enumerate(problem.labels):
        t = y if problem.targets is None else problem.targets[:, y]
        total += c[y] * one_loss(problem.loss, W @ H[:, i] + b, t) / problem.N
    return total


@EACH
def test_value_gradient_hessian_and_index_of_every_loss(problem):
    params = point_of(problem)
    value = loops(problem, params)
    assert abs(float(ufm.objective(problem, params)) - value) <= 32 * eps(float) * value
    x = hessian.flatten(problem, params)

    def f(x):
        return ufm.objective(problem, hessian.unflatten(problem, x))

    first, second = jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x)))(x)
    slope, unit = hessian.flatten(problem, ufm.gradient(problem, params)), eps(float) * (1 + value)
    np.testing.assert_allclose(slope, first, rtol=0, atol=32 * unit)
    dense = np.asarray(hessian.dense(problem, params))
    np.testing.assert_allclose(dense, second, rtol=0, atol=64 * unit)
    values = np.linalg.eigvalsh(dense)
    for shift in (0.0, 1.1e-2):
        counts = hessian.inertia(problem, params, shift)
        assert counts.negative == np.sum(values < shift - counts.tolerance)


@SOME
def test_minima_are_found_certified_and_their_spectra_exact(problem):
    found = ufm.solve(problem, point_of(problem))
    assert found.status == "converged"
    values = np.linalg.eigvalsh(hessian.dense(problem, found.params))
    spectrum = hessian.spectrum(problem, found.params, 0.0)
    np.testing.assert_allclose(
        np.sort(np.repeat(spectrum.eigenvalues, spectrum.multiplicities)), values, rtol=0,
        atol=1e-13 * max(1, values[-1]),
    )  # fmt: skip
    verdict = hessian.verdict(problem, found.params)
    if not problem.loss.dual:
        assert np.isnan(verdict.gap)
        with pytest.raises(ufm.Refused, match="no certificate"):
            ufm.certify(problem, found.params)
        return
    proof = ufm.certify(problem, found.params)
    assert verdict.kind == "global minimiser"
    assert -proof.resolution <= proof.gap <= 1e-9 * proof.value
    for seed in range(24):
        bound = ufm.certify(problem, point_of(problem, seed, 10.0 ** (seed / 8 - 2)))
        assert bound.lower_bound <= proof.value <= bound.value


@SOME
def test_the_origin_and_its_neighbourhood_are_judged_by_their_curvature(problem):
    """From the origin Newton finds a saddle: its certificate is below f, its index is positive."""
    zero = jax.tree.map(jnp.zeros_like, point_of(problem))
    found = ufm.solve(problem, zero, descend=False)
    assert found.status == "converged"
    values = np.linalg.eigvalsh(hessian.dense(problem, found.params))
    verdict = hessian.verdict(problem, found.params)
    assert (verdict.kind == "strict saddle") == (values[0] < -1e-10)


@SOME
@pytest.mark.parametrize("optimizer", ["gd", "lbfgs", "sgd"])
def test_every_loss_descends(problem, optimizer):
    params = point_of(problem)
    options = {"batch_size": 2, "key": 0, "learning_rate": 0.01} if optimizer == "sgd" else {}
    run = ufm.descend(problem, params, optimizer, steps=120, record_every=20, **options)
    losses = run.history["loss"]
    assert losses[-1] < losses[0]
    if optimizer == "gd":
        assert np.all(np.diff(losses) <= 0)
    assert np.all(np.isnan(run.history["gap"])) != problem.loss.dual
    assert np.all(np.isnan(run.history["nc1"])) == (problem.targets is not None)


def test_a_parameter_of_a_loss_is_mapped_over_like_a_decay():
    """One compiled call for many smoothings and decays; entry by entry as one by one."""
    eps_axis, lams = jnp.array([0.05, 0.1, 0.3]), jnp.array([1e-3, 5e-3, 1e-2])
    base = PROBLEMS["smoothed"]
    params = point_of(base)

    def value(smoothing, lam):
        problem = replace(base, lam_W=lam, loss=CrossEntropy(smoothing))
        return ufm.objective(problem, params), ufm.certify(problem, params).lower_bound

    together = jax.jit(jax.vmap(value))(eps_axis, lams)
    for i in range(3):
        np.testing.assert_allclose(
            [x[i] for x in together], value(float(eps_axis[i]), float(lams[i])), rtol=1e-14
        )


def test_a_sweep_over_losses_says_what_ran():
    grid = ufm.Grid(
        K=3, d=3, n=2, lam_W=[1e-3, 1e-2], lam_H=1e-2, lam_b=1e-2,
        loss=["CrossEntropy(smoothing=0.1)", CrossEntropy(0.2), SquaredError()],
    )  # fmt: skip
    table = ufm.sweep(ufm.Plan(grid, steps=2000))
    rows = dict(zip(zip(table["loss"], table["lam_W"], strict=True), table["value"], strict=True))
    assert len(rows) == 6
    for (text, lam), value in rows.items():
        problem = ufm.Problem(3, 3, 2, lam, 1e-2, 1e-2, loss=str(text))
        least = ufm.solve(problem, ufm.init_params(0, problem, 1.0, jnp.float64)).params
        assert abs(float(ufm.objective(problem, least)) - value) <= 1e-7


def test_a_census_of_squared_loss_below_full_width_finds_saddles_and_one_minimum():
    """No spurious minimum for any d: the subsets of the two largest of three singular values."""
    problem = ufm.Problem(3, 2, (6, 3, 1), 5e-3, 5e-3, bias=False, loss=SquaredError())
    found = census(problem, jax.random.key(0), starts=48, rounds=3)
    assert [o.morse_index for o in found.orbits].count(0) == 1
    assert sorted(o.rank for o in found.orbits) == [0, 1, 1, 1, 2, 2, 2]


BAD = {
    "smoothing of 1": lambda: CrossEntropy(1.0),
    "negative smoothing": lambda: CrossEntropy(-0.1),
    "gamma below 0": lambda: Focal(-1),
    "text for gamma": lambda: Focal("2"),
    "a scale of 0": lambda: LogitAdjusted(0.0),
    "scale of a ragged list": lambda: LogitAdjusted([[1], [1, 2]]),
    "own of 0": lambda: SquaredError(0),
    "four scales for three classes": lambda: ufm.Problem(
        3, 3, 1, 1e-3, 1e-3, loss=LogitAdjusted([1, 2, 3, 4])
    ),
    "NaN in targets": lambda: ufm.Problem(
        3, 3, 1, 1e-3, 1e-3, targets=[[1, 0], [0, np.nan], [0, 1]]
    ),
    "a negative probability": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=-SOFT),
    "a column of zeros": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=0 * SOFT),
    "targets transposed": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=SOFT.T),
    "targets of one axis": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=[0, 1, 2]),
    "targets of text": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=[["a"], ["b"], ["c"]]),
    "counts that contradict targets": lambda: ufm.Problem(
        3, 3, (1, 2, 3), 1e-3, 1e-3, targets=SOFT
    ),
    "binary targets above 1": lambda: ufm.Problem(
        3, 3, 1, 1e-3, 1e-3, targets=2 * SOFT, loss=BinaryCrossEntropy()
    ),
    "focal with targets": lambda: ufm.Problem(3, 3, 1, 1e-3, 1e-3, targets=SOFT, loss=Focal()),
    "adjusted with targets": lambda: ufm.Problem(
        3, 3, 1, 1e-3, 1e-3, targets=SOFT, loss=LogitAdjusted()
    ),
    "rescaled with targets": lambda: ufm.Problem(
        3, 3, 1, 1e-3, 1e-3, targets=SOFT, loss=SquaredError(2, 1)
    ),
    "a function that is none": lambda: FromValue(3),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_losses_and_targets_that_make_no_sense_are_refused(case):
    with pytest.raises(ufm.Refused, match="allowed"):
        BAD[case]()


def test_a_problem_with_targets_is_described_compared_and_hashed():
    a, b = PROBLEMS["tags"], PROBLEMS["tags"].from_description(PROBLEMS["tags"].describe())
    assert a == b
    assert hash(a) == hash(b)
    assert a != replace(a, targets=TAGS[:, ::-1])
    assert a != replace(a, targets=None, n=2)
    copy = jax.tree.map(lambda x: x, a)
    assert copy == a


def test_a_fixed_classifier_and_features_that_are_not_free_are_refused_together():
    with pytest.raises(ufm.Refused, match="allowed: one of the two"):
        ufm.Problem(3, 4, 2, lam=1e-2, fixed=("W",), features="nonnegative")
