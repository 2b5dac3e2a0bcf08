"""The command line: what it prints, what it refuses, and that a killed run ends the same."""

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import ufm
from ufm import cli
from ufm.runs import record

DECAYS = ("lam_W", "lam_H", "lam_b")
SMALL = ["--K", "3", "--d", "4", "--n", "5", "--lam-W", "5e-3", "--lam-H", "5e-3"]


def run(capsys, *arguments):
    """Exit status, standard output and standard error of one command."""
    status = cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_theory_prints_the_closed_form(capsys):
    status, out, _ = run(capsys, "theory", *SMALL, "--json")
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-4)
    got = json.loads(out)
    assert status == 0
    assert got["value"] == ufm.theory.global_value(problem)
    assert got["threshold"] == pytest.approx(9 * 5 * 25e-6)
    assert got["condition_number"] == ufm.theory.condition_number(problem)
    assert got["gd_rate"] == pytest.approx(1 - 2 / (got["condition_number"] + 1))
    assert got["is_collapsed"] is False
    failing = [one["name"] for one in got["claims"] if one["fails"] is not None]
    assert failing == ["SELI"]  # which is of models without a bias


@pytest.mark.parametrize(
    ("arguments", "assumption"),
    [
        (("--d", 3), "d >= K-1 (got d=3, K-1=9)"),
        (("--lam-H", 0), "lam_W, lam_H > 0 (got lam_W=0.0005, lam_H=0.0)"),
        (("--K", 3, "--d", 1, "--n", 3), "d >= K-1 (got d=1, K-1=2)"),
    ],
)
def test_theory_names_the_assumption_that_fails_and_leaves_out_the_closed_form(
    capsys, arguments, assumption
):
    status, out, _ = run(capsys, "theory", *arguments, "--json")
    got = json.loads(out)
    assert (status, set(got)) == (0, {"claims"})
    assert got["claims"][0]["fails"] == assumption
    status, out, _ = run(capsys, "theory", *arguments)
    assert status == 0
    assert "What is known" in out
    assert "closed form" not in out


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ufm.cli", "theory", *SMALL, "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def process(*arguments, redirect="", **environment):
    """Exit status, standard output and standard error of the command as a process of its own."""
    words = [sys.executable, "-m", "ufm.cli", *map(str, arguments)]
    line = f"exec {' '.join(words)} {redirect}"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, errors="replace",
        env=os.environ | environment, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirect", "status", "said"),
    [
        (">&-", 0, ""),
        ("<&- 2>&-", 0, ""),
        (">/dev/full", 1, "ufm: could not write the output: No space left on device\n"),
    ],
)
def test_a_terminal_that_is_closed_or_full_is_no_fault_of_the_program(redirect, status, said):
    assert process("theory", *SMALL, redirect=redirect)[::2] == (status, said)


@pytest.mark.parametrize("letters", ["ascii", "latin-1"])
def test_a_terminal_without_greek_letters_shows_their_codes(letters):
    status, out, err = process("theory", *SMALL, PYTHONIOENCODING=letters)
    assert (status, err) == (0, "")
    assert "\\u03bb_W" in out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_PLATFORMS", "nonsense"),
        ("JAX_PLATFORMS", "cuda"),
        ("JAX_ENABLE_X64", "perhaps"),
        ("JAX_DEBUG_NANS", "1"),
    ],
)
def test_settings_with_which_jax_does_not_work_are_refused_in_a_line(name, value):
    if value == "cuda" and jax.default_backend() != "cpu":
        value = "nonsense"
    diverging = ("--optimizer", "gd", "--learning-rate", "1e5", "--steps", "500")
    status, _, err = process("descend", *SMALL, *diverging, **{name: value})
    last = err.splitlines()[-1]
    assert status == 2
    assert "Traceback" not in err
    assert last.startswith("ufm: got JAX_")  # beside those that all tests are run with
    assert name in last.partition("allowed: ")[0]
    assert "allowed: " in last


@pytest.mark.slow
def test_a_setting_of_jax_that_is_the_commands_own_affair_is_overruled():
    line = ("descend", *SMALL, "--steps", "20", "--json")
    assert process(*line, JAX_NUMPY_RANK_PROMOTION="raise")[0] == 0


def test_a_working_folder_that_is_gone_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"cd {gone}; rmdir {gone}; exec {sys.executable} -m ufm.cli theory"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        line, shell=True, capture_output=True, check=False, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.returncode, b"working folder is gone" in done.stderr) == (2, True)


def test_a_start_where_f_is_infinite_is_refused_before_a_folder_is_made(capsys, tmp_path):
    line = ("descend", *SMALL, "--scale", "1e200", "--out", tmp_path / "run")
    status, _, err = run(capsys, *line)
    assert status == 2
    assert "Lower its scale" in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_at_once_is_reported_as_diverged(capsys, tmp_path):
    method = ("--optimizer", "gd", "--learning-rate", "1e300", "--steps", "5")
    line = ("descend", *SMALL, *method, "--out", tmp_path / "run")
    for _ in range(2):  # computed, then read
        status, out, _ = run(capsys, *line)
        assert status == 1
        assert "diverged" in out
    results = record.load_run(tmp_path / "run").manifest["results"]
    assert (results["status"], results["steps"]) == ("diverged", 0)


def test_descend_keeps_a_run_that_certify_reads(capsys, tmp_path):
    folder = tmp_path / "run"
    status, out, _ = run(capsys, "descend", *SMALL, "--out", folder, "--json")
    results = json.loads(out)
    assert (status, results["status"]) == (0, "certified")
    status, out, _ = run(capsys, "certify", folder, "--json")
    assert status == 0
    assert json.loads(out)["gap"] == results["gap"]
    assert results["gap"] <= 1e-8
    assert {"history/loss", "W", "H", "b"} <= record.load_run(folder).arrays.keys()


def test_a_damaged_run_is_refused_and_left_as_it_is(capsys, tmp_path):
    folder = tmp_path / "run"
    run(capsys, "descend", *SMALL, "--out", folder)
    damaged = (folder / "arrays.npz").read_bytes()[:-20]
    (folder / "arrays.npz").write_bytes(damaged)
    status, _, err = run(capsys, "certify", folder)
    assert status == 2
    assert "arrays.npz" in err
    assert (folder / "arrays.npz").read_bytes() == damaged


def test_a_finished_run_is_reported_and_not_computed_again(capsys, tmp_path):
    first = run(capsys, "descend", *SMALL, "--out", tmp_path / "run", "--json")
    stamp = (tmp_path / "run" / "manifest.json").read_bytes()
    second = run(capsys, "descend", *SMALL, "--out", tmp_path / "run", "--json")
    assert second[:2] == first[:2]
    assert "already holds this finished run" in second[2]
    assert (tmp_path / "run" / "manifest.json").read_bytes() == stamp


def test_another_config_in_the_same_folder_is_refused_by_field(capsys, tmp_path):
    run(capsys, "descend", *SMALL, "--out", tmp_path / "run")
    status, _, err = run(capsys, "descend", *SMALL, "--scale", 0.2, "--out", tmp_path / "run")
    assert status == 2
    assert "config.scale: got 0.2, kept 0.1" in err


def test_a_diverged_run_is_kept_and_has_its_own_exit_status(capsys, tmp_path):
    arguments = ("--optimizer", "gd", "--learning-rate", 1000.0, "--out", tmp_path / "run")
    status, out, _ = run(capsys, "descend", *SMALL, *arguments)
    assert status == 1
    assert "diverged" in out
    assert np.all(np.isfinite(record.load_run(tmp_path / "run").arrays["H"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("descend", "--K", 1), "got K=1"),
        (("descend", "--lam-W", -1), "got lam_W=-1.0"),
        (("descend", "--n", 5, 5, 5), "K=10 counts"),
        (("descend", "--n", 0), "got n=0"),
        (("descend", "--optimizer", "sgd"), "without batch_size"),
        (("descend", "--steps", 0), "got steps=0"),
        (("descend", "--checkpoint-seconds", "nan"), "got checkpoint_seconds=nan"),
        (("descend", "--checkpoint-seconds", -1), "got checkpoint_seconds=-1.0"),
        (("sweep", "absent.toml", "--memory", "inf"), "got memory=inf"),
        (("sweep", "absent.toml", "--memory", 0), "got memory=0"),
        (("table", "absent", "--limit", -1), "got limit=-1"),
        (("verify", "--K"), "got --K without a value"),
        (("verify", "--escapes", -1), "got escapes=-1"),
        (("verify", "--starts", 0), "got starts=0"),
        (("theory", "--lam-H", -1), "got lam_H=-1.0"),
        (("certify", "absent"), "holds no run"),
        (("probe", "absent"), "holds no run"),
        (("probe", "absent.npz"), "does not exist"),
        (("measure", "absent.npz"), "does not exist"),
    ],
)
def test_bad_input_is_refused_with_what_was_got(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_bad_input_leaves_no_folder_behind(capsys, tmp_path):
    run(capsys, "descend", *SMALL, "--steps", 0, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_impossible_folder_is_refused_before_computing(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    begun = time.perf_counter()
    status, _, err = run(capsys, "descend", "--n", 10_000, "--out", tmp_path / "file" / "run")
    assert status == 2
    assert "could not" in err
    # K·n = 100,000 samples would take far longer to descend on.
    assert time.perf_counter() - begun < 30


def features(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "W": rng.normal(size=(3, 4)),
        "H": rng.normal(size=(4, 12)),
        "b": rng.normal(size=3),
        "labels": np.tile([2, 0, 1], 4),
    }
    return {name: x for name, x in (arrays | changes).items() if x is not None}


def test_measure_prints_the_metrics_of_a_file(capsys, tmp_path):
    arrays = features()
    np.savez(tmp_path / "f.npz", **arrays)
    status, out, _ = run(capsys, "measure", tmp_path / "f.npz", "--json")
    assert status == 0
    told, found = json.loads(out), ufm.metrics.detail(**arrays)
    assert told | ufm.metrics.collapse(**arrays)._asdict() == told
    assert (told["K"], told["d"], told["N"]) == (3, 4, 12)
    for name in ("accuracy", "nearest_centre", "within", "cosine_std_W", "cosine_std_means"):
        assert told[name] == getattr(found, name)


def test_measure_takes_a_missing_bias_for_zero(capsys, tmp_path):
    np.savez(tmp_path / "f.npz", **features(b=None))
    _, out, _ = run(capsys, "measure", tmp_path / "f.npz", "--json")
    told = json.loads(out)
    assert told | ufm.metrics.collapse(**features(b=np.zeros(3)))._asdict() == told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W": None}, "missing ['W']"),
        ({"H": np.ones((12, 4))}, "transposed"),
        ({"H": np.full((4, 12), np.nan)}, "48 non-finite entries in H"),
        ({"labels": np.zeros(12, int)}, "classes 1, 2 have no samples"),
        ({"labels": np.zeros(11, int)}, "(12,)"),
        ({"labels": np.full(12, 0.5)}, "dtype float64 with 0.5"),
        ({"b": np.zeros(4)}, "(3,)"),
    ],
)
def test_bad_features_are_refused(capsys, tmp_path, changes, message):
    np.savez(tmp_path / "f.npz", **features(**changes))
    status, _, err = run(capsys, "measure", tmp_path / "f.npz")
    assert status == 2
    assert message in err


def test_a_file_that_is_no_npz_is_refused(capsys, tmp_path):
    (tmp_path / "f.npz").write_text("features")
    status, _, err = run(capsys, "measure", tmp_path / "f.npz")
    assert status == 2
    assert "np.savez" in err


def point(**changes):
    """The arrays of a point's file: a start, or what changes make of it."""
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-4)
    params = ufm.theory.global_minimizer(problem, jax.random.key(0))
    arrays = params._asdict() | {name: getattr(problem, name) for name in DECAYS} | {"n": 5}
    return {name: x for name, x in (arrays | changes).items() if x is not None}


def test_probe_tells_a_minimum_from_a_saddle(capsys, tmp_path):
    origin = {name: np.zeros_like(x) for name, x in point().items() if name in "WHb"}
    for name, arrays in (("minimum", point()), ("origin", point(**origin))):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-4)
    for name, kind, index, orbit, spectrum in (
        ("minimum", "global minimiser", 0, 4 * 2 - 3, ufm.theory.hessian_spectrum(problem)),
        ("origin", "strict saddle", 4 * 2, 0, ufm.theory.origin_spectrum(problem)),
    ):
        status, out, _ = run(capsys, "probe", tmp_path / f"{name}.npz", "--k", 1, "--json")
        got = json.loads(out)
        assert (status, got["verdict"], got["index"]) == (0, kind, index)
        assert (got["nullity"], got["orbit_dimension"]) == (orbit, orbit)
        assert got["index"] + got["nullity"] + got["positive"] == problem.size
        least = spectrum.eigenvalues[int(name == "minimum")]  # the first one there is the orbit's 0
        assert got["smallest_off_orbit"] == pytest.approx(least, abs=1e-12)
        ends = zip(("smallest", "largest"), spectrum.eigenvalues[[0, -1]], strict=True)
        for end, value in ends:
            (pair,) = got[end]
            assert pair["converged"]
            assert pair["value"] == pytest.approx(value, abs=1e-12)
            assert pair["residual"] <= 1e-12


def test_descend_shows_problem_and_method_and_what_to_do_at_its_limit(capsys):
    status, out, _ = run(capsys, "descend", *SMALL, "--steps", 3, "--optimizer", "gd")
    assert status == 0
    words = " ".join(re.sub("[│┌┐└┘─]", " ", out).split())
    assert "Descent by gd, K=3, d=4, n=5, lam_W=0.005, lam_H=0.005, lam_b=0.0005" in words
    assert "give more --steps" in words
    line = ("descend", "--K", 3, "--d", 1, "--n", 5, "--lam", 1e-3, "--steps", 300)
    assert "end by --grad-tol" in run(capsys, *line)[1]


@pytest.mark.parametrize("k", [0, 76])
def test_probe_refuses_more_eigenpairs_than_there_are_at_once(capsys, tmp_path, monkeypatch, k):
    monkeypatch.setattr(ufm, "solve", None)
    np.savez(tmp_path / "p.npz", **point())
    status, _, err = run(capsys, "probe", tmp_path / "p.npz", "--polish", "--k", k)
    assert (status, f"got k={k}" in err) == (2, True)


@pytest.mark.slow
def test_probe_polishes_the_end_of_a_run_and_draws_beside_it(capsys, tmp_path):
    run(
        capsys,
        "descend",
        *SMALL,
        "--gap-tol",
        1e-3,
        "--record-every",
        10,
        "--out",
        tmp_path / "run.1",
    )
    status, out, _ = run(capsys, "probe", tmp_path / "run.1", "--k", 1)
    assert status == 0
    assert "not critical" in out
    assert "--polish first moves" in out
    arguments = ("--polish", "--density", "--k", 2)
    status, out, _ = run(capsys, "probe", tmp_path / "run.1", *arguments)
    assert status == 0
    assert "global minimiser" in out
    assert "smallest eigenvalue, 2 of 2" in out
    for kind in ("pdf", "png"):
        assert (tmp_path / f"run.1_density.{kind}").stat().st_size > 0


def test_certify_reads_the_file_of_a_point(capsys, tmp_path):
    np.savez(tmp_path / "p.npz", **point())
    status, out, _ = run(capsys, "certify", tmp_path / "p.npz", "--json")
    assert status == 0
    assert json.loads(out)["gap"] == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W": None}, "missing ['W']"),
        ({"H": None}, "missing ['features']"),
        ({"n": None}, "without labels and without n"),
        ({"lam_H": None}, "missing ['lam_H']"),
        ({"W": np.zeros(3)}, "with W of shape (3,); allowed: (K, d)"),
        ({"H": np.zeros((4, 14))}, "got H with shape (4, 14)"),
        ({"H": np.full((4, 15), np.nan)}, "60 non-finite entries in H"),
        ({"b": np.zeros(3, complex)}, "got b of dtype complex128"),
        ({"n": 5.0}, "got n="),
        ({"n": [5, 5]}, "K=3 counts"),
        ({"lam_W": [1.0, 1.0]}, "lam_W of shape (2,); allowed: one number"),
        ({"lam_W": -1.0}, "got lam_W="),
        ({"lam_H": 0.0}, "a verdict needs both > 0"),
        ({"bias": 1.0}, "got bias="),
    ],
)
def test_a_point_that_lacks_something_or_does_not_fit_is_refused(
    capsys, tmp_path, changes, message
):
    np.savez(tmp_path / "p.npz", **point(**changes))
    status, out, err = run(capsys, "probe", tmp_path / "p.npz")
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_and_ends_with_the_same_bits(tmp_path, number):
    command = [sys.executable, "-m", "ufm.cli", "descend", *SMALL, "--optimizer", "gd"]
    command += ["--learning-rate", "0.3", "--record-every", "200", "--steps", "50000"]
    command += ["--gap-tol", "1e-15", "--checkpoint-seconds", "0", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # A job in the background of a script is born deaf to SIGINT, and so are its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, killed], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not list(killed.glob("checkpoint-*")):
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 130), err
    if number is signal.SIGINT:
        assert f"the same command goes on with {killed}" in err.decode()
    assert json.loads((killed / "manifest.json").read_text())["status"] != "complete"
    for folder in (killed, whole):
        subprocess.run([*command, folder], check=True, capture_output=True)
    resumed, straight = record.load_run(killed), record.load_run(whole)
    assert resumed.arrays.keys() == straight.arrays.keys()
    for name, x in straight.arrays.items():
        np.testing.assert_array_equal(resumed.arrays[name], x)


def test_no_flag_is_described_in_two_lines_of_which_shells_take_the_second_for_a_flag(capsys):
    with contextlib.suppress(SystemExit):
        cli.main(["--tyro-print-completion", "bash"])
    (line,) = re.findall(r"^COMPLETION_SPEC = (.*)$", capsys.readouterr().out, re.MULTILINE)

    def described(command):
        yield from (option["description"] for option in command["options"])
        for one in command.get("subcommands", {}).values():
            yield from described(one)

    found = list(described(ast.literal_eval(line)))
    assert len(found) > 100
    assert not [text for text in found if "\n" in text]
