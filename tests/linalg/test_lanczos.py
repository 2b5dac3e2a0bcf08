"""Extreme eigenpairs: matrices of prescribed spectra, then the Hessian, against dense eigenvalues.

A residual of 1e-10‖A‖, the default, leaves an eigenvalue that is apart from the others right to
its square over the gap; 1e-12‖A‖ is asked of values unless a line says otherwise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from ufm import hessian, theory
from ufm.hessian import curvature, eigenpairs
from ufm.linalg import lanczos
from ufm.losses import CrossEntropy, LogitAdjusted, SquaredError
from ufm.model.problem import Params, Problem
from ufm.theory import spectra

SIZE, K_WANTED = 96, 6  # beyond the size at which matrices are solved densely
KEY = jax.random.key(3)
ENDS = pytest.mark.parametrize("which", ["smallest", "largest"])


def times(A, block):
    """The operator of a matrix."""
    return block @ A


def operator(A):
    """A matrix as the solver takes it."""
    return jax.tree_util.Partial(times, jnp.asarray(A))


def with_spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(values)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    A = (Q * np.asarray(values)) @ Q.T
    return (A + A.T) / 2


def ordered(values, which, k):
    """The k outermost values, from the end inwards."""
    return np.sort(values)[:k] if which == "smallest" else -np.sort(-np.asarray(values))[:k]


SPREAD = np.linspace(1.0, 2.0, SIZE)
SPECTRA = {
    "evenly spread": SPREAD,
    "indefinite": np.linspace(-1.0, 1.0, SIZE),
    "multiplicities 1, 2 and 5 at either end": np.concatenate(
        [[-3.0], [-2.5] * 2, [-2.0] * 5, np.linspace(-1, 1, SIZE - 16), [2.0] * 5, [2.5] * 2, [3.0]]
    ),
    "multiplicity beyond what is wanted": np.concatenate(
        [[-2.0] * 9, np.linspace(-1, 1, SIZE - 18), [2.0] * 9]
    ),
    "clusters": np.concatenate(
        [-2 + 1e-6 * np.arange(6), np.linspace(-1, 1, SIZE - 12), 2 - 1e-6 * np.arange(6)]
    ),
    "geometric": np.geomspace(1e-3, 1.0, SIZE),
    "five distinct values": np.repeat([-1.0, -0.5, 0.0, 0.25, 3.0], [20, 20, 20, 20, 16]),
    "rank one": np.concatenate([np.zeros(SIZE - 1), [1.0]]),
    "tiny": 1e-30 * np.linspace(-1.0, 1.0, SIZE),
}


@ENDS
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_eigenvalues_are_found_with_multiplicity_and_true_residuals(name, which):
    values = SPECTRA[name]
    A = with_spectrum(values)
    scale = np.max(np.abs(values))
    found = lanczos.extreme_pairs(operator(A), SIZE, K_WANTED, KEY, which=which)
    assert found.status == "converged"
    assert np.all(found.converged)
    expected = ordered(np.linalg.eigvalsh(A), which, K_WANTED)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-12 * scale)
    V = np.asarray(found.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(K_WANTED), rtol=0, atol=1e-12)
    true = np.linalg.norm(V @ A - np.asarray(found.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=0, atol=1e-14 * scale)
    assert np.all(true <= 1e-10 * scale * 1.001)
    # An estimate from below.
    assert 0.9 * scale < found.norm < scale * (1 + 1e-12)


@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5])
def test_zero_and_multiples_of_the_identity_are_exact(factor):
    A = factor * np.eye(SIZE)
    found = lanczos.extreme_pairs(operator(A), SIZE, K_WANTED, KEY)
    assert found.status == "converged"
    np.testing.assert_allclose(found.values, factor, rtol=0, atol=1e-15 * abs(factor))
    gram = found.vectors @ found.vectors.T
    np.testing.assert_allclose(gram, np.eye(K_WANTED), rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-14 * abs(factor))


@ENDS
@pytest.mark.parametrize(("size", "k"), [(1, 1), (2, 1), (2, 2), (3, 3), (40, 39), (40, 40)])
def test_small_operators_and_k_up_to_the_size_are_solved(size, k, which):
    values = np.linspace(-1.0, 2.0, size)
    A = with_spectrum(values)
    found = lanczos.extreme_pairs(operator(A), size, k, KEY, which=which)
    assert found.status == "converged"
    np.testing.assert_allclose(found.values, ordered(values, which, k), rtol=0, atol=1e-13)


def test_a_search_that_meets_its_cap_has_converged_in_nothing():
    A = with_spectrum(np.geomspace(1e-9, 1.0, SIZE))
    for cap in (1, 40):
        found = lanczos.extreme_pairs(operator(A), SIZE, K_WANTED, KEY, max_products=cap)
        assert found.status == "iteration_limit"
        assert not np.any(found.converged)
        assert found.products <= cap + 10 + 10 + 2 * 4 + K_WANTED
        assert np.all(np.isfinite(found.values))
        V = np.asarray(found.vectors)
        true = np.linalg.norm(V @ A - np.asarray(found.values)[:, None] * V, axis=1)
        np.testing.assert_allclose(found.residuals, true, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [3, SIZE])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_operator_that_is_not_finite_is_a_status(size, bad):
    A = np.eye(size)
    A[0, 0] = bad
    found = lanczos.extreme_pairs(operator(A), size, 1 if size == 3 else K_WANTED, KEY)
    assert found.status == "not_finite"
    assert not np.any(found.converged)


def test_one_compilation_serves_all_matrices_of_a_size():
    lanczos.extreme_pairs(operator(with_spectrum(SPREAD)), SIZE, K_WANTED, KEY)
    before = lanczos._solve._cache_size()
    for seed, tol in ((1, 1e-10), (2, 1e-8)):
        A = with_spectrum(SPREAD, seed)
        lanczos.extreme_pairs(operator(A), SIZE, K_WANTED, jax.random.key(seed), tol=tol)
    assert lanczos._solve._cache_size() == before


def worst(block, _):
    """A preconditioner that is singular and unrelated to the matrix."""
    return block.at[:, ::2].set(0.0)


def test_a_poor_preconditioner_costs_products_but_never_changes_the_result():
    values = SPECTRA["multiplicities 1, 2 and 5 at either end"]
    poor = jax.tree_util.Partial(worst)
    found = lanczos.extreme_pairs(
        operator(with_spectrum(values)), SIZE, K_WANTED, KEY, preconditioner=poor, max_products=4000
    )
    if found.status == "converged":
        np.testing.assert_allclose(found.values, ordered(values, "smallest", 6), atol=1e-12)
    else:
        assert not np.any(found.converged)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 97}, "k=97.*96 eigenpairs"),
        ({"which": "both"}, "which='both'"),
        ({"tol": 0.0}, r"tol=0\.0"),
        ({"max_products": 0}, "max_products=0"),
        ({"start": jnp.zeros((1, SIZE))}, "start of shape"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_name(bad, match):
    arguments = {"k": 2, "which": "smallest"} | bad
    with pytest.raises(ValueError, match=match):
        lanczos.extreme_pairs(operator(np.eye(SIZE)), SIZE, key=KEY, **arguments)


# The Hessian

FOUR = Problem(K=4, d=5, n=3, lam_W=6e-3, lam_H=2e-3, lam_b=1e-2)
FREE = dataclasses.replace(FOUR, lam_b=0.0)
UNEQUAL = Problem(K=4, d=6, n=(1, 3, 3, 5), lam_W=8e-3, lam_H=2e-3, bias=False)
TINY = Problem(K=2, d=1, n=3, lam_W=1e-2, lam_H=2e-2, lam_b=1e-2)
POINTS = {
    "random": (FOUR, laws.random_params(FOUR)),
    "origin": (FOUR, laws.zeros(FOUR)),
    "minimum": (FOUR, theory.global_minimizer(FOUR, jax.random.key(0))),
    "unequal counts, no bias": (UNEQUAL, laws.random_params(UNEQUAL)),
    "tiny": (TINY, laws.random_params(TINY)),
}


@pytest.fixture(params=["matrix", "search"])
def way(request, monkeypatch):
    """Small Hessians are solved as matrices; the search for large ones obeys the same laws."""
    if request.param == "search":
        monkeypatch.setattr(eigenpairs, "DENSE", 0)
    return request.param


@ENDS
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", POINTS)
def test_extreme_pairs_of_the_hessian_are_those_of_the_dense_matrix(name, which):
    problem, point = POINTS[name]
    matrix = np.asarray(hessian.dense(problem, point))
    eigenvalues = np.linalg.eigvalsh(matrix)
    scale = np.max(np.abs(eigenvalues))
    found = hessian.extreme(problem, point, 3, which, exact=True)
    assert found.status == "converged"
    assert found.missed == 0
    expected = ordered(eigenvalues, which, 3)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=1e-12 * scale)
    V = np.asarray(found.vectors)
    true = np.linalg.norm(V @ matrix - np.asarray(found.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=0, atol=1e-13 * scale)
    assert np.all(true < 1.001e-10 * scale)
    decided = np.abs(expected) > 1e-9 * scale
    np.testing.assert_array_equal(np.asarray(found.signs)[decided], np.sign(expected)[decided])


@ENDS
def test_the_exact_count_tells_of_a_pair_that_was_missed(which):
    problem, point = POINTS["random"]
    eigenvalues = np.linalg.eigvalsh(hessian.dense(problem, point))
    scale = np.max(np.abs(eigenvalues))
    values = np.delete(ordered(eigenvalues, which, 4), 1)
    found = lanczos.Eigenpairs(
        values, np.zeros((3, 1)), np.full(3, 1e-13), np.ones(3, bool), scale, 0, 0, "converged"
    )
    sign = 1 if which == "smallest" else -1
    assert eigenpairs._missed(problem, point, found, sign) == 1


@pytest.mark.usefixtures("way")
def test_off_the_orbit_the_smallest_eigenvalue_at_a_minimiser_is_the_least_one_above_zero():
    for problem in (FOUR, FREE):
        point = theory.global_minimizer(problem, jax.random.key(1))
        exact = spectra.hessian_spectrum(problem)
        least = exact.eigenvalues[exact.eigenvalues > 1e-12][0]
        found = hessian.extreme(problem, point, 3, orbit=True)
        assert found.status == "converged"
        np.testing.assert_allclose(found.values[0], least, rtol=1e-9)
        basis = np.asarray(curvature.flatten(problem, turned(problem, point)))
        np.testing.assert_allclose(found.vectors @ basis.T, 0, atol=1e-7)
        largest = hessian.extreme(problem, point, 3, "largest", orbit=True)
        np.testing.assert_allclose(largest.values[0], exact.eigenvalues[-1], rtol=1e-9)


def turned(problem, point):
    """Two tangents of the orbit: W Aᵀ and A H for antisymmetric A; b ∝ 1 if it has no decay."""
    A = np.stack([np.triu(np.ones((problem.d, problem.d)), i) for i in (1, 2)])
    A = A - A.transpose(0, 2, 1)
    b = np.ones((2, problem.K)) * (problem.lam_b == 0)
    return Params(point.W @ A.transpose(0, 2, 1), A @ point.H, b)


@pytest.mark.usefixtures("way")
def test_at_a_minimiser_the_zero_eigenvalues_have_no_decided_sign():
    problem, point = POINTS["minimum"]
    found = hessian.extreme(problem, point, 3)
    assert found.status == "converged"
    np.testing.assert_array_equal(found.signs, 0)


def test_float32_params_are_probed_in_float64_and_leave_small_eigenvalues_undecided():
    # Decays so small that the curvature of the decay alone is below what float32 resolves.
    problem = dataclasses.replace(FOUR, lam_H=1e-9)
    point = laws.random_params(problem, dtype=jnp.float32)
    with jax.enable_x64(False):
        found = hessian.extreme(problem, point, 3)
    assert found.values.dtype == jnp.float64
    assert found.status == "converged"
    fine = hessian.extreme(problem, curvature.in_float64(point), 3)
    np.testing.assert_allclose(found.values, fine.values, rtol=0, atol=1e-12)
    assert 1e-9 < found.resolution < 1e-4
    assert fine.resolution < 1e-12
    near = np.abs(found.values) <= found.resolution
    np.testing.assert_array_equal(np.asarray(found.signs)[near], 0)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), SquaredError(), SquaredError(own=20.0), LogitAdjusted(scale=8.0)]
)
def test_rounding_to_float32_moves_no_eigenvalue_by_more_than_the_resolution(loss):
    problem = dataclasses.replace(FOUR, loss=loss)
    for seed in range(3):
        exact = laws.random_params(problem, seed, scale=2.0)
        single = jax.tree.map(lambda x: x.astype(jnp.float32), exact)
        matrix = hessian.dense(problem, exact) - hessian.dense(problem, single)
        moved = np.linalg.norm(matrix, 2)
        bound = eigenpairs.resolution(problem, single)
        assert moved <= bound
        assert bound < (1e3 if loss == CrossEntropy() else 1e6) * moved


def test_new_points_and_decays_of_one_shape_compile_nothing(way):
    program = {"matrix": lanczos._dense, "search": lanczos._solve}[way]
    hessian.extreme(*POINTS["random"], 3)
    before = program._cache_size()
    other = dataclasses.replace(FOUR, lam_W=1e-3)
    hessian.extreme(other, laws.random_params(other, 7), 3, key=jax.random.key(5))
    assert 0 < program._cache_size() == before


def test_bad_input_is_refused_with_what_is_allowed():
    problem, point = POINTS["random"]
    with pytest.raises(ValueError, match="got W with shape"):
        hessian.extreme(problem, point._replace(W=point.W.T))
    with pytest.raises(ValueError, match="1 non-finite entries in H"):
        hessian.extreme(problem, point._replace(H=point.H.at[0, 0].set(jnp.nan)))
    with pytest.raises(ValueError, match=f"k={problem.size + 1}"):
        hessian.extreme(problem, point, problem.size + 1)
    with pytest.raises(ValueError, match=f"k={problem.size}"):
        hessian.extreme(problem, point, problem.size, orbit=True)
    with pytest.raises(ValueError, match="which='middle'"):
        hessian.extreme(problem, point, 1, "middle")
    with pytest.raises(ValueError, match="exact and orbit"):
        hessian.extreme(problem, point, 1, orbit=True, exact=True)
    several = dataclasses.replace(problem, lam_W=np.array([1e-2, 2e-2]))
    with pytest.raises(TypeError, match="a problem at a time"):
        hessian.extreme(several, point)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda W: hessian.extreme(problem, Params(W, point.H, point.b)).values)(point.W)


def test_a_cap_on_products_leaves_pairs_that_are_not_converged_and_says_so():
    found = hessian.extreme(*POINTS["random"], 3, max_products=20)
    assert found.status == "iteration_limit"
    assert not np.any(found.converged)
