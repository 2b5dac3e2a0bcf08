"""Strict saddles: from d = K on every critical point is global or has an explicit way down.

Claim. For balanced classes and d ≥ K a critical point is a global minimiser iff ‖G‖₂ ≤ √(λ_W λ_H),
and otherwise a strict saddle. Its most negative eigenvalue is at most

    λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + n‖Ḡ‖₂²),

Ḡ one column of G a class, an eigenvalue whose eigenvector leaves the row space of W. Conjecture:
none is lower, so λ₋ is the least eigenvalue of the Hessian. Points of different d are the same
points: they are found once for each (K, λ), in K − 1 dimensions, and judged at every d.

Source. Zhu et al. 2021 (arXiv 2105.02375), theorem 3.2, for d > K; arXiv 2407.10702 for d = K. The
conjecture is this project's. The saddles of K = 10 by which the census is held against another
program were found by padding solutions of lower rank, before this script.

Reproduces. Theorem 3.2 of Zhu et al. and its extension to d = K, with the direction of negative
curvature of the proof. Extends it by how negative the curvature is, and by a conjecture.

Shown. (a) The least eigenvalue of every saddle against λ₋; (b) the softest saddle of each K and
decay; (c) the relative difference between the two, at every width.

Refuted by a critical point with d ≥ K that is neither certified as global nor has an eigenvalue
below 0, by an eigenvalue below λ₋, by a point accepted whose gradient, differentiated anew, is not
zero to rounding, or by a known saddle that is not found.
"""

import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments import runner
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_below
from ufm import Params, Problem, newton, orbits, pair, plots, theory
from ufm import problem as model
from ufm.census import census, quotient_of
from ufm.curvature import dense, flatten

UNITS = r"$K\sqrt{n\lambda_W\lambda_H}$"
KINDS = ("strict saddle", "global minimiser", "local minimiser", "undecided", "not critical")
# Saddles at K = 10, n = 20, d = 16, K√(nλ_Wλ_H) = 0.05, λ_W/λ_H = 20, λ_b = λ_W: (rank, f, index).
KNOWN = ((1, 1.354744, 120), (2, 0.627087, 98), (4, 0.334789, 60), (8, 0.287730, 8))
# Columns of `points`, a row a census: K, index of the strength, points, global ones, saddles,
# refused by the strict residual, worst residual, deepest eigenvalue below λ₋ (relative), least
# negative eigenvalue and least ‖G‖₂/√(λ_W λ_H) of a saddle, saddles that are none in d = K − 1
# dimensions, worst |f − f*| of a global one.
SUMMARY = (
    *("K", "strength", "points", "global", "saddles", "refused", "residual", "lower"),
    *("shallowest", "ratio", "stuck", "error"),
)


@dataclass(frozen=True)
class Config:
    """The grid, effort and tolerances."""

    # (K, starts per source and round, rounds, strengths) of the censuses; a step of Newton's
    # method at K = 10 costs a hundred times what it does at K = 4.
    effort: tuple[tuple[int, int, int, int], ...] = (
        *((3, 64, 2, 4), (4, 128, 2, 4), (5, 128, 2, 4), (6, 96, 2, 3)),
        *((8, 48, 1, 2), (10, 64, 1, 1)),
    )
    # Values of K√(nλ_Wλ_H), the first so many for each K.
    strengths: tuple[float, ...] = (0.05, 0.5, 0.2, 0.01)
    widths: tuple[float, ...] = (1.0, 1.1, 1.6, 2.5, 4.0)  # values of d/K, d rounded up
    n: int = 20  # samples per class
    ratio: float = 20.0  # λ_W/λ_H; λ_b = λ_W
    strict: float = 2e-14  # ‖∇f‖ allowed, in units of the terms that cancel in it
    global_tol: float = 1e-9  # how far ‖G‖₂/√(λ_W λ_H) may exceed 1 at a global minimiser
    conjecture_tol: float = 1e-9  # how far below λ₋ an eigenvalue may lie, relative to it
    window: float = 1e-11  # eigenvalues within this of 0 are undecided
    value_tol: float = 1e-6  # distance in f to a known saddle, nats: six decimals are known
    seed: int = 0  # seed of the starts

    @classmethod
    def quick(cls) -> "Config":
        """K = 4, two values of λ, the first round alone: most of the time is compilation."""
        return cls(effort=((4, 64, 1, 2),))


def problem_of(config: Config, K: int, strength: float, d: int) -> Problem:
    """K classes in d dimensions."""
    mu, skew = strength / (K * float(np.sqrt(config.n))), float(np.sqrt(config.ratio))
    return Problem(K, d, config.n, mu * skew, mu / skew, mu * skew)


def widths_of(config: Config, K: int) -> list[int]:
    """Every d of the grid for K classes."""
    return sorted({int(np.ceil(share * K - 1e-9)) for share in config.widths})


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """Every polished point by itself, every orbit at every d, and what was tried and refused."""
    points, tried = [], []
    rows: list[tuple] = []
    total, done = sum(row[-1] for row in config.effort), 0
    for K, starts, rounds, strengths in config.effort:
        for j, strength in enumerate(config.strengths[:strengths]):
            problem, widths = problem_of(config, K, strength, K), widths_of(config, K)
            small = quotient_of(problem)
            batches: list[np.ndarray] = []

            def report(source, _, known, K=K, strength=strength, done=done) -> None:
                progress(done / total, f"K={K}, Kc={strength:g}, {source}: {known} orbits")

            def accepted(_, found, problem=problem, small=small, starts=starts, batches=batches):
                # Padded to one shape, so that one program serves every batch.
                if len(found.W):
                    lanes = np.resize(np.arange(len(found.W)), starts)
                    measured = _measure(problem, small, jax.tree.map(lambda x: x[lanes], found))
                    batches.append(np.stack(measured, axis=1)[: len(found.W)])

            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), K), j)
            found = census(
                problem, key, starts=starts, rounds=rounds, report=report, accepted=accepted
            )
            points.append(_summary(config, np.concatenate(batches), K, j))
            tried.append((sum(found.tried.values()), sum(found.refused.values())))
            with jax.enable_x64(True):
                for number, orbit in enumerate(found.orbits):
                    params = jax.tree.map(jnp.asarray, orbit.params)
                    for d in widths:
                        wide = problem_of(config, K, strength, d)
                        one = orbits.judge(wide, params, orbit.newton_step, {})
                        rows.append((K, j, d, number, *_row(one)))
            done += 1
    names = ("K", "strength", "d", "number", "kind", "rank", "index", "excess", "value",
             "smallest", "error")  # fmt: skip
    columns = dict(zip(names, map(np.array, zip(*rows, strict=True)), strict=True))
    floats = {"value": np.float64, "smallest": np.float32, "error": np.float32}
    kept = {name: x.astype(floats.get(name, np.int16)) for name, x in columns.items()}
    return kept | {"points": np.array(points), "tried": np.array(tried)}


def _row(one: orbits.Orbit) -> tuple:
    """Kind, rank, index, zero eigenvalues off the symmetry orbit, f, least eigenvalue, its error.

    The error is that of λ₋ as the least eigenvalue, relative; positive if one is lower.
    """
    kind, excess = KINDS.index(one.kind), one.nullity - one.orbit_dimension
    error = (one.smallest - one.predicted) / one.predicted if one.predicted < 0 else np.nan
    return kind, one.rank, one.morse_index, excess, one.value, one.smallest, error


@jax.jit
def _measure(problem: Problem, small: Problem, points: Params) -> tuple[Array, ...]:
    """Five numbers of each of many points in the coordinates of the class means.

    f; ‖∇f‖ by automatic differentiation over `newton.scale`; the least eigenvalue of ∇²f within
    the row space, of the problem itself (features in units of √n); λ₋; ‖G‖₂/√(λ_W λ_H).
    """
    lam_W, lam_H = jnp.asarray(problem.lam_W), jnp.asarray(problem.lam_H)
    root = jnp.sqrt(float(problem.n))

    def one(params):
        G = model.data_gradient(small, params)
        slope = flatten(small, jax.grad(lambda x: model.objective(small, x))(params))
        residual = jnp.linalg.norm(slope) / newton.scale(small, params, G)
        units = Params(jnp.ones_like(params.W), jnp.full_like(params.H, 1 / root),
                       jnp.ones_like(params.b))  # fmt: skip
        unit = flatten(small, units)
        core = jnp.linalg.eigvalsh(unit[:, None] * dense(small, params) * unit)[0]
        g = jnp.linalg.norm(G, 2) / root  # the sum over n samples of a class, each G/n
        predicted, _ = pair.eigenvalues(jnp, lam_W, lam_H, g)
        value = model.objective(small, params)
        return value, residual, core, predicted, g / jnp.sqrt(lam_W * lam_H)

    return jax.vmap(one)(points)


def _summary(config: Config, measured: np.ndarray, K: int, j: int) -> tuple[float, ...]:
    """One row for the points of a census: see `SUMMARY`."""
    value, residual, core, predicted, ratio = measured.T
    is_global, least = ratio <= 1 + config.global_tol, np.minimum(core, predicted)
    saddle = ~is_global & (least < -config.window)
    lower = (predicted - core)[saddle] / np.abs(predicted[saddle])
    f_star = theory.global_value(problem_of(config, K, config.strengths[j], K))
    return (
        K, j, len(measured), is_global.sum(), saddle.sum(), (residual > config.strict).sum(),
        residual.max(), np.max(lower, initial=-np.inf), np.max(least[saddle], initial=-np.inf),
        np.min(ratio[~is_global], initial=np.inf), (~is_global & (core >= -config.window)).sum(),
        np.max(np.abs(value - f_star)[is_global], initial=0.0),
    )  # fmt: skip


def summary(results: dict, name: str) -> np.ndarray:
    """A column of `points`."""
    return results["points"][:, SUMMARY.index(name)]


def violations(config: Config, results: dict) -> list[str]:
    """Orbits with d ≥ K that are neither global minimisers nor strict saddles, by name."""
    kinds = [KINDS[kind] for kind in results["kind"]]
    return [
        f"K={K}, d={d}, Kc={config.strengths[j]:g}, f={value:.9g}, rank {rank}: {kind}"
        for K, d, j, value, rank, kind in zip(
            *(results[name] for name in ("K", "d", "strength", "value", "rank")), kinds, strict=True
        )
        if kind not in KINDS[:2]
    ]


def known(config: Config, results: dict) -> np.ndarray:
    """Distance in f of every known saddle to an orbit of its rank and index; empty without K = 10.

    The index is compared at d = 16.
    """
    j = config.strengths.index(0.05) if 0.05 in config.strengths else -1
    here = (results["K"] == 10) & (results["d"] == 16) & (results["strength"] == j)
    if not here.any():
        return np.zeros(0)
    distances = []
    for rank, value, index in KNOWN:
        same = here & (results["rank"] == rank) & (results["index"] == index)
        distances.append(np.min(np.abs(results["value"][same] - value), initial=np.inf))
    return np.array(distances)


def check(config: Config, results: dict) -> list[Verdict]:
    """Points one by one, orbits at every d, what was known before."""
    total, minima = summary(results, "points").sum(), summary(results, "global").sum()
    share = summary(results, "saddles").sum() / (total - minima)
    named = violations(config, results)
    saddle, worst = results["kind"] == 0, np.abs(results["error"])
    claim = "orbits at d ≥ K that are neither global nor a strict saddle"
    verdicts = [
        judge(f"{total - minima:.0f} points not global: share of strict saddles", share, 1, 0),
        judge(
            f"{total:.0f} points: refused by the strict residual",
            summary(results, "refused").sum(), 0, 0,
        ),
        judge_below(
            f"{minima:.0f} points called global: worst |f − f*|, nats",
            summary(results, "error").max(), 1e-10,
        ),
        judge_below(
            "points: deepest eigenvalue below λ₋, relative",
            max(summary(results, "lower").max(), 0), config.conjecture_tol,
        ),
        judge("; ".join([f"{len(saddle)} {claim}", *named]), len(named), 0, 0),
        judge_below(
            f"{saddle.sum()} saddles at d ≥ K: worst relative error of λ₋ as the least eigenvalue",
            np.max(worst[saddle], initial=0), config.conjecture_tol,
        ),
        judge("of these, of index 0", (results["index"][saddle] == 0).sum(), 0, 0),
        judge(
            "orbits at d ≥ K with undecided eigenvalues near zero",
            (results["excess"] != 0).sum(), 0, 0,
        ),
    ]  # fmt: skip
    distances = known(config, results)
    if len(distances):
        claim = f"K=10, d=16: {len(distances)} known saddles, farthest from an orbit, nats"
        verdicts.append(judge_below(claim, distances.max(), config.value_tol))
    return verdicts


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """Least eigenvalues against λ₋, the shallowest saddles over λ, the index over d."""
    canvas, axes = plots.figure("icml_text", 2.4, 1, 3)
    against, shallow, error = axes.flat
    mu = np.array(config.strengths)[results["strength"]] / (results["K"] * np.sqrt(config.n))
    saddle = results["kind"] == 0
    for i, (K, *_) in enumerate(config.effort):
        own = saddle & (results["K"] == K)
        depth = -results["smallest"] / mu
        one = own & (results["d"] == K)
        ours = depth[one] / (1 + results["error"][one])
        plots.points(against, ours, depth[one], None, f"$K={K}$", i, markersize=2.2)
        here = summary(results, "K") == K
        strengths = np.array(config.strengths)[summary(results, "strength")[here].astype(int)]
        least = -summary(results, "shallowest")[here] * K * np.sqrt(config.n) / strengths
        order = np.argsort(strengths)
        plots.points(shallow, strengths, least, None, None, i)
        plots.curves(shallow, strengths[order], least[order], None, i, linewidth=0.7)
        wrong = np.maximum(np.abs(results["error"][own]), 1e-17)
        spread = results["d"][own] / K * 1.015**i
        plots.points(error, spread, wrong, None, None, i, markersize=2.0)
    ends = np.array(against.get_xlim())
    against.set(xscale="log", yscale="log")
    low = np.min((-results["smallest"] / mu)[saddle])
    plots.prediction(against, [low, ends[1]], [low, ends[1]], r"$\lambda_-$, predicted")
    unit = r"\sqrt{\lambda_W\lambda_H}"
    against.set(xlabel=rf"$-\lambda_-\,/\,{unit}$", ylabel=rf"$-\lambda_{{\min}}\,/\,{unit}$")
    shallow.set(
        xscale="log", xlabel=UNITS, ylabel=rf"least $-\lambda_{{\min}}\,/\,{unit}$, saddles"
    )
    shallow.set(yscale="log")
    shown = sorted(set(np.array(config.strengths)[results["strength"]]))
    shallow.set_xticks(shown, [f"{strength:g}" for strength in shown])
    low, high = shallow.get_ylim()
    ticks = [t for t in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low < t < high]
    shallow.set_yticks(ticks, [f"{t:g}" for t in ticks])
    shallow.minorticks_off()
    error.set(yscale="log", xlabel=r"$d\,/\,K$", ylabel=r"$|\lambda_{\min}/\lambda_- - 1|$")
    plots.tolerance(error, config.conjecture_tol, "tolerance")
    error.legend()
    canvas.legend(*against.get_legend_handles_labels(), loc="outside lower center", ncols=7)
    plots.letters(axes.flat)
    return {"": canvas}


if __name__ == "__main__":
    sys.exit(runner.main("c08_strict_saddle"))
