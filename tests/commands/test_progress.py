"""What a command says while it works: a bar on a terminal, lines in a log."""

import time

import numpy as np
import pytest
from rich.console import Console
from rich.progress import TextColumn

import ufm
from ufm import cli
from ufm.commands import progress


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "PERIOD", 0.02)


def worked(text):
    with progress.watched(TextColumn("{task.description}"), TextColumn("{task.completed}")) as bar:
        bar.update(bar.add_task("", total=9), description=text, completed=4)
        time.sleep(0.3)


@pytest.mark.usefixtures("often")
def test_a_log_gets_a_line_now_and_then_and_none_of_what_is_soon_done(capsys, monkeypatch):
    worked("compiling")
    captured = capsys.readouterr()
    assert not captured.out
    lines = captured.err.splitlines()
    assert len(lines) >= 2
    assert set(lines) == {"ufm: 0 s: compiling, 4"}
    monkeypatch.setattr(progress, "PERIOD", 30.0)
    worked("compiling")
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("often")
def test_a_terminal_gets_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda **_: Console(stderr=True, force_terminal=True))
    worked("compiling")
    assert "ufm: 0 s" not in capsys.readouterr().err


@pytest.mark.usefixtures("often")
def test_probe_says_what_it_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PERIOD", 0.001)  # the last stage takes milliseconds
    problem = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 5e-3)
    params = ufm.init_params(0, problem)
    file = tmp_path / "point.npz"
    np.savez(file, **params._asdict(), n=5, lam_W=5e-3, lam_H=5e-3, lam_b=5e-3)
    assert cli.main(["probe", str(file), "--polish"]) == 0
    told = capsys.readouterr().err
    for words in ("Newton's method", "verdict, index", "3 smallest eigenvalues"):
        assert words in told
