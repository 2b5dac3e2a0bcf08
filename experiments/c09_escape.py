"""Escape: descent leaves every saddle at the predicted time and ends at the global minimum.

Claim. For d > K−1 every critical point found, the global minimum excepted, is a strict saddle.
Start gradient descent with step size η at saddle + ε u, where u is a random unit tangent. It has
moved by δ along the eigenspace of the least eigenvalue λ after log(δ/(ε‖Pu‖))/log(1 + η|λ|) steps,
where P projects on that eigenspace; so each unit of log 1/ε adds 1/log(1 + η|λ|), about 1/(η|λ|),
steps. Gradient descent and SGD then reach f*, which a certificate confirms.

Source. Zhu et al. 2021 (arXiv 2105.02375), theorem 3.2, for d > K, and arXiv 2407.10702 for d = K:
no critical point but global minima and strict saddles. The time is that of the linearised descent.

Reproduces. What theorem 3.2 of Zhu et al. implies for descent: no saddle traps it. Extends it by
the time that the escape takes.

Shown. K and d in the legend, n = 4, λ_W = λ_H = λ_b = 5e-3, δ = 1e-3. (a) Steps that GD takes to
leave each saddle against the distance ε of its start; (b) the number of steps minus the prediction,
which lies in [0, 1) because whole steps are counted; (c) relative error of the slopes of (a); (d)
steps to the minimum.
A run stops once its certified gap is below its tolerance (1e-6 nats for GD, 1e-5 for SGD), so the
number of steps is shown in place of the gap.

Refuted by a run that stops at another critical point, by a time that is not the prediction rounded
up to a whole step, or by a critical point that is neither a minimum nor a strict saddle.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below
from ufm import Problem, plots
from ufm.critical.orbits import Orbit
from ufm.critical.search import census
from ufm.critical.unstable import GAP_TOL, SGD_GAP_TOL, Escape, escape
from ufm.model import objective as terms
from ufm.model import quotient

CRITICAL = 1e-12  # ‖∇f‖ below which a run has stopped
# ε‖Pu‖ must exceed this many times the distance between the polished point and the saddle.
RESOLVED = 30
METHODS = ("gd", "sgd")


@dataclass(frozen=True)
class Config:
    """Sizes, perturbations and tolerances; λ_W = λ_H = λ_b = lam."""

    shapes: tuple[tuple[int, int, int], ...] = ((3, 4, 4), (4, 5, 4))  # (K, d, n)
    lam: float = 5e-3  # all three decays
    starts: int = 32  # starts of the census, for each source and round
    rounds: int = 2  # rounds of the census
    longest: float = 1e-4  # largest ε
    shortest: float = 1e-11  # smallest ε; saddles are known to some 1e-14
    lengths: int = 8  # values of ε between the two
    directions: int = 3  # random directions u at each saddle
    delta: float = 1e-3  # δ, how far a run must move along the eigenspace
    sgd_length: float = 1e-6  # ε of the runs of SGD, one for each saddle and direction
    sgd_share: float = 0.5  # share of the samples in a minibatch
    steps: int = 40_000  # limit on the steps of a run
    # Steps by which a time may lie outside [t, t + 1), t the prediction: for terms of order δ.
    time_tol: float = 0.1
    slope_tol: float = 0.03  # relative error of a slope: a step in the shortest range of times
    seed: int = 0  # seed of census, directions and minibatches

    @classmethod
    def quick(cls) -> "Config":
        """Three classes, one direction, the first round of the census."""
        return cls(shapes=((3, 4, 4),), starts=16, rounds=1, directions=1)


def lengths_of(config: Config) -> np.ndarray:
    """All ε, falling."""
    return np.geomspace(config.longest, config.shortest, config.lengths)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Rows of saddles; times and ends (saddles, directions, ε), of SGD (saddles, directions)."""
    rows: list[dict] = []
    others = []
    for done, (K, d, n) in enumerate(config.shapes):
        problem = Problem(K, d, n, config.lam, config.lam, config.lam)
        begin, share = done / len(config.shapes), 1 / len(config.shapes)
        progress(begin, f"K={K}, census")
        key = jax.random.fold_in(jax.random.key(config.seed), K)
        found = census(problem, key, starts=config.starts, rounds=config.rounds)
        saddles = [x for x in found.orbits if x.kind == "strict saddle"]
        minima = [x for x in found.orbits if x.kind == "global minimiser"]
        others.append((len(found.orbits) - len(saddles) - len(minima), len(minima)))
        for i, saddle in enumerate(saddles):
            progress(begin + share * (0.4 + 0.6 * i / len(saddles)), f"K={K}, saddle {i}")
            rows.append(_from(config, problem, saddle, jax.random.fold_in(key, 1000 + i)))
    stacked = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return stacked | {"others": np.array(others), "epsilon": lengths_of(config)}


def _from(config: Config, problem: Problem, saddle: Orbit, key) -> dict:
    """All runs from one saddle."""
    small = jax.tree.map(jnp.asarray, saddle.params)
    point = quotient.lift(problem, small, jnp.eye(problem.d, small.W.shape[1]))
    options: dict[str, Any] = {"delta": config.delta, "steps": config.steps}
    batch = int(config.sgd_share * problem.N)
    gd, sgd = [], []
    for j in range(config.directions):
        way = jax.random.fold_in(key, j)
        gd.append(escape(problem, point, way, lengths_of(config), **options))
        lengths = np.array([config.sgd_length])
        sgd.append(escape(problem, point, way, lengths, batch_size=batch, **options))
    first = gd[0]
    row = {
        "K": problem.K, "value": saddle.value, "rank": saddle.rank, "index": saddle.morse_index,
        "smallest": first.smallest, "multiplicity": first.multiplicity,
        "learning_rate": first.learning_rate, "resolution": first.resolution,
        "part": [run.part for run in gd], "predicted": [run.predicted for run in gd],
    }  # fmt: skip
    for name, runs in (("gd", gd), ("sgd", sgd)):
        row |= {f"{name}_{key}": [getattr(run, key) for run in runs] for key in ("left", "steps")}
        row[f"{name}_gap"] = [run.gap for run in runs]
        row[f"{name}_certified"] = [run.status == "certified" for run in runs]
        row[f"{name}_slope"] = [_slopes(problem, run) for run in runs]
    return row


def _slopes(problem: Problem, run: Escape) -> np.ndarray:
    """‖∇f‖ at the last point of every run."""
    return np.asarray(_norms(problem, run.params))


@jax.jit
def _norms(problem, points):
    return jax.vmap(lambda x: terms.norm(terms.gradient(problem, x)))(points)


def judged(results: dict) -> np.ndarray:
    """Runs of GD that left the saddle, from an ε above the resolution."""
    length = results["epsilon"] * results["part"][:, :, None]
    fine = length > RESOLVED * results["resolution"][:, None, None]
    return fine & (results["gd_left"] >= 0)


def fitted(results: dict) -> np.ndarray:
    """Slope of the time against log 1/ε, in steps, (saddles, directions)."""
    x = -np.log(results["epsilon"])
    x = x - x.mean()
    return results["gd_left"] @ x / (x @ x)


def rate(results: dict) -> np.ndarray:
    """log(1 + η|λ|) of every saddle."""
    return np.log1p(-results["learning_rate"] * results["smallest"])


def check(config: Config, results: dict) -> list[Verdict]:
    """For every K: kinds, times, slopes, and where GD and SGD end."""
    verdicts, timed = [], judged(results)
    slopes = fitted(results) * rate(results)[:, None]
    late = results["gd_left"] - results["predicted"]
    errors = np.maximum(np.maximum(-late, late - 1), 0)
    for i, (K, d, _) in enumerate(config.shapes):
        mine, name = results["K"] == K, f"K={K}, d={d}: "
        other, minima = results["others"][i]
        claim = f"{name}critical points neither global nor strict saddle, of {mine.sum() + other}"
        verdicts.append(judge(claim, other, 0, 0, minima > 0 and mine.any()))
        claim = f"{name}worst error of {timed[mine].size} escape times beyond rounding up, steps"
        verdicts.append(judge_all_below(claim, errors[mine], timed[mine], config.time_tol))
        claim = f"{name}worst relative error of d time/d log(1/ε)"
        sure = timed[mine].all(axis=2)
        verdicts.append(judge_all_below(claim, slopes[mine] - 1, sure, config.slope_tol))
        for method, tolerance in zip(METHODS, (GAP_TOL, SGD_GAP_TOL), strict=True):
            above = results[f"{method}_gap"][mine] > tolerance
            stopped = results[f"{method}_slope"][mine] <= CRITICAL
            ended = results[f"{method}_certified"][mine] | stopped
            trapped = int(np.sum(above & ended))
            claim = f"{name}{method.upper()}: runs of {above.size} that stop elsewhere than at f*, "
            claim += f"certified to {tolerance:g} nats"
            verdicts.append(judge(claim, trapped, 0, 0, bool(ended.all()) or trapped > 0))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Times against ε, against their prediction, the errors and slopes; the ends of all runs."""
    canvas, axes = plots.figure("icml_text", 4.1, 2, 2)
    times, error, slope, steps = axes.flat
    epsilon, timed = results["epsilon"], judged(results)
    fit, inverse = fitted(results), 1 / rate(results)
    for i, (K, d, _) in enumerate(config.shapes):
        mine, label = results["K"] == K, f"$K={K}$, $d={d}$"
        left, predicted = results["gd_left"][mine], results["predicted"][mine]
        known = timed[mine].ravel()
        look = {"markersize": 2.4, "alpha": 0.7}
        for row, dashed in zip(left[:, 0], predicted[:, 0], strict=True):
            plots.points(times, epsilon, row, row >= 0, None, i, markersize=2.0)
            plots.prediction(times, epsilon, dashed, linewidth=0.5)
        plots.points(error, predicted.ravel(), (left - predicted).ravel(), known, None, i, **look)
        x = np.repeat(inverse[mine], config.directions)
        wrong, sure = fit[mine].ravel() / x - 1, timed[mine].all(axis=2).ravel()
        plots.points(slope, x, wrong, sure, label, i, **look)
        for j, (method, name) in enumerate(zip(METHODS, ("GD", "SGD"), strict=True)):
            taken, done = results[f"{method}_steps"][mine], results[f"{method}_certified"][mine]
            x = np.broadcast_to(results["value"][mine][:, None, None], taken.shape).ravel()
            few = {"markersize": 2.4, "alpha": 0.7, "marker": "^" if j else "o"}
            plots.points(steps, x, taken.ravel(), done.ravel(), f"{name}, $K={K}$", i, **few)
    plots.prediction(times, [], [], "prediction")
    for y in (1 + config.time_tol, -config.time_tol):
        plots.tolerance(error, y)
    for y in (config.slope_tol, -config.slope_tol):
        plots.tolerance(slope, y, "tolerance" if y > 0 else None)
    times.set(xscale="log", yscale="log", xlabel=r"$\varepsilon$", ylabel="steps to leave")
    error.set(xscale="log", xlabel="predicted steps", ylabel="measured − predicted, steps")
    slope.set(xscale="log", xlabel=r"$1/\log(1+\eta|\lambda|)$, predicted slope")
    slope.xaxis.set_minor_formatter(NullFormatter())  # less than a decade: labels would overlap
    slope.set_ylabel(r"relative error of $\mathrm{d}\,$steps$\,/\,\mathrm{d}\log(1/\varepsilon)$")
    steps.set(yscale="log", xlabel="$f$ at the saddle, nats", ylabel="steps to the minimum")
    times.legend()
    slope.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    steps.legend(ncols=2, loc="center right", bbox_to_anchor=(1, 0.62))
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("c09_escape"))
