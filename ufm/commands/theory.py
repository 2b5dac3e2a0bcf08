"""`ufm theory`: which theorems hold for a problem, and its global minimum in closed form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ufm import theory
from ufm.check import Refused
from ufm.commands.shared import ModelFlags, show
from ufm.model import layers
from ufm.model.problem import Problem
from ufm.runs import values
from ufm.theory import minimum

# The claims with a minimum in closed form, or one that is solved for and certified.
MINIMA = ("simplex", "groups", "squared minimum", "orthogonal means")


@dataclass(frozen=True)
class Theory:
    """Print what theory says about a problem: claims on its landscape, its minimum in closed form.

    The closed form of cross-entropy (Zhu et al. 2021, theorem 3.1) needs balanced classes, d >= K-1
    and positive decays; other losses have forms of their own. Where a claim does not apply, the
    output names the assumption that fails.

    Example: ufm theory --K 10 --d 512 --n 5000 --lam-W 5e-4 --lam-H 1e-7
    """

    model: Annotated[ModelFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelFlags)
    json: bool = False
    """print JSON for machines instead of tables"""

    def act(self) -> int:
        """Print the claims, and the closed form if its theorem holds."""
        problem = self.model.problem()
        found = theory.claims(problem)
        known = any(one.fails is None for one in found if one.name in MINIMA)
        rows = _closed_form(problem) if known else []
        if self.json:
            numbers = {name: x for name, _, x in rows}
            print(values.text(numbers | {"claims": [one._asdict() for one in found]}))
            return 0
        if rows:
            labels = {label: x for _, label, x in rows}
            show("Global minimum in closed form", labels, (), False)
        _show_claims(found)
        return 0


def _closed_form(problem: Problem) -> list[tuple[str, str, Any]]:
    """(short name, label, number) of the global minimum and its curvature."""
    rows: list[tuple[str, str, Any]] = [
        ("is_collapsed", "collapsed to the origin", bool(theory.is_collapsed(problem))),
        ("value", "global value f*", theory.global_value(problem)),
    ]
    if problem.decay_weights is None:
        norms = theory.norms(problem)
        rows += [("W", "‖W‖", norms.W), ("H", "‖H‖", norms.H)]
    if layers.is_free(problem) and minimum.plain(problem) and problem.uniform:
        # Exact, since neither factor alone need be within the range of float64.
        threshold = 1 - minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
        told = float(threshold) if threshold < 2**1023 else math.inf
        rows[1:1] = [("threshold", "K² n λ_W λ_H, collapsed from 1 on", told)]
        wrong = theory.wrong_probability(problem)
        rows.append(("wrong_probability", "probability of each wrong class c", wrong))
    for name, label, form in (
        ("margin", "margin t", theory.margin),
        ("largest_eigenvalue", "largest eigenvalue of ∇²f", _largest),
        ("distinct_eigenvalues", "distinct eigenvalues", _distinct),
        ("condition_number", "condition number off the orbit", theory.condition_number),
        ("optimal_step", "step of the fastest gradient descent", theory.optimal_step),
        ("gd_rate", "its factor a step", _rate),
    ):
        try:
            rows.append((name, label, form(problem)))
        except Refused:  # not known for this loss: the row is left out
            continue
    return rows


def _largest(problem: Problem) -> float:
    return float(theory.hessian_spectrum(problem).eigenvalues[-1])


def _distinct(problem: Problem) -> int:
    return len(theory.hessian_spectrum(problem).eigenvalues)


def _rate(problem: Problem) -> float:
    return theory.gd_rate(problem, theory.optimal_step(problem))


def _show_claims(found: Sequence[theory.Claim]) -> None:
    """Print one row for each claim, and the definition of λ₋."""
    table = Table(title="What is known of this problem", title_justify="left", show_lines=True)
    for name in ("claim", "holds here", "source"):
        table.add_column(name)
    for one in found:
        holds = "yes" if one.fails is None else f"no; it needs {one.fails}"
        status = "" if one.status == "theorem" else f" ({one.status})"
        table.add_row(f"{one.name}{status}: {one.statement}", holds, one.source)
    console = Console()
    console.print(table)
    console.print("λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²)", highlight=False)
