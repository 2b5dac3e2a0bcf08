"""Tables of verdicts in Markdown, and which of them stand in the README.

The README has a table between <!-- verdicts: NAME --> and <!-- end of verdicts -->. Its rows are
chosen here and written by the gallery, so that they show what is stored.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ufm.runs.claims import HOLDS, Verdict, shown

# (script, part of the claim that no other verdict of the script has).
CHOSEN = {
    "model": (
        ("c01", "SGD, momentum: worst certified gap"),
        ("c01", "GD: decay of log NC1"),
        ("c01", "N=50000: f, nats"),
        ("c01", "N=50000: ‖W‖"),
        ("c02", "K=20, d=24, n=2: K²nλ_Wλ_H at which W vanishes"),
        ("c02", "K=20, d=24, n=2: exponent of ‖W‖"),
        ("c03", "K=4, d=3: farthest feature from its corner"),
        ("c04", "index at the start"),
        ("c04", "worst error of an eigenvalue at the end"),
        ("c05", "K=10, d=12, n=3: worst relative error of the smallest nonzero eigenvalue"),
        ("c06", "K=2, d=2, n=10: worst relative error of log ρ, ηλ_max < 2"),
        ("c07", "K=7: partitions"),
        ("c07", "K=7: orbits of index 0"),
        ("c08", "share of strict saddles"),
        ("c08", "without a way down at d = K−1"),
        ("c08", "deepest eigenvalue below λ₋"),
        ("c09", "K=4, d=5: worst error of"),
        ("c09", "K=4, d=5: GD: runs"),
        ("c10", "d = K−1: spurious local minima"),
        ("c10", "d = K−2: share of K ≥ 5 with a spurious"),
        ("c10", "share of K ≥ 6 with a spurious local minimum"),
        ("c11", "on the list and not found"),
        ("c11", "found and not on the list"),
        ("c11", "d < K−1: spurious minima"),
        ("c11", "worst error of the most cosine"),
        ("c12", "focal 2: worst error of margin"),
        ("c12", "binary: worst error of condition number"),
        ("c12", "squared: worst relative error of log ρ"),
        ("c12", "condition number of ∇²f rises"),
        ("c12", "condition number of WᵀSW falls"),
        ("c13", "plain, ratios 1 … 10000: worst error of minority p_own − p_other"),
        ("c13", "layer-peeled: ratios at which the minority merged"),
        ("c13", "3 + 7 classes of 500 and 100: threshold"),
        ("c13", "SELI, λ ≤"),
        ("c14", "tags: worst error of a multiple"),
        ("c14", "mixtures: worst error of a multiple"),
        ("c14", "growth of a logit's distance"),
        ("c14", "regression, 5 decays"),
        ("c15", "binary, d ≥ K: 204"),
        ("c15", "tag sets: worst relative error"),
        ("c15", "binary, K=6, d = K−1"),
    ),
    "networks": (
        ("n06", "ResNet: training error"),
        ("n06", "ResNet: test error"),
        ("n06", "ResNet: NC1 at the end / at"),
        ("n06", "ResNet: NC3 at the end / at"),
        ("n06", "ResNet: NC1 of training images / of test images"),
        ("n06", "ResNet: 1 − R² of log NC1"),
        ("n06", "MLP: 1 − R² of log NC1"),
        ("n06", "ResNet: ‖W‖"),
        ("n01", "SGD: NC1 at the end"),
        ("n01", "L-BFGS: NC1 at the end"),
        ("n02", "MLP, L-BFGS: ‖W‖"),
        ("n02", "MLP, L-BFGS: certified gap"),
        ("n02", "ResNet, SGD: margin"),
        ("n03", "fixed, d = K: parameters"),
        ("n03", "fixed, d=K: test error"),
        ("n04", "rank correlation of width and NC1"),
        ("n05", "detection error"),
        ("n05", "transfer error"),
        ("n07", "ratio 10: cosine of two minority rows"),
        ("n07", "test error of the minority"),
    ),
}
TABLE = re.compile(r"<!-- verdicts: (\w+) -->\n.*?<!-- end of verdicts -->", re.DOTALL)


def cells(verdict: Verdict) -> tuple[str, str, str, str]:
    """A verdict as cells of a Markdown table: claim, measurement, prediction, outcome."""
    return escaped(verdict.claim), *shown(verdict), verdict.outcome


def escaped(claim: str) -> str:
    """A claim as Markdown has it in a cell."""
    return claim.replace("|", "\\|").replace("*", "\\*")


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts there are of each outcome, in words."""
    counts = Counter(verdict.outcome for verdict in verdicts)
    if set(counts) == {HOLDS}:
        return f"All {len(verdicts)} verdicts hold" if len(verdicts) > 1 else "Its verdict holds"
    return ", ".join(f"{outcome}: {count}" for outcome, count in counts.items())


def written(text: str, verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """A page with its tables written anew from the verdicts of every figure, by its stem.

    A row that fits no verdict, or several, as while results of a changed script are still to be
    computed, says how many.
    """
    return TABLE.sub(lambda found: _table(found[1], verdicts), text)


def _table(name: str, verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    scripts = {script for script, _ in CHOSEN[name]}
    of = {script: _of(script, verdicts) for script in sorted(scripts)}
    total = counted([verdict for rows in of.values() for verdict in rows])
    lines = [f"<!-- verdicts: {name} -->", f"{total} (`figures/*.json`); some of them:", ""]
    lines += ["| | claim | measured | predicted | |", "|---|---|---|---|---|"]
    for script, part in CHOSEN[name]:
        found = [verdict for verdict in of[script] if part in verdict.claim]
        missing = escaped(part), "", "", f"{len(found)} verdicts"
        row = cells(found[0]) if len(found) == 1 else missing
        lines.append(f"| {' | '.join((script, *row))} |")
    return "\n".join([*lines, "<!-- end of verdicts -->"])


def _of(script: str, verdicts: Mapping[str, Sequence[Verdict]]) -> Sequence[Verdict]:
    """The verdicts of a script, by its number."""
    return [row for stem, rows in verdicts.items() if stem.startswith(script) for row in rows]
