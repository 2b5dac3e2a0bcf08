"""Every door takes an input at its value or refuses it in words: never a traceback, a NaN, a hang.

Inputs are drawn by hypothesis (`tests/odd.py`), the same ones in every run.
"""

import contextlib
import decimal
import io
import json
import math
import tempfile
import warnings
from pathlib import Path

import hypothesis
import jax.numpy as jnp
import numpy as np
import odd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ufm
from ufm import check, cli, losses
from ufm.descent import arguments, optimizers
from ufm.model import fixed, sphere
from ufm.model.problem import DECAYS
from ufm.sweeps.grid import PROBLEM, Grid, Plan


def examples(count: int) -> hypothesis.settings:
    """So many inputs, the same ones in every run."""
    return hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        # As drawn: to shrink a failure takes minutes where every shape is compiled.
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def outcome(call, *arguments, **named):
    """(what it returned, None), or (None, the message of its refusal)."""
    with warnings.catch_warnings():
        # NumPy warns when it casts what the test drew; the door itself must not need it.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return call(*arguments, **named), None
        except ufm.Refused as refused:
            message = str(refused)
            assert "got" in message, message
            return None, message


@examples(400)
@given(odd.anything)
def test_a_number_is_taken_at_its_value_or_refused(value):
    expected = odd.value_of(value)
    doors = [
        (lambda x: ufm.Problem(3, 4, 2, x, 1.0).lam_W, 0.0, math.inf),
        (lambda x: check.real("x", x, above=0, below=1), 5e-324, np.nextafter(1, 0)),
        (lambda x: Plan(scale=x).scale, 5e-324, math.inf),
    ]
    if value is not None:
        doors += [
            (lambda x: ufm.Problem(3, 4, 2, 1.0, 1.0, x).lam_b, 0.0, math.inf),
            (lambda x: ufm.Problem(3, 4, 2, lam=x).lam_H, 0.0, math.inf),
            (lambda x: arguments.tolerance("grad_tol", x), 5e-324, math.inf),
            (lambda x: optimizers.settings("heavy_ball", 1, x).momentum, 0.0, np.nextafter(1, 0)),
        ]
        if not callable(value):
            rate = lambda x: optimizers.settings("gd", x).learning_rate  # noqa: E731
            doors += [(rate, 5e-324, math.inf)]
    for door, least, most in doors:
        taken, refused = outcome(door, value)
        if isinstance(value, np.ndarray) and value.ndim:
            continue  # an array of decays, to be mapped over
        if expected is not None and least <= expected <= most:
            assert (taken, type(taken)) == (expected, float), refused
        else:
            assert refused is not None, taken


@examples(300)
@given(odd.anything)
def test_a_count_is_taken_at_its_value_or_refused(value):
    expected = odd.integer_of(value)
    doors = [
        (lambda x: ufm.Problem(x, 4, 2, 1, 1).K, 2, 2**52),
        (lambda x: ufm.Problem(3, x, 2, 1, 1).d, 1, 2**53),
        (lambda x: ufm.Problem(2, 4, [1, x], 1, 1).counts[1], 1, 2**53 - 1),
        (lambda x: Plan(steps=x).steps, 1, 2**31 - 1),
        (lambda x: Grid(seed=[x]).seed[0], 0, 2**32 - 1),
    ]
    for door, least, most in doors:
        taken, refused = outcome(door, value)
        if expected is not None and least <= expected <= most:
            assert taken == expected, refused
        else:
            assert refused is not None, taken


PARAMETERS = {
    "smoothing": (lambda x: losses.CrossEntropy(smoothing=x).smoothing, 0.0, np.nextafter(1, 0)),
    "gamma": (lambda x: losses.Focal(gamma=x).gamma, 0.0, math.inf),
    "own": (lambda x: losses.SquaredError(own=x).own, 5e-324, math.inf),
    "shift": (lambda x: losses.SquaredError(shift=x).shift, -math.inf, math.inf),
    "scale": (lambda x: losses.LogitAdjusted(scale=x).scale, 5e-324, math.inf),
    "weights": (
        lambda x: ufm.Problem(2, 1, 1, 1, 1, weights=[2, x]).weights[1],
        1e-100,
        np.nextafter(1e100, 0),
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
@examples(150)
@given(odd.anything)
def test_a_parameter_of_a_loss_is_taken_at_its_value_or_refused(name, value):
    door, least, most = PARAMETERS[name]
    expected = odd.value_of(value)
    taken, refused = outcome(door, value)
    if check.several(value) is not None:
        # One a class, or an array to be mapped over: then each of them is in range.
        each = [] if taken is None else np.ravel(np.asarray(taken, float)).tolist()
        assert refused or all(least <= x <= most for x in each)
    elif expected is not None and least <= expected <= most:
        assert (taken, type(taken)) == (expected, float), refused
    else:
        assert refused is not None, taken


@examples(200)
@given(
    st.sampled_from(["CrossEntropy", "SquaredError", "BinaryCrossEntropy", "Focal"]),
    st.lists(st.lists(odd.anything, min_size=2, max_size=2), min_size=2, max_size=2),
)
def test_a_target_matrix_is_taken_entry_by_entry_or_refused(loss, rows):
    def given_as(rows):
        return ufm.Problem(2, 2, 1, 1.0, 1.0, loss=loss, targets=rows).targets

    expected = [[odd.value_of(x) for x in row] for row in rows]
    taken, refused = outcome(given_as, rows)
    if refused is None:
        assert loss != "Focal"
        assert taken.tolist() == expected
    elif all(x is not None and 0 < x <= 1 for row in expected for x in row) and loss != "Focal":
        pytest.fail(refused)


UNIT = np.eye(2)
MATRICES = {
    "targets": lambda T: ufm.Problem(2, 2, 1, 1.0, 1.0, loss="SquaredError", targets=T),
    "shift": lambda m: losses.LogitAdjusted(shift=m),
    "W": lambda W: ufm.metrics.collapse(W, UNIT, None, [0, 1]),
    "H": lambda H: ufm.metrics.collapse(UNIT, H, None, [0, 1]),
    "b": lambda b: ufm.metrics.collapse(UNIT, UNIT, b[0], [0, 1]),
    "means": lambda M: ufm.metrics.collapse(UNIT, UNIT, None, [0, 1], means=M),
    "labels": lambda y: ufm.metrics.collapse(UNIT, UNIT, None, y[0]),
    "from_features": lambda H: ufm.Problem.from_features(UNIT, H, None, [0, 1], lam_W=1, lam_H=1),
    "fixed W": lambda W: fixed.classifier(ufm.Problem(2, 2, 1, 0.0, 1.0, fixed=("W",)), W),
    "sphere": lambda W: ufm.theory.sphere_bound(W, UNIT, 1.0),
}


@pytest.mark.parametrize("door", MATRICES)
def test_truth_values_among_numbers_are_no_numbers(door):
    # By itself NumPy takes [True, 0] for [1, 0].
    for rows in ([[1, 0], [0, 1]], ((1, 0), (0, 1)), [[decimal.Decimal(1), 0], [0, 1]]):
        assert outcome(MATRICES[door], rows)[1] is None
    for rows in ([[True, 0], [False, 1]], ((1, False), (0, True)), [[np.True_, 0], [0, 1]]):
        assert outcome(MATRICES[door], rows)[1] is not None


@examples(300)
@given(st.dictionaries(st.sampled_from(list(Grid.__dataclass_fields__)), odd.anything,
                       min_size=1, max_size=3))  # fmt: skip
def test_a_grid_is_cells_that_say_what_was_asked_or_a_refusal(axes):
    def cells(**axes):
        return Plan((Grid(**{"K": 3, "d": 2, "n": 2, "optimizer": "adam"} | axes),)).cells()

    found, refused = outcome(cells, **axes)
    if refused is not None:
        return
    for name, value in axes.items():
        if value is None and name in ("lam", *DECAYS):
            continue  # not given
        values = [value] if check.several(value) is None else list(value)
        free = next((x for x in DECAYS if axes.get(x) is None), "") if name == "lam" else name
        shown = {getattr(cell.problem if free in PROBLEM else cell, free) for cell in found}
        if name in ("lam", *DECAYS):
            assert shown == {float(x) for x in values}
        elif name in ("K", "d", "seed", "batch_size"):
            assert shown == {None if x is None else int(x) for x in values}


# Points


PROBLEMS = ((3, 2, (2, 1, 1)), (2, 3, 2))
MEMBERS = (
    "CrossEntropy", "CrossEntropy(smoothing=0.1)", "SquaredError", "SquaredError(own=3, shift=2)",
    "BinaryCrossEntropy", "Focal", "LogitAdjusted(scale=2)",
)  # fmt: skip
KINDS = ("global minimiser", "local minimiser", "strict saddle", "not critical", "undecided")
decays = st.one_of(st.just(0.0), odd.sizes.filter(math.isfinite))
corruptions = st.sampled_from(
    ["nothing"] * 6
    + [
        "nan",
        "inf",
        "transposed",
        "short",
        "absent",
        "list",
        "masked",
        "complex",
        "text",
        "swapped",
    ]
)
dtypes = st.sampled_from(
    [np.float64] * 4 + [np.float32, np.float16, np.longdouble, ">f8", jnp.bfloat16, np.int64]
)


@st.composite
def members(draw, K):
    """What makes a problem another member of the family: its loss, targets and weights."""
    weight = st.builds(lambda m, e: m * 10.0**e, st.floats(1, 9.9), st.integers(-99, 98))
    weights = st.none() | st.lists(weight, min_size=K, max_size=K)
    targets = st.none() | st.lists(
        st.lists(st.floats(0, 1), min_size=K, max_size=K), min_size=K, max_size=K
    )
    return {
        "loss": draw(st.sampled_from(MEMBERS)),
        "weights": draw(weights),
        "decay_weights": draw(weights),
        "targets": draw(targets),
    }


@st.composite
def points(draw, family=False):
    """(problem, params, whether somebody could mean it)."""
    K, d, n = draw(st.sampled_from(PROBLEMS))
    lams, bias = [draw(decays) for _ in range(3)], draw(st.booleans())
    problem = ufm.Problem(K, d, n, *lams, bias=bias)
    if family:
        made, _ = outcome(ufm.Problem, K, d, n, *lams, bias=bias, **draw(members(K)))
        problem = made or problem
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = draw(st.one_of(st.just((1.0, 1.0)), st.tuples(odd.sizes, odd.sizes)))
    dtype, make = draw(dtypes), draw(st.sampled_from([np.asarray, np.asarray, jnp.asarray]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        W, H, b = (
            make((scale * rng.normal(size=shape)).astype(dtype).astype(
                np.float64 if make is jnp.asarray and dtype in (np.longdouble, ">f8") else dtype))
            for scale, shape in zip((*scales, 1.0), ((K, d), (d, problem.N), (K,)), strict=True)
        )  # fmt: skip
    what = draw(corruptions)
    spoilt = {
        "nan": lambda: np.where(np.eye(*W.shape), np.nan, W),
        "inf": lambda: np.where(np.eye(*W.shape), np.inf, W),
        "transposed": lambda: np.asarray(W).T,
        "short": lambda: W[:1],
        "absent": lambda: None,
        "list": lambda: np.asarray(W).tolist(),
        "masked": lambda: np.ma.masked_array(np.asarray(W, float), mask=np.eye(*W.shape)),
        "complex": lambda: np.asarray(W) + 1j,
        "text": lambda: np.asarray(W, float).astype(str),
    }
    if what in spoilt:
        W = spoilt[what]()
    params = ufm.Params(H, W, b) if what == "swapped" else ufm.Params(W, H, b)
    return problem, params, what == "nothing"


def exact_value(problem, params):
    """f in long double, whose range is 1e±4932, by loops over the samples."""
    W, H, b = (np.asarray(x, np.float64).astype(np.longdouble) for x in params)
    if not problem.bias:
        b = np.zeros_like(b)
    total = np.longdouble(0)
    for i, y in enumerate(problem.labels):
        z = W @ H[:, i] + b
        z = z - np.max(z)
        total += np.log(np.sum(np.exp(z))) - z[y]
    lam_W, lam_H, lam_b = (np.longdouble(x) for x in (problem.lam_W, problem.lam_H, problem.lam_b))
    decay = lam_W * np.sum(W**2) + lam_H * np.sum(H**2) + (lam_b * np.sum(b**2))
    return total / problem.N + decay / 2


@examples(150)
@given(points(family=True))
def test_every_member_of_the_family_is_certified_by_numbers_or_refused(drawn):
    problem, params, sound = drawn
    proof, refused = outcome(ufm.certify, problem, params)
    if refused is None:
        assert sound
        assert all(math.isfinite(x) for x in proof[:4])
        assert 0 <= proof.lower_bound <= proof.value
        assert proof.spectral_ratio >= 0
    found, refused = outcome(ufm.hessian.verdict, problem, params)
    if refused is None:
        assert found.kind in KINDS
        assert math.isfinite(found.residual)
        assert math.isfinite(found.gap)


@examples(150)
@given(points())
def test_a_certificate_is_a_bound_or_a_refusal(drawn):
    problem, params, sound = drawn
    proof, refused = outcome(ufm.certify, problem, params)
    if refused is not None:
        return
    assert sound
    value = exact_value(problem, params)
    assert proof.value == pytest.approx(float(value), rel=1e-11, abs=1e-300)
    assert all(math.isfinite(x) for x in proof[:4])
    assert 0 <= proof.lower_bound <= proof.value
    assert proof.resolution <= 1e-12 * proof.value + 1e-300
    assert proof.spectral_ratio >= 0


@examples(100)
@given(points())
def test_a_verdict_is_one_of_five_with_numbers_or_a_refusal(drawn):
    problem, params, sound = drawn
    found, refused = outcome(ufm.hessian.verdict, problem, params)
    if refused is not None:
        return
    assert sound
    assert found.kind in KINDS
    assert math.isfinite(found.residual)
    assert math.isfinite(found.gap)
    if found.kind == "global minimiser":
        assert found.gap <= 1e-2 * float(exact_value(problem, params))


@examples(100)
@given(points())
def test_an_inertia_counts_every_eigenvalue_or_is_refused(drawn):
    problem, params, sound = drawn
    found, refused = outcome(ufm.hessian.inertia, problem, params)
    if refused is None:
        assert sound
        assert found.negative + found.zero + found.positive == problem.size
        assert min(found[:3]) >= 0


@examples(60)
@given(points(), st.floats(-3, 3), st.booleans())
def test_unit_vectors_are_certified_and_judged_or_refused(drawn, power, normed):
    """At any temperature; what is off the sphere, or no point at all, is refused."""
    problem, params, sound = drawn
    problem = ufm.Problem(
        problem.K, problem.d, problem.n, bias=False, features="sphere",
        loss=f"LogitAdjusted(scale={10**power})",
    )  # fmt: skip
    if normed and sound:
        with np.errstate(all="ignore"):
            params = outcome(sphere.project, params)[0]
    proof, refused = outcome(ufm.certify, problem, params)
    if refused is None:
        assert sound
        assert normed
        assert all(math.isfinite(x) for x in proof[:4])
        assert 0 <= proof.lower_bound <= proof.value
    found, refused = outcome(ufm.hessian.verdict, problem, params)
    if refused is None:
        assert found.kind in KINDS
        if found.kind == "global minimiser":
            assert found.gap <= 1e-6 * proof.value
    counts, refused = outcome(ufm.hessian.inertia, problem, params)
    if refused is None:
        assert sum(counts[:3]) == (problem.K + problem.N) * (problem.d - 1)


@pytest.mark.long
@examples(60)
@given(points())
def test_a_solution_is_numbers_or_a_refusal(drawn):
    problem, params, sound = drawn
    found, refused = outcome(ufm.solve, problem, params, steps=20, newton_steps=10)
    if refused is None:
        assert sound
        assert math.isfinite(found.residual)
        assert found.status in ("converged", "stalled", "step_limit")


@examples(150)
@given(points())
def test_measures_of_collapse_are_numbers_or_a_refusal(drawn):
    problem, (W, H, b), sound = drawn
    found, refused = outcome(ufm.metrics.collapse, W, H, b, problem.labels)
    if refused is None:
        assert sound or isinstance(W, list)  # of numbers: as good as an array here
        assert not any(math.isnan(float(x)) for x in found)


@examples(150)
@given(points(), st.sampled_from(["class", "sample"]), st.sampled_from([1, 2]))
def test_measures_of_batches_are_those_of_the_whole_or_a_refusal(drawn, mean, passes):
    problem, (W, H, b), sound = drawn

    def streamed():
        seen = ufm.metrics.Accumulator(W, b, mean=mean, passes=passes)
        for step in (seen.add, seen.again):
            for start in range(0, problem.N, 2):
                part = slice(start, start + 2)
                step(np.asarray(H)[:, part].T, problem.labels[part])
        return seen.collapse(), seen.detail()

    found, refused = outcome(streamed)
    if refused is None:
        assert sound or isinstance(W, list)
        assert not any(math.isnan(float(x)) for x in found[0])
        assert 0 <= found[1].within <= 1
        whole, refused = outcome(
            ufm.metrics.collapse, *(np.asarray(x, np.float64) for x in (W, H, b)), problem.labels,
            mean=mean,
        )  # fmt: skip
        assert refused is None
        for name in ("nc2_means", "nc3", "nc4"):
            assert getattr(found[0], name) == pytest.approx(getattr(whole, name), abs=1e-6)


@examples(150)
@given(points())
def test_other_measures_are_numbers_or_a_refusal(drawn):
    problem, (W, H, b), _ = drawn
    features = lambda: np.asarray(H).T  # noqa: E731
    calls = [
        lambda: list(ufm.metrics.generalised(W, ufm.metrics.Accumulator(W, b).add(
            features(), problem.labels).class_means)),
        lambda: list(ufm.metrics.one_vs_rest(W)),
        lambda: list(ufm.metrics.ood_cosines(W, features())),
        lambda: [ufm.metrics.effective_rank(features())],
        lambda: list(ufm.metrics.regression(W, features(), np.eye(problem.K)[problem.labels])),
    ]  # fmt: skip
    for call in calls:
        found, refused = outcome(call)
        if refused is None:
            assert not any(math.isnan(x) for x in found)


# Files and flags of the command


def command(*words):
    """(exit status, standard output) of `ufm`, in this process; anything raised is a fault."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as left:
            status = left.code
    return status, out.getvalue()


def strict(text):
    """JSON without NaN and Infinity, which are none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


ARRAYS = {
    "W": lambda rng: rng.normal(size=(3, 2)),
    "H": lambda rng: rng.normal(size=(2, 6)),
    "b": lambda rng: rng.normal(size=3),
    "labels": lambda rng: rng.permutation(np.repeat(np.arange(3), 2)),
    "lam_W": lambda rng: 10.0 ** rng.uniform(-4, -1),
    "lam_H": lambda rng: 10.0 ** rng.uniform(-4, -1),
    "lam_b": lambda rng: 10.0 ** rng.uniform(-4, -1),
}
HURTS = {
    "gone": lambda _: None,
    "nan": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 0, np.nan, x),
    "object": lambda x: np.array([x.tolist(), None], object)[:1].reshape(()),
    "transposed": lambda x: x.T if x.ndim > 1 else x[None],
    "short": lambda x: x[..., :1] if x.ndim else np.array([1.0, 2.0]),
    "text": lambda x: x.astype(str),
    "half": lambda x: x.astype(np.float16),
    "bool": lambda x: x > 0,
    "complex": lambda x: x + 1j,
    "negative": lambda x: -x - 1,
    "huge": lambda x: x * 1e300,
    "tiny": lambda x: x * 1e-300,
    "empty": lambda x: x[..., :0] if x.ndim else np.zeros(0),
    "long": lambda x: np.concatenate([x, x]) if x.ndim else np.array(x.astype(">f4")),
}


@examples(150)
@given(
    st.sampled_from(["certify", "measure", "probe"]),
    st.lists(st.tuples(st.sampled_from(list(ARRAYS)), st.sampled_from(list(HURTS))), max_size=2),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_a_file_is_read_at_its_value_or_refused(name, hurts, seed, counts):
    rng = np.random.default_rng(seed)
    arrays = {key: np.asarray(make(rng)) for key, make in ARRAYS.items()}
    arrays |= {"n": np.asarray(2)} if counts else {}
    with np.errstate(all="ignore"):
        for key, hurt in hurts:
            if arrays.get(key) is not None:
                # Hurt before, perhaps, in a way that this one does not fit.
                with contextlib.suppress(TypeError, ValueError, AttributeError):
                    arrays[key] = HURTS[hurt](arrays[key])
    arrays = {key: x for key, x in arrays.items() if x is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "point.npz"
        np.savez(path, **arrays)
        status, text = command(name, path, "--json")
    assert status in (0, 2)
    if status == 2:
        assert hurts
        return
    told = strict(text)
    if name == "measure":
        assert told["nc4"] is not None
    else:
        assert told["gap"] is not None


NUMBERS = "nan inf -inf -1 0 1 2 3 1e400 -0.0 1e-320 1e-9 1e9 0x10 1_000 3.0 1e3 2147483648"
OTHERS = "18446744073709551616 1000000000000 ١ ½ True None [] '' 10**3 auto λ"
WORDS = st.one_of(
    st.sampled_from(f"{NUMBERS} {OTHERS}".split()),
    odd.sizes.map(str),
    # Nothing between, which may be sound and take hours.
    st.one_of(st.integers(-10, 9), st.integers(2**20, 2**70)).map(str),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4),
)
MODEL = ("--K", "--d", "--n", "--lam-W", "--lam-H", "--lam-b")
FLAGS = {
    "theory": MODEL,
    "descend": (*MODEL, "--steps", "--learning-rate", "--momentum", "--batch-size", "--scale",
                "--seed", "--record-every", "--grad-tol", "--gap-tol", "--precision",
                "--checkpoint-seconds"),
    "census": (*MODEL, "--starts", "--rounds", "--seed"),
    "verify": ("--K", "--d", "--n", "--lam", "--ratio", "--lam-b", "--starts", "--rounds",
               "--escapes", "--seed"),
}  # fmt: skip
SMALL = {"--K": "2", "--d": "2", "--n": "1"}
CHEAP = {"theory": [], "descend": ["--optimizer", "gd", "--steps", "4", "--record-every", "2"]}


@examples(200)
@given(st.data())
def test_flags_are_taken_or_refused(data):
    name = data.draw(
        st.sampled_from(["theory", "theory", "descend", "descend", "census", "verify"])
    )
    flags = data.draw(st.lists(st.sampled_from(FLAGS[name]), min_size=1, max_size=2, unique=True))
    odd_words = {flag: data.draw(WORDS) for flag in flags}
    if name in ("census", "verify"):
        # A census is minutes of work where its input makes sense: one flag that never does.
        odd_words["--starts"] = "0"
    words = [x for pair in (SMALL | odd_words).items() for x in pair]
    # Later flags hold, so that what is cheap can be made odd.
    status, text = command(name, *CHEAP.get(name, []), *words, "--json")
    assert status in (0, 1, 2)
    if status == 0:
        strict(text)
