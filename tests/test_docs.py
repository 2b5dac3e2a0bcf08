"""The documentation says what is true: blocks run, commands parse, links lead somewhere.

The `>>>` examples of the pages run as doctests, by `--doctest-glob`; here is all the rest.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from ufm import cli
from ufm.commands import menu
from ufm.sweeps import run as sweeps
from ufm.sweeps import toml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'^--8<-- "(docs/scripts/\w+\.py)"$', re.MULTILINE)
SCRIPTS = sorted((ROOT / "docs" / "scripts").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for name, text in found if name == language]


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("ufm ") and "--tyro-" not in line
    }
)


def test_the_pages_show_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_on_a_page_is_one_that_the_command_line_takes(command):
    told = tyro.cli(menu.Command, args=shlex.split(command)[1:])
    assert hasattr(told, "act")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_toml_block_is_a_grid(page, tmp_path):
    for block in blocks(page, "toml"):
        (tmp_path / "grid.toml").write_text(block)
        assert toml.read(tmp_path / "grid.toml").cells()


def test_every_python_block_of_the_pages_runs_as_a_doctest_or_is_a_script_that_runs():
    for page in PAGES[1:]:
        for block in blocks(page, "pycon"):
            assert block.startswith(">>> "), f"{page.name}: {block}"
        for block in blocks(page, "python"):
            assert INCLUDED.fullmatch(block.strip()), f"{page.name}: {block}"
    used = {name for page in PAGES for name in INCLUDED.findall(page.read_text(encoding="utf-8"))}
    assert {ROOT / name for name in used} == set(SCRIPTS)


@pytest.mark.slow
def test_the_script_for_many_devices_runs_on_four():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, ROOT / "docs/scripts/many_gpus.py"]
    sizes = ["--K", "10", "--d", "16", "--n", "80"]
    done = subprocess.run(
        [*command, *sizes], env=environment, capture_output=True, text=True, check=True
    )
    assert re.match(r"4 devices, \d+ steps: certified", done.stdout)


@pytest.mark.slow
def test_the_script_for_a_cluster_runs_on_the_workers_of_this_machine(tmp_path):
    command = [sys.executable, ROOT / "docs/scripts/cluster.py", "--seeds", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.match(r"12 cells, worst gap \d\.\de-\d+", done.stdout)
    assert len(sweeps.load(tmp_path / "runs/cluster")[0]["cell"]) == 12


def pytorch(name: str):
    """A script of the recipes that needs PyTorch."""
    pytest.importorskip("torch", reason="torch is in the [bench] extra alone: 200 MB and more")
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/scripts/{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_features_of_a_pytorch_network_collapse_in_training(tmp_path, monkeypatch, capsys):
    script = pytorch("features_from_pytorch")
    monkeypatch.chdir(tmp_path)
    before, after = script.example()
    assert after.nc1 < before.nc1 / 5
    assert after.nc3 < before.nc3 / 10
    assert after.nc4 == 0
    assert cli.main(["measure", "features.npz"]) == 0
    assert "nc1" in capsys.readouterr().out


def test_a_pytorch_network_is_measured_in_batches():
    training, test = pytorch("stream_from_pytorch").example()
    assert training.counts.sum() == 180
    assert training.detail().accuracy == 1
    assert training.detail().nearest_centre > 0.9
    assert training.collapse().nc1 < test.collapse().nc1
    # The geometry of both is that of the training means.
    assert test.collapse().nc2_means == pytest.approx(training.collapse().nc2_means, rel=1e-10)


LINK = re.compile(r'\]\(([^)#\s]+)[^)]*\)|<img src="([^"]+)"')
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "figures" / "README.md"]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_links_of_a_page_lead_to_files_of_the_repository(page):
    places = ("".join(found) for found in LINK.findall(page.read_text(encoding="utf-8")))
    local = [place for place in places if not place.startswith(("https://", "mailto:"))]
    assert [place for place in local if not (page.parent / place).exists()] == []


# The site


def build(home: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    clean = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture
def home(tmp_path) -> Path:
    """A copy of what the site is built from."""
    pytest.importorskip("mkdocs", reason="install the [docs] extra")
    pytest.importorskip("ziamath", reason="install the [docs] extra")
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "ufm"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "figures", tmp_path / "figures", ignore=shutil.ignore_patterns("data"))
    return tmp_path


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(home):
    """With a module that no page names, which is put among the inner ones."""
    (home / "ufm" / "fresh.py").write_text('''"""New."""\n\n\ndef thing():\n    """It."""\n''')
    built = build(home)
    assert built.returncode == 0, built.stderr
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//'
        r"|@import|url\((?:https?:)?//"
    )
    pages = list((home / "build/docs").rglob("*.html"))
    assert len(pages) > 15
    assert [page.name for page in pages if loads.search(page.read_text())] == []
    heads = re.findall(r'<h2 id="(ufm[\w.]*)"', "".join(x.read_text() for x in pages))
    parts = (path.relative_to(ROOT).with_suffix("").parts for path in ROOT.glob("ufm/**/*.py"))
    modules = {".".join(names).removesuffix(".__init__") for names in parts}
    assert sorted(heads) == sorted(
        name
        for name in {*modules, "ufm.fresh"}
        if name != "ufm.cli" and not name.startswith("ufm.commands")
    )
    assert 'id="ufm.fresh.thing"' in (home / "build/docs/api/modules.html").read_text()
    model = (home / "build/docs/model.html").read_text()
    assert model.count("<math ") > 50
    assert "arithmatex" not in model


@pytest.mark.slow
def test_broken_links_and_a_public_name_without_a_docstring_fail_the_build(home):
    """Each of them is named; one is enough: strict builds end at any warning."""
    for page, old, new in (
        ("docs/derivations.md", "(model.md)", "(modell.md)"),
        ("docs/index.md", "(model.md)", "(model.md#none)"),
        ("ufm/plots.py", '"""The palette\'s colour of a series."""', ""),
    ):
        text = (home / page).read_text()
        assert old in text
        (home / page).write_text(text.replace(old, new, 1))
    built = build(home)
    assert built.returncode != 0
    faults = [x for x in built.stderr.splitlines() if x.startswith(("WARNING", "ERROR"))]
    for complaint in ("modell.md", "none", "ufm.plots.colour"):
        assert any(complaint in fault for fault in faults), built.stderr
