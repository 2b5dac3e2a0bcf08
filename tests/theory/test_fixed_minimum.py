"""The closed form for a fixed classifier that treats all classes alike, against solved points."""

import dataclasses

import jax
import numpy as np
import pytest

import ufm
from ufm import geometry, theory
from ufm.model.problem import Problem

FRAMES = {
    "etf": lambda K, d: 1.7 * np.asarray(geometry.simplex_etf(K, d, jax.random.key(3))),
    "orthogonal": lambda K, d: 0.6 * np.eye(K, d),
    # Unit rows of one angle, neither of the two.
    "shifted": lambda K, d: np.asarray(geometry.etf_classifier(K, d)) + 0.3 * np.eye(d)[-1],
}
MODELS = {
    "unequal": {"n": (1, 7, 3, 40, 2), "bias": False},
    "equal, bias": {"n": 6, "lam_b": 3e-3},
    "equal, free bias": {"n": 6, "lam_b": 0.0},
    "weights": {
        "n": (1, 7, 3, 4, 2), "bias": False, "weights": (1.0, 2.0, 0.3, 1.0, 4.0),
        "decay_weights": (1.0, 0.2, 1.0, 3.0, 1.0),
    },
}  # fmt: skip


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lam", [1.0, 1e-2, 1e-6])
def test_it_is_the_solved_and_certified_minimum(frame, model, lam):
    problem = Problem(5, 6, lam_W=2e-3, lam_H=lam, fixed=("W",), **MODELS[model])
    W = FRAMES[frame](5, 6)
    found = theory.fixed_minimum(problem, W)
    solved = ufm.solve(problem, ufm.init_params(0, problem, W=W))
    proof = ufm.certify(problem, solved.params)
    assert proof.gap <= 1e-12 * proof.value
    assert found.value == pytest.approx(proof.value, rel=1e-13)
    W, H, b = map(np.asarray, solved.params)
    first = np.cumsum(problem.counts) - 1
    np.testing.assert_allclose(np.linalg.norm(H, axis=0)[first], found.lengths, rtol=1e-7)
    Z = (W @ H)[:, first] + b[:, None]
    margins = np.diagonal(Z) - (Z + np.diag(np.full(5, -np.inf))).max(axis=0)
    np.testing.assert_allclose(margins, found.margins, rtol=1e-7)
    if model == "unequal":
        assert np.ptp(found.lengths) == 0  # one norm for all classes, whatever the counts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fixed": ()}, 'fixed=\\("W",\\)'),
        ({"loss": "SquaredError"}, "plain cross-entropy"),
        ({"bias": True}, "no bias, or equal classes"),
        ({"lam_H": 0.0}, "lam_H > 0"),
    ],
)
def test_outside_of_it_the_assumption_is_named(change, words):
    problem = Problem(3, 3, (1, 2, 3), 1e-3, 1e-3, bias=False, fixed=("W",))
    with pytest.raises(ufm.Refused, match=words):
        theory.fixed_minimum(dataclasses.replace(problem, **change), np.eye(3))


@pytest.mark.parametrize("W", [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, 1.0, 2.0])])
def test_a_classifier_that_prefers_a_class_is_refused(W):
    problem = Problem(3, 3, 2, 1e-3, 1e-3, fixed=("W",))
    with pytest.raises(ufm.Refused, match="rows of one length and one angle"):
        theory.fixed_minimum(problem, W)


def test_claims_are_those_of_this_problem():
    problem = Problem(4, 3, (2, 1, 1, 1), 1e-3, 1e-3, bias=False, fixed=("W",))
    found = {claim.name: claim for claim in theory.claims(problem)}
    assert set(found) == {"convex in (H, b)", "certificate", "one norm"}
    assert all("2203.09081" in claim.source and claim.fails is None for claim in found.values())
    other = dataclasses.replace(problem, loss="Focal(gamma=2.0)", bias=True)
    assert all(claim.fails for claim in theory.claims(other))
