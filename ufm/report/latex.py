"""A table in LaTeX, in the style of the package booktabs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# Heads of columns; other names are set as text.
HEADS = {
    "K": "$K$", "d": "$d$", "n": "$n$", "N": "$N$", "counts": "$n_k$", "lam_W": r"$\lambda_W$",
    "lam_H": r"$\lambda_H$", "lam_b": r"$\lambda_b$", "learning_rate": r"$\eta$",
    "momentum": r"$\beta$", "value": "$f$", "f_star": r"$f^\star$", "gap": "gap",
    "grad_norm": r"$\lVert\nabla f\rVert$", "norm_W": r"$\lVert W\rVert$",
    "norm_H": r"$\lVert H\rVert$", "norm_b": r"$\lVert b\rVert$", "nc1": r"$\mathcal{NC}_1$",
    "nc2": r"$\mathcal{NC}_2$", "nc3": r"$\mathcal{NC}_3$", "nc4": r"$\mathcal{NC}_4$",
    "lam_min": r"$\lambda_{\min}$",
}  # fmt: skip
ESCAPES = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]], note: str) -> str:
    """A tabular environment, which needs the package booktabs.

    Args:
        rows: one or more, with the same names in the same order.
        note: the text of a comment above it.
    """
    names = list(rows[0])
    numbers = {name: all(isinstance(row[name], int | float) for row in rows) for name in names}
    align = "".join("r" if numbers[name] else "l" for name in names)
    heads = " & ".join(HEADS.get(name, text(name.replace("_", " "))) for name in names)
    lines = [f"% {' '.join(note.split())}", f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    lines += [f"{heads} \\\\", "\\midrule"]
    lines += [" & ".join(cell(row[name]) for name in names) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def cell(x: Any) -> str:
    """A number with three digits, in scientific notation where it is small or large; else text."""
    if isinstance(x, bool) or not isinstance(x, int | float):
        return text(str(x))
    if isinstance(x, int):
        return f"${x}$"
    if not math.isfinite(x):
        return "--" if math.isnan(x) else ("$\\infty$" if x > 0 else "$-\\infty$")
    digits, _, power = f"{x:.3g}".partition("e")
    if power or (x and abs(x) < 1e-2):
        digits, _, power = f"{x:.2e}".partition("e")
        digits = digits.rstrip("0").rstrip(".")
        return f"${digits}\\times10^{{{int(power)}}}$".replace("$1\\times", "$")
    return f"${digits}$"


def text(word: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(ESCAPES.get(c, c) for c in word)
