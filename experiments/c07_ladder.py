"""The critical points: value against Morse index, from the origin down to the simplex ETF.

Claim. For balanced classes and d > K every partition of the K classes into m groups gives one orbit
of critical points: set (w, h, b) equal within each group and minimise. Its rank is m − 1 and its
Morse index (K−m)d; the origin is the partition into one group, the simplex ETF the one into K
groups. There are as many such orbits as K has integer partitions. Only the ETF has index 0. The
census contains everything that another program finds from random starts at small K. Orbits that
belong to no partition exist from K = 3 on. No theorem says how many, and a census finds only the
orbits to which its starts lead.

Source. Strict saddles: theorem 3.2 of Zhu et al. 2021 (arXiv 2105.02375). The points of partitions
are critical by symmetry. Their index was observed on nine partitions before this script was
written; it is not proved.

Reproduces. Theorem 3.2 of Zhu et al.: one orbit of minima, all others strict saddles. Extends it by
the list of these saddles at small K, with their ranks, values and indices.

Shown. K = 3 to 7, d = K + 1, n = 10, K√(nλ_Wλ_H) = 0.1, λ_W = 4λ_H, λ_b = √(λ_Wλ_H). Every orbit
of critical points that was found, by rank of W; full symbols belong to a partition, rings are the
predicted values and indices of all partitions. Second figure: (a) number of orbits, (b) its growth
with the number of starts, (c) computing time per orbit or start.

Refuted by a partition whose orbit is missing or has another rank or index, by a second orbit of
index 0, or by a critical point of the other program that the census lacks.
"""

import sys
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_above, judge_below
from ufm import Problem, plots, theory
from ufm.critical import sources
from ufm.critical.orbits import Orbit
from ufm.critical.orbits import judge as judge_orbit
from ufm.critical.search import Batch, Census, census, polish, quotient_of

JUDGED = 20  # orbits judged again for their cost
NUMBERS = ("value", "smallest", "predicted", "residual")
COUNTS = ("rank", "morse_index", "nullity", "orbit_dimension")


@dataclass(frozen=True)
class Config:
    """Problems, effort and tolerances."""

    classes: tuple[int, ...] = (3, 4, 5, 6, 7)  # values of K
    beyond: int = 1  # d − K
    n: int = 10  # samples per class
    strength: float = 0.1  # K√(nλ_Wλ_H), below 1
    ratio: float = 4.0  # λ_W/λ_H
    bias_ratio: float = 1.0  # λ_b/√(λ_W λ_H)
    starts: int = 256  # starts per source and round
    rounds: int = 4  # rounds of the census, at most
    other_classes: tuple[int, ...] = (3, 4)  # values of K that the other program searches
    other_starts: int = 240  # its starts for each K
    other_tol: float = 1e-10  # ‖∇f‖ at which it takes a point for critical
    value_tol: float = 1e-8  # |Δf| up to which two values are one, in nats
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """K = 4, few starts, the first round alone: most of the time is compilation."""
        return cls(classes=(4,), starts=64, rounds=1, other_classes=(4,), other_starts=40)


def problem_of(config: Config, K: int) -> Problem:
    """K classes at the given K√(nλ_Wλ_H)."""
    mu, skew = config.strength / (K * float(np.sqrt(config.n))), float(np.sqrt(config.ratio))
    d, lam_b = K + config.beyond, config.bias_ratio * mu
    return Problem(K, d, config.n, mu * skew, mu / skew, lam_b)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """All orbits one after the other, the growth of their number, partitions, the other program."""
    rows: dict[str, list] = {name: [] for name in (*NUMBERS, *COUNTS, "K", "groups", "hits")}
    growth: list[tuple[int, int, int, float]] = []
    costs, most = [], max(config.classes)
    for i, K in enumerate(config.classes):
        problem, begun = problem_of(config, K), time.perf_counter()

        def on_batch(batch: Batch, i=i, K=K, begun=begun) -> None:
            tried, known = sum(batch.census.tried.values()), len(batch.census.orbits)
            growth.append((K, tried, known, time.perf_counter() - begun))
            progress(
                i / len(config.classes), f"K={K}, {batch.source}: {known} orbits, {tried} starts"
            )

        key = jax.random.fold_in(jax.random.key(config.seed), K)
        found = census(problem, key, starts=config.starts, rounds=config.rounds, on_batch=on_batch)
        costs.append((K, time.perf_counter() - begun, *_costs(config, found)))
        for orbit in found.orbits:
            for name in (*NUMBERS, *COUNTS):
                rows[name].append(getattr(orbit, name))
            rows["K"].append(K)
            rows["groups"].append(np.pad(orbit.groups, (0, most - len(orbit.groups))))
            rows["hits"].append(sum(orbit.hits.values()))
    kinds = {name: np.float64 if name in NUMBERS else np.int32 for name in rows}
    arrays = {name: np.array(values, kinds[name]) for name, values in rows.items()}
    arrays |= {"growth": np.array(growth), "costs": np.array(costs)}
    return arrays | _partitions(config) | _other(config)


def _costs(config: Config, found: Census) -> tuple[float, float]:
    """(seconds a start polished, seconds an orbit judged), everything compiled."""
    with jax.enable_x64(True):
        small, key = quotient_of(found.problem), jax.random.key(config.seed + 1)
        starts = jax.block_until_ready(sources.tied(small, key, config.starts))
        begun = time.perf_counter()
        polish(small, starts)
        polished = (time.perf_counter() - begun) / config.starts
        some = found.orbits[:: -(-len(found.orbits) // JUDGED)]
        begun = time.perf_counter()
        for orbit in some:
            _again(found.problem, orbit)
        return polished, (time.perf_counter() - begun) / len(some)


def _again(problem: Problem, orbit: Orbit) -> Orbit:
    return judge_orbit(problem, jax.tree.map(jnp.asarray, orbit.params), orbit.newton_step, {})


# The other program: NumPy and SciPy, nothing of ufm but the sizes and decays of a Problem.


def _objective(x: np.ndarray, problem: Problem, sizes: np.ndarray, width: int):
    """(f, ∇f) for groups of tied classes, by sizes, at n = 1 with nλ_H for λ_H."""
    K, m = problem.K, len(sizes)
    lam_W, lam_H, lam_b = problem.lam_W, problem.n * problem.lam_H, problem.lam_b
    W, H, b = np.split(x, [m * width, 2 * m * width])
    W, H = W.reshape(m, width), H.reshape(width, m)
    Z = W @ H + b[:, None]
    top = Z.max(axis=0)
    terms = sizes[:, None] * np.exp(Z - top)
    total = terms.sum(axis=0)
    data = sizes @ (np.log(total) + top - np.diagonal(Z)) / K
    R = (terms / total - np.eye(m)) * sizes / K
    f = data + lam_W / 2 * sizes @ np.sum(W**2, axis=1) + lam_H / 2 * sizes @ np.sum(H**2, axis=0)
    slope = (R @ H.T + lam_W * sizes[:, None] * W, W.T @ R + lam_H * sizes * H)
    slope_b = R.sum(axis=1) + lam_b * sizes * b
    return f + lam_b / 2 * sizes @ b**2, np.concatenate([*map(np.ravel, slope), slope_b])


def _partitions(config: Config) -> dict[str, np.ndarray]:
    """The least f of every partition, by L-BFGS; (K, value) and the groups."""
    rng, most = np.random.default_rng(config.seed), max(config.classes)
    values, groups = [], []
    for K in config.classes:
        for sizes in sources.partitions(K):
            weights, m = np.array(sizes, float), len(sizes)
            best = np.inf
            for _ in range(3):
                ends = scipy.optimize.minimize(
                    _objective, rng.normal(size=2 * m * m + m), (problem_of(config, K), weights, m),
                    jac=True, method="L-BFGS-B",
                    options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 10_000, "maxfun": 20_000},
                )  # fmt: skip
                best = min(best, ends.fun)
            values.append((K, best))
            groups.append(np.pad(sizes, (0, most - m)))
    return {"partition_value": np.array(values), "partition_groups": np.array(groups, np.int32)}


def _other(config: Config) -> dict[str, np.ndarray]:
    """Critical points by Levenberg–Marquardt on ∇f: rows (K, f, rank, index), each once."""
    rng, rows = np.random.default_rng(config.seed + 1), []
    for K in config.other_classes:
        problem, ones, seen = problem_of(config, K), np.ones(K), set()
        unit = float(sources.units(problem)[0] * sources.units(problem)[1]) ** 0.5
        for _ in range(config.other_starts):
            width = int(rng.integers(1, K))
            x = unit * rng.choice(sources.SCALES) * rng.normal(size=2 * K * width + K)
            if rng.random() < 0.5:  # some start with equal classes
                _tie(x, rng.integers(K, size=K), width)
            ends = scipy.optimize.least_squares(
                lambda x, *args: _objective(x, *args)[1], x, args=(problem, ones, width),
                method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15,
            )  # fmt: skip
            if np.linalg.norm(ends.fun) <= config.other_tol:
                f = _objective(ends.x, problem, ones, width)[0]
                rank, index = _rank_and_index(ends.x, problem, width)
                if (round(f, 7), rank, index) not in seen:
                    rows.append((K, f, rank, index))
                    seen.add((round(f, 7), rank, index))
    return {"other": np.array(rows).reshape(-1, 4)}


def _tie(x: np.ndarray, group: np.ndarray, width: int) -> None:
    """Give every class the row, feature and bias of the first of its group, in place."""
    K = len(group)
    W, H, b = np.split(x, [K * width, 2 * K * width])
    leader = np.argmax(group[:, None] == group, axis=1)
    W.reshape(K, width)[:] = W.reshape(K, width)[leader]
    H.reshape(width, K)[:] = H.reshape(width, K)[:, leader]
    b[:] = b[leader]


def _rank_and_index(x: np.ndarray, problem: Problem, width: int) -> tuple[int, int]:
    """Rank of W and negative eigenvalues in d dimensions, by differences of the gradient."""
    K, d = problem.K, problem.d
    W, H, b = np.split(x, [K * width, 2 * K * width])
    W, H = W.reshape(K, width), H.reshape(width, K)
    wide = np.pad(W, ((0, 0), (0, d - width))), np.pad(H, ((0, d - width), (0, 0)))
    point, h = np.concatenate([*map(np.ravel, wide), b]), 1e-5
    args = problem, np.ones(K), d
    columns = [
        (_objective(point + h * e, *args)[1] - _objective(point - h * e, *args)[1]) / (2 * h)
        for e in np.eye(len(point))
    ]
    matrix = np.stack(columns)
    index = np.sum(np.linalg.eigvalsh(matrix + matrix.T) / 2 < -1e-6)
    return int(np.sum(np.linalg.svd(W, compute_uv=False) > 1e-6)), int(index)


# What the partitions predict


def predicted(config: Config, results: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, rank, index) of every partition."""
    K = results["partition_value"][:, 0].astype(int)
    m = np.sum(results["partition_groups"] > 0, axis=1)
    return K, m - 1, (K - m) * (K + config.beyond)


def matches(config: Config, results: dict) -> np.ndarray:
    """Orbit of every partition, by its groups and value; −1 where the census has none."""
    found = np.full(len(results["partition_value"]), -1)
    for i, (K, value) in enumerate(results["partition_value"]):
        same = np.all(results["groups"] == results["partition_groups"][i], axis=1)
        errors = np.where(same & (results["K"] == K), np.abs(results["value"] - value), np.inf)
        nearest = int(np.argmin(errors))
        found[i] = nearest if errors[nearest] <= config.value_tol else -1
    return found


def explained(config: Config, results: dict) -> np.ndarray:
    """Whether an orbit is that of a partition."""
    return np.isin(np.arange(len(results["K"])), matches(config, results))


def missing(results: dict) -> np.ndarray:
    """Distance in f of the other program's points to orbits of the same K, rank and index."""
    distances = []
    for K, value, rank, index in results["other"]:
        same = (results["K"] == K) & (results["rank"] == rank) & (results["morse_index"] == index)
        distances.append(np.min(np.abs(results["value"][same] - value), initial=np.inf))
    return np.array(distances)


def check(config: Config, results: dict) -> list[Verdict]:
    """Partitions, their ranks and indices, index 0, what must be contained, for every K."""
    verdicts, at = [], matches(config, results)
    theirs, ranks, indices = predicted(config, results)
    distances, mine = missing(results), explained(config, results)
    for K in config.classes:
        part, own, name = theirs == K, results["K"] == K, f"K={K}: "
        total, hit = int(part.sum()), part & (at >= 0)
        wrong = (results["rank"][at] != ranks) | (results["morse_index"][at] != indices)
        claim = name + f"partitions whose orbit is among the {own.sum()} found so far"
        verdicts += [
            judge(claim, hit.sum(), total, 0),
            judge(name + "of these, with another rank or index", (wrong & hit).sum(), 0, 0),
            judge(
                name + "orbits of index 0", (results["morse_index"][own] == 0).sum(), 1, 0
            ),
            judge(
                name + "least f − f*, nats",
                results["value"][own].min() - theory.global_value(problem_of(config, K)), 0, 1e-10,
            ),
        ]  # fmt: skip
        if K in config.other_classes:
            those = results["other"][:, 0] == K
            claim = name + f"{those.sum()} points of the other program, farthest from an orbit"
            converged = bool(those.any())
            worst = np.max(distances[those], initial=0.0)
            verdicts.append(judge_below(claim, worst, config.value_tol, converged))
    degenerate = results["nullity"] != results["orbit_dimension"]
    saddles = results["morse_index"] > 0
    below = results["smallest"][saddles] / results["predicted"][saddles] - 1
    verdicts += [
        judge("orbits with zero eigenvalues beyond the symmetry orbit", degenerate.sum(), 0, 0),
        judge_below(
            "worst relative error of the least eigenvalue", np.max(np.abs(below), initial=0), 1e-8
        ),
    ]
    if max(config.classes) > 3:
        more = [np.sum(~mine & (results["K"] == K)) for K in config.classes]
        verdicts.append(
            judge_above("fewest orbits at a K that no partition explains", min(more), 0)
        )
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Value against index, one panel per K; counts, growth with the starts, and cost."""
    return {"": _draw_ladders(config, results), "_counts": _draw_counts(config, results)}


def _draw_ladders(config: Config, results: dict) -> Figure:
    columns = min(3, len(config.classes) + 1)
    rows = -(-(len(config.classes) + 1) // columns)
    canvas, axes = plots.figure("icml_text", 2.2 * rows, rows, columns)
    panels, last = list(axes.flat[: len(config.classes)]), axes.flat[len(config.classes) :]
    theirs, _, indices = predicted(config, results)
    mine = explained(config, results)
    for ax, K in zip(panels, config.classes, strict=True):
        own, part, d = results["K"] == K, theirs == K, K + config.beyond
        for rank in range(K):
            shown = own & (results["rank"] == rank)
            x, y = results["morse_index"][shown] / d, results["value"][shown]
            plots.points(ax, x, y, mine[shown], None, rank, markersize=3.2)
        ax.plot(
            indices[part] / d, results["partition_value"][part, 1], "o", color="black",
            markerfacecolor="none", markersize=7, markeredgewidth=0.7, zorder=5,
        )  # fmt: skip
        ax.set(xlabel=r"Morse index $/\,d$", ylabel=r"$f$, nats", ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(f"$K={K}$, $d={d}$: {own.sum()} orbits", loc="right")
    for rank in range(max(config.classes)):
        plots.points(last[0], [], [], None, f"rank {rank}", rank)
    ring = {"color": "black", "markerfacecolor": "none", "linestyle": "none"}
    last[0].plot([], [], marker="o", markersize=7, label="predicted partition", **ring)
    last[0].plot([], [], marker="o", label="not a partition", **(ring | {"color": plots.GREY}))
    last[0].legend(loc="center", ncols=1 if len(config.classes) < 3 else 2)
    for ax in last:
        ax.axis("off")
    plots.letters(panels)
    return canvas


def _draw_counts(config: Config, results: dict) -> Figure:
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    counts, growth, cost = axes.flat
    K, orbits = np.array(config.classes), []
    theirs, mine = predicted(config, results)[0], explained(config, results)
    for i, k in enumerate(K):
        own = results["K"] == k
        orbits.append((own.sum(), (own & mine).sum()))
        rows = results["growth"][results["growth"][:, 0] == k]
        plots.curves(growth, rows[:, 1], rows[:, 2], f"$K={k}$", i)
        growth.plot(rows[:, 1], rows[:, 2], ".", color=plots.colour(i), markersize=2)
    found, ours = np.array(orbits).T
    plots.points(counts, K, found, None, "orbits found", 0)
    plots.points(counts, K, ours, None, "of these, partitions", 1)
    plots.prediction(counts, K, [np.sum(theirs == k) for k in K], "integer partitions of $K$")
    counts.set(yscale="log", xlabel=r"$K$", ylabel="orbits", xticks=K)
    counts.set_ylim(top=8 * np.max(found))
    counts.legend(loc="upper left")
    growth.set(xscale="log", yscale="log", xlabel="starts tried", ylabel="orbits found")
    growth.set_ylim(top=8 * np.max(found))
    ticks = [t for t in (30, 100, 300, 1000, 3000) if growth.get_xlim()[0] < t]
    growth.set_xticks(ticks, [str(t) for t in ticks])
    growth.minorticks_off()
    growth.legend(ncols=2, loc="upper left")
    _, total, polished, judged = results["costs"].T
    last = [results["growth"][results["growth"][:, 0] == k, 1].max() for k in K]
    for i, (y, label) in enumerate(
        (
            (total / found, "census, compilation included"),
            (polished * last / found + judged, "census, compilation excluded"),
            (judged, "classification of an orbit"),
            (polished, "Newton's method from a start"),
        )
    ):
        plots.curves(cost, K, y, label, i)
        plots.points(cost, K, y, None, None, i)
    cost.set(yscale="log", xlabel=r"$K$", ylabel="seconds per orbit or start", xticks=K)
    cost.set_ylim(top=3000 * np.max(total / found))
    cost.legend(loc="upper left")
    plots.letters(axes.flat)
    return canvas


if __name__ == "__main__":
    sys.exit(runner.main("c07_ladder"))
