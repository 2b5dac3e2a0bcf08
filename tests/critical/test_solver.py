"""MINRES, the quotient problem, Newton's method and `solve`, held against dense linear algebra."""

import functools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import ufm
from ufm import hessian, theory
from ufm.check import Refused
from ufm.critical import downhill, newton, solver
from ufm.linalg.minres import minres
from ufm.losses import CrossEntropy, SquaredError
from ufm.model import quotient
from ufm.model.objective import gradient, logits, norm, objective
from ufm.model.points import init_params
from ufm.model.problem import Params, Problem
from ufm.theory import spectra

PROBLEMS = {
    "balanced": Problem(K=4, d=6, n=5, lam_W=5e-3, lam_H=2e-3, lam_b=1e-2),
    "wider-than-2K": Problem(K=3, d=9, n=2, lam_W=1e-2, lam_H=4e-3, lam_b=0.0),
    "narrow-no-bias": Problem(K=4, d=2, n=3, lam_W=3e-3, lam_H=3e-3, bias=False),
    "unequal": Problem(K=3, d=7, n=(1, 3, 2), lam_W=8e-3, lam_H=2e-3, lam_b=1e-2),
}
EACH = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


@functools.cache
def solved(name, seed=0):
    problem = PROBLEMS[name]
    return solver.solve(problem, laws.random_params(problem, seed, 0.3))


# MINRES


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(1, 3, 12),
        np.concatenate([np.linspace(-2, -0.5, 5), np.linspace(0.2, 4, 7)]),
        np.concatenate([np.zeros(4), np.linspace(-1, 2, 8)]),
        np.repeat([-1.0, 0.0, 2.0], 4),
        np.ones(12),
    ],
    ids=["definite", "indefinite", "singular", "three-values", "identity"],
)
def test_minres_finds_the_shortest_solution(values):
    generator = np.random.default_rng(3)
    Q, _ = np.linalg.qr(generator.standard_normal((12, 12)))
    A = jnp.asarray(Q @ np.diag(values) @ Q.T)
    b = A @ jnp.asarray(generator.standard_normal(12))
    found = minres(lambda v: A @ v, b, 1e-13, 200)
    shortest = np.linalg.pinv(A, rcond=1e-10) @ b
    # Condition numbers are at most 20: residuals of 1e-13 leave errors of 1e-12.
    np.testing.assert_allclose(found, shortest, rtol=0, atol=1e-11 * np.linalg.norm(shortest))


def test_minres_leaves_what_the_matrix_annuls():
    generator = np.random.default_rng(4)
    Q, _ = np.linalg.qr(generator.standard_normal((40, 40)))
    values = np.r_[np.zeros(8), np.geomspace(1e-3, 1, 32)]
    A = jnp.asarray(Q @ np.diag(values) @ Q.T)
    range_part, null_part = A @ jnp.asarray(generator.standard_normal(40)), jnp.asarray(Q[:, 0])
    # No x comes nearer to b than its part in the null space, a hundred times the tolerance.
    b = range_part + 1e-4 * jnp.linalg.norm(range_part) * null_part
    found = minres(lambda v: A @ v, b, 1e-6, 500)
    # ‖A r‖ ≤ 1e-7 ‖A‖ ‖r‖, ‖r‖ ≤ 2e-4 ‖b‖ and eigenvalues from 1e-3 on: the rest is 2e-8 ‖b‖.
    size = np.linalg.norm(b)
    np.testing.assert_allclose(A @ found, range_part, rtol=0, atol=2e-8 * size)
    assert np.linalg.norm(found) < 1e3 * size  # as ‖A⁻¹‖ on the range allows


def test_minres_returns_zero_for_zero_and_keeps_to_its_limit():
    A = jnp.diag(jnp.arange(1.0, 9.0))
    assert not np.any(minres(lambda v: A @ v, jnp.zeros(8), 1e-10, 50))
    one = minres(lambda v: A @ v, jnp.ones(8), 1e-10, 1)
    # The best multiple of b = 1 in the least-squares sense.
    image = A @ jnp.ones(8)
    np.testing.assert_allclose(one, jnp.sum(image) / jnp.sum(image**2), rtol=1e-14)


# The quotient


@EACH
def test_class_means_in_the_row_space_do_not_raise_the_objective(problem):
    for seed in range(3):
        params = laws.random_params(problem, seed)
        problem_, small, frame = quotient.restrict(problem, params)
        np.testing.assert_allclose(frame.T @ frame, np.eye(frame.shape[1]), atol=1e-14)
        assert quotient.smallest_size(problem) == problem_.size
        assert objective(problem_, small) <= objective(problem, params) * (1 + 1e-14)


@EACH
def test_lifting_keeps_value_and_length_of_the_gradient_in_every_class(problem):
    small, params, frame = quotient.restrict(problem, laws.random_params(problem, 4))
    lifted = quotient.lift(problem, params, frame)
    np.testing.assert_allclose(objective(problem, lifted), objective(small, params), rtol=1e-14)
    inner, outer = gradient(small, params), gradient(problem, lifted)
    np.testing.assert_allclose(norm(Params(outer.W, 0 * outer.H, outer.b)),
                               norm(Params(inner.W, 0 * inner.H, inner.b)), rtol=1e-12)  # fmt: skip
    # The slope along a class mean is the sum of the slopes along its samples.
    sums = quotient.class_means(problem, outer.H) * problem.counts
    if small.N == small.K:
        np.testing.assert_allclose(frame.T @ sums, inner.H, atol=1e-14)


# Newton's method and solve


@pytest.mark.parametrize(
    "name",
    [x if x == "unequal" else pytest.param(x, marks=pytest.mark.long) for x in PROBLEMS],
)
def test_a_solution_is_critical_at_rounding(name):
    problem, solution = PROBLEMS[name], solved(name)
    assert solution.status == "converged"
    assert solution.residual <= 4e-14 * solution.scale
    measured = float(norm(laws.slope(problem, solution.params)))
    assert measured == pytest.approx(solution.residual, abs=1e-15)
    laws.check_critical_point(problem, solution.params, atol=1e-13)


def test_random_starts_lead_to_the_global_minimum_of_theory():
    name = "balanced"
    for seed in range(3):
        value = float(objective(PROBLEMS[name], solved(name, seed).params))
        assert value == pytest.approx(theory.global_value(PROBLEMS[name]), abs=1e-14)


def test_newton_converges_quadratically_although_the_orbit_makes_the_hessian_singular():
    problem = quotient.of_width(PROBLEMS["balanced"], 6)
    minimum = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    start = jax.tree.map(jnp.add, minimum, laws.random_params(problem, 1, 0.02))
    residuals = np.asarray(newton.polish(problem, start).residuals)
    residuals = residuals[~np.isnan(residuals)]
    assert spectra.orbit_dimension(problem, 3) == 12
    late = residuals[residuals < 1e-2]
    assert len(late) >= 3
    # r⁺ ≤ C r² down to rounding; C is of the order of third derivatives over λ_min² ~ 1e4.
    assert np.all(late[1:] <= 1e4 * late[:-1] ** 2 + 1e-15)


@pytest.mark.parametrize("ratio", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("lam", [1e-7, 1e-9, 1e-12])
def test_descents_arrive_at_small_and_unequal_decays(lam, ratio):
    problem = Problem(3, 3, 2, lam * ratio**0.5, lam / ratio**0.5, lam)
    keys = jax.random.split(jax.random.key(0), 8)
    starts = jax.vmap(lambda key: init_params(key, problem, 1.0))(keys)
    found = ufm.solve(problem, starts)
    assert set(found.status) == {"converged"}
    least = theory.global_value(problem)
    values = jax.vmap(lambda x: objective(problem, x))(found.params)
    # 1e-14 of the terms that cancel, over λ of them, squared: far below 1e-6 of f down to 1e-10.
    np.testing.assert_allclose(values, least, rtol=1e-6)


@pytest.mark.parametrize("lams", [(1e-100, 1e-100), (1e-40, 1e-40), (1e-20, 1e-2), (1e-2, 1e-20)])
def test_descents_arrive_at_decays_near_the_end_of_all_numbers(lams):
    problem = Problem(3, 4, 2, *lams, lam_b=lams[0])
    found = ufm.solve(problem, init_params(jax.random.key(0), problem))
    assert found.status == "converged"
    value = float(objective(problem, found.params))
    assert value == pytest.approx(float(theory.global_value(problem)), rel=1e-6)


@pytest.mark.parametrize("lam", [1e-160, 1e-200, 1e-300])
def test_solutions_are_numbers_where_squares_of_the_gradient_vanish(lam):
    problem = Problem(3, 4, 2, lam, lam, lam)
    start = init_params(jax.random.key(0), problem)
    found = ufm.solve(problem, start)
    assert found.status in ("stalled", "step_limit", "converged")
    assert objective(problem, found.params) < 1e-100 < objective(problem, start)


def test_newton_steps_scale_with_the_decays():
    one = Problem(3, 2, 2, 2e-4, 1e-4, 1e-4)
    other = Problem(3, 2, 2, 2e-4 / 2**20, 1e-4 * 2**20, 1e-4)
    start = laws.random_params(one, 2)
    a, b = (
        ufm.solve(problem, Params(start.W * r, start.H / r, start.b), descend=False)
        for problem, r in ((one, 1), (other, 2**10))
    )
    assert (a.status, b.status) == ("converged", "converged")
    np.testing.assert_allclose(b.params.W / 2**10, a.params.W, rtol=0, atol=1e-9)
    np.testing.assert_allclose(b.params.H * 2**10, a.params.H, rtol=0, atol=1e-9)


@pytest.mark.long
def test_newton_alone_stays_at_a_saddle_and_finds_the_known_padded_ones():
    wide = Problem(K=10, d=16, n=20, lam_W=5e-3, lam_H=2.5e-4, lam_b=5e-3)
    # Values, indices and nullities of the saddles of rank r (independent computation).
    known = {1: (1.354744, 120, 15), 2: (0.627087, 98, 29), 4: (0.334789, 60, 54)}
    for rank, (value, index, nullity) in known.items():
        narrow = Problem(K=10, d=rank, n=20, lam_W=5e-3, lam_H=2.5e-4, lam_b=5e-3)
        keys = jax.random.split(jax.random.key(rank), 40)
        starts = jax.vmap(lambda key, narrow=narrow: init_params(key, narrow, 1.0))(keys)
        found = solver.solve(narrow, starts)
        values = np.asarray(jax.vmap(functools.partial(objective, narrow))(found.params))
        best = int(np.argmin(np.where(found.status == "converged", values, np.inf)))
        W, H, b = (x[best] for x in found.params)
        padded = Params(
            jnp.pad(W, ((0, 0), (0, 16 - rank))), jnp.pad(H, ((0, 16 - rank), (0, 0))), b
        )
        saddle = solver.solve(wide, padded, descend=False)
        assert saddle.status == "converged"
        assert float(objective(wide, saddle.params)) == pytest.approx(value, abs=1e-6)
        assert hessian.inertia(wide, saddle.params)[:2] == (index, nullity)


@EACH
def test_a_small_problem_is_solved_by_one_descent_or_by_newtons_method_to_the_same_point(
    problem, monkeypatch
):
    start = laws.random_params(problem, 1, 0.3)
    direct = solver.solve(problem, start)
    assert (direct.status, direct.newton_steps) == ("converged", 0)
    assert direct.residual <= 1e-14 * direct.scale
    # ‖∇f‖ of the class means, as before a Newton step.
    assert 0 < direct.residuals[0] <= 1e-13 * direct.scale
    assert np.isnan(direct.residuals[1:]).all()
    monkeypatch.setattr(solver, "_FEW", 0)
    by_newton = solver.solve(problem, start)
    assert by_newton.newton_steps > 0
    assert by_newton.descent_steps < direct.descent_steps
    # Two points of one orbit. Both have ∇f = 0 to 1e-14 of its terms, and 1/λ_min is some 1e3.
    ours, newtons = (logits(problem, found.params) for found in (direct, by_newton))
    np.testing.assert_allclose(ours, newtons, rtol=0, atol=1e-10)


def test_where_the_descent_ends_too_early_newtons_method_goes_on():
    """In the narrow valley of the squared error the last digits take L-BFGS thousands of steps."""
    problem = Problem(5, 8, 10, lam_W=1e-3, lam_H=1e-4, lam_b=1e-3, loss=SquaredError())
    found = solver.solve(problem, laws.random_params(problem, 0, 0.3))
    assert found.status == "converged"
    assert found.newton_steps > 0
    cut = solver.solve(problem, laws.random_params(problem, 0, 0.3), steps=30)
    assert cut.descent_steps == 30


@pytest.mark.parametrize("seed", range(3))
def test_the_narrow_valleys_of_small_decays_are_no_obstacle(seed):
    """At λ = 1e-7 along (WA, A⁻¹H), which Newton's method took a hundred steps without getting to.

    The valley is followed before, in coordinates in which the decays are equal.
    """
    problem = Problem(4, 6, 5, 1e-7, 1e-7, 1e-7, loss=SquaredError(own=3, shift=2))
    found = solver.solve(problem, init_params(seed, problem, scale=0.5))
    assert (found.status, found.newton_steps <= 5) == ("converged", True)
    proof = ufm.certify(problem, found.params)
    assert proof.gap <= 1e-6 * proof.value


@pytest.mark.parametrize("features", ["free", "nonnegative"])
@pytest.mark.parametrize("loss", [CrossEntropy(), SquaredError()], ids=["labels", "squared"])
@pytest.mark.parametrize("size", [1e8, 1e10])
def test_a_start_without_digits_of_its_gradient_is_no_critical_point(size, loss, features):
    """Logits beyond 1e16 leave none: the rounding of ∇f is then no reason to have converged."""
    problem = Problem(3, 4, 2, 1e-3, 1e-3, 1e-3, loss=loss, features=features)
    found = solver.solve(problem, init_params(0, problem, scale=size))
    assert found.residual <= 1e-6 * found.scale or found.status == "stalled"
    if loss == CrossEntropy():
        assert found.status == "converged"
        assert hessian.verdict(problem, found.params).kind != "undecided"


def test_where_the_gradient_overflows_it_says_so():
    problem = Problem(3, 4, 2, lam_W=1e250, lam_H=1e-3, lam_b=1e-3)
    with pytest.raises(Refused, match="no float64 number"):
        solver.solve(problem, laws.random_params(problem, 0, 1e149))


def test_many_starts_are_each_solved_as_if_alone():
    problem = PROBLEMS["balanced"]
    starts = [laws.random_params(problem, seed, 0.3) for seed in range(3)]
    together = solver.solve(problem, jax.tree.map(lambda *x: jnp.stack(x), *starts))
    assert list(together.status) == ["converged"] * 3
    for i, start in enumerate(starts):
        alone = solver.solve(problem, start)
        difference = norm(jax.tree.map(lambda x, y, i=i: x[i] - y, together.params, alone.params))
        # The same descent but for rounding, amplified by at most 1/λ_min of some 1e3.
        assert float(difference) < 1e-6


def test_a_float32_start_is_solved_in_float64_whatever_the_configuration():
    problem = PROBLEMS["balanced"]
    with jax.enable_x64(False):
        solution = ufm.solve(problem, init_params(jax.random.key(0), problem))
    assert solution.params.W.dtype == np.float64
    assert solution.status == "converged"


def test_large_problems_take_steps_by_minres():
    problem = Problem(K=30, d=45, n=3, lam_W=1e-3, lam_H=3e-4, lam_b=1e-3)
    assert quotient.of_width(problem, 45).size > newton.DENSE_SIZE
    minimum = theory.global_minimizer(problem, jax.random.key(0), jnp.float64)
    start = jax.tree.map(jnp.add, minimum, laws.random_params(problem, 1, 1e-3))
    solution = solver.solve(problem, start, descend=False)
    assert solution.status == "converged"
    value = float(objective(problem, solution.params))
    assert value == pytest.approx(theory.global_value(problem), abs=1e-13)


def test_a_search_that_is_cut_short_says_so():
    problem = PROBLEMS["balanced"]
    start = laws.random_params(problem, 2, 1.0)
    cut = solver.solve(problem, start, descend=False, newton_steps=1)
    assert cut.status == "step_limit"
    assert cut.newton_steps == 1
    assert cut.residual > 1e-14 * cut.scale


def test_the_neighbourhood_of_the_origin_is_not_taken_for_the_origin():
    problem = PROBLEMS["balanced"]
    near = jax.tree.map(lambda x: 1e-9 * x, laws.random_params(problem, 0, 1.0))
    small, params, _ = quotient.restrict(problem, near)
    untouched = newton.polish(small, params, 1)
    # ‖∇f‖ is some 1e-9 there, but not small beside the terms that cancel at a critical point.
    assert float(untouched.residuals[0]) < 1e-8
    assert int(untouched.steps) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, x: (p, x, {"descend": "no"}), "True or False"),
        (lambda p, x: (p, x, {"steps": 0}), "got steps=0"),
        (lambda p, x: (p, x, {"newton_steps": 0}), "got newton_steps=0"),
        (lambda p, x: (Problem(p.K, p.d, p.n, 5e-3, 0.0), x, {}), "got lam_H=0.0"),
        (lambda p, x: (p, x._replace(H=x.H.T), {}), "columns of H are samples"),
        (lambda p, x: (p, x._replace(W=x.W[None]), {}), "one leading axis"),
        (lambda p, x: (p, x._replace(W=x.W.at[0, 0].set(jnp.nan)), {}), "non-finite entries in W"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(change, message):
    problem, params, options = change(
        PROBLEMS["balanced"], laws.random_params(PROBLEMS["balanced"])
    )
    with pytest.raises(ValueError, match=message):
        solver.solve(problem, params, **options)


def test_arrays_of_decays_are_refused():
    problem = Problem(4, 6, 5, np.array([1e-3, 2e-3]), 1e-3)
    with pytest.raises(TypeError, match="a problem at a time"):
        solver.solve(problem, laws.random_params(problem))


@pytest.mark.parametrize("counts", [3, (1, 2, 5) * 4])
def test_minres_ends_a_descent_where_a_factorisation_would(counts):
    """Of more variables than are factorised at once: 12 classes, 11 dimensions, one column each."""
    problem = Problem(12, 11, counts, lam_W=2e-3, lam_H=1e-3, lam_b=1e-3)
    found = solver.solve(problem, laws.random_params(problem, 0, 0.3))
    assert found.status == "converged"
    ahead = solver.solve(problem, found.params, descend=False)
    assert ahead.newton_steps == 0
    moved = laws.random_params(problem, 1, 1e-6)
    back = solver.solve(problem, jax.tree.map(jnp.add, found.params, moved), descend=False)
    assert back.status == "converged"
    assert float(objective(problem, back.params)) == pytest.approx(
        float(objective(problem, found.params)), rel=0, abs=1e-15
    )


def test_where_minres_stalls_the_matrix_is_factorised(monkeypatch):
    """For some of many starts, and for one."""
    problem = Problem(11, 10, 2, lam_W=2e-3, lam_H=1e-3, lam_b=1e-3)
    starts = jax.vmap(lambda key: init_params(key, problem))(jax.random.split(jax.random.key(0), 3))
    expected = solver.solve(problem, starts)

    def given_up(problem, params, limit):
        """At the second start and all others of its sign."""
        good, found = newton.polish(problem, params, limit), newton.polish(problem, params, 0)
        found = found._replace(status=jnp.int32(newton.Arrival.stalled))
        stalls = params.W[0, 0] * starts.W[1, 0, 0] > 0
        return jax.tree.map(lambda x, y: jnp.where(stalls, x, y), found, good)

    monkeypatch.setattr(newton, "refine", given_up)
    found = solver.solve(problem, starts)
    assert found.status.tolist() == expected.status.tolist() == ["converged"] * 3
    values = [jax.vmap(lambda x: objective(problem, x))(s.params) for s in (found, expected)]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-15)
    assert np.all(found.newton_steps > 0)
    monkeypatch.setattr(solver, "_FEW", 0)  # else L-BFGS goes to rounding by itself
    one = solver.solve(problem, jax.tree.map(lambda x: x[1], starts))
    assert (one.status, one.newton_steps > 0) == ("converged", True)


def test_a_descent_begun_in_float32_ends_at_the_minimum_to_the_same_digits(monkeypatch):
    """In fewer steps of float64 than without; to rounding, as any other solution."""
    problem = Problem(12, 11, 2, lam_W=2e-3, lam_H=1e-3, lam_b=1e-3)
    start = laws.random_params(problem)
    plain = solver.solve(problem, start)
    monkeypatch.setattr(solver, "_VERY_MANY", 100)
    found = solver.solve(problem, start)
    assert found.status == "converged"
    assert found.params.W.dtype == jnp.float64
    least = float(theory.global_value(problem))
    assert float(objective(problem, found.params)) == pytest.approx(least, rel=0, abs=1e-14)
    with jax.enable_x64(True):
        rough, taken, _ = jax.jit(downhill.in_float32)(problem, start, 10_000)
    assert 0 <= found.descent_steps - taken < plain.descent_steps
    slope = norm(gradient(problem, rough))
    G = newton.terms.data_gradient(problem, rough)
    assert slope <= 1e-5 * newton.scale(problem, rough, G)
    cut = solver.solve(problem, start, steps=60)
    assert cut.descent_steps <= 60


@pytest.mark.parametrize(
    ("size", "lam", "d", "falls"),
    [
        (1e60, 1e-3, 5, False),
        (1e-60, 1e-3, 2, False),
        (1e-60, 1e-3, 5, True),
        (1e-3, 1e-60, 5, True),
    ],
)
def test_what_float32_cannot_hold_is_left_to_float64(size, lam, d, falls):
    """Points beyond its range: the descent starts where it would without it. Else f falls.

    From the origin, where 1e-60 is rounded to, it falls by a step on the products for d ≥ K − 1.
    """
    problem = Problem(4, d, 2, lam_W=lam, lam_H=lam, lam_b=lam)
    start = laws.random_params(problem, scale=size)
    with jax.enable_x64(True):
        rough, taken, _ = jax.jit(downhill.in_float32)(problem, start, 300)
    if falls:
        assert taken > 0
        assert objective(problem, rough) < objective(problem, start)
    else:
        assert taken == 0
        assert all(np.array_equal(x, y) for x, y in zip(rough, start, strict=True))
