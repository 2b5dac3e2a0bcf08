"""Probes of the Hessian: products, extreme eigenpairs, density, exact index and spectrum.

Which to use: `product` inside jit and in matrix-free methods; `dense` up to 16,384 variables;
`inertia` for the index at any point and any N; `spectrum` for all eigenvalues at a critical point,
any d and n; `smallest` (on or off the symmetry orbit) and `largest` for one eigenvalue at any
point; `extreme` for a few eigenpairs at any point, with their residuals; `density` for the shape of
the whole spectrum. `verdict` says what kind of critical point a point is, and why. Everything
except the products works in float64 whatever the precision of params.

∇²f is that of f as a function of all W, H and b. A fixed classifier is refused by all of these but
`verdict`. Where the features are not free, the products and `dense` are still those of this f;
functions that return eigenvalues refuse such problems, because only eigenvalues on the free
variables would be meaningful. Two exceptions: where H ≥ 0, `inertia` counts on the face of a point,
with the zeros of H fixed; on the sphere, `inertia` and `spectrum` are of the Hessian in tangents.
"""

from ufm.hessian.curvature import (
    Linearization,
    apply,
    dense,
    flatten,
    gauss_newton_product,
    linearize,
    product,
    unflatten,
)
from ufm.hessian.decision import Verdict, Witness, verdict, witness
from ufm.hessian.density import Density, density
from ufm.hessian.eigenpairs import Extreme, extreme
from ufm.hessian.ends import largest, smallest
from ufm.hessian.reduction import spectrum
from ufm.hessian.signs import Inertia, inertia, inertia_of
from ufm.theory.spectra import Spectrum

__all__ = [
    "Density",
    "Extreme",
    "Inertia",
    "Linearization",
    "Spectrum",
    "Verdict",
    "Witness",
    "apply",
    "dense",
    "density",
    "extreme",
    "flatten",
    "gauss_newton_product",
    "inertia",
    "inertia_of",
    "largest",
    "linearize",
    "product",
    "smallest",
    "spectrum",
    "unflatten",
    "verdict",
    "witness",
]
