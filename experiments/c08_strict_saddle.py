"""Strict saddles: from d = K−1 on every critical point is global or has a known descent direction.

Claim. For d ≥ K−1 and any class counts, a critical point with ‖G‖₂ ≤ √(λ_W λ_H) is a global
minimiser; this holds wherever W has rank K−1. Every other critical point is a strict saddle whose
least eigenvalue is

    λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²),

with an eigenvector orthogonal to the row space of W. The critical points of different d are the
same: they are found once for each problem, in K − 1 dimensions, and classified at every d.

Source. Both are theorems of this project, proved in `ufm.theory.landscape`; we know of no published
source. They contain theorem 3.2 of Zhu et al. 2021 (arXiv 2105.02375; balanced, d > K) and
arXiv 2407.10702 (d = K). The saddles of K = 10 with which the census is compared were found before
this script was written, by padding solutions of lower rank.

Reproduces. Theorem 3.2 of Zhu et al. and its extension to d = K, with the direction of negative
curvature of the proof. Extends it to d = K−1, to unequal counts, and by how negative the curvature
is.

Shown. K in the legend, n = 20, or n_k = K, K−1, …, 1 where unequal; K√(nλ_Wλ_H) = 0.01 to 0.5, n
the mean count, λ_W = 20λ_H, λ_b = λ_W. (a) Least eigenvalue of ∇²f at every saddle against its
value, d = K; (b) the same at the saddle where it is closest to zero, against the decay; (c)
relative difference between the least eigenvalue and λ₋, for every saddle and d.

Refuted by a critical point with d ≥ K−1 that is neither certified as global nor has a negative
eigenvalue, by one of rank K−1 with ‖G‖₂ ≠ √(λ_W λ_H), by an eigenvalue below λ₋, by an accepted
point whose gradient, differentiated anew, is not zero to rounding, or by a known saddle that is
missed.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Params, Problem, plots, theory
from ufm.critical import newton, orbits
from ufm.critical.search import Batch, Census, census, quotient_of
from ufm.hessian.curvature import dense, flatten
from ufm.linalg import pair
from ufm.model import objective as terms

UNITS = r"$K\sqrt{n\lambda_W\lambda_H}$"
KINDS = ("strict saddle", "global minimiser", "local minimiser", "undecided", "not critical")
# Saddles at K = 10, n = 20, d = 16, K√(nλ_Wλ_H) = 0.05, λ_W/λ_H = 20, λ_b = λ_W: (rank, f, index).
KNOWN = ((1, 1.354744, 120), (2, 0.627087, 98), (4, 0.334789, 60), (8, 0.287730, 8))
# Columns of `points`, a row a census: K, whether counts are unequal, index of the strength, points,
# global ones, saddles, refused by the strict residual, worst residual, deepest eigenvalue below λ₋
# (relative), least negative eigenvalue and least ‖G‖₂/√(λ_W λ_H) of a saddle, saddles that are none
# in d = K − 1 dimensions, worst |f − f*| of a global one, points of rank K − 1 and the worst
# |‖G‖₂/√(λ_W λ_H) − 1| among them.
SUMMARY = (
    *("K", "uneven", "strength", "points", "global", "saddles", "refused", "residual", "lower"),
    *("shallowest", "ratio", "stuck", "error", "full", "full_error"),
)
NONE = 1e-17  # where an error of exactly 0 is drawn
FULL = 1e-3  # of the largest singular value of W, which the smallest exceeds at rank K − 1


class Cell(NamedTuple):
    """K classes of n samples, n a number or one for each class, and how much to look for."""

    K: int
    n: int | tuple[int, ...]
    starts: int
    rounds: int
    strengths: int

    @property
    def uneven(self) -> bool:
        """Whether the counts differ."""
        return not isinstance(self.n, int)

    @property
    def mean(self) -> float:
        """Samples a class, on average."""
        return float(np.mean(self.n))


@dataclass(frozen=True)
class Config:
    """The grid, effort and tolerances."""

    # (K, starts per source and round, rounds, strengths) of the censuses; a step of Newton's
    # method at K = 10 costs a hundred times what it does at K = 4.
    effort: tuple[tuple[int, int, int, int], ...] = (
        *((3, 64, 2, 4), (4, 128, 2, 4), (5, 128, 2, 4), (6, 96, 2, 3)),
        *((8, 48, 1, 2), (10, 64, 1, 1)),
    )
    # The same for classes of K, K − 1, …, 1 samples.
    unequal: tuple[tuple[int, int, int, int], ...] = ((3, 64, 2, 4), (4, 64, 2, 3))
    # Values of K√(nλ_Wλ_H), n the mean count, the first so many for each problem.
    strengths: tuple[float, ...] = (0.05, 0.5, 0.2, 0.01)
    widths: tuple[float, ...] = (1.0, 1.1, 1.6, 2.5, 4.0)  # d/K rounded up, beside d = K − 1
    n: int = 20  # samples per class where counts are equal
    ratio: float = 20.0  # λ_W/λ_H; λ_b = λ_W
    strict: float = 2e-14  # ‖∇f‖ allowed, in units of the terms that cancel in it
    global_tol: float = 1e-9  # how far ‖G‖₂/√(λ_W λ_H) may exceed 1 at a global minimiser
    depth_tol: float = 1e-9  # how far the least eigenvalue may be from λ₋, relative to it
    window: float = 1e-11  # eigenvalues within this of 0 are undecided
    value_tol: float = 1e-6  # distance in f to a known saddle, nats: six decimals are known
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """K = 4, and K = 3 with unequal counts, one round: most of the time is compilation."""
        return cls(effort=((4, 64, 1, 2),), unequal=((3, 32, 1, 2),))


def cells_of(config: Config) -> list[Cell]:
    """Every problem up to its decays and d: equal counts, then unequal ones."""
    equal = [Cell(K, config.n, *effort) for K, *effort in config.effort]
    return equal + [Cell(K, tuple(range(K, 0, -1)), *effort) for K, *effort in config.unequal]


def problem_of(config: Config, cell: Cell, strength: float, d: int) -> Problem:
    """The classes of a cell in d dimensions."""
    mu, skew = strength / (cell.K * float(np.sqrt(cell.mean))), float(np.sqrt(config.ratio))
    return Problem(cell.K, d, cell.n, mu * skew, mu / skew, mu * skew)


def widths_of(config: Config, K: int) -> list[int]:
    """Every d of the grid for K classes, d = K − 1 the least."""
    return sorted({K - 1, *(int(np.ceil(share * K - 1e-9)) for share in config.widths)})


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Every polished point by itself, every orbit at every d, and what was tried and refused."""
    points, tried = [], []
    rows: list[tuple] = []
    cells = cells_of(config)
    total, done = sum(cell.strengths for cell in cells), 0
    for cell in cells:
        for j, strength in enumerate(config.strengths[: cell.strengths]):

            def report(batch: Batch, cell=cell, strength=strength, done=done) -> None:
                about = f"K={cell.K}, n={cell.n}, Kc={strength:g}"
                known = len(batch.census.orbits)
                progress(done / total, f"{about}, {batch.source}: {known} orbits")

            found, measured = _census(config, cell, j, report)
            points.append(_summary(config, measured, cell, j, _least(found)))
            tried.append((sum(found.tried.values()), sum(found.refused.values())))
            rows += _judged(config, cell, j, found)
            done += 1
    names = ("K", "uneven", "strength", "d", "number", "kind", "rank", "index", "excess", "value",
             "smallest", "error")  # fmt: skip
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    floats = {"value": np.float64, "smallest": np.float32, "error": np.float32}
    kept = {name: x.astype(floats.get(name, np.int16)) for name, x in columns.items()}
    return kept | {"points": np.array(points), "tried": np.array(tried)}


def _census(config: Config, cell: Cell, j: int, report) -> tuple[Census, np.ndarray]:
    """The census of a cell at the strength j, and `_measure` of every point that arrived."""
    problem = problem_of(config, cell, config.strengths[j], cell.K)
    small = quotient_of(problem)
    batches: list[np.ndarray] = []

    def on_batch(batch: Batch) -> None:
        report(batch)
        # Padded to one shape, so that one program serves every batch.
        if arrived := len(batch.arrived.W):
            lanes = np.resize(np.arange(arrived), cell.starts)
            measured = _measure(problem, small, jax.tree.map(lambda x: x[lanes], batch.arrived))
            batches.append(np.stack(measured, axis=1)[:arrived])

    series = jax.random.fold_in(jax.random.key(config.seed), cell.K + 1000 * cell.uneven)
    found = census(
        problem, jax.random.fold_in(series, j), starts=cell.starts, rounds=cell.rounds,
        on_batch=on_batch,
    )  # fmt: skip
    return found, np.concatenate(batches)


def _least(found: Census) -> float:
    """f*: in closed form for balanced classes, else the highest certified bound from below."""
    if found.problem.balanced:
        return float(theory.global_value(found.problem))
    return max(orbit.value - orbit.gap for orbit in found.orbits)


def _judged(config: Config, cell: Cell, j: int, found: Census) -> list[tuple]:
    """One row for every orbit at every d."""
    rows = []
    with jax.enable_x64(True):
        for number, orbit in enumerate(found.orbits):
            params = jax.tree.map(jnp.asarray, orbit.params)
            for d in widths_of(config, cell.K):
                wide = problem_of(config, cell, config.strengths[j], d)
                one = orbits.judge(wide, params, orbit.newton_step, {})
                rows.append((cell.K, cell.uneven, j, d, number, *_row(one)))
    return rows


def _row(one: orbits.Orbit) -> tuple:
    """Kind, rank, index, zero eigenvalues off the symmetry orbit, f, least eigenvalue, its error.

    The error is that of λ₋ as the least eigenvalue, relative; positive if one is lower.
    """
    kind, excess = KINDS.index(one.kind), one.nullity - one.orbit_dimension
    error = (one.smallest - one.predicted) / one.predicted if one.predicted < 0 else np.nan
    return kind, one.rank, one.morse_index, excess, one.value, one.smallest, error


@jax.jit
def _measure(problem: Problem, small: Problem, points: Params) -> tuple[Array, ...]:
    """Six numbers of each of many points in the coordinates of the quotient.

    f; ‖∇f‖ by automatic differentiation over `newton.scale`; the least eigenvalue of ∇²f in
    K − 1 dimensions, of the problem itself (features in units of √n_k, as they are class means);
    λ₋; ‖G‖₂/√(λ_W λ_H); the smallest singular value of W over its largest.
    """
    lam_W, lam_H = jnp.asarray(problem.lam_W), jnp.asarray(problem.lam_H)
    # Samples a column: λ_H of the column over that of a sample.
    weights = 1.0 if small.decay_weights is None else jnp.asarray(small.decay_weights)
    root = jnp.sqrt(jnp.broadcast_to(small.lam_H * weights / lam_H, (small.groups,)))
    root = root[jnp.asarray(small.labels)]

    def one(params):
        G = terms.data_gradient(small, params)
        slope = flatten(small, jax.grad(lambda x: terms.objective(small, x))(params))
        residual = jnp.linalg.norm(slope) / newton.scale(small, params, G)
        units = Params(jnp.ones_like(params.W), jnp.ones_like(params.H) / root,
                       jnp.ones_like(params.b))  # fmt: skip
        unit = flatten(small, units)
        core = jnp.linalg.eigvalsh(unit[:, None] * dense(small, params) * unit)[0]
        g = jnp.linalg.norm(G / root, 2)  # a column of G is the sum over n_k samples, each G/n_k
        predicted, _ = pair.eigenvalues(jnp, lam_W, lam_H, g)
        value = terms.objective(small, params)
        sizes = jnp.linalg.svd(params.W, compute_uv=False)
        full = sizes[-1] / jnp.maximum(sizes[0], 1e-8)
        return value, residual, core, predicted, g / jnp.sqrt(lam_W * lam_H), full

    return jax.vmap(one)(points)


def _summary(
    config: Config, measured: np.ndarray, cell: Cell, j: int, f_star: float
) -> tuple[float, ...]:
    """One row for the points of a census: see `SUMMARY`."""
    value, residual, core, predicted, ratio, full = measured.T
    is_global, least = ratio <= 1 + config.global_tol, np.minimum(core, predicted)
    saddle = ~is_global & (least < -config.window)
    lower = (predicted - core)[saddle] / np.abs(predicted[saddle])
    is_full = full > FULL
    return (
        cell.K, cell.uneven, j, len(measured), is_global.sum(), saddle.sum(),
        (residual > config.strict).sum(), residual.max(), np.max(lower, initial=-np.inf),
        np.max(least[saddle], initial=-np.inf), np.min(ratio[~is_global], initial=np.inf),
        (~is_global & (core >= -config.window)).sum(),
        np.max(np.abs(value - f_star)[is_global], initial=0.0),
        is_full.sum(), np.max(np.abs(ratio - 1)[is_full], initial=0.0),
    )  # fmt: skip


def summary(results: dict, name: str) -> np.ndarray:
    """A column of `points`."""
    return results["points"][:, SUMMARY.index(name)]


def violations(config: Config, results: dict) -> list[str]:
    """Orbits with d ≥ K−1 that are neither global minimisers nor strict saddles, by name."""
    names = ("K", "d", "strength", "value", "rank", "uneven", "kind")
    return [
        f"K={K}, {'unequal, ' * uneven}d={d}, Kc={config.strengths[j]:g}, f={value:.9g}, "
        f"rank {rank}: {KINDS[kind]}"
        for K, d, j, value, rank, uneven, kind in zip(*(results[x] for x in names), strict=True)
        if KINDS[kind] not in KINDS[:2]
    ]


def known(config: Config, results: dict) -> np.ndarray:
    """Distance in f of every known saddle to an orbit of its rank and index; empty without K = 10.

    The index is compared at d = 16.
    """
    j = config.strengths.index(0.05) if 0.05 in config.strengths else -1
    here = (results["K"] == 10) & (results["d"] == 16) & (results["strength"] == j)
    if not here.any():
        return np.zeros(0)
    distances = []
    for rank, value, index in KNOWN:
        same = here & (results["rank"] == rank) & (results["index"] == index)
        distances.append(np.min(np.abs(results["value"][same] - value), initial=np.inf))
    return np.array(distances)


def check(config: Config, results: dict) -> list[Verdict]:
    """Points one by one, orbits at every d, what was known before."""
    total, minima = summary(results, "points").sum(), summary(results, "global").sum()
    share = summary(results, "saddles").sum() / (total - minima)
    named = violations(config, results)
    saddle, worst = results["kind"] == 0, np.abs(results["error"])
    claim = "orbits at d ≥ K−1 that are neither global nor a strict saddle"
    verdicts = [
        judge(f"{total - minima:.0f} points not global: share of strict saddles", share, 1, 0),
        judge(
            f"{total:.0f} points: refused by the strict residual",
            summary(results, "refused").sum(), 0, 0,
        ),
        judge_below(
            f"{minima:.0f} points called global: worst |f − f*|, nats",
            summary(results, "error").max(), 1e-10,
        ),
        judge(
            f"{total - minima:.0f} points not global: of them without a way down at d = K−1",
            summary(results, "stuck").sum(), 0, 0,
        ),
        judge_below(
            f"{summary(results, 'full').sum():.0f} points of rank K−1: "
            "worst |‖G‖₂/√(λ_W λ_H) − 1|",
            summary(results, "full_error").max(), config.global_tol,
        ),
        judge_below(
            "points: deepest eigenvalue below λ₋, relative",
            max(summary(results, "lower").max(), 0), config.depth_tol,
        ),
        judge("; ".join([f"{len(saddle)} {claim}", *named]), len(named), 0, 0),
        judge_below(
            f"{saddle.sum()} saddles at d ≥ K−1: worst relative error of λ₋ as least eigenvalue",
            np.max(worst[saddle], initial=0), config.depth_tol,
        ),
        judge("of these, of index 0", (results["index"][saddle] == 0).sum(), 0, 0),
        judge(
            "orbits at d ≥ K−1 with undecided eigenvalues near zero",
            (results["excess"] != 0).sum(), 0, 0,
        ),
    ]  # fmt: skip
    distances = known(config, results)
    if len(distances):
        claim = f"K=10, d=16: {len(distances)} known saddles, farthest from an orbit, nats"
        verdicts.append(judge_below(claim, distances.max(), config.value_tol))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Least eigenvalues against λ₋, the shallowest saddles over λ, the index over d."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    against, shallow, error = axes.flat
    saddle = results["kind"] == 0
    for i, cell in enumerate(cells_of(config)):
        own = saddle & (results["K"] == cell.K) & (results["uneven"] == cell.uneven)
        mu = np.array(config.strengths)[results["strength"]] / (cell.K * np.sqrt(cell.mean))
        depth = -results["smallest"] / mu
        one = own & (results["d"] == cell.K)
        name = f"$K={cell.K}$" + ", unequal" * cell.uneven
        # The colours of seven series are all there are; unequal counts have a shape of their own.
        look = {"marker": "<"} if cell.uneven else {}
        value = results["value"][one]
        plots.points(against, value, depth[one], None, name, i, markersize=2.2, **look)
        here = (summary(results, "K") == cell.K) & (summary(results, "uneven") == cell.uneven)
        strengths = np.array(config.strengths)[summary(results, "strength")[here].astype(int)]
        least = -summary(results, "shallowest")[here] * cell.K * np.sqrt(cell.mean) / strengths
        order = np.argsort(strengths)
        plots.points(shallow, strengths, least, None, None, i, **look)
        plots.curves(shallow, strengths[order], least[order], None, i, linewidth=0.7)
        wrong = np.maximum(np.abs(results["error"][own]), NONE)
        spread = results["d"][own] / cell.K * 1.015**i
        plots.points(error, spread, wrong, None, None, i, markersize=2.0, **look)
    unit = r"\sqrt{\lambda_W\lambda_H}"
    against.set(yscale="log", xlabel="$f$ at the saddle, nats")
    against.set_ylabel(rf"$-\lambda_{{\min}}\,/\,{unit}$")
    shallow.set(xscale="log", xlabel=UNITS, ylabel=rf"least $-\lambda_{{\min}}\,/\,{unit}$")
    shallow.set(yscale="log")
    shown = sorted(set(np.array(config.strengths)[results["strength"]]))
    shallow.set_xticks(shown, [f"{strength:g}" for strength in shown])
    low, high = shallow.get_ylim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low < t < high]
    shallow.set_yticks(ticks, [f"{t:g}" for t in ticks])
    shallow.minorticks_off()
    error.set(yscale="log", xlabel=r"$d\,/\,K$", ylabel=r"$|\lambda_{\min}/\lambda_- - 1|$")
    plots.tolerance(error, config.depth_tol, "tolerance")
    powers = range(-15, -8, 2)
    error.set_yticks([NONE, *(10.0**p for p in powers)], ["0", *(f"$10^{{{p}}}$" for p in powers)])
    error.minorticks_off()
    error.legend()
    canvas.legend(*against.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("c08_strict_saddle"))
