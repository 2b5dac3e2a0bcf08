"""Strict saddles of every convex loss: the theorems of c08 and the boundary of c10 beyond one loss.

Claim. For every convex loss, any counts and any targets, a critical point is a global minimiser or
a strict saddle whose least eigenvalue is λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²), to rounding.
This holds for d ≥ K−1 if the loss is constant in some fixed direction of the logits (label
smoothing, logit-adjusted, tag sets), and for d ≥ K if it is not (squared, binary). At smaller d
minima appear that are not global, for the binary loss already at d = K−1 (for the squared error
there are none at any d, see c11).

Source. Theorems of this project (`ufm.theory.landscape`); we know of no published source.
For single losses: Zhou et al. 2022 (arXiv 2210.02192, d > K), Zhou et al. 2022 (arXiv 2203.01238).

Reproduces. The global landscapes of both papers for d > K, by censuses. Extends them to the least d
at which they hold, to unequal classes, to tag sets and to the depth of every saddle.

Shown. (a) Least eigenvalue of ∇²f at every saddle, in units of √(λ_Wλ_H) (0.003 or 0.015), against
f, and (b) its relative difference from λ₋ against d; K = 4, n = (4, 3, 2, 1), λ_W = λ_b = 4λ_H.
(c) Number of isolated minima above the lowest one against d; K = 6, n = 3, λ_W = λ_H = 1e-3. The
theorem excludes them in the grey range; for the binary loss it does so only at d = K = 6.

Refuted by a critical point at such a width that is neither certified as global nor has a negative
eigenvalue, by another least eigenvalue, by an undecided one, or by a spurious minimum at such d.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import c10_boundary, runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_above, judge_below
from ufm import Problem, plots
from ufm.critical import orbits
from ufm.critical.search import census
from ufm.losses import BinaryCrossEntropy, CrossEntropy, LogitAdjusted, SquaredError
from ufm.theory import landscape

# All sets of one and of two of four tags, without (3, 4).
TAGS = np.array([[1, 0, 0, 0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0, 0, 1, 1],
                 [0, 0, 1, 0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0, 1, 0, 1]], float)  # fmt: skip
# Name, loss and targets of every census.
LOSSES: dict[str, tuple[Any, np.ndarray | None]] = {
    "smoothing": (CrossEntropy(0.1), None),
    "logit-adjusted": (LogitAdjusted([1.0, 1.5, 2.0, 2.5]), None),
    "tag sets": (CrossEntropy(), TAGS),
    "squared": (SquaredError(), None),
    "binary": (BinaryCrossEntropy(), None),
}
KINDS = ("strict saddle", "global minimiser", "local minimiser", "undecided", "not critical")
# Columns of `orbits`, a row an orbit at one width: index of the loss and of the decay, d, what it
# is, rank, index, zero eigenvalues beyond the symmetry orbit, f, least eigenvalue, λ₋.
NONE = 1e-17  # where an error of exactly 0 is drawn
COLUMNS = ("loss", "decay", "d", "kind", "rank", "index", "excess", "value", "smallest", "told")
BOUNDARY: dict[str, Any] = {"smoothing": CrossEntropy(0.1), "binary": BinaryCrossEntropy()}


@dataclass(frozen=True)
class Config:
    """Counts, decays and effort; λ_b = λ_W."""

    losses: tuple[str, ...] = tuple(LOSSES)  # those of the censuses
    counts: tuple[int, ...] = (4, 3, 2, 1)  # samples of each class
    tag_counts: tuple[int, ...] = (4, 3, 2, 1, 2, 2, 1, 1, 1)  # samples of each tag set
    mus: tuple[float, ...] = (3e-3, 1.5e-2)  # √(λ_Wλ_H)
    ratio: float = 4.0  # λ_W/λ_H
    beyond: tuple[int, ...] = (0, 1, 4)  # d less the least width of the theorem
    starts: int = 64  # per source and round of a census
    rounds: int = 1  # of a census, at most
    depth_tol: float = 1e-9  # how far the least eigenvalue may be from λ₋, relative to it
    boundary: tuple[str, ...] = tuple(BOUNDARY)  # losses of the boundary
    K: int = 6  # classes there
    n: int = 3  # samples of each class there
    lam: float = 1e-3  # λ_W = λ_H there, λ_b ten times that
    widths: tuple[int, ...] = (2, 3, 4, 5, 6)  # d there
    boundary_starts: int = 48  # random starts for each loss and d
    missed: float = 0.05  # share of them that may fail to reach rounding or a flat valley
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Two losses, one decay; one loss at the boundary, below and from the theorem's width."""
        return cls(losses=("smoothing", "squared"), mus=(1.5e-2,), beyond=(0, 1), starts=32,
                   boundary=("smoothing",), widths=(2, 5), boundary_starts=24)  # fmt: skip


def problem_of(config: Config, name: str, mu: float, d: int) -> Problem:
    """The classes, or tag sets, under a loss in d dimensions."""
    loss, targets = LOSSES[name]
    skew = config.ratio**0.5
    n = config.counts if targets is None else config.tag_counts
    K, lam_W = len(config.counts), mu * skew
    return Problem(K, d, n, lam_W, mu / skew, lam_W, loss=loss, targets=targets)


def least_width(config: Config, name: str) -> int:
    """The d from which the theorem holds: K−1 or K."""
    width = landscape.benign_width(problem_of(config, name, config.mus[0], 1))
    assert width is not None, "a convex loss"
    return width


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Every orbit of every census at every width; minima at the boundary."""
    rows: list[tuple] = []
    refused: list[tuple[int, int]] = []
    for i, name in enumerate(config.losses):
        for j, mu in enumerate(config.mus):
            progress(0.7 * (i + j / len(config.mus)) / len(config.losses), f"{name}, μ={mu:g}")
            least = least_width(config, name)
            key = jax.random.fold_in(jax.random.key(config.seed), j)
            found = census(
                problem_of(config, name, mu, least + 1), key, starts=config.starts,
                rounds=config.rounds,
            )  # fmt: skip
            refused.append((sum(found.tried.values()), sum(found.refused.values())))
            for extra in config.beyond:
                problem = problem_of(config, name, mu, least + extra)
                rows += [(i, j, problem.d, *_row(problem, orbit)) for orbit in found.orbits]
    minima, lost = _boundary(config, lambda share, what: progress(0.7 + 0.3 * share, what))
    return {"orbits": np.array(rows, float), "tried": np.array(refused), "minima": minima,
            "lost": lost}  # fmt: skip


def _row(problem: Problem, orbit: orbits.Orbit) -> tuple:
    """What an orbit is at the width of a problem."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, orbit.params)
        one = orbits.judge(problem, params, orbit.newton_step, {})
    excess = one.nullity - one.orbit_dimension
    return (KINDS.index(one.kind), one.rank, one.morse_index, excess, one.value, one.smallest,
            one.predicted)  # fmt: skip


def _boundary(config: Config, progress: Report) -> tuple[np.ndarray, np.ndarray]:
    """((loss, d, f) of each isolated minimum, share of starts lost (losses, widths))."""
    search_of = c10_boundary.Config(starts=config.boundary_starts)
    size = len(config.boundary), len(config.widths)
    rows, lost = [], np.zeros(size)
    for i, name in enumerate(config.boundary):
        for j, d in enumerate(config.widths):
            progress((i + j / size[1]) / size[0], f"boundary, {name}, d={d}")
            problem = Problem(config.K, d, config.n, config.lam, config.lam, 10 * config.lam,
                              loss=BOUNDARY[name])  # fmt: skip
            key = jax.random.fold_in(jax.random.key(config.seed), 100 * i + d)
            found, (lost[i, j], _, _) = c10_boundary.minima(search_of, problem, config.K, key)
            isolated = [x for x in found if x["nullity"] == x["orbit_dimension"]]
            rows += [(i, d, x["value"]) for x in isolated]
    return np.array(rows, float).reshape(-1, 3), lost


def column(results: dict, name: str) -> np.ndarray:
    """A column of `orbits`."""
    return results["orbits"][:, COLUMNS.index(name)]


def spurious(results: dict, loss: int, d: int) -> int:
    """Isolated minima of a loss above the lowest one, in d dimensions."""
    which, width, value = results["minima"].T
    mine = value[(which == loss) & (width == d)]
    return int(np.sum(mine > np.min(mine, initial=np.inf) + c10_boundary.ABOVE))


def check(config: Config, results: dict) -> list[Verdict]:
    """Kinds, least eigenvalues and undecided ones of every loss; minima on both sides of K−1."""
    verdicts = []
    for i, name in enumerate(config.losses):
        mine = column(results, "loss") == i
        kind = column(results, "kind")[mine]
        saddle, minimum = kind == 0, kind == 1
        least = "K−1" if least_width(config, name) < len(config.counts) else "K"
        share = np.mean(saddle[~minimum])
        claim = f"{name}, d ≥ {least}: {np.sum(~minimum)} orbits not global: share strict saddles"
        verdicts.append(judge(claim, share, 1, 0))
        error = (column(results, "smallest") / column(results, "told") - 1)[mine][saddle]
        claim = f"{name}: worst relative error of λ₋ as least eigenvalue of {saddle.sum()} saddles"
        verdicts.append(judge_below(claim, np.max(np.abs(error), initial=0), config.depth_tol))
        excess = np.sum(column(results, "excess")[mine] != 0)
        claim = f"{name}: orbits with undecided eigenvalues near zero"
        verdicts.append(judge(claim, excess, 0, 0))
    for i, name in enumerate(config.boundary):
        width = config.K - (BOUNDARY[name].null(config.K) is not None)
        ended = bool(np.all(results["lost"][i] <= config.missed))
        wide = sum(spurious(results, i, d) for d in config.widths if d >= width)
        verdicts.append(judge(f"{name}, K={config.K}, d ≥ {'K−1' if width < config.K else 'K'}: "
                              "spurious minima found", wide, 0, 0, ended))  # fmt: skip
        below = [spurious(results, i, d) > 0 for d in config.widths if d < config.K - 1]
        claim = f"{name}, K={config.K}, d < K−1: widths with a spurious minimum, of {len(below)}"
        if below:  # for how many, no theorem says
            verdicts.append(judge_above(claim, sum(below), 0, ended))
        if width == config.K and config.K - 1 in config.widths:
            claim = f"{name}, K={config.K}, d = K−1: spurious minima found"
            verdicts.append(judge_above(claim, spurious(results, i, config.K - 1), 0, ended))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Least eigenvalues against λ₋, their difference over d, minima over d."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    against, error, minima = axes.flat
    saddle = column(results, "kind") == 0
    for i, name in enumerate(config.losses):
        mine = saddle & (column(results, "loss") == i)
        mu = np.array(config.mus)[column(results, "decay")[mine].astype(int)]
        told, found = column(results, "told")[mine], column(results, "smallest")[mine]
        value = column(results, "value")[mine]
        plots.points(against, value, -found / mu, None, name, i, markerfacecolor="none")
        wrong = np.maximum(np.abs(found / told - 1), NONE)
        plots.points(error, column(results, "d")[mine] + 0.1 * (i - 2), wrong, None, None, i,
                     markersize=3)  # fmt: skip
    against.set(yscale="log", xlabel="$f$ at the saddle", ylim=(None, 2e3))
    against.set_ylabel(r"$-\lambda_{\min}\,/\,\sqrt{\lambda_W\lambda_H}$")
    against.legend(fontsize="x-small", loc="upper left")
    error.set(yscale="log", xlabel=r"$d$", ylabel=r"$|\lambda_{\min}/\lambda_- - 1|$")
    plots.tolerance(error, config.depth_tol, "tolerance")
    powers = range(-15, -8, 2)
    error.set_yticks([NONE, *(10.0**p for p in powers)], ["0", *(f"$10^{{{p}}}$" for p in powers)])
    error.minorticks_off()
    error.legend(fontsize="x-small", loc="upper right", bbox_to_anchor=(1, 0.95))
    for i, name in enumerate(config.boundary):
        counts = [spurious(results, i, d) for d in config.widths]
        index = config.losses.index(name) if name in config.losses else len(config.losses) + i
        at = np.array(config.widths) + 0.1 * (i - 1)
        plots.points(minima, at, counts, None, name, index)
    minima.axvspan(config.K - 1.5, config.K + 0.5, color=plots.GREY, alpha=0.2, linewidth=0)
    minima.set(xlabel=r"$d$", ylabel="spurious minima found", xlim=(None, config.K + 0.5))
    minima.text(config.K - 1.4, 0.75, r"$d \geq K-1$", transform=minima.get_xaxis_transform())
    minima.yaxis.get_major_locator().set_params(integer=True)
    minima.legend(fontsize="x-small", loc="upper right", handlelength=1, handletextpad=0.3)
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("c15_saddles_of_losses"))
