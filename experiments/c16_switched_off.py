"""Behind a ReLU classes may stay switched off: spurious minima and their share of random starts.

Claim. Let H ≥ 0, cross-entropy, no bias. Call a class off if its features are zero. For every set
S of at most d classes that are on at the global minimum there is a local minimum at which exactly
the classes of S are on, with f_S = Σ_S w_k[−log(1−q_k) + q_k t_k] + Σ_others w_k log K, for equal
and unequal classes. Descent finds no other minima. The larger d and the more equal the counts, the
fewer random starts end there. Descent on free g with h = relu(g) gets stuck more often, mostly at
points that are not stationary for H ≥ 0, because features that are off have no gradient.

Source. The local minima are a result of this project (`ufm.theory.nonnegative`); we know of no
published source. The global minimum: Dang et al. 2024 (arXiv 2401.02058).

Reproduces. The value of the global minimum. Extends it to the local minima, their second-order
conditions, and the share of starts that end there.

Shown. Share of random starts that end above the global minimum (a) against d, for three sets of
counts n; (b) against the standard deviation of the start and (c) against λ, for H ≥ 0 and for
relu(g). Hollow: more than 2 % of the ends are not within 1e-3 nats of a predicted value. (d) Values
of the minima found, solved to rounding, against the number of classes that are off; crosses, all
predicted values. K = 4, no bias, 250 starts per point; unless stated otherwise λ_W = λ_H = 0.004,
d = 6, n = (9, 5, 3, 1), standard deviation 0.5.

Refuted by a local minimum of another value, by one that fails the second-order conditions, or by
starts that end above the global minimum at the largest d.
"""

import dataclasses
import sys
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_above, judge_below
from ufm import Params, Problem, hessian, plots, solve, theory
from ufm.model import layers
from ufm.model.objective import gradient, objective
from ufm.model.points import init_params
from ufm.runtime import programs

COUNTS = {"9:5:3:1": (9, 5, 3, 1), "5:4:3:2": (5, 4, 3, 2), "equal": (4, 4, 4, 4)}
NEAR = 1e-3  # nats, within which an end of descent has a value of theory
SAME = 1e-6  # nats between values that count as two
KINDS = ("global minimiser", "local minimiser", "strict saddle", "undecided", "not critical")
# Columns of `rows`, a row a point of a map: panel, counts, d, scale of the start, λ, whether on g,
# starts, those caught, those at no value of theory. Of `judged`, a row a distinct end: d, classes
# off, value, global value, distance to theory relative to it, kind, smallest multiplier.
ROWS = ("panel", "counts", "d", "scale", "lam", "relu", "starts", "caught", "lost")
JUDGED = ("d", "off", "value", "least", "far", "kind", "multiplier")


@dataclass(frozen=True)
class Config:
    """Four classes; effort and axes of the maps."""

    lam: float = 4e-3  # λ_W = λ_H
    widths: tuple[int, ...] = (4, 5, 6, 8, 10, 14, 20, 40)  # d of (a)
    scales: tuple[float, ...] = (0.01, 0.1, 0.5, 1.0, 2.0)  # standard deviation of the start in (b)
    lams: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)  # λ_W = λ_H of (c)
    d: int = 6  # of (b) and (c)
    scale: float = 0.5  # of (a) and (c)
    starts: int = 250  # at each point of a map
    steps: int = 5000  # of descent
    rate: float = 0.5  # its step
    solved: tuple[int, ...] = (4, 6)  # d at which ends are solved and judged
    distinct: int = 12  # of them, at most
    tol: float = 1e-10  # of a value against theory, relative
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Few points of each map, fewer starts."""
        return cls(widths=(4, 6, 40), scales=(0.1, 0.5), lams=(4e-3,), starts=100, steps=4000,
                   solved=(4,))  # fmt: skip


def problem_of(n: tuple[int, ...], d: int, lam: float) -> Problem:
    """Four classes behind a ReLU."""
    return Problem(4, d, n, lam=lam, bias=False, features="nonnegative")


@partial(programs.for_long_runs, static_argnames=("relu",))
def _ends(problem: Problem, keys, scale, rate, steps, *, relu: bool) -> tuple[Params, Array]:
    """(ends, f there) of descent from Gaussian starts: projected on H ≥ 0, or on g, h = relu(g)."""

    def features(params):
        return layers.project(problem, params)

    def step(_, params):
        point = features(params)
        slope = gradient(problem, point)
        if relu:  # ∂f/∂g = ∂f/∂h where g > 0, and 0 elsewhere
            slope = slope._replace(H=jnp.where(params.H > 0, slope.H, 0))
        moved = jax.tree.map(lambda x, g: x - rate * g, params if relu else point, slope)
        return moved if relu else features(moved)

    def one(key):
        start = init_params(key, dataclasses.replace(problem, features="free"), scale)
        start = start if relu else start._replace(H=jnp.abs(start.H))
        last = features(jax.lax.fori_loop(0, steps, step, start))
        return last, objective(problem, last)

    return jax.vmap(one)(keys)


@jax.jit
def _values(problem: Problem, points: Params) -> Array:
    return jax.vmap(lambda x: objective(problem, x))(points)


def _judged(config: Config, problem: Problem, ends: Params) -> list[tuple]:
    """Rows of `judged`: ends solved to rounding, one of each value."""
    solved = solve(problem, ends)
    values = np.asarray(_values(problem, solved.params))
    told = theory.switched_off(problem)
    known = np.array([row.value for row in told])
    _, first = np.unique(np.round(values / SAME), return_index=True)
    rows = []
    for j in [int(x) for x in first][: config.distinct]:
        point = jax.tree.map(lambda x, j=j: x[j], solved.params)
        kind = KINDS.index(hessian.verdict(problem, point).kind)
        nearest = int(np.argmin(np.abs(known - values[j])))
        far = abs(values[j] / known[nearest] - 1)
        rows.append((problem.d, len(told[nearest].off), values[j], known[0], far, kind,
                     solved.multiplier[j]))  # fmt: skip
    return rows


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Ends of every point of the maps; distinct ones solved and judged at some d."""
    rows, judged = [], []
    points = [(0, c, d, config.scale, config.lam, 0) for c in range(3) for d in config.widths]
    points += [(1, 0, config.d, s, config.lam, r) for s in config.scales for r in (0, 1)]
    points += [(2, 0, config.d, config.scale, lam, r) for lam in config.lams for r in (0, 1)]
    for i, (panel, counts, d, scale, lam, relu) in enumerate(points):
        progress(i / len(points), f"panel {'abc'[panel]}, d={d}, λ={lam:g}, scale {scale:g}")
        problem = problem_of(list(COUNTS.values())[counts], d, lam)
        keys = jax.random.split(jax.random.key(config.seed), config.starts)
        ends, values = _ends(problem, keys, scale, config.rate, config.steps, relu=bool(relu))
        known = np.array([row.value for row in theory.switched_off(problem)])
        values = np.asarray(values)
        # Halfway to the first spurious value: what descends on is far below or above.
        caught = np.sum(values > (known[0] + known[1]) / 2)
        lost = np.sum(np.min(np.abs(values[:, None] - known), axis=1) > NEAR)
        rows.append((panel, counts, d, scale, lam, relu, len(values), caught, lost))
        if panel == 0 and d in config.solved:
            judged += [(counts, *row) for row in _judged(config, problem, ends)]
    table = np.array(judged, float)
    return {"rows": np.array(rows, float), "judged": table[:, 1:], "of": table[:, 0]}


def check(config: Config, results: dict) -> list[Verdict]:
    """Values, kinds, and the shares of starts that end above the minimum."""
    rows = dict(zip(ROWS, results["rows"].T, strict=True))
    judged = dict(zip(JUDGED, results["judged"].T, strict=True))
    share, on_H = rows["caught"] / rows["starts"], rows["relu"] == 0
    spurious = judged["value"] > judged["least"] + SAME
    told = on_H & (rows["panel"] < 2)  # the maps that verdicts are of
    ended = bool(np.sum(rows["lost"][told]) <= 0.01 * np.sum(rows["starts"][told]))
    count = np.sum(spurious)
    verdicts = [
        judge_below(f"worst relative distance to a value of theory of {len(spurious)} ends",
                    np.max(judged["far"]), config.tol),
        judge(f"share local minimisers by second-order conditions, of {count} distinct ends above "
              "the minimum", np.mean(judged["kind"][spurious] == 1), 1, 0),
        judge_above("smallest multiplier of these", np.min(judged["multiplier"][spurious]), 0),
    ]  # fmt: skip
    at_d = {d: share[(rows["panel"] == 0) & (rows["d"] == d)] for d in config.widths}
    most = max(config.widths)
    for i, name in enumerate(COUNTS):
        claim = f"{name}, d = {most}: share of starts caught"
        verdicts.append(judge(claim, at_d[most][i], 0, 0, ended))
    narrow = at_d[min(config.widths)]
    claim = "9:5:3:1, d = K: share of starts caught"
    verdicts.append(judge_above(claim, narrow[0], 0, ended))
    verdicts.append(judge_below("5:4:3:2, d = K: share caught, below that", narrow[1], narrow[0],
                                ended))  # fmt: skip
    verdicts.append(judge_below("equal, d = K: share caught, below that", narrow[2], narrow[1],
                                ended))  # fmt: skip
    at = (rows["panel"] == 1) & (rows["scale"] == 0.5)
    more = share[at & ~on_H][0] - share[at & on_H][0]
    verdicts.append(judge_above("relu(g) over H ≥ 0, d = 6: starts caught, difference of shares",
                                more, 0, ended))  # fmt: skip
    relu = ~on_H
    nowhere = np.sum(rows["lost"][relu]) / np.sum(rows["starts"][relu])
    verdicts.append(judge_above("relu(g): share of ends at no value of theory", nowhere, 0.5))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """The three maps, and the values reached."""
    canvas, axes = plots.figure("icml_text", 3.8, 2, 2)
    rows, judged = results["rows"].T, results["judged"].T
    share, ended = rows[7] / rows[6], (rows[8] <= 0.02 * rows[6]) | (rows[5] == 1)
    over_d, over_scale, over_lam, values = axes.flat
    for i, name in enumerate(COUNTS):
        at = (rows[0] == 0) & (rows[1] == i)
        plots.points(over_d, rows[2][at], share[at], ended[at], name, i)
    for ax, panel, column in ((over_scale, 1, 3), (over_lam, 2, 4)):
        for relu, label in ((0, r"$H \geq 0$"), (1, r"$h = \mathrm{relu}(g)$")):
            at = (rows[0] == panel) & (rows[5] == relu)
            plots.points(ax, rows[column][at], share[at], ended[at], label, 3 + relu)
    over_d.set(xscale="log", xlabel=r"$d$", ylabel="share of starts above $f^*$")
    over_scale.set(xscale="log", xlabel="standard deviation of the start")
    over_scale.set(ylabel="share of starts above $f^*$")
    over_lam.set(xscale="log", xlabel=r"$\lambda_W = \lambda_H$")
    over_lam.set(ylabel="share of starts above $f^*$")
    for ax, ticks in (
        (over_d, config.widths),
        (over_scale, config.scales),
        (over_lam, config.lams),
    ):
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
    for ax in (over_d, over_scale, over_lam):
        ax.set_ylim(-0.03, 1.03)
        ax.legend(fontsize="x-small", title="$n_1 : n_2 : n_3 : n_4$" if ax is over_d else None)
    at = results["of"] == 0
    plots.points(values, judged[1][at], judged[2][at], None, "found", 0, markerfacecolor="none")
    told = theory.switched_off(problem_of(COUNTS["9:5:3:1"], 4, config.lam))
    off = [len(row.off) for row in told]
    values.plot(off, [row.value for row in told], "x", color="black", markersize=3,
                label="prediction", zorder=1)  # fmt: skip
    values.set(xlabel="classes off", ylabel="$f$, nats", xticks=range(4))
    values.legend(fontsize="x-small")
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("c16_switched_off"))
