"""Verdicts compare as they say, survive JSON with every digit, and show what they compared."""

import json
import math

import numpy as np
import pytest

import ufm
from ufm.runs import claims
from ufm.runs.claims import (
    HOLDS,
    NOT_CONVERGED,
    REFUTED,
    Verdict,
    agrees,
    judge,
    judge_above,
    judge_below,
)


def strict(text: str):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("relation", "holds"), [("=", (False, True, False)), ("<", (True, False, False)),
                            (">", (False, False, True))]
)  # fmt: skip
def test_a_relation_holds_on_its_side_of_the_prediction_alone(relation, holds):
    assert tuple(agrees(x, relation, 1.0) for x in (0.5, 1.0, 1.5)) == holds
    assert not agrees(math.nan, relation, 1.0, 10.0)
    assert not agrees(1.0, relation, math.nan, 10.0)


def test_the_bounds_of_a_tolerance_belong_to_it():
    assert agrees(1.25, "=", 1.0, 0.25)
    assert agrees(0.75, "=", 1.0, 0.25)
    assert not agrees(np.nextafter(1.25, 2), "=", 1.0, 0.25)


def test_an_unknown_relation_is_refused():
    with pytest.raises(ufm.Refused, match="got the relation '~'; allowed: =, <, >"):
        agrees(1.0, "~", 1.0)


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (judge("x", 1.05, 1, 0.1), HOLDS),
        (judge("x", 1.2, 1, 0.1), REFUTED),
        (judge("x", math.nan, 1, 0.1), REFUTED),
        (judge("x", 1.0, 1, 0.1, False), NOT_CONVERGED),
        (judge_below("x", -5, 0), HOLDS),
        (judge_below("x", 0, 0), REFUTED),
        (judge_below("x", -5, 0, False), NOT_CONVERGED),
        (judge_above("x", np.float32(0.5), 0), HOLDS),
        (judge_above("x", 0, 0), REFUTED),
        (judge_above("x", math.nan, 0), REFUTED),
    ],
)
def test_a_verdict_says_whether_its_numbers_stand_in_its_relation(verdict, outcome):
    assert verdict.outcome == outcome


def test_a_verdict_comes_back_from_json_with_every_bit():
    rng = np.random.default_rng(0)
    cases = [Verdict("x", *rng.normal(size=3), HOLDS, relation) for relation in claims.RELATIONS]
    for verdict in cases:
        assert claims.read(strict(json.dumps(claims.plain(verdict)))) == verdict


@pytest.mark.parametrize("measured", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_survives_json_without_words_that_json_lacks(measured):
    verdict = judge("x", measured, 1, 0.1)
    back = claims.read(strict(json.dumps(claims.plain(verdict))))
    assert repr(back) == repr(verdict)


def test_a_verdict_written_before_there_were_inequalities_is_an_equality():
    old = {"claim": "x", "measured": 1.0, "predicted": 1.0, "tolerance": 0.0, "outcome": HOLDS}
    assert claims.read(old) == judge("x", 1, 1, 0)


def test_what_is_shown_never_contradicts_the_outcome():
    """Measurements on either side of the limit, from a tenth of it down to the last bits."""
    rng = np.random.default_rng(1)
    offsets = [side * 10.0**-power for power in range(1, 14) for side in (1, -1)]
    for scale in 10.0 ** rng.uniform(-12, 8, 40):
        predicted, tolerance = scale * rng.normal(), scale * 10.0 ** rng.uniform(-9, 0)
        for off in offsets:
            edge = predicted + tolerance * (1 + off)
            for verdict in (
                judge("x", edge, predicted, tolerance),
                judge_below("x", predicted * (1 + off), predicted),
                judge_above("x", predicted * (1 + off), predicted),
            ):
                measured, required = claims.shown(verdict)
                relation, limit, *more = required.replace(",", "").replace("±", "").split()
                numbers = float(measured.replace(",", "")), relation, *map(float, (limit, *more))
                # Sixteen digits and more are not shown.
                slack = 1e-13 * (abs(predicted) + tolerance)
                near = abs(abs(verdict.measured - predicted) - verdict.tolerance) <= slack
                assert near or agrees(*numbers) == (verdict.outcome == HOLDS), verdict


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (judge("x", 11181642, 11181642, 0), ("11,181,642", "= 11,181,642")),
        (judge("x", 11181641, 11181642, 0), ("11,181,641", "= 11,181,642")),
        (judge("x", 1.3246564561, 1.3246563105, 1e-6), ("1.3246565", "= 1.3246563 ± 1e-06")),
        (judge_below("x", 9.99846e-06, 1e-5), ("9.998e-06", "< 1e-05")),
        (judge_below("x", 0.99999999e-5, 1e-5), ("9.9999999e-06", "< 1e-05")),
        (judge_above("x", 0.7323111, 0), ("0.7323", "> 0")),
    ],
)
def test_few_digits_are_shown_but_enough(verdict, expected):
    assert claims.shown(verdict) == expected
