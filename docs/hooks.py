"""What is added to the pages while they are built, so that it cannot go stale.

Formulas become MathML, with the letters that they need of a font for mathematics inside the style
sheet, so that a reader's browser loads nothing from elsewhere. The build inserts the help of every
command, the figures, the modules without a page of their own, and the pages that the repository
keeps at its top. A public name without a docstring, which is on no page, fails the build.
"""

import base64
import contextlib
import functools
import html
import importlib.util
import io
import os
import re
import typing
import zlib
from pathlib import Path

import griffe
from fontTools import subset, ttLib
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# Browsers know bold and double-struck letters only as letters of their own.
LETTERS = {r"\mathbb R": "ℝ", r"\mathbf 1": "𝟏"}
HELP, REST = "<!-- help of every command -->", "<!-- every other module -->"
WIDTH, NEWLINE = 88, "\n"
# Browsers draw the variables of a formula, written a or α, with these italic letters.
ITALIC = (*range(0x1D434, 0x1D468), 0x210E, *range(0x1D6E2, 0x1D71C))
MARKS = set("√")  # the characters of all formulas; a root's sign is in no element
# Pages that live elsewhere in the repository, and where the site has them.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "figures/README.md": "figures/index.md",
}


def on_files(files: Files, config) -> Files:
    """Add the pages that live elsewhere, and the figures, full forms before quick ones."""
    for source, place in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    drawn = {path.stem for path in (ROOT / "figures").glob("*.json")}
    for path in sorted((ROOT / "figures").iterdir()):
        stem, quick, _ = path.stem.partition("_quick")
        if path.suffix in (".png", ".gif", ".pdf", ".json") and not (quick and stem in drawn):
            files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, **_) -> str:
    """Put the help of the commands, and the modules without a page, where they are asked for."""
    for mark, written in ((HELP, _help), (REST, _rest)):
        text = text.replace(mark, written()) if mark in text else text
    # The links of a page lead somewhere in the repository, too.
    for place, here in (("../figures/README.md", "figures/index.md"), ("../figures/", "figures/")):
        text = text.replace(f"]({place}", f"]({here}")
    return text


def on_page_content(text: str, **_) -> str:
    r"""Replace what arithmatex marked as \(…\) or \[…\]."""

    def formula(found: re.Match) -> str:
        tag, opening, latex = found.groups()
        display: typing.Any = "inline" if opening == "(" else "block"
        latex = html.unescape(latex).strip()
        for command, letter in LETTERS.items():
            latex = latex.replace(command, letter)
        math = convert(latex, display=display)
        MARKS.update(html.unescape(re.sub(r"<[^>]*>", "", math)))
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
    sheet = Path(config["site_dir"]) / "style" / "pages.css"
    sheet.write_text(_font() + sheet.read_text(encoding="utf-8"), encoding="utf-8")


def _font() -> str:
    """STIX Two Math (SIL Open Font License) as a style sheet, the letters of our formulas only."""
    # The package is found, not imported: it would load the whole font.
    package = importlib.util.find_spec("ziamath")
    if package is None or package.origin is None:
        raise PluginError('no font for the formulas: pip install -e ".[docs]"')
    font = ttLib.TTFont(Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf")
    options = subset.Options(layout_features=["math", "ssty", "dtls", "flac"], flavor="woff")
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes={*map(ord, MARKS), *range(0x20, 0x7F), *ITALIC})
    cutter.subset(font)
    font.flavor = "woff"
    packed = io.BytesIO()
    font.save(packed)
    data = base64.b64encode(packed.getvalue()).decode()
    face = f'font-family: "STIX Two Math subset"; src: url(data:font/woff;base64,{data})'
    return f'@font-face {{ {face} format("woff"); }}\n'


def public_names() -> set[str]:
    """What `ufm` exports, and the functions and classes of its modules."""
    package, found = _package()
    names = {f"ufm.{name}" for name in package.exports or ()}
    for module in found:
        for name, thing in module.members.items():
            public = not name.startswith("_") and not thing.is_alias
            if public and (thing.is_function or thing.is_class):
                names.add(thing.path)
    return names


@functools.cache
def _package() -> tuple[griffe.Module, list[griffe.Module]]:
    """`ufm` as it is written, and its modules but the command line's, which has its own page."""
    package = typing.cast(griffe.Module, griffe.load("ufm", search_paths=[ROOT]))
    found, left = [], [package]
    while left:
        module = left.pop()
        found.append(module)
        # What a module imports is its member, too, as an alias.
        inside = [x for x in module.modules.values() if not x.is_alias]
        inside = [x for x in inside if x.path not in ("ufm.cli", "ufm.commands")]
        left += sorted(inside, key=lambda x: x.name, reverse=True)
    return package, found


def _rest() -> str:
    """The modules that no page of docs/api names."""
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    named = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    return "\n\n".join(f"::: {x.path}" for x in _package()[1] if x.path not in named)


def _help() -> str:
    from ufm import cli
    from ufm.commands import menu

    os.environ |= {"COLUMNS": f"{WIDTH}", "NO_COLOR": "1"}
    parts = []
    for annotated in typing.get_args(menu.Command):
        name = typing.get_args(annotated)[1].name
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
        parts.append(f"## ufm {name}\n\n```text\n{told.getvalue().strip()}\n```\n")
    return NEWLINE.join(parts)
