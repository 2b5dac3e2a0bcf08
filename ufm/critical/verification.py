"""Checks of the theory on one problem: threshold, minimiser, certificate, spectrum, census, escape.

Each check compares methods that share no code: the closed forms (`ufm.theory`) with the
certificate, the reductions, Newton's method from many starts, and descent. Every critical point
must be a global minimiser or a strict saddle, for every d ≥ K−1 and any counts and weights of the
classes (`ufm.theory.landscape`; Zhu et al. 2021, arXiv 2105.02375, theorem 3.2 for d > K; arXiv
2407.10702 for d = K). If the classes have equal counts and weights, the minimisers must be simplex
ETFs (the origin above the threshold) with the value and the spectrum of the closed form. Otherwise
no closed form is used: the point that `ufm.solve` finds is the minimum if its certificate proves
it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import certificate, check, hessian, theory
from ufm.check import Refused
from ufm.critical import orbits, search, sources
from ufm.critical.orbits import Orbit
from ufm.critical.solver import solve
from ufm.critical.unstable import escape
from ufm.hessian.stationarity import stationarity
from ufm.metrics import measures as metrics
from ufm.model import layers, quotient
from ufm.model.objective import objective
from ufm.model.problem import Problem
from ufm.runtime.programs import make_room

VALUE_TOL = 1e-10  # nats between the value found and the closed form
SPECTRUM_TOL = 1e-10  # between eigenvalues by two methods, relative to the largest
ETF_TOL = 1e-6  # NC2 and NC3 of a minimiser found


class Cell(NamedTuple):
    """The theory checked on one problem.

    problem: the problem.
    collapsed: whether the minimum is the origin: K² n λ_W λ_H ≥ 1 for equal classes.
    value: f* in nats, in closed form, or as solved and certified.  gap: certified, at this point.
    spectrum_error: largest difference between its eigenvalues by reduction and in closed form,
        relative to the largest; NaN without a closed form.
    points: polished starts that reached a critical point.  refused: those that did not.
    minimisers: orbits of global minimisers, ETFs (or the origin above the threshold) for equal
        classes.
    saddles: orbits of strict saddles.  local: orbits of local minimisers that are not global.
    undecided: orbits for which the verdict is "undecided".
    softest: the least |most negative eigenvalue| of a saddle; NaN without saddles.
    escaped, escapes: from how many saddles a perturbed gradient descent reached the certified
        minimum, and how many were tried.
    violations: what contradicts the theory, in words; empty if nothing does.
    """

    problem: Problem
    collapsed: bool
    value: float
    gap: float
    spectrum_error: float
    points: int
    refused: int
    minimisers: int
    saddles: int
    local: int
    undecided: int
    softest: float
    escaped: int
    escapes: int
    violations: tuple[str, ...]


def verify(
    problem: Problem,
    key: Array,
    *,
    starts: int = 64,
    rounds: int = 2,
    escapes: int = 4,
    report: Callable[[str], None] | None = None,
) -> Cell:
    """Check the theory on one problem.

    Args:
        problem: d ≥ K − 1, λ_W, λ_H > 0, any counts and weights of the classes.
        key: a JAX PRNG key or an integer seed.
        starts, rounds: of the census.
        escapes: from how many saddles, lowest first, descent has to escape; 0 for none.
        report: called with a line of text at each stage.

    Returns:
        A `Cell`.

    Raises:
        Refused: a problem outside the theorem's assumptions, or one that
            `ufm.critical.search.check` refuses.
    """
    check_assumptions(problem)
    key, escapes = check.key(key), check.integer("escapes", escapes, 0)
    search.check(problem, starts, rounds)
    make_room()
    say = report or (lambda _: None)
    key_minimum, key_census, key_escape = jax.random.split(key, 3)
    with jax.enable_x64(True):
        say("minimiser")
        least = (_closed_form if problem.uniform else _solved)(problem, key_minimum)
        wrong = list(least.violations)
        say("census")
        found = search.census(
            problem, key_census, starts=starts, rounds=rounds,
            on_batch=lambda at: say(f"census: {len(at.census.orbits)} orbits, {at.source}"),
        )  # fmt: skip
        kinds = [_class_of(problem, orbit, least) for orbit in found.orbits]
        wrong += [text for _, text in kinds if text]
        names = [name for name, _ in kinds]
        if "minimiser" not in names:
            wrong.append("the census did not find the global minimiser")
        saddles = [o for o, name in zip(found.orbits, names, strict=True) if name == "saddle"]
        say("escape")
        tried = saddles[:escapes]
        escaped = _escaped(problem, tried, key_escape)
        if escaped < len(tried):
            wrong.append(f"descent from {len(tried) - escaped} perturbed saddles found no minimum")
    return Cell(
        problem, least.collapsed, least.value, least.gap, least.spectrum_error,
        sum(search.hits(orbit) for orbit in found.orbits), sum(found.refused.values()),
        names.count("minimiser"), len(saddles), names.count("local"), names.count("undecided"),
        min((abs(orbit.smallest) for orbit in saddles), default=float("nan")),
        escaped, len(tried), tuple(wrong),
    )  # fmt: skip


def check_assumptions(problem: Problem) -> None:
    """Refuse a problem outside the assumptions of the theorem that `verify` checks.

    Raises:
        Refused: d < K−1, a decay of 0; traced or array-valued decays; features that are not free.
    """
    layers.require_free(problem, "critical.verify")
    benign = next(x for x in theory.claims(problem) if x.name == "benign landscape")
    if benign.fails is not None:
        raise Refused(
            f"got a problem outside the theorem of the benign landscape, which needs {benign.fails}"
        )
    if problem.uniform:
        theory.check_assumptions(problem)


class _Least(NamedTuple):
    """What is known of the global minimum; fields as in `Cell`."""

    value: float
    collapsed: bool
    gap: float
    spectrum_error: float
    violations: tuple[str, ...]


def _closed_form(problem: Problem, key: Array) -> _Least:
    """The closed-form minimum, its certificate, and its spectrum by two methods."""
    value, collapsed = float(theory.global_value(problem)), bool(theory.is_collapsed(problem))
    point = theory.global_minimizer(problem, key, jnp.float64)
    proof, wrong = certificate.certify(problem, point), []
    if not proof.gap <= 16 * proof.resolution:
        wrong.append(f"the closed-form minimiser has a certified gap of {proof.gap:.3g}")
    slope = stationarity(problem, point)
    if not slope.critical:
        wrong.append(f"the closed-form minimiser has {slope.told()}")
        return _Least(value, collapsed, float(proof.gap), float("nan"), tuple(wrong))
    measured, closed = hessian.spectrum(problem, point, 0.0), theory.hessian_spectrum(problem)
    error = _distance(measured, closed)
    if not error <= SPECTRUM_TOL:
        wrong.append(f"its spectrum differs from the closed form by {error:.3g} of the largest")
    return _Least(value, collapsed, float(proof.gap), error, tuple(wrong))


def _solved(problem: Problem, key: Array) -> _Least:
    """The minimum that descent finds from a random start, and its certificate."""
    means = quotient.of_width(problem, problem.d)
    start = sources.random(means, key, 1)
    found = solve(means, jax.tree.map(lambda x: x[0], start))
    verdict = hessian.verdict(means, found.params)
    value, gap = float(objective(means, found.params)), float(verdict.gap)
    wrong = () if verdict.kind == "global minimiser" else (
        f"descent ended at f={value:.10g}, which is {verdict.kind}: {verdict.reason}",
    )  # fmt: skip
    collapsed = not bool(jnp.any(jnp.abs(found.params.W) > 1e-8 * orbits.unit_of(means)))
    return _Least(value, collapsed, gap, float("nan"), wrong)


def _distance(first: theory.Spectrum, second: theory.Spectrum) -> float:
    """Largest difference of sorted eigenvalues with multiplicities, relative to the largest."""
    edges = np.union1d(np.cumsum(first.multiplicities), np.cumsum(second.multiplicities))
    values = [
        spectrum.eigenvalues[np.searchsorted(np.cumsum(spectrum.multiplicities), edges)]
        for spectrum in (first, second)
    ]
    return float(np.max(np.abs(values[0] - values[1])) / np.max(np.abs(values[1])))


def _class_of(problem: Problem, orbit: Orbit, least: _Least) -> tuple[str, str]:
    """(minimiser, saddle, local or undecided; what contradicts the theory, or nothing)."""
    label = f"orbit f={orbit.value:.10g}, rank {orbit.rank}, index {orbit.morse_index}"
    if orbit.kind == "strict saddle":
        return "saddle", ""
    if orbit.kind == "global minimiser":
        if abs(orbit.value - least.value) > VALUE_TOL:
            source = "in closed form" if problem.uniform else "by descent"
            return "minimiser", f"{label}: certified global, but f* = {least.value:.10g} {source}"
        if least.collapsed:
            return "minimiser", "" if orbit.rank == 0 else f"{label}: global, but not the origin"
        if not problem.uniform:
            return "minimiser", ""
        nc2, nc3 = _collapse(problem, orbit)
        text = f"{label}: global, but no simplex ETF (NC2 {nc2:.2g}, NC3 {nc3:.2g})"
        return "minimiser", "" if max(nc2, nc3) <= ETF_TOL else text
    if orbit.kind == "local minimiser":
        return "local", f"{label}: a local minimiser that is not global"
    return "undecided", ""


def _collapse(problem: Problem, orbit: Orbit) -> tuple[float, float]:
    means = search.quotient_of(problem)
    W, H, b = orbit.params
    measured = metrics.collapse(np.asarray(W), np.asarray(H), np.asarray(b), means.labels)
    return float(measured.nc2), float(measured.nc3)


def _escaped(problem: Problem, saddles: list[Orbit], key: Array) -> int:
    """From how many saddles gradient descent reaches the certified minimum once perturbed."""
    means, reached = quotient.of_width(problem, problem.d), 0
    for i, orbit in enumerate(saddles):
        frame = jnp.eye(problem.d, orbit.params.W.shape[1])
        point = quotient.lift(means, jax.tree.map(jnp.asarray, orbit.params), frame)
        run = escape(means, point, jax.random.fold_in(key, i))
        reached += run.status == "certified"
    return reached
