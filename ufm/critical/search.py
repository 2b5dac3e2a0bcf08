"""A search for the critical points of a problem: their orbits, each with a verdict.

At a critical point the samples of a class are equal and 1ᵀW = 0, so W has rank ≤ K − 1: all
critical points for any n and any d are those of the class means in min(d, K−1) dimensions, lifted
(`ufm.model.quotient`). Newton's method is cheap in these variables: it runs from thousands of
starts (`ufm.critical.sources`) until ‖∇f‖ is at the level of rounding. Starts for which it is not
are counted as refused. A census does not prove that there are no other critical points.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check as checks
from ufm.check import Refused
from ufm.critical import feasible, kkt, newton, orbits, sources
from ufm.critical.orbits import Orbit
from ufm.model import layers, quotient
from ufm.model.fixed import check_free
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem
from ufm.theory.landscape import rank_bound

FIRST = (
    sources.random, sources.tied, sources.padded, sources.passages, sources.descended,
)  # fmt: skip
FROM_KNOWN = (sources.perturbed, sources.followed, sources.deflated)
NAMES = tuple(source.__name__ for source in (*FIRST, *FROM_KNOWN))


class Census(NamedTuple):
    """The critical points that a census found, as orbits.

    problem: the problem.
    orbits: in ascending order of f.
    tried: number of starts, by source.
    refused: how many of them did not reach a critical point to rounding, by source.
    """

    problem: Problem
    orbits: tuple[Orbit, ...]
    tried: dict[str, int]
    refused: dict[str, int]


class Batch(NamedTuple):
    """Progress of a census: the polished starts of one source in one round.

    source: the name of the source.
    arrived: the critical points reached, NumPy, in the coordinates of `quotient_of(problem)`.
    census: the census so far.
    ends_round: whether this is the last source of the round, a good moment to save.
    """

    source: str
    arrived: Params
    census: Census
    ends_round: bool


def quotient_of(problem: Problem) -> Problem:
    """The problem in whose variables a census searches: class means in min(d, K−1) dimensions.

    In min(d, K) dimensions for a loss that is not invariant under shifts, where W may have full
    rank, and in all d where H ≥ 0, since rotations would not keep the zeros.
    """
    if not layers.is_free(problem):
        return quotient.of_width(problem, problem.d)
    return quotient.of_width(problem, min(problem.d, rank_bound(problem)))


def check(problem: Problem, starts: int, rounds: int) -> None:
    """Refuse problems and options that a census does not support.

    Raises:
        Refused: λ_W or λ_H zero, a quotient too large for dense matrices, counts below 1;
            array-valued decays; features on the sphere, a fixed classifier.
    """
    check_free(problem)
    layers.require_among(problem, "critical.census", ("free", "nonnegative"))
    for name in ("lam_W", "lam_H"):
        if not float(getattr(problem, name)) > 0:
            raise Refused(
                f"got {name}={getattr(problem, name)}; allowed: > 0. Without decay the infimum is "
                "not attained, and critical points need not have collapsed"
            )
    if not layers.is_free(problem):
        kkt.check(problem)
    size = quotient_of(problem).size
    if size > newton.DENSE_SIZE:
        raise Refused(
            f"got a problem of {size} variables in the coordinates of class means; allowed are "
            f"{newton.DENSE_SIZE}. Lower K or d (or make the classes balanced); single critical "
            "points of larger problems are found by ufm.solve"
        )
    check_memory(problem, 8)  # orbits are judged in all dimensions, of all samples
    checks.integer("starts", starts, 1, 2**31 - 1)
    checks.integer("rounds", rounds, 1)


def census(
    problem: Problem,
    key: Array,
    *,
    starts: int = 256,
    rounds: int = 4,
    known: Census | None = None,
    on_batch: Callable[[Batch], None] | None = None,
) -> Census:
    """Search for the critical points of f up to its symmetries, and classify each.

    The first round draws `starts` starts from each of the sources random, tied, padded, passages
    and descended (`ufm.critical.sources`). Every further round draws as many from each of
    perturbed, followed and deflated, and from random and tied again; the search ends when a round
    finds no new orbit, or after `rounds` of them. (Where H ≥ 0 every round uses the sources of
    `ufm.critical.feasible`.) A census lists the orbits found; it does not prove that there are no
    others.

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0, λ_b ≥ 0 or no bias.
        key: a JAX PRNG key or an integer seed; other keys draw other starts.
        starts: per source and round.
        rounds: the most rounds.
        known: an earlier census of this problem to extend; all of its orbits are kept.
        on_batch: called with a `Batch` after each source of each round, for example to show
            progress or to save the census.

    Returns:
        A `Census`, in float64 whatever JAX's configuration.

    Raises:
        Refused: see `check`; a `known` census of another problem.
    """
    check(problem, starts, rounds)
    if known is not None and known.problem.describe() != problem.describe():
        raise Refused(
            "got known=a census of another problem; allowed: one of this problem, or None for a "
            "new census"
        )
    key = checks.key(key)
    with jax.enable_x64(True):
        small = quotient_of(problem)
        ledger = _opened(small, known)
        for number in range(rounds):
            before = len(ledger.orbits)
            round_key = jax.random.fold_in(key, number)
            round_sources = _sources(problem, number if ledger.orbits else 0)
            for source in round_sources:
                source_key = jax.random.fold_in(round_key, NAMES.index(source.__name__))
                extra = (_representatives(ledger),) if source in FROM_KNOWN else ()
                found = polish(small, source(small, source_key, starts, *extra))
                arrived = np.flatnonzero(found.status == newton.Arrival.converged)
                ledger = _visited(problem, small, ledger, source.__name__, found, arrived)
                if on_batch is not None:
                    points = jax.tree.map(lambda x, i=arrived: x[i], found.params)
                    so_far, ends = _census(problem, ledger), source is round_sources[-1]
                    on_batch(Batch(source.__name__, points, so_far, ends))
            if number > 0 and len(ledger.orbits) == before:
                break
        return _census(problem, ledger)


def _sources(problem: Problem, number: int) -> tuple[Callable[..., Params], ...]:
    """The sources of a round; most of the later ones start from the orbits known by then."""
    if not layers.is_free(problem):
        return feasible.SOURCES
    return FIRST if number == 0 else (*FROM_KNOWN, sources.random, sources.tied)


def polish(problem: Problem, starts: Params) -> newton.Polished:
    """Newton's method from many starts, one after the other in one program; NumPy arrays.

    In a batch all would wait for the slowest, and XLA solves batches of complex systems several
    times more slowly than single ones.
    """
    return jax.tree.map(np.asarray, _polish(problem, starts))


@jax.jit
def _polish(problem: Problem, starts: Params) -> newton.Polished:
    one = newton.polish if layers.is_free(problem) else kkt.polish
    return jax.lax.map(lambda x: one(problem, x), starts)


@jax.jit
def _fingerprints(problem: Problem, points: Params) -> Array:
    return jax.vmap(lambda x: orbits.fingerprint(problem, x))(points)


class _Ledger(NamedTuple):
    """A census in progress: orbits in the order in which they were found, with fingerprints."""

    orbits: tuple[Orbit, ...]
    prints: tuple[np.ndarray, ...]
    tried: dict[str, int]
    refused: dict[str, int]


def _opened(small: Problem, known: Census | None) -> _Ledger:
    if known is None:
        return _Ledger((), (), {}, {})
    ledger = _Ledger(known.orbits, (), known.tried, known.refused)
    if not known.orbits:
        return ledger
    prints = np.asarray(_fingerprints(small, _representatives(ledger)))
    return ledger._replace(prints=tuple(prints))


def _representatives(ledger: _Ledger) -> Params:
    return jax.tree.map(lambda *x: np.stack(x), *(orbit.params for orbit in ledger.orbits))


def _visited(
    problem: Problem,
    small: Problem,
    ledger: _Ledger,
    source: str,
    found: newton.Polished,
    arrived: np.ndarray,
) -> _Ledger:
    """The ledger after the starts of a source; each critical point is a hit of its orbit."""
    starts = len(found.status)
    all_orbits, prints = list(ledger.orbits), list(ledger.prints)
    if len(arrived):
        # Padded to a fixed number of rows, so that one program serves every count of arrivals.
        lanes = np.resize(arrived, starts)
        rows = np.asarray(_fingerprints(small, jax.tree.map(lambda x: x[lanes], found.params)))
        for i, row in zip(arrived, rows, strict=False):
            at = _nearest(prints, row)
            if at is None:
                point = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), found.params)
                length = float(found.newton_step[i])
                at = len(prints)
                all_orbits.append(orbits.judge(problem, point, length, {}))
                prints.append(row)
            all_orbits[at] = all_orbits[at]._replace(hits=_more(all_orbits[at].hits, source, 1))
    return _Ledger(
        tuple(all_orbits),
        tuple(prints),
        _more(ledger.tried, source, starts),
        _more(ledger.refused, source, starts - len(arrived)),
    )


def _more(counts: dict[str, int], name: str, count: int) -> dict[str, int]:
    return counts | {name: counts.get(name, 0) + count}


def _nearest(prints: list[np.ndarray], row: np.ndarray) -> int | None:
    """The position of the orbit with this fingerprint, None for a new one."""
    if not prints:
        return None
    distances = np.max(np.abs(np.stack(prints) - row), axis=1)
    nearest = int(np.argmin(distances))
    return nearest if distances[nearest] <= orbits.SAME else None


def _census(problem: Problem, ledger: _Ledger) -> Census:
    rising = sorted(ledger.orbits, key=lambda orbit: orbit.value)
    return Census(problem, tuple(rising), ledger.tried, ledger.refused)


def hits(orbit: Orbit, among: Iterable[str] = NAMES) -> int:
    """How many starts of the given sources ended on an orbit."""
    return sum(orbit.hits.get(name, 0) for name in among)
