"""What ufm did not write is neither deleted, replaced nor written through; what is read is checked.

Runs of every kind are written here by hand, at no cost, and then changed at one place at a time.
"""

import copy
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ufm
from ufm import cli
from ufm.commands.shared import stored_point
from ufm.critical import atlas, verification
from ufm.critical.orbits import Orbit
from ufm.critical.search import Census
from ufm.report import page as report
from ufm.report import sections
from ufm.runs import record
from ufm.sweeps import grid
from ufm.sweeps import run as sweeps

PROBLEM = ufm.Problem(3, 4, 5, 5e-3, 5e-3, 1e-2)
MODEL = {"K": 3, "d": 4, "n": [5], "lam_W": 5e-3, "lam_H": 5e-3, "lam_b": 1e-2, "bias": True}
CELL = verification.Cell(PROBLEM, False, 0.1, 1e-16, 1e-15, 8, 0, 1, 2, 0, 0, math.nan, 0, 0, ())
VERDICTS = [{"claim": "c", "measured": 1.0, "predicted": 1.0, "tolerance": 0.1, "outcome": "holds"}]


def a_descent(folder: Path) -> None:
    point = ufm.init_params(jax.random.key(0), PROBLEM)
    rows = ("step", "loss", "gap", "grad_norm", "nc1", "nc2", "nc3", "nc4", "accuracy")
    arrays = dict(zip("WHb", map(np.asarray, point), strict=True))
    arrays |= {f"history/{name}": np.arange(1.0, 3.0) for name in rows}
    proved = ("value", "lower_bound", "gap", "grad_norm", "nc1", "nc2", "nc3", "nc4", "accuracy")
    results = {"status": "certified", "steps": 2} | dict.fromkeys(proved, 1.0)
    with record.open_run(folder, "descend", {"model": MODEL, "gap_tol": 1e-8}, seed=0) as handle:
        record.close_run(handle, arrays, results)


def a_sweep(folder: Path) -> None:
    columns = {"cell": np.arange(2), "steps": np.array([5, 6]), "seed": np.arange(2)}
    columns |= {"status": np.array(["certified"] * 2), "optimizer": np.array(["gd"] * 2)}
    numbers = ("K", "d", "n", "lam_W", "lam_H", "lam_b", "bias", "learning_rate", "batch_size")
    columns |= {name: np.ones(2) for name in (*numbers, "value", "gap", "nc1")}
    with record.open_run(folder, "sweep", {}) as handle:
        record.close_run(handle, columns, {"cells": 2})


def a_verification(folder: Path) -> None:
    plain = CELL._asdict() | {"problem": PROBLEM.describe(), "softest": None}
    with record.open_run(folder, "verify", {}, seed=0) as handle:
        record.close_run(handle, {}, {"cells": [plain], "of": 1})


def an_atlas(folder: Path) -> None:
    point = ufm.Params(np.zeros((3, 2)), np.zeros((2, 3)), np.zeros(3))
    orbit = Orbit(
        point, 1.0986, 0, (3,), 4, 0, 0, -0.1, -0.1, 0.9, 2.0, 0.0, 0.0, "strict saddle", "why",
        {"random": 3},
    )  # fmt: skip
    with atlas.opened(folder, PROBLEM, {}) as kept:
        kept.save(Census(PROBLEM, (orbit,), {"random": 4}, {"random": 1}))


def an_experiment(folder: Path) -> None:
    folder.mkdir()
    told = {"title": "t", "claim": "c", "config": {}, "made": {}, "verdicts": VERDICTS}
    (folder / "x01.json").write_text(json.dumps(told))


def reported(path: Path) -> None:
    """All of a report but its plots, which take time and nothing else from the file."""
    report.page([section._replace(plots=()) for section in sections.read(path)], "title")


KINDS = {
    a_descent: ("manifest.json", [reported, stored_point]),
    a_sweep: ("manifest.json", [reported]),
    a_verification: ("manifest.json", [reported]),
    an_atlas: ("atlas.json", [reported]),
    an_experiment: ("x01.json", [reported]),
}
# What an entry is replaced by; () for nothing.
OTHERS: list[tuple] = [(), (None,), ("text",), (7,), ([],), ({},), ([{}],), (-1.5,), (True,)]


def places(value: Any, where: tuple = ()) -> list[tuple]:
    """The way to every entry of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in inner:
        found.append((*where, key))
        if isinstance(item, dict | list):
            found += places(item, (*where, key))
    return found


def changed(value: Any, place: tuple, *instead: Any) -> Any:
    """A copy with another entry at a place, or with none."""
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if instead:
        inner[place[-1]] = instead[0]
    else:
        del inner[place[-1]]
    return value


def sealed(value: dict[str, Any]) -> str:
    """The text of a manifest, every hash in it made to fit by an independent reading."""

    def digest(x: Any) -> str:
        text = json.dumps(x, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    value = {name: x for name, x in value.items() if name != "sha256"}
    if "config" in value and "config_sha256" in value:
        value["config_sha256"] = digest(value["config"])
    return json.dumps(value | {"sha256": digest(value)})


@pytest.mark.parametrize("others", [OTHERS[:1], pytest.param(OTHERS[1:], marks=pytest.mark.long)])
@pytest.mark.parametrize("make", KINDS)
def test_a_forged_file_is_read_or_refused_by_its_name_whatever_was_changed(make, others, tmp_path):
    """Each entry in turn is missing, or is of each other type, and the hashes fit."""
    name, readers = KINDS[make]
    make(tmp_path / "run")
    file, refused = tmp_path / "run" / name, 0
    whole = json.loads(file.read_text())
    for read in readers:
        read(tmp_path / "run")
    for place in places(whole):
        for forged in (changed(whole, place, *x) for x in others):
            file.write_text(sealed(forged) if name != "x01.json" else json.dumps(forged))
            for read in readers:
                said = refusal(read, tmp_path / "run")
                assert said is None or str(tmp_path) in said or "got" in said, place
                refused += said is not None
    assert refused > 0


def refusal(read, path: Path) -> str | None:
    """How a reader refuses; None if it does not."""
    try:
        read(path)
    except ufm.Refused as error:
        return str(error)
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}


WRITERS = {
    "descend": ["--K", "3", "--d", "3", "--n", "2", "--steps", "5"],
    "census": ["--K", "3", "--d", "3", "--n", "2", "--starts", "4", "--rounds", "1"],
    "verify": ["--K", "3", "--d", "3", "--n", "2", "--lam", "1e-2", "--starts", "4"],
}


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_planted_lock_is_not_written_through(command, link, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.write_text("12\n")
    (tmp_path / "run").mkdir()
    link(precious, tmp_path / "run" / ".lock")
    assert cli.main([command, *WRITERS[command], "--out", str(tmp_path / "run")]) == 2
    assert "no lock that ufm made" in capsys.readouterr().err
    assert precious.read_text() == "12\n"
    assert os.path.lexists(tmp_path / "run" / ".lock")


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(
    "name", [".lock", ".partial-x", "orbits-notes.txt", "orbits-0123456789abcdef.npz.bak"]
)
def test_a_folder_with_other_files_is_refused_and_left_alone(command, name, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_text("mine, and no process id")
    assert cli.main([command, *WRITERS[command], "--out", str(run)]) == 2
    assert name in capsys.readouterr().err
    assert contents(run) == {name: b"mine, and no process id"}


def test_links_under_names_of_ufm_are_neither_followed_nor_removed(tmp_path):
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    names = [".partial", ".partial-0123456789abcdef", "checkpoint-00000001-0123456789abcdef.npz"]
    with record.open_run(run, "descend", {}) as handle:
        for name in names:
            (run / name).symlink_to(precious)
        record.save_checkpoint(handle, {"x": np.ones(2)}, {})
        record.close_run(handle, {}, {})
    an_atlas(tmp_path / "atlas")
    for name in ("orbits-0123456789abcdef.npz", ".partial"):
        (tmp_path / "atlas" / name).symlink_to(precious)
    (tmp_path / "atlas" / "orbits-notes.txt").write_text("mine")
    found = atlas.load(tmp_path / "atlas")[0]
    with atlas.opened(tmp_path / "atlas", PROBLEM, {}) as kept:
        kept.save(found)
    assert precious.read_text() == "mine"
    assert all((run / name).is_symlink() for name in names)
    assert (tmp_path / "atlas" / "orbits-notes.txt").read_text() == "mine"
    assert (tmp_path / "atlas" / "orbits-0123456789abcdef.npz").is_symlink()


def test_a_link_in_the_place_of_a_file_is_replaced_and_what_it_names_stays(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "a.txt").symlink_to(precious)
    record.storage.write(tmp_path, "a.txt", b"ours")
    assert (precious.read_text(), (tmp_path / "a.txt").read_bytes()) == ("mine", b"ours")


def test_a_report_replaces_pages_of_its_own_only(tmp_path, capsys):
    run, page = tmp_path / "run", tmp_path / "page.html"
    a_descent(run)
    line = ["report", str(run), "--out"]
    assert cli.main([*line, str(page)]) == 0
    assert report.MARK in page.read_bytes()
    assert cli.main([*line, str(page)]) == 0
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    (tmp_path / "link.html").symlink_to(page)
    (tmp_path / "folder.html").mkdir()
    before = contents(tmp_path) | contents(run)
    capsys.readouterr()
    for name in ("mine.html", "link.html", "folder.html", "run/manifest.json", "thesis.tex"):
        assert cli.main([*line, str(tmp_path / name)]) == 2
        assert "allowed: a n" in capsys.readouterr().err
    assert contents(tmp_path) | contents(run) == before


def test_a_probe_draws_over_figures_of_its_own_only(tmp_path, capsys):
    a_descent(tmp_path / "run")
    (tmp_path / "mine.png").write_text("mine")
    line = ["probe", str(tmp_path / "run"), "--figure"]
    assert cli.main([*line, str(tmp_path / "mine")]) == 2
    assert "not a figure of ufm probe" in capsys.readouterr().err
    assert contents(tmp_path) == {"mine.png": b"mine"}
    assert cli.main([*line, "."]) == 2


def test_a_table_is_written_to_a_new_file_only(tmp_path):
    a_sweep(tmp_path / "run")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "nothing")
    line = ["table", str(tmp_path / "run"), "--csv"]
    assert cli.main([*line, str(tmp_path / "dangling.csv")]) == 2
    assert not (tmp_path / "nothing").exists()


def test_a_verification_is_not_mixed_with_another_or_with_other_files(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--K", "3", "--d", "4", "--n", "5", "--lam", "5e-3", "--out", str(out)]
    a_verification(tmp_path / "other")
    assert cli.main(["verify", *words[:-1], str(tmp_path / "other")]) == 2
    assert "these fields differ" in capsys.readouterr().err
    out.mkdir()
    (out / "verify.json").write_text("{}")  # as ufm 0.1 left it
    assert cli.main(["verify", *words]) == 2
    assert "holds other files (verify.json)" in capsys.readouterr().err
    assert contents(out) == {"verify.json": b"{}"}


def test_a_value_that_holds_itself_and_impossible_paths_are_refused(tmp_path):
    config: dict[str, Any] = {}
    config["config"] = config
    with pytest.raises(record.RecordError, match="holds itself"):
        record.open_run(tmp_path / "run", "descend", config)
    with pytest.raises(record.RecordError, match="null"):
        record.open_run("a\0b", "descend", {})
    with pytest.raises(record.RecordError, match="holds no run"):
        record.load_run("a\0b")
    plan = grid.Plan((grid.Grid(3, 4, 5, optimizer="gd"),), steps=1)
    with pytest.raises(record.RecordError, match="null"):
        sweeps.sweep(plan, "a\0b")
