"""The contact sheet tells each figure's claim, source, command and verdicts, as they are stored."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import gallery
from experiments.verdicts import judge
from ufm import plots

FIGURES = Path(__file__).resolve().parent.parent / "figures"
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


@pytest.fixture
def folder(tmp_path) -> Path:
    """Figures of one fake script, with a form that is quick."""
    script = ModuleType("experiments.c99_fake", DOC)
    verdicts = [judge("a | b", 1.0000001234, 1, 1e-6), judge("far", 2, 1, 0.5)]
    told = gallery.told(script, MANIFEST, verdicts)
    for stem in ("c99_fake", "c99_fake_quick"):
        about = gallery.write_verdicts(tmp_path / stem, told)
        for suffix in ("", "_more"):
            plots.save(Figure(figsize=(3, 1)), tmp_path / (stem + suffix), about)
    gallery.write_sheet(tmp_path)
    return tmp_path


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


def test_verdicts_are_stored_with_the_digits_that_mean_something(folder):
    told = json.loads((folder / "c99_fake.json").read_text())
    assert [x["measured"] for x in told["verdicts"]] == [1.0, 2.0]
    assert told["made"]["command"] == "python -m experiments.c99_fake"
    assert told["made"]["seconds"] == 123


def test_the_sheet_has_every_figure_of_the_full_form_and_its_verdicts(folder):
    text = (folder / "README.md").read_text()
    assert re.findall(r'<img src="([^"]+)"', text) == ["c99_fake.png", "c99_fake_more.png"]
    for words in ("Somebody 2021.", "Their figure 1.", "`python -m experiments.c99_fake`, 2 min",
                  "| a \\| b | 1 | 1 | 1e-06 | holds |", "holds: 1, refuted: 1"):  # fmt: skip
        assert words in text
    assert "*Figure c99. Title: with a colon.* (a) This. holds: 1" in text
    assert "Nearest to its tolerance: far, off by 1 of 0.5 allowed." in text


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
