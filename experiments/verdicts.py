"""Claims held against their measurements: verdicts, the table of them, the exit status."""

from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

HOLDS, REFUTED, NOT_CONVERGED = "holds", "refuted", "not converged"
STYLES = {HOLDS: "green", REFUTED: "bold red", NOT_CONVERGED: "yellow"}
EXIT = {HOLDS: 0, REFUTED: 1, NOT_CONVERGED: 3}  # 2 is a wrong command line


class Verdict(NamedTuple):
    """A claim held against its measurement: |measured − predicted| ≤ tolerance."""

    claim: str
    measured: float
    predicted: float
    tolerance: float
    outcome: str


def judge(claim: str, measured, predicted, tolerance, converged=True) -> Verdict:
    """The verdict; a measurement that did not converge neither supports nor refutes a claim."""
    agrees = abs(measured - predicted) <= tolerance  # False for NaN
    outcome = (HOLDS if agrees else REFUTED) if converged else NOT_CONVERGED
    return Verdict(claim, float(measured), float(predicted), float(tolerance), outcome)


def judge_all(claim: str, errors, ended, tolerance) -> Verdict:
    """The worst of many runs, predicted 0: one that ended can refute, all must end to support."""
    errors, ended = np.broadcast_arrays(np.abs(errors), ended)
    worst = np.max(errors[ended]) if ended.any() else np.nan
    decided = ended.all() or (ended.any() and not worst <= tolerance)
    if not ended.all():
        claim += f" ({(~ended).sum()} of {ended.size} runs not converged)"
    return judge(claim, worst, 0, tolerance, decided)


def conclude(verdicts: dict[str, list[Verdict]], console: Console) -> int:
    """Print the table of verdicts; the exit status of the worst of them."""
    table = Table("", "claim", "measured", "predicted", "±", "outcome")
    for name, rows in verdicts.items():
        for claim, measured, predicted, tolerance, outcome in rows:
            numbers = f"{measured:.6g}", f"{predicted:.6g}", f"{tolerance:.1g}"
            table.add_row(name[:3], claim, *numbers, outcome, style=STYLES[outcome])
        table.add_section()
    console.print(table)
    outcomes = [verdict.outcome for rows in verdicts.values() for verdict in rows]
    counts = {outcome: outcomes.count(outcome) for outcome in EXIT}
    console.print(", ".join(f"{outcome}: {count}" for outcome, count in counts.items()))
    return EXIT[next((x for x in (REFUTED, NOT_CONVERGED) if counts[x]), HOLDS)]
