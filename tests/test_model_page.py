"""docs/model.md: which test holds each of its statements, and the tests that are nowhere else."""

import ast
import dataclasses
import functools
from pathlib import Path

import jax
import laws
import numpy as np
import pytest
import reference
import scipy.optimize

import ufm
from ufm.model.problem import Params, Problem

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "model.md").read_text(encoding="utf-8")
# Words of the page, and the test that would fail if they were wrong.
STATEMENTS = {
    r"f(W,H,b) = \frac1N\sum": "test_objective_and_gradient_equal_the_reference_to_rounding",
    r"\nabla_W f = GH^\top+\lambda_W W": "test_gradient_equals_autodiff_to_rounding",
    "does not change $f$": "test_objective_is_invariant_under_rotations_of_the_features",
    "permutations of classes of equal count": (
        "test_objective_is_invariant_under_permutations_of_classes_of_equal_count"
    ),
    r"$W=H=0$ and $f^\star=\log K$": ("test_above_the_threshold_the_value_is_that_of_the_origin"),
    "every wrong class has softmax probability $c$": (
        "test_margin_probability_and_norms_equal_the_measured_ones"
    ),
    r"f^\star=-\log\left(1-(K-1)c\right)": ("test_objective_at_the_minimiser_is_the_global_value"),
    r"\|W\|^2=(K-1)\,t\,\sqrt": "test_scalars_equal_the_reference",
    "form a simplex equiangular tight frame": (
        "test_the_minimiser_is_a_simplex_with_self_dual_features"
    ),
    "(up to a constant if $\\lambda_b=0$)": "test_data_term_ignores_common_shifts_of_the_classes",
    "NC3 of Papyan": "test_all_measures_vanish_at_perfect_collapse",
    "is a *strict saddle*": (
        "test_every_orbit_at_d_of_k_minus_1_is_a_global_minimiser_or_a_strict_saddle"
    ),
    "rank $K-1$ is a global minimiser": (
        "test_every_orbit_at_d_of_k_minus_1_is_a_global_minimiser_or_a_strict_saddle"
    ),
    r"\lambda_{\min}(\nabla^2f)\ge\min(\lambda_b,\lambda_-)": (
        "test_no_eigenvalue_lies_below_the_bound_at_any_point"
    ),
    r"this is an equality if $d\ge\max(K-1,2)$": (
        "test_the_bound_holds_at_every_orbit_and_is_attained_from_d_of_k_minus_1_on"
    ),
    r"if and only if $\|G\|_2\le\mu$": (
        "test_the_verdict_is_what_dense_eigenvalues_and_the_certificate_say"
    ),
    "eigenvector of the Hessian with eigenvalue": (
        "test_the_witness_is_a_unit_direction_whose_curvature_is_the_predicted_eigenvalue"
    ),
    "lies above a convex problem": "test_decay_is_at_least_mu_times_the_nuclear_norm",
    r"f^\star\;\ge\;\frac1N\sum_i": "test_bound_equals_the_reference",
    "The bound is tight at the minimum": "test_certificate_decides_optimality_for_unequal_counts",
    "evaluates it in float64": ("test_single_precision_params_get_a_double_precision_certificate"),
    "of dimension $d(K-1)-K(K-1)/2$": "test_nullity_is_the_dimension_of_the_symmetry_orbit",
    "at most 16 distinct eigenvalues": (
        "test_at_most_16_eigenvalues_are_distinct_and_none_is_negative"
    ),
    "gives all of them in closed form": (
        "test_hessian_spectrum_is_that_of_the_dense_hessian_at_the_minimiser"
    ),
    "the best step of gradient descent": (
        "test_optimal_step_has_the_smallest_rate_and_doubling_it_diverges"
    ),
    "its rate of contraction per step near the minimum": (
        "test_gradient_descent_near_the_minimum_contracts_at_the_predicted_rate"
    ),
    r"\lambda_b+\frac1K": "test_eigenvalues_at_the_origin_are_those_of_the_page",
    "its Morse index is $d(K-1)$": (
        "test_morse_index_of_the_origin_drops_to_zero_at_the_threshold"
    ),
    "the samples of a class coincide": (
        "test_every_orbit_is_a_critical_point_of_the_whole_problem_by_the_loops"
    ),
    "share a row space": "test_directions_off_the_row_space_decouple_into_two_by_twos",
    r"\sqrt{n}\,\bar h_k": "test_samples_of_a_class_split_off_the_class_means",
    r"decouple into $2\times2$ blocks": (
        "test_directions_off_the_row_space_decouple_into_two_by_twos"
    ),
    "Schur complement of size $Kd+K$": (
        "test_inertia_counts_the_dense_eigenvalues_at_many_shifts_at_any_point"
    ),
    "the minimisers are simplices with every feature at the row of its class": (
        "test_every_start_ends_at_the_simplex_however_small_f_is"
    ),
    "unequal classes have lower minima": (
        "test_unequal_classes_end_below_the_simplex_with_a_certificate"
    ),
    "any point gives the bound": ("test_no_minimum_of_scipy_is_below_the_certificate_of_any_point"),
    r"At a critical point with $M\succeq0$ it closes": (
        "test_the_certificate_closes_at_the_simplex"
    ),
    "that leaves a direction of": (
        "test_critical_points_that_leave_a_direction_out_are_saddles_or_global"
    ),
    "Index and nullity are those of": ("test_eigenvalues_are_those_of_a_retraction_at_any_point"),
    "a polygon and an orthoplex are critical": (
        "test_codes_are_local_minima_and_never_called_global"
    ),
    "the status is `underflow`": "test_f_without_digits_is_a_status_of_its_own",
    "spurious local minima exist": "test_the_spurious_minimum_of_the_plane_is_found",
    r"if and only if $\sqrt m\le N\mu$": (
        "test_classes_of_equal_count_merge_at_the_threshold_of_the_page"
    ),
    r"1-N\mu/\sqrt m": "test_classes_of_equal_count_merge_at_the_threshold_of_the_page",
    "The closed forms here are for balanced classes": (
        "test_outside_the_theorem_the_failing_assumption_is_named"
    ),
}


@pytest.mark.parametrize("words", STATEMENTS)
def test_a_statement_of_the_page_is_held_by_a_test(words):
    assert words in " ".join(PAGE.split()) or words in PAGE
    assert STATEMENTS[words] in names_of_tests()


@functools.cache
def names_of_tests():
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py"))
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


# A certificate for any point


@pytest.mark.parametrize("name", laws.PROBLEMS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_decay_is_at_least_mu_times_the_nuclear_norm(name, scale):
    """(λ_W/2)‖W‖² + (λ_H/2)‖H‖² ≥ μ‖WH‖_*, the step from f to the convex problem."""
    problem = laws.PROBLEMS[name]
    W, H, _ = map(np.asarray, laws.random_params(problem, seed=2, scale=scale))
    assert decay(problem, W, H) >= problem.mu * np.linalg.norm(W @ H, "nuc")


@pytest.mark.parametrize("name", ["d-is-K", "no-bias"])
def test_decay_is_mu_times_the_nuclear_norm_at_the_minimum(name):
    problem = laws.CLOSED_FORM[name]
    W, H, _ = map(np.asarray, laws.minimizer(problem))
    expected = problem.mu * np.linalg.norm(W @ H, "nuc")
    np.testing.assert_allclose(decay(problem, W, H), expected, rtol=1e-13, atol=1e-300)


def decay(problem, W, H):
    """What the decays of W and H add to f."""
    return (problem.lam_W * np.sum(W**2) + problem.lam_H * np.sum(H**2)) / 2


# Curvature

SADDLE = Problem(K=4, d=5, n=3, lam_W=4e-3, lam_H=9e-3, lam_b=2e-2)
MEANS = Problem(K=4, d=5, n=1, lam_W=4e-3, lam_H=3 * 9e-3, lam_b=2e-2)


@pytest.fixture(scope="module")
def points():
    """Critical points of MEANS: the minimum, the origin, the minimum of the plane in R^5."""
    W, H, b = minimum_of_the_plane()
    saddle = Params(np.pad(W, ((0, 0), (0, 3))), np.pad(H, ((0, 3), (0, 0))), b)
    origin = Params(np.zeros((4, 5)), np.zeros((5, 4)), np.zeros(4))
    return {"minimum": laws.minimizer(MEANS), "saddle": saddle, "origin": origin}


def minimum_of_the_plane():
    """A minimum of MEANS with d = 2: quasi-Newton on the loops, then Newton to rounding."""
    plane = dataclasses.replace(MEANS, d=2)
    shapes, cuts = ((4, 2), (2, 4), (4,)), (8, 16)

    def parts(x):
        blocks = zip(np.split(x, cuts), shapes, strict=True)
        return laws.reference_arguments(plane, Params(*(part.reshape(s) for part, s in blocks)))

    def slope(x):
        return np.concatenate([block.ravel() for block in reference.gradient(*parts(x))])

    start = np.random.default_rng(0).standard_normal(20)
    x = scipy.optimize.minimize(lambda x: reference.objective(*parts(x)), start, jac=slope).x
    for _ in range(4):
        x = x - np.linalg.lstsq(reference.hessian(*parts(x)), slope(x), rcond=1e-10)[0]
    assert np.max(np.abs(slope(x))) < 1e-15
    return parts(x)[:3]


def by_loops(problem, params):
    return reference.hessian(*laws.reference_arguments(problem, params))


def assert_same(parts, H):
    """The parts together are the eigenvalues of H."""
    found = np.sort(np.concatenate([np.ravel(part) for part in parts]))
    expected = np.linalg.eigvalsh(H)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", ["minimum", "saddle", "origin"])
def test_samples_of_a_class_split_off_the_class_means(points, name):
    W, means, b = map(np.asarray, points[name])
    whole = Params(W, np.repeat(means, 3, axis=1), b)
    # In the variables √n h̄_k derivatives by h̄_k are divided by √n.
    units = np.concatenate([np.ones(W.size), np.full(means.size, 3**-0.5), np.ones(4)])
    between = np.linalg.eigvalsh(units[:, None] * by_loops(MEANS, points[name]) * units)
    P = np.apply_along_axis(reference.softmax, 0, W @ means + b[:, None])
    within = [
        np.linalg.eigvalsh(SADDLE.lam_H * np.eye(5) + W.T @ (np.diag(p) - np.outer(p, p)) @ W / 12)
        for p in P.T
    ]
    assert np.min(within) > 0
    assert_same([between, *within, *within], by_loops(SADDLE, whole))


@pytest.mark.parametrize("name", ["minimum", "saddle", "origin"])
def test_directions_off_the_row_space_decouple_into_two_by_twos(points, name):
    W, H, b = map(np.asarray, points[name])
    _, s, Q = np.linalg.svd(W, full_matrices=False)
    Q = Q[: np.sum(s > 1e-8)].T
    rank, lam_W, lam_H = Q.shape[1], MEANS.lam_W, MEANS.lam_H
    assert rank == {"minimum": 3, "saddle": 2, "origin": 0}[name]
    np.testing.assert_allclose(Q @ (Q.T @ H), H, atol=1e-12)
    inside = np.kron(np.eye(4), Q), np.kron(Q, np.eye(4))  # of W by rows, of H by rows
    basis = np.zeros((MEANS.size, 8 * rank + 4))
    basis[:20, : 4 * rank], basis[20:40, 4 * rank : 8 * rank] = inside
    basis[40:, 8 * rank :] = np.eye(4)
    dense = by_loops(MEANS, points[name])
    G = reference.scaled_residuals(W, H, b, laws.class_of_samples(MEANS))
    root = np.hypot((lam_W - lam_H) / 2, np.linalg.svd(G, compute_uv=False))
    pairs = [(lam_W + lam_H) / 2 + root, (lam_W + lam_H) / 2 - root]
    core = np.linalg.eigvalsh(basis.T @ dense @ basis)
    assert_same([core, *pairs * (5 - rank)], dense)


@pytest.mark.parametrize("n", [1, 3])
def test_eigenvalues_at_the_origin_are_those_of_the_page(n):
    problem = Problem(K=4, d=3, n=n, lam_W=4e-3, lam_H=9e-3, lam_b=2e-2)
    origin = Params(np.zeros((4, 3)), np.zeros((3, 4 * n)), np.zeros(4))
    root = np.hypot(2.5e-3, 1 / (4 * np.sqrt(n)))
    times = {
        4e-3: 3, 9e-3: 3 * (4 * n - 3), 2e-2: 1, 2e-2 + 1 / 4: 3,
        6.5e-3 + root: 3 * 3, 6.5e-3 - root: 3 * 3,
    }  # fmt: skip
    assert_same([np.repeat(list(times), list(times.values()))], by_loops(problem, origin))


# Unequal classes

GROUPS = {
    "pairs": (8, 8, 2, 2),
    "two-of-three": (10, 5, 5),
    "three-of-five": (12, 12, 3, 3, 3),
    "single-samples": (9, 1, 1),
}


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        pytest.param(GROUPS[name], options, id=f"{name}-{label}", marks=marks)
        for name, marks in zip(GROUPS, ((), *[pytest.mark.long] * 3), strict=True)
        for label, options in (("bias", {"lam_b": 1e-2}), ("no-bias", {"bias": False}))
        if name != "pairs" or label == "bias"
    ],
)
@pytest.mark.parametrize("ratio", [1.0, 16.0])
@pytest.mark.parametrize("off", [-0.3, -0.01, 0.01, 0.3])
def test_classes_of_equal_count_merge_at_the_threshold_of_the_page(counts, options, ratio, off):
    """Minority collapse at √m = Nμ (Hong and Ling 2023), at points that are certified.

    Nμ is √m(1 + off), m the smallest count, so the margin in probability is max(−off, 0) there.
    """
    K, N, m = len(counts), sum(counts), min(counts)
    mu = np.sqrt(m) / N * (1 + off)
    lam_W, lam_H = mu * np.sqrt(ratio), mu / np.sqrt(ratio)
    problem = Problem(K=K, d=K, n=counts, lam_W=lam_W, lam_H=lam_H, **options)
    found = ufm.solve(problem, ufm.init_params(jax.random.key(1), problem, 0.3))
    assert ufm.certify(problem, found.params).gap < 1e-12
    W, H, b = map(np.asarray, found.params)
    P = np.apply_along_axis(reference.softmax, 0, W @ H + b[:, None])
    for i, y in enumerate(laws.class_of_samples(problem)):
        peers = [k for k in range(K) if k != y and counts[k] == counts[y]]
        margin = max(1 - N * mu / np.sqrt(counts[y]), 0)
        np.testing.assert_allclose(P[y, i] - P[peers, i], margin, atol=1e-8)
    smallest = W[[k for k in range(K) if counts[k] == m]]
    apart = np.linalg.norm(smallest[0] - smallest[1])
    assert apart < 1e-8 if off > 0 else apart > 1e-2 * np.linalg.norm(W)
