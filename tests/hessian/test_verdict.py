"""Verdicts, counts and solutions at small decays and odd scales, held against 40 digits.

A verdict may say that it does not know; it may not contradict what 40 digits say of the exact
critical point near by.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import laws
import mpmath as mp
import numpy as np
import pytest
from precise import Precise

import ufm
from ufm import hessian, theory
from ufm.commands import probe
from ufm.hessian import reduction, stationarity
from ufm.hessian.stationarity import SHARE
from ufm.losses import crossentropy as losses
from ufm.model.evaluation import evaluate
from ufm.model.problem import Params, Problem

DECIDED = ("global minimiser", "strict saddle", "local minimiser")


def problem_of(shape, lam, ratio=1.0, lam_b="equal"):
    """λ_W = λ√ratio, λ_H = λ/√ratio, λ_b = λ, a number, or None for no bias."""
    K, d, n = shape
    value = {"equal": lam, None: 0.0}.get(lam_b, lam_b)
    return Problem(K, d, n, lam * ratio**0.5, lam / ratio**0.5, value, bias=lam_b is not None)


def padded(problem, width, seed=1):
    """A solution of `width` dimensions in those of the problem."""
    narrow = dataclasses.replace(problem, d=width)
    start = ufm.init_params(jax.random.key(seed), narrow, 1.0)
    W, H, b = ufm.solve(narrow, start).params
    more = problem.d - width
    point = Params(jnp.pad(W, ((0, 0), (0, more))), jnp.pad(H, ((0, more), (0, 0))), b)
    return ufm.solve(problem, point, descend=False)


SOURCES = {
    "descent": lambda p: ufm.solve(p, ufm.init_params(jax.random.key(0), p, 1.0)),
    "rank 1": lambda p: padded(p, 1),
    "newton": lambda p: ufm.solve(p, ufm.init_params(jax.random.key(3), p, 2.0), descend=False),
    "origin": lambda p: ufm.solve(p, laws.zeros(p), descend=False),
}


class Truth:
    """What 40 digits say of the critical point near a solution."""

    def __init__(self, problem, params):
        self.precise = Precise(problem)
        self.exact, self.distance = self.precise.refined(params)
        eigenvalues = self.precise.eigenvalues(self.exact)
        floor = mp.mpf(10) ** -26 * max(abs(v) for v in eigenvalues)
        self.index = sum(v < -floor for v in eigenvalues)
        # Only where full rank is possible is a minimum known to be global.
        wide = problem.d >= problem.K - 1 and self.index == 0
        self.least = self.precise.value(self.exact) if wide else None

    def contradiction(self, problem, params):
        """What a verdict on a point beside the critical one gets wrong, or nothing."""
        found = hessian.verdict(problem, params)
        if found.kind == "strict saddle" and not self.index:
            return f"a minimum is called a saddle: {found.reason}"
        if found.kind in ("global minimiser", "local minimiser") and self.index:
            return f"a saddle is called a minimum: {found.reason}"
        if found.kind == "global minimiser" and self.least is not None:
            excess = self.precise.value(self.precise.lifted(params)) / self.least - 1
            if excess > 2 * SHARE:
                return f"f exceeds f* by {float(excess):.3g} of itself: {found.reason}"
        if found.kind == "not critical":
            worst = max(self.precise.shares(params).values(), default=0.0)
            if worst <= stationarity.TOLERANCE:
                return f"a share of {worst:.3g} is called not critical: {found.reason}"
        return ""


def beside(problem, params, size, generator):
    """Points that differ from params by `size`: along the symmetry of scales, in b, anywhere."""
    W, H, b = (np.asarray(x) for x in params)
    yield Params(W * (1 + size), H / (1 + size), b)
    yield Params(W * (1 - size), H / (1 - size), b)
    stretch = np.append(1 + size, np.ones(problem.d - 1))
    yield Params(W * stretch, H / stretch[:, None], b)
    yield Params(W * (1 + size), H, b)
    yield Params(W + size * np.linalg.norm(W) * generator.standard_normal(problem.d), H, b)
    noise = [size * generator.standard_normal(x.shape) for x in (W, H, b)]
    yield Params(W + np.abs(W).max() * noise[0], H + np.abs(H).max() * noise[1], b)
    if problem.bias:
        yield Params(W, H, b + size)
        yield Params(W, H, b + noise[2])


def contradictions(problem, source, sizes):
    """(what verdicts get wrong at and beside one critical point, the verdict at it or None)."""
    solution = SOURCES[source](problem)
    if solution.status != "converged":
        return [], None
    try:
        truth = Truth(problem, solution.params)
    except ArithmeticError:  # no critical point within reach of float64
        return [], None
    generator = np.random.default_rng(0)
    points = [solution.params]
    for size in sizes:
        points += beside(problem, solution.params, size, generator)
    found = [truth.contradiction(problem, x) for x in points]
    return [x for x in found if x], hessian.verdict(problem, solution.params)


@pytest.mark.parametrize("source", ["descent", "rank 1", "origin"])
def test_verdicts_do_not_contradict_40_digits_down_to_the_smallest_decays(source):
    for lam in (1e-2, 1e-6, 1e-9, 1e-12, 1e-14):
        problem = problem_of((3, 2, 1), lam)
        wrong, at = contradictions(problem, source, (1e-2, 2e-6, 1e-10))
        assert not wrong, (lam, wrong)
        assert at is not None or lam < 1e-9
        assert at is None or at.kind in DECIDED, (lam, at)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(3, 3, 1), (3, 1, 1), (4, 1, 1), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e6])
def test_verdicts_do_not_contradict_40_digits(shape, ratio):
    lams, biases = (
        (0.2, 1e-2, 1e-4, 1e-6, 1e-8, 1e-9, 1e-10, 1e-12, 1e-14),
        ("equal", 1e-2, 0, None),
    )
    for lam, lam_b in itertools.product(lams, biases):
        problem = problem_of(shape, lam, ratio, lam_b)
        for source in SOURCES if shape[1] > 1 else ("descent", "newton", "origin"):
            wrong, at = contradictions(problem, source, (1e-2, 1e-4, 2e-6, 1e-8, 1e-12))
            assert not wrong, (lam, lam_b, source, wrong)
            if min(problem.lam_W, problem.lam_H) >= 0.99e-6 and at is not None:
                assert at.kind in DECIDED, (lam, lam_b, source, at)


@functools.cache
def merged_pair(lam, lam_b, lam_H=None):
    """K = 3 on a line, two classes on one side: a strict saddle (40 digits)."""
    problem = Problem(3, 3, 1, lam, lam_H or lam, lam_b)
    S = np.outer([1, 1, -2.0], [1, 0, 0])
    solution = ufm.solve(problem, Params(2 * S, 2 * S.T, np.zeros(3)))
    assert solution.status == "converged"
    return problem, solution.params, Truth(problem, solution.params)


@pytest.mark.parametrize(
    ("lam", "lam_b", "lam_H", "size"),
    [(3e-8, 3e-8, None, 2e-6), (1e-8, 1e-8, None, 5e-6), (1e-9, 1e-2, None, 4e-5),
     (1e-9, 1e-9, 1e-6, 1.4e-6)],
)  # fmt: skip
def test_a_saddle_off_balance_is_no_minimum(lam, lam_b, lam_H, size):
    problem, point, truth = merged_pair(lam, lam_b, lam_H)
    assert truth.index > 0
    assert hessian.verdict(problem, point).kind == "strict saddle"
    moved = Params(point.W * (1 + size), point.H / (1 + size), point.b)
    found = hessian.verdict(problem, moved)
    assert found.kind in ("not critical", "strict saddle")
    assert not truth.contradiction(problem, moved)


@pytest.mark.parametrize("lam", [1e-13, 1e-14])
def test_scaled_identities_are_no_minimum_but_the_one_that_is(lam):
    problem = problem_of((3, 3, 1), lam)
    least = float(theory.global_value(problem))
    for t in (1.0, 10.0, 20.0, 30.0, 35.0, 60.0):
        point = Params(t**0.5 * np.eye(3), t**0.5 * np.eye(3), np.zeros(3))
        assert hessian.verdict(problem, point).kind == "not critical", t
    minimum = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    found = hessian.verdict(problem, minimum)
    assert found.kind == "global minimiser"
    assert found.gap <= SHARE * least
    assert hessian.verdict(problem, minimum._replace(b=minimum.b + 0.56)).kind == "not critical"


def _evidence(problem, point):
    return probe._evidence(problem, evaluate(problem, point))


@pytest.mark.parametrize(("say", "n"), [(hessian.verdict, 2), (_evidence, 3)])
@pytest.mark.parametrize("minimum", [True, False])
def test_one_verdict_makes_one_residual_and_one_reduction(say, n, minimum, monkeypatch):
    calls = []

    def counting(place, name):
        one = getattr(place, name)

        def counted(*args, **options):
            calls.append(name)
            return one(*args, **options)

        monkeypatch.setattr(place, name, counted)

    counting(losses, "residual")  # whose compiled callers call it when they are first traced
    counting(reduction, "reduced")
    problem = problem_of((5, 7 + minimum, n), 1e-2)  # a shape that no other test has traced
    point = theory.global_minimizer(problem, jax.random.key(0)) if minimum else laws.zeros(problem)
    calls.clear()
    say(problem, point)
    assert sorted(calls) == ["reduced", "residual"]
    calls.clear()
    say(problem, point)
    assert calls == ["reduced"]


@pytest.mark.parametrize("lam_b", ["equal", None])
def test_shares_are_those_of_40_digits(lam_b):
    for lam, size in itertools.product((1e-2, 1e-7, 1e-12), (1e-1, 1e-4, 1e-7)):
        problem = problem_of((3, 2, 1), lam, 10.0, lam_b)
        minimum = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
        for point in beside(problem, minimum, size, np.random.default_rng(1)):
            found, exact = stationarity.stationarity(problem, point), Precise(problem).shares(point)
            assert found.share == pytest.approx(exact[found.where], rel=1e-5, abs=1e-13)
            assert max(exact.values()) <= found.uncertainty * (1 + 1e-5) + 1e-13


# Points that Newton's method leaves beside the origin, and squares out of range


def test_beside_the_origin_of_unequal_classes_is_the_origin():
    problem = Problem(K=3, d=2, n=(4, 2, 1), lam_W=8e-3, lam_H=3e-3, bias=False)
    start = ufm.init_params(jax.random.key(5), problem, scale=1.0)
    solution = ufm.solve(problem, start, descend=False)
    assert solution.status == "converged"
    found, at = hessian.verdict(problem, solution.params), laws.zeros(problem)
    assert (found.kind, found.curvature) == (
        "strict saddle", pytest.approx(hessian.verdict(problem, at).curvature),
    )  # fmt: skip
    np.testing.assert_allclose(
        hessian.spectrum(problem, solution.params).eigenvalues,
        hessian.spectrum(problem, at).eigenvalues, rtol=1e-12,
    )  # fmt: skip
    # A thousandth of a millionth of the natural length is not the origin.
    near = jax.tree.map(lambda x: 1e-9 * x, start)
    assert hessian.verdict(problem, near).kind == "not critical"


@pytest.mark.parametrize("exponent", [-150, -160, -170, -200])
def test_solve_does_not_converge_where_squares_underflow_but_at_critical_points(exponent):
    lam, statuses = 10.0**exponent, set()
    problem = problem_of((3, 3, 1), lam)
    precise = Precise(problem)
    minimum = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    scales = [theory.margin(problem) ** 0.5 * (1 + x) for x in (-0.2, 1e-3)] + [20.0]
    starts = [minimum, *(Params(s * np.eye(3), s * np.eye(3), np.zeros(3)) for s in scales)]
    for start in starts:
        solution = ufm.solve(problem, start, descend=False)
        statuses.add(solution.status)
        exact = precise.flat(precise.gradient(precise.lifted(solution.params)))
        assert solution.residual == pytest.approx(float(mp.norm(exact)), abs=1e-13 * solution.scale)
        assert (solution.status == "converged") <= (mp.norm(exact) <= 1e-12 * solution.scale)
    assert "converged" in statuses


@pytest.mark.parametrize("probe", [hessian.verdict, hessian.inertia, hessian.witness])
def test_entries_whose_squares_leave_float64_are_refused(probe):
    problem = problem_of((3, 2, 1), 1e-3)
    point = laws.random_params(problem)
    with pytest.raises(ufm.Refused, match=r"1e\+150|exceeds the largest float64"):
        probe(problem, point._replace(H=1e200 * point.H))


# Counts where λ_H is far below G


def network_like(K, d, N, lam_H, lam_b, seed=0):
    """Features of length 10 as behind a ReLU, rows of W along the class means."""
    generator = np.random.default_rng(seed)
    labels = np.sort(np.arange(N) % K)
    means = np.maximum(generator.standard_normal((K, d)), 0)
    H = np.maximum(means[labels] + 0.7 * generator.standard_normal((N, d)), 0)
    H *= 10 / np.mean(np.linalg.norm(H, axis=1))
    W = 0.1 * (means - np.mean(means, axis=0))
    n = tuple(int(x) for x in np.bincount(labels))
    return Problem(K, d, n, 5e-4, lam_H, lam_b), Params(W, H.T, np.zeros(K))


@pytest.mark.parametrize("lam_H", [1e-7, 3.4e-9, 1e-11])
@pytest.mark.parametrize("lam_b", [5e-4, 0.0])
def test_the_features_of_a_network_are_not_flat(lam_H, lam_b):
    problem, point = network_like(4, 8, 40, lam_H, lam_b)
    eigenvalues = np.linalg.eigvalsh(hessian.dense(problem, point))
    found = hessian.inertia(problem, point)
    assert found.tolerance < lam_H / 2
    assert found.note == ""
    # λ_b = 0 leaves b + t1 flat; λ_H > 0 leaves nothing else.
    assert found.zero == int(lam_b == 0)
    assert found.negative == np.sum(eigenvalues < -found.tolerance)
    assert found.positive == np.sum(eigenvalues > found.tolerance)


@pytest.mark.long
def test_the_features_of_a_large_network_are_not_flat():
    problem, point = network_like(10, 64, 1000, 3e-9, 5e-4)
    found = hessian.inertia(problem, point)
    assert (found.zero, found.note) == (0, "")
    assert found.tolerance < 3e-9 / 2
    assert found[:2] == hessian.inertia(problem, point, tolerance=1e-9)[:2]


def draws(count, seed):
    """Random problems over twelve decades of each decay, and random points."""
    generator = np.random.default_rng(seed)
    for i in range(count):
        K, d, n = ((3, 2, 1), (2, 3, 1), (3, 3, 1), (2, 2, 2), (3, 1, 2))[i % 5]
        lam_W, lam_H, lam_b = 10 ** generator.uniform(-12, 0, 3)
        problem = Problem(K, d, n, lam_W, lam_H, lam_b if i % 3 else 0.0)
        point = laws.random_params(problem, i, 10 ** generator.uniform(-1, 0.7))
        if i % 4 == 0:
            point = point._replace(H=jnp.repeat(point.H[:, ::n], n, axis=1))
        yield problem, point


def exact_counts(eigenvalues, shift, tolerance):
    """(below, within, above), compared in 40 digits."""
    below = sum(v < mp.mpf(shift) - mp.mpf(tolerance) for v in eigenvalues)
    above = sum(v > mp.mpf(shift) + mp.mpf(tolerance) for v in eigenvalues)
    return below, len(eigenvalues) - below - above, above


@pytest.mark.parametrize("seed", [0, *(pytest.param(x, marks=pytest.mark.long) for x in (1, 2, 3))])
def test_counts_are_those_of_40_digits_whatever_the_decays(seed):
    for problem, point in draws(15, seed):
        precise = Precise(problem)
        eigenvalues = precise.eigenvalues(precise.lifted(point))
        found = hessian.inertia(problem, point)
        positive = [x for x in (problem.lam_W, problem.lam_H, problem.lam_b) if x > 0]
        assert bool(found.note) == (found.tolerance >= min(positive))
        if not found.note:
            assert found[:3] == exact_counts(eigenvalues, 0.0, found.tolerance)
        for value in map(float, eigenvalues[:: max(len(eigenvalues) // 4, 1)]):
            # The least tolerance that is taken, an eigenvalue an eighth of it beyond its edge.
            for k, side in itertools.product(range(60), (-1, 1)):
                tolerance = 1e-15 * 1.5**k
                shift = value + side * 1.125 * tolerance
                try:
                    found = hessian.inertia(problem, point, shift, tolerance)
                except ufm.Refused:
                    continue
                assert found[:3] == exact_counts(eigenvalues, shift, tolerance)
                break


def test_counts_without_any_decay_name_no_smallest_decay():
    problem = Problem(K=3, d=4, n=5, lam=0)
    assert hessian.inertia(problem, laws.random_params(problem, 0)).note == ""


def test_idle_dimensions_and_merged_samples_are_counted_although_the_core_is_coarse():
    # λ ≪ √ε ‖G‖: the core cannot tell λ from 0; what lies outside it has closed forms, and can.
    problem = Problem(K=3, d=5, n=4, lam_W=1e-10, lam_H=1e-10, lam_b=1e-10)
    narrow = laws.random_params(Problem(K=3, d=2, n=1, lam_W=1e-10, lam_H=1e-10), 1)
    W, H = np.zeros((3, 5)), np.zeros((5, 12))
    # One dimension that W does not see: λ_H is an eigenvalue of the H-block of the core.
    W[:, :1], H[:2] = narrow.W[:, :1], np.repeat(narrow.H, 4, axis=1)
    point = Params(*map(jnp.asarray, (W, H, np.zeros(3))))
    found, core = hessian.inertia(problem, point), reduction.reduce(problem, point)
    assert "exceeds the smallest decay 1e-10" in found.note
    values, multiplicities = (np.asarray(x) for x in reduction.outside(core))
    K, s = core.W.shape
    assert found.zero <= K * (s + 1) + core.H.size
    assert found.positive >= np.sum(multiplicities[values > 0])
    assert found.negative >= np.sum(multiplicities[values < 0])
    # At the origin there is no core but b.
    at_zero = hessian.inertia(problem, laws.zeros(problem))
    assert at_zero[:3] == (problem.d * (problem.K - 1), 0, problem.size - 10)
    assert at_zero.note == ""


@pytest.mark.parametrize("d", [1, 2])
def test_below_its_modes_the_squared_error_is_judged_by_its_closed_form(d):
    """The certificate bounds the problem of any width, whose minimum lies below."""
    problem = ufm.Problem(3, d, (6, 3, 1), 5e-3, 7e-3, bias=False, loss="SquaredError")
    point = ufm.theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    found = ufm.hessian.verdict(problem, point)
    assert found.gap > 1e-3
    assert found.kind == "global minimiser"
    assert "closed form of the squared error" in found.reason
    # Another set of as many modes, the smaller ones, is a saddle as before.
    T = np.eye(3)[:, ::-1][:, :d] if d == 1 else np.eye(3)[:, 1:]
    sigma = np.sqrt(np.array([6, 3, 1])) @ T
    s = np.sqrt(sigma - problem.N * problem.mu)
    tilt = (problem.lam_H / problem.lam_W) ** 0.25
    H = (T * s).T / np.sqrt(np.array([6, 3, 1])) / tilt
    other = ufm.Params(*map(jnp.asarray, (tilt * T * s, H[:, problem.labels], np.zeros(3))))
    assert ufm.hessian.verdict(problem, other).kind == "strict saddle"
