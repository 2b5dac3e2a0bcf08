"""Every probe of the Hessian against dense eigenvalues and automatic differentiation, in float64.

Agreement is asked for at 1e-12 of the norm of the Hessian unless a line says otherwise.
"""

import dataclasses
import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from ufm import hessian, theory
from ufm.hessian import curvature, reduction, stationarity
from ufm.hessian import decision as verdict
from ufm.model.objective import objective
from ufm.model.problem import Params, Problem
from ufm.theory import spectra

# Products and dense matrices compile once a shape: few problems, one for each trait.
COMPILED = {
    "two-classes-one-dimension": Problem(K=2, d=1, n=3, lam_W=1e-2, lam_H=2e-2, lam_b=1e-2),
    "narrow": Problem(K=5, d=2, n=2, lam_W=3e-3, lam_H=1e-3, lam_b=1e-2),
    "wide": Problem(K=3, d=5, n=1, lam_W=2e-2, lam_H=3e-4, lam_b=7e-3),
    "unequal-free-bias": Problem(K=3, d=2, n=(4, 1, 1), lam_W=8e-3, lam_H=2e-3, lam_b=0.0),
    "unequal-no-bias": Problem(K=4, d=3, n=(2, 5, 2, 1), lam_W=2e-3, lam_H=4e-3, bias=False),
}
PROBLEMS = COMPILED | {
    "d-is-K-minus-1": Problem(K=4, d=3, n=2, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3),
    "d-is-K": Problem(K=3, d=3, n=4, lam_W=1e-3, lam_H=4e-3, lam_b=0.0),
    "unequal-wide": Problem(K=4, d=6, n=(1, 3, 3, 5), lam_W=8e-3, lam_H=2e-3, lam_b=1e-2),
    "above-the-threshold": Problem(K=3, d=3, n=2, lam_W=0.5, lam_H=0.4, lam_b=0.1),
}
SOME = pytest.mark.parametrize("problem", COMPILED.values(), ids=COMPILED.keys())
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
RTOL = 1e-12


def by_loops(problem, params):
    """The reference Hessian."""
    return reference.hessian(*laws.reference_arguments(problem, params))


def flat(problem, params):
    """W row-major, H row-major, b, behind any leading axes, in NumPy."""
    W, H, b = (np.asarray(x) for x in params)
    batch = b.shape[:-1]
    parts = [W.reshape(*batch, -1), H.reshape(*batch, -1)] + ([b] if problem.bias else [])
    return np.concatenate(parts, axis=-1)


def unflat(problem, vector):
    """The inverse of `flat`."""
    K, d, N = problem.K, problem.d, problem.N
    batch = vector.shape[:-1]
    W, H, b = np.split(vector, [K * d, K * d + d * N], axis=-1)
    b = b if problem.bias else np.zeros((*batch, K))
    return Params(W.reshape(*batch, K, d), H.reshape(*batch, d, N), b)


def tangents(problem, count, seed=1):
    """Random tangents behind one leading axis."""
    rows = np.random.default_rng(seed).standard_normal((count, problem.size))
    return jax.tree.map(jnp.asarray, unflat(problem, rows))


def assert_near(found, expected, scale):
    """All leaves agree to 1e-12 of the scale."""
    laws.assert_close(found, expected, atol=RTOL * float(scale))


# Critical points


def origin(problem):
    """W = H = b = 0."""
    K, d, N = problem.K, problem.d, problem.N
    return Params(np.zeros((K, d)), np.zeros((d, N)), np.zeros(K))


def slope_and_value(problem, vector):
    """f and its gradient on a flat vector; plain NumPy."""
    params = unflat(problem, vector)
    lams = (problem.lam_W, problem.lam_H, problem.lam_b if problem.bias else 0.0)
    Z = params.W @ params.H + params.b[:, None]
    Z = Z - np.max(Z, axis=0)
    P = np.exp(Z) / np.sum(np.exp(Z), axis=0)
    Y = np.eye(problem.K)[:, laws.class_of_samples(problem)]
    G = (P - Y) / problem.N
    value = np.mean(np.log(np.sum(np.exp(Z), axis=0)) - np.sum(Z * Y, axis=0))
    value += sum(lam / 2 * np.sum(np.square(x)) for lam, x in zip(lams, params, strict=True))
    slope = [G @ params.H.T + lams[0] * params.W, params.W.T @ G + lams[1] * params.H]
    slope += [G.sum(axis=1) + lams[2] * params.b] if problem.bias else []
    return value, np.concatenate([np.ravel(x) for x in slope])


def minimised(problem, params, project=lambda x: x):
    """A critical point by L-BFGS and Newton with minimum-length steps, on a subspace if given."""
    start = project(flat(problem, params))

    def on_the_subspace(vector):
        value, slope = slope_and_value(problem, project(vector))
        return value, project(slope)

    options = {"maxiter": 5000, "ftol": 0.0, "gtol": 1e-6}
    found = scipy.optimize.minimize(
        on_the_subspace, start, jac=True, method="L-BFGS-B", options=options
    )
    vector = project(found.x)
    for _ in range(20):
        slope = on_the_subspace(vector)[1]
        if np.linalg.norm(slope) < 3e-16 * (1 + np.linalg.norm(vector)):
            break
        matrix = by_loops(problem, unflat(problem, vector))
        vector = vector - project(np.linalg.pinv(matrix, rcond=1e-9, hermitian=True) @ slope)
    return unflat(problem, vector)


def tying(problem, groups):
    """The projection that averages W, H and b over the classes of each group, as vectors."""
    labels = np.array(laws.class_of_samples(problem))

    def project(vector):
        tied = jax.tree.map(np.array, unflat(problem, vector))
        for group in set(groups):
            members = [k for k in range(problem.K) if groups[k] == group]
            samples = np.isin(labels, members)
            tied.W[members] = np.mean(tied.W[members], axis=0)
            tied.b[members] = np.mean(tied.b[members])
            tied.H[:, samples] = np.mean(tied.H[:, samples], axis=1, keepdims=True)
        return flat(problem, tied)

    return project


def padded(problem, width, seed=0, groups=None):
    """A critical point of rank `width`: solved in that width, zero rows added.

    With groups of equal counts the classes of a group are tied; by symmetry the minimum subject
    to that is a critical point.
    """
    narrow = dataclasses.replace(problem, d=width)
    start = jax.tree.map(np.array, laws.random_params(narrow, seed, scale=0.5))
    project = tying(narrow, groups) if groups else (lambda x: x)
    point = minimised(narrow, start, project)
    W, H = np.zeros((problem.K, problem.d)), np.zeros((problem.d, problem.N))
    W[:, :width], H[:width] = point.W, point.H
    return Params(W, H, point.b)


BALANCED = {"lam_W": 6e-3, "lam_H": 2e-3, "lam_b": 1e-2}


def spurious_minimum():
    """d = 2, K = 6: five classes on a pentagon and one at the origin (a local minimum)."""
    problem = Problem(K=6, d=2, n=3, lam_W=1e-3, lam_H=1e-3, lam_b=0.01)
    angles = 2 * np.pi * np.arange(5) / 5
    W = np.zeros((6, 2))
    W[:5] = 4.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    H = np.repeat(W.T / np.sqrt(3), 3, axis=1)
    return problem, minimised(problem, Params(W, H, np.zeros(6)))


FOUR = Problem(K=4, d=5, n=2, **BALANCED)
# Few shapes, since probes compile once a shape.
MAKERS = {
    "two-classes": (Problem(K=2, d=2, n=2, **BALANCED), lambda p: padded(p, 1)),
    "two-classes-origin": (Problem(K=2, d=1, n=5, **BALANCED), origin),
    "three-classes-line": (Problem(K=3, d=3, n=2, **BALANCED), lambda p: padded(p, 1)),
    "four-classes-one-sample": (Problem(K=4, d=3, n=1, **BALANCED), lambda p: padded(p, 2)),
    "four-classes-minimum": (FOUR, lambda p: padded(p, 3)),
    "four-classes-plane": (FOUR, lambda p: padded(p, 2)),
    "four-classes-tied": (FOUR, lambda p: padded(p, 2, groups=[0, 0, 1, 2])),
    "four-classes-pairs": (FOUR, lambda p: padded(p, 1, groups=[0, 0, 1, 1])),
    "four-classes-origin": (FOUR, origin),
    "free-bias": (dataclasses.replace(FOUR, lam_b=0.0), lambda p: padded(p, 2)),
    "unequal-decays": (dataclasses.replace(FOUR, lam_W=2e-3, lam_H=7e-3), lambda p: padded(p, 2)),
    "no-bias": (dataclasses.replace(FOUR, bias=False), lambda p: padded(p, 2)),
    "five-classes-narrow": (Problem(K=5, d=4, n=2, **BALANCED), lambda p: padded(p, 3)),
    "seven-classes": (Problem(K=7, d=7, n=1, **BALANCED), lambda p: padded(p, 3)),
    "unequal-counts": (
        Problem(K=4, d=5, n=(1, 2, 3, 5), **BALANCED),
        lambda p: padded(p, 2),
    ),
    "unequal-counts-minimum": (
        Problem(K=3, d=4, n=(4, 1, 1), lam_W=6e-3, lam_H=2e-3, bias=False),
        lambda p: padded(p, 2),
    ),
}
CRITICAL = pytest.mark.parametrize("name", MAKERS)


@functools.cache
def critical(name):
    """(problem, point, dense eigenvalues) of one entry of MAKERS, as JAX arrays."""
    problem, make = MAKERS[name]
    point = make(problem)
    return problem, jax.tree.map(jnp.asarray, point), np.linalg.eigvalsh(by_loops(problem, point))


@CRITICAL
def test_the_critical_points_of_these_tests_are_critical(name):
    problem, point, _ = critical(name)
    assert np.linalg.norm(slope_and_value(problem, flat(problem, point))[1]) < 1e-14
    balance = problem.lam_W * point.W.T @ point.W - problem.lam_H * point.H @ point.H.T
    np.testing.assert_allclose(balance, 0, atol=1e-12)


# Products and the dense matrix


@pytest.mark.parametrize("name", ["unequal-free-bias"])
def test_product_and_dense_are_forward_over_reverse_autodiff(name):
    problem = PROBLEMS[name]
    params, arrows = laws.random_params(problem), tangents(problem, 3)

    @jax.jit
    def autodiff(params, arrows):
        slope = jax.grad(lambda x: objective(problem, x))
        many = jax.vmap(lambda arrow: jax.jvp(slope, (params,), (arrow,))[1])(arrows)
        basis = curvature.unflatten(problem, jnp.eye(problem.size))
        rows = jax.vmap(lambda arrow: jax.jvp(slope, (params,), (arrow,))[1])(basis)
        return many, curvature.flatten(problem, rows)

    many, matrix = autodiff(params, arrows)
    scale = np.linalg.norm(matrix, 2)
    found = pieces(problem, params, arrows)
    assert_near(found["dense"], matrix, scale)
    assert_near(found["many"], many, scale * np.sqrt(problem.size))


@jax.jit
def pieces(problem, params, arrows):
    """Products of one tangent and of many, and the two parts as matrices; one compilation."""
    at = hessian.linearize(problem, params)
    basis = curvature.unflatten(problem, jnp.eye(problem.size))
    return {
        "many": hessian.product(problem, params, arrows),
        "one": hessian.product(problem, params, jax.tree.map(lambda x: x[0], arrows)),
        "gauss_newton": curvature.flatten(
            problem, hessian.gauss_newton_product(problem, params, basis)
        ),
        "remainder": curvature.flatten(problem, curvature.remainder(at, basis)),
        "dense": hessian.dense(problem, params),
    }


@SOME
def test_products_of_one_and_of_many_tangents_are_those_of_the_loops_hessian(problem):
    params, arrows = laws.random_params(problem), tangents(problem, 3)
    matrix = by_loops(problem, params)
    scale = np.linalg.norm(matrix, 2)
    found = pieces(problem, params, arrows)
    expected = flat(problem, arrows) @ matrix
    assert_near(flat(problem, found["many"]), expected, scale * np.sqrt(problem.size))
    assert_near(flat(problem, found["one"]), expected[0], scale * np.sqrt(problem.size))


@SOME
def test_gauss_newton_is_positive_semidefinite_and_the_remainder_completes_it(problem):
    params = laws.random_params(problem)
    found = pieces(problem, params, tangents(problem, 3))
    matrix = by_loops(problem, params)
    scale = np.linalg.norm(matrix, 2)
    assert np.linalg.eigvalsh(found["gauss_newton"])[0] > -RTOL * scale
    assert_near(found["gauss_newton"] + found["remainder"], matrix, scale)


@SOME
def test_dense_is_the_hessian_by_loops_and_exactly_symmetric(problem):
    params = laws.random_params(problem)
    expected = by_loops(problem, params)
    found = np.asarray(pieces(problem, params, tangents(problem, 3))["dense"])
    assert_near(found, expected, np.linalg.norm(expected, 2))
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("columns", [1, 4, 10**6])
def test_the_matrix_is_the_same_whole_and_block_by_block(columns, monkeypatch):
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem)
    row_bytes = 8 * (4 * problem.K * problem.N + 4 * problem.size)
    monkeypatch.setattr(curvature, "_BLOCK_BYTES", columns * row_bytes)
    found = np.asarray(jax.jit(lambda x: curvature.matrix(problem, x))(params))
    expected = by_loops(problem, params)
    assert_near(found, expected, np.linalg.norm(expected, 2))
    np.testing.assert_array_equal(found, found.T)


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
@laws.few_examples
def test_product_is_linear_and_symmetric(seed, factor):
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem, seed)
    first, second = flat(problem, tangents(problem, 2, seed))
    three = unflat(problem, np.stack([first, second, first + factor * second]))
    image = pieces(problem, params, jax.tree.map(jnp.asarray, three))["many"]
    image = flat(problem, image)
    scale = np.linalg.norm(image[0]) * np.linalg.norm(second)
    assert_near(first @ image[1], second @ image[0], scale)
    assert_near(image[2], image[0] + factor * image[1], 10 * np.linalg.norm(image))


def test_products_work_under_vmap():
    problem = PROBLEMS["narrow"]
    params, arrows = laws.random_params(problem), tangents(problem, 3)
    plain = pieces(problem, params, arrows)["many"]
    mapped = jax.jit(jax.vmap(hessian.product, (None, None, 0)))(problem, params, arrows)
    assert_near(mapped, plain, 1.0)


def test_products_of_many_tangents_in_float32_keep_their_dtype_and_six_digits():
    problem = PROBLEMS["narrow"]
    params, arrows = laws.random_params(problem), tangents(problem, 2)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (params, arrows))
    found = jax.jit(hessian.product)(problem, *single)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    expected = unflat(problem, flat(problem, arrows) @ by_loops(problem, params))
    scale = max(float(np.max(np.abs(x))) for x in expected)
    laws.assert_close(found, expected, atol=64 * laws.eps(jnp.float32) * scale)


def test_gauss_newton_keeps_its_digits_when_a_sample_is_all_but_certain():
    # One sample of class 0 of K = 3, d = 1: the b-part of the product is S δz/N. At logits
    # (40, 0, 1) entries of S are 1e-17 and diag(p) - p pᵀ in floating point would lose them all.
    problem = Problem(K=3, d=1, n=1, lam_W=1e-3, lam_H=1e-3, lam_b=1e-3)
    z, shift = [40.0, 0.0, 1.0], [0.3, -1.7, 0.4]
    W, H = jnp.zeros((3, 1)), jnp.zeros((1, 3))
    params = Params(W, H, jnp.asarray(z))
    arrow = Params(W, H, jnp.asarray(shift))
    found = jax.jit(hessian.gauss_newton_product)(problem, params, arrow).b
    with localcontext() as context:
        context.prec = reference.DIGITS
        r = reference.exact_residual(z, 0)
        p = [r[0] + 1, *r[1:]]
        dz = [Decimal(x) for x in shift]
        mean = sum(x * y for x, y in zip(p, dz, strict=True))
        exact = [float(x * (y - mean)) for x, y in zip(p, dz, strict=True)]
    # Samples of all three classes share these logits, and N = 3.
    np.testing.assert_allclose(found, exact, rtol=16 * laws.eps(jnp.float64))


@pytest.mark.parametrize("name", ["narrow", "unequal-no-bias"])
def test_flatten_and_unflatten_undo_each_other_and_follow_the_documented_order(name):
    problem = PROBLEMS[name]
    params = laws.random_params(problem)
    vector = hessian.flatten(problem, params)
    np.testing.assert_array_equal(vector, flat(problem, params))
    laws.assert_close(hessian.unflatten(problem, vector), params, atol=0)
    with pytest.raises(ValueError, match=f"{problem.size} variables"):
        hessian.unflatten(problem, vector[1:])


def test_dense_is_float64_whatever_the_params_and_the_configuration():
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem, dtype=jnp.float32)
    with jax.enable_x64(False):
        found = hessian.dense(problem, params)
    assert found.dtype == jnp.float64
    assert_near(found, by_loops(problem, params), 1.0)


def test_a_dense_hessian_beyond_the_memory_limit_is_refused_with_alternatives():
    problem = Problem(K=10, d=100, n=100, lam_W=1e-3, lam_H=1e-3)
    with pytest.raises(ValueError, match=r"101010 variables.*hessian\.extreme"):
        hessian.dense(problem, laws.random_params(problem))


# The symmetry orbit


def orbit_basis(problem, params):
    """Orthonormal rows that span the tangents of the orbit, from its generators."""
    W, H, b = (np.asarray(x) for x in params)
    rows = [np.zeros(problem.size)]
    for i in range(problem.d):
        for j in range(i):
            A = np.zeros((problem.d, problem.d))
            A[i, j], A[j, i] = 1.0, -1.0
            rows.append(flat(problem, Params(W @ A.T, A @ H, 0 * b)))
    if problem.bias and problem.lam_b == 0:
        rows.append(flat(problem, Params(0 * W, 0 * H, np.ones(problem.K))))
    _, sizes, basis = np.linalg.svd(np.array(rows), full_matrices=False)
    return basis[sizes > 1e-10 * max(sizes[0], 1e-300)]


def assert_projects(problem, params):
    """project_out removes exactly the span of the generators."""
    basis = orbit_basis(problem, params)
    arrows = tangents(problem, 4)
    rows = flat(problem, arrows)
    out = projected(problem, params, arrows)
    expected = rows - (rows @ basis.T) @ basis
    np.testing.assert_allclose(flat(problem, out), expected, rtol=0, atol=1e-12)
    return basis


@jax.jit
def projected(problem, params, arrows):
    """`project_out`, compiled."""
    return curvature.project_out(curvature.orbit(problem, params), arrows)


@pytest.mark.parametrize("name", ["two-classes-one-dimension", "unequal-free-bias", "narrow"])
def test_projection_removes_the_tangents_of_the_orbit_at_random_points(name):
    assert_projects(PROBLEMS[name], laws.random_params(PROBLEMS[name]))


@pytest.mark.parametrize("name", ["four-classes-plane", "free-bias", "two-classes-origin"])
def test_projection_removes_the_null_space_of_the_orbit_at_critical_points(name):
    problem, point, _ = critical(name)
    rank = np.linalg.matrix_rank(np.asarray(point.W), tol=1e-8)
    basis = assert_projects(problem, point)
    assert len(basis) == spectra.orbit_dimension(problem, int(rank))
    np.testing.assert_allclose(by_loops(problem, point) @ basis.T, 0, atol=1e-13)


# Inertia


def some_classes_collapsed(problem, seed=0):
    """A random point at which every class but class 1 has equal features."""
    params = laws.random_params(problem, seed, scale=0.7)
    labels = np.array(laws.class_of_samples(problem))
    H = np.array(params.H)
    for k in range(problem.K):
        if k != 1:
            H[:, labels == k] = H[:, labels == k][:, :1]
    return params._replace(H=jnp.asarray(H))


POINTS = {
    "random": lambda p: laws.random_params(p),
    "partly collapsed": some_classes_collapsed,
    "origin": lambda p: jax.tree.map(jnp.asarray, origin(p)),
}


def counts(eigenvalues, shift, tolerance):
    """(below, within, above) of a list of eigenvalues."""
    below = int(np.sum(eigenvalues < shift - tolerance))
    above = int(np.sum(eigenvalues > shift + tolerance))
    return below, len(eigenvalues) - below - above, above


@pytest.mark.parametrize("make", POINTS.values(), ids=POINTS.keys())
@EACH
def test_inertia_counts_the_dense_eigenvalues_at_many_shifts_at_any_point(problem, make):
    point = make(problem)
    eigenvalues = np.linalg.eigvalsh(by_loops(problem, point))
    # Below λ_H nothing but the complement is indefinite; above it the H-block is too.
    shifts = [*np.linspace(eigenvalues[0] - 0.01, 0.99 * problem.lam_H, 6), 0.0]
    shifts += [1.31 * problem.lam_H + 0.0123, 0.2, eigenvalues[-1] + 1.0]
    for shift in shifts:
        found = hessian.inertia(problem, point, shift)
        assert found[:3] == counts(eigenvalues, shift, found.tolerance), shift
        # It grows as 1/(shift - λ_H), which elimination divides by.
        assert found.tolerance < 1e-7


@CRITICAL
def test_inertia_at_critical_points_finds_the_index_and_the_orbit(name):
    problem, point, eigenvalues = critical(name)
    found = hessian.inertia(problem, point)
    assert found[:3] == counts(eigenvalues, 0.0, 1e-12)
    rank = int(np.linalg.matrix_rank(np.asarray(point.W), tol=1e-8))
    assert found.zero == spectra.orbit_dimension(problem, rank)


def test_a_wide_tolerance_counts_what_lies_within_it_as_zero():
    problem, point, eigenvalues = critical("four-classes-plane")
    for tolerance in (1e-6, 1e-3, 3e-3, 1.0):
        found = hessian.inertia(problem, point, tolerance=tolerance)
        assert found[:5] == (*counts(eigenvalues, 0.0, tolerance), tolerance, 0.0)


def test_a_tolerance_below_rounding_is_refused_as_undecided():
    problem, point, _ = critical("four-classes-plane")
    with pytest.raises(ValueError, match="undecided"):
        hessian.inertia(problem, point, tolerance=1e-18)


def test_inertia_works_without_decay_of_the_features():
    problem = Problem(K=3, d=4, n=2, lam_W=1e-2, lam_H=0.0, lam_b=0.0)
    point = laws.random_params(problem)
    eigenvalues = np.linalg.eigvalsh(by_loops(problem, point))
    found = hessian.inertia(problem, point)
    assert found[:3] == counts(eigenvalues, 0.0, found.tolerance)
    assert found.zero > 0


def test_inertia_does_not_depend_on_jax_precision_or_on_the_merging_of_samples():
    problem, point, _ = critical("four-classes-plane")
    expected = hessian.inertia(problem, point)
    # Spread far above what is merged, far below what moves an eigenvalue across the tolerance.
    generator = np.random.default_rng(0)
    spread = point.H + 1e-12 * generator.standard_normal(point.H.shape)
    apart = hessian.inertia(problem, point._replace(H=spread), tolerance=1e-9)
    assert apart[:3] == expected[:3]
    with jax.enable_x64(False):
        assert hessian.inertia(problem, point) == expected


def test_a_complement_beyond_the_memory_limit_is_refused_with_alternatives():
    problem = Problem(K=200, d=100, n=1, lam_W=1e-3, lam_H=1e-3, bias=False)
    with pytest.raises(ValueError, match=r"Schur complement of 20000 rows.*hessian\.extreme"):
        hessian.inertia(problem, laws.random_params(problem))


@pytest.mark.parametrize(("name", "groups"), [("four-classes-tied", 3), ("four-classes-pairs", 2)])
def test_tied_saddles_have_the_index_and_the_curvature_that_were_found_for_them(name, groups):
    # Tie the classes of each of m groups: rank m - 1, index (K - m) d where all groups separate,
    # and the smallest eigenvalue of the origin (a numerical finding for d > K, no theorem).
    problem, point, eigenvalues = critical(name)
    assert np.linalg.matrix_rank(np.asarray(point.W), tol=1e-8) == groups - 1
    assert hessian.inertia(problem, point).negative == (problem.K - groups) * problem.d
    lowest = spectra.origin_spectrum(problem).eigenvalues[0]
    np.testing.assert_allclose(eigenvalues[0], lowest, rtol=1e-10)


# The spectrum by reduction


@CRITICAL
def test_spectrum_by_reduction_is_the_dense_spectrum(name):
    problem, point, eigenvalues = critical(name)
    raw = hessian.spectrum(problem, point, tolerance=0.0)
    expanded = np.repeat(raw.eigenvalues, raw.multiplicities)
    assert_near(expanded, eigenvalues, np.max(np.abs(eigenvalues)))
    grouped = hessian.spectrum(problem, point)
    assert sum(grouped.multiplicities) == sum(raw.multiplicities) == problem.size
    assert len(grouped.eigenvalues) <= len(raw.eigenvalues)
    index = hessian.inertia_of(grouped)
    assert index[:3] == counts(eigenvalues, 0.0, index.tolerance)
    assert index[:3] == hessian.inertia(problem, point)[:3]


def test_spectrum_at_the_global_minimiser_is_the_closed_form():
    problem = Problem(K=5, d=6, n=4, lam_W=4e-3, lam_H=1e-3, lam_b=2e-2)
    point = theory.global_minimizer(problem, jax.random.key(0))
    found = hessian.spectrum(problem, point)
    exact = spectra.hessian_spectrum(problem)
    assert found.multiplicities == exact.multiplicities
    assert_near(found.eigenvalues, exact.eigenvalues, exact.eigenvalues[-1])


def large_saddles():
    """K = 10, d = 16, n = 20 (3,370 variables): padded saddles, solved as class means.

    A critical point depends on n only through n lam_H, so n = 1 and 20 lam_H give the same one.
    """
    problem = Problem(K=10, d=16, n=20, lam_W=5e-3, lam_H=2.5e-4, lam_b=5e-3)
    means = Problem(K=10, d=16, n=1, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3)
    for rank in (1, 2, 4):
        point = padded(means, rank)
        H = np.repeat(point.H, 20, axis=1)
        yield problem, rank, jax.tree.map(jnp.asarray, Params(point.W, H, point.b))


def test_index_by_elimination_and_by_reduction_agree_on_3370_variables():
    for problem, rank, point in large_saddles():
        found = hessian.inertia(problem, point)
        assert found[:3] == hessian.inertia_of(hessian.spectrum(problem, point))[:3]
        assert found.zero == spectra.orbit_dimension(problem, rank)
        # d - r directions are idle, and one pair of them each is negative for every sigma > mu.
        sigma = np.linalg.svd(reduction.reduce(problem, point).G, compute_uv=False) * np.sqrt(20)
        assert found.negative >= (16 - rank) * np.sum(sigma > 1.001 * problem.mu) > 0


@pytest.mark.long
def test_index_and_spectrum_agree_with_dense_eigenvalues_on_3370_variables():
    for problem, _, point in large_saddles():
        eigenvalues = np.linalg.eigvalsh(hessian.dense(problem, point))
        raw = hessian.spectrum(problem, point, tolerance=0.0)
        expanded = np.repeat(raw.eigenvalues, raw.multiplicities)
        assert_near(expanded, eigenvalues, np.max(np.abs(eigenvalues)))
        assert hessian.inertia(problem, point)[:3] == counts(eigenvalues, 0.0, 1e-12)


@pytest.mark.parametrize("probe", [hessian.spectrum, hessian.witness])
def test_a_point_that_is_not_critical_is_refused_with_its_residual_and_the_remedy(probe):
    problem, point, _ = critical("four-classes-plane")
    moved = point._replace(W=point.W + 1e-4)
    residual = stationarity.stationarity(problem, moved).residual
    slope = laws.slope(problem, moved)
    length = np.sqrt(sum(float(jnp.sum(jnp.square(x))) for x in slope))
    np.testing.assert_allclose(residual, length, rtol=1e-12)
    with pytest.raises(ValueError, match=rf"{residual:.3g}.*ufm\.solve"):
        probe(problem, moved)


def test_a_critical_point_rounded_to_float32_is_refused():
    problem, point, _ = critical("four-classes-plane")
    single = jax.tree.map(lambda x: x.astype(jnp.float32), point)
    with pytest.raises(ValueError, match="float64"):
        hessian.spectrum(problem, single)
    assert hessian.verdict(problem, single).kind == "not critical"


# Density


def test_density_is_within_its_error_bars_of_the_smoothed_spectrum():
    problem, point, eigenvalues = critical("four-classes-plane")
    found = hessian.density(problem, point, jax.random.key(0), probes=40, steps=60)
    bumps = np.exp(-(((found.grid[:, None] - eigenvalues) / found.width) ** 2) / 2)
    exact = bumps.sum(axis=1) / (found.width * np.sqrt(2 * np.pi) * problem.size)
    # 512 strongly correlated errors: 5 standard errors; where the error bar vanishes, rounding.
    error = np.abs(found.density - exact)
    assert np.all(error <= 5 * found.standard_error + 1e-9 * np.max(exact))
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, atol=1e-3)
    # vᵀAv has mean tr A/size over sign vectors v.
    means = np.sum(found.weights * found.nodes, axis=1)
    assert abs(np.mean(means) - np.mean(eigenvalues)) < 5 * np.std(means, ddof=1) / np.sqrt(40)


@pytest.mark.parametrize("where", ["saddle", "origin"])
def test_quadrature_past_the_exhausted_krylov_space_is_exact_for_each_probe(where):
    # With more steps than distinct eigenvalues the Lanczos matrix carries the whole measure.
    problem, point, eigenvalues = critical("four-classes-plane")
    if where == "origin":
        point = jax.tree.map(jnp.asarray, origin(problem))
        eigenvalues = spectra.origin_spectrum(problem).eigenvalues
    assert len(hessian.spectrum(problem, point).eigenvalues) < 60
    found = hessian.density(problem, point, jax.random.key(1), probes=40, steps=60)
    assert np.all(np.isfinite(found.density))
    np.testing.assert_allclose(np.sum(found.weights, axis=1), 1.0, rtol=1e-12)
    heavy = found.nodes[found.weights > 1e-8]
    distance = np.min(np.abs(heavy[:, None] - eigenvalues), axis=1)
    assert np.max(distance) < 1e-10 * np.max(np.abs(eigenvalues))


@pytest.mark.parametrize(
    "bad", [{"probes": 1}, {"steps": 1}, {"points": 1}, {"width": 0.0}, {"width": -1.0}], ids=str
)
def test_density_refuses_sizes_out_of_range_by_name(bad):
    problem, point, _ = critical("two-classes")
    with pytest.raises(ValueError, match=next(iter(bad))):
        hessian.density(problem, point, jax.random.key(0), **bad)


# Witness and verdict


@pytest.mark.parametrize("name", [*(n for n in MAKERS if "four" in n), "unequal-counts", "no-bias"])
def test_the_witness_is_a_unit_direction_whose_curvature_is_the_predicted_eigenvalue(name):
    problem, point, eigenvalues = critical(name)
    found = hessian.witness(problem, point)
    np.testing.assert_allclose(np.linalg.norm(flat(problem, found.direction)), 1.0)
    assert_near(found.curvature, found.predicted, np.max(np.abs(eigenvalues)))
    arrow = flat(problem, found.direction)
    image = by_loops(problem, point) @ arrow
    assert_near(image, found.curvature * arrow, np.max(np.abs(eigenvalues)))
    # A theorem for the explicit direction, and true by construction for the computed one.
    if eigenvalues[0] < -1e-9:
        assert_near(found.curvature, eigenvalues[0], np.max(np.abs(eigenvalues)))


@pytest.mark.parametrize(
    "name",
    [
        "four-classes-minimum",
        "four-classes-plane",
        "four-classes-tied",
        "free-bias",
        "unequal-counts",
    ],
)
def test_the_verdict_is_what_dense_eigenvalues_and_the_certificate_say(name):
    problem, point, eigenvalues = critical(name)
    found = hessian.verdict(problem, point)
    index = counts(eigenvalues, 0.0, 1e-12)[0]
    labels = np.array(laws.class_of_samples(problem))
    G = reference.scaled_residuals(*laws.reference_point(problem, point), labels)
    sigma = np.linalg.svd(G, compute_uv=False)[0]
    if index:
        assert found.kind == "strict saddle"
        assert found.gap > 1e-6
    else:
        assert sigma <= problem.mu * (1 + 1e-10)
        assert found.kind == "global minimiser"
        assert found.gap < 1e-12
    np.testing.assert_allclose(found.spectral_ratio, sigma / problem.mu, rtol=1e-10)


def test_a_spurious_local_minimum_in_the_plane_is_called_a_local_minimiser():
    # Which has a lower neighbour: the hexagon-like global minimum of the same problem.
    problem, point = spurious_minimum()
    found = hessian.verdict(problem, point)
    assert found.kind == "local minimiser"
    assert found.inertia.negative == 0
    assert found.inertia.zero == 1
    eigenvalues = np.linalg.eigvalsh(by_loops(problem, point))
    assert counts(eigenvalues, 0.0, 1e-12)[:2] == (0, 1)
    lower = min(
        slope_and_value(problem, flat(problem, padded(problem, 2, seed=seed)))[0]
        for seed in range(2)
    )
    value = slope_and_value(problem, flat(problem, point))[0]
    assert value > lower + 1e-3
    assert found.gap >= value - lower


def test_a_degenerate_point_without_negative_curvature_is_left_undecided():
    problem, point, _ = critical("four-classes-minimum")
    core = reduction.critical_core(problem, point)
    orbit = spectra.orbit_dimension(problem, 3)
    size = problem.size
    extra = hessian.Inertia(0, orbit + 1, size - orbit - 1, 1e-12, 0.0)
    assert verdict.from_counts(problem, core, extra)[0] == "undecided"
    assert verdict.from_counts(problem, core, extra._replace(zero=orbit))[0] == "local minimiser"
    assert verdict.from_counts(problem, core, extra._replace(negative=1))[0] == "strict saddle"


def test_a_verdict_away_from_critical_points_states_the_residual():
    problem = PROBLEMS["narrow"]
    found = hessian.verdict(problem, laws.random_params(problem))
    assert found.kind == "not critical"
    assert f"{found.residual:.3g}" in found.reason
    assert np.isnan(found.curvature)
    assert found.inertia is None


def test_a_verdict_without_decay_is_refused():
    problem = Problem(K=3, d=3, n=2, lam_W=0.0, lam_H=1e-2)
    with pytest.raises(ValueError, match=r"lam_W=0\.0"):
        hessian.verdict(problem, laws.random_params(problem))


# Refusals shared by all probes

PROBES = {
    "product": lambda p, x: hessian.product(p, x, x),
    "dense": hessian.dense,
    "inertia": hessian.inertia,
    "spectrum": hessian.spectrum,
    "density": lambda p, x: hessian.density(p, x, jax.random.key(0), probes=2, steps=3),
    "witness": hessian.witness,
    "verdict": hessian.verdict,
}


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_wrong_shapes_are_refused(probe):
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem)
    with pytest.raises(ValueError, match="got W with shape"):
        probe(problem, params._replace(W=params.W.T))


@pytest.mark.parametrize("name", sorted(set(PROBES) - {"product"}))
def test_entries_that_are_not_finite_are_refused(name):
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem)
    with pytest.raises(ValueError, match="1 non-finite entries in H"):
        PROBES[name](problem, params._replace(H=params.H.at[0, 0].set(jnp.nan)))


@pytest.mark.parametrize("probe", [hessian.inertia, hessian.spectrum, hessian.witness])
def test_host_probes_refuse_traced_points_and_arrays_of_decays(probe):
    problem = PROBLEMS["narrow"]
    params = laws.random_params(problem)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: probe(problem, x))(params)
    several = dataclasses.replace(problem, lam_W=np.array([1e-2, 2e-2]))
    with pytest.raises(TypeError, match="a problem at a time"):
        probe(several, params)


def test_tangents_that_do_not_fit_are_refused_by_name():
    problem = PROBLEMS["narrow"]
    params, arrow = laws.random_params(problem), tangents(problem, 2)
    with pytest.raises(ValueError, match="whose H has shape"):
        hessian.product(problem, params, arrow._replace(H=arrow.H[:, :, 1:]))
    with pytest.raises(ValueError, match="leading axes"):
        hessian.product(problem, params, arrow._replace(b=arrow.b[0]))
    with pytest.raises(TypeError, match="whose W is float32"):
        hessian.product(problem, params, arrow._replace(W=arrow.W.astype(jnp.float32)))
