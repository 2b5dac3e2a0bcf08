"""`ufm plot`: the table of a sweep as a figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ufm.check import Refused
from ufm.commands.shared import check_figure, refuse_others
from ufm.sweeps import run as sweeps

MARK = "drawn by ufm plot"  # in the metadata of a figure, which may then be replaced


@dataclass(frozen=True)
class Plot:
    """Draw one column of a sweep against another: a curve per cell, or a point per cell at its end.

    Two columns of the history, such as step and gap, are drawn as curves; the sweep must have been
    run with --history. Two other columns, such as lam_W and value, are drawn as points, hollow if
    the cell missed its tolerance. Cells that agree in --panel, --colour and --style look the same.

    Example: ufm plot runs/sweep -x step -y gap --panel d --colour lam_W
    """

    run: Annotated[Path, tyro.conf.Positional]
    """folder that `ufm sweep --out` wrote"""
    x: Annotated[str, tyro.conf.arg(aliases=["-x"])]
    """column of the horizontal axis"""
    y: Annotated[str, tyro.conf.arg(aliases=["-y"])]
    """column of the vertical axis"""
    panel: str | None = None
    """column with a panel for each of its values"""
    colour: str | None = None
    """column that determines the colours"""
    style: str | None = None
    """column that determines line styles or markers"""
    width: str = "icml_text"
    """width of the figure: icml, icml_text, neurips, jmlr, ieee, ieee_text, or inches"""
    figure: Path | None = None
    """path of the figure without .pdf; default: RUN_Y beside the folder"""

    def act(self) -> int:
        """Draw into a .pdf and a .png."""
        # matplotlib takes most of a second to import; few commands need it.
        from ufm import plots
        from ufm.report.studies import study

        refuse_others(self.run)
        table, _ = sweeps.load(self.run)
        if not table:
            raise Refused(
                f"got {self.run}, in which no cell is finished yet; allowed: a sweep with at least "
                "one finished cell"
            )
        stem = self.figure or self.run.with_name(f"{self.run.name}_{self.y}")
        check_figure(stem, MARK, "a figure of ufm plot")
        with plots.style():
            canvas = study(
                table, self.x, self.y, panel=self.panel, colour=self.colour, style=self.style,
                width=self._width(),
            )  # fmt: skip
            for path in plots.save(canvas, stem, {"Author": MARK}):
                print(f"drew {path}")
        return 0

    def _width(self) -> str | float:
        try:
            return float(self.width)
        except ValueError:
            return self.width
