"""Escapes from saddles that are known in closed form, timed against NumPy and the linearisation."""

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import reference

from ufm import theory
from ufm.critical import unstable as escape
from ufm.model.problem import Params, Problem

PROBLEM = Problem(K=4, d=4, n=2, lam_W=1e-2, lam_H=5e-3, lam_b=8e-3)
LENGTHS = np.geomspace(1e-4, 1e-10, 3)
DELTA = 1e-3


def origin():
    return laws.zeros(PROBLEM)


def two_pairs():
    """W = a s e₁ᵀ, h_i = c s_{y_i} e₁ with s = (1, 1, −1, −1): classes tied two by two.

    On these points f = log(2 + 2e^{−2ac}) + 2λ_W a² + 2nλ_H c², least where
    e^{2ac} = 1/(2√(nλ_Wλ_H)) − 1 and λ_W a² = nλ_H c².
    """
    root = np.sqrt(PROBLEM.n * PROBLEM.lam_W * PROBLEM.lam_H)
    m = np.log(1 / (2 * root) - 1) / 2
    a = np.sqrt(m * np.sqrt(PROBLEM.n * PROBLEM.lam_H / PROBLEM.lam_W))
    s, e = np.array([1.0, 1.0, -1.0, -1.0]), np.eye(PROBLEM.d)[0]
    W, H = a * np.outer(s, e), m / a * np.outer(e, s[PROBLEM.labels])
    return Params(*map(jnp.asarray, (W, H, np.zeros(PROBLEM.K))))


SADDLES = {"origin": origin, "two-pairs": two_pairs}


@pytest.fixture(scope="module")
def escapes():
    found = {}
    for name, saddle in SADDLES.items():
        found[name] = escape.escape(PROBLEM, saddle(), jax.random.key(3), LENGTHS)
    return found


@pytest.mark.parametrize("name", SADDLES)
def test_the_least_eigenvalue_and_its_multiplicity_are_those_of_theory(name, escapes):
    K, d, n = PROBLEM.K, PROBLEM.d, PROBLEM.n
    mean, half = (PROBLEM.lam_W + PROBLEM.lam_H) / 2, (PROBLEM.lam_W - PROBLEM.lam_H) / 2
    predicted = mean - np.hypot(half, 1 / (K * np.sqrt(n)))
    assert escapes[name].smallest == pytest.approx(predicted, abs=1e-14)
    # d(K−1) at the origin; where two pairs are tied the two differences within them, in every
    # dimension but that of W in which the pairs differ.
    assert escapes[name].multiplicity == {"origin": d * (K - 1), "two-pairs": 2 * (d - 1)}[name]


@pytest.mark.parametrize("name", SADDLES)
def test_descent_leaves_when_the_linearisation_says_and_ends_at_the_global_minimum(name, escapes):
    found = escapes[name]
    # One step for counting whole ones; the terms left out are of relative size δ/|λ|.
    # Whole steps: the prediction rounded up, but for what the terms of order δ may add or take.
    late, slack = found.left - found.predicted, DELTA / abs(found.smallest)
    assert np.all((late >= -slack) & (late <= 1 + slack))
    assert set(found.status) == {"certified"}
    assert np.all(np.abs(found.gap) <= escape.GAP_TOL)
    values = [laws.value(PROBLEM, jax.tree.map(lambda x, i=i: x[i], found.params)) for i in (0, -1)]
    np.testing.assert_allclose(values, theory.global_value(PROBLEM), rtol=0, atol=escape.GAP_TOL)


@pytest.mark.parametrize("name", SADDLES)
def test_steps_are_those_of_gradient_descent_in_numpy(name, escapes):
    found, saddle = escapes[name], SADDLES[name]()
    way = escape.unstable(PROBLEM, saddle, jax.random.key(3))
    shapes = [x.shape for x in saddle]
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    at = np.concatenate([np.ravel(x) for x in saddle])
    x, steps = at + LENGTHS[0] * way.u, 0
    while abs(way.q @ (x - at)) < DELTA:
        parts = [v.reshape(s) for v, s in zip(np.split(x, ends), shapes, strict=True)]
        uphill = reference.gradient(*laws.reference_arguments(PROBLEM, Params(*parts)))
        x = x - found.learning_rate * np.concatenate([np.ravel(g) for g in uphill])
        steps += 1
    assert found.left[0] == steps


def test_the_direction_is_a_unit_tangent_whose_part_in_the_eigenspace_is_q():
    way = escape.unstable(PROBLEM, two_pairs(), jax.random.key(0))
    assert np.linalg.norm(way.u) == pytest.approx(1, abs=1e-14)
    assert np.linalg.norm(way.q) == pytest.approx(1, abs=1e-14)
    assert way.u @ way.q == pytest.approx(way.part, abs=1e-14)
    assert 0 < way.part < 1
    # ∇f at rounding, over |λ|.
    assert way.resolution <= 1e-14


def test_one_length_gives_python_numbers_and_keys_draw_directions(escapes):
    one = escape.escape(PROBLEM, two_pairs(), jax.random.key(3), float(LENGTHS[1]))
    many = escapes["two-pairs"]
    assert (type(one.left), type(one.predicted), type(one.status)) == (int, float, str)
    assert one.params.W.shape == (PROBLEM.K, PROBLEM.d)
    assert (one.left, one.steps, one.status) == (many.left[1], many.steps[1], "certified")
    assert one.part != escape.unstable(PROBLEM, two_pairs(), jax.random.key(4)).part


def test_minibatches_reach_the_global_minimum_too():
    found = escape.escape(
        PROBLEM, two_pairs(), jax.random.key(1), 1e-4, batch_size=4, steps=12_000, gap_tol=1e-3
    )
    assert (found.status, found.left > 0) == ("certified", True)
    assert found.learning_rate <= PROBLEM.K / 2
    assert abs(found.gap) <= 1e-3


def test_a_run_that_is_cut_short_or_diverges_says_so():
    key = jax.random.key(3)
    short = escape.escape(PROBLEM, origin(), key, LENGTHS, steps=3)
    assert set(short.status) == {"step_limit"}
    assert set(short.left) == {-1}
    assert set(short.steps) == {3}
    wild = escape.escape(PROBLEM, two_pairs(), key, LENGTHS, learning_rate=500.0)
    assert set(wild.status) == {"diverged"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0.*> 0"),
        ({"epsilon": [1e-6, 1e-3]}, "0 < epsilon < delta"),
        ({"epsilon": [[1e-6]]}, "give one"),
        ({"epsilon": np.nan}, "epsilon=nan"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"steps": 0}, "steps=0"),
        ({"gap_tol": "1e-6"}, "without quotes"),
        ({"gap_tol": 0.0}, "gap_tol=0.0.*> 0"),
        ({"batch_size": 9}, "<= 8"),
        ({"problem": Problem(4, 40, 20, 1e-2, 5e-3, 8e-3)}, "of_width"),
        ({"saddle": laws.random_params(PROBLEM)}, "Polish it"),
        ({"saddle": laws.minimizer(PROBLEM)}, "strict saddle"),
    ],
)
def test_what_no_escape_starts_from_is_refused(changes, message):
    arguments = {"problem": PROBLEM, "saddle": origin(), "key": jax.random.key(0)} | changes
    with pytest.raises(ValueError, match=message):
        escape.escape(**arguments)
