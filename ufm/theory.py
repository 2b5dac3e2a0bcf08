"""Closed forms: the global minimum, and the spectrum of the Hessian there and at the origin.

The public names of two rooms, `minimum` (Zhu et al. 2021, theorem 3.1) and `spectra`. Neither
imports an optimiser or a probe, so that agreement with a simulation is evidence.
"""

from ufm.minimum import (
    Norms,
    check_assumptions,
    global_minimizer,
    global_value,
    is_collapsed,
    margin,
    norms,
    wrong_probability,
)
from ufm.spectra import (
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
    "check_assumptions",
    "condition_number",
    "gd_rate",
    "global_minimizer",
    "global_value",
    "hessian_spectrum",
    "is_collapsed",
    "margin",
    "norms",
    "optimal_step",
    "orbit_dimension",
    "origin_spectrum",
    "wrong_probability",
]
