"""Degeneracy: at the global minimum the Hessian vanishes along the symmetry orbit and nowhere else.

Claim. A rotation of the features, (W, H) → (WQᵀ, QH), does not change f; if λ_b = 0, neither does a
constant added to b. The orbit of a point at which [Wᵀ, H] has rank r has dimension rd − r(r+1)/2,
and 1 more if λ_b = 0. At the global minimum r = K − 1 if K² n λ_W λ_H < 1 and r = 0 otherwise, and
the nullity of ∇²f equals the dimension of the orbit: f is Morse–Bott there. All other eigenvalues
are positive. The smallest of them has a closed form, which tends to 0 at the threshold and only
there.

Source. Zhu et al. 2021 (arXiv 2105.02375), theorem 3.1, for the minimum; nullity and eigenvalues
are derived in `ufm.theory.spectra`.

Reproduces. Theorem 3.1 of Zhu et al. (the minimiser is unique up to rotation), seen in the Hessian.
Extends it by the nullity and the smallest nonzero eigenvalue, on both sides of the threshold.

Shown. λ_W = 4λ_H; K (in (c) K, d and n) in the legend. (a) Nullity of ∇²f at the minimum against d
(full symbols: λ_b = √(λ_Wλ_H), hollow: λ_b = 0), with the dimension of the orbit as prediction;
n = 3, K²nλ_Wλ_H = 0.02. (b) For the same problems, the smallest eigenvalue that is not counted as
zero (full) and the largest modulus that is (hollow). (c) The smallest nonzero eigenvalue on both
sides of the threshold, λ_b = √(λ_Wλ_H); dashed, the closed form.

Refuted by a certified minimum with another nullity or a negative eigenvalue, or by a smallest
nonzero eigenvalue off the closed form.
"""

import sys
from dataclasses import dataclass

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge_all_below, judge_all_zero
from ufm import Problem, hessian, init_params, plots
from ufm.theory import is_collapsed
from ufm.theory.spectra import hessian_spectrum, orbit_dimension

UNITS = r"$x = K^2 n \lambda_W \lambda_H$"


@dataclass(frozen=True)
class Config:
    """Two grids: of sizes at one x = K² n λ_W λ_H, and of x at a few sizes."""

    classes: tuple[int, ...] = (2, 3, 4, 6, 10)  # K in the grid of sizes
    extra: tuple[int, ...] = (-1, 0, 1, 6)  # d − K there
    n: int = 3  # samples per class there
    at: float = 0.02  # x there
    # (K, d, n) of the series over x.
    shapes: tuple[tuple[int, int, int], ...] = ((2, 2, 10), (4, 6, 5), (10, 12, 3))
    lowest: float = 1e-5  # smallest x
    highest: float = 10.0  # largest x
    nearest: float = 1e-2  # smallest |x − 1|
    points: int = 16  # values of x below the threshold, and half as many above it
    ratio: float = 4.0  # λ_W/λ_H
    bias_ratio: float = 1.0  # λ_b/√(λ_W λ_H) where λ_b > 0
    scale: float = 1.0  # standard deviation of the entries of a start
    gap_tol: float = 1e-9  # certified gap up to which a point counts as the global minimum, in nats
    # Modulus of an eigenvalue that counts as 0 in the dense matrix, over the largest one.
    zero: float = 1e-11
    value_tol: float = 1e-8  # relative tolerance on the smallest nonzero eigenvalue
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Fewer sizes, fewer x."""
        return cls(classes=(3,), extra=(-1, 1), shapes=((3, 4, 3),), points=8)


def problem_of(config: Config, shape: tuple[int, int, int], x: float, free: bool) -> Problem:
    """K classes at x = K² n λ_W λ_H; λ_b = 0 if the bias is free."""
    K, d, n = shape
    mu, skew = float(np.sqrt(x / (K * K * n))), float(np.sqrt(config.ratio))
    return Problem(K, d, n, mu * skew, mu / skew, 0.0 if free else mu * config.bias_ratio)


def sizes(config: Config) -> list[tuple[int, int, int]]:
    """Every (K, d, n) of the first grid."""
    return [(K, K + more, config.n) for K in config.classes for more in config.extra]


def grid(config: Config) -> np.ndarray:
    """Every x of the series: geometric in x up to 1/2, then in |x − 1|."""
    half = config.points // 2
    far = np.geomspace(config.lowest, 0.5, config.points - half, endpoint=False)
    lower = 1 - np.geomspace(0.5, config.nearest, half)
    return np.concatenate([far, lower, 1 + np.geomspace(config.nearest, config.highest - 1, half)])


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """What `_measure` finds: (sizes, λ_b > 0 or = 0) as size_…, and (shapes, x)."""
    shapes, x = sizes(config), grid(config)
    rows = []
    for i, shape in enumerate(shapes):
        progress(0.5 * i / len(shapes), "K={}, d={}, n={}".format(*shape))
        rows += [
            _measure(config, problem_of(config, shape, config.at, free)) for free in (False, True)
        ]
    series = []
    for i, shape in enumerate(config.shapes):
        for j, value in enumerate(x):
            share = 0.5 + 0.5 * (i + j / len(x)) / len(config.shapes)
            progress(share, f"K={shape[0]}, x={value:.3g}")
            series.append(_measure(config, problem_of(config, shape, float(value), False)))
    results = {"x": x}
    for name in rows[0]:
        results[f"size_{name}"] = np.array([row[name] for row in rows]).reshape(-1, 2)
        kept = np.array([row[name] for row in series])
        results[name] = kept.reshape(len(config.shapes), len(x))
    return results


def _measure(config: Config, problem: Problem) -> dict[str, float]:
    """The critical point that descent finds, and what the Hessian says of it."""
    start = init_params(jax.random.key(config.seed), problem, config.scale)
    found = ufm.solve(problem, start)
    counts = hessian.inertia(problem, found.params)
    values = np.linalg.eigvalsh(hessian.dense(problem, found.params))
    null = np.abs(values) <= config.zero * values[-1]
    return {
        "converged": found.status == "converged",
        "gap": ufm.certify(problem, found.params).gap,
        "index": counts.negative,
        "nullity": counts.zero,
        "dense_index": int(np.sum(values[~null] < 0)),
        "dense_nullity": int(np.sum(null)),
        "null": float(np.max(np.abs(values[null]), initial=0)),
        "smallest": float(np.min(values[~null])),
    }


def orbits(config: Config) -> np.ndarray:
    """Dimension of the orbit of the minimum for every size, (sizes, 2)."""
    return np.array(
        [
            [orbit_dimension(problem_of(config, shape, config.at, free), shape[0] - 1)
             for free in (False, True)]
            for shape in sizes(config)
        ]
    )  # fmt: skip


def smallest_of(problem: Problem) -> float:
    """The smallest positive eigenvalue in closed form."""
    values = hessian_spectrum(problem).eigenvalues
    return float(np.min(values[values > 1e-13 * values[-1]]))


def check(config: Config, results: dict) -> list[Verdict]:
    """Index and nullity by two methods over sizes and x; the smallest nonzero eigenvalue."""
    minimum = {
        name: results[name + "converged"].astype(bool) & (results[name + "gap"] <= config.gap_tol)
        for name in ("size_", "")
    }
    verdicts = []
    for name, where in (("", "inertia"), ("dense_", "dense eigenvalues")):
        excess = results[f"size_{name}nullity"] - orbits(config)
        for side, bias in enumerate(("λ_b > 0", "λ_b = 0")):
            claim = f"nullity − dimension of the orbit, {bias}, by {where}"
            verdicts.append(judge_all_zero(claim, excess[:, side], minimum["size_"][:, side]))
        both = results[f"size_{name}index"], results[f"{name}index"]
        index = np.concatenate([part.ravel() for part in both])
        ended = np.concatenate([minimum["size_"].ravel(), minimum[""].ravel()])
        verdicts.append(judge_all_zero(f"largest index of all minima, by {where}", index, ended))
    for i, shape in enumerate(config.shapes):
        problems = [problem_of(config, shape, float(x), False) for x in results["x"]]
        name = "K={}, d={}, n={}: ".format(*shape)
        ranks = [0 if is_collapsed(problem) else shape[0] - 1 for problem in problems]
        orbit = [orbit_dimension(*pair) for pair in zip(problems, ranks, strict=True)]
        excess = results["nullity"][i] - orbit
        claim = name + "nullity − dimension of the orbit, all x"
        verdicts.append(judge_all_zero(claim, excess, minimum[""][i]))
        error = results["smallest"][i] / [smallest_of(problem) for problem in problems] - 1
        claim = name + "worst relative error of the smallest nonzero eigenvalue"
        verdicts.append(judge_all_below(claim, error, minimum[""][i], config.value_tol))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Nullity against the orbit's dimension; zeros apart from the rest; the gap over x."""
    canvas, axes = plots.figure("icml_text", 2.5, 1, 3)
    counts, apart, gap = axes.flat
    _draw_counts(counts, config, results)
    for i, shape in enumerate(config.shapes):
        label = "$K={}$, $d={}$, $n={}$".format(*shape)
        ended = results["converged"][i].astype(bool)
        plots.points(gap, results["x"], results["smallest"][i], ended, label, i)
        for near in (np.geomspace(config.lowest, 0.999, 200), np.geomspace(1.001, config.highest)):
            values = [smallest_of(problem_of(config, shape, float(x), False)) for x in near]
            plots.prediction(gap, near, values, linewidth=0.7)
    gap.set(xscale="log", yscale="log", xlabel=UNITS)
    gap.set_ylabel("smallest nonzero eigenvalue")
    _draw_apart(apart, config, results)
    gap.legend(loc="upper left")
    gap.set_ylim(top=20)
    plots.letters(axes.flat)
    return {"": canvas}


def _draw_counts(ax: Axes, config: Config, results: dict) -> None:
    """The nullity over d, a series a K, and through it the dimension of the orbit."""
    orbit, done = orbits(config), results["size_converged"].astype(bool)
    K, d, _ = np.array(sizes(config)).T
    for i, k in enumerate(config.classes):
        mine, fine = k == K, np.arange(k - 1, k + max(config.extra) + 1)
        for side, look in enumerate(({}, {"markerfacecolor": "none", "markersize": 5.0})):
            at = d[mine], results["size_nullity"][mine, side], done[mine, side]
            plots.points(ax, *at, None if side else f"$K={k}$", i, **look)
            shapes = [(k, int(width), config.n) for width in fine]
            problems = [problem_of(config, shape, config.at, bool(side)) for shape in shapes]
            law = [orbit_dimension(problem, k - 1) for problem in problems]
            plots.prediction(ax, fine, law, linewidth=0.5)
    plots.prediction(ax, [], [], "prediction")
    ax.set_yscale("symlog", linthresh=1, linscale=0.4)
    ax.set(xlabel="$d$", ylabel=r"nullity of $\nabla^2 f$", ylim=(-0.2, 12 * orbit.max()))
    ax.legend(loc="upper left", ncols=2, columnspacing=1.0)


def _draw_apart(ax: Axes, config: Config, results: dict) -> None:
    """The largest modulus that counted as 0 and the smallest that did not, one column a size."""
    names = [f"{K}, {d}" for K, d, _ in sizes(config)]
    at = np.arange(len(names))
    for side, label in enumerate((r"$\lambda_b > 0$", r"$\lambda_b = 0$")):
        null = np.maximum(results["size_null"][:, side], 1e-20)
        null[results["size_dense_nullity"][:, side] == 0] = np.nan
        look = {"marker": "D" if side else "o"}
        plots.points(ax, at, results["size_smallest"][:, side], None, label, 5 - side, **look)
        plots.points(ax, at, null, None, None, 5 - side, markerfacecolor="none", **look)
    ax.set(yscale="log", ylim=(1e-19, 10), xlabel=r"$K$, $d$", ylabel=r"$|\lambda|$")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.66))
    ax.text(0.5, 0.7, "smallest nonzero", transform=ax.transAxes, ha="center")
    ax.text(0.5, 0.22, "largest counted as 0", transform=ax.transAxes, ha="center")
    ax.set_xticks(at, names, rotation=90, fontsize="x-small")


if __name__ == "__main__":
    sys.exit(runner.main("c05_degeneracy"))
