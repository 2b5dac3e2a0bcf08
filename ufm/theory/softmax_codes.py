"""Codes: the best separated unit vectors where no simplex fits, d < K−1.

As the decays fall to 0, or the temperature on a sphere to 0, the rows of W tend to a *softmax
code*, which maximises the hardmax margin (Jiang et al. 2023, arXiv 2310.05351; arXiv 2603.20587)

    ρ(W) = min_k dist(w_k, conv{w_j : j ≠ k}) = min_k max_{‖h‖ ≤ 1} min_{j≠k} ⟨w_k − w_j, h⟩

of unit rows. Three families are known to be optimal: the simplex, ρ = K/(K−1), for d ≥ K−1; the
K-gon, ρ = 1 − cos(2π/K), for d = 2; the orthoplex or K of its vertices, ρ = 1, for d+2 ≤ K ≤ 2d, of
which at least two antipodal pairs ±e_i are present, so that 0 is in the hull of the others for
every k. For some other K in R³ the best packings are the best codes known; the rest is searched.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
import scipy  # its parts are imported at first use

from ufm import check
from ufm.check import Refused
from ufm.metrics.generalised import one_vs_rest
from ufm.theory.geometry import simplex_etf

SOURCE = "Jiang et al. 2023, arXiv 2310.05351"
STARTS = 10  # random starts of a search
MOST = 64  # rows up to which a code is searched
_HEATS = (8.0, 64.0, 512.0)  # inverse temperatures, in this order


class Code(NamedTuple):
    """A configuration of unit vectors.

    rows: (K, d), NumPy float64.
    name: its usual name; "search" if it was found by a search.
    margin: ρ, its hardmax margin.
    status: "optimal", "best known" or "best found" (by the search of `codes`: a lower bound).
    source: a reference for the status.
    """

    rows: np.ndarray
    name: str
    margin: float
    status: str
    source: str


def hardmax_margin(W) -> float:
    """min_k dist(w_k, conv{w_j : j ≠ k}), the margin of the best unit feature, for the worst class.

    Exact up to rounding: one quadratic program for each row, solved by active sets. The rows are
    not normalised, so the margin scales with W; it is 0 where a row is in the hull of the others.
    Source: Jiang et al. 2023, arXiv 2310.05351.

    Args:
        W: (K, d), a row a class, K ≥ 2.

    Raises:
        Refused: not a real, finite matrix of at least two rows.
    """
    return float(np.min(one_vs_rest(W, unit=False)))


def codes(K: int, d: int, key=0) -> Code:
    """The best code of K unit vectors in R^d that is known, or that a search finds.

    Definition and sources: `ufm.theory.softmax_codes`.

    Args:
        K: number of vectors, at least 2.
        d: dimension, at least 1.
        key: an integer seed, or a JAX PRNG key; it draws the starts of the search. Equal keys give
            equal codes.

    Returns:
        A `Code`.

    Raises:
        Refused: d = 1 with K > 2, where no margin is positive; a search for more than 64 vectors.
    """
    K = check.integer("K", K, 2, why="a code needs two vectors")
    d = check.integer("d", d, 1)
    seed = _seed(key)
    if d == 1 and K > 2:
        raise Refused(f"got K={K}, d=1; allowed: d >= 2, since only two vectors differ on a line")
    if d >= K - 1:
        rows = np.asarray(simplex_etf(K, d, dtype=np.float64), np.float64)
        return _named(rows, "simplex", "optimal", SOURCE)
    if d == 2:
        return _named(polygon(K), f"{K}-gon", "optimal", SOURCE)
    if 2 * d >= K:
        name = "orthoplex" if 2 * d == K else f"{K} vertices of the orthoplex"
        return _named(orthoplex(d)[:K], name, "optimal", SOURCE)
    if (K, d) in KNOWN:
        make, name, source = KNOWN[K, d]
        return _named(make(), name, "best known", source)
    if K > MOST:
        raise Refused(
            f"got K={K}, d={d}, for which no code is known here; allowed: K <= {MOST}, for which "
            "one is searched"
        )
    rows = _search(K, d, seed).copy()  # the cache holds the original
    return _named(rows, "search", "best found", f"{STARTS} starts of ufm.theory.codes")


def _seed(key) -> tuple[int, ...]:
    return tuple(int(x) for x in np.ravel(jax.random.key_data(check.key(key))))


def _named(rows: np.ndarray, name: str, status: str, source: str) -> Code:
    return Code(rows, name, hardmax_margin(rows), status, source)


def polygon(K: int, radius: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """K equally spaced points on a circle, (K, 2), the first at the angle `turn`."""
    angles = turn + 2 * np.pi * np.arange(K) / K
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def orthoplex(d: int) -> np.ndarray:
    """e_1, −e_1, e_2, −e_2, …, (2d, d), pair by pair: the first K rows hold K−d pairs or more."""
    return np.stack([np.eye(d), -np.eye(d)], axis=1).reshape(2 * d, d)


def icosahedron() -> np.ndarray:
    """The 12 vertices: all even permutations of (0, ±1, ±φ), of unit norm."""
    golden = (1 + 5**0.5) / 2
    signs = itertools.product((1, -1), (golden, -golden))
    first = np.array([(0.0, x, y) for x, y in signs])
    rows = np.concatenate([np.roll(first, k, axis=1) for k in range(3)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def antiprism() -> np.ndarray:
    """Two squares, the upper one turned by 45°, all edges equal, (8, 3)."""
    radius = (4 / (4 + 2**0.5)) ** 0.5
    return _layers([(4, radius, 0.0, 1), (4, radius, np.pi / 4, -1)])


def capped_prism() -> np.ndarray:
    """Two parallel triangles and three points on the equator, (9, 3)."""
    return _layers([(3, 2 / 3, 0.0, 1), (3, 2 / 3, 0.0, -1), (3, 1.0, np.pi / 3, 1)])


def _layers(rings: list[tuple[int, float, float, int]]) -> np.ndarray:
    """Rings (points, radius, turn, side) of the unit sphere, one above the other."""
    parts = []
    for count, radius, turn, side in rings:
        height = np.full((count, 1), side * max(1 - radius**2, 0.0) ** 0.5)
        parts.append(np.hstack([polygon(count, radius, turn), height]))
    return np.concatenate(parts)


# Optimal packings, with the proof of that; their margins are 1 − (largest cosine).
KNOWN = {
    (8, 3): (antiprism, "square antiprism", "packing: Schütte and van der Waerden 1951"),
    (9, 3): (capped_prism, "tricapped prism", "packing: Schütte and van der Waerden 1951"),
    (11, 3): (lambda: icosahedron()[1:], "icosahedron less a vertex", "packing: Danzer 1963"),
    (12, 3): (icosahedron, "icosahedron", "packing: Fejes Tóth 1943"),
}


@functools.lru_cache(maxsize=64)
def _search(K: int, d: int, seed: tuple[int, ...]) -> np.ndarray:
    """The best of `STARTS` random starts after annealing, refined by SLSQP, (K, d)."""
    rng = np.random.default_rng(seed)
    found = [_annealed(rng.normal(size=(2, K, d))) for _ in range(STARTS)]
    best = max(found, key=lambda pair: hardmax_margin(pair[0]))
    polished = _polished(best)
    return max(best[0], polished, key=hardmax_margin)


def _annealed(pair: np.ndarray) -> np.ndarray:
    """(W, H) of unit rows at a local maximum of the soft margin, as its temperature falls."""
    for heat in _HEATS:
        best = scipy.optimize.minimize(
            _soft, pair.ravel(), (heat, pair.shape), jac=True, method="L-BFGS-B",
            options={"maxiter": 200},
        )  # fmt: skip
        pair = _unit(best.x.reshape(pair.shape))
    return pair


def _unit(pair: np.ndarray) -> np.ndarray:
    return pair / np.linalg.norm(pair, axis=-1, keepdims=True)


def _soft(x: np.ndarray, heat: float, shape: tuple[int, ...]) -> tuple[float, np.ndarray]:
    """(1/τ) log Σ_{k≠j} exp(−τ⟨w_k − w_j, h_k⟩) of the unit rows of x, and its gradient in x."""
    free = x.reshape(shape)
    lengths = np.linalg.norm(free, axis=-1, keepdims=True)
    W, H = unit = free / lengths
    scores = H @ W.T  # ⟨h_k, w_j⟩
    gaps = heat * (scores - np.diagonal(scores)[:, None])
    np.fill_diagonal(gaps, -np.inf)
    value = scipy.special.logsumexp(gaps)
    P = np.exp(gaps - value)
    P = P - np.diag(P.sum(axis=1))
    slope = np.stack([P.T @ H, P @ W])
    slope -= unit * np.sum(slope * unit, axis=-1, keepdims=True)
    return float(value / heat), (slope / lengths).ravel()


def _polished(pair: np.ndarray) -> np.ndarray:
    """W at a nearby local maximum of ρ with ⟨w_k − w_j, h_k⟩ ≥ ρ and unit rows, by SLSQP."""
    _, K, d = pair.shape
    apart = ~np.eye(K, dtype=bool)
    rows, columns = np.nonzero(apart)
    place = np.arange(len(rows))

    def gaps(x):
        W, H = x[:-1].reshape(pair.shape)
        scores = H @ W.T
        return (np.diagonal(scores)[:, None] - scores)[apart] - x[-1]

    def slopes(x):
        W, H = x[:-1].reshape(pair.shape)
        out = np.zeros((len(rows), 2, K, d))
        out[place, 0, rows] += H[rows]
        out[place, 0, columns] -= H[rows]
        out[place, 1, rows] += W[rows] - W[columns]
        return np.column_stack([out.reshape(len(rows), -1), -np.ones(len(rows))])

    def norms(x):
        return np.sum(x[:-1].reshape(2 * K, d) ** 2, axis=1) - 1

    def normals(x):
        out = np.zeros((2 * K, 2 * K, d))
        out[np.arange(2 * K), np.arange(2 * K)] = 2 * x[:-1].reshape(2 * K, d)
        return np.column_stack([out.reshape(2 * K, -1), np.zeros(2 * K)])

    down = np.append(np.zeros(pair.size), -1.0)
    best = scipy.optimize.minimize(
        lambda x: -x[-1], np.append(pair.ravel(), hardmax_margin(pair[0])), jac=lambda _: down,
        method="SLSQP", options={"maxiter": 300, "ftol": 1e-15},
        constraints=[
            {"type": "ineq", "fun": gaps, "jac": slopes},
            {"type": "eq", "fun": norms, "jac": normals},
        ],
    )  # fmt: skip
    return _unit(best.x[:-1].reshape(pair.shape))[0]
