"""Rate of descent: near the minimum the Hessian's extreme eigenvalues set the speed of descent.

Claim. Near the set of global minima every step of gradient descent with step size η multiplies the
distance to this set, and ‖∇f‖, by ρ = max |1 − ηλ|, where λ ranges over the eigenvalues of ∇²f off
the symmetry orbit. With λ_min and λ_max from the closed form the best step size is
η* = 2/(λ_min + λ_max), and there ρ = (κ−1)/(κ+1) with κ = λ_max/λ_min. If ηλ_max > 2 the minimum
repels: ‖∇f‖ grows by the factor ρ > 1 per step.

Source. The closed-form spectrum in `ufm.theory.spectra`, derived there from the global minimum of
Zhu et al. 2021 (arXiv 2105.02375, theorem 3.1). That the orbit does not slow descent down is the
Morse–Bott property, claim c05; the rate of a quadratic is classical (Polyak 1964).

Reproduces. None of these papers has a figure like this one. Extends theorem 3.1 of Zhu et al. by
the speed at which gradient descent reaches the minimiser.

Shown. Three problems (K, d, n in the legend), λ_W = 4λ_H, λ_b = √(λ_Wλ_H). (a) ‖∇f‖ against the
step for five step sizes, with the predicted slope late in each run (dashed). (b) Rate at the step
sizes η* and 0.2η* on both sides of x = 1. Relative error of log ρ for all x: (c) against η/η* for
η ≤ η*, (d) around the best step size, η = η*(1 + s/κ); s = 1 is ηλ_max = 2.

Refuted by a run whose log ‖∇f‖ has another slope in the end, by a rate that crosses 1 elsewhere,
or by a run beyond ηλ_max = 2 that stays at the minimum.
"""

import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below
from ufm import Params, Problem, plots, theory
from ufm.descent.loop import Limits, Method, Status, start, trajectory
from ufm.runtime import programs
from ufm.theory.spectra import condition_number, gd_rate, hessian_spectrum, optimal_step

RECORDS = 64  # records of a run
LATE = 0.7  # share of a run after which its slope is taken
UNITS = r"$x = K^2 n \lambda_W \lambda_H$"


@dataclass(frozen=True)
class Config:
    """Problems, step sizes and tolerances; x = K² n λ_W λ_H."""

    # (K, d, n) of every series.
    shapes: tuple[tuple[int, int, int], ...] = ((2, 2, 10), (4, 6, 5), (10, 10, 3))
    # Values of x: the minimum is a simplex below 1 and the origin above.
    x: tuple[float, ...] = (
        *(1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9),
        *(1.1, 1.3, 1.5, 2.0, 4.0, 10.0),
    )
    ratio: float = 4.0  # λ_W/λ_H
    bias_ratio: float = 1.0  # λ_b/√(λ_W λ_H)
    # Step sizes far below the best one, η/η*.
    multiples: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7)
    # Step sizes near it, s in η = η*(1 + s/κ); those with s > 1 are unstable.
    offsets: tuple[float, ...] = (-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0)
    starts: int = 8  # perturbations of each run; ‖∇f‖ is their root mean square
    scale: float = 0.03  # standard deviation of the first perturbation of the minimum
    decades: float = 10.0  # decades by which ‖∇f‖ should fall in a run
    unstable_scale: float = 1e-10  # first perturbation where the minimum repels
    unstable_decades: float = 6.0  # decades by which ‖∇f‖ should grow there
    floor: float = 1e-15  # ‖∇f‖ below which rounding shows
    rate_tol: float = 0.02  # tolerance on log ρ, relative
    step_tol: float = 0.01  # tolerance on the ηλ_max at which ρ crosses 1
    shown: float = 0.1  # x of the runs that are drawn
    seed: int = 0  # seed of the perturbations

    @classmethod
    def quick(cls) -> "Config":
        """One shape, four decays."""
        return cls(shapes=((4, 6, 5),), x=(1e-2, 0.1, 0.7, 1.5))


def problem_of(config: Config, shape: tuple[int, int, int], x: float) -> Problem:
    """K classes at x = K² n λ_W λ_H."""
    K, d, n = shape
    mu, skew = float(np.sqrt(x / (K * K * n))), float(np.sqrt(config.ratio))
    return Problem(K, d, n, mu * skew, mu / skew, mu * config.bias_ratio)


def steps_of(config: Config, problem: Problem) -> np.ndarray:
    """Every η, ascending: far below the best, then near it."""
    near = 1 + np.array(config.offsets) / condition_number(problem)
    return optimal_step(problem) * np.concatenate([config.multiples, near])


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Root mean square of ‖∇f‖ at the records, (shapes, x, η, records), steps and whether done."""
    size = (len(config.shapes), len(config.x), len(config.multiples) + len(config.offsets))
    results = {
        "grad_norm": np.full((*size, RECORDS + 1), np.nan, np.float32),
        "steps": np.zeros(size, np.int32),
        "done": np.zeros(size, bool),
    }
    for i, j in np.ndindex(size[:2]):
        shape, x = config.shapes[i], config.x[j]
        progress((i + j / size[1]) / size[0], f"K={shape[0]}, x={x:g}")
        problem = problem_of(config, shape, x)
        for k, rate in enumerate(steps_of(config, problem)):
            scale, steps = _length(config, problem, rate)
            keys = jax.random.split(jax.random.key(config.seed), config.starts)
            params = [_start(problem, scale, key) for key in keys]
            params = jax.tree.map(lambda *parts: jnp.stack(parts), *params)
            grad_norm, status = _run(problem, params, rate, steps)
            results["grad_norm"][i, j, k] = np.sqrt(np.mean(np.square(grad_norm), axis=0))
            results["steps"][i, j, k] = steps
            results["done"][i, j, k] = np.all(status == Status.step_limit)
    return results


def records_of(steps: int) -> np.ndarray:
    """The steps at which a run of so many was recorded; those past its end repeat the last."""
    return np.minimum(np.arange(RECORDS + 1) * -(-steps // RECORDS), steps)


def _length(config: Config, problem: Problem, rate: float) -> tuple[float, int]:
    """(size of the perturbation, steps) that show so many decades at the predicted ρ."""
    change = np.log10(gd_rate(problem, rate))
    unstable = change > 0
    scale = config.unstable_scale if unstable else config.scale
    decades = config.unstable_decades if unstable else config.decades
    return scale, int(np.ceil(decades / abs(change)))


def _start(problem: Problem, scale: float, key: jax.Array) -> Params:
    """The closed-form minimum, rotated at random and perturbed."""
    turned, pushed = jax.random.split(key)
    minimum = theory.global_minimizer(problem, turned)
    parts = zip(minimum, jax.random.split(pushed, 3), strict=True)
    return Params(*(x + scale * jax.random.normal(part, x.shape) for x, part in parts))


@programs.for_long_runs
def _run(problem: Problem, params: Params, rate, steps):
    """‖∇f‖ and status of gradient descent from many points, compiled once a shape."""
    method, hyper, never = Method("gd", None, None), (rate, 0.0), jnp.asarray(-jnp.inf)
    limits = Limits(steps, -(-steps // RECORDS), never, never)

    def one(params):
        state = start(problem, params, method, hyper)
        _, history, status = trajectory(problem, state, method, hyper, limits, RECORDS + 1)
        return history["grad_norm"], status

    return jax.vmap(one)(params)


def slopes(config: Config, results: dict) -> tuple[np.ndarray, np.ndarray]:
    """(change of log ‖∇f‖ a step late in every run, whether the run reached so far), (…, η)."""
    found, ended = np.full(results["done"].shape, np.nan), results["done"].copy()
    for at in np.ndindex(found.shape):
        steps, sizes = records_of(results["steps"][at]), results["grad_norm"][at]
        late = (steps >= LATE * steps[-1]) & (sizes > config.floor)
        ended[at] &= late.sum() > 4
        if ended[at]:
            found[at] = np.polyfit(steps[late], np.log(sizes[late]), 1)[0]
    return found, ended


def predicted(config: Config) -> np.ndarray:
    """log ρ of every run, (shapes, x, η)."""
    problems = [[problem_of(config, shape, x) for x in config.x] for shape in config.shapes]
    return np.array(
        [[[np.log(gd_rate(p, rate)) for rate in steps_of(config, p)] for p in row]
         for row in problems]
    )  # fmt: skip


def check(config: Config, results: dict) -> list[Verdict]:
    """Slopes on both sides of ηλ_max = 2, and where the sign of the slope changes."""
    (found, ended), theirs = slopes(config, results), predicted(config)
    errors, stable, verdicts = found / theirs - 1, theirs[0, 0] < 0, []
    for i, shape in enumerate(config.shapes):
        name = "K={}, d={}, n={}: ".format(*shape)
        for claim, side in (
            ("worst relative error of log ρ, ηλ_max < 2", stable),
            ("worst relative error of log ρ, ηλ_max > 2", ~stable),
        ):
            part = np.where(ended[i], errors[i], np.nan)[:, side], ended[i][:, side]
            verdicts.append(judge_all_below(name + claim, *part, config.rate_tol))
        crossing = crossings(config, found[i])
        worst = crossing[np.argmax(np.abs(crossing - 1))]
        claim = name + "s from which η = η*(1 + s/κ) repels"
        verdicts.append(judge(claim, worst, 1, config.step_tol, ended[i].all()))
    return verdicts


def crossings(config: Config, found: np.ndarray) -> np.ndarray:
    """s at which ρ crosses 1 in one shape, for every x, between the two nearest step sizes."""
    offsets = np.array(config.offsets)
    last, first = np.flatnonzero(offsets < 1)[-1], np.flatnonzero(offsets > 1)[0]
    below, above = (1 - np.exp(found[:, len(config.multiples) + k]) for k in (last, first))
    return offsets[last] + (offsets[first] - offsets[last]) * below / (below - above)


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Runs of one problem; ρ over λ; ρ over η, far below the best step and near it."""
    canvas, axes = plots.figure("icml_text", 4.4, 2, 2)
    runs, decays, far, near = axes.flat
    (found, ended), theirs = slopes(config, results), predicted(config)
    count, offsets = len(config.multiples), np.array(config.offsets)
    best = count + int(np.argmin(np.abs(offsets)))
    shares, kept = np.append(config.multiples, 1.0), [*range(count), best]
    sides = np.geomspace(config.x[0], 0.98, 99), np.geomspace(1.02, config.x[-1], 49)
    for i, shape in enumerate(config.shapes):
        for share, k in list(zip(shares, kept, strict=True))[::-3]:
            plots.points(decays, config.x, -found[i, :, k], ended[i, :, k], None, i)
            for x in sides:
                problems = [problem_of(config, shape, float(value)) for value in x]
                rho = [gd_rate(problem, share * optimal_step(problem)) for problem in problems]
                plots.prediction(decays, x, -np.log(rho), linewidth=0.6)
        wrong = np.maximum(np.abs(found[i] / theirs[i] - 1), 1e-16)
        for y, done in zip(wrong, ended[i], strict=True):
            plots.points(far, shares, y[kept], done[kept], None, i)
            plots.points(near, offsets, y[count:], done[count:], None, i)
        plots.points(decays, [], [], None, "$K={}$, $d={}$, $n={}$".format(*shape), i)
    for share, k in list(zip(shares, kept, strict=True))[::-3]:
        label = r"$\eta^*$" if share == 1 else rf"${share:g}\,\eta^*$"
        decays.annotate(label, (config.x[0], -theirs[0, 0, k]), (0, 6), textcoords="offset points")
    _draw_runs(runs, config, results, theirs)
    _label(config, axes.ravel())
    return {"": canvas}


def _draw_runs(ax: Axes, config: Config, results: dict, theirs: np.ndarray) -> None:
    """‖∇f‖ of the first shape at one x, and lines of the predicted slope late in the runs."""
    j = int(np.argmin(np.abs(np.log(np.array(config.x) / config.shown))))
    problem = problem_of(config, config.shapes[0], config.x[j])
    largest = float(hessian_spectrum(problem).eigenvalues[-1])
    names = [
        rf"$\eta\lambda_{{\max}} = {rate * largest:.3g}$" for rate in steps_of(config, problem)
    ]
    for i, k in enumerate(range(len(config.multiples) - 2, len(names), 3)):
        steps, sizes = records_of(results["steps"][0, j, k]), results["grad_norm"][0, j, k]
        plots.curves(ax, steps, sizes, names[k], i)
        late = (steps >= LATE * steps[-1]) & (sizes > 0)
        line = theirs[0, j, k] * steps[late]
        line += np.mean(np.log(sizes[late]) - line)
        plots.prediction(ax, steps[late], np.exp(line))
    ax.set_title("$K={}$, $d={}$, $n={}$, ".format(*config.shapes[0]) + f"$x={config.x[j]:g}$")


def _label(config: Config, axes: np.ndarray) -> None:
    runs, decays, far, near = axes
    runs.set(yscale="log", xlabel="step", ylabel=r"$\|\nabla f\|$")
    decays.set(xscale="log", yscale="log", xlabel=UNITS, ylabel=r"$-\log\rho$ per step")
    wrong = r"relative error of $\log\rho$"
    far.set(xscale="log", yscale="log", xlabel=r"$\eta\,/\,\eta^*$", ylabel=wrong)
    near.set(yscale="log", xlabel=r"$s$ in $\eta = \eta^*(1 + s/\kappa)$", ylabel=wrong)
    for ax in (far, near):
        plots.tolerance(ax, config.rate_tol, "tolerance")
        ax.set_ylim(top=10 * config.rate_tol)
    near.axvline(1, color=plots.GREY, linewidth=0.6, linestyle=":")
    near.text(1.05, 0.92, r"$\eta\lambda_{\max} = 2$", transform=near.get_xaxis_transform())
    plots.prediction(decays, [], [], "prediction")
    runs.set_ylim(top=1e3)
    runs.legend(loc="upper right", ncols=2)
    decays.legend(loc="lower left")
    far.legend(loc="lower left")
    plots.letters(axes)


if __name__ == "__main__":
    sys.exit(runner.main("c06_rate_of_descent"))
