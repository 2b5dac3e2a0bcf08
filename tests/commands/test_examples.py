"""The examples in the help of the commands run as they stand, and the help breaks no word."""

import itertools
import os
import re
import shlex
import subprocess
import sys
import typing

import numpy as np
import pytest
import tyro

from ufm import cli
from ufm.commands.menu import Command

CLASSES = {typing.get_args(x)[1].name: typing.get_args(x)[0] for x in typing.get_args(Command)}
EXAMPLES = {
    name: re.search(r"\n\n *Example: ufm (.*)$", command.__doc__.strip())[1]
    for name, command in CLASSES.items()
}
# In an order in which each finds what it reads, at sizes that take seconds: what is appended
# replaces the flag of the same name.
SMALLER = {
    "theory": "",
    "descend": "--K 3 --d 4 --n 5",
    "certify": "",
    "probe": "",
    "measure": "",
    "census": "--K 3 --d 4 --n 5 --starts 16 --rounds 1",
    "verify": "--K 3 --d 4 --lam 1e-2 --starts 16 --rounds 1 --escapes 1",
    "sweep": "--history",
    "table": "",
    "plot": "",
    "report": "",
}
LEAVES = {
    "descend": "runs/first/manifest.json",
    "probe": "runs/first_density.png",
    "census": "runs/atlas/atlas.json",
    "verify": "verified/verify.json",
    "sweep": "runs/sweep/manifest.json",
    "plot": "runs/sweep_gap.pdf",
    "report": "report.html",
}


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_is_a_command_line_of_its_command(name):
    told = tyro.cli(Command, args=shlex.split(EXAMPLES[name]))
    assert isinstance(told, CLASSES[name])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to run in, with the two files that the examples read and no command writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.toml").write_text("K = 3\nd = 4\nn = 5\nseed = [0, 1]\nsteps = 200\n")
    rng = np.random.default_rng(0)
    np.savez(
        "features.npz",
        W=rng.normal(size=(3, 5)), H=rng.normal(size=(5, 12)), labels=np.repeat(range(3), 4),
    )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ("theory", "descend", "certify", "measure"),
        pytest.param(tuple(SMALLER), marks=pytest.mark.long),
    ],
    ids=["quick", "all"],
)
def test_examples_run_and_leave_what_they_say(folder, names, capsys):
    assert SMALLER.keys() == CLASSES.keys()
    for name in names:
        assert cli.main([*shlex.split(EXAMPLES[name]), *shlex.split(SMALLER[name])]) == 0, name
        assert name not in LEAVES or (folder / LEAVES[name]).is_file(), name
        captured = capsys.readouterr()
        assert captured.out or captured.err


def prose(words: list[str], columns: int, monkeypatch, capsys) -> list[str]:
    """Lines of a help text between the usage and the first box."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    _, _, text = capsys.readouterr().out.partition("\n\n")
    # A box begins with a space where its border is ASCII, as in a captured stream.
    return list(itertools.takewhile(lambda line: line[:1] not in tuple(" ╭"), text.splitlines()))


@pytest.mark.parametrize("words", [[], *([name] for name in CLASSES)], ids=" ".join)
def test_help_breaks_lines_between_words(words, monkeypatch, capsys):
    narrow = prose(words, 60, monkeypatch, capsys)
    wide = prose(words, 10_000, monkeypatch, capsys)
    assert " ".join(narrow).split() == " ".join(wide).split()
    assert max(len(line) for line in wide) > 60
    assert all(len(line) <= 60 or " " not in line for line in narrow)


def test_the_list_of_commands_fits_a_screen_with_the_title_of_each(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    words = " ".join(text.replace("│", " ").replace("|", " ").split())
    for name, kind in CLASSES.items():
        assert f"{name} {kind.__doc__.splitlines()[0]}" in words


def test_boxes_of_options_are_drawn_whole():
    environment = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ufm.cli", "theory", "--help"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    boxes = [line for line in told.stdout.splitlines() if line and line[0] in "╭│╰"]
    assert {len(line) for line in boxes} == {80}
