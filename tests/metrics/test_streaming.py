"""Batches: the whole array's measures, whatever the batches, the library, the passes, the size."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import ufm
from ufm import metrics
from ufm.metrics import frames, moments
from ufm.metrics.streaming import Accumulator, detail
from ufm.runtime import blocks

K, D = 5, 7
COUNTS = (3, 30, 11, 4, 52)
# Rounding of sums of a hundred terms, over the squared singular values of M.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def features(seed=0, offset=0.0, spread=0.5):
    """W, H (D, N), b and labels in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(K), COUNTS))
    H = rng.standard_normal((D, K))[:, labels] + offset + spread * rng.standard_normal((D, 100))
    return rng.standard_normal((K, D)), H, rng.standard_normal(K), labels


def cuts(rng, N):
    """Where batches begin and end, some of them empty."""
    ends = np.sort(rng.integers(0, N + 1, rng.integers(0, 12)))
    return list(zip([0, *ends], [*ends, N], strict=True))


def streamed(W, H, b, labels, batches, convert=np.asarray, **options):
    seen = Accumulator(W, b, **options)
    for step in (seen.add,) if "means" in options else (seen.add, seen.again):
        for start, end in batches:
            step(convert(H.T[start:end]), labels[start:end])
    return seen


def same(found, expected, but=(), **close):
    for name, x, y in zip(found._fields, found, expected, strict=True):
        if name not in but:
            np.testing.assert_allclose(x, y, **(CLOSE | close), err_msg=name)


# Batches are the whole


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    passes=st.sampled_from([1, 2]),
    mean=st.sampled_from(["class", "sample"]),
)
def test_any_batches_give_the_measures_of_the_whole(seed, passes, mean):
    W, H, b, labels = features(seed)
    batches = cuts(np.random.default_rng(seed), 100)
    seen = streamed(W, H, b, labels, batches, passes=passes, mean=mean)
    same(seen.collapse(), metrics.collapse(W, H, b, labels, mean=mean))
    same(seen.detail(), detail(W, H, b, labels, mean=mean))


def exact(H, labels):
    """NC1 and the variances of the classes in long double, the axes of M in float64."""
    H = H.astype(np.longdouble)
    means = np.stack([H[:, labels == k].mean(axis=1) for k in range(K)], axis=1)
    own = H - means[:, labels]
    M = means - means.mean(axis=1, keepdims=True)
    U, s, _ = np.linalg.svd(M.astype(np.float64), full_matrices=False)
    along = np.sum((U[:, : K - 1].T.astype(np.longdouble) @ own) ** 2, axis=1) / len(labels)
    return np.sum(along / s[: K - 1] ** 2), [
        np.sum(own[:, labels == k] ** 2) / np.sum(labels == k) for k in range(K)
    ]


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    ("offset", "spread"), [(0.0, 1e-8), (1e3, 1e-2), (1e6, 1e-2), (1e3, 1e-6)], ids=str
)
def test_one_pass_over_collapsed_features_far_from_the_origin(offset, spread, size):
    W, H, b, labels = features(3, offset, spread)
    seen = Accumulator(W, b)
    for i in range(0, 100, size):  # one by one: Welford's updates
        seen.add(H.T[i : i + size], labels[i : i + size])
    nc1, variances = exact(H, labels)
    # Deviations from a point of the class have a relative rounding of eps, and some 1e-7 of the
    # class mean over the spread in units of eps; M of size 1 is rounded as the offset is.
    rtol = 1e-13 * (1 + 1e-7 * max(offset, 1) / spread)
    np.testing.assert_allclose(seen.detail().variances, np.array(variances, float), rtol=rtol)
    rtol += 1e2 * np.finfo(float).eps * offset
    assert seen.collapse().nc1 == pytest.approx(float(nc1), rel=rtol)


def test_the_scatter_is_that_of_the_definition():
    _, H, _, labels = features()
    found = moments.empty(K, D, scatter=True)
    for start, end in cuts(np.random.default_rng(1), 100):
        moments.absorb(found, H.T[start:end], labels[start:end])
    within, _ = reference.covariances(H, labels)
    upper = np.triu(found.scatter) * found.unit**2 / 100
    np.testing.assert_allclose(upper, np.triu(within), **CLOSE)
    assert found.N == 100
    assert found.total() * found.unit**2 == pytest.approx(np.sum(H**2), rel=1e-13)


@pytest.mark.parametrize("passes", [1, 2])
def test_features_of_any_size_are_measured_alike(passes):
    W, H, b, labels = features()
    expected = metrics.collapse(W, H, 0 * b, labels)
    batches = cuts(np.random.default_rng(5), 100)
    for size in (2.0**-900, 2.0**-540, 2.0**600, 2.0**1000):
        seen = streamed(W, H * size, 0 * b, labels, batches, passes=passes)
        same(seen.collapse(), expected, but=["nc4_mean_logit"])
    # Sizes that grow from batch to batch: what was small becomes rounding.
    seen = Accumulator(W, b)
    for e in (-1000, -300, 0, 500):
        seen.add(np.ldexp(H.T, e), labels)
    last = np.concatenate([0 * H, 0 * H, 0 * H, H], axis=1)
    expected = metrics.collapse(W, last, b, np.tile(labels, 4))
    same(seen.collapse(), expected, but=["nc4", "nc4_mean_logit"])


def test_subnormal_numbers_are_no_perfect_collapse():
    W, H, b, labels = features()
    message = "got {} whose largest entry is .* underflow"
    with pytest.raises(ufm.Refused, match=message.format("W")):
        Accumulator(1e-320 * W, b)
    with pytest.raises(ufm.Refused, match=message.format("H")):
        metrics.collapse(W, 1e-320 * H, b, labels)
    seen = Accumulator(W, b).add(1e-320 * H.T, labels)
    with pytest.raises(ufm.Refused, match=message.format("features")):
        seen.collapse()
    # Beside larger ones they are small numbers.
    seen.add(H.T, labels)
    expected = metrics.collapse(W, np.concatenate([0 * H, H], axis=1), b, np.tile(labels, 2))
    same(seen.collapse(), expected, but=["nc4"])


class OnADevice:
    """An array that NumPy cannot read but through DLPack, like CuPy's."""

    def __init__(self, values):
        self.values = np.array(values)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Tensor(OnADevice):
    """As much as is used of a PyTorch tensor with a gradient, on a GPU."""

    def detach(self):
        return self

    def cpu(self):
        return self.values


@pytest.mark.parametrize("convert", [
    np.asfortranarray, jnp.asarray, OnADevice, Tensor, lambda x: x.tolist(),
    lambda x: np.repeat(x, 2, axis=1)[:, ::2],
])  # fmt: skip
def test_batches_of_any_library_are_taken(convert):
    W, H, b, labels = features()
    batches = [(0, 40), (40, 100)]
    seen = streamed(W, H, b, labels, batches, convert)
    assert seen.collapse() == streamed(W, H, b, labels, batches).collapse()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f4", jnp.bfloat16])
def test_batches_of_any_precision_are_measured_at_their_value(dtype):
    W, H, b, labels = features()
    H = H.astype(dtype)
    seen = streamed(W, H, b, labels, [(0, 40), (40, 100)])
    same(seen.collapse(), metrics.collapse(W, H.astype(np.float64), b, labels))


def test_whole_arrays_are_gone_through_in_pieces(monkeypatch):
    W, H, b, labels = features()
    labels = np.where(labels == 2, -100, labels)
    keep = np.flatnonzero(labels != -100)
    options = {"ignore": -100, "missing": "skip"}
    one = metrics.collapse(W, H, b, labels, **options), detail(W, H, b, labels, **options)
    monkeypatch.setattr(frames, "LIMIT", 8 * D * 3)  # three samples, or a row of K × K
    many = metrics.collapse(W, H, b, labels, **options), detail(W, H, b, labels, **options)
    for first, second in zip(one, many, strict=True):
        for name, x, y in zip(first._fields, first, second, strict=True):
            if x is not None:
                np.testing.assert_allclose(x, y, **CLOSE, err_msg=name)
    assert len(keep) < 100


def test_arrays_mapped_from_disk_are_measured_where_they_lie(tmp_path):
    W, H, b, labels = features()
    np.save(tmp_path / "h.npy", H.T.astype(np.float32))
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r")
    expected = metrics.collapse(W, H.astype(np.float32), b, labels)
    assert metrics.collapse(W, mapped.T, b, labels) == expected
    assert streamed(W, mapped.T, b, labels, [(0, 100)], passes=2).collapse() == expected


# What one pass does not know, and what two must agree on


def test_a_single_pass_knows_all_but_who_is_nearest():
    W, H, b, labels = features()
    seen = Accumulator(W, b).add(H.T, labels)
    found, known = seen.collapse(), metrics.collapse(W, H, b, labels)
    assert found.nc4 is None
    same(found, known, but=["nc4"])
    inside, whole = seen.detail(), detail(W, H, b, labels)
    assert inside.nearest_centre is None
    assert inside.class_nearest is None
    assert inside.accuracy == whole.accuracy
    np.testing.assert_array_equal(inside.class_accuracy, whole.class_accuracy)
    assert seen.again(H.T, labels).collapse() == pytest.approx(known, rel=1e-10)


def test_the_second_moment_is_that_of_the_features():
    W, H, b, labels = features()
    seen = Accumulator(W, b).add(H.T[:30], labels[:30]).add(H.T[30:], labels[30:])
    np.testing.assert_allclose(seen.second_moment(), H @ H.T / 100, **CLOSE)


# Test features about training means


def test_test_features_are_measured_about_training_means():
    W, H, b, labels = features(1)
    train = streamed(W, H, b, labels, [(0, 100)])
    np.testing.assert_allclose(
        train.class_means.T, reference.class_statistics(H, labels)[0], **CLOSE
    )
    # About their own means given, the training features read as ever.
    means = train.class_means
    same(metrics.collapse(W, H, b, labels, means=means), train.collapse())
    _, test, _, names = features(2)
    test, names = test[:, names != 3], names[names != 3]
    found = metrics.collapse(W, test, b, names, means=means)
    inside = detail(W, test, b, names, means=means)
    deviations = test - means[names].T
    within = deviations @ deviations.T / len(names)
    M = (means - means.mean(axis=0)).T
    assert found.nc1 == pytest.approx(np.trace(within @ np.linalg.pinv(M @ M.T)), rel=1e-10)
    assert found.nc1_trace_ratio == pytest.approx(np.trace(within) * K / np.sum(M**2), rel=1e-12)
    nearest = [np.argmin(((h - means) ** 2).sum(axis=1)) for h in test.T]
    predicted = np.argmax(W @ test + b[:, None], axis=0)
    assert found.nc4 == pytest.approx(np.mean(nearest != predicted), rel=1e-13)
    assert inside.nearest_centre == pytest.approx(np.mean(nearest == names), rel=1e-13)
    assert inside.accuracy == pytest.approx(np.mean(predicted == names), rel=1e-13)
    assert inside.missing == (3,)
    # The geometry is that of the training means.
    assert found.nc2_means == pytest.approx(train.collapse().nc2_means, rel=1e-12)
    assert found.nc3 == pytest.approx(train.collapse().nc3, rel=1e-12)
    other = Accumulator(W, b, means=means)
    for start in range(0, test.shape[1], 13):
        other.add(test.T[start : start + 13], names[start : start + 13])
    same(other.collapse(), found)


def test_features_of_another_scale_than_the_means_are_refused():
    W, H, b, labels = features()
    means = streamed(W, H, b, labels, [(0, 100)]).class_means
    seen = Accumulator(W, b, means=means).add(H.T, labels)
    with pytest.raises(ufm.Refused, match="Are both of one network"):
        seen.add(H.T * 1e200, labels)


# Classes without samples


def test_absent_classes_are_named_and_those_present_are_measured():
    W, H, b, labels = features()
    some = np.flatnonzero((labels != 1) & (labels != 4))
    H, labels = H[:, some], labels[some]
    seen = streamed(W, H, b, labels, [(0, len(some))], missing="skip")
    assert seen.missing == (1, 4)
    assert seen.detail().missing == (1, 4)
    found = metrics.collapse(W, H, b, labels, missing="skip")
    same_fields = [x for x in found._fields if getattr(found, x) is not None]
    for name in same_fields:
        assert getattr(seen.collapse(), name) == pytest.approx(getattr(found, name), rel=1e-10)
    present = [0, 2, 3]
    alone = metrics.collapse(W[present], H, b[present], labels, classes=present)
    for name in ("nc1", "nc1_trace_ratio", "nc1_cdnv"):
        assert getattr(found, name) == pytest.approx(getattr(alone, name), rel=1e-12)
    assert found.nc2 == metrics.collapse(*features()).nc2
    assert found.nc2_means is found.nc3 is found.nc3_duality is found.nc4_mean_logit is None
    nearest = np.array(present)[
        [np.argmin([np.sum((h - H[:, labels == k].mean(axis=1)) ** 2) for k in present])
         for h in H.T]
    ]  # fmt: skip
    predicted = np.argmax(W @ H + b[:, None], axis=0)
    assert found.nc4 == pytest.approx(np.mean(nearest != predicted), abs=1e-15)
    cosines = seen.detail().cosines
    assert np.isnan(cosines[[1, 4]]).all()
    assert np.isfinite(cosines[present]).all()


def test_names_of_classes_are_those_given():
    W, H, b, labels = features()
    names = np.array(["cat", "dog", "owl", "ant", "bee"])
    some = labels != 3
    found = detail(W, H[:, some], b, names[labels][some], classes=names, missing="skip")
    assert found.missing == ("ant",)


# Values of each class


def test_detail_equals_its_definitions():
    W, H, b, labels = features(4)
    found = detail(W, H, b, labels)
    means, _, variances = reference.class_statistics(H, labels)
    predicted = np.argmax(W @ H + b[:, None], axis=0)
    nearest = np.array([np.argmin(((h - means.T) ** 2).sum(axis=1)) for h in H.T])
    overall = H.mean(axis=1, keepdims=True)
    total = np.sum((H - overall) ** 2)
    inside = sum(n * v for n, v in zip(COUNTS, variances, strict=True))
    assert found.within == pytest.approx(inside / total, rel=1e-12)
    assert found.accuracy == pytest.approx(np.mean(predicted == labels), rel=1e-13)
    assert found.nearest_centre == pytest.approx(np.mean(nearest == labels), rel=1e-13)
    np.testing.assert_array_equal(found.counts, COUNTS)
    np.testing.assert_allclose(found.variances, variances, rtol=1e-12)
    for k in range(K):
        own = labels == k
        assert found.class_accuracy[k] == pytest.approx(np.mean(predicted[own] == k))
        assert found.class_nearest[k] == pytest.approx(np.mean(nearest[own] == k))
    for rows, std in ((W, found.cosine_std_W),
                      (reference.centred_means(H, labels).T, found.cosine_std_means)):  # fmt: skip
        pairs = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j
        ]  # fmt: skip
        assert std == pytest.approx(np.std(pairs), rel=1e-12)
    M = reference.centred_means(H, labels)
    cosines = [W[k] @ M[:, k] / np.linalg.norm(W[k]) / np.linalg.norm(M[:, k]) for k in range(K)]
    np.testing.assert_allclose(found.cosines, cosines, rtol=1e-12)


# Refusals


SKIP, TWICE, ABOUT = {"missing": "skip"}, {"passes": 2}, {"means": np.eye(K, D)}
REFUSED = {
    "columns": ({}, lambda s, H, y: s.add(H.T, y), r"\(7, 100\) for W \(5, 7\); allowed: \(m, 7\)"),
    "NaN": ({}, lambda s, H, y: s.add(H * np.nan, y), "700 non-finite entries in features"),
    "a label": ({}, lambda s, H, y: s.add(H, y + 1), "got label 5"),
    "too few": ({}, lambda s, H, y: s.add(H, y[1:]), r"\(99,\); allowed: \(100,\)"),
    "none": ({}, lambda s, H, y: s.add(H[:0], y[:0]).collapse(), "got no samples"),
    "absent": (
        {}, lambda s, H, y: s.add(H[y > 0], y[y > 0]).collapse(), 'class 0; .*missing="skip"'),
    "one class": (
        SKIP, lambda s, H, y: s.add(H[y == 1], y[y == 1]).collapse(),
        "classes 0, 2, 3, 4; allowed: samples of two"),
    "late": ({}, lambda s, H, y: s.add(H, y).again(H, y).add(H, y), "all of `add` first"),
    "once": (TWICE, lambda s, H, y: s.add(H, y).collapse(), "passes=1"),
    "half": ({}, lambda s, H, y: s.add(H, y).again(H[:50], y[:50]).collapse(), "got 50 .*100"),
    "a second about means": (ABOUT, lambda s, H, y: s.again(H, y), "`add` alone"),
    "none about means": (ABOUT, lambda s, H, y: s.add(H[:0], y[:0]).collapse(), "got no samples"),
    "no scatter": (TWICE, lambda s, H, y: s.add(H, y).second_moment(), "got no scatter"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "act", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_batches_that_make_no_sense_are_refused(options, act, message):
    W, H, b, labels = features()
    with pytest.raises(ufm.Refused, match=message):
        act(Accumulator(W, b, **options), H.T, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ABOUT | {"mean": "sample"}, "counts behind given"),
        ({"means": np.eye(D, K)}, "look transposed"),
        ({"means": np.full((K, D), np.inf)}, "35 non-finite entries in means"),
        ({"passes": 3}, "got passes=3"),
        ({"mean": "median"}, "'class', 'sample'"),
        ({"missing": "drop"}, "'refuse', 'skip'"),
        ({"b": np.zeros(3)}, r"b with shape \(3,\)"),
        ({"classes": [1, 2]}, "got 2 classes"),
        ({"classes": "abcde"}, "got classes='abcde'"),
        ({"classes": list("abcde"), "ignore": -100}, "allowed: text"),
        ({"ignore": 0.5}, "label of ignore=0.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ufm.Refused, match=message):
        Accumulator(np.eye(K, D), **options)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_traced_arrays_are_refused(place):
    W, H, b, labels = features()

    def traced(x):
        given = [W, H, b, np.eye(K, D)]
        given[place] = x
        return metrics.collapse(*given[:3], labels, means=given[3]).nc1

    with pytest.raises(ufm.Refused, match="outside jit"):
        jax.jit(traced)([W, H, b, np.eye(K, D)][place])
    with pytest.raises(ufm.Refused, match="outside jit"):
        jax.jit(lambda X: Accumulator(W).add(X, labels).collapse().nc1)(H.T)


# Memory and many classes


def test_k_by_k_matrices_are_never_whole(monkeypatch):
    rng = np.random.default_rng(0)
    rows, others = rng.standard_normal((2, 30, 8))
    exact = [
        reference.etf_distance(rows @ others.T), reference.equinorm(rows),
        reference.equiangularity(rows),
    ]  # fmt: skip
    monkeypatch.setattr(frames, "LIMIT", 8 * 30 * 4)
    widths = [part.stop - part.start for part in frames.slices(30, 30)]
    assert max(widths) == 4
    found = [frames.to_simplex(rows, others), frames.equinorm(rows), frames.gram(rows).angle]
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    assert frames.gram(rows).simplex == pytest.approx(frames.to_simplex(rows, rows), rel=1e-12)


def peak(call):
    """Bytes that NumPy held at most beyond what it held before."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large():
    """W, features (N, 64) of 72 MB, beyond what JAX measures whole on a CPU, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(280_000) % 4
    W = np.eye(4, 64, dtype=np.float32)
    return W, rng.standard_normal((280_000, 64), np.float32) + W[labels], labels


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_whole_arrays_take_little_memory_beside_them(large, convert):
    W, X, labels = large
    H = convert(X.T)
    assert H.nbytes > blocks.LIMIT
    # Half of the features is allowed: some blocks of 4 MiB, and 8 bytes a label and another.
    assert peak(lambda: metrics.collapse(W, H, None, labels)) < 0.5 * H.nbytes


def test_large_jax_arrays_are_measured_as_numpy_does(large):
    W, X, labels = large
    H = jax.device_put(X.T, jax.devices("cpu")[0])  # a GPU keeps its own and computes in float32
    found = metrics.collapse(W, H, None, labels)
    assert all(x.dtype == jnp.float32 for x in found)
    exact = metrics.collapse(W, X.T, None, labels)
    np.testing.assert_array_equal(np.array(found), np.array(exact, np.float32))


def test_many_classes_never_make_a_k_by_k_matrix():
    K = 3000
    rng = np.random.default_rng(0)
    W, H = rng.standard_normal((K, 4)), rng.standard_normal((4, K))
    found = metrics.collapse(W, H, None, np.arange(K))
    assert found.nc1 == 0
    # Ten blocks at a time, where one matrix is seventeen.
    assert peak(lambda: metrics.collapse(W, H, None, np.arange(K))) < 10 * frames.LIMIT < 5 * K**2


def test_what_is_kept_is_k_d_and_d_d():
    W = np.eye(30, 200)
    rng = np.random.default_rng(0)
    # Means in float64, points near them in float32, the scatter.
    for passes, most in ((1, 1.5 * 30 * 200 + 200 * 200), (2, 1.5 * 30 * 200)):
        seen = Accumulator(W, passes=passes)
        for _ in range(3):
            seen.add(rng.standard_normal((50, 200)), rng.integers(0, 30, 50))
        parts = vars(seen._moments).values()
        kept = sum(x.nbytes for x in parts if isinstance(x, np.ndarray))
        assert kept <= 8 * (most + 2 * 30)
