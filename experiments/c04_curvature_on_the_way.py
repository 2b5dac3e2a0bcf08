"""Curvature on the way: gradient descent passes saddles of falling index and ends at the minimum.

Claim. From a small start gradient descent leaves the origin, a saddle of index d(K−1). If the
components along the unstable directions differ in size, it passes other saddles slowly, one after
another. There its index and curvature equal those of the critical point nearby, and the certified
gap does not fall. The run ends at the global minimum, where the Hessian has no negative eigenvalue
and its whole spectrum, multiplicities included, equals the closed form: at most 16 distinct
eigenvalues.

Source. Zhu et al. 2021 (arXiv 2105.02375), theorem 3.2: every critical point but the global minima
is a strict saddle. The spectra in closed form are derived in `ufm.theory.spectra`. Jacot et al.
2021 (arXiv 2106.15933) describe descent from saddle to saddle for linear networks.

Reproduces. Theorem 3.2 of Zhu et al. at the critical points that descent comes near. Extends it to
the path between them, and theorem 3.1 by the spectrum at the minimum.

Shown. One run of gradient descent, K = 5, d = 7, n = 8, K²nλ_Wλ_H = 0.01, λ_W = 4λ_H, λ_b =
√(λ_Wλ_H), step size η = 2, against the step: (a) distance of f from the minimum, (b) smallest and
(d) largest eigenvalue of ∇²f, (c) certified gap, (e) gradient norm, (f) Morse index. Grey vertical
lines mark the slowest step near each saddle; dashes show the value at the critical point nearby.
The gap in (c) is first order in the distance to the minimum and f − f* in (a) is second order, so
at the end the gap is about the square root of f − f*. Second figure: the spectrum of ∇²f at the
end.

Refuted by a start or an end with another spectrum, by a slow passage whose index is not that of
the critical point nearby, or by two ways of counting that disagree.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Params, Problem, hessian, init_params, plots, theory
from ufm.descent.loop import Method, start, step
from ufm.descent.records import measurements
from ufm.theory.spectra import Spectrum, hessian_spectrum, origin_spectrum

CURVES = ("loss", "gap", "grad_norm")
EIGENVALUES = ("smallest", "largest", "index", "dense_index")
SADDLE = ("value", "index", "smallest", "largest", "converged")


@dataclass(frozen=True)
class Config:
    """One run and how densely it is recorded; x = K² n λ_W λ_H."""

    K: int = 5  # classes
    d: int = 7  # width
    n: int = 8  # samples per class
    x: float = 0.01  # K² n λ_W λ_H
    ratio: float = 4.0  # λ_W/λ_H
    bias_ratio: float = 1.0  # λ_b/√(λ_W λ_H)
    scale: float = 1e-2  # standard deviation of the start in the first dimension of the features
    # Factor by which it shrinks from each dimension to the next, which leaves the origin later.
    smaller: float = 1e-4
    rate: float = 2.0  # step size η
    steps: int = 2800  # steps in all
    every: int = 10  # steps between measurements
    # Modulus, in units of √(λ_W λ_H), up to which an eigenvalue counts as 0 off critical points,
    # where those along the orbit are of the size of ‖∇f‖.
    resolution: float = 0.1
    slow: float = 10.0  # a slow passage is a minimum of ‖∇f‖ this many times below both sides
    gap_tol: float = 1e-9  # certified gap at which the end counts as the global minimum, in nats
    start_tol: float = 1e-3  # relative tolerance on the smallest eigenvalue at the start
    value_tol: float = 1e-9  # tolerance on the spectrum at the end, over its largest eigenvalue
    seed: int = 1  # seed of the start

    @classmethod
    def quick(cls) -> "Config":
        """Four classes, one saddle before the minimum, fewer records."""
        return cls(K=4, d=6, n=5, steps=1600, every=20, seed=0)


def problem_of(config: Config) -> Problem:
    """K classes at x = K² n λ_W λ_H."""
    K, n = config.K, config.n
    mu, skew = float(np.sqrt(config.x / (K * K * n))), float(np.sqrt(config.ratio))
    return Problem(K, config.d, n, mu * skew, mu / skew, mu * config.bias_ratio)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Curves (records,), the saddles passed (saddles,), and the spectrum at the end."""
    problem, records = problem_of(config), config.steps // config.every + 1
    sizes = config.scale * config.smaller ** np.arange(config.d)
    params = init_params(jax.random.key(config.seed), problem, 1.0)
    params = params._replace(W=params.W * sizes, H=params.H * sizes[:, None])
    progress(0.0, "descent")
    points, history = _run(problem, params, config.rate, config.every, records)
    results = {name: np.asarray(history[name]) for name in CURVES}
    rows = []
    for i in range(records):
        progress(0.1 + 0.8 * i / records, f"eigenvalues, step {i * config.every}")
        rows.append(_eigenvalues(config, problem, _at(points, i)))
    results |= {name: np.array([row[name] for row in rows]) for name in EIGENVALUES}
    slow = passages(config, results["grad_norm"])
    saddles = [_saddle(problem, _at(points, i)) for i in slow]
    results |= {f"saddle_{name}": np.array([x[name] for x in saddles]) for name in SADDLE}
    end = ufm.solve(problem, _at(points, -1), descend=False).params
    values, multiplicities = hessian.spectrum(problem, end)
    counts = hessian.inertia(problem, end)
    return results | {
        "end_gap": np.asarray(ufm.certify(problem, end).gap),
        "end_values": values,
        "end_multiplicities": np.array(multiplicities),
        "end_counts": np.array([counts.negative, counts.zero]),
    }


def _run(problem: Problem, params: Params, rate: float, every: int, records: int):
    """Every point that is measured, and its measurements, along gradient descent."""
    method, hyper = Method("gd", None, None), (rate, 0.0)

    def record(state, _):
        last = jax.lax.fori_loop(0, every, lambda _, x: step(problem, method, hyper, x), state)
        return last, (state.params, measurements(problem, state.params))

    @jax.jit
    def run(params):
        return jax.lax.scan(record, start(problem, params, method, hyper), length=records)[1]

    return run(params)


def _at(points: Params, i: int) -> Params:
    return jax.tree.map(lambda x: x[i], points)


def _eigenvalues(config: Config, problem: Problem, params: Params) -> dict[str, float]:
    """The extreme eigenvalues, and how many are negative by two ways of counting."""
    tolerance = config.resolution * problem.mu
    values = np.linalg.eigvalsh(hessian.dense(problem, params))
    return {
        "smallest": values[0],
        "largest": values[-1],
        "dense_index": np.sum(values < -tolerance),
        "index": hessian.inertia(problem, params, tolerance=tolerance).negative,
    }


def passages(config: Config, grad_norm: np.ndarray) -> list[int]:
    """Records at which the run is slowest: minima of ‖∇f‖ between larger ones."""
    found = []
    for i in range(1, len(grad_norm) - 1):
        higher = grad_norm > config.slow * grad_norm[i]
        before, after = higher[:i].any(), higher[i:].any()
        if before and after:
            left = i - np.argmax(higher[:i][::-1])
            right = i + np.argmax(higher[i:])
            if np.argmin(grad_norm[left:right]) == i - left:
                found.append(i)
    return found


def _saddle(problem: Problem, params: Params) -> dict[str, float]:
    """The critical point to which Newton's method converges from a slow passage."""
    found = ufm.solve(problem, params, descend=False)
    if found.status != "converged":
        return dict.fromkeys(SADDLE, np.nan) | {"converged": False}
    values = hessian.spectrum(problem, found.params).eigenvalues
    return {
        "value": ufm.certify(problem, found.params).value,
        "index": hessian.inertia(problem, found.params).negative,
        "smallest": values[0],
        "largest": values[-1],
        "converged": True,
    }


def check(config: Config, results: dict) -> list[Verdict]:
    """Start, passages and end of the run, and the two counts at every record."""
    problem, slow = problem_of(config), passages(config, results["grad_norm"])
    origin, closed = origin_spectrum(problem), hessian_spectrum(problem)
    lowest, rank = origin.eigenvalues[0], config.K - 1
    ended = bool(results["end_gap"] < config.gap_tol)
    negative, zero = results["end_counts"]
    away = np.max(np.abs(results["index"][slow] - results["saddle_index"]), initial=0)
    error = np.max(np.abs(_all(_measured(results)) - _all(closed))) / closed.eigenvalues[-1]
    disagreements = np.sum(results["index"] != results["dense_index"])
    start_tol = config.start_tol * abs(lowest)
    return [
        judge("index at the start", results["index"][0], config.d * rank, 0),
        judge("smallest eigenvalue at the start", results["smallest"][0], lowest, start_tol),
        judge(
            f"{len(slow)} slow passages: index − that of the saddle polished from there, worst",
            away, 0, 0, bool(len(slow)) and bool(results["saddle_converged"].all()),
        ),
        judge("records at which inertia and dense eigenvalues disagree", disagreements, 0, 0),
        judge_below("certified gap at the end, nats", results["end_gap"], config.gap_tol, ended),
        judge("index at the end", negative, 0, 0, ended),
        judge("nullity at the end", zero, ufm.theory.orbit_dimension(problem, rank), 0, ended),
        judge(
            "distinct eigenvalues at the end",
            len(results["end_values"]), len(closed.eigenvalues), 0, ended,
        ),
        judge_below(
            "worst error of an eigenvalue at the end, over the largest",
            error, config.value_tol, ended,
        ),
    ]  # fmt: skip


def _measured(results: dict) -> Spectrum:
    return Spectrum(results["end_values"], tuple(results["end_multiplicities"]))


def _all(spectrum: Spectrum) -> np.ndarray:
    """Every eigenvalue as often as it occurs."""
    return np.repeat(spectrum.eigenvalues, spectrum.multiplicities)


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Value and curvature over the steps; the spectrum at the end."""
    return {"": _draw_curves(config, results), "_spectrum": _draw_spectrum(config, results)}


def _draw_curves(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 5.0, 3, 2, sharex=True)
    problem, slow = problem_of(config), passages(config, results["grad_norm"])
    steps, f_star = config.every * np.arange(len(results["loss"])), theory.global_value(problem)
    floor = 1e-16  # what float64 can tell from f*
    excess = np.maximum(results["loss"] - f_star, floor)
    gap = np.maximum(results["gap"], floor)
    closed, origin = hessian_spectrum(problem).eigenvalues, origin_spectrum(problem).eigenvalues
    panels = (
        (excess, r"$f - f^*$, nats", results["saddle_value"] - f_star, None),
        (results["smallest"], r"$\lambda_{\min}$", results["saddle_smallest"], origin[0]),
        (gap, "certified gap, nats", None, None),
        (results["largest"], r"$\lambda_{\max}$", results["saddle_largest"], closed[-1]),
        (results["grad_norm"], r"$\|\nabla f\|$", None, None),
        (results["index"], "Morse index", results["saddle_index"], config.d * (config.K - 1)),
    )  # fmt: skip
    width = 0.06 * steps[-1]
    for i, (ax, (measured, label, at_saddles, level)) in enumerate(
        zip(axes.flat, panels, strict=True)
    ):
        plots.curves(ax, steps, measured, None, i % 2, linestyle="-")
        ax.set(ylabel=label, yscale="log" if i in (0, 2, 4) else "linear")
        for j, record in enumerate(slow):
            ax.axvline(steps[record], color=plots.GREY, linewidth=0.5, zorder=0)
            if at_saddles is not None:
                span = steps[record] + np.array([-width, width])
                plots.prediction(ax, span, [at_saddles[j]] * 2)
        if level is not None:
            edge = (0, 2 * width) if i != 3 else (steps[-1] - 3 * width, steps[-1])
            plots.prediction(ax, edge, [level] * 2)
    (_, smallest), (_, largest), (grad_norm, index) = axes
    smallest.set_yscale("symlog", linthresh=1e-4, linscale=0.5)
    smallest.set_ylim(3 * origin[0], 5e-4)
    plots.tolerance(smallest, 0)
    plots.tolerance(largest, 2 / config.rate)
    largest.text(steps[-1], 2 / config.rate, r"$2/\eta$", va="bottom", ha="right")
    largest.set_ylim(0, 2.4 / config.rate)
    index.set_ylim(bottom=-0.5)
    plots.prediction(index, [], [], "at the nearest critical point")
    index.legend(loc="upper right")
    for ax in (grad_norm, index):
        ax.set_xlabel("step")
    plots.letters(axes.flat)
    return canvas


def _draw_spectrum(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 2.6)
    ax, measured, closed = axes[0, 0], _measured(results), hessian_spectrum(problem_of(config))
    for i, (values, multiplicities) in enumerate((measured, closed)):
        at = np.arange(len(values)) + 0.4 * (i - 0.5)
        look: dict[str, Any] = {"color": plots.colour(0)}
        if i:
            look = {"color": "white", "edgecolor": "black", "linestyle": plots.DASHED}
        ax.bar(at, multiplicities, 0.4, label=("measured", "prediction")[i], **look)
        for x, count in zip(at, multiplicities, strict=True):
            ax.text(x, 1.1 * count, str(count), ha="center", fontsize="x-small")
    names = ["0" if abs(x) < 1e-12 else f"{x:.3g}" for x in closed.eigenvalues]
    ax.set_xticks(np.arange(len(names)), names, rotation=45)
    ax.set(yscale="log", ylim=(0.7, 3 * max(closed.multiplicities)), ylabel="multiplicity")
    ax.set_xlabel(r"eigenvalue of $\nabla^2 f$ at the end")
    ax.legend()
    return canvas


if __name__ == "__main__":
    sys.exit(runner.main("c04_curvature_on_the_way"))
