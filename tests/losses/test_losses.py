"""Laws of the cross-entropy: value, gradient, curvature and conjugate."""

from decimal import Decimal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from jax import Array
from laws import eps

from ufm.losses import crossentropy as losses

DTYPES = [jnp.float32, jnp.float64]
SHAPES = [(2, 5), (3, 11), (10, 5), (losses.FEW_CLASSES + 1, 3)]
EACH = pytest.mark.parametrize(
    ("K", "N", "dtype"), [(K, N, dtype) for K, N in SHAPES for dtype in DTYPES]
)

# Columns of logits up to ten thousand: certain and right, certain and wrong, ties, one offset.
HARD_COLUMNS = [
    ([1e4, -1e4, 0.0], 0),
    ([1e4, -1e4, 0.0], 1),
    ([1e4, -1e4, 0.0], 2),
    ([1e4, 1e4, -1e4], 0),
    ([1e4, 1e4, -1e4], 2),
    ([-1e4, -1e4, -1e4], 1),
    ([1e4, 1e4 - 1, 1e4 - 2], 0),
    ([-1e4, 1 - 1e4, -1e4], 1),
    ([70.0, 0.0, 1.0], 0),
    ([0.0, 70.0, 1.0], 0),
    ([0.0, 0.0, 0.0], 2),
]


class Closed(NamedTuple):
    """What the module computes, and its Fenchel-Young gap l(z) + l*(r) - <r, z> at the residual."""

    value: Array
    residual: Array
    curvature: Array
    conjugate: Array
    fenchel_young: Array


class Automatic(NamedTuple):
    """The gradient and the derivatives along dZ by automatic differentiation of the value."""

    slope: Array
    second: Array
    softmax: Array
    residual: Array


@jax.jit
def closed(Z, dZ, labels):
    value, R = losses.cross_entropy(Z, labels), losses.residual(Z, labels)
    dual = losses.conjugate(R, labels)
    curvature = losses.curvature(jax.nn.softmax(Z, axis=0), dZ)
    return Closed(value, R, curvature, dual, value + dual - jnp.sum(R * Z, axis=0))


@jax.jit
def automatic(Z, dZ, labels):
    slope = jax.grad(lambda Z: jnp.sum(losses.cross_entropy(Z, labels)))
    first, second = jax.jvp(slope, (Z,), (dZ,))
    dP = jax.jvp(lambda Z: jax.nn.softmax(Z, axis=0), (Z,), (dZ,))[1]
    dR = jax.jvp(lambda Z: losses.residual(Z, labels), (Z,), (dZ,))[1]
    return Automatic(first, second, dP, dR)


conjugate = jax.jit(losses.conjugate)


def sample(K, N, dtype, seed=0, scale=3.0):
    """Logits, a direction and labels."""
    generator = np.random.default_rng(seed)
    Z, dZ = (generator.standard_normal((K, N)) for _ in range(2))
    labels = generator.integers(0, K, N)
    return jnp.asarray(scale * Z, dtype), jnp.asarray(dZ, dtype), jnp.asarray(labels)


def rounding(Z):
    """A few units in the last place of the logits and of sums of exponentials."""
    return 4 * eps(Z.dtype) * (1 + np.max(np.abs(Z)))


def columns(cases, dtype):
    Z, labels = zip(*cases, strict=True)
    return jnp.asarray(np.array(Z).T, dtype), jnp.asarray(labels)


def assert_close_to_exact(got, exact, relative, absolute=0.0):
    """|got - exact| <= relative |exact| + absolute, in decimal arithmetic."""
    difference = abs(Decimal(float(got)) - exact)
    assert difference <= Decimal(relative) * abs(exact) + Decimal(absolute), (got, exact)


@EACH
def test_value_gradient_and_curvature_equal_the_reference(K, N, dtype):
    Z, dZ, labels = sample(K, N, dtype)
    got = closed(Z, dZ, labels)
    assert got.value.shape == got.conjugate.shape == (N,)
    assert got.residual.shape == got.curvature.shape == (K, N)
    assert all(leaf.dtype == dtype for leaf in got)
    got = jax.tree.map(np.asarray, got)
    unit = rounding(Z)
    for i, (z, dz, y) in enumerate(zip(*map(np.asarray, (Z.T, dZ.T, labels)), strict=True)):
        z, dz = z.astype(float), dz.astype(float)
        # The reference adds 1 before it takes the logarithm, which costs it digits below 1.
        expected = reference.cross_entropy(z, y)
        np.testing.assert_allclose(got.value[i], expected, rtol=unit, atol=4 * eps(dtype))
        np.testing.assert_allclose(got.residual[:, i], reference.residual(z, y), rtol=unit, atol=0)
        expected = reference.curvature_matrix(z) @ dz
        np.testing.assert_allclose(got.curvature[:, i], expected, rtol=0, atol=unit)


@EACH
def test_closed_derivatives_equal_autodiff_to_rounding(K, N, dtype):
    arguments = sample(K, N, dtype)
    got, derivatives = closed(*arguments), automatic(*arguments)
    atol = rounding(arguments[0])
    np.testing.assert_allclose(derivatives.slope, got.residual, rtol=0, atol=atol)
    # The curvature is the derivative of the softmax, of the residual and of the gradient.
    np.testing.assert_allclose(derivatives.softmax, got.curvature, rtol=0, atol=atol)
    np.testing.assert_allclose(derivatives.residual, got.curvature, rtol=0, atol=atol)
    np.testing.assert_allclose(derivatives.second, got.curvature, rtol=0, atol=atol)


def test_curvature_is_symmetric_positive_and_blind_to_shifts():
    Z = jnp.asarray(np.tile([[1.0], [-2.0], [0.5]], (1, 11)))
    directions = np.concatenate([np.eye(3), np.ones((3, 8))], axis=1)
    images = np.asarray(closed(Z, jnp.asarray(directions), jnp.zeros(11, int)).curvature)
    S = images[:, :3]
    np.testing.assert_allclose(S, S.T, atol=4 * eps(jnp.float64))
    np.testing.assert_allclose(images[:, 3:], 0, atol=4 * eps(jnp.float64))
    # The smallest eigenvalue is that of the shift, 0; the next is at least min_j p_j.
    eigenvalues = np.linalg.eigvalsh(S)
    assert abs(eigenvalues[0]) < 4 * eps(jnp.float64)
    assert eigenvalues[1] >= np.min(reference.softmax([1.0, -2.0, 0.5])) * (1 - 1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_residual_are_exact_for_logits_up_to_ten_thousand(dtype):
    Z, labels = columns(HARD_COLUMNS, dtype)
    got = jax.tree.map(np.asarray, closed(Z, Z, labels))
    tiny = float(jnp.finfo(dtype).tiny)  # below it numbers may be flushed to zero
    for i, (z, y) in enumerate(HARD_COLUMNS):
        # An exponential turns the rounding of the margin into a relative error. An offset that
        # all logits share must not count.
        margin = max(abs(entry - z[y]) for entry in z)
        exact = reference.exact_cross_entropy(z, y)
        relative = 4 * eps(dtype) * (1 if exact > 1 else 1 + margin)
        assert_close_to_exact(got.value[i], exact, relative, tiny)
        for entry, exact in zip(got.residual[:, i], reference.exact_residual(z, y), strict=True):
            assert_close_to_exact(entry, exact, 8 * eps(dtype), tiny)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_stay_exact_for_logits_up_to_ten_thousand(dtype):
    Z, labels = columns(HARD_COLUMNS, dtype)
    derivatives = automatic(Z, jnp.asarray(np.ones(Z.shape), dtype), labels)
    # The residual has entries up to 1, and is off by the rounding of the margin where that is of
    # the size of 1 or less; a common shift of the logits is in the kernel of the curvature.
    R = closed(Z, Z, labels).residual
    np.testing.assert_allclose(derivatives.slope, R, rtol=0, atol=8 * eps(dtype))
    np.testing.assert_allclose(derivatives.second, 0, rtol=0, atol=8 * eps(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [2, 10])
def test_nearly_certain_samples_keep_their_relative_accuracy(K, dtype):
    # Wrong classes of probability about q: p_y - 1 in floating point would be 0 from 1e-17 on.
    cases = []
    for q in (0.3, 1e-3, 1e-8, 1e-17, 1e-30):
        z = np.linspace(0, 1, K).astype(dtype)
        z[1] = np.log(K / q)
        cases.append((z, 1))
    Z, labels = columns(cases, dtype)
    got = jax.tree.map(np.asarray, closed(Z, Z, labels))
    for i, (z, y) in enumerate(cases):
        r = got.residual[:, i]
        relative = 4 * eps(dtype) * (1 + float(z[y]))
        assert_close_to_exact(got.value[i], reference.exact_cross_entropy(z, y), relative)
        for entry, exact in zip(r, reference.exact_residual(z, y), strict=True):
            assert_close_to_exact(entry, exact, relative)
        # The conjugate is held against the exact function of the rounded residual it was given.
        assert_close_to_exact(got.conjugate[i], reference.exact_conjugate(r, y), 8 * eps(dtype))


@EACH
def test_residual_columns_sum_to_zero(K, N, dtype):
    Z, dZ, labels = sample(K, N, dtype, scale=20.0)
    R = np.asarray(closed(Z, dZ, labels).residual, float)
    # Relative to the entries themselves, however small they are: rounding of a sum of K terms.
    sizes = np.sum(np.abs(R), axis=0)
    assert np.all(sizes > 0)
    assert np.all(np.abs(R.sum(axis=0)) <= K * eps(dtype) * sizes)


@EACH
def test_conjugate_at_the_residual_meets_fenchel_young_with_equality(K, N, dtype):
    Z, dZ, labels = sample(K, N, dtype)
    np.testing.assert_allclose(closed(Z, dZ, labels).fenchel_young, 0, atol=2 * rounding(Z))


@pytest.mark.parametrize(("K", "N"), SHAPES)
def test_conjugate_elsewhere_exceeds_fenchel_young_by_the_relative_entropy(K, N):
    Z, dZ, labels = sample(K, N, jnp.float64)
    other = sample(K, N, jnp.float64, seed=1)[0]
    at_Z, at_other = closed(Z, dZ, labels), closed(other, dZ, labels)
    products = np.sum(np.asarray(at_other.residual) * np.asarray(Z), axis=0)
    gap = np.asarray(at_Z.value) + np.asarray(at_other.conjugate) - products
    for i in range(N):
        p, q = (reference.softmax(np.asarray(logits)[:, i]) for logits in (Z, other))
        relative_entropy = sum(q[j] * np.log(q[j] / p[j]) for j in range(K))
        assert relative_entropy > 1e-4
        np.testing.assert_allclose(gap[i], relative_entropy, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_conjugate_is_minus_the_entropy_and_zero_at_certainty(dtype):
    labels = jnp.arange(4)
    Y = np.eye(4)
    certain = jnp.asarray(Y[:, [0, 1, 0, 2]] - Y, dtype)
    np.testing.assert_array_equal(conjugate(certain, labels), np.zeros(4))
    uniform = conjugate(jnp.asarray(0.25 - Y, dtype), labels)
    assert uniform.dtype == dtype
    np.testing.assert_allclose(uniform, -np.log(4), rtol=4 * eps(dtype))


@laws.few_examples
@given(
    eighths=st.lists(st.integers(-400, 400), min_size=3, max_size=3),
    shift=st.integers(-1000, 1000),
)
def test_equal_shifts_of_all_logits_change_nothing(eighths, shift):
    # Multiples of 1/8 are shifted without rounding, so nothing at all may change.
    z = np.array(eighths) / 8
    Z, labels = columns([(z, i % 3) for i in range(11)], jnp.float64)
    before, after = closed(Z, Z, labels), closed(jnp.asarray(np.asarray(Z) + shift), Z, labels)
    for name in ("value", "residual", "conjugate"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


@laws.few_examples
@given(order=st.permutations(range(3)), seed=st.integers(0, 100))
def test_relabelling_the_classes_permutes_the_residual(order, seed):
    Z, dZ, labels = sample(3, 11, jnp.float64, seed)
    before = closed(Z, dZ, labels)
    moved = [jnp.asarray(np.asarray(x)[order]) for x in (Z, dZ)]
    after = closed(*moved, jnp.asarray(np.argsort(order)[np.asarray(labels)]))
    # The sum over the classes is taken in another order: a few units in the last place.
    tolerance = 64 * eps(jnp.float64)
    expected = np.asarray(before.residual)[order]
    np.testing.assert_allclose(after.residual, expected, rtol=tolerance)
    np.testing.assert_allclose(after.value, before.value, rtol=tolerance)


@laws.few_examples
@given(margins=st.lists(st.floats(-600, 600), min_size=5, max_size=5))
def test_two_classes_give_the_logistic_loss(margins):
    Z = jnp.asarray([margins, np.zeros(5)])
    for label, sign in ((0, 1), (1, -1)):
        value = closed(Z, Z, jnp.asarray(np.full(5, label))).value
        np.testing.assert_allclose(value, np.logaddexp(0, -sign * np.array(margins)), rtol=1e-14)
