"""Closed forms and theorems: the global minimum, spectra there and at the origin, the landscape.

One closed form a module: `minimum` (cross-entropy; Zhu et al. 2021, theorem 3.1), `groups`
(cross-entropy of unequal classes), `symmetric` (other losses that treat all classes alike),
`squared`, `nonnegative` (features H ≥ 0) and `sphere` (unit features and rows), among which
`lookup` chooses; `fixed` (a fixed classifier); `softmax_codes` and `candidates` (configurations
where no simplex fits, and their values); `spectra` (all eigenvalues at the minimum and at the
origin); `landscape` (the claims that hold for a problem, the least eigenvalue); `shared` (common
assumptions). None of them imports an optimiser or a probe, so that agreement with a simulation is
evidence.
"""

from ufm.theory.candidates import CodeMinimum, code_minimum
from ufm.theory.fixed import FixedMinimum, fixed_minimum
from ufm.theory.groups import least as certified_minimum
from ufm.theory.groups import merged, seli, seli_is_optimal, separation
from ufm.theory.landscape import Claim, claims, least_eigenvalue_bound, least_free_eigenvalue
from ufm.theory.lookup import (
    geometry_of,
    global_minimizer,
    global_value,
    is_collapsed,
    margin,
    norms,
)
from ufm.theory.minimum import Norms, check_assumptions, wrong_probability
from ufm.theory.nonnegative import SwitchedOff, margins, switched_off
from ufm.theory.softmax_codes import Code, codes, hardmax_margin
from ufm.theory.spectra import (
    Spectrum,
    condition_number,
    gd_rate,
    hessian_spectrum,
    optimal_step,
    orbit_dimension,
    origin_spectrum,
)
from ufm.theory.sphere import SphereBound, sphere_bound, sphere_value
from ufm.theory.squared import CriticalPoint, critical_points

__all__ = [
    "Claim",
    "Code",
    "CodeMinimum",
    "CriticalPoint",
    "FixedMinimum",
    "Norms",
    "Spectrum",
    "SphereBound",
    "SwitchedOff",
    "certified_minimum",
    "check_assumptions",
    "claims",
    "code_minimum",
    "codes",
    "condition_number",
    "critical_points",
    "fixed_minimum",
    "gd_rate",
    "geometry_of",
    "global_minimizer",
    "global_value",
    "hardmax_margin",
    "hessian_spectrum",
    "is_collapsed",
    "least_eigenvalue_bound",
    "least_free_eigenvalue",
    "margin",
    "margins",
    "merged",
    "norms",
    "optimal_step",
    "orbit_dimension",
    "origin_spectrum",
    "seli",
    "seli_is_optimal",
    "separation",
    "sphere_bound",
    "sphere_value",
    "switched_off",
    "wrong_probability",
]
