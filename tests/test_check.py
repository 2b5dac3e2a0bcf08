"""Checks take numbers of any library at their value, and refuse what is no number."""

import dataclasses
import decimal
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ufm
from ufm import check, cli
from ufm.descent import arguments, optimizers
from ufm.descent import run as descent
from ufm.sweeps import run as sweeps
from ufm.sweeps import toml
from ufm.sweeps.grid import Grid, Plan

HALVES = [
    0.5,
    np.float32(0.5),
    np.float16(0.5),
    np.longdouble("0.5"),
    np.array(0.5),
    np.array(0.5, ">f8"),
    np.ma.masked_array(0.5),
    decimal.Decimal("0.5"),
    fractions.Fraction(1, 2),
    jnp.float32(0.5),
    jnp.bfloat16(0.5),
]
TWOS = [2, np.int8(2), np.uint64(2), np.array(2), jnp.int32(2)]
NO_NUMBERS = [
    "0.5",
    b"1",
    "",
    None,
    True,
    np.True_,
    jnp.asarray(True),
    0.5j,
    np.complex128(0.5),
    np.datetime64("2020"),
    np.timedelta64(1),
    np.ma.masked,
    np.ma.masked_array(0.5, mask=True),
    [],
    [0.5],
    (0.5, 0.5),
    np.array([0.5], object),
    np.array("0.5"),
    {},
    ...,
    float("nan"),
    np.float32("nan"),
    decimal.Decimal("sNaN"),
    float("inf"),
    -np.inf,
    10**400,
    decimal.Decimal("1e400"),
]
PROBLEM = ufm.Problem(K=3, d=4, n=2, lam_W=5e-3, lam_H=5e-3, lam_b=1e-2)


@pytest.mark.parametrize("value", HALVES, ids=check.shown)
def test_a_real_number_of_any_library_is_taken_at_its_value(value):
    taken = check.real("x", value, least=0)
    assert type(taken) is float
    assert taken == 0.5
    assert ufm.Problem(3, 4, 2, value, value, value) == ufm.Problem(3, 4, 2, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("value", TWOS, ids=check.shown)
def test_an_integer_of_any_library_is_taken_at_its_value(value):
    assert type(check.integer("K", value, 2)) is int
    assert ufm.Problem(value, value, value, 1, value) == ufm.Problem(2, 2, 2, 1.0, 2.0)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=check.shown)
def test_what_is_no_finite_number_is_refused_at_every_door(value):
    doors = [
        lambda: check.real("x", value),
        lambda: ufm.Problem(3, 4, 2, value, 1e-2),
        lambda: Plan(scale=value),
        lambda: ufm.init_params(0, PROBLEM, scale=value),
    ]
    if value is not None:
        doors += [
            lambda: ufm.Problem(3, 4, 2, 1e-2, 1e-2, value),
            lambda: optimizers.settings("gd", value),
            lambda: optimizers.settings("heavy_ball", 0.1, value),
            lambda: Plan(gap_tol=value),
            lambda: arguments.tolerance("grad_tol", value),
        ]
    if check.several(value) is None and value is not None:
        doors += [lambda: Grid(lam_W=value), lambda: Grid(lam=value)]
    else:
        doors += [lambda: Grid(lam_W=[value])]
    for door in doors:
        with pytest.raises(ufm.Refused, match="allowed"):
            door()


@pytest.mark.parametrize(
    "value", [x for x in NO_NUMBERS if x is not None] + [0.5, 2.0, -1, 0], ids=check.shown
)
def test_what_is_no_count_is_refused_at_every_door(value):
    doors = [
        lambda: ufm.Problem(value, 4, 2, 1e-2, 1e-2),
        lambda: ufm.Problem(3, value, 2, 1e-2, 1e-2),
        lambda: ufm.Problem(3, 4, value, 1e-2, 1e-2),
        lambda: ufm.Problem(3, 4, [2, 2, value], 1e-2, 1e-2),
        lambda: Plan(steps=value),
        lambda: Grid(d=[value]),
        lambda: Grid(n=[[2, value]]),
        lambda: optimizers.settings("sgd", 0.1, batch_size=value),
    ]
    for door in doors:
        with pytest.raises(ufm.Refused, match="allowed"):
            door()


@pytest.mark.parametrize("value", [0, 1, 0.0, "true", None, [True], np.array([True])])
def test_a_flag_is_true_or_false(value):
    for door in (lambda: ufm.Problem(3, 4, 2, 1, 1, bias=value), lambda: Grid(bias=[value])):
        with pytest.raises(ufm.Refused, match="True or False"):
            door()
    assert ufm.Problem(3, 4, 2, 1, 1, bias=np.False_).bias is False


def test_sizes_are_held_against_memory_before_anything_is_allocated():
    for K, d, n in ((10**9, 2, 1), (3, 2, 10**12), (60_000, 60_000, 1), (2, 2**50, 1)):
        problem = ufm.Problem(K, d, n, 1e-3, 1e-3)
        with pytest.raises(ufm.Refused, match=r"GiB.*there are"):
            ufm.init_params(0, problem)
        with pytest.raises(ufm.Refused, match=r"GiB.*in the cell"):
            Plan((Grid(K=K, d=d, n=n),)).cells()
    with pytest.raises(ufm.Refused, match=r"labels .*GiB"):
        _ = ufm.Problem(2**31, 2, 2, 1e-3, 1e-3).labels
    with pytest.raises(ufm.Refused, match=r"GiB.*there are"):
        ufm.theory.global_minimizer(ufm.Problem(3, 10**15, 2, 1e-3, 1e-3), 0)
    with pytest.raises(ufm.Refused, match=r"GiB.*there are"):
        ufm.theory.geometry.simplex_etf(3, 10**15)
    with pytest.raises(ufm.Refused, match=r"GiB.*there are"):
        ufm.critical.census(ufm.Problem(3, 10**15, 2, 1e-2, 1e-2), 0, starts=2, rounds=1)
    # Nothing is allocated by closed forms.
    assert ufm.theory.global_value(ufm.Problem(3, 2, 10**12, 1e-8, 1e-8)) < np.log(3)
    with pytest.raises(ufm.Refused, match=r"2\^53"):
        ufm.Problem(3, 2, 10**30, 1e-3, 1e-3)


def test_keys_may_be_seeds_and_nothing_else():
    same = [0, np.int64(0), jnp.int32(0), jax.random.key(0), jax.random.PRNGKey(0)]
    drawn = [ufm.init_params(key, PROBLEM).W for key in same]
    assert all(np.array_equal(drawn[0], W) for W in drawn)
    for key in (-1, 2**32, 0.0, "0", None, True, jax.random.split(jax.random.key(0))):
        with pytest.raises(ufm.Refused, match="allowed"):
            ufm.init_params(key, PROBLEM)


@pytest.mark.parametrize(
    "call",
    [
        lambda _: ufm.certify(None, None),
        lambda x: ufm.certify(x, PROBLEM),
        lambda x: ufm.certify(PROBLEM, tuple(x)),
        lambda _: ufm.objective(PROBLEM, None),
        lambda _: ufm.hessian.inertia(PROBLEM, [1, 2, 3]),
        lambda x: ufm.descend(x, PROBLEM, steps=1),
        lambda x: jax.jit(lambda x: ufm.descend(PROBLEM, x, steps=1).params)(x),
        lambda x: ufm.descend(PROBLEM, x, steps=1, resume=5),
        lambda x: ufm.descend(PROBLEM, x, steps=1, resume={}),
        lambda x: ufm.descend(PROBLEM, x, steps=2**31),
        lambda x: ufm.descend(PROBLEM, x, steps=1, record_every=2**31),
        lambda x: ufm.descend(PROBLEM, x, optax.MultiSteps(optax.sgd(0.1), 2), steps=1),
        lambda x: ufm.descend(PROBLEM, x, 5, steps=1),
        lambda x: ufm.descend(PROBLEM, x, None, steps=1),
        lambda x: ufm.descend(PROBLEM, x, "gd", steps=1, learning_rate=np.array(-0.1)),
        lambda x: ufm.descend(PROBLEM, x, "gd", steps=1, learning_rate=[0.1]),
        lambda x: ufm.descend(PROBLEM, x, "sgd", steps=1, learning_rate=0.1, batch_size=2),
        lambda x: ufm.descend(PROBLEM, x, "sgd", steps=1, batch_size=7, key=0),
        lambda x: ufm.descend(
            dataclasses.replace(PROBLEM, lam_H=0.0), x, "gd", steps=1, learning_rate="safe"
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused_in_words(call):
    with pytest.raises(ufm.Refused, match=r"got .*|.*outside jit"):
        call(ufm.init_params(0, PROBLEM))


def test_a_run_of_another_method_is_no_run_to_go_on_from():
    params = ufm.init_params(0, PROBLEM)
    run = ufm.descend(PROBLEM, params, "gd", steps=5, learning_rate=0.1)
    for change in ({"optimizer": "heavy_ball", "learning_rate": 0.1}, {"optimizer": "lbfgs"}):
        with pytest.raises(ufm.Refused, match="resume"):
            ufm.descend(PROBLEM, params, steps=9, resume=run, **change)
    packed = descent.pack(run)
    del packed["history/loss"]
    with pytest.raises(ufm.Refused, match="history/loss"):
        ufm.descend(PROBLEM, params, "gd", steps=9, learning_rate=0.1, resume=packed)


# Sweeps


def test_axes_of_any_library_give_the_table_of_pythons_numbers():
    plain = Grid(
        K=3, d=4, n=[2, 5], lam_W=[1e-3, 1e-2], lam_H=1e-2, lam_b=0.5,
        optimizer="heavy_ball", learning_rate=0.5, momentum=0.25, seed=[0, 1],
    )  # fmt: skip
    other = Grid(
        K=np.int64(3), d=jnp.int32(4), n=np.array([2, 5]), lam_W=np.array([1e-3, 1e-2]),
        lam_H=decimal.Decimal("1e-2"), lam_b=np.float32(0.5), bias=np.True_,
        optimizer="heavy_ball", learning_rate=np.float32(0.5), momentum=fractions.Fraction(1, 4),
        seed=np.arange(2),
    )  # fmt: skip
    assert plain == other
    table = sweeps.sweep(Plan((plain,), steps=np.int64(20), record_every=10, gap_tol=None))
    again = sweeps.sweep(Plan((other,), steps=20, record_every=10, gap_tol=None))
    assert all(np.array_equal(table[name], again[name], True) for name in table
               if table[name].dtype.kind == "f")  # fmt: skip


def test_a_row_is_the_run_of_what_it_says():
    """The law behind every row: `descend` with the numbers of the row ends at its value."""
    table = sweeps.sweep(
        Plan(
            (
                Grid(K=3, d=4, n=5, lam_W=np.float32(1e-2), lam_H=np.logspace(-3, -2, 2),
                     optimizer="gd", learning_rate=np.float32(0.5)),
                Grid(K=3, d=4, n=[[1, 2, 3]], lam_b=decimal.Decimal("0.01"),
                     optimizer="nesterov", momentum=np.float16(0.5)),
                Grid(K=3, d=4, n=5, bias=False, optimizer="adam", learning_rate=None),
            ),
            steps=40, record_every=20, gap_tol=None,
        )
    )  # fmt: skip
    for i in range(len(table["cell"])):
        row = {name: x[i].item() for name, x in table.items()}
        counts = [int(x) for x in row["counts"].split()]
        sizes = row["K"], row["d"], counts if len(counts) > 1 else counts[0]
        lams = row["lam_W"], row["lam_H"], row["lam_b"]
        problem = ufm.Problem(*sizes, *lams, bias=row["bias"])
        start = jax.random.split(jax.random.key(row["seed"]))[0]
        run = ufm.descend(
            problem, ufm.init_params(start, problem), row["optimizer"], steps=40, record_every=20,
            learning_rate="auto" if row["auto"] else row["learning_rate"],
            momentum=None if np.isnan(row["momentum"]) else row["momentum"],
        )  # fmt: skip
        # Two programs of forty steps.
        np.testing.assert_allclose(row["value"], ufm.objective(problem, run.params), rtol=1e-10)
        if problem.balanced:
            assert row["f_star"] == ufm.theory.global_value(problem)


def test_counts_of_classes_in_a_grid_have_one_meaning(tmp_path):
    with pytest.raises(ufm.Refused, match=r"\[\[50, 10, 5\]\].*--n 50 10 5.*\[50\], \[10\], \[5\]"):
        Grid(K=[3, 4], n=[50, 10, 5])
    path = tmp_path / "grid.toml"
    path.write_text("K = 3\nn = [50, 10, 5]\n")
    with pytest.raises(ufm.Refused, match=r"grid.toml"):
        toml.read(path)
    assert [x.problem.n for x in Grid(K=3, n=[[50, 10, 5]]).cells()] == [(50, 10, 5)]
    assert [x.problem.n for x in Grid(K=3, n=np.array([[50, 10, 5]])).cells()] == [(50, 10, 5)]
    assert [x.problem.n for x in Grid(K=3, n=[[50], [10], [5]]).cells()] == [50, 10, 5]
    assert [x.problem.n for x in Grid(K=4, n=[50, 10, 5]).cells()] == [50, 10, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('lam_W = "1e-2"', "without quotes"),
        ('momentum = "0.5"\noptimizer = "heavy_ball"', "without quotes"),
        ("lam_W = [true]", "lam_W=True"),
        ("lam_W = 1e400", "lam_W=inf"),
        ("lam_W = nan", "lam_W=nan"),
        ("lam_W = 1979-05-27", "lam_W=datetime"),
        ("K = 3.0", "write 3"),
        ("steps = 1e4", "write 10000"),
        ("steps = 2147483648", "steps"),
        ("lr = 0.1", "Did you mean 'learning_rate'"),
        ("lambda = 0.1", "Did you mean 'lam'"),
        ("lam_W = " + "[" * 5000 + "]" * 5000, "no TOML"),
        ("seed = -1", "seed=-1"),
        ("n = 1000000000000", "GiB"),
        ("gap_tol = inf", "gap_tol=inf"),
        ("scale = inf", "scale=inf"),
        ('lam_W = 0.0\noptimizer = "gd"\nlearning_rate = "safe"', "safe"),
        ("\n".join(f"{name} = {[i / 200 for i in range(200)]}" for name in
                   ("lam_W", "lam_H", "lam_b")) + f"\nseed = {list(range(200))}",
         "1,600,000,000 cells"),
    ],
)  # fmt: skip
def test_a_file_of_odd_values_is_refused_in_words(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(ufm.Refused, match=message):
        toml.read(path).cells()


def test_a_plan_takes_no_file_that_would_block_or_is_none(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.toml")
    for name in ("pipe.toml", "", "absent.toml", "a\0b"):
        with pytest.raises(ufm.Refused, match="allowed"):
            toml.read(tmp_path / name)


def test_a_file_and_a_command_refuse_it_too(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text("K = 3\nd = 4\nn = 2\nlam_W = 1e-400\nsteps = 1\n")
    with pytest.raises(ufm.Refused, match="float64 takes for 0"):
        toml.read(tmp_path / "grid.toml")
    for words in (["--lam-W", "1e-400"], ["--lam-W=-1E-999"]):
        assert cli.main(["theory", "--K", "3", "--d", "4", "--n", "2", *words]) == 2
        assert "float64 takes for 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "values", [iter([1e-3]), {1e-3, 2e-3}, map(float, "12")], ids=["iterator", "set", "map"]
)
def test_an_axis_without_an_order_is_refused_with_the_way_out(values):
    with pytest.raises(ufm.Refused, match=r"give a list of them: list\(…\)"):
        Grid(K=3, d=4, n=5, lam_W=values)


@pytest.mark.parametrize(
    "tiny", [decimal.Decimal("1e-400"), fractions.Fraction(1, 10**400), decimal.Decimal("-1e-400")]
)
def test_a_number_that_float64_would_take_for_0_is_refused(tiny):
    with pytest.raises(ufm.Refused, match=r"float64 takes for 0|allowed: a finite number >= 0"):
        ufm.Problem(3, 4, 2, tiny, 1e-3)
    assert ufm.Problem(3, 4, 2, decimal.Decimal("1e-300"), fractions.Fraction(0)).lam_W == 1e-300
