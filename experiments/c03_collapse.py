"""The picture: features and classifier collapse to one simplex, in the plane and in space.

Claim. Under gradient descent from random starts the features of each class converge to one point.
These points are the corners of a regular simplex around the origin (K = 3: a triangle in the plane;
K = 4: a tetrahedron in space), and the rows of the classifier, scaled by the duality factor
√(λ_W/(λ_H n)), converge to the same corners, at the radius that the closed form gives.

Source. Papyan, Han and Donoho 2020 (NC1 to NC3); Zhu et al. 2021 (arXiv 2105.02375), theorem 3.1.
Here d = K − 1, where that theorem holds; no other critical point is a minimum there, by a theorem
of this project (`ufm.theory.landscape`).

Reproduces. Figure 1 of Papyan, Han and Donoho 2020 (features, class means and classifier rows on
one simplex), with the measure of their figure 6 (NC1); in the model, without a projection.

Shown. Four steps of gradient descent for K = 3, d = 2 and for K = 4, d = 3; n = 30, λ_W = λ_H =
λ_b = 5e-3; classifier rows are scaled by the duality factor. One rotation, which aligns the last
picture with the predicted corners, is applied to all pictures of a run; the view of K = 4 turns
with the step. The gap is certified and in nats. The animation shows all stored steps, with NC1 and
the gap.

Refuted by a certified end whose features or rows lie off the predicted corners.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Problem, init_params, plots, theory
from ufm.theory.geometry import simplex_etf

# Steps of the stills, beside the last one.
STILLS = (0, 32, 100)
MEASURES = ("loss", "grad_norm", "gap", "nc1")


@dataclass(frozen=True)
class Config:
    """Two problems, K classes in K − 1 dimensions; λ_W = λ_H = λ_b = lam."""

    # Classes of the two problems: 3 is drawn in the plane, 4 in space.
    classes: tuple[int, int] = (3, 4)
    n: int = 30  # samples per class
    lam: float = 5e-3  # all three decays
    scale: float = 0.22  # standard deviation of the entries of W and H at the start
    rate: float = 1.0  # step size of gradient descent
    steps: int = 2400  # steps in all
    frames: int = 64  # pictures taken on the way, evenly in the logarithm of the step
    # Tolerance on the distance of features and rows from the corners, over the radius.
    corner_tol: float = 1e-3
    gap_tol: float = 1e-5  # certified gap at which the end counts as reached, in nats
    critical: float = 1e-12  # ‖∇f‖ below which a point counts as critical
    # Time that a frame is shown in the animation, and the last one, in milliseconds.
    milliseconds: tuple[int, int] = (60, 3000)
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """The same runs with fewer frames."""
        return cls(frames=12, milliseconds=(300, 3000))


def problem_of(config: Config, K: int) -> Problem:
    """K classes in K − 1 dimensions."""
    return Problem(K=K, d=K - 1, n=config.n, lam_W=config.lam, lam_H=config.lam, lam_b=config.lam)


def moments(config: Config) -> list[int]:
    """Steps at which pictures are taken: 0, then evenly in the logarithm, each once."""
    spaced = np.geomspace(min(8, config.steps), config.steps, config.frames - 1)
    return [0, *np.unique(np.round(spaced).astype(int)).tolist()]


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Points (moments, …) and measures (moments,) of both runs, as W3, H3, gap3, … and W4, …."""
    steps = moments(config)
    results: dict[str, np.ndarray] = {"step": np.array(steps)}
    for done, K in enumerate(config.classes):
        problem = problem_of(config, K)
        points, run = [init_params(jax.random.key(config.seed), problem, config.scale)], None
        for count, step in enumerate(steps[1:]):
            progress(done / 2 + count / len(steps) / 2, f"K={K}, step {step}")
            run = ufm.descend(
                problem,
                points[0],
                "gd",
                learning_rate=config.rate,
                steps=step,
                record_every=config.steps,  # one record a leg, at its end
                resume=run,
            )
            points.append(run.params)
        results[f"W{K}"] = np.array([x.W for x in points], np.float32)
        results[f"H{K}"] = np.array([x.H for x in points], np.float32)
        assert run is not None
        results |= {f"{name}{K}": run.history[name] for name in MEASURES}
    return results


def radius(config: Config, K: int) -> float:
    """‖h_i‖ at the global minimum."""
    problem = problem_of(config, K)
    return float(theory.norms(problem).H / np.sqrt(problem.N))


def scene(config: Config, results: dict, K: int, moment: int) -> plots.Scene:
    """The configuration at a moment, in units of the features, rotated as the last one is.

    Minima form an orbit of O(d). All moments are rotated by the one orthogonal matrix that brings
    the last classifier nearest to a simplex whose last corner points up (Procrustes).
    """
    up = -np.asarray(simplex_etf(K, K - 1))
    U, _, Vt = np.linalg.svd(results[f"W{K}"][-1].T @ up)
    H = results[f"H{K}"][moment].T @ U @ Vt
    means = H.reshape(K, config.n, K - 1).mean(axis=1)
    rows = results[f"W{K}"][moment] @ U @ Vt / np.sqrt(config.n)
    return plots.Scene(H, problem_of(config, K).labels, means, rows, radius(config, K) * up)


def check(config: Config, results: dict) -> list[Verdict]:
    """The end of both runs: gap, corners, radius and angles."""
    verdicts = []
    for K in config.classes:
        gap, size, name = results[f"gap{K}"][-1], radius(config, K), f"K={K}, d={K - 1}: "
        end = scene(config, results, K, -1)
        certified = abs(gap) < config.gap_tol
        ended = certified or results[f"grad_norm{K}"][-1] <= config.critical
        verdicts.append(judge_below(name + "certified gap, nats", gap, config.gap_tol, ended))
        for what, points in (
            ("feature", end.features - end.vertices[end.labels]),
            ("classifier row", end.rows - end.vertices),
        ):
            claim = name + f"farthest {what} from its corner, in radii"
            away = np.linalg.norm(points, axis=1).max() / size
            verdicts.append(judge_below(claim, away, config.corner_tol, certified))
        lengths = np.linalg.norm(end.means, axis=1)
        gram = (end.means @ end.means.T) / np.outer(lengths, lengths)
        cosine = (gram.sum() - K) / (K * (K - 1))
        claim = name + "mean ‖h‖"
        tolerance = config.corner_tol
        verdicts.append(judge(claim, lengths.mean(), size, tolerance * size, certified))
        claim = name + "mean cosine between class means"
        verdicts.append(judge(claim, cosine, -1 / (K - 1), tolerance, certified))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure | plots.Animation]:
    """Four stills of each run, and the animation."""
    count = len(results["step"])
    durations = [config.milliseconds[0]] * (count - 1) + [config.milliseconds[1]]
    animation = plots.Animation(_frames(config, results), durations)
    return {"": _draw_stills(config, results), "_animation": animation}


def _draw_stills(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 3.9, 2, 4)
    steps = results["step"]
    shown = [int(np.argmin(np.abs(steps - step))) for step in (*STILLS, steps[-1])]
    for row, K in zip(axes, config.classes, strict=True):
        for ax, moment in zip(row, shown, strict=True):
            _draw_scene(ax, config, results, K, moment)
            ax.set_title(f"$K={K}$, step {steps[moment]}")
            ax.text(0.5, -0.1, _measures(results, K, moment), transform=ax.transAxes, ha="center")
    plots.collapse_legend(canvas, loc="outside lower center", ncols=4)
    return canvas


def _draw_scene(ax: Axes, config: Config, results: dict, K: int, moment: int) -> None:
    # The camera goes a third of a turn while K = 4 collapses.
    turn = 0.85 + 2 * np.pi / 3 * moment / (len(results["step"]) - 1)
    plots.collapse(ax, scene(config, results, K, moment), azimuth=turn)
    reach = 1.3 * radius(config, K)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))


def _measures(results: dict, K: int, moment: int) -> str:
    nc1, gap = (_power(results[name + str(K)][moment]) for name in ("nc1", "gap"))
    return f"NC1 = {nc1}, gap = {gap}"


def _power(x: float) -> str:
    """A number with one digit, as a power of ten unless it is near 1."""
    told = f"{x:.0e}"
    digits, power = told.split("e")
    if abs(int(power)) <= 1:
        return f"${float(told):g}$"
    return rf"${digits}\cdot10^{{{int(power)}}}$"


def _frames(config: Config, results: dict) -> Iterator[Figure]:
    steps = results["step"]
    for moment in range(len(steps)):
        canvas = Figure(figsize=(8.4, 3.5))
        for left, K in zip((0.0, 0.36), config.classes, strict=True):
            ax = canvas.add_axes((left, 0.1, 0.35, 0.78))
            _draw_scene(ax, config, results, K, moment)
            ax.set_title(f"$K={K}$, $d={K - 1}$", y=0.99)
        ax = canvas.add_axes((0.79, 0.24, 0.19, 0.58))
        _draw_progress(ax, config, results, moment)
        ax.set_title(f"step {steps[moment]}")
        plots.collapse_legend(canvas, loc="lower left", ncols=4, bbox_to_anchor=(0.02, 0.0))
        yield canvas


def _draw_progress(ax: Axes, config: Config, results: dict, moment: int) -> None:
    """NC1 and gap of both runs so far."""
    steps = results["step"]
    for i, (name, label) in enumerate((("nc1", "NC1"), ("gap", "gap, nats"))):
        for j, K in enumerate(config.classes):
            values = results[f"{name}{K}"]
            look: dict[str, Any] = {
                "color": "black" if i else plots.GREY,
                "linestyle": ("-", (0, (3, 1)))[j],
            }
            ax.plot(steps[: moment + 1], values[: moment + 1], label=f"{label}, $K={K}$", **look)
            ax.plot(steps[moment], values[moment], "o", color=look["color"])
    ax.set_xscale("symlog", linthresh=1, linscale=0.4)
    ax.set(yscale="log", xlim=(0, steps[-1] * 1.5), ylim=(1e-9, 1e6), xlabel="step")
    ax.set(xticks=(0, 1, 10, 100, 1000), yticks=(1e-8, 1e-4, 1, 1e4))
    ax.minorticks_off()
    ax.legend(loc="lower left")


if __name__ == "__main__":
    sys.exit(runner.main("c03_collapse"))
