"""Codes: their margins in closed form, that they are unit vectors, and what a search adds."""

import itertools

import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm.theory import codes, hardmax_margin, softmax_codes

EXACT = 1e-10
MARGINS = {
    **{(K, 2): 1 - np.cos(2 * np.pi / K) for K in (4, 5, 7, 12)},
    **{(K, d): 1.0 for d in (3, 4, 6) for K in range(d + 2, 2 * d + 1)},
    **{(K, d): K / (K - 1) for K, d in ((2, 1), (3, 2), (5, 4), (6, 9))},
    (12, 3): 1 - 1 / np.sqrt(5),
    (11, 3): 1 - 1 / np.sqrt(5),
    (9, 3): 2 / 3,
    (8, 3): 4 / (4 + np.sqrt(2)),
}


@pytest.mark.parametrize(("size", "margin"), MARGINS.items(), ids=map(str, MARGINS))
def test_a_known_code_has_its_margin(size, margin):
    code = codes(*size)
    assert code.rows.shape == size
    np.testing.assert_allclose(np.linalg.norm(code.rows, axis=1), 1, rtol=1e-14)
    assert code.margin == pytest.approx(margin, abs=EXACT)
    expected = "best known" if size[1] == 3 and size[0] > 6 else "optimal"
    assert code.status == expected


def test_the_margin_is_what_a_linear_search_over_features_finds():
    """max over ‖h‖ ≤ 1 of min_j ⟨w_k − w_j, h⟩, by SciPy's SLSQP, of rows of unlike lengths."""
    W = np.random.default_rng(2).normal(size=(5, 4))
    found = []
    for k in range(5):
        apart = W[k] - np.delete(W, k, axis=0)
        best = scipy.optimize.minimize(
            lambda x: -x[-1], np.append(W[k], 0.0) / 10, method="SLSQP", options={"ftol": 1e-15},
            constraints=[
                {"type": "ineq", "fun": lambda x, apart=apart: apart @ x[:-1] - x[-1]},
                {"type": "ineq", "fun": lambda x: 1 - x[:-1] @ x[:-1]},
            ],
        )  # fmt: skip
        found.append(-best.fun)
    assert hardmax_margin(W) == pytest.approx(min(found), abs=1e-7)
    assert hardmax_margin(3 * W) == pytest.approx(3 * hardmax_margin(W), rel=1e-12)


def test_a_row_within_the_hull_of_the_others_has_no_margin():
    corners = np.array(list(itertools.product((1.0, -1.0), repeat=2)))
    assert hardmax_margin(np.vstack([corners, [[0.2, 0.1]]])) == pytest.approx(0, abs=1e-12)


def test_a_search_finds_the_codes_that_are_known_and_repeats_itself():
    for K, d in ((5, 2), (6, 3)):
        rows = softmax_codes._search(K, d, (0, 0))
        assert hardmax_margin(rows) == pytest.approx(MARGINS[K, d], abs=1e-9)


def test_what_is_searched_is_a_unit_code_and_says_that_it_was_found():
    code = codes(7, 3)
    assert (code.name, code.status) == ("search", "best found")
    np.testing.assert_allclose(np.linalg.norm(code.rows, axis=1), 1, rtol=1e-14)
    assert code.margin == hardmax_margin(code.rows)
    # The best packing of seven points has the largest cosine 0.21014 (77.87°).
    assert code.margin == pytest.approx(1 - np.cos(np.deg2rad(77.8695421554)), abs=1e-9)
    np.testing.assert_array_equal(codes(7, 3, 0).rows, code.rows)
    code.rows[:] = 0  # a copy: the next one is whole
    assert codes(7, 3).margin > 0


def test_on_a_line_only_two_vectors_differ():
    with pytest.raises(ufm.Refused, match="only two vectors differ on a line"):
        codes(3, 1)
    with pytest.raises(ufm.Refused, match="K <= 64"):
        codes(80, 3)
