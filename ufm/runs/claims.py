"""Claims compared with measurements: an equality to a tolerance, or a strict inequality.

A `Verdict` contains the numbers that were compared, so that a reader can compare them again.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ufm.check import Refused

HOLDS, REFUTED, NOT_CONVERGED = "holds", "refuted", "not converged"
RELATIONS = ("=", "<", ">")


class Verdict(NamedTuple):
    """A claim compared with its measurement.

    claim: what is measured, with its unit.
    measured, predicted, tolerance: the numbers that were compared, with all digits.
    outcome: HOLDS, REFUTED or NOT_CONVERGED.
    relation: "=" asks for |measured − predicted| ≤ tolerance, "<" for measured < predicted and ">"
        for measured > predicted; the tolerance of an inequality is 0.
    """

    claim: str
    measured: float
    predicted: float
    tolerance: float
    outcome: str
    relation: str = "="


def agrees(measured: float, relation: str, predicted: float, tolerance: float = 0.0) -> bool:
    """Whether a measurement satisfies its relation to the prediction; NaN satisfies none.

    Raises:
        Refused: a relation that is none of RELATIONS.
    """
    if relation == "=":
        return bool(abs(measured - predicted) <= tolerance)
    if relation == "<":
        return bool(measured < predicted)
    if relation == ">":
        return bool(measured > predicted)
    raise Refused(f"got the relation {relation!r}; allowed: {', '.join(RELATIONS)}")


def judge(
    claim: str, measured: Any, predicted: Any, tolerance: Any, converged: Any = True
) -> Verdict:
    """The verdict on |measured − predicted| ≤ tolerance.

    A measurement that did not converge neither supports nor refutes a claim.
    """
    return _verdict(claim, measured, "=", predicted, tolerance, converged)


def judge_below(claim: str, measured: Any, limit: Any, converged: Any = True) -> Verdict:
    """The verdict on measured < limit."""
    return _verdict(claim, measured, "<", limit, 0.0, converged)


def judge_above(claim: str, measured: Any, limit: Any, converged: Any = True) -> Verdict:
    """The verdict on measured > limit."""
    return _verdict(claim, measured, ">", limit, 0.0, converged)


def _verdict(claim, measured, relation, predicted, tolerance, converged) -> Verdict:
    measured, predicted, tolerance = float(measured), float(predicted), float(tolerance)
    agreed = HOLDS if agrees(measured, relation, predicted, tolerance) else REFUTED
    outcome = agreed if converged else NOT_CONVERGED
    return Verdict(claim, measured, predicted, tolerance, outcome, relation)


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values; NaN and infinities, which JSON lacks, become text."""
    return {
        name: str(x) if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in verdict._asdict().items()
    }


def read(values: Mapping[str, Any]) -> Verdict:
    """A verdict from the JSON values of `plain`; without a relation it is an equality."""
    numbers = {name: float(values[name]) for name in ("measured", "predicted", "tolerance")}
    return Verdict(**(dict(values) | numbers))


def shown(verdict: Verdict) -> tuple[str, str]:
    """(measurement, relation and prediction) as tables show them: "0.3501", "= 0.35 ± 0.001".

    With four digits, or as many as resolve the tolerance and give the same comparison: the numbers
    in a table never contradict its outcome.
    """
    _, measured, predicted, tolerance, _, relation = verdict
    agreed, extra = agrees(measured, relation, predicted, tolerance), 0
    if tolerance > 0 and abs(predicted) > tolerance:
        extra = max(0, math.ceil(math.log10(abs(predicted) / tolerance)) - 3)
    for more in range(14):
        numbers = _number(measured, 4 + extra + more), _number(predicted, 4 + extra + more)
        allowed = f"{tolerance:.{2 + more}g}"
        left, right, width = (float(x.replace(",", "")) for x in (*numbers, allowed))
        if agrees(left, relation, right, width) == agreed:
            break
    required = f"{relation} {numbers[1]}" + (f" ± {allowed}" if tolerance > 0 else "")
    return numbers[0], required


def _number(x: float, digits: int) -> str:
    """Whole numbers in full, others to some significant digits."""
    return f"{x:,.0f}" if x.is_integer() and abs(x) < 1e15 else f"{x:.{digits}g}"
