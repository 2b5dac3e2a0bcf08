"""What is added to the pages while they are built, so that it cannot go stale.

Formulas become MathML, so that a reader's browser loads nothing; the help of every command, the
figures and the pages kept at the top of the repository are put in. A public name that is on no
page fails the build.
"""

import contextlib
import html
import importlib
import inspect
import io
import os
import pkgutil
import re
import textwrap
import typing
import zlib
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# Browsers know bold and double-struck letters only as letters of their own.
LETTERS = {r"\mathbb R": "ℝ", r"\mathbf 1": "𝟏"}
HELP = "<!-- help of every command -->"
WIDTH, NEWLINE = 88, "\n"
# Pages that live elsewhere in the repository, and where the site has them.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "figures/README.md": "figures/index.md",
}


def on_files(files: Files, config) -> Files:
    """Add the pages that live elsewhere, and the figures of the full forms."""
    for source, place in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    for path in sorted((ROOT / "figures").iterdir()):
        if path.suffix in (".png", ".gif", ".pdf", ".json") and "_quick" not in path.stem:
            files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, **_) -> str:
    """Put the help of the commands where it is asked for."""
    return text.replace(HELP, _help()) if HELP in text else text


def on_page_content(text: str, **_) -> str:
    r"""Replace what arithmatex marked as \(…\) or \[…\]."""

    def formula(found: re.Match) -> str:
        tag, opening, latex = found.groups()
        display: typing.Any = "inline" if opening == "(" else "block"
        latex = html.unescape(latex).strip()
        for command, letter in LETTERS.items():
            latex = latex.replace(command, letter)
        math = convert(latex, display=display)
        return f'<{tag} class="math">{math}</{tag}>'

    return FORMULA.sub(formula, text)


@event_priority(-100)  # after the inventory of the API pages is written
def on_post_build(config) -> None:
    """Refuse a site from which a public name is missing."""
    inventory = (Path(config["site_dir"]) / "objects.inv").read_bytes()
    lines = zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()
    missing = public_names() - {line.split()[0] for line in lines}
    if missing:
        raise PluginError(f"not in docs/api: {', '.join(sorted(missing))}")


def public_names() -> set[str]:
    """What `ufm` exports, and the functions and classes of its modules but the commands."""
    import ufm

    names = {f"ufm.{name}" for name in ufm.__all__}
    for found in pkgutil.iter_modules(ufm.__path__, "ufm."):
        if found.name in ("ufm.cli", "ufm.commands"):
            continue
        for name, thing in vars(importlib.import_module(found.name)).items():
            public = inspect.isfunction(thing) or inspect.isclass(thing)
            if public and thing.__module__ == found.name and not name.startswith("_"):
                names.add(f"{found.name}.{name}")
    return names


def _help() -> str:
    from ufm import cli

    os.environ |= {"COLUMNS": f"{WIDTH}", "NO_COLOR": "1"}
    parts = []
    for annotated in typing.get_args(cli.Command):
        name = typing.get_args(annotated)[1].name
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        lines = [_wrapped(line) for line in told.getvalue().strip().splitlines()]
        parts.append(f"## ufm {name}\n\n```text\n{NEWLINE.join(lines)}\n```\n")
    return NEWLINE.join(parts)


def _wrapped(line: str) -> str:
    """A line of help in the width of a page."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(line.rstrip(), WIDTH, subsequent_indent=indent) if line.strip() else ""
