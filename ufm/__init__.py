"""Simulator for the landscape of the unconstrained feature model of neural collapse.

    f(W, H, b) = (1/N) Σ_i CE(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

Start with `Problem`, `init_params`, `descend` and `certify`; `solve` goes on to a critical point at
rounding, `hessian` says what it is; `theory` holds the closed forms to compare with, `metrics`
measures NC1–NC4 on any features; `sweep` runs whole grids of problems.
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ufm import certificate, critical, descent, hessian, losses, metrics, plots, sweeps, theory
    from ufm.certificate import Certificate, certify
    from ufm.check import Refused
    from ufm.critical import solver
    from ufm.critical.solver import Solution, solve
    from ufm.descent import optimizers
    from ufm.descent.columns import host
    from ufm.descent.run import Run, descend
    from ufm.model import mesh
    from ufm.model.objective import gradient, objective
    from ufm.model.points import init_params
    from ufm.model.problem import Params, Problem
    from ufm.runs import record
    from ufm.sweeps.grid import Grid, Plan
    from ufm.sweeps.run import sweep
    from ufm.theory import geometry

__all__ = [
    "Certificate",
    "Grid",
    "Params",
    "Plan",
    "Problem",
    "Refused",
    "Run",
    "Solution",
    "certificate",
    "certify",
    "critical",
    "descend",
    "descent",
    "geometry",
    "gradient",
    "hessian",
    "host",
    "init_params",
    "losses",
    "mesh",
    "metrics",
    "objective",
    "optimizers",
    "plots",
    "record",
    "solve",
    "solver",
    "sweep",
    "sweeps",
    "theory",
]

# Where the names live: of a module, or a module itself. All are imported at first use: JAX takes a
# second, in which the command `ufm` has to answer Ctrl-C already.
_HOMES = {
    "Certificate": "certificate",
    "Grid": "sweeps.grid",
    "Params": "model.problem",
    "Plan": "sweeps.grid",
    "Problem": "model.problem",
    "Refused": "check",
    "Run": "descent.run",
    "Solution": "critical.solver",
    "certify": "certificate",
    "descend": "descent.run",
    "gradient": "model.objective",
    "host": "descent.columns",
    "init_params": "model.points",
    "objective": "model.objective",
    "solve": "critical.solver",
    "sweep": "sweeps.run",
}
_MODULES = {
    "geometry": "theory.geometry",
    "mesh": "model.mesh",
    "optimizers": "descent.optimizers",
    "record": "runs.record",
    "solver": "critical.solver",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(_imported(f"ufm.{_HOMES[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'ufm' has no attribute {name!r}")
    else:
        home = f"ufm.{_MODULES.get(name, name)}"
        try:
            value = _imported(home)
        except ModuleNotFoundError as error:
            if error.name != home:
                raise
            raise AttributeError(f"module 'ufm' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def _imported(home: str) -> Any:
    """A module.

    Modules stay: Python need not look for garbage among them, neither now nor soon, which takes a
    tenth of a second. Without a pause they are as old for it as after several such looks.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(home)
    finally:
        if collecting:
            gc.enable()
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # all objects are in the oldest generation now


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
