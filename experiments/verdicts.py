"""Verdicts on many runs at once, the table of verdicts, the exit status."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from ufm.runs.claims import (
    HOLDS,
    NOT_CONVERGED,
    REFUTED,
    Verdict,
    judge,
    judge_above,
    judge_below,
    shown,
)

__all__ = [
    "HOLDS",
    "NOT_CONVERGED",
    "REFUTED",
    "Verdict",
    "conclude",
    "judge",
    "judge_above",
    "judge_all_below",
    "judge_all_zero",
    "judge_below",
]
STYLES = {HOLDS: "green", REFUTED: "bold red", NOT_CONVERGED: "yellow"}
EXIT = {HOLDS: 0, REFUTED: 1, NOT_CONVERGED: 3}  # 2 is a wrong command line


def judge_all_below(claim: str, errors, ended, limit) -> Verdict:
    """The worst |error| of many runs, below a limit: one can refute, all must end to support."""
    return _judged(lambda name, worst: judge_below(name, worst, limit), claim, errors, ended)


def judge_all_zero(claim: str, counts, ended) -> Verdict:
    """The worst |count| of many runs, 0: one can refute, all must end to support."""
    return _judged(lambda name, worst: judge(name, worst, 0, 0), claim, counts, ended)


def _judged(judge_one: Callable[[str, float], Verdict], claim: str, errors, ended) -> Verdict:
    errors, ended = np.broadcast_arrays(np.abs(errors), ended)
    if not ended.all():
        claim += f" ({(~ended).sum()} of {ended.size} runs not converged)"
    verdict = judge_one(claim, np.max(errors[ended]) if ended.any() else np.nan)
    decided = ended.all() or (ended.any() and verdict.outcome == REFUTED)
    return verdict if decided else verdict._replace(outcome=NOT_CONVERGED)


def conclude(verdicts: Mapping[str, Sequence[Verdict]], console: Console) -> int:
    """Print the table of verdicts; the exit status of the worst of them."""
    table = Table("", "claim", "measured", "predicted", "outcome")
    for name, rows in verdicts.items():
        for verdict in rows:
            cells = name[:3], verdict.claim, *shown(verdict), verdict.outcome
            table.add_row(*cells, style=STYLES[verdict.outcome])
        table.add_section()
    console.print(table)
    outcomes = [verdict.outcome for rows in verdicts.values() for verdict in rows]
    counts = {outcome: outcomes.count(outcome) for outcome in EXIT}
    console.print(", ".join(f"{outcome}: {count}" for outcome, count in counts.items()))
    return EXIT[next((x for x in (REFUTED, NOT_CONVERGED) if counts[x]), HOLDS)]
