"""`ufm report`: one page about any runs."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from ufm.check import Refused
from ufm.runs import storage


@dataclass(frozen=True)
class Report:
    """Write one self-contained HTML page about runs: verdicts, figures, tables, interactive plots.

    PATH is the folder of a run of descend, census, verify or sweep, or of an experiment; the .json
    file of an experiment's verdicts; or a folder that holds some of these, like figures/ or runs/.
    The page loads nothing from elsewhere. Needs pip install "ufm[report]".

    Example: ufm report runs/first runs/atlas --out report.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """runs to report on, in this order"""
    out: Path = Path("report.html")
    """the page to write, .html; an earlier page is replaced, any other file is left alone"""
    title: str = "The landscape of neural collapse"
    """title of the page"""

    def act(self) -> int:
        """Read every run and write the page."""
        try:
            from ufm.report import page as report
            from ufm.report import sections
        except ModuleNotFoundError as error:
            raise Refused(
                f"ufm report needs {error.name}, which is not installed: pip install "
                '"plotly>=6.0" "jinja2>=3.1", or install ufm with its extra [report]'
            ) from None
        if not self.runs:
            raise Refused("got no run; allowed: one or more folders of runs")
        if self.out.suffix not in (".html", ".htm"):
            raise Refused(f"got --out {self.out}; allowed: a name that ends in .html")
        storage.check_replaceable(self.out, report.MARK, "a page of ufm report")
        shown = [section for run in self.runs for section in sections.read(run)]
        text = report.page(shown, self.title)
        folder = self.out.absolute().parent
        storage.write(folder, self.out.name, text.encode())
        counted = f"{len(shown)} section{'s' * (len(shown) != 1)}"
        print(f"wrote {self.out}: {counted}, {len(text.encode()) / 1e6:.1f} MB", file=sys.stderr)
        return 0
