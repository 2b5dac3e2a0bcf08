"""The house stays in order: imports point downwards, public names are documented."""

import ast
import gc
import importlib
import inspect
import textwrap
import weakref
from pathlib import Path

import pytest

import ufm

PACKAGE = Path(ufm.__file__).parent
# Folders and modules of `ufm` itself; those of one floor do not import each other.
FLOORS = (
    {"check"},
    {"linalg", "runtime", "losses"},
    {"runs", "metrics"},
    {"model", "plots"},
    {"theory", "certificate"},
    {"hessian"},
    {"descent", "networks"},
    {"critical", "sweeps"},
    {"report"},
    {"commands"},
    {"cli"},
)
FLOOR = {name: i for i, floor in enumerate(FLOORS) for name in floor}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name_of(path: Path) -> str:
    """The module of a file below `ufm`, as "model.problem"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = [name_of(path) for path in FILES]


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not f"{node.module}.".startswith("ufm."):
            continue
        base = (node.module or "").removeprefix("ufm").lstrip(".")
        for alias in node.names:
            inner = f"{base}.{alias.name}".lstrip(".")
            found.add(inner if inner in MODULES else base)
    return found - {""}


IMPORTS = {name_of(path): imports(path) for path in FILES}


def floor_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    own = floor_of(module)
    others = {floor_of(name) for name in IMPORTS[module]} - {own}
    above = {name for name in others if FLOOR[name] >= FLOOR[own]}
    assert not above, f"ufm.{module} on floor {FLOOR[own]} imports {above}"


@pytest.mark.parametrize("folder", sorted(FLOOR))
def test_no_circle_inside_a_folder(folder):
    """Faces, the `__init__` of folders, are above what they show."""
    inside = {name for name in MODULES if floor_of(name) == folder}
    left = {name: IMPORTS[name] & inside - {name} for name in inside}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {left}"


def test_theory_imports_no_optimiser_no_probe_and_no_certificate():
    below, todo = set(), [name for name in MODULES if floor_of(name) == "theory"]
    while todo:
        module = todo.pop()
        below.add(floor_of(module))
        todo.extend(name for name in IMPORTS[module] if floor_of(name) not in below)
    # What minimises, and what computes curvature or bounds: agreement with these is evidence.
    assert not below & {"descent", "critical", "certificate", "hessian", "sweeps", "networks"}


def map_of_the_house() -> list[str]:
    """One line a folder, with the sentence at its head, then the names of its modules."""
    lines = []
    for name in (name for floor in FLOORS for name in sorted(floor)):
        room = importlib.import_module(f"ufm.{name}")
        head = (room.__doc__ or "").strip().partition("\n")[0]
        if not hasattr(room, "__path__"):
            lines.append(f"{name + '.py':<16}{head}")
            continue
        files = sorted(path.stem for path in (PACKAGE / name).glob("*.py"))
        inside = ", ".join(stem for stem in files if stem != "__init__")
        lines.append(f"{name + '/':<16}{head}")
        lines += textwrap.wrap(inside, 84, initial_indent=" " * 16, subsequent_indent=" " * 16)
    return lines


def test_the_map_of_the_readme_is_the_tree():
    told = "\n".join(map_of_the_house())
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    assert f"```\n{told}\n```\n" in readme, f"the map in README.md should read\n{told}"


def test_every_public_name_is_documented():
    bare = []
    for module in MODULES:
        room = importlib.import_module(f"ufm.{module}")
        if not (room.__doc__ or "").strip():
            bare.append(module)
        for name, thing in vars(room).items():
            own = getattr(thing, "__module__", None) == room.__name__
            is_public = not name.startswith("_") and (
                inspect.isfunction(thing) or inspect.isclass(thing)
            )
            # A NamedTuple without a docstring gets "Name(field, …)" from Python.
            doc = (thing.__doc__ or "").strip() if own and is_public else "not ours"
            if not doc or doc.startswith(f"{name}("):
                bare.append(f"{module}.{name}")
    assert not bare


def test_names_in_all_are_those_that_the_package_offers():
    """What type checkers see, what `__all__` says and what is there at first use are one set."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = [
        alias.asname or alias.name
        for node in seen.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == ufm.__all__
    assert all(getattr(ufm, name) is not None for name in ufm.__all__)
    assert all(hasattr(ufm, name) for name in ufm.__all__)


class Ring:
    def __init__(self):
        self.ring = self


@pytest.mark.parametrize("collecting", [True, False])
def test_imports_at_first_use_leave_the_garbage_collector_as_it_was(monkeypatch, collecting):
    monkeypatch.delitem(vars(ufm), "Problem", raising=False)
    was, lost = gc.isenabled(), weakref.ref(Ring())
    (gc.enable if collecting else gc.disable)()
    try:
        assert ufm.Problem.__name__ == "Problem"
        assert (gc.isenabled(), gc.get_freeze_count()) == (collecting, 0)
    finally:
        (gc.enable if was else gc.disable)()
    gc.collect()
    assert lost() is None
