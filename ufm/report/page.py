"""One self-contained page about any runs: their settings, results and verdicts.

`page` turns sections into HTML that loads nothing from elsewhere; `ufm.report.sections` makes
sections from runs on disk. Needs plotly and jinja2, the extra [report].
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe
import plotly.io
import plotly.offline

from ufm.runs import claims
from ufm.runs.claims import Verdict

PICTURES = {".png": "image/png", ".gif": "image/gif", ".svg": "image/svg+xml"}
MARK = b'<meta name="generator" content="ufm report">'  # by which a page is known as one
# The buttons above a plot that are left out: they would cover its title on a narrow screen.
BUTTONS = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "zoom3d", "pan3d",
           "orbitRotation", "tableRotation", "resetCameraLastSave3d"]  # fmt: skip
SYMBOL = re.compile(r"([α-ωΑ-Ω]|(?<!\w)[A-Za-z])_([A-Za-z]{1,3}|\d+)\b")
NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?|nan|-?inf")


class Table(NamedTuple):
    """Column heads, and rows of cells."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """The section of a page about one run.

    title, text: in words.  facts: settings, results and provenance, by name.
    verdicts: on its claims.  tables, plots: plotly figures.  pictures: files of figures.
    caption: of the pictures.
    """

    title: str
    text: str
    facts: Mapping[str, Any]
    verdicts: Sequence[Verdict] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Any] = ()
    pictures: Sequence[Path] = ()
    caption: str = ""


def page(sections: Sequence[Section], title: str) -> str:
    """The page as HTML, with styles, figures and plotly's script inside."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"picture": _picture, "number": number, "isnumber": NUMBER.fullmatch}
    environment.filters |= {"compared": claims.shown, "prose": prose}
    count = 0
    drawn: list[list[str]] = []
    for section in sections:
        drawn.append([])
        for figure in section.plots:
            drawn[-1].append(
                plotly.io.to_html(
                    figure, full_html=False, include_plotlyjs=False, div_id=f"plot{count}",
                    config={"displaylogo": False, "responsive": True,
                            "modeBarButtonsToRemove": BUTTONS}, auto_play=False,
                )
            )  # fmt: skip
            count += 1
    script = plotly.offline.get_plotlyjs() if count else ""
    template = environment.get_template("report.html")
    shown = list(zip(sections, drawn, strict=True))
    return template.render(title=title, shown=shown, plotly=script, outcomes=_outcomes(sections))


def _outcomes(sections: Iterable[Section]) -> dict[str, int]:
    all_of_them = [verdict.outcome for section in sections for verdict in section.verdicts]
    return {outcome: all_of_them.count(outcome) for outcome in dict.fromkeys(all_of_them)}


def _picture(path: Path) -> str:
    """The bytes of a figure as a data URL."""
    return f"data:{PICTURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def prose(text: str) -> markupsafe.Markup:
    """The text of a docstring as HTML: λ_W with a subscript, names in backticks as code."""
    safe = SYMBOL.sub(r"\1<sub>\2</sub>", str(markupsafe.escape(text)))
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))


def number(x: Any) -> str:
    """A value as text: floats with six digits."""
    return f"{x:.6g}" if isinstance(x, float) else str(x)
