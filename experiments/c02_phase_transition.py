"""Phase transition: the minimum vanishes exactly at x = K² n λ_W λ_H = 1.

Claim. The global minimum is a simplex ETF with ‖W‖² = (K−1) t √(n λ_H/λ_W), λ_W‖W‖² = λ_H‖H‖² and
f* = −log(1 − (K−1)c) + (K−1) c t, c = √(n λ_W λ_H), t = log(1/c − (K−1)), as long as x < 1; it is
W = H = 0, f* = log K, for x ≥ 1. Descent from random starts finds it on both sides, and just below
the threshold ‖W‖ grows like (1 − x)^½.

Source. The theorem on global minimisers of Zhu et al. 2021 (arXiv 2105.02375), made explicit in
`ufm.theory`; the threshold is where t = 0.

Reproduces. Theorem 3.1 of Zhu et al. with all its constants. Extends it by the threshold at which
its minimiser vanishes.

Shown. Four problems (K, d, n in the legend), λ_W = 4λ_H, λ_b = 0.01, three starts per x; the scaled
norms are w = ‖W‖ (λ_W/nλ_H)^¼ / √(K−1) and h = ‖H‖ (λ_H/nλ_W)^¼ / √(K−1), equal at the minimum.
(a) w and (b) f/log K against x. Against the distance |1 − x| to the threshold: (c) w for x < 1,
(d) the error of the norms, (e) the error of the value, (f) the steps that L-BFGS takes.

Refuted by a converged run whose norms or value differ from the closed form, or by a norm that
vanishes below x = 1 or is positive above it.
"""

import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below
from ufm import Problem, init_params, plots, theory
from ufm.descent.loop import Limits, Method, Status, start, trajectory
from ufm.runtime import programs

# √t below which a minimum counts as collapsed; it is 0.03 at the nearest point below x = 1.
VANISHED = 1e-3
# Records of a compiled leg; between legs the host asks whether any run is left.
LEG = 10


@dataclass(frozen=True)
class Config:
    """Sizes and accuracy of the sweep; x = K² n λ_W λ_H."""

    # (K, d, n) of every series.
    shapes: tuple[tuple[int, int, int], ...] = ((2, 2, 20), (4, 4, 10), (10, 10, 3), (20, 24, 2))
    below: int = 40  # values of λ below the threshold in each series
    above: int = 24  # values of λ above it
    lowest: float = 1e-3  # smallest x
    highest: float = 10.0  # largest x
    nearest: float = 1e-3  # smallest distance |x − 1| to the threshold
    ratio: float = 4.0  # λ_W/λ_H, not 1, since only the product should matter
    lam_b: float = 1e-2  # λ_b
    starts: int = 3  # random starts for each λ
    scale: float = 1.0  # standard deviation of the entries of a start
    steps: int = 2000  # limit on the steps of L-BFGS
    record_every: int = 10  # steps between tests for convergence
    grad_tol: float = 1e-10  # ‖∇f‖ at which a run has converged
    norm_tol: float = 1e-4  # tolerance on the norms, in units in which both equal √t
    value_tol: float = 1e-9  # tolerance on f, in nats
    exponent_tol: float = 0.01  # tolerance on the critical exponent
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Two series, one start for each λ."""
        return cls(shapes=((2, 2, 20), (4, 4, 10)), starts=1)


def grid(config: Config) -> np.ndarray:
    """x of every λ in a series: geometric in x up to 1/2, then in |x − 1|; none at x = 1."""
    far = np.geomspace(config.lowest, 0.5, config.below // 2, endpoint=False)
    lower = 1 - np.geomspace(0.5, config.nearest, config.below - config.below // 2)
    upper = 1 + np.geomspace(config.nearest, config.highest - 1, config.above)
    return np.concatenate([far, lower, upper])


def problem_of(config: Config, shape: tuple[int, int, int], x) -> Problem:
    """The problems of a series, decays as arrays of the shape of x."""
    K, d, n = shape
    mu, skew = np.sqrt(x / (K * K * n)), np.sqrt(config.ratio)
    return Problem(K, d, n, mu * skew, mu / skew, np.full_like(mu, config.lam_b))


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """All λ and starts of a series side by side; arrays (series, starts, λ)."""
    x = grid(config)
    runs = np.tile(x, config.starts)
    keys = jax.random.split(jax.random.key(config.seed), len(runs))
    rows = []
    for done, shape in enumerate(config.shapes):

        def report(left: int, share: float = done / len(config.shapes), K: int = shape[0]) -> None:
            progress(share, f"K={K}, {left} of {len(runs)} runs left")

        rows.append(_series(config, problem_of(config, shape, runs), keys, report))
    grids = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {"x": x} | {k: v.reshape(len(rows), config.starts, len(x)) for k, v in grids.items()}


def _series(config: Config, problem: Problem, keys, report) -> dict[str, np.ndarray]:
    """The ends of all runs of one shape, in compiled segments until all have ended."""
    method, hyper = Method("lbfgs", None, None), (0.0, 0.0)
    steps = jnp.int32(config.steps), jnp.int32(config.record_every)
    limits = Limits(*steps, jnp.asarray(config.grad_tol), jnp.asarray(-jnp.inf))

    @jax.jit
    @jax.vmap
    def begin(problem, key):
        return start(problem, init_params(key, problem, config.scale), method, hyper)

    @programs.for_long_runs
    @jax.vmap
    def leg(problem, state):
        state, history, status = trajectory(problem, state, method, hyper, limits, LEG + 1)
        last = jnp.argmax(history["step"])
        kept = ("step", "loss", "gap", "grad_norm", "norm_W", "norm_H")
        return state, {name: history[name][last] for name in kept} | {"status": status}

    state, left = begin(problem, keys), len(keys)
    while left:
        report(left)
        state, ends = leg(problem, state)
        left = int(np.sum(ends["status"] == Status.running))
    return {name: np.asarray(value) for name, value in ends.items()}


def order_parameters(config: Config, results: dict, series: int) -> tuple[np.ndarray, np.ndarray]:
    """‖W‖ and ‖H‖ in the units in which the closed form of both is √t, (starts, λ)."""
    K, _, n = config.shapes[series]
    skew, root = config.ratio**0.25, np.sqrt(K - 1) * n**0.25
    norm_W, norm_H = results["norm_W"][series], results["norm_H"][series]
    return norm_W * skew / root, norm_H / (skew * root)


def root_margin(config: Config, shape: tuple[int, int, int], x) -> np.ndarray:
    """√t, what the closed form says of both order parameters."""
    return np.sqrt(theory.margin(problem_of(config, shape, x)))


def exponent(x: np.ndarray, root_t: np.ndarray) -> float:
    """β in log √t = α + β log ε + γ ε over ε = 1 − x < 0.03; NaN with fewer than three points.

    The last term is the first correction to the power law; it grows with K.
    """
    near = (x < 1) & (x > 0.97)
    if near.sum() < 3:
        return np.nan
    eps, logs = 1 - x[near], np.log(np.maximum(root_t[near], 1e-300))
    return np.linalg.lstsq(np.stack([np.ones_like(eps), np.log(eps), eps], axis=1), logs)[0][1]


def check(config: Config, results: dict) -> list[Verdict]:
    """Norms, value, place of the threshold and exponent of every series."""
    verdicts, x = [], results["x"]
    for i, (K, d, n) in enumerate(config.shapes):
        problem, name = problem_of(config, (K, d, n), x), f"K={K}, d={d}, n={n}: "
        ended = results["status"][i] == Status.converged
        root_t = root_margin(config, (K, d, n), x)
        W, H = order_parameters(config, results, i)
        excess = results["loss"][i] - theory.global_value(problem)
        for what, errors, tolerance in (
            ("worst error of ‖W‖, in units where it is √t", W - root_t, config.norm_tol),
            ("worst error of ‖H‖, likewise", H - root_t, config.norm_tol),
            ("worst error of f, nats", excess, config.value_tol),
        ):
            verdicts.append(judge_all_below(name + what, errors, ended, tolerance))
        alive = np.max(W, axis=0) > VANISHED
        bracket = np.max(x[alive], initial=0), np.min(x[~alive], initial=np.inf)
        sure = ended[:, np.isin(x, bracket)].all()
        claim = name + "K²nλ_Wλ_H at which W vanishes"
        verdicts.append(judge(claim, np.mean(bracket), 1, config.nearest, sure))
        claim, slope = name + "exponent of ‖W‖ in 1 − x", exponent(x, np.mean(W, axis=0))
        sure = ended[:, x < 1].all() and np.isfinite(slope)
        verdicts.append(judge(claim, slope, 0.5, config.exponent_tol, sure))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Norms and value through the threshold; near it the exponent, the errors and the steps."""
    canvas, axes = plots.figure("icml_text", 4.1, 2, 3)
    norms, value, power, wrong_norm, wrong_value, steps = axes.flat
    x = results["x"]
    distance, below = np.abs(1 - x), x < 1
    fine = np.geomspace(x[0], x[-1], 400)
    near = 1 - np.geomspace(config.nearest, 1 - config.lowest, 200)
    for i, shape in enumerate(config.shapes):
        ended = results["status"][i] == Status.converged
        W, H = order_parameters(config, results, i)
        law = root_margin(config, shape, x)
        worst = np.maximum(np.abs(W - law), np.abs(H - law))
        f, floor = results["loss"][i] / np.log(shape[0]), 1e-16
        off = np.abs(results["loss"][i] - theory.global_value(problem_of(config, shape, x)))
        label = "$K={}$, $d={}$, $n={}$".format(*shape)
        for ax, abscissa, measured, shown in (
            (norms, x, W, x > 0),
            (value, x, f, x > 0),
            (power, distance, W, below),
            (wrong_norm, distance, np.maximum(worst, floor), x > 0),
            (wrong_value, distance, np.maximum(off, floor), x > 0),
            (steps, distance, results["step"][i], x > 0),
        ):
            at = np.broadcast_to(abscissa, measured.shape)[:, shown].ravel()
            done = ended[:, shown].ravel()
            plots.points(ax, at, measured[:, shown].ravel(), done, label, i, markersize=2.2)
        f_star = theory.global_value(problem_of(config, shape, fine)) / np.log(shape[0])
        plots.prediction(norms, fine, root_margin(config, shape, fine))
        plots.prediction(value, fine, f_star)
        plots.prediction(power, 1 - near, root_margin(config, shape, near))
    _label(config, axes.ravel())
    plots.prediction(norms, [], [], "prediction")
    plots.tolerance(norms, np.nan, "tolerance")
    canvas.legend(*norms.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return {"": canvas}


def _label(config: Config, axes: np.ndarray) -> None:
    norms, value, power, wrong_norm, wrong_value, steps = axes
    for ax in axes[:2]:
        ax.set(xscale="log", xlabel=r"$x = K^2 n \lambda_W \lambda_H$")
        ax.axvline(1, color=plots.GREY, linewidth=0.6, linestyle=":")
    value.text(0.8, 0.12, "$x = 1$", ha="right", transform=value.get_xaxis_transform())
    for ax in axes[2:]:
        ax.set(xscale="log", xlabel=r"$|1 - x|$")
    norms.set_ylabel(r"$w = \|W\|_F\,(\lambda_W/n\lambda_H)^{1/4}\,/\sqrt{K-1}$")
    value.set_ylabel(r"$f\,/\log K$")
    power.set(yscale="log", ylabel="$w$, for $x<1$")
    wrong_norm.set(yscale="log", ylabel="largest error of $w$ and $h$")
    plots.tolerance(wrong_norm, config.norm_tol)
    wrong_value.set(yscale="log", ylabel=r"error of $f$, nats")
    plots.tolerance(wrong_value, config.value_tol)
    steps.set(ylim=(0, None), ylabel="steps of L-BFGS")
    plots.letters(axes)


if __name__ == "__main__":
    sys.exit(runner.main("c02_phase_transition"))
