"""Certified minimum: from random starts, four descent methods reach the global minimum.

Claim. For balanced classes and d ≥ K every start leads to a global minimum of the unconstrained
feature model, whatever the method: gradient descent, SGD with momentum, Adam or L-BFGS. There
f = f*, the rows of W form a simplex ETF of norm ‖W‖² = (K−1) t √(n λ_H/λ_W), NC1–NC4 vanish, and
a dual certificate shows that f − f* is nearly 0. Under gradient descent with step size η, NC1
finally decays as (1 − ηλ_H(1 + t/K))^(2·steps), where t is the margin: this is the slowest
within-class rate in the row space of W.

Source. Zhu et al. 2021 (arXiv 2105.02375): theorems 3.1 and 3.2, and section 5 for the setting
(K = 10, all decays 5e-4, the three optimisers; N = 50,000 and d = 512 for its images).

Reproduces. Theorem 3.2 of Zhu et al. in the setting of their section 5 (three optimisers, one
minimum). They train networks; here the variables of the model are trained. Extends it by a
certificate for the end of every run, and by the rate at which NC1 decays.

Shown. K = 10, n = 50, λ_W = λ_H = λ_b = 5e-4, three starts per method. First figure, d = 512, all
against the step: (a) f, (b) certified gap and its tolerances (the upper one for SGD), (c) to (f)
NC1 to NC4. Second figure: (a) certified gap at the end for d = 10, 64 and 512; (b) certified gap
and (c) distance of f from the closed form f*, for one run with d = 512 and n = 5,000 (N = 50,000),
in float32 first and float64 afterwards.

Refuted by a run that stops at a critical point with a certified gap above the tolerance, or that
is certified while norms, value or geometry differ from the closed form.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below
from ufm import Params, Problem, Run, init_params, plots, theory

METHODS = ("gd", "sgd", "adam", "lbfgs")
NAMES = {"gd": "GD", "sgd": "SGD, momentum", "adam": "Adam", "lbfgs": "L-BFGS"}
CURVES = ("step", "loss", "gap", "nc1", "nc2", "nc3", "nc4", "norm_W")
COLLAPSE = ("nc1", "nc2", "nc3", "nc4")
ENDS = ("value", "lower_bound", "gap", "grad_norm", "norm_W", *COLLAPSE)
# A run is recorded at every step for a while, then at every 4th, 16th, … for as many records.
STAGE, RECORDS = 24, 24 * 6 + 1


@dataclass(frozen=True)
class Config:
    """Sizes, methods and tolerances; λ_W = λ_H = λ_b = lam."""

    K: int = 10  # classes
    widths: tuple[int, ...] = (10, 64, 512)  # widths d, from K on
    n: int = 50  # samples per class
    lam: float = 5e-4  # all three decays, the paper's weight decay
    starts: int = 3  # random starts for each width and method
    scale: float = 0.1  # standard deviation of the entries of a start
    steps: tuple[int, int, int, int] = (2500, 16000, 1500, 200)  # steps of GD, SGD, Adam and L-BFGS
    gd_rate: float = 15.0  # step size of GD; stable below 2K, as the bias starts with curvature 1/K
    # First step size of SGD; it falls to 0 as (1 − step/steps)⁴, against the noise floor.
    sgd_rate: float = 2.0
    sgd_share: float = 0.2  # share of the samples in a minibatch of SGD
    adam_rate: float = 0.1  # first step size of Adam; it falls to 0 as a cosine
    gap_tol: float = 1e-6  # certified gap to reach, in nats
    sgd_gap_tol: float = 1e-5  # the same for SGD, whose noise dies out only as 1/steps
    critical: float = 1e-12  # ‖∇f‖ below which a point counts as critical
    collapse_tol: float = 1e-3  # relative tolerance on ‖W‖, and absolute on NC1 to NC4
    rate_tol: float = 0.01  # relative tolerance on the decay rate of NC1
    real_d: int = 512  # width of the run at the paper's size
    real_n: int = 5000  # its samples per class
    # Its steps of heavy ball, in float32 and then in float64.
    real_steps: tuple[int, int] = (150, 250)
    real_rate: float = 30.0  # its step size
    real_momentum: float = 0.85  # its momentum
    real_scale: float = 0.02  # standard deviation of the entries of its start
    seed: int = 0  # seed of starts and minibatches

    @classmethod
    def quick(cls) -> "Config":
        """One width and start, fewer samples; the large run has a tenth of the paper's and of d."""
        return cls(widths=(10,), n=20, starts=1, real_d=51, real_n=500)


def problem_of(config: Config, d: int, n: int) -> Problem:
    """K classes, the three decays equal."""
    return Problem(K=config.K, d=d, n=n, lam_W=config.lam, lam_H=config.lam, lam_b=config.lam)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Histories (methods, widths, starts, records), measures of the ends; the large run."""
    shape = (len(METHODS), len(config.widths), config.starts)
    curves = {name: np.full((*shape, RECORDS), np.nan, np.float32) for name in CURVES}
    ends = {f"end_{name}": np.full(shape, np.nan) for name in ENDS}
    options = methods(config)
    for done, index in enumerate(np.ndindex(shape)):
        method, d = METHODS[index[0]], config.widths[index[1]]
        progress(0.5 * done / np.prod(shape), f"{NAMES[method]}, d={d}")
        problem = problem_of(config, d, config.n)
        start, noise = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), index[2]))
        params = init_params(start, problem, config.scale)
        run = _descend(problem, params, method, key=noise, **options[method])
        for name in CURVES:
            curves[name][index][: len(run.history[name])] = run.history[name]
        for name, value in _end(problem, run.params).items():
            ends[f"end_{name}"][index] = value
    return curves | ends | _large(config, progress)


def _descend(problem: Problem, params: Params, method: str, *, steps: int, **options) -> Run:
    """`ufm.descend` in stages, recorded more and more rarely."""
    run, every, limit = None, 1, 0
    while run is None or (run.status == "step_limit" and run.steps < steps):
        limit = min(steps, limit + STAGE * every)
        options |= {"steps": limit, "record_every": every, "resume": run}
        run = ufm.descend(problem, params, method, **options)
        every *= 4
    return run


def methods(config: Config) -> dict[str, dict[str, Any]]:
    """Options of `descend` for every method; all runs of a method share its schedule."""
    samples, steps = config.K * config.n, dict(zip(METHODS, config.steps, strict=True))
    options: dict[str, dict[str, Any]] = {
        "gd": {"learning_rate": config.gd_rate},
        "sgd": {
            "learning_rate": optax.polynomial_schedule(config.sgd_rate, 0, 4, steps["sgd"]),
            "batch_size": int(config.sgd_share * samples),
        },
        "adam": {"learning_rate": optax.cosine_decay_schedule(config.adam_rate, steps["adam"])},
        "lbfgs": {},
    }
    # Beyond the tolerance, to show that the gap goes on falling there.
    beyond = config.gap_tol / 1000
    return {name: {"steps": steps[name], "gap_tol": beyond, **options[name]} for name in METHODS}


def _end(problem: Problem, params: Params) -> dict[str, float]:
    certificate = ufm.certify(problem, params)
    W, H, b = (np.asarray(x) for x in params)
    collapse = ufm.metrics.collapse(W, H, b, problem.labels)
    measured = {name: getattr(collapse, name) for name in COLLAPSE}
    measured["norm_W"] = float(np.linalg.norm(W))
    return measured | {name: getattr(certificate, name) for name in ENDS[:4]}


def _large(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """The paper's size by heavy ball: float32 until rounding stops it, then float64."""
    problem = problem_of(config, config.real_d, config.real_n)
    params = init_params(jax.random.key(config.seed), problem, config.real_scale, dtype=jnp.float32)
    curves: dict[str, list] = {name: [] for name in CURVES}
    before = 0
    for dtype, steps in zip((jnp.float32, jnp.float64), config.real_steps, strict=True):
        params = Params(*(x.astype(dtype) for x in params))

        def report(run: Run, before: int = before) -> None:
            taken = before + run.steps
            progress(0.5 + 0.5 * taken / sum(config.real_steps), f"N={problem.N}, step {taken}")

        run = ufm.descend(
            problem,
            params,
            "heavy_ball",
            steps=steps,
            learning_rate=config.real_rate,
            momentum=config.real_momentum,
            record_every=20,
            gap_tol=config.gap_tol,
            on_segment=report,
        )
        params = run.params
        for name in CURVES:
            curves[name] += list(run.history[name] + (before if name == "step" else 0))
        before += run.steps
    stored = {f"real_{name}": np.asarray(x, np.float32) for name, x in curves.items()}
    return stored | {f"real_end_{name}": np.asarray(x) for name, x in _end(problem, params).items()}


def check(config: Config, results: dict) -> list[Verdict]:
    """Gaps of every method, then value and geometry of the ends, the rate, the large run."""
    problem = problem_of(config, config.widths[0], config.n)
    gap, grad_norm = results["end_gap"], results["end_grad_norm"]
    tolerances = dict.fromkeys(METHODS, config.gap_tol) | {"sgd": config.sgd_gap_tol}
    verdicts, certified = [], np.zeros(gap.shape, bool)
    for i, (method, tolerance) in enumerate(tolerances.items()):
        certified[i] = np.abs(gap[i]) < tolerance
        claim = f"{NAMES[method]}: worst certified gap of {gap[i].size} runs, nats"
        ended = certified[i] | (grad_norm[i] <= config.critical)
        verdicts.append(judge_all_below(claim, gap[i], ended, tolerance))
    f_star, norm = theory.global_value(problem), theory.norms(problem).W
    loosest = max(tolerances.values())
    for claim, errors, tolerance in (
        ("worst |f − f*| where certified, nats", results["end_value"] - f_star, loosest),
        ("highest lower bound − f*, nats", _over(results["end_lower_bound"], f_star), 1e-12),
        ("worst relative error of ‖W‖", results["end_norm_W"] / norm - 1, config.collapse_tol),
        *(
            (f"worst {name.upper()}", results[f"end_{name}"], config.collapse_tol)
            for name in COLLAPSE
        ),
    ):
        verdicts.append(judge_all_below(claim, errors, certified, tolerance))
    rate, predicted = nc1_rate(config, results), predicted_rate(config)
    claim = "GD: decay of log NC1 a step"
    verdicts.append(judge(claim, rate, predicted, config.rate_tol * abs(predicted)))
    return verdicts + _check_large(config, results)


def _over(bound: np.ndarray, f_star: float) -> np.ndarray:
    return np.maximum(bound - f_star, 0)


def _check_large(config: Config, results: dict) -> list[Verdict]:
    problem = problem_of(config, config.real_d, config.real_n)
    gap, value = results["real_end_gap"], results["real_end_value"]
    certified = np.abs(gap) < config.gap_tol
    ended = certified | (results["real_end_grad_norm"] <= config.critical)
    name = f"K={config.K}, d={config.real_d}, N={problem.N}: "
    f_star, norm = theory.global_value(problem), theory.norms(problem).W
    return [
        judge_all_below(name + "certified gap, nats", gap, ended, config.gap_tol),
        judge(name + "f, nats", value, f_star, config.gap_tol, certified),
        judge(
            name + "‖W‖", results["real_end_norm_W"], norm, norm * config.collapse_tol, certified
        ),
    ]


def predicted_rate(config: Config) -> float:
    """2 log(1 − ηλ_H(1 + t/K)), change of log NC1 in a step of GD near the minimum."""
    t = theory.margin(problem_of(config, config.widths[0], config.n))
    return float(2 * np.log1p(-config.gd_rate * config.lam * (1 + t / config.K)))


def nc1_rate(config: Config, results: dict) -> float:
    """The measured change, over the last third of each run, of the run farthest from predicted."""
    slopes = []
    steps, nc1 = (results[name][0].reshape(-1, RECORDS) for name in ("step", "nc1"))
    for x, y in zip(steps, nc1, strict=True):
        late = (x > 2 / 3 * np.nanmax(x)) & (y > 0)
        slopes.append(np.polyfit(x[late], np.log(y[late]), 1)[0] if late.sum() > 2 else np.nan)
    return slopes[int(np.argmax(np.abs(np.array(slopes) - predicted_rate(config))))]


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Every run at the largest width; the ends at all widths, and the large run."""
    return {"": _draw_curves(config, results), "_sizes": _draw_sizes(config, results)}


def _draw_curves(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 3.9, 2, 3, sharex=True)
    problem = problem_of(config, config.widths[-1], config.n)
    panels = ("loss", "gap", *COLLAPSE)
    labels = (r"$f$, nats", "certified gap, nats", "NC1", "NC2", "NC3", "NC4")
    for ax, name, label in zip(axes.flat, panels, labels, strict=True):
        for i, method in enumerate(METHODS):
            runs = results["step"][i, -1], results[name][i, -1]
            plots.curves(ax, *runs, NAMES[method], i)
        ax.set(yscale="linear" if name in ("loss", "nc4") else "log", ylabel=label)
        ax.set_xscale("symlog", linthresh=1, linscale=0.6)
    loss, gap, nc1, nc2, nc3, nc4 = axes.flat
    plots.level(loss, theory.global_value(problem), "prediction")
    plots.tolerance(gap, config.gap_tol, "tolerance")
    plots.tolerance(gap, config.sgd_gap_tol)
    plots.level(nc4, 0.0)
    shown = np.nanmin(results["nc1"][0, -1]), np.nanmax(results["step"][0, -1])
    x = np.linspace(0.4 * shown[1], shown[1], 50)
    y = 3 * shown[0] * np.exp(predicted_rate(config) * (x - shown[1]))
    plots.prediction(nc1, x, y)
    for ax in (nc2, nc3, nc4):
        ax.set_xlabel("step")
    handles, labels = loss.get_legend_handles_labels()
    grey, words = gap.get_legend_handles_labels()
    canvas.legend(handles + grey[-1:], labels + words[-1:], loc="outside lower center", ncols=6)
    plots.letters(axes.flat)
    return canvas


def _draw_sizes(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 2.2, 1, 3)
    ends, gaps, values = axes.flat
    for i, method in enumerate(METHODS):
        # The starts of a method stand side by side: their gaps may agree.
        aside = 1.35 ** (i - 1.5) * 1.07 ** (np.arange(config.starts) - (config.starts - 1) / 2)
        d = np.array(config.widths)[:, None] * aside
        gap = np.maximum(results["end_gap"][i], 1e-16)
        tolerance = config.sgd_gap_tol if method == "sgd" else config.gap_tol
        plots.points(ends, d.ravel(), gap.ravel(), (gap <= tolerance).ravel(), NAMES[method], i)
    plots.tolerance(ends, config.gap_tol, "tolerance")
    plots.tolerance(ends, config.sgd_gap_tol)
    ends.set(xscale="log", yscale="log", xlabel=r"$d$", ylabel="certified gap, nats")
    ends.set_xlim(config.widths[0] / 2, config.widths[-1] * 2)
    ends.set_xticks(config.widths, [str(d) for d in config.widths], minor=False)
    ends.minorticks_off()
    ends.legend(loc="center", bbox_to_anchor=(0.5, 0.57), fontsize="x-small")
    problem = problem_of(config, config.real_d, config.real_n)
    steps, f_star = results["real_step"], theory.global_value(problem)
    # The first record in float64 repeats the step of the last one in float32.
    switch = int(np.argmax(np.diff(steps) <= 0)) + 1
    for i, (part, name) in enumerate(
        ((slice(switch), "float32"), (slice(switch, None), "float64"))
    ):
        plots.curves(gaps, steps[part], np.maximum(results["real_gap"][part], 1e-16), name, i)
        excess = np.abs(results["real_loss"][part] - f_star)
        plots.curves(values, steps[part], np.maximum(excess, 1e-16), None, i)
    plots.tolerance(gaps, config.gap_tol, "tolerance")
    gaps.set(yscale="log", xlabel="step", ylabel="certified gap, nats")
    gaps.legend()
    values.set(yscale="log", xlabel="step", ylabel=r"$|f - f^*|$, nats")
    for ax in (gaps, values):
        ax.set_title(f"$d={problem.d}$, $N=$ {problem.N:,}")
    plots.letters(axes.flat)
    return canvas


if __name__ == "__main__":
    sys.exit(runner.main("c01_certified_minimum"))
