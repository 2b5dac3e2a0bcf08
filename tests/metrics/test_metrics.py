"""NC1-NC4 against the reference, at perfect collapse, under symmetries and at degenerate inputs."""

import functools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import ufm
from ufm.metrics import measures as metrics

# (K, d, counts, labels): narrow, square and wide; any integers may be labels, if classes= says so.
SHAPES = {
    "two-classes": (2, 3, (2, 5), (0, 1)),
    "narrow": (5, 3, (3, 1, 4, 2, 2), (0, 1, 2, 3, 4)),
    "strange-labels": (3, 3, (4, 2, 5), (-3, 7, 40)),
    "wide": (4, 9, (3, 3, 3, 3), (1, 2, 3, 4)),
}
EACH = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def collapse(W, H, b, labels, mean="class"):
    """The measures, the rows of W in the order of the labels."""
    return metrics.collapse(W, H, b, labels, classes=np.unique(labels), mean=mean)


def expected(W, H, b, labels, mean="class"):
    """All fields of Collapse by the loops of the reference."""
    W0, M = reference.centred_rows(W), reference.centred_means(H, labels, mean)
    index = np.searchsorted(np.unique(labels), labels)
    return {
        "nc1": reference.nc1_pinv(H, labels, mean),
        "nc1_trace_ratio": reference.nc1_trace(H, labels, mean),
        "nc1_cdnv": reference.cdnv(H, labels),
        "nc2": reference.etf_distance(W @ W.T),
        "nc2_centred": reference.etf_distance(W0 @ W0.T),
        "nc2_means": reference.etf_distance(M.T @ M),
        "nc2_equinorm_W": reference.equinorm(W),
        "nc2_equinorm_means": reference.equinorm(M.T),
        "nc2_equiangularity_W": reference.equiangularity(W),
        "nc2_equiangularity_means": reference.equiangularity(M.T),
        "nc3": reference.etf_distance(W @ M),
        "nc3_duality": reference.nc3_duality(W, H, labels, mean),
        "nc4": reference.nc4_disagreement(W, H, b, index),
        "nc4_mean_logit": reference.nc4_bias(W, H, b, labels, mean),
    }


def features(shape, seed=0, spread=0.7):
    """Gaussian class means, spread and offset, with the samples in random order."""
    K, d, counts, names = shape
    generator = np.random.default_rng(seed)
    index = generator.permutation(np.repeat(np.arange(K), counts))
    H = generator.standard_normal((d, K))[:, index] + generator.standard_normal((d, 1))
    H += spread * generator.standard_normal(H.shape)
    W, b = generator.standard_normal((K, d)), generator.standard_normal(K)
    return W, H, b, np.array(names)[index]


def collapsed(K, d, n):
    """Perfect collapse: a simplex of any orientation, self-dual features, samples in any order."""
    generator = np.random.default_rng(K)
    frame = np.linalg.qr(generator.standard_normal((d, K)))[0]
    W = 3.0 * (np.eye(K) - 1 / K) @ frame.T
    labels = generator.permutation(np.repeat(np.arange(K), n))
    return W, 0.4 * W[labels].T, np.zeros(K), labels


@functools.cache
def compiled(labels):
    """Measures of JAX arrays under jit, where the labels are constants."""
    return jax.jit(lambda W, H, b: collapse(W, H, b, np.array(labels)))


def assert_same(first, second, rtol, atol=1e-12, but=()):
    """All fields agree; two classes make some of them zero, hence the absolute tolerance."""
    assert first.keys() == second.keys()
    for name in first.keys() - set(but):
        np.testing.assert_allclose(first[name], second[name], rtol, atol, err_msg=name)


def measure(*arguments):
    return collapse(*arguments)._asdict()


# Values


@EACH
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", ["class", "sample"])
def test_every_measure_of_numpy_features_equals_the_reference(shape, seed, dtype, mean):
    W, H, b, labels = features(shape, seed)
    W, H, b = (x.astype(dtype) for x in (W, H, b))
    measured = collapse(W, H, b, labels, mean)
    exact = [x.astype(np.float64) for x in (W, H, b)]
    assert all(type(value) is float for value in measured)
    # NumPy input is measured in float64 whatever its dtype.
    assert_same(measured._asdict(), expected(*exact, labels, mean), rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("narrow", jnp.float32), ("narrow", jnp.float64), ("strange-labels", jnp.float32)],
)
def test_every_measure_of_jax_features_equals_the_reference(name, dtype):
    *point, labels = features(SHAPES[name])
    point = [jnp.asarray(x, dtype) for x in point]
    measured = compiled(tuple(labels.tolist()))(*point)
    exact = [np.asarray(x, np.float64) for x in point]
    # Measured in the precision given: sums of tens of terms, divided by the smallest singular
    # value of M squared, about a hundred times smaller than the largest.
    rtol = 1e3 * laws.eps(dtype)
    assert all(value.dtype == dtype for value in measured)
    assert_same(measured._asdict(), expected(*exact, labels), rtol=rtol, atol=rtol)


def test_jax_arrays_outside_jit_give_jax_scalars_and_the_values_of_numpy():
    W, H, b, labels = features(SHAPES["two-classes"])
    for mean in ("class", "sample"):
        measured = collapse(W, jnp.asarray(H), b, jnp.asarray(labels), mean)
        assert all(isinstance(value, jax.Array) for value in measured)
        assert_same(measured._asdict(), measure(W, H, b, labels, mean), rtol=1e-11)


@pytest.mark.parametrize(("K", "d", "n"), [(2, 2, 3), (3, 7, 1), (5, 5, 4), (10, 12, 2)])
def test_all_measures_vanish_at_perfect_collapse(K, d, n):
    measured = collapse(*collapsed(K, d, n))
    # Distances between matrices of unit norm: rounding of K d products under a square root.
    for name, value in measured._asdict().items():
        assert 0 <= value < 1e-14, name
    assert measured.nc4 == 0


def test_all_measures_are_positive_away_from_collapse():
    measured = collapse(*features(SHAPES["narrow"], seed=3))
    for name, value in measured._asdict().items():
        assert value > 1e-2, name


def test_nc1_of_two_classes_on_a_line_is_what_the_definitions_say():
    # Means -1 and 1, mean squares 1/4 within: Sigma_W = 1/4, Sigma_B = 1, |mu_1 - mu_2|^2 = 4.
    H = np.array([[-1.5, -0.5, 0.5, 1.5]])
    measured = collapse(np.array([[-1.0], [1.0]]), H, np.zeros(2), [0, 0, 1, 1])
    assert measured.nc1 == pytest.approx(1 / 8, rel=1e-14)
    assert measured.nc1_trace_ratio == pytest.approx(1 / 4, rel=1e-14)
    assert measured.nc1_cdnv == pytest.approx(1 / 16, rel=1e-14)
    assert measured.nc4 == 0
    flipped = collapse(np.array([[1.0], [-1.0]]), H, np.zeros(2), [0, 0, 1, 1])
    assert flipped.nc4 == 1
    tilted = collapse(np.array([[-1.0], [1.0]]), H, np.array([2.0, 0.0]), [0, 0, 1, 1])
    assert tilted.nc4 == 0.25  # h = 0.5 alone changes sides: 2h < 2
    assert tilted.nc4_mean_logit == pytest.approx(2, rel=1e-14)


@pytest.mark.parametrize("spread", [1e-2, 1e-4])
@pytest.mark.parametrize("seed", range(3))
def test_nc1_is_accurate_and_never_negative_in_single_precision(seed, spread):
    # Rank K-1 = 9 in d = 40: the tenth singular value of M is rounding, and must not be inverted.
    W, H, b, labels = features((10, 40, (4,) * 10, range(10)), seed, spread)
    order = np.argsort(labels)
    single = [jnp.asarray(x, jnp.float32) for x in (W, H[:, order], b)]
    measured = compiled(tuple(labels[order].tolist()))(*single).nc1
    exact = reference.nc1_pinv(np.asarray(single[1], np.float64), labels[order])
    assert measured > 0
    # Deviations of size `spread` from means of size 3, each rounded to 3 units in the last place.
    np.testing.assert_allclose(measured, exact, rtol=30 * laws.eps(jnp.float32) / spread)


def test_nc1_in_single_precision_survives_a_large_common_offset():
    # The means lose four digits to the offset. So the tenth singular value of M, zero but for
    # rounding, stands out of the rounding of the others: only the rank K-1 tells.
    W, H, b, labels = features((10, 40, (4,) * 10, range(10)), 0, spread=1.0)
    order = np.argsort(labels)
    single = [jnp.asarray(x, jnp.float32) for x in (W, H[:, order] + 1e4, b)]
    measured = compiled(tuple(labels[order].tolist()))(*single).nc1
    exact = reference.nc1_pinv(np.asarray(single[1], np.float64), labels[order])
    np.testing.assert_allclose(measured, exact, rtol=1e-2)


# Symmetries


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_measures_ignore_rotations_of_the_features(shape, seed):
    W, H, b, labels = features(shape, seed)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(H), len(H))))[0]
    # nc1 divides by the squared singular values of M, which may differ by a factor of a thousand.
    assert_same(measure(W @ Q.T, Q @ H, b, labels), measure(W, H, b, labels), rtol=1e-8)


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_measures_ignore_the_order_of_the_samples(shape, seed):
    W, H, b, labels = features(shape, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    moved = measure(W, H[:, order], b, labels[order])
    assert_same(moved, measure(W, H, b, labels), rtol=1e-8)


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_measures_ignore_the_names_and_the_order_of_the_classes(shape, seed):
    W, H, b, labels = features(shape, seed)
    K = len(W)
    index = np.searchsorted(np.unique(labels), labels)
    order = np.random.default_rng(seed).permutation(K)
    moved = measure(W[order], H, b[order], np.argsort(order)[index])
    unmoved = measure(W, H, b, labels)
    assert_same(moved, unmoved, rtol=1e-8)
    assert measure(W, H, b, 10 * index - 7) == unmoved


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1e-3, 0.3, 7.0, 1e6]))
def test_measures_ignore_the_scales_of_features_and_classifier(shape, seed, scale):
    W, H, b, labels = features(shape, seed)
    b = np.zeros_like(b)
    first, second = measure(W, H, b, labels), measure(W, scale * H, b, labels)
    assert_same(first, second, rtol=1e-8, but=["nc4_mean_logit"])
    np.testing.assert_allclose(
        second["nc4_mean_logit"], scale * first["nc4_mean_logit"], rtol=1e-12
    )
    assert_same(first, measure(scale * W, H, b, labels), rtol=1e-8, but=["nc4_mean_logit"])


@EACH
@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_measures_ignore_a_common_offset_that_the_bias_makes_up_for(shape, seed):
    W, H, b, labels = features(shape, seed)
    a = np.random.default_rng(seed).standard_normal(len(H))
    moved = measure(W, H + a[:, None], b - W @ a, labels)
    assert_same(moved, measure(W, H, b, labels), rtol=1e-8)


@EACH
def test_a_row_shift_spoils_the_uncentred_measures_of_the_classifier_alone(shape):
    W, H, b, labels = features(shape)
    a = 10 * np.random.default_rng(5).standard_normal(len(H))
    moved, unmoved = collapse(W + a, H, b, labels), collapse(W, H, b, labels)
    assert moved.nc2_centred == pytest.approx(unmoved.nc2_centred, rel=1e-11, abs=1e-12)
    assert moved.nc4 == unmoved.nc4
    assert abs(moved.nc2 - unmoved.nc2) > 1e-2


# Degenerate inputs


def test_a_classifier_of_zeros_has_no_geometry():
    W, H, b, labels = features(SHAPES["narrow"])
    K = len(W)
    measured = collapse(np.zeros_like(W), H, b, labels)
    assert measured.nc2 == measured.nc2_centred == pytest.approx(1, rel=1e-14)
    assert measured.nc3 == pytest.approx(1, rel=1e-14)
    assert measured.nc3_duality == pytest.approx(1, rel=1e-14)
    assert measured.nc2_equinorm_W == 0
    assert measured.nc2_equiangularity_W == pytest.approx(1 / (K - 1), rel=1e-14)
    assert measured.nc4_mean_logit == pytest.approx(np.linalg.norm(b), rel=1e-14)
    unchanged = collapse(W, H, b, labels)
    assert measured.nc1 == unchanged.nc1
    assert measured.nc2_means == unchanged.nc2_means


def measured_in_jax(W, H, b, labels):
    return compiled(tuple(labels))(*(jnp.asarray(x) for x in (W, H, b)))


@pytest.mark.parametrize("function", [collapse, measured_in_jax])
def test_class_means_that_coincide_give_infinite_variability_and_no_geometry(function):
    H = np.tile([[1.0, -1.0], [0.0, 0.0], [2.0, -2.0]], 3)
    measured = function(np.eye(3), H, np.zeros(3), [0, 0, 1, 1, 2, 2])
    assert measured.nc1 == measured.nc1_trace_ratio == measured.nc1_cdnv == np.inf
    assert float(measured.nc2_means) == float(measured.nc3) == pytest.approx(1, rel=1e-14)
    assert measured.nc2_equinorm_means == 0
    assert measured.nc3_duality == pytest.approx(1, rel=1e-14)
    assert not np.any(np.isnan(np.array(measured, float)))


@pytest.mark.parametrize("function", [collapse, measured_in_jax])
def test_features_that_are_all_alike_have_no_variability(function):
    measured = function(np.eye(3), np.ones((3, 6)), np.zeros(3), [0, 0, 1, 1, 2, 2])
    assert measured.nc1 == measured.nc1_trace_ratio == measured.nc1_cdnv == 0
    assert float(measured.nc2_means) == float(measured.nc3) == pytest.approx(1, rel=1e-14)
    assert not np.any(np.isnan(np.array(measured, float)))


def test_two_classes_with_one_mean_have_infinite_pair_variance():
    _, H, _, labels = features((3, 4, (2, 2, 2), (0, 1, 2)))
    H[:, labels == 1] = H[:, labels == 0]
    measured = collapse(np.ones((3, 4)), H, np.zeros(3), labels)
    assert measured.nc1_cdnv == np.inf
    assert np.isfinite(measured.nc1)
    assert np.isfinite(measured.nc1_trace_ratio)


BAD_INPUTS = {
    "labels too few": ({"labels": [0, 1, 2]}, ValueError, r"\(3,\)"),
    "labels as a column": ({"labels": np.zeros((6, 1), int)}, ValueError, r"\(6, 1\)"),
    "a class without samples": (
        {"labels": [0, 0, 0, 1, 1, 1]},
        ValueError,
        "class 2 has no samples",
    ),
    "a label too many": ({"labels": [0, 1, 2, 3, 0, 1]}, ValueError, "got label 3 "),
    "labels of fractions": ({"labels": [0.5, 1, 2, 0, 1, 2]}, TypeError, "float64 with 0.5"),
    "labels of truth values": ({"labels": [True, False] * 3}, TypeError, "bool"),
    "features with NaN": ({"H": np.full((4, 6), np.nan)}, ValueError, "24 non-finite entries in H"),
    "classifier with infinity": ({"W": np.full((3, 4), np.inf)}, ValueError, "12 .* in W"),
    "bias with NaN": ({"b": np.full(3, np.nan)}, ValueError, "3 non-finite entries in b"),
    "features transposed": ({"H": np.ones((6, 4))}, ValueError, r"\(6, 4\)"),
    "features flat": ({"H": np.ones(24)}, ValueError, r"\(24,\)"),
    "bias too long": ({"b": np.zeros(4)}, ValueError, r"\(4,\)"),
    "one class": (
        {"W": np.ones((1, 4)), "b": np.zeros(1), "labels": [0] * 6},
        ValueError,
        r"\(1, 4\), one logit",
    ),
    "complex features": ({"H": np.ones((4, 6)) + 0j}, TypeError, "complex128"),
    "features of text": ({"H": np.full((4, 6), "x")}, TypeError, "<U1"),
}


@pytest.mark.parametrize(("change", "error", "got"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_inputs_are_refused_with_what_was_got(change, error, got):
    generator = np.random.default_rng(0)
    good = {
        "W": generator.standard_normal((3, 4)),
        "H": generator.standard_normal((4, 6)),
        "b": np.zeros(3),
        "labels": [0, 1, 2, 0, 1, 2],
    }
    assert np.all(np.isfinite(metrics.collapse(**good)))
    with pytest.raises(error, match=got):
        metrics.collapse(**{**good, **change})


def test_features_with_nan_are_refused_as_jax_arrays_too():
    W, H, b, labels = features(SHAPES["two-classes"])
    with pytest.raises(ValueError, match="1 non-finite entries in H"):
        collapse(W, jnp.asarray(H).at[0, 0].set(jnp.nan), b, labels)


def test_traced_labels_are_refused():
    W, H, b, labels = features(SHAPES["two-classes"])
    with pytest.raises(TypeError, match="traced"):
        jax.jit(metrics.collapse)(W, H, b, labels)


# Features of any size

RANGE = {np.float64: (-290, -200, -165, 0, 160, 300), np.float32: (-30, -22, 0, 20, 35)}


def perfect(counts, d=5):
    """Class means at a simplex around their unweighted mean, W proportional to them, no spread."""
    K = len(counts)
    W = np.eye(K, d) - np.repeat([np.pad(np.full(K, 1 / K), (0, d - K))], K, axis=0)
    labels = np.repeat(np.arange(K), counts)
    return W, 2 * W[labels].T, np.zeros(K), labels


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("name", ["two-classes", "wide"])
def test_only_the_mean_logit_knows_the_size_of_features_and_classifier(name, convert, dtype):
    W, H, _, labels = features(SHAPES[name])
    W, H, none = (x.astype(dtype) for x in (W, H, np.zeros(len(W))))

    def measured(e_W, e_H):
        scaled = convert(np.ldexp(W, e_W)), convert(np.ldexp(H, e_H)), convert(none)
        return {key: float(x) for key, x in collapse(*scaled, labels)._asdict().items()}

    # Powers of two, so that nothing but over- and underflow could change a digit.
    binary = [round(10 / 3 * e) for e in RANGE[dtype]]
    expected, most = measured(0, 0), np.finfo(np.float64 if convert is np.asarray else dtype).max
    for e_W, e_H in [(e, 0) for e in binary] + [(0, e) for e in binary] + [
        (binary[0], binary[-1]), (binary[-1], binary[-1]), (binary[-2], binary[0])
    ]:  # fmt: skip
        found = measured(e_W, e_H)
        logit = np.ldexp(np.longdouble(expected["nc4_mean_logit"]), e_W + e_H)
        if logit > most:
            assert found["nc4_mean_logit"] == np.inf
        else:
            assert found["nc4_mean_logit"] == pytest.approx(float(logit), rel=1e-6, abs=1e-37)
        assert_same(found, expected, rtol=64 * laws.eps(dtype), atol=0, but=["nc4_mean_logit"])


@pytest.mark.parametrize("size", [1e-160, 1.0, 1e160])
def test_a_bias_counts_beside_logits_of_its_size(size):
    W, H, b, labels = features(SHAPES["wide"])
    expected = measure(W, H, b, labels)
    found = measure(size * W, size * H, size * size * b if size != 1e160 else 0 * b, labels)
    if size == 1e160:
        assert found["nc4"] == measure(W, H, 0 * b, labels)["nc4"]
        return
    assert found["nc4"] == expected["nc4"]
    # A bias beyond all logits decides alone.
    alone = measure(1e-200 * W, 1e-200 * H, b, labels)
    assert alone["nc4_mean_logit"] == pytest.approx(np.linalg.norm(b), rel=1e-14)


def test_variability_of_huge_and_of_tiny_features_is_not_zero():
    rng = np.random.default_rng(0)
    W, labels = 3 * np.eye(4, 6), np.repeat(np.arange(4), 10)
    H = (W[labels] + 0.1 * rng.normal(size=(40, 6))).T
    expected = reference.nc1_pinv(H, labels)
    assert 0.003 < expected < 0.0033
    for size in (1e-300, 1e-170, 1e160, 1e300):
        assert collapse(W, H * size, np.zeros(4), labels).nc1 == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("counts", [(4, 4, 4), (5, 10, 20, 65)])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_perfect_collapse_of_any_counts_reads_zero_about_the_mean_of_class_means(counts, convert):
    W, H, b, labels = perfect(counts)
    found = measure(*(convert(x) for x in (W, H, b)), labels)
    # Float64 rounding of sums of 100 terms.
    assert all(0 <= value < 1e-14 for value in found.values()), found
    assert_same(found, expected(W, H, b, labels), rtol=1e-11)


def test_about_the_mean_of_the_samples_unequal_counts_spoil_what_is_centred():
    W, H, b, labels = perfect((5, 10, 20, 65))
    found = measure(W, H, b, labels, "sample")
    by_sample_mean = {name for name in found if "means" in name} | {
        "nc3", "nc3_duality", "nc4_mean_logit"
    }  # fmt: skip
    for name, value in found.items():
        assert value > 0.05 if name in by_sample_mean else 0 <= value < 1e-14, name
    assert_same(found, expected(W, H, b, labels, "sample"), rtol=1e-11)


@pytest.mark.parametrize(("kind", "size"), [(np.float64, 1e-320), (np.float32, 1e-42)])
@pytest.mark.parametrize("in_jax", [False, True])
@pytest.mark.parametrize("name", ["W", "H"])
def test_subnormal_numbers_are_no_perfect_collapse(kind, size, in_jax, name):
    W, H, b, labels = features(SHAPES["narrow"])
    point = {"W": W.astype(kind), "H": H.astype(kind), "b": b.astype(kind)}
    point[name] = (size * (W if name == "W" else H)).astype(kind)
    if in_jax:
        point = {key: jnp.asarray(x) for key, x in point.items()}
    elif kind is np.float32:  # measured in float64, where it is a normal number
        found, usual = (collapse(*x, labels) for x in (point.values(), (W, H, b)))
        assert found.nc1 == pytest.approx(usual.nc1, rel=0.1)
        return
    with pytest.raises(ufm.Refused, match=f"got {name} whose largest entry is .* underflow"):
        collapse(*point.values(), labels)
