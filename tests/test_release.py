"""What is released: a wheel that installs into an empty environment and works from there."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow  # builds twice and installs jax: a minute


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist of a clean copy of the sources, and the wheel made from it."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--outdir", str(dist), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return dist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The binaries of a new environment that holds the wheel and what it asks for."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home, with_pip=True)
    (wheel,) = built.glob("*.whl")
    pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet"]
    versions = ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *versions, f"{wheel}[report]"], check=True, capture_output=True)
    return home / "bin"


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    clean = {key: x for key, x in os.environ.items() if not key.startswith("PYTHON")}
    command = [program, *arguments]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=True)


def test_the_wheel_holds_the_package_its_types_and_its_licence_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ufm"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "ufm").rglob("*.py")}
    assert {"ufm/py.typed", "ufm/report/report.html", *sources} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_source_archive_holds_what_its_tests_need(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[-1] for name in opened.getnames()}
    needed = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "CONTRIBUTING.md",
              "tests/conftest.py", "tests/reference.py", "experiments/runner.py",
              "docs/index.md", "mkdocs.yml", "constraints.txt"}  # fmt: skip
    assert needed <= names


def test_the_command_works_in_an_empty_environment(installed, tmp_path):
    text = run(installed / "ufm", "--help", cwd=tmp_path).stdout
    assert "descend" in text
    assert "certify" in text
    found = run(installed / "python", "-c", "import ufm; print(ufm.__file__)", cwd=tmp_path).stdout
    assert str(ROOT) not in found
    run(
        installed / "ufm", "descend", "--K", "3", "--d", "4", "--n", "5", "--out", "runs/first",
        cwd=tmp_path,
    )  # fmt: skip
    run(installed / "ufm", "report", "runs/first", cwd=tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 1e6


def test_the_wheel_carries_types_for_its_users(installed, tmp_path):
    (tmp_path / "mine.py").write_text("import ufm\n\nx: str = ufm.Problem(K=3, d=4, n=5).N\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", installed / "python", "mine.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'has type "int", variable has type "str"' in checked.stdout


COMPLETE = """
source completion
function=$(complete -p ufm); function=${function#*-F }; function=${function%% *}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$function"; echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"), [("ufm de", "descend"), ("ufm descend --opt", "--optimizer")]
)
def test_the_shell_completes_commands_and_flags(installed, tmp_path, words, expected):
    script = run(installed / "ufm", "--tyro-print-completion", "bash", cwd=tmp_path).stdout
    (tmp_path / "completion").write_text(script)
    told = run(Path("/bin/bash"), "-c", COMPLETE, "bash", *words.split(), cwd=tmp_path).stdout
    assert told.strip() == expected
