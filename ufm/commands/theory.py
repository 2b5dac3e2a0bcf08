"""`ufm theory`: which theorems hold for a problem, and its global minimum in closed form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from ufm import theory
from ufm.commands.shared import ModelFlags, show
from ufm.model.problem import Problem
from ufm.runs import values
from ufm.theory import minimum


@dataclass(frozen=True)
class Theory:
    """Print which theorems hold for a problem, and its global minimum in closed form.

    The closed form (Zhu et al. 2021, theorem 3.1) needs balanced classes, d >= K-1 and positive
    decays. Where an assumption fails, of this or of another theorem, it is named.

    Example: ufm theory --K 10 --d 512 --n 5000 --lam-W 5e-4 --lam-H 1e-7
    """

    model: Annotated[ModelFlags, tyro.conf.OmitArgPrefixes] = field(default_factory=ModelFlags)
    json: bool = False
    """print JSON for machines instead of tables"""

    def act(self) -> int:
        """Print it; the closed form where its theorem holds."""
        problem = self.model.problem()
        found = theory.theorems(problem)
        rows = _closed_form(problem) if found[0].fails is None else []
        if self.json:
            numbers = {name: x for name, _, x in rows}
            print(values.text(numbers | {"theorems": [one._asdict() for one in found]}))
            return 0
        if rows:
            labels = {label: x for _, label, x in rows}
            show("Global minimum in closed form", labels, (), False)
        _show_theorems(found)
        return 0


def _closed_form(problem: Problem) -> list[tuple[str, str, Any]]:
    """(short name, label, number) of the global minimum and its curvature."""
    norms, spectrum = theory.norms(problem), theory.hessian_spectrum(problem)
    fastest = theory.optimal_step(problem)
    # Exact, since neither factor alone need be within the range of float64.
    threshold = 1 - minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
    return [
        ("is_collapsed", "collapsed to the origin (K² n λ_W λ_H ≥ 1)",
         theory.is_collapsed(problem)),
        ("threshold", "K² n λ_W λ_H", float(threshold) if threshold < 2**1023 else math.inf),
        ("value", "global value f* (nats)", theory.global_value(problem)),
        ("margin", "margin t", theory.margin(problem)),
        ("wrong_probability", "probability of each wrong class c",
         theory.wrong_probability(problem)),
        ("W", "‖W‖", norms.W),
        ("H", "‖H‖", norms.H),
        ("largest_eigenvalue", "largest eigenvalue of ∇²f", spectrum.eigenvalues[-1]),
        ("distinct_eigenvalues", "distinct eigenvalues", len(spectrum.eigenvalues)),
        ("condition_number", "condition number off the orbit", theory.condition_number(problem)),
        ("optimal_step", "step of the fastest gradient descent", fastest),
        ("gd_rate", "its factor a step", theory.gd_rate(problem, fastest)),
    ]  # fmt: skip


def _show_theorems(found: Sequence[theory.Theorem]) -> None:
    """One row a theorem; under the table what λ₋ is."""
    table = Table(title="Theorems", title_justify="left", show_lines=True)
    for name in ("theorem", "holds here", "source"):
        table.add_column(name)
    for one in found:
        holds = "yes" if one.fails is None else f"no; it needs {one.fails}"
        table.add_row(f"{one.name}: {one.statement}", holds, one.source)
    console = Console()
    console.print(table)
    console.print("λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²)", highlight=False)
