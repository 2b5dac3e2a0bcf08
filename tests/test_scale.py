"""Numbers of any size: certificates, norms and values hold from 1e-300 to 1e300, or are refused."""

import itertools
import json
import re

import jax
import jax.numpy as jnp
import laws
import ml_dtypes
import mpmath as mp
import numpy as np
import pytest
from precise import Precise

import ufm
import ufm.cli
from ufm import hessian
from ufm.certificate import certify
from ufm.linalg import scaling
from ufm.metrics import measures as metrics
from ufm.model.objective import decay, gradient_norm, norm
from ufm.model.problem import Params, Problem
from ufm.runs import values

BALANCED = {
    "narrowest": (Problem(K=3, d=2, n=2, lam_W=1, lam_H=1, lam_b=1), 4000),
    "two-classes": (Problem(K=2, d=1, n=1, lam_W=1, lam_H=1, bias=False), 3000),
    "wide": (Problem(K=4, d=5, n=2, lam_W=1, lam_H=1, lam_b=1), 3000),
}
SLOW = pytest.mark.long
UNPROVEN = [
    "unequal-counts-free-bias",
    pytest.param("narrow", marks=SLOW),
    pytest.param("unequal-counts", marks=SLOW),
    pytest.param("unequal-counts-no-bias", marks=SLOW),
]


def exact_minimum(problem, lam_W, lam_H):
    """f* of the closed form in 60 digits; 0, the infimum, without decay."""
    with mp.workdps(60):
        K, c = problem.K, mp.sqrt(problem.n * mp.mpf(float(lam_W)) * mp.mpf(float(lam_H)))
        if c == 0:
            return mp.mpf(0)
        if K * c >= 1:
            return mp.log(K)
        return -mp.log1p(-(K - 1) * c) + (K - 1) * c * mp.log(1 / c - (K - 1))


def any_decays(rng, count):
    """λ_W, λ_H, λ_b over the whole range, half of them near one another, some of them 0."""
    lam_W, apart, lam_b = 10.0 ** rng.uniform(-300, 300, (3, count))
    near = np.clip(lam_W * 10.0 ** rng.uniform(-8, 8, count), 1e-300, 1e300)
    moderate = np.clip(10.0 ** rng.uniform(-30, 2, count) / lam_W, 1e-300, 1e300)
    lam_H = np.choose(rng.integers(0, 3, count), [near, apart, moderate])
    usual = 10.0 ** rng.uniform(-6, 0, count)
    lam_b = np.choose(rng.integers(0, 3, count), [np.zeros(count), lam_b, usual])
    return np.where(rng.random(count) < 0.05, 0, lam_W), lam_H, lam_b


def simplices(problem, lam_W, lam_H, rng):
    """The closed form's minimisers, one for each pair of decays, in random orientations."""
    K, d, n, count = problem.K, problem.d, problem.n, len(lam_W)
    axes = np.linalg.svd(np.eye(K) - 1 / K)[0][:, : K - 1]
    turned = np.linalg.qr(rng.standard_normal((count, d, K - 1)))[0]
    rows = np.einsum("ka,mda->mkd", axes, turned)
    with np.errstate(all="ignore"):
        c = np.sqrt(n) * np.sqrt(lam_W) * np.sqrt(lam_H)
        t = np.log1p(np.maximum(1 - K * c, 0) / c)
        size_W = np.sqrt(t * np.sqrt(n)) * np.sqrt(np.sqrt(lam_H)) / np.sqrt(np.sqrt(lam_W))
        size_H = t / size_W
    there = np.isfinite(size_W) & np.isfinite(size_H)
    return there, [
        rows * np.where(there, size_W, 1)[:, None, None],
        np.repeat(rows.swapaxes(1, 2), n, axis=2) * np.where(there, size_H, 1)[:, None, None],
    ]


def any_points(problem, lam_W, lam_H, rng):
    """Minimisers as they are, perturbed, and out of balance; Gaussian points of every size."""
    count = len(lam_W)
    kind = rng.integers(0, 4, count)
    there, (W, H) = simplices(problem, lam_W, lam_H, rng)
    off = np.where(kind == 2, 10.0 ** rng.uniform(-12, 0.5, count), 0)
    tilt = np.where(kind == 3, 10.0 ** rng.uniform(-3, 3, count), 1)
    W, H = W * ((1 + off) * tilt)[:, None, None], H / tilt[:, None, None]
    product, size_W, size_H = 10.0 ** rng.uniform([[-20], [-200], [-200]], [[3], [200], [200]],
                                                  (3, count))  # fmt: skip
    size_H = np.where(rng.random(count) < 0.7, product / size_W, size_H)
    free = ((kind == 0) | ~there)[:, None, None]
    W = np.where(free, rng.standard_normal(W.shape) * size_W[:, None, None], W)
    H = np.where(free, rng.standard_normal(H.shape) * size_H[:, None, None], H)
    b = rng.standard_normal((count, problem.K)) * 10.0 ** rng.uniform(-20, 2, (count, 1))
    b = np.where((kind == 1)[:, None] & there[:, None], 0, b) * problem.bias
    return Params(W, H, b), (kind == 1) & there


@jax.jit
def certificates(problem, params):
    """Certificates of many points, each of a problem of its own."""
    return jax.vmap(certify)(problem, params)


# Certificates


@pytest.mark.parametrize(("shape", "count"), BALANCED.values(), ids=BALANCED.keys())
def test_no_certificate_exceeds_the_minimum_nor_the_value(shape, count):
    rng = np.random.default_rng(count)
    lam_W, lam_H, lam_b = any_decays(rng, count)
    params, minimal = any_points(shape, lam_W, lam_H, rng)
    problem = Problem(shape.K, shape.d, shape.n, lam_W, lam_H, lam_b, shape.bias)
    found = jax.tree.map(np.asarray, certificates(problem, params))
    # What `certify` refuses: f or its gradient beyond the numbers there are.
    finite = np.all(np.isfinite([found.value, found.grad_norm, found.resolution]), axis=0)
    assert np.mean(finite) > 0.7
    minima = [exact_minimum(shape, *pair) for pair in zip(lam_W, lam_H, strict=True)]
    for j in np.flatnonzero(finite):
        assert 0 <= found.lower_bound[j] <= minima[j]
        assert found.lower_bound[j] <= found.value[j]
        assert found.value[j] + found.resolution[j] >= minima[j]
        assert found.gap[j] == found.value[j] - found.lower_bound[j]
    # Tight at the minimisers, all over the range: their logits are known to a few ε of themselves.
    at = minimal & finite & (found.value > 1e-290)
    assert np.sum(at) > count // 20
    assert np.min(found.value[at]) < 1e-200
    assert np.all(found.gap[at] <= 1e-12 * found.value[at])


@pytest.mark.parametrize("name", UNPROVEN)
def test_no_certificate_exceeds_a_value_that_was_reached_for_decays_of_one_product(name):
    # f(sW, H/s, b) with (λ_W/s², λ_H s²) is f(W, H, b): one minimum for all of them.
    problem, count = laws.PROBLEMS[name], 400
    rng = np.random.default_rng(1)
    reached = ufm.solve(problem, laws.random_params(problem, 0, 0.5))
    assert reached.status == "converged"
    best = certify(problem, reached.params).value
    tilt = 2.0 ** rng.integers(-480, 480, count)
    lam_W, lam_H = problem.lam_W / tilt / tilt, problem.lam_H * tilt * tilt
    many = Problem(problem.K, problem.d, problem.n, lam_W, lam_H,
                   np.full(count, problem.lam_b), problem.bias)  # fmt: skip
    scale, tilt = (10.0 ** rng.uniform(-3, 1.5, count))[:, None, None], tilt[:, None, None]
    W, H, b = (rng.standard_normal((count, *x.shape)) for x in laws.random_params(problem))
    params = Params(W * scale * tilt, H * scale / tilt, b * problem.bias)
    found = jax.tree.map(np.asarray, certificates(many, params))
    assert np.all(np.isfinite(found.value))
    assert np.all(found.lower_bound <= best * (1 + 1e-13))
    assert np.all(found.lower_bound <= found.value)


@pytest.mark.parametrize(
    ("lams", "sizes"),
    [
        ((1e-200, 1e-200, 1e-200), (20, 20)),
        ((1e-200, 1e-200, 1e-3), (1e200, 1e-200)),
        ((1e300, 1e-300, 1.0), (1e-151, 1e151)),
        ((1e250, 1e250, 0.0), (1e-10, 1e10)),
        ((1e-3, 1e-3, 1e-3), (1e-170, 1e100)),
        ((0.0, 1e-250, 1e-3), (1e150, 1e-150)),
    ],
)
def test_values_and_gradients_are_right_at_extreme_points(lams, sizes):
    problem, rng = Problem(3, 2, 2, *lams), np.random.default_rng(0)
    W, H = (
        s * rng.standard_normal(shape) for s, shape in zip(sizes, ((3, 2), (2, 6)), strict=True)
    )
    params, exact = Params(W, H, rng.standard_normal(3)), Precise(problem)
    certificate = certify(problem, params)
    with mp.workdps(60):
        point = exact.lifted(params)
        value, slopes = exact.value(point), exact.gradient(point)
        slope = mp.sqrt(sum(x**2 for block in slopes for x in block))
    # Logits up to a few hundred are rounded by as many ε; losses follow them.
    np.testing.assert_allclose(certificate.value, float(value), rtol=1e-12)
    np.testing.assert_allclose(certificate.grad_norm, float(slope), rtol=1e-12)


def test_without_decay_a_nearly_certain_point_is_bounded_by_zero():
    # ‖G‖₂ is 1e-222: its square is no number.
    params = Params(np.array([[16.0], [-16.0]]), np.array([[16.0, -16.0]]), np.zeros(2))
    certificate = certify(Problem(2, 1, 1, 0.0, 0.0), params)
    assert 0 == certificate.lower_bound < certificate.value < 1e-220
    assert certificate.spectral_ratio == np.inf


def test_a_point_at_which_f_is_no_number_is_refused_in_words():
    huge = Params(1e200 * np.eye(3), 1e200 * np.eye(3), np.zeros(3))
    with pytest.raises(ufm.Refused, match=r"\|W\| up to 1e\+200.* f exceeds the largest float64"):
        certify(Problem(3, 3, 1, 1e-2, 1e-2), huge)


@pytest.mark.parametrize("name", ["lam_W", "lam_H", "lam_b"])
def test_decays_that_jax_takes_for_zero_are_refused(name):
    problem = Problem(3, 3, 1, **{"lam_W": 1e-3, "lam_H": 1e-3, "lam_b": 1e-3} | {name: 1e-310})
    with pytest.raises(ufm.Refused, match=f"got {name}=1e-310; allowed: 0, or at least 2.225e-308"):
        certify(problem, laws.random_params(problem))


# Norms


@pytest.fixture(params=[scaling.SMALL, 0], ids=["small", "large"])
def _limit(request, monkeypatch):
    """Norms as of small arrays and as of large ones."""
    monkeypatch.setattr(scaling, "SMALL", request.param)


@pytest.mark.usefixtures("_limit")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mapped", [False, True])
def test_norms_are_homogeneous_over_the_whole_range(dtype, mapped):
    info = np.finfo(dtype)
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(dtype)
    x *= np.where(np.abs(x) < 0.1, 0, 1).astype(dtype)  # all products are normal numbers
    powers = np.arange(info.minexp + 4, info.maxexp - 3, 7)
    many = [np.ldexp(x, k) for k in powers]
    of = jax.jit(lambda x: norm((x, x[:2])))
    found = jax.vmap(of)(np.array(many)) if mapped else [of(each) for each in many[::9]]
    expected = np.ldexp(of(x), powers if mapped else powers[::9])
    np.testing.assert_allclose(found, expected, rtol=4 * info.eps)


@pytest.mark.usefixtures("_limit")
def test_norms_of_nothing_and_of_infinities():
    assert norm((jnp.zeros(3), jnp.zeros((2, 2)))) == 0
    assert norm((jnp.array([1.0, jnp.inf]),)) == jnp.inf
    assert np.isnan(norm((jnp.array([1.0, jnp.nan]),)))


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_binade_is_the_power_of_two_below_the_largest_entry(xp, dtype):
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    for k in (info.minexp, -30, -1, 0, 7, 30, info.maxexp - 2):
        x = np.append(rng.uniform(-1, 1, 5), 1.0).astype(dtype)
        for top in (x, -1.9 * x):
            found = scaling.binade(xp, xp.asarray(np.ldexp(top.astype(dtype), k)))
            assert found == dtype(2.0**k)
            assert found.dtype == dtype
    # Its inverse is a normal number too.
    assert scaling.binade(xp, xp.asarray([info.max])) == dtype(2.0 ** (info.maxexp - 2))
    for odd in (0.0, np.inf, np.nan):
        assert scaling.binade(xp, xp.asarray([odd], dtype)) == 1


def test_decay_keeps_its_derivatives():
    problem, params = laws.PROBLEMS["free-bias"], laws.random_params(laws.PROBLEMS["free-bias"])
    by_lam, by_point = jax.grad(decay, (0, 1))(problem, params)
    halves = [0.5 * np.sum(np.square(x)) for x in params]
    np.testing.assert_allclose([by_lam.lam_W, by_lam.lam_H, by_lam.lam_b], halves, rtol=1e-14)
    np.testing.assert_allclose(by_point.W, problem.lam_W * params.W, rtol=1e-14)


@pytest.mark.parametrize("lam", [1e-300, 1e-160, 1e160, 1e300])
def test_a_descent_under_any_decay_records_numbers(lam, monkeypatch):
    problem = Problem(3, 4, 2, lam, lam, lam)
    params = ufm.init_params(0, problem, scale=0.5)
    run = ufm.descend(problem, params, "gd", steps=20, record_every=10)
    assert run.status == "step_limit"
    assert all(np.all(np.isfinite(column)) for column in run.history.values())
    first = float(gradient_norm(problem, params))
    np.testing.assert_allclose(run.history["grad_norm"][0], first, rtol=1e-14)
    monkeypatch.setattr(scaling, "SMALL", 0)
    np.testing.assert_allclose(gradient_norm(problem, params), first, rtol=1e-14)
    if lam > 1:  # ∇f is λx there
        np.testing.assert_allclose(first, lam * norm(params), rtol=1e-14)
        assert run.history["grad_norm"][-1] < 1e-6 * first


LOSSES = (
    "CrossEntropy", "CrossEntropy(smoothing=0.1)", "SquaredError", "BinaryCrossEntropy", "Focal",
    "LogitAdjusted(scale=[1,2,3])",
)  # fmt: skip


@pytest.mark.parametrize("lam_b", [0.0, 1e-2])
@pytest.mark.parametrize("loss", LOSSES)
def test_certificates_hold_whatever_the_classes_weigh(loss, lam_b):
    # Classes outweigh each other by more than their rounding, and c/√ω by 1e150.
    steep = (1e-100, 1.0, 9e99)
    for weights, decays in itertools.product((steep, (1e-17, 1, 1), (9e99,) * 3), repeat=2):
        problem = Problem(
            3, 4, (2, 900, 1), 1e-2, 1e-2, lam_b, loss=loss, weights=weights, decay_weights=decays
        )
        for scale in (0.0, 1.0, 300.0):
            found = certify(problem, ufm.init_params(0, problem, scale))
            assert np.all(np.isfinite(found))
            assert 0 <= found.lower_bound <= found.value
    with pytest.raises(ufm.Refused, match=r"weights\[0\]=1e-101; allowed: a finite number >= 1e-1"):
        Problem(3, 4, 2, lam=1e-2, weights=(1e-101, 1, 1))


@pytest.mark.parametrize("name", ["lam_W", "lam_H", "lam_b"])
def test_a_decay_that_is_infinite_in_the_precision_of_a_run_is_refused_by_name(name):
    problem = Problem(3, 4, 2, **({"lam_W": 1e-2, "lam_H": 1e-2, "lam_b": 1e-2} | {name: 1e40}))
    params = ufm.init_params(0, problem, dtype=jnp.float32)
    with pytest.raises(ufm.Refused, match=f"{name}=1e\\+40, which is infinite in float32"):
        ufm.descend(problem, params, "gd", steps=5)


# Precisions

WIDENED = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8": ml_dtypes.float8_e4m3fn,
    "longdouble": np.longdouble,
    "big-endian": ">f8",
}
JUDGES = {
    "certify": lambda problem, x: tuple(certify(problem, x)),
    "inertia": lambda problem, x: tuple(hessian.inertia(problem, x)[:3]),
    "extreme": lambda problem, x: np.asarray(hessian.extreme(problem, x, k=1).values).tolist(),
    "solve": lambda problem, x: ufm.solve(problem, x).residual,
    "verdict": lambda problem, x: hessian.verdict(problem, x).gap,
}


@pytest.mark.parametrize("dtype", WIDENED.values(), ids=WIDENED.keys())
def test_numbers_of_other_widths_are_judged_as_the_float64_numbers_that_they_are(dtype):
    problem = laws.PROBLEMS["d-is-K"]
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), laws.random_params(problem))
    same = jax.tree.map(lambda x: x.astype(np.float64), params)
    for name, judge in JUDGES.items():
        assert judge(problem, params) == judge(problem, same), name
    labels = problem.labels
    assert metrics.collapse(*params, labels) == metrics.collapse(*same, labels)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precisions_of_jax_are_measured_in_single_precision(dtype):
    *point, labels = (*laws.random_params(laws.PROBLEMS["d-is-K"]), laws.PROBLEMS["d-is-K"].labels)
    half = [x.astype(dtype) for x in point]
    measured = metrics.collapse(*half, labels)
    assert measured == metrics.collapse(*(x.astype(jnp.float32) for x in half), labels)
    assert measured.nc1.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, ">f8", np.longdouble])
def test_a_run_in_another_precision_is_refused_in_words(dtype):
    problem = laws.PROBLEMS["d-is-K"]
    params = jax.tree.map(lambda x: np.asarray(x).astype(dtype), laws.random_params(problem))
    with pytest.raises(ufm.Refused, match=r"allowed: float32 or float64.*cast them"):
        ufm.descend(problem, params, "gd", steps=5)


def test_half_precision_under_jit_is_refused_in_words():
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem, dtype=jnp.bfloat16)
    with pytest.raises(ufm.Refused, match="bfloat16; allowed: float32 or float64"):
        jax.jit(certify)(problem, params)


class Tensor:
    """What an array of another library looks like."""

    dtype, shape = "torch.float64", (3, 3)

    def detach(self):
        """As a tensor has it."""


class Sparse:
    """What a sparse matrix looks like."""

    dtype, shape = np.dtype(float), (3, 3)

    def toarray(self):
        """As a sparse matrix has it."""


@pytest.mark.parametrize(
    ("W", "mend"),
    [
        (Tensor(), "W.detach().cpu().double().numpy()"),
        (Sparse(), "W.toarray()"),
        (np.ma.masked_array(np.eye(3), mask=np.eye(3)), "W.filled(0.0)"),
        (np.eye(3, dtype=ml_dtypes.bfloat16).view("V2"), "save the array as float32"),
        ([[1.0]], "numpy.asarray(W, float)"),
    ],
    ids=["tensor", "sparse", "masked", "bfloat16 of a file", "list"],
)
def test_what_is_no_array_is_refused_with_the_way_out(W, mend):
    problem = laws.PROBLEMS["d-is-K"]
    params = laws.random_params(problem)._replace(W=W)
    with pytest.raises(ufm.Refused, match=re.escape(mend)):
        certify(problem, params)


# JSON


def strict(text):
    """JSON as the standard has it: no NaN, no Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_json_holds_null_where_a_number_is_not_finite():
    told = {
        "a": [np.float64("nan"), (np.inf, 1.5)],
        "b": {"c": -np.inf, "d": np.int32(3)},
        "e": "∞",
    }
    assert strict(values.text(told)) == {
        "a": [None, [None, 1.5]],
        "b": {"c": None, "d": 3},
        "e": "∞",
    }


@pytest.mark.parametrize("command", ["certify", "measure", "probe"])
def test_commands_print_json_where_numbers_are_infinite(command, tmp_path, capsys):
    path = tmp_path / "point.npz"
    lams = {"lam_W": 0.0 if command == "certify" else 1e-3, "lam_H": 1e-3, "lam_b": 0.0}
    labels, size = np.repeat(np.arange(3), 2), 1e200 if command == "measure" else 1.0
    np.savez(path, W=size * np.eye(3), H=size * np.eye(3)[:, labels], b=np.zeros(3), labels=labels,
             **lams)  # fmt: skip
    assert ufm.cli.main([command, str(path), "--json"]) == 0
    told = strict(capsys.readouterr().out)
    infinite = {"certify": "spectral_ratio", "measure": "nc4_mean_logit"}
    if command in infinite:
        assert told[infinite[command]] is None


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e-160])
def test_probe_judges_features_that_all_but_vanish(size, tmp_path, capsys):
    path, generator = tmp_path / "point.npz", np.random.default_rng(0)
    W, H = generator.standard_normal((3, 4)), size * generator.standard_normal((4, 6))
    np.savez(path, W=W, H=H, b=np.zeros(3), n=2, lam_W=1e-2, lam_H=1e-2, lam_b=1e-2)
    assert ufm.cli.main(["probe", str(path), "--json"]) == 0
    assert strict(capsys.readouterr().out)["verdict"] == "not critical"


def test_theory_prints_json_for_any_decays(capsys):
    for lam in ("1e-300", "1e300"):
        words = ["--K", "3", "--d", "4", "--n", "2", "--lam-W", lam, "--lam-H", lam, "--json"]
        assert ufm.cli.main(["theory", *words]) == 0
        told = strict(capsys.readouterr().out)
        assert told["is_collapsed"] == (lam == "1e300")
        assert told["value"] == pytest.approx(np.log(3) if lam == "1e300" else 0, abs=1e-290)
