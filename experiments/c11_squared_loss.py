"""Squared loss: all critical points are known, and only the lowest orbit is a minimum.

Claim. Without a bias, or with a bias free of decay, each critical orbit of the squared error
belongs to a set of at most d singular values of the targets that exceed N√(λ_W λ_H). For every d
from 1 to K+1 a census finds all these orbits and no others, with the predicted value, rank, Morse
index and nullity. So only one orbit is a minimum, even below d = K−1, where cross-entropy with the
same classes has spurious minima. With a decayed bias equal classes form a simplex ETF for
λ_b ≤ κ/(1−κ), κ = K√(nλ_Wλ_H); for larger λ_b the angles between class means fall towards 90°, an
orthogonal frame.

Source. Zhou et al. 2022 (arXiv 2203.01238) and Tirer and Bruna 2022 (arXiv 2202.08087) for the
minimum, arXiv 2606.00344 for the transition between the frames. The list of critical points and
the cosine along the transition are derived in `ufm.theory.squared`.

Reproduces. The minimisers of Zhou et al.: simplex ETF and orthogonal frame. Extends them to every
critical point of unequal classes, at any d, and to the transition between the two frames.

Shown. (a) f and Morse index of every orbit found, with the predicted indices; K = 4, n = (8, 5, 3,
1), λ_W = λ_H = 0.01, free bias. (b) Number of local minima found against d for both losses; K = 6,
n = (7, 6, 5, 4, 3, 2), λ_W = λ_H = 1e-3, free bias. (c) Cosine of two class means against the decay
of the bias, from −1/(K−1) to 0; K = d = 4, n = 5, κ = 0.25.

Refuted by a critical point that the list lacks, by one of the list that the census does not find,
by another index or nullity, by a second minimum of the squared error, or by another cosine.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm
from experiments import c10_boundary, runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below, judge_below
from ufm import Problem, plots, theory
from ufm.critical import search
from ufm.losses import CrossEntropy, SquaredError

LOSSES = (SquaredError(), CrossEntropy())
NAMES = ("squared", "cross-entropy")
BIASES = ("no bias", "free bias")
# Columns of `orbits`, a row an orbit: K, d, whether b is free, f, rank, index and nullity found,
# then rank, index, nullity told and the distance in f of what the list holds nearest.
COLUMNS = (
    *("K", "d", "free", "value", "rank", "index", "nullity"),
    *("told_rank", "told_index", "told_nullity", "distance"),
)


@dataclass(frozen=True)
class Config:
    """Counts and decays; λ_W = λ_H = lam."""

    # Samples of each class, of every series of censuses; d runs from 1 to K+1.
    counts: tuple[tuple[int, ...], ...] = ((5, 3, 1), (8, 5, 3, 1))
    lam: float = 1e-2  # λ_W = λ_H there
    starts: int = 64  # per source and round of a census
    rounds: int = 2  # of a census, at most
    narrow: tuple[int, ...] = (7, 6, 5, 4, 3, 2)  # samples of each class in the search for minima
    narrow_lam: float = 1e-3  # λ_W = λ_H there, the bias free
    narrow_starts: int = 64  # random starts there, for each loss and d
    steps: int = 3000  # limit on the steps of L-BFGS there
    flat: float = 1e-6  # curvature of a flat valley there, relative to ‖∇²f‖
    passage: tuple[int, int] = (4, 5)  # K and n of the passage, d = K
    kappa: float = 0.25  # K√(nλ_Wλ_H) there
    points: int = 17  # decays of the bias there
    # λ_b there, in units of κ/(1−κ): the first and the last.
    span: tuple[float, float] = (0.05, 500.0)
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Two classes, fewer decays of the bias; minima of both losses for four classes."""
        return cls(
            counts=((5, 2),), starts=32, rounds=1, narrow=(8, 6, 4, 2), narrow_starts=32, points=7
        )


def problem_of(config: Config, counts: tuple[int, ...], d: int, free: bool) -> Problem:
    """The squared error of these classes in d dimensions."""
    lam, loss = config.lam, SquaredError()
    return Problem(len(counts), d, counts, lam, lam, 0.0, bias=free, loss=loss)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Every orbit of every census with its prediction; minima of both losses; the transition."""
    rows: list[tuple] = []
    cells: list[tuple] = []
    todo = [(counts, d, free) for counts in config.counts for free in (False, True)
            for d in range(1, len(counts) + 2)]  # fmt: skip
    for i, (counts, d, free) in enumerate(todo):
        progress(0.6 * i / len(todo), f"census, n={counts}, d={d}, {BIASES[free]}")
        found, cell = _census(config, problem_of(config, counts, d, free))
        rows += [(len(counts), d, free, *row) for row in found]
        cells.append((len(counts), d, free, *cell))
    minima = _minima(config, lambda share, doing: progress(0.6 + 0.3 * share, doing))
    passage = _passage(config, lambda share, doing: progress(0.9 + 0.1 * share, doing))
    return {"orbits": np.array(rows, float), "cells": np.array(cells), **minima, **passage}


def _census(config: Config, problem: Problem) -> tuple[list[tuple], tuple[int, int, int]]:
    """(a row per orbit, (orbits found, orbits predicted, those of them not found))."""
    key = jax.random.fold_in(jax.random.key(config.seed), 10 * problem.K + problem.d)
    found = search.census(problem, key, starts=config.starts, rounds=config.rounds)
    told = theory.critical_points(problem)
    values = np.array([point.value for point in told])
    rows, left = [], set(range(len(told)))
    for orbit in found.orbits:
        here = orbit.value, orbit.rank, orbit.morse_index, orbit.nullity
        # Values of two sets may agree to rounding: of the near ones that of the same kind.
        near = np.flatnonzero(np.abs(values - orbit.value) <= 1e-9)
        at = int(np.argmin(np.abs(values - orbit.value)))
        at = next((int(i) for i in near if _kind(told[i]) == here[1:]), at)
        left.discard(at)
        rows.append((*here, *_kind(told[at]), abs(values[at] - orbit.value)))
    return rows, (len(rows), len(told), len(left))


def _kind(point: theory.CriticalPoint) -> tuple[int, int, int]:
    return point.rank, point.morse_index, point.nullity


def _minima(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Orbits of index 0 of both losses below and at d = K−1, and how many starts were lost."""
    K, lam, rows = len(config.narrow), config.narrow_lam, []
    lost = np.zeros((len(LOSSES), K - 1))
    search_of = c10_boundary.Config(
        starts=config.narrow_starts, steps=config.steps, flat=config.flat
    )
    for i, loss in enumerate(LOSSES):
        for d in range(1, K):
            progress((i * (K - 1) + d - 1) / (2 * (K - 1)), f"minima, {NAMES[i]}, d={d}")
            problem = Problem(K, d, config.narrow, lam, lam, 0.0, loss=loss)
            key = jax.random.fold_in(jax.random.key(config.seed), 100 * i + d)
            found, (missed, _, _) = c10_boundary.minima(search_of, problem, K - 1, key)
            lost[i, d - 1] = missed
            rows += [(i, d, x["value"], x["nullity"] - x["orbit_dimension"]) for x in found]
    return {"minima": np.array(rows, float), "lost": lost}


def _passage(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """The minimum that descent finds at every decay of the bias: cosine of class means, gap."""
    rows = []
    for i, lam_b in enumerate(decays(config)):
        progress(i / config.points, f"passage, λ_b={lam_b:.3g}")
        problem = passage_of(config, float(lam_b))
        start = ufm.init_params(jax.random.key(config.seed), problem, 1.0, jnp.float64)
        found = ufm.solve(problem, start)
        H = np.asarray(found.params.H)[:, :: config.passage[1]]
        unit = H / np.linalg.norm(H, axis=0)
        inner = (unit.T @ unit)[~np.eye(H.shape[1], dtype=bool)]
        gap = ufm.certify(problem, found.params).gap
        rows.append((found.status == "converged", gap, inner.min(), inner.max()))
    done, gap, least, most = np.array(rows, float).T
    return {"converged": done, "gap": gap, "least_cosine": least, "most_cosine": most}


def passage_of(config: Config, lam_b: float) -> Problem:
    """Equal classes at one κ, with a decayed bias."""
    K, n = config.passage
    lam = config.kappa / (K * n**0.5)
    return Problem(K, K, n, lam, lam, lam_b, loss=SquaredError())


def decays(config: Config) -> np.ndarray:
    """λ_b of every point of the transition."""
    turn = config.kappa / (1 - config.kappa)
    return turn * np.geomspace(*config.span, config.points)


def cosine(config: Config, lam_b: np.ndarray) -> np.ndarray:
    """(s₁−s)/(s₁+(K−1)s), the cosine of two class means at the minimum."""
    K, kappa = config.passage[0], config.kappa
    s, s1 = 1 - kappa, np.maximum(1 - kappa - kappa / lam_b, 0)
    return (s1 - s) / (s1 + (K - 1) * s)


def column(results: dict, name: str) -> np.ndarray:
    """A column of `orbits`."""
    return results["orbits"][:, COLUMNS.index(name)]


def minima_of(results: dict, loss: int, d: int) -> np.ndarray:
    """Values of the isolated orbits of local minima of a loss in d dimensions, rising."""
    which, width, value, excess = results["minima"].T
    return np.sort(value[(which == loss) & (width == d) & (excess == 0)])


def spurious(results: dict, loss: int, d: int) -> int:
    """How many of them lie above the least."""
    values = minima_of(results, loss, d)
    return int(np.sum(values > values[:1] + c10_boundary.ABOVE))


def check(config: Config, results: dict) -> list[Verdict]:
    """The census against the list, in both directions; minima below d = K−1; the transition."""
    found, told, missing = results["cells"][:, 3:].sum(axis=0)
    claim = f"orbits of {len(results['cells'])} censuses, d = 1 … K+1: "
    verdicts = [judge(f"{claim}on the list and not found", missing, 0, 0)]
    beyond = found - (told - missing)
    verdicts.append(judge(f"{claim}found and not on the list", beyond, 0, 0))
    name = f"{found} {claim}worst distance of f from one on the list, nats"
    verdicts.append(judge_below(name, column(results, "distance").max(), 1e-12))
    for part in ("rank", "index", "nullity"):
        wrong = np.sum(column(results, part) != column(results, f"told_{part}"))
        verdicts.append(judge(f"{claim}with another {part}", wrong, 0, 0))
    K = len(config.narrow)
    below = [[spurious(results, i, d) for d in range(1, K - 1)] for i in range(len(LOSSES))]
    ended = results["lost"] <= 0.05
    verdicts.append(
        judge(f"squared, K={K}, d < K−1: spurious minima", sum(below[0]), 0, 0, ended[0].all())
    )
    share = np.mean(np.array(below[1][1:]) > 0)
    claim = f"cross-entropy, K={K}, 2 ≤ d < K−1: share of d with a spurious minimum"
    verdicts.append(judge(claim, share, 1, 0, ended[1].all()))
    off = [minima_of(results, 0, d)[0] - _least(config, d) for d in range(1, K)]
    claim = f"squared, K={K}, d ≤ K−1: worst |f − f*| of the minimum found, nats"
    verdicts.append(judge_below(claim, np.max(np.abs(off)), 1e-12))
    done, law = results["converged"].astype(bool), cosine(config, decays(config))
    for end in ("least", "most"):
        claim = f"passage: worst error of the {end} cosine of class means"
        verdicts.append(judge_all_below(claim, results[f"{end}_cosine"] - law, done, 1e-9))
    verdicts.append(
        judge_all_below("passage: worst certified gap, nats", results["gap"], done, 1e-12)
    )
    return verdicts


def _least(config: Config, d: int) -> float:
    K, lam = len(config.narrow), config.narrow_lam
    problem = Problem(K, d, config.narrow, lam, lam, 0.0, loss=SquaredError())
    return float(theory.global_value(problem))


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Indices found and predicted; minima below d = K−1; the cosine along the transition."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    indices, minima, passage = axes.flat
    largest = max(len(counts) for counts in config.counts)
    here = (column(results, "K") == largest) & (column(results, "free") == 1)
    for i, d in enumerate(range(1, largest + 2)):
        mine = here & (column(results, "d") == d)
        index, value = column(results, "index")[mine], column(results, "value")[mine]
        plots.points(indices, index, value, None, f"$d={d}$", i)
    cross: dict[str, Any] = {"color": "black", "marker": "x", "linestyle": "none", "zorder": 6}
    told, value = column(results, "told_index")[here], column(results, "value")[here]
    indices.plot(told, value, label="prediction", markersize=2.5, markeredgewidth=0.5, **cross)
    indices.xaxis.get_major_locator().set_params(integer=True)
    indices.set(xlabel=r"Morse index of $\nabla^2 f$", ylabel="$f$")
    indices.set_ylim(top=1.25 * value.max())
    look: dict[str, Any] = {"fontsize": "x-small", "title_fontsize": "x-small"}
    indices.legend(title=f"$K={largest}$", ncols=2, loc="lower right", **look)
    K = len(config.narrow)
    widths = range(1, K)
    for i, name in enumerate(NAMES):
        counts = [len(minima_of(results, i, d)) for d in widths]
        plots.points(minima, widths, counts, None, name, i, markersize=5 - 2 * i)
    plots.level(minima, 1, "prediction")
    minima.axvspan(K - 1.5, K - 0.7, color=plots.GREY, alpha=0.2, linewidth=0)
    minima.text(K - 1.1, 0.97, r"$d \geq K-1$", rotation=90, ha="center", va="top",
                transform=minima.get_xaxis_transform())  # fmt: skip
    minima.set(xlabel=r"$d$", ylabel="local minima found (orbits)", xlim=(0.7, K - 0.7))
    minima.set_ylim(bottom=0)
    minima.legend(title=f"$K={K}$", loc=(0.3, 0.6), handlelength=1.2, **look)
    _draw_passage(passage, config, results)
    plots.letters(axes.flat)
    return {"": canvas}


def _draw_passage(ax, config: Config, results: dict) -> None:
    K, turn = config.passage[0], config.kappa / (1 - config.kappa)
    done, at = results["converged"].astype(bool), decays(config) / turn
    plots.points(ax, at, results["most_cosine"], done, "measured")
    fine = np.geomspace(*config.span, 400)
    plots.prediction(ax, fine, cosine(config, fine * turn), "prediction")
    for y, name in ((-1 / (K - 1), "simplex ETF"), (0, "orthogonal frame")):
        ax.axhline(y, color=plots.GREY, linewidth=0.6, zorder=1)
        ax.annotate(name, (config.span[0], y), (0, -2), va="top", textcoords="offset points",
                    fontsize="x-small")  # fmt: skip
    ax.set(xscale="log", xlabel=r"$\lambda_b\,(1-\kappa)/\kappa$", ylim=(-0.4, 0.03))
    ax.set_ylabel(r"$\cos(h_j, h_k)$, $j \neq k$")
    ax.legend(loc="lower right", bbox_to_anchor=(1, 0.25))


if __name__ == "__main__":
    sys.exit(runner.main("c11_squared_loss"))
