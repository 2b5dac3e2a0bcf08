"""Closed forms and theorems: the global minimum, spectra there and at the origin, the landscape.

The public names of three rooms, `minimum` (Zhu et al. 2021, theorem 3.1), `spectra` and
`landscape` (which theorems hold for a problem, and the least eigenvalue by them). None of them
imports an optimiser or a probe, so that agreement with a simulation is evidence.
"""

from ufm.theory.landscape import Theorem, least_eigenvalue_bound, least_free_eigenvalue, theorems
from ufm.theory.minimum import (
    Norms,
    check_assumptions,
    global_minimizer,
    global_value,
    is_collapsed,
    margin,
    norms,
    wrong_probability,
)
from ufm.theory.spectra import (
    Spectrum,
    condition_number,
    gd_rate,
    hessian_spectrum,
    optimal_step,
    orbit_dimension,
    origin_spectrum,
)

__all__ = [
    "Norms",
    "Spectrum",
    "Theorem",
    "check_assumptions",
    "condition_number",
    "gd_rate",
    "global_minimizer",
    "global_value",
    "hessian_spectrum",
    "is_collapsed",
    "least_eigenvalue_bound",
    "least_free_eigenvalue",
    "margin",
    "norms",
    "optimal_step",
    "orbit_dimension",
    "origin_spectrum",
    "theorems",
    "wrong_probability",
]
