"""The contact sheet tells each figure's claim, source, command and verdicts, as they are stored."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import gallery, papers, runner, tables
from experiments.verdicts import NOT_CONVERGED, judge, judge_above, judge_below
from ufm import plots
from ufm.runs import record
from ufm.runs.claims import agrees

README = Path(__file__).resolve().parent.parent / "README.md"
ROOT, FIGURES = README.parent, README.parent / "figures"
DOC = """Title: with a colon.

Claim. First line
of the claim.

    a formula

Source. Somebody 2021.

Reproduces. Their figure 1.

Shown. (a) This.

Refuted by a counterexample.
"""
MANIFEST = {
    "git": {"commit": "c0ffee", "dirty": False}, "config_sha256": "beef", "wall_seconds": 123.456,
    "config": {"K": 3},
}  # fmt: skip
VERDICTS = [
    judge("a | b", 1.0000001234567891, 1, 1e-6), judge("far", 2, 1, 0.5),
    judge_below("small", 0.1, 0.3), judge_above("positive", 0.25, 0),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """Figures of one fake script, with a form that is quick."""
    script = ModuleType("experiments.c99_fake", DOC)
    told = gallery.told(script, MANIFEST, VERDICTS)
    home = tmp_path / "figures"
    for stem in ("c99_fake", "c99_fake_quick"):
        about = gallery.write_verdicts(home / stem, told)
        for suffix in ("", "_more"):
            plots.save(Figure(figsize=(3, 1)), home / (stem + suffix), about)
    gallery.write_sheet(home)
    return home


def test_a_docstring_is_split_into_its_paragraphs():
    told = gallery.about(ModuleType("name", DOC))
    assert told == {
        "title": "Title: with a colon",
        "claim": "First line\nof the claim.\n\n    a formula",
        "source": "Somebody 2021.",
        "reproduces": "Their figure 1.",
        "shown": "(a) This.",
        "refuted": "a counterexample.",
    }


def test_verdicts_are_stored_as_they_were_judged(folder):
    told = json.loads((folder / "c99_fake.json").read_text())
    assert gallery.verdicts_of(told) == VERDICTS
    assert told["made"]["command"] == "python -m experiments.c99_fake"
    assert told["made"]["seconds"] == 123


def test_the_sheet_has_every_figure_of_the_full_form_and_its_verdicts(folder):
    text = (folder / "README.md").read_text()
    assert re.findall(r'<img src="([^"]+)"', text) == ["c99_fake.png", "c99_fake_more.png"]
    for words in ("Somebody 2021.", "Their figure 1.", "`python -m experiments.c99_fake`, 2 min",
                  "| a \\| b | 1 | = 1 ± 1e-06 | holds |", "| small | 0.1 | < 0.3 | holds |",
                  "| positive | 0.25 | > 0 | holds |", "holds: 3, refuted: 1"):  # fmt: skip
        assert words in text
    assert "*Figure c99. Title: with a colon.* (a) This. holds: 3" in text
    assert "Nearest to its limit: far, 1 of 0.5 allowed." in text


def test_a_figure_carries_its_claim_configuration_and_commit(folder):
    with Image.open(folder / "c99_fake.png") as image:
        assert image.info["Title"] == "c99_fake: Title: with a colon"
        assert image.info["Subject"] == "First line of the claim. a formula"
        assert image.info["Keywords"] == "config beef, commit c0ffee"
    assert b"config beef, commit c0ffee" in (folder / "c99_fake.pdf").read_bytes()


def test_a_figure_whose_full_form_was_never_drawn_is_there_in_its_quick_form(folder):
    (folder / "c99_fake.json").unlink()
    text = gallery.sheet(folder)
    shown = re.findall(r'<img src="([^"]+)"', text)
    assert shown == ["c99_fake_quick.png", "c99_fake_quick_more.png"]
    assert "`python -m experiments.c99_fake --quick`, 2 min in the quick form" in text


def test_the_committed_sheet_is_that_of_the_committed_verdicts():
    assert (FIGURES / "README.md").read_text() == gallery.sheet(FIGURES)
    told = gallery.listed(FIGURES)
    assert {path.stem for path in FIGURES.glob("c[0-9][0-9]_*.json")} - told.keys() <= {
        f"{stem}_quick" for stem in told if stem.startswith("c")
    }
    for stem, found in told.items():
        assert {"title", "claim", "source", "made"} <= found.keys(), stem


# The committed verdicts

STORED = sorted(FIGURES.glob("[cn][0-9][0-9]_*.json"))


def stored(path: Path):
    return gallery.verdicts_of(json.loads(path.read_text()))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_numbers_lead_to_the_stored_outcome(path):
    decided = [x for x in stored(path) if x.outcome != NOT_CONVERGED]
    assert decided
    for _, measured, predicted, tolerance, outcome, relation in decided:
        assert agrees(measured, relation, predicted, tolerance) == (outcome == "holds")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_caption_never_tells_more_than_is_allowed_where_all_verdicts_hold(path):
    found = json.loads(path.read_text())
    text = gallery.caption(path.stem, found)
    nearest = re.search(r"Nearest to its limit: .*, (\S+) of (\S+) allowed\.$", text)
    if {x.outcome for x in stored(path)} == {"holds"} and nearest:
        assert float(nearest[1]) <= float(nearest[2])


@pytest.mark.parametrize("name", [*runner.names("c"), *runner.names("n")])
def test_stored_results_judged_again_give_the_stored_verdicts(name):
    script = runner.module(name)
    config = script.Config() if name[0] == "c" else script.Config.quick()
    data, stem = runner.place(name, config)
    found, kept = (
        script.check(config, record.load_run(data).arrays),
        stored(stem.with_suffix(".json")),
    )
    assert [(x.claim, x.relation, x.outcome) for x in found] == [
        (x.claim, x.relation, x.outcome) for x in kept
    ]
    # Measurements are sums and factorisations in float64: on another machine they round otherwise.
    for mine, theirs in zip(found, kept, strict=True):
        assert mine[1:4] == pytest.approx(theirs[1:4], rel=1e-9, abs=1e-12), mine.claim


# The papers


def test_the_page_of_papers_is_that_of_the_committed_verdicts():
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert page == papers.page(gallery.listed(FIGURES))


def test_every_paper_that_a_script_names_is_listed_with_it_and_no_other():
    named = {
        (paper, name[:3])
        for name in (*runner.names("c"), *runner.names("n"))
        for paper in gallery.papers(runner.module(name))
    }
    assert named == {(x, name) for x, paper in papers.PAPERS.items() for name in paper.checked}


@pytest.mark.parametrize("name", papers.PAPERS)
def test_a_paper_is_held_against_verdicts_that_there_are(name):
    told = {stem[:3]: found for stem, found in gallery.listed(FIGURES).items()}
    for script, parts in papers.PAPERS[name].checked.items():
        for part in parts or ("",):
            assert papers.chosen(told[script]["verdicts"], (part,)), (script, part)


# The README


def verdicts() -> dict:
    return {stem: gallery.verdicts_of(told) for stem, told in gallery.listed(FIGURES).items()}


def test_the_tables_of_the_readme_are_those_of_the_stored_verdicts():
    text = README.read_text(encoding="utf-8")
    assert text == tables.written(text, verdicts())
    assert sorted(found[1] for found in tables.TABLE.finditer(text)) == sorted(tables.CHOSEN)
    assert "| holds |" not in tables.TABLE.sub("", text)
    for script, part in (row for rows in tables.CHOSEN.values() for row in rows):
        (fitting,) = [rows for stem, rows in verdicts().items() if stem.startswith(script)]
        assert sum(part in verdict.claim for verdict in fitting) == 1, part


def test_a_new_verdict_is_written_into_the_readme_and_the_text_around_it_stays(folder, monkeypatch):
    monkeypatch.setattr(tables, "CHOSEN", {"mine": (("c99", "far"), ("c99", "small"))})
    around = "Before.\n\n{}\n\nAfter.\n"
    readme = folder.parent / "README.md"
    readme.write_text(around.format("<!-- verdicts: mine -->\nold\n<!-- end of verdicts -->"))
    gallery.write_sheet(folder)
    lines = (
        "<!-- verdicts: mine -->",
        "holds: 3, refuted: 1 ([all](figures/README.md)); some of them:", "",
        "| | claim | measured | predicted | |", "|---|---|---|---|---|",
        "| c99 | far | 2 | = 1 ± 0.5 | refuted |", "| c99 | small | 0.1 | < 0.3 | holds |",
        "<!-- end of verdicts -->",
    )  # fmt: skip
    assert readme.read_text() == around.format("\n".join(lines))


@pytest.mark.parametrize(("part", "count"), [("absent", 0), ("a", 3)])
def test_a_row_that_is_of_no_verdict_or_of_several_says_so(monkeypatch, part, count):
    monkeypatch.setattr(tables, "CHOSEN", {"mine": (("c99", part),)})
    text = "<!-- verdicts: mine -->\n<!-- end of verdicts -->"
    row = f"| c99 | {part} |  |  | {count} verdicts |"
    assert row in tables.written(text, {"c99_fake": VERDICTS}).splitlines()
