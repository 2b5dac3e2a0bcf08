"""Unequal classes: when minority classes merge, the law within a group, and the limit SELI.

Claim. Among classes of equal count m the minimum satisfies p_own − p_other = (1 − Nμ/√m)₊, where
μ = √(λ_W λ_H). So these classes merge iff √m ≤ Nμ, or, if features decay by λ_H/n_k, iff m ≤ Nμ.
The minority classes therefore coincide from a finite ratio of the counts on; if the bias is free,
their rows of W vanish at a larger ratio. Without a bias the direction of the logits tends to
Ẑ = I − 11ᵀ/K, SELI, as λ → 0, whatever the counts. The margins are log(1/μ) − log c_jk +
O(1/log(1/μ)), where μc_jk is the probability of a wrong class j for a sample of class k that
follows from the optimality of SELI.

Source. Hong and Ling 2023 (arXiv 2309.09725) for plain decay; Fang et al. 2021 (arXiv 2101.12699)
for the layer-peeled model, minority collapse; Thrampoulidis et al. 2022 (arXiv 2208.05512) for
SELI. The minimum for any counts is that of `ufm.theory.groups`, solved and certified.

Reproduces. The thresholds of 2309.09725 (5 + 5 classes of 500 and 100: .003333; 3 + 7: .004545) and
the minority collapse of 2101.12699 (K = 10, E_H = 5, E_W = 1, ratios to 10⁴), both by descent from
random starts, with certificates.

Shown. K = d = 10, five classes of n_A samples and five of n_B = m = 10; "plain" has the same decay
for all features (μ = 1e-4), "layer-peeled" λ_H/n_k (μ = 1e-3, λ_W = 5λ_H). (a) Cosine of two
minority rows of W against n_A/n_B, up to the ratio at which the rows vanish; (b) p_own − p_other in
the minority. (c) Distance of the logits from SELI in direction, against λ; K = 3, n = (8, 2, 1), no
bias; dashed, the margins of the claim, which hold for small λ.

Refuted by a certified minimum with another cosine or length of rows, another p_own − p_other or
another threshold, by other margins, or by counts at which SELI is not optimal.
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
SMALL = 1e-2  # decays up to which margins are held against those near SELI
VANISHED = 1e-6  # length of a minority row, over that of a majority row, that counts as 0
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
        return cls(ratios=(1, 100, 1000), seli_lams=(1e-1, 1e-3, 1e-5))


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
    names = ("cosine", "length", "separation", "gap", "value")
    results = {name: np.zeros(size) for name in names}
    for i, name in enumerate(DECAYS):
        for j, ratio in enumerate(config.ratios):
            progress((i + j / size[1]) / 2.5, f"{name}, ratio {ratio}")
            measured = _measure(config, problem_of(config, ratio, i))
            for key, value in measured.items():
                results[key][i, j] = value
    progress(0.8, "thresholds")
    rows = [_near(config, *figure[:2]) for figure in FIGURES]
    results["threshold"] = np.array(rows)
    logits, gaps = [], []
    for k, lam in enumerate(config.seli_lams):
        progress(0.9 + 0.1 * k / len(config.seli_lams), f"SELI, λ={lam:g}")
        K = len(config.seli_counts)
        problem = Problem(K, K, config.seli_counts, lam, lam, bias=False)
        point = theory.global_minimizer(problem, jax.random.key(config.seed), jnp.float64)
        columns = np.cumsum((0, *config.seli_counts[:-1]))
        logits.append(np.asarray(point.W @ point.H)[:, columns])
        gaps.append(ufm.certify(problem, point).gap)
    results |= {"logits": np.array(logits), "seli_gap": np.array(gaps)}
    results["optimal"] = np.array([
        theory.seli_is_optimal(Problem(len(n), len(n), n, 1e-3, 1e-3)) for n in config.tested
    ])  # fmt: skip
    return results


def _solved(config: Config, problem: Problem):
    """The lowest of several descents on one column a class, and its certified gap."""
    small = merged_problem(problem)
    keys = jax.random.split(jax.random.key(config.seed), config.starts)
    draws = [ufm.init_params(key, small, 1.0, jnp.float64) for key in keys]
    # One by one: the program for one start compiles in half the time.
    ends = [ufm.solve(small, start).params for start in draws]
    proofs = [ufm.certify(small, end) for end in ends]
    best = min(range(config.starts), key=lambda i: proofs[i].value)
    return ends[best], proofs[best]


def _measure(config: Config, problem: Problem) -> dict[str, float]:
    """Of the minimum found: `_pair` of two minority rows, p_own − p_other there, value, gap."""
    params, proof = _solved(config, problem)
    W = np.asarray(params.W)
    Z = np.asarray(params.W @ params.H + params.b[:, None])[:, -1]
    P = np.exp(Z - Z.max()) / np.exp(Z - Z.max()).sum()
    cosine, length = _pair(W)
    return {
        "cosine": cosine,
        "length": length,
        "separation": float(P[-1] - P[-2]),
        "value": proof.value,
        "gap": proof.gap,
    }


def _pair(W: np.ndarray) -> tuple[float, float]:
    """(cosine of the last two rows, NaN where they vanish; length of the last over the first)."""
    lengths = np.linalg.norm(W, axis=1)
    share = float(lengths[-1] / lengths[0])
    if share <= VANISHED:
        return float("nan"), share
    return float(W[-1] @ W[-2] / (lengths[-1] * lengths[-2])), share


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


def distances(config: Config, logits: np.ndarray) -> np.ndarray:
    """‖Z/‖Z‖ − Ẑ/‖Ẑ‖‖ over all samples, of centred logits (…, K, K) of one column a class."""
    root = np.sqrt(config.seli_counts)
    limit = (np.eye(len(root)) - 1 / len(root)) * root
    Z = (logits - logits.mean(axis=-2, keepdims=True)) * root
    size = np.linalg.norm(Z, axis=(-2, -1), keepdims=True)
    return np.linalg.norm(Z / size - limit / np.linalg.norm(limit), axis=(-2, -1))


def told_logits(config: Config, lam: float) -> np.ndarray:
    """Logits less that of the own class near SELI: −log(1/λ) + log c_jk, c = −(UVᵀ)_jk √n_k N/n_k.

    UΣVᵀ = Ẑ diag(√n): optimality at decay λ reads w_k p_jk = −λ(UVᵀ)_jk √n_k.
    """
    n = np.array(config.seli_counts, float)
    K = len(n)
    U, sizes, Vt = np.linalg.svd((np.eye(K) - 1 / K) * np.sqrt(n))
    kept = sizes > 1e-10 * sizes[0]
    c = -(U[:, kept] @ Vt[kept]) * n.sum() / np.sqrt(n)
    own = np.eye(K, dtype=bool)
    return np.where(own, 0.0, np.log(lam) + np.log(np.where(own, 1.0, c)))


def told(config: Config, kind: int, ratio: int) -> tuple[float, float, float, float]:
    """(`_pair` of two minority rows, p_own − p_other, f*) of the certified minimum of theory."""
    problem = problem_of(config, ratio, kind)
    pair = _pair(np.asarray(_rows(problem)))
    return *pair, float(theory.separation(problem)[-1]), float(theory.global_value(problem))


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
            ("cosine", "length", "separation", "value"), law,
            ("cosine of two minority rows", "length of a minority row over a majority row",
             "minority p_own − p_other", "f, nats"), strict=True,
        ):  # fmt: skip
            error = results[key][i] - row
            # Where rows vanish in theory and in computation there is no cosine to compare.
            error = np.where(np.isnan(results[key][i]) & np.isnan(row), 0.0, error)
            claim = f"{name}, ratios {config.ratios[0]} … {config.ratios[-1]}: worst error of "
            verdicts.append(judge_all_below(claim + words, error, ended, config.tol))
        wrong = np.sum((results["separation"][i] < config.tol) != (law[2] == 0))
        claim = f"{name}: ratios at which the minority merged, or did not, against the threshold"
        verdicts.append(judge(claim, wrong, 0, 0, ended.all()))
    for (classes, _, paper), row in zip(FIGURES, results["threshold"], strict=True):
        at, below, above, gap = row
        name = "{} + {} classes of 500 and 100: ".format(*classes)
        ended = bool(gap <= config.gap_tol)
        verdicts.append(judge(f"{name}threshold in λ", at, paper, 1e-6))
        claim = f"{name}‖w_j − w_k‖ of the minority {config.near:.0%} above it"
        verdicts.append(judge_below(claim, above, 1e-4 * below, ended))
    ended = bool(np.all(results["seli_gap"] <= config.gap_tol))
    claim = "SELI: decays λ at which a smaller one brought the logits no nearer"
    nearer = np.diff(distances(config, results["logits"])) < 0
    verdicts.append(judge(claim, np.sum(~nearer), 0, 0, ended))
    claim = "SELI, λ ≤ 0.01: worst error of a margin times log(1/λ), nats"
    verdicts.append(judge_below(claim, _margin_error(config, results), 1.0, ended))
    claim = f"SELI: share of {len(config.tested)} sets of counts at which it is optimal"
    verdicts.append(judge(claim, np.mean(results["optimal"]), 1, 0))
    return verdicts


def _margin_error(config: Config, results: dict) -> float:
    """max |z_jk − z_kk − told| log(1/λ) over the decays at which log(1/λ) is large."""
    worst = 0.0
    for lam, Z in zip(config.seli_lams, results["logits"], strict=True):
        if lam <= SMALL:
            error = np.max(np.abs(Z - np.diagonal(Z) - told_logits(config, lam)))
            worst = max(worst, float(error) * float(np.log(1 / lam)))
    return worst


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Cosine over the ratio; the law within the minority; distance from SELI."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    cosines, laws, seli = axes.flat
    for i, name in enumerate(DECAYS):
        done = results["gap"][i] <= config.gap_tol
        plots.points(cosines, config.ratios, results["cosine"][i], done, name, i)
        fine = np.unique(np.geomspace(1, max(config.ratios), 60).astype(int))
        law = [told(config, i, int(ratio))[0] for ratio in fine]
        plots.prediction(cosines, fine, law, "prediction" if i else None)
        units = [_units(config, i, ratio) for ratio in config.ratios]
        plots.points(laws, units, results["separation"][i], done, name, i)
    cosines.set(xscale="log", xlabel=r"$n_A / n_B$", ylabel=r"$\cos(w_j, w_k)$, minority")
    cosines.legend(loc="center left", fontsize="x-small")
    line = np.geomspace(1e-3, 30, 200)
    plots.prediction(laws, line, np.maximum(1 - line, 0))
    laws.set(xscale="log", xlabel=r"$N\mu/\sqrt{m}$, layer-peeled $N\mu/m$")
    laws.set(ylabel=r"$p_{\mathrm{own}} - p_{\mathrm{other}}$", xlim=(3e-3, 30))
    near = distances(config, results["logits"])
    done = results["seli_gap"] <= config.gap_tol
    plots.points(seli, config.seli_lams, near, done, "minimum of $f$", 2)
    fine = np.geomspace(min(config.seli_lams), SMALL, 40)
    nearby = np.array([told_logits(config, float(lam)) for lam in fine])
    plots.prediction(seli, fine, distances(config, nearby), "law for small $\\lambda$")
    seli.legend(fontsize="x-small", loc="upper left")
    seli.set(xscale="log", yscale="log", xlabel=r"$\lambda_W = \lambda_H$")
    seli.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    seli.minorticks_off()
    seli.set_ylabel(r"$\| Z/\|Z\| - \hat Z/\|\hat Z\| \|$")
    plots.letters(axes.flat)
    return {"": canvas}


def _units(config: Config, kind: int, ratio: int) -> float:
    """Nμ/√m, or Nμ/m: 1 where the minority merges."""
    problem = problem_of(config, ratio, kind)
    return float(problem.N * problem.mu / config.m ** (1.0 if kind else 0.5))


if __name__ == "__main__":
    sys.exit(runner.main("c13_unequal_classes"))
