"""Where the theorem ends: spurious local minima appear when d is below K−1.

Claim. For d ≥ K−1 every local minimum is global, and no smaller bound on d suffices: at d = K−2
there are spurious local minima for every K from 5 to 10. A spurious minimum is a point at which ∇f
is zero to rounding, the Morse index is 0, no eigenvalue off the symmetry orbit is zero, and f
exceeds the lowest value found by far more than rounding. For d = 2 they appear already at K = 6,
where f = 0.11549 and f = 0.15569 are both local minima (λ_W = λ_H = 1e-3, λ_b = 0.01, n = 3).

Some starts do not reach rounding. They are counted separately if they lie in a valley whose
curvature off the symmetry orbit is below 1e-6 ‖∇²f‖. The plane has such valleys: an inner ring of
three classes can rotate inside an outer ring of seven, and only the 21st harmonic of the angle
enters f.

Source. For d ≥ K−1 a theorem of this project, proved in `ufm.theory.landscape`; we know of no
published source. Theorem 3.2 of Zhu et al. 2021 (arXiv 2105.02375) needs d > K, arXiv 2407.10702
d = K. For d < K−1 the certified gap need not vanish, so "lowest" means the lowest found.

Reproduces. That theorem 3.2 of Zhu et al. needs an assumption on d. Extends it to the least d for
which it holds, with a map of the spurious minima found at smaller d.

Shown. n = 3, λ_W = λ_H (in the titles), λ_b = 0.01, 64 starts per cell. Number of spurious local
minima found for each K and d, and (colour) how far the worst of them lies above the lowest value
f_min; ~ marks cells in which some starts ended in valleys too flat to decide. Second figure: the
lowest and the worst minimum in the plane, d = 2, λ_W = λ_H = 1e-3; arrows are the rows of W and
rings the class means, each scaled to the longest, with a colour for each class.

Refuted by a spurious local minimum found for d ≥ K−1, or by none found for d = 2 and K ≥ 6, or for
d = K−2 and K ≥ 5 at any λ.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Params, Problem, plots, theory
from ufm.critical import downhill, newton, orbits, sources
from ufm.critical import search as census
from ufm.hessian.curvature import dense
from ufm.model import quotient

ABOVE = 1e-8  # nats above the lowest value from which a minimum is spurious
KNOWN: dict[str, Any] = {"K": 6, "d": 2, "lam": 1e-3, "values": (0.11549, 0.15569), "digits": 5e-6}
MIDDLE: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7}
PLANE = 10  # rows kept of configurations in the plane, for the largest K


@dataclass(frozen=True)
class Config:
    """Sizes and decays; λ_W = λ_H = lam."""

    # (K, largest d) of every series; d runs from 1.
    shapes: tuple[tuple[int, int], ...] = tuple((K, K) for K in range(4, 11))
    lams: tuple[float, ...] = (1e-3, 1e-2)  # λ_W = λ_H
    lam_b: float = 1e-2  # λ_b
    n: int = 3  # samples per class
    starts: int = 64  # random starts for each K, d and λ
    steps: int = 3000  # limit on the steps of L-BFGS
    missed: float = 0.05  # share of the starts that may fail to reach rounding or a flat valley
    flat: float = 1e-6  # curvature of a flat valley, relative to ‖∇²f‖
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """The known case: six classes in up to two dimensions."""
        return cls(shapes=((6, 2),), lams=(1e-3,), starts=32)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """One row for every orbit with exact index 0; and for every (K, λ, d) what became of starts."""
    rows: list[dict] = []
    cells: list[tuple] = []
    total = sum(width for _, width in config.shapes) * len(config.lams)
    for K, width in config.shapes:
        for lam in config.lams:
            for d in range(1, width + 1):
                progress(len(cells) / total, f"K={K}, d={d}, λ={lam:g}")
                problem = Problem(K, d, config.n, lam, lam, config.lam_b)
                key = jax.random.fold_in(jax.random.key(config.seed), 1000 * K + d)
                found, counts = minima(config, problem, width, key)
                cells.append((K, lam, d, *counts))
                rows += [{"K": K, "lam": lam, "d": d} | row for row in found]
    stacked = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns = zip(*cells, strict=True)
    names = ("cell_K", "cell_lam", "cell_d", "missed", "flat", "saddles")
    return stacked | {name: np.array(x) for name, x in zip(names, columns, strict=True)}


def minima(config: Config, problem: Problem, width: int, key) -> tuple[list[dict], tuple]:
    """(orbits of index 0, (share of starts lost, share in flat valleys, starts on saddles)).

    The starts of all d are solved in `width` dimensions, those beyond d at zero, where descent and
    Newton's method leave them: one program for all d.
    """
    small, narrow = quotient.of_width(problem, width), quotient.of_width(problem, problem.d)
    pad = width - problem.d
    drawn = sources.random(narrow, key, config.starts)
    W = jnp.pad(drawn.W, ((0, 0), (0, 0), (0, pad)))
    H = jnp.pad(drawn.H, ((0, 0), (0, pad), (0, 0)))
    points, _ = downhill.from_many(small, Params(W, H, drawn.b), config.steps)
    solved = census.polish(small, points)
    arrived = solved.status == newton.Arrival.converged
    W, H, b = solved.params
    points = Params(W[:, :, : problem.d], H[:, : problem.d], b)
    orbit_dimension = theory.orbit_dimension(problem, min(problem.d, problem.K - 1))
    flat = ~arrived & (np.asarray(_soft(narrow, points, config.flat)) > orbit_dimension)
    prints = np.asarray(_fingerprints(small, solved.params))
    left, found, saddles = list(np.flatnonzero(arrived)), [], 0
    while left:
        near = np.max(np.abs(prints[left] - prints[left[0]]), axis=1) <= orbits.SAME
        same = [i for i, is_near in zip(left, near, strict=True) if is_near]
        left = [i for i, is_near in zip(left, near, strict=True) if not is_near]
        orbit = orbits.judge(problem, Params(*(x[same[0]] for x in points)), float("nan"), {})
        if orbit.morse_index:
            saddles += len(same)
        else:
            found.append(_row(orbit, len(same)))
    return found, (np.mean(~arrived & ~flat), np.mean(flat), saddles)


@jax.jit
def _soft(problem: Problem, points: Params, share: float):
    """How many eigenvalues of ∇²f lie within `share` of zero, relative to the largest."""

    def one(params):
        eigenvalues = jnp.abs(jnp.linalg.eigvalsh(dense(problem, params)))
        return jnp.sum(eigenvalues <= share * jnp.max(eigenvalues))

    return jax.lax.map(one, points)


@jax.jit
def _fingerprints(problem, points):
    return jax.vmap(lambda x: orbits.fingerprint(problem, x))(points)


def _row(orbit: orbits.Orbit, hits: int) -> dict:
    """What is stored of a minimum; its picture where it lies in the plane."""
    rows = np.full((2, PLANE, 2), np.nan)
    W, H, _ = orbit.params
    if W.shape[1] == 2 and len(W) <= PLANE:
        rows[0, : len(W)], rows[1, : len(W)] = W, H.T
    return {
        "value": orbit.value, "gap": orbit.gap, "hits": hits, "residual": orbit.residual,
        "nullity": orbit.nullity, "orbit_dimension": orbit.orbit_dimension,
        "smallest": orbit.smallest, "plane": rows,
    }  # fmt: skip


def spurious(results: dict) -> np.ndarray:
    """Which rows are isolated orbits of local minima above the lowest one of their (K, λ, d)."""
    lowest = np.array([np.min(results["value"][_same(results, i)]) for i in _rows(results)])
    isolated = results["nullity"] == results["orbit_dimension"]
    return isolated & (results["value"] > lowest + ABOVE)


def _rows(results: dict) -> range:
    return range(len(results["value"]))


def _same(results: dict, i: int) -> np.ndarray:
    """The rows with the K, λ and d of row i."""
    return np.all([results[name] == results[name][i] for name in ("K", "lam", "d")], axis=0)


def table(results: dict, K: int, lam: float, d: int) -> tuple[int, float]:
    """(spurious minima, excess of the worst of them in nats, 0 without one) of a cell."""
    mine = (results["K"] == K) & (results["lam"] == lam) & (results["d"] == d)
    bad = mine & spurious(results)
    excess = np.max(results["value"][bad], initial=-np.inf) - np.min(results["value"][mine])
    return int(bad.sum()), float(excess) if bad.any() else 0.0


def check(config: Config, results: dict) -> list[Verdict]:
    """Counts on both sides of d = K−1, the known pair, and how many starts arrived."""
    bad, K, d = spurious(results), results["K"], results["d"]
    verdicts = []
    for name, side, shown in (
        ("d = K", d == K, any(width >= K for K, width in config.shapes)),
        ("d = K−1", d == K - 1, any(width >= K - 1 for K, width in config.shapes)),
    ):
        if shown:
            verdicts.append(judge(f"{name}: spurious local minima found", bad[side].sum(), 0, 0))
    sharp = [
        any(table(results, K, lam, K - 2)[0] for lam in config.lams)
        for K, width in config.shapes
        if K >= 5 and width >= K - 2
    ]
    if sharp:
        claim = "d = K−2: share of K ≥ 5 with a spurious local minimum at some λ"
        verdicts.append(judge(claim, np.mean(sharp), 1, 0))
    least = min(config.lams)
    counts = [table(results, K, least, 2)[0] for K, width in config.shapes if K >= 6 and width >= 2]
    if counts:
        claim = f"d = 2, λ={least:g}: share of K ≥ 6 with a spurious local minimum"
        verdicts.append(judge(claim, np.mean(np.array(counts) > 0), 1, 0))
    mine = (KNOWN["K"] == K) & (d == KNOWN["d"]) & (results["lam"] == KNOWN["lam"])
    if mine.any():
        off = [np.min(np.abs(results["value"][mine] - x)) for x in KNOWN["values"]]
        claim = "K=6, d=2, λ=0.001: distance of the known values from minima found, nats"
        verdicts.append(judge_below(claim, max(off), KNOWN["digits"]))
    # Starts that did not arrive neither support nor refute; they leave the search incomplete.
    missed = max(results["missed"])
    claim = "largest share of starts neither at rounding nor in a flat valley"
    verdicts.append(judge_below(claim, missed, config.missed, missed < config.missed))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Counts and excess over (K, d), λ by λ; minima in the plane, the lowest and the worst.

    A number is how many spurious minima were found, ~ that some starts ended in flat valleys.
    """
    return {"": _draw_table(config, results), "_plane": _draw_plane(config, results)}


def _draw_table(config: Config, results: dict) -> Figure:
    """Counts as numbers, excess of the worst as colour, K upwards and d to the right."""
    canvas, axes = plots.figure(
        "icml_text", max(2.0, 1.1 + 0.24 * len(config.shapes)), 1, len(config.lams)
    )
    classes, widths = zip(*config.shapes, strict=True)
    limit = LogNorm(1e-5, 1e-1)
    for ax, lam in zip(axes.flat, config.lams, strict=True):
        excess = np.full((len(classes), max(widths)), np.nan)
        for i, (K, width) in enumerate(config.shapes):
            for d in range(1, width + 1):
                count, worst = table(results, K, lam, d)
                excess[i, d - 1] = worst or np.nan
                here = (results["cell_K"] == K) & (results["cell_d"] == d)
                flat = results["flat"][here & (results["cell_lam"] == lam)].item() > 0
                dark = "white" if worst > 1e-3 else "black"
                ax.text(d, i, f"{count}~" if flat else f"{count}", color=dark, **MIDDLE)
            # From this line to the right, d ≥ K − 1: by the theorem there is none.
            ax.plot([K - 1.5] * 2, [i - 0.5, i + 0.5], color="black", linewidth=1.2)
            if i:
                ax.plot(
                    [classes[i - 1] - 1.5, K - 1.5], [i - 0.5] * 2, color="black", linewidth=1.2
                )
        box = (0.5, max(widths) + 0.5, -0.5, len(classes) - 0.5)
        image = ax.imshow(
            excess, norm=limit, cmap="cividis_r", origin="lower", extent=box, aspect="auto"
        )
        ax.set(xlabel=r"$d$", ylabel=r"$K$", title=rf"$\lambda_W=\lambda_H={lam:g}$", xlim=box[:2])
        ax.set_xticks(range(1, max(widths) + 1))
        ax.set_yticks(range(len(classes)), classes)
    canvas.colorbar(image, ax=axes, label=r"$f - f_{\min}$ of the worst, nats")
    stairs = Line2D([], [], color="black", linewidth=1.2, label=r"right of the line: $d \geq K-1$")
    none: dict[str, Any] = {"color": "none", "marker": "none", "linestyle": "none"}
    handles = [Line2D([], [], label="number: spurious minima found", **none), stairs]
    handles.append(Line2D([], [], label="~ some starts undecided in flat valleys", **none))
    canvas.legend(handles=handles, loc="outside lower center", ncols=3)
    plots.letters(axes.flat)
    return canvas


def _draw_plane(config: Config, results: dict) -> Figure:
    """Classifier rows as arrows and class means as rings, scaled to the longest of each."""
    shown = [K for K, width in config.shapes if width >= 2 and 6 <= K <= PLANE] or [
        K for K, width in config.shapes if width >= 2
    ]
    canvas, axes = plots.figure("icml_text", 3.3, 2, len(shown))
    lam, bad = min(config.lams), spurious(results)
    for column, K in zip(axes.T, shown, strict=True):
        mine = (results["K"] == K) & (results["d"] == 2) & (results["lam"] == lam)
        order = np.flatnonzero(mine)[np.argsort(results["value"][mine])]
        worst = [i for i in order if bad[i]][-1:]
        for ax, chosen, name in ((column[0], order[:1], "lowest"), (column[1], worst, "worst")):
            ax.set_axis_off()
            for i in chosen:
                W, H = results["plane"][i][:, :K]
                _configuration(ax, W, H)
                ax.set_title(f"$K={K}$, {name}\n$f={results['value'][i]:.5f}$", pad=3)
    plane_legend(canvas)
    return canvas


def plane_legend(canvas: Figure) -> None:
    """The key to a configuration in the plane."""
    dark: dict[str, Any] = {"color": "#444444"}
    row = Line2D([], [], marker=">", markevery=[1], label="classifier rows", **dark)
    ring = Line2D([], [], marker="o", mfc="none", ls="none", ms=5, label="class means", **dark)
    canvas.legend(handles=[row, ring], loc="outside lower center", ncols=2)


def _configuration(ax, W: np.ndarray, H: np.ndarray) -> None:
    for k, (w, h) in enumerate(zip(_scaled(W), _scaled(H), strict=True)):
        hue = plots.colour(k)
        arrow = {"arrowstyle": "-|>", "color": hue, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", w, (0, 0), arrowprops=arrow)
        ax.plot(*h, "o", mfc="none", mec=hue, mew=1.0, ms=5)
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


def _scaled(rows: np.ndarray) -> np.ndarray:
    return rows / np.max(np.linalg.norm(rows, axis=1))


if __name__ == "__main__":
    sys.exit(runner.main("c10_boundary"))
