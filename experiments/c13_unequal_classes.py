"""Unequal classes: where minority classes merge, the law within a group, and the limit of SELI.

Claim. Among classes of one count m the minimum has p_own − p_other = (1 − Nμ/√m)₊, so they merge
iff √m ≤ Nμ, μ = √(λ_W λ_H); with decay 1/n_k of the features iff m ≤ Nμ: at a finite ratio of the
counts the minority classes become one. Without a bias the logits tend in direction to I − 11ᵀ/K,
SELI, as λ → 0, whatever the counts.

Source. Dang et al. (arXiv 2309.09725) for plain decay; Fang et al. 2021 (arXiv 2101.12699) for the
layer-peeled model, minority collapse; Thrampoulidis et al. 2022 (arXiv 2208.05512) for SELI. The
minimum for any counts is that of `ufm.theory.groups`, solved and certified.

Reproduces. The thresholds of 2309.09725 (5 + 5 classes of 500 and 100: .003333; 3 + 7: .004545) and
the minority collapse of 2101.12699 (K = 10, E_H = 5, E_W = 1, ratios to 10⁴), both by descent from
random starts, with certificates.

Shown. (a) Cosine of two minority rows of W over the ratio of counts n_A/n_B, K = 10, d = 10, 5 + 5
classes, both decays (1 too where the rows vanish, as they do beyond the threshold); (b) p_own −
p_other of the minority over Nμ/√m; (c) distance in direction of the logits from SELI over λ, K = 3,
n = (8, 2, 1), no bias.

Refuted by a certified minimum with another cosine, another p_own − p_other or another threshold, or
by counts at which SELI is not optimal.
"""

import dataclasses
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below, judge_below
from ufm import Problem, plots, theory

DECAYS = ("plain", "layer-peeled")
# Majority and minority classes and their counts in 2309.09725, and the threshold in λ it gives.
FIGURES = (((5, 5), (500, 100), 0.003333), ((3, 7), (500, 100), 0.004545))


@dataclass(frozen=True)
class Config:
    """Counts, decays and tolerances."""

    K: int = 10  # classes, half of them in the majority; d = K
    m: int = 10  # samples of a minority class
    # n_A/n_B, of majority over minority.
    ratios: tuple[int, ...] = (1, 2, 5, 10, 20, 40, 60, 80, 100, 150, 200, 300, 1000, 10000)
    # μ of the plain decay, and of the layer-peeled one: √(λ_Wλ_H) with ω_k = 1/n_k.
    mu: tuple[float, float] = (1e-4, 1e-3)
    peeled_ratio: float = 5.0  # λ_W/λ_H of the layer-peeled decay, E_H/E_W
    starts: int = 2  # random starts of each problem, of which the lowest end counts
    seli_counts: tuple[int, ...] = (8, 2, 1)  # samples of each class there
    seli_lams: tuple[float, ...] = (1e-1, 1e-2, 1e-4, 1e-6, 1e-8)  # λ_W = λ_H there
    # Counts at which SELI is held to be optimal.
    tested: tuple[tuple[int, ...], ...] = (
        *((8, 2, 1), (1000, 1, 1), (1000, 100, 10, 1), (500,) * 5 + (1,) * 5),
    )
    near: float = 1e-2  # relative distance from a threshold at which both sides are looked at
    gap_tol: float = 1e-9  # certified gap up to which a point counts as the global minimum
    tol: float = 1e-6  # on cosines and probabilities
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """Fewer ratios and decays."""
        return cls(ratios=(1, 10, 100, 1000), seli_lams=(1e-1, 1e-3, 1e-5))


def problem_of(config: Config, ratio: int, kind: int) -> Problem:
    """Half of the classes with `ratio` times the samples of the others, one of `DECAYS`."""
    half = config.K // 2
    n = (config.m * ratio,) * half + (config.m,) * (config.K - half)
    mu = config.mu[kind]
    if not kind:
        return Problem(config.K, config.K, n, mu, mu, 0.0)
    skew = config.peeled_ratio**0.5
    omega = [1 / count for count in n]
    return Problem(config.K, config.K, n, mu * skew, mu / skew, 0.0, decay_weights=omega)


def merged_problem(problem: Problem) -> Problem:
    """One column for each class, of the weight of its samples: the same landscape."""
    share = np.asarray(problem.counts, float)
    omega = 1.0 if problem.decay_weights is None else np.asarray(problem.decay_weights)
    return dataclasses.replace(
        problem, n=1, weights=share * problem.K / problem.N, decay_weights=share * omega
    )


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Cosines, laws and gaps over (decays, ratios); thresholds; distance from SELI."""
    size = len(DECAYS), len(config.ratios)
    results = {name: np.zeros(size) for name in ("cosine", "separation", "gap", "value")}
    for i, name in enumerate(DECAYS):
        for j, ratio in enumerate(config.ratios):
            progress((i + j / size[1]) / 2.5, f"{name}, ratio {ratio}")
            measured = _measure(config, problem_of(config, ratio, i))
            for key, value in measured.items():
                results[key][i, j] = value
    progress(0.8, "thresholds")
    rows = [_near(config, *figure[:2]) for figure in FIGURES]
    results["threshold"] = np.array(rows)
    for k, lam in enumerate(config.seli_lams):
        progress(0.9 + 0.1 * k / len(config.seli_lams), f"SELI, λ={lam:g}")
        K = len(config.seli_counts)
        problem = Problem(K, K, config.seli_counts, lam, lam, bias=False)
        point = theory.global_minimizer(problem, jax.random.key(config.seed), jnp.float64)
        columns = np.cumsum((0, *config.seli_counts[:-1]))
        Z = np.asarray(point.W @ point.H)[:, columns]
        row = _direction(Z, theory.seli(problem)), ufm.certify(problem, point).gap
        results.setdefault("seli", np.zeros((len(config.seli_lams), 2)))[k] = row
    results["optimal"] = np.array([
        theory.seli_is_optimal(Problem(len(n), len(n), n, 1e-3, 1e-3)) for n in config.tested
    ])  # fmt: skip
    return results


def _solved(config: Config, problem: Problem):
    """The lowest of several descents on one column a class, and its certified gap."""
    small = merged_problem(problem)
    keys = jax.random.split(jax.random.key(config.seed), config.starts)
    draws = [ufm.init_params(key, small, 1.0, jnp.float64) for key in keys]
    found = ufm.solve(small, jax.tree.map(lambda *x: jnp.stack(x), *draws)).params
    ends = [jax.tree.map(lambda x, i=i: x[i], found) for i in range(config.starts)]
    proofs = [ufm.certify(small, end) for end in ends]
    best = min(range(config.starts), key=lambda i: proofs[i].value)
    return ends[best], proofs[best]


def _measure(config: Config, problem: Problem) -> dict[str, float]:
    """Of the minimum found: cosine of two minority rows, p_own − p_other there, value, gap."""
    params, proof = _solved(config, problem)
    W = np.asarray(params.W)
    Z = np.asarray(params.W @ params.H + params.b[:, None])[:, -1]
    P = np.exp(Z - Z.max()) / np.exp(Z - Z.max()).sum()
    return {
        "cosine": _cosine(W),
        "separation": float(P[-1] - P[-2]),
        "value": proof.value,
        "gap": proof.gap,
    }


def _cosine(W: np.ndarray) -> float:
    """Of the last two rows; 1, as of merged ones, where both vanish to rounding."""
    first, second = lengths = np.linalg.norm(W[-2:], axis=1)
    if np.max(lengths) <= 1e-6 * np.max(np.linalg.norm(W, axis=1)):
        return 1.0
    return float(W[-1] @ W[-2] / (first * second))


def _near(config: Config, classes, counts) -> tuple[float, float, float, float]:
    """(λ of the threshold, distance of two minority rows below it, above it, worst gap)."""
    n = sum(((count,) * k for k, count in zip(classes, counts, strict=True)), ())
    at = counts[1] ** 0.5 / sum(n)
    rows = []
    for share in (1 - config.near, 1 + config.near):
        problem = Problem(len(n), len(n), n, at * share, at * share, 0.0)
        params, proof = _solved(config, problem)
        W = np.asarray(params.W)
        rows.append((float(np.linalg.norm(W[-1] - W[-2])), proof.gap))
    (below, first), (above, second) = rows
    return at, below, above, max(first, second)


def _direction(Z: np.ndarray, limit: np.ndarray) -> float:
    """‖Z/‖Z‖ − Ẑ/‖Ẑ‖‖, columns centred."""
    Z = Z - Z.mean(axis=0)
    return float(np.linalg.norm(Z / np.linalg.norm(Z) - limit / np.linalg.norm(limit)))


def told(config: Config, kind: int, ratio: int) -> tuple[float, float, float]:
    """(cosine of two minority rows, p_own − p_other, f*) of the certified minimum of theory."""
    problem = problem_of(config, ratio, kind)
    cosine = _cosine(np.asarray(_rows(problem)))
    return cosine, float(theory.separation(problem)[-1]), float(theory.global_value(problem))


def _rows(problem: Problem) -> np.ndarray:
    """W of the minimiser, of one column a class."""
    small = merged_problem(problem)
    return theory.global_minimizer(small, jax.random.key(0), jnp.float64).W


def check(config: Config, results: dict) -> list[Verdict]:
    """Cosines, laws and values over the ratio; thresholds of the papers; SELI."""
    verdicts = []
    for i, name in enumerate(DECAYS):
        law = np.array([told(config, i, ratio) for ratio in config.ratios]).T
        ended = results["gap"][i] <= config.gap_tol
        for key, row, words in zip(
            ("cosine", "separation", "value"), law,
            ("cosine of two minority rows", "minority p_own − p_other", "f, nats"), strict=True,
        ):  # fmt: skip
            error = results[key][i] - row
            claim = f"{name}, ratios {config.ratios[0]} … {config.ratios[-1]}: worst error of "
            verdicts.append(judge_all_below(claim + words, error, ended, config.tol))
        wrong = np.sum((results["separation"][i] < config.tol) != (law[1] == 0))
        claim = f"{name}: ratios at which the minority merged, or did not, against the threshold"
        verdicts.append(judge(claim, wrong, 0, 0, ended.all()))
    for (classes, _, paper), row in zip(FIGURES, results["threshold"], strict=True):
        at, below, above, gap = row
        name = "{} + {} classes of 500 and 100: ".format(*classes)
        ended = bool(gap <= config.gap_tol)
        verdicts.append(judge(f"{name}threshold in λ", at, paper, 1e-6))
        claim = f"{name}‖w_j − w_k‖ of the minority {config.near:.0%} above it"
        verdicts.append(judge_below(claim, above, 1e-4 * below, ended))
    distance, gap = results["seli"].T
    ended = bool(np.all(gap <= config.gap_tol))
    claim = "SELI: decays λ at which a smaller one brought the logits no nearer"
    verdicts.append(judge(claim, np.sum(np.diff(distance) >= 0), 0, 0, ended))
    claim = f"SELI: share of {len(config.tested)} sets of counts at which it is optimal"
    verdicts.append(judge(claim, np.mean(results["optimal"]), 1, 0))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Cosine over the ratio; the law within the minority; distance from SELI."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    cosines, laws, seli = axes.flat
    for i, name in enumerate(DECAYS):
        done = results["gap"][i] <= config.gap_tol
        plots.points(cosines, config.ratios, results["cosine"][i], done, name, i)
        fine = np.unique(np.geomspace(1, max(config.ratios), 60).astype(int))
        law = [told(config, i, int(ratio))[0] for ratio in fine]
        plots.prediction(cosines, fine, law, "prediction" if not i else None)
        units = [_units(config, i, ratio) for ratio in config.ratios]
        plots.points(laws, units, results["separation"][i], done, name, i)
    cosines.set(xscale="log", xlabel=r"$n_A / n_B$", ylabel=r"$\cos(w_j, w_k)$, minority")
    cosines.legend(loc="center left", fontsize="x-small")
    line = np.geomspace(1e-3, 10, 200)
    plots.prediction(laws, line, np.maximum(1 - line, 0))
    laws.set(xscale="log", xlabel=r"$N\mu/\sqrt{m}$, layer-peeled $N\mu/m$")
    laws.set(ylabel=r"$p_{\mathrm{own}} - p_{\mathrm{other}}$", xlim=(5e-3, 20))
    plots.points(seli, config.seli_lams, results["seli"][:, 0], None, "minimum", 2)
    seli.set(xscale="log", yscale="log", xlabel=r"$\lambda_W = \lambda_H$")
    seli.set_ylabel(r"$\| Z/\|Z\| - \hat Z/\|\hat Z\| \|$")
    plots.letters(axes.flat)
    return {"": canvas}


def _units(config: Config, kind: int, ratio: int) -> float:
    """Nμ/√m, or Nμ/m: 1 where the minority merges."""
    problem = problem_of(config, ratio, kind)
    return float(problem.N * problem.mu / config.m ** (1.0 if kind else 0.5))


if __name__ == "__main__":
    sys.exit(runner.main("c13_unequal_classes"))
