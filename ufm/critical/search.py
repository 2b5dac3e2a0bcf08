"""The critical points of a problem, found, told apart and judged: one row an orbit.

At a critical point the samples of a class are equal and 1ᵀW = 0, so W has rank ≤ K − 1: all
critical points for any n and any d are those of the class means in min(d, K−1) dimensions, lifted
(`ufm.model.quotient`). There Newton's method is cheap, and goes from thousands of starts
(`ufm.critical.sources`) to ‖∇f‖ at rounding; what does not arrive is counted, never accepted. A
census is not a proof that
there are no other critical points: it finds what its sources lead to.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check as door
from ufm.check import Refused
from ufm.critical import newton, orbits, sources
from ufm.critical.orbits import Orbit
from ufm.model import quotient
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem, check_problem

FIRST = (
    sources.random, sources.tied, sources.padded, sources.passages, sources.descended,
)  # fmt: skip
FROM_KNOWN = (sources.perturbed, sources.followed, sources.deflated)
NAMES = tuple(source.__name__ for source in (*FIRST, *FROM_KNOWN))

Report = Callable[[str, int, int], None]  # report(source, starts polished, orbits known)
Accepted = Callable[[str, Params], None]  # accepted(source, points that arrived)


class Census(NamedTuple):
    """What a census found.

    problem: of which.  orbits: by rising value.
    tried, refused: starts by source, and those of them that did not arrive at a critical point.
    """

    problem: Problem
    orbits: tuple[Orbit, ...]
    tried: dict[str, int]
    refused: dict[str, int]


def quotient_of(problem: Problem) -> Problem:
    """The problem in whose variables a census works: class means in min(d, K−1) dimensions."""
    return quotient.of_width(problem, min(problem.d, problem.K - 1))


def check(problem: Problem, starts: int, rounds: int) -> None:
    """Refuse what a census cannot be taken of.

    Raises:
        Refused: λ_W or λ_H zero, a quotient too large for matrices, counts below 1;
            array-valued decays.
    """
    check_problem(problem)
    for name in ("lam_W", "lam_H"):
        if not float(getattr(problem, name)) > 0:
            raise Refused(
                f"got {name}={getattr(problem, name)}; allowed: > 0. Without decay the infimum is "
                "not attained, and critical points need not have collapsed"
            )
    size = quotient_of(problem).size
    if size > newton.DENSE_SIZE:
        raise Refused(
            f"got a problem of {size} variables in the coordinates of class means; allowed are "
            f"{newton.DENSE_SIZE}. Lower K or d (or make the classes balanced); single critical "
            "points of larger problems are found by ufm.solve"
        )
    check_memory(problem, 8)  # orbits are judged in all dimensions, of all samples
    door.integer("starts", starts, 1, 2**31 - 1)
    door.integer("rounds", rounds, 1)


def census(
    problem: Problem,
    key: Array,
    *,
    starts: int = 256,
    rounds: int = 4,
    known: Census | None = None,
    report: Report | None = None,
    accepted: Accepted | None = None,
    save: Callable[[Census], None] | None = None,
) -> Census:
    """Critical points of f up to its symmetries, each judged.

    The first round draws `starts` starts from each of random, tied, padded, passages and
    descended; every further round as many from each of perturbed, followed and deflated, and from
    random and tied again, until a round finds no new orbit or `rounds` are done.

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0, λ_b ≥ 0 or no bias.
        key: a JAX PRNG key; other keys draw other starts.
        starts: per source and round.
        rounds: at most this many.
        known: an earlier census of this problem to go on from; nothing of it is lost.
        report: called after each source of each round, for progress.
        accepted: called with every batch of points that arrived, for those who want the points
            themselves: NumPy, in the coordinates of `quotient_of(problem)`.
        save: called with the census so far after each round.

    Returns:
        A `Census`. In float64 whatever JAX's configuration.

    Raises:
        Refused: see `check`.
    """
    check(problem, starts, rounds)
    key = door.key(key)
    with jax.enable_x64(True):
        atlas = _Ledger(problem, known, report or (lambda *_: None), accepted or (lambda *_: None))
        for number in range(rounds):
            before = len(atlas.orbits)
            round_key = jax.random.fold_in(key, number)
            again = FIRST if number == 0 else (*FROM_KNOWN, sources.random, sources.tied)
            for source in again:
                source_key = jax.random.fold_in(round_key, NAMES.index(source.__name__))
                extra = (atlas.representatives(),) if source in FROM_KNOWN else ()
                points = source(atlas.small, source_key, starts, *extra)
                atlas.add(source.__name__, points)
            if save is not None:
                save(atlas.result())
            if number > 0 and len(atlas.orbits) == before:
                break
        return atlas.result()


def polish(problem: Problem, starts: Params) -> newton.Polished:
    """Newton's method from many starts, one after the other in one program; NumPy arrays.

    Side by side all would wait for the slowest, and XLA solves batches of complex systems several
    times more slowly than single ones.
    """
    return jax.tree.map(np.asarray, _polish(problem, starts))


@jax.jit
def _polish(problem: Problem, starts: Params) -> newton.Polished:
    return jax.lax.map(lambda x: newton.polish(problem, x), starts)


@jax.jit
def _fingerprints(problem: Problem, points: Params) -> Array:
    return jax.vmap(lambda x: orbits.fingerprint(problem, x))(points)


class _Ledger:
    """Orbits under way: what is known, and where a new point belongs."""

    def __init__(self, problem: Problem, known: Census | None, report: Report, accepted: Accepted):
        self.problem, self.small = problem, quotient_of(problem)
        self.report, self.accepted = report, accepted
        # Copies of the counts: the census that was given stays as it is.
        self.orbits = [o._replace(hits=dict(o.hits)) for o in known.orbits] if known else []
        self.tried = dict(known.tried) if known else {}
        self.refused = dict(known.refused) if known else {}
        points = [_fingerprints(self.small, self.representatives())] if self.orbits else []
        self.prints: list[np.ndarray] = [np.asarray(row) for rows in points for row in rows]

    def representatives(self) -> Params:
        return jax.tree.map(lambda *x: np.stack(x), *(orbit.params for orbit in self.orbits))

    def add(self, source: str, starts: Params) -> None:
        """Polish, and count every arrival for its orbit."""
        found = polish(self.small, starts)
        arrived = np.flatnonzero(found.status == newton.Arrival.converged)
        self.tried[source] = self.tried.get(source, 0) + len(found.status)
        missed = len(found.status) - len(arrived)
        self.refused[source] = self.refused.get(source, 0) + missed
        self.accepted(source, jax.tree.map(lambda x: x[arrived], found.params))
        if len(arrived):
            self._count(source, found, arrived)
        self.report(source, sum(self.tried.values()), len(self.orbits))

    def _count(self, source: str, found: newton.Polished, arrived: np.ndarray) -> None:
        # Padded to a fixed number of rows, so that one program serves every count of arrivals.
        lanes = np.resize(arrived, len(found.status))
        points = jax.tree.map(lambda x: x[lanes], found.params)
        prints = np.asarray(_fingerprints(self.small, points))
        for i, row in zip(arrived, prints, strict=False):
            at = self._find(row)
            if at is None:
                point = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), found.params)
                length = float(found.newton_step[i])
                self.orbits.append(orbits.judge(self.problem, point, length, {}))
                self.prints.append(row)
                at = len(self.orbits) - 1
            hits = self.orbits[at].hits
            hits[source] = hits.get(source, 0) + 1

    def _find(self, row: np.ndarray) -> int | None:
        if not self.prints:
            return None
        distances = np.max(np.abs(np.stack(self.prints) - row), axis=1)
        nearest = int(np.argmin(distances))
        return nearest if distances[nearest] <= orbits.SAME else None

    def result(self) -> Census:
        rising = sorted(self.orbits, key=lambda orbit: orbit.value)
        return Census(self.problem, tuple(rising), self.tried, self.refused)


def hits(orbit: Orbit, among: Iterable[str] = NAMES) -> int:
    """How many starts of these sources ended on an orbit."""
    return sum(orbit.hits.get(name, 0) for name in among)
