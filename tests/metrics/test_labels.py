"""Features and their labels: order means nothing, names mean what is said, nothing is guessed."""

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
from ufm.metrics.features import numbers
from ufm.metrics.labels import samples

K, D, COUNTS = 4, 6, (5, 2, 7, 4)
NAMES = np.array(["cat", "dog", "owl", "ant"])
LAMS = {"lam_W": 2e-3, "lam_H": 3e-3, "lam_b": 1e-2}


def features(seed=0):
    """W, H, b and labels of Gaussian classes; the samples in random order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(K), COUNTS))
    W, b = generator.standard_normal((K, D)), generator.standard_normal(K)
    H = W[labels].T + 0.5 * generator.standard_normal((D, len(labels)))
    return W, H, b, labels


def bridge(W, H, b, labels, **options):
    return ufm.Problem.from_features(W, H, b, labels, **LAMS | options)


# Order


@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_the_objective_of_unsorted_features_is_that_of_the_reference(seed):
    W, H, b, labels = features(seed)
    problem, params = bridge(W, H, b, labels)
    assert problem.n == COUNTS
    expected = reference.objective(W, H, b, labels, *LAMS.values())
    np.testing.assert_allclose(ufm.certify(problem, params).value, expected, rtol=1e-13)


def test_the_order_of_the_samples_means_nothing():
    W, H, b, labels = features()
    order = np.argsort(labels, kind="stable")
    problem, params = bridge(W, H[:, order], b, labels[order])
    np.testing.assert_array_equal(params.H, H[:, order])
    certificate, counts = ufm.certify(problem, params), ufm.hessian.inertia(problem, params)
    for seed in range(3):
        moved = np.random.default_rng(seed).permutation(len(labels))
        same, point = bridge(W, H[:, moved], b, labels[moved])
        assert same == problem
        np.testing.assert_allclose(ufm.certify(same, point), certificate, rtol=1e-11)
        assert ufm.hessian.inertia(same, point)[:3] == counts[:3]
    # Another order within each class turns the point; its verdict is the same.
    assert ufm.hessian.verdict(same, point).kind == ufm.hessian.verdict(problem, params).kind


def test_samples_keep_their_order_within_a_class():
    W, H, b, labels = features()
    for k, start in enumerate(np.cumsum((0, *COUNTS[:-1]))):
        mine = bridge(W, H, b, labels)[1].H[:, start : start + COUNTS[k]]
        np.testing.assert_array_equal(mine, H[:, labels == k])


# Names


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (range(1, 5), np.arange(1, 5)),
        ([-20, -13, 255, 1], np.array([-20, -13, 255, 1])),
        (NAMES, NAMES),
        (list(NAMES), NAMES.astype(np.dtypes.StringDType())),
        ([3, 1, 0, 2], np.array([3.0, 1, 0, 2])),
    ],
    ids=["from-1", "any-integers", "text", "strings-of-any-length", "floats"],
)
def test_classes_are_the_labels_in_the_order_of_the_rows(classes, names):
    W, H, b, labels = features()
    plain = metrics.collapse(W, H, b, labels)
    assert metrics.collapse(W, H, b, names[labels], classes=classes) == plain
    problem, params = bridge(W, H, b, names[labels], classes=classes)
    same, point = bridge(W, H, b, labels)
    assert problem == same
    np.testing.assert_array_equal(params.H, point.H)


@laws.few_examples
@given(seed=st.integers(0, 10**6))
def test_rows_and_classes_in_another_order_are_the_same_classifier(seed):
    W, H, b, labels = features(seed)
    order = np.random.default_rng(seed).permutation(K)
    moved = metrics.collapse(W[order], H, b[order], NAMES[labels], classes=NAMES[order])
    # nc1 divides by the squared singular values of M, which may differ by a factor of a thousand.
    np.testing.assert_allclose(moved, metrics.collapse(W, H, b, labels), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint64, ">i4", np.float16, np.float64, np.longdouble, jnp.bfloat16, "jax"]
)
def test_the_type_of_whole_labels_means_nothing(dtype):
    W, H, b, labels = features()
    typed = jnp.asarray(labels) if dtype == "jax" else labels.astype(dtype)
    assert metrics.collapse(W, H, b, typed) == metrics.collapse(W, H, b, labels)
    assert metrics.collapse(W, H, b, typed.tolist()) == metrics.collapse(W, H, b, labels)


def test_truth_values_are_the_labels_of_two_classes():
    W, H, b, labels = features()
    two = labels > 1
    plain = metrics.collapse(W[:2], H, b[:2], two.astype(int))
    assert metrics.collapse(W[:2], H, b[:2], two) == plain
    flipped = metrics.collapse(W[:2], H, b[:2], ~two, classes=[True, False])
    assert flipped == plain


def test_a_switch_is_no_label_to_leave_out():
    W, H, b, labels = features()
    with pytest.raises(ufm.Refused, match="got ignore=True; allowed: the label"):
        metrics.collapse(W, H, b, labels, ignore=True)


def test_ignored_samples_are_left_out_whatever_they_hold():
    W, H, b, labels = features()
    left = labels.copy()
    left[[2, 5, 9]] = -100, 255, -100
    keep = left == labels
    spoilt = np.where(keep, H, np.nan)
    found = metrics.collapse(W, spoilt, b, left, ignore=[-100, 255])
    assert found == metrics.collapse(W, H[:, keep], b, labels[keep])
    problem, params = bridge(W, spoilt, b, left, ignore=(255, -100))
    same, point = bridge(W, H[:, keep], b, labels[keep])
    assert problem == same
    np.testing.assert_array_equal(params.H, point.H)
    # A label that no sample has may be ignored: that is how data sets are set up.
    assert metrics.collapse(W, H, b, labels, ignore=-100) == metrics.collapse(W, H, b, labels)


# What is refused


def shifted(labels):
    """Class 3's samples carry −100: as many distinct labels as rows."""
    return np.where(labels == 3, -100, labels)


def with_nan(labels):
    return np.where(labels == 2, np.nan, labels)


REFUSED = {
    "from 1": (lambda y: y + 1, {}, r"got label 4 .*0 … 3.*classes=range\(1, 5\).*ignore=4"),
    "an ignore label": (shifted, {}, r"label -100 \(4 of 18 .*ignore=-100 \(--ignore\)$"),
    "another ignore label": (lambda y: np.r_[y[:-1], 255], {}, r"255 \(1 of 18.*sample 17\)"),
    "strange": (lambda y: 10 * y - 7, {}, r"classes=\[-7, 3, 13, 23\]"),
    "not among classes": (lambda y: y, {"classes": [0, 1, 2, 9]}, "label 3 .*not among classes"),
    "absent": (lambda y: np.where(y == 1, 0, y), {}, r"class 1 has no samples.*arange\(4\), \[1\]"),
    "absent by ignore": (lambda y: y, {"ignore": [0, 3]}, "classes 0, 3 have no samples"),
    "one-hot": (lambda y: np.eye(K)[y], {}, r"\(18, 4\).*labels.argmax\(axis=1\)"),
    "one-hot, columns": (lambda y: np.eye(K)[y].T, {}, r"labels.argmax\(axis=0\)"),
    "a column": (lambda y: y[:, None], {}, r"\(18, 1\); allowed: \(18,\).*labels.ravel\(\)"),
    "too few": (lambda y: y[:5], {}, r"\(5,\); allowed: \(18,\)"),
    "a number": (lambda _: 3, {}, r"shape \(\)"),
    "ragged": (lambda _: [[0], [1, 2]], {}, "NumPy cannot read"),
    "none": (lambda _: None, {}, "got no labels"),
    "fractions": (lambda y: y + 0.5, {}, "float64 with .*5 for sample 0"),
    "half floats too large": (lambda y: 1000 * y.astype(np.float16), {}, "float16 .*up to 2048"),
    "NaN": (with_nan, {}, r"7 labels that are NaN.*np.isfinite\(labels\)"),
    "truth values of four": (lambda y: y > 1, {}, "bool for K=4"),
    "text": (lambda y: NAMES[y], {}, "'ant', 'cat', 'dog', 'owl'.*classes="),
    "bytes": (lambda y: NAMES.astype("S")[y], {}, r"astype\(str\)"),
    "objects": (lambda y: y.astype(object), {}, r"np.array\(labels.tolist\(\)\)"),
    "complex": (lambda y: y + 0j, {}, "complex128; allowed: integers"),
    "dates": (lambda y: y.astype("datetime64[s]"), {}, "datetime64"),
    "masked": (lambda y: np.ma.masked_equal(y, 3), {}, "masked entries"),
    "wrapped": (lambda y: (y - 100).astype(np.uint64), {}, "18446744073709551516"),
    "classes as text": (lambda y: y, {"classes": "0123"}, "got classes='0123'"),
    "classes without order": (lambda y: y, {"classes": {0, 1, 2, 3}}, "in the order of the rows"),
    "too few classes": (lambda y: y, {"classes": [0, 1, 2]}, "got 3 classes.*allowed: 4"),
    "classes twice": (lambda y: y, {"classes": [0, 1, 2, 2]}, "3 of them distinct"),
    "classes of another kind": (lambda y: y, {"classes": list(NAMES)}, "without quotes"),
    "numbers for text": (lambda y: NAMES[y], {"classes": [0, 1, 2, 3]}, "allowed: text"),
    "half a class": (lambda y: y, {"classes": [0, 1, 2, 3.5]}, "label of classes=3.5"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_labels_that_could_mean_something_else_are_refused_with_the_way_out(make, options, message):
    W, H, b, labels = features()
    with pytest.raises(ufm.Refused, match=message):
        metrics.collapse(W, H, b, make(labels), **options)
    with pytest.raises(ufm.Refused, match=message):
        bridge(W, H, b, make(labels), **options)


def test_the_way_out_of_an_absent_class_leads_out():
    W, H, b, labels = features()
    kept = labels != 1
    keep = np.delete(np.arange(K), [1])
    found = metrics.collapse(W[keep], H[:, kept], b[keep], labels[kept], classes=keep)
    closed = np.searchsorted(keep, labels[kept])
    assert found == metrics.collapse(W[keep], H[:, kept], b[keep], closed)


def test_a_single_logit_becomes_the_two_rows_that_the_message_names():
    W, H, b, labels = features()
    two = labels > 1
    for w in (W[:1], W[0]):
        with pytest.raises(ufm.Refused, match=r"one logit.*W = np.vstack\(\[-w, w\]\) / 2"):
            metrics.collapse(w, H, b[:1], two)
    w, c = W[0], b[0]
    problem, params = bridge(np.vstack([-w, w]) / 2, H, np.array([-c, c]) / 2, two, lam_b=0.0)
    data = ufm.certify(problem, params).value - (
        LAMS["lam_W"] * np.sum(params.W**2) + LAMS["lam_H"] * np.sum(H**2)
    ) / 2  # fmt: skip
    # Binary cross-entropy of the one logit.
    expected = np.mean(np.logaddexp(0, np.where(two, -1, 1) * (w @ H + c)))
    np.testing.assert_allclose(data, expected, rtol=1e-12)


def test_labels_may_lack_classes_only_where_that_is_asked_for():
    assert samples([0, 2, 2], 3, 3, every=False).rows.tolist() == [0, 2, 2]
    with pytest.raises(ufm.Refused, match="class 1 has no samples"):
        samples([0, 2, 2], 3, 3)


# From features to a problem


def test_the_balance_makes_both_decays_equal():
    W, H, b, labels = features()
    problem, params = ufm.Problem.from_features(W, H, b, labels, 5e-4)
    np.testing.assert_allclose(
        problem.lam_W * np.sum(params.W**2), problem.lam_H * np.sum(params.H**2), rtol=1e-14
    )
    assert (problem.lam_b, problem.bias) == (0.0, True)
    # At a critical point that is the decay of its own problem.
    minimum = ufm.Problem(3, 4, 5, 5e-3, 2e-3, 1e-2)
    point = ufm.theory.global_minimizer(minimum, jax.random.key(0))
    found, _ = ufm.Problem.from_features(*point, minimum.labels, 5e-3, lam_b=1e-2)
    assert found.lam_H == pytest.approx(2e-3, rel=1e-13)
    # Sizes whose squares leave the range of floats.
    small, _ = ufm.Problem.from_features(W, 1e150 * H, b, labels, 5e-4)
    assert small.lam_H == pytest.approx(1e-300 * problem.lam_H, rel=1e-13)


def test_no_bias_makes_a_problem_without_one():
    W, H, _, labels = features()
    problem, params = bridge(W, H, None, labels)
    assert not problem.bias
    expected = reference.objective(W, H, np.zeros(K), labels, *LAMS.values())
    assert ufm.certify(problem, params).value == pytest.approx(expected, rel=1e-13)
    assert metrics.collapse(W, H, None, labels) == metrics.collapse(W, H, np.zeros(K), labels)
    assert metrics.collapse(W, H, labels=labels) == metrics.collapse(W, H, None, labels)


def test_rows_of_features_are_the_columns_of_h():
    W, H, b, labels = features()
    first = bridge(W, None, b, labels, features=np.ascontiguousarray(H.T))
    second = bridge(W, H, b, labels)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1].H, second[1].H)


class Tensor:
    """As much as is used of a PyTorch tensor in bfloat16, elsewhere and with a gradient."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    cpu = detach

    def is_floating_point(self):
        return True

    def double(self):
        return np.asarray(self.values, float)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")


@pytest.mark.parametrize(
    ("convert", "digits"),
    [
        (lambda x: x.astype(np.float32), 6), (lambda x: x.astype(">f8"), 14),
        (lambda x: x.astype(np.longdouble), 14), (lambda x: x.tolist(), 14), (Tensor, 14),
        (lambda x: x.astype(np.float16), 2), (lambda x: x.astype(jnp.bfloat16), 1),
        (jnp.asarray, 14), (lambda x: jnp.asarray(x, jnp.bfloat16), 1),
        (lambda x: jnp.asarray(x, jnp.float16), 2),
    ],
    ids=["float32", "big-endian", "long", "list", "torch", "half", "bfloat16", "jax",
         "jax-bfloat16", "jax-half"],
)  # fmt: skip
def test_numbers_of_any_library_and_precision_are_taken(convert, digits):
    W, H, b, labels = features()
    problem, params = bridge(convert(W), convert(H), convert(b), labels)
    assert len({x.dtype for x in params}) == 1
    assert params.H.dtype in (np.float32, np.float64)
    expected = reference.objective(W, H, b, labels, *LAMS.values())
    assert ufm.certify(problem, params).value == pytest.approx(expected, rel=10.0**-digits)
    measured = metrics.collapse(convert(W), convert(H), convert(b), labels)
    # NC1 squares the features, and divides by the squared singular values of their means.
    expected = reference.nc1_pinv(H, labels)
    assert float(measured.nc1) == pytest.approx(expected, rel=100 * 10.0**-digits)


BAD = {
    "no decay": ({"lam_W": None}, "got lam_W=None"),
    "a decay of text": ({"lam_W": "1e-3"}, "without quotes"),
    "a negative decay": ({"lam_H": -1.0}, "got lam_H=-1.0"),
    "no features": ({"H": None}, "got no features; allowed: one of"),
    "features twice": ({"features": np.ones((18, 6))}, "both H and features"),
    "H transposed": ({"H": np.ones((18, 6))}, "H looks transposed"),
    "features transposed": ({"H": None, "features": np.ones((6, 18))}, "give them as H"),
    "zero features": ({"H": np.zeros((6, 18)), "lam_H": None}, "‖H‖=0.*Give lam_H"),
    "zero rows": ({"W": np.zeros((4, 6)), "lam_H": None}, "‖W‖=0.*Give lam_H"),
    "one class": ({"W": np.ones((0, 6))}, "K >= 2 rows"),
    "no dimension": ({"W": np.ones((4, 0)), "H": np.ones((0, 18))}, "d >= 1"),
    "NaN": ({"H": np.full((6, 18), np.nan)}, "108 non-finite entries in H"),
    "a bias of another length": ({"b": np.zeros(3)}, r"b with shape \(3,\); allowed: \(4,\)"),
    "a bias that is None, packed": ({"b": np.array(None)}, "b of dtype object.*leave b out"),
    "truth values": ({"W": np.ones((4, 6), bool)}, "W of dtype bool"),
    "complex": ({"H": np.ones((6, 18)) * 1j}, "H of dtype complex128"),
    "masked": ({"H": np.ma.masked_greater(np.ones((6, 18)), 0)}, "H with masked"),
    "a tensor that cannot be read": ({"W": [[1, 2], [3]]}, "W that NumPy cannot read"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_features_that_make_no_problem_are_refused(change, message):
    W, H, b, labels = features()
    arguments = {"W": W, "H": H, "b": b, "labels": labels} | LAMS
    with pytest.raises(ufm.Refused, match=message):
        ufm.Problem.from_features(**arguments | change)


def test_a_traced_point_is_refused():
    W, H, b, labels = features()
    with pytest.raises(ufm.Refused, match="runs on the host"):
        jax.jit(lambda W: bridge(W, H, b, labels)[1])(W)


def test_numbers_leaves_what_is_sound_as_it_is():
    H = np.ones((2, 3), np.float32)
    assert numbers("H", H) is H
    assert numbers("H", jnp.asarray(H)).dtype == jnp.float32
