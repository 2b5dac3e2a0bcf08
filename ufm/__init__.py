"""Simulator for the landscape of the unconstrained feature model of neural collapse.

    f(W, H, b) = (1/N) Σ_i CE(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

Start with `Problem`, `init_params`, `descend` and `certify`; `solve` goes on to a critical point at
rounding, `hessian` says what it is; `theory` holds the closed forms to compare with, `metrics`
measures NC1–NC4 on any features; `sweep` runs whole grids of problems.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ufm import (
        certificate,
        critical,
        descent,
        geometry,
        hessian,
        losses,
        mesh,
        metrics,
        optimizers,
        solver,
        sweeps,
        theory,
    )
    from ufm.certificate import Certificate, certify
    from ufm.check import Refused
    from ufm.descent import Run, descend
    from ufm.grid import Grid, Plan
    from ufm.problem import Params, Problem, gradient, init_params, objective
    from ufm.solver import Solution, solve
    from ufm.sweeps import sweep

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
    "init_params",
    "losses",
    "mesh",
    "metrics",
    "objective",
    "optimizers",
    "solve",
    "solver",
    "sweep",
    "sweeps",
    "theory",
]

# Where the names live that are no modules. All are imported at first use: JAX takes a second, in
# which the command `ufm` has to answer Ctrl-C already.
_HOMES = {
    "Certificate": "certificate",
    "Grid": "grid",
    "Params": "problem",
    "Plan": "grid",
    "Problem": "problem",
    "Refused": "check",
    "Run": "descent",
    "Solution": "solver",
    "certify": "certificate",
    "descend": "descent",
    "gradient": "problem",
    "init_params": "problem",
    "objective": "problem",
    "solve": "solver",
    "sweep": "sweeps",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"ufm.{_HOMES[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module 'ufm' has no attribute {name!r}")
    else:
        try:
            value = importlib.import_module(f"ufm.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"ufm.{name}":
                raise
            raise AttributeError(f"module 'ufm' has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
