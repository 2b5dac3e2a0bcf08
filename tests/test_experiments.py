"""Experiments: every claim in a tiny form, verdicts that can refute, results that are reused."""

import dataclasses
import functools
import importlib
import inspect
import json
import pickle
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import runner
from experiments.runner import Options
from experiments.verdicts import (
    HOLDS,
    NOT_CONVERGED,
    REFUTED,
    judge,
    judge_all_below,
    judge_all_zero,
)
from ufm.descent.loop import Status
from ufm.runs import record

SCRIPTS = runner.names()
TINY = {
    "c01_certified_minimum": {
        "K": 3, "widths": (4,), "n": 5, "lam": 5e-3, "starts": 2, "gd_rate": 3.0, "sgd_rate": 1.0,
        "steps": (600, 4000, 600, 60), "sgd_gap_tol": 1e-3, "real_d": 5, "real_n": 40,
        "real_rate": 4.0, "real_steps": (60, 200), "real_scale": 0.3,
    },
    "c02_phase_transition": {
        "shapes": ((2, 2, 3),), "below": 20, "above": 5, "steps": 100, "nearest": 5e-3,
        "exponent_tol": 0.05,
    },
    "c03_collapse": {"n": 4, "lam": 0.03, "steps": 500, "frames": 4},
    "c04_curvature_on_the_way": {
        "K": 3, "d": 4, "n": 2, "steps": 1000, "every": 25, "smaller": 1e-6,
    },
    "c05_degeneracy": {"extra": (1,), "shapes": ((3, 4, 3),), "points": 4},
    "c06_rate_of_descent": {
        "shapes": ((3, 4, 2),), "x": (0.1, 2.0), "multiples": (0.2, 0.5), "starts": 4,
        "offsets": (0.0, 0.5, 1.5),
    },
    # The same K and starts, so that both use the same compiled programs.
    "c07_ladder": {"classes": (3,), "starts": 16, "other_classes": (3,), "other_starts": 16},
    "c08_strict_saddle": {
        "effort": ((3, 16, 1, 2),), "unequal": ((3, 16, 1, 1),), "widths": (1.0, 1.6),
    },
    "c09_escape": {"starts": 8, "lengths": 3, "slope_tol": 0.1},
    "c10_boundary": {"starts": 24},
    "c11_squared_loss": {"counts": ((3, 1),), "starts": 16, "points": 3},
    "c13_unequal_classes": {"ratios": (1, 1000), "starts": 1, "seli_lams": (1e-1, 1e-3)},
    "c14_targets": {"mus": (1e-3,), "shares": (0.5, 0.8), "strengths": (0.6,)},
    "c15_saddles_of_losses": {
        "losses": ("smoothing",), "counts": (2, 1, 1), "starts": 16, "K": 4, "widths": (4,),
        "boundary": ("binary",), "boundary_starts": 16,
    },
    "c16_switched_off": {"widths": (4, 40), "starts": 60, "distinct": 4},
    "c17_codes": {"shapes": ((6, 2), (6, 3)), "starts": 24},
    "c12_every_loss": {"points": 3, "pushes": 8, "smoothings": (0.0, 0.2)},
}  # fmt: skip


def script_of(name: str) -> ModuleType:
    return importlib.import_module(f"experiments.{name}")


def tiny(name: str):
    return dataclasses.replace(script_of(name).Config.quick(), **TINY[name])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Verdicts of a script in its tiny form, run when first asked for, in a home of its own."""
    console = Console(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "ROOT", tmp_path_factory.mktemp("home"))
        yield functools.cache(lambda name: runner.run(name, tiny(name), Options(), console))


def arrays_of(name: str) -> dict[str, np.ndarray]:
    folder = runner.place(name, tiny(name))[0]
    if not folder.exists():
        runner.run(name, tiny(name), Options(), Console(quiet=True))
    return record.load_run(folder).arrays


def outcomes(name: str, arrays) -> dict[str, str]:
    return {x.claim: x.outcome for x in script_of(name).check(tiny(name), arrays)}


# The scripts


@pytest.mark.parametrize(
    "name",
    # CI runs the quick form of every script (`make run`).
    [x if x[:3] == "c03" else pytest.param(x, marks=pytest.mark.long) for x in SCRIPTS],
)
def test_every_claim_holds_in_a_tiny_form(name, finished):
    assert [x for x in finished(name) if x.outcome != HOLDS] == []
    assert len({x.claim for x in finished(name)}) == len(finished(name))


def test_drawing_again_from_stored_results_gives_the_same_bytes(finished, monkeypatch):
    name = "c03_collapse"  # it has every kind of file
    expected = finished(name)
    stem = runner.place(name, tiny(name))[1]
    before = {path: path.read_bytes() for path in stem.parent.glob(f"{stem.name}*.*")}
    assert {path.suffix for path in before} == {".pdf", ".png", ".json", ".gif"}
    for path in before:
        path.unlink()
    monkeypatch.setattr(script_of(name), "compute", None)
    verdicts = runner.run(name, tiny(name), Options(redraw=True), Console(quiet=True))
    assert verdicts == expected
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_its_claim_its_source_and_what_would_refute_it(name):
    text = script_of(name).__doc__
    places = [text.index(word) for word in ("Claim.", "Source.", "Refuted by")]
    assert places == sorted(places)
    members = inspect.getmembers(script_of(name), inspect.isroutine)
    lines = {key: inspect.getsourcelines(value)[1] for key, value in members if key in
             ("compute", "check", "draw")}  # fmt: skip
    assert sorted(lines, key=lines.get) == ["compute", "check", "draw"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_config_is_frozen_has_comments_and_a_smaller_quick_form(name):
    config = script_of(name).Config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = 1
    assert config.quick() != config()
    lines = inspect.getsource(config).splitlines()
    for field in dataclasses.fields(config):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert "  # " in lines[at] or lines[at - 1].startswith("    # "), field.name


@pytest.mark.parametrize("name", SCRIPTS)
def test_committed_results_belong_to_the_full_form_and_are_small(name):
    script = script_of(name)
    folder = runner.Path(runner.__file__).parent.parent / "figures" / "data" / name
    manifest, _ = record.load_run(folder)
    assert manifest["status"] == "complete"
    assert manifest["config"] == json.loads(json.dumps(dataclasses.asdict(script.Config())))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 300_000


# Verdicts that can refute


def changed(name: str, **changes) -> dict[str, np.ndarray]:
    arrays = arrays_of(name)
    return arrays | {key: change(arrays[key]) for key, change in changes.items()}


@pytest.mark.usefixtures("finished")
def test_a_critical_point_with_a_gap_refutes_the_certified_minimum():
    name = "c01_certified_minimum"
    stuck = changed(name, end_gap=lambda x: x + 0.1, end_grad_norm=lambda x: 0 * x)
    found = outcomes(name, stuck)
    gaps = [outcome for claim, outcome in found.items() if "worst certified gap" in claim]
    assert gaps == [REFUTED] * 4


@pytest.mark.usefixtures("finished")
def test_a_run_that_was_cut_short_neither_supports_nor_refutes():
    name = "c01_certified_minimum"
    short = changed(name, end_gap=lambda x: x + 0.1, end_grad_norm=lambda x: x + 1)
    found = outcomes(name, short)
    gaps = [outcome for claim, outcome in found.items() if "worst certified gap" in claim]
    assert gaps == [NOT_CONVERGED] * 4
    assert REFUTED not in found.values()


@pytest.mark.parametrize(
    ("array", "change", "claim"),
    [
        ("end_value", lambda x: x + 0.01, "worst |f − f*| where certified, nats"),
        ("end_lower_bound", lambda x: x + 0.01, "highest lower bound − f*, nats"),
        ("end_norm_W", lambda x: 1.01 * x, "worst relative error of ‖W‖"),
        ("end_nc1", lambda x: x + 0.01, "worst NC1"),
        ("end_nc2", lambda x: x + 0.01, "worst NC2"),
        ("end_nc3", lambda x: x + 0.01, "worst NC3"),
        ("end_nc4", lambda x: x + 0.01, "worst NC4"),
        ("nc1", lambda x: x**1.1, "GD: decay of log NC1 a step"),
        ("real_end_value", lambda x: x + 0.01, "K=3, d=5, N=120: f, nats"),
        ("real_end_norm_W", lambda x: 1.01 * x, "K=3, d=5, N=120: ‖W‖"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_certified_minima_that_differ_from_the_closed_form_are_refuted(array, change, claim):
    name = "c01_certified_minimum"
    found = outcomes(name, changed(name, **{array: change}))
    assert {key for key, outcome in found.items() if outcome == REFUTED} == {claim}


@pytest.mark.parametrize(
    ("array", "change", "claims"),
    [
        ("norm_W", lambda x: 1.01 * x, ["worst error of ‖W‖, in units where it is √t"]),
        ("norm_H", lambda x: 1.01 * x, ["worst error of ‖H‖, likewise"]),
        ("loss", lambda x: x + 1e-6, ["worst error of f, nats"]),
        (
            "norm_W",
            lambda x: 0 * x,
            [
                "worst error of ‖W‖, in units where it is √t",
                "K²nλ_Wλ_H at which W vanishes",
                "exponent of ‖W‖ in 1 − x",
            ],
        ),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_transition_elsewhere_or_otherwise_is_refuted(array, change, claims):
    name = "c02_phase_transition"
    found = outcomes(name, changed(name, **{array: change}))
    refuted = [claim for claim, outcome in found.items() if outcome == REFUTED]
    assert refuted == [f"K=2, d=2, n=3: {claim}" for claim in claims]


@pytest.mark.usefixtures("finished")
def test_points_of_the_transition_that_did_not_converge_are_counted():
    name = "c02_phase_transition"
    found = outcomes(name, changed(name, status=lambda x: 0 * x + Status.step_limit))
    assert set(found.values()) == {NOT_CONVERGED}
    assert sum("(25 of 25 runs not converged)" in claim for claim in found) == 3


@pytest.mark.parametrize(
    ("array", "change", "claim"),
    [
        ("H3", lambda x: 1.01 * x, "K=3, d=2: mean ‖h‖"),
        ("H3", lambda x: x[..., ::-1], "K=3, d=2: farthest feature from its corner, in radii"),
        ("W4", lambda x: 1.01 * x, "K=4, d=3: farthest classifier row from its corner, in radii"),
        ("H4", lambda x: x * [[1], [1], [2]], "K=4, d=3: mean cosine between class means"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_features_or_rows_off_their_corners_are_refuted(array, change, claim):
    found = outcomes("c03_collapse", changed("c03_collapse", **{array: change}))
    assert found[claim] == REFUTED


@pytest.mark.usefixtures("finished")
def test_a_collapse_that_stops_elsewhere_is_refuted_and_one_cut_short_is_not():
    claim, gap = "K=3, d=2: certified gap, nats", {"gap3": lambda x: x + 0.1}
    stuck = changed("c03_collapse", grad_norm3=lambda x: 0 * x, **gap)
    assert outcomes("c03_collapse", stuck)[claim] == REFUTED
    short = changed("c03_collapse", grad_norm3=lambda x: x + 1, **gap)
    assert outcomes("c03_collapse", short)[claim] == NOT_CONVERGED


@pytest.mark.parametrize(
    ("array", "change", "claim"),
    [
        ("index", lambda x: x + 1, "index at the start"),
        ("smallest", lambda x: 1.01 * x, "smallest eigenvalue at the start"),
        ("saddle_index", lambda x: x - 1, "slow passages"),
        ("dense_index", lambda x: x + 1, "disagree"),
        ("end_counts", lambda x: x + np.array([1, 0]), "index at the end"),
        ("end_counts", lambda x: x + np.array([0, 1]), "nullity at the end"),
        ("end_values", lambda x: 1.01 * x, "worst error"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_another_curvature_on_the_way_is_refuted(array, change, claim):
    name = "c04_curvature_on_the_way"
    found = outcomes(name, changed(name, **{array: change}))
    assert REFUTED in [outcome for key, outcome in found.items() if claim in key]


@pytest.mark.usefixtures("finished")
def test_an_end_with_a_gap_says_nothing_of_the_minimum():
    name = "c04_curvature_on_the_way"
    found = outcomes(name, changed(name, end_gap=lambda x: x + 1, end_counts=lambda x: x + 1))
    assert sum(outcome == NOT_CONVERGED for outcome in found.values()) == 5
    assert REFUTED not in found.values()


@pytest.mark.parametrize(
    ("array", "change", "count"),
    [
        ("size_nullity", lambda x: x + np.array([0, 1]), 1),
        ("size_dense_nullity", lambda x: x + 1, 2),
        ("size_index", lambda x: x + 1, 1),
        ("nullity", lambda x: x + 1, 1),
        ("smallest", lambda x: x * (1 + 1e-7), 1),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_minimum_degenerate_off_the_orbit_or_of_another_gap_is_refuted(array, change, count):
    found = outcomes("c05_degeneracy", changed("c05_degeneracy", **{array: change}))
    assert list(found.values()).count(REFUTED) == count


@pytest.mark.usefixtures("finished")
def test_points_that_are_no_minima_say_nothing_of_degeneracy():
    away = changed("c05_degeneracy", gap=lambda x: x + 1, size_gap=lambda x: x + 1)
    assert set(outcomes("c05_degeneracy", away).values()) == {NOT_CONVERGED}


@pytest.mark.usefixtures("finished")
def test_a_descent_of_another_rate_is_refuted_and_one_that_failed_is_not():
    name = "c06_rate_of_descent"
    slower = outcomes(name, changed(name, grad_norm=lambda x: x**0.95))
    refuted = [claim for claim, outcome in slower.items() if outcome == REFUTED]
    assert [claim[-10:] for claim in refuted] == ["ηλ_max < 2", "ηλ_max > 2"]
    failed = outcomes(name, changed(name, done=lambda x: x & False))
    assert set(failed.values()) == {NOT_CONVERGED}


@pytest.mark.long
@pytest.mark.parametrize(
    ("array", "change", "claims"),
    [
        (
            "partition_value",
            lambda x: x + np.array([0, 1e-3]),
            ["K=3: partitions whose orbit is among"],
        ),
        ("rank", lambda x: 0 * x, ["K=3: of these, with another rank or index"]),
        ("morse_index", lambda x: 0 * x, ["K=3: of these", "K=3: orbits of index 0"]),
        ("other", lambda x: x + np.array([0, 1e-3, 0, 0]), ["points of the other program"]),
        ("nullity", lambda x: x + 1, ["orbits with zero eigenvalues"]),
        ("smallest", lambda x: 1.01 * x, ["worst relative error of the least eigenvalue"]),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_ladder_without_a_predicted_rung_or_with_a_false_one_is_refuted(array, change, claims):
    found = outcomes("c07_ladder", changed("c07_ladder", **{array: change}))
    refuted = [claim for claim, outcome in found.items() if outcome == REFUTED]
    assert all(any(part in claim for claim in refuted) for part in claims)


@pytest.mark.long
@pytest.mark.usefixtures("finished")
def test_every_start_of_the_strict_saddles_is_a_point_or_refused():
    arrays = arrays_of("c08_strict_saddle")
    tried, refused = arrays["tried"].T
    points = script_of("c08_strict_saddle").summary(arrays, "points")
    assert (points == tried - refused).all()
    assert (tried == 80).all()


@pytest.mark.long
@pytest.mark.usefixtures("finished")
def test_an_orbit_that_is_no_strict_saddle_is_refuted_by_name():
    name, local = "c08_strict_saddle", script_of("c08_strict_saddle").KINDS.index("local minimiser")
    found = outcomes(name, changed(name, kind=lambda x: np.where(x == 0, local, x)))
    (claim,) = [claim for claim, outcome in found.items() if outcome == REFUTED]
    assert "K=3, d=5, Kc=0.5, f=1.09861229, rank 0: local minimiser" in claim


@pytest.mark.long
@pytest.mark.parametrize(
    ("column", "change", "claim"),
    [
        ("refused", lambda x: x + 1, "refused by the strict residual"),
        ("saddles", lambda x: x - 1, "share of strict saddles"),
        ("lower", lambda x: 0 * x + 0.01, "deepest eigenvalue below λ₋"),
        ("stuck", lambda x: x + 1, "without a way down at d = K−1"),
        ("full_error", lambda x: x + 0.01, "points of rank K−1"),
        ("error", lambda x: x + 0.01, "worst |f − f*|"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_points_that_the_theorem_does_not_allow_are_refuted(column, change, claim):
    name = "c08_strict_saddle"
    at = script_of(name).SUMMARY.index(column)

    def wrong(points):
        points = points.copy()
        points[:, at] = change(points[:, at])
        return points

    found = outcomes(name, changed(name, points=wrong))
    (refuted,) = [claim for claim, outcome in found.items() if outcome == REFUTED]
    assert claim in refuted


@pytest.mark.parametrize(
    ("changes", "claim", "outcome"),
    [
        ({"gd_left": lambda x: x + 1}, "escape times beyond rounding up", REFUTED),
        ({"gd_left": lambda x: x - 1}, "escape times beyond rounding up", REFUTED),
        ({"gd_left": lambda x: 0 * x - 1}, "escape times beyond rounding up", NOT_CONVERGED),
        ({"predicted": lambda x: 1.1 * x}, "escape times beyond rounding up", REFUTED),
        # A run whose gradient vanishes elsewhere has been trapped; one cut short says nothing.
        ({"gd_gap": lambda x: x + 1, "gd_slope": lambda x: 0 * x}, "GD: runs", REFUTED),
        (
            {"gd_gap": lambda x: x + 1, "gd_slope": lambda x: 0 * x + 1,
             "gd_certified": np.zeros_like},
            "GD: runs", NOT_CONVERGED,
        ),
    ],
)  # fmt: skip
def test_escapes_of_another_time_or_to_another_end_are_refuted(changes, claim, outcome):
    script = script_of("c09_escape")
    folder = runner.Path(runner.__file__).parent.parent / "figures" / "data" / "c09_escape"
    arrays = record.load_run(folder).arrays
    changed = {name: change(arrays[name]) for name, change in changes.items()}
    before, after = (
        [x.outcome for x in script.check(script.Config(), found) if claim in x.claim]
        for found in (arrays, arrays | changed)
    )
    assert set(before) == {HOLDS}
    assert outcome in after


def moved(column: int, by: float):
    """A change of one column of a table."""
    return lambda x: x + by * (np.arange(x.shape[-1]) == column)


@pytest.mark.parametrize(
    ("name", "array", "change", "claim"),
    [
        ("c11_squared_loss", "cells", moved(5, 1), "on the list and not found"),
        ("c11_squared_loss", "cells", moved(3, 1), "found and not on the list"),
        ("c11_squared_loss", "orbits", moved(10, 1e-9), "worst distance of f"),
        ("c11_squared_loss", "orbits", moved(4, 1), "with another rank"),
        ("c11_squared_loss", "orbits", moved(5, 1), "with another index"),
        ("c11_squared_loss", "orbits", moved(6, 1), "with another nullity"),
        ("c11_squared_loss", "minima", lambda x: np.r_[x, [[0, 2, 9, 0]]], "d < K−1: spurious"),
        ("c11_squared_loss", "minima", lambda x: x[(x[:, 0] == 0) | (x[:, 1] == 5)], "share of d"),
        ("c11_squared_loss", "minima", moved(2, 1e-9), "of the minimum found"),
        ("c11_squared_loss", "most_cosine", lambda x: x + 1e-6, "the most cosine"),
        ("c11_squared_loss", "least_cosine", lambda x: x - 1e-6, "the least cosine"),
        ("c11_squared_loss", "gap", lambda x: x + 1e-6, "certified gap"),
        ("c12_every_loss", "value", lambda x: x + 1e-6, "focal 2: worst error of f"),
        ("c12_every_loss", "margin", lambda x: x + 1e-6, "binary: worst error of margin"),
        ("c12_every_loss", "W", lambda x: 1.01 * x, "squared: worst error of ‖W‖"),
        ("c12_every_loss", "H", lambda x: 1.01 * x, "smoothing 0.1: worst error of ‖H‖"),
        ("c12_every_loss", "condition", lambda x: 1.01 * x, "worst error of condition number"),
        ("c12_every_loss", "spread", lambda x: x + 1e-6, "spread of the margins"),
        ("c12_every_loss", "rate", lambda x: 1.05 * x, "log ρ of gradient descent"),
        ("c12_every_loss", "full", lambda x: x[::-1], "condition number of ∇²f rises"),
        ("c12_every_loss", "feature", lambda x: x[::-1], "condition number of WᵀSW falls"),
        ("c13_unequal_classes", "cosine", lambda x: x - 1e-4, "plain, ratios 1 … 10000: worst"),
        ("c13_unequal_classes", "separation", lambda x: x + 1e-4, "minority p_own − p_other"),
        ("c13_unequal_classes", "separation", lambda x: 0 * x, "plain: ratios at which"),
        ("c13_unequal_classes", "value", lambda x: x + 1e-4, "layer-peeled, ratios"),
        ("c13_unequal_classes", "threshold", moved(0, 1e-4), "threshold in λ"),
        ("c13_unequal_classes", "threshold", moved(2, 1.0), "1% above it"),
        ("c13_unequal_classes", "length", lambda x: 1.01 * x, "length of a minority row"),
        ("c13_unequal_classes", "logits", lambda x: x[::-1], "SELI: decays"),
        ("c13_unequal_classes", "logits", lambda x: 1.02 * x, "worst error of a margin"),
        ("c13_unequal_classes", "optimal", lambda x: ~x.astype(bool), "SELI: share"),
        ("c15_saddles_of_losses", "orbits", moved(3, 3), "binary, d ≥ K"),
        (
            "c15_saddles_of_losses",
            "orbits",
            lambda x: x * (1 + 1e-6 * (np.arange(10) == 8)),
            "tag sets: worst relative error of λ₋",
        ),
        ("c15_saddles_of_losses", "orbits", moved(6, 1), "squared: orbits with undecided"),
        ("c15_saddles_of_losses", "minima", lambda x: np.r_[x, [[0, 5, 9]]], "smoothing, K=6, d ≥"),
        ("c15_saddles_of_losses", "minima", lambda x: x[x[:, 0] == 0], "binary, K=6, d < K−1"),
        ("c15_saddles_of_losses", "minima", lambda x: x[x[:, 0] == 0], "binary, K=6, d = K−1"),
        ("c16_switched_off", "judged", moved(4, 1e-6), "worst relative distance"),
        ("c16_switched_off", "judged", moved(5, 1), "share local minimisers"),
        ("c16_switched_off", "judged", lambda x: x * (np.arange(7) != 6), "smallest multiplier"),
        ("c16_switched_off", "rows", moved(7, 1), "equal, d = 40"),
        (
            "c16_switched_off",
            "rows",
            lambda x: np.where(np.arange(9) == 7, x * (x[:, 5:6] == 0), x),
            "relu(g)",
        ),
        ("c17_codes", "name", lambda x: 1 + 0 * x, "K-gon, d = 2, K ≤ 9"),
        ("c17_codes", "name", lambda x: 0 * x, "K-gon, d = 2, K ≥ 10"),
        ("c17_codes", "name", lambda x: 1 + 0 * x, "orthoplex, K = 2d"),
        ("c17_codes", "value", lambda x: x * (1 + 1e-8), "octahedron's value"),
        ("c17_codes", "name", lambda x: -1 + 0 * x, "lowest minima: share"),
        ("c17_codes", "name", lambda x: -1 + 0 * x, "spurious minima: share"),
        ("c14_targets", "tags_multiples", lambda x: x + 1e-4, "tags: worst error of a multiple"),
        ("c14_targets", "tags_off", lambda x: x + 1e-4, "tags: worst distance of a mean"),
        ("c14_targets", "mixed_frame", lambda x: x + 1e-4, "mixtures: worst distance of W"),
        ("c14_targets", "mixed_multiples", lambda x: x[:, ::-1], "mixtures: worst error of a"),
        ("c14_targets", "mixed_value", lambda x: x - 1e-6, "mixtures: worst error of f"),
        ("c14_targets", "soft_error", lambda x: 1.5 * x, "largest |p − t|"),
        ("c14_targets", "soft_behind", lambda x: 1.1 * x, "growth of a logit's distance"),
        ("c14_targets", "regression_gram", lambda x: 1.001 * x, "relative error of WWᵀ"),
    ],
)
def test_stored_results_off_the_theory_are_refuted(name, array, change, claim):
    script = script_of(name)
    folder = runner.Path(runner.__file__).parent.parent / "figures" / "data" / name
    arrays = record.load_run(folder).arrays
    before, after = (
        [x.outcome for x in script.check(script.Config(), found) if claim in x.claim]
        for found in (arrays, arrays | {array: change(arrays[array])})
    )
    assert set(before) == {HOLDS}
    assert REFUTED in after


@pytest.mark.parametrize(
    ("measured", "converged", "outcome"),
    [
        (1.05, True, HOLDS),
        (1.2, True, REFUTED),
        (np.nan, True, REFUTED),
        (1.0, False, NOT_CONVERGED),
    ],
)
def test_a_verdict_compares_what_converged_with_the_tolerance(measured, converged, outcome):
    assert judge("claim", measured, 1, 0.1, converged).outcome == outcome


@pytest.mark.parametrize(
    ("errors", "ended", "outcome"),
    [
        ([0.0, -0.04], [True, True], HOLDS),
        ([0.0, -0.2], [True, True], REFUTED),
        ([0.0, 0.2], [True, False], NOT_CONVERGED),
        ([0.2, 0.0], [True, False], REFUTED),
        ([np.nan, 0.0], [True, True], REFUTED),
        ([np.nan, 0.0], [True, False], REFUTED),
        ([0.0, 0.0], [False, False], NOT_CONVERGED),
    ],
)
def test_one_ended_run_can_refute_and_all_must_end_to_support(errors, ended, outcome):
    assert judge_all_below("claim", errors, np.array(ended), 0.1).outcome == outcome
    counts = np.round(10 * np.array(errors))  # what is below the limit becomes zero
    assert judge_all_zero("claim", counts, np.array(ended)).outcome == outcome


# The runner, with a script that costs nothing


@dataclass(frozen=True)
class FakeConfig:
    """Fields of the fake script."""

    size: int = 5  # length of the array
    wrong: float = 0.0  # error of the measurement
    converged: bool = True  # whether it says that it converged
    seed: int = 0  # not used

    @classmethod
    def quick(cls) -> "FakeConfig":
        """A shorter array."""
        return cls(size=3)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A script c99_fake in an empty home; `calls` lists the sizes it was computed for."""
    # The command line parser falls back to sys.argv where it is given no arguments.
    monkeypatch.setattr(sys, "argv", ["experiments"])
    script = ModuleType("experiments.c99_fake", "Claim. Source. Refuted by.")
    calls: list[int] = []

    def compute(config, progress):
        progress(0.5, "half way")
        calls.append(config.size)
        return {"x": np.arange(config.size)}

    def check(config, results):
        assert len(results["x"]) == config.size
        return [judge("zero", config.wrong, 0, 0.1, config.converged)]

    def draw(*_):
        return {"": Figure(figsize=(1, 1)), "_again": Figure(figsize=(1, 1))}

    for thing in (compute, check, draw):
        setattr(script, thing.__name__, thing)
    script.Config, script.calls = FakeConfig, calls
    monkeypatch.setitem(sys.modules, "experiments.c99_fake", script)
    monkeypatch.setattr(runner, "names", lambda *_: ["c99_fake"])
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    return script


def files_in(folder) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if "manifest" not in path and "arrays" not in path}


def test_the_full_the_quick_and_changed_forms_do_not_overwrite_each_other(fake, tmp_path):
    kinds = ("pdf", "png", "json")
    for args in ([], ["--quick"], ["--size", "4"], ["--quick", "--size", "4"]):
        assert runner.main("c99_fake", args) == 0
    assert fake.calls == [5, 3, 4]
    changed = {path.name.split(".")[0] for path in (tmp_path / "runs").glob("c99_fake-*.json")}
    assert len(changed) == 1
    stems = ["figures/c99_fake", "figures/c99_fake_quick", f"runs/{changed.pop()}"]
    expected = {f"{stem}{again}.{kind}" for stem in stems for again in ("", "_again") for kind in
                kinds if not (again and kind == "json")}  # fmt: skip
    assert files_in(tmp_path) == expected | {"figures/README.md"}
    manifest, arrays = record.load_run(tmp_path / "figures" / "data" / "c99_fake")
    assert (manifest["status"], manifest["kind"], manifest["seed"]) == ("complete", "c99_fake", 0)
    assert len(arrays["x"]) == 5


def test_a_configuration_is_computed_once_unless_forced(fake, capsys):
    runner.main_all([])
    assert "not computed again" not in capsys.readouterr().out
    runner.main_all([])
    assert "not computed again" in capsys.readouterr().out
    assert fake.calls == [5]
    runner.main_all(["--force"])
    assert fake.calls == [5, 5]


def test_results_of_former_defaults_are_replaced(fake, tmp_path):
    runner.main_all([])
    old = dataclasses.replace(FakeConfig(), size=9)
    folder = tmp_path / "figures" / "data" / "c99_fake"
    for path in folder.iterdir():
        path.unlink()
    with record.open_run(folder, "c99_fake", dataclasses.asdict(old), seed=0) as handle:
        record.close_run(handle, {"x": np.arange(9)}, {})
    assert runner.main_all([]) == 0
    assert fake.calls == [5, 5]


def test_a_failed_computation_is_tried_again(fake, monkeypatch, tmp_path):
    def fails(*_):
        raise ArithmeticError

    working = fake.compute
    monkeypatch.setattr(fake, "compute", fails)
    with pytest.raises(ArithmeticError):
        runner.main_all([])
    folder = tmp_path / "figures" / "data" / "c99_fake"
    assert record.load_run(folder).manifest["status"] == "failed"
    monkeypatch.setattr(fake, "compute", working)
    assert runner.main_all([]) == 0


def refused(capsys, args=()) -> str:
    """What the runner prints as it refuses."""
    with pytest.raises(SystemExit) as stop:
        runner.main_all([*args])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_run_that_another_process_has_open_is_left_alone(fake, tmp_path, capsys):
    folder = tmp_path / "figures" / "data" / "c99_fake"
    with record.open_run(folder, "c99_fake", dataclasses.asdict(FakeConfig()), seed=0):
        assert "open in another process" in refused(capsys, ["--force"])
    assert fake.calls == []


def test_what_the_runner_did_not_write_is_neither_deleted_nor_replaced(fake, tmp_path, capsys):
    folder = tmp_path / "figures" / "data" / "c99_fake"
    folder.mkdir(parents=True)
    notes = folder / "my_notes.txt"
    notes.write_text("mine")
    assert "my_notes.txt" in refused(capsys)
    notes.unlink()
    runner.main_all([])
    notes.write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "my_notes.txt" in refused(capsys, ["--force"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    notes.unlink()
    (folder / "manifest.json").write_text("{}")
    assert "damaged" in refused(capsys)
    assert "damaged" in refused(capsys, ["--force"])
    (folder / "manifest.json").unlink()
    (folder / "arrays.npz").unlink()
    with record.open_run(folder, "descend", {}, seed=0) as handle:
        record.close_run(handle, {}, {})
    assert "of kind 'descend'" in refused(capsys)
    assert record.load_run(folder).manifest["kind"] == "descend"
    assert fake.calls == [5]


def test_redraw_never_computes(fake, capsys):
    with pytest.raises(SystemExit) as stop:
        runner.main_all(["--redraw"])
    assert stop.value.code == 2
    assert "holds no results of this configuration" in capsys.readouterr().err
    assert fake.calls == []


@pytest.mark.parametrize(
    ("args", "status", "outcome"),
    [
        ([], 0, HOLDS),
        (["--wrong", "0.2"], 1, REFUTED),
        (["--no-converged"], 3, NOT_CONVERGED),
    ],
)
@pytest.mark.usefixtures("fake")
def test_the_exit_status_tells_refuted_from_not_converged(capsys, tmp_path, args, status, outcome):
    assert runner.main("c99_fake", args) == status
    assert f"{outcome}: 1" in capsys.readouterr().out
    (path,) = [*tmp_path.glob("runs/*.json"), *tmp_path.glob("figures/*.json")]
    (verdict,) = json.loads(path.read_text())["verdicts"]
    assert verdict["outcome"] == outcome


def test_quick_forms_run_side_by_side_and_report_in_their_order(
    fake, monkeypatch, capsys, tmp_path
):
    def backwards(f, jobs, _processes, keep, _watch, patience):
        assert patience == 0
        for i in reversed(range(len(jobs))):
            keep(i, f(*pickle.loads(pickle.dumps(jobs[i])), lambda _: None))

    monkeypatch.setitem(sys.modules, "experiments.c98_fake", fake)
    monkeypatch.setattr(runner, "names", lambda _: ["c98_fake", "c99_fake"])
    monkeypatch.setattr(runner.processes, "run", backwards)
    assert runner.main_all(["--quick"]) == 0
    said = capsys.readouterr().out
    assert said.index("c99_fake: computing") < said.index("c98_fake: computing")  # as they end
    table = said[said.index("measured") :]
    assert table.index("c98") < table.index("c99")
    assert fake.calls == [3, 3]
    assert {"figures/README.md", "figures/c98_fake_quick.json"} <= files_in(tmp_path)


@pytest.mark.usefixtures("fake")
def test_the_command_exits_with_the_status_of_the_worst_verdict(monkeypatch):
    monkeypatch.setattr(FakeConfig, "quick", classmethod(lambda cls: cls(wrong=0.2)))
    monkeypatch.setattr(sys, "argv", ["experiments", "--quick", "--only", "c99"])
    sys.modules.pop("experiments.__main__", None)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("experiments.__main__")
    assert stop.value.code == 1


@pytest.mark.usefixtures("fake")
def test_an_unknown_script_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        runner.main_all(["--only", "c01"])
    assert stop.value.code == 2
    assert "allowed: c99_fake" in capsys.readouterr().err


def test_a_paper_chooses_the_scripts_that_name_it(fake, monkeypatch, capsys):
    monkeypatch.setattr(fake, "__doc__", "A title.\n\nSource. Somebody 2022 (arXiv 2203.01238).")
    assert runner.main_all(["--paper", "2203.01238"]) == 0
    assert fake.calls == [5]
    capsys.readouterr()
    assert "allowed: 2203.01238" in refused(capsys, ["--paper", "2203.01239"])
    assert runner.main_all(["--list"]) == 0
    assert capsys.readouterr().out.split() == ["c99", "A", "title", "arXiv", "2203.01238"]
    assert fake.calls == [5]


def test_help_shows_the_comments_of_the_fields(capsys):
    with pytest.raises(SystemExit):
        runner.main("c01_certified_minimum", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "samples per class" in text
    assert "--force" in text


@pytest.mark.long
@pytest.mark.parametrize(
    ("array", "change", "claim", "outcome"),
    [
        ("value", lambda x: x + 0.01, "distance of the known values", REFUTED),
        ("nullity", lambda x: x + 1, "share of K ≥ 6 with a spurious local minimum", REFUTED),
        ("missed", lambda x: x + 0.5, "neither at rounding nor in a flat valley", NOT_CONVERGED),
    ],
)
@pytest.mark.usefixtures("finished")
def test_below_the_theorem_other_minima_are_refuted_and_lost_starts_counted(
    array, change, claim, outcome
):
    name = "c10_boundary"
    found = outcomes(name, changed(name, **{array: change}))
    assert [claim in key for key, kind in found.items() if kind == outcome] == [True]
