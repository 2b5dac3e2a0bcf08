"""Every loss: the same minimum, with its conditioning and the rate of descent.

Claim. For equal classes and d ≥ K−1 the minimum under cross-entropy, label smoothing, the focal,
the squared and the binary loss is the same simplex ETF, or zero. The loss determines only its size:
value, margin and norms have a closed form, and so do the condition number of ∇²f off the symmetry
orbit and the rate of gradient descent. Label smoothing raises the condition number of ∇²f and
lowers that of WᵀSW, the Hessian of the loss in a feature.

Source. Zhu et al. 2021 (arXiv 2105.02375), cross-entropy; Zhou et al. 2022 (arXiv 2210.02192),
smoothing and focal; Zhou et al. 2022 (arXiv 2203.01238), squared; arXiv 2505.05813, binary; arXiv
2402.03979 for the conditioning under smoothing. Spectra and rates are derived in
`ufm.theory.spectra`.

Reproduces. "Are all losses created equal" (Zhou et al.): one geometry for all losses. Extends it by
the size, the conditioning and the rate, over κ = K√(nλ_Wλ_H) on both sides of the thresholds.

Shown. K = 4, d = 5, n = 3, λ_W = 4λ_H, free bias. (a) Value, (b) margin, (c) norm of W and (d)
condition number of ∇²f off the orbit against κ. (e) Relative error of the rate of gradient descent,
log ρ, at two step sizes for each loss. (f) Both condition numbers against the smoothing ε. In (e)
and (f) κ = 0.07.

Refuted by a certified minimum of another value, margin, norm or condition number, by gradient
descent of another rate, or by condition numbers that move the other way under smoothing.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below, judge_below
from ufm import Params, Problem, hessian, plots, theory
from ufm.losses import BinaryCrossEntropy, CrossEntropy, Focal, SquaredError
from ufm.theory import symmetric

LOSSES = {
    "cross-entropy": CrossEntropy(),
    "smoothing 0.1": CrossEntropy(0.1),
    "focal 2": Focal(2.0),
    "squared": SquaredError(),
    "binary": BinaryCrossEntropy(),
}
KAPPA = r"$\kappa = K\sqrt{n\lambda_W\lambda_H}$"
# What is measured of a minimum: its name in a claim, its closed form.
MEASURES: dict[str, tuple[str, Callable[[Problem], float]]] = {
    "value": ("f, nats", theory.global_value),
    "margin": ("margin", theory.margin),
    "W": ("‖W‖", lambda problem: theory.norms(problem).W),
    "H": ("‖H‖", lambda problem: theory.norms(problem).H),
    "condition": ("condition number, relative", theory.condition_number),
}
LATE = 0.8  # share of a run after which its slope is taken


@dataclass(frozen=True)
class Config:
    """One size of problem, grids of decays, smoothings and step sizes."""

    K: int = 4  # classes
    d: int = 5  # width
    n: int = 3  # samples per class
    ratio: float = 4.0  # λ_W/λ_H
    lowest: float = 0.01  # smallest κ = K√(nλ_Wλ_H)
    highest: float = 3.0  # largest κ
    points: int = 15  # values of κ
    starts: int = 4  # random starts for each, of which the lowest end counts
    gap_tol: float = 1e-9  # certified gap up to which a point counts as the global minimum
    zero: float = 1e-11  # modulus of an eigenvalue that counts as 0, over the largest
    tol: float = 1e-8  # on value, margin, norms, condition number
    kappa: float = 0.07  # κ of the rates and of the smoothings
    multiples: tuple[float, ...] = (0.3, 1.0)  # step sizes in units of the best one
    pushes: int = 16  # runs of each step size; ‖∇f‖ is their root mean square
    decades: float = 11.0  # decades by which ‖∇f‖ falls in a run
    scale: float = 0.03  # standard deviation of the first perturbation
    rate_tol: float = 0.02  # tolerance on log ρ, relative
    # ε of label smoothing.
    smoothings: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Fewer κ and smoothings."""
        return cls(points=4, smoothings=(0.0, 0.1, 0.3))


def problem_of(config: Config, loss, kappa: float) -> Problem:
    """Equal classes at one κ, the bias free."""
    mu, skew = kappa / (config.K * config.n**0.5), config.ratio**0.5
    return Problem(config.K, config.d, config.n, mu * skew, mu / skew, 0.0, loss=loss)


def grid(config: Config) -> np.ndarray:
    """Every κ."""
    return np.geomspace(config.lowest, config.highest, config.points)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Measures of the minimum (losses, κ); rates (losses, η); both conditions over ε."""
    size = len(LOSSES), config.points
    results = {name: np.zeros(size) for name in (*MEASURES, "gap", "spread")}
    results["rate"] = np.zeros((len(LOSSES), len(config.multiples)))
    for i, (name, loss) in enumerate(LOSSES.items()):
        for j, kappa in enumerate(grid(config)):
            progress((i + j / config.points) / len(LOSSES), f"{name}, κ={kappa:.3g}")
            measured = _measure(config, problem_of(config, loss, float(kappa)))
            for key, value in measured.items():
                results[key][i, j] = value
        results["rate"][i] = _rates(config, problem_of(config, loss, config.kappa))
    progress(0.95, "smoothing")
    pairs = [_conditions(config, float(eps)) for eps in config.smoothings]
    results["full"], results["feature"], results["smoothing_gap"] = np.array(pairs).T
    return results


def _solved(config: Config, problem: Problem) -> tuple[Params, float]:
    """(the lowest critical point of several descents, its certified gap)."""
    keys = jax.random.split(jax.random.key(config.seed), config.starts)
    draws = [ufm.init_params(key, problem, 1.0, jnp.float64) for key in keys]
    # One by one: the program for one start compiles in half the time.
    ends = [ufm.solve(problem, start).params for start in draws]
    proofs = [ufm.certify(problem, end) for end in ends]
    best = min(range(config.starts), key=lambda i: proofs[i].value)
    return ends[best], float(proofs[best].gap)


def _measure(config: Config, problem: Problem) -> dict[str, float]:
    """Measures of the minimum found, and the spread of its margins."""
    params, gap = _solved(config, problem)
    Z = np.asarray(params.W @ params.H)
    own = np.arange(config.K)[:, None] == problem.labels
    margins = (Z[own][None] - Z)[~own]
    return {
        "value": float(ufm.objective(problem, params)),
        "margin": float(margins.mean()),
        "spread": float(np.ptp(margins)),
        "W": float(np.linalg.norm(params.W)),
        "H": float(np.linalg.norm(params.H)),
        "condition": _condition(config, hessian.dense(problem, params)),
        "gap": gap,
    }


def _condition(config: Config, A) -> float:
    """Largest over smallest eigenvalue, those that count as 0 left out."""
    values = np.linalg.eigvalsh(A)
    return float(values[-1] / values[values > config.zero * values[-1]][0])


def _rates(config: Config, problem: Problem) -> list[float]:
    """Change of log ‖∇f‖ a step late in gradient descent near the minimum, for each step size."""
    params = theory.global_minimizer(problem, jax.random.key(config.seed), jnp.float64)
    keys = jax.random.split(jax.random.key(1 + config.seed), config.pushes)
    pushes = [ufm.init_params(key, problem, config.scale, jnp.float64) for key in keys]
    start, found = jax.tree.map(lambda x, *y: x + jnp.stack(y), params, *pushes), []
    for rate in steps_of(config, problem):
        length = config.decades / -np.log10(theory.gd_rate(problem, rate))
        sizes = np.asarray(_descended(problem, start, rate, int(np.ceil(length))))
        late = np.arange(len(sizes)) >= LATE * len(sizes)
        found.append(np.polyfit(np.flatnonzero(late), np.log(sizes[late]), 1)[0])
    return found


def steps_of(config: Config, problem: Problem) -> np.ndarray:
    """η of every run."""
    return theory.optimal_step(problem) * np.array(config.multiples)


@partial(jax.jit, static_argnums=3)
def _descended(problem: Problem, params: Params, rate, steps: int):
    """Root mean square of ‖∇f‖ over many runs of gradient descent, after every step."""

    def step(params, _):
        slope = jax.vmap(lambda x: ufm.gradient(problem, x))(params)
        size = sum(jnp.sum(x * x) for x in slope)
        return jax.tree.map(lambda x, g: x - rate * g, params, slope), size

    return jnp.sqrt(jax.lax.scan(step, params, length=steps)[1] / len(params.W))


def _conditions(config: Config, eps: float) -> tuple[float, float, float]:
    """(condition of ∇²f off the orbit, of WᵀSW on the rows of W, certified gap) at smoothing ε."""
    problem = problem_of(config, CrossEntropy(eps), config.kappa)
    params, gap = _solved(config, problem)
    Z = params.W @ params.H[:, :1] + params.b[:, None]
    S = jax.tree.map(np.asarray, problem.loss.curvature(Z, problem.labels[:1])).matrices()[0]
    W = np.asarray(params.W)
    full = _condition(config, hessian.dense(problem, params))
    return full, _condition(config, W.T @ S @ W), gap


def predicted(config: Config, key: str, loss, kappas) -> np.ndarray:
    """One of `MEASURES` in closed form at every κ."""
    form = MEASURES[key][1]
    return np.array([float(form(problem_of(config, loss, float(kappa)))) for kappa in kappas])


def told_rates(config: Config) -> np.ndarray:
    """log ρ of every run, (losses, η)."""
    problems = [problem_of(config, loss, config.kappa) for loss in LOSSES.values()]
    return np.array(
        [[np.log(theory.gd_rate(p, rate)) for rate in steps_of(config, p)] for p in problems]
    )


def told_conditions(config: Config) -> np.ndarray:
    """Both condition numbers over ε, (2, ε)."""
    problems = [problem_of(config, CrossEntropy(e), config.kappa) for e in config.smoothings]
    full = [theory.condition_number(problem) for problem in problems]
    numbers = [symmetric.least(problem) for problem in problems]
    return np.array([full, [x.own / x.wrong for x in numbers]])


def check(config: Config, results: dict) -> list[Verdict]:
    """Every measure of every loss against its closed form; rates; both conditions over ε."""
    verdicts = []
    for i, (name, loss) in enumerate(LOSSES.items()):
        ended = results["gap"][i] <= config.gap_tol
        for key, (label, _) in MEASURES.items():
            law = predicted(config, key, loss, grid(config))
            error = results[key][i] - law
            error = error / law if key == "condition" else error
            verdicts.append(judge_all_below(f"{name}: worst error of {label}", error, ended,
                                            config.tol))  # fmt: skip
        claim = f"{name}: largest spread of the margins"
        verdicts.append(judge_all_below(claim, results["spread"][i], ended, config.tol))
        error = results["rate"][i] / told_rates(config)[i] - 1
        claim = f"{name}: worst relative error of log ρ of gradient descent"
        verdicts.append(judge_below(claim, np.max(np.abs(error)), config.rate_tol))
    ended = results["smoothing_gap"] <= config.gap_tol
    for row, key, name in zip(told_conditions(config), ("full", "feature"), ("∇²f", "WᵀSW"),
                              strict=True):  # fmt: skip
        claim = f"smoothing: worst relative error of the condition number of {name}"
        verdicts.append(judge_all_below(claim, results[key] / row - 1, ended, config.tol))
    for key, sign, words in (("full", 1, "∇²f rises"), ("feature", -1, "WᵀSW falls")):
        rising = np.sum(sign * np.diff(results[key]) > 0)
        claim = f"smoothing: steps of ε at which the condition number of {words}"
        verdicts.append(judge(claim, rising, len(config.smoothings) - 1, 0, ended.all()))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Four measures over κ; rates; both condition numbers over ε."""
    canvas, axes = plots.figure("icml_text", 4.2, 2, 3)
    *over, rates, smoothing = axes.flat
    shown = (("value", r"$f^*$, nats (squared: none)"), ("margin", "margin $t$"), ("W", r"$\|W\|$"),
             ("condition", r"condition number of $\nabla^2 f$"))  # fmt: skip
    for ax, (key, label) in zip(over, shown, strict=True):
        _draw_measure(ax, config, results, key)
        ax.set(xscale="log", xlabel=KAPPA, ylabel=label)
    over[3].set(yscale="log")
    plots.prediction(over[1], [], [], "prediction")
    over[1].legend(fontsize="x-small")
    told = told_rates(config)
    for i, name in enumerate(LOSSES):
        plots.points(rates, -told[i], np.abs(results["rate"][i] / told[i] - 1), None, name, i)
    plots.tolerance(rates, config.rate_tol, "tolerance")
    rates.set(xscale="log", yscale="log", xlabel=r"$-\log\rho$ per step, predicted")
    rates.set_ylabel(r"relative error of $\log\rho$")
    rates.minorticks_off()
    rates.set_xticks([0.003, 0.01, 0.03], ["0.003", "0.01", "0.03"])
    rates.legend([rates.lines[-1]], ["tolerance"], loc="upper center")
    done = results["smoothing_gap"] <= config.gap_tol
    names = r"$\nabla^2 f$", r"$W^{\!\top} S W$"
    for i, (key, name) in enumerate(zip(("full", "feature"), names, strict=True)):
        plots.points(smoothing, config.smoothings, results[key], done, name, i)
        plots.prediction(smoothing, config.smoothings, told_conditions(config)[i])
    smoothing.set(xlabel=r"smoothing $\varepsilon$", ylabel="condition number", yscale="log")
    smoothing.minorticks_off()
    smoothing.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    smoothing.legend(loc="center right")
    plots.letters(axes.flat)
    return {"": canvas}


def _draw_measure(ax: Axes, config: Config, results: dict, key: str) -> None:
    """One measure over κ, the closed form through every loss's points."""
    fine = np.geomspace(config.lowest, config.highest, 48)
    for i, (name, loss) in enumerate(LOSSES.items()):
        done = results["gap"][i] <= config.gap_tol
        plots.points(ax, grid(config), results[key][i], done, name, i)
        plots.prediction(ax, fine, predicted(config, key, loss, fine), linewidth=0.6)


if __name__ == "__main__":
    sys.exit(runner.main("c12_every_loss"))
