"""Laws of the model: objective, gradient, symmetries, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from ufm.model.objective import gradient, objective
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem

DTYPES = [jnp.float32, jnp.float64]
EACH = pytest.mark.parametrize("problem", laws.PROBLEMS.values(), ids=laws.PROBLEMS.keys())
SIZES = {"K": 3, "d": 3, "n": 4, "lam_W": 0.1, "lam_H": 0.1, "lam_b": 0.1}
FEW = ["narrow", "no-bias", "unequal-counts"]


def rounding(problem, params):
    """A few units in the last place of the numbers that are summed."""
    return 16 * laws.eps(params.W.dtype) * laws.matrix_scale(problem, params)


# Value and derivatives


@EACH
def test_objective_and_gradient_equal_the_reference_to_rounding(problem):
    check_against_the_reference(problem, jnp.float64)


@pytest.mark.parametrize("name", FEW)
def test_single_precision_objective_and_gradient_equal_the_reference_to_rounding(name):
    check_against_the_reference(laws.PROBLEMS[name], jnp.float32)


def check_against_the_reference(problem, dtype):
    params = laws.random_params(problem, dtype=dtype)
    arguments = laws.reference_arguments(problem, params)
    atol = rounding(problem, params)
    value, slope = laws.value_and_slope(problem, params)
    assert value.dtype == dtype
    assert all(leaf.dtype == dtype for leaf in slope)
    np.testing.assert_allclose(value, reference.objective(*arguments), rtol=0, atol=atol)
    expected = reference.gradient(*arguments)
    np.testing.assert_allclose(slope.W, expected[0], rtol=0, atol=atol)
    np.testing.assert_allclose(slope.H, expected[1], rtol=0, atol=atol)
    expected_b = expected[2] if problem.bias else np.zeros(problem.K)
    np.testing.assert_allclose(slope.b, expected_b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_equals_autodiff_to_rounding(name, dtype):
    problem = laws.PROBLEMS[name]
    params = laws.random_params(problem, seed=1, dtype=dtype)
    automatic = jax.jit(jax.grad(objective, argnums=1))(problem, params)
    laws.assert_close(laws.slope(problem, params), automatic, rounding(problem, params))


@pytest.mark.parametrize("name", ["narrow", "unequal-counts-no-bias"])
def test_second_derivatives_equal_the_hessian_of_the_reference(name):
    problem = laws.PROBLEMS[name]
    params = laws.random_params(problem, seed=2)
    shapes = [params.W.shape, params.H.shape] + ([params.b.shape] if problem.bias else [])
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def flat_objective(x):
        parts = [part.reshape(s) for part, s in zip(jnp.split(x, cuts), shapes, strict=True)]
        return objective(problem, Params(*parts, *([] if problem.bias else [params.b])))

    leaves = params if problem.bias else params[:2]
    x = jnp.concatenate([leaf.ravel() for leaf in leaves])
    full = jax.jit(jax.hessian(flat_objective))(x)
    expected = reference.hessian(*laws.reference_arguments(problem, params))
    assert problem.size == len(x)
    np.testing.assert_allclose(full, expected, rtol=0, atol=rounding(problem, params))


@EACH
def test_gradient_identities_hold_at_every_point(problem):
    params = laws.random_params(problem, seed=3)
    laws.check_gradient_identities(problem, params, problem.N * rounding(problem, params))


def test_without_a_bias_b_is_ignored_and_its_gradient_is_zero():
    problem = laws.PROBLEMS["no-bias"]
    params = laws.random_params(problem)
    other = params._replace(b=jnp.asarray([3.0, -1.0, 7.0]))
    value, slope = laws.value_and_slope(problem, params)
    laws.assert_close(laws.value_and_slope(problem, other), (value, slope), 0)
    np.testing.assert_array_equal(slope.b, np.zeros(problem.K))
    with_bias = dataclasses.replace(problem, bias=True)
    assert abs(laws.value(with_bias, other) - laws.value(with_bias, params)) > 0.1
    np.testing.assert_allclose(laws.value(with_bias, params), value, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits_give_finite_values_and_gradients(dtype):
    problem = laws.PROBLEMS["d-is-K"]
    W = 100 * jnp.eye(3, dtype=dtype)
    H = 100 * jnp.asarray(np.eye(3)[:, laws.class_of_samples(problem)], dtype)
    for sign, data in ((1.0, 0.0), (-1.0, 1e4 + np.log(2.0))):
        params = Params(sign * W, H, jnp.zeros(3, dtype))
        decay = problem.lam_W / 2 * 3e4 + problem.lam_H / 2 * 12e4
        value, slope = laws.value_and_slope(problem, params)
        np.testing.assert_allclose(value, data + decay, rtol=8 * laws.eps(dtype))
        assert all(np.all(np.isfinite(leaf)) for leaf in slope)


# Symmetries


@pytest.mark.parametrize("name", ["narrow", "wide-one-sample-a-class", "unequal-counts-no-bias"])
@laws.few_examples
@given(seed=st.integers(0, 10**6), mirror=st.booleans())
def test_objective_is_invariant_under_rotations_of_the_features(name, seed, mirror):
    problem = laws.PROBLEMS[name]
    params = laws.random_params(problem, seed)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((problem.d, problem.d)))[0]
    Q[0] = -Q[0] if mirror else Q[0]
    atol = 4 * problem.d * rounding(problem, params)
    laws.check_symmetry(problem, params, lambda x: laws.rotated(x, Q), atol)


@pytest.mark.parametrize("name", ["d-is-K-minus-1", "free-bias", "unequal-counts"])
@laws.few_examples
@given(seed=st.integers(0, 10**6), data=st.data())
def test_objective_is_invariant_under_permutations_of_classes_of_equal_count(name, seed, data):
    problem = laws.PROBLEMS[name]
    order = data.draw(st.sampled_from(laws.swappable_orders(problem)))
    params = laws.random_params(problem, seed)
    move = lambda x: laws.classes_permuted(problem, x, order)  # noqa: E731
    laws.check_symmetry(problem, params, move, rounding(problem, params))


def test_objective_notices_a_permutation_of_classes_of_unequal_count():
    # The counter-example that gives the invariance its content: same move, counts 1 and 5 swapped.
    problem = laws.PROBLEMS["unequal-counts"]
    params = laws.random_params(problem)
    order = np.array([3, 1, 2, 0])
    moved = Params(np.asarray(params.W)[order], params.H, np.asarray(params.b)[order])
    assert abs(laws.value(problem, moved) - laws.value(problem, params)) > 1e-3
    with pytest.raises(ValueError, match="another count"):
        laws.classes_permuted(problem, params, order)


@pytest.mark.parametrize("name", ["two-classes-one-dimension", "unequal-counts"])
@laws.few_examples
@given(seed=st.integers(0, 10**6), data=st.data())
def test_objective_is_invariant_under_permutations_of_samples_in_a_class(name, seed, data):
    problem = laws.PROBLEMS[name]
    labels = np.array(laws.class_of_samples(problem))
    blocks = [np.flatnonzero(labels == k).tolist() for k in range(problem.K)]
    columns = [i for block in blocks for i in data.draw(st.permutations(block))]
    params = laws.random_params(problem, seed)
    move = lambda x: laws.samples_permuted(x, columns)  # noqa: E731
    laws.check_symmetry(problem, params, move, rounding(problem, params))


@laws.few_examples
@given(seed=st.integers(0, 10**6), shift=st.floats(-5, 5))
def test_data_term_ignores_common_shifts_of_the_classes(seed, shift):
    problem = dataclasses.replace(laws.PROBLEMS["unequal-counts"], lam_W=0.0, lam_H=0.0, lam_b=0.0)
    params = laws.random_params(problem, seed)
    a = shift * np.random.default_rng(seed).standard_normal(problem.d)
    moved = Params(params.W + a, params.H, params.b + shift)
    atol = rounding(problem, params) + rounding(problem, moved)
    value = laws.value(problem, moved)
    np.testing.assert_allclose(value, laws.value(problem, params), rtol=0, atol=atol)


# Sizes, and decays as traced leaves


def test_samples_are_grouped_by_class():
    problem = Problem(K=3, d=2, n=(2, 1, 3), lam_W=0.1, lam_H=0.1)
    np.testing.assert_array_equal(problem.labels, [0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(problem.counts, [2, 1, 3])
    assert np.issubdtype(np.asarray(problem.labels).dtype, np.integer)
    assert problem.N == 6
    assert not problem.balanced


@EACH
def test_sizes_agree_with_the_labels(problem):
    labels = np.asarray(problem.labels)
    assert labels.shape == (problem.N,)
    np.testing.assert_array_equal(np.bincount(labels), problem.counts)
    np.testing.assert_array_equal(labels, np.sort(labels))
    assert problem.balanced == (len(set(np.asarray(problem.counts).tolist())) == 1)


@pytest.mark.parametrize("n", [(4, 4, 4), [4, 4, 4], np.array([4, 4, 4]), np.int64(4)])
def test_equal_counts_become_an_int(n):
    problem = Problem(**{**SIZES, "n": n})
    assert type(problem.n) is int
    assert problem.n == 4
    assert problem.balanced
    assert problem == Problem(**{**SIZES, "n": 4})
    assert hash(problem) == hash(Problem(**{**SIZES, "n": 4}))


def test_a_problem_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Problem(**SIZES).lam_W = 1.0


def test_mu_is_the_geometric_mean_of_the_decays():
    problem = Problem(**{**SIZES, "lam_W": 0.02, "lam_H": 0.08})
    np.testing.assert_allclose(problem.mu, 0.04, rtol=1e-15)


def test_decays_are_the_leaves_of_a_problem():
    problem = Problem(K=3, d=2, n=(1, 2, 3), lam_W=0.1, lam_H=0.2, lam_b=0.3, bias=False)
    leaves, structure = jax.tree.flatten(problem)
    assert leaves == [0.1, 0.2, 0.3]
    assert jax.tree.unflatten(structure, leaves) == problem
    doubled = jax.tree.map(lambda lam: 2 * lam, problem)
    assert doubled == Problem(K=3, d=2, n=(1, 2, 3), lam_W=0.2, lam_H=0.4, lam_b=0.6, bias=False)
    for change in ({"K": 4, "n": 2}, {"d": 3}, {"n": 2}, {"bias": True}):
        other = dataclasses.replace(problem, **change)
        assert jax.tree.structure(other) != structure


def test_one_compilation_serves_all_decays_of_a_shape():
    traces = []

    @jax.jit
    def value(problem, params):
        traces.append(problem.n)
        return objective(problem, params)

    problem = Problem(**SIZES)
    params = laws.random_params(problem)
    for lam in (0.1, 0.01, 1e-5, 0.0):
        other = dataclasses.replace(problem, lam_W=lam, lam_H=2 * lam, lam_b=3 * lam)
        expected = laws.value(other, params)
        np.testing.assert_allclose(value(other, params), expected, rtol=1e-14)
    assert traces == [4]
    smaller = dataclasses.replace(problem, n=3)
    value(smaller, laws.random_params(smaller))
    assert traces == [4, 3]


def test_vmap_over_decays_equals_a_loop():
    problem = Problem(**SIZES)
    params = laws.random_params(problem)
    decays = np.array([[0.1, 0.2, 0.3], [0.4, 0.0, 0.1], [1e-3, 1e-4, 0.0]])
    lam_W, lam_H, lam_b = decays.T
    stacked = dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
    values, slopes = jax.vmap(laws.value_and_slope, in_axes=(0, None))(stacked, params)
    assert values.shape == (3,)
    for j, (lam_W, lam_H, lam_b) in enumerate(decays.tolist()):
        one = dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b)
        row = jax.tree.map(lambda leaf, j=j: np.asarray(leaf)[j], (values, slopes))
        laws.assert_close(row, laws.value_and_slope(one, params), 1e-14)


def test_derivatives_in_the_decays_are_half_the_squared_norms():
    problem = Problem(**SIZES)
    params = laws.random_params(problem)
    slope = jax.jit(jax.grad(objective))(problem, params)
    for lam, block in zip((slope.lam_W, slope.lam_H, slope.lam_b), params, strict=True):
        np.testing.assert_allclose(lam, np.sum(np.asarray(block) ** 2) / 2, rtol=1e-14)


# Initialisation


@pytest.mark.parametrize("dtype", DTYPES)
def test_initial_params_have_the_shapes_dtype_and_scale_asked_for(dtype):
    problem = Problem(K=20, d=50, n=100, lam_W=0.1, lam_H=0.1)
    params = init_params(jax.random.key(0), problem, scale=0.3, dtype=dtype)
    assert params.W.shape == (20, 50)
    assert params.H.shape == (50, 2000)
    np.testing.assert_array_equal(params.b, np.zeros(20))
    assert all(leaf.dtype == dtype for leaf in params)
    for block in (params.W, params.H):
        # Five standard errors of the mean and of the standard deviation of a normal sample.
        assert abs(np.mean(block)) < 5 * 0.3 / np.sqrt(block.size)
        assert abs(np.std(block) - 0.3) < 5 * 0.3 / np.sqrt(2 * block.size)


def test_initial_params_depend_on_the_key_alone():
    problem = Problem(**SIZES)
    first, again, other = (init_params(jax.random.key(s), problem) for s in (0, 0, 1))
    laws.assert_close(first, again, 0)
    assert np.max(np.abs(np.asarray(first.W) - np.asarray(other.W))) > 1e-3
    assert first.W.dtype == jnp.float64  # the default with x64 switched on, as it is here
    unscaled = init_params(jax.random.key(0), problem, scale=1.0)
    laws.assert_close(first, jax.tree.map(lambda x: 0.1 * np.asarray(x), unscaled), 1e-15)


@pytest.mark.parametrize(("d", "n"), [(3, 40), (90, 900)], ids=["in-one-draw", "apart"])
def test_initial_params_are_two_draws_of_two_keys(d, n):
    """Whether a point is drawn in one array or in two, the entries are those of `random.normal`."""
    problem = Problem(K=4, d=d, n=n, lam=1e-3)
    params = init_params(jax.random.key(7), problem, scale=0.3)
    keys = jax.random.split(jax.random.key(7))
    W, H = (jax.random.normal(k, x.shape) for k, x in zip(keys, params[:2], strict=True))
    # The tests compile at the level of optimisation at which the last digits of draws differ.
    np.testing.assert_allclose(params.W, 0.3 * W, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(params.H, 0.3 * H, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_a_scale_that_is_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match=str(scale)):
        init_params(jax.random.key(0), Problem(**SIZES), scale=scale)


# What is refused

BAD_PROBLEMS = [
    ({"lam_W": -0.5}, "-0.5"),
    ({"lam_H": -1e-9}, "-1e-09"),
    ({"lam_b": -2.0}, "-2.0"),
    ({"lam_W": float("nan")}, "lam_W=nan"),
    ({"lam_H": float("inf")}, "lam_H=inf"),
    ({"lam_b": np.array([0.1, -0.25])}, "-0.25"),
    ({"lam_W": "small"}, "small"),
    ({"lam_W": 1e-3 + 1e-3j}, "0.001j"),
    ({"K": 1, "n": 2}, "K=1"),
    ({"K": -3}, "K=-3"),
    ({"K": 2.5}, "K=2.5"),
    ({"d": 0}, "d=0"),
    ({"d": 1.5}, "d=1.5"),
    ({"n": 0}, "n=0"),
    ({"n": -4}, "n=-4"),
    ({"n": 2.5}, "n=2.5"),
    ({"n": True}, "n=True"),
    ({"n": (2, 2)}, r"\(2, 2\)"),
    ({"n": (2, 2, 2, 2)}, r"\(2, 2, 2, 2\)"),
    ({"n": (2, 0, 3)}, r"n\[1\]=0"),
    ({"n": (2, 1.5, 3)}, r"n\[1\]=1.5"),
    ({"n": (2, -1, 3)}, r"n\[1\]=-1"),
    ({"n": "many"}, "many"),
    ({"bias": 3}, "bias=3"),
]


@pytest.mark.parametrize(("change", "got"), BAD_PROBLEMS)
def test_bad_sizes_and_decays_are_refused_with_what_was_got(change, got):
    with pytest.raises((ValueError, TypeError), match=got):
        Problem(**{**SIZES, **change})


BAD_PARAMS = {
    "W transposed": (lambda p: p._replace(W=p.W.T), ValueError, r"W with shape \(2, 5\)"),
    "W too wide": (lambda p: p._replace(W=jnp.ones((5, 3))), ValueError, r"\(5, 3\)"),
    "H transposed": (lambda p: p._replace(H=p.H.T), ValueError, r"H with shape \(10, 2\)"),
    "H short": (lambda p: p._replace(H=p.H[:, :4]), ValueError, r"H with shape \(2, 4\)"),
    "b as a column": (lambda p: p._replace(b=p.b[:, None]), ValueError, r"b with shape \(5, 1\)"),
    "W of integers": (lambda p: p._replace(W=jnp.ones((5, 2), int)), TypeError, "int64"),
    "H complex": (lambda p: p._replace(H=p.H + 1j), TypeError, "complex128"),
    "b a list": (lambda p: p._replace(b=[0.0, 0.0, 0.0]), TypeError, "list"),
    "mixed": (lambda p: p._replace(H=p.H.astype(jnp.float32)), TypeError, "float32"),
}


@pytest.mark.parametrize("function", [objective, gradient])
@pytest.mark.parametrize(("spoil", "error", "got"), BAD_PARAMS.values(), ids=BAD_PARAMS.keys())
def test_params_that_do_not_fit_are_refused_with_what_was_got(function, spoil, error, got):
    problem = laws.PROBLEMS["narrow"]
    with pytest.raises(error, match=got):
        function(problem, spoil(laws.random_params(problem)))
