"""Minima below d = K−1 and codes: which spurious minimum is which configuration.

Claim. For d < K−1 most minima of the model with decay, spurious ones included, are known named
configurations. The code of the largest margin, the limit for vanishing decay, is not always the
lowest minimum. At λ_W = λ_H = 1e-3 and n = 3 the lowest minima found are: in the plane the K-gon
up to K = 9, and from K = 10 on a minimum with classes inside the ring of the others, although the
K-gon is still a minimum; at K = 2d the orthoplex (for K = 6, d = 3 the octahedron, of exact value
min_r log(1 + 4e^{−r} + e^{−2r}) + 6√n μr); in space configurations close to best packings (K = 8,
9, 11, 12), and two poles with a polygon, 2⊕3 and 2⊕5, at K = 5 and 7. The two minima of c10 at
K = 6, d = 2 are the hexagon, and five classes around a sixth.

Source. Jiang et al. 2023, arXiv 2310.05351, for softmax codes as the limit without decay; also
arXiv 2603.20587. The value of a scaled code is `ufm.theory.code_minimum`. Which minima with decay
are which codes is an observation of this project; we know of no published source.

Reproduces. The codes of arXiv 2310.05351 as minima of the model with decay. Extends them by the
names of the spurious minima below and beside them.

Shown. n = 3, λ_W = λ_H = 1e-3, λ_b = 1e-2. For every K and d the name of the lowest minimum, the
number of minima above it, and how many of these have a name; shaded where the lowest is not the
code of the largest margin. Second figure: the lowest minimum (above) and the worst (below) in the
plane, d = 2. Third figure, d = 3: the ends of the classifier rows and the edges of their convex
hull, dotted at the back; the lowest minimum of each K, and last the spurious one at K = 11.

Refuted by an orthoplex, or a K-gon with K ≤ 9, that is not the lowest minimum found, by a K-gon
with K ≥ 10 that is, by another value of the octahedron, or by more than half of the lowest or of
the spurious minima without a name. Two minima count as one if their values agree to 1e-9,
relatively. A minimum has the name of a configuration if descent from that configuration ends in it
and the Gram matrices of W correlate by at least 0.95.
"""

import sys
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import scipy.optimize
import scipy.spatial
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments import runner
from experiments.c10_boundary import plane_legend
from experiments.runner import Report
from experiments.verdicts import Verdict, judge, judge_above, judge_below
from ufm import Params, Problem, objective, plots, theory
from ufm.critical import downhill, newton, sources
from ufm.critical import search as census
from ufm.hessian.curvature import dense
from ufm.model import quotient
from ufm.theory.softmax_codes import codes, polygon

SAME = 1e-9  # of f, up to which two minima are one
MOST = 12  # rows kept of a configuration
WIDE = 4  # of them in so many dimensions
KINDS = ("minimum", "saddle", "flat")
FLAT = 1e-9  # of ‖∇²f‖, up to which an eigenvalue counts as zero
NAMELESS = "–"
LIKE = 0.95  # correlation of Gram matrices from which a minimum has the name of its start
INNER = 0.5  # radius of an inner ring at the start


@dataclass(frozen=True)
class Config:
    """Sizes and decays, those of c10; λ_W = λ_H = lam."""

    # (K, d) of the problems.
    shapes: tuple[tuple[int, int], ...] = (
        *((K, 2) for K in range(4, 13)), *((K, 3) for K in range(5, 13)),
        *((K, 4) for K in range(6, 13)),
    )  # fmt: skip
    lam: float = 1e-3  # λ_W = λ_H
    lam_b: float = 1e-2  # λ_b
    n: int = 3  # samples per class
    starts: int = 32  # random starts for each K and d
    steps: int = 3000  # limit on the steps of L-BFGS
    missed: float = 0.1  # share of the random starts that may fail to reach rounding
    value_tol: float = 1e-10  # of the octahedron, relative
    seed: int = 0  # of the random starts

    @classmethod
    def quick(cls) -> "Config":
        """Six and seven classes in the plane and in space."""
        return cls(shapes=((6, 2), (6, 3), (7, 2), (7, 3)), starts=24)


def configurations(K: int, d: int) -> list[tuple[str, np.ndarray]]:
    """The configurations that have a name: the code first, then rings, layers and sums."""
    code = codes(K, d)
    name = "best found code" if code.name == "search" else code.name
    found = [(name, code.rows)]
    for inner in range(1, K // 2 + 1 if d == 2 else 1):
        outer = polygon(K - inner)
        for turn, told in ((0.0, ""), (np.pi / max(inner, 2), " turned")):
            ring = polygon(inner, INNER, turn) if inner > 1 else np.zeros((1, 2))
            if inner > 1 or not told:
                found.append((f"{K - inner} round {inner}{told}", np.vstack([outer, ring])))
    if d > 2 and d + 1 <= K - 1:
        inside = np.vstack([codes(K - 1, d).rows, np.zeros(d)])
        found.append((f"{K - 1} round 1", inside))
    for first in range(1, d // 2 + 1 if d > 2 else 1):
        for count in range(first + 1, K - (d - first)):
            if first > 1 or count == 2:  # on a line two are told apart
                found.append((f"{count}⊕{K - count}", _sum(count, first, K - count, d - first)))
    return found + (_layers(K) if d == 3 else [])


def _sum(K: int, d: int, L: int, e: int) -> np.ndarray:
    """K vectors of a code in R^d and L of one in R^e, in orthogonal subspaces."""
    rows = np.zeros((K + L, d + e))
    rows[:K, :d], rows[K:, d:] = codes(K, d).rows, codes(L, e).rows
    return rows


def _layers(K: int) -> list[tuple[str, np.ndarray]]:
    """Rings one above the other, each turned against the one below: a+b, 1+a+b, 1+a+b+1, a+b+c."""
    sizes: set[tuple[int, ...]] = {(1, K - 1)} | {(a, K - a) for a in range(2, K // 2 + 1)}
    sizes |= {(1, a, K - 1 - a) for a in range(2, K - 2)}
    sizes |= {(1, a, K - 2 - a, 1) for a in range(3, (K - 2) // 2 + 1)}
    sizes |= {(a, K - 2 * a, a) for a in range(2, (K - 2) // 2 + 1)}
    return [("+".join(map(str, x)), _stack(x)) for x in sorted(sizes)]


def _stack(sizes: tuple[int, ...]) -> np.ndarray:
    parts, turn = [], 0.0
    for height, count in zip(np.linspace(0.8, -0.8, len(sizes)), sizes, strict=True):
        turn += np.pi / count
        level = np.sign(height) if count == 1 else height
        ring = polygon(count, (1 - level**2) ** 0.5, turn)
        parts.append(np.hstack([ring, np.full((count, 1), level)]))
    return np.concatenate(parts)


def compute(config: Config, progress: Report) -> dict[str, np.ndarray]:
    """One row for every critical value that was reached: its kind, name, hits, and W and H.

    The starts of all d of a K are solved side by side in the largest of them, those of a smaller d
    at zero beyond, where descent and Newton's method leave them: one program for all d.
    """
    rows: list[dict[str, Any]] = []
    missed = []
    classes = sorted({K for K, _ in config.shapes})
    for i, K in enumerate(classes):
        widths = [d for L, d in config.shapes if L == K]
        progress(i / len(classes), f"K={K}")
        problem = Problem(K, max(widths), config.n, config.lam, config.lam, config.lam_b)
        small, parts = quotient.of_width(problem, problem.d), []
        for d in widths:
            key = jax.random.fold_in(jax.random.key(config.seed), 100 * K + d)
            parts.append(_starts(quotient.of_width(problem, d), key, config.starts, problem.d))
        owner = np.repeat(np.arange(len(parts)), [len(x.b) for x in parts])
        points, _ = downhill.from_many(
            small, jax.tree.map(lambda *x: np.concatenate(x), *parts), config.steps
        )
        solved = census.polish(small, points)
        arrived = solved.status == newton.Arrival.converged
        values = np.asarray(_values(small, solved.params))
        for j, d in enumerate(widths):
            mine = owner == j
            found = jax.tree.map(lambda x, mine=mine: x[mine], solved.params)
            rows += _found(problem, d, found, values[mine], arrived[mine], config.starts)
            missed.append((K, d, np.mean(~arrived[mine][-config.starts :])))
    stacked = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return stacked | {"missed": np.array(missed)}


@jax.jit
def _values(problem: Problem, points: Params):
    return jax.vmap(lambda x: objective(problem, x))(points)


def _starts(problem: Problem, key, count: int, width: int) -> Params:
    """The named configurations at their best scale, then random starts, in `width` dimensions."""
    named = [
        theory.code_minimum(problem, x).params for _, x in configurations(problem.K, problem.d)
    ]
    drawn = sources.random(problem, key, count)
    W, H, b = (np.concatenate([np.stack([x[k] for x in named]), drawn[k]]) for k in range(3))
    pad = width - problem.d
    return Params(np.pad(W, ((0, 0), (0, 0), (0, pad))), np.pad(H, ((0, 0), (0, pad), (0, 0))), b)


def _found(problem: Problem, d: int, points: Params, values, arrived, starts: int) -> list[dict]:
    """Every value reached in d dimensions, the lowest first; the last starts are random."""
    left, rows = list(np.flatnonzero(arrived)[np.argsort(values[arrived], kind="stable")]), []
    named = len(values) - starts
    while left:
        first = left[0]
        same = [i for i in left if abs(values[i] - values[first]) <= SAME * values[first]]
        left = [i for i in left if i not in same]
        names = [i for i in same if i < named]
        one = Params(*(np.asarray(x[min(same)]) for x in points))
        picture = np.full((2, MOST, WIDE), np.nan)
        picture[0, : problem.K, :d], picture[1, : problem.K, :d] = one.W[:, :d], one.H[:d].T
        rows.append({
            "K": problem.K, "d": d, "value": values[first], "kind": _kind(problem, d, one),
            "name": min(names, default=-1), "hits": len(same) - len(names), "rows": picture,
        })  # fmt: skip
    return rows


def _kind(problem: Problem, d: int, point: Params) -> int:
    """Place in `KINDS` by the eigenvalues of ∇²f on the variables of the first d dimensions."""
    K, width = point.W.shape
    small = quotient.of_width(problem, width)
    inside = Params(np.arange(width) < d, np.arange(width) < d, True)
    kept = np.concatenate([
        np.broadcast_to(inside.W, (K, width)).ravel(),
        np.broadcast_to(inside.H[:, None], (width, K)).ravel(), np.ones(K, bool),
    ])  # fmt: skip
    values = np.linalg.eigvalsh(np.asarray(dense(small, point))[np.ix_(kept, kept)])
    error = FLAT * np.max(np.abs(values))
    rank = int(np.linalg.matrix_rank(point.W, tol=1e-6 * np.max(np.abs(point.W))))
    orbit = theory.orbit_dimension(quotient.of_width(problem, d), rank)
    if np.any(values < -error):
        return KINDS.index("saddle")
    return KINDS.index("minimum" if np.sum(values <= error) == orbit else "flat")


def minima(results: dict, K: int, d: int) -> np.ndarray:
    """Rows of the minima of a (K, d), the lowest first."""
    mine = (results["K"] == K) & (results["d"] == d) & (results["kind"] == KINDS.index("minimum"))
    found = np.flatnonzero(mine)
    return found[np.argsort(results["value"][found])]


def name_of(results: dict, i: int) -> str:
    """The name of a row, "–" without one or where descent left the configuration behind."""
    number, K, d = (int(results[name][i]) for name in ("name", "K", "d"))
    if number < 0:
        return NAMELESS
    name, rows = configurations(K, d)[number]
    before, after = (x @ x.T for x in (rows, results["rows"][i][0, :K, :d]))
    alike = np.sum(before * after) / np.linalg.norm(before) / np.linalg.norm(after)
    return name if alike >= LIKE else NAMELESS


def check(config: Config, results: dict) -> list[Verdict]:
    """What is lowest, what of it is in closed form, and how many minima have names."""
    lowest = {shape: minima(results, *shape)[0] for shape in config.shapes}
    verdicts = []
    plane = [(K, d) for K, d in config.shapes if d == 2]
    for told, chosen, share in (
        ("K-gon, d = 2, K ≤ 9", [x for x in plane if x[0] <= 9], 1),
        ("K-gon, d = 2, K ≥ 10", [x for x in plane if x[0] >= 10], 0),
        ("orthoplex, K = 2d", [(K, d) for K, d in config.shapes if 2 * d == K and d > 2], 1),
    ):
        if chosen:
            found = np.mean([results["name"][lowest[shape]] == 0 for shape in chosen])
            claim = f"{told}: share of {len(chosen)} of which it is the lowest minimum"
            verdicts.append(judge(claim, found, share, 0))
    if (6, 3) in lowest:
        error = results["value"][lowest[6, 3]] / octahedron(config) - 1
        claim = "K=6, d=3: relative error of the octahedron's value"
        verdicts.append(judge_below(claim, abs(error), config.value_tol))
    for told, rows in (
        ("lowest", list(lowest.values())),
        ("spurious", [i for shape in config.shapes for i in minima(results, *shape)[1:]]),
    ):
        named = [name_of(results, i) != NAMELESS for i in rows]
        claim = f"{told} minima: share of {len(rows)} with a name"
        verdicts.append(judge_above(claim, np.mean(named) if named else 0, 0.5))
    missed = float(np.max(results["missed"][:, 2]))
    claim = "largest share of random starts that did not reach rounding"
    return [*verdicts, judge_below(claim, missed, config.missed, missed < config.missed)]


def octahedron(config: Config) -> float:
    """min_r log(1 + 4e^{−r} + e^{−2r}) + 6√n λr."""

    def f(r):
        return np.log1p(4 * np.exp(-r) + np.exp(-2 * r)) + 6 * config.n**0.5 * config.lam * r

    return scipy.optimize.minimize_scalar(f, bounds=(0, 60), method="bounded",
                                          options={"xatol": 1e-12}).fun  # fmt: skip


def draw(config: Config, results: dict) -> dict[str, Figure]:
    """The table of names; minima in the plane and in space, the lowest and the worst."""
    drawn = {"": _draw_table(config, results)}
    for suffix, d, one in (("_plane", 2, _flat), ("_space", 3, _solid)):
        shown = [K for K, width in config.shapes if width == d][-7:]
        if shown:
            drawn[suffix] = _draw_pairs(results, shown, d, one)
    return drawn


def _draw_table(config: Config, results: dict) -> Figure:
    classes = sorted({K for K, _ in config.shapes})
    widths = sorted({d for _, d in config.shapes})
    canvas, axes = plots.figure("icml_text", 0.9 + 0.26 * len(classes))
    ax = axes.flat[0]
    for K, d in config.shapes:
        found = minima(results, K, d)
        named = sum(name_of(results, i) != NAMELESS for i in found[1:])
        above = f"{len(found) - 1} above, {named} named" if len(found) > 1 else "none above"
        text = f"{_spoken(name_of(results, found[0]))}\n{above}"
        at = widths.index(d), classes.index(K)
        ax.text(*at, text, ha="center", va="center", fontsize=6)
        if (
            name_of(results, found[0]) != configurations(K, d)[0][0]
        ):  # not the code of the largest margin
            corner = (at[0] - 0.5, at[1] - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, color=plots.GREY, alpha=0.2, linewidth=0))
    ax.set(xlim=(-0.5, len(widths) - 0.5), ylim=(-0.5, len(classes) - 0.5), xlabel="$d$")
    ax.set(ylabel="$K$")
    ax.set_xticks(range(len(widths)), widths)
    ax.set_yticks(range(len(classes)), classes)
    return canvas


def _draw_pairs(results: dict, shown: list[int], d: int, one) -> Figure:
    lowest = [(K, minima(results, K, d)[:1]) for K in shown]
    worst = [(K, minima(results, K, d)[1:][-1:]) for K in shown]
    panels = [(K, i) for K, chosen in lowest + worst for i in chosen]
    columns = max(len(shown), 1) if len(panels) == 2 * len(shown) else -(-len(panels) // 2)
    canvas, axes = plots.figure("icml_text", 3.0, 2, columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (K, i) in zip(axes.flat, panels, strict=False):
        one(ax, *results["rows"][i][:, :K, :d])
        name = _spoken(name_of(results, i))
        ax.set_title(f"$K={K}$: $f={results['value'][i]:.5f}$\n{name}", pad=3, fontsize=6)
    if d == 2:
        plane_legend(canvas)
    return canvas


def _spoken(name: str) -> str:
    """A configuration's name as the figures have it."""
    for mine, public in ((NAMELESS, "no name"), (" round ", " around "), (" turned", ", rotated")):
        name = name.replace(mine, public)
    return name


def _flat(ax, W: np.ndarray, H: np.ndarray) -> None:
    """Arrows for the rows, rings for the class means, each scaled to its longest."""
    W, H = (x / np.max(np.linalg.norm(x, axis=1)) for x in (W, H))
    for k, (w, h) in enumerate(zip(W, H, strict=True)):
        look = {"arrowstyle": "-|>", "color": plots.colour(k), "shrinkA": 0, "shrinkB": 0}
        if np.linalg.norm(w) > 1e-3:  # a row of length 0 has no direction
            ax.annotate("", w, (0, 0), arrowprops=look)
        ax.plot(*h, "o", mfc="none", mec=plots.colour(k), mew=1.0, ms=5)
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


VIEW = np.linalg.qr(np.array([[1.0, 0.35, 0.25], [-0.45, 1.0, 0.3], [-0.2, -0.5, 1.0]]))[0]


def _solid(ax, W: np.ndarray, _: np.ndarray) -> None:
    """Ends of the rows and the edges of their hull, those behind dotted."""
    X = W @ VIEW / np.max(np.linalg.norm(W, axis=1))
    corners: dict[tuple[int, int], list[np.ndarray]] = {}
    if np.linalg.matrix_rank(X - X[0], tol=1e-6) == 3:
        hull = scipy.spatial.ConvexHull(X)
        for face, normal in zip(hull.simplices, hull.equations[:, :3], strict=True):
            for i, j in ((0, 1), (1, 2), (2, 0)):
                edge = min(face[i], face[j]), max(face[i], face[j])
                corners.setdefault(edge, []).append(normal)
    for (i, j), (one, other) in corners.items():
        if one @ other > 1 - 1e-6:  # within a flat face
            continue
        style = "-" if max(one[2], other[2]) > 0 else ":"
        ax.plot(*X[[i, j], :2].T, style, color=plots.GREY, linewidth=0.8)
    for k, x in enumerate(X):
        ax.plot([0, x[0]], [0, x[1]], color=plots.colour(k), linewidth=0.6, alpha=0.6)
        ax.plot(*x[:2], "o", color=plots.colour(k), markersize=4 + x[2])
    ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")


if __name__ == "__main__":
    sys.exit(runner.main("c17_codes"))
