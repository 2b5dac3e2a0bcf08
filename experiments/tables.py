"""Tables of verdicts in Markdown, and which of them are in the README.

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
        ("c01", "N=50000: f, nats"),
        ("c02", "K=20, d=24, n=2: exponent of ‖W‖"),
        ("c05", "K=10, d=12, n=3: worst relative error of the smallest nonzero eigenvalue"),
        ("c06", "K=2, d=2, n=10: worst relative error of log ρ, ηλ_max < 2"),
        ("c07", "K=7: orbits of index 0"),
        ("c08", "share of strict saddles"),
        ("c09", "K=4, d=5: worst error of"),
        ("c10", "d = K−1: spurious local minima"),
        ("c10", "d = K−2: share of K ≥ 5 with a spurious"),
        ("c11", "found and not on the list"),
        ("c12", "focal 2: worst error of margin"),
        ("c13", "layer-peeled: ratios at which the minority merged"),
        ("c14", "regression, 5 decays"),
        ("c16", "share local minimisers by second-order conditions"),
        ("c16", "9:5:3:1, d = K: share of starts caught"),
        ("c17", "K=6, d=3: relative error of the octahedron"),
    ),
    "networks": (
        ("n06", "ResNet: training error"),
        ("n06", "ResNet: NC1 at the end / at"),
        ("n06", "ResNet: test error"),
        ("n06", "ResNet: NC1 of training images / of test"),
        ("n06", "ResNet: 1 − R² of log NC1"),
        ("n06", "ResNet: ‖W‖"),
        ("n01", "SGD: NC1 at the end"),
        ("n02", "MLP, L-BFGS: ‖W‖"),
        ("n02", "MLP, L-BFGS: certified gap"),
        ("n03", "fixed, d=K: test error"),
        ("n04", "rank correlation of width and NC1"),
        ("n05", "detection error"),
        ("n05", "transfer error"),
        ("n07", "ratio 10: cosine of two minority rows"),
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
    of = {script: _of(script, verdicts) for script, _ in CHOSEN[name]}
    kind = CHOSEN[name][0][0][0]  # c, or n: of networks
    total = counted(_of(kind, verdicts))
    lines = [f"<!-- verdicts: {name} -->", f"{total} ([all](figures/README.md)); some of them:", ""]
    lines += ["| | claim | measured | predicted | |", "|---|---|---|---|---|"]
    for script, part in CHOSEN[name]:
        found = [verdict for verdict in of[script] if part in verdict.claim]
        missing = escaped(part), "", "", f"{len(found)} verdicts"
        row = cells(found[0]) if len(found) == 1 else missing
        lines.append(f"| {' | '.join((script, *row))} |")
    return "\n".join([*lines, "<!-- end of verdicts -->"])


def _of(script: str, verdicts: Mapping[str, Sequence[Verdict]]) -> Sequence[Verdict]:
    """The verdicts of the scripts whose names begin so, such as "c01" or "c"."""
    return [row for stem, rows in verdicts.items() if stem.startswith(script) for row in rows]
