"""Targets beyond one label: tag sets, mixtures of two classes, soft labels, regression.

Claim. Let all sets of tags of one size, or all pairs of classes of one mixing ratio, have equally
many samples. Then W is a simplex ETF, whatever the weights of the sizes. The mean feature of a set
of tags is a multiple, one for each size, of the sum of its classes' means; that of a mixture is a
combination of the means of its two classes. The coefficients and f solve a convex problem in as
many variables. For soft labels ‖p − t‖ ≤ Nμ/√n for every target t with n samples, μ = √(λ_Wλ_H):
log-odds on its support tend to log(t_j/t_k), logits off it are lower by about log(1/μ). In
regression WWᵀ = √(λ_H/λ_W) [Σ^½ − √(λ_Wλ_H)]₊, Σ the covariance of the targets, with decay λ_H/N.

Source. Li et al. (arXiv 2310.15903), tag sets; Fisher, Meng and Papyan 2024 (arXiv 2402.06171),
mixup; arXiv 2408.15417, soft labels of next tokens; arXiv 2409.04180, regression. The convex
problems follow from the symmetry of the classes, the bound on ‖p − t‖ from ‖G‖₂ = μ.

Reproduces. Tag-wise averages of 2310.15903; features of mixtures, of 2402.06171; finite and growing
parts of the logits of 2408.15417; WWᵀ of 2409.04180. Extends the first two by the coefficients.

Shown. λ_W = 4λ_H. (a) K = 4, sets S of 1, 2 and 3 tags: ‖h_S‖, relative to the length of the sum
of the means of its classes, against √(λ_Wλ_H). (b) Mixup, K = 4, √(λ_Wλ_H) = 1e-3: coefficients of
the feature of a mixture against the share α of its first class; grey, α and 1 − α, those of a
mixture of class means. (c) Soft labels t, K = 4: ‖p − t‖ against its bound Nμ/√n; inset, least
distance by which a logit off the support is lower, dashed a slope of 1. (d) Regression, 3 targets,
12 samples: the entries (i, j) of WWᵀ against √(λ_Wλ_H).

Refuted by a certified minimum with other coefficients, value or WWᵀ, by ‖p − t‖ above its bound, or
by logits off the support that do not fall as log(1/μ).
"""

import itertools
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import ufm
from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_all_below
from ufm import Problem, plots
from ufm.losses import SquaredError

# Columns are next-token laws on four tokens, with supports of one to four tokens.
SOFT = np.array([
    [1.0, 0.7, 0.5, 0.0, 0.4],
    [0.0, 0.3, 0.2, 0.6, 0.3],
    [0.0, 0.0, 0.3, 0.0, 0.2],
    [0.0, 0.0, 0.0, 0.4, 0.1],
])  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Sizes, decays and tolerances."""

    K: int = 4  # classes of the tag sets and of the mixtures; d = K + 1
    tags: tuple[int, ...] = (12, 2, 1)  # samples of each set of 1, 2, … tags
    mus: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2)  # √(λ_Wλ_H) of the tag sets
    # Shares of the first class in a mixture; each has all ordered pairs.
    shares: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    pure: int = 6  # samples of each class that are not mixed
    mixed: int = 1  # samples of each mixture
    mixed_mu: float = 1e-3  # √(λ_Wλ_H) there
    soft_counts: tuple[int, ...] = (3, 2, 1, 2, 1)  # samples of each soft label
    soft_mus: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # √(λ_Wλ_H) of the soft labels
    targets: tuple[int, int] = (3, 12)  # outputs and samples of the regression
    strengths: tuple[float, ...] = (0.05, 0.3, 0.6, 0.9, 1.3)  # √(λ_Wλ_H) there, of λ_H/N
    ratio: float = 4.0  # λ_W/λ_H
    starts: int = 2  # random starts of each problem, of which the lowest end counts
    gap_tol: float = 1e-9  # certified gap up to which a point counts as the global minimum
    tol: float = 1e-6  # on multiples, and on matrices relative to their norm
    value_tol: float = 1e-10  # on f, nats
    slope_tol: float = 0.05  # on the slope of logits off the support
    seed: int = 0  # seed of the starts and of the regression targets

    @classmethod
    def quick(cls) -> "Config":
        """Fewer decays and mixing ratios."""
        return cls(mus=(1e-4, 1e-3, 1e-2), shares=(0.5, 0.7), soft_mus=(1e-2, 1e-4, 1e-6),
                   strengths=(0.3, 0.9), starts=1)  # fmt: skip


def problem_of(config: Config, targets: np.ndarray, n, mu: float, **options) -> Problem:
    """Targets in K + 1 dimensions at one √(λ_Wλ_H)."""
    K, skew = len(targets), config.ratio**0.5
    return Problem(K, K + 1, n, mu * skew, mu / skew, 0.0, targets=targets, **options)


def tag_sets(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(T (K, G), the size of each set (G,)), sets of one tag first."""
    sets = [S for m in range(1, 1 + len(config.tags))
            for S in itertools.combinations(range(config.K), m)]  # fmt: skip
    T = np.array([[float(j in S) for S in sets] for j in range(config.K)])
    return T, T.sum(axis=0).astype(int)


def mixtures(config: Config) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """(T (K, G), (index of the share, j, k) of each column after the K classes themselves)."""
    eye = np.eye(config.K)
    # At one half (j, k) and (k, j) are one target.
    pairs = [
        (i, j, k)
        for i, share in enumerate(config.shares)
        for j, k in itertools.permutations(range(config.K), 2)
        if share != 0.5 or j < k
    ]
    mixed = [config.shares[i] * eye[j] + (1 - config.shares[i]) * eye[k] for i, j, k in pairs]
    return np.column_stack([eye, *mixed]), pairs


def regression_targets(config: Config) -> np.ndarray:
    """Gaussian targets of correlated outputs, of some size each."""
    K, N = config.targets
    rng = np.random.default_rng(config.seed)
    return np.tril(np.ones((K, K))) @ rng.standard_normal((K, N)) + 1.0


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Of each of the four families what is measured at its certified minima, and the gaps."""
    families = {"tags": _tags, "mixed": _mixed, "soft": _soft, "regression": _regressed}
    results: dict[str, np.ndarray] = {}
    for i, (name, family) in enumerate(families.items()):
        progress(i / len(families), name)
        found = family(config)
        results |= {f"{name}_{key}": np.array(x, float) for key, x in found.items()}
    return results


def _solved(config: Config, problem: Problem):
    """(the lowest of several descents, its value, its certified gap)."""
    keys = jax.random.split(jax.random.key(config.seed), config.starts)
    found = []
    for key in keys:
        start = ufm.init_params(key, problem, 1.0, jnp.float64)
        end = ufm.solve(problem, start, newton_steps=1000).params  # soft labels: some hundred
        found.append((end, ufm.certify(problem, end)))
    end, proof = min(found, key=lambda x: x[1].value)
    return end, proof.value, proof.gap


def _means(problem: Problem, params) -> np.ndarray:
    """The feature of each column of the targets, (d, G)."""
    first = np.concatenate([[0], np.cumsum(problem.counts)[:-1]])
    return np.asarray(params.H)[:, first]


def _frame(params) -> float:
    """Distance of the direction of WWᵀ from that of a simplex ETF."""
    W = np.asarray(params.W)
    gram, simplex = W @ W.T, np.eye(len(W)) - 1 / len(W)
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - simplex / (len(W) - 1) ** 0.5))


def _tags(config: Config) -> dict[str, list]:
    """Over √(λ_Wλ_H): multiples of each size, how far means are from them, W from an ETF."""
    T, size = tag_sets(config)
    rows: dict[str, list] = {x: [] for x in ("multiples", "off", "frame", "value", "gap")}
    for mu in config.mus:
        problem = problem_of(config, T, [config.tags[m - 1] for m in size], mu)
        params, value, gap = _solved(config, problem)
        H = _means(problem, params)
        sums = H[:, : config.K] @ T
        fit = np.sum(H * sums, axis=0) / np.sum(sums**2, axis=0)
        multiples = np.array([fit[size == m].mean() for m in np.unique(size)])
        off = np.linalg.norm(H - multiples[size - 1] * sums) / np.linalg.norm(H)
        for key, x in zip(rows, (multiples, off, _frame(params), value, gap), strict=True):
            rows[key].append(x)
    return rows


def _mixed(config: Config) -> dict[str, list]:
    """Of the mixtures: both multiples of each share, how far means are from them, W from an ETF."""
    T, pairs = mixtures(config)
    problem = problem_of(config, T, mixed_counts(config, T), config.mixed_mu)
    params, value, gap = _solved(config, problem)
    H = _means(problem, params)
    share, j, k = np.array(pairs).T
    # The means of the K classes sum to 0, so that two of them and no constant span the plane.
    fits = np.array([
        np.linalg.lstsq(H[:, [a, c]], H[:, config.K + i], rcond=None)[0]
        for i, (a, c) in enumerate(zip(j, k, strict=True))
    ])  # fmt: skip
    own = np.array([fits[share == i].mean(axis=0) for i in range(len(config.shares))])
    told = own[share, 0] * H[:, j] + own[share, 1] * H[:, k]
    off = np.linalg.norm(H[:, config.K :] - told) / np.linalg.norm(H)
    return {"multiples": list(own), "off": [off], "frame": [_frame(params)], "value": [value],
            "gap": [gap]}  # fmt: skip


def mixed_counts(config: Config, T: np.ndarray) -> list[int]:
    """Samples of each class and of each mixture."""
    return [config.pure] * config.K + [config.mixed] * (T.shape[1] - config.K)


def _soft(config: Config) -> dict[str, list]:
    """Over √(λ_Wλ_H): |p − t| of each column, least distance of a logit off the support, gap."""
    rows: dict[str, list] = {x: [] for x in ("error", "behind", "gap")}
    for mu in config.soft_mus:
        problem = problem_of(config, SOFT, config.soft_counts, mu)
        params, _, gap = _solved(config, problem)
        Z = np.asarray(params.W) @ _means(problem, params) + np.asarray(params.b)[:, None]
        P = np.exp(Z - Z.max(axis=0))
        P /= P.sum(axis=0)
        least = np.min(np.where(SOFT > 0, Z, np.inf), axis=0) - Z
        rows["error"].append(np.linalg.norm(P - SOFT, axis=0))
        rows["behind"].append(np.min(least[SOFT == 0]))
        rows["gap"].append(gap)
    return rows


def _regressed(config: Config) -> dict[str, list]:
    """Over the strengths: WWᵀ, f, gap."""
    rows: dict[str, list] = {x: [] for x in ("gram", "value", "gap")}
    for strength in config.strengths:
        params, value, gap = _solved(config, regression(config, strength))
        W = np.asarray(params.W)
        for key, x in zip(rows, (W @ W.T, value, gap), strict=True):
            rows[key].append(x)
    return rows


def regression(config: Config, strength: float) -> Problem:
    """The regression at √(λ_Wλ_H) = strength, with decay λ_H/N of each feature."""
    N, skew = config.targets[1], config.ratio**0.5
    T, lam_W, lam_H = regression_targets(config), strength * skew, strength / skew / N
    return Problem(len(T), len(T) + 1, 1, lam_W, lam_H, 0.0, targets=T, loss=SquaredError())


def told_gram(config: Config, strength: float) -> np.ndarray:
    """√(λ_H/λ_W)[Σ^½ − √(λ_Wλ_H)]₊ of arXiv 2409.04180, Σ the covariance of the targets."""
    values, U = scipy.linalg.eigh(np.cov(regression_targets(config), bias=True))
    return (U * np.maximum(np.sqrt(values) - strength, 0)) @ U.T / config.ratio**0.5


def few(problem: Problem, basis: np.ndarray) -> tuple[np.ndarray, float]:
    """(x, f*) of the convex problem in the few numbers x of Z = Σ x_i basis_i, (m, K, G).

    Where the symmetry of the classes makes ZZᵀ a multiple q of I − 11ᵀ/K, counts as weights, the
    nuclear norm is (K−1)√q and f = Σ (n_g/N) ℓ(z_g; t_g) + (K−1) μ √q.
    """
    given = (np.asarray(problem.targets, float), basis, problem.counts, float(problem.mu))
    with jax.enable_x64(True):
        start, forms = np.full(len(basis), 0.5), {"jac": _slope, "hess": _bend}
        x = scipy.optimize.minimize(_least, start, given, method="trust-exact", **forms).x
        for _ in range(3):  # to rounding
            x = x - np.linalg.solve(_bend(x, *given), _slope(x, *given))
        return x, float(_least(x, *given))


def _f(x: Array, T: Array, basis: Array, counts: Array, mu: float) -> Array:
    """f of `few` at x, of all that it depends on: one program a shape, not one a problem."""
    K, Z = len(T), jnp.tensordot(x, basis, 1)
    loss = jnp.sum(T, axis=0) * jax.nn.logsumexp(Z, axis=0) - jnp.sum(T * Z, axis=0)
    return counts @ loss / jnp.sum(counts) + mu * jnp.sqrt((K - 1) * jnp.sum(Z**2 * counts))


_least, _slope, _bend = jax.jit(_f), jax.jit(jax.grad(_f)), jax.jit(jax.hessian(_f))


def told_tags(config: Config, mu: float) -> tuple[np.ndarray, float]:
    """(multiples of each size, f*) of the tag sets."""
    T, size = tag_sets(config)
    problem = problem_of(config, T, [config.tags[m - 1] for m in size], mu)
    centred = T - T.mean(axis=0)
    x, value = few(problem, np.array([centred * (size == m) for m in np.unique(size)]))
    return x / x[0], value


def told_mixtures(config: Config) -> tuple[np.ndarray, float]:
    """(both multiples of each share (shares, 2), f*) of the mixtures."""
    T, pairs = mixtures(config)
    problem = problem_of(config, T, mixed_counts(config, T), config.mixed_mu)
    K, (share, *ends) = config.K, np.array(pairs).T
    P, basis = np.eye(K) - 1 / K, []
    first = np.zeros_like(T)
    first[:, :K] = P
    for i, size in enumerate(config.shares):
        parts = [np.where(share == i, P[:, end], 0) for end in ends]
        # At one half both multiples are one by symmetry.
        for part in [parts[0] + parts[1]] if size == 0.5 else parts:
            basis.append(np.column_stack([np.zeros((K, K)), part]))
    x, value = few(problem, np.array([first, *basis]))
    rest, rows = list(x[1:] / x[0]), []
    for size in config.shares:
        a = rest.pop(0)
        rows.append((a, a if size == 0.5 else rest.pop(0)))
    return np.array(rows), value


def bound(config: Config, mu: float) -> np.ndarray:
    """Nμ/√n of each soft label."""
    return sum(config.soft_counts) * mu / np.sqrt(config.soft_counts)


def check(config: Config, results: dict) -> list[Verdict]:
    """Multiples, values and frames of tags and mixtures; soft labels; WWᵀ."""
    done = {name: results[f"{name}_gap"] <= config.gap_tol
            for name in ("tags", "mixed", "soft", "regression")}  # fmt: skip
    tags = [told_tags(config, mu) for mu in config.mus]
    told, least = told_mixtures(config)
    errors = {
        "tags": (results["tags_multiples"] - [x for x, _ in tags],
                 results["tags_value"] - [value for _, value in tags]),
        "mixed": (results["mixed_multiples"] - told, results["mixed_value"] - least),
    }  # fmt: skip
    names = {"tags": f"sets of 1 … {len(config.tags)} tags", "mixed": "mixtures"}
    verdicts = []
    for name, words in names.items():
        ended, (multiples, value) = done[name], errors[name]
        worst = np.abs(multiples).reshape(len(ended), -1).max(axis=1)
        rows = (
            ("worst error of a multiple of class means", worst, config.tol),
            ("worst distance of a mean from its multiples", results[f"{name}_off"], config.tol),
            ("worst distance of W from a simplex ETF", results[f"{name}_frame"], config.tol),
            ("worst error of f, nats", value, config.value_tol),
        )
        verdicts += [judge_all_below(f"{words}: {x}", y, ended, tol) for x, y, tol in rows]
    over = results["soft_error"] / [bound(config, mu) for mu in config.soft_mus]
    claim = "soft labels: largest |p − t| in units of Nμ/√n"
    verdicts.append(judge_all_below(claim, over.max(axis=1), done["soft"], 1 + 1e-9))
    size = np.log(config.soft_mus[-2] / config.soft_mus[-1])
    slope = (results["soft_behind"][-1] - results["soft_behind"][-2]) / size
    claim = "soft labels: growth of a logit's distance off the support over log(1/μ)"
    verdicts.append(judge(claim, slope, 1, config.slope_tol, done["soft"].all()))
    grams = np.array([told_gram(config, x) for x in config.strengths])
    off = np.linalg.norm(results["regression_gram"] - grams, axis=(1, 2)) / np.linalg.norm(grams[0])
    claim = f"regression, {len(grams)} decays: worst relative error of WWᵀ"
    verdicts.append(judge_all_below(claim, off, done["regression"], config.tol))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Multiples of tags and of mixtures; |p − t| against its bound; entries of WWᵀ."""
    canvas, axes = plots.figure("icml_text", 4.4, 2, 2)
    tags, mixed, soft, gram = axes.flat
    done = results["tags_gap"] <= config.gap_tol
    fine = np.geomspace(min(config.mus), max(config.mus), 24)
    law = np.array([told_tags(config, float(mu))[0] for mu in fine])
    for m in range(len(config.tags)):
        name = f"{m + 1} tag{'s' * (m > 0)}"
        plots.points(tags, config.mus, results["tags_multiples"][:, m], done, name, m)
    plots.prediction(tags, fine, law[:, 0], "prediction")
    plots.prediction(tags, fine, law[:, 1:])
    tags.set(xscale="log", xlabel=r"$\sqrt{\lambda_W\lambda_H}$", ylim=(0.5, 1.04))
    tags.set_ylabel(r"$\|h_S\| \,/\, \|\sum_{k \in S} h_k\|$")
    tags.legend(fontsize="x-small")
    _draw_mixed(mixed, config, results)
    _draw_soft(soft, config, results)
    fine = np.linspace(0, max(config.strengths), 60)
    law = np.array([told_gram(config, float(strength)) for strength in fine])
    for n, (i, j) in enumerate(zip(*np.triu_indices(law.shape[1]), strict=True)):
        found, name = results["regression_gram"][:, i, j], f"$({i + 1}, {j + 1})$"
        plots.points(gram, config.strengths, found, None, name, n)
        plots.prediction(gram, fine, law[:, i, j], linewidth=0.7)
    gram.set(xlabel=r"$\sqrt{\lambda_W\lambda_H}$", ylabel=r"entries of $WW^{\!\top}$")
    gram.legend(fontsize="x-small", ncols=2)
    plots.letters(axes.flat)
    return {"": canvas}


def _draw_mixed(ax: Axes, config: Config, results: dict) -> None:
    told, shares = told_mixtures(config)[0], np.array(config.shares)
    done = np.repeat(results["mixed_gap"] <= config.gap_tol, len(config.shares))
    for i, name in enumerate(("first class", "second class")):
        plots.points(ax, config.shares, results["mixed_multiples"][:, i], done, name, i)
    plots.prediction(ax, config.shares, told[:, 0], "prediction")
    plots.prediction(ax, config.shares, told[:, 1])
    ax.plot(shares, np.stack([shares, 1 - shares], 1), color=plots.GREY, linewidth=0.7,
            zorder=1, label=("mixture of means", None))  # fmt: skip
    ax.set(xlabel=r"share $\alpha$ of the first class", ylabel="coefficient of a class mean")
    ax.legend(fontsize="x-small")


def _draw_soft(ax: Axes, config: Config, results: dict) -> None:
    done = results["soft_gap"] <= config.gap_tol
    limits = np.array([bound(config, mu) for mu in config.soft_mus])
    for g in range(SOFT.shape[1]):
        name = "$t = " + ", ".join(f"{x:g}" for x in SOFT[:, g]) + "$"
        plots.points(ax, limits[:, g], results["soft_error"][:, g], done, name, g)
    line = np.array([limits.min(), limits.max()])
    plots.prediction(ax, line, line, "bound")
    ax.set(xscale="log", yscale="log", xlabel=r"$N\mu/\sqrt{n}$", ylabel=r"$\|p - t\|$")
    ax.legend(fontsize="x-small", loc="upper left")
    inset = ax.inset_axes((0.66, 0.21, 0.33, 0.3))
    at = np.log(1 / np.array(config.soft_mus))
    plots.points(inset, at, results["soft_behind"], done, None, 0, markersize=3)
    plots.prediction(inset, at, results["soft_behind"][-1] + at - at[-1], linewidth=0.7)
    inset.set_xlabel(r"$\log 1/\mu$", fontsize="x-small", labelpad=1)
    inset.set_ylabel(r"$\min_j\,\Delta z_j$", fontsize="x-small", labelpad=1)
    inset.tick_params(labelsize="x-small")


if __name__ == "__main__":
    sys.exit(runner.main("c14_targets"))
