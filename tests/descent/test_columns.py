"""Columns that a user adds to a history: what they hold, what they cost, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations

import ufm
from ufm import cli, hessian
from ufm.check import Refused
from ufm.descent import columns
from ufm.descent import run as descent
from ufm.descent.records import HISTORY
from ufm.runs import record

PROBLEM = ufm.Problem(K=4, d=5, n=6, lam_W=5e-3, lam_H=2e-3, lam_b=1e-2)
SHORT = {"steps": 25, "record_every": 10, "learning_rate": 0.5}


def start():
    return ufm.init_params(0, PROBLEM, 0.3)


def largest_logit():
    """Made anew by every call, with the same content."""
    return lambda _, params: jnp.max(params.W @ params.H + params.b[:, None])


def rank(_, params):
    """NumPy alone, which JAX cannot trace."""
    return np.linalg.matrix_rank(np.asarray(params.W))


def points():
    """The points at the records, each by a run that ends there."""
    return [
        ufm.descend(PROBLEM, start(), "gd", **SHORT | {"steps": t}).params for t in (10, 20, 25)
    ]


def test_a_column_is_its_function_at_every_record():
    mine, size = largest_logit(), lambda problem, params: problem.lam_W * jnp.sum(params.W**2)
    plain = ufm.descend(PROBLEM, start(), "gd", **SHORT)
    run = ufm.descend(
        PROBLEM, start(), "gd", **SHORT,
        record={"mine": mine, "size": size, "rank": ufm.host(rank), "index": "index"},
    )  # fmt: skip
    assert list(run.history) == [*HISTORY, "mine", "size", "rank", "index"]
    for name, x in plain.history.items():
        # One program in one call, another in four: the same steps, in other kernels.
        np.testing.assert_allclose(run.history[name], x, rtol=1e-10, atol=1e-13)
    for i, params in enumerate(points(), start=1):
        np.testing.assert_allclose(run.history["mine"][-4:][i], mine(PROBLEM, params), rtol=1e-12)
        expected = PROBLEM.lam_W * float(jnp.sum(params.W**2))
        np.testing.assert_allclose(run.history["size"][-4:][i], expected, rtol=1e-12)
        assert run.history["rank"][-4:][i] == rank(PROBLEM, params) == 4
        assert run.history["index"][-4:][i] == hessian.inertia(PROBLEM, params).negative


def test_least_eigenvalues_are_columns_by_name():
    names = ("lam_min", "lam_min_off_orbit")
    run = ufm.descend(PROBLEM, start(), "gd", **SHORT, record=names)
    assert tuple(columns.NAMED) == ("index", *names)
    for name, orbit in zip(names, (False, True), strict=True):
        expected = hessian.smallest(PROBLEM, run.params, orbit=orbit)
        np.testing.assert_allclose(run.history[name][-1], expected, rtol=1e-9)


def test_the_same_functions_compile_once_and_no_columns_are_the_old_program():
    ufm.descend(PROBLEM, start(), "gd", **SHORT)
    ufm.descend(PROBLEM, start(), "gd", **SHORT, record={"mine": largest_logit()})
    with compilations() as found:
        ufm.descend(
            PROBLEM, start(), "gd", **SHORT | {"steps": 90}, record={"mine": largest_logit()}
        )
        ufm.descend(PROBLEM, start(), "gd", **SHORT, record={})
        ufm.descend(PROBLEM, start(), "gd", **SHORT, record={"rank": ufm.host(rank)})
    assert not found


@pytest.mark.parametrize("name", ["gd", "lbfgs"])
def test_a_resumed_run_records_as_the_one_that_was_never_cut(name):
    rate = {} if name == "lbfgs" else {"learning_rate": 0.5}
    asked = {"record_every": 5, "record": {"mine": largest_logit(), "rank": ufm.host(rank)}} | rate
    whole = ufm.descend(PROBLEM, start(), name, steps=20, **asked)
    half = ufm.descend(PROBLEM, start(), name, steps=10, **asked)
    for resume in (half, descent.pack(half)):
        again = ufm.descend(PROBLEM, start(), name, steps=20, resume=resume, **asked)
        assert list(again.history) == list(whole.history)
        for column, x in whole.history.items():
            np.testing.assert_array_equal(again.history[column], x)
        for other in (
            None,
            {"mine": largest_logit()},
            {**asked["record"], "more": largest_logit()},
        ):
            with pytest.raises(Refused, match=r"records .*'mine', 'rank'"):
                ufm.descend(
                    PROBLEM, start(), name, steps=20, resume=resume, **asked | {"record": other}
                )


def test_a_diverged_run_has_columns_of_its_sound_records():
    record = {"mine": largest_logit(), "rank": ufm.host(rank)}
    run = ufm.descend(
        PROBLEM, start(), "gd", steps=100, record_every=10, learning_rate=1e4, record=record
    )
    assert run.status == "diverged"
    assert {len(x) for x in run.history.values()} == {len(run.history["step"])}
    assert np.all(np.isfinite(run.history["mine"]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gap": largest_logit()}, "'gap', which every run has"),
        ({"my column": largest_logit()}, "'my column'; allowed: letters"),
        ({"mine": lambda _, params: float(params.W[0, 0])}, r"cannot trace.*ufm\.host"),
        ({"mine": hessian.smallest}, r"cannot trace \(got traced.*ufm\.host"),
        ({"mine": lambda _, params: params.W}, "one real number"),
        ({"mine": lambda *_: "much"}, r"cannot trace.*ufm\.host"),
        ({"mine": ufm.host(lambda _, params: params.W)}, "one real number"),
        ({"mine": lambda _: 0.0}, "too many positional arguments"),
        ({"mine": "largest"}, "index, lam_min"),
        ("largest", "index, lam_min"),
        (5, "record=5; allowed: names"),
        ([largest_logit()], "allowed: names"),
    ],
)
def test_what_is_no_column_is_refused(asked, message):
    with pytest.raises(Refused, match=message):
        ufm.descend(PROBLEM, start(), "gd", **SHORT, record=asked)


def test_a_folder_carries_the_columns_and_refuses_others(tmp_path, capsys):
    command = [
        "descend",
        "--K",
        "3",
        "--d",
        "4",
        "--n",
        "5",
        "--steps",
        "20",
        "--record-every",
        "10",
        "--gap-tol",
        "None",
        "--optimizer",
        "gd",
        "--out",
    ]
    command += [str(tmp_path / "run")]
    assert cli.main([*command, "--record", "index", "lam_min"]) == 0
    assert "lam_min" in capsys.readouterr().out
    manifest, arrays = record.load_run(tmp_path / "run")
    assert manifest["config"]["record"] == ["index", "lam_min"]
    assert arrays["history/index"].shape == arrays["history/step"].shape
    assert cli.main([*command, "--record", "index"]) == 2
    assert "config.record" in capsys.readouterr().err
    assert cli.main([*command, "--record", "depth"]) == 2
    assert "allowed" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "plain")]) == 0
    # Folders that were written before there were columns are of the same run.
    assert "record" not in record.load_run(tmp_path / "plain").manifest["config"]


def test_in_float32_columns_are_float32():
    params = jax.tree.map(lambda x: x.astype(np.float32), start())
    run = ufm.descend(PROBLEM, params, "gd", **SHORT, record={"mine": largest_logit()})
    assert run.history["mine"].dtype == np.float32
