"""Sections of a page from runs on disk, of any kind.

An experiment is found by the JSON file of its verdicts, in the folder of its figures, or by the run
that holds its arrays. Which interactive figures a section has depends on these arrays.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ufm import theory
from ufm.check import Refused
from ufm.critical import atlas, orbits
from ufm.critical.verification import Cell
from ufm.metrics.alignment import alignment
from ufm.model.problem import Problem
from ufm.plots import Scene
from ufm.report import interactive, stored
from ufm.report.page import PICTURES, Section, Table, number
from ufm.runs import record, values
from ufm.runs.claims import Verdict, judge, judge_below
from ufm.sweeps import histories
from ufm.sweeps import run as sweeps
from ufm.theory.geometry import simplex_etf

MOST_FEATURES, MOST_ROWS = 3000, 200  # drawn; of a table
CURVES = {"gap": "certified gap", "grad_norm": "‖∇f‖", "nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
WORDS = ("claim", "source", "reproduces")  # of an experiment, in this order
LADDER = ("value", "morse_index", "rank", "nullity", "smallest")  # columns of a table of orbits
HOVER = ("K", *LADDER, "orbit_dimension", "groups", "hits", "gap", "kind")


def read(path: Path) -> list[Section]:
    """The sections of a path: a run, an atlas, an experiment, or a folder of any of them.

    Raises:
        Refused: the path is none of these, or it is damaged.
    """
    if path.suffix == ".json" and path.is_file():
        return [_experiment(path)]
    kinds = {"atlas.json": _census, "manifest.json": _run, "verify.json": _verified_alone}
    for name, reader in kinds.items():
        if (path / name).is_file():
            return [reader(path)]
    found = [x for x in sorted(path.glob("*.json")) if _verdicts(x) is not None]
    stems = {x.stem for x in found}
    chosen = [
        x for x in found
        if not (x.stem.endswith("_quick") and x.stem.removesuffix("_quick") in stems)
    ]  # fmt: skip
    runs = sorted({x.parent for name in kinds for x in path.glob(f"*/{name}")})
    if not found and not runs:
        raise Refused(
            f"got {path}; allowed: the folder of a run (descend, census, verify, sweep, or an "
            "experiment), the verdicts of an experiment (.json), or a folder that holds some"
        )
    return [_experiment(x) for x in chosen] + [section for run in runs for section in read(run)]


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance and the status of a run."""
    git, versions = (
        x if isinstance(x, Mapping) else {} for x in (manifest.get("git"), manifest.get("versions"))
    )
    commit = f"{git.get('commit') or 'unknown'}"[:12] + (", changed" if git.get("dirty") else "")
    facts = {
        "command": manifest.get("command"),
        "status": manifest.get("status"),
        "started": manifest.get("started"),
        "device": manifest.get("device"),
        "versions": ", ".join(f"{name} {x}" for name, x in versions.items()),
        "commit": commit,
    }
    if isinstance(manifest.get("wall_seconds"), int | float):
        facts["wall time"] = f"{manifest['wall_seconds']:.1f} s"
    return {name: x for name, x in facts.items() if x}


# Runs of the commands


def _run(path: Path) -> Section:
    kind = record.load_latest(path).manifest["kind"]
    readers = {"descend": _descend, "sweep": _sweep, "verify": _verified}
    reader = readers.get(kind, _experiment_of_run)
    return reader(path)


def _descend(path: Path) -> Section:
    manifest, arrays = record.load_latest(path)
    where = f"{path / 'manifest.json'}"
    problem = stored.problem(manifest, where)
    options = {
        name: x for name, x in manifest["config"].items() if name != "model" and x is not None
    }
    model = ", ".join(f"{name} = {x}" for name, x in problem.describe().items())
    curves = {
        CURVES[name.removeprefix("history/")]: arrays[name]
        for name in (f"history/{key}" for key in CURVES)
        if name in arrays
    }
    plots, tables, note = [], [], ""
    if curves:
        steps = stored.array(arrays, "history/step", where)
        plots.append(interactive.history(steps, curves, "History of the run"))
    if manifest["status"] == "complete":
        W, H, _ = stored.point(manifest, arrays, where)
        scene, note = _scene(W, H, problem.labels)
        plots.append(interactive.collapse([scene], title="The end of the run"))
        tables = _aligned(problem, W, H)
    else:
        note = "The run is not finished."
    facts = {"model": model, "method": ", ".join(f"{k} = {x}" for k, x in options.items())}
    facts |= manifest["results"] | _facts(manifest)
    verdicts = _judged(problem, arrays, manifest, where)
    return Section(f"Descent: {path.name}", note, facts, verdicts, tables, plots)


def _judged(problem: Problem, arrays: Mapping, manifest: Mapping, where: str) -> list[Verdict]:
    """The end of a descent compared with its tolerance, and with the closed form if known."""
    if manifest["status"] != "complete":
        return []
    results, config = stored.results(manifest, where), manifest["config"]
    values.expect(config, {"gap_tol": (int, float, None)}, f"{where}: config")
    gap, tolerance = float(results["gap"]), config["gap_tol"]
    # On the sphere tolerances are shares of f.
    unit, words = (results["value"], "share of f") if problem.features == "sphere" else (1, "nats")
    certified = tolerance is not None and gap < tolerance * unit
    verdicts = []
    if tolerance is not None:
        claim = f"certified gap, {words}"
        verdicts.append(judge_below(claim, gap / unit if unit else gap, tolerance, certified))
    rows: list[tuple[str, Any, Any, Any]] = []
    with contextlib.suppress(Refused):  # outside the theorem
        value = theory.global_value(problem)
        # f − f* lies between 0 and the gap; rounding may take it a little below.
        slack = max(gap, 0.0) + 1e-12 * max(abs(value), 1.0)
        rows.append(("f, nats", results["value"], value, slack))
    with contextlib.suppress(Refused):  # also weights in the decay, for which H has no one norm
        for name, predicted in theory.norms(problem)._asdict().items():
            rows.append((f"‖{name}‖", np.linalg.norm(arrays[name]), predicted, 1e-2 * predicted))
    return verdicts + [judge(*row, certified) for row in rows]


def _aligned(problem: Problem, W: np.ndarray, H: np.ndarray) -> list[Table]:
    """Distances of the end, by NC2 and NC3, from the minimum of theory and from the simplex.

    Only for unequal classes whose minimum is known: for equal classes the two are the same.
    """
    if problem.balanced and problem.uniform:
        return []
    try:
        predicted = theory.geometry_of(problem)
    except Refused:  # outside the theorem
        return []
    means = np.stack([H[:, problem.labels == k].mean(axis=1) for k in range(problem.K)])
    seen = alignment(W, means, predicted)
    heads = ["distance to", "NC2", "NC2 of class means", "NC3"]
    rows = [seen.against, *map(number, seen[:3])], ["the simplex", *map(number, seen[3:6])]
    return [Table(heads, list(rows))]


def _scene(W: np.ndarray, H: np.ndarray, labels: np.ndarray) -> tuple[Scene, str]:
    """A point in three dimensions, and in words what the figure leaves out."""
    (scene,) = _scenes(np.asarray(W)[None], np.asarray(H)[None], np.asarray(labels))
    K, note = len(W), []
    if K > 4:
        note.append(f"Three of the {K - 1} dimensions of the simplex are shown.")
    if len(scene.labels) < len(labels):
        note.append(f"{len(scene.labels)} of {len(labels)} features are shown.")
    return scene, " ".join(note)


def _scenes(W: np.ndarray, H: np.ndarray, labels: np.ndarray) -> list[Scene]:
    """Moments (m, K, d) and (m, d, N) of one collapse, projected on the leading axes of the last.

    Rows of W are scaled to the size of the class means, as in self-duality at the minimum; the
    simplex is the regular one nearest to the last rows, with the mean length of the last class
    means.
    """
    K, d = W.shape[1:]
    members = [labels == k for k in range(K)]
    last = np.stack([H[-1][:, own].mean(axis=1) for own in members])
    axes = np.linalg.svd(np.concatenate([last, W[-1]]), full_matrices=False)[2][:3]
    axes = np.pad(axes, ((0, 3 - len(axes)), (0, 0)))
    every = -(-len(labels) // MOST_FEATURES)
    vertices = np.zeros((0, 3))
    if d >= K - 1 and np.any(last):
        etf = np.asarray(simplex_etf(K, d))
        U, _, Vt = np.linalg.svd(etf.T @ W[-1])
        vertices = np.linalg.norm(last, axis=1).mean() * etf @ (U @ Vt) @ axes.T
    scenes = []
    for w, h in zip(W, H, strict=True):
        means = np.stack([h[:, own].mean(axis=1) for own in members])
        size = np.linalg.norm(w)
        rows = w * (np.linalg.norm(means) / size if size > 0 else 0)
        shown = h[:, ::every].T @ axes.T
        scenes.append(Scene(shown, labels[::every], means @ axes.T, rows @ axes.T, vertices))
    return scenes


def _sweep(path: Path) -> Section:
    table, manifest = sweeps.load(path)
    columns, _ = histories.split(table)
    where = f"{path / 'manifest.json'}"
    if columns:
        stored.columns(columns, ("cell", "steps", "gap", "optimizer", "status"), where)
    count = len(columns.get("cell", ()))
    if not count:
        return Section(f"Sweep: {path.name}", "No cell is finished yet.", _facts(manifest))
    fixed = {name for name, x in columns.items() if len(set(map(str, x))) == 1}
    heads = [name for name in columns if name not in fixed | {"cell"}]
    rows = [[number(columns[name][i].item()) for name in heads] for i in range(count)]
    text = ["<br>".join(f"{name}: {x}" for name, x in zip(heads, row, strict=True)) for row in rows]
    steps, gap = np.maximum(columns["steps"], 1), np.maximum(columns["gap"], 1e-17)
    groups = [f"{x}, {y}" for x, y in zip(columns["optimizer"], columns["status"], strict=True)]
    axes = "steps", "certified gap, nats"
    plot = interactive.points(steps, gap, text, groups, axes, "Cells: gap against steps")
    shared = {name: number(columns[name][0].item()) for name in columns if name in fixed}
    note = f"The first {MOST_ROWS} of {count} cells are listed." if count > MOST_ROWS else ""
    facts = {"cells": count} | shared | _facts(manifest)
    listed = Table(heads, rows[:MOST_ROWS])
    return Section(f"Sweep: {path.name}", note, facts, tables=[listed], plots=[plot])


def _census(path: Path) -> Section:
    found, sessions = atlas.load(path)
    rows = [atlas.table_row(orbit) for orbit in found.orbits]
    columns: dict[str, list] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["hits"] = [sum(hits.values()) for hits in columns["hits"]]
    columns["groups"] = [orbits.counted(sizes) for sizes in columns["groups"]]
    columns = {name: columns[name] for name in HOVER if name in columns}
    model = ", ".join(f"{name} = {x}" for name, x in found.problem.describe().items())
    facts = {"model": model, "orbits": len(rows), "starts": sum(found.tried.values())}
    facts |= {"refused starts": sum(found.refused.values()), "sessions": len(sessions)}
    listed = [[number(columns[name][i]) for name in columns] for i in range(len(rows))]
    table = Table(list(columns), listed)
    plot = interactive.ladder(columns, "Critical points")
    text = "A census finds the critical points to which its starts lead; there may be others."
    facts |= _facts(sessions[-1])
    return Section(f"Census: {path.name}", text, facts, tables=[table], plots=[plot])


def _verified(path: Path) -> Section:
    manifest = record.load_latest(path).manifest
    cells, total = stored.verified(manifest, f"{path / 'manifest.json'}")
    return _cells(path, cells, total, manifest)


def _verified_alone(path: Path) -> Section:
    """The section of a verify.json by ufm 0.1, which wrote no manifest."""
    told = _json(path / "verify.json")
    cells = stored.cells(told, f"{path / 'verify.json'}")
    return _cells(path, cells, told["of"], told)


def _cells(path: Path, cells: Sequence[Cell], total: int, manifest: Mapping[str, Any]) -> Section:
    title = f"Theory against computation: {path.name}"
    if not cells:
        return Section(title, "No cell is finished yet.", _facts(manifest))
    names = [name for name in Cell._fields if name not in ("problem", "violations")]
    heads = [*cells[0].problem.describe(), *names]
    rows, verdicts = [], []
    for cell in cells:
        problem = cell.problem.describe()
        values = [*problem.values(), *(getattr(cell, name) for name in names)]
        rows.append([number(x) for x in values])
        label = ", ".join(f"{name}={x}" for name, x in problem.items() if name != "bias")
        words = "; ".join(cell.violations) or "violations of the theory"
        verdicts.append(judge(f"{label}: {words}", len(cell.violations), 0, 0))
    facts = {"cells": f"{len(rows)} of {total}"} | _facts(manifest)
    return Section(title, "", facts, verdicts, [Table(heads, rows)])


# Experiments


def _verdicts(path: Path) -> dict[str, Any] | None:
    """The JSON file of an experiment, with its verdicts; None for any other file."""
    try:
        told = _json(path)
    except Refused:
        return None
    return told if isinstance(told, dict) and "verdicts" in told else None


def _json(path: Path) -> Any:
    """The value in a JSON file; refuses one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused(f"got {path}, which is no JSON file that can be read ({error})") from None


def _experiment_of_run(path: Path) -> Section:
    """An experiment by the folder of its arrays; its verdicts are searched for near that."""
    path, name = path.absolute(), path.absolute().name
    for folder in (path.parent.parent, path.parent, path.parent.parent / "figures"):
        if _verdicts(folder / f"{name}.json") is not None:
            return _experiment(folder / f"{name}.json")
    manifest, arrays = record.load_latest(path)
    text = "No verdicts were found beside this run."
    return Section(name, text, _facts(manifest), plots=_plots(arrays))


def _experiment(path: Path) -> Section:
    told = _verdicts(path)
    if told is None:
        raise Refused(f"got {path}; allowed: a JSON file of verdicts, as experiments write it")
    path, stem = path.absolute(), path.stem
    homes = path.parent / "data" / stem, path.parent.parent / "runs" / stem, path.parent / stem
    home = next((x for x in homes if (x / "manifest.json").is_file()), None)
    manifest, arrays = ({}, {}) if home is None else record.load_latest(home)
    verdicts = stored.verdicts(told, f"{path}")
    words = [f"{name.capitalize()}. {_unwrapped(told[name])}" for name in WORDS if name in told]
    own = re.compile(rf"{re.escape(stem)}(_(?!quick)\w+)?")
    pictures = [
        x for x in sorted(path.parent.iterdir())
        if x.suffix in PICTURES and own.fullmatch(x.stem)
    ]  # fmt: skip
    title = f"{stem.split('_')[0]}: {told.get('title', stem)}"
    text, plots = "\n\n".join(words), _plots(arrays)
    shown = _unwrapped(told.get("shown", ""))
    return Section(title, text, _facts(manifest), verdicts, (), plots, pictures, shown)


def _unwrapped(text: Any) -> str:
    """The paragraphs of a docstring without the line breaks of the source file."""
    return "\n\n".join(" ".join(part.split()) for part in f"{text}".split("\n\n"))


def _moves(W: np.ndarray, H: np.ndarray, steps: np.ndarray | None) -> bool:
    """Whether the arrays are moments of a collapse: W (m, K, d), H (m, d, N) and their m steps."""
    if steps is None or W.ndim != 3 or H.ndim != 3:
        return False
    m, K, d = W.shape
    N = H.shape[2]
    return steps.shape == (m,) and H.shape[:2] == (m, d) and min(W.shape) > 0 < N and N % K == 0


def _plots(arrays: Mapping[str, np.ndarray]) -> list:
    """The interactive figures of an experiment, by its arrays.

    A table of orbits (the columns of `LADDER`) is drawn as a ladder; moments W… (m, K, d) and H…
    (m, d, N) with their steps as a collapse.
    """
    plots = []
    shapes = {arrays[name].shape for name in LADDER if name in arrays}
    if set(LADDER) <= arrays.keys() and len(shapes) == 1 and len(shapes.pop()) == 1:
        columns = {name: arrays[name].tolist() for name in HOVER if name in arrays}
        if "groups" in columns:
            columns["groups"] = [orbits.counted(filter(None, row)) for row in columns["groups"]]
        plots.append(interactive.ladder(columns, "Critical points"))
    for name, W in arrays.items():
        H = arrays.get(name.replace("W", "H", 1))
        if H is not None and name.startswith("W") and _moves(W, H, arrays.get("step")):
            labels = np.repeat(np.arange(W.shape[1]), H.shape[2] // W.shape[1])
            names = [f"{step}" for step in arrays["step"]]
            title = f"Collapse of {W.shape[1]} classes in {W.shape[2]} dimensions"
            plots.append(interactive.collapse(_scenes(W, H, labels), names, title))
    return plots
