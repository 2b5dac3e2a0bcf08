"""Simulator for the landscape of the unconstrained feature model of neural collapse.

    f(W, H, b) = (1/N) Σ_i CE(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

Start with `Problem`, `init_params`, `descend` and `certify`; `solve` goes on to a critical point at
rounding, `hessian` says what it is; `theory` holds the closed forms to compare with, `metrics`
measures NC1–NC4 on any features.
"""

from ufm import (
    certificate,
    critical,
    descent,
    geometry,
    hessian,
    losses,
    metrics,
    optimizers,
    solver,
    theory,
)
from ufm.certificate import Certificate, certify
from ufm.descent import Run, descend
from ufm.problem import Params, Problem, gradient, init_params, objective
from ufm.solver import Solution, solve

__all__ = [
    "Certificate",
    "Params",
    "Problem",
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
    "metrics",
    "objective",
    "optimizers",
    "solve",
    "solver",
    "theory",
]
