"""The house stays in order: imports point downwards, public names are documented."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import ufm

PACKAGE = Path(ufm.__file__).parent
FLOORS = (
    {"check", "interrupts"},
    {"labels", "values"},
    {
        "blocks",
        "features",
        "geometry",
        "losses",
        "threads",
        "leader",
        "processes",
        "programs",
        "sessions",
        "storage",
        "minres",
        "claims",
        "scaling",
        "pair",
    },
    {"problem", "lbfgs", "record", "plots", "report"},
    {"evaluation", "tridiagonal"},
    {
        "interactive",
        "landscape",
        "minimum",
        "metrics",
        "certificate",
        "curvature",
        "lanczos",
        "optimizers",
        "minibatch",
        "mesh",
        "quotient",
    },
    {"spectra", "loop", "newton"},
    {"stationarity"},
    {"theory", "reduction", "descent", "solver"},
    {"inertia", "grid"},
    {"batches"},
    {"verdict", "eigenpairs", "sweeps"},
    {"hessian", "orbits", "sources"},
    {"census", "escape"},
    {"atlas", "verification"},
    {"stored"},
    {"critical", "sections"},
    {"networks.data", "networks.models"},
    {"networks.checkpoints"},
    {"networks.training", "networks.evaluation"},
    {"commands.files"},
    {"commands.shared"},
    {"commands.table"},
    {
        f"commands.{name}"
        for name in (
            "theory",
            "descend",
            "certify",
            "probe",
            "measure",
            "census",
            "verify",
            "sweep",
            "report",
        )
    },
    {"commands.menu"},
    {"cli"},
)
FLOOR = {module: i for i, floor in enumerate(FLOORS) for module in floor}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)


def imports(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text())
    found = set()
    for node in ast.walk(tree):
        folders = "ufm", "ufm.networks", "ufm.commands"
        if isinstance(node, ast.ImportFrom) and node.module in folders:
            room = node.module.removeprefix("ufm").lstrip(".")
            found |= {f"{room}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ufm."):
            found.add((node.module or "").removeprefix("ufm."))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    above = {name for name in imports(module) if FLOOR[name] >= FLOOR[module]}
    assert not above, f"ufm.{module} on floor {FLOOR[module]} imports {above}"


def test_theory_imports_no_optimiser_and_no_probe():
    below, todo = set(), ["theory"]
    while todo:
        module = todo.pop()
        below.add(module)
        todo.extend(imports(module) - below)
    # What minimises, and what computes curvature or bounds: agreement with these is evidence.
    optimisers = {"optimizers", "lbfgs", "minibatch", "loop", "descent", "newton", "solver"}
    probes = {"certificate", "curvature", "reduction", "inertia", "lanczos", "eigenpairs",
              "verdict", "hessian", "metrics", "orbits"}  # fmt: skip
    assert optimisers | probes <= FLOOR.keys()
    assert not below & (optimisers | probes)


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
