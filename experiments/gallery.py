"""The text below a figure: the claim, its source, the verdicts, and how it was made.

Every run of a script writes <figure>.json beside its figures; the contact sheet figures/README.md
and the tables of verdicts in the README are made of these files alone. Verdicts are stored with all
the digits they were judged by. They are functions of stored results: drawn again on one machine
they keep every byte, on another the last digits of a measurement may differ by rounding.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from experiments import papers as listing
from experiments import tables
from experiments.tables import cells, counted, escaped
from ufm.runs import claims
from ufm.runs.claims import Verdict

KEYS = ("Claim", "Source", "Reproduces", "Shown", "Refuted by")
PIXELS = 105  # of the sheet, for an inch of a figure
HEAD = """# Figures

Each figure tests a claim against measurements. `make figures` redraws all of them from the
committed results. `make experiments` computes the full forms again, {total} in all on two CPU
cores; if it is interrupted, run it again and it resumes. Both commands rewrite this page.

The metadata of every PDF and PNG contain the claim, the hash of the configuration and the commit
that computed the results. The `.json` file of the same name repeats them and adds all verdicts with
the numbers on which they rest: `= x ± t` requires |measured − x| ≤ t. Names that end in `_quick`
are the small forms of `--quick`.

"""


def about(script: Any) -> dict[str, str]:
    """Title and paragraphs of a script's docstring: claim, source, what it reproduces."""
    title, _, text = (script.__doc__ or "").strip().partition("\n")
    _, *pieces = re.split(rf"\n({'|'.join(KEYS)})\.? ", text)
    words = zip(pieces[::2], pieces[1::2], strict=True)
    parts = {key.lower().removesuffix(" by"): told.strip() for key, told in words}
    return {"title": title.strip().rstrip("."), **parts}


def papers(script: Any) -> tuple[str, ...]:
    """arXiv ids of the papers that a script's docstring names."""
    return tuple(sorted(set(re.findall(r"\b\d{4}\.\d{4,5}\b", script.__doc__ or ""))))


def told(script: Any, manifest: Mapping[str, Any], verdicts: Iterable) -> dict[str, Any]:
    """What is written beside the figures of a run."""
    git = manifest["git"]
    made = {
        "command": f"python -m {script.__name__}",
        "commit": git["commit"],
        "changed": git["dirty"],
        "config_sha256": manifest["config_sha256"],
        "seconds": float(f"{manifest['wall_seconds']:.3g}"),
    }
    rows = [claims.plain(verdict) for verdict in verdicts]
    return about(script) | {"config": manifest["config"], "made": made, "verdicts": rows}


def write_verdicts(stem: Path, told: Mapping[str, Any]) -> dict[str, str]:
    """Write them to stem.json; returns the metadata of the figures that belong to them."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    stem.with_name(f"{stem.name}.json").write_text(text, encoding="utf-8")
    made = told["made"]
    commit = f"{made['commit']}{' with changes' if made['changed'] else ''}"
    return {
        "Title": f"{stem.name}: {told['title']}",
        "Subject": " ".join(told.get("claim", "").split()),
        "Keywords": f"config {made['config_sha256']}, commit {commit}",
    }


def verdicts_of(told: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts that a figure's JSON holds."""
    return [claims.read(row) for row in told["verdicts"]]


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """What is stored of every figure, by its stem: the full form, or else the quick one."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if "made" in told:
            found[path.stem] = told
    return {stem: x for stem, x in found.items() if stem.removesuffix("_quick") not in found
            or not stem.endswith("_quick")}  # fmt: skip


def write_sheet(folder: Path) -> None:
    """Write figures/README.md; beside the folder docs/papers.md and the tables of the README."""
    (folder / "README.md").write_text(sheet(folder), encoding="utf-8")
    page = folder.parent / "docs" / "papers.md"
    if page.is_file():
        page.write_text(listing.page(listed(folder)), encoding="utf-8")
    readme = folder.parent / "README.md"
    if readme.is_file():
        verdicts = {stem: verdicts_of(told) for stem, told in listed(folder).items()}
        text = tables.written(readme.read_text(encoding="utf-8"), verdicts)
        readme.write_text(text, encoding="utf-8")


def sheet(folder: Path) -> str:
    """The contact sheet as Markdown: a table of what reproduces what, then every figure."""
    all_told = listed(folder)
    # `make experiments` leaves out the networks, whose full forms take hours or an accelerator.
    full = [x["made"]["seconds"] for stem, x in all_told.items()
            if stem[0] == "c" and not stem.endswith("_quick")]  # fmt: skip
    lines = [HEAD.format(total=_time(sum(full))) + "| | reproduces or extends | verdicts | takes |"]
    lines.append("|---|---|---|---|")
    for stem, found in all_told.items():
        row = (f"[{_short(stem)}](#{_short(stem)})", _line(found.get("reproduces", "–")),
               counted(verdicts_of(found)), _taken(stem, found))  # fmt: skip
        lines.append(f"| {' | '.join(row)} |")
    for stem, found in all_told.items():
        lines += ["", *_entry(folder, stem, found)]
    return "\n".join(lines) + "\n"


def _entry(folder: Path, stem: str, found: Mapping[str, Any]) -> list[str]:
    """Heading, figures with their caption, claim, source, command, verdicts."""
    made = found["made"]
    own = re.compile(rf"{re.escape(stem)}(_(?!quick)\w+)?")
    pictures = [path for path in sorted(folder.iterdir()) if own.fullmatch(path.stem)
                and path.suffix in (".png", ".gif")]  # fmt: skip
    # An anchor of its own: generators disagree on what letters beyond ASCII become in one.
    lines = [f'<a id="{_short(stem)}"></a>', "", f"## {_short(stem)}: {found['title']}", ""]
    for path in pictures:
        with Image.open(path) as image:
            wide, inch = image.size[0], float(image.info.get("dpi", (110, 110))[0])
        width = min(round(wide / inch * PIXELS), 720)
        lines += [f'<img src="{path.name}" alt="{path.stem}" width="{width}">', ""]
    lines += [caption(stem, found), "", f"**Claim.** {found.get('claim', '')}"]
    for key in ("source", "reproduces"):
        if key in found:
            lines += ["", f"**{key.capitalize()}.** {found[key]}"]
    command = made["command"] + (" --quick" if stem.endswith("_quick") else "")
    lines += ["", f"**Command.** `{command}`, {_taken(stem, found)}.", ""]
    verdicts = verdicts_of(found)
    rows = ["| claim | measured | predicted | |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(cells(verdict))} |" for verdict in verdicts]
    summary = f"<summary>{counted(verdicts)}</summary>"
    return [*lines, '<details markdown="1">', summary, "", *rows, "", "</details>"]


def caption(stem: str, found: Mapping[str, Any]) -> str:
    """What is shown, how many verdicts hold, and which came nearest to its limit."""
    words = _line(found["shown"]).replace("*", "\\*") + " " if "shown" in found else ""
    verdicts = verdicts_of(found)
    text = f"*Figure {_short(stem)}. {found['title']}.* {words}{counted(verdicts)}."
    limited = [(error, limit, x.claim) for x in verdicts for error, limit in _used(x)]
    if not limited:
        return text
    error, limit, claim = max(limited, key=lambda row: row[0] / row[1])
    return f"{text} Nearest to its limit: {escaped(claim)}, {error:.2g} of {limit:.2g} allowed."


def _used(verdict: Verdict) -> list[tuple[float, float]]:
    """[(error, what is allowed of it)] of an equality with a tolerance, an error below a limit."""
    _, measured, predicted, tolerance, _, relation = verdict
    if not math.isfinite(measured):
        return []
    if relation == "=" and tolerance > 0:
        return [(abs(measured - predicted), tolerance)]
    return [(measured, predicted)] if relation == "<" and predicted > 0 else []


def _short(stem: str) -> str:
    return stem.split("_")[0]


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _taken(stem: str, found: Mapping[str, Any]) -> str:
    quick = " in the quick form" if stem.endswith("_quick") else ""
    return _time(found["made"]["seconds"]) + quick


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
