"""Scaled codes as candidates for minima below d = K−1."""

import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm import hessian, theory
from ufm.model.problem import Problem


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("mu", [1e-1, 1e-3, 1e-6])
def test_the_octahedron_has_the_value_of_one_variable(n, mu):
    problem = Problem(6, 3, n, mu, mu / n, bias=False)
    found = theory.code_minimum(problem)
    root = (1 / n) ** 0.5 * n**0.5  # √n μ with λ_H = μ/n is μ

    def f(r):
        return np.log1p(4 * np.exp(-r) + np.exp(-2 * r)) + 6 * mu * root * r

    best = scipy.optimize.minimize_scalar(f, bounds=(0, 60), method="bounded",
                                          options={"xatol": 1e-12})  # fmt: skip
    assert found.value == pytest.approx(min(best.fun, np.log(6)), rel=1e-9)


def test_a_simplex_has_the_global_value():
    problem = Problem(5, 4, 3, 2e-3, 7e-3, 1e-2)
    assert theory.code_minimum(problem).value == pytest.approx(
        float(theory.global_value(problem)), rel=1e-13
    )


@pytest.mark.parametrize(("K", "d"), [(7, 2), (6, 3), (12, 3), (8, 4)])
def test_the_point_has_the_value_and_is_a_critical_one_for_symmetric_codes(K, d):
    problem = Problem(K, d, 2, 1e-3, 3e-3, 1e-2)
    found = theory.code_minimum(problem)
    proof = ufm.certify(problem, found.params)
    assert float(ufm.objective(problem, found.params)) == pytest.approx(found.value, rel=1e-14)
    assert proof.lower_bound <= found.value
    assert proof.grad_norm <= 1e-14


def test_the_octahedron_is_a_local_minimum_below_all_that_descent_finds():
    problem = Problem(6, 3, 1, 2e-3, 2e-3, bias=False)
    found = theory.code_minimum(problem)
    assert hessian.verdict(problem, found.params).kind == "local minimiser"
    starts = [ufm.init_params(i, problem, 0.5) for i in range(6)]
    many = ufm.solve(problem, type(starts[0])(*(np.stack(x) for x in zip(*starts, strict=True))))
    values = [float(ufm.objective(problem, type(starts[0])(*x)))
              for x in zip(*many.params, strict=True)]  # fmt: skip
    assert min(values) == pytest.approx(found.value, rel=1e-12)


def test_of_unequal_classes_no_point_on_the_ray_is_lower():
    problem = Problem(5, 3, (4, 1, 1, 2, 7), 2e-3, 1e-3, weights=(1.0, 2.0, 1.0, 0.5, 1.0))
    found = theory.code_minimum(problem)
    W, H, _ = found.params
    assert float(ufm.objective(problem, found.params)) == pytest.approx(found.value, rel=1e-13)
    for s, t in ((1.01, 1.01), (0.99, 0.99), (1.02, 1 / 1.02), (0.98, 1 / 0.98)):
        moved = found.params._replace(W=s * W, H=t * H)
        assert float(ufm.objective(problem, moved)) > found.value


def test_beyond_the_threshold_the_origin_is_best():
    assert theory.code_minimum(Problem(6, 3, 1, 1.0, 1.0)).value == pytest.approx(np.log(6))


def test_the_claim_is_a_candidate_below_k_minus_1_alone():
    named = {c.name: c for c in theory.claims(Problem(6, 3, 1, 1e-3, 1e-3))}
    assert named["code"].status == "candidate"
    assert "2310.05351" in named["code"].source
    assert named["code"].fails is None
    assert "code" not in {c.name for c in theory.claims(Problem(4, 3, 1, 1e-3, 1e-3))}


def test_decays_whose_product_underflows_have_the_value_of_one_variable():
    """Octahedron at λ = 1e-200: 4e^{−r} = 6λ, and f = 4e^{−r} + 6λr to rounding."""
    lam = 1e-200
    found = theory.code_minimum(Problem(6, 3, 1, lam, lam, bias=False))
    r = np.log(4 / 6) - np.log(lam)
    assert found.scale == pytest.approx(r, rel=1e-12)
    assert found.value == pytest.approx(6 * lam * (1 + r), rel=1e-12)
